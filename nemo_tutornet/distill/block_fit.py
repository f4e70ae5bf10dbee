# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""Fits a student's copied blocks to all the teacher's blocks that each of them stands for (ours).

A student with every third block of its teacher feeds each block with the output of another block than the
teacher does, and convolutional blocks have no identity to fall back on: the copy transcribes nothing. But the
end of such a block is linear,

    output = relu( P u + R x + b )

with the signal u before the last pointwise convolution P of its main path, the block's input x, and the
pointwise convolution R of its residual path. So P, R and b are found by least squares on a few utterances,
block by block and each on the student's own input, such that the sum in brackets is the teacher's at the end
of the blocks that this one stands for.

Legend: `B` utterances, `D` channels, `T` frames.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from lightning.pytorch.utilities.seed import isolate_rng
from nemo.utils.get_rank import is_global_rank_zero
from rich.console import Console
from torch import Tensor, nn

from nemo_tutornet.distill.training_audio import training_audio
from nemo_tutornet.functional.batch_norm import ChannelStatistics, unfold_batch_norm
from nemo_tutornet.functional.fft_depthwise import with_fourier_depthwise
from nemo_tutornet.functional.least_squares import LeastSquares
from nemo_tutornet.nemo_io.isolation import without_process_group
from nemo_tutornet.utils.progress import Progress, of_total

# A QuartzNet 5x5 from a 15x5 has a CER of 72 % before any training with 50 utterances, and 59 % with 200.
UTTERANCES = 200

# What a block is given and returns: signals `[1, D, T]`, several with dense residuals, and lengths in frames.
Frames = tuple[list[Tensor], Tensor]


def last_blocks(blocks: Sequence[int], count: int) -> list[int]:
    """Returns the last of the teacher's blocks that each of the student's stands for.

    Args:
        blocks: the teacher's block that each of the student's is a copy of.
        count: the number of the teacher's blocks.

    Example:
        >>> last_blocks([0, 1, 4, 7], 8)
        [0, 3, 6, 7]
    """
    return [*(following - 1 for following in blocks[1:]), count - 1]


def can_be_fitted(student: Any, blocks: Sequence[int], count: int) -> bool:
    """Tells whether a student has blocks that stand for several of the teacher's and end in a linear map.

    Args:
        student: the student.
        blocks: the teacher's block that each of the student's is a copy of.
        count: the number of the teacher's blocks.
    """
    mine = list(getattr(student.encoder, "encoder", []))
    some_left_out = list(blocks) == sorted(set(blocks)) and last_blocks(blocks, count) != list(blocks)
    return some_left_out and all(hasattr(block, "mout") for block in mine) and any(map(_linear_end, mine))


def fit_blocks(student: Any, teacher: Any, blocks: Sequence[int], utterances: int = UTTERANCES) -> int:
    """Fits the blocks of a student whose encoder is a copy of a part of its teacher's, in place.

    The batch norms get the statistics of the student's own inputs. No random number is drawn.

    Args:
        student: a NeMo CTC model with a convolutional encoder.
        teacher: the model that it was copied from, in eval mode.
        blocks: the teacher's block that each of the student's is a copy of.
        utterances: most utterances of the training set that are used.

    Returns:
        The number of blocks that were fitted: 0 where the training set has no utterance or the models' frames
        differ. Then the student does not change.
    """
    mine, theirs = list(student.encoder.encoder), list(teacher.encoder.encoder)
    fitted, first = 0, 0
    with ExitStack() as around:
        for context in (torch.no_grad(), isolate_rng(include_cuda=False), without_process_group()):
            around.enter_context(context)
        for model in (student, teacher):
            around.enter_context(with_fourier_depthwise(model.encoder))
        for part in (student.preprocessor, student.encoder):
            around.callback(part.train, part.training)
            part.eval()
        pairs = list(_inputs(student, teacher, utterances))
        if not pairs:
            return 0
        amount = of_total(len(mine), f"blocks, {len(pairs)} utterances")
        console = Console(stderr=True, quiet=not is_global_rank_zero())
        shown = Progress("fitting the student's blocks", len(mine), amount, console)
        progress = around.enter_context(shown)
        for block, last in zip(mine, last_blocks(blocks, len(theirs)), strict=True):
            pairs, changed = _fit_block(block, theirs[first : last + 1], pairs)
            fitted, first = fitted + changed, last + 1
            progress.advance(1)
    return fitted


def _inputs(student: Any, teacher: Any, utterances: int) -> Iterator[tuple[Frames, Frames]]:
    """Yields what the first block of both models is given, utterance by utterance."""
    for signal in training_audio(student, utterances):
        frames = []
        for model in (student, teacher):
            device = next(model.encoder.parameters()).device
            lengths = torch.tensor([signal.shape[1]], device=device)
            features, lengths = model.preprocessor(input_signal=signal.to(device), length=lengths)
            frames.append(([features[..., : int(lengths)]], lengths))
        if not torch.equal(frames[0][1].cpu(), frames[1][1].cpu()):
            return
        yield frames[0], frames[1]


