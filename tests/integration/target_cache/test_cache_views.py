# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""A cache of every speed of a speed perturbation: what a student learns from it is what the teacher says of
the audio that the student is given.
"""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import soundfile
import torch
import yaml
from omegaconf import OmegaConf
from typer.testing import CliRunner

from nemo_tutornet import TutorError
from nemo_tutornet.cli import app
from nemo_tutornet.commands.cache_targets import build_cache
from nemo_tutornet.config import TeacherConfig
from nemo_tutornet.data.utterances import Utterance
from nemo_tutornet.target_cache.layout import read_header
from nemo_tutornet.target_cache.reader import CacheReader
from nemo_tutornet.teachers.adapter import Adapter, AdapterInfo
from nemo_tutornet.teachers.adapter_head import AdapterHead
from nemo_tutornet.teachers.live import LiveTeacher
from nemo_tutornet.utils.files import sha256_of
from tests.conftest import LABELS, SAMPLE_RATE, student_config
from tests.integration.recorder import Recorder
from tests.integration.target_cache.caching import (
    STAGES,
    cached,
    check_against,
    tar,
    targets_of_batches,
    whole,
)
from tests.integration.target_cache.test_cache_killed import call, write

RATES = {"min_speed_rate": 0.9, "max_speed_rate": 1.1, "num_rates": 3}


def perturbed(config: dict[str, Any], **settings: Any) -> dict[str, Any]:
    """A training at 0.9, 1 and 1.1 of the speed."""
    speed = {"prob": 0.8, "sr": SAMPLE_RATE, "resample_type": "scipy", **RATES, **settings}
    config["train_ds"]["augmentor"] = {"speed": speed}
    return config


def lhotse(config: dict[str, Any], **settings: Any) -> dict[str, Any]:
    options = {"batch_size": 3, "force_finite": True, "num_workers": 0, "perturb_speed": True, **settings}
    config["train_ds"].update(use_lhotse=True, **options)
    return config


def teacher_of(file: Path) -> LiveTeacher:
    return LiveTeacher.from_config(TeacherConfig(model_path=str(file)))


@pytest.fixture(scope="module")
def views(corpus: Path, teacher_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache of three speeds."""
    folder = tmp_path_factory.mktemp("views") / "targets"
    built = build_cache(
        whole(perturbed(student_config(corpus, teacher_file, STAGES))), folder, progress=False
    )
    assert (built.utterances, built.added) == (24, 24)
    assert built.views == ("as recorded", "rate 0.9", "rate 1.1")
    return folder


class SameDraws(pl.Callback):
    """Lets NeMo draw the same speeds in each training, and keeps the lengths that it made."""

    def __init__(self) -> None:
        self.lengths: list[int] = []

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        random.seed(trainer.current_epoch)

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self.lengths += batch[1].tolist()


def test_the_lesson_is_that_of_a_live_teacher_under_the_same_perturbation(
    corpus, teacher_file, views, make_student, monkeypatch
):
    """The central promise: with the same draws, every loss of every step is the same."""
    runs, draws = [], []
    for config in (student_config(corpus, teacher_file, STAGES), cached(corpus, views)):
        config = perturbed(config)
        config.pop("spec_augment")  # NeMo draws its masks from an unseeded generator
        recorder, drawn = Recorder(), SameDraws()
        model = make_student(config, max_epochs=3, callbacks=[recorder, drawn])
        torch.manual_seed(4)
        model.trainer.fit(model)
        runs.append(recorder.steps)
        draws.append(drawn.lengths)
        monkeypatch.setattr(LiveTeacher, "from_config", lambda *_: pytest.fail("a teacher was loaded"))
    live, read = runs
    assert draws[0] == draws[1] and len(set(draws[0])) > 8, "other speeds were drawn"
    assert len(live) == len(read) == 12
    for step, (one, other) in enumerate(zip(live, read, strict=True)):
        assert one.keys() == other.keys()
        within = 0.003 if step < 4 else 0.03  # the student's weights drift apart by the cache's rounding
        for name, value in one.items():
            assert other[name] == pytest.approx(value, rel=within), (step, name)


