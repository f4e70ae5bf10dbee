# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""`nemo-tutornet cache`: the teacher runs once over a training set, and what it says is kept.

Lightning's `predict` runs it, so the trainer's devices, nodes and strategy are the training's; each rank
writes its own shards.
"""

from __future__ import annotations

import logging
import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities import rank_zero_only
from lightning.pytorch.utilities.rank_zero import rank_zero_module
from nemo.collections.asr.data.audio_to_text import _AudioTextDataset
from nemo.utils.trainer_utils import resolve_trainer_cfg
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TaskID, TextColumn, TimeRemainingColumn
from rich.text import Text
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, Subset

from nemo_tutornet.commands.min_posterior import WHOLE_LABELS, choose_min_posterior
from nemo_tutornet.config import TutorConfig
from nemo_tutornet.data.dataloader import (
    ACOUSTIC_AUGMENTATIONS,
    SUBSETTING_OPTIONS,
    TIMING_AUGMENTATIONS,
    TrainingBatch,
    UtteranceResolver,
    check_tars,
)
from nemo_tutornet.data.manifest import check_manifests
from nemo_tutornet.data.utterances import Utterance, key_bytes, key_hash
from nemo_tutornet.distill.matching import layer_lengths, match_models
from nemo_tutornet.distill.objective import LossContext, Objective, read_tutor_section
from nemo_tutornet.errors import TutorError
from nemo_tutornet.functional.schedule import Schedule
from nemo_tutornet.models import model_class_for
from nemo_tutornet.nemo_io.isolation import suppress_nemo_logs
from nemo_tutornet.nemo_io.restore import locate
from nemo_tutornet.nemo_io.tokenizer_files import tokenizer_of
from nemo_tutornet.target_cache.layout import CacheSchema
from nemo_tutornet.target_cache.records import UtteranceTargets
from nemo_tutornet.target_cache.writer import CacheWriter, FinishedUtterances, read_schema
from nemo_tutornet.teachers.cached import binding, head_file
from nemo_tutornet.teachers.live import LiveTeacher
from nemo_tutornet.teachers.targets import TargetRequest, TeacherTargets

# Batches of the training set by which the floor of large label sets is chosen.
_SAMPLE_BATCHES = 4
# What of the training's trainer the builder takes over.
_TRAINER = ("devices", "num_nodes", "accelerator", "strategy")


@dataclass(frozen=True)
class CacheBuildResult:
    """What a run of the builder did.

    Attributes:
        folder: of the cache.
        utterances, hours, megabytes: in it now.
        added: utterances that this run added.
        minutes: it took.
        unheard: utterances of the manifests that are not in it, since no tar holds them.
    """

    folder: str
    utterances: int
    hours: float
    megabytes: float
    added: int
    minutes: float
    unheard: int = 0


def build_cache(
    cfg: Any, folder: Path, batch_size: int | None = None, progress: bool = True
) -> CacheBuildResult:
    """Runs the teacher of a training config over its training set and writes what the stages will read.

    Args:
        cfg: the training script's whole config.
        folder: of the cache; one that a killed builder left is gone on with, a finished one gets what is
            missing in it.
        batch_size: utterances that the teacher hears together; None is the training's.
        progress: whether rank 0 shows a bar.

    Raises:
        TutorError: whatever would stop the training, a folder of something else, or a full disk.
    """
    config = read_tutor_section(cfg.model)
    if config is None:
        raise TutorError("model.tutor is not there, so there is no teacher whose targets could be kept.")
    if config.teacher.cache is not None:
        raise TutorError(
            "model.tutor.teacher.cache is set, so this config reads a cache; leave it out, and give --output "
            "to write one."
        )
    for told in check_manifests(cfg.model):
        _tell(told)
    start = time.monotonic()
    # What Lightning says of GPUs and TPUs belongs to trainings.
    rank_zero_module.log.setLevel(logging.WARNING)
    with suppress_nemo_logs():
        options = {
            key: value
            for key, value in resolve_trainer_cfg(cfg.get("trainer", {})).items()
            if key in _TRAINER
        }
        # Nothing trains here; a number of batches, no share, keeps NeMo from asking a tarred Lhotse set for a
        # length it has not. Lhotse's sampler gives each rank its part already, and has no length, which
        # Lightning's would ask for.
        trainer = pl.Trainer(
            logger=False,
            enable_checkpointing=False,
            enable_model_summary=False,
            enable_progress_bar=False,
            limit_train_batches=1,
            use_distributed_sampler=not cfg.model.train_ds.get("use_lhotse"),
            **options,
        )
        check_tars(cfg.model.train_ds, trainer.world_size)
        student = _student(cfg.model, trainer, batch_size)
        teacher = LiveTeacher.from_config(config.teacher, config.rkd.hint_layer)
        match = match_models(student, teacher, config)
    outputs = len(student.decoder.vocabulary) + 1
    objective = Objective(
        LossContext(config, match, (), outputs, student.cfg.get("ctc_reduction", "mean_batch"))
    )
    request = objective.request(Schedule.from_config(config.stages).stages)
    if not request:
        raise TutorError(
            "no stage in model.tutor.stages reads anything of the teacher, so there is nothing to keep."
        )
    path, loader = locate(config.teacher.model_path), student._train_dl
    kind, tokenizer = tokenizer_of(path)
    facts = binding(teacher, path, trainer.strategy.root_device, request.hidden, kind if tokenizer else None)
    rows = UtteranceResolver(loader)
    coding = read_schema(folder)
    files = {**head_file(teacher), **tokenizer}
    train_ds = cfg.model.train_ds
    # Out of tars Lhotse reads everything on every rank, and so does NeMo where it is told to.
    whole = rows.is_iterable and bool(
        train_ds.get("use_lhotse") or train_ds.get("tarred_shard_strategy") == "replicate"
    )
    builder = _Builder(
        teacher,
        rows,
        request,
        coding=lambda device: coding or _coding(teacher, loader, request, config, device),
        writer_of=lambda rank, coding: CacheWriter(folder, facts, coding, teacher.sample_rate, rank),
        files=files,
        whole_on_each_rank=whole,
    )
    done = FinishedUtterances(folder, facts, coding, teacher.sample_rate) if coding is not None else ()
    remaining = [i for i, utterance in enumerate(rows.manifest_utterances) if utterance not in done]
    totals: dict[str, Any] = {"utterances": len(done), "seconds": 0.0, "bytes": 0}
    if remaining or not rows.manifest_utterances:
        if progress and rank_zero_only.rank == 0:
            builder.bar = _bar(rows, remaining, trainer.world_size)
        try:
            trainer.predict(
                builder, _remaining(loader, rows, remaining, trainer.world_size), return_predictions=False
            )
        finally:
            builder.let_go()
        totals = builder.totals
    elif rank_zero_only.rank == 0:
        assert coding is not None, "nothing remains, so a cache is there"
        with builder.writer_of(0, coding) as writer:
            totals = writer.finish(files)
    unheard = 0
    if rows.is_iterable and rank_zero_only.rank == 0:
        written = read_schema(folder)
        assert written is not None, "a cache was finished"
        unheard = _tell_unheard(
            rows.manifest_utterances, FinishedUtterances(folder, facts, written, teacher.sample_rate)
        )
    return CacheBuildResult(
        folder=str(folder),
        utterances=totals["utterances"],
        hours=totals["seconds"] / 3600,
        megabytes=totals["bytes"] / 1e6,
        added=totals["utterances"] - len(done),
        minutes=(time.monotonic() - start) / 60,
        unheard=unheard,
    )


class _Builder(pl.LightningModule):
    """Runs the teacher on each batch and hands its targets to this rank's writer. The teacher is no module of
    it.
    """

    def __init__(
        self,
        teacher: LiveTeacher,
        rows: UtteranceResolver,
        request: TargetRequest,
        coding: Callable[[torch.device], CacheSchema],
        writer_of: Callable[[int, CacheSchema], CacheWriter],
        files: Mapping[str, bytes],
        whole_on_each_rank: bool,
    ) -> None:
        super().__init__()
        self._whole_on_each_rank = whole_on_each_rank
        self._teacher, self._rows, self._request, self._files = teacher, rows, request, dict(files)
        self._coding, self.writer_of = coding, writer_of
        self.bar: tuple[Progress, TaskID] | None = None
        self.totals: dict[str, Any] = {}
        self._stack = ExitStack()

    def setup(self, stage: str) -> None:
        """Chooses the coding, before the loader is gone through: rank 0's for all, since each hears
        utterances of its own.
        """
        strategy = self.trainer.strategy
        chosen = self._coding(strategy.root_device) if self.trainer.is_global_zero else None
        self._chosen = strategy.broadcast(chosen)

    def on_predict_start(self) -> None:
        """Opens the writers, rank 0's first."""
        rank = self.trainer.global_rank
        if rank == 0:
            self._writer = self._stack.enter_context(self.writer_of(rank, self._chosen))
        self.trainer.strategy.barrier("nemo_tutornet.cache.open")
        if rank != 0:
            self._writer = self._stack.enter_context(self.writer_of(rank, self._chosen))
        if self.bar is not None:
            self._stack.enter_context(self.bar[0])

    def predict_step(self, batch: Sequence[Any], batch_idx: int) -> int:
        """The teacher's targets of a batch, but for rows of a finished shard or of another rank. Returns how
        many were kept.
        """
        utterances = self._rows(TrainingBatch.from_nemo(batch))
        todo = [i for i, one in enumerate(utterances) if self._is_ours(one) and one not in self._writer]
        signal, lengths = batch[0][todo], batch[1][todo]
        if todo:
            part = TrainingBatch(signal[:, : int(lengths.max())], lengths)
            given = self._teacher.targets(part, self._request)
            for row, targets in zip(todo, _split(given, lengths, self._teacher), strict=True):
                self._writer.add(utterances[row], targets)
        if self.bar is not None:
            bar, task = self.bar
            bar.advance(task, float(lengths.sum()) / self._teacher.sample_rate / 3600)
        return len(todo)

    def _is_ours(self, utterance: Utterance) -> bool:
        """Whether this rank keeps an utterance; where all ranks read the same, the key tells whose it is."""
        ranks = self.trainer.world_size if self._whole_on_each_rank else 1
        return key_hash(key_bytes(utterance)) % ranks == self.trainer.global_rank % ranks

    def on_predict_end(self) -> None:
        """Writes what remains; when every rank has, rank 0 makes it a cache."""
        self._writer.flush()
        self.trainer.strategy.barrier("nemo_tutornet.cache.flushed")
        totals = self._writer.finish(self._files) if self.trainer.is_global_zero else {}
        self.totals = self.trainer.strategy.broadcast(totals)

    def let_go(self) -> None:
        """Lets the folder go; after an error or an interrupt nothing of an unfinished shard is written."""
        self._stack.__exit__(*sys.exc_info())


