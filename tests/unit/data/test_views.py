# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""The speeds of a training set: those that NeMo draws, told from the number of samples."""

from __future__ import annotations

import random
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lhotse import CutSet, Recording
from nemo.collections.asr.parts.preprocessing.perturb import process_augmentations
from omegaconf import OmegaConf

from nemo_tutornet.data.dataloader import UtteranceResolver
from nemo_tutornet.data.train_settings import changes_sound, check_augmentation
from nemo_tutornet.data.utterances import Utterance
from nemo_tutornet.data.views import (
    LHOTSE_VIEWS,
    ORIGINAL,
    View,
    check_lengths,
    fewer_rates,
    views_of,
    with_speeds,
)
from tests.conftest import refusal
from tests.unit.data.test_dataloader import batch_of, nemo, write

KEY = "model.train_ds.augmentor.speed"


def speed(**changes: Any) -> dict[str, Any]:
    """A training set with NeMo's speed perturbation."""
    found = {"prob": 0.8, "sr": 16000, "resample_type": "scipy", **changes}
    return {"augmentor": {"speed": {name: value for name, value in found.items() if value is not None}}}


def names(train_ds: dict[str, Any]) -> list[str]:
    return [view.name for view in views_of(train_ds)]


def test_the_speeds_are_those_of_nemo():
    """`int` truncates: a rate of 0.9 can be 14399 / 16000."""
    seven = speed(min_speed_rate=0.85, max_speed_rate=1.15, num_rates=7)
    rates = [13600, 14399, 15200, 16799, 17599, 18400]
    assert names(seven) == ["", *(f"speed {rate}/16000 scipy" for rate in rates)]
    assert names(OmegaConf.create(seven)) == names(seven)
    assert len(names(speed())) == 5, "NeMo's default"


@pytest.mark.parametrize(
    ("changes", "views"),
    [
        ({"num_rates": 2}, ["", "speed 14400/16000 scipy", "speed 17600/16000 scipy"]),
        ({"num_rates": 2, "prob": 1.0}, ["speed 14400/16000 scipy", "speed 17600/16000 scipy"]),
        ({"num_rates": 3, "prob": 1}, ["", "speed 14400/16000 scipy", "speed 17600/16000 scipy"]),
        ({"num_rates": 3, "prob": 0.0}, [""]),
        ({"num_rates": 4, "min_speed_rate": 1.0, "max_speed_rate": 1.0}, [""]),
        ({"num_rates": 1, "min_speed_rate": 1.1}, ["", "speed 17600/16000 scipy"]),
        ({"num_rates": 2, "prob": 1.0, "sr": 8000}, ["speed 7200/8000 scipy", "speed 8800/8000 scipy"]),
    ],
)
def test_the_recorded_speed_is_one_where_it_is_played(changes, views):
    assert names(speed(**changes)) == views


def test_lhotse_and_none():
    assert views_of({"use_lhotse": True, "perturb_speed": True}) == LHOTSE_VIEWS
    inner = {"use_lhotse": True, "multi_config": True, "a": {"perturb_speed": True}, "b": {}}
    assert views_of(inner) == LHOTSE_VIEWS
    for none in ({}, {"augmentor": None}, {"use_lhotse": True}, {"perturb_speed": True}, {"augmentor": {}}):
        assert views_of(none) == (ORIGINAL,)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"num_rates": -1}, f"{KEY}.num_rates is -1, so NeMo draws speeds from a whole range"),
        (
            {"num_rates": 0},
            f"{KEY}.num_rates to the number of speeds, e.g. 5, or train with the teacher itself",
        ),
        ({"num_rates": 5.5}, "num_rates is 5.5"),
        ({"prob": None}, f"{KEY} has no prob"),
        (
            {"resample_type": "kaiser_fast"},
            f"{KEY}.resample_type is kaiser_fast, with which NeMo cannot resample",
        ),
        ({"resample_type": "linear"}, "Supported `resample_type`"),
        ({"min_speed_rate": 0.0}, "the rates above 0"),
        ({"sr": "16k"}, "sr=16k"),
    ],
)
def test_what_cannot_be_identified_is_refused_with_the_remedy(changes, words):
    if changes.get("resample_type") == "kaiser_fast":
        try:
            import resampy  # noqa: F401
        except ImportError:
            pass
        else:
            pytest.skip("resampy is installed")
    assert words in refusal(views_of, speed(**changes))
    assert words in refusal(check_augmentation, speed(**changes))


@pytest.mark.parametrize(
    "name", ["shift", "time_stretch", "silence", "random_segment", "transcode_aug", "of_my_own"]
)
def test_what_moves_time_otherwise_is_refused(name):
    message = refusal(check_augmentation, {"augmentor": {"white_noise": {"prob": 1.0}, name: {"prob": 0.1}}})
    assert f"model.train_ds.augmentor.{name} may change the timing" in message
    assert "model.tutor.teacher.cache=null" in message


def test_rooms_and_noise_are_allowed():
    """Of an impulse response only its delay moves time, which NeMo takes out on demand."""
    noise = {name: {"prob": 0.5} for name in ("white_noise", "noise", "noise_norm", "gain", "rir_noise_aug")}
    check_augmentation({"augmentor": {**noise, "impulse": {"prob": 0.5, "shift_impulse": True}}})
    for shifted in ({"prob": 0.5}, {"prob": 0.5, "shift_impulse": False}, None):
        message = refusal(check_augmentation, {"augmentor": {"impulse": shifted}})
        assert "set model.train_ds.augmentor.impulse.shift_impulse=true" in message
    check_augmentation({"use_lhotse": True, "rir_enabled": True, "perturb_speed": True})
    assert changes_sound({"use_lhotse": True, "rir_enabled": True})
    assert not changes_sound(speed()) and not changes_sound({"use_lhotse": True, "perturb_speed": True})
    assert changes_sound({"augmentor": {**speed()["augmentor"], **noise}})
    assert "perturb_speed=true" in refusal(check_augmentation, {"use_lhotse": True, **speed()})
    inner = {"use_lhotse": True, "multi_config": True, "a": {"truncate_duration": 3.0}}
    assert "truncate_duration changes the timing" in refusal(check_augmentation, inner)


