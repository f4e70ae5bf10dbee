# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""Exported graphs against PyTorch, and a trained student's transcripts in ONNX Runtime and in sherpa-onnx."""

from __future__ import annotations

import importlib.util
import json
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jiwer
import librosa
import numpy as np
import onnxruntime
import pytest
import torch
from omegaconf import OmegaConf

from nemo_tutornet import TutorError
from nemo_tutornet.evaluation.onnx_model import OnnxCTCModel
from nemo_tutornet.export.onnx_asr_folder import write_onnx_asr
from nemo_tutornet.export.onnx_export import OPSET, OnnxFile, write_onnx
from nemo_tutornet.nemo_io.label_text import join_labels
from nemo_tutornet.nemo_io.restore import restore_ctc
from tests.conftest import save_teacher, teacher_config
from tests.integration.clients import largest
from tests.integration.conftest import FRESH, REPOSITORY
from tests.integration.students import build

EXAMPLES = REPOSITORY / "examples" / "onnx"
# Whole frames and parts of one, shorter and longer than the padding to 16 frames; the last two differ by less
# than a frame.
SAMPLES = [16000, 12345, 8000, 20000, 3999, 1120, 48000, 48079]
# Runs a script as a user would, and fails where it needed NeMo or torch.
WITHOUT_NEMO = """
import runpy, sys
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
loaded = {"torch", "nemo", "nemo_tutornet"} & set(sys.modules)
assert not loaded, loaded
"""


def noise() -> list[np.ndarray]:
    return [np.random.default_rng(n).standard_normal(n).astype(np.float32) / 10 for n in SAMPLES]


def masked(model: Any, audio: list[np.ndarray]) -> list[np.ndarray]:
    """Log-probabilities `[T', V + 1]` of NeMo's masked model for a padded batch."""
    signal = torch.zeros(len(audio), max(map(len, audio)))
    for row, samples in zip(signal, audio, strict=True):
        row[: len(samples)] = torch.from_numpy(samples)
    with torch.no_grad():
        log_probs, lengths = model.eval()(
            input_signal=signal, input_signal_length=torch.tensor([len(a) for a in audio])
        )[:2]
    return [row[: int(length)].numpy() for row, length in zip(log_probs, lengths, strict=True)]


@pytest.fixture(scope="module", params=["quartznet", "jasper", "citrinet", "conformer"])
def exported(request, corpus, tmp_path_factory) -> tuple[str, Path]:
    folder = tmp_path_factory.mktemp(request.param)
    if request.param == "conformer":
        nemo_file = save_teacher(teacher_config(corpus), folder / "run.nemo")
    else:
        nemo_file = build(request.param, folder)
    write_onnx(nemo_file, folder / "student.onnx", ["fp32", "fp16", "int8"], sherpa=True)
    return request.param, folder


def test_a_graph_on_valid_frames_equals_the_masked_model_on_a_padded_batch(exported):
    kind, folder = exported
    model, audio = restore_ctc(folder / "run.nemo"), noise()
    expected = masked(model, audio)
    for suffix, tolerance in (
        (".onnx", 1e-4),
        (".sherpa.onnx", 1e-4),
        (".fp16.onnx", 0.02),
        (".int8.onnx", 0.5),
    ):
        recogniser = OnnxCTCModel(folder / f"student{suffix}")
        for samples, log_probs in zip(audio, expected, strict=True):
            features = recogniser.features(samples)
            found = recogniser.log_probs(features)
            assert found.shape == log_probs.shape, (kind, suffix, len(samples))
            assert np.abs(found - log_probs).max() <= tolerance, (kind, suffix, len(samples))
    # The trap: the front end's own padding, given to the graph as if it were speech.
    recogniser = OnnxCTCModel(folder / "student.onnx")
    padded = np.pad(recogniser.features(audio[1]), ((0, 0), (0, 0), (0, 16)))
    with_padding = recogniser.log_probs(padded)[: len(expected[1])]
    assert np.abs(with_padding - expected[1]).max() > 10 * 1e-4


def test_files_say_what_they_are(exported):
    import onnx

    kind, folder = exported
    model = restore_ctc(folder / "run.nemo")
    names = ["student.onnx", "student.fp16.onnx", "student.int8.onnx", "student.sherpa.onnx"]
    assert sorted(path.name for path in folder.glob("student*")) == sorted([*names, "student.tokens.txt"])
    for name, precision in zip(names, ["fp32", "fp16", "int8", "fp32"], strict=True):
        recogniser = OnnxCTCModel(folder / name)
        assert recogniser.precision == precision
        assert recogniser.labels == list(model.decoder.vocabulary)
        assert recogniser.parameters == sum(p.numel() for p in model.parameters())
        proto = onnx.load(folder / name)
        entries = {entry.key: entry.value for entry in proto.metadata_props}
        assert entries["ms_per_frame"] == {"citrinet": "80", "conformer": "40"}.get(kind, "20")
        onnx.checker.check_model(proto)
        assert [item.version for item in proto.opset_import if not item.domain] == [OPSET]
        wants_length = kind in ("citrinet", "conformer") or name == "student.sherpa.onnx"
        assert [item.name for item in proto.graph.input] == [
            "audio_signal",
            *(["length"] if wants_length else []),
        ]
        assert [item.name for item in proto.graph.output] == ["logprobs"]
        assert all(
            item.type.tensor_type.elem_type != onnx.TensorProto.FLOAT16
            for item in [*proto.graph.input, *proto.graph.output]
        )
        assert str(folder).encode() not in proto.SerializeToString()


