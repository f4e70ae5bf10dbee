# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""Lightning checkpoints are untrusted input: damaged ones are refused in one sentence, malicious ones run
nothing.
"""

from __future__ import annotations

import collections
import errno
import io
import os
import pickle
import tarfile
import types
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

from nemo_tutornet.nemo_io.archive import NemoArchive
from nemo_tutornet.nemo_io.isolation import preserve_app_state
from nemo_tutornet.nemo_io.lightning_ckpt import (
    check_lightning_checkpoint,
    initial_checkpoints,
    load_lightning_checkpoint,
    resumed_checkpoints,
)
from nemo_tutornet.utils.files import atomic_write
from tests.conftest import refusal

# --- load_lightning_checkpoint


class Calls:
    """Pickles as a call of `function(*arguments)`."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.function, self.arguments = function, arguments

    def __reduce__(self) -> Any:
        return self.function, self.arguments


def content(**changes: Any) -> Any:
    return {
        "state_dict": {"encoder.w": torch.arange(6.0).reshape(2, 3)},
        "hyper_parameters": OmegaConf.create({"cfg": {"labels": ["a", "b"], "lr": 0.1, "path": "${cfg.lr}"}}),
        "epoch": 3,
        "tutor": {"projection": {"weight": torch.ones(2)}, "stage": 1},
        "others": [
            collections.OrderedDict(a=1),
            collections.defaultdict(int),
            (1, 2.5, "x", None, True),
            {1, 2},
            Path("/x"),
        ],
        **changes,
    }


def save(path: Path, value: Any, **options: Any) -> Path:
    torch.save(value, path, **options)
    return path


def test_a_checkpoint_is_read(tmp_path: Path) -> None:
    loaded = load_lightning_checkpoint(save(tmp_path / "a.ckpt", content()))
    assert torch.equal(loaded["state_dict"]["encoder.w"], torch.arange(6.0).reshape(2, 3))
    assert loaded["hyper_parameters"] == content()["hyper_parameters"]
    assert (loaded["epoch"], loaded["tutor"]["stage"], loaded["others"]) == (3, 1, content()["others"])


@pytest.mark.parametrize(
    "function, name",
    [
        (os.system, "system"),
        (eval, "eval"),
        (getattr, "getattr"),
        (OmegaConf.load, "getattr"),
        (os.remove, "remove"),
        (types.SimpleNamespace, "SimpleNamespace"),
    ],
)
@pytest.mark.parametrize("where", ["hyper_parameters", "extra"])
def test_a_malicious_checkpoint_is_refused_and_runs_nothing(
    tmp_path: Path, function: Any, name: str, where: str
) -> None:
    proof = tmp_path / "ran"
    victim = tmp_path / "victim"
    victim.touch()
    arguments = {
        os.system: (f"touch {proof}",),
        eval: (f"open({str(proof)!r}, 'w')",),
        getattr: ("a", "upper"),
        os.remove: (str(victim),),
        OmegaConf.load: (str(victim),),
        types.SimpleNamespace: (),
    }[function]
    path = save(tmp_path / "evil.ckpt", content(**{where: Calls(function, *arguments)}))
    for function in (load_lightning_checkpoint, check_lightning_checkpoint):
        message = refusal(function, path)
        assert name in message and "not opened" in message
    assert not proof.exists() and victim.exists()


def test_the_malicious_checkpoint_of_this_test_does_work(tmp_path: Path) -> None:
    """What `weights_only=False` would have done: without this, the test above could pass for the wrong
    reason.
    """
    proof = tmp_path / "ran"
    path = save(tmp_path / "evil.ckpt", content(hyper_parameters=Calls(os.system, f"touch {proof}")))
    torch.load(path, weights_only=False)
    assert proof.exists()


@pytest.mark.parametrize("format", ["legacy", "bare pickle"])
def test_a_malicious_pickle_of_another_format_runs_nothing(tmp_path: Path, format: str) -> None:
    proof, path = tmp_path / "ran", tmp_path / "evil.ckpt"
    evil = Calls(os.system, f"touch {proof}")
    if format == "legacy":
        save(path, evil, _use_new_zipfile_serialization=False)
    else:
        path.write_bytes(pickle.dumps(evil))
    assert str(path) in refusal(load_lightning_checkpoint, path)
    assert str(path) in refusal(check_lightning_checkpoint, path)
    assert not proof.exists()


