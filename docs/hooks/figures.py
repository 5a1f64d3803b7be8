"""Put the figures of docs/guide/figures into the pages as inline SVG, so that they follow light and dark."""

from __future__ import annotations

import html
import re
from pathlib import Path
from typing import Any

FIGURES = Path(__file__).parents[1] / "guide" / "figures"
# Network drawings have colors of their own, made for white paper.
ON_PAPER = ("dense-block", "dense-block-for-cifar", "residual-stage", "whole-network")
_IMAGE = re.compile(
    r'(?:<p>)?<img alt="(?P<alt>[^"]*)" src="[^"]*figures/(?P<name>[\w-]+)\.svg" ?/?>(?:</p>)?'
)


def on_page_content(content: str, **_: Any) -> str:
    """Replace the images of a page by the figures themselves."""
    return _IMAGE.sub(_figure, content)


def _figure(image: re.Match[str]) -> str:
    name, caption = image["name"], image["alt"]
    drawing = (FIGURES / f"{name}.svg").read_text(encoding="utf-8")
    drawing = re.sub(r"<style>.*?</style>", "", drawing[drawing.index("<svg") :], count=1)
    # Ids are the page's: two figures of one page must not share any.
    drawing = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{name}-", drawing)
    label = html.escape(html.unescape(caption), quote=True)
    drawing = drawing.replace("<svg ", f'<svg role="img" aria-label="{label}" ', 1)
    kind = "on-paper" if name in ON_PAPER else "chart"
    return f'<figure class="drawn {kind}"><div>{drawing}</div><figcaption>{caption}</figcaption></figure>'
