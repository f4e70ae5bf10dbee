# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""A tiny corpus, a tiny teacher and a tiny student: real files, real checkpoints, seconds of training."""

from __future__ import annotations

import copy
import gc
import json
import logging
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hypothesis
import numpy as np
import pytest

from tests import properties

hypothesis.settings.load_profile("fuzz" if properties.LONG else "short")
# NeMo's telemetry and the hub must not be looked for in tests.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("WANDB_MODE", "disabled")
# `make test` runs tests side by side: one thread each, or they wait for one another. Before torch is
# imported; a test's programs inherit it.
if "PYTEST_XDIST_WORKER" in os.environ:
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ.setdefault(name, "1")

# A shell starts background jobs with Ctrl-C ignored, and tests send it.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# What most tests train on; `auto` takes a GPU where there is one.
ACCELERATOR = os.environ.get("TUTORNET_ACCELERATOR", "cpu")
LABELS = [" ", *"abcdefghi", "'"]  # few: OmegaConf takes longer over them than the tiny models over a step
# What NeMo decodes with where a config says nothing: it would add its whole section, as long as all the rest.
DECODING = {"strategy": "greedy_batch"}
SAMPLE_RATE = 16000


# Files that take minutes, longest first. `make test` gives each worker a file at a time, and a long one at
# the end would leave the other cores idle.
LONG_FILES = (
    "export/test_onnx_export.py",  # trains a student where AN4 is
    "models/test_matrix.py",
    "conf/test_conf.py",
    "documents/test_pages.py",
    "distill/test_resumption.py",
    "documents/test_readme.py",
    "commands/test_inspect_model.py",
    "commands/test_demo.py",
    "documents/test_benchmarks.py",
    "documents/test_notebook.py",
    "documents/test_adapter_page.py",
    "export/test_verify.py",
    "models/test_ddp.py",
    "target_cache/test_cache_killed.py",
)


def pytest_collection_modifyitems(items: list) -> None:
    for item in items:
        item.add_marker(pytest.mark.unit if "unit" in item.path.parts else pytest.mark.integration)
        if getattr(getattr(item, "obj", None), "is_hypothesis_test", False):
            item.add_marker(pytest.mark.fuzz)

    def place(item: pytest.Item) -> int:
        for i, name in enumerate(LONG_FILES):
            if item.path.as_posix().endswith(f"tests/integration/{name}"):
                return i
        return len(LONG_FILES) + ("unit" in item.path.parts)

    items.sort(key=place)  # stable: within a file nothing moves
    gc.freeze()  # what was imported stays; every full collection would look through a million of its objects
    gc.set_threshold(10_000, 10, 10)  # OmegaConf makes many objects that live; a collection finds little


# What NeMo's exp_manager and Lightning's seed_everything leave in the environment, for their own workers: the
# date of a run, and a seed to which a DDP strategy goes back.
LEFT_BEHIND = ("NEMO_EXPM_VERSION", "PL_GLOBAL_SEED", "PL_SEED_WORKERS")


@pytest.fixture(autouse=True)
def nothing_left_in_the_environment() -> Iterator[None]:
    """The next test's runs must not inherit a run's date or seed."""
    for name in LEFT_BEHIND:
        os.environ.pop(name, None)
    yield
    for name in LEFT_BEHIND:
        os.environ.pop(name, None)


@pytest.fixture(autouse=True)
def no_log_of_another_run() -> Iterator[None]:
    """exp_manager adds files of a run's folder to NeMo's and Lightning's loggers, and Hydra the standard
    output to the root. In the next test these are gone.
    """
    yield
    nemo = sys.modules.get("nemo.utils")
    if nemo is not None:
        for name, handler in list(nemo.logging._handlers.items()):
            if isinstance(handler, logging.FileHandler):
                nemo.logging._logger.removeHandler(nemo.logging._handlers.pop(name))
                handler.close()
    lightning = logging.getLogger("lightning.pytorch")
    for handler in list(lightning.handlers):
        if isinstance(handler, logging.FileHandler):
            lightning.removeHandler(handler)
            handler.close()
    for handler in list(logging.root.handlers):
        if type(handler) is logging.StreamHandler:
            logging.root.removeHandler(handler)


@pytest.fixture(autouse=True)
def nothing_is_being_restored() -> Iterator[None]:
    """NeMo keeps a restore in progress in a global, and a model that is built meanwhile has no data."""
    yield
    nemo = sys.modules.get("nemo.utils.app_state")
    if nemo is not None and nemo.AppState().is_model_being_restored:
        nemo.AppState().is_model_being_restored = False
        pytest.fail("this test left NeMo in the middle of a restore")


