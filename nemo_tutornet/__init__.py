# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""TutorNet-style distillation for NVIDIA NeMo: a large CTC recogniser teaches a small stock one.

The public names are imported when they are first used: importing the package does not import torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.2.0"

__all__ = [
    "CachedTeacher",
    "LiveTeacher",
    "TargetRequest",
    "Teacher",
    "TeacherTargets",
    "TutorCTCModel",
    "TutorCTCModelBPE",
    "TutorConfig",
    "TutorError",
    "TutorMixin",
    "__version__",
    "evaluate",
    "export_student",
    "verify_student",
]

if TYPE_CHECKING:
    from nemo_tutornet.config import TutorConfig
    from nemo_tutornet.errors import TutorError
    from nemo_tutornet.evaluation.evaluate import evaluate
    from nemo_tutornet.export.student import export_student
    from nemo_tutornet.export.verify import verify_student
    from nemo_tutornet.models import TutorCTCModel, TutorCTCModelBPE, TutorMixin
    from nemo_tutornet.teachers.cached import CachedTeacher
    from nemo_tutornet.teachers.live import LiveTeacher
    from nemo_tutornet.teachers.targets import TargetRequest, Teacher, TeacherTargets
else:  # a type checker that sees `__getattr__` takes every name, a misspelt one too
    _MODULES = {
        "TutorConfig": "config",
        "TutorError": "errors",
        "evaluate": "evaluation.evaluate",
        "export_student": "export.student",
        "verify_student": "export.verify",
        "TutorCTCModel": "models",
        "TutorCTCModelBPE": "models",
        "TutorMixin": "models",
        "CachedTeacher": "teachers.cached",
        "LiveTeacher": "teachers.live",
        "TargetRequest": "teachers.targets",
        "Teacher": "teachers.targets",
        "TeacherTargets": "teachers.targets",
    }

    def __getattr__(name: str) -> Any:
        if name in _MODULES:
            return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
