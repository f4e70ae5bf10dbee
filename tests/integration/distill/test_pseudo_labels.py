# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""The teacher's hypotheses as targets: across vocabularies, for every kind of teacher, beside CTC or
alone.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from nemo.collections.asr.models import EncDecCTCModelBPE
from omegaconf import OmegaConf

from nemo_tutornet import LiveTeacher, TutorCTCModelBPE, TutorError
from nemo_tutornet.config import PseudoLabelsConfig, TeacherConfig
from nemo_tutornet.data.dataloader import TrainingBatch
from nemo_tutornet.distill.pseudo_labels import PseudoLabels
from nemo_tutornet.nemo_io.restore import restore_ctc
from nemo_tutornet.teachers.targets import Hypothesis, TargetRequest
from tests.conftest import LABELS, student_config, teacher_config
from tests.integration import teacher_models
from tests.integration.students import subword, write_tokenizer

STAGES = [
    {"name": "rkd", "epochs": 1, "weights": {"rkd": 1.0}},
    {"name": "pseudo", "weights": {"pseudo": 1.0}},
]
MIXED = [{"name": "both", "weights": {"ctc": 0.5, "pseudo": 0.5}}]


@pytest.fixture(scope="module")
def bpe_teacher(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bpe")
    torch.manual_seed(1)
    config = subword(teacher_config(corpus), write_tokenizer(folder / "tokenizer"))
    # NeMo's transcribe() looks into it.
    config["validation_ds"] = {"manifest_filepath": None, "shuffle": False}
    model = EncDecCTCModelBPE(OmegaConf.create(config))
    model.save_to(str(folder / "teacher.nemo"))
    return folder / "teacher.nemo"


def test_hypotheses_are_what_the_teacher_transcribes(corpus, bpe_teacher, tmp_path):
    import soundfile

    for path in (
        bpe_teacher,
        teacher_models.save("hybrid", corpus, tmp_path / "h.nemo"),
        teacher_models.save("transducer", corpus, tmp_path / "t.nemo"),
    ):
        teacher, model = LiveTeacher.from_config(TeacherConfig(model_path=str(path))), restore_ctc(path)
        signal = torch.tensor(soundfile.read(corpus / "train3.wav", dtype="float32")[0])[None]
        given = teacher.targets(
            TrainingBatch(signal, torch.tensor([signal.shape[1]])), TargetRequest(hypotheses=True)
        )
        if hasattr(model, "ctc_decoder"):
            model.change_decoding_strategy(decoder_type="ctc")
        (expected,) = model.transcribe([str(corpus / "train3.wav")], verbose=False)
        assert given.hypotheses[0].text == expected.text and given.log_probs is None
        assert (given.hypotheses[0].confidence is None) == (not teacher.has_posteriors)


def test_a_teacher_of_pieces_teaches_a_student_of_characters(corpus, bpe_teacher, make_student):
    model = make_student(student_config(corpus, bpe_teacher, STAGES), max_epochs=2)
    model.trainer.fit(model)
    logged = model.trainer.logged_metrics
    assert torch.isfinite(logged["train_pseudo"]) and "train_ctc" not in logged
    assert model.distiller.stage == 1 and list(model.decoder.vocabulary) != model.distiller.teacher.labels


def test_pseudo_labels_beside_transcripts_and_filtered(corpus, teacher_file, make_student):
    """Every hypothesis of an untrained teacher is wrong against the transcript: nothing is left but CTC."""
    model = make_student(
        student_config(corpus, teacher_file, MIXED, pseudo_labels={"max_wer": 0.0}), max_epochs=1
    )
    model.trainer.fit(model)
    logged = model.trainer.logged_metrics
    assert logged["train_pseudo"] == 0 and logged["train_ctc"] > 0
    assert logged["train_loss"] == pytest.approx(0.5 * float(logged["train_ctc"]))


def test_a_transducer_has_no_confidence(corpus, make_student, tmp_path):
    path = teacher_models.save("transducer", corpus, tmp_path / "t.nemo")
    model = make_student(student_config(corpus, path, STAGES, pseudo_labels={"min_confidence": 0.5}))
    with pytest.raises(TutorError, match="so its hypotheses have no confidence"):
        model.trainer.fit(model)


@pytest.mark.parametrize("student", [None, torch.bfloat16])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_transducer_decodes_in_fp32_whatever_runs_around_it(corpus, tmp_path, precision, student):
    """Its LSTM takes no mixture: neither of a bf16 encoder's output, nor under the autocast of a student in
    mixed precision.
    """
    path = teacher_models.save("transducer", corpus, tmp_path / "t.nemo")
    teacher = LiveTeacher.from_config(TeacherConfig(model_path=str(path), precision=precision))
    signal = torch.randn(2, 16000, generator=torch.Generator().manual_seed(0))
    with torch.autocast("cpu", dtype=student or torch.bfloat16, enabled=student is not None):
        given = teacher.targets(
            TrainingBatch(signal, torch.tensor([16000, 12000])), TargetRequest(hypotheses=True)
        )
    assert len(given.hypotheses) == 2


def test_the_transcript_is_compared_as_the_student_writes(corpus, make_student):
    labels = PseudoLabels.for_student(
        PseudoLabelsConfig(max_wer=0.0), make_student(student_config(corpus, None))
    )
    reference = torch.tensor([[LABELS.index(character) for character in "ab cd"]])
    _, lengths = labels.targets(
        [Hypothesis("Ab, cd.", 0.9)], reference, torch.tensor([5]), torch.tensor([30])
    )
    assert dict(labels.counts) == {"kept": 1} and lengths.tolist() == [5]


@pytest.mark.parametrize(
    ("kind", "text", "fate"),
    [
        ("char", "ab, cd.", "kept"),
        ("char", "Ab, cd.", "kept"),
        ("char", "größe", "not_in_vocabulary"),
        ("char", "ab 12", "not_in_vocabulary"),
        ("bpe", "ab cd", "kept"),
        ("bpe", "größe", "not_in_vocabulary"),
        ("char", "ab" * 40, "too_long"),
        ("bpe", "ab " * 40, "too_long"),
    ],
)
def test_what_a_student_cannot_say_is_not_taught_in_part(corpus, make_student, tmp_path, kind, text, fate):
    if kind == "bpe":
        config = subword(student_config(corpus, None), write_tokenizer(tmp_path / "tokenizer"))
        student = TutorCTCModelBPE(OmegaConf.create({"model": config}).model)
    else:
        student = make_student(student_config(corpus, None))
    labels = PseudoLabels.for_student(PseudoLabelsConfig(), student)
    nothing = torch.zeros(1, 1, dtype=torch.long)
    _, lengths = labels.targets([Hypothesis(text, 0.9)], nothing, torch.tensor([0]), torch.tensor([30]))
    assert dict(labels.counts) == {fate: 1} and bool(lengths[0] > 0) == (fate == "kept")