def refusal(function: Callable[..., Any], *arguments: Any) -> str:
    """The one sentence with which a function refuses its arguments."""
    from nemo_tutornet.errors import TutorError

    with pytest.raises(TutorError) as error:
        function(*arguments)
    message = str(error.value)
    assert "\n" not in message and message.endswith(".")
    return message


def write_manifest(folder: Path, name: str, durations: list[float], sample_rate: int = SAMPLE_RATE) -> Path:
    """Tones whose pitch spells the text: something that can be learnt, with different lengths."""
    import soundfile

    random = np.random.default_rng(len(durations))
    rows = []
    for i, duration in enumerate(durations):
        samples = int(duration * sample_rate)
        word = "ab"[i % 2] * 2 + " " + "cd"[i % 2]
        tone = np.sin(2 * np.pi * (300 + 400 * (i % 2)) * np.arange(samples) / sample_rate)
        audio = 0.3 * tone + 0.02 * random.standard_normal(samples)
        soundfile.write(folder / f"{name}{i}.wav", audio, sample_rate)
        rows.append({"audio_filepath": f"{name}{i}.wav", "duration": samples / sample_rate, "text": word})
    path = folder / f"{name}.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `train.jsonl` (8 utterances) and `valid.jsonl` (2)."""
    folder = tmp_path_factory.mktemp("corpus")
    write_manifest(folder, "train", [0.9, 1.31, 0.77, 1.5, 1.02, 0.68, 1.23, 1.11])
    write_manifest(folder, "valid", [0.93, 1.21])
    return folder


def with_bad_audio(corpus: Path, folder: Path, bad: int, value: float = float("nan")) -> str:
    """A manifest of the training set in which one utterance has a sample that is not finite."""
    import soundfile

    samples, rate = soundfile.read(corpus / f"train{bad}.wav", dtype="float32")
    samples[1000] = value
    soundfile.write(folder / "bad.wav", samples, rate, subtype="FLOAT")
    rows = [json.loads(line) for line in (corpus / "train.jsonl").read_text(encoding="utf-8").splitlines()]
    for row in rows:
        row["audio_filepath"] = str(corpus / row["audio_filepath"])
    rows[bad]["audio_filepath"] = str(folder / "bad.wav")
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(folder / "train.jsonl")


def teacher_config(
    corpus: Path, labels: list[str] = LABELS, sample_rate: int = SAMPLE_RATE
) -> dict[str, Any]:
    """A Conformer with frames of 40 ms and 80 mel bins."""
    return {
        "sample_rate": sample_rate,
        "labels": labels,
        "preprocessor": {
            "_target_": "nemo.collections.asr.modules.AudioToMelSpectrogramPreprocessor",
            "sample_rate": sample_rate,
            "normalize": "per_feature",
            "window_size": 0.025,
            "window_stride": 0.01,
            "features": 80,
            "n_fft": 512,
            "dither": 1e-5,
            "pad_to": 0,
        },
        "encoder": {
            "_target_": "nemo.collections.asr.modules.ConformerEncoder",
            "feat_in": 80,
            "feat_out": -1,
            "n_layers": 2,
            "d_model": 24,
            "subsampling": "striding",
            "subsampling_factor": 4,
            "subsampling_conv_channels": 8,
            "ff_expansion_factor": 2,
            "self_attention_model": "rel_pos",
            "n_heads": 2,
            "conv_kernel_size": 7,
            "dropout": 0.1,
            "dropout_emb": 0.0,
            "dropout_att": 0.1,
        },
        "decoder": {
            "_target_": "nemo.collections.asr.modules.ConvASRDecoder",
            "feat_in": None,
            "num_classes": len(labels),
            "vocabulary": labels,
        },
        "decoding": dict(DECODING),
        "optim": {"name": "adamw", "lr": 1e-3, "weight_decay": 1e-3},
    }


