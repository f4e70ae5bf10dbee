# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""Copies a corpus at other speeds, so that a teacher's cache has them, too: it knows what it was built from
and nothing else.

    python benchmarks/results/speeds.py MANIFESTS OUTPUT --corpus an4
    python benchmarks/results/run.py OUTPUT results --corpus an4-speeds --cached --epochs 10 ...

An epoch of three speeds is three of the corpus. The validation set stays as it is.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import librosa
import soundfile
import typer
from rich.progress import track
from runs import read_rows

from nemo_tutornet.utils.files import atomic_write


def copied(source: Path, target: Path, speed: float) -> float:
    """Writes audio at another speed, its pitch with it, unless that is there already; returns its seconds."""
    if not target.exists():
        samples, rate = soundfile.read(source, dtype="float32", always_2d=True)
        faster = librosa.resample(
            samples[:, 0], orig_sr=round(rate * speed), target_sr=rate, res_type="polyphase"
        )
        target.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(target) as temporary:
            soundfile.write(temporary, faster, rate, subtype="PCM_16")
    return float(soundfile.info(target).duration)


def check(row: dict[str, Any], source: Path, manifest: Path) -> None:
    """Refuses what a copy would get wrong."""
    try:
        info = soundfile.info(source)
    except (soundfile.LibsndfileError, OSError) as error:
        raise SystemExit(
            f"error: {manifest} names {source}, which is not readable audio ({error})."
        ) from None
    if row.get("offset") or 0 < (row.get("duration") or 0) < info.duration - 0.05:  # durations are rounded
        raise SystemExit(
            f"error: {manifest} has a part of {source}; only whole files are copied, so cut first."
        )
    if info.channels > 1:
        raise SystemExit(
            f"error: {manifest} names {source}, which has {info.channels} channels; make it mono first."
        )


def main(
    manifests: Path = typer.Argument(
        ..., help="Folder of CORPUS_train.jsonl and, if there is one, CORPUS_valid.jsonl."
    ),
    output: Path = typer.Argument(
        ..., help="Folder of CORPUS-speeds_train.jsonl, CORPUS-speeds_valid.jsonl and the copies."
    ),
    corpus: str = typer.Option("an4"),
    speed: list[float] = typer.Option(
        [0.9, 1.1], min=0.5, max=2.0, help="Beside the audio as it is; may be repeated."
    ),
) -> None:
    """Writes what is missing, and the manifests when all of it is there."""
    for part, speeds in (("train", speed), ("valid", [])):
        manifest = manifests / f"{corpus}_{part}.jsonl"
        if part == "valid" and not manifest.exists():
            continue  # audio of a teacher's training alone
        if not manifest.exists():
            raise SystemExit(
                f"error: there is no {manifest}; MANIFESTS is the folder of it, --corpus the first part of "
                "its name."
            )
        rows = read_rows(manifest)
        sources = [(manifest.parent / row["audio_filepath"]).resolve() for row in rows]
        for row, source in zip(rows, sources, strict=True):
            if speeds:
                check(row, source, manifest)
        written = [{**row, "audio_filepath": str(source)} for row, source in zip(rows, sources, strict=True)]
        for factor in speeds:
            for i, (row, source) in enumerate(
                track(list(zip(rows, sources, strict=True)), f"{part}, {factor:g} x")
            ):
                target = output.resolve() / f"{corpus}-{factor:g}" / f"{i:06}-{source.stem}.flac"
                written.append(
                    {**row, "audio_filepath": str(target), "duration": copied(source, target, factor)}
                )
        output.mkdir(parents=True, exist_ok=True)
        path = output / f"{corpus}-speeds_{part}.jsonl"
        with atomic_write(path) as temporary:
            temporary.write_text("".join(json.dumps(row) + "\n" for row in written), encoding="utf-8")
        typer.echo(f"wrote {path}: {len(written)} utterances")


if __name__ == "__main__":
    typer.run(main)
