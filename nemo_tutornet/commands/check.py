# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""What a training would do, before it does it: both sides built from the config, matched, timed, and the
teacher tried out.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from nemo_tutornet.config import TutorConfig, parse_tutor
from nemo_tutornet.data.dataloader import drop_sample_ids
from nemo_tutornet.data.manifest import check_manifests
from nemo_tutornet.distill.distiller import Distiller
from nemo_tutornet.distill.matching import ModelMatch
from nemo_tutornet.errors import TutorError
from nemo_tutornet.evaluation.error_rates import count_errors, sum_errors
from nemo_tutornet.functional.schedule import Schedule, Stage
from nemo_tutornet.models import TutorCTCModel, TutorCTCModelBPE
from nemo_tutornet.nemo_io.isolation import suppress_nemo_logs
from nemo_tutornet.teachers.cached import CachedTeacher
from nemo_tutornet.teachers.live import Teacher

_ROUNDS = 3


@dataclass(frozen=True)
class StageCost:
    """A stage, and one step of it on the first training batch.

    Attributes:
        name: of the stage.
        length: in words.
        losses: the losses and their weights, in words.
        terms: each loss of that step, not weighted.
        step_ms: forward, losses and backward, median of a few; the optimizer's step is not in it.
    """

    name: str
    length: str
    losses: str
    terms: dict[str, float]
    step_ms: float


@dataclass(frozen=True)
class PreflightReport:
    """What `check` found.

    Attributes:
        student, teacher: facts by name, in words.
        matches: what is matched with what, in words.
        stages: the schedule with what a step costs.
        batch: the batch that was timed, in words.
        plain_ms, teacher_ms: the student's forward and the teacher's on that batch, in eval mode; None for a
            cached teacher.
        peak_mb: the most memory that this process held, with both models and steps of every stage on that
            batch; None where the system does not tell (Windows).
        teacher_wer: on the first validation batches; None for audio without transcripts and for a cached
            teacher.
        heard: reference and the teacher's hypothesis of the first utterance.
        remarks: sentences that a person should read before the night.
    """

    student: dict[str, str]
    teacher: dict[str, str]
    matches: dict[str, str]
    stages: list[StageCost]
    batch: str
    plain_ms: float
    teacher_ms: float | None
    peak_mb: float | None
    teacher_wer: float | None
    heard: list[str] | None
    remarks: list[str]

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)


def check_training(cfg: Any, batches: int = 4) -> PreflightReport:
    """Builds student and teacher as the training script would, and looks at them; nothing is trained and
    nothing written.

    Args:
        cfg: the script's whole config.
        batches: of the validation set that the teacher transcribes.

    Raises:
        TutorError: whatever would stop the training, or would have it train nothing.
    """
    config = parse_tutor(cfg.model)
    if config is None:
        raise TutorError(
            "model.tutor is not there, so there is nothing to check: this config trains without a teacher."
        )
    limits = cfg.get("trainer") or {}
    epochs, steps = limits.get("max_epochs"), limits.get("max_steps", -1)
    for key, value in (("max_epochs", epochs), ("max_steps", steps)):
        if value is not None and not isinstance(value, (int, float)):
            raise TutorError(f"trainer.{key} is {str(value)[:100]}, but it must be a number.")
    if epochs is None and steps == -1 and limits.get("max_time") is None:
        epochs = 1000  # Lightning's
    told = config.unused() + Schedule.from_config(config.stages).check(epochs, steps)
    told += check_manifests(cfg.model)
    with suppress_nemo_logs():
        model: Any = (TutorCTCModelBPE if cfg.model.get("tokenizer") else TutorCTCModel)(cfg=cfg.model)
        if cfg.model.train_ds.get("defer_setup"):
            model.setup_training_data(cfg.model.train_ds)
    tutor = Distiller(model, config)
    teacher, pairing, schedule = tutor.teacher, tutor.pairing, tutor.schedule
    batch = next(iter(model._train_dl))
    student_ms = _median_ms(lambda: model(input_signal=batch[0], input_signal_length=batch[1]), model)
    teacher_ms, facts = (
        None,
        teacher.facts if isinstance(teacher, CachedTeacher) else _facts(teacher.model, teacher.model.cfg),
    )
    if isinstance(teacher, Teacher):
        facts = {"file": config.teacher.model_path, **facts}
        teacher_ms = _median_ms(
            lambda: teacher(batch[0], batch[1], hidden=True, posteriors=teacher.head is not None), None
        )
    costs = [_cost(model, tutor, stage, batch) for stage in schedule.stages]
    wer, heard = _teacher_wer(model, tutor, batches)
    return PreflightReport(
        student=_facts(model, cfg.model),
        teacher=facts,
        matches=_matches(tutor, config),
        stages=costs,
        batch=f"{batch[0].shape[0]} utterances of up to {batch[0].shape[1] / teacher.sample_rate:.1f} s, on "
        "the CPU",
        plain_ms=student_ms,
        teacher_ms=teacher_ms,
        peak_mb=_peak_mb(),
        teacher_wer=wer,
        heard=heard,
        remarks=told + _remarks(pairing, config, student_ms, teacher_ms, wer, costs) + _unused(tutor),
    )