def test_what_a_graph_cannot_take_is_reported_in_one_sentence(exported):
    kind, folder = exported
    recogniser = OnnxCTCModel(folder / "student.onnx")
    bins = recogniser.features(noise()[0]).shape[1]
    with pytest.raises(TutorError, match="cannot run on 100 frames of 3 mel bins"):
        recogniser.log_probs(np.zeros((1, 3, 100), np.float32))
    if kind == "conformer":  # its table of positions ends at 20,004 frames
        with pytest.raises(TutorError, match="cut the audio"):
            recogniser.log_probs(np.zeros((1, bins, 20100), np.float32))
    else:
        assert recogniser.log_probs(np.zeros((1, bins, 17000), np.float32)).shape[0] >= 17000 // 8


def test_subwords_become_text_as_in_nemo(tmp_path):
    import soundfile

    nemo_file = build("quartznet bpe", tmp_path)
    write_onnx(nemo_file, tmp_path / "student.onnx")
    for i, samples in enumerate(noise()):
        soundfile.write(tmp_path / f"{i}.wav", samples, 16000, subtype="FLOAT")
    files = [str(tmp_path / f"{i}.wav") for i in range(len(SAMPLES))]
    model = restore_ctc(nemo_file)
    OmegaConf.set_struct(model.cfg, False)
    model.cfg.validation_ds = {}  # NeMo's subword model asks it how to read files
    expected = [hypothesis.text for hypothesis in model.transcribe(files, batch_size=4, verbose=False)]
    assert OnnxCTCModel(tmp_path / "student.onnx").transcribe(noise()) == expected
    assert any(expected)
    assert OnnxCTCModel(tmp_path / "student.onnx").transcribe([np.zeros(100, np.float32)]) == [""]


@dataclass(frozen=True)
class Trained:
    """The trained student's files, and what NeMo makes of the validation set.

    `sure` are the 20 utterances in which NeMo's choice is clearest: the smallest distance, over the frames,
    between the probabilities of the best label and of the next. A coin that NeMo itself tosses proves nothing
    about the other runtime.
    """

    folder: Path
    graphs: list[OnnxFile]
    files: list[Path]
    texts: list[str]
    sure: list[int]

    def of_sure(self, items: list) -> list:
        return [items[i] for i in self.sure]


@pytest.fixture(scope="module")
def trained(an4_student, an4_files, tmp_path_factory) -> Trained:
    folder = tmp_path_factory.mktemp("trained")
    graphs = write_onnx(an4_student, folder / "student.onnx", ["fp32", "fp16", "int8"], sherpa=True)
    outputs = restore_ctc(an4_student).transcribe(
        [str(path) for path in an4_files], batch_size=4, verbose=False
    )
    texts = [output.text.strip() for output in outputs]
    recogniser = OnnxCTCModel(graphs[0].path)
    margins = []
    for path in an4_files:
        features = recogniser.features(librosa.load(path, sr=16000)[0])
        ranked = np.sort(np.exp(recogniser.log_probs(features)), axis=-1)
        margins.append((ranked[:, -1] - ranked[:, -2]).min())
    sure = sorted(np.argsort(margins)[-20:].tolist())
    assert sum(len(texts[i].split()) for i in sure) >= 20, "the student has learnt to say something"
    return Trained(folder, graphs, an4_files, texts, sure)


