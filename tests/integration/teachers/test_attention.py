# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""Attention models as teachers: Canary, with its prompt."""

from __future__ import annotations

import json
import shutil
import tarfile
from pathlib import Path

import pytest
import soundfile
import torch
from nemo.collections.common.prompts.canary import CanaryPromptFormatter
from nemo.collections.common.prompts.canary2 import Canary2PromptFormatter
from omegaconf import OmegaConf
from typer.testing import CliRunner

from nemo_tutornet import LiveTeacher, TutorError, export_student
from nemo_tutornet.cli import app
from nemo_tutornet.commands.cache_targets import build_cache
from nemo_tutornet.config import TeacherConfig
from nemo_tutornet.data.dataloader import TrainingBatch
from nemo_tutornet.nemo_io.prompt import encode_prompt
from nemo_tutornet.nemo_io.restore import restore_ctc
from nemo_tutornet.teachers.targets import TargetRequest
from tests.conftest import student_config
from tests.integration import teacher_models

GERMAN = {"source_lang": "de", "target_lang": "de", "pnc": "no"}
STAGES = [
    {"name": "rkd", "epochs": 1, "weights": {"rkd": 1.0}},
    {"name": "both", "weights": {"rkd": 1.0, "pseudo": 1.0}},
]
TEXTS = TargetRequest(hypotheses=True)