def _unused(tutor: Distiller) -> list[str]:
    """Whether the student can learn from no hypothesis of the first training batch."""
    counts = tutor.pseudo_labels.counts
    if not counts or counts["kept"]:
        return []
    return [
        "None of the teacher's hypotheses on the first training batch can be used "
        f"({', '.join(sorted(counts))}): see "
        "model.tutor.pseudo_labels, and model.train_ds.normalize_transcripts for a teacher that writes "
        "figures and signs."
    ]


def _facts(model: Any, config: Any) -> dict[str, str]:
    parameters = sum(p.numel() for p in model.parameters())
    preprocessor = config.preprocessor
    labels = getattr(getattr(model, "ctc_decoder", None) or model.decoder, "vocabulary", None)
    return {
        "class": type(model).__name__,
        "parameters": f"{parameters / 1e6:.2f} M ({parameters * 4 / 1e6:.0f} MB in fp32)",
        "front end": f"{model.preprocessor._sample_rate} Hz, {preprocessor.get('features')} mel bins",
        "labels": "none on frames" if labels is None else f"{len(labels)} and the blank",
    }


def _matches(tutor: Distiller, config: TutorConfig) -> dict[str, str]:
    teacher, pairing = tutor.teacher, tutor.pairing

    def layer(found: Any) -> str:
        return f"{found.path} ({found.width} wide, {found.frame_ms:g} ms)"

    def frames(mine: float, theirs: float) -> str:
        if mine == theirs:
            return "one to one"
        return (
            f"each teacher frame on {theirs / mine:g} of the student's"
            if mine < theirs
            else f"{mine / theirs:g} teacher frames pooled"
        )

    matched = {}
    if config.uses("rkd"):
        matched["RKD"] = (
            f"{layer(pairing.hint)} -> {layer(pairing.guided)}, "
            f"{frames(pairing.guided.frame_ms, pairing.hint.frame_ms)}"
        )
        matched["frame weighting"] = pairing.frame_weighting
        if config.rkd.warm_start_decoder:
            matched["decoder warm start"] = f"no: {pairing.no_warm_start}" if pairing.no_warm_start else "yes"
    if config.uses("skd"):
        rates = frames(pairing.student_encoder.frame_ms, pairing.teacher_encoder.frame_ms)
        order = "the same order" if pairing.label_order is None else "another order"
        matched["SKD"] = (
            f"{config.skd.divergence}, {len(teacher.labels)} labels in {order} and the blank, {rates}"
        )
        for other in config.other_teachers:
            matched["SKD"] += (
                f"; averaged with {other.model_path or other.cache} ({other.weight:g} to "
                f"{config.teacher.weight:g})"
            )
        if pairing.heads:
            weight = f"weight {config.skd.intermediate_weight:g}"
            matched["Inter-KD"] = "; ".join(
                f"{layer(head)}, {frames(head.frame_ms, pairing.teacher_encoder.frame_ms)}, {weight}"
                for head in pairing.heads
            )
    if config.uses("pseudo"):
        matched["pseudo-labels"] = "the teacher's text in the student's labels"
    return matched


