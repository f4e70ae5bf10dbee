# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""`adapt`: a CTC head with the student's labels on a subword teacher of 80 ms frames, and what it is good
for.
"""

from __future__ import annotations

import json
import signal
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from omegaconf import OmegaConf
from typer.testing import CliRunner

from nemo_tutornet import LiveTeacher, TutorCTCModel, export_student
from nemo_tutornet.cli import app
from nemo_tutornet.commands import adapter_training
from nemo_tutornet.data.dataloader import TrainingBatch
from nemo_tutornet.distill.distiller import Distiller
from nemo_tutornet.distill.objective import read_tutor_section
from nemo_tutornet.evaluation.error_rates import count_errors, sum_errors
from nemo_tutornet.functional.greedy import greedy_labels
from nemo_tutornet.nemo_io.restore import restore_ctc
from nemo_tutornet.teachers.adapter import Adapter
from nemo_tutornet.teachers.targets import TargetRequest
from nemo_tutornet.utils.files import sha256_of
from tests.conftest import LABELS, refusal, student_config
from tests.integration.commands.adapt.adapting import STAGES, adapt, batches_of, live, tutored
from tests.integration.recorder import Recorder
from tests.integration.students import of_kind
from tests.integration.target_cache.caching import tar, targets_of_batches
from tests.integration.target_cache.test_cache_lhotse import lhotse


def test_the_file_says_what_the_adapter_is(folder, teacher, adapted, make_student):
    path, printed = adapted
    info = Adapter.load(path).info
    assert (info.labels, info.frame_ms, info.upsampling) == (tuple(LABELS), 20.0, 4)
    assert (info.teacher_width, info.width, info.teacher_sha256) == (24, 24, sha256_of(teacher))
    assert info.teacher_class == "EncDecCTCModelBPE" and info.utterances == 2
    assert (printed["wer"], printed["teacher_wer"]) == (info.wer, info.teacher_wer)
    assert printed["epochs"] == 100 and 1 <= printed["best_epoch"] <= 100 and printed["utterances"] == 8
    # Both error rates, computed another way: from the live teacher's targets on the validation set.
    student = make_student(student_config(folder, None))
    references, texts, own = [], [], []
    for batch in batches_of(student):
        targets = live(teacher, path).targets(batch, TargetRequest(posteriors=True, hypotheses=True))
        assert targets.log_probs.shape[1:] == (4 * (targets.log_probs.shape[1] // 4), len(LABELS) + 1)
        texts += [
            "".join(LABELS[i] for i in row) for row in greedy_labels(targets.log_probs, targets.lengths)
        ]
        assert [one.text for one in targets.hypotheses] == texts[-len(targets.hypotheses) :]
        said = LiveTeacher(restore_ctc(teacher)).targets(batch, TargetRequest(hypotheses=True)).hypotheses
        own += [hypothesis.text for hypothesis in said]
        lengths = batch.transcript_lengths.tolist()
        references += [
            "".join(LABELS[i] for i in row[:length])
            for row, length in zip(batch.transcripts.tolist(), lengths, strict=True)
        ]
    # Up to a word: the live encoder's output is not rounded to 8 bits, as the stored one is.
    found = sum_errors([count_errors(*pair) for pair in zip(references, texts, strict=True)])
    assert abs(found.rate * found.reference - info.wer * found.reference) < 1.5
    assert (
        sum_errors([count_errors(*pair) for pair in zip(references, own, strict=True)]).rate
        == info.teacher_wer
    )
    assert info.wer <= 0.5 < info.teacher_wer, "the head learnt what its teacher does not say"


def test_inspect_and_check_report_it(folder, teacher, adapted, tmp_path):
    path, _ = adapted
    inspected = CliRunner().invoke(app, ["inspect", str(path)])
    words = Adapter.load(path).info.in_words()
    assert inspected.exit_code == 0 and inspected.stdout.strip() == f"{path}: {words}."
    as_json = CliRunner().invoke(app, ["inspect", str(path), "--json"])
    assert json.loads(as_json.stdout) == json.loads(json.dumps(asdict(Adapter.load(path).info)))
    config = tutored(student_config(folder, teacher, STAGES), path)
    (tmp_path / "student.yaml").write_text(
        yaml.safe_dump({"model": config, "trainer": {"max_epochs": 2}}), encoding="utf-8"
    )
    where = ["--config-path", str(tmp_path), "--config-name", "student"]
    checked = CliRunner().invoke(app, ["check", *where, "--json"])
    assert checked.exit_code == 0, checked.output
    reported = json.loads(checked.stdout)
    assert reported["teacher"]["adapter"] == words
    assert reported["matches"]["RKD"] == "adapter (24 wide, 20 ms) -> encoder (20 wide, 20 ms), one to one"
    assert reported["matches"]["frame weighting"] == "nonblank"
    assert reported["matches"]["pseudo-labels"] == "the adapter's text in the student's labels"
    assert reported["matches"]["decoder warm start"] == "yes"
    assert "11 labels in the same order" in reported["matches"]["SKD"]


@pytest.mark.parametrize("source", ["live", "cache", "encodings"])
def test_a_character_student_learns_from_it(source, folder, teacher, adapted, make_student, tmp_path):
    """From the teacher and the adapter, from a cache of both, and from what `adapt` kept and the adapter."""
    path, _ = adapted
    config = tutored(student_config(folder, teacher, STAGES), path)
    if source == "cache":
        (tmp_path / "student.yaml").write_text(
            yaml.safe_dump({"model": config, "trainer": {"max_epochs": 2, "accelerator": "cpu"}}),
            encoding="utf-8",
        )
        where = ["--config-path", str(tmp_path), "--config-name", "student"]
        built = CliRunner().invoke(app, ["cache", *where, "--output", str(tmp_path / "cache")])
        assert built.exit_code == 0, built.output
        config = tutored(config, path, model_path=None, cache=str(tmp_path / "cache"))
    elif source == "encodings":
        # No transcript is missing, so `adapt` kept no text; the pseudo-labels are the adapter's.
        config = tutored(config, path, model_path=None, cache=str(folder / "adapter.work" / "train"))
    recorder = Recorder()
    student = make_student(config, callbacks=[recorder])
    student.trainer.fit(student)
    assert len(recorder.steps) == 8 and all(
        torch.isfinite(torch.tensor(list(step.values()))).all() for step in recorder.steps
    )
    assert {"train_skd", "train_ctc"} <= set(recorder.steps[-1])
    distiller = student.distiller
    assert distiller.match.hint.path == "adapter" and distiller.match.no_warm_start is None
    assert distiller.match.label_order is None and distiller.teacher.labels == LABELS
    if source != "live":
        batch = next(iter(student._train_dl))
        request = TargetRequest(hidden=True, posteriors=True, hypotheses=True)
        stored = distiller.teacher_targets(distiller.schedule.stages[1], TrainingBatch.from_nemo(batch))
        fresh = live(teacher, path).targets(TrainingBatch.from_nemo(batch), request)
        assert torch.equal(stored.lengths, fresh.lengths)
        near = 2e-3 if source == "cache" else 0.1  # the encoder's output has 8 bits
        for row, length in enumerate(fresh.lengths):
            close = stored.log_probs[row, :length].exp(), fresh.log_probs[row, :length].exp()
            torch.testing.assert_close(*close, atol=near, rtol=0)
        texts = [one.text for one in stored.hypotheses]
        if source == "cache":
            assert texts == [one.text for one in fresh.hypotheses]
        decoded = greedy_labels(stored.log_probs, stored.lengths)
        assert texts == ["".join(LABELS[i] for i in row) for row in decoded] and any(texts)
    done = export_student(student, tmp_path / "student.nemo")
    names = list(restore_ctc(done.path).state_dict())
    assert names == list(student.state_dict()) and not any("adapter" in name for name in names)


def test_the_other_teachers_layers_stay_available(teacher, adapted):
    path, _ = adapted
    batch = TrainingBatch(torch.randn(2, 16000), torch.tensor([16000, 9000]))
    request = TargetRequest(hidden=True)
    own = live(teacher, path, "encoder")
    assert (own.hint_layer.path, own.hint_layer.frame_ms, own.encoder_layer.frame_ms) == (
        "encoder",
        80.0,
        20.0,
    )
    plain = LiveTeacher(restore_ctc(teacher))
    given, expected = own.targets(batch, request), plain.targets(batch, request)
    assert torch.equal(given.hidden, expected.hidden)
    assert torch.equal(given.lengths, 4 * expected.lengths)
    # A layer inside the encoder, behind which the encoder stops early.
    inner = live(teacher, path, "encoder.layers.0").targets(batch, request)
    assert inner.hidden.shape == expected.hidden.shape
    assert torch.equal(inner.lengths, 4 * expected.lengths)


def test_a_transducer_gets_posteriors_and_confidence(folder, make_student):
    teacher, output = folder / "transducer_bpe.nemo", folder / "transducer.safetensors"
    half = student_config(folder, teacher)["train_ds"] | {"manifest_filepath": str(folder / "half.jsonl")}
    result = adapt(folder, teacher, output, "--epochs", "2", "--json", train_ds=half)
    assert result.exit_code == 0, result.output
    reported = json.loads(result.stdout)
    assert reported["utterances"] == 4 + reported["pseudo_labelled"]
    adapted = live(teacher, output)
    assert adapted.has_posteriors and not LiveTeacher(restore_ctc(teacher)).has_posteriors
    batch = TrainingBatch(torch.randn(2, 16000), torch.tensor([16000, 9000]))
    targets = adapted.targets(batch, TargetRequest(posteriors=True, hypotheses=True))
    assert all(0 <= one.confidence <= 1 for one in targets.hypotheses)
    config = tutored(student_config(folder, teacher, STAGES), output)
    config["tutor"]["pseudo_labels"] = {"min_confidence": 0.1}
    Distiller(make_student(config), read_tutor_section(OmegaConf.create(config)))


@pytest.mark.parametrize(
    ("number", "code", "manifest", "stop", "trained"),
    [
        (signal.SIGINT, 130, "train.jsonl", 2, [1, 2, 3]),
        # In the second round, with the teacher's text for the utterances that have none.
        (signal.SIGTERM, 143, "half.jsonl", 4, [1, 2, 3, 1, 2, 3]),
    ],
)
def test_a_stopped_run_continues(
    number, code, manifest, stop, trained, folder, teacher, tmp_path, monkeypatch
):
    """It ends with one line and with what it had; the same command then ends as if it had not been
    stopped.
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job has it ignored
    write, epochs = adapter_training._write_state, []

    def note(path: Path, settings: Any, *state: Any) -> None:
        write(path, settings, *state)
        epochs.append(state[-1].epoch)
        if len(epochs) == stop:
            signal.raise_signal(number)

    def run(name: str) -> Any:
        train = student_config(folder, teacher)["train_ds"] | {"manifest_filepath": str(folder / manifest)}
        work = ("--work", str(tmp_path / "work"), "--epochs", "3", "--json")
        return adapt(folder, teacher, tmp_path / f"{name}.safetensors", *work, train_ds=train)

    monkeypatch.setattr(adapter_training, "_write_state", note)
    stopped = run("stopped")
    assert stopped.exit_code == code and not (tmp_path / "stopped.safetensors").exists()
    (line,) = [line for line in stopped.stderr.splitlines() if line.startswith("stopped by")]
    assert line == (
        f"stopped by {signal.Signals(number).name}: the same command continues after the last epoch or shard "
        "that was finished."
    )
    assert run("stopped").exit_code == 0
    assert epochs == trained
    monkeypatch.undo()
    assert run("whole").exit_code == 0
    assert (tmp_path / "stopped.safetensors").read_bytes() == (tmp_path / "whole.safetensors").read_bytes()


