# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""The teacher: a NeMo checkpoint, loaded, frozen and run, and never a part of the student."""

from __future__ import annotations

import copy
from functools import partial
from pathlib import Path
from typing import Any, List, Optional

import torch
from torch import Tensor, nn

from nemo_tutornet.capture import ENCODER, Capture, Layer, encode_silence, hop_of, measure
from nemo_tutornet.checkpoints import alone, check_teacher, quiet_nemo, read_nemo_config, sha256_of, untouched_app_state
from nemo_tutornet.config import TeacherConfig
from nemo_tutornet.errors import TutorError
from nemo_tutornet.live import Cut, find_cut
from nemo_tutornet.pseudo import confidence
from nemo_tutornet.targets import Hypothesis, TeacherTargets

# Feature frames of the utterances on which a cut encoder is compared with the whole one: every remainder of strides up to 16.
_CHECKED_FRAMES = range(40, 57)


class Teacher:
    """A frozen NeMo recogniser that gives targets for audio.

    A CTC model, a hybrid through its CTC head, or a transducer, which has no posteriors on frames and so teaches by its encoder
    alone.

    It is no `nn.Module`, so a student that holds it does not register it: it stays out of `parameters()`, `state_dict()`,
    `train()`, DDP, ONNX export and every checkpoint. It owns its front end, its device and its precision.

    Legend: `B` utterances, `N` samples, `T` frames of the teacher, `D` width of the hint layer, `V` labels with the blank last.

    Args:
        model: a restored NeMo model; it is frozen in place.
        precision: `auto`, `fp32` or `bf16`.
        hint_layer: module path; None is the encoder's output.

    Attributes:
        sha256: of its file; None where it did not come from one.
    """

    def __init__(self, model: Any, precision: str = "auto", hint_layer: Optional[str] = None) -> None:
        self.model = model
        self.sha256: Optional[str] = None
        _own_activations(model)
        self.model.freeze()  # NeMo's: eval mode and no gradients
        self.head: Any = ctc_head(model)
        self._precision = precision
        silence = partial(encode_silence, model)
        self.encoder_layer = measure(model, ENCODER, silence, hop=hop_of(model))
        self.hint_layer: Layer = self.encoder_layer
        if hint_layer not in (None, ENCODER):
            self.hint_layer = measure(model, str(hint_layer), silence, "model.tutor.rkd.hint_layer", hop_of(model))
        self._cut = self._find_cut()

    @classmethod
    def from_config(cls, config: TeacherConfig, hint_layer: Optional[str] = None, key: str = "model.tutor.teacher") -> Teacher:
        """Restores and freezes the teacher that a config names.

        Args:
            config: of the teacher.
            hint_layer: module path; None is the encoder's output.
            key: the config's, for messages.

        Raises:
            TutorError: no such file or pretrained name, unreadable, another sha256 than the config's, or a class
                that cannot teach.
        """
        path = locate(config.model_path, f"{key}.model_path")
        found = sha256_of(path) if path.is_file() else None
        if config.sha256 is not None and found != config.sha256.lower():
            raise TutorError(
                f"{key}.sha256 is {config.sha256}, but the sha256 of {path} is {found or 'none, it is a folder'}; "
                f"give the right file or correct the key."
            )
        check_teacher(read_nemo_config(path), path)
        teacher = cls(restore_ctc(path), config.precision, hint_layer)
        teacher.sha256 = found
        return teacher

    @property
    def labels(self) -> List[str]:
        """Labels in the order of the posterior, without the blank, which is last; none for a transducer."""
        return [] if self.head is None else labels_of(self.model, self.head)

    @property
    def sample_rate(self) -> int:
        """Samples per second that the front end expects."""
        return int(self.model.preprocessor._sample_rate)

    @property
    def ends_in_layer_norm(self) -> bool:
        """True where the hint layer's output is layer-normalised (the Conformer family), so its energy is nearly constant."""
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
        """Runs the teacher on raw audio; what is not asked for is not computed, the encoder behind the hint layer included.

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
            # Alone, because the host would wait for every other rank once more in each step, for a buffer that grows by itself.
            if self._cut is not None and hidden and not (posteriors or hypotheses):
                with alone():
                    layer, encoded_lengths = self._cut.run(model, features, feature_lengths)
                return TeacherTargets(lengths=encoded_lengths, hidden=layer)
            with Capture(model, self.hint_layer.path) as captured, alone():
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

    def _decode(self, encoded: Tensor, lengths: Tensor, log_probs: Optional[Tensor]) -> List[Hypothesis]:
        if log_probs is None:
            # In its own precision, whatever the encoder's or the student's is: an LSTM takes no mixture of two.
            with torch.autocast(encoded.device.type, enabled=False):
                found = self.model.decoding.rnnt_decoder_predictions_tensor(
                    encoder_output=encoded.float(), encoded_lengths=lengths
                )
            return [Hypothesis(_text(entry), None) for entry in _best(found)]
        decoding = getattr(self.model, "ctc_decoding", None) or self.model.decoding
        found = decoding.ctc_decoder_predictions_tensor(decoder_outputs=log_probs.float(), decoder_lengths=lengths)
        sure = confidence(log_probs, lengths).tolist()
        return [Hypothesis(_text(entry), value) for entry, value in zip(_best(found), sure, strict=True)]

    def _autocast_dtype(self, device: torch.device) -> Optional[torch.dtype]:
        if self._precision == "auto":
            # Without emulation: torch also says yes for older GPUs, which only emulate bf16.
            fast = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
            return torch.bfloat16 if fast else None
        return torch.bfloat16 if self._precision == "bf16" else None

    def _find_cut(self) -> Optional[Cut]:
        """Where the encoder can stop when only the hint layer is wanted; None where it cannot."""
        if not self.hint_layer.path.startswith(f"{ENCODER}."):
            return None
        parameter = next(self.model.parameters())
        hop = self.sample_rate // 100
        lengths = torch.tensor([frames * hop for frames in _CHECKED_FRAMES], device=parameter.device)
        noise = torch.randn(len(lengths), int(lengths.max()), generator=torch.Generator().manual_seed(0))
        features, feature_lengths = self.model.preprocessor(input_signal=noise.to(parameter.device), length=lengths)
        with alone():
            return find_cut(self.model, self.hint_layer, features, feature_lengths)


def _own_activations(model: nn.Module) -> None:
    """Gives a model activations of its own.

    NeMo's Conformer layers take theirs from a default argument, so that all Conformers of a process share one object, and a
    Conformer student in train mode would take its teacher's along.
    """
    for module in list(model.modules()):
        if isinstance(getattr(module, "activation", None), nn.Module):
            module.activation = copy.deepcopy(module.activation)


def _best(found: Any) -> Any:
    """NeMo 2 gives (best, all) where NeMo 3 gives the best; a beam search may give several an utterance, best first."""
    found = found[0] if isinstance(found, tuple) else found
    return [entry[0] if isinstance(entry, list) else entry for entry in found]


def _text(entry: Any) -> str:
    return entry if isinstance(entry, str) else str(entry.text)


def ctc_head(model: Any) -> Optional[nn.Module]:
    """The module that turns an encoder's output into CTC log-probabilities; None for a transducer."""
    if hasattr(model, "ctc_decoder"):  # a hybrid, whose `decoder` is the transducer's
        return model.ctc_decoder
    return None if hasattr(model, "joint") else model.decoder


