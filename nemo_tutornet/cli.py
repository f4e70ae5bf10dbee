# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""The `nemo-tutornet` command: it parses, and calls the modules. Heavy imports wait until a command runs."""

from __future__ import annotations

import json
import re
import shlex
from dataclasses import asdict
from pathlib import Path
from typing import Any

import typer

from nemo_tutornet.errors import TutorError, exit_on_user_error
from nemo_tutornet.utils.progress import report_parts
from nemo_tutornet.utils.signals import stop_on_signals

app = typer.Typer(
    name="nemo-tutornet",
    help="Distil a large NeMo CTC recogniser into a small stock one.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

# How a command continues that a signal stopped.
_NOTHING = "nothing was written; the same command begins anew."
_WHOLE = "a file is written whole or not at all; the same command begins anew."


def _composed(config_path: str, config_name: str, overrides: list[str]) -> Any:
    """The config that the training script would get; says which file it is from, for there may be several
    copies.
    """
    from nemo_tutornet.commands.hydra_config import compose_config, find_config

    yaml = find_config(config_path, config_name)
    typer.echo(f"config: {yaml}", err=True)
    return compose_config(yaml, overrides)


def _pasted(key: str, path: Path) -> str:
    """The override that sets a key to a path, as it can be pasted into a shell."""
    from nemo_tutornet.commands.hydra_config import hydra_value

    plain = re.fullmatch(r"[\w./~ -]+", str(path))
    return shlex.quote(f"{key}={path if plain else hydra_value(path)}")


_CHANNEL = typer.Option(
    None, metavar="N|average", help="Channel to read of audio with several, from 0, or their mean."
)


@app.callback()
def _root() -> None:
    """Keeps the commands as subcommands."""


@app.command()
@exit_on_user_error
@stop_on_signals(_NOTHING)
def inspect(
    model: str = typer.Argument(
        ...,
        metavar="MODEL.nemo|NAME|ADAPTER.safetensors",
        help="A recogniser's file, a pretrained NeMo model's name, or the file of an adapter.",
    ),
    every_layer: bool = typer.Option(
        False, "--all", help="List every module of the encoder that returns frames."
    ),
    as_json: bool = typer.Option(False, "--json", help="Print JSON instead of a table."),
) -> None:
    """Describe a model or an adapter, and list the layers that can be matched."""
    if model.endswith(".safetensors"):
        from nemo_tutornet.teachers.adapter import Adapter

        info = Adapter.load(model, "MODEL").info
        typer.echo(json.dumps(asdict(info), indent=2) if as_json else f"{model}: {info.in_words()}.")
        return
    from nemo_tutornet.commands.inspect_model import inspect_model
    from nemo_tutornet.commands.tables import inspection_table

    found = inspect_model(model, every_layer)
    if as_json:
        typer.echo(json.dumps(found.as_dict(), indent=2))
    else:
        inspection_table(found)


@app.command(context_settings={"ignore_unknown_options": True})
@exit_on_user_error
@stop_on_signals(_NOTHING)
def check(
    overrides: list[str] = typer.Argument(
        None, metavar="[KEY=VALUE ...]", help="As for the training script."
    ),
    config_path: str = typer.Option("../conf", "--config-path", "-cp", help="As for the training script."),
    config_name: str = typer.Option(
        "quartznet_5x5", "--config-name", "-cn", help="As for the training script."
    ),
    batches: int = typer.Option(4, min=1, help="Validation batches that the teacher transcribes."),
    decode: bool = typer.Option(False, "--decode", help="Decode every audio file, to find damaged ones."),
    as_json: bool = typer.Option(False, "--json", help="Print JSON instead of tables."),
) -> None:
    """Preview a training: what is matched, what it costs, what is wrong. Takes the training script's
    arguments.
    """
    cfg = _composed(config_path, config_name, overrides or [])  # before the imports, which take long
    from nemo_tutornet.commands.check import check_training
    from nemo_tutornet.commands.tables import check_tables

    with report_parts("batches") as report:
        found = check_training(cfg, batches, report, decode)
    if as_json:
        typer.echo(json.dumps(found.as_dict(), indent=2))
    else:
        check_tables(found)


@app.command(context_settings={"ignore_unknown_options": True})
@exit_on_user_error
def adapt(
    overrides: list[str] = typer.Argument(
        None, metavar="[KEY=VALUE ...]", help="As for the training script."
    ),
    output: Path = typer.Option(..., metavar="ADAPTER.safetensors", help="The file to write."),
    config_path: str = typer.Option("../conf", "--config-path", "-cp", help="As for the training script."),
    config_name: str = typer.Option(
        "quartznet_5x5", "--config-name", "-cn", help="As for the training script."
    ),
    work: Path | None = typer.Option(
        None,
        metavar="DIR",
        help="Folder of the encoder's output and of an interrupted training. Default: ADAPTER.work.",
    ),
    epochs: int = typer.Option(40, min=1, help="Passes over the training set."),
    learning_rate: float = typer.Option(2e-3, min=1e-8, max=1.0, help="Highest learning rate."),
    width: int | None = typer.Option(
        None, min=1, max=4096, help="Width of the adapter. Default: the encoder's, at most 256."
    ),
    batch_size: int | None = typer.Option(
        None, min=1, help="Utterances in a batch. Default: the training's."
    ),
    live: bool = typer.Option(
        False, "--live", help="Run the encoder in every epoch instead of keeping its output on disk."
    ),
    as_json: bool = typer.Option(False, "--json", help="Print JSON instead of a table."),
) -> None:
    """Train an adapter, which gives a teacher the student's labels. Takes the training script's arguments."""
    cfg = _composed(config_path, config_name, overrides or [])  # before the imports, which take long
    from nemo_tutornet.commands.adapt import adapt_teacher
    from nemo_tutornet.commands.tables import adapter_table, epoch_report
    from nemo_tutornet.teachers.adapter import is_poor

    going_on = "the same command continues after the last epoch or shard that was finished."
    with stop_on_signals(going_on), epoch_report(epochs) as report:
        made = adapt_teacher(
            cfg, output, work, epochs, learning_rate, width, batch_size, live or None, report
        )
    if as_json:
        typer.echo(json.dumps(asdict(made)))
    else:
        overrides = [_pasted("model.tutor.teacher.adapter", output)]
        if made.utterances:  # 0 where the encoder ran in every epoch, and its output was not kept
            overrides.append(_pasted("model.tutor.teacher.cache", Path(made.work) / "train"))
        adapter_table(made, " ".join(overrides), is_poor(made.wer, made.teacher_wer))


@app.command(context_settings={"ignore_unknown_options": True})
@exit_on_user_error
def cache(
    overrides: list[str] = typer.Argument(
        None, metavar="[KEY=VALUE ...]", help="As for the training script."
    ),
    output: Path = typer.Option(
        ..., metavar="DIR", help="Folder of the cache; only missing targets are added."
    ),
    config_path: str = typer.Option("../conf", "--config-path", "-cp", help="As for the training script."),
    config_name: str = typer.Option(
        "quartznet_5x5", "--config-name", "-cn", help="As for the training script."
    ),
    batch_size: int | None = typer.Option(
        None, min=1, help="Utterances that the teacher encodes together. Default: the training's."
    ),
    views: int | None = typer.Option(
        None,
        min=1,
        help="Number of speeds, instead of model.train_ds.augmentor.speed.num_rates. The training's must be "
        "the same.",
    ),
    as_json: bool = typer.Option(False, "--json", help="Print JSON instead of a sentence."),
) -> None:
    """Run the teacher once and keep its targets to train from. Takes the training script's arguments."""
    cfg = _composed(config_path, config_name, overrides or [])  # before the imports, which take long
    from lightning.pytorch.utilities import rank_zero_only

    from nemo_tutornet.commands.cache_targets import build_cache

    going_on = f"{output} keeps every shard that was finished, and the same command adds what is missing."
    with stop_on_signals(going_on):
        built = build_cache(cfg, output, batch_size, views=views)
    if rank_zero_only.rank != 0:
        return
    if as_json:
        typer.echo(json.dumps(asdict(built)))
    else:
        speeds = f" (at {len(built.views)} speeds)" if len(built.views) > 1 else ""
        same = "" if views is None else f" model.train_ds.augmentor.speed.num_rates={views}"
        typer.echo(
            f"{output}: {built.utterances} utterances{speeds}, {built.hours:.2f} hours of audio, "
            f"{built.megabytes:.1f} MB; {built.added} added in {built.minutes:.1f} min. "
            f"Train with {_pasted('model.tutor.teacher.cache', output)}{same}"
        )


@app.command("pseudo-labels", context_settings={"ignore_unknown_options": True})
@exit_on_user_error
@stop_on_signals(_WHOLE)
def pseudo_labels(
    source: Path = typer.Argument(
        ..., metavar="TRANSCRIBED.jsonl", help="What NeMo's transcribe_speech.py wrote with a teacher."
    ),
    destination: Path = typer.Argument(..., metavar="TRAIN.jsonl", help="The manifest to write."),
    overrides: list[str] = typer.Argument(
        None, metavar="[KEY=VALUE ...]", help="As for the training script, e.g. the student's tokenizer."
    ),
    config_path: str = typer.Option("../conf", "--config-path", "-cp", help="As for the training script."),
    config_name: str = typer.Option(
        "quartznet_5x5", "--config-name", "-cn", help="As for the training script: the student's labels."
    ),
    max_wer: float | None = typer.Option(
        None, min=0.0, help="Drop rows whose pred_text is further from their text."
    ),
    keep_transcripts: bool = typer.Option(
        False, "--keep-transcripts", help="Use the text of rows that have one."
    ),
) -> None:
    """Make a training manifest of a teacher's transcripts, in the labels of the student to train."""
    cfg = _composed(config_path, config_name, overrides or [])  # before the imports, which take long
    from nemo_tutornet.commands.pseudo_labels import write_pseudo_manifest

    fates, missing = write_pseudo_manifest(cfg, source, destination, max_wer, keep_transcripts)
    unwritable = fates["not_in_vocabulary"]
    typer.echo(
        f"{destination}: {fates['kept']} rows with the teacher's text, {fates['transcript']} with their "
        f"transcript; dropped: {fates['empty']} empty, {fates['high_wer']} with a high WER"
        + (f", {unwritable} that the student cannot write." if unwritable else ".")
    )
    if missing:
        typer.echo(
            f"note: the student of {config_name} has no labels for {' '.join(map(repr, missing[:12]))}; if "
            "you train another one, name its config (--config-name).",
            err=True,
        )
    if fates["audio_not_found"]:
        typer.echo(
            f"note: the audio of {fates['audio_not_found']} rows was not found; their paths are those of "
            f"{source}.",
            err=True,
        )


@app.command()
@exit_on_user_error
@stop_on_signals(_WHOLE)
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
        "a "
        "cache-aware student.",
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
@stop_on_signals(_NOTHING)
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
@stop_on_signals(_NOTHING)
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
    channel: str | None = _CHANNEL,
    prompt: list[str] = typer.Option(
        [],
        metavar="SLOT=VALUE",
        help="Of an attention model (Canary), e.g. source_lang=de; may be given several times.",
    ),
    as_json: bool = typer.Option(False, "--json", help="Print JSON instead of a table."),
) -> None:
    """Compare models: WER and CER, intervals, size and speed."""
    from nemo_tutornet.commands.tables import evaluation_table
    from nemo_tutornet.evaluation.evaluate import EvaluationOptions
    from nemo_tutornet.evaluation.evaluate import evaluate as run
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
@stop_on_signals(_WHOLE)
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
    channel: str | None = _CHANNEL,
    as_json: bool = typer.Option(False, "--json", help="Print the figures as JSON, and write no page."),
) -> None:
    """Write an HTML page: error rates, learning curves, spikes and confusions."""
    from nemo_tutornet.commands.tables import evaluation_table
    from nemo_tutornet.commands.write_report import collect_report, write_report
    from nemo_tutornet.evaluation.evaluate import parse_channel
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
