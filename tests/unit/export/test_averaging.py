# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""The mean of checkpoints, and which of a run's are chosen."""

from __future__ import annotations

import copy
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nemo_tutornet.export import averaging
from nemo_tutornet.export.averaging import average_checkpoints
from nemo_tutornet.nemo_io.run_checkpoints import choose_checkpoints, ema_copy, parse_average
from tests.conftest import refusal

CONFIG = {"encoder": {"layers": 2, "dropout": 0.1}, "labels": ["a", "b"], "preprocessor": {}, "decoder": {}}


def write(
    folder: Path,
    name: str,
    step: int,
    state: dict[str, Any] | None = None,
    values: dict[str, float] | None = None,
    mode: str = "min",
    **extra: Any,
) -> Path:
    """A checkpoint as Lightning writes it, with the state of NeMo's checkpoint callback."""
    key = f"NeMoModelCheckpoint{{'monitor': 'val_wer', 'mode': '{mode}', 'every_n_train_steps': 0}}"
    best = {f"/elsewhere/{file}": torch.tensor(value) for file, value in (values or {}).items()}
    content = {
        "state_dict": {"w": torch.full((2,), float(step))} if state is None else state,
        "hyper_parameters": {"cfg": copy.deepcopy(CONFIG)},
        "global_step": step,
        "callbacks": {"Other": {}, key: {"monitor": "val_wer", "best_k_models": best}},
        **extra,
    }
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(content, folder / name)
    return folder / name


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Five checkpoints; the best of them is of step 20, and the last one is of step 50, which it has
    twice.
    """
    values = {10: 0.5, 20: 0.1, 30: 0.4, 40: 0.2, 50: 0.3}
    names = {step: f"run--val_wer={value:.4f}-epoch={step // 10}.ckpt" for step, value in values.items()}
    folder = tmp_path / "run" / "checkpoints"
    for step, name in names.items():
        write(folder, name, step, values={names[s]: values[s] for s in values if s <= step})
    write(folder, "run--val_wer=0.3000-epoch=5-last.ckpt", 50)
    write(folder, "run--val_wer=0.3000-epoch=5-last-EMA.ckpt", 50)
    write(folder, "run--val_wer=0.0500-epoch=6.ckpt", 60)
    (folder / "run--val_wer=0.0500-epoch=6-unfinished").touch()
    return tmp_path / "run"


def steps(source: Path, which: str) -> list[int]:
    return [checkpoint.step for checkpoint in choose_checkpoints(source, which)]


def test_the_last_and_the_best_checkpoints_are_chosen_once_each(run: Path) -> None:
    assert steps(run, "last-1") == [50] and steps(run, "last-3") == [30, 40, 50]
    assert steps(run, "best-1") == [20] and steps(run, "best-3") == [20, 40, 50]
    assert steps(run / "checkpoints", "last-5") == steps(run, "best-5") == [10, 20, 30, 40, 50]
    file = next((run / "checkpoints").glob("*epoch=1.ckpt"))
    assert steps(file, "last-2") == [40, 50]


def test_the_folder_of_the_newest_version_is_read(tmp_path: Path) -> None:
    write(tmp_path / "run" / "2026-11-30_01-00-00" / "checkpoints", "run--val_wer=0.1000-epoch=1.ckpt", 3)
    assert steps(tmp_path / "run", "last-1") == [3]


def test_a_value_that_must_grow_is_best_where_it_is_highest(tmp_path: Path) -> None:
    values = {"a.ckpt": 0.1, "b.ckpt": 0.9}
    for step, name in enumerate(values):
        write(tmp_path, name, step, values=values, mode="max")
    assert steps(tmp_path, "best-1") == [1]


def test_the_value_in_the_name_counts_where_the_state_has_none(tmp_path: Path) -> None:
    for step, value in ((1, 0.3), (2, 0.1), (3, 0.2)):
        write(tmp_path, f"run--val_wer={value:.4f}-epoch={step}.ckpt", step, callbacks={})
    assert steps(tmp_path, "best-2") == [2, 3]


@pytest.mark.parametrize(
    "which", ["", "best", "best-0", "last--1", "mean-3", "last-5.5", "best-1001", "last-٣"]
)
def test_another_choice_is_refused(which: str) -> None:
    assert "last-5 or best-5" in refusal(parse_average, which)


def test_too_few_checkpoints_are_refused_with_the_setting(run: Path, tmp_path: Path) -> None:
    assert "save_top_k=-1" in refusal(choose_checkpoints, run, "last-6")
    assert "has 5 checkpoints" in refusal(choose_checkpoints, run, "best-7")
    (tmp_path / "empty").mkdir()
    assert "no .ckpt" in refusal(choose_checkpoints, tmp_path / "empty", "best-1")
    assert "there is no" in refusal(choose_checkpoints, tmp_path / "nowhere", "best-1")


def test_the_copy_of_nemos_ema_is_found(run: Path) -> None:
    last = next((run / "checkpoints").glob("*-last.ckpt"))
    copied = ema_copy(last)
    assert copied is not None and copied.name.endswith("-last-EMA.ckpt") and ema_copy(copied) is None


# --- The mean


@settings(deadline=None, max_examples=20)
@given(
    values=st.lists(st.lists(st.floats(-1e6, 1e6, width=32), min_size=3, max_size=3), min_size=1, max_size=6)
)
def test_the_mean_is_that_of_float64(
    values: list[list[float]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("mean")
    states = [torch.tensor(value) for value in values]
    paths = [write(folder, f"{i}.ckpt", i, {"w": state}) for i, state in enumerate(states)]
    mean = average_checkpoints(paths)["state_dict"]["w"]
    assert torch.equal(mean, torch.stack(states).double().mean(0).float())


def test_buffers_types_and_tied_weights(tmp_path: Path) -> None:
    paths = []
    for i in (1, 3):
        tied = torch.full((2,), float(i))
        state = {
            "a": tied,
            "b": tied,
            "half": torch.tensor([float(i)], dtype=torch.float16),
            "bf16": torch.tensor([float(i)], dtype=torch.bfloat16),
            "norm.num_batches_tracked": torch.tensor(10 * i),
            "mask": torch.tensor([True, i == 1]),
            "window": torch.hann_window(7),
            "empty": torch.zeros(0),
        }
        paths.append(write(tmp_path, f"{i}.ckpt", i, state))
    mean = average_checkpoints(paths)["state_dict"]
    assert mean["a"].tolist() == mean["b"].tolist() == [2.0, 2.0]
    assert mean["half"].dtype == torch.float16 and mean["bf16"].dtype == torch.bfloat16
    assert mean["half"].item() == mean["bf16"].item() == 2.0
    assert mean["norm.num_batches_tracked"].item() == 30 and mean["mask"].tolist() == [True, False]
    assert torch.equal(mean["window"], torch.hann_window(7)) and mean["empty"].numel() == 0


def test_parts_give_the_same_mean(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    states = [{f"w{k}": torch.randn(k + 1, 5) for k in range(9)} for _ in range(4)]
    paths = [write(tmp_path, f"{i}.ckpt", i, state) for i, state in enumerate(states)]
    whole = average_checkpoints(paths)["state_dict"]
    monkeypatch.setattr(averaging, "_SUM_BYTES", 8 * 40)
    parts = average_checkpoints(paths)["state_dict"]
    assert list(parts) == list(whole) and all(torch.equal(parts[name], whole[name]) for name in whole)


def test_the_training_only_modules_and_the_optimizer_are_not_in_the_mean(tmp_path: Path) -> None:
    extra = {"tutor": {"projection": {"weight": torch.ones(2)}}, "optimizer_states": [{"m": torch.ones(2)}]}
    paths = [write(tmp_path, f"{i}.ckpt", i, **extra) for i in (1, 2)]
    mean = average_checkpoints(paths)
    assert list(mean["state_dict"]) == ["w"] and "optimizer_states" not in mean
    assert mean["tutor"] == {"decoder_is_random": False}


def test_memory_does_not_grow_with_the_number_of_checkpoints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The sums in float64 stay below their limit, and each checkpoint is mapped and let go."""
    states = [{f"w{k}": torch.full((1000,), float(i)) for k in range(50)} for i in range(10)]
    paths = [write(tmp_path, f"{i}.ckpt", i, state) for i, state in enumerate(states)]
    limit = 8 * 5000
    monkeypatch.setattr(averaging, "_SUM_BYTES", limit)
    held, most, real = [0], [0], averaging._add

    def add(sums: dict[str, torch.Tensor], *arguments: Any) -> None:
        real(sums, *arguments)
        held[0] = sum(value.numel() * value.element_size() for value in sums.values())
        most[0] = max(most[0], held[0])

    monkeypatch.setattr(averaging, "_add", add)
    monkeypatch.setattr(
        averaging, "load_lightning_checkpoint", counted := Counted(averaging.load_lightning_checkpoint)
    )
    tracemalloc.start()
    average_checkpoints(paths)
    tracemalloc.stop()
    assert 0 < most[0] <= limit
    assert counted.mapped and counted.most_at_once <= 2


