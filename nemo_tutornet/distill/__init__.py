# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""The method: losses, matching of teacher and student, training-only modules, and a run's stages."""
