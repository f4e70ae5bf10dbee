# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""The stock student, its ONNX graphs, and the proof of both. Nothing here knows the training."""
