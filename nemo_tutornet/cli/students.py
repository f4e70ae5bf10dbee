# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""Commands on finished students, and the demo."""

from __future__ import annotations

import json
from pathlib import Path

import typer

from nemo_tutornet.cli.app import CHANNEL, NOTHING_WRITTEN, WRITTEN_WHOLE, app
from nemo_tutornet.errors import TutorError, exit_on_user_error
from nemo_tutornet.utils.progress import report_parts
from nemo_tutornet.utils.signals import stop_on_signals


@app.command()
@exit_on_user_error
@stop_on_signals(WRITTEN_WHOLE)
def export(
    source: Path = typer.Argument(
        ...,
        metavar="RUN.ckpt|RUN.nemo|RUN_DIR",
        help="What training wrote, finished or interrupted; with --average, the run's folder.",
    ),
    destination: Path = typer.Argument(..., metavar="STUDENT.nemo", help="The stock .nemo to write."),
    onnx: Path | None = typer.Option(None, metavar="STUDENT.onnx", help="Write the network as ONNX too."),
    fp16: bool = typer.Option(False, "--fp16", help="Also STUDENT.fp16.onnx."),
    int8: bool = typer.Option(False, "--int8", help="Also STUDENT.int8.onnx, quantized; see --calibrate."),
    calibrate: Path | None = typer.Option(
        None, metavar="M.jsonl", help="Manifest to calibrate --int8 on; without it, it is dynamic."
    ),
    fixed_seconds: float | None = typer.Option(
        None, help="Write graphs for audio of this many seconds, without dynamic axes."
    ),
    sherpa: bool = typer.Option(
        False,
        "--sherpa",
        help="Also STUDENT.sherpa.onnx and STUDENT.tokens.txt for sherpa-onnx, and STUDENT.streaming.onnx of "
        "a cache-aware student.",
    ),
    onnx_asr: Path | None = typer.Option(
        None, "--onnx-asr", metavar="DIR", help="Write a folder that onnx-asr loads."
    ),
    card: Path | None = typer.Option(
        None, metavar="README.md", help="Write a model card with the metadata of the Hugging Face Hub."
    ),
    language: list[str] = typer.Option([], help="For the card, e.g. en; may be given several times."),
    license_: str | None = typer.Option(
        None, "--license", help="For the card: the student's licence, e.g. cc-by-4.0."
    ),
    base_model: str | None = typer.Option(None, help="For the card: the teacher's name on the Hub."),
    datasets: list[str] = typer.Option(
        [], help="For the card: a training set's name on the Hub; may be given several times."
    ),
    metrics: list[str] = typer.Option(
        [],
        metavar="[NAME=]EVALUATION.json",
        help="For the card: what `evaluate --json` printed of the student; may be given several times.",
    ),
    verify: bool = typer.Option(
        False, "--verify", help="Prove the files in a process without this package; write STUDENT.json."
    ),
    average: str | None = typer.Option(
        None, metavar="last-K|best-K", help="Export the mean of the run's last or best K checkpoints."
    ),
    statistics: Path | None = typer.Option(
        None,
        metavar="AUDIO.jsonl",
        help="With --average: estimate batch norm statistics on this manifest's audio. Default: the run's "
        "training set.",
    ),
) -> None:
    """Write a stock student: NeMo's class and keys, no trace of the teacher."""
    from nemo_tutornet.commands.tables import verification_table
    from nemo_tutornet.export.model_card import CardFacts
    from nemo_tutornet.export.student import export_student

    facts = CardFacts(language, license_, base_model, datasets, metrics)
    if card is None and facts != CardFacts([], None, None, [], []):
        raise TutorError(
            "--language, --license, --base-model, --datasets and --metrics are for the model card; say where "
            "with --card README.md."
        )

    precisions = ["fp32", *(["fp16"] if fp16 else []), *(["int8"] if int8 else [])]
    with report_parts("files") as report:
        done = export_student(
            source,
            destination,
            onnx=onnx,
            precisions=precisions,
            sherpa=sherpa,
            onnx_asr=onnx_asr,
            card=card,
            card_facts=facts,
            verify=verify,
            average=average,
            statistics=statistics,
            report=report,
            calibrate=calibrate,
            fixed_seconds=fixed_seconds,
        )
    if done.verification is not None:
        verification_table(done.verification)
    typer.echo(f"{done.path}: {done.target}, {done.parameters:,} parameters, {done.labels} labels.")
    if done.average is not None:
        typer.echo(f"{done.path}: {done.average.note}.")
    for graph in (*done.onnx, *done.onnx_asr):
        typer.echo(f"{graph.path}: {graph.precision}, {graph.megabytes:.1f} MB, opset {graph.opset}.")
        if graph.note:
            typer.echo(f"note: {graph.note}", err=True)
    if done.note is not None:
        typer.echo(f"note: {done.note}", err=True)
    if done.card is not None:
        typer.echo(f"{done.card}: model card.")
    if done.summary is not None:
        typer.echo(f"{done.summary}: summary of what was checked.")


