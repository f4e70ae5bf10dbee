# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""NeMo's connector on an archive that was checked; importing this imports NeMo."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from nemo.core.connectors.save_restore_connector import SaveRestoreConnector

from nemo_tutornet.nemo_io.archive import NemoArchive

_TIMESTAMPS_MODEL = "timestamps_asr_model"


class CheckedConnector(SaveRestoreConnector):
    """Unpacks the files of one archive that were checked when it was opened, and nothing else.

    NeMo unpacks when it restores a model, and again when it saves one whose tokenizer is in the archive; both
    calls come here. A folder is unpacked like a file.

    Some Canaries contain a second model, which NeMo uses only for time stamps. Its files are left out, so
    that it is neither restored nor held in memory.

    Args:
        archive: what the model is restored from.
    """

    def __init__(self, archive: NemoArchive) -> None:
        super().__init__()
        self._archive = archive

    def _filtered_tar_info(self, tar_path: str, filter_fn: Callable[[str], bool] | None = None) -> list[str]:
        return [
            name
            for name in self._archive.members
            if not name.startswith(_TIMESTAMPS_MODEL) and (filter_fn is None or filter_fn(name))
        ]

    def _unpack_nemo_file(self, path2file: str, out_folder: str, members: list[str] | None = None) -> str:
        self._archive.unpack(
            Path(out_folder), self._filtered_tar_info(path2file) if members is None else members
        )
        return out_folder
