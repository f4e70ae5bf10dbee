# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""The targets of a teacher with an adapter, from its encoder's output: computed or read from a cache.

Legend: `B` utterances, `T` frames of the teacher, `r` adapter frames for each teacher frame, `D` width of the
teacher's encoder.
"""

from __future__ import annotations

import torch
from torch import Tensor

from nemo_tutornet.functional.frame_weighting import confidence
from nemo_tutornet.functional.greedy import greedy_labels
from nemo_tutornet.nemo_io.label_text import join_labels, tokenizer_of
from nemo_tutornet.teachers.adapter import Adapter
from nemo_tutornet.teachers.targets import Hypothesis, TargetRequest, TeacherTargets


@torch.no_grad()
def adapted_targets(
    adapter: Adapter,
    encoded: Tensor,
    lengths: Tensor,
    request: TargetRequest,
    hypotheses: list[Hypothesis] | None,
    own_hidden: Tensor | None,
) -> TeacherTargets:
    """Computes what is requested in fp32, with the adapter in place of the teacher's CTC head.

    Args:
        adapter: on the device of `encoded`.
        encoded: output of the teacher's encoder `[B, D, T]`.
        lengths: valid frames `[B]`.
        request: the targets to compute.
        hypotheses: the teacher's own, if requested, and if the adapter does not write them
            (`AdapterInfo.writes_hypotheses`). Those of a transducer have no confidence, and get the
            adapter's.
        own_hidden: the hint layer where it is one of the teacher's own layers; None for the adapter's hidden
            vectors.

    Returns:
        Targets on the adapter's frames; a hint layer of the teacher's own stays on the teacher's.
    """
    head = adapter.head
    is_hint = own_hidden is None
    writes = request.hypotheses and adapter.info.writes_hypotheses
    unsure = writes or (hypotheses is not None and any(one.confidence is None for one in hypotheses))
    features = log_probs = None
    # The student's step may run in mixed precision, which is not the adapter's.
    with torch.autocast(encoded.device.type, enabled=False):
        if request.posteriors or unsure or (request.hidden and is_hint):
            features = head.features(encoded.float(), lengths)
        if features is not None and (request.posteriors or unsure):
            log_probs = head.log_probs(features)
    lengths = lengths * head.upsampling
    if unsure and log_probs is not None:
        texts = (
            _greedy_texts(adapter, log_probs, lengths) if writes else [one.text for one in hypotheses or ()]
        )
        sure = confidence(log_probs, lengths).tolist()
        hypotheses = [Hypothesis(text, value) for text, value in zip(texts, sure, strict=True)]
    hidden = features if is_hint else own_hidden
    return TeacherTargets(
        lengths=lengths,
        log_probs=log_probs if request.posteriors else None,
        hypotheses=hypotheses,
        hidden=hidden if request.hidden else None,
    )


def _greedy_texts(adapter: Adapter, log_probs: Tensor, lengths: Tensor) -> list[str]:
    labels = adapter.info.labels
    tokenizer = tokenizer_of(labels)
    return [
        join_labels([labels[i] for i in path], tokenizer) for path in greedy_labels(log_probs.cpu(), lengths)
    ]
