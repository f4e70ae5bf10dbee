# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""Options of an evaluation, and how the command line gives them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from nemo_tutornet.errors import TutorError
from nemo_tutornet.evaluation.decoders import check_decoder
from nemo_tutornet.evaluation.text_processing import TextProcessing


@dataclass(frozen=True)
class EvaluationOptions:
    """What is not the same for every evaluation.

    Attributes:
        decoder: `ctc` or `rnnt`, of models that have it; None for each model's own (a hybrid's is `rnnt`, as
            in NeMo).
        processing: of transcripts and hypotheses alike, before errors are counted.
        channel: the channel to read of audio with several: its number, or `average` for their mean; None
            refuses such audio.
        prompt: options of an attention model's prompt (Canary), by slot, e.g. `{"source_lang": "de"}`.
    """

    decoder: str | None = None
    processing: TextProcessing = field(default_factory=TextProcessing)
    channel: int | str | None = None
    prompt: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def parse(
        cls,
        decoder: str | None = None,
        processing: TextProcessing | None = None,
        channel: str | None = None,
        prompt: Sequence[str] = (),
    ) -> EvaluationOptions:
        """Reads the options of the command line.

        Args:
            decoder: as the attribute.
            processing: as the attribute.
            channel: a number or `average`.
            prompt: `SLOT=VALUE` each.

        Raises:
            TutorError: one of them is invalid.

        Example:
            >>> EvaluationOptions.parse(channel="1", prompt=["source_lang=de"]).prompt
            {'source_lang': 'de'}
        """
        check_decoder(decoder)
        slots = {}
        for one in prompt:
            slot, equals, value = one.partition("=")
            if not slot or not equals:
                raise TutorError(f"--prompt {one!r} is not of the form SLOT=VALUE, e.g. source_lang=de.")
            slots[slot] = value
        return cls(decoder, processing or TextProcessing(), parse_channel(channel), slots)


def parse_channel(channel: str | None) -> int | str | None:
    """Reads the option `--channel`.

    Args:
        channel: a number from 0, or `average`; None for no choice.

    Raises:
        TutorError: it is something else.

    Example:
        >>> parse_channel("1"), parse_channel("average"), parse_channel(None)
        (1, 'average', None)
    """
    if channel is None or channel == "average":
        return channel
    if channel.isascii() and channel.isdigit() and len(channel) < 10:
        return int(channel)
    raise TutorError(f"--channel is {channel!r}; give the number of a channel, from 0, or average.")
