# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""An extension of the API reference: shows a docstring's `Example:` as code.

griffe knows the section as `Examples:` only, and would take the prompt `>>>` for a quotation. A line that
ends in `::` announces a block of code; on the page one colon is enough.
"""

from __future__ import annotations

import re
from typing import Any

import griffe


class ShowExamples(griffe.Extension):
    """Renames the section before the docstring is parsed."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Changes the docstring of each object that is loaded."""
        if obj.docstring is not None:
            text = re.sub(r"::$", ":", obj.docstring.value, flags=re.M)
            obj.docstring.value = re.sub(r"^Example:$", "Examples:", text, flags=re.M)