@settings(max_examples=40, deadline=None)
@given(
    samples=st.integers(200, 9000),
    rates=st.integers(1, 9),
    bounds=st.tuples(st.integers(50, 150), st.integers(50, 150)),
    seed=st.integers(0, 99),
)
def test_nemo_plays_the_speeds_that_are_listed(samples, rates, bounds, seed):
    """Whatever NeMo draws has the samples of one view, and is what its augmentor plays."""
    low, high = sorted(bounds)
    train_ds = speed(num_rates=rates, min_speed_rate=low / 100, max_speed_rate=high / 100)
    found = views_of(train_ds)
    random.seed(seed)
    drawn = process_augmentations(train_ds["augmentor"])
    for _ in range(4):
        audio = np.random.default_rng(samples).standard_normal(samples).astype(np.float32)
        segment = SimpleNamespace(_samples=audio.copy())
        drawn.perturb(segment)
        same = [view for view in found if view.samples_of(samples) == len(segment._samples)]
        assert same
        played = []
        for view in same:
            again = SimpleNamespace(_samples=audio.copy())
            view.augmentor().perturb(again)
            played.append(np.array_equal(again._samples, segment._samples))
        assert any(played)


def test_a_training_draws_as_without_a_cache():
    random.seed(3)
    state = random.getstate()
    views_of(speed(num_rates=9, min_speed_rate=0.83, max_speed_rate=1.17))
    assert random.getstate() == state


def test_how_many_speeds_would_do():
    five = views_of(speed(num_rates=5))
    assert fewer_rates(five, names(speed(num_rates=3))) == 3
    assert fewer_rates(five, names(speed(num_rates=2))) == 3, "1.0 is one of three rates, and is stored"
    assert fewer_rates(five, [""]) is None and fewer_rates(LHOTSE_VIEWS, [""]) is None
    sure = views_of(speed(num_rates=4, prob=1.0))
    assert fewer_rates(sure, names(speed(num_rates=2, prob=1.0))) == 2


def test_a_number_of_speeds_by_hand():
    train_ds = OmegaConf.create(speed(num_rates=-1))
    with_speeds(train_ds, 3)
    assert len(views_of(train_ds)) == 3
    assert f"--views is 3, but model.train_ds has no speed perturbation; set {KEY}" in refusal(
        with_speeds, {}, 3
    )
    assert "no perturb_speed" in refusal(with_speeds, {"use_lhotse": True}, 3)
    assert "always has 3 speeds" in refusal(with_speeds, {"use_lhotse": True, "perturb_speed": True}, 5)
    with_speeds({"use_lhotse": True, "perturb_speed": True}, 3)


def test_two_speeds_of_one_length():
    views = views_of(speed(num_rates=3))
    check_lengths(["a", "b"], views, np.array([[100, 90, 110], [-1, -1, 5]]))
    message = refusal(check_lengths, ["a", "b"], views, np.array([[100, 90, 110], [7, 9, 7]]))
    assert message.startswith("b has 7 samples at two speeds of model.train_ds (as recorded and rate 1.1)")


def test_a_view_is_part_of_the_key():
    assert Utterance("a|0", 1.25, 0.005).key != Utterance("a", 0.0, 1.25, View("5").name).key
    assert str(Utterance("a.wav", view="speed 14400/16000 scipy")).endswith("(speed 14400/16000 scipy)")


def lhotse_keys(cuts: Any) -> list[str]:
    rows = UtteranceResolver(SimpleNamespace(dataset=SimpleNamespace(return_cuts=False)), LHOTSE_VIEWS)
    return [utterance.key for utterance in rows(batch_of(cuts))]


def test_lhotses_cuts_say_their_speed(tmp_path):
    """Also with noise, in parts of files and with times that are no whole milliseconds."""
    files = [write(tmp_path / f"{i}.wav", 2.0) for i in range(3)]
    rows = [
        {"audio_filepath": str(files[i % 3]), "offset": 0.1 + i / 7, "duration": 0.3 + i / 21}
        for i in range(9)
    ]
    cuts = nemo(tmp_path, rows)
    plain = lhotse_keys(cuts)
    assert plain == [key.split("@")[0] for key in plain]
    noise = CutSet.from_cuts([Recording.from_file(write(tmp_path / "noise.wav", 2.0)).to_cut()])
    for factor in (0.9, 1.1):
        found = lhotse_keys(cuts.perturb_speed(factor))
        for key, (one, other) in zip(plain, (key.split("@") for key in found), strict=True):
            assert other == f"perturb_speed {factor}"
            audio, *times = key.split("|")
            assert one.split("|")[0] == audio
            assert all(abs(int(a) - int(b)) <= 1 for a, b in zip(times, one.split("|")[1:], strict=True))
        noisy = cuts.mix(noise, snr=(10, 20), mix_prob=1.0, random_mix_offset=True).perturb_speed(factor)
        assert lhotse_keys(noisy) == found
        assert len(set(found)) == 9
