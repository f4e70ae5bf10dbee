# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""Facts about a restored NeMo model: class, size, front end and labels, read without running the model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, cast

from omegaconf import OmegaConf

from nemo_tutornet.nemo_io.prompt import prompt_slots
from nemo_tutornet.nemo_io.restore import ctc_head, is_attention_model, labels_of
from nemo_tutornet.nemo_io.stock_config import target_of


@dataclass(frozen=True)
class FrontEnd:
    """Parameters of the front end, which computes features from audio.

    Attributes:
        sample_rate: samples per second.
        mel_bins: number of mel bins of the spectrogram; None for other features.
        window_ms: milliseconds of audio in the window of a feature frame.
        stride_ms: milliseconds from one feature frame to the next.
        normalize: NeMo's name of the normalisation, or `fixed` for a stored mean; None without normalisation.
    """

    sample_rate: int
    mel_bins: int | None
    window_ms: float
    stride_ms: float
    normalize: str | None


@dataclass(frozen=True)
class ModelInfo:
    """The facts about one NeMo model that are known without running it.

    Attributes:
        class_name: class of the object, which may be a subclass of the target.
        target: NeMo's class, from the model's config.
        parameters: number of parameters that a saved model has.
        front_end: parameters of the front end.
        preprocessor: section `preprocessor` of the model's config, with resolved interpolations.
        labels: labels in the order of the outputs, without the blank. A transducer has the labels of its
            joint network, an attention model those of its decoder.
        label_kind: `characters` or `subwords`.
        tokenizer: NeMo's name of the tokenizer's type (`bpe` is SentencePiece); None for characters.
        has_ctc_head: True if the model has posteriors on frames; False for a transducer and for an attention
            model.
        prompt: values of the slots of an attention model's prompt; None for a slot without a default. Empty
            for other models.
    """

    class_name: str
    target: str
    parameters: int
    front_end: FrontEnd
    preprocessor: dict[str, Any]
    labels: tuple[str, ...]
    label_kind: str
    tokenizer: str | None
    has_ctc_head: bool
    prompt: Mapping[str, str | None] = field(default_factory=dict)

    def as_facts(self) -> dict[str, str]:
        """Returns the facts that users compare, as text by name."""
        return {
            "class": self.class_name,
            "parameters": f"{self.parameters / 1e6:.2f} M ({self.parameters * 4 / 1e6:.0f} MB in fp32)",
            "front end": front_end_in_words(self.front_end.sample_rate, self.front_end.mel_bins),
            "labels": posterior_labels_in_words(len(self.labels) if self.has_ctc_head else None),
        }


def describe_model(model: Any) -> ModelInfo:
    """Reads the facts about a model; the model is not run and not changed.

    Args:
        model: a NeMo CTC, hybrid, transducer or attention model.

    Returns:
        The facts.
    """
    head = ctc_head(model)
    saved = model.state_dict().keys()  # without the projections that a student has in training only
    # A character model ignores a section `tokenizer` that its config still has.
    tokenizer = model.cfg.tokenizer if getattr(model, "tokenizer", None) is not None else None
    return ModelInfo(
        class_name=type(model).__name__,
        target=target_of(model.cfg),
        parameters=sum(value.numel() for name, value in model.named_parameters() if name in saved),
        front_end=_front_end(model.preprocessor),
        preprocessor=cast("dict[str, Any]", OmegaConf.to_container(model.cfg.preprocessor, resolve=True)),
        labels=tuple(_output_labels(model, head)),
        label_kind="characters" if tokenizer is None else "subwords",
        tokenizer=None if tokenizer is None else str(tokenizer.get("type")),
        has_ctc_head=head is not None,
        prompt=prompt_slots(model),
    )


def front_end_in_words(sample_rate: int, mel_bins: int | None) -> str:
    """Describes the parameters of a front end in which a teacher and its student may differ.

    Args:
        sample_rate: samples per second.
        mel_bins: number of mel bins; None without a mel spectrogram.

    Returns:
        The description.
    """
    return f"{sample_rate} Hz, {'no mel spectrogram' if mel_bins is None else f'{mel_bins} mel bins'}"


def posterior_labels_in_words(labels: int | None) -> str:
    """Describes the number of labels of a posterior.

    Args:
        labels: number of labels without the blank; None for a model without a CTC head, which has no
            posteriors on frames.

    Returns:
        The description.
    """
    return "none on frames" if labels is None else f"{labels} and the blank"


def _output_labels(model: Any, head: Any) -> list[str]:
    if head is None and is_attention_model(model):
        return list(model.tokenizer.vocab)  # of all its languages, in the order of the decoder's outputs
    return labels_of(model, model.joint if head is None else head)


def _front_end(preprocessor: Any) -> FrontEnd:
    sample_rate = int(preprocessor._sample_rate)
    featurizer = preprocessor.featurizer
    normalize = getattr(featurizer, "normalize", None)
    return FrontEnd(
        sample_rate=sample_rate,
        mel_bins=getattr(featurizer, "nfilt", None),
        window_ms=round(1000 * preprocessor.win_length / sample_rate, 3),
        stride_ms=round(1000 * preprocessor.hop_length / sample_rate, 3),
        normalize=normalize if normalize is None or isinstance(normalize, str) else "fixed",
    )
