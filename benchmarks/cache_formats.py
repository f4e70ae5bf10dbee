# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""How teacher targets are best coded and kept: the measurements behind `nemo_tutornet.target_cache`.

    python benchmarks/cache_formats.py [--hours 1] [--teacher teacher.nemo --manifest valid.jsonl]

The first tables give what each coding costs and how far the losses move, the last what each library makes of
the coded arrays. Targets are made up (spiky posteriors, layer-normalised hidden vectors) unless a teacher and
a manifest are given. lhotse comes with NeMo; its HDF5 and Lilcom storages and zarr are measured where h5py,
lilcom and zarr are installed.
"""

from __future__ import annotations

import importlib.util
import json
import math
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import typer
from rich.console import Console
from rich.table import Table
from torch import Tensor

from nemo_tutornet.commands.min_posterior import CANDIDATES, DIVERGENCES, WHOLE_LABELS, reference_losses
from nemo_tutornet.data.dataloader import TrainingBatch
from nemo_tutornet.data.utterances import Utterance
from nemo_tutornet.functional import losses
from nemo_tutornet.target_cache import codec
from nemo_tutornet.target_cache.reader import CacheReader
from nemo_tutornet.target_cache.records import UtteranceTargets, encode
from nemo_tutornet.target_cache.schema import CacheSchema
from nemo_tutornet.target_cache.writer import CacheWriter
from nemo_tutornet.teachers.live import LiveTeacher
from nemo_tutornet.teachers.targets import TargetRequest

RATE, FRAMES_PER_HOUR, BATCH = 16000, 90000, 16
Targets = list[UtteranceTargets]
Arrays = dict[str, np.ndarray]
# Writes the coded arrays of every utterance into a folder; gives what reads those of some.
Storage = Callable[[Path, list[Arrays]], Callable[[Sequence[int]], list[Any]]]


def made_up(hours: float, labels: int, width: int) -> Targets:
    """Targets of 10 s utterances at 40 ms."""
    generator, targets = torch.Generator().manual_seed(0), []
    for _ in range(round(360 * hours)):
        logits = 3 * torch.randn(250, labels, generator=generator)
        logits[:, -1] += 12
        spikes = torch.randint(0, 250, (60,), generator=generator)
        logits[spikes, torch.randint(0, max(1, labels - 1), (60,), generator=generator)] += 20
        hidden = torch.nn.functional.layer_norm(
            torch.randn(250, width, generator=generator), (width,)
        ).T.contiguous()
        targets.append(UtteranceTargets(10 * RATE, 250, logits.log_softmax(-1), hidden))
    return targets


def real(teacher: Path, manifest: Path) -> Targets:
    """Targets of a teacher for a manifest."""
    import librosa

    from nemo_tutornet.data.manifest import read_manifest
    from nemo_tutornet.nemo_io.restore import restore_ctc

    model, targets = LiveTeacher(restore_ctc(teacher), "fp32"), []
    for row in read_manifest(manifest):
        audio, _ = librosa.load(
            str(row.audio), sr=model.sample_rate, offset=row.offset, duration=row.duration
        )
        found = model.targets(
            TrainingBatch(torch.from_numpy(audio)[None], torch.tensor([len(audio)])),
            TargetRequest(hidden=True, posteriors=True),
        )
        assert found.log_probs is not None and found.hidden is not None
        frames = int(found.lengths[0])
        targets.append(
            UtteranceTargets(
                len(audio), frames, found.log_probs[0, :frames].clone(), found.hidden[0, :, :frames].clone()
            )
        )
    return targets


# --- Codings


def top(log_probs: Tensor, count: int) -> tuple[Tensor, int]:
    """The best `count` labels of every frame, what the smallest posteriors are compared with: decoded, and
    bytes.
    """
    labels = log_probs.shape[1]
    values, ids = log_probs.topk(count)
    rest = log_probs.scatter(-1, ids, -math.inf).logsumexp(-1, keepdim=True) - math.log(labels - count)
    return rest.expand(-1, labels).scatter(-1, ids, values.half().float()).log_softmax(-1), len(log_probs) * (
        4 * count + 2
    )


def above(log_probs: Tensor, smallest: float) -> tuple[Tensor, int]:
    coded = codec.encode_sparse(log_probs, smallest)
    return codec.decode_sparse(coded, log_probs.shape[1]), 4 * len(coded.counts) + 4 * len(coded.ids)


def whole(log_probs: Tensor) -> tuple[Tensor, int]:
    return codec.decode_whole(codec.encode_whole(log_probs)), 2 * log_probs.numel()


def posterior_codings(targets: Targets) -> list[dict[str, Any]]:
    samples = [one.log_probs for one in targets if one.log_probs is not None]
    labels = samples[0].shape[1]
    codings: dict[str, Callable[[Tensor], tuple[Tensor, int]]] = {"fp16, whole": whole}
    if labels > WHOLE_LABELS:
        codings |= {
            f"best {count} of each frame": lambda x, count=count: top(x, count) for count in (4, 8, 16, 32)
        }
        codings |= {f"above {value:g}": lambda x, value=value: above(x, value) for value in CANDIDATES}
    wanted = [*DIVERGENCES, ("kl", 2.0)]
    exact, rows = reference_losses(samples, samples, wanted), []
    for name, function in codings.items():
        pairs = [function(sample) for sample in samples]
        found = reference_losses([decoded for decoded, _ in pairs], samples, wanted)
        change: dict[str, float] = {}
        for key, value in exact.items():
            loss = f"{key[1]} T={key[2]:g}" if key[1] == "kl" else key[1]
            change[loss] = max(change.get(loss, 0.0), abs(found[key] - value) / max(abs(value), 1e-12))
        size = sum(count for _, count in pairs) / sum(map(len, samples)) * FRAMES_PER_HOUR / 1e6
        rows.append(
            {"coding": name, "MB/h": size, **{f"{loss} %": 100 * value for loss, value in change.items()}}
        )
    return rows


def per_frame(hidden: Tensor) -> tuple[Tensor, int]:
    scale = (hidden.abs().amax(0, keepdim=True) / 127).half().float().clamp(min=1e-7)
    return (hidden / scale).round().clamp(-127, 127) * scale, hidden.numel() + 2 * hidden.shape[1]


def per_channel(hidden: Tensor) -> tuple[Tensor, int]:
    least, most = hidden.amin(1, keepdim=True).half().float(), hidden.amax(1, keepdim=True).half().float()
    step = ((most - least) / 255).half().float().clamp(min=1e-7)
    return ((hidden - least) / step).round().clamp(0, 255) * step + least, hidden.numel() + 4 * len(hidden)


def both_gains(hidden: Tensor) -> tuple[Tensor, int]:
    return codec.decode_hidden(codec.encode_hidden(hidden)), hidden.numel() + sum(hidden.shape) + 4


def hidden_codings(targets: Targets) -> list[dict[str, Any]]:
    """Change of RKD against students that are off by a share of the teacher's variance."""
    codings = {
        "fp16 scale a frame": per_frame,
        "fp16 range a channel": per_channel,
        "gains of both": both_gains,
    }
    rows = []
    for name, function in codings.items():
        row: dict[str, Any] = {"coding": name}
        for loud in (1.0, 30.0):
            samples = [one.hidden.clone() for one in targets if one.hidden is not None]
            for sample in samples:
                sample[0] *= loud
            pairs = [function(sample) for sample in samples]
            row["MB/h"] = (
                sum(size for _, size in pairs) / sum(x.shape[1] for x in samples) * FRAMES_PER_HOUR / 1e6
            )
            for level in (0.4, 0.1):
                sums = np.zeros(2)
                for sample, (decoded, _) in zip(samples, pairs, strict=True):
                    generator = torch.Generator().manual_seed(1)
                    student = sample + sample.std() * math.sqrt(level) * torch.randn(
                        sample.shape, generator=generator
                    )
                    mask = torch.ones(1, sample.shape[1], dtype=torch.bool)
                    sums += [
                        float(losses.rkd(student[None], x[None], mask.float(), mask))
                        for x in (sample, decoded)
                    ]
                title = (
                    f"RKD at {100 * level:g} % of variance"
                    + (", one channel x 30" if loud > 1 else "")
                    + ", %"
                )
                row[title] = 100 * abs(sums[1] - sums[0]) / sums[0]
        rows.append(row)
    return rows


