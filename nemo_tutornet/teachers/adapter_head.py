# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""The network of an adapter (`teachers.adapter`).

Legend: `B` utterances, `T` frames of the teacher, `r` adapter frames for each teacher frame, `D` width of the
teacher's encoder, `A` width of the adapter, `V` labels with the blank last.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

# Frames of the teacher that the first layer reads. The letters of a subword are spelled in several frames
# around the one frame in which the teacher's posteriors have it.
KERNEL = 7
# Frames of the adapter that the second layer reads.
SECOND_KERNEL = 5
_SECOND_DROPOUT = 0.2
# Posteriors of the size that layer-normalised hidden vectors have, so that both begin with a part in the
# output.
_POSTERIOR_GAIN = 4.0


class AdapterHead(nn.Module):
    """The network of an adapter (ours).

        x = [h_T; 4 softmax(W_T h_T + b_T)]             [B, D, T] -> [B, D + V_T, T]
        G = LayerNorm(ReLU(up_r(Conv1d_7(x))))          [B, D + V_T, T] -> [B, A, r T]
        H = LayerNorm(G + ReLU(Conv1d_5(G)))            [B, A, r T]
        log p = log_softmax(W H + b)                    [B, A, r T] -> [B, r T, V]

    `W_T` and `b_T` are a frozen copy of the teacher's CTC decoder where that is a single 1x1 convolution;
    otherwise `x` is `h_T`. The teacher's posteriors generalise better than its hidden vectors to speech that
    the head was not trained on: on a small corpus the head then makes far fewer errors.

    `up_r` writes the `r` groups of channels of a teacher's frame as `r` frames. The output layer is a single
    1x1 convolution, so the decoder's warm start can compose it with the projection of RKD.

    Args:
        teacher_width: `D`.
        width: `A`.
        upsampling: `r`.
        outputs: `V`.
        teacher_outputs: `V_T`; 0 leaves the posteriors out.
        dropout: probability of dropping a value of the encoder's output while the head is trained.
        kernel: frames that the first convolution reads, an odd number.
        second_kernel: the same of the second; 0 leaves it out, and `H` is `G`.

    Example:
        >>> head = AdapterHead(teacher_width=8, width=4, upsampling=2, outputs=3).eval()
        >>> hidden = head.features(torch.zeros(1, 8, 5), torch.tensor([5]))
        >>> hidden.shape, head.log_probs(hidden).shape
        (torch.Size([1, 4, 10]), torch.Size([1, 10, 3]))
    """

    def __init__(
        self,
        teacher_width: int,
        width: int,
        upsampling: int,
        outputs: int,
        teacher_outputs: int = 0,
        dropout: float = 0.0,
        kernel: int = KERNEL,
        second_kernel: int = SECOND_KERNEL,
    ) -> None:
        super().__init__()
        self.teacher_decoder: nn.Conv1d | None = None
        if teacher_outputs:
            self.teacher_decoder = nn.Conv1d(teacher_width, teacher_outputs, kernel_size=1).requires_grad_(
                False
            )
        self.upsampling = upsampling
        self.dropout = nn.Dropout(dropout)
        inputs = teacher_width + teacher_outputs
        self.expand = nn.Conv1d(inputs, upsampling * width, kernel, padding=kernel // 2)
        self.norm = nn.LayerNorm(width)
        self.second: nn.Conv1d | None = None
        if second_kernel:
            self.second = nn.Conv1d(width, width, second_kernel, padding=second_kernel // 2)
            self.second_norm = nn.LayerNorm(width)
            self.second_dropout = nn.Dropout(_SECOND_DROPOUT)
        self.decoder = nn.Conv1d(width, outputs, kernel_size=1)

    def features(self, encoded: Tensor, lengths: Tensor) -> Tensor:
        """Computes the adapter's hidden vectors, which are the hint layer `adapter`.

        Args:
            encoded: output of the teacher's encoder `[B, D, T]`.
            lengths: valid frames of it `[B]`. The frames behind them count as zero, so an utterance's result
                does not depend on the other utterances of its batch.

        Returns:
            Hidden vectors `[B, A, r T]`.
        """
        frames = torch.arange(encoded.shape[2], device=encoded.device)
        valid = (frames < lengths[:, None].to(encoded.device))[:, None]
        inputs = self.dropout(encoded)
        if self.teacher_decoder is not None:
            posteriors = self.teacher_decoder(encoded).softmax(dim=1)
            inputs = torch.cat([inputs, _POSTERIOR_GAIN * posteriors], dim=1)
        # Not a product, because an encoder may leave anything in padded frames, NaN too.
        expanded = self.expand(inputs.masked_fill(~valid, 0.0))
        batch, _, time = expanded.shape
        grouped = expanded.view(batch, self.upsampling, -1, time)  # [B, r, A, T]
        upsampled = grouped.permute(0, 3, 1, 2).reshape(batch, time * self.upsampling, -1)
        hidden: Tensor = self.norm(torch.relu(upsampled))
        if self.second is not None:
            inside = valid.repeat_interleave(self.upsampling, dim=2)
            change = torch.relu(self.second(hidden.transpose(1, 2) * inside)).transpose(1, 2)
            hidden = self.second_norm(hidden + self.second_dropout(change))
        return hidden.transpose(1, 2)

    def log_probs(self, hidden: Tensor) -> Tensor:
        """Computes log-probabilities `[B, r T, V]` from hidden vectors `[B, A, r T]`."""
        logits: Tensor = self.decoder(hidden)
        return logits.transpose(1, 2).float().log_softmax(dim=-1)

    def forward(self, encoded: Tensor, lengths: Tensor) -> Tensor:
        """Computes log-probabilities `[B, r T, V]` from the encoder's output `[B, D, T]`."""
        return self.log_probs(self.features(encoded, lengths))
