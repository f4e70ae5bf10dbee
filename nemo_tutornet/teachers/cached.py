# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""A drop-in replacement for `LiveTeacher` that reads precomputed targets from a cache.

Legend: `B` utterances, `T` frames of the teacher, `D` width of the hint layer, `V` labels with the blank
last.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from torch import nn

from nemo_tutornet.config import TeacherConfig
from nemo_tutornet.data.dataloader import TrainingBatch, UtteranceResolver
from nemo_tutornet.errors import TutorError
from nemo_tutornet.nemo_io.archive import sha256_of_model
from nemo_tutornet.nemo_io.layers import ENCODER, Layer
from nemo_tutornet.nemo_io.model_info import posterior_labels_in_words
from nemo_tutornet.nemo_io.prompt import prompt_in_words
from nemo_tutornet.target_cache.reader import CacheReader
from nemo_tutornet.target_cache.records import Kinds
from nemo_tutornet.teachers.adapted import adapted_targets
from nemo_tutornet.teachers.adapter import ADAPTER, Adapter, AdapterInfo, adapter_info
from nemo_tutornet.teachers.cached_audio import check_same_audio
from nemo_tutornet.teachers.cached_views import check_views, with_views
from nemo_tutornet.teachers.provenance import HEAD, checked_facts, layer_from_disk, read_head
from nemo_tutornet.teachers.targets import Hypothesis, TargetRequest, TeacherTargets
from nemo_tutornet.utils.files import expand_user, sha256_of


