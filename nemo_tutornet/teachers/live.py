# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""The teacher: a NeMo checkpoint, loaded, frozen and run, and never a part of the student."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from nemo_tutornet.config import TeacherConfig
from nemo_tutornet.data.dataloader import TrainingBatch, UtteranceResolver
from nemo_tutornet.errors import TutorError
from nemo_tutornet.functional.frame_weighting import confidence
from nemo_tutornet.nemo_io.archive import NemoArchive
from nemo_tutornet.nemo_io.isolation import without_process_group
from nemo_tutornet.nemo_io.layers import (
    ENCODER,
    Capture,
    Layer,
    encode_silence,
    ends_in_layer_norm,
    hop_of,
    measure,
    unshare_activations,
)
from nemo_tutornet.nemo_io.model_info import describe_model
from nemo_tutornet.nemo_io.restore import ctc_head, labels_of, locate, pointwise_decoder, restore_ctc
from nemo_tutornet.nemo_io.stock_config import check_teacher
from nemo_tutornet.teachers.early_exit import EarlyExit, find_early_exit
from nemo_tutornet.teachers.side_stream import SideStream
from nemo_tutornet.teachers.targets import Hypothesis, TargetRequest, TeacherTargets

# Feature frames of the utterances on which a cut encoder is compared with the whole one: every remainder of
# strides up to 16.
_CHECKED_FRAMES = range(40, 57)


