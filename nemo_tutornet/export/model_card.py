# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""The model card of an exported student: `README.md` with the metadata of the Hugging Face Hub.

The card says what the student's files say, what the user gives (`CardFacts`), and the error rates of a file
that `nemo-tutornet evaluate --json` wrote. It says nothing else.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nemo_tutornet.errors import TutorError, shorten
from nemo_tutornet.export.card_metrics import (
    changes_in_words,
    plain,
    read_evaluations,
    read_named_file,
    results_of,
)
from nemo_tutornet.export.card_student import Student

# A card without this line is somebody's own text, which no export replaces.
MARK = "<!-- Written by nemo-tutornet. The next export replaces this file as long as this line is in it. -->"
_TASK, _TASK_NAME = "automatic-speech-recognition", "Automatic speech recognition"
_LANGUAGE = re.compile(r"[A-Za-z]{2,8}(-[A-Za-z0-9]{1,8})*")
_IDENTIFIER = re.compile(r"[A-Za-z0-9][A-Za-z0-9.+-]{0,99}")
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,95}(/[A-Za-z0-9][\w.-]{0,95})?", re.ASCII)
_FILES = (".nemo", ".ckpt", ".json", ".jsonl")  # of this machine, which tell a reader nothing


@dataclass(frozen=True)
class CardFacts:
    """What a model card says that only the user knows.

    Attributes:
        language: codes of the languages, e.g. `en`.
        license: the Hub's identifier of the student's licence, e.g. `cc-by-4.0`; None for none.
        base_model: the Hub's name of the teacher, e.g. `nvidia/stt_en_fastconformer_ctc_large`; None for
            none.
        datasets: the Hub's names of the training sets.
        metrics: files that `nemo-tutornet evaluate --json` wrote, each alone or as `NAME=FILE` with the name
            of the test set. Without a name, it is that of the evaluated manifest, or else of the file.
    """

    language: Sequence[str] = ()
    license: str | None = None
    base_model: str | None = None
    datasets: Sequence[str] = ()
    metrics: Sequence[str] = ()


def check_card(card: Path, facts: CardFacts) -> None:
    """Checks before anything is read that the card can be written.

    Args:
        card: the file that `--card` names.
        facts: what the user gives.

    Raises:
        TutorError: the name is no `.md` file, the file there is not a card of an earlier export, or a fact
            cannot stand in a card.
    """
    if card.suffix != ".md" or card.is_dir():
        raise TutorError(
            f"--card {card} must be the name of a .md file; the Hugging Face Hub shows README.md."
        )
    if card.exists() and MARK not in read_named_file(card, "--card").decode("utf-8", "replace"):
        raise TutorError(
            f"{card} was not written by an export, and would be replaced; give --card another name."
        )
    given = [
        ("--language", facts.language, _LANGUAGE, "the code of a language, like en"),
        ("--license", [facts.license] if facts.license else [], _IDENTIFIER, "the Hub's, like cc-by-4.0"),
        ("--base-model", [facts.base_model] if facts.base_model else [], _HUB_NAME, "the Hub's name"),
        ("--datasets", facts.datasets, _HUB_NAME, "the Hub's name"),
    ]
    for option, values, pattern, wanted in given:
        for value in values:
            if not pattern.fullmatch(value) or value.endswith(_FILES):
                raise TutorError(f"{option} {shorten(value)!r} cannot stand in a model card; give {wanted}.")
    for entry in facts.metrics:
        read_evaluations(entry)


def model_card(student: Student, facts: CardFacts) -> str:
    """Writes the model card.

    Args:
        student: what is known of the student and its files.
        facts: what the user gives.

    Returns:
        The text of `README.md`: the Hub's metadata in YAML, then Markdown.

    Raises:
        TutorError: a file of metrics cannot be read, or has no result of this student.
    """
    from huggingface_hub import EvalResult, ModelCardData

    measured = results_of(student, facts.metrics)
    results = [
        EvalResult(
            task_type=_TASK,
            task_name=_TASK_NAME,
            dataset_type=re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") or "test",
            dataset_name=name,
            metric_type=metric,
            metric_value=round(100 * row[metric], 2),
            metric_name=f"{metric.upper()} % ({plain(', '.join([row['runtime'], *changes_in_words(row)]))})",
        )
        for name, row in measured
        for metric in ("wer", "cer")
    ]
    tags = [_TASK, "speech", "ctc", "nemo", *(["knowledge-distillation"] if facts.base_model else [])]
    tags += [tag for tag, there in (("onnx", student.onnx or student.onnx_asr or student.sherpa),) if there]
    tags += [tag for tag, there in (("onnx-asr", student.onnx_asr), ("sherpa-onnx", student.sherpa)) if there]
    data = ModelCardData(
        language=list(facts.language) or None,
        license=facts.license,
        library_name="nemo",
        pipeline_tag=_TASK,
        base_model=facts.base_model,
        datasets=list(facts.datasets) or None,
        metrics=["wer", "cer"] if results else None,
        tags=tags,
        model_name=student.name if results else None,
        eval_results=results or None,
    )
    parts = [_introduction(student, facts), _use(student), _results(measured), _licence(facts), MARK]
    return f"---\n{data.to_yaml().rstrip()}\n---\n\n" + "\n\n".join(parts) + "\n"