# --- Libraries


def coded(targets: Targets) -> tuple[list[Arrays], CacheSchema]:
    assert targets[0].log_probs is not None and targets[0].hidden is not None
    schema = CacheSchema(labels=targets[0].log_probs.shape[1], width=targets[0].hidden.shape[0])
    return [encode(key(i), one, schema) for i, one in enumerate(targets)], schema


def key(i: int) -> Utterance:
    return Utterance(f"audio/{i:06d}.flac", 0.0, 10.0)


def safetensors(folder: Path, arrays: list[Arrays]) -> Callable[[Sequence[int]], list[Any]]:
    from safetensors import safe_open
    from safetensors.numpy import save_file

    names, path = list(arrays[0]), folder / "shard.safetensors"
    save_file({name: np.concatenate([one[name] for one in arrays]) for name in names}, path)
    starts = {name: np.cumsum([0, *(len(one[name]) for one in arrays)]) for name in names}

    def read(rows: Sequence[int]) -> list[Any]:
        with safe_open(path, framework="numpy") as file:
            parts = {name: file.get_slice(name) for name in names}
            return [
                {name: parts[name][starts[name][i] : starts[name][i + 1]] for name in names} for i in rows
            ]

    return read


def zarr(folder: Path, arrays: list[Arrays]) -> Callable[[Sequence[int]], list[Any]]:
    import zarr as library

    group = library.open_group(folder / "cache.zarr", mode="w")
    for name in arrays[0]:
        joined = np.concatenate([one[name] for one in arrays])
        chunk = (min(256, len(joined)), *joined.shape[1:])
        group.create_array(name, shape=joined.shape, dtype=joined.dtype, chunks=chunk)[:] = joined
    starts = {name: np.cumsum([0, *(len(one[name]) for one in arrays)]) for name in arrays[0]}
    opened = {name: library.open_group(folder / "cache.zarr", mode="r")[name] for name in arrays[0]}
    return lambda rows: [
        {name: opened[name][starts[name][i] : starts[name][i + 1]] for name in opened} for i in rows
    ]


