# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""The teacher adapter: its network against plain loops, its file as untrusted input, and its training."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from nemo_tutornet.commands.adapter_training import (
    EncodedBatch,
    EpochResult,
    Settings,
    train_head,
    word_error_rate,
)
from nemo_tutornet.errors import TutorError
from nemo_tutornet.functional.greedy import greedy_labels
from nemo_tutornet.teachers.adapted import adapted_targets
from nemo_tutornet.teachers.adapter import Adapter, AdapterInfo, adapter_info, upsampling_for
from nemo_tutornet.teachers.adapter_head import AdapterHead
from nemo_tutornet.teachers.provenance import _adapter_to_disk
from nemo_tutornet.teachers.targets import Hypothesis, TargetRequest
from tests.conftest import refusal

INFO = AdapterInfo(
    labels=("a", "b", " "),
    frame_ms=20.0,
    upsampling=4,
    teacher_width=6,
    width=5,
    teacher_outputs=3,
    teacher_sha256="0" * 64,
    teacher_class="EncDecCTCModelBPE",
    wer=0.25,
    teacher_wer=0.2,
    utterances=10,
    kernel=5,
    second_kernel=3,
)


def head_of(info: AdapterInfo = INFO, seed: int = 0, dropout: float = 0.0) -> AdapterHead:
    torch.manual_seed(seed)
    sizes = info.teacher_width, info.width, info.upsampling, len(info.labels) + 1, info.teacher_outputs
    return AdapterHead(*sizes, dropout, info.kernel, info.second_kernel).eval()


