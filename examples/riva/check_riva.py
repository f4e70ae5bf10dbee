# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""Is a `.riva` archive what Riva wants of this student? Reads both files and says what is wrong, one sentence
a finding.

    python check_riva.py STUDENT.nemo STUDENT.riva

nemo2riva's exit code does not answer that: it is 0 for a class Riva does not know. Where NVIDIA's own reader
is installed, it must see the same manifest. Shapes: B utterances, T feature frames, U output frames, V labels
without the blank.
"""

from __future__ import annotations

import argparse
import hashlib
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from riva_files import (
    CONFIG,
    GRAPH,
    MANIFEST,
    NO_CONFIG,
    REMEDY,
    Archive,
    CheckFailed,
    Graph,
    Student,
    config_of,
    load_onnx,
    mapping,
    nested,
    read_archive,
    read_graph,
    read_student,
)

RIVA_CLASSES = {
    "char": "nemo.collections.asr.models.EncDecCTCModel",
    "bpe": "nemo.collections.asr.models.EncDecCTCModelBPE",
}
FRAMES_IN = 1600  # feature frames of the trial run: 16 s at the usual 10 ms, a multiple of every stride
NEWEST_IR = 10  # what the ONNX Runtime of nemo2riva's own requirements reads; its onnx writes 11
_PATH = re.compile(r"/[A-Za-z_][\w.+-]+(?:/[\w.+-]{2,})+|^~?/[\w.+-]+|\b[A-Za-z]:\\\w")
_URL = re.compile(r"\b[a-z][a-z0-9+]*://\S+")


def class_failures(student: Student, archive: Archive) -> Iterator[str]:
    """The class: Riva chooses its pipeline by `obj_cls`, and reads the config that travels along."""
    expected = RIVA_CLASSES[student.kind]
    found = nested(archive.manifest, "metadata", "obj_cls")
    if found != expected:
        yield f"obj_cls is {found}, and Riva knows a student like this as {expected} only; {REMEDY}."
    target = str(nested(config_of(archive), "target"))
    if (
        not target.startswith("nemo.collections.asr.models.")
        or target.rsplit(".", 1)[-1] != expected.rsplit(".", 1)[-1]
    ):
        yield (
            f"its {CONFIG} names the class {target}, which is not NeMo's {expected.rsplit('.', 1)[-1]}; "
            f"{REMEDY}."
        )


def label_failures(student: Student, archive: Archive) -> Iterator[str]:
    """The labels, in order, and for BPE the tokenizer's files and their pieces."""
    config = config_of(archive)
    found = nested(config, "decoder", "vocabulary") or []
    if found != student.labels:
        yield (
            f"its {len(found)} labels are not the student's {len(student.labels)} in the same order; "
            "convert the student again."
        )
    if nested(config, "decoder", "num_classes") != len(student.labels):
        classes = nested(config, "decoder", "num_classes")
        yield (
            f"its decoder.num_classes is {classes} and the student has {len(student.labels)} labels; "
            f"{REMEDY}."
        )
    for name, content in student.files.items():
        if name != CONFIG and archive.files.get(name) != content:
            state = "differs" if name in archive.files else "is missing"
            yield f"the student's file {name} {state} in the archive; convert the student again."
    for name, content in archive.files.items():
        if name.endswith("tokenizer.model") and _pieces(content) != student.labels:
            yield f"the pieces of the tokenizer {name} are not the labels of the student; {REMEDY}."


def _pieces(content: bytes) -> list[str]:
    from sentencepiece import SentencePieceProcessor

    model = SentencePieceProcessor(model_proto=content)
    return [model.id_to_piece(i) for i in range(model.get_piece_size())]


def graph_failures(student: Student, graph: Graph) -> Iterator[str]:
    """Inputs and outputs: `audio_signal [B, features, T]`, perhaps `length [B]`, to `logprobs [B, U, V +
    1]`.
    """
    wanted_in = f"float [*, {student.config['preprocessor']['features']}, *]"
    wanted_out = f"float [*, *, {len(student.labels) + 1}]"
    if list(graph.inputs) not in (["audio_signal"], ["audio_signal", "length"]):
        yield (
            f"the graph's inputs are {', '.join(graph.inputs)}, not audio_signal and at most length; "
            "convert it again."
        )
    elif graph.inputs["audio_signal"] != wanted_in:
        yield (
            f"audio_signal is {graph.inputs['audio_signal']} and must be {wanted_in} [B, features, T]; "
            "convert it again."
        )
    if list(graph.outputs) != ["logprobs"]:
        yield f"the graph's outputs are {', '.join(graph.outputs)}, not logprobs alone; convert it again."
    elif graph.outputs["logprobs"] != wanted_out:
        yield (
            f"logprobs is {graph.outputs['logprobs']} and must be {wanted_out} [B, U, labels + blank]; "
            "convert it again."
        )


def ms_per_timestep(student: Student, archive: Archive) -> int:
    """Milliseconds between two output frames, measured by running the graph in ONNX Runtime, for riva-build.

    Raises:
        CheckFailed: the graph does not run.
    """
    import numpy as np
    import onnxruntime

    model = load_onnx(archive.files[GRAPH])
    model.ir_version = min(model.ir_version, NEWEST_IR)
    preprocessor = student.config["preprocessor"]
    feed = {
        "audio_signal": np.zeros((1, preprocessor["features"], FRAMES_IN), np.float32),
        "length": np.array([FRAMES_IN], np.int64),
    }
    try:
        session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
        (log_probs,) = session.run(
            ["logprobs"], {value.name: feed[value.name] for value in session.get_inputs()}
        )
    except Exception as error:  # ONNX Runtime raises classes of its own for each kind of defect
        raise CheckFailed(
            f"the graph does not run in ONNX Runtime ({str(error).splitlines()[0]}); convert it again."
        ) from None
    samples, seconds = preprocessor.get("n_window_stride"), preprocessor.get("window_stride", 0.01)
    stride = samples / preprocessor.get("sample_rate", 16000) if samples else seconds
    return round(1000 * stride * FRAMES_IN / log_probs.shape[1])


