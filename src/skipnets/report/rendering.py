"""Pages from templates: every value is escaped, and numbers look the same everywhere."""

from __future__ import annotations

import math
from typing import Any

import jinja2

from skipnets.tables import percent

__all__ = ["area", "decimal", "render", "share"]


def render(template: str, **values: Any) -> str:
    """Fill in one of the templates that lie beside this file; a value that is missing is an error."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("skipnets.report", "."),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters |= {"share": share, "number": decimal, "area": area}
    return environment.get_template(template).render(**values)


def share(value: float | None, digits: int = 1) -> str:
    """A share as a percentage; a dash where it is undefined."""
    return percent(value, digits)


def decimal(value: float | None, digits: int = 3) -> str:
    """A number with a fixed number of digits; a dash where it is undefined."""
    return "–" if value is None or not math.isfinite(value) else f"{value:.{digits}f}"


def area(value: float | None) -> str:
    """An area under a curve, with one more digit because it is often near 1."""
    return decimal(value, 4)
