# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""NeMo's connector on an archive that was checked; importing this imports NeMo."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from nemo.core.connectors.save_restore_connector import SaveRestoreConnector
from nemo.utils.msc_utils import is_multistorageclient_url

from nemo_tutornet.errors import TutorError, reason_of
from nemo_tutornet.nemo_io.archive import MODEL_WEIGHTS, NemoArchive
from nemo_tutornet.nemo_io.config_limits import check_numbers
from nemo_tutornet.nemo_io.isolation import undo_failed_restore
from nemo_tutornet.nemo_io.model_size import limit_parameters
from nemo_tutornet.nemo_io.tokenizer_files import check_archive_tokenizer
from nemo_tutornet.nemo_io.weights import check_finite, load_tensors

_TIMESTAMPS_MODEL = "timestamps_asr_model"
# The arguments of NeMo's `restore_from` after the path, in order.
_ARGUMENTS = (
    "override_config_path",
    "map_location",
    "strict",
    "return_config",
    "save_restore_connector",
    "trainer",
    "validate_access_integrity",
)


class CheckedConnector(SaveRestoreConnector):
    """Unpacks the files of one archive that were checked when it was opened, and nothing else.

    The weights are loaded without unpickling a class. A config with parameters that the weights cannot hold
    is refused before they take memory, and weights that are not finite are refused, too.

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

    def load_config_and_state_dict(
        self, calling_cls: Any, restore_path: str, *args: Any, **kwargs: Any
    ) -> Any:
        """Builds the model from the archive's config, and loads the weights; NeMo's method.

        Raises:
            TutorError: the config describes a model that is larger than the weights.
        """
        archive = self._archive
        weights = archive.size_of(MODEL_WEIGHTS) if MODEL_WEIGHTS in archive.members else 0
        check_numbers(archive.config, str(archive.path))
        with limit_parameters(weights) as limit:
            try:
                return super().load_config_and_state_dict(calling_cls, restore_path, *args, **kwargs)
            except Exception:
                if limit.exceeded:
                    raise _too_large(archive, weights) from None
                raise

    def load_instance_with_state_dict(self, instance: Any, state_dict: Any, strict: bool) -> None:
        """Puts the weights into the model, and checks that they are finite; NeMo's method."""
        super().load_instance_with_state_dict(instance, state_dict, strict)
        check_finite(instance, self._archive.path)

    @staticmethod
    def _load_state_dict_from_disk(model_weights: str, map_location: Any = "cpu") -> Any:
        return load_tensors(Path(model_weights))

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


def checked_restore(
    restore: Callable[..., Any], path: Any, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> Any:
    """Calls NeMo's `restore_from` with the checked files of an archive.

    Args:
        restore: NeMo's method.
        path: the `.nemo` file, or a folder that one was unpacked to.
        args: the arguments after the path.
        kwargs: those with a name. With a connector of the caller's, nothing is checked here.

    Returns:
        The model, which saves with NeMo's own connector; or its config, as NeMo's method.

    Raises:
        TutorError: the archive is rejected, or NeMo cannot restore it.
    """
    given = {**dict(zip(_ARGUMENTS, args, strict=False)), **kwargs}
    if given.get("save_restore_connector") is not None or is_multistorageclient_url(path):
        return restore(path, **given)
    archive = NemoArchive(Path(path).expanduser())
    check_archive_tokenizer(archive)
    try:
        with undo_failed_restore():
            restored = restore(str(path), **{**given, "save_restore_connector": CheckedConnector(archive)})
    except TutorError:
        raise
    except Exception as error:  # a damaged part can make NeMo raise any exception
        raise TutorError(f"NeMo cannot restore {path}: {reason_of(error)}.") from error
    if not given.get("return_config"):
        # The file may change later, for example when the model is saved in its place.
        restored._save_restore_connector = SaveRestoreConnector()
    return restored


def _too_large(archive: NemoArchive, weights: int) -> TutorError:
    return TutorError(
        f"{archive.path} has a config that describes more parameters than its weights file of "
        f"{weights / 1e6:.1f} MB holds; take the file from its source again."
    )