def test_live_and_stored_encodings_make_the_same_adapter(folder, teacher, tmp_path):
    """Up to the 8 bits of the stored encodings, and with batches in another order."""
    made = [
        adapt(folder, teacher, tmp_path / f"{name}.safetensors", "--epochs", "3", "--json", *more)
        for name, more in (("stored", ()), ("live", ("--live",)))
    ]
    assert [result.exit_code for result in made] == [0, 0], [result.output for result in made]
    heads = [Adapter.load(tmp_path / f"{name}.safetensors").head for name in ("stored", "live")]
    batch = torch.randn(1, 24, 10), torch.tensor([10])
    stored, lively = (head(*batch).exp() for head in heads)
    assert (stored - lively).abs().max() < 0.2 and (tmp_path / "stored.work" / "train").is_dir()
    assert not (tmp_path / "live.work" / "train").exists()


def test_a_wrong_adapter_is_refused(folder, teacher, adapted, make_student, tmp_path):
    path, _ = adapted

    def refused(**changes: Any) -> str:
        config = tutored(student_config(folder, teacher, STAGES), path)
        kind = changes.pop("kind", None)
        if kind:
            of_kind(kind, config)
        for key, value in changes.items():
            config["tutor"]["teacher"][key] = value
        if "labels" in changes:
            labels = config["tutor"]["teacher"].pop("labels")
            config["labels"] = config["decoder"]["vocabulary"] = labels
            config["train_ds"]["labels"] = config["validation_ds"]["labels"] = labels
            config["decoder"]["num_classes"] = len(labels)
        student: TutorCTCModel = make_student(config)

        def make() -> Any:
            return Distiller(student, read_tutor_section(OmegaConf.create(config)))

        return refusal(make)

    missing = refused(adapter=str(tmp_path / "none.safetensors"))
    assert missing == (
        f"model.tutor.teacher.adapter is {tmp_path / 'none.safetensors'}, and there is no such file; "
        "`nemo-tutornet adapt` makes one."
    )
    assert "which was made for another teacher" in refused(model_path=str(folder / "transducer_bpe.nemo"))
    labels = refused(labels=[*LABELS, "ä"])
    assert labels.startswith("model.tutor.teacher.adapter was made for a student with other labels: ")
    assert "only the student's: ['ä']" in labels
    assert refused(kind="citrinet") == (
        "model.tutor.teacher.adapter has frames of 20 ms, and the student's last 80 ms; make an adapter for "
        "this student with `nemo-tutornet adapt`."
    )
    stored = {"model_path": None, "cache": str(folder / "adapter.work" / "train")}
    theirs = Adapter.load(path)
    Adapter(theirs.head, replace(theirs.info, teacher_sha256="0" * 64)).save(tmp_path / "other.safetensors")
    other = refused(adapter=str(tmp_path / "other.safetensors"), **stored)
    assert f"which was made for another teacher (sha256 {'0' * 64}) than the teacher of" in other
    (tmp_path / "text.safetensors").write_text("no tensors", encoding="utf-8")
    assert "which cannot be read as an adapter" in refused(adapter=str(tmp_path / "text.safetensors"))


