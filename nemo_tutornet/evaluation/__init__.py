# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""Error rates, size and speed of stock `.nemo` and exported `.onnx` models."""
