# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""A student in training whose decoder can be validated, and whose files are a stock model's."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning.pytorch.trainer.states import TrainerFn
from nemo.utils import logging
from nemo.utils.get_rank import is_global_rank_zero
from nemo.utils.msc_utils import is_multistorageclient_url
from omegaconf import OmegaConf

from nemo_tutornet.distill.distiller import Distiller
from nemo_tutornet.distill.ema import averaged_weights
from nemo_tutornet.distill.finite import check_weights
from nemo_tutornet.nemo_io.connector import checked_restore
from nemo_tutornet.nemo_io.stock_config import stock_config
from nemo_tutornet.utils.files import atomic_write, expand_user

if TYPE_CHECKING:
    from nemo.collections.asr.models import EncDecCTCModel as _Host  # base class of the mixin's users
else:
    _Host = object


class StudentFilesMixin(_Host):
    """Composes the decoder while RKD has not trained it, and reads and writes a student's files.

    A stage of RKD alone leaves the decoder untrained. It is then composed of the projection and the teacher's
    decoder (`distill.warm_start`) for each validation and for each file that is written.
    """

    _distiller: Distiller | None = None

    def _decoder_is_untrained(self) -> bool:
        # Returns False after the training, because weights that do not match the projection may be loaded
        # then.
        distiller, trainer = self._distiller, self._trainer
        if distiller is None or trainer is None or trainer.state.fn != TrainerFn.FITTING:
            return False
        return distiller.decoder_is_untrained and trainer.state.stage is not None

    def _compose_untrained_decoder(self) -> None:
        """Composes the decoder while it is untrained, so that it can be validated and saved during RKD."""
        if self._decoder_is_untrained():
            assert self._distiller is not None
            self._distiller.warm_start.apply(self.decoder)

    def on_validation_epoch_start(self) -> None:
        """Composes the decoder while it is untrained, without running the teacher."""
        super().on_validation_epoch_start()
        self._compose_untrained_decoder()

    def on_train_epoch_end(self) -> None:
        """Composes the decoder while it is untrained, because a run may have no validation."""
        super().on_train_epoch_end()
        self._compose_untrained_decoder()

    def on_train_end(self) -> None:
        """Warns where the training ends with a decoder that nothing has trained."""
        super().on_train_end()
        if self._distiller is not None and self._distiller.decoder_is_random:
            logging.warning(
                "No stage has trained the student's decoder, and it could not be composed, so the student "
                "may write noise: begin a second training from it (+init_from_nemo_model) with a stage that "
                "has ctc, skd or pseudo."
            )

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Composes the decoder while it is untrained, and refuses weights that are not finite.

        Args:
            checkpoint: the content of the `.ckpt`.

        Raises:
            TutorError: a weight is NaN or infinite.
        """
        super().on_save_checkpoint(checkpoint)
        check_weights(self, f"after step {checkpoint.get('global_step', 0)}")
        # Compose on every rank. The state in `checkpoint` was taken before, but it shares its memory with the
        # parameters, so it changes, too.
        self._compose_untrained_decoder()

    @classmethod
    def restore_from(cls, restore_path: str, *args: Any, **kwargs: Any) -> Any:
        """Runs NeMo's method on files that are checked, with the same arguments (`nemo_io.connector`)."""
        return checked_restore(super().restore_from, restore_path, args, kwargs)

    def to_config_file(self, path2yaml_file: str) -> None:
        """Writes the stock student's config. NeMo calls this for every `.nemo` that is written."""
        OmegaConf.save(stock_config(self._cfg), path2yaml_file, resolve=True)

    def save_to(self, save_path: str | Path) -> None:
        """Runs NeMo's `save_to` with a temporary file, so that an interrupt does not damage an existing file.

        An untrained decoder is composed in the file, and with NeMo's EMA the file holds the averaged weights,
        which are those that are validated. The model itself does not change.

        Args:
            save_path: path of the `.nemo` file.

        Raises:
            TutorError: a weight is NaN or infinite.
        """
        check_weights(self, f"saving {save_path}")
        packed = self._save_restore_connector.pack_nemo_file
        untrained = deepcopy(self.decoder.state_dict()) if self._decoder_is_untrained() else None
        self._compose_untrained_decoder()
        try:
            with averaged_weights(self._trainer) as averaged:
                if averaged:
                    self._compose_untrained_decoder()  # of the averaged projection
                    logging.info(f"{save_path} holds the averaged weights (exp_manager.ema).")
                if is_multistorageclient_url(save_path) or not packed or not is_global_rank_zero():
                    super().save_to(save_path)
                    return
                with atomic_write(expand_user(save_path).resolve()) as temporary:
                    super().save_to(str(temporary))
        finally:
            if untrained is not None:
                self.decoder.load_state_dict(untrained)