def _introduction(student: Student, facts: CardFacts) -> str:
    distilled = f" It was distilled from `{facts.base_model}`." if facts.base_model else ""
    trained = (
        f" It was trained on {', '.join(f'`{name}`' for name in facts.datasets)}." if facts.datasets else ""
    )
    bins = f"{student.mel_bins} mel bins, " if student.mel_bins else ""
    frame = 1000 * student.hop * student.subsampling_factor / student.sample_rate
    rows = [
        *([("language", ", ".join(facts.language))] if facts.language else []),
        ("class", f"`{student.class_name}`"),
        ("parameters", f"{student.parameters:,}"),
        ("labels", f"{student.labels:,} {student.label_kind}, and the blank"),
        ("audio", f"{student.sample_rate} Hz, one channel"),
        ("front end", f"{bins}a window of {student.window_ms:g} ms"),
        ("frame of the network", f"{frame:g} ms"),
    ]
    table = "\n".join(f"| {name} | {value} |" for name, value in rows)
    return (
        f"# {student.name}\n\n"
        f"A CTC speech recogniser of {student.parameters / 1e6:.3g} million parameters, a stock "
        f"NVIDIA NeMo model.{distilled}{trained}\n\n| | |\n|---|---|\n{table}"
    )


def _use(student: Student) -> str:
    parts = [
        "## Use",
        "`audio.wav` has one channel.",
        'NeMo (`pip install "nemo_toolkit[asr]"`):',
        f"""```python
from nemo.collections.asr.models import ASRModel

model = ASRModel.restore_from({_quoted(student.file)}, map_location="cpu")
print(model.transcribe(["audio.wav"], batch_size=1)[0].text)
```""",
    ]
    if student.onnx_asr is not None:
        parts += [
            'onnx-asr (`pip install "onnx-asr[cpu]"`), without NeMo and torch:',
            f"""```python
import onnx_asr

model = onnx_asr.load_model("nemo-conformer-ctc", {_quoted(student.onnx_asr)})
print(model.recognize("audio.wav"))
```""",
        ]
    if student.sherpa is not None:
        graph, tokens = _quoted(student.sherpa), _quoted(sherpa_tokens_name(student.sherpa))
        half, rest = student.hop // 2, f"-hops % {student.subsampling_factor} * {student.hop}"
        parts += [
            f"sherpa-onnx (`pip install sherpa-onnx soundfile`), audio of {student.sample_rate} Hz; half a "
            "hop of silence in front centres its frames as NeMo's are:",
            f"""```python
import numpy, sherpa_onnx, soundfile

model = sherpa_onnx.OfflineRecognizer.from_nemo_ctc({graph}, {tokens}, feature_dim={student.mel_bins})
samples, rate = soundfile.read("audio.wav", dtype="float32")
hops, stream = len(samples) // {student.hop}, model.create_stream()
stream.accept_waveform(rate, numpy.pad(samples[: hops * {student.hop} - 1], ({half}, {rest})))
model.decode_stream(stream)
print(stream.result.text)
```""",
        ]
    if student.onnx:
        names = ", ".join(f"`{name}`" for name in student.onnx)
        parts.append(f"ONNX Runtime: {names}; the metadata of each file describe its front end and labels.")
    return "\n\n".join(parts)


def _quoted(name: str) -> str:
    return json.dumps(name, ensure_ascii=False)


def sherpa_tokens_name(graph: str) -> str:
    """The name of the token table beside a graph for sherpa-onnx."""
    return graph.removesuffix(".sherpa.onnx") + ".tokens.txt"


def _results(measured: Sequence[tuple[str, Mapping[str, Any]]]) -> str:
    if not measured:
        return "## Error rates\n\nNone was measured for this card."
    rows = [
        f"| {name} | {plain(row['runtime'])} | {row['utterances']:,} | {100 * row['wer']:.2f} "
        f"| {100 * row['wer_low']:.2f} to {100 * row['wer_high']:.2f} | {100 * row['cer']:.2f} |"
        for name, row in measured
    ]
    return (
        "## Error rates\n\n"
        "| test set | runtime | utterances | WER % | 95 % interval | CER % |\n|---|---|---|---|---|---|\n"
        + "\n".join(rows)
        + "\n\nMeasured with `nemo-tutornet evaluate` by greedy decoding, without a language model. The "
        "interval is a bootstrap's over the utterances." + _changes(measured)
    )


def _changes(measured: Sequence[tuple[str, Mapping[str, Any]]]) -> str:
    """Says how the texts of each row were changed before errors were counted, a sentence for each way."""
    groups: dict[str, list[str]] = {}
    for name, row in measured:
        groups.setdefault(", ".join(changes_in_words(row)), []).append(f"{name} ({plain(row['runtime'])})")
    return "".join(
        f" Transcripts and hypotheses{'' if len(groups) == 1 else ' of ' + ', '.join(named)} were changed "
        f"alike before errors were counted: {words}."
        for words, named in groups.items()
        if words
    )


def _licence(facts: CardFacts) -> str:
    own = f"This model's licence: `{facts.license}`. " if facts.license else "No licence is given here. "
    teacher = (
        f"It was distilled from `{facts.base_model}`, whose licence and terms of use still hold for what is "
        "derived from it. Read them before you use or pass on this model."
        if facts.base_model
        else "If a teacher was used, its licence and terms of use still hold for what is derived from it."
    )
    return f"## Licence\n\n{own}{teacher} The training data may have terms of their own."
