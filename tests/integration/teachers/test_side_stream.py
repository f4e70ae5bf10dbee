# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""A live teacher on a CUDA stream of its own: who waits for whom, and whose memory is kept.

Without a GPU the streams are imitated: what is launched on which, and what is asked of PyTorch, is written
down in order.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from nemo_tutornet.data.dataloader import TrainingBatch
from nemo_tutornet.distill.objective import Objective
from nemo_tutornet.nemo_io.restore import restore_ctc
from nemo_tutornet.teachers import side_stream
from nemo_tutornet.teachers.live import LiveTeacher
from nemo_tutornet.teachers.side_stream import SideStream
from nemo_tutornet.teachers.targets import TargetRequest, TeacherTargets
from tests.conftest import save_teacher, student_config, teacher_config

SIGNAL, LENGTHS = torch.arange(6.0).reshape(2, 3), torch.tensor([3, 2])


@dataclass
class Streams:
    """Imitated CUDA streams, of which `main` is current, and what happened."""

    events: list[tuple] = field(default_factory=list)
    current: Any = None

    def stream(self, name: str, device: Any) -> SimpleNamespace:
        def wait_stream(other: Any) -> None:
            self.events.append(("wait", name, other.name))

        return SimpleNamespace(name=name, device=torch.device(device), wait_stream=wait_stream)

    @contextmanager
    def on(self, stream: Any) -> Iterator[None]:
        before, self.current = self.current, stream
        try:
            yield
        finally:
            self.current = before

    def note(self, what: str, *more: Any) -> None:
        self.events.append((what, self.current.name, *more))

    def at(self, *event: Any) -> int:
        """The place of an event that must have happened, and once."""
        assert self.events.count(event) == 1, (event, self.events)
        return self.events.index(event)


@pytest.fixture
def streams(monkeypatch) -> Streams:
    """The CPU passes for a GPU; `record_stream` and `clone` are written down by the address of the memory."""
    seen, clone = Streams(), torch.Tensor.clone
    seen.current = seen.stream("main", "cpu")

    def cloned(tensor, *args, **kwargs):
        made = clone(tensor, *args, **kwargs)
        seen.note("clone", tensor.data_ptr(), made.data_ptr())
        return made

    monkeypatch.setattr(side_stream, "_has_streams", lambda device: True)
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: seen.stream("side", device))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: seen.current)
    monkeypatch.setattr(torch.cuda, "stream", seen.on)
    monkeypatch.setattr(
        torch.Tensor,
        "record_stream",
        lambda tensor, stream: seen.events.append(("record", stream.name, tensor.data_ptr())),
    )
    monkeypatch.setattr(torch.Tensor, "clone", cloned)
    return seen


class SomeTeacher:
    """Returns the given targets, and writes down what it was called with and where."""

    def __init__(self, streams: Streams | None, targets: TeacherTargets) -> None:
        self.streams, self.targets, self.calls = streams, targets, []

    def __call__(self, signal, lengths):
        if self.streams is not None:
            self.streams.note("teacher", signal.data_ptr(), lengths.data_ptr())
        self.calls.append((signal, lengths))
        return self.targets


def some_targets(**more: Any) -> TeacherTargets:
    return TeacherTargets(
        lengths=torch.ones(2), log_probs=torch.ones(2, 3, 4), hidden=torch.ones(2, 5, 3), **more
    )


def test_every_wait_and_every_tensor_that_crosses_over(streams):
    targets = some_targets(
        others=(some_targets(), TeacherTargets(lengths=torch.ones(2), others=(some_targets(),)))
    )
    teacher, side = SomeTeacher(streams, targets), SideStream()
    assert side.run(teacher, SIGNAL, LENGTHS) is targets
    copy, lengths = teacher.calls[0]
    assert torch.equal(copy, SIGNAL) and lengths is LENGTHS
    ran = streams.at("teacher", "side", copy.data_ptr(), LENGTHS.data_ptr())
    forked = streams.at("wait", "side", "main")
    assert streams.at("clone", "main", SIGNAL.data_ptr(), copy.data_ptr()) < forked < ran
    for tensor in (copy, LENGTHS):
        streams.at("record", "side", tensor.data_ptr())
    assert streams.current.name == "main" and ("wait", "main", "side") not in streams.events

    side.wait(targets)
    streams.at("wait", "main", "side")
    tensors = [
        tensor
        for given in (targets, *targets.others, *targets.others[1].others)
        for tensor in vars(given).values()
    ]
    handed_over = {tensor.data_ptr() for tensor in tensors if isinstance(tensor, torch.Tensor)}
    assert len(handed_over) == 10
    for address in handed_over:
        streams.at("record", "main", address)


def test_a_student_that_has_left_the_gpu(streams):
    """After a training Lightning moves the student to the CPU; targets there belong to no stream."""
    teacher, side = SomeTeacher(streams, some_targets()), SideStream()
    side.wait(side.run(teacher, SIGNAL, LENGTHS))
    streams.events.clear()
    side.wait(
        TeacherTargets(lengths=torch.ones(2, device="meta"), log_probs=torch.ones(2, 3, 4, device="meta"))
    )
    assert not [event for event in streams.events if event[0] == "record"]


def test_what_a_failing_teacher_leaves(streams):
    """An error on the side stream leaves the main stream current, and memory that side kernels may read is
    kept.
    """

    class Failing(SomeTeacher):
        def __call__(self, signal, lengths):
            super().__call__(signal, lengths)
            raise RuntimeError("out of memory")

    teacher = Failing(streams, some_targets())
    with pytest.raises(RuntimeError, match="out of memory"):
        SideStream().run(teacher, SIGNAL, LENGTHS)
    streams.at("record", "side", teacher.calls[0][0].data_ptr())
    assert streams.current.name == "main"


