# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""A drop-in replacement for `LiveTeacher` that reads precomputed targets from a cache.

Legend: `B` utterances, `T` frames of the teacher, `D` width of the hint layer, `V` labels with the blank
last.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn

from nemo_tutornet.config import TeacherConfig
from nemo_tutornet.data.dataloader import TrainingBatch, UtteranceResolver
from nemo_tutornet.errors import TutorError
from nemo_tutornet.nemo_io.layers import CHECKED_SECONDS, ENCODER, Layer
from nemo_tutornet.nemo_io.model_info import describe_model, posterior_labels_in_words
from nemo_tutornet.target_cache.reader import CacheReader
from nemo_tutornet.teachers.adapter import ADAPTER, AdapterInfo, adapter_info
from nemo_tutornet.teachers.live import LiveTeacher
from nemo_tutornet.teachers.targets import Hypothesis, TargetRequest, TeacherTargets
from nemo_tutornet.utils.files import sha256_of

HEAD = "head.safetensors"


def binding(
    teacher: LiveTeacher, path: Path, device: torch.device, hidden: bool, tokenizer: str | None
) -> dict[str, Any]:
    """Collects the facts about a teacher that its cached targets depend on, and that a student needs.

    Args:
        teacher: the live teacher.
        path: the teacher's file.
        device: the device on which the teacher will run.
        hidden: whether the cache holds the hint layer.
        tokenizer: NeMo's type of the teacher's tokenizer, whose files are stored beside the shards. None for
            a character model.

    Returns:
        The facts by name, as JSON values. `frames` is a list of pairs of an audio length in seconds and the
        number of teacher frames.
    """
    info = describe_model(teacher.model)
    # Only with an adapter: the caches of earlier versions lack the key, and must stay what they are.
    adapter = {} if teacher.adapter is None else {"adapter": _adapter_to_disk(teacher)}
    return {
        **adapter,
        "sha256": sha256_of(path) if path.is_file() else None,
        "class": info.class_name,
        "front_end": info.preprocessor,
        "precision": teacher.precision_on(device),
        "sample_rate": info.front_end.sample_rate,
        "labels": teacher.labels,
        "transducer": not teacher.has_posteriors,
        "encoder": _layer_to_disk(teacher.encoder_layer),
        "hint": _layer_to_disk(teacher.hint_layer) if hidden else None,
        "ends_in_layer_norm": teacher.ends_in_layer_norm,
        "frames": [[seconds, teacher.frames_of(seconds)] for seconds in CHECKED_SECONDS],
        "tokenizer": tokenizer,
    }


def head_file(teacher: LiveTeacher) -> dict[str, bytes]:
    """Serialises the teacher's CTC decoder, which the warm start of the student's decoder uses.

    Args:
        teacher: the live teacher.

    Returns:
        The file's content by file name; empty if the decoder is not a single 1x1 convolution.
    """
    from safetensors.torch import save

    decoder = teacher.ctc_projection()
    if decoder is None:
        return {}
    tensors = {name: value.detach().float().cpu().contiguous() for name, value in decoder.named_parameters()}
    return {HEAD: save(tensors)}


