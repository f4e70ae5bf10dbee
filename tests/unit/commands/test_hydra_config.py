# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""What is written on Hydra's command line by a program of this project is what Hydra reads there."""

from __future__ import annotations

import errno
import shlex
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import example, given
from hypothesis import strategies as st
from typer.testing import CliRunner

from nemo_tutornet import __version__
from nemo_tutornet.cli import app
from nemo_tutornet.cli.app import pasted
from nemo_tutornet.commands.hydra_config import (
    check_command_line,
    check_quotes,
    compose_config,
    find_config,
    hydra_value,
)
from nemo_tutornet.config import (
    InitConfig,
    LayerPairConfig,
    SKDConfig,
    StageConfig,
    TeacherConfig,
    TutorConfig,
    parse_tutor,
)
from nemo_tutornet.errors import TutorError, exit_on_user_error
from nemo_tutornet.utils.files import check_output_file
from tests.conftest import refusal
from tests.properties import examples

NAMES = st.text(
    st.one_of(st.sampled_from("'\\\\\"=,()[]{}#&~!:$ "), st.characters(exclude_categories=("C", "Z"))),
    min_size=1,
)


@examples(200)
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
    assert name_of(str(tmp_path / "conf")) == "foreign"
    # The script would not find this one, so `check` does not either.
    message = refusal(find_config, "mine", "quartznet_5x5")
    assert "training script's folder" in message
    assert message.endswith(f"give --config-path={tmp_path / 'work' / 'mine'}.")
    assert name_of(message.removesuffix(".").rpartition("--config-path=")[2]) == "foreign"
    assert "is no folder: " in refusal(find_config, "nowhere", "quartznet_5x5")


def test_a_command_line_that_hydra_fails_on_is_one_sentence(tmp_path: Path) -> None:
    """Hydra would end with a traceback of a thousand lines."""
    script = tmp_path / "examples" / "train.py"
    (tmp_path / "conf").mkdir()
    (tmp_path / "conf" / "quartznet_5x5.yaml").write_text("name: ok\nmodel: {a: 1}")
    (tmp_path / "conf" / "deep.yaml").write_text("model: " + "{a: " * 400 + "1" + "}" * 400)
    (tmp_path / "conf" / "digits.yaml").write_text(f"model: {{a: {'9' * 5000}}}")
    check_command_line(["model.a=2"], script)
    check_command_line(["model.nosuch=2", "--config-name=none"], script)  # Hydra has a message of its own
    for arguments, words in (
        (["--config-name=deep"], "deep.yaml: sections are nested too deep"),
        (["--config-name", "digits.yaml"], "digits.yaml: a number"),
        (["model.a=" + "{a:" * 400 + "1" + "}" * 400], "nested too deep"),
        (["model.a=" + "9" * 5000], "thousands of digits"),
        (["+" + "a" * 5000 + "=1"], "a key that is no key"),
        (["model.tutor.skd.shift=4"], "is now called"),
    ):
        message = refusal(check_command_line, arguments, script)
        assert words in message and len(message) < 450


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


OLD_BLOCK = """
    teacher: {model_path: '???', sha256: null, precision: auto, cache: null, weight: 1.0}
    other_teachers: []
    rkd: {hint_layer: null, guided_layer: null, frame_weighting: auto, warm_start_decoder: true}
    skd: {divergence: l2, temperature: 1.0, frames: all, frames_around: 4, match_window: 0,
      intermediate_layers: [], intermediate_weight: 1.0}
    pseudo_labels: {min_confidence: 0.0, max_wer: null}
    pool_frames: false
    stages:
      - {name: rkd, share: 0.25, weights: {rkd: 1.0}}
      - {name: ctc, weights: {ctc: 1.0, rkd: 5.0}}
"""
DEFAULTS = "defaults: [tutor_defaults@model.tutor, _self_]\n"


def tutor_of(folder: Path, yaml: str, *overrides: str) -> TutorConfig | None:
    """The section of a user's own YAML, as the training script would read it."""
    (folder / "mine.yaml").write_text(yaml)
    return parse_tutor(compose_config(folder / "mine.yaml", overrides).model)


