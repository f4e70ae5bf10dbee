# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""`nemo-tutornet inspect`: what it says of recognisers of every kind, and that what it lists can really be
matched.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from nemo.collections.asr.models import ASRModel, EncDecCTCModel
from omegaconf import OmegaConf
from typer.testing import CliRunner

from nemo_tutornet import LiveTeacher
from nemo_tutornet.cli import app
from nemo_tutornet.commands.inspect_model import Inspection, inspect_model
from nemo_tutornet.config import parse_tutor
from nemo_tutornet.data.dataloader import TrainingBatch
from nemo_tutornet.distill.matching import match_models
from nemo_tutornet.nemo_io.layers import Capture
from nemo_tutornet.nemo_io.model_info import FrontEnd
from nemo_tutornet.nemo_io.restore import restore_ctc
from nemo_tutornet.teachers.targets import TargetRequest
from tests.conftest import LABELS, SAMPLE_RATE, student_config
from tests.integration import students, teacher_models
from tests.integration.commands.test_bad_input import archive
from tests.integration.conftest import FRESH

CONFORMER = [
    ("encoder", 24, 40.0, 4.0, "nonblank"),
    ("encoder.pre_encode", 24, 40.0, 4.0, "energy"),
    ("encoder.layers.0", 24, 40.0, 4.0, "nonblank"),
    ("encoder.layers.1", 24, 40.0, 4.0, "nonblank"),
]
QUARTZNET = [
    ("encoder", 20, 20.0, 2.0, "energy"),
    *[(f"encoder.encoder.{i}", width, 20.0, 2.0, "energy") for i, width in enumerate((16, 16, 24, 20))],
]
CITRINET = [
    ("encoder", 24, 80.0, 8.0, "energy"),
    *[
        (f"encoder.encoder.{i}", width, 10.0 * stride, float(stride), "energy")
        for i, (width, stride) in enumerate(((16, 1), (16, 2), (16, 4), (16, 8), (20, 8), (24, 8)))
    ],
]
KINDS = ["conformer", "hybrid", "transducer", "quartznet", "citrinet bpe"]


