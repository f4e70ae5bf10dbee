# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""A teacher's targets on disk: the numbers (`codec`), the files (`layout`, `shard`), `writer` and
`reader`.
"""
