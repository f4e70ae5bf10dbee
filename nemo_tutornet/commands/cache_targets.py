# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""`nemo-tutornet cache`: runs the teacher once over a training set and stores its targets.

The loop is `predict` of a Lightning trainer, with the devices, nodes and strategy of the training. Each rank
writes its own shards.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
from lightning.pytorch.utilities import rank_zero_only
from lightning.pytorch.utilities.rank_zero import rank_zero_module
from nemo.utils.trainer_utils import resolve_trainer_cfg
from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from nemo_tutornet.commands.cache_builder import CacheBuilder, hours_progress, play_at, remaining_loader
from nemo_tutornet.commands.cache_schema import request_of_cache, schema_of_training
from nemo_tutornet.config import TutorConfig
from nemo_tutornet.data.damaged_audio import guard_audio
from nemo_tutornet.data.dataloader import UtteranceResolver
from nemo_tutornet.data.manifest_checks import check_manifests
from nemo_tutornet.data.train_settings import (
    ACOUSTIC_AUGMENTATIONS,
    SUBSETTING_OPTIONS,
    TIMING_AUGMENTATIONS,
    check_augmentation,
    check_tars,
    reading_of,
)
from nemo_tutornet.data.utterances import Utterance
from nemo_tutornet.data.views import ORIGINAL, View, check_lengths, lhotse_sections, views_of, with_speeds
from nemo_tutornet.distill.losses import LossContext
from nemo_tutornet.distill.matching import match_models
from nemo_tutornet.distill.objective import Objective, read_tutor_section
from nemo_tutornet.distill.transcripts import check_transcripts
from nemo_tutornet.errors import TutorError
from nemo_tutornet.functional.schedule import Schedule
from nemo_tutornet.models import model_class_for
from nemo_tutornet.nemo_io.isolation import suppress_nemo_logs
from nemo_tutornet.nemo_io.restore import locate
from nemo_tutornet.nemo_io.tokenizer_files import tokenizer_of
from nemo_tutornet.target_cache.unfinished import FinishedUtterances, read_provenance, read_schema
from nemo_tutornet.target_cache.writer import CacheWriter
from nemo_tutornet.teachers.cached_audio import UNCHECKED_AUDIO
from nemo_tutornet.teachers.live import LiveTeacher
from nemo_tutornet.teachers.provenance import binding, head_file

# Trainer options of the training config that the builder uses too.
_TRAINER = ("devices", "num_nodes", "accelerator", "strategy")


@dataclass(frozen=True)
class CacheBuildResult:
    """Summary of a run of the builder.

    Attributes:
        folder: folder of the cache.
        utterances: number of utterances in the cache after the run. One at another speed is another one.
        hours: hours of audio in the cache after the run.
        megabytes: size of the cache after the run, in units of 10^6 bytes.
        added: number of utterances that this run added.
        minutes: duration of the run.
        missing_from_tars: number of utterances that are in a manifest but in no tar, and so not in the cache.
        views: the speeds at which the training plays the utterances, as text.
    """

    folder: str
    utterances: int
    hours: float
    megabytes: float
    added: int
    minutes: float
    missing_from_tars: int = 0
    views: tuple[str, ...] = (str(ORIGINAL),)