def slow_head(head: AdapterHead, encoded: torch.Tensor, length: int) -> torch.Tensor:
    """The log-probabilities `[r T, V]` of one utterance `[D, T]`, frame by frame and channel by channel."""
    r, width, kernel = head.upsampling, head.norm.weight.numel(), head.expand.kernel_size[0]
    valid = encoded[:, :length]
    if head.teacher_decoder is not None:
        posteriors = [
            (head.teacher_decoder.weight[..., 0] @ valid[:, t] + head.teacher_decoder.bias).softmax(0)
            for t in range(length)
        ]
        valid = torch.cat([valid, 4 * torch.stack(posteriors, 1)])
    rows = []
    for frame in range(length):
        around = [
            valid[:, t] if 0 <= t < length else torch.zeros(len(valid))
            for t in range(frame - kernel // 2, frame + kernel // 2 + 1)
        ]
        for part in range(r):
            channels = []
            for channel in range(width):
                row = part * width + channel
                value = head.expand.bias[row] + sum(
                    head.expand.weight[row, :, k] @ around[k] for k in range(kernel)
                )
                channels.append(torch.relu(value))
            rows.append(slow_norm(torch.stack(channels), head.norm))
    if head.second is not None:
        rows = [slow_second(head, rows, frame) for frame in range(len(rows))]
    decoded = [head.decoder.weight[..., 0] @ row + head.decoder.bias for row in rows]
    return torch.stack(decoded).log_softmax(1)


def slow_norm(vector: torch.Tensor, norm: torch.nn.LayerNorm) -> torch.Tensor:
    """The layer norm of one frame."""
    normal = (vector - vector.mean()) / (vector.var(unbiased=False) + 1e-5).sqrt()
    return normal * norm.weight + norm.bias


def slow_second(head: AdapterHead, rows: list[torch.Tensor], frame: int) -> torch.Tensor:
    """The second layer's output of one frame."""
    kernel = head.second.kernel_size[0]
    change = head.second.bias.clone()
    for k in range(kernel):
        t = frame + k - kernel // 2
        if 0 <= t < len(rows):
            change += head.second.weight[..., k] @ rows[t]
    return slow_norm(rows[frame] + torch.relu(change), head.second_norm)


@pytest.mark.parametrize(("teacher_outputs", "second_kernel"), [(0, 3), (3, 3), (3, 0)])
@torch.no_grad()
def test_the_network_is_the_equation_for_every_utterance_of_a_batch(teacher_outputs, second_kernel):
    head = head_of(replace(INFO, teacher_outputs=teacher_outputs, second_kernel=second_kernel))
    for norm in [head.norm, *([head.second_norm] if second_kernel else [])]:
        torch.nn.init.normal_(norm.weight), torch.nn.init.normal_(norm.bias)
    encoded, lengths = torch.randn(3, 6, 7), torch.tensor([7, 4, 1])
    found = head(encoded, lengths)
    assert found.shape == (3, 28, 4)
    for row, length in enumerate(lengths.tolist()):
        torch.testing.assert_close(
            found[row, : 4 * length], slow_head(head, encoded[row], length), atol=1e-5, rtol=1e-4
        )


@torch.no_grad()
def test_padding_and_the_other_utterances_change_nothing():
    head = head_of()
    encoded = torch.randn(2, 6, 5)
    alone = head(encoded[:1, :, :3], torch.tensor([3]))
    padded = encoded.clone()
    padded[0, :, 3:] = 1e3  # what an encoder leaves behind an utterance's end
    torch.testing.assert_close(head(padded, torch.tensor([3, 5]))[:1, :12], alone)


@pytest.mark.parametrize(
    ("teacher", "student", "expected"), [(80, 20, 4), (40, 20, 2), (20, 20, 1), (40, 80, 1), (80, 30, 1)]
)
def test_the_upsampling(teacher, student, expected):
    assert upsampling_for(teacher, student) == expected


def test_a_file_is_read_as_it_was_written(tmp_path):
    head = head_of()
    Adapter(head, INFO).save(tmp_path / "adapter.safetensors")
    read = Adapter.load(tmp_path / "adapter.safetensors")
    assert read.info == INFO and read.layer.path == "adapter" and read.layer.width == 5
    for name, value in head.state_dict().items():
        assert torch.equal(value, read.head.state_dict()[name])
    assert not read.head.training and not any(p.requires_grad for p in read.head.parameters())
    assert [path.name for path in tmp_path.iterdir()] == ["adapter.safetensors"]


def test_a_file_without_kernels_is_an_older_one_with_three_frames(tmp_path):
    head = head_of(replace(INFO, kernel=3, second_kernel=0))
    info = asdict(INFO)
    del info["kernel"], info["second_kernel"]
    rewrite(tmp_path / "adapter.safetensors", head.state_dict(), info)
    read = Adapter.load(tmp_path / "adapter.safetensors")
    assert read.info.kernel == read.head.expand.kernel_size[0] == 3 and read.head.second is None
    assert torch.equal(read.head.expand.weight, head.expand.weight)


def test_a_cache_of_an_older_adapter_says_no_kernels():
    """So it is the teacher of that cache, which may be extended."""
    old = replace(INFO, kernel=3, second_kernel=0, teacher_sha256=None)
    for info, said in ((old, set()), (INFO, {"kernel", "second_kernel"})):
        stored = _adapter_to_disk(SimpleNamespace(adapter=info, adapter_sha256="0" * 64))["info"]
        assert stored.keys() & {"kernel", "second_kernel"} == said
        assert adapter_info({**stored, "labels": list(info.labels)}) == info


def rewrite(path: Path, tensors: dict[str, torch.Tensor], info: Any) -> None:
    save_file(tensors, path, metadata={"nemo_tutornet_adapter_1": json.dumps(info)})


@pytest.mark.parametrize(
    "change",
    [
        {"labels": "abc"},
        {"labels": [1, 2, 3]},
        {"frame_ms": float("nan")},
        {"frame_ms": 10**400},
        {"frame_ms": 0},
        {"upsampling": 10**9},
        {"upsampling": 0},
        {"width": 10**12},
        {"teacher_width": -1},
        {"teacher_outputs": -1},
        {"teacher_outputs": 10**12},
        {"wer": None},
        {"kernel": 0},
        {"kernel": True},
        {"width": True},
        {"kernel": 4},
        {"kernel": 10**9 + 1},
        {"kernel": "3"},
        {"second_kernel": 2},
        {"second_kernel": 10**12 + 1},
        {"more": 1},
    ],
    ids=str,
)
def test_a_description_that_is_none_is_refused(change, tmp_path):
    path = tmp_path / "adapter.safetensors"
    info = {**asdict(INFO), **change}
    assert adapter_info(json.loads(json.dumps(info))) is None
    rewrite(path, head_of().state_dict(), info)
    assert refusal(Adapter.load, path) == (
        f"model.tutor.teacher.adapter is {path}, which is not a file of `nemo-tutornet adapt`; make one with "
        "that command."
    )


@pytest.mark.parametrize("change", ["nan", "inf", "shape", "missing", "more", "dtype"])
def test_damaged_tensors_are_refused(change, tmp_path):
    path = tmp_path / "adapter.safetensors"
    tensors = {name: value.clone() for name, value in head_of().state_dict().items()}
    if change in ("nan", "inf"):
        tensors["norm.bias"][2] = float(change)
    elif change == "shape":
        tensors["norm.bias"] = torch.zeros(6)
    elif change == "missing":
        del tensors["norm.bias"]
    elif change == "more":
        tensors["further"] = torch.zeros(1)
    else:
        tensors["norm.bias"] = tensors["norm.bias"].double()
    rewrite(path, tensors, asdict(INFO))
    assert "whose tensors are damaged" in refusal(Adapter.load, path)


@given(st.data())
def test_no_damaged_file_ends_in_a_traceback(data):
    """Bytes of a good file are cut, changed or put in front of it: it is read as before, or refused."""
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "adapter.safetensors"
        Adapter(head_of(), INFO).save(path)
        content = bytearray(path.read_bytes())
        kind = data.draw(st.sampled_from(["cut", "change", "front", "header"]))
        if kind == "cut":
            content = content[: data.draw(st.integers(0, len(content) - 1))]
        elif kind == "front":
            content = bytearray(data.draw(st.binary(max_size=20))) + content
        elif kind == "header":
            content[:8] = struct.pack("<Q", data.draw(st.integers(0, 2**63)))
        else:
            for _ in range(data.draw(st.integers(1, 4))):
                content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
        path.write_bytes(content)
        try:
            read = Adapter.load(path)
        except TutorError as error:
            assert "\n" not in str(error) and str(error).endswith(".")
        else:
            assert all(value.isfinite().all() for value in read.head.state_dict().values())


def test_a_link_is_followed_and_a_folder_refused(tmp_path):
    Adapter(head_of(), INFO).save(tmp_path / "adapter.safetensors")
    (tmp_path / "link").symlink_to("adapter.safetensors")
    assert Adapter.load(tmp_path / "link").info == INFO
    assert "there is no such file" in refusal(Adapter.load, tmp_path)


# --- Training


class Utterances:
    """Four utterances in two batches; a frame's largest channel is its label."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(1)
        labels = torch.randint(0, 3, (4, 3), generator=generator)
        encoded = torch.nn.functional.one_hot(labels.repeat_interleave(2, 1), 6).float().transpose(1, 2)
        self.encoded, self.labels = encoded, labels

    def batches_in_epoch(self) -> int:
        return 2

    def batches(self, epoch: int) -> Iterator[EncodedBatch]:
        rows = torch.randperm(4, generator=torch.Generator().manual_seed(epoch))
        for part in (rows[:2], rows[2:]):
            lengths = torch.tensor([3, 3])
            if epoch == 2:  # an utterance without a text counts nothing
                lengths[0] = 0
            yield EncodedBatch(self.encoded[part], torch.tensor([6, 6]), self.labels[part], lengths)

    def in_order(self) -> list[EncodedBatch]:
        return [EncodedBatch(self.encoded, torch.full((4,), 6), self.labels, torch.full((4,), 3))]


def spell(labels: list[int]) -> str:
    """A word for each label."""
    return " ".join("abc"[i] for i in labels)


SETTINGS = Settings(epochs=12, learning_rate=0.05, batch_size=2, dropout=0.2, seed=5, about="x")


def trained(
    state: Path, settings: Settings = SETTINGS, stop: int | None = None
) -> tuple[AdapterHead, list[EpochResult]]:
    """Trains on these utterances; `stop` interrupts after an epoch."""
    data, results = Utterances(), []
    references = [spell(row) for row in data.labels.tolist()]

    def validate(head: AdapterHead) -> float:
        return word_error_rate(head, data.in_order(), references, spell, torch.device("cpu"))

    def report(result: EpochResult) -> None:
        results.append(result)
        if result.epoch == stop:
            raise KeyboardInterrupt

    head = head_of(replace(INFO, upsampling=1), seed=settings.seed, dropout=settings.dropout)
    try:
        train_head(head, data, validate, settings, state, report, torch.device("cpu"))
    except KeyboardInterrupt:
        assert stop is not None
    return head, results


@pytest.mark.parametrize("stop", [1, 4, 11, 12])
def test_a_resumed_training_equals_an_uninterrupted_one_bit_for_bit(stop, tmp_path):
    whole, results = trained(tmp_path / "whole.pt")
    assert [result.epoch for result in results] == list(range(1, 13))
    assert results[-1].loss < 0.75 * results[0].loss
    _, before = trained(tmp_path / "state.pt", stop=stop)
    resumed, after = trained(tmp_path / "state.pt")
    assert [*before, *after] == results
    for mine, theirs in zip(resumed.state_dict().values(), whole.state_dict().values(), strict=True):
        assert torch.equal(mine, theirs)


def test_the_best_epoch_is_kept(tmp_path):
    """A training with a ruinous learning rate in its middle leaves the weights from before."""
    head, results = trained(tmp_path / "state.pt", replace(SETTINGS, learning_rate=0.5))
    best = min(results, key=lambda result: result.wer)
    assert (results[-1].best_epoch, results[-1].best_wer) == (best.epoch, best.wer)
    data = Utterances()
    references = [spell(row) for row in data.labels.tolist()]
    assert word_error_rate(head, data.in_order(), references, spell, torch.device("cpu")) == best.wer


def test_a_teacher_in_bf16_may_encode_in_every_epoch(tmp_path, monkeypatch):
    whole = trained(tmp_path / "fp32.pt")[1]
    batches = Utterances.batches

    def in_bf16(self: Utterances, epoch: int) -> Iterator[EncodedBatch]:
        for batch in batches(self, epoch):
            yield replace(batch, encoded=batch.encoded.bfloat16())

    monkeypatch.setattr(Utterances, "batches", in_bf16)
    assert trained(tmp_path / "bf16.pt")[1] == whole  # ones and zeros are the same in both


def test_a_training_that_diverges_stops_and_keeps_its_last_epoch(tmp_path, monkeypatch):
    batches = Utterances.batches

    def broken(self: Utterances, epoch: int) -> Iterator[EncodedBatch]:
        for batch in batches(self, epoch):
            yield replace(batch, encoded=batch.encoded * (float("nan") if epoch == 4 else 1.0))

    whole, results = trained(tmp_path / "whole.pt")
    monkeypatch.setattr(Utterances, "batches", broken)
    with pytest.raises(TutorError, match=r"^epoch 4, step 7: the adapter's loss or gradient is not finite"):
        trained(tmp_path / "state.pt")
    monkeypatch.undo()
    resumed, after = trained(tmp_path / "state.pt")
    assert after == results[3:]
    for mine, theirs in zip(resumed.state_dict().values(), whole.state_dict().values(), strict=True):
        assert torch.equal(mine, theirs)


@pytest.mark.parametrize("state", ["other settings", "damaged"])
def test_a_state_that_does_not_fit_begins_again(state, tmp_path):
    whole, _ = trained(tmp_path / "whole.pt")
    if state == "damaged":
        (tmp_path / "state.pt").write_bytes(b"PK\3\4 nothing")
    else:
        trained(tmp_path / "state.pt", replace(SETTINGS, about="another teacher"), stop=3)
    fresh, results = trained(tmp_path / "state.pt")
    assert len(results) == 12
    assert torch.equal(fresh.decoder.weight, whole.decoder.weight)


@given(st.lists(st.integers(0, 3), max_size=12), st.integers(0, 12))
def test_greedy_decoding_merges_and_drops_blanks(best, length):
    length = min(length, len(best))
    expected, before = [], None
    for label in best[:length]:
        if label != before and label != 3:
            expected.append(label)
        before = label
    frames = torch.tensor(best, dtype=torch.long).reshape(1, -1)
    log_probs = torch.nn.functional.one_hot(frames, 4).float()
    assert greedy_labels(log_probs, torch.tensor([length])) == [expected]


def test_the_file_holds_no_more_than_it_must(tmp_path):
    Adapter(head_of(), INFO).save(tmp_path / "adapter.safetensors")
    assert set(load_file(tmp_path / "adapter.safetensors")) == {
        "teacher_decoder.weight",
        "teacher_decoder.bias",
        "expand.weight",
        "expand.bias",
        "norm.weight",
        "norm.bias",
        "second.weight",
        "second.bias",
        "second_norm.weight",
        "second_norm.bias",
        "decoder.weight",
        "decoder.bias",
    }


@pytest.mark.parametrize("labels", [("a", "b", " "), ("\u2581a", "b", "\u2581c"), ("a", "##b", "c")])
def test_hypotheses_are_of_the_better_of_adapter_and_teacher(labels: tuple[str, ...]) -> None:
    """Characters, pieces of SentencePiece and of WordPiece."""
    encoded, lengths = torch.randn(2, 6, 30), torch.tensor([30, 8])
    own, request = [Hypothesis("own", 0.5), Hypothesis("text", 0.25)], TargetRequest(hypotheses=True)
    worse, better = (Adapter(head_of(), replace(INFO, labels=labels, wer=wer), None) for wer in (0.2, 0.1))
    assert adapted_targets(worse, encoded, lengths, request, own, None).hypotheses == own
    found = adapted_targets(better, encoded, lengths, request, None, None).hypotheses or []
    log_probs = better.head.log_probs(better.head.features(encoded, lengths))
    texts = []
    for path in greedy_labels(log_probs, 4 * lengths):
        pieces = [labels[i] for i in path]
        if labels[0] == "\u2581a":
            texts.append("".join(pieces).replace("\u2581", " ").strip())
        elif labels[1] == "##b":
            texts.append(" ".join(pieces).replace(" ##", ""))
        else:
            texts.append("".join(pieces))
    assert [one.text for one in found] == texts and all(texts)
    assert all(0 < (one.confidence or 0) < 1 for one in found)


def test_targets_are_fp32_in_a_mixed_precision_step() -> None:
    """The autocast of the student's training step is open when a teacher computes its targets."""
    adapter, request = Adapter(head_of(), INFO, None), TargetRequest(hidden=True, posteriors=True)
    encoded, lengths = torch.randn(2, 6, 30), torch.tensor([30, 8])
    expected = adapted_targets(adapter, encoded, lengths, request, None, None)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = adapted_targets(adapter, encoded, lengths, request, None, None)
    assert torch.equal(found.hidden, expected.hidden) and torch.equal(found.log_probs, expected.log_probs)
