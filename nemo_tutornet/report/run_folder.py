# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""A training's folder, as NeMo's exp_manager writes it: the model, the config and the logs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from nemo_tutornet.config import TutorConfig, parse_tutor
from nemo_tutornet.errors import TutorError
from nemo_tutornet.utils.files import read_regular_file
from nemo_tutornet.utils.yaml_aliases import check_aliases

_MOST_BYTES = 4 << 20


@dataclass(frozen=True)
class RunFolder:
    """A finished training.

    Attributes:
        model: the `.nemo` file that it wrote.
        folder: the folder of its logs; None where only a `.nemo` file was given.
        config: the model's config, from `hparams.yaml`; empty where there is none.
        tutor: the checked `tutor:` section of the config; None where it has none.
    """

    model: Path
    folder: Path | None = None
    config: Mapping[str, Any] = field(default_factory=dict)
    tutor: TutorConfig | None = None

    def manifest_of(self, section: str) -> Path | None:
        """Returns the only manifest of `train_ds` or `validation_ds`; None where it is not known."""
        named = (self.config.get(section) or {}).get("manifest_filepath")
        named = named[0] if isinstance(named, list) and len(named) == 1 else named
        return Path(named) if isinstance(named, str) else None


def open_run(path: Path) -> RunFolder:
    """Finds the model, the config and the logs of a training.

    Args:
        path: the run's folder (`exp_dir/name`), where the newest version counts if there are several; or a
            `.nemo` file. A file that is in the `checkpoints` folder of a run is read with its run.

    Returns:
        The run.

    Raises:
        TutorError: there is no such path, or the folder has no `.nemo` file or several.
    """
    if path.suffix == ".nemo":
        folder = path.absolute().parent.parent if path.absolute().parent.name == "checkpoints" else None
        return _described(path, folder)
    if not path.is_dir():
        raise TutorError(
            f"there is no folder {path}; give the run's folder (exp_manager.exp_dir/exp_manager.name) or a "
            ".nemo file."
        )
    # exp_manager puts a run that is not resumed into a folder with its date below the run's.
    versions = sorted(path.glob("*/checkpoints"), key=lambda version: version.stat().st_mtime)
    for checkpoints in [path / "checkpoints", *reversed(versions)]:
        found = sorted(checkpoints.glob("*.nemo"))
        if len(found) > 1:
            names = ", ".join(file.name for file in found)
            raise TutorError(f"{checkpoints} has several models ({names}); give one of these files.")
        if found:
            return _described(found[0], checkpoints.parent)
    raise TutorError(
        f"{path} has no checkpoints/NAME.nemo, which a training writes when it ends; wait for its end, or "
        "give the .nemo file that `nemo-tutornet export` makes of its .ckpt."
    )


def _described(model: Path, folder: Path | None) -> RunFolder:
    config = {} if folder is None else _config_of(folder)
    try:
        tutor = parse_tutor(config)
        has_teacher = tutor is not None and not tutor.without_teacher
        return RunFolder(model, folder, config, tutor if has_teacher else None)
    except TutorError:  # of another version of this package; the report can do without
        return RunFolder(model, folder, config)


def _config_of(folder: Path) -> Mapping[str, Any]:
    """Reads the newest `hparams.yaml`, which Lightning's loggers write."""
    for file in sorted(folder.rglob("hparams.yaml"), key=lambda file: file.stat().st_mtime, reverse=True):
        try:
            content = read_regular_file(file, _MOST_BYTES)
            check_aliases(content)
            config = (yaml.safe_load(content) or {}).get("cfg")
        except (OSError, UnicodeDecodeError, yaml.YAMLError, AttributeError):
            continue
        if isinstance(config, dict):
            return config
    return {}
