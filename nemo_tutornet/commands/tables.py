# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""Tables that the commands print."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from nemo_tutornet.evaluation.scoring import Evaluation, no_faster
from nemo_tutornet.evaluation.text_processing import TextProcessing
from nemo_tutornet.export.summary import Verification
from nemo_tutornet.nemo_io.model_info import front_end_in_words
from nemo_tutornet.nemo_io.prompt import prompt_in_words
from nemo_tutornet.utils.progress import Progress, of_total

if TYPE_CHECKING:  # they import torch or NeMo, and a mistake in an argument should not cost those seconds
    from nemo_tutornet.commands.adapt import AdaptResult
    from nemo_tutornet.commands.adapter_training import EpochResult
    from nemo_tutornet.commands.cache_size import ViewSize
    from nemo_tutornet.commands.check import PreflightReport
    from nemo_tutornet.commands.inspect_model import Inspection


def evaluation_table(results: Sequence[Evaluation], names: Sequence[str] | None = None) -> None:
    """Prints one row per model and runtime, and a sentence for each smaller model that is no faster than a
    larger one.

    Args:
        results: results of `evaluate`.
        names: first column; None prints the models' files.
    """
    table = Table(
        title=_title(results), caption="RTF: seconds of computing per second of audio", box=box.SIMPLE_HEAD
    )
    table.add_column("model", overflow="fold")
    table.add_column("runtime", no_wrap=True)
    for column in ("WER %", "95 % interval", "sub/del/ins", "CER %", "params", "MB", "RTF"):
        table.add_column(column, justify="right", no_wrap=True)
    several_decoders = any(result.decoder != "ctc" for result in results)
    for i, result in enumerate(results):
        table.add_row(
            escape(names[i] if names else result.model),
            f"{result.runtime}, {result.decoder}" if several_decoders else result.runtime,
            f"{100 * result.wer:.2f}",
            f"{100 * result.wer_low:.2f} - {100 * result.wer_high:.2f}",
            f"{result.substitutions}/{result.deletions}/{result.insertions}",
            f"{100 * result.cer:.2f}",
            f"{result.parameters / 1e6:.2f} M",
            f"{result.megabytes:.1f}",
            f"{result.real_time_factor:.4f}",
        )
    console = _console()
    console.print(table)
    if results[0].untranscribed:
        console.print(
            f"{results[0].untranscribed} rows of the manifest have no transcript and were left out."
        )
    processed = TextProcessing(**results[0].text_processing).in_words()
    if processed:
        console.print(escape(f"text processing of transcripts and hypotheses alike: {processed}"))
    if results[0].channel is not None:
        console.print(f"channel of audio with several: {results[0].channel}")
    for result in results:
        if result.never_written_transcripts:
            console.print(escape(result.unwritable.in_words(result.model)))
    for sentence in no_faster(results):
        console.print(escape(sentence))


def verification_table(verification: Verification) -> None:
    """Prints one row per check.

    Args:
        verification: verification of a student.
    """
    table = Table(box=box.SIMPLE_HEAD)
    for column in ("", "check", "found"):
        table.add_column(column, overflow="fold")
    for check in verification.checks:
        table.add_row("ok" if check.passed else "WRONG", escape(check.name), escape(check.found))
    _console().print(table)


