# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""Commands before and around a training: they take the training script's arguments, or a model."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import typer

from nemo_tutornet.cli.app import NOTHING_WRITTEN, WRITTEN_WHOLE, app, composed, pasted
from nemo_tutornet.errors import exit_on_user_error
from nemo_tutornet.utils.files import check_output_file, expand_user
from nemo_tutornet.utils.progress import report_parts
from nemo_tutornet.utils.signals import stop_on_signals


@app.command()
@exit_on_user_error
@stop_on_signals(NOTHING_WRITTEN)
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
@stop_on_signals(NOTHING_WRITTEN)
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
    # Before the imports, which take long.
    cfg = composed(check, config_path, config_name, overrides or [])
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
@stop_on_signals("the same command begins anew, or continues after what an earlier one finished.")
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
    epochs: int | None = typer.Option(
        None, min=1, help="Passes over the training set. Default: 40, and more for a small set."
    ),
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
    # Before the imports, which take long.
    cfg = composed(adapt, config_path, config_name, overrides or [])
    output, work = expand_user(output), None if work is None else expand_user(work)
    check_output_file(output, ".safetensors")
    from nemo_tutornet.commands.adapt import adapt_teacher
    from nemo_tutornet.commands.tables import adapter_table, epoch_report
    from nemo_tutornet.teachers.adapter import is_poor

    going_on = "the same command continues after the last epoch or shard that was finished."
    with stop_on_signals(going_on), epoch_report() as report:
        made = adapt_teacher(
            cfg, output, work, epochs, learning_rate, width, batch_size, live or None, report
        )
    if as_json:
        typer.echo(json.dumps(asdict(made)))
    else:
        overrides = [pasted("model.tutor.teacher.adapter", output)]
        if made.utterances:  # 0 where the encoder ran in every epoch, and its output was not kept
            overrides.append(pasted("model.tutor.teacher.cache", Path(made.work) / "train"))
        adapter_table(made, " ".join(overrides), is_poor(made.wer, made.teacher_wer))


@app.command(context_settings={"ignore_unknown_options": True})
@exit_on_user_error
@stop_on_signals("the same command begins anew, or continues after what an earlier one finished.")
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
    # Before the imports, which take long.
    cfg = composed(cache, config_path, config_name, overrides or [])
    output = expand_user(output)
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
            f"Train with {pasted('model.tutor.teacher.cache', output)}{same}"
        )


@app.command("pseudo-labels", context_settings={"ignore_unknown_options": True})
@exit_on_user_error
@stop_on_signals(WRITTEN_WHOLE)
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
    cfg = composed(
        pseudo_labels, config_path, config_name, overrides or []
    )  # before the imports, which take long
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
