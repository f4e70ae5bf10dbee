# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""Every YAML in conf/ trains two real steps through the example script, and the stock ones have NeMo's architecture."""

import gc
import importlib.util
import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

pytest.importorskip("nemo.collections.asr")

import numpy as np
import soundfile
from hydra import compose, initialize_config_dir
from nemo.collections.asr.models import ASRModel, EncDecCTCModel

from nemo_tutornet.checkpoints import STOCK_BPE, STOCK_CHAR
from nemo_tutornet.config import parse_tutor
from nemo_tutornet.model import TutorMixin

pytestmark = pytest.mark.integration

ROOT = Path(__file__).resolve().parents[2]
CONF = ROOT / "conf"
CONFIGS = sorted(path.relative_to(CONF).with_suffix("").as_posix() for path in CONF.rglob("*.yaml"))
STUDENTS = [name for name in CONFIGS if OmegaConf.load(CONF / f"{name}.yaml").model.get("tutor") is not None]

PARAMETERS = {"quartznet_5x5": 6.7e6, "quartznet_15x5": 18.9e6, "jasper_10x5dr": 333e6, "conformer_ctc_small": 13e6}
# A Lightning checkpoint of it takes 2.7 GB; the .nemo is written all the same.
WITHOUT_CKPT = {"jasper_10x5dr"}

ONE_STEP_EACH = "[{name: rkd, steps: 1, weights: {rkd: 1.0}}, {name: skd, weights: {ctc: 1.0, skd: 0.25}}]"

# NeMo's examples/asr/conf/{quartznet/quartznet_15x5,jasper/jasper_10x5dr}.yaml, and for 5x5 NeMo 0.9's quartznet5x5.yaml:
# (blocks of this kind, filters, kernel, repeat, stride, dilation, residual, dropout)
QUARTZNET_5X5 = [
    (1, 256, 33, 1, 2, 1, False, 0.0),
    (1, 256, 33, 5, 1, 1, True, 0.0),
    (1, 256, 39, 5, 1, 1, True, 0.0),
    (1, 512, 51, 5, 1, 1, True, 0.0),
    (1, 512, 63, 5, 1, 1, True, 0.0),
    (1, 512, 75, 5, 1, 1, True, 0.0),
    (1, 512, 87, 1, 1, 2, False, 0.0),
    (1, 1024, 1, 1, 1, 1, False, 0.0),
]
QUARTZNET_15X5 = [
    (1, 256, 33, 1, 2, 1, False, 0.0),
    (3, 256, 33, 5, 1, 1, True, 0.0),
    (3, 256, 39, 5, 1, 1, True, 0.0),
    (3, 512, 51, 5, 1, 1, True, 0.0),
    (3, 512, 63, 5, 1, 1, True, 0.0),
    (3, 512, 75, 5, 1, 1, True, 0.0),
    (1, 512, 87, 1, 1, 2, False, 0.0),
    (1, 1024, 1, 1, 1, 1, False, 0.0),
]
JASPER_10X5DR = [
    (1, 256, 11, 1, 2, 1, False, 0.2),
    (2, 256, 11, 5, 1, 1, True, 0.2),
    (2, 384, 13, 5, 1, 1, True, 0.2),
    (2, 512, 17, 5, 1, 1, True, 0.2),
    (2, 640, 21, 5, 1, 1, True, 0.3),
    (2, 768, 25, 5, 1, 1, True, 0.3),
    (1, 896, 29, 1, 1, 2, False, 0.4),
    (1, 1024, 1, 1, 1, 1, False, 0.4),
]
BLOCKS = {"quartznet_5x5": QUARTZNET_5X5, "quartznet_15x5": QUARTZNET_15X5, "jasper_10x5dr": JASPER_10X5DR}


def composed(name, *overrides):
    """A config as Hydra gives it to the example script."""
    path = CONF / f"{name}.yaml"
    with initialize_config_dir(config_dir=str(path.parent), version_base=None):
        return compose(path.stem, overrides=list(overrides))


