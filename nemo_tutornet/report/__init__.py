# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""The report of a distillation: its numbers, its pictures, and the page that shows them."""
