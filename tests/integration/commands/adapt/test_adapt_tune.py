# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""`adapt --tune`: the encoder is trained with the adapter, and written as a teacher of its own."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

from nemo_tutornet import LiveTeacher
from nemo_tutornet.commands import adapt as adapt_command
from nemo_tutornet.commands import adapter_training, adapter_tuning
from nemo_tutornet.distill.distiller import Distiller
from nemo_tutornet.distill.objective import read_tutor_section
from nemo_tutornet.evaluation.error_rates import count_errors, sum_errors
from nemo_tutornet.functional.greedy import greedy_labels
from nemo_tutornet.nemo_io.archive import NemoArchive
from nemo_tutornet.nemo_io.restore import restore_ctc
from nemo_tutornet.teachers.adapter import Adapter
from nemo_tutornet.teachers.targets import TargetRequest
from nemo_tutornet.utils.files import sha256_of
from tests.conftest import LABELS, refusal, student_config
from tests.integration.commands.adapt.adapting import STAGES, adapt, batch_of_noise, batches_of, live, tutored
from tests.integration.target_cache.test_cache_lhotse import lhotse

# A head of two epochs, which knows nothing yet, and then enough for the encoder to learn the few utterances.
SHORT = ("--epochs", "2", "--tune-epochs", "40", "--tune-learning-rate", "0.01", "--json")


@pytest.fixture(scope="module")
def tuned(folder: Path, teacher: Path, adapted: Any) -> tuple[Path, Path, dict[str, Any]]:
    """A teacher whose encoder was trained, its adapter, and what the command printed."""
    new, output = folder / "tuned.nemo", folder / "tuned.safetensors"
    work = ("--work", str(folder / "adapter.work"))
    result = adapt(folder, teacher, output, "--tune", str(new), *work, *SHORT)
    assert result.exit_code == 0, result.output
    return new, output, json.loads(result.stdout)


def weights_of(path: Path) -> dict[str, torch.Tensor]:
    return restore_ctc(path).state_dict()


def test_the_new_teacher_has_another_encoder_and_nothing_else(teacher, tuned):
    new, output, printed = tuned
    before, after = NemoArchive(teacher), NemoArchive(new)
    assert sorted(after.members) == sorted(before.members)
    for name in before.members:
        if name != "model_weights.ckpt":
            assert after.read(name) == before.read(name), name
    old, trained = weights_of(teacher), weights_of(new)
    changed = {name for name in old if not torch.equal(old[name], trained[name])}
    assert changed and all(name.startswith("encoder.") for name in changed)
    # Batch norm's statistics are the trained encoder's, too.
    assert any(name.endswith("running_mean") for name in changed)
    info = Adapter.load(output).info
    assert info.tuned and info.teacher_sha256 == sha256_of(new) != sha256_of(teacher)
    assert printed["tuned"] == str(new) and printed["epochs"] == 40
    assert info.wer == printed["wer"] == printed["tuned_wer"] < printed["frozen_wer"]


def test_both_files_make_the_word_error_rate_that_was_printed(folder, tuned, make_student):
    new, output, printed = tuned
    student = make_student(student_config(folder, None))
    references, texts = [], []
    for batch in batches_of(student):
        targets = live(new, output).targets(batch, TargetRequest(posteriors=True, hypotheses=True))
        rows = greedy_labels(targets.log_probs, targets.lengths)
        texts += ["".join(LABELS[i] for i in row) for row in rows]
        # The teacher's own decoder does not fit its encoder any more, so it writes no text.
        assert [one.text for one in targets.hypotheses] == texts[-len(rows) :]
        lengths = batch.transcript_lengths.tolist()
        references += [
            "".join(LABELS[i] for i in row[:length])
            for row, length in zip(batch.transcripts.tolist(), lengths, strict=True)
        ]
    found = sum_errors([count_errors(*pair) for pair in zip(references, texts, strict=True)])
    assert found.rate == printed["wer"]


def test_the_adapter_belongs_to_the_new_teacher_alone(folder, teacher, tuned, make_student):
    new, output, _ = tuned

    def make(path: Path) -> Distiller:
        config = tutored(student_config(folder, path, STAGES), output)
        return Distiller(make_student(config), read_tutor_section(OmegaConf.create(config)))

    make(new)
    assert "which was made for another teacher" in refusal(lambda: make(teacher))
    words = Adapter.load(output).info.in_words()
    assert words.endswith(" %, before its encoder was trained with the adapter)")


