# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""NeMo's files and models: read, restored, measured, and kept apart from one another."""
