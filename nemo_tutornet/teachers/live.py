# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""The live teacher: a frozen NeMo checkpoint that computes targets and is never part of the student."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from nemo_tutornet.config import TeacherConfig
from nemo_tutornet.data.dataloader import TrainingBatch, UtteranceResolver
from nemo_tutornet.errors import TutorError
from nemo_tutornet.functional.fft_depthwise import fourier_depthwise
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
from nemo_tutornet.nemo_io.prompt import check_prompt, prompt_in_words, prompt_slots
from nemo_tutornet.nemo_io.restore import ctc_head, labels_of, locate, pointwise_decoder, restore_ctc
from nemo_tutornet.nemo_io.stock_config import check_teacher
from nemo_tutornet.teachers.adapted import adapted_targets
from nemo_tutornet.teachers.adapter import ADAPTER, Adapter, AdapterInfo
from nemo_tutornet.teachers.decode import decode
from nemo_tutornet.teachers.early_exit import EarlyExit, find_early_exit
from nemo_tutornet.teachers.side_stream import SideStream
from nemo_tutornet.teachers.targets import TargetRequest, TeacherTargets

# Lengths, in feature frames, of the utterances on which the early exit is compared with the whole encoder.
# They cover every remainder of strides up to 16.
_CHECKED_FRAMES = range(40, 57)