def inspection_table(inspection: Inspection) -> None:
    """Prints the facts about a recogniser, the methods it can teach with, and one row per layer that can be
    matched.

    Args:
        inspection: result of `inspect_model`.
    """
    info, front_end, first = inspection.info, inspection.info.front_end, inspection.first_labels
    more = " ..." if len(info.labels) > len(first) else ""
    skd = "SKD" if info.has_ctc_head else "no SKD (without a CTC head there are no posteriors on frames)"
    facts = Table(box=None, show_header=False, pad_edge=False)
    for name, fact in (
        ("model", inspection.model),
        ("class", info.target),
        ("parameters", f"{info.parameters:,}"),
        (
            "front end",
            f"{front_end_in_words(front_end.sample_rate, front_end.mel_bins)}, "
            f"window {front_end.window_ms:g} ms, stride {front_end.stride_ms:g} ms, "
            f"normalize {front_end.normalize}",
        ),
        (
            "labels",
            f"{len(info.labels)} {info.label_kind}{f' ({info.tokenizer})' if info.tokenizer else ''}: "
            f"{' '.join(map(repr, first))}{more}",
        ),
        *([("prompt", prompt_in_words(info.prompt))] if info.prompt else []),
        ("frame", f"{inspection.frame_ms:g} ms"),
        ("can teach", f"RKD (frame weighting auto: {inspection.frame_weighting}), {skd}"),
        *(
            [("other labels", "for a student with characters or other subwords: nemo-tutornet adapt")]
            if info.tokenizer
            else []
        ),
    ):
        facts.add_row(name, escape(fact))
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("hint or guided layer", overflow="fold")
    for column in ("width", "ms a frame", "stride"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("auto weighting as hint layer", no_wrap=True)
    for layer in inspection.layers:
        table.add_row(
            escape(layer.path),
            str(layer.width),
            f"{layer.frame_ms:g}",
            f"{layer.stride:g}",
            layer.frame_weighting,
        )
    console = _console()
    console.print(facts)
    console.print(table)


@contextmanager
def epoch_report() -> Iterator[Callable[[str, EpochResult], None]]:
    """Yields a function that shows the epochs of trainings, one after the other: a bar each on a terminal,
    lines in a log. It takes a training's name and an epoch's result.
    """
    with ExitStack() as stack:
        shown: dict[str, Progress] = {}

        def report(part: str, result: EpochResult) -> None:
            # It appears with the first epoch; before it, the teacher's own progress is shown.
            if part not in shown:
                stack.close()  # the training before has ended
                progress = Progress(part, result.epochs, of_total(result.epochs, "epochs"))
                shown[part] = stack.enter_context(progress.start_at(result.epoch - 1))
            words = (
                f"loss {result.loss:.2f}, WER {100 * result.wer:.1f} % (best {100 * result.best_wer:.1f} %)"
            )
            shown[part].update(result.epoch, words, line=result.epoch == result.epochs)

        yield report


def adapter_table(made: AdaptResult, overrides: str, poor: bool) -> None:
    """Prints an adapter's word error rate next to its teacher's, and how to use the file.

    Args:
        made: the summary of the run.
        overrides: those of the training script that use the files.
        poor: the adapter makes clearly more errors than its teacher.
    """
    table = Table(box=box.SIMPLE_HEAD, title="validation")
    table.add_column("")
    table.add_column("WER %", justify="right")
    table.add_row("teacher, its own labels", f"{100 * made.teacher_wer:.2f}")
    table.add_row("adapter, the student's labels", f"{100 * made.wer:.2f}")
    console = _console()
    console.print(table)
    texts = f"{made.utterances} utterances" if made.utterances else "the training set, encoded in every epoch"
    own = "the text of an adapter of the transcripts alone"
    given = "the teacher's text" if made.hypotheses_of == "teacher" else own
    texts += f" ({made.pseudo_labelled} with {given})" if made.pseudo_labelled else ""
    console.print(
        escape(
            f"{made.path}: {made.labels} labels and the blank, {made.frame_ms:g} ms frames "
            f"({made.upsampling} for each frame of the teacher), {made.parameters / 1e6:.2f} M parameters; "
            f"epoch {made.best_epoch} of {made.epochs}, {texts}, {made.minutes:.1f} min."
        )
    )
    console.print(escape(f"Train with {overrides}"), soft_wrap=True)  # one line, to be pasted
    if made.utterances:
        console.print(
            escape(
                f"{made.work} holds the encoder's output, so that the training needs no teacher; delete it "
                "after the last training."
            )
        )
    else:
        console.print(escape(f"{made.work} can be deleted."))
    if poor:
        console.print(
            f"note: the adapter makes {made.wer / max(made.teacher_wer, 1e-9):.2f} times its teacher's "
            "errors; more epochs (--epochs), more transcribed speech or a wider adapter (--width) may help."
        )


def check_tables(found: PreflightReport) -> None:
    """Prints student, teacher, the matched layers and labels, the cost of each stage, and the warnings.

    Args:
        found: report of `check_training`.
    """
    console = _console()
    parts = {"student": found.student, "teacher": found.teacher, "matched": found.matches}
    if found.data:
        parts["training set, by manifest"] = found.data
    for title, facts in parts.items():
        table = Table(title=title, title_justify="left", box=None, show_header=False, pad_edge=False)
        for name, fact in facts.items():
            table.add_row(escape(name), escape(fact))
        console.print(table, "")
    table = Table(title=f"stages; a step on {found.batch}", title_justify="left", box=box.SIMPLE_HEAD)
    for column in ("stage", "length", "losses", "on the first batch", "ms a step"):
        table.add_column(column, overflow="fold")
    for stage in found.stages:
        terms = ", ".join(f"{name} {value:.4g}" for name, value in stage.terms.items())
        table.add_row(escape(stage.name), stage.length, stage.losses, terms, f"{stage.step_ms:.0f}")
    console.print(table)
    teacher = "read from its cache" if found.teacher_ms is None else f"{found.teacher_ms:.0f} ms"
    held = "" if found.peak_mb is None else f"; this check held {found.peak_mb:.0f} MB"
    console.print(f"forward alone: student {found.plain_ms:.0f} ms, teacher {teacher}{held}")
    if found.teacher_wer is not None and found.first_pair is not None:
        console.print(f"teacher's WER on the first validation batches: {100 * found.teacher_wer:.1f} %")
        reference, hypothesis = map(escape, found.first_pair)
        console.print(f"  first reference:      {reference}\n  teacher's hypothesis: {hypothesis}")
    if found.cache:
        console.print(_cache_table(found.cache))
    for remark in found.remarks:
        console.print(escape(f"note: {remark}"))


def _cache_table(sizes: Sequence[ViewSize]) -> Table:
    """Makes the table of what `nemo-tutornet cache` would write, with a row for each speed and their sum."""
    table = Table(
        title="a cache of the teacher's targets would hold (computed from the first batch)",
        title_justify="left",
        box=box.SIMPLE_HEAD,
        show_footer=len(sizes) > 1,
    )
    table.add_column("speed", footer="all")
    table.add_column("hours of audio", footer=f"{sum(one.hours for one in sizes):.2f}", justify="right")
    table.add_column("MB", footer=f"{sum(one.megabytes for one in sizes):.1f}", justify="right")
    for one in sizes:
        table.add_row(one.view, f"{one.hours:.2f}", f"{one.megabytes:.1f}")
    return table


def _console() -> Console:
    # A pipe has no width, and 80 columns would fold the names of files.
    return Console(width=None if sys.stdout.isatty() else 140)


def _title(results: Sequence[Evaluation]) -> str:
    first = results[0]
    return f"{first.utterances} utterances, {first.hours:.2f} h, {first.reference_words} words"
