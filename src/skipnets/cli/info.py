"""`skipnets info`."""

from __future__ import annotations

import json as json_format
from pathlib import Path
from typing import Any

from skipnets.classifier import describe
from skipnets.cli.output import print_json, print_tables
from skipnets.tables import properties_table


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
        **_export(about.get("export")),
    }
    print_tables([properties_table(rows)])


def _export(export: dict[str, Any] | None) -> dict[str, str]:
    """What an export is and how it was checked; nothing for a model file."""
    if export is None:
        return {}
    check = export["check"]
    rows = {
        "export": f"{export['format']}, {'int8' if export['int8'] else 'fp32'}, takes {export['input']}",
        "checked on": (
            f"{check['count']} images ({check['images']}): same label {check['same_labels']}, "
            f"largest difference {check['largest_difference']:.1e} of a probability, against PyTorch"
        ),
    }
    if (accuracy := export.get("accuracy")) is not None:
        rows["accuracy"] = (
            f"{accuracy['before']:.2%} before, {accuracy['after']:.2%} after int8, "
            f"on {accuracy['count']} images"
        )
    return rows


def _line(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_line(part)}" for key, part in value.items())
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list):
        return "[" + ", ".join(_line(part) for part in value) + "]"
    return value if isinstance(value, str) else json_format.dumps(value, ensure_ascii=False)
