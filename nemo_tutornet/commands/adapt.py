# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""`nemo-tutornet adapt`: trains an adapter, a CTC head with the student's labels on a teacher's frozen
encoder (`teachers.adapter`).

The encoder runs over the training and validation sets once. Its output is kept like cached targets, and the
head is trained on it.

Legend: `B` utterances, `T` frames of the teacher's encoder.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from nemo_tutornet.commands.adapter_rounds import Examples, Rounds, Source, train_rounds, written_by
from nemo_tutornet.commands.adapter_training import (
    EncodedBatch,
    EpochResult,
    Settings,
    StoredUtterances,
    TrainingSet,
    padded,
    train_head,
    word_error_rate,
)
from nemo_tutornet.commands.cache_targets import build_cache, dataloader_student, print_note
from nemo_tutornet.config import TutorConfig
from nemo_tutornet.data.damaged_audio import guard_audio
from nemo_tutornet.data.dataloader import TrainingBatch, UtteranceResolver
from nemo_tutornet.data.utterances import Utterance
from nemo_tutornet.distill.finite import BatchNames, check_audio, nonfinite_rows, shown
from nemo_tutornet.distill.objective import read_tutor_section
from nemo_tutornet.distill.pseudo_labels import PseudoLabels
from nemo_tutornet.distill.transcripts import check_transcripts
from nemo_tutornet.errors import TutorError
from nemo_tutornet.evaluation.error_rates import count_errors, sum_errors
from nemo_tutornet.functional.frame_weighting import frame_mask
from nemo_tutornet.nemo_io.isolation import suppress_nemo_logs
from nemo_tutornet.nemo_io.layers import measure_encoder
from nemo_tutornet.nemo_io.restore import labels_of
from nemo_tutornet.target_cache.reader import CacheReader
from nemo_tutornet.teachers.adapter import Adapter, AdapterHead, AdapterInfo, upsampling_for
from nemo_tutornet.teachers.cached_audio import check_same_audio
from nemo_tutornet.teachers.live import LiveTeacher
from nemo_tutornet.teachers.targets import Hypothesis, TargetRequest

EPOCHS = 40
LEARNING_RATE = 2e-3
# Of the encoder's output: with less the head learns a small corpus by heart.
DROPOUT = 0.5
# The adapter is as wide as the teacher's encoder, but not wider than this.
MOST_WIDTH = 256
# The trainings of an adapter (`adapter_rounds`), as their progress names them.
PARTS = {
    "": "adapter",
    "transcribed": "adapter, transcripts alone",
    "adapter": "adapter, with its own text for the others",
    "teacher": "adapter, with the teacher's text for the others",
}
# The encoder's output may take this share of the free disk; the encoder runs in every epoch otherwise.
_SHARE_OF_DISK = 0.8


@dataclass(frozen=True)
class AdaptResult:
    """Summary of a run of `nemo-tutornet adapt`.

    Attributes:
        path: the adapter's file.
        labels: number of the student's labels, without the blank.
        frame_ms: milliseconds from one frame of the adapter to the next.
        upsampling: adapter frames for each teacher frame.
        parameters: parameters of the head.
        wer: the adapter's word error rate on the validation set, as a fraction.
        teacher_wer: the teacher's own there, as a fraction.
        best_epoch: the epoch whose weights the file has.
        epochs: epochs that were trained.
        utterances: training utterances with a transcript or a usable hypothesis.
        pseudo_labelled: how many of these have a hypothesis in place of a transcript.
        hypotheses_of: whose hypotheses these are: `teacher`, or `adapter`, a first one that was trained on
            the transcripts alone. Empty where there are none.
        minutes: duration of the run.
        work: folder with the encoder's output and the state of the training, which can be deleted.
    """

    path: str
    labels: int
    frame_ms: float
    upsampling: int
    parameters: int
    wer: float
    teacher_wer: float
    best_epoch: int
    epochs: int
    utterances: int
    pseudo_labelled: int
    hypotheses_of: Source
    minutes: float
    work: str


