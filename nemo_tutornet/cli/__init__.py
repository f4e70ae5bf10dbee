# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""The `nemo-tutornet` command: it parses, and calls the modules. Heavy imports wait until a command runs.

The help lists the commands in the order in which these modules define them.
"""

from nemo_tutornet.cli import distillation, students
from nemo_tutornet.cli.app import app

__all__ = ["app", "distillation", "students"]