def _split(given: TeacherTargets, lengths: Tensor, teacher: LiveTeacher) -> Iterator[UtteranceTargets]:
    """A batch's targets utterance by utterance, without padding, on the CPU."""
    log_probs = None if given.log_probs is None else given.log_probs.float().cpu()
    hidden = None if given.hidden is None else given.hidden.float().cpu()
    frames, samples = given.lengths.tolist(), lengths.tolist()
    hint_frames = frames
    if hidden is not None:
        hint_frames = layer_lengths(
            given.lengths, teacher.encoder_layer, teacher.hint_layer, hidden.shape[2]
        ).tolist()
    for i in range(len(samples)):
        heard = None if given.hypotheses is None else given.hypotheses[i]
        yield UtteranceTargets(
            samples=samples[i],
            frames=frames[i],
            log_probs=None if log_probs is None else log_probs[i, : frames[i]],
            hidden=None if hidden is None else hidden[i, :, : hint_frames[i]],
            text=None if heard is None else heard.text,
            confidence=None if heard is None else heard.confidence,
        )


def _tell_unheard(known: Sequence[Utterance], done: FinishedUtterances) -> int:
    """Counts, and says once, what a manifest has and no tar."""
    unheard = [utterance for utterance in known if utterance not in done]
    if unheard:
        more = f" and {len(unheard) - 1} more of {len(known)}" if len(unheard) > 1 else ""
        _tell(f"The manifest has {unheard[0]}{more}, but no tar has, so the cache has no targets for it.")
    return len(unheard)