def run_example(script: str, *arguments: Any) -> list[str]:
    done = subprocess.run(
        [FRESH, "-c", WITHOUT_NEMO, str(EXAMPLES / script), *map(str, arguments)],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return [line.split(": ", 1)[1].strip() for line in done.stdout.splitlines()]


def load_example(script: str) -> Any:
    spec = importlib.util.spec_from_file_location(script, EXAMPLES / f"{script}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_onnxruntime_example_transcribes_as_nemo_does(trained):
    for suffix in (".onnx", ".fp16.onnx"):
        found = run_example(
            "transcribe_onnxruntime.py", trained.folder / f"student{suffix}", *trained.of_sure(trained.files)
        )
        assert found == trained.of_sure(trained.texts), suffix


@pytest.mark.parametrize(
    "changes", [{}, {"window_size": 0.02, "log_zero_guard_type": "clamp", "log_zero_guard_value": "eps"}]
)
def test_the_onnxruntime_example_computes_nemos_features(trained, changes):
    from nemo.collections.asr.modules import AudioToMelSpectrogramPreprocessor

    metadata = onnxruntime.InferenceSession(str(trained.graphs[0].path)).get_modelmeta().custom_metadata_map
    front_end = {**json.loads(metadata["preprocessor"]), **changes}
    preprocessor = AudioToMelSpectrogramPreprocessor(**front_end).eval()
    features = load_example("transcribe_onnxruntime").features
    for path in trained.files[:20]:
        samples = librosa.load(path, sr=16000)[0]
        expected, length = preprocessor(
            input_signal=torch.from_numpy(samples)[None], length=torch.tensor([len(samples)])
        )
        found = features(samples, front_end)
        assert found.shape == (1, 80, int(length))
        assert np.abs(found - expected[:, :, : int(length)].numpy()).max() <= 1e-3


@pytest.mark.parametrize(
    ("tokenizer", "labels"),
    [("char", "he lo"), ("bpe", ["\u2581he", "l", "lo", "\u2581you"]), ("wpe", ["he", "##l", "##lo", "you"])],
)
def test_the_onnxruntime_example_joins_labels_as_evaluate_does(tokenizer, labels):
    best = [0, len(labels), 1, 1, 2, len(labels), 3]
    found = load_example("transcribe_onnxruntime").text(
        np.eye(len(labels) + 1)[best], list(labels), tokenizer
    )
    assert found == join_labels([labels[i] for i in (0, 1, 2, 3)], tokenizer) and found


def test_quantized_weights_are_smaller_and_say_almost_the_same(trained):
    fp32, fp16, int8 = trained.graphs[:3]
    assert fp16.megabytes < 0.6 * fp32.megabytes and int8.megabytes < 0.35 * fp32.megabytes
    found = run_example("transcribe_onnxruntime.py", int8.path, *trained.files)
    assert jiwer.cer(" ".join(trained.texts), " ".join(found)) <= 0.05


def test_the_sherpa_onnx_example_ends_with_a_whole_frame():
    """sherpa-onnx rounds the number of the network's frames down, NeMo up."""
    pytest.importorskip("sherpa_onnx", minversion="2.0")
    centred = load_example("transcribe_sherpa_onnx").centred
    samples = np.ones(161 * 160 + 70, np.float32)
    expected = np.concatenate([np.zeros(80), np.ones(161 * 160 - 1)])
    assert np.array_equal(centred(samples, 16000), expected)
    for frame_ms, hops in ((40, 164), (80, 168)):
        padded = np.pad(expected, (0, (hops - 161) * 160))
        assert np.array_equal(centred(samples, 16000, frame_ms), padded)
    assert len(centred(samples[: 160 * 160], 16000, 80)) == len(centred(samples[: 160 * 160], 16000))


def test_sherpa_onnx_transcribes_as_nemo_does(trained):
    pytest.importorskip("sherpa_onnx", minversion="2.0")
    sherpa = trained.graphs[3]
    assert sherpa.path.name == "student.sherpa.onnx" and sherpa.note is None
    tokens = trained.folder / "student.tokens.txt"
    found = run_example("transcribe_sherpa_onnx.py", "--mel-bins=80", sherpa.path, tokens, *trained.files)
    assert trained.of_sure(found) == trained.of_sure(trained.texts)
    # Without the half hop of silence in front: 0.13.
    assert jiwer.wer(" ".join(trained.texts), " ".join(found)) <= 0.04


def test_sherpa_onnx_transcribes_a_batch_as_single_utterances(trained):
    sherpa_onnx = pytest.importorskip("sherpa_onnx", minversion="2.0")
    centred = load_example("transcribe_sherpa_onnx").centred
    recogniser = sherpa_onnx.OfflineRecognizer.from_nemo_ctc(
        str(trained.graphs[3].path), str(trained.folder / "student.tokens.txt"), feature_dim=80
    )
    texts = []
    for together in (True, False):
        streams = [recogniser.create_stream() for _ in trained.files[:16]]
        for stream, path in zip(streams, trained.files, strict=False):
            stream.accept_waveform(16000, centred(librosa.load(path, sr=16000)[0], 16000))
        for group in [streams] if together else [[stream] for stream in streams]:
            recogniser.decode_streams(group)
        texts.append([stream.result.text for stream in streams])
    assert texts[0] == texts[1] and any(texts[0])


def test_onnx_asr_transcribes_as_nemo_does(trained, an4_student, tmp_path):
    """All utterances, alone and in batches. A text may differ by a second space, which onnx-asr drops."""
    onnx_asr = pytest.importorskip("onnx_asr")
    write_onnx_asr(an4_student, tmp_path / "asr")
    client = onnx_asr.load_model("nemo-conformer-ctc", tmp_path / "asr", providers=["CPUExecutionProvider"])
    audio = [librosa.load(path, sr=16000)[0] for path in trained.files]
    expected = [text.split() for text in trained.texts]
    for batch in (1, 16):
        found = [
            text
            for start in range(0, len(audio), batch)
            for text in client.recognize(audio[start : start + batch])
        ]
        assert [text.split() for text in found] == expected
    # NeMo's own rounding of quiet bins of the spectrum reaches 1e-4 (measured against float64).
    model = restore_ctc(an4_student).eval()
    assert largest(model, client.asr, audio) <= 2e-4
    assert largest(model, client.asr, audio, batch=16) <= 2e-4