def lhotse(writer: str, reader: str, file: str) -> Storage:
    """One of lhotse's array storages, with the same coded arrays."""

    def store(folder: Path, arrays: list[Arrays]) -> Callable[[Sequence[int]], list[Any]]:
        from lhotse.features import io

        with getattr(io, writer)(str(folder / file)) as opened:
            keys = [
                {name: opened.write(f"{i:06d}-{name}", array) for name, array in one.items()}
                for i, one in enumerate(arrays)
            ]
            path = opened.storage_path
        source = getattr(io, reader)(path)
        return lambda rows: [{name: source.read(key) for name, key in keys[i].items()} for i in rows]

    return store


def lilcom(targets: Targets) -> Storage:
    """The lossy compression of lhotse, of what the codec would have coded."""

    def store(folder: Path, arrays: list[Arrays]) -> Callable[[Sequence[int]], list[Any]]:
        from lhotse.features import io

        with io.LilcomChunkyWriter(str(folder / "targets")) as opened:
            keys = [
                (
                    opened.write("p", one.log_probs.clamp(min=-100).numpy()),
                    opened.write("h", one.hidden.T.contiguous().numpy()),
                )
                for one in targets
                if one.log_probs is not None and one.hidden is not None
            ]
            path = opened.storage_path
        source = io.LilcomChunkyReader(path)
        return lambda rows: [[source.read(key) for key in keys[i]] for i in rows]

    return store


def ours(targets: Targets, schema: CacheSchema) -> Storage:
    """`nemo_tutornet.target_cache`: index, checksums written and verified, coding and decoding included."""

    def store(folder: Path, arrays: list[Arrays]) -> Callable[[Sequence[int]], list[Any]]:
        with CacheWriter(folder / "cache", {}, schema, RATE) as writer:
            for i, one in enumerate(targets):
                writer.add(key(i), one)
            writer.finish()
        reader = CacheReader(folder / "cache")
        return lambda rows: [reader.read([key(i) for i in rows])]

    return store


