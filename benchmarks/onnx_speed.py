# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""Times ONNX graphs side by side, and against a dense matrix product of the same arithmetic.

    python benchmarks/onnx_speed.py student.onnx student.int8.onnx --threads 1 --threads 2

The graphs run in turns, so that a slow moment of the machine meets all of them; the fastest run counts. `x`
is the time of the first graph divided by that of this one. `of dense` is the time of a product with matrices
of 512 x 512 weights, with as many multiplications as the first graph's convolutions, by ONNX Runtime on as
many threads, divided by the time of this graph. `--sequences` also times the first graph as NeMo's exporter
writes it, with one-dimensional convolutions.
"""

from __future__ import annotations

import argparse
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

_WIDTH = 512


def main() -> None:
    """Reads the arguments and prints a table."""
    parser = argparse.ArgumentParser(description="Times ONNX graphs side by side.")
    parser.add_argument("graphs", type=Path, nargs="+")
    parser.add_argument("--threads", type=int, action="append")
    parser.add_argument("--seconds", type=float, default=10.0, help="Length of the input at 10 ms a frame.")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--sequences", action="store_true")
    parser.add_argument("--profile", action="store_true", help="Also print the time of each operator.")
    arguments = parser.parse_args()
    protos = {path.name: onnx.load(path) for path in arguments.graphs}
    first = next(iter(protos.values()))
    if arguments.sequences:
        protos = {"as exported by NeMo": with_sequences(first), **protos}
    bins = first.graph.input[0].type.tensor_type.shape.dim[1].dim_value
    frames = round(arguments.seconds * 100)
    features = np.random.default_rng(0).standard_normal((1, bins, frames)).astype(np.float32)
    multiplications, rows = count_multiplications(first, features)
    print(f"{multiplications / 1e9:.2f} x 10^9 multiplications in {frames} frames")
    for threads in arguments.threads or [1]:
        protos_of_round = {**protos, "dense matrix product": dense(multiplications, rows)}
        sessions = {name: open_session(proto, threads) for name, proto in protos_of_round.items()}
        best = dict.fromkeys(sessions, float("inf"))
        for _ in range(arguments.rounds + 1):  # the first round warms up; it is never the fastest
            for name, session in sessions.items():
                inputs = feed(session, features)
                start = time.perf_counter()
                session.run(None, inputs)
                best[name] = min(best[name], time.perf_counter() - start)
        base, limit = next(iter(best.values())), best["dense matrix product"]
        print(f"\n{threads} threads                     ms      x   of dense")
        for name, seconds in best.items():
            print(f"{name:24} {1000 * seconds:9.1f} {base / seconds:6.2f} {100 * limit / seconds:8.0f} %")
    if arguments.profile:
        for name, proto in protos.items():
            print(f"\n{name}: ms of each operator, one thread")
            for operator, seconds in profile(proto, features, arguments.rounds).most_common(6):
                print(f"{operator:32} {1000 * seconds:9.1f}")


def count_multiplications(graph: Any, features: np.ndarray) -> tuple[int, int]:
    """Counts the multiplications of a graph's convolutions, and the frames of its output."""
    counted = onnx.ModelProto.FromString(graph.SerializeToString())
    weights = {item.name: item.dims for item in graph.graph.initializer}
    nodes = [node for node in graph.graph.node if node.op_type == "Conv" and node.input[1] in weights]
    for node in nodes:
        counted.graph.output.append(onnx.ValueInfoProto(name=node.output[0]))
    session = open_session(counted, 1)
    names = [node.output[0] for node in nodes]
    *found, log_probs = session.run([*names, "logprobs"], feed(session, features))
    pairs = zip(nodes, found, strict=True)
    total = sum(value.shape[-1] * int(np.prod(weights[node.input[1]])) for node, value in pairs)
    return total, log_probs.shape[1]