class LiveTeacher:
    """A frozen NeMo recogniser that gives targets for audio.

    A CTC model, a hybrid through its CTC head, or a transducer, which has no posteriors on frames and so
    teaches by its encoder alone.

    It is no `nn.Module`, so a student that holds it does not register it: it stays out of `parameters()`,
    `state_dict()`, `train()`, DDP, ONNX export and every checkpoint. It owns its front end, its device and
    its precision.

    Legend: `B` utterances, `N` samples, `T` frames of the teacher, `D` width of the hint layer, `V` labels
        with the blank last.

    Args:
        model: a restored NeMo model; it is frozen in place.
        precision: `auto`, `fp32` or `bf16`.
        hint_layer: module path; None is the encoder's output.
        side_stream: runs the teacher beside the student on a GPU; None runs it on the current stream.

    Attributes:
        sha256: of its file; None where it did not come from one.
        source: the file or pretrained name that the config gives; empty where there is no config.
    """

    from_cache = False

    def __init__(
        self,
        model: Any,
        precision: str = "auto",
        hint_layer: str | None = None,
        side_stream: SideStream | None = None,
    ) -> None:
        self.model = model
        self.sha256: str | None = None
        self.source = ""
        self.side_stream = side_stream
        unshare_activations(model)  # a Conformer student in train mode would take its teacher's along
        self._isolated = _stop_length_sync(model.encoder)
        self.model.freeze()  # NeMo's: eval mode and no gradients
        self.head: Any = ctc_head(model)
        self._precision = precision
        silence = partial(encode_silence, model)
        self.encoder_layer = measure(model, ENCODER, silence, hop=hop_of(model))
        self.hint_layer: Layer = self.encoder_layer
        if hint_layer not in (None, ENCODER):
            self.hint_layer = measure(
                model, str(hint_layer), silence, "model.tutor.rkd.hint_layer", hop_of(model)
            )
        self._early_exit = self._find_early_exit()

    @classmethod
    def from_config(
        cls,
        config: TeacherConfig,
        hint_layer: str | None = None,
        key: str = "model.tutor.teacher",
        side_stream: SideStream | None = None,
    ) -> LiveTeacher:
        """Restores and freezes the teacher that a config names.

        Args:
            config: of the teacher.
            hint_layer: module path; None is the encoder's output.
            key: the config's, for messages.
            side_stream: as for the class.

        Raises:
            TutorError: no such file or pretrained name, unreadable, another sha256 than the config's, or a
                class that cannot teach.
        """
        archive = NemoArchive(locate(config.model_path, f"{key}.model_path"))
        if config.sha256 is not None and archive.sha256 != config.sha256.lower():
            raise TutorError(
                f"{key}.sha256 is {config.sha256}, but the sha256 of {archive.path} is "
                f"{archive.sha256 or 'none, it is a folder'}; "
                f"give the right file or correct the key."
            )
        check_teacher(archive.config, archive.path)
        teacher = cls(restore_ctc(archive), config.precision, hint_layer, side_stream)
        teacher.sha256, teacher.source = archive.sha256, str(config.model_path)
        return teacher

    @property
    def labels(self) -> list[str]:
        """Labels in the order of the posterior, without the blank, which is last; none for a transducer."""
        return [] if self.head is None else labels_of(self.model, self.head)

    @property
    def has_posteriors(self) -> bool:
        """False for a transducer, which has no CTC head."""
        return self.head is not None

    @property
    def sample_rate(self) -> int:
        """Samples per second that the front end expects."""
        return int(self.model.preprocessor._sample_rate)

    @property
    def ends_in_layer_norm(self) -> bool:
        """True where the hint layer's output is layer-normalised."""
        return ends_in_layer_norm(self.model, self.hint_layer)

    def precision_on(self, device: torch.device) -> str:
        """`fp32` or `bf16`: what it computes in on a device."""
        return "bf16" if self._autocast_dtype(device) else "fp32"

    def frames_of(self, seconds: float) -> int:
        """Frames of the encoder's output for that much audio."""
        return encode_silence(self.model, seconds)

    def move_to(self, device: torch.device) -> None:
        """Follows the student to a device."""
        if next(self.model.parameters()).device != device:
            self.model.to(device)

    def targets(self, batch: TrainingBatch, request: TargetRequest) -> TeacherTargets:
        """Runs the teacher on raw audio, and nothing of it that the request does not need.

        With a side stream, on a GPU, the targets are still being computed: `SideStream.wait` comes before the
        first read. Hypotheses are texts, for which the host waits anyway, so they are computed on the current
        stream.

        Args:
            batch: its `signal` `[B, N]`, fp32, and `signal_lengths` `[B]` are read.
            request: what is wanted. A transducer has no posteriors. Hypotheses are decoded as the teacher's
                own `decoding` section says (greedy or beam).

        Returns:
            Targets on the teacher's frames, detached.
        """
        self.move_to(
            batch.signal.device
        )  # before the fork of streams: weights are read on the current one, too
        compute = partial(self._compute, request=request)
        if self.side_stream is None or request.hypotheses:
            return compute(batch.signal, batch.signal_lengths)
        return self.side_stream.run(compute, batch.signal, batch.signal_lengths)

    @torch.no_grad()
    def _compute(self, signal: Tensor, lengths: Tensor, request: TargetRequest) -> TeacherTargets:
        model = self.model
        if any(module.training for module in model.modules()):
            raise RuntimeError("the teacher left eval mode; something calls train() on it")
        dtype = self._autocast_dtype(signal.device)
        with torch.autocast(signal.device.type, dtype=dtype or torch.bfloat16, enabled=dtype is not None):
            features, feature_lengths = model.preprocessor(input_signal=signal, length=lengths)
            if self._early_exit is not None and request == TargetRequest(hidden=True):
                with self._isolated():
                    layer, encoded_lengths = self._early_exit.run(model, features, feature_lengths)
                return TeacherTargets(lengths=encoded_lengths, hidden=layer)
            with Capture(model, self.hint_layer.path) as captured, self._isolated():
                encoded, encoded_lengths = model.encoder(audio_signal=features, length=feature_lengths)[:2]
            log_probs = None
            if request.posteriors or (request.hypotheses and self.head is not None):
                assert self.head is not None, "match_models() refuses losses that a transducer cannot serve"
                log_probs = self.head(encoder_output=encoded)
        hypotheses = self._decode(encoded, encoded_lengths, log_probs) if request.hypotheses else None
        return TeacherTargets(
            lengths=encoded_lengths,
            log_probs=log_probs if request.posteriors else None,
            hypotheses=hypotheses,
            hidden=captured.tensor(self.hint_layer.time_axis) if request.hidden else None,
        )

    def ctc_projection(self) -> nn.Conv1d | None:
        """Returns the CTC head where it is a single 1x1 convolution, for the decoder's warm start."""
        return pointwise_decoder(self.head)

    def check(self, request: TargetRequest, train_data: UtteranceResolver | None) -> None:
        """Accepts every training: a live teacher computes what is requested, for any audio."""

    def describe(self) -> dict[str, str]:
        """Returns what the teacher is, in words, for `nemo-tutornet check`."""
        return {"file": self.source, **describe_model(self.model).as_facts()}

    def _decode(self, encoded: Tensor, lengths: Tensor, log_probs: Tensor | None) -> list[Hypothesis]:
        if log_probs is None:
            # In its own precision, whatever the encoder's or the student's is: an LSTM takes no mixture of
            # two.
            with torch.autocast(encoded.device.type, enabled=False):
                found = self.model.decoding.rnnt_decoder_predictions_tensor(
                    encoder_output=encoded.float(), encoded_lengths=lengths
                )
            return [Hypothesis(_text(entry), None) for entry in _best(found)]
        decoding = getattr(self.model, "ctc_decoding", None) or self.model.decoding
        found = decoding.ctc_decoder_predictions_tensor(
            decoder_outputs=log_probs.float(), decoder_lengths=lengths
        )
        sure = confidence(log_probs, lengths).tolist()
        return [Hypothesis(_text(entry), value) for entry, value in zip(_best(found), sure, strict=True)]

    def _autocast_dtype(self, device: torch.device) -> torch.dtype | None:
        if self._precision == "auto":
            # Without emulation: torch also says yes for older GPUs, which only emulate bf16.
            fast = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
            return torch.bfloat16 if fast else None
        return torch.bfloat16 if self._precision == "bf16" else None

    def _find_early_exit(self) -> EarlyExit | None:
        """Where the encoder can stop when only the hint layer is wanted; None where it cannot."""
        if not self.hint_layer.path.startswith(f"{ENCODER}."):
            return None
        parameter = next(self.model.parameters())
        hop = self.sample_rate // 100
        lengths = torch.tensor([frames * hop for frames in _CHECKED_FRAMES], device=parameter.device)
        noise = torch.randn(len(lengths), int(lengths.max()), generator=torch.Generator().manual_seed(0))
        features, feature_lengths = self.model.preprocessor(
            input_signal=noise.to(parameter.device), length=lengths
        )
        with self._isolated():
            return find_early_exit(self.model, self.hint_layer, features, feature_lengths)


def _stop_length_sync(encoder: nn.Module) -> Callable[[], AbstractContextManager[None]]:
    """Keeps an encoder from asking all ranks for their longest batch, once more in each step.

    The Conformer family has a switch, which is turned off for good. Convolutional encoders have none, so a
    context hides the process group while they run.

    Returns:
        The context in which the encoder is run.
    """
    if hasattr(encoder, "sync_max_audio_length"):
        setattr(encoder, "sync_max_audio_length", False)  # noqa: B010 - a plain attribute, not a submodule
        return nullcontext
    return without_process_group


def _best(found: Any) -> Any:
    """NeMo 2 gives (best, all) where NeMo 3 gives the best; a beam search may give several an utterance, best
    first.
    """
    found = found[0] if isinstance(found, tuple) else found
    return [entry[0] if isinstance(entry, list) else entry for entry in found]


def _text(entry: Any) -> str:
    return entry if isinstance(entry, str) else str(entry.text)