def call_of(path: Path, name: str) -> Path:
    """A checkpoint whose pickle imports and calls any name, also one that does not exist here."""
    module, _, attribute = name.rpartition(".")
    save(path.with_suffix(".plain"), {})
    with zipfile.ZipFile(path.with_suffix(".plain")) as plain, zipfile.ZipFile(path, "w") as evil:
        for entry in plain.namelist():
            call = f"c{module}\n{attribute}\n".encode() + pickle.EMPTY_TUPLE + pickle.REDUCE
            evil.writestr(
                entry, pickle.PROTO + b"\2" + call + b"." if entry.endswith("data.pkl") else plain.read(entry)
            )
    return path


@pytest.mark.parametrize(
    "name",
    [
        "omegaconf.omegaconf.register_default_resolvers",  # a function, not a class
        "omegaconf_evil.Nothing",
        "nemo_tutornet.config.TutorConfig",
        "nemo.constants.NEMO_ENV_CACHE_DIR",  # a string
        "subprocess.Popen",
        "nemo.core.connectors.save_restore_connector.SaveRestoreConnector",  # NeMo's classes, and no configs
        "nemo.utils.app_state.AppState",
    ],
)
def test_names_near_the_allowed_ones_are_refused(tmp_path: Path, name: str) -> None:
    message = refusal(load_lightning_checkpoint, call_of(tmp_path / "a.ckpt", name))
    assert f"wants to load {name}, " in message and "not opened" in message


@pytest.mark.parametrize(
    "name", ["omegaconf.nowhere.Nothing", "omegaconf.omegaconf.Nothing", "nemo.nowhere.Nothing"]
)
def test_allowed_packages_may_lack_a_name(tmp_path: Path, name: str) -> None:
    path = call_of(tmp_path / "a.ckpt", name)
    assert str(path) in refusal(load_lightning_checkpoint, path)


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_a_malicious_checkpoint_of_any_protocol_runs_nothing(tmp_path: Path, protocol: int) -> None:
    proof = tmp_path / "ran"
    evil = content(hyper_parameters=Calls(os.system, f"touch {proof}"))
    refusal(load_lightning_checkpoint, save(tmp_path / "evil.ckpt", evil, pickle_protocol=protocol))
    assert not proof.exists()


