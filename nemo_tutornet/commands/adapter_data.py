# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""The utterances that an adapter is trained and validated on: encoder outputs with labels.

Legend: `B` utterances, `T` frames of the teacher's encoder.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from nemo_tutornet.commands.adapter_batches import EncodedBatch, padded
from nemo_tutornet.commands.adapter_rounds import Examples
from nemo_tutornet.commands.cache_targets import build_cache, print_note
from nemo_tutornet.data.dataloader import TrainingBatch, UtteranceResolver
from nemo_tutornet.data.manifest_checks import manifests_of
from nemo_tutornet.data.utterances import Utterance
from nemo_tutornet.distill.finite import BatchNames, check_audio, nonfinite_rows, shown
from nemo_tutornet.distill.pseudo_labels import PseudoLabels
from nemo_tutornet.errors import TutorError
from nemo_tutornet.evaluation.error_rates import count_errors, sum_errors
from nemo_tutornet.functional.frame_weighting import frame_mask
from nemo_tutornet.target_cache.reader import CacheReader
from nemo_tutornet.target_cache.records import Kinds
from nemo_tutornet.target_cache.unfinished import read_schema
from nemo_tutornet.teachers.cached_audio import check_same_audio
from nemo_tutornet.teachers.live import LiveTeacher
from nemo_tutornet.teachers.targets import Hypothesis, TargetRequest
from nemo_tutornet.utils.files import expand_user, sha256_of

# The encoder's output may take this share of the free disk; the encoder runs in every epoch otherwise.
_SHARE_OF_DISK = 0.8
# The keys of a training set that name its data, in files, in tars and for Lhotse.
_DATA_KEYS = ("manifest_filepath", "tarred_audio_filepaths", "input_cfg", "shar_path", "cuts_path")


def device_of(cfg: Any) -> torch.device:
    """Returns the device of an adapter's training.

    It is the first GPU that `trainer.devices` lists, PyTorch's current GPU where the key is a number, or the
    CPU.

    Args:
        cfg: the training's config.
    """
    trainer = cfg.get("trainer") or {}
    if not torch.cuda.is_available() or trainer.get("accelerator", "auto") not in ("auto", "gpu", "cuda"):
        return torch.device("cpu")
    listed = trainer.get("devices")
    if isinstance(listed, Sequence) and not isinstance(listed, str) and listed:
        return torch.device("cuda", int(listed[0]))
    return torch.device("cuda")


def encoding_config(cfg: Any, hypotheses: bool, part: str = "train") -> Any:
    """Returns the config with which `nemo-tutornet cache` keeps the encoder's output of a set.

    Args:
        cfg: the training's config.
        hypotheses: keep the teacher's hypotheses, too.
        part: `train` or `valid`.
    """
    cfg = OmegaConf.create(OmegaConf.to_container(cfg, resolve=True))
    tutor = cfg.model.tutor
    weights = {"rkd": 1.0, **({"pseudo": 1.0} if hypotheses else {})}
    # Uniform weights, because others would need the posteriors. The frames of the encoder are wanted as they
    # are, so it does not matter here that the student's may be longer.
    cfg.model.tutor = {
        "teacher": {**tutor.teacher, "adapter": None, "cache": None},
        "rkd": {"frame_weighting": "uniform"},
        "pool_frames": True,
        "stages": [{"name": "encode", "weights": weights}],
    }
    # One process encodes and trains: the head is small, and several would write the same files.
    number = device_of(cfg).index
    devices = 1 if number is None else [number]
    cfg.trainer = {**(cfg.get("trainer") or {}), "devices": devices, "num_nodes": 1, "strategy": "auto"}
    # The head is trained on the audio as it was recorded.
    cfg.model.train_ds = {**cfg.model.train_ds, "augmentor": None, "perturb_speed": False}
    if part == "valid":
        cfg.model.train_ds = {**_without_tars(cfg.model.train_ds), **cfg.model.validation_ds}
    return cfg


def _without_tars(train_ds: DictConfig) -> dict[str, Any]:
    """Returns the keys of a training set that say how text is read, for a validation set."""
    kept = ("labels", "parser", "normalize_transcripts", "sample_rate", "batch_size", "num_workers")
    return {key: train_ds[key] for key in kept if key in train_ds}


