"""`skipnets info`."""

from __future__ import annotations

import json as json_format
from pathlib import Path
from typing import Any

from skipnets.classifier import describe
from skipnets.cli.output import print_json, print_table, properties_table


def info(model: Path, /, *, json: bool = False) -> None:
    """Tell everything that a model file knows, without loading its weights.

    For example:

        skipnets info runs/cats/model.safetensors

    Args:
        model: A model file or a run folder.
        json: Print it as JSON.
    """
    about = describe(model)
    if json:
        print_json(about)
        return
    architecture = dict(about["architecture"])
    name = architecture.pop("name")
    rows = {
        "file": f"{about['path']} ({about['bytes'] / 2**20:.1f} MiB)",
        "written by": f"skipnets {about['skipnets_version']}, format {about['format_version']}",
        "model": f"{name}, {about['parameters']:,} parameters",
        "architecture": _line(architecture),
        "classes": f"{len(about['classes'])}: {', '.join(about['classes'])}",
        "preprocessing": _line(about["preprocessing"]),
        "temperature": _line(about["temperature"]),
        **{key: _line(value) for key, value in about["provenance"].items()},
    }
    print_table(properties_table(rows))


def _line(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_line(part)}" for key, part in value.items())
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list):
        return "[" + ", ".join(_line(part) for part in value) + "]"
    return value if isinstance(value, str) else json_format.dumps(value, ensure_ascii=False)
