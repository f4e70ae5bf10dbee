# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""`check`: what a training would do is told before it does it, with the training script's own arguments."""

from __future__ import annotations

import importlib
import json
import re
import sys
from pathlib import Path

import pytest
import torch
import yaml
from typer.testing import CliRunner

from nemo_tutornet.cli import app
from nemo_tutornet.functional.fft_depthwise import FourierConv1d
from tests.conftest import LABELS, save_teacher, student_config, teacher_config
from tests.integration import teacher_models
from tests.integration.students import of_kind


@pytest.fixture
def run(corpus: Path, teacher_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Runs the command on a config of the tests; an optimizer that steps is an error."""

    def never(*_: object, **__: object) -> None:
        raise AssertionError("check trains")

    monkeypatch.setattr(torch.optim.Optimizer, "step", never)
    monkeypatch.setattr(torch.optim.AdamW, "step", never)

    def call(*overrides: str, config: dict | None = None):
        model = config or student_config(corpus, teacher_file)
        (tmp_path / "student.yaml").write_text(
            yaml.safe_dump({"model": model, "trainer": {"max_epochs": 2}}), encoding="utf-8"
        )
        before = sorted(tmp_path.rglob("*"))
        result = CliRunner().invoke(
            app, ["check", "--config-path", str(tmp_path), "--config-name", "student", *overrides]
        )
        assert sorted(tmp_path.rglob("*")) == before, "check writes"
        assert "Traceback" not in result.output
        return result

    return call


def test_it_shows_what_is_matched_and_what_it_costs(run, corpus):
    train, valid = corpus / "train.jsonl", corpus / "valid.jsonl"
    mixed = [f"model.train_ds.manifest_filepath=[{train},{valid}]", "+model.tutor.manifest_weights=[1,4]"]
    result = run("--json", "trainer.max_epochs=7", "+model.tutor.skd.divergence=kl", *mixed)
    assert result.exit_code == 0, result.output
    assert result.stderr.splitlines()[1:] == [
        "loading student and teacher",
        "timing student and teacher",
        "timing a step of stage rkd",
        "timing a step of stage skd",
        "transcribing validation data with the teacher: 0 of 1 batches",
    ]
    shown = json.loads(result.stdout)
    assert shown["data"] == {
        f"1. {train}": "2 utterances, 0.00 h an epoch (8 in it, each drawn 0.25 times)",
        f"2. {valid}": "8 utterances, 0.00 h an epoch (2 in it, each drawn 4 times)",
    }
    assert shown["student"]["class"] == "TutorCTCModel" and shown["teacher"]["class"] == "EncDecCTCModel"
    assert (
        shown["matches"]["RKD"]
        == "encoder (24 wide, 40 ms) -> encoder (20 wide, 20 ms), each teacher frame on 2 of the student's"
    )
    assert (
        shown["matches"]["SKD"].startswith("kl, 11 labels in the same order")
        and shown["matches"]["decoder warm start"] == "yes"
    )
    rkd, skd = shown["stages"]
    assert (rkd["length"], rkd["losses"]) == ("1 epochs", "1 x rkd") and set(rkd["terms"]) == {"rkd"}
    assert (skd["length"], skd["losses"]) == ("to the end", "1 x ctc, 0.25 x skd") and set(skd["terms"]) == {
        "ctc",
        "skd",
    }
    assert all(stage["step_ms"] > 0 for stage in (rkd, skd)) and shown["peak_mb"] > 100
    # An untrained teacher: this is what the command is for.
    assert shown["teacher_wer"] >= 0.5 and shown["first_pair"][0] == "aa c"
    assert any("it may be the wrong teacher" in remark for remark in shown["remarks"])


def test_the_tables(run):
    result = run()
    assert result.exit_code == 0, result.output
    for words in (
        "EncDecCTCModel",
        "each teacher frame on 2",
        "0.25 x skd",
        "teacher's WER",
        "forward alone",
        "this check held",
    ):
        assert words in result.output


def test_a_teacher_that_takes_most_of_a_step(run, monkeypatch):
    check = importlib.import_module("nemo_tutornet.commands.check")
    monkeypatch.setattr(check, "median_ms", lambda *_: 1e6)
    remarks = json.loads(run("--json").stdout)["remarks"]
    assert any("run it once with `nemo-tutornet cache`" in remark for remark in remarks)


def test_the_student_is_timed_as_it_is_trained(run, monkeypatch):
    """Its forward alone is compared with the teacher's, so it has the same convolutions."""
    check = importlib.import_module("nemo_tutornet.commands.check")
    cost, steps, forwards = check.stage_cost, [], []

    def convolutions(model):
        return {type(module) for module in model.modules() if isinstance(module, torch.nn.Conv1d)}

    def timed(once, model):
        forwards.append(set() if model is None else convolutions(model))
        return 1.0

    monkeypatch.setattr(check, "median_ms", timed)
    monkeypatch.setattr(check, "stage_cost", lambda *a: (steps.append(convolutions(a[0])), cost(*a))[1])
    for overrides in ((), ("++fourier_depthwise=true",)):
        assert run(*overrides).exit_code == 0
    assert FourierConv1d not in steps[0] and FourierConv1d in steps[-1]
    assert FourierConv1d in forwards[0] and FourierConv1d in forwards[2]


def test_a_system_that_does_not_report_its_memory(run, monkeypatch):
    """Windows has no `resource`, and everything else is told there, too."""
    monkeypatch.setitem(sys.modules, "resource", None)
    result = run()
    assert result.exit_code == 0, result.output
    assert "forward alone: student" in result.output and "this check held" not in result.output
    assert json.loads(run("--json").stdout)["peak_mb"] is None


def test_other_pairs_are_reported_too(run, corpus, tmp_path):
    hybrid = teacher_models.save("transducer", corpus, tmp_path / "transducer.nemo")
    stages = [{"name": "a", "epochs": 1, "weights": {"rkd": 1.0}}, {"name": "b", "weights": {"pseudo": 1.0}}]
    config = of_kind("citrinet", student_config(corpus, hybrid, stages, pool_frames=True))
    shown = json.loads(run("--json", config=config).stdout)
    assert (
        shown["matches"]["RKD"].endswith("2 teacher frames pooled")
        and shown["teacher"]["labels"] == "none on frames"
    )
    assert (
        "the teacher has no CTC head" in shown["matches"]["decoder warm start"]
        and "pseudo-labels" in shown["matches"]
    )


def test_heads_and_several_teachers_are_reported(run, corpus, teacher_file, tmp_path):
    other = {
        "model_path": str(save_teacher(teacher_config(corpus, LABELS[::-1]), tmp_path / "other.nemo")),
        "weight": 2.0,
    }
    config = student_config(
        corpus, teacher_file, skd={"intermediate_layers": ["encoder.encoder.0"]}, other_teachers=[other]
    )
    shown = json.loads(run("--json", config=config).stdout)
    assert (
        shown["matches"]["Inter-KD"]
        == "encoder.encoder.0 (16 wide, 20 ms), each teacher frame on 2 of the student's, weight 1"
    )
    assert shown["matches"]["SKD"].endswith("other.nemo (2 to 1)")
    assert set(shown["stages"][1]["terms"]) == {"ctc", "skd", "inter_ctc", "inter_skd"}


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["model.tutor=null"], "model.tutor is not there"),
        (["+model.tutor.skd.divergence=js"], "model.tutor.skd.divergence is 'js'"),
        (["model.tutor.teacher.model_path=/no/t.nemo"], "there is no file /no/t.nemo"),
        (
            ["+model.tutor.rkd.guided_layer=encoder.encoder.9"],
            "guided_layer: there is no layer 'encoder.encoder.9'",
        ),
        (["model.train_ds.manifest_filepath=/no/m.jsonl"], "there is no manifest /no/m.jsonl"),
        (["trainer.max_epochs=ten"], "trainer.max_epochs is ten, but it must be a number"),
        (["model.nothing=1"], "To append to your config use +model.nothing=1"),
        (["--config-name", "none"], "none"),
        (["-cn", "none"], "none"),
        (["model.train_ds.manifest_filepath=null"], "model.train_ds.manifest_filepath is not set"),
        (["+model.train_ds.use_dali=true"], "model.train_ds.use_dali is on"),
        (
            [
                "model.tutor.stages=[{name:a,share:0.5,weights:{rkd:1.0}},{name:b,weights:{ctc:1.0}}]",
                "trainer.max_epochs=-1",
            ],
            "neither trainer.max_epochs nor trainer.max_steps",
        ),
        (["--config-path", "/no/conf"], "--config-path /no/conf is no folder"),
    ],
)
def test_a_contradiction_ends_with_2_and_a_sentence(run, overrides, words):
    result = run(*overrides)
    assert result.exit_code == 2, result.output
    assert words in result.output