@pytest.mark.parametrize("head", ["", DEFAULTS])
@pytest.mark.parametrize("override", ["teacher.model_path=t.nemo", "teacher.cache=targets"])
def test_a_yaml_with_every_key_of_the_section_goes_on_working(
    tmp_path: Path, head: str, override: str
) -> None:
    """Those of earlier versions have them all, and `???` for the teacher's file."""
    key, value = override.removeprefix("teacher.").split("=")
    found = tutor_of(tmp_path, f"{head}model:\n  tutor:{OLD_BLOCK}", f"model.tutor.{override}")
    stages = [StageConfig("rkd", {"rkd": 1.0}, share=0.25), StageConfig("ctc", {"ctc": 1.0, "rkd": 5.0})]
    assert found == TutorConfig(teacher=TeacherConfig(**{key: value}), stages=stages)
    (warning,) = found.reduction_warning()  # the weights were for the mean over frames
    assert "model.tutor.rkd.reduction=frame_mean" in warning
    with pytest.raises(TutorError, match=r"^model\.tutor\.teacher\.model_path is not set; "):
        tutor_of(tmp_path, f"{head}model:\n  tutor:{OLD_BLOCK}")


def test_a_section_without_defaults_is_filled_in(tmp_path: Path) -> None:
    yaml = "model: {tutor: {teacher: {model_path: t.nemo}}}"
    assert tutor_of(tmp_path, yaml) == TutorConfig(teacher=TeacherConfig("t.nemo"))
    stages = "stages=[{name:a,weights:{skd:1.0}}]"
    found = tutor_of(tmp_path, yaml, "+model.tutor.skd.divergence=kl", f"+model.tutor.{stages}")
    assert found is not None and found.skd == SKDConfig("kl")
    with pytest.raises(TutorError, match=r"use \+model\.tutor\.skd\.divergence=kl"):
        tutor_of(tmp_path, yaml, "model.tutor.skd.divergence=kl")


@pytest.mark.parametrize("yaml", ["", ", init: teacher", ", init: null"])
def test_the_short_form_of_a_section_replaces_its_defaults(tmp_path: Path, yaml: str) -> None:
    section = f"{DEFAULTS}model: {{tutor: {{teacher: {{model_path: t.nemo}}{yaml}}}}}"
    found = tutor_of(tmp_path, section)
    assert found is not None and found.init == InitConfig("teacher" if yaml.endswith("teacher") else None)
    found = tutor_of(tmp_path, section, "model.tutor.init=teacher")
    assert found is not None and found.init == InitConfig("teacher")
    if not yaml:
        found = tutor_of(
            tmp_path, section, "model.tutor.init.source=teacher", "model.tutor.init.layers=[0,2]"
        )
        assert found is not None and found.init == InitConfig("teacher", [0, 2])
        found = tutor_of(tmp_path, section, "model.tutor.rkd.pairs=[{hint_layer:a,guided_layer:b}]")
        assert found is not None and found.rkd.pairs == [LayerPairConfig("a", "b")]


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("init=techer", "model.tutor.init.source is 'techer'; "),
        ("skd.temperature=warm", "model.tutor.skd.temperature: Value 'warm'"),
        ("skd.divergence=guided", "model.tutor.skd.divergence: guided is now called guided_ctc; "),
        ("rkd=null", "model.tutor.rkd must be a section of keys, not None; "),
        ("teacher=t.nemo", "model.tutor.teacher must be a section of keys"),
        ("stages=rkd", "model.tutor.stages must be a list of stages, not 'rkd'."),
        ("pool_frames=[]", "model.tutor.pool_frames: "),
        ("+skd.nosuch=1", "model.tutor.skd.nosuch is not a key of this section; "),
        ("skd.shift=4", "model.tutor.skd.shift is now called model.tutor.skd.match_window; rename the key."),
    ],
)
def test_a_wrong_value_is_refused_by_our_checks(tmp_path: Path, override: str, words: str) -> None:
    """And not by Hydra, which knows the keys of the section and no types."""
    plus = "+" if override.startswith("+") else ""
    yaml = f"{DEFAULTS}model: {{tutor: {{teacher: {{model_path: t.nemo}}}}}}"
    message = refusal(tutor_of, tmp_path, yaml, f"{plus}model.tutor.{override.removeprefix('+')}")
    assert message.startswith(words)


