# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""Un-folds the batch norms of a teacher's encoder, so that a student can be trained from its weights.

Batch norm that was folded into the convolutions has no statistics of its own. In training such a layer would
normalise its input by the batch, and its output would be another than the teacher's.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor, nn

from nemo_tutornet.distill.training_audio import UTTERANCES, training_audio
from nemo_tutornet.errors import TutorError
from nemo_tutornet.functional.batch_norm import ChannelStatistics, is_folded, unfold_batch_norm
from nemo_tutornet.nemo_io.isolation import without_process_group


def folded_batch_norms(encoder: nn.Module) -> list[str]:
    """Lists the paths of the batch norms of an encoder that were folded into convolutions."""
    return [path for path, module in encoder.named_modules() if is_folded(module)]


def unfolded_state(teacher: Any, student: Any, paths: Sequence[str]) -> dict[str, Tensor]:
    """Computes the un-folded parameters of a teacher's batch norms; the teacher does not change.

    The statistics are those of the teacher's own inputs in eval mode, on up to `UTTERANCES` utterances of the
    student's training set, without augmentation.

    Args:
        teacher: the teacher's NeMo model, in eval mode.
        student: the student, whose training set is read.
        paths: module paths of the batch norms in the teacher's encoder.

    Returns:
        The new parameters and buffers by their names in the encoder's state.

    Raises:
        TutorError: the training set has no utterance.
    """
    encoder = teacher.encoder
    statistics = {path: ChannelStatistics() for path in paths}

    def add(path: str, module: nn.Module, args: tuple[Tensor, ...]) -> None:
        statistics[path].add(args[0])

    device, utterances = next(encoder.parameters()).device, 0
    with ExitStack() as hooks, torch.no_grad(), isolate_rng(include_cuda=False), without_process_group():
        for path in paths:
            hooks.callback(encoder.get_submodule(path).register_forward_pre_hook(partial(add, path)).remove)
        for signal in training_audio(student, UTTERANCES):
            lengths = torch.tensor([signal.shape[1]], device=device)
            features, lengths = teacher.preprocessor(input_signal=signal.to(device), length=lengths)
            encoder(audio_signal=features, length=lengths)
            utterances += 1
    if not utterances:
        raise TutorError(
            "the teacher's batch norm was folded into its convolutions, and un-folding it needs audio, but "
            "model.train_ds has none; give it a manifest, or leave model.tutor.init out."
        )
    state = {}
    for path in paths:
        norm: Any = encoder.get_submodule(path)
        unfolded = unfold_batch_norm(norm, *statistics[path].mean_and_variance())
        state.update({f"{path}.{name}": value for name, value in unfolded.items()})
    return state