def build_cache(
    cfg: Any,
    folder: Path,
    batch_size: int | None = None,
    progress: bool = True,
    section: str = "model.train_ds",
    views: int | None = None,
) -> CacheBuildResult:
    """Runs the teacher of a training config over its training set and stores the targets that its stages use.

    With speed perturbation, every utterance is stored at each speed.

    Args:
        cfg: complete config of the training script.
        folder: folder of the cache. An unfinished cache is resumed; missing utterances are added to a
            finished one.
        batch_size: number of utterances in a batch of the teacher; None uses that of the training.
        progress: whether rank 0 shows its progress, in a bar or in lines.
        section: the section of the user's config that `cfg.model.train_ds` comes from, for notes.
        views: number of rates of the speed perturbation, instead of the config's.

    Returns:
        A summary of the run.

    Raises:
        TutorError: the config has a mistake that would also stop the training, the folder contains foreign
            files, or the disk is full.
    """
    config = _config_with_a_teacher(cfg)
    if views is not None:
        cfg = OmegaConf.create(OmegaConf.to_container(cfg, resolve=False))
        with_speeds(cfg.model.train_ds, views)
    check_augmentation(cfg.model.train_ds)
    speeds = views_of(cfg.model.train_ds)
    for warning in check_manifests(cfg.model, section):
        print_note(warning)
    start = time.monotonic()
    # Hide Lightning's messages about GPUs and TPUs, which are of interest only for a training.
    rank_zero_module.log.setLevel(logging.WARNING)
    with suppress_nemo_logs():
        trainer = _prediction_trainer(cfg)
        check_tars(cfg.model.train_ds, trainer.world_size)
        student = dataloader_student(cfg.model, trainer, batch_size, perturbed=len(speeds) > 1)
        warnings = check_transcripts(student, section)
        guard_audio(student._train_dl, section, 0.0)
        teacher = LiveTeacher.from_config(config.teacher, config.rkd.hint_layer)
        if config.rkd.pairs and config.uses("rkd"):
            teacher.add_hint_layers([pair.hint_layer for pair in config.rkd.pairs])
        match = match_models(student, teacher, config)
    for warning in warnings:
        print_note(warning)
    outputs = len(student.decoder.vocabulary) + 1
    objective = Objective(
        LossContext(config, match, (), outputs, student.cfg.get("ctc_reduction", "mean_batch"))
    )
    request = objective.request(Schedule.from_config(config.stages).stages)
    if not request:
        raise TutorError(
            "no stage in model.tutor.stages reads anything of the teacher, so there is nothing to keep."
        )
    coding = read_schema(folder)
    if coding is not None:
        request = request_of_cache(request, coding, folder)
    path, loader = locate(config.teacher.model_path), student._train_dl
    # With an adapter the posteriors are over the student's own labels, not over the teacher's tokenizer.
    kind, tokenizer = tokenizer_of(path) if teacher.adapter is None else (None, {})
    facts = binding(teacher, path, trainer.strategy.root_device, request.hidden, kind if tokenizer else None)
    stored = read_provenance(folder)
    if stored is None or "audio" in stored:
        facts["audio"] = reading_of(cfg.model.train_ds)
    else:
        print_note(f"{folder}: {UNCHECKED_AUDIO}")
    rows = UtteranceResolver(loader, speeds)
    _check_durations(rows, teacher.sample_rate)
    files = {**head_file(teacher), **tokenizer}
    train_ds = cfg.model.train_ds
    # With tars, every rank reads everything if Lhotse reads them, or if NeMo is configured to replicate them.
    whole = rows.is_iterable and bool(
        train_ds.get("use_lhotse") or train_ds.get("tarred_shard_strategy") == "replicate"
    )
    builder = CacheBuilder(
        teacher,
        rows,
        request,
        coding=lambda device: read_schema(folder) or schema_of_training(teacher, loader, request, device),
        writer_of=lambda rank, coding: CacheWriter(folder, facts, coding, teacher.sample_rate, rank),
        files=files,
        whole_on_each_rank=whole,
        views=speeds,
    )
    done = FinishedUtterances(folder, facts, coding, teacher.sample_rate) if coding is not None else ()
    known = rows.manifest_utterances
    passes = _passes(known, speeds, done)
    totals: dict[str, Any] = {"utterances": len(done), "seconds": 0.0, "bytes": 0}
    if passes:
        if progress and rank_zero_only.rank == 0:
            builder.progress = hours_progress(rows, passes, trainer.world_size)
        _predict(trainer, builder, loader, rows, passes)
        totals = builder.totals
    elif rank_zero_only.rank == 0:
        assert coding is not None, "nothing remains, so a cache is there"
        with builder.writer_of(0, coding) as writer:
            totals = builder.finish(writer)
    missing_from_tars = 0
    if rows.is_iterable and rank_zero_only.rank == 0:
        written = read_schema(folder)
        assert written is not None, "a cache was finished"
        missing_from_tars = _note_missing_from_tars(
            [replace(utterance, view=speeds[0].name) for utterance in known],
            FinishedUtterances(folder, facts, written, teacher.sample_rate),
        )
    return CacheBuildResult(
        folder=str(folder),
        utterances=totals["utterances"],
        hours=totals["seconds"] / 3600,
        megabytes=totals["bytes"] / 1e6,
        added=totals["utterances"] - len(done),
        minutes=(time.monotonic() - start) / 60,
        missing_from_tars=missing_from_tars,
        views=tuple(map(str, speeds)),
    )


# A pass over the data: the speed at which it is played, and the indices of what the cache lacks.
# Lhotse plays all speeds in one pass, without a speed and without indices.
_Pass = tuple[View | None, list[int]]


def _config_with_a_teacher(cfg: Any) -> TutorConfig:
    """Reads `model.tutor`, and refuses one without a teacher to run."""
    config = read_tutor_section(cfg.model)
    if config is None or config.without_teacher:
        raise TutorError(
            "model.tutor is not there or has no teacher, so there is no teacher whose targets could be kept."
        )
    if config.teacher.cache is not None:
        raise TutorError(
            "model.tutor.teacher.cache is set, so this config reads a cache; leave it out, and give --output "
            "to write one."
        )
    return config