class LiveTeacher:
    """A frozen NeMo recogniser that computes targets from audio.

    The model is a CTC model, a hybrid model, of which the CTC head is used, a transducer, or an
    attention model (Canary). A transducer and an attention model have no posteriors on frames, so they
    provide only the hint layer and hypotheses.

    With an adapter (`teachers.adapter`), labels, frames and posteriors are the adapter's for every kind of
    model. The hypotheses are the adapter's where it makes fewer errors than the model on its validation set.

    The class is not an `nn.Module`, so a student that holds a teacher does not register it. The teacher stays
    out of `parameters()`, `state_dict()`, `train()`, DDP, ONNX export and every checkpoint. It owns its front
    end, its device and its precision.

    Legend: `B` utterances, `N` samples, `T` frames of the teacher, `D` width of the hint layer, `V` labels
    with the blank last.

    Args:
        model: a restored NeMo model. It is frozen in place.
        precision: `auto`, `fp32` or `bf16`. `auto` selects bf16 on a GPU that supports it without emulation,
            otherwise fp32.
        hint_layer: module path of the hint layer. None selects the encoder's output, or the adapter's hidden
            vectors where there is an adapter.
        side_stream: runs the teacher in parallel with the student on a GPU. None runs the teacher on the
            current stream.
        adapter: a CTC head of its own on the encoder, which `nemo-tutornet adapt` trained.
        prompt: options of an attention model's prompt, by slot.

    Attributes:
        sha256: checksum of the teacher's file; None if the teacher was not loaded from a file.
        source: the file or pretrained name given in the config; empty without a config.
    """

    from_cache = False

    def __init__(
        self,
        model: Any,
        precision: str = "auto",
        hint_layer: str | None = None,
        side_stream: SideStream | None = None,
        adapter: Adapter | None = None,
        prompt: Mapping[str, str] | None = None,
    ) -> None:
        self.model = model
        self.prompt = dict(prompt or {})
        self.sha256: str | None = None
        self.source = ""
        self.side_stream = side_stream
        unshare_activations(model)  # else train() on a Conformer student affects its teacher's
        self._isolated = _stop_length_sync(model.encoder)
        fourier_depthwise(model)  # a QuartzNet's forward takes a third of the time on a CPU
        self.model.freeze()  # NeMo's method: sets eval mode and disables gradients
        self.head: Any = ctc_head(model)
        self._precision = precision
        silence = partial(encode_silence, model)
        encoder = measure(model, ENCODER, silence, hop=hop_of(model))
        self._adapter = adapter
        self._upsampling = 1 if adapter is None else adapter.info.upsampling
        if adapter is not None and adapter.info.teacher_width != encoder.width:
            raise TutorError(
                f"the adapter is for an encoder {adapter.info.teacher_width} wide, and the teacher's is "
                f"{encoder.width} wide; make one for this teacher with `nemo-tutornet adapt`."
            )
        self.encoder_layer = encoder if adapter is None else adapter.layer
        self.hint_layer: Layer = self.encoder_layer
        if hint_layer == ENCODER:
            self.hint_layer = encoder
        elif hint_layer not in (None, self.encoder_layer.path):
            self.hint_layer = measure(
                model, str(hint_layer), silence, "model.tutor.rkd.hint_layer", hop_of(model)
            )
        self.further_hint_layers: tuple[Layer, ...] = ()
        self._early_exit = self._find_early_exit()

    def add_hint_layers(self, paths: Sequence[str]) -> None:
        """Adds the hint layers of `tutor.rkd.pairs`.

        Args:
            paths: module paths.

        Raises:
            TutorError: a layer does not exist, or does not return frames.
        """
        silence, hop = partial(encode_silence, self.model), hop_of(self.model)
        self.further_hint_layers = tuple(
            measure(self.model, path, silence, f"model.tutor.rkd.pairs[{i}].hint_layer", hop)
            for i, path in enumerate(paths)
        )
        self._early_exit = None  # found for one layer

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
            config: the teacher's section of the config.
            hint_layer: see the class.
            key: the section's key in the config, used in error messages.
            side_stream: see the class.

        Returns:
            The frozen teacher.

        Raises:
            TutorError: the file or pretrained name does not exist, the file cannot be read, its sha256
                differs from the config's, its model class cannot be a teacher, the adapter belongs to
                another teacher, or the options of its prompt are wrong.
        """
        # Read before the teacher is restored, which takes long.
        adapter = None if config.adapter is None else Adapter.load(config.adapter, f"{key}.adapter")
        archive = NemoArchive(locate(config.model_path, f"{key}.model_path"))
        if config.sha256 is not None and archive.sha256 != config.sha256.lower():
            raise TutorError(
                f"{key}.sha256 is {config.sha256}, but the sha256 of {archive.path} is "
                f"{archive.sha256}; give the right file or correct the key."
            )
        check_teacher(archive.config, archive.path)
        if adapter is not None:
            adapter.check_owner(archive.sha256, str(archive.path), f"{key}.adapter is {config.adapter}")
        model = restore_ctc(archive)
        teacher = cls(model, config.precision, hint_layer, side_stream, adapter, config.prompt)
        if config.prompt:
            check_prompt(teacher.model, config.prompt, f"{key}.prompt")
        teacher.sha256, teacher.source = archive.sha256, str(config.model_path)
        return teacher

    @property
    def labels(self) -> list[str]:
        """Labels in the order of the posterior, without the final blank; empty without a CTC head."""
        if self._adapter is not None:
            return list(self._adapter.info.labels)
        return [] if self.head is None else labels_of(self.model, self.head)

    @property
    def has_posteriors(self) -> bool:
        """True if the teacher has a CTC head or an adapter; False for a transducer or an attention model."""
        return self.head is not None or self._adapter is not None

    @property
    def adapter(self) -> AdapterInfo | None:
        """What the adapter is; None without one."""
        return None if self._adapter is None else self._adapter.info

    @property
    def adapter_head(self) -> nn.Module | None:
        """The adapter's network; None without an adapter."""
        return None if self._adapter is None else self._adapter.head

    @property
    def adapter_sha256(self) -> str | None:
        """Checksum of the adapter's file; None without an adapter."""
        return None if self._adapter is None else self._adapter.sha256

    @property
    def sample_rate(self) -> int:
        """Sample rate of the audio that the front end expects, in Hz."""
        return int(self.model.preprocessor._sample_rate)

    @property
    def ends_in_layer_norm(self) -> bool:
        """True if the hint layer's output is layer-normalised."""
        return self.hint_layer.path == ADAPTER or ends_in_layer_norm(self.model, self.hint_layer)

    def precision_on(self, device: torch.device) -> str:
        """Returns the precision in which the teacher computes on a device: `fp32` or `bf16`."""
        return "bf16" if self._autocast_dtype(device) else "fp32"

    def frames_of(self, seconds: float) -> int:
        """Returns the number of frames of `encoder_layer` for audio of a length in seconds."""
        return encode_silence(self.model, seconds) * self._upsampling

    def move_to(self, device: torch.device) -> None:
        """Moves the teacher to the device of the student."""
        if next(self.model.parameters()).device != device:
            self.model.to(device)
        if self._adapter is not None:
            self._adapter.head.to(device)

    def targets(self, batch: TrainingBatch, request: TargetRequest) -> TeacherTargets:
        """Runs the teacher on raw audio and computes only the parts that the request needs.

        With a side stream on a GPU, the targets are still being computed when this method returns. Call
        `SideStream.wait` before the first read. Hypotheses are computed on the current stream, because the
        host has to wait for their texts anyway.

        Args:
            batch: the batch, of which `signal` `[B, N]` (fp32) and `signal_lengths` `[B]` (samples) are read.
            request: the targets to compute. A teacher without a CTC head has no posteriors. Hypotheses are
                decoded by the method in the teacher's own `decoding` section (greedy or beam).

        Returns:
            Targets on the teacher's frames, detached.
        """
        # Before the side stream starts: the current stream reads the weights, too.
        self.move_to(batch.signal.device)
        compute = partial(self._compute, request=request)
        if self.side_stream is None or request.hypotheses:
            return compute(batch.signal, batch.signal_lengths)
        return self.side_stream.run(compute, batch.signal, batch.signal_lengths)

    @torch.no_grad()
    def _compute(self, signal: Tensor, lengths: Tensor, request: TargetRequest) -> TeacherTargets:
        model = self.model
        # Something calls train() on the model or on one of its parts. A look at all modules takes long.
        if any(module.training for module in (model, *model.children())):
            raise RuntimeError("the teacher left eval mode; something calls train() on it")
        dtype = self._autocast_dtype(signal.device)
        with torch.autocast(signal.device.type, dtype=dtype or torch.bfloat16, enabled=dtype is not None):
            features, feature_lengths = model.preprocessor(input_signal=signal, length=lengths)
            if self._early_exit is not None and request == TargetRequest(hidden=True):
                with self._isolated():
                    layer, encoded_lengths = self._early_exit.run(model, features, feature_lengths)
                return TeacherTargets(lengths=encoded_lengths * self._upsampling, hidden=layer)
            path = ENCODER if self.hint_layer.path == ADAPTER else self.hint_layer.path
            with ExitStack() as stack:
                captured = stack.enter_context(Capture(model, path))
                further = [stack.enter_context(Capture(model, one.path)) for one in self.further_hint_layers]
                stack.enter_context(self._isolated())
                encoded, encoded_lengths = model.encoder(audio_signal=features, length=feature_lengths)[:2]
            log_probs = None
            decodes = self._decodes(request)
            if self.head is not None and (decodes or (request.posteriors and not self._adapter)):
                log_probs = self.head(encoder_output=encoded)
        hypotheses = decode(model, encoded, encoded_lengths, log_probs, self.prompt) if decodes else None
        layers = zip(further, self.further_hint_layers, strict=True) if request.hidden else ()
        further_hidden = tuple(one.tensor(layer.time_axis) for one, layer in layers)
        if self._adapter is not None:
            own = None if self.hint_layer.path == ADAPTER else captured.tensor(self.hint_layer.time_axis)
            adapted = adapted_targets(self._adapter, encoded, encoded_lengths, request, hypotheses, own)
            return replace(adapted, further_hidden=further_hidden)
        assert log_probs is not None or not request.posteriors, "match_models() refuses losses without a head"
        return TeacherTargets(
            lengths=encoded_lengths,
            log_probs=log_probs if request.posteriors else None,
            hypotheses=hypotheses,
            hidden=captured.tensor(self.hint_layer.time_axis) if request.hidden else None,
            further_hidden=further_hidden,
        )

    def ctc_projection(self) -> nn.Conv1d | None:
        """Returns the CTC head if it is a single 1x1 convolution, else None, for the warm start."""
        return pointwise_decoder(self.head) if self._adapter is None else self._adapter.head.decoder

    def check(self, request: TargetRequest, train_data: UtteranceResolver | None) -> None:
        """Checks the prompt of an attention model, if the request reads hypotheses.

        Everything else can be computed for any audio.

        Raises:
            TutorError: a slot of the prompt has no value, or a wrong one.
        """
        if self._decodes(request):
            check_prompt(self.model, self.prompt)

    def _decodes(self, request: TargetRequest) -> bool:
        """Whether the model's own decoding is needed; the adapter writes the hypotheses otherwise."""
        return request.hypotheses and not (self._adapter is not None and self._adapter.info.writes_hypotheses)

    def describe(self) -> dict[str, str]:
        """Returns a description of the teacher for `nemo-tutornet check`, by fact."""
        facts = {"file": self.source, **describe_model(self.model).as_facts()}
        prompt = {**prompt_slots(self.model), **self.prompt}
        if prompt:
            facts["prompt"] = prompt_in_words(prompt)
        if self.adapter is not None:
            facts["adapter"] = self.adapter.in_words()
        return facts

    def _autocast_dtype(self, device: torch.device) -> torch.dtype | None:
        if self._precision == "auto":
            # By default torch also returns True for older GPUs, which only emulate bf16.
            fast = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
            return torch.bfloat16 if fast else None
        return torch.bfloat16 if self._precision == "bf16" else None

    def _find_early_exit(self) -> EarlyExit | None:
        """Returns an early exit for the hint layer, or None if the whole encoder has to run."""
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
    """Prevents an encoder from synchronising the longest length over all ranks again in each step.

    The Conformer family has an attribute for this, which is set to False permanently. Convolutional encoders
    have none, so a context hides the process group while they run.

    Returns:
        A function that creates the context in which the encoder has to run.
    """
    if hasattr(encoder, "sync_max_audio_length"):
        setattr(encoder, "sync_max_audio_length", False)  # noqa: B010 - a plain attribute, not a submodule
        return nullcontext
    return without_process_group
