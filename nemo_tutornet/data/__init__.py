# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""Manifests, and the utterances in the batches of NeMo's dataloaders."""