def adapt_teacher(
    cfg: Any,
    output: Path,
    work: Path | None = None,
    epochs: int = EPOCHS,
    learning_rate: float = LEARNING_RATE,
    width: int | None = None,
    batch_size: int | None = None,
    live: bool | None = None,
    report: Callable[[str, EpochResult], None] = lambda part, progress: None,
) -> AdaptResult:
    """Trains an adapter of the teacher of a training config for its student.

    Args:
        cfg: complete config of the training script.
        output: the safetensors file to write.
        work: folder for the encoder's output and for the state of an interrupted training; None is
            `output` with the ending `.work`. It may be shared by the adapters of one teacher.
        epochs: passes over the training set.
        learning_rate: highest learning rate.
        width: width of the adapter; None is that of the teacher's encoder, at most `MOST_WIDTH`.
        batch_size: utterances in a batch; None is `model.train_ds.batch_size`.
        live: run the encoder in every epoch instead of keeping its output. None does so where the output
            would take too much of the free disk.
        report: is called after each epoch with a name for that training: there are two where a part of the
            training set has no transcripts (`adapter_rounds`).

    Returns:
        A summary of the run.

    Raises:
        TutorError: the config has a mistake that would also stop the training, it has no teacher's file, or
            no validation utterance has a transcript.
    """
    start = time.monotonic()
    config = _checked(cfg)
    work = output.with_suffix(".work") if work is None else work
    seed = int(cfg.get("seed") or 0)
    with suppress_nemo_logs():
        loading = dataloader_student(_encoding(cfg, hypotheses=False).model, None, batch_size)
        teacher = LiveTeacher.from_config(replace(config.teacher, adapter=None))
    pseudo = PseudoLabels.for_student(config.pseudo_labels, loading)
    frame_ms = measure_encoder(loading.eval()).frame_ms
    upsampling = upsampling_for(teacher.encoder_layer.frame_ms, frame_ms)
    labels = tuple(labels_of(loading, loading.decoder))
    device = _device(cfg)

    valid = _stored(cfg, work, "valid", hypotheses=True, batch_size=batch_size)
    with suppress_nemo_logs():
        valid_cfg = _encoding(cfg, hypotheses=True, part="valid").model
        transcribed = _examples(dataloader_student(valid_cfg, None, batch_size), valid, None).transcribed
    spoken = [(utterance, ids) for utterance, ids in transcribed if pseudo.decode(ids).strip()]
    if not spoken:
        raise TutorError(
            "no utterance of model.validation_ds has a transcript in the student's labels, and the epoch is "
            "selected by word error rate; give a validation manifest with transcripts."
        )
    references = [pseudo.decode(ids) for _, ids in spoken]
    size = batch_size or int(cfg.model.train_ds.get("batch_size") or 16)
    validation = StoredUtterances(valid, spoken, size)
    teacher_wer = _teacher_wer(valid, spoken, references, pseudo, size)

    if live is None:
        live = not _fits_on_disk(loading, teacher, work)
    found: Examples | None = None
    if live:
        with suppress_nemo_logs():
            shuffled = dataloader_student(
                _encoding(cfg, hypotheses=True).model, None, batch_size, shuffle=True
            )
        for warning in check_transcripts(shuffled):
            print_note(warning)
        guard_audio(shuffled._train_dl, "model.train_ds", 0.0)
        lively = _LiveUtterances(shuffled._train_dl, teacher, pseudo)
    else:
        needs_hypotheses = _lacks_transcripts(loading._train_dl)
        reader = _stored(cfg, work, "train", needs_hypotheses, batch_size)
        if needs_hypotheses and not reader.schema.hypotheses:
            raise TutorError(
                f"{reader.folder} was kept when every utterance had a transcript, so it lacks the teacher's "
                "hypotheses; delete that folder, or give another one with --work."
            )
        found = _examples(loading, reader, pseudo)
        if not found.transcribed and not found.hypothesised:
            raise TutorError(
                "no utterance of model.train_ds has a transcript or a usable hypothesis in the student's "
                f"labels ({pseudo.report().rstrip('.')}), so the adapter would learn nothing."
            )
    encoder_width = teacher.encoder_layer.width
    width = width or min(encoder_width, MOST_WIDTH)

    def validate(head: AdapterHead) -> float:
        return word_error_rate(head, validation.in_order(), references, pseudo.decode, device)

    def trained(training: TrainingSet, data: Sequence[Any], part: str) -> tuple[AdapterHead, EpochResult]:
        torch.manual_seed(seed)
        head = _head_of(teacher, width, upsampling, len(labels) + 1)
        sizes = [encoder_width, width, upsampling, head.expand.in_channels]
        # Other data make another training, which must not continue from this one's state.
        heads = {
            "teacher": teacher.sha256,
            "labels": labels,
            "sizes": sizes,
            "data": [str(one) for one in data],
            "validation": [str(one) for one in spoken],
            "live": live,
        }
        digest = hashlib.sha256(json.dumps(heads).encode())
        settings = Settings(epochs, learning_rate, size, DROPOUT, seed, digest.hexdigest())
        name = f"{output.stem}{part and '.'}{part}"
        shown = partial(report, PARTS[part])
        last = train_head(head, training, validate, settings, work / f"{name}.state.pt", shown, device)
        return head, last

    if found is None:
        head, last = trained(lively, [loading.cfg.train_ds.get("manifest_filepath")], "")
        best = Rounds(head, last, [], "", 0)
    else:
        best = train_rounds(
            found,
            teacher_wer,
            lambda examples, part: trained(StoredUtterances(reader, examples, size), examples, part),
            lambda head: written_by(head, reader, found.silent, size),
        )
    head, last = best.head, best.last
    info = AdapterInfo(
        teacher_outputs=head.expand.in_channels - encoder_width,
        labels=labels,
        frame_ms=teacher.encoder_layer.frame_ms / upsampling,
        upsampling=upsampling,
        teacher_width=encoder_width,
        width=width,
        teacher_sha256=teacher.sha256,
        teacher_class=type(teacher.model).__name__,
        wer=last.best_wer,
        teacher_wer=teacher_wer,
        utterances=len(spoken),
    )
    Adapter(head, info).save(output)
    return AdaptResult(
        path=str(output),
        labels=len(labels),
        frame_ms=info.frame_ms,
        upsampling=upsampling,
        parameters=sum(parameter.numel() for parameter in head.parameters()),
        wer=info.wer,
        teacher_wer=teacher_wer,
        best_epoch=last.best_epoch,
        epochs=last.epoch,
        utterances=len(best.examples),
        pseudo_labelled=best.untranscribed,
        hypotheses_of=best.source,
        minutes=(time.monotonic() - start) / 60,
        work=str(work),
    )


