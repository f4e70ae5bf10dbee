# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""Files that a `tutor:` section names."""

from __future__ import annotations

import os

from nemo_tutornet.config.schema import TutorConfig
from nemo_tutornet.errors import TutorError
from nemo_tutornet.utils.files import expand_user


def check_teacher_files(config: TutorConfig | None) -> None:
    """Refuses a section that names a file or folder that does not exist, before anything is built.

    With a cache, the teacher's own file need not exist.

    Args:
        config: the checked section; None where there is none.

    Raises:
        TutorError: there is no such file or folder.
    """
    if config is None:
        return
    others = {f"other_teachers[{i}]": teacher for i, teacher in enumerate(config.other_teachers)}
    for name, teacher in {"teacher": config.teacher, **others}.items():
        key = f"model.tutor.{name}"
        path, adapter = (expand_user(one or "") for one in (teacher.model_path, teacher.adapter))
        # A path without `.nemo` can be the name of a pretrained model. `os.path` knows no error: a name may
        # be longer than the system allows.
        if not teacher.cache and path.suffix == ".nemo" and not os.path.exists(path):
            raise TutorError(f"{key}.model_path: there is no file {path}; give the path of a .nemo file.")
        if teacher.adapter and not os.path.isfile(adapter):
            raise TutorError(
                f"{key}.adapter is {adapter}, and there is no such file; `nemo-tutornet adapt` makes one."
            )
        cache = expand_user(teacher.cache or "")
        if teacher.cache and not os.path.isdir(cache):
            found = "which is a file" if os.path.exists(cache) else "and there is no such folder"
            raise TutorError(
                f"{key}.cache is {teacher.cache}, {found}; `nemo-tutornet cache` makes a folder."
            )
