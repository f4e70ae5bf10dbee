# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""Dry run of a training: builds and matches student and teacher, times a step, and evaluates the teacher."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from typing import Any

from nemo_tutornet.commands.cache_size import ViewSize, cache_sizes
from nemo_tutornet.commands.dry_run import epoch_steps, first_batch, make_trainer
from nemo_tutornet.commands.step_timing import StageCost, cost_of_views, median_ms, peak_mb, stage_cost
from nemo_tutornet.config import check_student, check_teacher_files, check_trainer
from nemo_tutornet.data.damaged_audio import decode_all, guard_audio
from nemo_tutornet.data.dataloader import TrainingBatch
from nemo_tutornet.data.manifest_checks import check_manifests
from nemo_tutornet.data.mixing import manifest_shares
from nemo_tutornet.distill.consistency import check_views
from nemo_tutornet.distill.distiller import Distiller
from nemo_tutornet.distill.init_student import check_other_weights, init_student
from nemo_tutornet.distill.objective import read_tutor_section
from nemo_tutornet.distill.transcripts import check_transcripts, data_sets
from nemo_tutornet.errors import TutorError, refusing, shown
from nemo_tutornet.evaluation.error_rates import count_errors, sum_errors
from nemo_tutornet.functional.fft_depthwise import fourier_depthwise, with_fourier_depthwise
from nemo_tutornet.functional.schedule import Schedule
from nemo_tutornet.models import model_class_for
from nemo_tutornet.nemo_io.isolation import suppress_nemo_logs
from nemo_tutornet.nemo_io.model_info import describe_model
from nemo_tutornet.teachers.adapter import is_poor
from nemo_tutornet.teachers.targets import TargetRequest
from nemo_tutornet.utils.progress import PartReport, no_report

_MOST_OF_A_STEP = 0.5  # the share of a step that a live teacher may take without a warning
# Fewer than in a training, because only the first losses depend on them here.
_FITTED_ON = 50
_MOST_NAMED = 20


@dataclass(frozen=True)
class PreflightReport:
    """Results of `check_training`.

    Attributes:
        student: facts about the student by name, as text.
        teacher: facts about the teacher by name, as text.
        matches: the matched layers, labels and frames by method, as text.
        data: what an epoch draws from each manifest of the training set, as text; empty for tars and Lhotse.
        stages: the stages of the schedule, with the time of one step.
        batch: description of the timed batch, as text.
        plain_ms: milliseconds of the student's forward on that batch, in eval mode.
        teacher_ms: milliseconds of the teacher's forward on that batch, in eval mode; None for a cached
            teacher.
        peak_mb: peak memory of this process in megabytes, with both models and steps of every stage on that
            batch; None where the system does not report it (Windows).
        teacher_wer: the teacher's WER on the first validation batches, as a fraction; None for audio without
            transcripts and for a cached teacher.
        first_pair: reference and teacher's hypothesis of the first utterance.
        cache: what a cache of a live teacher's targets would hold, for each speed of the training set; empty
            where there can be none, and for a training from a cache.
        remarks: problems worth knowing before a long run.
    """

    student: dict[str, str]
    teacher: dict[str, str]
    matches: dict[str, str]
    data: dict[str, str]
    stages: list[StageCost]
    batch: str
    plain_ms: float
    teacher_ms: float | None
    peak_mb: float | None
    teacher_wer: float | None
    first_pair: list[str] | None
    cache: list[ViewSize]
    remarks: list[str]

    def as_dict(self) -> dict[str, Any]:
        """Converts the report to plain values, for JSON."""
        return asdict(self)


