# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""Storage of a teacher's targets on disk. This package does not depend on the training code."""
