# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""The teacher's own decoding: the text of each utterance from the outputs of its encoder or its CTC head.

Each function calls NeMo's decoding with the method of the model's section `decoding` (greedy or beam).

Legend: `B` utterances, `T` frames of the teacher, `D` width of the encoder's output, `V` labels with the
blank last.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from nemo_tutornet.functional.frame_weighting import confidence
from nemo_tutornet.nemo_io.prompt import encode_prompt
from nemo_tutornet.nemo_io.restore import is_attention_model
from nemo_tutornet.teachers.targets import Hypothesis


def decode(
    model: Any,
    encoded: Tensor,
    lengths: Tensor,
    log_probs: Tensor | None,
    prompt: Mapping[str, str] | None = None,
) -> list[Hypothesis]:
    """Decodes a batch.

    An attention model is decoded by its own decoder, also where it has posteriors on frames.

    Args:
        model: a NeMo CTC, hybrid, transducer or attention model.
        encoded: output of the encoder `[B, D, T]`.
        lengths: valid frames `[B]`.
        log_probs: log-probabilities of the CTC head `[B, T, V]`; None for a model without one.
        prompt: options of an attention model's prompt, by slot.

    Returns:
        `B` hypotheses. Only those of a CTC head have a confidence.

    Raises:
        TutorError: the prompt's options are not those of the model.
    """
    if is_attention_model(model):
        return _decode_attention(model, encoded, lengths, prompt or {})
    if log_probs is None:
        return _decode_transducer(model, encoded, lengths)
    decoding = getattr(model, "ctc_decoding", None) or model.decoding
    found = decoding.ctc_decoder_predictions_tensor(
        decoder_outputs=log_probs.float(), decoder_lengths=lengths
    )
    sure = confidence(log_probs, lengths).tolist()
    return [Hypothesis(_text(entry), value) for entry, value in zip(_best(found), sure, strict=True)]


def _decode_transducer(model: Any, encoded: Tensor, lengths: Tensor) -> list[Hypothesis]:
    # Autocast is off, so that the decoder runs in its own precision: an LSTM rejects mixed precisions.
    with torch.autocast(encoded.device.type, enabled=False):
        found = model.decoding.rnnt_decoder_predictions_tensor(
            encoder_output=encoded.float(), encoded_lengths=lengths
        )
    return [Hypothesis(_text(entry), None) for entry in _best(found)]


@torch.no_grad()
def _decode_attention(
    model: Any, encoded: Tensor, lengths: Tensor, prompt: Mapping[str, str]
) -> list[Hypothesis]:
    """Decodes as the model's `transcribe()` does, after the encoder."""
    prompt_tokens = encode_prompt(model, prompt).to(encoded.device).expand(len(encoded), -1)
    # The decoder runs in its own precision, as a transducer's does.
    with torch.autocast(encoded.device.type, enabled=False):
        states = model.encoder_decoder_proj(encoded.float().transpose(1, 2))
        frames = torch.arange(states.shape[1], device=lengths.device)
        mask = (frames < lengths[:, None]).to(states.dtype)
        if model.use_transf_encoder:
            states = model.transf_encoder(encoder_states=states, encoder_mask=mask)
        inputs = {"encoder_hidden_states": states, "encoder_input_mask": mask}
        try:
            found = model.decoding.decode_predictions_tensor(**inputs, decoder_input_ids=prompt_tokens)
        finally:
            # NeMo's decoding sets both to train mode when it has finished.
            model.transf_decoder.eval()
            model.log_softmax.eval()
    return [Hypothesis(_text(entry), None) for entry in _best(found)]


def _best(found: Any) -> Any:
    """Selects the best hypothesis of each utterance from what NeMo's decoding returns.

    NeMo 2 returns the pair (best, all); NeMo 3 returns the best only. A beam search may return a list of
    hypotheses for each utterance, with the best first.
    """
    found = found[0] if isinstance(found, tuple) else found
    return [entry[0] if isinstance(entry, list) else entry for entry in found]


def _text(entry: Any) -> str:
    return entry if isinstance(entry, str) else str(entry.text)
