# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""Every YAML in conf/ trains two real steps through the example script, and what leaves is a stock
student.
"""

import gc
import importlib.util
import json
import math
import shutil
import subprocess
import sys

import numpy as np
import pytest
import sentencepiece
import soundfile
import torch
from nemo.collections.asr.models import ASRModel
from omegaconf import OmegaConf

from nemo_tutornet import export_student
from nemo_tutornet.config import parse_tutor
from nemo_tutornet.functional import fft_depthwise as depthwise
from nemo_tutornet.models import TutorMixin
from nemo_tutornet.nemo_io.stock_config import STOCK_BPE, STOCK_CHAR
from tests.conftest import ACCELERATOR
from tests.integration.conf.confs import CONFIGS, ROOT, STUDENTS, SUBWORD, composed, stock_model

pytestmark = pytest.mark.integration

# Trained with a sixteenth of their filters: the largest, whose checkpoint alone would take 2.7 GB, and the
# subword configs that differ from a character config in little but their labels. test_conf_is_nemos.py holds
# them to that, and builds every model in full.
NARROWED = {
    "jasper_10x5dr",
    "jasper_10x5dr_bpe",
    "jasper_mini_bpe",
    "quartznet_15x5_bpe",
    "quartznet_5x5_bpe",
    "citrinet_256_bpe",
}

# Whose convolutions are trained through the Fourier transform, and how many they have.
FOR_TWO_CORES = {"small/quartznet_1m", "small/quartznet_small", "small/quartznet_bpe_small"}
FOURIER_DEPTHWISE = 8

ONE_STEP_EACH = "[{name: rkd, steps: 1, weights: {rkd: 1.0}}, {name: skd, weights: {ctc: 1.0, skd: 0.25}}]"


@pytest.fixture(scope="module")
def script():
    """The example script as a module; `main(cfg)` runs it on a config that is already composed."""
    spec = importlib.util.spec_from_file_location(
        "tutornet_script", ROOT / "examples" / "speech_to_text_ctc_tutornet.py"
    )
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
def tokenizer(manifest, tmp_path_factory):
    """A folder with a SentencePiece model for the manifest's text, as NeMo's process_asr_text_tokenizer.py
    lays it out.
    """
    folder = tmp_path_factory.mktemp("tokenizer")
    text = [json.loads(line)["text"] for line in manifest.read_text().splitlines()]
    kind = {"model_type": "bpe", "vocab_size": 24, "bos_id": -1, "eos_id": -1}
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(text * 10), model_prefix=str(folder / "tokenizer"), minloglevel=2, **kind
    )
    pieces = [
        line.split("\t")[0] for line in (folder / "tokenizer.vocab").read_text(encoding="utf-8").splitlines()
    ]
    (folder / "vocab.txt").write_text("\n".join(pieces[1:]) + "\n", encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def teachers(tokenizer, tmp_path_factory):
    """Tiny Conformer-CTCs by what they write: the characters or the subwords of the students."""
    folder = tmp_path_factory.mktemp("teacher")
    size = ("model.encoder.n_layers=1", "model.encoder.d_model=16", "model.encoder.n_heads=2")
    stock_model("conformer_ctc_small", *size).save_to(str(folder / "characters.nemo"))
    stock_model("conformer_ctc_bpe_small", f"model.tokenizer.dir={tokenizer}", *size).save_to(
        str(folder / "subwords.nemo")
    )
    return {kind: folder / f"{kind}.nemo" for kind in ("characters", "subwords")}


@pytest.fixture
def run_dir(tmp_path):
    """A folder for a run that does not outlive the test: a checkpoint takes up to 150 MB."""
    yield tmp_path
    shutil.rmtree(tmp_path, ignore_errors=True)
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


@pytest.mark.parametrize("plus", ["", "+"])
def test_an_old_key_gets_the_name_of_the_new_one(plus, tmp_path):
    """By the script itself and before Hydra, whose error would only say that there is no such key."""
    program = [sys.executable, ROOT / "examples" / "speech_to_text_ctc_tutornet.py"]
    config = ["--config-path", ROOT / "conf", "--config-name=quartznet_5x5"]
    done = subprocess.run(
        [*program, *config, f"{plus}model.tutor.skd.shift=4"], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 2 and "Hydra config" not in done.stdout + done.stderr
    assert done.stderr.splitlines()[-1] == (
        "error: model.tutor.skd.shift is now called model.tutor.skd.match_window; rename the key."
    )
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "test_ds, expected",
    [
        (None, False),
        ({"manifest_filepath": None}, False),
        ({"manifest_filepath": "test.jsonl"}, True),
        ({"use_lhotse": True, "batch_size": 2}, False),
        ({"use_lhotse": True, "shar_path": "shards"}, True),
        ({"use_lhotse": True, "manifest_filepath": None, "input_cfg": [{"type": "nemo"}]}, True),
        ({"use_lhotse": True, "cuts_path": "cuts.jsonl.gz"}, True),
    ],
)
def test_a_test_set_is_found_whatever_reads_it(script, test_ds, expected):
    assert script.has_test_set(OmegaConf.create({"test_ds": test_ds})) is expected
    assert not script.has_test_set(OmegaConf.create({}))


# Trained with the deployable front end in place of the stock one: a student of each architecture.
DEPLOYABLE = {"small/quartznet_small", "jasper_mini", "citrinet_256_bpe"}


@pytest.mark.parametrize("name", CONFIGS)
def test_trains_two_steps_and_leaves(
    name, script, manifest, tokenizer, teachers, run_dir, steps, monkeypatch
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(run_dir / "cache"))  # where a borrowed tokenizer is kept
    fourier = []
    convolution = depthwise.depthwise_conv1d
    monkeypatch.setattr(
        depthwise,
        "depthwise_conv1d",
        lambda *given: fourier.append(torch.is_grad_enabled()) or convolution(*given),
    )
    overrides = [
        f"model.train_ds.manifest_filepath={manifest}",
        f"model.validation_ds.manifest_filepath={manifest}",
        *(f"model.{part}.batch_size=2" for part in ("train_ds", "validation_ds")),
        *(f"model.{part}.num_workers=0" for part in ("train_ds", "validation_ds")),
        f"exp_manager.exp_dir={run_dir / 'run'}",
        "trainer.max_steps=2",
        f"trainer.accelerator={ACCELERATOR}",
        "trainer.enable_progress_bar=false",
        "seed=0",
    ]
    teacher = teachers["subwords" if name in SUBWORD else "characters"]
    if name in STUDENTS:
        overrides += [f"model.tutor.teacher.model_path={teacher}", f"model.tutor.stages={ONE_STEP_EACH}"]
    elif name in SUBWORD:
        overrides += [f"model.tokenizer.dir={tokenizer}"]
    if name in DEPLOYABLE:
        overrides.append("front_end=deployable")
    cfg = composed(name, *overrides)
    if name in NARROWED:
        for block in cfg.model.encoder.jasper:
            block.filters //= 16
        cfg.model.decoder.feat_in //= 16
    assert (parse_tutor(cfg.model) is not None) == (name in STUDENTS)

    script.main(cfg)

    assert len(steps) == 2
    # Its blocks with long kernels repeat theirs 1, 2, 2, 2 and 1 times.
    on_cpu = ACCELERATOR == "cpu" or not torch.cuda.is_available()
    assert sum(fourier) == (2 * FOURIER_DEPTHWISE if name in FOR_TWO_CORES and on_cpu else 0)
    assert all(math.isfinite(value) for step in steps for value in step.values())
    if name in STUDENTS:
        terms = [{key for key in ("train_rkd", "train_skd", "train_ctc") if key in step} for step in steps]
        assert terms == [{"train_rkd"}, {"train_skd", "train_ctc"}]
    assert list(run_dir.rglob("*val_wer*.ckpt"))
    (written,) = (run_dir / "run").rglob("*.nemo")
    gc.collect()  # the trained model, before its copy is read
    export_student(
        written, run_dir / "student.nemo", onnx_asr=run_dir / "asr" if name in DEPLOYABLE else None
    )
    gc.collect()
    restored = ASRModel.restore_from(str(run_dir / "student.nemo"), map_location="cpu")
    stock = STOCK_BPE if name in SUBWORD else STOCK_CHAR
    assert f"{type(restored).__module__}.{type(restored).__qualname__}" == stock
    assert restored.cfg.target == stock
    assert "tutor" not in restored.cfg
    assert OmegaConf.to_container(restored.cfg.encoder) == OmegaConf.to_container(
        cfg.model.encoder, resolve=True
    )
    if name in SUBWORD:
        pieces = sentencepiece.SentencePieceProcessor(str(tokenizer / "tokenizer.model"))
        assert list(restored.decoder.vocabulary) == [pieces.id_to_piece(i) for i in range(len(pieces))]