class CachedTeacher:
    """A `Teacher` that reads its targets from a cache, without a model or the teacher's file.

    Args:
        config: the teacher's section of the config. Targets are read from its `cache`. Its `sha256`, if set,
            and the file at its `model_path`, if the file exists, must match the teacher of the cache.
        hint_layer: module path of the hint layer. None selects the encoder's output.
        key: the section's key in the config, used in error messages.

    Raises:
        TutorError: the folder does not hold a finished cache, or the cache was built with another teacher or
            another layer.
    """

    from_cache = True
    further_hint_layers: tuple[Layer, ...] = ()  # a cache holds one hint layer

    def __init__(
        self, config: TeacherConfig, hint_layer: str | None = None, key: str = "model.tutor.teacher"
    ) -> None:
        assert config.cache is not None
        folder = Path(config.cache).expanduser()
        if not folder.is_dir():
            raise TutorError(
                f"{key}.cache is {config.cache}, and there is no such folder; `nemo-tutornet cache` makes "
                "one."
            )
        self.reader = CacheReader(folder)
        self._facts = _checked(self.reader.provenance, folder)
        self._check_teacher(config, key)
        self.encoder_layer = _layer_from_disk(self._facts["encoder"])
        self.adapter = self._check_adapter(config, key)
        asked = hint_layer or (ENCODER if self.adapter is None else ADAPTER)
        hint = self._facts["hint"]
        if hint is not None and hint["path"] != asked:
            raise TutorError(
                f"{folder} holds the layer {hint['path']!r}, but model.tutor.rkd.hint_layer is {asked!r}; "
                "build a cache of that "
                f"layer, or take this one's."
            )
        self.hint_layer = _layer_from_disk(hint) if hint is not None else self.encoder_layer
        self._projection = self._load_projection() if self.has_posteriors else None

    @property
    def sha256(self) -> str | None:
        """Checksum of the teacher's file from which the cache was built; None if the teacher was a folder."""
        found: str | None = self._facts["sha256"]
        return found

    @property
    def labels(self) -> list[str]:
        """Labels in the order of the posterior, without the final blank; empty for a transducer."""
        return list(self._facts["labels"])

    @property
    def has_posteriors(self) -> bool:
        """True if the teacher has a CTC head; False for a transducer."""
        return not self._facts["transducer"]

    @property
    def sample_rate(self) -> int:
        """Sample rate of the audio that the teacher was run on, in Hz."""
        return int(self._facts["sample_rate"])

    @property
    def ends_in_layer_norm(self) -> bool:
        """True if the hint layer's output is layer-normalised."""
        return bool(self._facts["ends_in_layer_norm"])

    def frames_of(self, seconds: float) -> int:
        """Returns the number of frames of the encoder's output for audio of a length in seconds.

        Only the lengths that were measured when the cache was built are available.
        """
        return {float(length): int(frames) for length, frames in self._facts["frames"]}[seconds]

    def describe(self) -> dict[str, str]:
        """Returns a description of the teacher and its cache for `nemo-tutornet check`, by fact."""
        totals = self.reader.totals
        adapter = {} if self.adapter is None else {"adapter": self.adapter.in_words()}
        return {
            **adapter,
            "cache": f"{self.reader.folder}, {totals['utterances']} utterances, {totals['bytes'] / 1e6:.1f} "
            "MB",
            "class": str(self._facts["class"]),
            "front end": f"{self.sample_rate} Hz, {self._facts['front_end'].get('features')} mel bins",
            "labels": posterior_labels_in_words(len(self.labels) if self.has_posteriors else None),
        }

    def check(self, request: TargetRequest, train_data: UtteranceResolver | None) -> None:
        """Checks that the cache holds the requested targets for every utterance of the training set.

        Tar files may hold fewer utterances than their manifest. Their utterances are therefore not checked
        here; a missing one raises an error when it is read.

        Args:
            request: the targets that the stages read.
            train_data: resolves the utterances of the training set; None skips the check of utterances.

        Raises:
            TutorError: a kind of target or an utterance is missing. The message names the first missing
                utterance and the number of the others.
        """
        schema, folder = self.reader.schema, self.reader.folder
        for what, requested, stored in (
            ("the hint layer, which rkd reads", request.hidden, schema.width is not None),
            (
                "posteriors, which skd and frame_weighting nonblank read",
                request.posteriors,
                schema.labels is not None,
            ),
            ("hypotheses, which pseudo reads", request.hypotheses, schema.hypotheses),
        ):
            if requested and not stored:
                raise TutorError(
                    f"{folder} does not hold {what} in model.tutor.stages; build a cache with these stages, "
                    "or leave that loss out."
                )
        if train_data is None or train_data.is_iterable:
            return
        utterances = train_data.manifest_utterances
        missing = [utterance for utterance in utterances if utterance not in self.reader]
        if missing:
            more = f" and {len(missing) - 1} more of {len(utterances)}" if len(missing) > 1 else ""
            raise TutorError(
                f"{folder} has no targets for {missing[0]}{more}; run `nemo-tutornet cache` on the manifest "
                "that "
                "you train with, it adds what is missing."
            )

    def targets(self, batch: TrainingBatch, request: TargetRequest) -> TeacherTargets:
        """Reads the targets of a batch from the cache.

        Args:
            batch: the batch, of which the `utterances` are looked up. Its `signal_lengths` `[B]` must be the
                numbers of samples for which the targets were computed.
            request: the targets to read.

        Returns:
            Targets on the teacher's frames, on the device of `signal_lengths`.

        Raises:
            TutorError: an utterance is missing or damaged, or its number of samples differs.
        """
        assert batch.utterances is not None, "the distiller resolves a batch's utterances for cached teachers"
        stored = self.reader.read(batch.utterances)
        lengths = batch.signal_lengths.cpu()
        different = (stored.samples != lengths).nonzero()
        if len(different):
            row = int(different[0])
            raise TutorError(
                f"{batch.utterances[row]} has {int(lengths[row])} samples in training, but the teacher heard "
                f"{int(stored.samples[row])} for {self.reader.folder}: the audio changed, or something in "
                "model.train_ds changes its time; build the cache again or drop that."
            )
        device = batch.signal_lengths.device
        hypotheses = None
        if request.hypotheses:
            assert stored.texts is not None and stored.confidences is not None
            hypotheses = [Hypothesis(*pair) for pair in zip(stored.texts, stored.confidences, strict=True)]
        log_probs = stored.log_probs if request.posteriors else None
        hidden = stored.hidden if request.hidden else None
        return TeacherTargets(
            lengths=stored.lengths.to(device),
            log_probs=None if log_probs is None else log_probs.to(device),
            hidden=None if hidden is None else hidden.to(device),
            hypotheses=hypotheses,
        )

    def ctc_projection(self) -> nn.Conv1d | None:
        """Returns the teacher's CTC head if it is a single 1x1 convolution, else None, for the warm start."""
        return self._projection

    def _load_projection(self) -> nn.Conv1d | None:
        if not self.reader.has(HEAD):
            return None
        from safetensors.torch import load

        tensors = load(self.reader.path(HEAD).read_bytes())
        labels, width = tensors["weight"].shape[:2]
        projection = nn.Conv1d(width, labels, kernel_size=1, bias="bias" in tensors)
        projection.load_state_dict(tensors)
        return projection.requires_grad_(False)

    def _check_adapter(self, config: TeacherConfig, key: str) -> AdapterInfo | None:
        """Returns what the adapter is whose targets the cache holds, after a comparison with the config's."""
        cached = self._facts.get("adapter")
        info = None if cached is None else adapter_info({**cached["info"], "labels": self.labels})
        if cached is not None and info is None:
            raise TutorError(f"{self.reader.folder} does not say what its adapter was; build it again.")
        if config.adapter is None:
            return info
        file = Path(config.adapter).expanduser()
        if cached is None or (file.is_file() and sha256_of(file) != cached["sha256"]):
            was = "without an adapter" if cached is None else "with another adapter"
            raise TutorError(
                f"{key}.adapter is {config.adapter}, but {self.reader.folder} was built {was}; build the "
                f"cache again with this one, or leave {key}.adapter out."
            )
        return info

    def _check_teacher(self, config: TeacherConfig, key: str) -> None:
        cached = self.sha256
        if config.sha256 is not None and config.sha256.lower() != cached:
            raise TutorError(
                f"{key}.sha256 is {config.sha256}, but {self.reader.folder} was built with the teacher "
                f"{cached}; give the right "
                f"cache or correct the key."
            )
        path = Path(config.model_path).expanduser() if config.model_path else None
        if path is not None and path.is_file() and cached is not None and sha256_of(path) != cached:
            raise TutorError(
                f"{self.reader.folder} was built with another teacher than {path} (sha256 {cached}); build "
                "it again with this "
                f"one, or leave {key}.model_path out."
            )


