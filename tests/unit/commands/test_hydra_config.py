# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""What is written on Hydra's command line by a program of this project is what Hydra reads there."""

from __future__ import annotations

import errno
import shlex
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import example, given, settings
from hypothesis import strategies as st

from nemo_tutornet.cli import _pasted
from nemo_tutornet.commands.hydra_config import compose_config, find_config, hydra_value
from nemo_tutornet.errors import exit_on_user_error
from tests.conftest import refusal

NAMES = st.text(
    st.one_of(st.sampled_from("'\\\\\"=,()[]{}#&~!:$ "), st.characters(exclude_categories=("C", "Z"))),
    min_size=1,
)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(name=NAMES)
@example(name="it's")
@example(name="repo (1)")
@example(name="end\\")
@example(name="a\\\\'b")
def test_any_path_is_a_value(name: str) -> None:
    for value, text in (
        (f"k={hydra_value(Path(name))}", "{}"),
        (f"k=[x,{hydra_value(Path(name))}]", "['x', {}]"),
    ):
        found = OverridesParser.create().parse_override(value).value()
        assert (found if text == "{}" else found[1]) == str(Path(name))


def test_a_relative_config_path_is_the_training_scripts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Hydra starts at the script; a `conf` beside the working directory is somebody else's."""
    (tmp_path / "conf").mkdir()
    (tmp_path / "work" / "mine").mkdir(parents=True)
    for folder in ("conf", "work/mine"):
        (tmp_path / folder / "quartznet_5x5.yaml").write_text("name: foreign\nmodel: {}")
    monkeypatch.chdir(tmp_path / "work")
    assert name_of("../conf") == "QuartzNet5x5"
    assert name_of("mine") == "foreign"  # where the script has no such folder
    assert name_of(str(tmp_path / "conf")) == "foreign"
    assert "neither beside the training script nor here" in refusal(find_config, "nowhere", "quartznet_5x5")


def test_a_copy_of_the_script_brings_its_own_configs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`python examples/speech_to_text_ctc_tutornet.py --config-path=../conf` reads the copy's, so `check` and
    `cache` must.
    """
    (tmp_path / "conf").mkdir()
    (tmp_path / "conf" / "quartznet_5x5.yaml").write_text("name: copy\nmodel: {}")
    (tmp_path / "examples").mkdir()
    monkeypatch.chdir(tmp_path)
    assert name_of("../conf") == "QuartzNet5x5"
    (tmp_path / "examples" / "speech_to_text_ctc_tutornet.py").touch()
    assert name_of("../conf") == "copy"
    assert find_config("../conf", "quartznet_5x5") == find_config("../conf", "quartznet_5x5.yaml")
    sentence = refusal(find_config, "../conf", "quartznet")
    assert (
        f"there is no {tmp_path / 'conf' / 'quartznet.yaml'}" in sentence
        and "there: quartznet_5x5." in sentence
    )


def name_of(config_path: str) -> str:
    """The name in the `quartznet_5x5.yaml` that is found."""
    return compose_config(find_config(config_path, "quartznet_5x5"), []).name


def test_an_override_that_hydra_refuses_names_the_file() -> None:
    yaml = find_config("../conf", "quartznet_5x5")
    assert refusal(compose_config, yaml, ["model.nosuch=1"]).startswith(f"{yaml}: ")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"a: [", "while parsing"),
        (b"name: \xff\n", "codec can't decode"),
        (b"name: x\n", "has no section `model`"),
    ],
)
def test_a_file_that_is_no_config_is_named(tmp_path: Path, content: bytes, words: str) -> None:
    yaml = tmp_path / "mine.yaml"
    yaml.write_bytes(content)
    message = refusal(compose_config, find_config(str(tmp_path), "mine"), [])
    assert message.startswith(str(yaml)) and words in message


def test_a_file_without_permission_is_one_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    @exit_on_user_error
    def command(*arguments: object) -> None:
        raise PermissionError(errno.EACCES, *arguments)

    with pytest.raises(SystemExit) as ended:
        command("Permission denied", "m.jsonl")
    assert ended.value.code == 2
    assert (
        capsys.readouterr().err
        == "error: permission denied: m.jsonl; change its mode or give another path.\n"
    )
    with pytest.raises(PermissionError):  # names no file, so it may be no mistake of the user
        command("Permission denied")


@pytest.mark.parametrize("folder", ["targets", "my targets", "/a/it's, v=2", "~/[x]"])
def test_what_cache_says_can_be_pasted(folder: str) -> None:
    [word] = shlex.split(_pasted(Path(folder)))
    found = OverridesParser.create().parse_override(word)
    assert (found.key_or_group, found.value()) == ("model.tutor.teacher.cache", folder)