def stored_encodings(
    cfg: Any, work: Path, part: str, hypotheses: bool, batch_size: int | None
) -> CacheReader:
    """Runs a teacher's encoder over a set, as far as that was not done before, and opens what it kept.

    Args:
        cfg: the training's config.
        work: the set's folder is made in it.
        part: `train` or `valid`.
        hypotheses: keep the teacher's hypotheses, too.
        batch_size: utterances that the teacher encodes together; None is the training's.

    Returns:
        A reader of the encoder's output `[B, D, T]`.

    Raises:
        TutorError: hypotheses are to be kept, and the folder has encoder outputs without them.
    """
    folder = work / part
    schema = read_schema(folder)
    if hypotheses and schema is not None and not schema.hypotheses:
        raise TutorError(
            f"{folder} was kept when every utterance had a transcript, so it lacks the teacher's hypotheses; "
            "delete that folder, or give another one with --work."
        )
    section = "model.train_ds" if part == "train" else "model.validation_ds"
    build_cache(encoding_config(cfg, hypotheses, part), folder, batch_size, section=section)
    return CacheReader(folder)


def examples_of(student: Any, reader: CacheReader, pseudo: PseudoLabels | None) -> Examples:
    """Reads the labels of every utterance of a student's training set, and checks that its audio is that of
    the encoder's output.

    Args:
        student: has the dataloader.
        reader: of the encoder's output.
        pseudo: writes the teacher's hypotheses in the student's labels, and counts those that it keeps; None
            leaves them alone.

    Raises:
        TutorError: an utterance has other audio than the encodings were computed from.
    """
    resolver = UtteranceResolver(student._train_dl)
    found = Examples([], [], [])
    for batch in map(TrainingBatch.from_nemo, student._train_dl):
        utterances = resolver(batch)
        stored = reader.read(utterances, Kinds(texts=True))
        check_same_audio(reader, stored, replace(batch, utterances=utterances))
        rows = [
            row[:length]
            for row, length in zip(batch.transcripts.tolist(), batch.transcript_lengths.tolist(), strict=True)
        ]
        silent = [i for i, row in enumerate(rows) if not row]
        found.transcribed.extend((utterances[i], row) for i, row in enumerate(rows) if row)
        found.silent.extend(utterances[i] for i in silent)
        if silent and pseudo is not None and stored.texts is not None and stored.confidences is not None:
            given = [Hypothesis(stored.texts[i], stored.confidences[i]) for i in silent]
            nothing = torch.zeros(len(silent), 1, dtype=torch.long)
            # How many labels fit is known to the adapter only, so the frames are no limit here.
            frames = torch.full((len(silent),), 1 << 30)
            labels, lengths = pseudo.targets(given, nothing, nothing[:, 0], frames)
            kept = zip(silent, labels.tolist(), lengths.tolist(), strict=True)
            found.hypothesised.extend((utterances[i], row[:length]) for i, row, length in kept if length)
    return found