def _adapter_to_disk(teacher: LiveTeacher) -> dict[str, Any]:
    assert teacher.adapter is not None
    info = asdict(teacher.adapter)
    info.pop("labels")  # they stand in the provenance already
    return {"sha256": teacher.adapter_sha256, "info": info}


def _layer_to_disk(layer: Layer) -> dict[str, Any]:
    """Returns a layer with the field names of the format on disk, where `frame_ms` is called `shift`."""
    return {"path": layer.path, "width": layer.width, "time_axis": layer.time_axis, "shift": layer.frame_ms}


def _layer_from_disk(stored: Mapping[str, Any]) -> Layer:
    return Layer(stored["path"], stored["width"], stored["time_axis"], stored["shift"])


def _checked(facts: Mapping[str, Any], folder: Path) -> Mapping[str, Any]:
    """Returns the binding after a check of all parts that are read, because a cache is untrusted input."""
    kinds: dict[str, Any] = {
        "sample_rate": int,
        "labels": list,
        "transducer": bool,
        "encoder": dict,
        "hint": (dict, type(None)),
        "ends_in_layer_norm": bool,
        "frames": list,
        "front_end": dict,
        "sha256": (str, type(None)),
    }
    layers = [layer for layer in (facts.get("encoder"), facts.get("hint")) if isinstance(layer, dict)]
    fields: dict[str, Any] = {"path": str, "width": int, "time_axis": int, "shift": (int, float)}
    sound = all(isinstance(facts.get(name, ...), kind) for name, kind in kinds.items())
    adapter = facts.get("adapter", {"sha256": None, "info": {}})
    sound = sound and isinstance(adapter, dict) and adapter.keys() == {"sha256", "info"}
    sound = sound and isinstance(adapter["info"], dict)
    sound = sound and all(
        layer.keys() == fields.keys() and all(isinstance(layer[name], kind) for name, kind in fields.items())
        for layer in layers
    )
    if not sound:
        raise TutorError(
            f"{folder} does not say what its teacher was ({json.dumps(dict(facts))[:100]}); build it again."
        )
    return facts