@pytest.fixture(scope="module")
def canary(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return teacher_models.save_attention(corpus, tmp_path_factory.mktemp("canary") / "canary.nemo")


@pytest.fixture(scope="module")
def audio(corpus: Path) -> tuple[list[str], TrainingBatch]:
    """Utterances of a second and more, which NeMo transcribes without padding: their files, and a batch."""
    files = [str(corpus / f"train{i}.wav") for i in (1, 3, 6, 7)]
    waves = [torch.tensor(soundfile.read(file, dtype="float32")[0]) for file in files]
    signal = torch.nn.utils.rnn.pad_sequence(waves, batch_first=True)
    return files, TrainingBatch(signal, torch.tensor([len(wave) for wave in waves]))


def teacher_of(path: Path, prompt: dict[str, str] | None = None) -> LiveTeacher:
    return LiveTeacher.from_config(TeacherConfig(model_path=str(path), prompt=prompt or {}))


def texts(teacher: LiveTeacher, batch: TrainingBatch) -> list[str]:
    found = teacher.targets(batch, TEXTS).hypotheses
    assert found is not None and all(one.confidence is None for one in found)
    return [one.text for one in found]


@pytest.mark.parametrize("kind", ["canary", "greedy canary", "unified canary"])
def test_hypotheses_are_what_the_teacher_transcribes(kind, canary, corpus, audio, tmp_path):
    path, (files, batch) = canary, audio
    if kind == "greedy canary":
        greedy = {"strategy": "greedy", "greedy": {"temperature": None, "n_samples": 1}}
        path = teacher_models.save_attention(corpus, tmp_path / "m.nemo", decoding=greedy)
    elif kind != "canary":
        path = teacher_models.save_attention(corpus, tmp_path / "m.nemo", kind)
    said = []
    for prompt in ({}, GERMAN):
        teacher, model = teacher_of(path, prompt), restore_ctc(path)
        said.append(texts(teacher, batch))
        assert not any(module.training for module in teacher.model.modules())
        assert texts(teacher, batch) == said[-1]
        found = model.transcribe(files, batch_size=len(files), verbose=False, **prompt)
        assert said[-1] == [one.text for one in found]
    assert len(set(said[0])) > 1, "the model hears the audio"
    assert kind != "canary" or said[0] != said[1], "the model reads its prompt"


def test_the_encoder_is_the_hint_layer(canary, audio):
    model, (_, batch) = restore_ctc(canary), audio
    with torch.no_grad():
        features = model.preprocessor(input_signal=batch.signal, length=batch.signal_lengths)
        encoded, lengths = model.encoder(audio_signal=features[0], length=features[1])
    found = teacher_of(canary).targets(batch, TargetRequest(hidden=True, hypotheses=True))
    assert torch.equal(found.hidden, encoded) and torch.equal(found.lengths, lengths)
    inner = LiveTeacher(model, hint_layer="encoder.layers.0")
    alone, whole = (
        inner.targets(batch, TargetRequest(hidden=True, hypotheses=texts)) for texts in (False, True)
    )
    assert inner._early_exit is not None and torch.equal(alone.hidden, whole.hidden)


def test_the_prompts_of_both_generations(canary):
    """The checkpoint's defaults count, and options are put above them; the values may be tokens or words."""
    model = restore_ctc(canary)
    names = model.tokenizer.vocab

    def prompt(**options: str) -> list[str]:
        return [names[i] for i in encode_prompt(model, options)[0].tolist()]

    start = "<|startoftranscript|>"
    assert prompt() == [start, "<|en|>", "<|transcribe|>", "<|en|>", "<|pnc|>"]
    assert prompt(**GERMAN) == [start, "<|de|>", "<|transcribe|>", "<|de|>", "<|nopnc|>"]
    tokens = {"source_lang": "<|de|>", "task": "<|translate|>", "target_lang": "<|en|>", "pnc": "<|nopnc|>"}
    # NeMo's change_prompt() would take the defaults of the config.
    model.prompt = CanaryPromptFormatter(model.tokenizer, [{"role": "user", "slots": tokens}])
    assert prompt() == [start, "<|de|>", "<|translate|>", "<|en|>", "<|nopnc|>"]
    assert prompt(task="asr", target_lang="de", pnc="True")[2:] == ["<|transcribe|>", "<|de|>", "<|pnc|>"]
    model.prompt = Canary2PromptFormatter(model.tokenizer)
    off = ["<|noitn|>", "<|notimestamp|>", "<|nodiarize|>"]
    context = ["<|startofcontext|>", start, "<|emo:undefined|>"]
    assert prompt() == [*context, "<|en|>", "<|en|>", "<|pnc|>", *off]
    assert prompt(**GERMAN, itn="yes")[3:7] == ["<|de|>", "<|de|>", "<|nopnc|>", "<|itn|>"]
    with pytest.raises(
        TutorError, match=r"^NeMo cannot encode .*diarize: yes.*; change model\.tutor\.teacher\."
    ):
        prompt(diarize="yes")


def test_it_teaches_live_and_from_a_cache(canary, corpus, make_student, tmp_path):
    config = student_config(corpus, canary, STAGES)
    config["tutor"]["teacher"]["prompt"] = GERMAN
    student = make_student(config, max_epochs=2, limit_train_batches=2, limit_val_batches=0)
    student.trainer.fit(student)
    match, logged = student.distiller.match, student.trainer.logged_metrics
    assert match.frame_weighting == "uniform" and "has no CTC head" in match.no_warm_start
    assert logged["train_rkd"] > 0 and logged["train_pseudo"] > 0
    assert student.distiller.teacher.describe()["prompt"].startswith("source_lang: de, task: asr")
    assert export_student(student, tmp_path / "student.nemo").labels == len(student.decoder.vocabulary)

    folder = tmp_path / "cache"
    whole = OmegaConf.create({"trainer": {"accelerator": "cpu", "devices": 1}, "model": config})
    build_cache(whole, folder, progress=False)
    live = student.distiller.teacher.targets
    for prompt, refused in (
        (GERMAN, None),
        ({}, None),
        ({"pnc": "yes"}, r"prompt is pnc: yes, but .* was built"),
    ):
        config["tutor"]["teacher"] = {"cache": str(folder), "prompt": prompt}
        cached = make_student(config, max_epochs=2, limit_train_batches=2, limit_val_batches=0)
        if refused:
            with pytest.raises(TutorError, match=refused):
                cached.setup("fit")
        elif prompt:
            cached.trainer.fit(cached)
            assert cached.trainer.logged_metrics["train_pseudo"] > 0
            batch = TrainingBatch.from_nemo(next(iter(cached.trainer.train_dataloader)))
            request = TargetRequest(hidden=True, hypotheses=True)
            expected = live(batch, request).hypotheses
            batch = TrainingBatch(
                batch.signal, batch.signal_lengths, utterances=cached.distiller._resolver(batch)
            )
            assert cached.distiller.teacher.targets(batch, request).hypotheses == expected
        else:
            cached.setup("fit")


def test_what_it_cannot_do_is_refused(canary, corpus, teacher_file, make_student):
    skd, rkd = [{"name": "skd", "weights": {"skd": 1.0}}], [{"name": "rkd", "weights": {"rkd": 1.0}}]
    for teacher, stages, changes, sentence in (
        (canary, skd, {}, "SKD compares posteriors, but the teacher has no CTC head"),
        (canary, rkd, {"rkd": {"frame_weighting": "nonblank"}}, "nonblank, but the teacher has no CTC head"),
        (
            canary,
            rkd,
            {"prompt": {"lang": "en"}},
            r"teacher\.prompt\.lang is not a slot .* source_lang, task",
        ),
        (
            canary,
            rkd,
            {"prompt": {"pnc": "maybe"}},
            "pnc is 'maybe'; choose from 0, 1, false, no, nopnc, pnc",
        ),
        (canary, rkd, {"prompt": {"source_lang": "fr"}}, r"source_lang is 'fr', .* no token <\|fr\|>; give"),
        (
            teacher_file,
            rkd,
            {"prompt": {"pnc": "no"}},
            "the teacher .EncDecCTCModel. has no prompt; leave the key out",
        ),
    ):
        changes = dict(changes)
        prompt = changes.pop("prompt", {})
        config = student_config(corpus, teacher, stages, **changes)
        config["tutor"]["teacher"]["prompt"] = prompt
        with pytest.raises(TutorError, match=sentence) as error:
            make_student(config).setup("fit")
        assert "\n" not in str(error.value) and str(error.value).endswith(".")


def test_its_model_for_time_stamps_is_not_restored(canary, tmp_path):
    with tarfile.open(canary) as archive:
        archive.extractall(tmp_path / "files", filter="data")
    (tmp_path / "files" / "timestamps_asr_model_config.yaml").write_text("target: nemo.collections.asr.x.Y\n")
    shutil.copy(
        tmp_path / "files" / "model_weights.ckpt", tmp_path / "files" / "timestamps_asr_model_weights.ckpt"
    )
    with tarfile.open(tmp_path / "with.nemo", "w") as archive:
        for file in sorted((tmp_path / "files").iterdir()):
            archive.add(file, file.name)
    for source in (tmp_path / "with.nemo", tmp_path / "files"):
        assert restore_ctc(source).timestamps_asr_model is None


def test_inspect_lists_its_prompt(canary):
    printed = CliRunner().invoke(app, ["inspect", str(canary), "--json"])
    found = json.loads(printed.stdout)
    assert found["prompt"] == {"source_lang": "en", "task": "asr", "target_lang": "en", "pnc": "yes"}
    assert found["skd"] is False and found["labels"]["tokenizer"] == "agg"
    assert found["labels"]["size"] == len(restore_ctc(canary).tokenizer.vocab)
    shown = CliRunner().invoke(app, ["inspect", str(canary)])
    assert "source_lang: en, task: asr" in shown.stdout and "no SKD (without a CTC head" in shown.stdout
    assert "Error" not in shown.output and "Error" not in printed.output