def student_config(
    corpus: Path, teacher: Path | None, stages: list | None = None, **tutor: Any
) -> dict[str, Any]:
    """A QuartzNet with frames of 20 ms and 64 mel bins."""

    def block(filters: int, kernel: int, stride: int, residual: bool) -> dict[str, Any]:
        return {
            "filters": filters,
            "repeat": 1,
            "kernel": [kernel],
            "stride": [stride],
            "dilation": [1],
            "dropout": 0.0,
            "residual": residual,
            "separable": True,
        }

    config = {
        "sample_rate": SAMPLE_RATE,
        "labels": LABELS,
        "train_ds": _data(corpus / "train.jsonl", shuffle=True),
        "validation_ds": _data(corpus / "valid.jsonl", shuffle=False),
        "preprocessor": {
            "_target_": "nemo.collections.asr.modules.AudioToMelSpectrogramPreprocessor",
            "sample_rate": SAMPLE_RATE,
            "normalize": "per_feature",
            "window_size": 0.02,
            "window_stride": 0.01,
            "features": 64,
            "n_fft": 512,
            "dither": 1e-5,
        },
        "spec_augment": {
            "_target_": "nemo.collections.asr.modules.SpectrogramAugmentation",
            "rect_masks": 2,
            "rect_time": 10,
            "rect_freq": 10,
        },
        "encoder": {
            "_target_": "nemo.collections.asr.modules.ConvASREncoder",
            "feat_in": 64,
            "activation": "relu",
            "conv_mask": True,
            "jasper": [block(16, 11, 2, False), block(16, 11, 1, True), block(20, 1, 1, False)],
        },
        "decoder": {
            "_target_": "nemo.collections.asr.modules.ConvASRDecoder",
            "feat_in": 20,
            "num_classes": len(LABELS),
            "vocabulary": LABELS,
        },
        "decoding": dict(DECODING),
        "optim": {"name": "adamw", "lr": 5e-3, "weight_decay": 1e-3},
    }
    if teacher is not None:
        stages = stages or [
            {"name": "rkd", "epochs": 1, "weights": {"rkd": 1.0}},
            {"name": "skd", "weights": {"ctc": 1.0, "skd": 0.25}},
        ]
        config["tutor"] = {"teacher": {"model_path": str(teacher)}, "stages": stages, **tutor}
    return copy.deepcopy(config)


def _data(manifest: Path, shuffle: bool) -> dict[str, Any]:
    return {
        "manifest_filepath": str(manifest),
        "sample_rate": SAMPLE_RATE,
        "labels": LABELS,
        "batch_size": 2,
        "shuffle": shuffle,
        "num_workers": 0,
    }


@pytest.fixture(scope="session")
def teacher_file(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Conformer `.nemo`, with BatchNorm statistics that are not the initial ones."""
    return save_teacher(teacher_config(corpus), tmp_path_factory.mktemp("teacher") / "teacher.nemo")


@pytest.fixture(scope="session")
def english_teacher_file(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with the 28 labels of the configs in `conf`."""
    config = teacher_config(corpus, [" ", *"abcdefghijklmnopqrstuvwxyz", "'"])
    return save_teacher(config, tmp_path_factory.mktemp("teacher") / "teacher.nemo")


def save_teacher(config: dict[str, Any], path: Path) -> Path:
    import torch
    from nemo.collections.asr.models import EncDecCTCModel
    from omegaconf import OmegaConf

    torch.manual_seed(0)
    model = EncDecCTCModel(OmegaConf.create(config))
    rate = config["sample_rate"]
    with torch.no_grad():
        model.train()(
            input_signal=torch.randn(4, rate), input_signal_length=torch.tensor([rate, rate, rate // 2, rate])
        )
    model.eval().save_to(str(path))
    return path


@pytest.fixture(scope="session")
def make_student() -> Callable[..., Any]:
    """Builds a student with a trainer: `make_student(config, max_epochs=2, folder=None)`; `folder` turns
    exp_manager on, and `manager` has more of its settings.
    """

    def make(
        config: dict[str, Any],
        folder: Path | None = None,
        manager: dict[str, Any] | None = None,
        **trainer: Any,
    ) -> Any:
        import lightning.pytorch as pl
        import torch
        from nemo.utils.exp_manager import exp_manager
        from omegaconf import OmegaConf

        from nemo_tutornet import TutorCTCModel

        torch.manual_seed(0)
        settings = {
            "max_epochs": 2,
            "accelerator": ACCELERATOR,
            "devices": 1,
            "logger": False,
            "enable_checkpointing": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "num_sanity_val_steps": 0,
            "log_every_n_steps": 1,
            **trainer,
        }
        built = pl.Trainer(**settings)
        if folder is not None:
            section = {
                "exp_dir": str(folder),
                "name": "run",
                "create_tensorboard_logger": False,
                "create_checkpoint_callback": True,
                "checkpoint_callback_params": {
                    "monitor": "val_wer",
                    "mode": "min",
                    "save_top_k": 1,
                    "always_save_nemo": True,
                },
                "resume_if_exists": True,
                "resume_ignore_no_checkpoint": True,
            }
            exp_manager(built, OmegaConf.merge(section, manager or {}))
        return TutorCTCModel(OmegaConf.create({"model": config}).model, trainer=built)

    return make
