# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""A cache-aware student as a graph that reads chunks, in ONNX Runtime and in sherpa-onnx's online client."""

from __future__ import annotations

from pathlib import Path

import jiwer
import numpy as np
import onnx
import pytest
import soundfile
import torch
from nemo.collections.asr.models import ASRModel

from nemo_tutornet import TutorError, export_student
from nemo_tutornet.evaluation.onnx_model import OnnxCTCModel
from nemo_tutornet.export.onnx_export import OPSET, with_metadata, write_onnx
from nemo_tutornet.export.onnx_streaming import is_cache_aware, streaming_entries
from nemo_tutornet.export.verify import verify_student
from tests.integration.conftest import REPOSITORY
from tests.integration.documents.test_readme import commands, run
from tests.integration.export.test_onnx_export import load_example
from tests.integration.students import build

pytestmark = pytest.mark.integration
FRAME = 80 * 16  # samples of a frame of the network


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Holds the exported and verified `student.nemo` with its graphs."""
    folder = tmp_path_factory.mktemp("streaming")
    model = ASRModel.restore_from(str(build("streaming bpe", folder)), map_location="cpu")
    speak(model)
    model.save_to(str(folder / "speaking.nemo"))
    done = export_student(
        folder / "speaking.nemo",
        folder / "student.nemo",
        onnx=folder / "student.onnx",
        sherpa=True,
        verify=True,
    )
    endings = [graph.path.name.removeprefix("student") for graph in done.onnx]
    assert endings == [".onnx", ".sherpa.onnx", ".streaming.onnx"]
    assert done.verification is not None and "student.streaming.onnx: agrees" in {
        check.name for check in done.verification.checks
    }
    return folder


def audio(seconds: float) -> np.ndarray:
    """Noise that is louder and softer, so that a model of random weights changes its labels."""
    generator = np.random.default_rng(int(10 * seconds))
    loudness = np.repeat(10 ** generator.uniform(-4.0, 0.0, 1 + int(10 * seconds)), 1600)
    return (loudness * generator.standard_normal(len(loudness))).astype(np.float32)


def speak(model: ASRModel) -> None:
    """Makes every label likely somewhere, but for <unk>, which clients write in different ways."""
    samples, decoder = torch.from_numpy(audio(20.0))[None], model.eval().decoder.decoder_layers[0]
    with torch.no_grad():
        features, length = model.preprocessor(input_signal=samples, length=torch.tensor([samples.shape[1]]))
        encoded = model.encoder(audio_signal=features, length=length)[0][0]  # `[D, T]`
        weight = torch.randn(decoder.weight.shape, generator=torch.Generator().manual_seed(0))
        decoder.weight.copy_(weight / encoded.std(dim=1)[None, :, None])
        decoder.bias.copy_(-decoder.weight[:, :, 0] @ encoded.mean(dim=1))
        decoder.bias[0] = -100.0


def student(folder: Path) -> ASRModel:
    return ASRModel.restore_from(str(folder / "student.nemo"), map_location="cpu").eval()


def agreement(folder: Path, graph: Path) -> str:
    """The failed check of a graph's log-probabilities."""
    (failed,) = [
        check for check in verify_student(folder / "student.nemo", [graph]).checks if not check.passed
    ]
    assert failed.name == f"{graph.name}: agrees"
    return failed.found


def test_nemos_own_graph_would_fail_the_verification(folder, tmp_path):
    """It reads the frames in front of the audio, so it is the reason for ours."""
    model = student(folder)
    model.set_export_config({"cache_support": "True"})
    path = tmp_path / "nemos.onnx"
    model.export(str(path), onnx_opset_version=OPSET)
    entries = {item.key: item.value for item in onnx.load(folder / "student.streaming.onnx").metadata_props}
    onnx.save(with_metadata(onnx.load(path), entries), path)
    assert "largest difference from PyTorch on the whole" in agreement(folder, path)


def test_a_graph_with_another_chunk_in_its_metadata_fails_the_verification(folder, tmp_path):
    graph = onnx.load(folder / "student.streaming.onnx")
    entries = {item.key: item.value for item in graph.metadata_props} | {"chunk_shift": "17"}
    onnx.save(with_metadata(graph, entries), tmp_path / "other.onnx")
    assert agreement(folder, tmp_path / "other.onnx").endswith("cuts chunks by: chunk_shift")


def test_the_chunks_of_the_config_are_those_of_the_metadata(folder):
    """A chunk has the present frame and one of the future; the cache has 8 frames of the past."""
    entries = streaming_entries(student(folder))
    assert entries == {
        "window_size": "25",  # 16, and 9 that the subsampling looks back
        "chunk_shift": "16",
        "frames_in_front": "16",
        "cache_last_channel_dim1": "2",
        "cache_last_channel_dim2": "8",
        "cache_last_channel_dim3": "16",
        "cache_last_time_dim1": "2",
        "cache_last_time_dim2": "16",
        "cache_last_time_dim3": "8",
    }


