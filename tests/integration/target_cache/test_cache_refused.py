# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""What is no cache for a training is refused, with what differs."""

from __future__ import annotations

import dataclasses
import shutil

import pytest
import soundfile

from nemo_tutornet import TutorError
from nemo_tutornet.commands.cache_targets import build_cache
from nemo_tutornet.target_cache.reader import CacheReader
from tests.conftest import save_teacher, student_config, teacher_config
from tests.integration.target_cache.caching import STAGES, cached, whole


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            lambda c: c["train_ds"].update(
                augmentor={"speed": {"prob": 1.0, "sr": 16000, "resample_type": "scipy"}}
            ),
            r"holds 1 of the 5 speeds at which model\.train_ds plays an utterance",
        ),
        (
            lambda c: c["tutor"].update(rkd={"hint_layer": "encoder.layers.0"}),
            r"the layer 'encoder', but .*'encoder\.layers",
        ),
        (
            lambda c: c["tutor"]["teacher"].update(sha256="ab"),
            r"model\.tutor\.teacher\.sha256 is ab, but .* was built with",
        ),
        (
            lambda c: c["tutor"]["teacher"].update(cache="/no/cache"),
            r"model\.tutor\.teacher\.cache is /no/cache, and there",
        ),
    ],
)
def test_what_does_not_fit_is_refused(corpus, cache, make_student, change, words):
    config = cached(corpus, cache)
    change(config)
    with pytest.raises(TutorError, match=words):
        make_student(config).setup("fit")


def test_another_teachers_cache_is_refused(corpus, cache, make_student, tmp_path):
    other = save_teacher(teacher_config(corpus), tmp_path / "other.nemo")
    with open(other, "ab") as file:
        file.write(b"\0")  # the same weights in another file
    config = cached(corpus, cache)
    config["tutor"]["teacher"]["model_path"] = str(other)
    with pytest.raises(TutorError, match=r"was built with another teacher than .*other\.nemo"):
        make_student(config).setup("fit")
    with pytest.raises(TutorError, match=r"is a cache of other targets .*sha256"):
        build_cache(whole(student_config(corpus, other, STAGES)), cache, progress=False)


def test_a_cache_without_what_a_stage_reads_is_refused(corpus, teacher_file, make_student, tmp_path):
    skd = [{"name": "skd", "weights": {"ctc": 1.0, "skd": 0.25}}]
    build_cache(whole(student_config(corpus, teacher_file, skd)), tmp_path / "cache", progress=False)
    assert CacheReader(tmp_path / "cache").schema.width is None
    make_student(cached(corpus, tmp_path / "cache", skd)).setup("fit")
    with pytest.raises(TutorError, match="does not hold the hint layer, which rkd reads"):
        make_student(cached(corpus, tmp_path / "cache")).setup("fit")


def test_a_cache_is_not_extended_with_less_than_the_stages_read(corpus, teacher_file, tmp_path):
    skd = [{"name": "skd", "weights": {"ctc": 1.0, "skd": 0.25}}]
    build_cache(whole(student_config(corpus, teacher_file, skd)), tmp_path / "cache", progress=False)
    with pytest.raises(TutorError, match="is a cache without the hint layer and hypotheses, which model"):
        build_cache(whole(student_config(corpus, teacher_file, STAGES)), tmp_path / "cache", progress=False)


def test_stages_that_read_less_extend_a_cache_with_all_that_it_stores(
    corpus, teacher_file, make_student, tmp_path
):
    first = student_config(corpus, teacher_file, STAGES)
    rows = (corpus / "train.jsonl").read_text().splitlines()
    half = tmp_path / "half.jsonl"
    half.write_text("".join(row.replace('"train', f'"{corpus}/train') + "\n" for row in rows[:4]))
    first["train_ds"]["manifest_filepath"] = str(half)
    build_cache(whole(first), tmp_path / "cache", progress=False)
    skd = [{"name": "skd", "weights": {"ctc": 1.0, "skd": 0.25}}]
    built = build_cache(whole(student_config(corpus, teacher_file, skd)), tmp_path / "cache", progress=False)
    assert (built.utterances, built.added) == (8, 4)
    make_student(cached(corpus, tmp_path / "cache")).setup("fit")


def test_a_temperature_needs_small_posteriors(corpus, cache, make_student, monkeypatch):
    """A cache of many labels was built without a temperature, and so without small posteriors."""
    config = cached(corpus, cache, skd={"divergence": "kl", "temperature": 2.0})
    make_student(config).setup("fit")  # everything is stored
    opened = CacheReader.__init__

    def without_small_ones(reader, *arguments, **options):
        opened(reader, *arguments, **options)
        reader.schema = dataclasses.replace(reader.schema, min_posterior=1e-3)

    monkeypatch.setattr(CacheReader, "__init__", without_small_ones)
    with pytest.raises(
        TutorError, match="does not hold small posteriors, which skd with a temperature above"
    ):
        make_student(config).setup("fit")


def test_an_utterance_that_is_missing_and_one_that_changed(
    corpus, teacher_file, cache, make_student, tmp_path
):
    shutil.copytree(corpus, tmp_path / "corpus")
    moved = tmp_path / "corpus"
    config = cached(moved, cache)
    with pytest.raises(
        TutorError,
        match=r"has no targets for .*corpus/train0\.wav .* and 7 more of 8; run `nemo-tutornet cache`",
    ):
        make_student(config).setup("fit")
    build_cache(whole(student_config(moved, teacher_file, STAGES)), tmp_path / "mine", progress=False)
    audio, rate = soundfile.read(moved / "train3.wav")
    soundfile.write(moved / "train3.wav", audio[:-400], rate)
    model = make_student(cached(moved, tmp_path / "mine"))
    with pytest.raises(
        TutorError,
        match=r"train3\.wav .* has 23600 samples in training, but the cache .* was built from 24000",
    ):
        model.trainer.fit(model)