def _fit_block(
    block: Any, originals: Sequence[Any], pairs: Iterable[tuple[Frames, Frames]]
) -> tuple[list[tuple[Frames, Frames]], bool]:
    """Fits one block.

    Args:
        block: the student's.
        originals: the teacher's blocks that it stands for.
        pairs: the inputs of `block` and of the first of `originals`, by utterance.

    Returns:
        The outputs of `block` and of the last of `originals`, and whether the block was fitted.
    """
    end, found, kept, changed = _linear_end(block), LeastSquares(), [], False
    for mine, theirs in pairs:
        with _inputs_of([originals[-1].mout]) as target:
            after = theirs
            for original in originals:
                after = original(after)
        kept.append((mine, after))
        with _inputs_of([block.mout, *(convolution for convolution, _ in end)]) as given:
            block(mine)
        wanted, (own, *inputs) = target[0], given
        if end and wanted.shape == own.shape:
            changed = True
            found.add(torch.cat([_samples(one) for one in inputs], dim=1), _samples(wanted.to(own) - own))
    if changed:
        _add(end, *found.solve())
    norms = [module for module in block.modules() if isinstance(module, nn.BatchNorm1d)]
    statistics = [ChannelStatistics() for _ in norms]
    with ExitStack() as hooks:
        for norm, of_norm in zip(norms, statistics, strict=True):
            hooks.callback(norm.register_forward_pre_hook(partial(_count, of_norm)).remove)
        outputs = [(block(mine), after) for mine, after in kept]
    for norm, of_norm in zip(norms, statistics, strict=True):
        for name, value in unfold_batch_norm(norm, *of_norm.mean_and_variance()).items():
            getattr(norm, name).copy_(value)
    return outputs, changed


def _linear_end(block: Any) -> list[tuple[nn.Conv1d, nn.BatchNorm1d]]:
    """The pointwise convolutions at the end of a block's main and residual path, each with its batch norm."""
    paths = [list(getattr(block, "mconv", None) or [])]
    residual = getattr(block, "res", None)
    if residual is not None and len(residual) == 1 and block.residual_mode == "add":
        paths.append(list(residual[0]))
    ends = []
    for path in paths:
        masked, norm = path[-2:] if len(path) > 1 else (None, None)
        convolution = getattr(masked, "conv", None)
        if (
            isinstance(convolution, nn.Conv1d)
            and isinstance(norm, nn.BatchNorm1d)
            and convolution.kernel_size == convolution.stride == (1,)
            and convolution.groups == 1
        ):
            ends.append((convolution, norm))
    return ends


def _add(end: Sequence[tuple[nn.Conv1d, nn.BatchNorm1d]], weight: Tensor, bias: Tensor) -> None:
    """Adds a linear map to what a block's convolutions compute together.

    Each batch norm becomes neutral, its scale part of the convolution.

    Args:
        end: the convolutions, in the order of the map's inputs.
        weight: `[D, K]`, with the inputs of all convolutions one after the other.
        bias: `[D]`.
    """
    parts = weight.split([convolution.in_channels for convolution, _ in end], dim=1)
    for i, ((convolution, norm), part) in enumerate(zip(end, parts, strict=True)):
        assert norm.running_mean is not None and norm.running_var is not None
        scale = norm.weight / (norm.running_var + norm.eps).sqrt()
        convolution.weight.mul_(scale[:, None, None]).add_(part[:, :, None].to(convolution.weight))
        # A bias in front of the norm belongs to what the norm subtracts.
        shift = norm.running_mean if convolution.bias is None else norm.running_mean - convolution.bias
        norm.bias.sub_(scale * shift)
        if convolution.bias is not None:
            convolution.bias.zero_()
        if i == 0:
            norm.bias.add_(bias.to(norm.bias))
        norm.weight.fill_(1.0)
        norm.running_mean.zero_()
        norm.running_var.fill_(1.0 - norm.eps)


@contextmanager
def _inputs_of(modules: Sequence[nn.Module]) -> Iterator[list[Tensor]]:
    """Yields a list that gets the input of each module in the forward inside the context, in their order."""
    found: list[Any] = [None] * len(modules)

    def keep(index: int, module: nn.Module, args: tuple[Tensor, ...]) -> None:
        # The activation behind it overwrites its input.
        found[index] = args[0].clone()

    with ExitStack() as hooks:
        for index, module in enumerate(modules):
            hooks.callback(module.register_forward_pre_hook(partial(keep, index)).remove)
        yield found


def _count(statistics: ChannelStatistics, module: nn.Module, args: tuple[Tensor, ...]) -> None:
    statistics.add(args[0])


def _samples(signal: Tensor) -> Tensor:
    """`[1, D, T]` as samples `[T, D]`."""
    return signal[0].T
