# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""Pure functions on tensors and numbers, without NeMo: losses, alignment, schedule, convolutions."""