def test_the_online_client_gives_nemos_text(folder):
    sherpa_onnx = pytest.importorskip("sherpa_onnx", minversion="2.0")
    example, model = load_example("transcribe_sherpa_onnx"), student(folder)
    recogniser = sherpa_onnx.OnlineRecognizer.from_nemo_ctc(
        model=str(folder / "student.streaming.onnx"), tokens=str(folder / "student.tokens.txt")
    )
    texts: list[tuple[str, str]] = []
    for seconds in (1.0, 2.3, 3.1, 4.6):
        samples = audio(seconds)
        found = example.stream_transcript(recogniser, samples, 16000, 80)
        # The client hears two seconds of silence more, and leaves out the end that fills no chunk.
        silent = torch.from_numpy(np.pad(samples, (0, 32000)))[None]
        with torch.no_grad():
            log_probs, lengths, _ = model(
                input_signal=silent, input_signal_length=torch.tensor([silent.shape[1]])
            )
        best = torch.unique_consecutive(log_probs[0, : int(lengths)].argmax(1))
        labels = best[best != len(model.decoder.vocabulary)].tolist()
        text = "".join(model.decoder.vocabulary[label] for label in labels).replace("\u2581", " ")
        texts.append((text.strip(), found.strip()))
    assert len(set(texts)) == 4 and min(len(found) for _, found in texts) > 10
    # Its features differ a little, and a model of random weights has near ties everywhere.
    assert jiwer.cer(*map(list, zip(*texts, strict=True))) < 0.15


def test_the_commands_of_the_page(folder, tmp_path):
    """docs/deployment/sherpa-onnx.md, with a student that has been trained."""
    pytest.importorskip("sherpa_onnx", minversion="2.0")
    page = (REPOSITORY / "docs" / "deployment" / "sherpa-onnx.md").read_text(encoding="utf-8")
    trained = tmp_path / "runs" / "streaming" / "checkpoints" / "streaming.nemo"
    trained.parent.mkdir(parents=True)
    trained.write_bytes((folder / "speaking.nemo").read_bytes())
    (tmp_path / "examples").symlink_to(REPOSITORY / "examples")
    for name in ("a.wav", "b.flac"):
        soundfile.write(tmp_path / name, audio(1.0), 16000)
    (export,) = [line for line in commands("nemo-tutornet export", page) if "streaming" in line]
    (transcribe,) = [line for line in commands("python examples", page) if "streaming" in line]
    assert "streaming.json" in run(export, tmp_path)
    assert len(run(transcribe, tmp_path).splitlines()) == 2


def test_a_student_that_normalises_the_utterance_gets_a_note(folder, tmp_path):
    model = student(folder)
    model.cfg.preprocessor.normalize = "per_feature"
    model.save_to(str(tmp_path / "normalised.nemo"))
    graphs = write_onnx(tmp_path / "normalised.nemo", tmp_path / "normalised.onnx", sherpa=True)
    assert [graph.path.name for graph in graphs] == ["normalised.onnx", "normalised.sherpa.onnx"]
    assert "no graph for streaming was written" in str(graphs[1].note)


def test_a_hostile_span_of_attention_is_refused_before_it_takes_memory(folder, tmp_path):
    """The caches of its past would be 128 MB even in this small student."""
    model = student(folder)
    model.cfg.encoder.att_context_size = [1_000_000, 1]
    model.save_to(str(tmp_path / "hostile.nemo"))
    with pytest.raises(TutorError, match=r"hostile\.nemo spans 1000000 frames .*at most 10000"):
        write_onnx(tmp_path / "hostile.nemo", tmp_path / "hostile.onnx", sherpa=True)
    checks = verify_student(tmp_path / "hostile.nemo", [folder / "student.streaming.onnx"]).checks
    assert "the student's attention spans 1000000 frames (limit 10000)" in [c.found for c in checks]


def test_a_student_of_whole_utterances_is_not_cache_aware(tmp_path):
    for kind in ("fastconformer bpe", "quartznet"):
        model = ASRModel.restore_from(str(build(kind, tmp_path / kind)), map_location="cpu")
        assert not is_cache_aware(model)


def test_evaluate_refuses_a_graph_of_chunks(folder):
    with pytest.raises(TutorError, match=r"student\.streaming\.onnx reads chunks.* give student\.onnx"):
        OnnxCTCModel(folder / "student.streaming.onnx")
