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
    STAGE_UNITS,
    ConsistencyConfig,
    InitConfig,
    LayerPairConfig,
    LogConfig,
    PseudoLabelsConfig,
    RKDConfig,
    SKDConfig,
    StageConfig,
    TeacherConfig,
    TutorConfig,
)
from nemo_tutornet.config.student import check_student, check_trainer

__all__ = [
    "DIVERGENCES",
    "FRAME_SELECTIONS",
    "FRAME_WEIGHTINGS",
    "INIT_SOURCES",
    "PRECISIONS",
    "RKD_REDUCTIONS",
    "STAGE_UNITS",
    "ConsistencyConfig",
    "InitConfig",
    "LayerPairConfig",
    "LogConfig",
    "PseudoLabelsConfig",
    "RKDConfig",
    "SKDConfig",
    "StageConfig",
    "TeacherConfig",
    "TutorConfig",
    "check_renamed_overrides",
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
