# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""The prediction loop of `nemo-tutornet cache`: runs the teacher on batches and writes its targets."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from itertools import cycle, islice
from typing import Any

import lightning.pytorch as pl
import torch
from nemo.collections.asr.data.audio_to_text import _AudioTextDataset
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, Subset

from nemo_tutornet.data.dataloader import TrainingBatch, UtteranceResolver, manifest_datasets
from nemo_tutornet.data.utterances import Utterance, key_bytes, key_hash
from nemo_tutornet.data.views import ORIGINAL, View
from nemo_tutornet.distill.finite import check_audio
from nemo_tutornet.distill.matching import layer_lengths
from nemo_tutornet.target_cache.fingerprint import fingerprints
from nemo_tutornet.target_cache.records import UtteranceTargets
from nemo_tutornet.target_cache.schema import CacheSchema
from nemo_tutornet.target_cache.writer import CacheWriter
from nemo_tutornet.teachers.live import LiveTeacher
from nemo_tutornet.teachers.targets import TargetRequest, TeacherTargets
from nemo_tutornet.utils.progress import Progress


class CacheBuilder(pl.LightningModule):
    """Lightning module that runs the teacher on each batch and passes its targets to the writer of this rank.

    A pass over the data (`trainer.predict`) serves one view, or with Lhotse all of them. The teacher is not
    registered as a submodule.

    Args:
        teacher: the teacher.
        rows: resolves the rows of a batch to utterances.
        request: the kinds of targets to compute.
        coding: chooses the schema of the cache; the argument is the device of this rank.
        writer_of: creates the writer of a rank for a schema.
        files: files that the cached teacher needs besides its targets: content by plain file name.
        whole_on_each_rank: whether every rank reads the whole training set.
        views: the speeds at which the training plays the utterances.

    Attributes:
        writer_of: the argument.
        view: the speed of the pass; None where the rows say it.
        is_last: the cache is finished after the pass.
        progress: hours of audio that this rank has processed; None shows nothing.
        totals: totals of the finished cache; empty before.
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
        views: Sequence[View] = (ORIGINAL,),
    ) -> None:
        super().__init__()
        self._views = tuple(views)
        self.view: View | None = ORIGINAL
        self.is_last = True
        self._chosen: CacheSchema | None = None
        self._writer: CacheWriter | None = None
        self._whole_on_each_rank = whole_on_each_rank
        self._teacher, self._rows, self._request, self._files = teacher, rows, request, dict(files)
        self._coding, self.writer_of = coding, writer_of
        self.progress: Progress | None = None
        self.totals: dict[str, Any] = {}
        self._stack = ExitStack()

    def setup(self, stage: str) -> None:
        """Chooses the schema, before the loader is iterated.

        Rank 0 chooses for all ranks. Each rank reads other utterances, so their choices could differ.

        Args:
            stage: stage of the trainer; not used.
        """
        strategy = self.trainer.strategy
        if self._chosen is not None:
            return
        chosen = self._coding(strategy.root_device) if self.trainer.is_global_zero else None
        self._chosen = strategy.broadcast(chosen)

    def on_predict_start(self) -> None:
        """Opens the writer of rank 0, then the writers of the other ranks, before the first pass."""
        rank = self.trainer.global_rank
        if self._writer is not None:
            return
        assert self._chosen is not None, "setup() chooses the schema"
        if rank == 0:
            self._writer = self._stack.enter_context(self.writer_of(rank, self._chosen))
        self.trainer.strategy.barrier("nemo_tutornet.cache.open")
        if rank != 0:
            self._writer = self._stack.enter_context(self.writer_of(rank, self._chosen))
        if self.progress is not None:
            self._stack.enter_context(self.progress)

    def predict_step(self, batch: Sequence[Any], batch_idx: int) -> int:
        """Computes the targets of a batch and adds them to the writer.

        Skips rows that the writer already contains, and rows of another rank.

        Args:
            batch: batch of the training set, from NeMo's loader.
            batch_idx: index of the batch; not used.

        Returns:
            Number of rows whose targets were added.

        Raises:
            TutorError: audio or targets are not finite; the message names the utterance.
        """
        assert self._writer is not None and self._chosen is not None, "on_predict_start() opens the writer"
        utterances = self._rows(TrainingBatch.from_nemo(batch))
        if self.view is not None and self.view != ORIGINAL:
            utterances = [replace(utterance, view=self.view.name) for utterance in utterances]
        todo = [i for i, one in enumerate(utterances) if self._is_ours(one) and one not in self._writer]
        signal, lengths = batch[0][todo], batch[1][todo]
        if todo:
            part = TrainingBatch(signal[:, : int(lengths.max())], lengths)
            # What a teacher makes of such audio may be finite: an empty hypothesis.
            check_audio(part.signal, lambda: [str(utterances[row]) for row in todo])
            audio_fingerprints = fingerprints(part.signal, lengths) if self._chosen.fingerprints else None
            given = self._teacher.targets(part, self._request)
            for row, targets in zip(
                todo, split_targets(given, lengths, self._teacher, audio_fingerprints), strict=True
            ):
                self._writer.add(utterances[row], targets)
        if self.progress is not None:
            self.progress.advance(float(lengths.sum()) / self._teacher.sample_rate / 3600)
        return len(todo)

    def _is_ours(self, utterance: Utterance) -> bool:
        """Checks whether this rank stores an utterance.

        If every rank reads the whole training set, the hash of the key assigns the utterance to a rank.
        """
        ranks = self.trainer.world_size if self._whole_on_each_rank else 1
        return key_hash(key_bytes(utterance)) % ranks == self.trainer.global_rank % ranks

    def on_predict_end(self) -> None:
        """Writes the remaining targets. After all ranks have done so in the last pass, rank 0 finishes the
        cache.
        """
        assert self._writer is not None, "on_predict_start() opens the writer"
        self._writer.flush()
        self.trainer.strategy.barrier("nemo_tutornet.cache.flushed")
        if not self.is_last:
            return
        totals = self.finish(self._writer) if self.trainer.is_global_zero else {}
        self.totals = self.trainer.strategy.broadcast(totals)

    def finish(self, writer: CacheWriter) -> dict[str, Any]:
        """Finishes a cache, on rank 0.

        Args:
            writer: of rank 0.

        Returns:
            The totals of the cache.
        """
        return writer.finish(self._files, [view.name for view in self._views])

    def release(self) -> None:
        """Closes the writer and the progress bar. After an exception, an unfinished shard is not written."""
        self._stack.__exit__(*sys.exc_info())


def split_targets(
    given: TeacherTargets, lengths: Tensor, teacher: LiveTeacher, audio_fingerprints: Tensor | None = None
) -> Iterator[UtteranceTargets]:
    """Splits the targets of a batch by utterance, removes the padding, and moves them to the CPU.

    Args:
        given: targets of the batch.
        lengths: number of audio samples of each utterance `[B]`.
        teacher: the teacher, for the number of frames of its hint layers.
        audio_fingerprints: fingerprints of the audio `[B, P]`; None to store none.

    Yields:
        The targets of each utterance, in order.
    """
    log_probs = None if given.log_probs is None else given.log_probs.float().cpu()
    frames, samples = given.lengths.tolist(), lengths.tolist()
    vectors = [] if given.hidden is None else [given.hidden, *given.further_hidden]
    # A teacher has its hint layer also where no hidden vectors are wanted.
    hints = zip((teacher.hint_layer, *teacher.further_hint_layers), vectors, strict=False)
    hidden = [
        (layer.float().cpu(), layer_lengths(given.lengths, teacher.encoder_layer, hint, layer.shape[2]))
        for hint, layer in hints
    ]
    for i in range(len(samples)):
        hypothesis = None if given.hypotheses is None else given.hypotheses[i]
        valid = [layer[i, :, : int(lengths_of_layer[i])] for layer, lengths_of_layer in hidden]
        yield UtteranceTargets(
            samples=samples[i],
            frames=frames[i],
            log_probs=None if log_probs is None else log_probs[i, : frames[i]],
            hidden=valid[0] if valid else None,
            further_hidden=tuple(valid[1:]),
            text=None if hypothesis is None else hypothesis.text,
            confidence=None if hypothesis is None else hypothesis.confidence,
            fingerprint=None if audio_fingerprints is None else audio_fingerprints[i],
        )


def play_at(loader: Any, view: View) -> None:
    """Makes a dataloader play every utterance at one speed, with NeMo's own perturbation.

    Args:
        loader: a dataloader of NeMo's own data sets, whose `augmentor` is None.
        view: the speed.
    """
    for dataset in manifest_datasets(loader):
        # The guards of `guard_audio` keep NeMo's reader inside.
        getattr(dataset.featurizer, "reader", dataset.featurizer).augmentor = view.augmentor()


def remaining_loader(loader: Any, rows: UtteranceResolver, remaining: Sequence[int], ranks: int) -> Any:
    """Makes a loader of the utterances that the cache lacks, the longest first.

    For tarred and Lhotse datasets, the loader reads the whole training set in its own order.

    Args:
        loader: loader of the training set.
        rows: resolves the rows of a batch to utterances.
        remaining: indices in `rows.manifest_utterances` of the missing utterances.
        ranks: number of ranks.

    Returns:
        The loader.
    """
    known = rows.manifest_utterances
    if isinstance(loader.dataset, _AudioTextDataset):
        longest_first = sorted(remaining, key=lambda i: -(known[i].duration or math.inf))
        # Lightning needs at least one item per rank, so items are repeated if there are fewer. An utterance
        # that two ranks write counts once.
        dataset: Any = Subset(loader.dataset, list(islice(cycle(longest_first), max(len(remaining), ranks))))
    elif known:
        dataset = _Unsized(loader.dataset)
    else:
        return loader
    return DataLoader(
        dataset, batch_size=loader.batch_size, collate_fn=loader.collate_fn, num_workers=loader.num_workers
    )


class _Unsized(IterableDataset):
    """A tarred dataset without a length.

    Lightning would stop at the length of the manifest. That is too early if the last batches of the workers
    are smaller.
    """

    def __init__(self, tars: Any) -> None:
        self._tars = tars

    def __iter__(self) -> Iterator[Any]:
        return iter(self._tars)


def hours_progress(
    rows: UtteranceResolver, passes: Sequence[tuple[View | None, Sequence[int]]], ranks: int
) -> Progress:
    """Makes the progress of rank 0 in hours of audio.

    Args:
        rows: resolves the rows of a batch to utterances.
        passes: the passes over the data: the view of each, and the indices in `rows.manifest_utterances` of
            its missing utterances.
        ranks: number of ranks.

    Returns:
        The progress, not shown yet.
    """
    known = rows.manifest_utterances
    hours = None
    if known:
        seconds = sum(
            (known[i].duration or 0.0) * (1.0 if view is None else view.length)
            for view, remaining in passes
            for i in remaining
        )
        hours = seconds / 3600 / ranks
    of_all = "" if hours is None else f" of {hours:.2f}"
    return Progress(
        "teacher" if ranks == 1 else f"teacher (1 of {ranks} ranks)",
        hours,
        lambda done: f"{done:.2f}{of_all} hours of audio",
    )
