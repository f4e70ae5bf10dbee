# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""TutorNet-style distillation for NVIDIA NeMo: a large CTC recogniser teaches a small stock one.

The public names are imported when they are first used: importing the package does not import torch.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

_PUBLIC = {
    "TutorCTCModel": "models",
    "TutorCTCModelBPE": "models",
    "TutorMixin": "models",
    "Teacher": "teachers.targets",
    "LiveTeacher": "teachers.live",
    "CachedTeacher": "teachers.cached",
    "TargetRequest": "teachers.targets",
    "TeacherTargets": "teachers.targets",
    "TutorConfig": "config",
    "TutorError": "errors",
    "export_student": "export.student",
    "verify_student": "export.verify",
    "evaluate": "evaluation.evaluate",
}

__all__ = ["__version__", *_PUBLIC]


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(importlib.import_module(f"{__name__}.{_PUBLIC[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
