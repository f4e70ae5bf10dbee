# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""Batch norm statistics of averaged weights are those that a training on the same weights would gather."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from omegaconf import open_dict

from nemo_tutornet.data.manifest import Utterance
from nemo_tutornet.export import batch_norm_statistics
from nemo_tutornet.export.batch_norm_statistics import batch_norms, estimate_statistics, training_batches
from tests.conftest import refusal, student_config


def gathered(model: Any) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Slow reference: the means over NeMo's own batches of each batch norm's mean and unbiased variance."""
    seen: dict[Any, list[torch.Tensor]] = {norm: [] for norm in batch_norms(model)}
    hooks = [
        norm.register_forward_pre_hook(lambda module, args: seen[module].append(args[0].double()))
        for norm in seen
    ]
    model.train()
    with torch.no_grad():
        for signal, lengths, *_ in model._train_dl:
            model.forward(input_signal=signal, input_signal_length=lengths)
    for hook in hooks:
        hook.remove()
    model.eval()
    means = [torch.stack([x.mean(dim=(0, 2)) for x in inputs]).mean(dim=0) for inputs in seen.values()]
    variances = [torch.stack([x.var(dim=(0, 2)) for x in inputs]).mean(dim=0) for inputs in seen.values()]
    return list(zip(means, variances, strict=True))


def distance(model: Any, reference: list[tuple[torch.Tensor, torch.Tensor]]) -> float:
    """The largest difference of a mean in standard deviations, or of the logarithm of a variance."""
    found = 0.0
    for norm, (mean, variance) in zip(batch_norms(model), reference, strict=True):
        found = max(found, ((norm.running_mean - mean).abs() / (variance + norm.eps).sqrt()).max().item())
        found = max(found, ((norm.running_var + norm.eps) / (variance + norm.eps)).log().abs().max().item())
    return found


def test_the_statistics_are_those_of_a_trainings_own_batches(corpus, make_student):
    """Padding is part of them, so batches sorted by length have others than random ones."""
    config = student_config(corpus, None)
    config["spec_augment"], config["preprocessor"]["dither"] = None, 0.0
    config["train_ds"].update(batch_size=3, use_semi_sorted_batching=True, randomization_factor=0.0)
    config["train_ds"]["drop_last"] = False
    model = make_student(config).eval()
    reference = gathered(model)
    counters = [norm.num_batches_tracked.clone() for norm in batch_norms(model)]
    assert estimate_statistics(model, [corpus / "train.jsonl"])[0] == 8
    assert distance(model, reference) < 1e-3
    assert [norm.num_batches_tracked for norm in batch_norms(model)] == counters
    assert {norm.momentum for norm in batch_norms(model)} != {None}
    with open_dict(model.cfg):
        model.cfg.train_ds.update(batch_size=8, use_semi_sorted_batching=False)
    estimate_statistics(model, [corpus / "train.jsonl"])
    assert distance(model, reference) > 0.05


def test_batches_are_drawn_as_the_run_draws_them():
    many = [1.0 + i % 9 for i in range(912)]

    def training_batches(durations: list[float], section: dict[str, Any]) -> list[list[float]]:
        batches = batch_norm_statistics.training_batches(durations, section)
        return [[durations[i] for i in batch] for batch in batches]

    sorted_by_length = {"batch_size": 8, "use_semi_sorted_batching": True, "randomization_factor": 0.0}
    batches = training_batches(many, sorted_by_length)
    assert {len(batch) for batch in batches} == {8}
    assert all(max(batch) - min(batch) <= 1 for batch in batches)
    assert sorted(seconds for batch in batches for seconds in batch) == sorted(many)
    assert len({batch[0] for batch in batches[:10]}) > 3  # from the whole manifest
    assert any(len(set(batch)) > 2 for batch in training_batches(many, {"batch_size": 8}))
    assert max(map(len, training_batches(many, {"batch_size": 256}))) == 32
    lengths = {"min_duration": 2.0, "max_duration": 3.0}
    assert {seconds for batch in training_batches(many, lengths) for seconds in batch} == {2.0, 3.0}


@pytest.mark.parametrize("value", [None, "many", -1, math.nan, math.inf, 0, 0.5])
def test_a_config_of_any_content_gives_batches(value):
    section = dict.fromkeys(("batch_size", "min_duration", "max_duration", "randomization_factor"), value)
    section["use_semi_sorted_batching"] = True
    found = training_batches([1.0, 2.0, 700.0], section)
    assert found and training_batches([700.0], {}) == [[0]]


def test_the_runs_speed_perturbation_is_played(corpus):
    speed = {"prob": 1.0, "sr": 16000, "resample_type": "scipy", "min_speed_rate": 0.5, "num_rates": 1}
    row = Utterance(corpus / "train0.wav", 0.9, None)

    def samples(section: dict[str, Any]) -> int:
        augmentor = batch_norm_statistics._speed_perturbation(section)
        return int(batch_norm_statistics._read([row], 16000, augmentor)["input_signal_length"][0])

    assert samples({"augmentor": {"speed": speed, "noise": {"manifest_path": "/nowhere"}}}) == 7200
    assert samples({}) == samples({"augmentor": "loud"}) == 14400
    for wrong in ({**speed, "resample_type": "nearest"}, {"sr": 16000}, "fast"):
        assert "augmentor.speed" in refusal(
            batch_norm_statistics._speed_perturbation, {"augmentor": {"speed": wrong}}
        )
