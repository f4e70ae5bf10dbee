# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""What is trained: students by a config's name, or by one of the names here."""

from __future__ import annotations

import json
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

ROOT = Path(__file__).resolve().parents[2]
CONF = ROOT / "conf"


def _sizes(first: str, filters: tuple[int, ...], separable: bool) -> tuple[str, tuple[str, ...]]:
    """A config with other widths, and maybe without QuartzNet's separable convolutions: then it is a
    Jasper.
    """
    blocks = (
        (
            f"model.encoder.jasper.{i}.filters={width}",
            f"model.encoder.jasper.{i}.separable={str(separable).lower()}",
        )
        for i, width in enumerate(filters[:-1])
    )
    last = (f"model.encoder.jasper.5.filters={filters[-1]}", f"model.decoder.feat_in={filters[-1]}")
    return first, (*chain(*blocks), *last)


def _encoder_of(config: str, first: str) -> tuple[str, tuple[str, ...]]:
    """The encoder of a config in `conf`, with everything else as in one for two CPU cores: front end,
    optimizer, batches.
    """
    blocks: Any = OmegaConf.to_container(OmegaConf.load(CONF / f"{config}.yaml").model.encoder.jasper)
    return first, (
        f"model.encoder.jasper={_listed(blocks)}",
        f"model.decoder.feat_in={blocks[-1]['filters']}",
    )


def _listed(blocks: Any) -> str:
    """Blocks as Hydra's command line writes lists."""
    return json.dumps(blocks).replace('"', "").replace(" ", "")


def _narrower(config: str, first: str, width: int, last: int) -> tuple[str, tuple[str, ...]]:
    """The encoder of a config in `conf` with other widths, and everything else as in one for two CPU cores.

    Its frames may be longer than the teacher's, which are pooled then.
    """
    blocks: Any = OmegaConf.to_container(OmegaConf.load(CONF / f"{config}.yaml").model.encoder.jasper)
    for block in blocks:
        block["filters"] = width
    blocks[-1]["filters"] = last
    overrides = f"model.encoder.jasper={_listed(blocks)}", f"model.decoder.feat_in={last}"
    return first, (*overrides, "model.tutor.pool_frames=true")


def _conformer(*overrides: str, layers: int = 5) -> tuple[str, tuple[str, ...]]:
    """A Conformer or FastConformer with subwords (1.2 M with 5 layers), as wide as this runner's teachers."""
    sizes = (f"model.encoder.n_layers={layers}", "model.encoder.d_model=96")
    return "fastconformer_ctc_tiny_bpe", (*sizes, *overrides)


# Students that are a config in conf/small and overrides: other widths or kinds of the same blocks, or another
# encoder of `conf`.
STUDENTS: dict[str, tuple[str, tuple[str, ...]]] = {
    "quartznet_1m": _sizes("quartznet_small", (256, 256, 256, 320, 384, 512), separable=True),
    "quartznet_5x5": _encoder_of("quartznet_5x5", "quartznet_small"),
    "jasper_small": _sizes("quartznet_small", (64, 64, 64, 80, 96, 128), separable=False),
    "conformer_bpe_1m": _conformer(
        "model.encoder.subsampling=striding",
        "model.encoder.subsampling_factor=4",
        "model.encoder.subsampling_conv_channels=32",
        "model.encoder.conv_kernel_size=31",
    ),
    "fastconformer_bpe_1m": _conformer(),
    "fastconformer_bpe_3_layers": _conformer(layers=3),
    "citrinet_small": _narrower("citrinet_256", "quartznet_small", 96, 240),
}


@dataclass(frozen=True)
class Student:
    """A student's config.

    Attributes:
        folder: of the config, below the repository: `conf` or `conf/small`.
        config: its name there.
        overrides: further ones.
    """

    folder: str
    config: str
    overrides: tuple[str, ...] = ()

    @property
    def model(self) -> Any:
        """The section `model` of the config's file."""
        return OmegaConf.load(ROOT / self.folder / f"{self.config}.yaml").model

    @property
    def has_other_frames(self) -> bool:
        """Whether its frames are not as long as its config's."""
        return any(override.startswith("model.encoder.subsampling") for override in self.overrides)

    @property
    def has_subwords(self) -> bool:
        """Whether it has a tokenizer."""
        return bool(self.model.get("tokenizer"))


def student_of(name: str) -> Student:
    """A student by its name: one of `STUDENTS`, a config in `conf/small`, or `conf/NAME`, one in `conf`.

    Raises:
        KeyError: there is none of this name.
    """
    if name in STUDENTS:
        return Student("conf/small", *STUDENTS[name])
    folder, _, config = name.rpartition("/")
    found = Student("conf" if folder == "conf" else "conf/small", config)
    if folder not in ("", "conf") or not (ROOT / found.folder / f"{config}.yaml").is_file():
        raise KeyError(name)
    return found
