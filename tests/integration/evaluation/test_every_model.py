# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""`evaluate` takes every recogniser: hybrids through either head, transducers, attention models, graphs and
folders for onnx-asr; and channels of stereo audio.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from omegaconf import open_dict
from typer.testing import CliRunner

from nemo_tutornet.cli import app
from nemo_tutornet.data.audio_samples import read_samples
from nemo_tutornet.data.manifest import read_manifest
from nemo_tutornet.evaluation.error_rates import count_errors, sum_errors
from nemo_tutornet.evaluation.evaluate import evaluate
from nemo_tutornet.evaluation.onnx_asr_model import graphs_of
from nemo_tutornet.evaluation.onnx_model import OnnxCTCModel
from nemo_tutornet.evaluation.options import EvaluationOptions
from nemo_tutornet.evaluation.transcribe import best_hypotheses, transcribe
from nemo_tutornet.export.onnx_export import write_onnx
from nemo_tutornet.nemo_io.isolation import suppress_nemo_logs
from nemo_tutornet.nemo_io.restore import restore_ctc
from nemo_tutornet.nemo_io.weights import weights_sha256
from tests.integration.models import matrix
from tests.integration.students import build, write_tokenizer
from tests.integration.teacher_models import save_attention, save_kind

KINDS = ("hybrid bpe", "tdt bpe", "conformer")