def with_sequences(graph: Any) -> Any:
    """Copies a graph of images and gives its convolutions one dimension again, as NeMo exports them."""
    proto = onnx.ModelProto.FromString(graph.SerializeToString())
    weights = {item.name: item for item in proto.graph.initializer}
    nodes = []
    for node in proto.graph.node:
        if node.op_type in ("Unsqueeze", "Squeeze") and node.input[1] == "image_height_axis":
            node = helper.make_node("Identity", node.input[:1], node.output)
        elif node.op_type == "Conv" and len(weights[node.input[1]].dims) == 4:
            values = numpy_helper.to_array(weights[node.input[1]])[:, :, 0]
            weights[node.input[1]].CopyFrom(numpy_helper.from_array(values, node.input[1]))
            for attribute in node.attribute:
                if attribute.name in ("kernel_shape", "strides", "dilations"):
                    attribute.CopyFrom(helper.make_attribute(attribute.name, attribute.ints[1:]))
                elif attribute.name == "pads":
                    attribute.CopyFrom(helper.make_attribute("pads", attribute.ints[1::2]))
        nodes.append(onnx.NodeProto.FromString(node.SerializeToString()))
    del proto.graph.node[:]
    del proto.graph.value_info[:]
    proto.graph.node.extend(nodes)
    return proto


def dense(multiplications: int, rows: int) -> Any:
    """Builds a chain of matrix products with a given number of multiplications."""
    count = max(1, round(multiplications / (rows * _WIDTH * _WIDTH)))
    weight = np.random.default_rng(0).standard_normal((_WIDTH, _WIDTH)).astype(np.float32) / _WIDTH**0.5
    names = ["start", *(f"x{i}" for i in range(1, count)), "logprobs"]
    start = numpy_helper.from_array(np.ones((rows, _WIDTH), np.float32), "ones")
    nodes = [
        helper.make_node("ReduceMean", ["audio_signal"], ["mean"], keepdims=0),
        helper.make_node("Add", ["mean", "ones"], ["start"]),
        *(helper.make_node("MatMul", [names[i], f"w{i % 8}"], [names[i + 1]]) for i in range(count)),
    ]
    weights = [numpy_helper.from_array(weight, f"w{i}") for i in range(8)]
    graph = helper.make_graph(
        nodes,
        "dense",
        [helper.make_tensor_value_info("audio_signal", TensorProto.FLOAT, None)],
        [helper.make_tensor_value_info("logprobs", TensorProto.FLOAT, None)],
        [start, *weights],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def open_session(proto: Any, threads: int, **options: Any) -> Any:
    """Opens a graph as the package does, without spinning threads."""
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = threads
    settings.log_severity_level = 3
    settings.add_session_config_entry("session.intra_op.allow_spinning", "0")
    for name, value in options.items():
        setattr(settings, name, value)
    return onnxruntime.InferenceSession(
        proto.SerializeToString(), settings, providers=["CPUExecutionProvider"]
    )


def feed(session: Any, features: np.ndarray) -> dict[str, np.ndarray]:
    """Returns the inputs of a graph, `length` where it has one."""
    both = {"audio_signal": features, "length": np.array([features.shape[2]], np.int64)}
    return {item.name: both[item.name] for item in session.get_inputs()}


def profile(proto: Any, features: np.ndarray, rounds: int) -> Counter[str]:
    """Measures the seconds of one run by operator; depthwise convolutions apart."""
    import json
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        prefix = str(Path(folder) / "profile")
        session = open_session(proto, 1, enable_profiling=True, profile_file_prefix=prefix)
        for _ in range(rounds):
            session.run(None, feed(session, features))
        events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    seconds: Counter[str] = Counter()
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            name = event["args"]["op_name"]
            shapes = [next(iter(item.values())) for item in event["args"].get("input_type_shape", [])]
            weights = [shape for shape in shapes[1:] if len(shape) > 2]
            depthwise = "Conv" in name and weights and weights[0][1] == 1
            seconds[f"{name}, depthwise" if depthwise else name] += event["dur"] / 1e6 / rounds
    return seconds


if __name__ == "__main__":
    main()