def test_a_stage_that_is_never_reached_and_deferred_data(run):
    shown = json.loads(run("--json", "trainer.max_epochs=1", "+model.train_ds.defer_setup=true").stdout)
    assert "Stage 'skd' is never reached: the stages before it take 1 of 1 epochs." in shown["remarks"]


def test_a_stage_in_steps_that_the_epochs_never_reach(run):
    stages = "model.tutor.stages=[{name: a, steps: 100, weights: {rkd: 1.0}}, {name: b, weights: {ctc: 1.0}}]"
    words = "Stage 'b' is never reached: the stages before it take 100 of 4 steps (2 epochs of 2 steps)."
    halves = "+trainer.accumulate_grad_batches=2"
    assert words in json.loads(run("--json", stages, halves, "+trainer.devices=1").stdout)["remarks"]
    # How several devices share the batches is known when the training starts.
    shown = json.loads(run("--json", stages, halves, "+trainer.num_nodes=2").stdout)
    assert not any("never reached" in remark for remark in shown["remarks"])


def test_a_setting_of_a_loss_that_no_stage_uses(run):
    shown = json.loads(
        run(
            "--json", "model.tutor.stages=[{name:a,weights:{rkd:1.0}}]", "+model.tutor.skd.match_window=4"
        ).stdout
    )
    assert any(
        remark.startswith("model.tutor.skd changes match_window, but no stage") for remark in shown["remarks"]
    ), shown["remarks"]


