# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""A teacher's targets on disk. Nothing here knows the training."""
