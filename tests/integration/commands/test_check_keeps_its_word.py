# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""What `check` accepts trains two steps: random overrides of a tiny config, checked and trained."""

from __future__ import annotations

import copy
import io
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from nemo.utils.trainer_utils import resolve_trainer_cfg
from omegaconf import OmegaConf

from nemo_tutornet.commands.check import check_training
from nemo_tutornet.errors import TutorError
from nemo_tutornet.models import TutorCTCModel, model_class_for
from tests.conftest import LABELS, refusal, student_config

TRAINER = {
    "max_epochs": 2,
    "accelerator": "cpu",
    "devices": 1,
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "num_sanity_val_steps": 0,
}
STAGES = [
    {"name": "a", "steps": 1, "weights": {"rkd": 1.0}},
    {"name": "b", "weights": {"ctc": 1.0, "skd": 0.25}},
]
SORTED = {"use_semi_sorted_batching": True, "randomization_factor": 0.1, "drop_last": False}
SCHEDULE = {"name": "CosineAnnealing", "warmup_ratio": 0.1, "min_lr": 1e-5}


def config(corpus: Path, teacher: Path, *overrides: tuple[str, Any]) -> Any:
    """The tests' student with a trainer, and with other values at dotted keys."""
    model = student_config(corpus, teacher, STAGES)
    for block in model["encoder"]["jasper"]:
        block["filters"] = 20  # so that InterCTC can read every block
    cfg = OmegaConf.create({"model": model, "trainer": TRAINER})
    for key, value in overrides:
        OmegaConf.update(cfg, key, value, merge=False, force_add=True)
    return cfg


def trained(cfg: Any) -> int:
    """Trains at most two steps, as the training script does; returns how many."""
    cfg = copy.deepcopy(cfg)
    trainer = pl.Trainer(**{**resolve_trainer_cfg(cfg.trainer), "max_steps": 2})
    model: Any = model_class_for(cfg.model)(cfg=cfg.model, trainer=trainer)
    with redirect_stdout(io.StringIO()):
        trainer.fit(model)
    return int(trainer.global_step)


def checked(cfg: Any) -> str | None:
    """The sentence with which `check` refuses a config; None if it accepts it."""
    try:
        check_training(copy.deepcopy(cfg), batches=1)
    except TutorError as error:
        return str(error)
    return None


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ([("model.optim.sched", SCHEDULE), ("model.train_ds.use_lhotse", True)], "set trainer.max_steps"),
        (
            [("model.labels", [*LABELS, 1]), ("model.decoder.vocabulary", [*LABELS, 1])],
            "put every label in quotes",
        ),
        ([("model.labels", [*LABELS, "a"]), ("model.decoder.vocabulary", [*LABELS, "a"])], "'a' twice"),
        ([("model.train_ds.labels", LABELS[::-1])], "differs from model.decoder.vocabulary"),
        ([("model.decoder.num_classes", None)], "model.decoder.num_classes is not set"),
        ([("model.tokenizer", {"type": "agg", "langs": {}})], "aggregate tokenizer"),
        ([("model.optim", None)], "model.optim must be a section"),
        ([("model.optim.name", "adamz")], "Cannot resolve optimizer 'adamz'"),
        ([("model.train_ds.batch_size", 100), ("model.train_ds.drop_last", True)], "has no batch"),
        ([("trainer.nosuch", 1)], "unexpected keyword argument 'nosuch'"),
        ([("trainer.val_check_interval", 100)], "val_check_interval"),
        ([("trainer.log_every_n_steps", 0)], "trainer.log_every_n_steps is 0"),
        ([("model.interctc", {"loss_weights": [0.3], "apply_at_layers": [7]})], "Intermediate layer 7"),
    ],
)
def test_what_cannot_start_is_refused(corpus, teacher_file, overrides, words):
    assert words in refusal(check_training, config(corpus, teacher_file, *overrides), 1)


def test_a_few_batches_can_be_overfitted(corpus, teacher_file):
    """conf/small sorts its batches, and Lightning would take single utterances out of their sampler."""
    overrides = [
        *[(f"model.train_ds.{key}", value) for key, value in SORTED.items()],
        ("trainer.overfit_batches", 2),
    ]
    cfg = config(corpus, teacher_file, *overrides)
    assert checked(cfg) is None and trained(cfg) == 2


def test_inter_ctc_scales_ctc_alone(corpus, teacher_file, make_student, monkeypatch):
    """NeMo multiplies the whole loss by what the weights of the intermediate layers leave of 1."""
    stages = [{"name": "a", "weights": {"ctc": 2.0, "rkd": 5.0}}]
    settings = student_config(corpus, teacher_file, stages, rkd={"warm_start_decoder": False})
    for block in settings["encoder"]["jasper"]:
        block["filters"] = 20
    settings["interctc"] = {"loss_weights": [0.3], "apply_at_layers": [1]}
    seen, step = [], TutorCTCModel.training_step

    def watched(self, batch, batch_idx):
        output = step(self, batch, batch_idx)
        seen.append(
            {name: float(value) for name, value in output["log"].items()} | {"loss": float(output["loss"])}
        )
        return output

    monkeypatch.setattr(TutorCTCModel, "training_step", watched)  # NeMo wraps it when a model is built
    student = make_student(settings, max_steps=1)
    student.trainer.fit(student)
    [log] = seen
    ctc = 0.7 * log["train_ctc"] + 0.3 * log["inter_ctc_loss_l1"]
    assert log["loss"] == pytest.approx(2.0 * ctc + 5.0 * log["train_rkd"], rel=1e-4)


