# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""A hook of the documentation site: links to files outside `docs/` become plain text.

On a code host such a link leads to the file. The site holds no copy of the sources, so there it would be
broken.
"""

from __future__ import annotations

import posixpath
import re
from typing import Any

LINK = re.compile(r"\[([^\[\]]+)\]\((?!\w+:)([^()\s#]+)(#[^()\s]*)?\)")


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Unlinks what lies outside the documentation.

    Args:
        markdown: the page's text.
        page: the page, whose folder relative links start from.

    Returns:
        The text; a link to a file outside `docs/` is its words alone.
    """
    folder = posixpath.dirname(page.file.src_uri)

    def unlink(link: re.Match[str]) -> str:
        outside = posixpath.normpath(posixpath.join(folder, link[2])).startswith("../")
        return link[1] if outside else link[0]

    return LINK.sub(unlink, markdown)