def test_a_training_without_limits_has_lightnings_thousand_epochs(run):
    stages = "model.tutor.stages=[{name:a,share:0.5,weights:{rkd:1.0}},{name:b,weights:{ctc:1.0}}]"
    shown = json.loads(run("--json", "trainer.max_epochs=null", stages).stdout)
    assert [stage["length"] for stage in shown["stages"]] == ["50 % of the training", "to the end"]


def test_a_teacher_of_whom_no_hypothesis_can_be_used(run, corpus, teacher_file):
    config = student_config(
        corpus, teacher_file, [{"name": "pseudo", "weights": {"pseudo": 1.0}}], pseudo_labels={"max_wer": 0.0}
    )
    (remark,) = [
        one for one in json.loads(run("--json", config=config).stdout)["remarks"] if "can be used" in one
    ]
    assert remark.startswith(
        "None of the teacher's hypotheses on the first training batch can be used (high_wer): see "
        "model.tutor.p"
    )


def test_labels_that_differ(run, corpus, tmp_path_factory):
    other = save_teacher(
        teacher_config(corpus, labels=[*LABELS[:-1], "ä"]), tmp_path_factory.mktemp("other") / "umlaut.nemo"
    )
    result = run(f"model.tutor.teacher.model_path={other}")
    assert result.exit_code == 2 and "RKD and pseudo-labels still work" in result.output


def test_it_shows_what_a_cache_would_hold(run, corpus, teacher_file, tmp_path_factory):
    """Hours and megabytes of each speed, before anything is built; and they are those of the cache."""
    from omegaconf import OmegaConf

    from nemo_tutornet.commands.cache_targets import build_cache

    config = student_config(corpus, teacher_file)
    speed = {"prob": 0.8, "sr": 16000, "resample_type": "scipy", "num_rates": 2}
    config["train_ds"]["augmentor"] = {"speed": speed}
    found = json.loads(run("--json", config=config).stdout)["cache"]
    assert [one["view"] for one in found] == ["as recorded", "rate 0.9", "rate 1.1"]
    folder = tmp_path_factory.mktemp("sizes") / "cache"
    trainer = {"accelerator": "cpu", "devices": 1}
    built = build_cache(OmegaConf.create({"model": config, "trainer": trainer}), folder, progress=False)
    assert sum(one["hours"] for one in found) == pytest.approx(built.hours, rel=0.01)
    # So small a cache has a fifth of its bytes in the heads of its shards and in the teacher's CTC head.
    assert sum(one["megabytes"] for one in found) == pytest.approx(built.megabytes, abs=0.015)
    table = run(config=config).stdout
    assert re.search(r"rate 1\.1 +0\.00 +0\.\d", table) and re.search(r"all +0\.01 +0\.\d", table)
    config["train_ds"]["augmentor"]["shift"] = {"prob": 0.1}
    assert json.loads(run("--json", config=config).stdout)["cache"] == [], "no cache can serve that"