class Counted:
    """Counts the checkpoints that are in memory together."""

    def __init__(self, load: Any) -> None:
        import weakref

        self.load, self.ref = load, weakref.ref
        self.alive: list[Any] = []
        self.most_at_once, self.mapped = 0, True

    def __call__(self, path: Path, mmap: bool = False) -> Any:
        checkpoint = self.load(path, mmap)
        self.mapped &= mmap
        self.alive = [ref for ref in self.alive if ref() is not None]
        self.alive.append(self.ref(next(iter(checkpoint["state_dict"].values()))))
        self.most_at_once = max(self.most_at_once, len(self.alive))
        return checkpoint


def test_checkpoints_without_a_common_mean_are_refused(tmp_path: Path) -> None:
    one = write(tmp_path, "run--1.ckpt", 1)
    shape = write(tmp_path, "run--2.ckpt", 2, {"w": torch.ones(3)})
    key = write(tmp_path, "run--3.ckpt", 3, {"v": torch.ones(2)})
    kind = write(tmp_path, "run--4.ckpt", 4, {"w": torch.ones(2).half()})
    nan = write(tmp_path, "run--5.ckpt", 5, {"w": torch.tensor([1.0, float("nan")])})
    teacher = write(tmp_path, "run--6.ckpt", 6, tutor={"decoder_is_random": False})
    random = write(tmp_path, "run--7.ckpt", 7, tutor={"decoder_is_random": True})
    named = write(tmp_path, "other--8.ckpt", 8)
    other = copy.deepcopy(CONFIG) | {"labels": ["b", "a"]}
    labels = write(tmp_path, "run--9.ckpt", 9, hyper_parameters={"cfg": other})
    resumed = copy.deepcopy(CONFIG) | {"encoder": {"layers": 2, "dropout": 0.2}}
    dropout = write(tmp_path, "run--10.ckpt", 10, hyper_parameters={"cfg": resumed})

    def refused(*paths: Path) -> str:
        return refusal(average_checkpoints, paths)

    for foreign in (shape, key, kind):
        assert "different students" in refused(foreign, one)
    assert "NaN or infinite (w)" in refused(one, nan)
    for foreign in (teacher, named, labels):
        assert "different runs" in refused(foreign, one)
    assert "decoder" in refused(random, teacher)
    assert average_checkpoints([one, dropout])["state_dict"]["w"].tolist() == [5.5, 5.5]


def test_a_file_that_would_run_code_is_not_read(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> Any:
            return (print, ("pwned",))

    torch.save({"state_dict": {}, "hyper_parameters": {}, "global_step": 1, "x": Evil()}, tmp_path / "a.ckpt")
    assert "not opened" in refusal(choose_checkpoints, tmp_path, "last-1")