def _prediction_trainer(cfg: Any) -> pl.Trainer:
    """Builds a trainer with the devices, nodes and strategy of the training, which writes no files."""
    options = {
        key: value for key, value in resolve_trainer_cfg(cfg.get("trainer", {})).items() if key in _TRAINER
    }
    # No training happens here. `limit_train_batches` is a number of batches instead of a fraction, so that
    # NeMo does not ask a tarred Lhotse dataset for its length, which it does not have. Lhotse's sampler
    # already gives each rank its part. It has no length either, which Lightning's distributed sampler would
    # need.
    return pl.Trainer(
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=False,
        limit_train_batches=1,
        use_distributed_sampler=not cfg.model.train_ds.get("use_lhotse"),
        **options,
    )


def _passes(
    known: Sequence[Utterance], speeds: Sequence[View], done: FinishedUtterances | tuple[()]
) -> list[_Pass]:
    """Returns the passes that complete a cache; none if it is complete.

    Args:
        known: the utterances of the manifests; empty where only the data has them.
        speeds: at which each of them is stored.
        done: what the cache holds.
    """
    if not known:
        return [(None, [])]
    lacking = [
        (view, [i for i, utterance in enumerate(known) if replace(utterance, view=view.name) not in done])
        for view in speeds
    ]
    return [(view, remaining) for view, remaining in lacking if remaining]


def _predict(
    trainer: pl.Trainer, builder: CacheBuilder, loader: Any, rows: UtteranceResolver, passes: Sequence[_Pass]
) -> None:
    """Runs the teacher, pass by pass, and closes the cache's files."""
    try:
        for number, (view, remaining) in enumerate(passes, start=1):
            builder.view, builder.is_last = view, number == len(passes)
            if view is not None:
                play_at(loader, view)
            trainer.predict(
                builder,
                remaining_loader(loader, rows, remaining, trainer.world_size),
                return_predictions=False,
            )
    finally:
        builder.release()


def _check_durations(rows: UtteranceResolver, sample_rate: int) -> None:
    """Refuses utterances so short that two speeds give them the same number of samples, before the teacher
    runs. A training checks the exact numbers.
    """
    known = [utterance for utterance in rows.manifest_utterances if utterance.duration is not None]
    if not known or len(rows.views) == 1:
        return
    samples = [round((utterance.duration or 0.0) * sample_rate) for utterance in known]
    lengths = np.array([[view.samples_of(count) for view in rows.views] for count in samples])
    check_lengths(list(map(str, known)), rows.views, lengths)


def _note_missing_from_tars(known: Sequence[Utterance], done: FinishedUtterances) -> int:
    """Counts the utterances that are in a manifest but in no tar, and prints one message about them."""
    missing = [utterance for utterance in known if utterance not in done]
    if missing:
        more = f" and {len(missing) - 1} more of {len(known)}" if len(missing) > 1 else ""
        print_note(
            f"The manifest has {missing[0]}{more}, but no tar has, so the cache has no targets for it."
        )
    return len(missing)


def print_note(sentence: str) -> None:
    """Prints a message on standard error, on rank 0 only."""
    if rank_zero_only.rank == 0:
        Console(stderr=True, soft_wrap=True).print(sentence, markup=False, highlight=False)


def dataloader_student(
    model_cfg: DictConfig,
    trainer: pl.Trainer | None,
    batch_size: int | None,
    shuffle: bool = False,
    perturbed: bool = False,
) -> Any:
    """Creates the student for its training dataloader, which reads the training set without augmentation.

    Args:
        model_cfg: the student's config.
        trainer: of the ranks that share the set; None for a single process.
        batch_size: utterances in a batch; None is that of the training.
        shuffle: read the utterances in a random order.
        perturbed: leave Lhotse's speed perturbation on, which plays each utterance once at each speed.

    Returns:
        The student.
    """
    cfg: Any = OmegaConf.create(OmegaConf.to_container(model_cfg, resolve=True))
    train = cfg.train_ds
    train.update(shuffle=shuffle, augmentor=None, use_semi_sorted_batching=False, drop_last=False)
    if batch_size is not None:
        train.batch_size = batch_size
    if train.get("use_lhotse"):
        neutral = {**TIMING_AUGMENTATIONS, **ACOUSTIC_AUGMENTATIONS, **SUBSETTING_OPTIONS}
        if perturbed:
            del neutral["perturb_speed"]
        train.force_finite = True
        for section in lhotse_sections(train):
            section.update(neutral)  # type: ignore[attr-defined]
    for name in ("validation_ds", "test_ds"):
        cfg.pop(name, None)
    return model_class_for(cfg)(cfg=cfg, trainer=trainer)
