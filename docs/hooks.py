# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""Hooks of the documentation site.

Links to files outside `docs/` become plain text: on a code host such a link leads to the file, but the site
holds no copy of the sources. Short commands and options are marked, so that no line ends inside `--epochs`.
"""

from __future__ import annotations

import posixpath
import re
from typing import Any

SHORT = re.compile(r"<code>(?=[^<]*-)([^<]{1,24})</code>")
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


def on_page_content(html: str, **_: Any) -> str:
    """Marks short code with a hyphen, at which a browser would break the line.

    Args:
        html: the page's content.

    Returns:
        The content; such code has the class `short`, which `site.css` keeps on one line.
    """
    return SHORT.sub(r'<code class="short">\1</code>', html)