def labels_of(model: Any, head: Any) -> List[str]:
    """Labels of a CTC head by output, without the blank.

    NeMo lists a WordPiece model's `vocabulary` in whatever order its tokenizer's dictionary has, which differs from run to run.
    """
    tokenizer = getattr(getattr(model, "tokenizer", None), "tokenizer", None)
    pieces = tokenizer.get_vocab() if tokenizer is not None and hasattr(tokenizer, "get_vocab") else None
    if isinstance(pieces, dict) and pieces.keys() == set(head.vocabulary):
        return sorted(pieces, key=pieces.__getitem__)
    return list(head.vocabulary)


def restore_ctc(path: Path) -> Any:
    """Restores a stock NeMo model on the CPU, in eval mode, quietly and without disturbing a restore in progress.

    Args:
        path: a `.nemo` file, or a folder that one was unpacked to.

    Raises:
        TutorError: NeMo cannot restore it; its own reason is given.
    """
    from nemo.collections.asr import models
    from nemo.core.connectors.save_restore_connector import SaveRestoreConnector

    # The class itself: restored as an ASRModel, whatever cannot be built is "an abstract class" and the reason is lost.
    name = str(read_nemo_config(path).get("target")).rsplit(".", 1)[-1]
    model_class = getattr(models, name, models.ASRModel)
    connector = SaveRestoreConnector()
    if path.is_dir():
        connector.model_extracted_dir = str(path)
    try:
        with untouched_app_state(), quiet_nemo():
            model = model_class.restore_from(str(path), map_location="cpu", save_restore_connector=connector)
    except Exception as error:  # NeMo raises whatever the damaged part makes it raise
        detail = "; ".join(line.strip() for line in str(error).splitlines() if line.strip()) or type(error).__name__
        raise TutorError(f"NeMo cannot restore {path}: {detail[:500]}") from error
    return model.eval()


def locate(model_path: str, key: str = "model.tutor.teacher.model_path") -> Path:
    """The file of a checkpoint that a config names by its path or its pretrained name.

    Args:
        model_path: a `.nemo` file, a folder that one was unpacked to, or the name of a pretrained NeMo model.
        key: of the config, for the message.

    Raises:
        TutorError: neither a file here nor a name whose file could be fetched.
    """
    path = Path(model_path).expanduser()
    if path.exists() or path.suffix == ".nemo":
        return path
    from nemo.collections.asr.models import ASRModel

    try:
        return Path(ASRModel.from_pretrained(model_path, return_model_file=True))
    except Exception as error:  # the hub's, the network's or NeMo's own
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise TutorError(
            f"{key} is {model_path!r}, which is neither a file here nor a pretrained NeMo model that "
            f"could be fetched ({first}); give the path of a .nemo file or a name that NeMo knows."
        ) from None