@pytest.mark.parametrize("stop", [1, 3])  # in the head's training, or in the encoder's
def test_a_stopped_tuning_continues(stop, folder, teacher, tmp_path, monkeypatch):
    """It ends as if it had not been stopped."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job has it ignored
    write, epochs = adapter_training._write_state, []

    def note(path: Path, settings: Any, *state: Any) -> None:
        write(path, settings, *state)
        epochs.append(state[-1].epoch)
        if len(epochs) == stop:
            signal.raise_signal(signal.SIGINT)

    def run(name: str) -> Any:
        short = ("--epochs", "2", "--tune-epochs", "3", "--tune-learning-rate", "0.01", "--json")
        options = ("--work", str(tmp_path / "work"), "--tune", str(tmp_path / f"{name}.nemo"), *short)
        return adapt(folder, teacher, tmp_path / f"{name}.safetensors", *options)

    monkeypatch.setattr(adapter_training, "_write_state", note)
    assert run("stopped").exit_code == 130
    assert not (tmp_path / "stopped.safetensors").exists() and not (tmp_path / "stopped.nemo").exists()
    assert run("stopped").exit_code == 0
    assert epochs == [1, 2, 1, 2, 3]
    monkeypatch.undo()
    assert run("whole").exit_code == 0
    for ending in ("safetensors", "nemo"):
        stopped, whole = (tmp_path / f"{name}.{ending}" for name in ("stopped", "whole"))
        assert stopped.read_bytes() == whole.read_bytes()


def test_an_encoder_that_is_no_better_is_not_written(folder, teacher, adapted, tmp_path):
    """The adapter is then that of the frozen encoder, to the byte."""
    new, output = tmp_path / "worse.nemo", tmp_path / "adapter.safetensors"
    work = ("--work", str(folder / "adapter.work"), "--epochs", "100", "--learning-rate", "0.01")
    worse = ("--tune", str(new), "--tune-epochs", "1", "--tune-learning-rate", "1.0")
    result = adapt(folder, teacher, output, *work, *worse)
    assert result.exit_code == 0, result.output
    assert not new.exists() and output.read_bytes() == adapted[0].read_bytes()
    words = " ".join(result.output.split())
    assert "note: the trained encoder makes no fewer errors, so no teacher was written" in words
    assert f"model.tutor.teacher.cache={folder / 'adapter.work' / 'train'}" in words


def test_a_file_that_cannot_be_the_new_teacher_is_refused(folder, teacher, adapted, tmp_path):
    (tmp_path / "folder.nemo").mkdir()
    (tmp_path / "link.nemo").symlink_to(teacher)
    before = sha256_of(teacher)
    for path, words in (
        (teacher, "is the teacher itself, which stays as it is; give another .nemo file."),
        (tmp_path / "link.nemo", "is the teacher itself, which stays as it is; give another .nemo file."),
        (tmp_path / "tuned.ckpt", "does not end in .nemo; give the .nemo file to write."),
        (tmp_path / "folder.nemo", "is a folder; give the .nemo file to write."),
    ):
        work = ("--work", str(folder / "adapter.work"))
        result = adapt(folder, teacher, tmp_path / "never.safetensors", "--tune", str(path), *work)
        assert result.exit_code == 2 and f"--tune {path} {words}" in result.output
    train = student_config(folder, teacher)["train_ds"]
    lhotse({"train_ds": train})
    endless = ("--tune", str(tmp_path / "tuned.nemo"))
    result = adapt(folder, teacher, tmp_path / "never.safetensors", *endless, train_ds=train)
    assert result.exit_code == 2 and "one that Lhotse reads does not; add model.train_ds" in result.output
    assert sha256_of(teacher) == before and not (tmp_path / "never.safetensors").exists()


@pytest.mark.parametrize("mode", ["stored", "live"])
def test_a_transducer_and_utterances_without_transcripts(mode, folder, tmp_path):
    """The encoder learns the text that the head has learned; with --live, the transcripts alone."""
    teacher, new, output = folder / "transducer_bpe.nemo", tmp_path / "t.nemo", tmp_path / "t.safetensors"
    half = student_config(folder, teacher)["train_ds"] | {"manifest_filepath": str(folder / "half.jsonl")}
    options = ("--tune", str(new), *SHORT, *(["--live"] if mode == "live" else []))
    result = adapt(folder, teacher, output, *options, train_ds=half)
    assert result.exit_code == 0, result.output
    printed = json.loads(result.stdout)
    assert printed["tuned"] == str(new) and printed["wer"] < printed["frozen_wer"]
    targets = live(new, output).targets(
        batch_of_noise(), TargetRequest(posteriors=True, hypotheses=True, hidden=True)
    )
    assert targets.log_probs.isfinite().all() and len(targets.hypotheses) == 2
    assert not LiveTeacher(restore_ctc(new)).has_posteriors


def test_an_utterance_keeps_its_text_at_every_speed(folder, teacher, tmp_path, monkeypatch):
    """Here every text is `cc`, which no transcript is; so a row that is not recognised would show."""
    seen: list[tuple[int, ...]] = []
    lengths: set[int] = set()
    labels_of, tune = adapter_tuning.TunedUtterances._labels_of, adapt_command.tune_encoder

    def note(self: Any, batch: Any) -> list[list[int]]:
        rows = labels_of(self, batch)
        if self._training:
            seen.extend(map(tuple, rows))
            lengths.update(batch.signal_lengths.tolist())
        return rows

    def with_other_texts(task: Any, head: Any, examples: Any, *more: Any) -> Any:
        return tune(task, head, [(utterance, [2, 2]) for utterance, _ in examples], *more)

    monkeypatch.setattr(adapter_tuning.TunedUtterances, "_labels_of", note)
    monkeypatch.setattr(adapt_command, "tune_encoder", with_other_texts)
    train = student_config(folder, teacher)["train_ds"]
    speed = {"prob": 1.0, "sr": 16000, "resample_type": "scipy", "min_speed_rate": 0.8, "num_rates": 2}
    train["augmentor"] = {"speed": {**speed, "max_speed_rate": 1.2}}
    short = ("--epochs", "1", "--tune", str(tmp_path / "t.nemo"), "--tune-epochs", "2", "--json")
    work = ("--work", str(tmp_path / "work"))
    result = adapt(folder, teacher, tmp_path / "t.safetensors", *short, *work, train_ds=train)
    assert result.exit_code == 0, result.output
    assert set(seen) == {(2, 2)} and len(lengths) > 8, "the speeds were not perturbed"
