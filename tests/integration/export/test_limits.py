# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""Small files that would fill the memory, weights that are not numbers, and pickles, through every
entrance.
"""

from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf, open_dict

from nemo_tutornet import TutorCTCModel, export_student, verify_student
from nemo_tutornet.commands.inspect_model import inspect_model
from nemo_tutornet.config import TeacherConfig
from nemo_tutornet.errors import TutorError
from nemo_tutornet.nemo_io.archive import NemoArchive
from nemo_tutornet.nemo_io.restore import restore_ctc
from nemo_tutornet.teachers.live import LiveTeacher
from tests.conftest import refusal
from tests.integration.export.test_source import repack
from tests.integration.students import build


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("students")
    build("quartznet", folder)
    return folder / "run.nemo"


def with_weights(source: Path, destination: Path, weights: bytes) -> Path:
    """The same archive with another file of weights."""
    with tarfile.open(source) as old, tarfile.open(destination, "w") as new:
        for member in old.getmembers():
            stream = old.extractfile(member)
            content = b"" if stream is None else stream.read()
            content = weights if member.name.endswith("model_weights.ckpt") else content
            member.size = len(content)
            new.addfile(member, io.BytesIO(content))
    return destination


def saved(value: Any) -> bytes:
    out = io.BytesIO()
    torch.save(value, out)
    return out.getvalue()


def entrances(path: Path, out: Path) -> list[Callable[[], Any]]:
    """Everything that restores a model from a file; a `.ckpt` is only exported."""
    return [
        lambda: export_student(path, out),
        *(
            [
                lambda: restore_ctc(path),
                lambda: inspect_model(path),
                lambda: LiveTeacher.from_config(TeacherConfig(model_path=str(path))),
                lambda: TutorCTCModel.restore_from(str(path)),
            ]
            if path.suffix == ".nemo"
            else []
        ),
    ]


def change(*keys: Any, value: Any) -> Callable[[dict], None]:
    def apply(config: Any) -> None:
        for key in keys[:-1]:
            config = config[key]
        config[keys[-1]] = value

    return apply


# Numbers that NeMo would allocate or loop over, and those that only the weights' size shows to be too large.
NUMBERS = {
    "repeat": change("encoder", "jasper", 1, "repeat", value=1_000_000),
    "a small repeat": change("encoder", "jasper", 1, "repeat", value=9000),
    "filters": change("encoder", "jasper", 1, "filters", value=100_000),
    "kernel": change("encoder", "jasper", 1, "kernel", value=[10**7]),
    "classes": change("decoder", "num_classes", value=900_000),
    "width": change("decoder", "feat_in", value=10**9),
    "bins": change("preprocessor", "features", value=10**6),
    "transform": change("preprocessor", "n_fft", value=2**30),
    "window": change("preprocessor", "window_size", value=1e6),
    "splicing": change("preprocessor", "frame_splicing", value=10**6),
}


@pytest.mark.parametrize("kind", NUMBERS)
def test_a_number_that_would_fill_the_memory_is_refused(student: Path, tmp_path: Path, kind: str) -> None:
    evil = repack(student, tmp_path / "evil.nemo", NUMBERS[kind])
    for entrance in entrances(evil, tmp_path / "out.nemo"):
        message = refusal(entrance)
        words = ("the most that a model", "than its weights", "allocate memory", "num_classes")
        assert str(evil) in message and any(word in message for word in words)
    verification = verify_student(evil)
    assert not verification.passed
    assert sorted(path.name for path in tmp_path.iterdir()) == ["evil.nemo"]


@pytest.mark.parametrize("kind", ["repeat", "a small repeat", "filters", "bins"])
def test_a_checkpoint_with_such_a_number_is_refused(student: Path, tmp_path: Path, kind: str) -> None:
    model = restore_ctc(student)
    config = OmegaConf.to_container(model.cfg, resolve=True)
    NUMBERS[kind](config)  # type: ignore[arg-type]
    evil = tmp_path / "evil.ckpt"
    torch.save(
        {"state_dict": model.state_dict(), "hyper_parameters": {"cfg": OmegaConf.create(config)}}, evil
    )
    assert str(evil) in refusal(export_student, evil, tmp_path / "out.nemo")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["decoder.decoder_layers.0.bias", "encoder.encoder.1.mconv.2.running_var"])
def test_weights_that_are_not_finite_are_refused(
    student: Path, tmp_path: Path, name: str, value: float
) -> None:
    model = restore_ctc(student)
    state = model.state_dict()
    name = name if name in state else next(key for key in state if key.endswith("running_var"))
    state[name][0] = value
    evil = with_weights(student, tmp_path / "evil.nemo", saved(state))
    checkpoint = tmp_path / "evil.ckpt"
    torch.save({"state_dict": state, "hyper_parameters": {"cfg": model.cfg}}, checkpoint)
    for path in (evil, checkpoint):
        for entrance in entrances(path, tmp_path / "out.nemo"):
            message = refusal(entrance)
            assert str(path) in message and "NaN or infinite" in message and name in message
    assert "NaN or infinite" in refusal(export_student, model, tmp_path / "out.nemo")
    assert not verify_student(evil).passed


class Call:
    """Pickles as a call of `function(*arguments)`."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.function, self.arguments = function, arguments

    def __reduce__(self) -> Any:
        return self.function, self.arguments


def test_no_pickle_in_an_archive_runs(student: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor where the environment tells torch to unpickle everything, as old recipes do."""
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    proof = tmp_path / "ran"
    evil = with_weights(student, tmp_path / "evil.nemo", saved({"w": Call(os.system, f"touch {proof}")}))
    config = OmegaConf.create({"init_from_nemo_model": str(evil)})
    model = TutorCTCModel.restore_from(str(student))
    with open_dict(config):
        init = lambda: model.maybe_init_from_pretrained_checkpoint(config)  # noqa: E731
    for entrance in (*entrances(evil, tmp_path / "out.nemo"), init):
        with pytest.raises((TutorError, Exception)):
            entrance()
        assert not proof.exists()
    assert not verify_student(evil).passed
    assert not proof.exists()


def test_a_restored_student_is_saved_in_its_own_place(student: Path, tmp_path: Path) -> None:
    path = tmp_path / "again.nemo"
    path.write_bytes(student.read_bytes())
    model = TutorCTCModel.restore_from(str(path), map_location="cpu")
    for _ in range(2):
        model.save_to(str(path))
    assert TutorCTCModel.restore_from(str(path), None, "cpu", True, True).target == NemoArchive(path).target