def test_on_a_cpu_the_teacher_is_simply_called(monkeypatch):
    def never(*_: object) -> None:
        raise AssertionError("a CPU has no streams")

    for name in ("Stream", "current_stream", "stream"):
        monkeypatch.setattr(torch.cuda, name, never)
    monkeypatch.setattr(torch.Tensor, "record_stream", never)
    teacher, side = SomeTeacher(None, some_targets()), SideStream()
    targets = side.run(teacher, SIGNAL, LENGTHS)
    side.wait(targets)
    assert targets is teacher.targets and teacher.calls[0][0] is SIGNAL and teacher.calls[0][1] is LENGTHS


def test_a_live_teacher_moves_before_the_fork_and_decodes_on_the_current_stream(streams, teacher_file):
    teacher = LiveTeacher(restore_ctc(teacher_file), side_stream=SideStream())
    moved, run = teacher.move_to, []
    teacher.move_to = lambda device: (streams.note("move"), moved(device))
    teacher.model.encoder.register_forward_hook(lambda *_: run.append(streams.current.name))
    batch = TrainingBatch(torch.zeros(1, 16000), torch.tensor([16000]))
    teacher.targets(batch, TargetRequest(hidden=True))
    assert streams.at("move", "main") < streams.at("wait", "side", "main")
    teacher.targets(batch, TargetRequest(hidden=True, hypotheses=True))
    assert run == ["side", "main"]


# --- In training

STAGES = [
    {"name": "both", "weights": {"rkd": 1.0, "skd": 1.0}}
]  # without CTC, whose gradient on a GPU differs from run to run


def ready(student, device="cpu"):
    """A student as in the middle of `fit`, outside of which there is nowhere to log to."""
    student.to(device)
    student.setup("fit")
    student.setup_optimization()
    student.log_dict = lambda *_, **__: None
    return student.train()


@pytest.mark.parametrize(
    "stages", [STAGES, [{"name": "ctc", "weights": {"ctc": 1.0, "skd": 1.0}}]], ids=["without ctc", "ctc"]
)
def test_the_losses_wait_for_both_teachers_and_nothing_else_does(
    corpus, teacher_file, make_student, request, monkeypatch, stages
):
    others = [{"model_path": str(teacher_file), "weight": 2.0}]
    config = student_config(corpus, teacher_file, stages, other_teachers=others)
    config.pop("spec_augment")  # it draws from a generator that nobody can seed
    student = ready(make_student(config))
    batch = next(iter(student._train_dl))

    def step():
        torch.manual_seed(1)
        return student.training_step([tensor.clone() for tensor in batch], 0)["loss"]

    alone = step()
    streams: Streams = request.getfixturevalue("streams")
    losses, given = Objective.__call__, []

    def noted(self, stage, outputs, targets):
        streams.note("losses")
        given.append(targets)
        return losses(self, stage, outputs, targets)

    monkeypatch.setattr(Objective, "__call__", noted)
    for name, model in (
        ("student", student),
        ("first", student.distiller.teacher.model),
        ("second", student.distiller.others[0].model),
    ):
        model.encoder.register_forward_hook(lambda *_, name=name: streams.note(name))
    assert torch.equal(step(), alone)
    order = [streams.at(*event) for event in (("first", "side"), ("second", "side"), ("student", "main"))]
    order += [streams.at("wait", "main", "side"), streams.at("losses", "main")]
    assert order == sorted(order), streams.events
    assert (
        streams.events.count(("wait", "side", "main")) == 2
        and streams.events.index(("wait", "side", "main")) < order[0]
    )
    for tensor in given[0].tensors():
        assert streams.at("record", "main", tensor.data_ptr()) < order[-1]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device, so there are no real streams")
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_on_a_gpu_the_losses_are_the_same_to_the_bit(corpus, make_student, tmp_path, monkeypatch, precision):
    """A loud dither and a teacher much slower than its student: whoever reads too early or too late, reads
    something else.
    """
    compare(corpus, make_student, tmp_path, monkeypatch, precision, "cuda", batches=20)


def compare(corpus, make_student, folder, monkeypatch, precision, device, batches):
    config = teacher_config(corpus)
    config["encoder"].update(n_layers=8, d_model=128, n_heads=4)
    path = save_teacher(config, folder / "teacher.nemo")
    config = student_config(corpus, path, STAGES)
    config["tutor"]["teacher"]["precision"] = precision
    config["preprocessor"]["dither"] = 0.5
    config.pop("spec_augment")
    student = ready(make_student(config, accelerator="auto"), device)
    random = torch.Generator().manual_seed(0)
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)

    def losses():
        torch.manual_seed(1)
        random.manual_seed(2)
        found = []
        for i in range(batches):
            # Other sizes, so that memory changes hands.
            signal = torch.randn(8, 40000 + 400 * i, generator=random).to(device)
            lengths = torch.linspace(40000, 30000, 8).long().to(device)
            labels = torch.ones(8, 5, dtype=torch.long, device=device)
            loss = student.training_step((signal, lengths, labels, torch.full((8,), 5, device=device)), i)[
                "loss"
            ]
            loss.backward()  # the weights stay, because not every gradient on a GPU is the same twice
            found.append(loss.detach())
        student.zero_grad()
        return torch.stack(found).cpu()

    beside = losses()
    with monkeypatch.context() as patch:
        patch.setattr(side_stream, "_has_streams", lambda device: False)
        alone = losses()
    assert len(alone.unique()) == batches and torch.equal(beside, alone)