def parts(corpus: Path, folder: Path) -> str:
    """A manifest in which each file is two utterances."""
    rows = [json.loads(line) for line in (corpus / "train.jsonl").read_text(encoding="utf-8").splitlines()]
    halves = [
        {**row, "audio_filepath": str(corpus / row["audio_filepath"]), "offset": offset, "duration": 0.34}
        for row in rows
        for offset in (0.0, 0.32)
    ]
    (folder / "parts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in halves), encoding="utf-8")
    return str(folder / "parts.jsonl")


@pytest.mark.parametrize("reader", ["workers", "parts", "tars", "buckets", "lhotse", "lhotse tars"])
def test_whatever_reads_the_audio(corpus, teacher_file, make_student, tmp_path, reader):
    names, count = [f"train{i}.wav" for i in range(8)], 8
    source: dict[str, Any] = {}
    if reader == "workers":
        source = {"num_workers": 2}
    elif reader == "parts":
        source, count = {"manifest_filepath": parts(corpus, tmp_path)}, 16
    elif reader in ("tars", "lhotse tars"):
        source = tar(corpus, tmp_path, names, 0)
    elif reader == "buckets":
        made = [tar(corpus, tmp_path, names[i::2], i) for i in range(2)]
        source = {key: [[one[key]] for one in made] for key in made[0]}
        source.update(bucketing_batch_size=[3, 2], batch_size=1)
    if reader in ("tars", "buckets"):
        source.update(is_tarred=True, shuffle_n=4)

    def spoken(config: dict[str, Any]) -> dict[str, Any]:
        if reader.startswith("lhotse"):
            return lhotse(config, **source)
        config["train_ds"].update(source)
        return perturbed(config)

    folder = tmp_path / "cache"
    built = build_cache(whole(spoken(student_config(corpus, teacher_file, STAGES))), folder, progress=False)
    assert built.utterances == 3 * count and len(built.views) == 3
    trainer = {"limit_train_batches": 30} if reader == "lhotse tars" else {}
    model, seen = make_student(spoken(cached(corpus, folder)), **trainer), []
    for _ in range(2):
        seen += targets_of_batches(model)
    # A Lhotse epoch has each utterance at each speed.
    epochs = 6 if reader.startswith("lhotse") else 2
    check_against(teacher_of(teacher_file), seen, epochs * count)
    lengths = {samples for _, batch in seen for samples in batch[1].tolist()}
    assert len(lengths) >= (3 if reader == "parts" else 9)
    model.distiller.attach_train_data(model)  # a resumed training checks again


def test_noise_on_top_of_the_speed(corpus, teacher_file, views, make_student):
    """The targets are those of the utterance at that speed without the noise."""
    config = perturbed(cached(corpus, views), prob=1.0, num_rates=2)
    config["train_ds"]["augmentor"]["white_noise"] = {"prob": 1.0, "min_level": -30, "max_level": -20}
    stored = {
        samples: targets.log_probs[row, : int(targets.lengths[row])]
        for targets, batch in targets_of_batches(
            make_student(perturbed(cached(corpus, views), prob=1.0, num_rates=2))
        )
        for row, samples in enumerate(batch[1].tolist())
    }
    seen = 0
    for _ in range(4):
        for targets, batch in targets_of_batches(make_student(config)):
            for row, samples in enumerate(batch[1].tolist()):
                if samples in stored:
                    assert targets.log_probs[row, : int(targets.lengths[row])].equal(stored[samples])
                    seen += 1
    assert seen >= 8


def test_a_file_that_was_overwritten_is_found_at_any_speed(corpus, teacher_file, make_student, tmp_path):
    moved = tmp_path / "corpus"
    shutil.copytree(corpus, moved)
    config = perturbed(student_config(moved, teacher_file, STAGES), prob=1.0, num_rates=2)
    assert build_cache(whole(config), tmp_path / "cache", progress=False).utterances == 16
    targets_of_batches(make_student(perturbed(cached(moved, tmp_path / "cache"), prob=1.0, num_rates=2)))
    audio, rate = soundfile.read(moved / "train3.wav")
    soundfile.write(moved / "train3.wav", audio[::-1], rate)
    for noise in ({}, {"white_noise": {"prob": 1.0, "min_level": -40, "max_level": -30}}):
        config = perturbed(cached(moved, tmp_path / "cache"), prob=1.0, num_rates=2)
        config["train_ds"]["augmentor"].update(noise)
        with pytest.raises(TutorError, match=r"train3\.wav .* has other audio than the cache"):
            targets_of_batches(make_student(config))
    soundfile.write(moved / "train3.wav", audio[: len(audio) // 2], rate)
    with pytest.raises(
        TutorError, match=r"train3\.wav .* has \d+ samples in training, but the cache .* from"
    ):
        targets_of_batches(make_student(perturbed(cached(moved, tmp_path / "cache"), prob=1.0, num_rates=2)))


def test_fewer_speeds_and_none(corpus, teacher_file, views, make_student, tmp_path):
    """A cache of more speeds than are played serves; one of fewer is refused with what to do."""
    targets_of_batches(make_student(cached(corpus, views)))
    targets_of_batches(make_student(perturbed(cached(corpus, views), num_rates=1, min_speed_rate=1.1)))
    with pytest.raises(
        TutorError,
        match=r"holds 3 of the 5 speeds .*\(missing: rate 0\.95, rate 1\.05\); run `nemo-tutornet cache` .*"
        r"or set model\.train_ds\.augmentor\.speed\.num_rates=3, which it has\.",
    ):
        make_student(perturbed(cached(corpus, views), num_rates=5)).setup("fit")
    build_cache(whole(student_config(corpus, teacher_file, STAGES)), tmp_path / "plain", progress=False)
    assert "views" not in read_header(tmp_path / "plain")
    with pytest.raises(TutorError, match=r"holds 1 of the 3 speeds .*missing: rate 0\.9, rate 1\.1"):
        make_student(perturbed(cached(corpus, tmp_path / "plain"))).setup("fit")
    with pytest.raises(TutorError, match=r"holds 1 of the 3 speeds .*perturb_speed 0\.9, perturb_speed 1\.1"):
        make_student(lhotse(cached(corpus, tmp_path / "plain"))).setup("fit")
    # The same cache takes the other speeds, and keeps what it has.
    config = perturbed(student_config(corpus, teacher_file, STAGES), num_rates=5)
    built = build_cache(whole(config), tmp_path / "plain", progress=False, views=2)
    assert (built.utterances, built.added) == (24, 16)
    built = build_cache(whole(config), tmp_path / "plain", progress=False)
    assert (built.utterances, built.added) == (40, 16)
    assert build_cache(whole(config), tmp_path / "plain", progress=False).added == 0
    assert len(CacheReader(tmp_path / "plain").views) == 5
    targets_of_batches(make_student(perturbed(cached(corpus, tmp_path / "plain"), num_rates=5)))


def test_a_build_that_stopped_goes_on(corpus, teacher_file, tmp_path, monkeypatch):
    from nemo_tutornet.target_cache.writer import CacheWriter

    config, folder = perturbed(student_config(corpus, teacher_file, STAGES)), tmp_path / "cache"
    real, added = CacheWriter.add, []

    def add(writer: CacheWriter, utterance: Utterance, targets: Any) -> None:
        writer._max_shard_bytes = 1
        added.append(utterance)
        if len(added) == 12:  # in the middle of the second speed
            raise KeyboardInterrupt
        real(writer, utterance, targets)

    with monkeypatch.context() as patch:
        patch.setattr(CacheWriter, "add", add)
        with pytest.raises((KeyboardInterrupt, SystemExit)):
            build_cache(whole(config), folder, progress=False)
    assert len(list(folder.glob("shard-*"))) == 11
    with pytest.raises(TutorError, match="is not finished"):
        CacheReader(folder)
    built = build_cache(whole(config), folder, progress=False)
    assert (built.utterances, built.added) == (24, 13)
    assert len(CacheReader(folder)) == 24


def test_utterances_without_one_of_the_speeds_are_named(corpus, teacher_file, make_student, tmp_path):
    rows = (corpus / "train.jsonl").read_text(encoding="utf-8").replace("train", str(corpus / "train"))
    manifest = tmp_path / "train.jsonl"
    manifest.write_text("".join(rows.splitlines(keepends=True)[:5]), encoding="utf-8")

    def with_manifest(config: dict[str, Any]) -> dict[str, Any]:
        config["train_ds"]["manifest_filepath"] = str(manifest)
        return config

    folder = tmp_path / "cache"
    config = with_manifest(student_config(corpus, teacher_file, STAGES))
    build_cache(whole(perturbed(config)), folder, progress=False)
    manifest.write_text(rows, encoding="utf-8")
    config = with_manifest(student_config(corpus, teacher_file, STAGES))
    build_cache(whole(config), folder, progress=False)
    targets_of_batches(make_student(with_manifest(cached(corpus, folder))))
    with pytest.raises(TutorError, match=r"no targets for .*train5\.wav .*rate 0\.9\) and 2 more of 8; run"):
        make_student(perturbed(with_manifest(cached(corpus, folder)))).setup("fit")


def test_two_speeds_of_one_length_are_refused(corpus, teacher_file, make_student, tmp_path):
    """Rates of 1 and 15999/16000 are told apart from one second on only."""
    close = {"min_speed_rate": 0.99995, "max_speed_rate": 1.0, "num_rates": 2}
    config = perturbed(student_config(corpus, teacher_file, STAGES), **close)
    words = r"train0\.wav .* has 14400 samples at two speeds of model\.train_ds \(.*as recorded.*\)"
    with pytest.raises(TutorError, match=words):
        build_cache(whole(config), tmp_path / "cache", progress=False)
    assert not (tmp_path / "cache").exists()


def test_the_command_line(corpus, teacher_file, make_student, tmp_path, monkeypatch):
    """`--views` builds fewer speeds, and says what the training needs for it."""
    config = perturbed(student_config(corpus, teacher_file, STAGES), num_rates=-1)
    (tmp_path / "student.yaml").write_text(yaml.safe_dump(OmegaConf.to_container(whole(config))))
    monkeypatch.chdir(tmp_path)
    command = ["cache", "-cp", str(tmp_path), "-cn", "student", "--output", "targets"]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 2 and "num_rates is -1" in done.output and "Traceback" not in done.output
    done = CliRunner().invoke(app, [*command, "--views", "2"])
    assert done.exit_code == 0, done.output
    assert "24 utterances (at 3 speeds)" in done.stdout
    assert done.stdout.rstrip().endswith(
        "model.tutor.teacher.cache=targets model.train_ds.augmentor.speed.num_rates=2"
    )
    done = CliRunner().invoke(app, [*command, "--views", "2", "--json"])
    printed = json.loads(done.stdout)
    assert (printed["added"], printed["views"]) == (0, ["as recorded", "rate 0.9", "rate 1.1"])
    targets_of_batches(make_student(perturbed(cached(corpus, tmp_path / "targets"), num_rates=2)))


def test_two_ranks_build_every_speed(corpus, teacher_file, tmp_path):
    write(
        perturbed(student_config(corpus, teacher_file, STAGES)),
        tmp_path,
        trainer={"accelerator": "cpu", "devices": 2, "strategy": "ddp"},
    )
    options = ["--config-path", str(tmp_path), "--config-name", "student", "--output", "cache"]
    done = call("-m", "nemo_tutornet", "cache", *options, folder=tmp_path)
    said = done.stdout + done.stderr
    assert done.returncode == 0 and "Traceback" not in said, said[-3000:]
    assert "24 utterances (at 3 speeds)" in done.stdout
    header = read_header(tmp_path / "cache")
    assert len(header["views"]) == 3 and header["totals"]["utterances"] == 24
    assert [shard["utterances"] for shard in header["shards"]] == [4] * 6, "a shard of each rank and speed"


def write_adapter(teacher: Path, path: Path) -> str:
    """An adapter of the tiny teacher for the tiny student; it is not trained."""
    torch.manual_seed(0)
    info = AdapterInfo(
        labels=tuple(LABELS),
        frame_ms=20.0,
        upsampling=2,
        teacher_width=24,
        width=16,
        teacher_outputs=0,
        teacher_sha256=sha256_of(teacher),
        teacher_class="",
        wer=1.0,
        teacher_wer=1.0,
        utterances=1,
    )
    Adapter(AdapterHead(24, 16, 2, len(LABELS) + 1), info).save(path)
    return str(path)


@pytest.mark.parametrize("where", ["in the cache", "beside it"])
def test_an_adapters_targets(corpus, teacher_file, make_student, tmp_path, where):
    """At each speed: stored, or computed from the encoder's stored output."""
    file = write_adapter(teacher_file, tmp_path / "adapter.safetensors")
    built = perturbed(student_config(corpus, teacher_file, STAGES))
    if where == "in the cache":
        built["tutor"]["teacher"]["adapter"] = file
    else:  # only the encoder's output and the hypotheses are stored, as `adapt` keeps them
        stages = [{"name": "encode", "weights": {"rkd": 1.0, "pseudo": 1.0}}]
        built["tutor"].update(stages=stages, rkd={"frame_weighting": "uniform"})
    build_cache(whole(built), tmp_path / "cache", progress=False)
    read = perturbed(cached(corpus, tmp_path / "cache"))
    read["tutor"]["teacher"]["adapter"] = file
    said = LiveTeacher.from_config(TeacherConfig(model_path=str(teacher_file), adapter=file))
    found = targets_of_batches(make_student(read))
    assert all(len(targets.hypotheses) == len(batch[1]) for targets, batch in found)
    check_against(said, found, 8, tolerance=0.02 if where == "beside it" else 2e-3)