@pytest.mark.parametrize("command", [["check"], ["cache", "--output", "targets"]])
@pytest.mark.parametrize("plus", ["", "+"])
def test_a_command_names_the_new_key(command: list[str], plus: str) -> None:
    result = CliRunner().invoke(app, [*command, f"{plus}model.tutor.skd.shift=4"])
    assert result.exit_code == 2
    assert result.stderr.splitlines()[-1] == (
        "error: model.tutor.skd.shift is now called model.tutor.skd.match_window; rename the key."
    )


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


@pytest.mark.parametrize(
    "folder", ["targets", "my targets", "/a/it's, v=2", "~/[x]", "~/a", "données/t", "null", "123", "1e5/b"]
)
def test_what_cache_says_can_bepasted(folder: str) -> None:
    [word] = shlex.split(pasted("model.tutor.teacher.cache", Path(folder)))
    found = OverridesParser.create().parse_override(word)
    assert (found.key_or_group, found.value()) == ("model.tutor.teacher.cache", folder)


@pytest.mark.parametrize("name", ["a=b.jsonl", "a[1].jsonl", "a(1).jsonl", "it's.jsonl", "données.jsonl"])
@pytest.mark.parametrize("key", ["model.train_ds.manifest_filepath", "+model.train_ds.x"])
def test_a_value_that_hydra_cannot_parse_is_shown_with_its_quotes(name: str, key: str) -> None:
    sentence = refusal(check_quotes, [f"{key}={name}"])
    [word] = shlex.split(sentence.partition("for the shell: ")[2].removesuffix("."))
    check_quotes([word])
    found = OverridesParser.create().parse_override(word)
    assert (found.key_or_group, found.value()) == (key.lstrip("+"), name)


def test_other_mistakes_of_an_override_are_left_to_hydra() -> None:
    check_quotes(["a.b=1", "~a", "+a={b:[1,2]}", "a=[1", "a={b", "=x", f"a={'9' * 5000}", "no override"])


@pytest.mark.parametrize(
    ("word", "remedy"),
    [
        ("--decod", "there is no option --decod; the nearest one is --decode."),
        ("--nothing=3", "there is no option --nothing; --help lists the options."),
        ("--model.dropout=0.1", "an override has no dashes: model.dropout=0.1."),
    ],
)
def test_an_option_that_is_none_is_named(word: str, remedy: str) -> None:
    result = CliRunner().invoke(app, ["check", word])
    assert result.exit_code == 2 and remedy in result.stderr.splitlines()[-1]


def test_the_version() -> None:
    assert CliRunner().invoke(app, ["--version"]).stdout == f"nemo-tutornet {__version__}\n"


@pytest.mark.parametrize("seed", ["abc", "-1", "1.5", "[1]", "true"])
def test_a_seed_is_a_whole_number(tmp_path: Path, seed: str) -> None:
    (tmp_path / "mine.yaml").write_text("seed: null\nmodel: {a: 1}\n")
    assert refusal(compose_config, tmp_path / "mine.yaml", [f"seed={seed}"]).startswith("seed is ")
    assert compose_config(tmp_path / "mine.yaml", ["seed=7"]).seed == 7


@pytest.mark.parametrize(
    ("output", "words"),
    [
        ("folder", "must end with .safetensors"),
        (".", "must end with .safetensors"),
        ("folder.safetensors", "is a folder"),
        ("file/a.safetensors", "file is no folder"),
        ("file/b/a.safetensors", "file is no folder"),
    ],
)
def test_adapt_refuses_its_output_before_it_works(tmp_path: Path, output: str, words: str) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "folder.safetensors").mkdir()
    assert words in refusal(check_output_file, tmp_path / output, ".safetensors")
    check_output_file(tmp_path / "new" / "a.safetensors", ".safetensors")
    assert not (tmp_path / "new").exists()