class CachedTeacher:
    """A `Teacher` that reads its targets from a cache, without a model or the teacher's file.

    A cache of the encoder's output, such as `nemo-tutornet adapt` keeps, serves with the adapter of the
    config: labels, frames and posteriors are then computed by the adapter from what the cache holds.

    Args:
        config: the teacher's section of the config. Targets are read from its `cache`. Its `sha256`, if set,
            and the file at its `model_path`, if the file exists, must match the teacher of the cache, and so
            must the options of its `prompt`.
        hint_layer: module path of the hint layer. None selects the encoder's output.
        key: the section's key in the config, used in error messages.

    Raises:
        TutorError: the folder does not hold a finished cache, or the cache was built with another teacher or
            another layer or prompt.
    """

    from_cache = True

    def __init__(
        self, config: TeacherConfig, hint_layer: str | None = None, key: str = "model.tutor.teacher"
    ) -> None:
        assert config.cache is not None
        folder = expand_user(config.cache)
        if not folder.is_dir():
            raise TutorError(
                f"{key}.cache is {config.cache}, and there is no such folder; `nemo-tutornet cache` makes "
                "one."
            )
        self.further_hint_layers: tuple[Layer, ...] = ()
        self._further: list[int] = []  # which of the stored further layers these are
        self.reader = CacheReader(folder)
        self._facts = checked_facts(self.reader.provenance, folder)
        self._check_teacher(config, key)
        self.encoder_layer = layer_from_disk(self._facts["encoder"])
        hint = self._facts["hint"]
        self.adapter, self._adapter = self._find_adapter(config, key)
        if self._adapter is not None:
            stored = self.encoder_layer
            self.encoder_layer = self._adapter.layer
            self.hint_layer = self._adapter.layer if hint_layer in (None, ADAPTER) else stored
            hint_layer = ENCODER if hint_layer in (None, ADAPTER) else hint_layer
        asked = hint_layer or (ENCODER if self.adapter is None else ADAPTER)
        if hint is not None and hint["path"] != asked:
            raise TutorError(
                f"{folder} holds the layer {hint['path']!r}, but model.tutor.rkd.hint_layer is {asked!r}; "
                "build a cache of that layer, or take this one's."
            )
        if self._adapter is None:
            self.hint_layer = layer_from_disk(hint) if hint is not None else self.encoder_layer
        self._projection = self._load_projection() if self.has_posteriors else None

    def add_hint_layers(self, paths: Sequence[str]) -> None:
        """Chooses the hint layers of `tutor.rkd.pairs` among those that the cache holds.

        Args:
            paths: module paths.

        Raises:
            TutorError: the cache does not hold one of them.
        """
        stored = [layer_from_disk(layer) for layer in self._facts.get("further_hints", [])]
        widths = self.reader.schema.further_widths
        if tuple(layer.width for layer in stored) != widths:
            raise TutorError(f"{self.reader.folder} holds other layers than it says; build it again.")
        held = [layer.path for layer in stored]
        for i, path in enumerate(paths):
            if path not in held:
                there = f"only {', '.join(map(repr, held))}" if held else "no further layers"
                raise TutorError(
                    f"model.tutor.rkd.pairs[{i}].hint_layer is {path!r}, and {self.reader.folder} holds "
                    f"{there}; build a cache with these pairs, or leave the pair out."
                )
        self._further = [held.index(path) for path in paths]
        self.further_hint_layers = tuple(stored[i] for i in self._further)

    @property
    def sha256(self) -> str | None:
        """Checksum of the teacher's file from which the cache was built; None if the teacher was a folder."""
        found: str | None = self._facts["sha256"]
        return found

    @property
    def labels(self) -> list[str]:
        """Labels in the order of the posterior, without the final blank; empty without a CTC head."""
        return list(self._facts["labels"] if self._adapter is None else self._adapter.info.labels)

    @property
    def has_posteriors(self) -> bool:
        """True if the teacher has a CTC head or an adapter; False for a transducer or an attention model."""
        return self._adapter is not None or not self._facts["transducer"]

    @property
    def sample_rate(self) -> int:
        """Sample rate of the audio that the teacher was run on, in Hz."""
        return int(self._facts["sample_rate"])

    @property
    def ends_in_layer_norm(self) -> bool:
        """True if the hint layer's output is layer-normalised."""
        return self.hint_layer.path == ADAPTER or bool(self._facts["ends_in_layer_norm"])

    def frames_of(self, seconds: float) -> int:
        """Returns the number of frames of `encoder_layer` for audio of a length in seconds.

        Only the lengths that were measured when the cache was built are available.
        """
        upsampling = 1 if self._adapter is None else self._adapter.info.upsampling
        return upsampling * {float(length): int(frames) for length, frames in self._facts["frames"]}[seconds]

    def describe(self) -> dict[str, str]:
        """Returns a description of the teacher and its cache for `nemo-tutornet check`, by fact."""
        totals = self.reader.totals
        adapter = {} if self.adapter is None else {"adapter": self.adapter.in_words()}
        speeds = f" (at {len(self.reader.views)} speeds)" if len(self.reader.views) > 1 else ""
        return {
            **adapter,
            "cache": f"{self.reader.folder}, {totals['utterances']} utterances{speeds}, "
            f"{totals['bytes'] / 1e6:.1f} MB",
            "class": str(self._facts["class"]),
            "front end": f"{self.sample_rate} Hz, {self._facts['front_end'].get('features')} mel bins",
            "labels": posterior_labels_in_words(len(self.labels) if self.has_posteriors else None),
        }

    def check(self, request: TargetRequest, train_data: UtteranceResolver | None) -> None:
        """Checks that the cache holds the requested targets for every utterance of the training set, at every
        speed at which it is played.

        Tar files may hold fewer utterances than their manifest. One that is stored at no speed is therefore
        not missed here; it raises an error when it is read.

        Args:
            request: the targets that the stages read.
            train_data: resolves the utterances of the training set; None skips the check of utterances.

        Raises:
            TutorError: a kind of target, a speed or an utterance is missing. The message names the first
                missing utterance and the number of the others.
        """
        schema, folder = self.reader.schema, self.reader.folder
        if self._adapter is not None:  # it computes posteriors and its hidden vectors from the stored output
            texts = self._reads_texts(request)
            request = replace(
                request, hidden=True, posteriors=False, hypotheses=texts, small_posteriors=False
            )
        for what, requested, stored in (
            ("the hint layer, which rkd reads", request.hidden, schema.width is not None),
            (
                "posteriors, which skd and frame_weighting nonblank read",
                request.posteriors,
                schema.labels is not None,
            ),
            ("hypotheses, which pseudo reads", request.hypotheses, schema.hypotheses),
            (
                "small posteriors, which skd with a temperature above 1 reads",
                request.small_posteriors,
                schema.min_posterior is None,
            ),
        ):
            if requested and not stored:
                raise TutorError(
                    f"{folder} does not hold {what} in model.tutor.stages; build a cache with these stages, "
                    "or leave that loss out."
                )
        if train_data is not None:
            check_views(self.reader, train_data)

    def targets(self, batch: TrainingBatch, request: TargetRequest) -> TeacherTargets:
        """Reads the targets of a batch from the cache.

        Args:
            batch: the batch, of which the `utterances` are looked up. Its `signal_lengths` `[B]` must be the
                numbers of samples for which the targets were computed; with several `views` they tell at
                which speed an utterance is played.
            request: the targets to read.

        Returns:
            Targets on the teacher's frames, on the device of `signal_lengths`.

        Raises:
            TutorError: an utterance is missing or damaged, or its audio is not what the cache was built from.
        """
        assert batch.utterances is not None, "the distiller resolves a batch's utterances for cached teachers"
        batch = replace(batch, utterances=with_views(self.reader, batch))
        assert batch.utterances is not None
        stored = self.reader.read(batch.utterances, self._kinds(request))
        check_same_audio(self.reader, stored, batch)
        device = batch.signal_lengths.device
        hypotheses = None
        if self._reads_texts(request):
            assert stored.texts is not None and stored.confidences is not None
            hypotheses = [Hypothesis(*pair) for pair in zip(stored.texts, stored.confidences, strict=True)]
        if self._adapter is not None:
            assert stored.hidden is not None, "check() refuses a cache without the encoder's output"
            self._adapter.head.to(device)
            encoded = stored.hidden.to(device)
            own = None if self.hint_layer.path == ADAPTER else encoded
            adapted = adapted_targets(
                self._adapter, encoded, stored.lengths.to(device), request, hypotheses, own
            )
            return replace(adapted, further_hidden=tuple(one.to(device) for one in stored.further_hidden))
        return TeacherTargets(
            lengths=stored.lengths.to(device),
            log_probs=None if stored.log_probs is None else stored.log_probs.to(device),
            hidden=None if stored.hidden is None else stored.hidden.to(device),
            hypotheses=hypotheses,
            further_hidden=tuple(one.to(device) for one in stored.further_hidden),
        )

    def _kinds(self, request: TargetRequest) -> Kinds:
        """Returns what to decode for a request; an adapter computes everything from the hidden vectors."""
        return Kinds(
            log_probs=request.posteriors and self._adapter is None,
            hidden=request.hidden or self._adapter is not None,
            texts=self._reads_texts(request),
            further=self._further if request.hidden else (),
        )

    def _reads_texts(self, request: TargetRequest) -> bool:
        """Whether stored hypotheses are needed; an adapter beside the cache writes them otherwise."""
        return request.hypotheses and not (self._adapter is not None and self._adapter.info.writes_hypotheses)

    def ctc_projection(self) -> nn.Conv1d | None:
        """Returns the teacher's CTC head if it is a single 1x1 convolution, else None, for the warm start."""
        return self._projection

    def _load_projection(self) -> nn.Conv1d | None:
        if self._adapter is not None:
            return self._adapter.head.decoder
        if not self.reader.has(HEAD):
            return None
        shape = (len(self.labels) + 1, self._facts["encoder"]["width"], 1)
        return read_head(self.reader.path(HEAD), shape)

    def _find_adapter(self, config: TeacherConfig, key: str) -> tuple[AdapterInfo | None, Adapter | None]:
        """Returns what the adapter is, and the adapter itself where the cache holds its input.

        Raises:
            TutorError: the adapter of the config and the cache do not belong together.
        """
        folder, cached = self.reader.folder, self._facts.get("adapter")
        info = None if cached is None else adapter_info({**cached["info"], "labels": self._facts["labels"]})
        if cached is not None and info is None:
            raise TutorError(f"{folder} does not say what its adapter was; build it again.")
        if config.adapter is None:
            return info, None
        subject = f"{key}.adapter is {config.adapter}"
        if cached is not None:
            file = expand_user(config.adapter)
            if file.is_file() and sha256_of(file) != cached["sha256"]:
                raise TutorError(
                    f"{subject}, but {folder} was built with another adapter; build the cache again with "
                    f"this one, or leave {key}.adapter out."
                )
            return info, None
        adapter = Adapter.load(config.adapter, f"{key}.adapter")
        adapter.check_owner(self.sha256, f"the teacher of {folder}", subject)
        if self._facts["hint"] != self._facts["encoder"]:
            raise TutorError(
                f"{subject}, but {folder} was built without it and does not hold the encoder's output, which "
                f"an adapter reads; build the cache again with this adapter, or leave {key}.adapter out."
            )
        return adapter.info, adapter

    def _check_teacher(self, config: TeacherConfig, key: str) -> None:
        cached = self.sha256
        if config.sha256 is not None and config.sha256.lower() != cached:
            raise TutorError(
                f"{key}.sha256 is {config.sha256}, but {self.reader.folder} was built with the teacher "
                f"{cached}; give the right cache or correct the key."
            )
        path = expand_user(config.model_path) if config.model_path else None
        if path is not None and path.exists() and cached is not None and sha256_of_model(path) != cached:
            raise TutorError(
                f"{self.reader.folder} was built with another teacher than {path} (sha256 {cached}); build "
                f"it again with this one, or leave {key}.model_path out."
            )
        stored = self._facts.get("prompt", {})
        if config.prompt and config.prompt != stored:
            built = f"with {prompt_in_words(stored)}" if stored else "without options of the prompt"
            raise TutorError(
                f"{key}.prompt is {prompt_in_words(config.prompt)}, but {self.reader.folder} was built "
                f"{built}; build it again, or leave the key out."
            )