def leak_failures(archive: Archive) -> Iterator[str]:
    """Absolute paths and traces of the tutor in whatever travels to the customer; the first of either in each
    file.
    """
    readable = {MANIFEST: [(where, text, True) for where, text in _strings(archive.manifest)]}
    readable.update((name, list(_readable(name, content))) for name, content in archive.files.items())
    for name, entries in readable.items():
        matches = [
            (where, _PATH.search(_URL.sub("", text))) for where, text, may_be_path in entries if may_be_path
        ]
        path = next((f"{match.group()} ({where})" for where, match in matches if match), None)
        tutor = next(
            (f"{text[:60]} ({where})" for where, text, _ in entries if "tutor" in text.lower()), None
        )
        if path:
            yield f"{name} shows the customer the absolute path {path}; {REMEDY}."
        if tutor:
            yield f"{name} names the tutor: {tutor}; {REMEDY}."


def _readable(name: str, content: bytes) -> Iterator[tuple[str, str, bool]]:
    """(where, text, whether it can be a path) of a file. Labels are the student's own words and are left
    out.
    """
    if name == CONFIG:
        yield from ((where, text, True) for where, text in _strings(mapping(content, NO_CONFIG)))
    elif name == GRAPH:
        # Names are scopes such as /encoder/encoder.0/Conv; only free text can hold a path.
        for field, text in _onnx_strings(load_onnx(content)):
            yield field, text, field in ("doc_string", "value")
    else:
        # A SentencePiece model remembers where its text was and where it was written.
        yield from (("in its bytes", path, True) for path in _PATH.findall(content.decode("latin-1")))


def _strings(node: Any, where: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(node, dict):
        for key, value in node.items():
            if key not in ("labels", "vocabulary"):
                yield where or "top level", str(key)
                yield from _strings(value, f"{where}.{key}".lstrip("."))
    elif isinstance(node, list):
        for value in node:
            yield from _strings(value, where)
    elif isinstance(node, str):
        yield where, node


def _onnx_strings(message: Any) -> Iterator[tuple[str, str]]:
    for field, value in message.ListFields() if message is not None else ():
        for item in value if hasattr(value, "append") else [value]:
            if hasattr(item, "ListFields"):
                yield from _onnx_strings(item)
            elif isinstance(item, str):
                yield field.name, item


def failures(student: Student, archive: Archive) -> list[str]:
    """Every finding about an archive, one sentence each; empty when it is right."""
    found: list[str] = []
    for check in (
        class_failures,
        label_failures,
        lambda s, a: graph_failures(s, read_graph(a)),
        lambda _, a: leak_failures(a),
    ):
        try:
            found += check(student, archive)
        except CheckFailed as error:
            found.append(str(error))
    return list(dict.fromkeys(found))


def reader_failures(path: Path, archive: Archive) -> list[str]:
    """What NVIDIA's own reader sees, where it is installed (Python 3.10 only)."""
    try:
        from eff.core import Archive as NvidiaArchive
    except ImportError:
        return []
    if NvidiaArchive.restore_manifest(restore_path=str(path)).get("metadata") != archive.manifest.get(
        "metadata"
    ):
        return [f"NVIDIA's eff reads another manifest than stands in {MANIFEST}; convert the student again."]
    return []


def report(student: Student, archive: Archive, path: Path, step: int) -> str:
    """What a passed check has proved, a line each; `step` is `ms_per_timestep`."""
    graph, content = read_graph(archive), path.read_bytes()
    return "\n".join(
        [
            f"{path.name} is right:",
            f"  obj_cls   {archive.manifest['metadata']['obj_cls']}",
            f"  labels    {len(student.labels)} {'pieces' if student.kind == 'bpe' else 'characters'}, as in "
            "the student",
            *(f"  input     {name} {value}" for name, value in graph.inputs.items()),
            *(f"  output    {name} {value}" for name, value in graph.outputs.items()),
            f"  opset     {graph.opset} (IR {graph.ir})",
            f"  frames    {step} ms: riva-build --ms_per_timestep={step}",
            f"  files     {', '.join(sorted(archive.files))}: no absolute path, no trace of the tutor",
            f"  sha256    {hashlib.sha256(content).hexdigest()}",
            f"  size      {len(content):,} bytes",
        ]
    )


def main() -> int:
    """The command. Returns the exit code: 0 or 2."""
    parser = argparse.ArgumentParser(
        description="Checks a .riva archive against the student it was made from."
    )
    parser.add_argument("student", type=Path, help="the .nemo file that nemo2riva was given")
    parser.add_argument("archive", type=Path, help="the .riva file that it wrote")
    arguments = parser.parse_args()
    try:
        student, archive = read_student(arguments.student), read_archive(arguments.archive)
        found = failures(student, archive) + reader_failures(arguments.archive, archive)
        if not found:
            print(report(student, archive, arguments.archive, ms_per_timestep(student, archive)))
    except CheckFailed as error:
        found = [str(error)]
    for sentence in found:
        print(f"error: {arguments.archive.name}: {sentence}", file=sys.stderr)
    return 2 if found else 0


if __name__ == "__main__":
    sys.exit(main())