def _tell(sentence: str) -> None:
    """Once, whatever the number of processes."""
    if rank_zero_only.rank == 0:
        Console(stderr=True, soft_wrap=True).print(sentence, markup=False, highlight=False)


def _student(model_cfg: DictConfig, trainer: pl.Trainer, batch_size: int | None) -> Any:
    """The student, for its dataloader: the training set once, in order, and as it is."""
    cfg: Any = OmegaConf.create(OmegaConf.to_container(model_cfg, resolve=True))
    train = cfg.train_ds
    train.update(shuffle=False, augmentor=None, use_semi_sorted_batching=False, drop_last=False)
    if batch_size is not None:
        train.batch_size = batch_size
    if train.get("use_lhotse"):
        train.update(
            force_finite=True, **TIMING_AUGMENTATIONS, **ACOUSTIC_AUGMENTATIONS, **SUBSETTING_OPTIONS
        )
    for name in ("validation_ds", "test_ds"):
        cfg.pop(name, None)
    return model_class_for(cfg)(cfg=cfg, trainer=trainer)


def _coding(
    teacher: LiveTeacher, loader: Any, request: TargetRequest, config: TutorConfig, device: torch.device
) -> CacheSchema:
    """What is kept of each utterance; a large label set's posteriors only as far as SKD can tell."""
    labels = floor = None
    if request.posteriors:
        labels = len(teacher.labels) + 1
    if labels is not None and labels > WHOLE_LABELS:
        if hasattr(
            loader.dataset, "reset_on_iter"
        ):  # Lhotse's would go on behind what is taken here, not begin again
            loader.dataset.reset_on_iter = True
        samples: list[Tensor] = []
        for batch in islice(loader, _SAMPLE_BATCHES):
            audio = TrainingBatch(batch[0].to(device), batch[1].to(device))
            given = teacher.targets(audio, TargetRequest(posteriors=True))
            assert given.log_probs is not None
            log_probs = given.log_probs.float().cpu()
            samples += [row[:length] for row, length in zip(log_probs, given.lengths.tolist(), strict=True)]
        temperatures = sorted({1.0, config.skd.temperature})
        floor = choose_min_posterior(
            samples, [("l2", 1.0), ("guided_ctc", 1.0), *(("kl", one) for one in temperatures)]
        )
    return CacheSchema(
        labels=labels,
        min_posterior=floor,
        width=teacher.hint_layer.width if request.hidden else None,
        hypotheses=request.hypotheses,
    )


