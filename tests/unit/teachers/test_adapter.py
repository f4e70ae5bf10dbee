# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""The teacher adapter: its network against plain loops, and its targets."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from nemo_tutornet.functional.greedy import greedy_labels
from nemo_tutornet.teachers.adapted import adapted_targets
from nemo_tutornet.teachers.adapter import Adapter, upsampling_for
from nemo_tutornet.teachers.adapter_head import AdapterHead
from nemo_tutornet.teachers.targets import Hypothesis, TargetRequest
from tests.unit.teachers.adapters import INFO, head_of


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
    for left in (1e3, float("nan")):  # what an encoder leaves behind an utterance's end
        padded[0, :, 3:] = left
        torch.testing.assert_close(head(padded, torch.tensor([3, 5]))[:1, :12], alone)


@pytest.mark.parametrize(
    ("teacher", "student", "expected"), [(80, 20, 4), (40, 20, 2), (20, 20, 1), (40, 80, 1), (80, 30, 1)]
)
def test_the_upsampling(teacher, student, expected):
    assert upsampling_for(teacher, student) == expected


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
