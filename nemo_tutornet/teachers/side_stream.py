# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""Runs live teachers on a CUDA stream of their own.

Legend: `B` utterances, `N` samples.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from nemo_tutornet.teachers.targets import TeacherTargets


class SideStream:
    """Runs live teachers on a second CUDA stream, so that they overlap the student's forward (ours).

    The teacher is launched first, on the side stream. The student's kernels follow on the current stream,
    which waits in `wait`, before the losses read the targets. PyTorch's notes on CUDA semantics ask for two
    things: a stream waits before it reads what another stream wrote, and `record_stream` names every tensor
    that crosses over. Otherwise the allocator would reuse its memory while the other stream still reads it.

    The teacher's working memory is not available to the student's forward, so the peak rises by up to that
    much. On a GPU the losses have been compared bit by bit with those of one stream; how much time the
    overlap saves has not been measured yet. On any other device the teacher is simply called.
    """

    def __init__(self) -> None:
        self._stream: torch.cuda.Stream | None = None

    def run(
        self, compute: Callable[[Tensor, Tensor], TeacherTargets], signal: Tensor, lengths: Tensor
    ) -> TeacherTargets:
        """Returns the targets of a batch. On a GPU nothing may read them before `wait`.

        Args:
            compute: the teacher. Its weights are on the signal's device.
            signal: waveform `[B, N]`.
            lengths: valid samples `[B]`.
        """
        if not _has_streams(signal.device):
            return compute(signal, lengths)
        copy = signal.clone()  # NeMo's front end adds the student's dither to the waveform in place
        side = self._on(signal.device)
        side.wait_stream(torch.cuda.current_stream(signal.device))
        copy.record_stream(side)
        lengths.record_stream(side)
        with torch.cuda.stream(side):
            return compute(copy, lengths)

    def wait(self, targets: TeacherTargets) -> None:
        """Makes the current stream wait for the teachers, and keeps the targets' memory until it has read
        them.
        """
        if self._stream is None:
            return
        current = torch.cuda.current_stream(self._stream.device)
        current.wait_stream(self._stream)
        for tensor in targets.tensors():
            # The student may have left the GPU since, and its teacher with it.
            if tensor.device == self._stream.device:
                tensor.record_stream(current)

    def _on(self, device: torch.device) -> torch.cuda.Stream:
        if self._stream is None or self._stream.device != device:
            self._stream = torch.cuda.Stream(device)
        return self._stream


def _has_streams(device: torch.device) -> bool:
    return device.type == "cuda"