def check_training(
    cfg: Any, batches: int = 4, report: PartReport = no_report, decode: bool = False
) -> PreflightReport:
    """Builds student and teacher as the training script would, and reports what it found.

    No parameter is trained, and no file is written.

    Args:
        cfg: the whole config of the training script.
        batches: number of validation batches that the teacher transcribes.
        report: shows what is being done.
        decode: decode every audio file of the training and validation sets, and report damaged ones.

    Returns:
        The report.

    Raises:
        TutorError: the training would stop with an error, or would train nothing.
    """
    config = read_tutor_section(cfg.model)
    if config is None or config.without_teacher:
        views = "; each step runs it on two views of each utterance, and takes about twice as long"
        raise TutorError(
            f"model.tutor{'.teacher is null' if config else ' is not there'}, so there is nothing to check: "
            f"this config trains the student without a teacher{views if config else ''}."
        )
    check_teacher_files(config)
    check_other_weights(cfg, config)
    check_student(cfg.model)
    check_trainer(cfg)
    epochs, steps = cfg.trainer.get("max_epochs"), cfg.trainer.get("max_steps")
    steps = -1 if steps is None else steps
    if epochs is None and steps == -1 and cfg.trainer.get("max_time") is None:
        epochs = 1000  # Lightning's default
    warnings = config.unused() + config.reduction_warning()
    schedule = Schedule.from_config(config.stages)
    schedule.check(epochs, steps)
    warnings += check_manifests(cfg.model)
    report("loading student and teacher")
    with suppress_nemo_logs():
        trainer = make_trainer(cfg)
        with refusing("the student"):
            model: Any = model_class_for(cfg.model)(cfg=cfg.model, trainer=trainer)
            if cfg.model.train_ds.get("defer_setup"):
                model.setup_training_data(cfg.model.train_ds)
            if cfg.get("fourier_depthwise"):  # as the training script does
                fourier_depthwise(model)
    warnings += check_transcripts(model)
    for section, loader in data_sets(model):
        data = cfg.model.get(section.removeprefix("model."))
        damaged = decode_all(loader, section, report, data) if decode else []
        warnings += damaged[:_MOST_NAMED]
        if len(damaged) > _MOST_NAMED:
            warnings.append(f"{section}: {len(damaged)} problems of its audio in all.")
        guard_audio(loader, section, 0.0)
    with suppress_nemo_logs():
        batch = TrainingBatch.from_nemo(first_batch(model, trainer))
    warnings += schedule.unreached(epochs, steps, epoch_steps(cfg, trainer))
    distiller = model.distiller
    matches = _matches(distiller)
    if config.init.source is not None:
        copied = init_student(model, distiller, _FITTED_ON)
        matches["init"] = copied.copied
        warnings += copied.warnings
    teacher = distiller.teacher
    audio = {"input_signal": batch.signal, "input_signal_length": batch.signal_lengths}
    report("timing student and teacher")
    with with_fourier_depthwise(model):  # as a teacher always is
        student_ms = median_ms(lambda: model(**audio), model)
    teacher_ms = None
    if not teacher.from_cache:
        everything = TargetRequest(hidden=True, posteriors=teacher.has_posteriors)
        teacher_ms = median_ms(lambda: teacher.targets(batch, everything), None)
    costs = []
    for stage in distiller.schedule.stages:
        report(f"timing a step of stage {stage.name}")
        with refusing(f"stage {shown(stage.name)}"):
            costs.append(stage_cost(model, distiller, stage, batch))
    warnings += check_views(model, config.consistency)
    warnings += cost_of_views(model, distiller, batch, costs)
    wer, first_pair = _teacher_wer(model, distiller, batches, report)
    warnings += _warnings(distiller, student_ms, teacher_ms, wer, costs)
    seconds = batch.signal.shape[1] / teacher.sample_rate
    return PreflightReport(
        student=describe_model(model).as_facts(),
        teacher=teacher.describe(),
        matches=matches,
        data={
            f"{i}. {share.manifest}": str(share)
            for i, share in enumerate(
                manifest_shares(model._train_dl, cfg.model.train_ds, config.manifest_weights), start=1
            )
        },
        stages=costs,
        batch=f"{batch.signal.shape[0]} utterances of up to {seconds:.1f} s, on the CPU",
        plain_ms=student_ms,
        teacher_ms=teacher_ms,
        peak_mb=peak_mb(),
        teacher_wer=wer,
        first_pair=first_pair,
        cache=cache_sizes(model, distiller, batch),
        remarks=warnings,
    )


def _matches(distiller: Distiller) -> dict[str, str]:
    teacher, match, config = distiller.teacher, distiller.match, distiller.config

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
        matched["RKD"] = "; ".join(
            f"{layer(pair.hint)} -> {layer(pair.guided)}, {frames(pair.guided.frame_ms, pair.hint.frame_ms)}"
            for pair in match.pairs
        )
        matched["frame weighting"] = match.frame_weighting
        if config.rkd.warm_start_decoder:
            matched["decoder warm start"] = f"no: {match.no_warm_start}" if match.no_warm_start else "yes"
    if config.uses("skd"):
        rates = frames(match.student_encoder.frame_ms, match.teacher_encoder.frame_ms)
        order = "the same order" if match.label_order is None else "another order"
        matched["SKD"] = (
            f"{config.skd.divergence}, {len(teacher.labels)} labels in {order} and the blank, {rates}"
        )
        for other in config.other_teachers:
            matched["SKD"] += (
                f"; averaged with {other.model_path or other.cache} ({other.weight:g} to "
                f"{config.teacher.weight:g})"
            )
        if match.heads:
            weight = f"weight {config.skd.intermediate_weight:g}"
            matched["Inter-KD"] = "; ".join(
                f"{layer(head)}, {frames(head.frame_ms, match.teacher_encoder.frame_ms)}, {weight}"
                for head in match.heads
            )
    if config.uses("pseudo"):
        adapter = distiller.teacher.adapter
        writer = "adapter" if adapter is not None and adapter.writes_hypotheses else "teacher"
        matched["pseudo-labels"] = f"the {writer}'s text in the student's labels"
    return matched