def test_a_config_that_cannot_be_adapted(folder, teacher, adapted, tmp_path):
    def refused(**changes: Any) -> str:
        result = adapt(folder, teacher, tmp_path / "never.safetensors", **changes)
        assert result.exit_code == 2 and not (tmp_path / "never.safetensors").exists()
        return result.output

    assert "no teacher to make an adapter of" in refused(tutor=None)
    assert "the adapter's epoch is selected" in refused(validation_ds={"manifest_filepath": None})
    rows = [json.loads(line) for line in (folder / "valid.jsonl").read_text(encoding="utf-8").splitlines()]
    for row in rows:
        del row["text"]
        row["audio_filepath"] = str(folder / row["audio_filepath"])
    (tmp_path / "silent.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    silent = student_config(folder, None)["validation_ds"]
    silent["manifest_filepath"] = str(tmp_path / "silent.jsonl")
    assert "no utterance of model.validation_ds has a transcript" in refused(validation_ds=silent)
    train = student_config(folder, None)["train_ds"] | {"manifest_filepath": str(folder / "half.jsonl")}
    kept = adapt(
        folder,
        teacher,
        tmp_path / "never.safetensors",
        "--work",
        str(folder / "adapter.work"),
        train_ds=train,
    )
    assert kept.exit_code == 2 and "it lacks the teacher's hypotheses; delete that folder" in kept.output


def test_other_transcripts_begin_anew(folder, teacher, tmp_path):
    """The state of a training belongs to its data, also where their number is the same."""
    work = ("--work", str(folder / "adapter.work"), "--epochs", "1", "--json")
    rows = [json.loads(line) for line in (folder / "train.jsonl").read_text(encoding="utf-8").splitlines()]
    for row in rows:
        row.update(text="d c", audio_filepath=str(folder / row["audio_filepath"]))
    (tmp_path / "other.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    train = student_config(folder, None)["train_ds"]
    heads = []
    for manifest in (folder / "train.jsonl", tmp_path / "other.jsonl"):
        section = train | {"manifest_filepath": str(manifest)}
        made = adapt(folder, teacher, tmp_path / "a.safetensors", *work, train_ds=section)
        assert made.exit_code == 0, made.output
        heads.append(Adapter.load(tmp_path / "a.safetensors").head.decoder.bias)
    assert not torch.equal(*heads)


@pytest.mark.parametrize("reader", ["tars", "lhotse"])
def test_large_sets(folder, teacher, tmp_path, make_student, reader):
    """What `adapt` keeps of tars, or of a set that Lhotse reads, trains a student."""
    config = student_config(folder, teacher, STAGES[:1])
    if reader == "tars":
        source = tar(folder, tmp_path, [f"train{i}.wav" for i in range(8)], 0)
        config["train_ds"].update(source, is_tarred=True, shuffle_n=4)
    else:
        lhotse(config)
    output = tmp_path / "a.safetensors"
    result = adapt(folder, teacher, output, "--epochs", "1", "--json", train_ds=config["train_ds"])
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["utterances"] == 8
    cached = tutored(config, output, model_path=None, cache=str(tmp_path / "a.work" / "train"))
    given = [targets for targets, _ in targets_of_batches(make_student(cached))]
    assert sum(len(targets.lengths) for targets in given) == 8
    assert all(targets.hidden is not None and targets.hidden.isfinite().all() for targets in given)


def test_a_small_set_has_more_epochs(folder, teacher, adapted, tmp_path, monkeypatch):
    """Unless their number is given. Eight utterances are two batches of four."""
    monkeypatch.setattr(adapter_training, "_EPOCHS", 1)
    monkeypatch.setattr(adapter_training, "_LEAST_STEPS", 5)
    work = ("--work", str(folder / "adapter.work"), "--batch-size", "4", "--json")
    for more, epochs in (((), 3), (("--epochs", "2"), 2)):
        made = adapt(folder, teacher, tmp_path / "a.safetensors", *work, *more)
        assert made.exit_code == 0, made.output
        assert json.loads(made.stdout)["epochs"] == epochs
        assert f"adapter: {epochs} of {epochs} epochs" in made.stderr