def _head_of(teacher: LiveTeacher, width: int, upsampling: int, outputs: int) -> AdapterHead:
    """Returns a new head, which reads the posteriors of the teacher's CTC decoder where that is a single 1x1
    convolution.
    """
    decoder, encoder_width = teacher.ctc_projection(), teacher.encoder_layer.width
    if decoder is None:
        return AdapterHead(encoder_width, width, upsampling, outputs, dropout=DROPOUT)
    head = AdapterHead(encoder_width, width, upsampling, outputs, decoder.out_channels, DROPOUT)
    assert head.teacher_decoder is not None and head.teacher_decoder.bias is not None
    with torch.no_grad():
        head.teacher_decoder.weight.copy_(decoder.weight)
        head.teacher_decoder.bias.zero_()
        if decoder.bias is not None:
            head.teacher_decoder.bias.copy_(decoder.bias)
    return head


def _checked(cfg: Any) -> TutorConfig:
    config = read_tutor_section(cfg.model)
    if config is None:
        raise TutorError("model.tutor is not there, so there is no teacher to make an adapter of.")
    if not config.teacher.model_path:
        raise TutorError(
            "model.tutor.teacher.model_path is not set, and an adapter is trained on the teacher itself; "
            "give "
            "its .nemo file or the name of a pretrained NeMo model."
        )
    manifest = (cfg.model.get("validation_ds") or {}).get("manifest_filepath")
    if not manifest and not (cfg.model.get("validation_ds") or {}).get("use_lhotse"):
        raise TutorError(
            "model.validation_ds.manifest_filepath is not set, and the adapter's epoch is selected by its "
            "word error rate there; give a validation manifest with transcripts."
        )
    return config


