# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""The `tutor:` section of a student's config: keys, defaults and checks.

Nothing is loaded here, so a mistake in the section costs seconds and not the time of restoring a teacher.

Importing this package tells Hydra the section's defaults under the name `tutor_defaults`. A YAML that begins
with ::

    defaults:
      - tutor_defaults@model.tutor
      - _self_

has every key of the section, so that each can be overridden on the command line without `+`.

It also tells Hydra the group `front_end`, which is chosen on the command line: `front_end=deployable`, or
`+front_end=deployable` where a YAML does not end its defaults with ::

      - front_end: stock
"""

from __future__ import annotations

from hydra.core.config_store import ConfigStore
from omegaconf import OmegaConf

from nemo_tutornet.config.files import check_teacher_files
from nemo_tutornet.config.parse import parse_tutor
from nemo_tutornet.config.renamed import check_renamed_overrides
from nemo_tutornet.config.schema import (
    DIVERGENCES,
    FRAME_SELECTIONS,
    FRAME_WEIGHTINGS,
    INIT_SOURCES,
    PRECISIONS,
    RKD_REDUCTIONS,
    SKD_ALIGNMENTS,
    STAGE_UNITS,
    ConsistencyConfig,
    InitConfig,
    LayerPairConfig,
    LogConfig,
    MixupConfig,
    PseudoLabelsConfig,
    RKDConfig,
    SKDConfig,
    StageConfig,
    TeacherConfig,
    TutorConfig,
)
from nemo_tutornet.config.student import check_seed, check_student, check_trainer

__all__ = [
    "DIVERGENCES",
    "FRAME_SELECTIONS",
    "FRAME_WEIGHTINGS",
    "INIT_SOURCES",
    "PRECISIONS",
    "RKD_REDUCTIONS",
    "SKD_ALIGNMENTS",
    "STAGE_UNITS",
    "ConsistencyConfig",
    "InitConfig",
    "LayerPairConfig",
    "LogConfig",
    "MixupConfig",
    "PseudoLabelsConfig",
    "RKDConfig",
    "SKDConfig",
    "StageConfig",
    "TeacherConfig",
    "TutorConfig",
    "check_renamed_overrides",
    "check_seed",
    "check_student",
    "check_teacher_files",
    "check_trainer",
    "parse_tutor",
]

# Without types: `parse_tutor` checks them, and says more than Hydra would.
ConfigStore.instance().store(
    name="tutor_defaults",
    node=OmegaConf.to_container(OmegaConf.structured(TutorConfig)),
    provider="nemo_tutornet",
)

# The student's features. `stock` leaves those of the YAML, which are NeMo's for the architecture: 64 mel bins
# and a window of 20 ms for QuartzNet and Jasper, 80 and 25 ms for the others.
FRONT_ENDS = {
    "stock": {},
    "deployable": {
        "features": 80,
        "window_size": 0.025,
        "window_stride": 0.01,
        "window": "hann",
        "n_fft": 512,
    },
}
for _name, _values in FRONT_ENDS.items():
    ConfigStore.instance().store(
        group="front_end", name=_name, node=_values, package="model.preprocessor", provider="nemo_tutornet"
    )