def one_of(key: str, *values: Any) -> st.SearchStrategy[tuple[str, Any]]:
    return st.sampled_from(values).map(lambda value: (key, value))


def stage(name: str) -> st.SearchStrategy[dict[str, Any]]:
    weights = st.dictionaries(
        st.sampled_from(["ctc", "rkd", "skd", "pseudo"]), st.sampled_from([0.1, 1.0, 5.0]), min_size=1
    )
    return st.fixed_dictionaries({"name": st.just(name), "weights": weights})


TUTOR = st.one_of(
    one_of("model.tutor.skd", {"divergence": "kl", "temperature": 2.0}, {"divergence": "guided_ctc"}),
    one_of(
        "model.tutor.skd",
        {"frames": "nonblank"},
        {"frames": "symmetric", "frames_around": 1},
        {"match_window": 3},
        {"alignment": "pool_student"},
        {"alignment": "occurrences", "divergence": "kl"},
    ),
    one_of("model.tutor.skd", {"intermediate_layers": ["encoder.encoder.0", "encoder.encoder.1"]}),
    one_of("model.tutor.rkd", *[{"frame_weighting": name} for name in ("nonblank", "energy", "uniform")]),
    one_of("model.tutor.rkd", {"hint_layer": "encoder.layers.0"}, {"guided_layer": "encoder.encoder.1"}),
    one_of(
        "model.tutor.rkd",
        {"pairs": [{"hint_layer": "encoder.layers.0", "guided_layer": "encoder.encoder.0"}]},
    ),
    one_of("model.tutor.rkd", {"warm_start_decoder": False}, {"guided_layer": "encoder.encoder.9"}),
    one_of("model.tutor.pseudo_labels", {"min_confidence": 0.9}, {"max_wer": 0.0}, {"max_wer": 5.0}),
    one_of("model.tutor.pool_frames", True),
    one_of("model.tutor.init", "teacher"),
    stage("only").map(lambda one: ("model.tutor.stages", [one])),
    st.tuples(stage("a"), stage("b"), st.sampled_from([{"share": 0.5}, {"epochs": 1}, {"steps": 1}])).map(
        lambda drawn: ("model.tutor.stages", [{**drawn[0], **drawn[2]}, drawn[1]])
    ),
)
DATA = st.one_of(
    one_of("model.train_ds.batch_size", 1, 3, 8),
    one_of("model.train_ds.shuffle", False),
    one_of("model.train_ds.drop_last", True, False),
    one_of("model.train_ds.max_duration", 1.0, 0.1),
    one_of("model.train_ds.min_duration", 1.0),
    one_of("model.train_ds.use_lhotse", True),
    one_of("model.train_ds.trim_silence", True),
    one_of("model.train_ds.num_workers", 1),
    one_of("model.train_ds.augmentor", {"white_noise": {"prob": 1.0, "min_level": -90, "max_level": -46}}),
    one_of("model.validation_ds", None),
)
MODEL = st.one_of(
    one_of("model.ctc_reduction", "mean_batch", "mean", "sum", "mean_volume", None),
    one_of("model.spec_augment", None),
    one_of("model.interctc", *[{"loss_weights": [0.3], "apply_at_layers": [layer]} for layer in (0, 2, 7)]),
    one_of("model.preprocessor.normalize", "all_features", "per_feature", "nothing"),
    one_of("model.preprocessor.pad_to", 0, 16),
    one_of("model.encoder.conv_mask", False),
    one_of("model.encoder.activation", "swish", "nosuch"),
    one_of("model.decoder.num_classes", -1, 11, 10),
    one_of("model.skip_nan_grad", True),
    one_of("model.optim", {"name": "novograd", "lr": 1e-2}, {"name": "sgd", "lr": 1e-3}, {"name": "nosuch"}),
    one_of("model.optim.sched", SCHEDULE, {"name": "NoamAnnealing", "d_model": 16, "warmup_steps": 5}),
    one_of("model.optim.lr", 0.0, 1e-3, -1.0),
)
LIMITS = st.one_of(
    one_of("trainer.max_epochs", 1, 3, -1, None),
    one_of("trainer.max_steps", 2, 5),
    one_of("trainer.accumulate_grad_batches", 1, 2),
    one_of("trainer.gradient_clip_val", 0.1, 1.0),
    one_of("trainer.precision", 32, "bf16-mixed", "16-mixed", "bf16-true"),
    one_of("trainer.limit_train_batches", 1, 2, 0.5, 0),
    one_of("trainer.limit_val_batches", 0, 1),
    one_of("trainer.overfit_batches", 1, 2),
    one_of("trainer.val_check_interval", 0.5, 1, 50),
    one_of("trainer.log_every_n_steps", 1, 50),
    one_of("trainer.num_sanity_val_steps", 1, 2),
    one_of("trainer.deterministic", True),
)
SORTED_BATCHES = st.just([(f"model.train_ds.{key}", value) for key, value in SORTED.items()])


@pytest.mark.fuzz
@settings(
    max_examples=max(1, settings().max_examples // 20),  # an example takes seconds
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
@given(
    overrides=st.lists(st.one_of(TUTOR, DATA, MODEL, LIMITS), min_size=1, max_size=4),
    sorted_batches=st.one_of(st.just([]), st.just([]), SORTED_BATCHES),
)
def test_what_check_accepts_trains_two_steps(corpus, teacher_file, overrides, sorted_batches):
    cfg = config(corpus, teacher_file, *sorted_batches, *overrides)
    if checked(cfg) is None:
        assert trained(cfg) == 2