def _encoding(cfg: Any, hypotheses: bool, part: str = "train") -> Any:
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
    cfg.trainer = {**(cfg.get("trainer") or {}), "devices": 1, "num_nodes": 1, "strategy": "auto"}
    # The head is trained on the audio as it was recorded.
    cfg.model.train_ds = {**cfg.model.train_ds, "augmentor": None, "perturb_speed": False}
    if part == "valid":
        cfg.model.train_ds = {**_without_tars(cfg.model.train_ds), **cfg.model.validation_ds}
    return cfg


def _without_tars(train_ds: DictConfig) -> dict[str, Any]:
    """Returns the keys of a training set that say how text is read, for a validation set."""
    kept = ("labels", "parser", "normalize_transcripts", "sample_rate", "batch_size", "num_workers")
    return {key: train_ds[key] for key in kept if key in train_ds}


def _stored(cfg: Any, work: Path, part: str, hypotheses: bool, batch_size: int | None) -> CacheReader:
    folder = work / part
    section = "model.train_ds" if part == "train" else "model.validation_ds"
    build_cache(_encoding(cfg, hypotheses, part), folder, batch_size, section=section)
    return CacheReader(folder)


def _examples(student: Any, reader: CacheReader, pseudo: PseudoLabels | None) -> Examples:
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
        stored = reader.read(utterances)
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


class _LiveUtterances:
    """Training utterances that the teacher encodes anew in each epoch, in the order of the dataloader."""

    def __init__(self, loader: Any, teacher: LiveTeacher, pseudo: PseudoLabels) -> None:
        if not hasattr(loader.dataset, "__len__"):
            raise TutorError(
                "--live needs a training set that knows its length, and this one does not; keep the "
                "encoder's "
                "output instead (without --live)."
            )
        self._loader, self._teacher, self._pseudo = loader, teacher, pseudo
        self._hypotheses = _lacks_transcripts(loader)
        self._names = BatchNames(UtteranceResolver(loader), teacher.sample_rate)

    def batches_in_epoch(self) -> int:
        """Returns the number of batches of an epoch."""
        return len(self._loader)

    def batches(self, epoch: int) -> Iterator[EncodedBatch]:
        """Yields the batches of the dataloader, encoded."""
        request = TargetRequest(hidden=True, hypotheses=self._hypotheses)
        for batch in map(TrainingBatch.from_nemo, self._loader):
            targets = self._teacher.targets(batch, request)
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


def _lacks_transcripts(loader: Any) -> bool:
    """Whether an utterance may have no transcript; True where only reading all of them would tell."""
    collections = UtteranceResolver(loader).collections
    return not collections or any(not entry.text_tokens for part in collections for entry in part)


def _fits_on_disk(student: Any, teacher: LiveTeacher, work: Path) -> bool:
    """Whether the encoder's output of the training set fits on the disk; True where its hours are unknown."""
    utterances = UtteranceResolver(student._train_dl).manifest_utterances
    seconds = sum(utterance.duration or 0.0 for utterance in utterances)
    layer = teacher.encoder_layer
    needed = seconds * 1000 / layer.frame_ms * layer.width  # a byte a value
    work.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(work).free
    if needed <= _SHARE_OF_DISK * free:
        return True
    print_note(
        f"The encoder's output would take {needed / 1e9:.1f} GB, and {work} has {free / 1e9:.1f} GB left, so "
        "the encoder runs in every epoch."
    )
    return False


def _teacher_wer(
    reader: CacheReader,
    spoken: Sequence[tuple[Utterance, list[int]]],
    references: list[str],
    pseudo: PseudoLabels,
    batch_size: int,
) -> float:
    """Returns the word error rate of the teacher's own hypotheses, written in the student's labels."""
    written: list[str] = []
    for i in range(0, len(spoken), batch_size):  # a batch at a time, for each brings its hidden vectors along
        texts = reader.read([utterance for utterance, _ in spoken[i : i + batch_size]]).texts
        assert texts is not None, "the validation set is kept with hypotheses"
        written += [pseudo.in_student_labels(text) for text in texts]
    return sum_errors([count_errors(*pair) for pair in zip(references, written, strict=True)]).rate


def _device(cfg: Any) -> torch.device:
    wanted = str((cfg.get("trainer") or {}).get("accelerator", "auto"))
    return torch.device("cuda" if torch.cuda.is_available() and wanted in ("auto", "gpu", "cuda") else "cpu")