def stock_model(name, *overrides):
    """NeMo's own class on a config, without data."""
    cfg = composed(name, *overrides).model
    plain = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=False)
    for key in ("train_ds", "validation_ds", "test_ds", "optim", "tutor"):
        plain.pop(key, None)
    return EncDecCTCModel(cfg=OmegaConf.create(plain))


@pytest.fixture(scope="module")
def script():
    """The example script as a module; `main(cfg)` runs it on a config that is already composed."""
    spec = importlib.util.spec_from_file_location("tutornet_script", ROOT / "examples" / "speech_to_text_ctc_tutornet.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def manifest(tmp_path_factory):
    """Four utterances of noise: two batches. NeMo's SpecCutout of 120 frames needs more than 1.2 s."""
    folder = tmp_path_factory.mktemp("noise")
    random = np.random.default_rng(0)
    path = folder / "noise.jsonl"
    with path.open("w") as file:
        for i, text in enumerate(("one two", "it's", "so far", "yes")):
            seconds = 1.3 + 0.07 * i
            soundfile.write(folder / f"{i}.wav", 0.1 * random.standard_normal(int(seconds * 16000)), 16000)
            file.write(json.dumps({"audio_filepath": f"{i}.wav", "duration": seconds, "text": text}) + "\n")
    return path


@pytest.fixture(scope="session")
def teacher_file(tmp_path_factory):
    """A tiny Conformer-CTC with the labels of the students."""
    path = tmp_path_factory.mktemp("teacher") / "teacher.nemo"
    size = ("model.encoder.n_layers=1", "model.encoder.d_model=16", "model.encoder.n_heads=2")
    stock_model("conformer_ctc_small", *size).save_to(str(path))
    return path


@pytest.fixture
def run_dir(tmp_path):
    """A folder for a run that does not outlive the test: Jasper's `.nemo` alone takes 1.3 GB."""
    yield tmp_path / "run"
    shutil.rmtree(tmp_path / "run", ignore_errors=True)
    gc.collect()


@pytest.fixture
def steps(monkeypatch):
    """What every training step of the test returned."""
    recorded = []
    training_step = TutorMixin.training_step

    def recording(model, batch, batch_nb):
        output = training_step(model, batch, batch_nb)
        named = {**output["log"], "loss": output["loss"]}
        recorded.append({key: torch.as_tensor(value).detach().item() for key, value in named.items()})
        return output

    monkeypatch.setattr(TutorMixin, "training_step", recording)
    return recorded


@pytest.mark.parametrize("name", CONFIGS)
def test_trains_two_steps_and_writes_a_stock_nemo(name, script, manifest, teacher_file, run_dir, steps):
    overrides = [
        f"model.train_ds.manifest_filepath={manifest}",
        f"model.validation_ds.manifest_filepath={manifest}",
        *(f"model.{part}.batch_size=2" for part in ("train_ds", "validation_ds")),
        *(f"model.{part}.num_workers=0" for part in ("train_ds", "validation_ds")),
        f"exp_manager.exp_dir={run_dir}",
        "trainer.max_steps=2",
        "trainer.enable_progress_bar=false",
        "seed=0",
    ]
    if name in STUDENTS:
        overrides += [f"model.tutor.teacher.model_path={teacher_file}", f"model.tutor.stages={ONE_STEP_EACH}"]
    if name in WITHOUT_CKPT:
        params = "++exp_manager.checkpoint_callback_params"
        overrides += [f"{params}.save_top_k=0", f"{params}.save_last=false"]
    cfg = composed(name, *overrides)
    assert (parse_tutor(cfg.model) is not None) == (name in STUDENTS)

    script.main(cfg)

    assert len(steps) == 2
    assert all(math.isfinite(value) for step in steps for value in step.values())
    if name in STUDENTS:
        terms = [{key for key in ("train_rkd", "train_skd", "train_ctc") if key in step} for step in steps]
        assert terms == [{"train_rkd"}, {"train_skd", "train_ctc"}]
    assert bool(list(run_dir.rglob("*val_wer*.ckpt"))) == (name not in WITHOUT_CKPT)
    (written,) = run_dir.rglob("*.nemo")
    gc.collect()  # the trained model, before its copy is read
    restored = ASRModel.restore_from(str(written), map_location="cpu")
    stock = STOCK_BPE if cfg.model.get("tokenizer") else STOCK_CHAR
    assert f"{type(restored).__module__}.{type(restored).__qualname__}" == stock
    assert restored.cfg.target == stock
    assert "tutor" not in restored.cfg
    assert OmegaConf.to_container(restored.cfg.encoder) == OmegaConf.to_container(cfg.model.encoder, resolve=True)


@pytest.mark.parametrize("name", sorted(PARAMETERS))
def test_parameter_count(name):
    model = stock_model(name)
    assert sum(p.numel() for p in model.parameters()) == pytest.approx(PARAMETERS[name], rel=0.02)


@pytest.mark.parametrize("name", sorted(BLOCKS))
def test_blocks_are_nemos(name):
    expected = [block[1:] for block in BLOCKS[name] for _ in range(block[0])]
    blocks = OmegaConf.to_container(composed(name).model.encoder.jasper, resolve=True)
    found = [(b["filters"], *b["kernel"], b["repeat"], *b["stride"], *b["dilation"], b["residual"], b["dropout"]) for b in blocks]
    assert found == expected
    # QuartzNet: all but the last block separable. Jasper: none, and dense where residual.
    quartznet = name.startswith("quartznet")
    assert [b.get("separable", False) for b in blocks] == [quartznet] * (len(blocks) - 1) + [False]
    assert [b.get("residual_dense", False) for b in blocks] == [b["residual"] and not quartznet for b in blocks]


@pytest.mark.parametrize("name", sorted(BLOCKS))
def test_front_end_and_optimizer_are_nemos(name):
    model = OmegaConf.to_container(composed(name).model, resolve=True, throw_on_missing=False)
    assert model["preprocessor"] == {
        "_target_": "nemo.collections.asr.modules.AudioToMelSpectrogramPreprocessor",
        "normalize": "per_feature",
        "window_size": 0.02,
        "sample_rate": 16000,
        "window_stride": 0.01,
        "window": "hann",
        "features": 64,
        "n_fft": 512,
        "frame_splicing": 1,
        "dither": 1e-5,
    }
    assert {key: value for key, value in model["spec_augment"].items() if key != "_target_"} == {
        "rect_freq": 50,
        "rect_masks": 5,
        "rect_time": 120,
    }
    assert (model["encoder"]["feat_in"], model["encoder"]["activation"], model["encoder"]["conv_mask"]) == (64, "relu", True)
    assert model["labels"] == list(" abcdefghijklmnopqrstuvwxyz'")
    assert (model["decoder"]["feat_in"], model["decoder"]["num_classes"]) == (1024, 28)
    assert model["decoder"]["vocabulary"] == model["labels"]
    optim = model["optim"]
    assert (optim["name"], optim["lr"], optim["betas"], optim["weight_decay"]) == ("novograd", 0.01, [0.8, 0.5], 0.001)
    assert optim["sched"]["name"] == "CosineAnnealing"


def test_conformer_is_nemos_small():
    encoder = composed("conformer_ctc_small").model.encoder
    assert (encoder.d_model, encoder.n_layers, encoder.n_heads, encoder.conv_kernel_size) == (176, 16, 4, 31)
    assert encoder.subsampling_factor == 4


def test_students_share_one_tutor_section_and_the_teachers_labels():
    sections = [OmegaConf.to_container(composed(name).model.tutor, throw_on_missing=False) for name in STUDENTS]
    chosen = [section["skd"].pop("divergence") for section in sections]  # measured for the two-core student only
    assert len(STUDENTS) >= 4 and all(section == sections[0] for section in sections)
    assert set(chosen) <= {"l2", "kl"} and chosen.count("kl") == 1
    assert sections[0]["teacher"]["model_path"] == "???"
    labels = [list(composed(name).model.labels) for name in CONFIGS if "labels" in composed(name).model]
    assert all(each == labels[0] for each in labels)
