"""Draw every figure of the documentation while it is built, and set it into its page.

A page asks for a figure as for an image, `![What it shows.](figures/NAME.svg)`; NAME is a function of
`drawings.py`. The drawing is put into the page itself, so that its ink follows the page's light or dark
colors; the text becomes its caption.
"""

from __future__ import annotations

import html
import posixpath
import re
import sys
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

# mkdocs loads a hook by its path; its neighbors are imported like this.
sys.path.insert(0, str(Path(__file__).parent))
import drawings

_IMAGE = re.compile(
    r'(?:<p>)?<img alt="(?P<alt>[^"]*)" src="[^"]*figures/(?P<name>[\w-]+)\.svg" ?/?>(?:</p>)?'
)
_ASKED = re.compile(r"\((?P<path>(?:[\w./-]*/)?figures/(?P<name>[\w-]+)\.svg)\)")


def on_files(files: Files, config: Any, **_: Any) -> Files:
    """Draw what the pages ask for."""
    for page in list(files.documentation_pages()):
        for asked in _ASKED.finditer(page.content_string):
            if not hasattr(drawings, asked["name"].replace("-", "_")):
                continue  # An image that lies there; mkdocs says so if it does not.
            path = posixpath.normpath(posixpath.join(posixpath.dirname(page.src_uri), asked["path"]))
            if files.get_file_from_path(path) is None:
                files.append(File.generated(config, path, content=drawings.svg(asked["name"])))
    return files


def on_page_content(content: str, **_: Any) -> str:
    """Put the drawings into the page."""
    return _IMAGE.sub(_figure, content)


def _figure(image: re.Match[str]) -> str:
    name, caption = image["name"], image["alt"]
    if not hasattr(drawings, name.replace("-", "_")):
        return image[0]
    kind = "on-paper" if name in drawings.ON_PAPER else "chart"
    drawing = drawings.svg(name)
    drawing = drawing[drawing.index("<svg") :]
    drawing = re.sub(r"<metadata>.*?</metadata>", "", drawing, flags=re.DOTALL)
    label = html.escape(html.unescape(caption), quote=True)
    drawing = drawing.replace("<svg ", f'<svg role="img" aria-label="{label}" ', 1)
    return f'<figure class="drawn {kind}"><div>{drawing}</div><figcaption>{caption}</figcaption></figure>'