@app.command()
@exit_on_user_error
@stop_on_signals(NOTHING_WRITTEN)
def verify(
    student: Path = typer.Argument(..., metavar="STUDENT.nemo", help="The exported student."),
    onnx: list[Path] = typer.Option(
        [], metavar="STUDENT.onnx", help="A graph of it; may be given several times."
    ),
    onnx_asr: Path | None = typer.Option(None, "--onnx-asr", metavar="DIR", help="Its folder for onnx-asr."),
) -> None:
    """Check the files of an exported student: the model, its graphs and its summary."""
    from nemo_tutornet.commands.tables import verification_table
    from nemo_tutornet.export.verify import verify_received

    verification = verify_received(student, onnx, onnx_asr)
    verification_table(verification)
    if not verification.passed:
        raise TutorError(f"{student} is not what it must be: {verification.failures}")


@app.command()
@exit_on_user_error
@stop_on_signals(NOTHING_WRITTEN)
def evaluate(
    models: list[Path] = typer.Argument(
        ..., metavar="MODEL [MODEL ...]", help=".nemo and .onnx files, and folders for onnx-asr, to compare."
    ),
    manifest: Path = typer.Option(..., help="NeMo manifest with transcripts."),
    batch_size: int = typer.Option(16, min=1, help="Utterances that NeMo transcribes together."),
    runtime: str = typer.Option("nemo", help="'nemo', or 'onnx' to run .nemo files in ONNX Runtime too."),
    precision: list[str] = typer.Option(
        ["fp32", "fp16", "int8"], help="For --runtime onnx; may be given several times."
    ),
    calibrate: Path | None = typer.Option(
        None, metavar="M.jsonl", help="For --runtime onnx: also static int8, calibrated on this manifest."
    ),
    decoder: str | None = typer.Option(
        None, metavar="ctc|rnnt", help="Of models that have it. Default: each model's own, a hybrid's rnnt."
    ),
    lowercase: bool = typer.Option(
        False, "--lowercase", help="Compare in lower case (NeMo's text_processing.do_lowercase)."
    ),
    no_punctuation: bool = typer.Option(
        False, "--no-punctuation", help="Compare without punctuation marks (text_processing.rm_punctuation)."
    ),
    separate_punctuation: bool = typer.Option(
        False, "--separate-punctuation", help="Count each mark as a word."
    ),
    punctuation_marks: str = typer.Option(".,?", help="The marks of these options, and no others."),
    channel: str | None = CHANNEL,
    prompt: list[str] = typer.Option(
        [],
        metavar="SLOT=VALUE",
        help="Of an attention model (Canary), e.g. source_lang=de; may be given several times.",
    ),
    as_json: bool = typer.Option(False, "--json", help="Print JSON instead of a table."),
) -> None:
    """Compare models: WER and CER, intervals, size and speed."""
    from nemo_tutornet.commands.tables import evaluation_table
    from nemo_tutornet.evaluation.evaluate import evaluate as run
    from nemo_tutornet.evaluation.options import EvaluationOptions
    from nemo_tutornet.evaluation.text_processing import TextProcessing

    processing = TextProcessing(lowercase, no_punctuation, separate_punctuation, punctuation_marks)
    options = EvaluationOptions.parse(decoder, processing, channel, prompt)
    with report_parts("utterances") as report:
        results = run(models, manifest, batch_size, runtime, precision, report, options, calibrate)
    if as_json:
        typer.echo(json.dumps([result.as_dict() for result in results], indent=2))
    else:
        evaluation_table(results)