def _remaining(loader: Any, rows: UtteranceResolver, remaining: Sequence[int], ranks: int) -> Any:
    """A loader of what is not there yet, the longest first; tars and Lhotse are gone through whole."""
    known = rows.manifest_utterances
    if isinstance(loader.dataset, _AudioTextDataset):
        longest_first = sorted(remaining, key=lambda i: -(known[i].duration or math.inf))
        # Lightning wants something for each rank; what two of them write counts once.
        dataset: Any = Subset(loader.dataset, list(islice(cycle(longest_first), max(len(remaining), ranks))))
    elif known:
        dataset = _Unsized(loader.dataset)
    else:
        return loader
    return DataLoader(
        dataset, batch_size=loader.batch_size, collate_fn=loader.collate_fn, num_workers=loader.num_workers
    )


class _Unsized(IterableDataset):
    """Tars without their manifest's length, at which Lightning would stop: too early where workers end on
    smaller batches.
    """

    def __init__(self, tars: Any) -> None:
        self._tars = tars

    def __iter__(self) -> Iterator[Any]:
        return iter(self._tars)


def _bar(rows: UtteranceResolver, remaining: Sequence[int], ranks: int) -> tuple[Progress, TaskID]:
    """Hours of audio that rank 0 has behind it, and how many an hour."""
    known = rows.manifest_utterances
    hours = sum(known[i].duration or 0.0 for i in remaining) / 3600 / ranks if known else None
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed:.2f} hours of audio"),
        _Speed(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
    )
    return bar, bar.add_task("teacher" if ranks == 1 else f"teacher (1 of {ranks} ranks)", total=hours)


class _Speed(ProgressColumn):
    """Hours of audio an hour."""

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{3600 * speed:.0f} hours of audio an hour")