@pytest.fixture(scope="module")
def files(corpus: Path, teacher_file: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A recogniser of each kind."""
    folder = tmp_path_factory.mktemp("inspect")
    return {
        "conformer": teacher_file,
        "hybrid": teacher_models.save("hybrid", corpus, folder / "hybrid.nemo"),
        "transducer": teacher_models.save("transducer", corpus, folder / "transducer.nemo"),
        "quartznet": students.build("quartznet", folder / "quartznet"),
        "citrinet bpe": students.build("citrinet bpe", folder / "citrinet"),
    }


@pytest.fixture(scope="module")
def found(files: dict[str, Path]) -> Callable[[str, bool], Inspection]:
    """`found(kind, every_layer)`."""
    kept: dict[Any, Inspection] = {}

    def of(kind: str, every_layer: bool = False) -> Inspection:
        if (kind, every_layer) not in kept:
            kept[kind, every_layer] = inspect_model(files[kind], every_layer)
        return kept[kind, every_layer]

    return of


def test_what_is_said_of_each_kind(found, files):
    conformer = FrontEnd(SAMPLE_RATE, 80, 25.0, 10.0, "per_feature")
    characters = ("characters", None, tuple(LABELS))
    for kind, target, front_end, labels, frame_ms, weighting, skd, layers in (
        ("conformer", "EncDecCTCModel", conformer, characters, 40.0, "nonblank", True, CONFORMER),
        ("hybrid", "EncDecHybridRNNTCTCModel", conformer, characters, 40.0, "nonblank", True, CONFORMER),
        (
            "transducer",
            "EncDecRNNTModel",
            conformer,
            characters,
            40.0,
            "uniform",
            False,
            [(*row[:4], row[4].replace("nonblank", "uniform")) for row in CONFORMER],
        ),
        (
            "quartznet",
            "EncDecCTCModel",
            FrontEnd(SAMPLE_RATE, 64, 20.0, 10.0, "per_feature"),
            characters,
            20.0,
            "energy",
            True,
            QUARTZNET,
        ),
        ("citrinet bpe", "EncDecCTCModelBPE", conformer, None, 80.0, "energy", True, CITRINET),
    ):
        printed = found(kind)
        info = printed.info
        assert info.target.startswith("nemo.collections.asr.models.") and info.target.endswith(f".{target}")
        assert info.class_name == target and info.front_end == front_end and printed.frame_ms == frame_ms
        assert printed.frame_weighting == weighting and info.has_ctc_head is skd
        assert [(x.path, x.width, x.frame_ms, x.stride, x.frame_weighting) for x in printed.layers] == layers
        model = restore_ctc(files[kind])
        assert info.parameters == sum(p.numel() for p in model.parameters())
        assert (info.label_kind, info.tokenizer, info.labels) == (
            labels or ("subwords", "bpe", tuple(model.decoder.vocabulary))
        )


def test_the_values_for_json(found, files):
    printed = found("transducer").as_dict()
    assert list(printed) == [
        *("model", "target", "parameters", "front_end", "labels"),
        *("prompt", "frame_ms", "frame_weighting", "skd", "layers"),
    ]
    assert (
        printed["model"] == str(files["transducer"]) and printed["skd"] is False and printed["prompt"] == {}
    )
    assert printed["target"] == "nemo.collections.asr.models.rnnt_models.EncDecRNNTModel"
    assert printed["parameters"] == found("transducer").info.parameters
    assert printed["front_end"] == {
        "sample_rate": SAMPLE_RATE,
        "mel_bins": 80,
        "window_ms": 25.0,
        "stride_ms": 10.0,
        "normalize": "per_feature",
    }
    assert printed["labels"] == {
        "kind": "characters",
        "tokenizer": None,
        "size": len(LABELS),
        "first": LABELS[:8],
    }
    assert (printed["frame_ms"], printed["frame_weighting"]) == (40.0, "uniform")
    assert printed["layers"][0] == {
        "path": "encoder",
        "width": 24,
        "frame_ms": 40.0,
        "stride": 4.0,
        "frame_weighting": "uniform",
    }
    assert found("citrinet bpe").as_dict()["labels"]["tokenizer"] == "bpe"


@pytest.mark.parametrize("kind", KINDS)
def test_every_listed_layer_is_taken_as_hint_layer(found, files, kind):
    """And gives frames of each utterance of a batch: a positional embedding, which all share, is not
    listed.
    """
    model, printed = restore_ctc(files[kind]), found(kind, True)
    assert len(printed.layers) > 2 * len(found(kind).layers)
    assert {layer.path for layer in found(kind).layers} < {layer.path for layer in printed.layers}
    if kind == "conformer":  # NeMo's Conformer layers share one activation
        of_layer = ("feed_forward1.activation", "conv.activation", "feed_forward2.activation")
        expected = {f"encoder.layers.{i}.{activation}" for i in (0, 1) for activation in of_layer}
        assert expected <= {layer.path for layer in printed.layers}
    signal, lengths = torch.randn(3, 20000), torch.tensor([20000, 13000, 7000])
    for layer in printed.layers:
        teacher = LiveTeacher(model, hint_layer=layer.path)
        assert (teacher.hint_layer.width, teacher.hint_layer.frame_ms) == (layer.width, layer.frame_ms)
        hidden = teacher.targets(TrainingBatch(signal, lengths), TargetRequest(hidden=True)).hidden
        assert hidden.shape[:2] == (3, layer.width)
        # The student's front end pads to 16 feature frames.
        assert abs(hidden.shape[2] - 1250 / layer.frame_ms) <= 16


def test_a_layer_that_is_left_out_returns_no_frames_of_each_utterance(found, files):
    model = restore_ctc(files["conformer"])
    listed = {layer.path for layer in found("conformer", True).layers}
    left = [name for name, _ in model.named_modules() if name.startswith("encoder.") and name not in listed]
    assert "encoder.layers.0.self_attn.linear_pos" in left
    for name in left:
        with Capture(model, name) as captured, torch.no_grad():
            model(input_signal=torch.randn(3, 20000), input_signal_length=torch.tensor([20000] * 3))
        output = captured.output
        shape = getattr(output[0] if isinstance(output, tuple) else output, "shape", None)
        assert shape is None or len(shape) != 3 or shape[0] != 3, name


@pytest.mark.parametrize("kind", ["quartznet", "citrinet bpe"])
def test_every_listed_layer_is_taken_as_guided_layer(found, files, corpus, kind):
    student, teacher = restore_ctc(files[kind]), LiveTeacher(restore_ctc(files["conformer"]))
    for layer in found(kind).layers:
        config = student_config(corpus, files["conformer"], stages=[{"name": "rkd", "weights": {"rkd": 1.0}}])
        config["tutor"].update(rkd={"guided_layer": layer.path}, pool_frames=True)
        guided = match_models(student, teacher, parse_tutor(OmegaConf.create(config))).guided
        assert (guided.path, guided.width, guided.frame_ms) == (layer.path, layer.width, layer.frame_ms)


def test_json_is_all_of_standard_output(found, files):
    command = [FRESH, "-m", "nemo_tutornet", "inspect", str(files["citrinet bpe"]), "--json"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads(done.stdout) == found("citrinet bpe").as_dict()


def test_the_table_says_the_same(found, files):
    shown = CliRunner().invoke(app, ["inspect", str(files["transducer"])])
    assert shown.exit_code == 0
    printed = found("transducer")
    for words in (
        str(files["transducer"]),
        printed.info.target,
        f"{printed.info.parameters:,}",
        "80 mel bins",
        "11 characters",
        "40 ms",
        "auto: uniform",
        "no SKD",
        "encoder.pre_encode",
        "encoder.layers.1",
    ):
        assert words in shown.stdout, words
    assert "self_attn" not in shown.stdout


def test_a_pretrained_name(found, files, monkeypatch):
    """Only NeMo's download is replaced; no hub is reachable in tests."""
    info = classmethod(lambda cls, model_name, refresh_cache=False: (EncDecCTCModel, str(files["conformer"])))
    monkeypatch.setattr(ASRModel, "_get_ngc_pretrained_model_info", info)
    assert inspect_model("stt_en_conformer_ctc_small") == found("conformer")


@pytest.mark.parametrize("damage", ["missing", "truncated", "foreign", "weights", "unknown name"])
def test_what_cannot_be_inspected_is_one_sentence(files, tmp_path, damage, monkeypatch):
    path, words = tmp_path / "model.nemo", "there is no file"
    if damage == "truncated":
        path.write_bytes(files["conformer"].read_bytes()[:100_000])
        words = "is not a readable .nemo file"
    elif damage == "foreign":
        archive(path, "nemo.collections.tts.models.fastpitch.FastPitchModel")
        words = "FastPitchModel"
    elif damage == "weights":
        archive(path, "nemo.collections.asr.models.ctc_models.EncDecCTCModel")
        words = "NeMo cannot restore"
    elif damage == "unknown name":

        def unknown(name: str, **_: object) -> None:
            raise FileNotFoundError(f"Model {name} was not found.")

        monkeypatch.setattr(ASRModel, "from_pretrained", unknown)
        path, words = Path("stt_en_nothing"), "MODEL is 'stt_en_nothing'"
    shown = CliRunner().invoke(app, ["inspect", str(path), "--json"])
    assert shown.exit_code == 2 and shown.stdout == ""
    assert (
        words in shown.stderr and len([x for x in shown.stderr.splitlines() if x.startswith("error: ")]) == 1
    )
    assert "Traceback" not in shown.stderr