def test_a_name_that_the_listing_misses_runs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two walls: what torch lists beforehand is refused, and what it does not list is not loaded."""
    monkeypatch.setattr(torch.serialization, "get_unsafe_globals_in_checkpoint", lambda path: [])
    proof = tmp_path / "ran"
    path = save(tmp_path / "evil.ckpt", content(hyper_parameters=Calls(os.system, f"touch {proof}")))
    assert "not a readable checkpoint" in refusal(load_lightning_checkpoint, path)
    assert "not a readable checkpoint" in refusal(check_lightning_checkpoint, path)
    assert not proof.exists()


def test_the_handwritten_checkpoint_of_this_test_does_load(tmp_path: Path) -> None:
    """A name that is allowed gets through, so the refusals above are of the name and not of the writing."""
    message = refusal(load_lightning_checkpoint, call_of(tmp_path / "a.ckpt", "omegaconf.nodes.AnyNode"))
    assert "not a checkpoint of a NeMo model" in message


@pytest.mark.parametrize("fraction", [0.0, 0.01, 0.2, 0.5, 0.9, 0.999])
def test_a_truncated_checkpoint_is_refused(tmp_path: Path, fraction: float) -> None:
    whole = save(tmp_path / "a.ckpt", content()).read_bytes()
    cut = tmp_path / "cut.ckpt"
    cut.write_bytes(whole[: int(fraction * len(whole))])
    message = refusal(load_lightning_checkpoint, cut)
    assert str(cut) in message and "truncated" in message


@pytest.mark.parametrize(
    "value", [{"a": 1}, {"state_dict": {}}, {"hyper_parameters": {}}, [1], torch.ones(2), 3]
)
def test_a_checkpoint_of_something_else_is_refused(tmp_path: Path, value: Any) -> None:
    assert "not a checkpoint of a NeMo model" in refusal(
        load_lightning_checkpoint, save(tmp_path / "a.ckpt", value)
    )


def test_a_missing_checkpoint_is_named(tmp_path: Path) -> None:
    for path in (tmp_path / "no.ckpt", tmp_path):
        assert f"no file {path}" in refusal(load_lightning_checkpoint, path)


def test_a_harmless_checkpoint_may_be_resumed_or_begun_from(tmp_path: Path) -> None:
    check_lightning_checkpoint(save(tmp_path / "a.ckpt", content()))
    check_lightning_checkpoint(save(tmp_path / "weights.ckpt", {"state_dict": {"w": torch.ones(2)}}))
    assert f"no file {tmp_path}" in refusal(check_lightning_checkpoint, tmp_path)


def test_every_checkpoint_that_a_config_begins_from_is_found() -> None:
    parts = {"first": {"path": "a.ckpt", "include": ["encoder"]}, "second": {"path": "b.ckpt"}}
    assert initial_checkpoints(OmegaConf.create({"init_from_ptl_ckpt": parts})) == [
        Path("a.ckpt"),
        Path("b.ckpt"),
    ]
    assert initial_checkpoints(OmegaConf.create({"init_from_ptl_ckpt": "a.ckpt"})) == [Path("a.ckpt")]
    for config in ({}, {"init_from_ptl_ckpt": None}, {"init_from_nemo_model": "a.nemo"}):
        assert initial_checkpoints(OmegaConf.create(config)) == []


@pytest.mark.parametrize("found", [(None, None), ("run-last.ckpt", None), ("a.ckpt", "hpc_ckpt_3.ckpt")])
def test_every_checkpoint_that_a_run_resumes_from_is_found(found: tuple[str | None, str | None]) -> None:
    """Under Slurm, Lightning resumes from `hpc_ckpt_<n>.ckpt` in its folder without being asked."""
    connector = types.SimpleNamespace(_hpc_resume_path=found[1])
    trainer = types.SimpleNamespace(ckpt_path=found[0], _checkpoint_connector=connector)
    assert resumed_checkpoints(trainer) == [Path(path) for path in found if path]


def test_lightning_still_looks_for_slurms_checkpoints_there(tmp_path: Path) -> None:
    import lightning.pytorch as pl

    (tmp_path / "hpc_ckpt_3.ckpt").touch()
    trainer = pl.Trainer(default_root_dir=tmp_path, logger=False, accelerator="cpu")
    assert resumed_checkpoints(trainer) == [tmp_path / "hpc_ckpt_3.ckpt"]


# --- The config


def nemo(path: Path, config: str) -> Path:
    content = config.encode()
    with tarfile.open(path, "w") as archive:
        member = tarfile.TarInfo("./model_config.yaml")
        member.size = len(content)
        archive.addfile(member, io.BytesIO(content))
    return path


def test_aliases_are_read(tmp_path: Path) -> None:
    config = NemoArchive(nemo(tmp_path / "a.nemo", "a: &x [1, 2]\nb: *x\nc: {<<: {d: 1}}\ne: '*'\n")).config
    assert config == {"a": [1, 2], "b": [1, 2], "c": {"d": 1}, "e": "*"}


# Ten of ten of ten ...: 300 bytes, of which OmegaConf would make ten thousand million nodes; and a list that
# holds itself.
LAUGHS = "a0: &a0 x\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 11))


@pytest.mark.parametrize("config", [LAUGHS, "a: &a [*a]\n", "a: &a {b: *a}\n"])
def test_aliases_without_end_are_refused_unopened(tmp_path: Path, config: str) -> None:
    assert "its aliases expand into too many nodes" in refusal(NemoArchive, nemo(tmp_path / "a.nemo", config))


@pytest.mark.parametrize("alias", ["", "*a, "])
def test_a_config_too_deep_is_refused(tmp_path: Path, alias: str) -> None:
    config = "a: &a 1\nb: " + f"[{alias}" * 5000 + "]" * 5000 + "\n"
    assert "model_config.yaml is not readable" in refusal(NemoArchive, nemo(tmp_path / "a.nemo", config))


def test_a_config_too_large_to_be_one_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = nemo(tmp_path / "a.nemo", "a: 1\n")
    assert NemoArchive(path).config == {"a": 1}
    monkeypatch.setattr("nemo_tutornet.nemo_io.archive._CONFIG_BYTES", 4)
    assert "no file of a config's size" in refusal(NemoArchive, path)


def test_a_file_of_another_user_is_not_called_truncated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    path = nemo(tmp_path / "a.nemo", "a: 1\n")
    monkeypatch.setattr("nemo_tutornet.nemo_io.archive.tarfile.open", refuse)
    assert refusal(NemoArchive, path) == f"permission denied: {path}; change its mode or give another path."


# --- The rest


def test_a_link_to_a_folder_is_replaced_like_any_file(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "m.nemo").symlink_to("folder")
    with atomic_write(tmp_path / "m.nemo") as temporary:
        temporary.write_bytes(b"new")
    assert not (tmp_path / "m.nemo").is_symlink() and (tmp_path / "m.nemo").read_bytes() == b"new"


def test_every_part_of_a_restore_in_progress_comes_back() -> None:
    from nemo.utils.app_state import AppState

    state = AppState()
    before = {**state.__dict__, "_all_model_restore_paths": list(state._all_model_restore_paths)}
    with preserve_app_state():
        state.is_model_being_restored, state._nemo_file_folder = True, "other"
        state.model_restore_path = "other.nemo"
    assert dict(state.__dict__) == before
