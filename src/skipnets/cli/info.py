"""`skipnets info`."""

from __future__ import annotations

import json as json_format
from pathlib import Path
from typing import Any

from skipnets.axes import INPUTS, worded
from skipnets.classifier import describe
from skipnets.cli.output import print_json, print_tables
from skipnets.data.preprocessing import Preprocessing
from skipnets.description import COMPARED, Task
from skipnets.tables import number_text, properties_table


def info(model: Path, /, *, json: bool = False) -> None:
    """Show the metadata of a model file, without loading its weights.

    For example:

        skipnets info runs/cats/model.safetensors

    Args:
        model: A model file, an export or a run folder.
        json: Print the metadata as JSON.
    """
    description = describe(model)
    if json:
        print_json(description)
        return
    dims = Preprocessing.from_dict(description["preprocessing"]).dims
    rows = {
        "file": f"{description['path']} ({_size(description['bytes'])})",
        "written by": f"skipnets {description['skipnets_version']}, format {description['format_version']}",
        **_networks(description),
        **_classes(description, dims),
        "preprocessing": _line(description["preprocessing"]),
        "temperature": _line(description["temperature"]),
        **_provenance(description["provenance"], dims),
        **_export(description.get("export"), description.get("task", "single-label"), dims),
    }
    print_tables([properties_table(rows)])


def _classes(description: dict[str, Any], dims: int) -> dict[str, str]:
    """A row on the classes; of several labels an image, with their thresholds, of targets with scales."""
    names, thresholds = description["classes"], description.get("thresholds")
    if description.get("task") == "regression":
        shown = (_target(name, scale) for name, scale in zip(names, description["scales"], strict=True))
        return {"targets": f"{len(names)}: {', '.join(shown)}"}
    if thresholds is None:
        return {"classes": f"{len(names)}: {', '.join(names)}"}
    shown = (f"{name} {value:.3g}" for name, value in zip(names, thresholds, strict=True))
    any_number = worded("any number an image", dims)
    return {"labels and thresholds": f"{len(names)}, {any_number}: {', '.join(shown)}"}


def _target(name: str, scale: dict[str, Any]) -> str:
    """A target with its scale: "age (mean 41.5, standard deviation 12)", or with its grades."""
    text = f"mean {number_text(scale['mean'])}, standard deviation {number_text(scale['std'])}"
    if (grades := scale.get("grades")) is not None:
        text += f", grades {grades[0]} to {grades[1]}"
    return f"{name} ({text})"


def _networks(description: dict[str, Any]) -> dict[str, str]:
    """Rows on the network; on each network of an ensemble of different ones."""
    parameters, members = description["parameters"] or 0, description.get("members", 1)
    architecture = dict(description["architecture"])
    name = architecture.pop("name")
    if "architectures" in description:
        different = [dict(each) for each in description["architectures"]]
        names = [each.pop("name") for each in different]
        return {
            "model": f"ensemble of {members} networks, {parameters:,} parameters",
            **{
                f"network {number}": f"{name}, {_line(each)}"
                for number, (name, each) in enumerate(zip(names, different, strict=True), start=1)
            },
        }
    text = f"{name}, {parameters:,} parameters"
    if members > 1:
        text = f"ensemble of {members} {text} ({parameters // members:,} each)"
    return {"model": text, "architecture": _line(architecture)}


def _provenance(provenance: dict[str, Any], dims: int) -> dict[str, str]:
    """Rows on where the weights come from; a run with folds has no training and validation split."""
    kind = INPUTS[dims]
    rows = {kind if key == "images" else key: _line(value) for key, value in provenance.items()}
    if provenance.get("weights", "") is None:
        rows["weights"] = "random"
    images = provenance.get("images", {})
    if "folds" in provenance and isinstance(images.get("train"), int):
        del rows["folds"]
        rows[kind] = (
            f"{images['train']:,} in {_line(provenance['folds'])} folds, validation {kind} cut from the "
            f"others in each; test {_line(images.get('test', 0))}"
        )
    return rows


def _export(export: dict[str, Any] | None, task: Task, dims: int) -> dict[str, str]:
    """Rows on an export and how it was verified; none for a model file."""
    if export is None:
        return {}
    precision = "int8" if export.get("int8") else "fp32"
    views = f", averages views ({export['tta']})" if export.get("tta") else ""
    rows = {"export": f"{export.get('format')}, {precision}, takes {export['input']}{views}"}
    if check := export.get("check"):
        rows["checked on"] = (
            f"{check['count']} {INPUTS[dims]} ({check['images']}): same {COMPARED[task].answer} "
            f"{check['same_labels']}, largest difference {check['largest_difference']:.1e} of a "
            f"{COMPARED[task].unit}, against PyTorch"
        )
    if accuracy := export.get("accuracy"):
        name = COMPARED[task].accuracy
        rows[name] = (
            f"{accuracy['before']:.2%} before, {accuracy['after']:.2%} after int8, "
            f"on {accuracy['count']:,} {INPUTS[dims]}"
        )
        if "drop_interval" in accuracy:  # not in exports of earlier versions
            low, high = accuracy["drop_interval"]
            rows[name] += f"; 95% interval of the drop {low:.2f} to {high:.2f} points"
    if agreement := export.get("agreement"):
        from skipnets.deploy.agreement import agreement_rows

        rows |= agreement_rows(agreement)
    return rows


def _size(count: int) -> str:
    """A number of bytes in KiB, or in MiB from one on."""
    return f"{count / 2**10:.1f} KiB" if count < 2**20 else f"{count / 2**20:.1f} MiB"


def _line(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, dict):
        return ", ".join(f"{key} {_line(part)}" for key, part in value.items())
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list):
        return "[" + ", ".join(_line(part) for part in value) + "]"
    return value if isinstance(value, str) else json_format.dumps(value, ensure_ascii=False)