def libraries(targets: Targets, rounds: int) -> list[dict[str, Any]]:
    arrays, schema = coded(targets)
    h5, lil, zar = (importlib.util.find_spec(name) is not None for name in ("h5py", "lilcom", "zarr"))
    storages: dict[str, Storage | None] = {
        "safetensors": safetensors,
        "lhotse, numpy files": lhotse("NumpyFilesWriter", "NumpyFilesReader", "targets"),
        "lhotse, HDF5": lhotse("NumpyHdf5Writer", "NumpyHdf5Reader", "targets") if h5 else None,
        "lhotse, lilcom (lossy)": lilcom(targets) if lil else None,
        "zarr, chunks of 256 frames": zarr if zar else None,
        "nemo_tutornet.target_cache, coded, checked, decoded": ours(targets, schema),
    }
    hours, rows = sum(one.samples for one in targets) / RATE / 3600, []
    for name, storage in storages.items():
        if storage is None:
            continue
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            start = time.perf_counter()
            read = storage(folder, arrays)
            os.sync()
            wrote = time.perf_counter() - start
            files = list(files_of(folder))
            size = sum(path.stat().st_size for path in files)
            cold = timed(read, len(targets), rounds, lambda files=files: forget(files))
            warm = timed(read, len(targets), rounds, lambda: None)
        rows.append(
            {
                "library": name,
                "files/h": len(files) / hours,
                "MB/h": size / hours / 1e6,
                "write, MB/s": size / wrote / 1e6,
                "read 16, ms": warm,
                "from disk, ms": cold,
            }
        )
    return rows


def files_of(folder: Path) -> Iterator[Path]:
    yield from (path for path in folder.rglob("*") if path.is_file())


def forget(files: list[Path]) -> None:
    """Asks the system to drop what it keeps of the files in memory."""
    for path in files:
        with path.open("rb") as file:
            if hasattr(os, "posix_fadvise"):
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def timed(read: Callable[[Sequence[int]], Any], count: int, rounds: int, before: Callable[[], None]) -> float:
    """Median milliseconds of a random batch."""
    order, times = np.random.default_rng(0), []
    for _ in range(rounds):
        before()
        rows = order.choice(count, BATCH, replace=count < BATCH).tolist()
        start = time.perf_counter()
        read(rows)
        times.append(1000 * (time.perf_counter() - start))
    return float(np.median(times))


# --- Tables


def show(title: str, rows: list[dict[str, Any]]) -> None:
    table = Table(title=title)
    for i, name in enumerate(rows[0]):
        table.add_column(name, justify="right" if i else "left")
    for row in rows:
        table.add_row(*(f"{value:.4g}" if isinstance(value, float) else str(value) for value in row.values()))
    Console().print(table, width=None if sys.stdout.isatty() else 130)


def main(
    hours: float = typer.Option(1.0, help="Audio to make up."),
    labels: int = typer.Option(29, help="Outputs to make up, the blank included."),
    width: int = typer.Option(176, help="Width of the hint layer to make up."),
    teacher: Path | None = typer.Option(None, help="A .nemo file; its targets are measured."),
    manifest: Path | None = typer.Option(None, help="For that teacher."),
    rounds: int = 50,
    output: Path | None = typer.Option(None, help="Write the figures as JSON, too."),
) -> None:
    """Prints the tables."""
    torch.set_num_threads(1)
    targets = real(teacher, manifest) if teacher and manifest else made_up(hours, labels, width)
    figures = {
        "posteriors": posterior_codings(targets),
        "hidden": hidden_codings(targets),
        "libraries": libraries(targets, rounds),
    }
    show(
        "posteriors: size, and the largest change of each SKD loss against three students",
        figures["posteriors"],
    )
    show("hidden vectors: size, and the change of RKD", figures["hidden"])
    show(f"libraries: {len(targets)} utterances, batches of {BATCH}", figures["libraries"])
    if output is not None:
        output.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
