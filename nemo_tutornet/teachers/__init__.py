# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""Sources of targets: a live model, or a cache of its outputs."""
