# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""Student consistency on two views (`tutor.consistency`), with a teacher and without one."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from nemo_tutornet.commands.check import check_training
from nemo_tutornet.data.dataloader import TrainingBatch
from nemo_tutornet.nemo_io.layers import Capture
from nemo_tutornet.nemo_io.lightning_ckpt import load_lightning_checkpoint
from tests.conftest import refusal, student_config, with_bad_audio
from tests.integration.recorder import Recorder, same, state_of

ALL = [{"name": "all", "weights": {"ctc": 1.0, "rkd": 1.0, "skd": 0.25, "pseudo": 0.1}}]
ON = {"weight": 0.2}


def config_of(corpus: Path, teacher: Path | None, stages: list | None = None, **tutor: Any) -> dict[str, Any]:
    config = student_config(corpus, teacher, stages, **tutor)
    config["spec_augment"] = {**config["spec_augment"], "time_masks": 2, "time_width": 0.1}
    if teacher is None:
        config["tutor"] = {"teacher": None, **tutor}
    return config


class Seen(Recorder):
    """What each training step and validation ran on, and what it logged."""

    def __init__(self, stop: int | None = None) -> None:
        super().__init__(stop)
        self.rows: list[int] = []
        self.masks: list[tuple[bool, int]] = []
        self.signals: list[int] = []

    def setup(self, trainer: Any, model: Any, stage: str) -> None:
        super().setup(trainer, model, stage)

        def look(module: Any, args: Any, kwargs: Any, output: Any) -> None:
            if trainer.training or trainer.validating:
                self.rows.append(kwargs["input_spec"].shape[0])
                self.masks.append((trainer.training, module.spec_augment.time_masks))

        def compare(module: Any, args: Any, kwargs: Any) -> None:
            first, second = kwargs["input_spec"].chunk(2)
            assert len(first) == 1 or torch.equal(first, second)

        def listen(module: Any, args: Any, kwargs: Any) -> None:
            if trainer.training:
                self.signals.append(kwargs["input_signal"].shape[0])

        model.preprocessor.register_forward_pre_hook(listen, with_kwargs=True)
        model.spec_augmentation.register_forward_pre_hook(compare, with_kwargs=True)
        model.spec_augmentation.register_forward_hook(look, with_kwargs=True)


def fit(make_student: Any, config: dict[str, Any], seen: Seen, **trainer: Any) -> Any:
    model = make_student(config, callbacks=[seen], **trainer)
    with contextlib.suppress(KeyboardInterrupt, SystemExit):
        model.trainer.fit(model)
    return model


@pytest.mark.parametrize("distilled", [True, False])
def test_two_views_in_training_and_plain_validation(distilled, corpus, teacher_file, make_student):
    seen = Seen()
    stages = [{"name": "rkd", "steps": 1, "weights": {"rkd": 1.0}}, *ALL]
    config = config_of(
        corpus,
        teacher_file if distilled else None,
        stages if distilled else None,
        consistency=dict(ON, warmup=4),
    )
    model = fit(make_student, config, seen, max_epochs=2)
    first = 1 if distilled else 0  # a step of RKD alone has one view
    assert seen.rows == [2] * first + [4] * (8 - first)  # validation does not augment
    # Both views have the same features, computed once. Before the training, layers are measured on one row.
    assert [rows for rows in seen.signals if rows > 1] == [2] * 8
    assert seen.masks == [(True, 2)] * first + [(True, 5)] * (8 - first)
    assert model.spec_augmentation.spec_augment.time_masks == 2
    for step, log in enumerate(seen.steps):
        assert ("train_consistency" in log) == (step >= first)
        if step >= first:
            assert log["train_consistency"] > 0
            others = {"rkd": 1.0, "skd": 0.25, "pseudo": 0.1} if distilled else {}
            weights = {"ctc": 1.0, **others, "consistency": 0.2 * min(1.0, (step - first) / 4)}
            total = sum(weight * log[f"train_{name}"] for name, weight in weights.items())
            assert log["train_loss"] == pytest.approx(total, rel=1e-5)
    assert "tutor" not in model.state_dict()
    if not distilled:
        assert not any(isinstance(value, Capture) for value in vars(model._views).values()), (
            "outputs are kept"
        )


@pytest.mark.parametrize("distilled", [True, False])
def test_off_is_bit_equal_to_a_training_without_the_key(distilled, corpus, teacher_file, make_student):
    teacher = teacher_file if distilled else None
    plain = config_of(corpus, teacher, ALL)
    off = config_of(corpus, teacher, ALL, consistency={"weight": 0.0, "time_masks": 9.0})
    if not distilled:
        plain.pop("tutor")
        off.pop("tutor")
        off["tutor"] = None
    one, other = (state_of(fit(make_student, config, Seen(), max_epochs=1)) for config in (plain, off))
    assert same(one, other)


@pytest.mark.parametrize("distilled", [True, False])
def test_a_resumed_run_draws_the_same_masks(distilled, corpus, teacher_file, make_student, tmp_path):
    """The weight of the consistency goes on growing, too, from the step in which its first stage began."""
    stages = [{"name": "rkd", "steps": 1, "weights": {"rkd": 1.0}}, *ALL]
    config = config_of(corpus, teacher_file if distilled else None, stages, consistency=dict(ON, warmup=9))
    if not distilled:
        config["tutor"].pop("stages", None)
    fit(make_student, config, Seen(), max_epochs=2, folder=tmp_path / "whole")
    fit(make_student, config, Seen(stop=6), max_epochs=2, folder=tmp_path / "parts")
    fit(make_student, config, Seen(), max_epochs=2, folder=tmp_path / "parts")
    whole, parts = (
        load_lightning_checkpoint(next((tmp_path / name).rglob("*-last.ckpt")))["state_dict"]
        for name in ("whole", "parts")
    )
    assert same(whole, parts)


