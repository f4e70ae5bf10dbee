# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""`python -m nemo_tutornet` is the `nemo-tutornet` command."""

from nemo_tutornet.cli import app

if __name__ == "__main__":
    app(prog_name="nemo-tutornet")