@pytest.fixture(scope="module")
def models(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One file of each kind of decoder; each says something."""
    folder = tmp_path_factory.mktemp("models")
    waves = [torch.tensor(soundfile.read(corpus / f"train{i}.wav", dtype="float32")[0]) for i in range(4)]
    signals = (torch.nn.utils.rnn.pad_sequence(waves, batch_first=True), torch.tensor([*map(len, waves)]))
    tokenizer = write_tokenizer(folder / "tokenizer")
    found = {
        kind: save_kind(matrix.TEACHERS[kind], corpus, folder / f"{kind}.nemo", tokenizer, signals)
        for kind in KINDS
    }
    return {**found, "canary": save_attention(corpus, folder / "canary.nemo")}


@pytest.fixture
def run(corpus: Path) -> Callable[..., Any]:
    """Runs `evaluate` on the validation set, or on another `--manifest`; rows of its JSON, or its error."""

    def called(*arguments: object) -> Any:
        given = [str(argument) for argument in arguments]
        given += [] if "--manifest" in given else ["--manifest", str(corpus / "valid.jsonl")]
        printed = CliRunner().invoke(app, ["evaluate", *given, "--json"])
        if printed.exit_code == 0:
            return json.loads(printed.stdout)
        assert printed.exit_code == 2 and "Traceback" not in printed.output, printed.output
        (sentence,) = [line for line in printed.stderr.splitlines() if line.startswith("error: ")]
        return sentence

    return called


def by_nemo(path: Path, corpus: Path, decoder: str | None = None) -> float:
    """The WER of NeMo's own transcribe() on the files, one by one, with NeMo's own metric."""
    from nemo.collections.asr.metrics.wer import word_error_rate

    model = restore_ctc(path)
    rows = read_manifest(corpus / "valid.jsonl")
    if "validation_ds" not in model.cfg:  # NeMo reads it for files, of models with subwords
        with open_dict(model.cfg):
            model.cfg.validation_ds = {"manifest_filepath": None}
    with suppress_nemo_logs(), torch.no_grad():
        if decoder is not None:
            model.change_decoding_strategy(decoder_type=decoder, verbose=False)
        texts = []
        for row in rows:
            # A padding of short audio is off, as for NeMo's scripts on files.
            texts += best_hypotheses(model.transcribe([str(row.audio)], batch_size=1, verbose=False))
            model.eval()
    return float(word_error_rate(texts, [row.text or "" for row in rows]))


def test_each_kind_makes_the_errors_of_nemos_transcribe(
    models: dict[str, Path], corpus: Path, run: Callable[..., Any]
) -> None:
    printed = run(*models.values())
    assert [row["decoder"] for row in printed] == ["rnnt", "rnnt", "ctc", "attention"]
    for kind, row in zip(models, printed, strict=True):
        assert row["model"] == str(models[kind])
        if kind != "canary":  # NeMo pads its short files
            assert row["wer"] == pytest.approx(by_nemo(models[kind], corpus)), kind
    table = CliRunner().invoke(
        app, ["evaluate", *map(str, models.values()), "--manifest", str(corpus / "valid.jsonl")]
    )
    assert table.exit_code == 0 and "nemo, attention" in table.stdout and "nemo, rnnt" in table.stdout


def test_a_hybrid_transcribes_with_either_head(
    models: dict[str, Path], corpus: Path, run: Callable[..., Any]
) -> None:
    path = models["hybrid bpe"]
    rates = {}
    for decoder in ("ctc", "rnnt"):
        (row,) = run(path, "--decoder", decoder)
        rates[decoder] = row["wer"], row["cer"]
        assert row["decoder"] == decoder and row["wer"] == pytest.approx(by_nemo(path, corpus, decoder))
    assert rates["ctc"] != rates["rnnt"]


def test_an_attention_model_does_not_depend_on_its_batches(models: dict[str, Path], corpus: Path) -> None:
    """NeMo's decoding switches dropout on when it has finished a batch."""
    rows = read_manifest(corpus / "train.jsonl")
    model = restore_ctc(models["canary"])
    for module in model.transf_decoder.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.9
    one, many = transcribe(model, rows, 1)[0], transcribe(model, rows, 8)[0]
    assert one == many and len(set(one)) > 1 and not model.transf_decoder.training


@pytest.mark.parametrize(
    ("kind", "arguments", "words"),
    [
        ("conformer", ["--decoder", "rnnt"], "is a CTC model and has no rnnt decoder; leave out --decoder"),
        ("tdt bpe", ["--decoder", "ctc"], "is a transducer and has no ctc decoder"),
        ("canary", ["--decoder", "rnnt"], "is an attention model and has no rnnt decoder"),
        ("hybrid bpe", ["--decoder", "beam"], "there is no decoder 'beam'; choose one of ctc, rnnt"),
        ("hybrid bpe", ["--runtime", "onnx"], "a model for --runtime onnx must be a NeMo CTC recogniser"),
        ("conformer", ["--channel", "left"], "give the number of a channel, from 0, or average"),
        ("conformer", ["--channel", "1"], "has one channel, so there is no channel 1 (--channel counts from"),
        ("conformer", ["--prompt", "pnc=no"], "takes no prompt; leave out --prompt"),
        ("canary", ["--prompt", "pnc"], "not of the form SLOT=VALUE"),
        ("canary", ["--prompt", "target_lang=fr"], "--prompt.target_lang is 'fr', but the model's tokenizer"),
    ],
)
def test_mistakes_are_one_sentence(
    kind: str, arguments: list[str], words: str, models: dict[str, Path], run: Callable[..., Any]
) -> None:
    assert words in run(models[kind], *arguments)


def test_a_model_of_another_kind_is_refused(
    corpus: Path, teacher_file: Path, tmp_path: Path, run: Callable[..., Any]
) -> None:
    import tarfile

    with tarfile.open(teacher_file) as archive:
        archive.extractall(tmp_path / "model", filter="data")
    config = tmp_path / "model" / "model_config.yaml"
    words = config.read_text(encoding="utf-8").replace("EncDecCTCModel", "EncDecSpeakerLabelModel")
    config.write_text(words, encoding="utf-8")
    assert "must be a NeMo recogniser" in run(tmp_path / "model")


@pytest.fixture(scope="module")
def graphs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `student.nemo`, its graphs, and `bare/any.onnx`, which has no metadata."""
    import onnx

    folder = tmp_path_factory.mktemp("graphs")
    build("quartznet bpe", folder).rename(folder / "student.nemo")
    write_onnx(folder / "student.nemo", folder / "student.onnx", ("fp32", "int8"))
    bare = onnx.load(str(folder / "student.onnx"))
    del bare.metadata_props[:]
    (folder / "bare").mkdir()
    onnx.save(bare, str(folder / "bare" / "any.onnx"))
    onnx.save(bare, str(folder / "bare" / "student.int8.onnx"))
    return folder


COUNTS = ("wer", "cer", "substitutions", "insertions", "deletions", "parameters", "decoder")


def test_graphs_alone_and_with_their_nemo(graphs: Path, run: Callable[..., Any]) -> None:
    """A graph of NeMo's exporter has no metadata; its .nemo, in the command or beside it, describes it."""
    copy = graphs / "bare" / "any.nemo"
    copy.symlink_to(graphs / "student.nemo")
    nemo, alone, bare = run(graphs / "student.nemo", graphs / "student.onnx", graphs / "bare" / "any.onnx")
    for row in (alone, bare):
        assert {name: row[name] for name in COUNTS} == {name: nemo[name] for name in COUNTS}
        assert row["runtime"] == "onnx fp32"
    assert bare["weights_sha256"] is None and alone["weights_sha256"] == nemo["weights_sha256"]
    copy.unlink()
    for others in ([], [graphs / "student.nemo"]):  # nor is the only .nemo of the command taken for its model
        refused = run(*others, graphs / "bare" / "any.onnx")
        assert "was not written by nemo_tutornet" in refused and "beside it as any.nemo" in refused
    (beside,) = run(graphs / "student.nemo", graphs / "bare" / "student.int8.onnx")[1:]
    assert beside["wer"] == nemo["wer"] and beside["runtime"] == "onnx fp32", "the precision is the graph's"
    assert "has no rnnt decoder" in run(graphs / "student.onnx", "--decoder", "rnnt")
    assert run(graphs / "student.onnx", "--decoder", "ctc")[0]["wer"] == nemo["wer"]


def test_the_graph_for_sherpa_onnx(tmp_path: Path, run: Callable[..., Any]) -> None:
    source = build("quartznet", tmp_path)
    write_onnx(source, tmp_path / "student.onnx", (), sherpa=True)
    nemo, graph = run(source, tmp_path / "student.sherpa.onnx")
    assert {name: graph[name] for name in COUNTS} == {name: nemo[name] for name in COUNTS}


def onnx_asr_folder(folder: Path, source: Path) -> Path:
    """A folder for onnx-asr by hand: a student with its front end, `length`, and a table of labels."""
    import onnx

    from nemo_tutornet.export.onnx_sherpa import with_length

    folder.mkdir()
    write_onnx(source, folder / "plain.onnx")
    graph = onnx.load(str(folder / "plain.onnx"))
    onnx.save(with_length(graph), str(folder / "model.onnx"))
    (folder / "plain.onnx").unlink()
    labels = OnnxCTCModel(folder / "model.onnx").labels
    spelled = ["\u2581" if label == " " else label for label in [*labels, "<blk>"]]
    lines = [f"{label} {i}\n" for i, label in enumerate(spelled)]
    (folder / "vocab.txt").write_text("".join(lines), encoding="utf-8")
    config = {"model_type": "nemo-conformer-ctc", "features_size": 80, "subsampling_factor": 8}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


def test_a_folder_for_onnx_asr(corpus: Path, tmp_path: Path, run: Callable[..., Any]) -> None:
    onnx_asr = pytest.importorskip("onnx_asr", reason="onnx-asr is not installed")
    source = build("citrinet bpe", tmp_path)
    folder = onnx_asr_folder(tmp_path / "folder", source)
    (row,) = run(folder)
    assert row["weights_sha256"] == weights_sha256(restore_ctc(source))
    client = onnx_asr.load_model("nemo-conformer-ctc", folder)
    rows = read_manifest(corpus / "valid.jsonl")
    texts = [client.recognize(read_samples(one, 16000), sample_rate=16000) for one in rows]
    errors = sum_errors([count_errors(one.text or "", text) for one, text in zip(rows, texts, strict=True)])
    assert (row["runtime"], row["decoder"], row["wer"]) == ("onnx-asr fp32", "ctc", errors.rate)
    assert row["megabytes"] == (folder / "model.onnx").stat().st_size / 1e6 and row["parameters"] > 1000
    (folder / "model.int8.onnx").write_bytes((folder / "model.onnx").read_bytes())
    assert [one["runtime"] for one in run(folder)] == ["onnx-asr fp32", "onnx-asr int8"]
    assert [one["runtime"] for one in run(folder, "--precision", "int8")] == ["onnx-asr int8"]
    assert "has no rnnt decoder" in run(folder, "--decoder", "rnnt")


def test_a_damaged_folder_is_one_sentence(
    tmp_path: Path, run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "model.onnx").write_bytes(b"half a graph")
    assert "without config.json" in run(tmp_path)
    config = tmp_path / "config.json"
    for text, words in (
        ("{", "config.json cannot be read"),
        ('{"model_type": "whisper"}', "has the model_type 'whisper'"),
        ('{"model_type": {"a": 1}}', "has the model_type"),
        ("[]", "has the model_type None"),
    ):
        config.write_text(text, encoding="utf-8")
        assert words in run(tmp_path)
    config.write_text('{"model_type": "nemo-conformer-ctc"}', encoding="utf-8")
    with monkeypatch.context() as patch:
        patch.setitem(__import__("sys").modules, "onnx_asr", None)
        assert "install it with pip install onnx-asr" in run(tmp_path)
    (tmp_path / "model.onnx").rename(tmp_path / "other.txt")
    assert "holds no .onnx file" in run(tmp_path)
    assert graphs_of(tmp_path) == []


def stereo(folder: Path, corpus: Path) -> Path:
    """The validation set with its audio in the second channel, and other sounds in the first."""
    rows = [json.loads(line) for line in (corpus / "valid.jsonl").read_text(encoding="utf-8").splitlines()]
    for i, row in enumerate(rows):
        audio, rate = soundfile.read(corpus / row["audio_filepath"])
        noise = 0.3 * np.random.default_rng(i).standard_normal(len(audio)).clip(-1, 1)
        soundfile.write(folder / f"{i}.wav", np.stack([noise, audio], axis=1), rate, subtype="FLOAT")
        row["audio_filepath"] = f"{i}.wav"
    path = folder / "stereo.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_one_channel_of_several(corpus: Path, tmp_path: Path, run: Callable[..., Any]) -> None:
    manifest = stereo(tmp_path, corpus)
    one, first, second, mean = (
        [read_samples(row, 16000) for row in read_manifest(path, channel=channel)]
        for path, channel in (
            (corpus / "valid.jsonl", None), (manifest, 0), (manifest, 1), (manifest, "average"),
        )
    )  # fmt: skip
    for i in range(2):
        np.testing.assert_allclose(second[i], one[i], atol=1e-6)
        np.testing.assert_allclose(mean[i], (first[i] + second[i]) / 2, atol=1e-6)
    model = build("quartznet", tmp_path)
    (mono,), (chosen,) = run(model), run(model, "--manifest", manifest, "--channel", "1")
    assert (chosen["channel"], mono["channel"]) == (1, None) and chosen["wer"] == mono["wer"]
    assert chosen["cer"] == mono["cer"]
    (averaged,) = run(model, "--manifest", manifest, "--channel", "average")
    assert averaged["channel"] == "average"
    report = ["report", str(model), "--manifest", str(manifest), "--json", "--channel"]
    printed = CliRunner().invoke(app, [*report, "1"])
    assert printed.exit_code == 0 and json.loads(printed.stdout)["models"][0]["cer"] == mono["cer"]
    assert CliRunner().invoke(app, [*report, "2"]).exit_code == 2
    assert "has 2 channels" in run(model, "--manifest", manifest)
    assert "there is no channel 2" in run(model, "--manifest", manifest, "--channel", "2")


def test_text_processing_and_characters_that_are_never_written(
    corpus: Path, tmp_path: Path, teacher_file: Path, run: Callable[..., Any]
) -> None:
    rows = [json.loads(line) for line in (corpus / "valid.jsonl").read_text(encoding="utf-8").splitlines()]
    for row, text in zip(rows, ("AA, c.", "BB d 7"), strict=True):
        row.update(text=text, audio_filepath=str(corpus / row["audio_filepath"]))
    manifest = tmp_path / "other.jsonl"
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    (plain,) = run(teacher_file, "--manifest", manifest)
    assert plain["never_written_counts"] == {"A": 2, "B": 2, ",": 1, ".": 1, "7": 1}
    assert plain["never_written"] == "AB,.7" and plain["never_written_transcripts"] == 2
    assert plain["never_written_remedies"] == [
        "compare with --lowercase",
        "compare with --no-punctuation",
        "write numbers as words in the manifest",
    ]
    options = ["--lowercase", "--no-punctuation"]
    (processed,) = run(teacher_file, "--manifest", manifest, *options)
    assert processed["never_written"] == "7" and processed["text_processing"]["rm_punctuation"] is True
    printed = CliRunner().invoke(app, ["evaluate", str(teacher_file), "--manifest", str(manifest), *options])
    words = " ".join(printed.stdout.split())
    assert "transcripts and hypotheses alike: do_lowercase, rm_punctuation (.,?)" in words
    assert "cannot write 1 character of 1 of 2 transcripts" in words and "numbers as words" in words
    in_python = evaluate([teacher_file], manifest, options=EvaluationOptions(channel=0))
    assert in_python[0].channel == 0 and in_python[0].wer == plain["wer"]