@app.command()
@exit_on_user_error
@stop_on_signals(WRITTEN_WHOLE)
def report(
    run: Path = typer.Argument(
        ...,
        metavar="RUN_DIR|STUDENT.nemo",
        help="The run's folder (exp_manager.exp_dir/name); a .nemo file has no learning curves.",
    ),
    models: list[Path] = typer.Argument(None, metavar="[MODEL ...]", help="Further .nemo and .onnx files."),
    manifest: Path = typer.Option(..., metavar="M.jsonl", help="NeMo manifest with transcripts."),
    baseline: Path | None = typer.Option(
        None, metavar="B.nemo", help="The same student, trained without a teacher."
    ),
    teacher: Path | None = typer.Option(
        None,
        metavar="T.nemo",
        help="The teacher. Default: that of the run's config, which names none after a training from a "
        "cache.",
    ),
    adapter: Path | None = typer.Option(
        None, metavar="A.safetensors", help="The teacher's adapter. Default: that of the run's config."
    ),
    output: Path | None = typer.Option(
        None, metavar="DIR", help="Folder to write to. Default: RUN_DIR/report."
    ),
    utterance: list[str] = typer.Option(
        [],
        metavar="ID",
        help="An utterance to show: utt_id, or file name without suffix; may be given eight times. Default: "
        "best, median and worst.",
    ),
    batch_size: int = typer.Option(16, min=1, help="Utterances that NeMo transcribes together."),
    channel: str | None = CHANNEL,
    as_json: bool = typer.Option(False, "--json", help="Print the figures as JSON, and write no page."),
) -> None:
    """Write an HTML page: error rates, learning curves, spikes and confusions."""
    from nemo_tutornet.commands.tables import evaluation_table
    from nemo_tutornet.commands.write_report import collect_report, write_report
    from nemo_tutornet.evaluation.options import parse_channel
    from nemo_tutornet.report.request import ReportRequest

    request = ReportRequest(
        run,
        manifest,
        tuple(models or ()),
        baseline,
        teacher,
        adapter,
        output,
        tuple(utterance),
        batch_size,
        channel=parse_channel(channel),
    )
    with report_parts("utterances") as progress:
        if as_json:
            found = collect_report(request, progress, pictures=False)
        else:
            found, page = write_report(request, progress)
    if as_json:
        typer.echo(json.dumps(found.as_dict(), indent=2))
        return
    evaluation_table([model.evaluation for model in found.models], [model.name for model in found.models])
    for note in found.notes:
        typer.echo(f"note: {note}")
    typer.echo(f"{found.verdict}\nReport: {page}")


@app.command()
@exit_on_user_error
def demo(
    corpus: str = typer.Option(
        "embedded",
        help="'embedded' (speech synthesised on the spot), or a folder with train.jsonl, valid.jsonl and "
        "test.jsonl.",
    ),
    output: Path = typer.Option(Path("demo-output"), help="Where runs, students and the report go."),
    epochs: int | None = typer.Option(None, min=4, help="Epochs of each student. Default: 10."),
    teacher_epochs: int | None = typer.Option(None, min=1, help="Epochs of the teacher. Default: 25."),
    seed: int = typer.Option(1, help="Seed of every run."),
) -> None:
    """Run every step once on synthetic speech: train, distil, export, verify, compare, report."""
    from nemo_tutornet.commands.demo import run_demo

    run_demo(corpus, output, epochs, teacher_epochs, seed)