def _cost(model: Any, tutor: Distiller, stage: Stage, batch: Sequence[Tensor]) -> StageCost:
    """One stage's losses on a batch, forward and backward, a few times; gradients are dropped and nothing
    moves.
    """
    signal, lengths, transcripts, transcript_lengths = drop_sample_ids(batch)

    def once() -> dict[str, float]:
        targets = tutor.targets(stage, batch)
        with tutor.watch(model, batch) as watch:
            log_probs, frames, _ = model(input_signal=signal, input_signal_length=lengths)
            step = tutor.step(stage, targets, watch)
            step.total(
                watch.ctc(log_probs, frames, transcripts, transcript_lengths) if stage.uses("ctc") else None
            ).backward()
        model.zero_grad(set_to_none=True)
        return {name.removeprefix("train_"): float(value) for name, value in step.logs.items()}

    terms = once()
    wrong = [name for name, value in terms.items() if not torch.isfinite(torch.tensor(value))]
    if wrong:
        raise TutorError(
            f"stage {stage.name!r}: the loss {wrong[0]} is not finite on the first batch; look at that data."
        )
    times = []
    for _ in range(_ROUNDS):
        start = time.perf_counter()
        once()
        times.append(1000 * (time.perf_counter() - start))
    length = _length(stage, tutor.schedule.unit)
    weights = ", ".join(f"{weight:g} x {name}" for name, weight in stage.weights.items())
    return StageCost(stage.name, length, weights, terms, statistics.median(times))


def _length(stage: Stage, unit: str) -> str:
    if stage.length is None:
        return "to the end"
    return f"{100 * stage.length:g} % of the training" if unit == "share" else f"{stage.length:g} {unit}"


def _peak_mb() -> float | None:
    try:
        import resource
    except ImportError:  # Windows has none
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)  # bytes there, kilobytes elsewhere


def _median_ms(run: Callable[[], Any], model: Any) -> float:
    """Median of a few runs in eval mode; the first pays for warming up."""
    if model is not None:
        model.eval()
    times = []
    with torch.no_grad():
        for _ in range(_ROUNDS + 1):
            start = time.perf_counter()
            run()
            times.append(1000 * (time.perf_counter() - start))
    if model is not None:
        model.train()
    return statistics.median(times[1:])


def _teacher_wer(model: Any, tutor: Distiller, batches: int) -> Any:
    """WER of the teacher's own decoding on the first validation batches, and the first pair of texts."""
    loaders = model._validation_dl
    loader = loaders[0] if isinstance(loaders, (list, tuple)) else loaders
    if loader is None or isinstance(tutor.teacher, CachedTeacher):
        return None, None
    pairs = []
    for signal, lengths, transcripts, transcript_lengths, *_ in islice(loader, batches):
        given = tutor.teacher(signal, lengths, hidden=False, posteriors=False, hypotheses=True)
        assert given.hypotheses is not None
        for i, hypothesis in enumerate(given.hypotheses):
            if transcript_lengths[i] > 0:
                reference = tutor.pseudo_labels.decode(transcripts[i, : int(transcript_lengths[i])].tolist())
                pairs.append((reference, hypothesis.text))
    if not pairs:
        return None, None
    return sum_errors([count_errors(reference, hypothesis) for reference, hypothesis in pairs]).rate, list(
        pairs[0]
    )


def _remarks(
    pairing: ModelMatch,
    config: TutorConfig,
    student_ms: float,
    teacher_ms: float | None,
    wer: float | None,
    costs: Sequence[StageCost],
) -> list[str]:
    remarks = []
    if wer is not None and wer > 0.5:
        remarks.append(
            f"The teacher's WER on your validation data is {100 * wer:.0f} %: it may be the wrong teacher "
            "(language, casing, "
            f"sample rate), and a student learns its mistakes."
        )
    if teacher_ms is not None and student_ms >= teacher_ms:
        remarks.append(
            f"The student is no faster than its teacher here ({student_ms:.0f} ms against {teacher_ms:.0f} "
            "ms on the same batch)."
        )
    if config.uses("rkd") and config.rkd.warm_start_decoder and pairing.no_warm_start:
        remarks.append(f"The decoder will not be warm-started after RKD: {pairing.no_warm_start}")
    if any("ctc" in cost.terms and cost.terms["ctc"] == 0 for cost in costs):
        remarks.append("The first training batch has no transcript, so CTC counted nothing in it.")
    return remarks
