# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""A CUDA stream of its own for a live teacher.

Legend: `B` utterances, `D` width, `T` frames.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from nemo_tutornet.teachers.targets import TeacherTargets

if TYPE_CHECKING:
    from nemo_tutornet.teachers.live import Teacher


class SideStream:
    """Runs live teachers on a CUDA stream of their own, so that they overlap the student's forward (ours).

    The teacher is launched first, on the side stream; the student's kernels follow on the current stream,
    which waits in `join`, before the losses read the targets. Both streams and the caching allocator are told
    as PyTorch's notes on CUDA semantics ask: a stream waits before it reads what another one wrote, and
    `record_stream` names every tensor that crosses over, because its memory would otherwise be handed out
    again while the other stream still reads it.

    The teacher's working memory is no longer there for the student's forward, so the peak rises by up to that
    much. On a GPU the losses have been compared to the bit with those of one stream; how much time the
    overlap saves has not been measured yet. On any other device the teacher is simply called.
    """

    def __init__(self) -> None:
        self._stream: torch.cuda.Stream | None = None

    def __call__(self, teacher: Teacher, signal: Tensor, lengths: Tensor, **wanted: bool) -> TeacherTargets:
        """What the teacher gives for a batch; on a GPU nothing may read it before `join`.

        Args:
            teacher: a live one.
            signal: waveform `[B, N]` of `N` samples.
            lengths: valid samples `[B]`.
            wanted: as the teacher's own call takes it. Hypotheses are texts, for which the host waits anyway:
                with them the teacher runs on the current stream.
        """
        if not _has_streams(signal.device) or wanted.get("hypotheses"):
            return teacher(signal, lengths, **wanted)
        teacher.move_to(signal.device)  # before the fork: its weights are read on the current stream, too
        heard = signal.clone()  # NeMo's front end adds the student's dither to the waveform in place
        side = self._on(signal.device)
        side.wait_stream(torch.cuda.current_stream(signal.device))
        heard.record_stream(side)
        lengths.record_stream(side)
        with torch.cuda.stream(side):
            return teacher(heard, lengths, **wanted)

    def join(self, targets: TeacherTargets) -> None:
        """Has the current stream wait for the teachers, and keeps their targets' memory until it has read
        them.
        """
        if self._stream is None:
            return
        current = torch.cuda.current_stream(self._stream.device)
        current.wait_stream(self._stream)
        for tensor in targets.tensors():
            if (
                tensor.device == self._stream.device
            ):  # the student may have left the GPU since, and its teacher with it
                tensor.record_stream(current)

    def _on(self, device: torch.device) -> torch.cuda.Stream:
        if self._stream is None or self._stream.device != device:
            self._stream = torch.cuda.Stream(device)
        return self._stream


def _has_streams(device: torch.device) -> bool:
    return device.type == "cuda"