def _teacher_wer(
    model: Any, distiller: Distiller, batches: int, report: PartReport
) -> tuple[float, list[str]] | tuple[None, None]:
    """Computes the WER of a live teacher on the first validation batches.

    Returns:
        The WER as a fraction, and the first pair of reference and hypothesis. Both are None for a cached
        teacher, without validation data and without transcripts.
    """
    loaders, teacher = model._validation_dl, distiller.teacher
    loader = loaders[0] if isinstance(loaders, (list, tuple)) else loaders
    if loader is None or teacher.from_cache:
        return None, None
    pairs = []
    total = min(batches, len(loader)) if hasattr(loader.dataset, "__len__") else batches
    for done, batch in enumerate(map(TrainingBatch.from_nemo, islice(loader, batches))):
        report("transcribing validation data with the teacher", done, total)
        hypotheses = teacher.targets(batch, TargetRequest(hypotheses=True)).hypotheses
        assert hypotheses is not None
        for i, hypothesis in enumerate(hypotheses):
            if batch.transcript_lengths[i] > 0:
                labels = batch.transcripts[i, : int(batch.transcript_lengths[i])].tolist()
                reference = distiller.pseudo_labels.decode(labels)
                if reference.split():  # labels of spaces alone would make the WER nan
                    pairs.append((reference, distiller.pseudo_labels.in_student_labels(hypothesis.text)))
    if not pairs:
        return None, None
    return sum_errors([count_errors(reference, hypothesis) for reference, hypothesis in pairs]).rate, list(
        pairs[0]
    )


def _warnings(
    distiller: Distiller,
    student_ms: float,
    teacher_ms: float | None,
    wer: float | None,
    costs: Sequence[StageCost],
) -> list[str]:
    warnings = []
    config, match = distiller.config, distiller.match
    adapter = distiller.teacher.adapter
    if adapter is not None and is_poor(adapter.wer, adapter.teacher_wer):
        warnings.append(
            f"The adapter's WER on its validation set is {100 * adapter.wer:.1f} %, and its teacher's "
            f"{100 * adapter.teacher_wer:.1f} %: SKD and frame weights are as poor as it is; train it longer "
            "or on more transcripts (`nemo-tutornet adapt`)."
        )
    if wer is not None and wer > 0.5:
        warnings.append(
            f"The teacher's WER on your validation data is {100 * wer:.0f} %: it may be the wrong teacher "
            "(language, casing, sample rate), and a student learns its mistakes."
        )
    if teacher_ms is not None and student_ms >= teacher_ms:
        warnings.append(
            f"The student is no faster than its teacher here ({student_ms:.0f} ms against {teacher_ms:.0f} "
            "ms on the same batch)."
        )
    # The last stage is the longest, as a rule.
    if teacher_ms is not None and teacher_ms > _MOST_OF_A_STEP * costs[-1].step_ms:
        warnings.append(
            f"The teacher alone takes {teacher_ms:.0f} ms on this CPU, a step {costs[-1].step_ms:.0f} ms; "
            "run it once with `nemo-tutornet cache` and train from its targets; a cache also serves several "
            "speeds."
        )
    if config.uses("rkd") and config.rkd.warm_start_decoder and match.no_warm_start:
        warnings.append(f"The decoder will not be warm-started after RKD: {match.no_warm_start}")
    if any("ctc" in cost.terms and cost.terms["ctc"] == 0 for cost in costs):
        warnings.append("The first training batch has no transcript, so CTC counted nothing in it.")
    dropped = distiller.pseudo_labels.counts
    if dropped and not dropped["kept"]:
        warnings.append(
            "None of the teacher's hypotheses on the first training batch can be used "
            f"({', '.join(sorted(dropped))}): see model.tutor.pseudo_labels, and, "
            "for English only, model.train_ds.normalize_transcripts if the teacher writes figures and signs."
        )
    return warnings
