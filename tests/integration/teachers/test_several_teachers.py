# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""Several teachers: their posteriors are averaged on the student's frames and labels, RKD hears one of
them.
"""

from __future__ import annotations

import pytest
import torch

from nemo_tutornet import TutorError
from nemo_tutornet.data.dataloader import TrainingBatch
from nemo_tutornet.nemo_io.restore import restore_ctc
from tests.conftest import LABELS, save_teacher, student_config, teacher_config
from tests.integration import teacher_models
from tests.integration.recorder import Recorder

STAGES = [
    {"name": "rkd", "epochs": 1, "weights": {"rkd": 1.0}},
    {"name": "skd", "weights": {"ctc": 1.0, "skd": 0.25}},
]


@pytest.fixture(scope="module")
def other_file(corpus, tmp_path_factory):
    """A teacher with longer frames (80 ms), another width and the same labels in another order."""
    config = teacher_config(corpus, labels=LABELS[::-1])
    config["encoder"].update(d_model=16, subsampling="dw_striding", subsampling_factor=8)
    return save_teacher(config, tmp_path_factory.mktemp("other") / "other.nemo")


def test_posteriors_are_averaged_on_the_students_frames_and_labels(
    corpus, teacher_file, other_file, make_student
):
    config = student_config(
        corpus, teacher_file, STAGES, other_teachers=[{"model_path": str(other_file), "weight": 3.0}]
    )
    recorder = Recorder()
    model = make_student(config, callbacks=[recorder])
    model.trainer.fit(model)
    assert [set(step) >= {"train_skd"} for step in recorder.steps] == [False] * 4 + [True] * 4

    distiller, batch = model.distiller, next(iter(model._train_dl))
    named = TrainingBatch.from_nemo(batch)
    rkd, skd = distiller.schedule.stages
    assert distiller.teacher_targets(rkd, named).others == (), "in RKD the other teacher does not run"
    targets = distiller.teacher_targets(skd, named)
    with distiller.capture(model.eval(), named) as student:
        log_probs, lengths, _ = model(input_signal=batch[0], input_signal_length=batch[1])
        terms = distiller.losses(skd, student, targets, torch.zeros(()))

    first, second = restore_ctc(teacher_file), restore_ctc(other_file)
    expected = []
    for b in range(batch[0].shape[0]):
        signal, samples = batch[0][b : b + 1, : batch[1][b]], batch[1][b : b + 1]
        p = [one(input_signal=signal, input_signal_length=samples) for one in (first, second)]
        total = 0.0
        for s in range(int(lengths[b])):
            near = min(s // 2, int(p[0][1]) - 1), min(s // 4, int(p[1][1]) - 1)
            one, two = p[0][0][0, near[0]].exp(), p[1][0][0, near[1]].exp()
            two = torch.cat([two[:-1].flip(0), two[-1:]])  # its labels stand the other way round
            total += float((log_probs[b, s].exp() - (one + 3 * two) / 4).square().sum())
        expected.append(total)
    assert float(terms["skd"]) == pytest.approx(sum(expected) / len(expected), rel=1e-4)


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (
            "labels",
            r"model\.tutor\.other_teachers\[0\] \(.*: SKD compares posteriors, but the label sets differ",
        ),
        (
            "transducer",
            r"model\.tutor\.other_teachers\[0\] \(.*: SKD compares posteriors, but the teacher "
            r"has no CTC head",
        ),
        ("absent", r"there is no file .*gone\.nemo"),
        ("sha256", r"model\.tutor\.other_teachers\[0\]\.sha256 is abc, but the sha256 of"),
    ],
)
def test_one_that_cannot_help_is_refused(corpus, teacher_file, make_student, tmp_path, kind, words):
    other = {"model_path": str(tmp_path / "gone.nemo")}
    if kind == "labels":
        other["model_path"] = str(
            save_teacher(teacher_config(corpus, labels=[*LABELS[:-1], "ä"]), tmp_path / "umlaut.nemo")
        )
    elif kind == "transducer":
        other["model_path"] = str(teacher_models.save("transducer", corpus, tmp_path / "transducer.nemo"))
    elif kind == "sha256":
        other = {"model_path": str(teacher_file), "sha256": "abc"}
    model = make_student(student_config(corpus, teacher_file, STAGES, other_teachers=[other]))
    with pytest.raises(TutorError, match=words):
        model.setup("fit")