class LiveUtterances:
    """Training utterances that the teacher encodes anew in each epoch, in the order of the dataloader.

    Args:
        loader: NeMo's dataloader of the student's training set.
        teacher: the teacher, without an adapter.
        pseudo: writes the teacher's hypotheses in the student's labels.
        device: where the teacher runs.

    Raises:
        TutorError: the training set does not know its length.
    """

    def __init__(self, loader: Any, teacher: LiveTeacher, pseudo: PseudoLabels, device: torch.device) -> None:
        if not hasattr(loader.dataset, "__len__"):
            raise TutorError(
                "--live needs a training set that knows its length, and this one does not; keep the "
                "encoder's output instead (without --live)."
            )
        self._loader, self._teacher, self._pseudo, self._device = loader, teacher, pseudo, device
        self._hypotheses = lacks_transcripts(loader)
        self._names = BatchNames(UtteranceResolver(loader), teacher.sample_rate)

    def batches_in_epoch(self) -> int:
        """Returns the number of batches of an epoch."""
        return len(self._loader)

    def batches(self, epoch: int) -> Iterator[EncodedBatch]:
        """Yields the batches of the dataloader, encoded."""
        request = TargetRequest(hidden=True, hypotheses=self._hypotheses)
        for batch in map(TrainingBatch.from_nemo, self._loader):
            signal, lengths = batch.signal.to(self._device), batch.signal_lengths.to(self._device)
            targets = self._teacher.targets(replace(batch, signal=signal, signal_lengths=lengths), request)
            assert targets.hidden is not None
            check_audio(batch.signal, partial(self._names, batch))
            valid = frame_mask(targets.lengths, targets.hidden.shape[2])[:, None]
            bad = nonfinite_rows(targets.hidden.masked_fill(~valid, 0.0))
            if bad:
                named = self._names(batch)
                raise TutorError(
                    f"the teacher's encoder has NaN or infinite values in {shown([named[i] for i in bad])}; "
                    "look at that audio, or set model.tutor.teacher.precision=fp32."
                )
            labels, lengths = batch.transcripts, batch.transcript_lengths
            if targets.hypotheses is not None:
                frames = torch.full((len(lengths),), 1 << 30)
                given, given_lengths = self._pseudo.targets(targets.hypotheses, labels, lengths, frames)
                rows = [
                    (labels[i, :length] if length else given[i, : given_lengths[i]]).tolist()
                    for i, length in enumerate(lengths.tolist())
                ]
                labels, lengths = padded(rows)
            yield EncodedBatch(targets.hidden, targets.lengths, labels, lengths)


def lacks_transcripts(loader: Any) -> bool:
    """Returns whether an utterance of a dataloader may have no transcript; True where only reading all of
    them would tell.
    """
    collections = UtteranceResolver(loader).collections
    return not collections or any(not entry.text_tokens for part in collections for entry in part)


def manifest_digests(train_ds: DictConfig) -> list[str]:
    """Returns what names a training set's audio and text, with the sha256 of each manifest that is a file.

    Args:
        train_ds: section of the training set.
    """
    named = [f"{key}={train_ds[key]}" for key in _DATA_KEYS if train_ds.get(key) is not None]
    files = map(expand_user, manifests_of(train_ds, "model.train_ds.manifest_filepath"))
    return [*named, *(f"{path} {sha256_of(path)}" for path in files if path.is_file())]


def fits_on_disk(student: Any, teacher: LiveTeacher, work: Path) -> bool:
    """Returns whether the encoder's output of the training set fits on the disk; True where its hours are
    unknown.

    Args:
        student: has the dataloader.
        teacher: has the encoder.
        work: the folder that it would be written to.
    """
    utterances = UtteranceResolver(student._train_dl).manifest_utterances
    seconds = sum(utterance.duration or 0.0 for utterance in utterances)
    layer = teacher.encoder_layer
    needed = seconds * 1000 / layer.frame_ms * layer.width  # a byte a value
    work.mkdir(parents=True, exist_ok=True)
    # What an interrupted command has stored counts as free: it will not be stored again.
    stored = sum(file.stat().st_size for file in (work / "train").glob("shard-*"))
    free = shutil.disk_usage(work).free + stored
    if needed <= _SHARE_OF_DISK * free:
        return True
    print_note(
        f"The encoder's output would take {needed / 1e9:.1f} GB, and {work} has {free / 1e9:.1f} GB left, so "
        "the encoder runs in every epoch."
    )
    return False


def teacher_word_error_rate(
    reader: CacheReader,
    spoken: Sequence[tuple[Utterance, list[int]]],
    references: list[str],
    pseudo: PseudoLabels,
    batch_size: int,
) -> float:
    """Returns the word error rate of the teacher's own hypotheses, written in the student's labels.

    Args:
        reader: of the validation set, with hypotheses.
        spoken: its utterances with transcripts.
        references: these transcripts.
        pseudo: writes a hypothesis in the student's labels.
        batch_size: utterances that are read together.
    """
    written: list[str] = []
    for i in range(0, len(spoken), batch_size):  # a batch at a time, for each brings its hidden vectors along
        texts = reader.read([one for one, _ in spoken[i : i + batch_size]], Kinds(texts=True)).texts
        assert texts is not None, "the validation set is kept with hypotheses"
        written += [pseudo.in_student_labels(text) for text in texts]
    return sum_errors([count_errors(*pair) for pair in zip(references, written, strict=True)]).rate