def test_every_loss_is_the_mean_over_both_views(corpus, teacher_file, make_student):
    """With equal views, the losses are those of a single one, and the consistency is 0."""
    stages = [{"name": "all", "weights": {"ctc": 1.0, "rkd": 1.0, "skd": 0.25, "pseudo": 0.5}}]
    config = config_of(
        corpus, teacher_file, stages, consistency=ON, skd={"intermediate_layers": ["encoder.encoder.0"]}
    )
    model = make_student(config, max_epochs=1)
    model.trainer.fit(model)
    distiller, stage = model.distiller, model.distiller.schedule.stages[0]
    batch = TrainingBatch.from_nemo(next(iter(model._train_dl)))
    batch.transcript_lengths[1] = 0  # a row without a transcript
    model.eval()
    found = []
    for one in (None, stage):
        distiller.config.consistency.weight = 0.2 if one else 0.0
        targets = distiller.teacher_targets(stage, batch)
        distiller.pseudo_labels.counts.clear()
        with distiller.capture(model, batch, one) as student:
            seen = student.batch
            log_probs, lengths, _ = model.forward(
                input_signal=seen.signal, input_signal_length=seen.signal_lengths
            )
            ctc = student.ctc_loss(log_probs, lengths, seen.transcripts, seen.transcript_lengths)
            found.append(
                (distiller.losses(stage, student, targets, ctc), dict(distiller.pseudo_labels.counts))
            )
    (plain, counts), (views, counts_of_views) = found
    assert counts == counts_of_views
    assert views["consistency"].abs().item() < 1e-5
    for name, value in plain.items():
        torch.testing.assert_close(views[name], value, rtol=1e-4, atol=1e-5)
    assert set(views) - set(plain) == {"consistency"} and "inter_skd" in plain


def test_limits_hold_without_a_teacher(corpus, make_student, tmp_path):
    """A batch that is not finite is skipped up to `max_nonfinite_share`, as with a teacher."""
    for share, skipped in ((0.5, True), (0.0, False)):
        config = config_of(corpus, None, consistency=ON, max_nonfinite_share=share)
        config["train_ds"]["manifest_filepath"] = with_bad_audio(corpus, tmp_path, 3)
        model = make_student(config, max_epochs=1)
        if skipped:
            model.trainer.fit(model)
            assert all(value.isfinite().all() for value in model.state_dict().values())
        else:
            assert "not finite" in refusal(model.trainer.fit, model)


def test_interctc_and_accumulated_gradients(corpus, teacher_file, make_student):
    config = config_of(corpus, teacher_file, ALL, consistency=ON)
    config["interctc"] = {"loss_weights": [0.3], "apply_at_layers": [1]}
    config["encoder"]["jasper"][1]["filters"] = config["encoder"]["jasper"][2]["filters"] = 16
    config["decoder"]["feat_in"] = 16
    seen = Seen()
    fit(make_student, config, seen, max_epochs=1, accumulate_grad_batches=2)
    assert seen.rows == [4] * 4 and all("train_consistency" in log for log in seen.steps)


def test_rows_without_a_transcript(corpus, make_student, tmp_path):
    rows = [json.loads(line) for line in (corpus / "train.jsonl").read_text().splitlines()]
    for i, row in enumerate(rows):
        row["audio_filepath"] = str(corpus / row["audio_filepath"])
        if i % 2:
            row.pop("text")
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = config_of(corpus, None, consistency=ON)
    config["train_ds"]["manifest_filepath"] = str(tmp_path / "train.jsonl")
    seen = Seen()
    fit(make_student, config, seen, max_epochs=1)
    assert all(torch.isfinite(torch.tensor(log["train_loss"])) for log in seen.steps) and len(seen.steps) == 4


def test_mistakes_are_one_sentence(corpus, teacher_file, make_student):
    def refused(config: dict[str, Any]) -> str:
        def train() -> None:
            model = make_student(config, max_epochs=1)
            model.trainer.fit(model)

        return refusal(train)

    for teacher in (teacher_file, None):
        config = config_of(corpus, teacher, consistency=ON)
        config["spec_augment"] = None
        assert "masks nothing" in refused(config)
        config = config_of(corpus, teacher, consistency=ON)
        config["ctc_reduction"] = "sum"
        assert "mean_batch" in refused(config)
    assert "model.tutor.teacher is null" in refused(config_of(corpus, None))
    stages = [{"name": "a", "weights": {"ctc": 1.0, "rkd": 1.0}}]
    assert "rkd" in refused(
        config_of(corpus, None, consistency=ON)
        | {"tutor": {"teacher": None, "consistency": ON, "stages": stages}}
    )


def test_check_says_what_it_costs(corpus, teacher_file):
    from omegaconf import OmegaConf

    config = config_of(corpus, teacher_file, ALL, consistency=ON)
    cfg = OmegaConf.create(
        {"model": config, "trainer": {"max_epochs": 1, "accelerator": "cpu", "devices": 1}}
    )
    found = check_training(cfg, batches=1)
    assert "consistency" in found.stages[-1].terms and "0.2 x consistency" in found.stages[-1].losses
    assert any("two views" in remark and "ms" in remark for remark in found.remarks)
