# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""What the results' runner trains: one training or two, adapters, views and averages."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests.unit.benchmarks.results import runner_of, tools

__all__ = ["tools"]  # a fixture


@pytest.fixture
def asked(tools: dict[str, ModuleType], monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """The trainings that a runner would have run."""
    found: list[dict[str, Any]] = []

    def script(self: Any, training: Any) -> Path:
        found.append({**vars(training), "train": list(training.train)})
        return training.folder / f"{training.name}.nemo"

    monkeypatch.setattr(tools["runner"].Runner, "script", script)
    monkeypatch.setattr(tools["runner"].Runner, "evaluate", lambda self, model, manifest: {"wer": 0.5})
    return found


@pytest.mark.parametrize("recipe", ["ctc", "rkd_kept_ctc"])
def test_further_speech_is_used_in_a_training_before(
    tools: dict[str, ModuleType], tmp_path: Path, asked: list[dict[str, Any]], recipe: str
) -> None:
    """As many steps in all as without it; with a teacher no transcript is read before."""
    # Three batches.
    (tmp_path / "c_train.jsonl").write_text('{"audio_filepath": "a.wav", "duration": 1, "text": "a"}\n' * 17)
    (tmp_path / "c_valid.jsonl").touch()
    further = [tmp_path / "d.jsonl", tmp_path / "e.jsonl"]
    for manifest in further:
        manifest.touch()
    runner = runner_of(tools, tmp_path, further=further)
    run = tools["runs"].Run(recipe, "quartznet_small", "t", 20, 7, further=("d", "e"), further_share=0.25)
    source = None if recipe == "ctc" else tools["sources"].Source(str(tmp_path / "c_valid.jsonl"))
    runner.student(run, source)
    before, after = asked
    corpus = tmp_path / "c_train.jsonl"
    assert (before["train"], after["train"]) == ([corpus, *further], [corpus]) and before["seed"] == after[
        "seed"
    ] == 7
    assert (before["epochs"], after["epochs"]) == (-1, 15) and "trainer.max_steps=15" in before["overrides"]
    assert (
        f"+init_from_nemo_model='{runner.output / run.folder / f'{recipe}_before.nemo'}'"
        in after["overrides"]
    )
    stages = [[one for one in training["overrides"] if "stages" in one][-1:] for training in asked]
    if recipe == "ctc":
        assert stages == [[], []] and all("model.tutor=null" in training["overrides"] for training in asked)
    else:
        assert (
            stages[0] == ["model.tutor.stages=[{name:rkd,weights:{rkd:1.0}}]"] and "ctc:1.0" in stages[1][0]
        )
    (found,) = tools["runs"].read_lines(runner.output)
    assert tools["runs"].run_of(found) == run and found["model"].endswith(f"{recipe}.nemo")


@pytest.mark.parametrize(
    "recipe, only_second", [("rkd_restart_ctc", set()), ("rkd_restart_low_ctc", {"model.optim.lr=1e-3"})]
)
def test_a_restart_is_two_trainings(
    tools: dict[str, ModuleType],
    tmp_path: Path,
    asked: list[dict[str, Any]],
    recipe: str,
    only_second: set[str],
) -> None:
    (tmp_path / "c_train.jsonl").touch()
    (tmp_path / "c_valid.jsonl").touch()
    (tmp_path / "t.nemo").touch()
    runner = runner_of(tools, tmp_path)
    run = tools["runs"].Run(recipe, "quartznet_1m", "t", 30, 7, changes=("model.optim.weight_decay=1",))
    runner.student(run, tools["sources"].Source(str(tmp_path / "t.nemo")))
    first, second = asked
    assert (first["epochs"], second["epochs"], first["seed"], second["seed"]) == (8, 22, 7, 7)
    assert (
        f"model.tutor.teacher.model_path='{tmp_path / 't.nemo'}'" in first["overrides"]
        and "model.tutor=null" in second["overrides"]
    )
    begun = runner.output / run.folder / f"{recipe}_first.nemo"
    assert f"+init_from_nemo_model='{begun}'" in second["overrides"]
    sizes = set(tools["students"].STUDENTS["quartznet_1m"][1]) | {"model.optim.weight_decay=1"}
    assert sizes <= set(first["overrides"]) and sizes | only_second <= set(second["overrides"])
    assert not only_second & set(first["overrides"])
    (found,) = tools["runs"].read_lines(runner.output)
    assert tools["runs"].run_of(found) == run and found["model"].endswith(f"{recipe}.nemo")


def test_an_adapter_is_made_once_and_named_in_the_line(
    tools: dict[str, ModuleType], tmp_path: Path, asked: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("c_train.jsonl", "c_valid.jsonl", "t.nemo"):
        (tmp_path / name).touch()
    made: list[tuple[Any, ...]] = []

    def make(
        command: str,
        output: Path,
        student: Any,
        teacher: str,
        train: list[Path],
        valid: Path,
        overrides: list[str],
        failure: str,
    ) -> None:
        made.append((command, output.name, student.config, overrides, train))
        output.touch()

    monkeypatch.setattr(tools["sources"], "make", make)
    monkeypatch.setattr(tools["runner"], "rates_of", lambda adapter: {"wer": 0.2, "file": adapter.name})
    runner = runner_of(tools, tmp_path, tmp_path / "t.nemo")
    corpus, prepare = runner.corpus, runner.sources.prepare
    run = tools["runs"].Run("bpe_to_char_adapted_kept", "quartznet_1m", "t", 30, 7, cached=True)
    wanted = tools["sources"].need_of(run, "t")
    assert wanted == ("t", "bpe", "quartznet_small")
    for _ in range(2):
        source = prepare([wanted], True, corpus.train)[wanted]
    adapter = "adapter_t_quartznet_small.safetensors"
    named = f"model.tutor.teacher.adapter='{tmp_path / 'out' / 'c' / adapter}'"
    epochs = ["--epochs", "40"]
    assert made == [("adapt", adapter, "quartznet_small", epochs, corpus.train)]
    runner.student(run, source)
    cache = tmp_path / "out" / "c" / adapter.replace(".safetensors", ".work") / "train"
    assert {named, f"model.tutor.teacher.cache='{cache}'"} <= set(asked[-1]["overrides"])
    (found,) = tools["runs"].read_lines(runner.output)
    assert found["adapter"] == {"wer": 0.2, "file": adapter} and tools["runs"].run_of(found) == run
    # Students that are trained on a part of the corpus have an adapter of that part.
    part = corpus.train_sets(0.25, True, 0.75)
    other = prepare([wanted], True, part)[wanted].adapter
    assert other is not None and other.name == "adapter_t_quartznet_small_25_75_untranscribed.safetensors"
    assert made[1:] == [("adapt", other.name, "quartznet_small", epochs, part)]
    # What `adapt` kept is at one speed. With a perturbation the teacher is run at every speed, adapter and
    # all.
    speeds = prepare([wanted], True, corpus.train, perturbed=True)[wanted]
    name, folder, config, overrides, _ = made[-1]
    assert (name, folder, config) == (
        "cache",
        "cache_bpe_adapter_t_quartznet_small_speeds",
        "quartznet_small",
    )
    assert speeds.cache is not None and speeds.cache.name == folder
    speed = tools["sources"].STUDENT_AUGMENTATION
    assert {named, speed} <= set(overrides)
    run = tools["runs"].Run(
        "bpe_to_char_adapted_kept", "quartznet_1m", "t", 30, 7, cached=True, perturbed=True
    )
    runner.student(run, speeds)
    used = {named, f"model.tutor.teacher.cache='{speeds.cache}'", speed}
    assert used <= set(asked[-1]["overrides"])
    without = tools["sources"].Need("t", "bpe", "")
    plain = prepare([without], True, corpus.train, perturbed=True)[without]
    assert plain.cache is not None and plain.cache.name == "cache_bpe_t_speeds"
    # A student whose overrides change its frames has an adapter of its own, for its own subwords.
    run = tools["runs"].Run("adapted_skd_kl_1", "conformer_bpe_1m", "t", 30, 7, cached=True, perturbed=True)
    wanted = tools["sources"].need_of(run, "t")
    assert wanted == ("t", "char", "conformer_bpe_1m")
    monkeypatch.setattr(runner.sources, "tokenizer", lambda: ["model.tokenizer=own"])
    prepare([wanted], True, corpus.train, perturbed=True)
    for name, folder, config, overrides, _ in made[-2:]:
        assert "conformer_bpe_1m" in folder and config == "fastconformer_ctc_tiny_bpe", name
        assert "model.tokenizer=own" in overrides


@pytest.mark.parametrize("recipe, teacher", [("ctc", False), ("rkd_time_kept_ctc", True)])
def test_views_and_averages_on_both_sides(
    tools: dict[str, ModuleType],
    tmp_path: Path,
    asked: list[dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
    recipe: str,
    teacher: bool,
) -> None:
    for name in ("c_train.jsonl", "c_valid.jsonl"):
        (tmp_path / name).touch()
    averages: list[tuple[str, Path]] = []

    def averaged(self: Any, model: Path, which: str, train: list[Path]) -> Path:
        averages.append((which, *train))
        return model.with_name("mean.nemo")

    monkeypatch.setattr(tools["runner"].Runner, "averaged", averaged)
    runner = runner_of(tools, tmp_path)
    run = tools["runs"].Run(recipe, "quartznet_small", "t", 20, 7, average="best-5", views=True)
    runner.student(run, tools["sources"].Source(str(tmp_path / "c_valid.jsonl")) if teacher else None)
    (training,) = asked
    overrides = training["overrides"]
    assert "model.tutor.consistency.weight=0.2" in overrides
    assert ("model.tutor.teacher=null" in overrides) != teacher and "model.tutor=null" not in overrides
    assert ("model.tutor.rkd.reduction=time_sum" in overrides) == teacher
    assert overrides[-1] == "exp_manager.checkpoint_callback_params.save_top_k=5"
    assert averages == [("best-5", tmp_path / "c_train.jsonl")]
    (found,) = tools["runs"].read_lines(runner.output)
    assert tools["runs"].run_of(found) == run and found["model"].endswith("mean.nemo")
    assert found["valid_of_last"] == {"wer": 0.5}
    plain = tools["runs"].Run(recipe, "quartznet_small", "t", 20, 7)
    assert run.folder != plain.folder and "average-best-5" in str(run.folder)
    assert tools["runner"].kept_for("last-3") == -1
