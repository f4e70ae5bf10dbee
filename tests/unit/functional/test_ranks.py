# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""RKD on two ranks has the gradient of one process with the whole batch, whatever each rank holds."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nemo_tutornet.distill.rank_agreement import sum_counts
from nemo_tutornet.functional.frame_weighting import frame_mask, weigh_energy
from nemo_tutornet.functional.losses import reduce_over_time, rkd, rkd_of_utterances
from nemo_tutornet.functional.ranks import is_distributed, mean_over_ranks

# Frames of the utterances of each rank: equal, unequal in length, in number, and none at all.
BATCHES = {
    "equal": ([7, 5], [5, 7]),
    "lengths": ([9, 8], [1, 2]),
    "numbers": ([4, 4, 9], [3]),
    "silent rank": ([4, 6], [0, 0]),
    "nothing": ([0], [0]),
}


LABELS = 3  # of each transcript
REDUCTIONS = ("frame_mean", "mean_batch", "mean_volume", "mean")


def _loss(projection: nn.Module, lengths: list[int], seed: int, reduction: str) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    guided, hidden = (torch.randn(len(lengths), width, 9, generator=generator) for width in (3, 4))
    mask = frame_mask(torch.tensor(lengths), 9)
    arguments = projection(guided), hidden, weigh_energy(None, hidden, mask), mask
    if reduction == "frame_mean":
        return rkd(*arguments, mean_over_ranks(mask.sum()))
    targets = torch.full((len(lengths),), LABELS)
    return reduce_over_time(
        rkd_of_utterances(*arguments), mask.sum(1), 0.02, targets, reduction, mean_over_ranks
    )


def _weight(lengths: list[int], reduction: str) -> int:
    """What a batch counts in the mean over all batches."""
    return sum(lengths) if reduction == "frame_mean" else len(lengths)


def _projection() -> nn.Conv1d:
    torch.manual_seed(0)
    return nn.Conv1d(3, 4, 1)


def rank_main(rank: int, folder: str) -> None:
    """Writes the gradients that DDP gives this rank."""
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2
    )
    assert is_distributed()
    gradients = {}
    for name, ranks in BATCHES.items():
        for reduction in REDUCTIONS:
            model = nn.parallel.DistributedDataParallel(_projection())
            _loss(model, ranks[rank], rank, reduction).backward()
            gradients[f"{name} {reduction}"] = [parameter.grad for parameter in model.parameters()]
    counts = sum_counts(Counter(kept=3, empty=1) if rank else Counter())
    torch.save({**gradients, "counts": dict(counts)}, f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def of_two_ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    if sys.platform == "win32":
        pytest.skip("gloo needs a POSIX system")
    folder = tmp_path_factory.mktemp("ranks")
    torch.multiprocessing.spawn(rank_main, (str(folder),), nprocs=2)
    return [torch.load(Path(folder, f"{rank}.pt")) for rank in (0, 1)]


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("name", BATCHES)
def test_two_ranks_equal_one_batch(of_two_ranks: list[dict[str, Any]], name: str, reduction: str) -> None:
    projection = _projection()
    whole = sum(_weight(lengths, reduction) for lengths in BATCHES[name])
    # The mean of each rank's part, by what it counts.
    parts = [
        _loss(projection, lengths, seed, reduction) * _weight(lengths, reduction) / max(1, whole)
        for seed, lengths in enumerate(BATCHES[name])
    ]
    torch.stack(parts).sum().backward()
    for gradients in of_two_ranks:
        for mine, parameter in zip(gradients[f"{name} {reduction}"], projection.parameters(), strict=True):
            torch.testing.assert_close(mine, parameter.grad)


def test_counts_are_summed_also_with_a_rank_that_has_none(of_two_ranks: list[dict[str, Any]]) -> None:
    assert [found["counts"] for found in of_two_ranks] == [{"kept": 3, "empty": 1}] * 2


def test_a_single_process_counts_its_own() -> None:
    assert not is_distributed()
    assert sum_counts(Counter(kept=2)) == {"kept": 2}
    assert torch.equal(mean_over_ranks(torch.tensor(12)), torch.tensor(12.0))
