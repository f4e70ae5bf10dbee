# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""The teacher: a NeMo checkpoint, loaded, frozen and run, and never a part of the student."""

from __future__ import annotations

import copy
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from nemo_tutornet.config import TeacherConfig
from nemo_tutornet.errors import TutorError
from nemo_tutornet.functional.losses import confidence
from nemo_tutornet.nemo_io.archive import NemoArchive
from nemo_tutornet.nemo_io.isolation import without_process_group
from nemo_tutornet.nemo_io.layers import ENCODER, Capture, Layer, encode_silence, hop_of, measure
from nemo_tutornet.nemo_io.restore import ctc_head, labels_of, locate, restore_ctc
from nemo_tutornet.nemo_io.stock_config import check_teacher
from nemo_tutornet.teachers.early_exit import EarlyExit, find_early_exit
from nemo_tutornet.teachers.targets import Hypothesis, TeacherTargets

# Feature frames of the utterances on which a cut encoder is compared with the whole one: every remainder of
# strides up to 16.
_CHECKED_FRAMES = range(40, 57)


class Teacher:
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

    Attributes:
        sha256: of its file; None where it did not come from one.
    """

    def __init__(self, model: Any, precision: str = "auto", hint_layer: str | None = None) -> None:
        self.model = model
        self.sha256: str | None = None
        _own_activations(model)
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
        self._cut = self._find_early_exit()

    @classmethod
    def from_config(
        cls, config: TeacherConfig, hint_layer: str | None = None, key: str = "model.tutor.teacher"
    ) -> Teacher:
        """Restores and freezes the teacher that a config names.

        Args:
            config: of the teacher.
            hint_layer: module path; None is the encoder's output.
            key: the config's, for messages.

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
        teacher = cls(restore_ctc(archive), config.precision, hint_layer)
        teacher.sha256 = archive.sha256
        return teacher

    @property
    def labels(self) -> list[str]:
        """Labels in the order of the posterior, without the blank, which is last; none for a transducer."""
        return [] if self.head is None else labels_of(self.model, self.head)

    @property
    def sample_rate(self) -> int:
        """Samples per second that the front end expects."""
        return int(self.model.preprocessor._sample_rate)

    @property
    def ends_in_layer_norm(self) -> bool:
        """True where the hint layer's output is layer-normalised (the Conformer family), so its energy is
        nearly constant.
        """
        module = self.model.get_submodule(self.hint_layer.path)
        if self.hint_layer.path == ENCODER and hasattr(module, "layers"):
            if getattr(module, "out_proj", None) is not None:
                return False
            module = module.layers[-1]
        children = list(module.children())
        return isinstance(module, nn.LayerNorm) or (bool(children) and isinstance(children[-1], nn.LayerNorm))

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

    @torch.no_grad()
    def __call__(
        self, signal: Tensor, lengths: Tensor, *, hidden: bool, posteriors: bool, hypotheses: bool = False
    ) -> TeacherTargets:
        """Runs the teacher on raw audio; what is not asked for is not computed, the encoder behind the hint
        layer included.

        Args:
            signal: waveform `[B, N]`, fp32.
            lengths: valid samples `[B]`.
            hidden: give the hint layer.
            posteriors: run the CTC head and give log-probabilities; a transducer has none.
            hypotheses: decode, as the teacher's own `decoding` section says (greedy or beam).

        Returns:
            Targets on the teacher's frames, detached.
        """
        model = self.model
        self.move_to(signal.device)
        if any(module.training for module in model.modules()):
            raise RuntimeError("the teacher left eval mode; something calls train() on it")
        dtype = self._autocast_dtype(signal.device)
        with torch.autocast(signal.device.type, dtype=dtype or torch.bfloat16, enabled=dtype is not None):
            features, feature_lengths = model.preprocessor(input_signal=signal, length=lengths)
            # Alone, because the host would wait for every other rank once more in each step, for a buffer
            # that grows by itself.
            if self._cut is not None and hidden and not (posteriors or hypotheses):
                with without_process_group():
                    layer, encoded_lengths = self._cut.run(model, features, feature_lengths)
                return TeacherTargets(lengths=encoded_lengths, hidden=layer)
            with Capture(model, self.hint_layer.path) as captured, without_process_group():
                encoded, encoded_lengths = model.encoder(audio_signal=features, length=feature_lengths)[:2]
            log_probs = None
            if posteriors or (hypotheses and self.head is not None):
                assert self.head is not None, "pair() refuses losses that a transducer cannot serve"
                log_probs = self.head(encoder_output=encoded)
        return TeacherTargets(
            lengths=encoded_lengths,
            log_probs=log_probs if posteriors else None,
            hypotheses=self._decode(encoded, encoded_lengths, log_probs) if hypotheses else None,
            hidden=captured.tensor(self.hint_layer.time_axis) if hidden else None,
        )

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
        with without_process_group():
            return find_early_exit(self.model, self.hint_layer, features, feature_lengths)


def _own_activations(model: nn.Module) -> None:
    """Gives a model activations of its own.

    NeMo's Conformer layers take theirs from a default argument, so that all Conformers of a process share one
    object, and a Conformer student in train mode would take its teacher's along.
    """
    for module in list(model.modules()):
        if isinstance(getattr(module, "activation", None), nn.Module):
            module.activation = copy.deepcopy(module.activation)


def _best(found: Any) -> Any:
    """NeMo 2 gives (best, all) where NeMo 3 gives the best; a beam search may give several an utterance, best
    first.
    """
    found = found[0] if isinstance(found, tuple) else found
    return [entry[0] if isinstance(entry, list) else entry for entry in found]


def _text(entry: Any) -> str:
    return entry if isinstance(entry, str) else str(entry.text)
