"""Open model files and exports: their metadata alone, or with a runtime for each network.

Needs no torch unless the runtime does.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from skipnets.description import Description, check_outputs
from skipnets.errors import UserError
from skipnets.runtimes import Runtime, TensorsDoNotFitError, open_runtime
from skipnets.runtimes.ensemble import EnsembleRuntime
from skipnets.runtimes.exported import export_format, open_exported, read_export_metadata
from skipnets.runtimes.model_file import read_model_file
from skipnets.trust import MissingNetworkError

if TYPE_CHECKING:
    from torch import nn

__all__ = ["OpenedModel", "describe", "open_model"]


@dataclass(frozen=True, kw_only=True)
class OpenedModel:
    """A model file or an export with what runs it.

    Attributes:
        path: The file, or the folder of an OpenVINO graph.
        description: Its metadata.
        runtime: Runs the network; of an ensemble's model file an `EnsembleRuntime`.
        export: Metadata of an export: format, input, int8, check; None for a model file.
    """

    path: Path
    description: Description
    runtime: Runtime
    export: Mapping[str, Any] | None = None


def open_model(
    path: str | os.PathLike[str],
    *,
    runtime: str,
    device: str,
    threads: int | None,
    precision: str = "auto",
    model: nn.Module | None = None,
) -> OpenedModel:
    """Read a model file, a run folder's model or an export, and check that it can run.

    Args:
        path: As for `skipnets.load`.
        runtime: As for `skipnets.load`.
        device: As for `skipnets.load`.
        threads: As for `skipnets.load`.
        precision: As for `skipnets.load`.
        model: As for `skipnets.load`.

    Raises:
        UserError: As `skipnets.load`.
    """
    if export_format(path) is not None:
        if precision not in ("auto", "32-true"):
            raise UserError(f"precision={precision}: an export computes as it was made; take the model file")
        opened = open_exported(path, runtime=runtime, device=device, threads=threads)
        description = Description.from_metadata(opened.path, opened.metadata)
        check_outputs(opened.path, opened.runtime, description)
        return OpenedModel(
            path=opened.path,
            description=description,
            runtime=opened.runtime,
            export=opened.metadata["export"],
        )
    file = read_model_file(path)
    description = Description.from_metadata(file.path, file.metadata)
    networks = [file.tensors()] if description.members == 1 else file.members()
    if len(networks) != description.members:
        raise UserError(f"{file.path}: holds {len(networks)} networks, not {description.members}")
    if precision == "auto" and description.task != "single-label":
        precision = "32-true"  # the trial of "auto" compares the most probable classes, and nothing else

    def opened_in(kind: str) -> list[Runtime]:
        return [
            open_runtime(
                kind,
                architecture=architecture,
                tensors=tensors,
                device=device,
                threads=threads,
                precision=precision,
                network=copy.deepcopy(model) if description.members > 1 else model,
            )
            for architecture, tensors in zip(description.networks, networks, strict=True)
        ]

    try:
        runtimes = opened_in(runtime)
        if len({each.name for each in runtimes}) > 1:  # the engine supports some of them alone
            runtimes = opened_in("torch")
    except (TensorsDoNotFitError, MissingNetworkError) as error:
        raise UserError(f"{file.path}: {error}") from error
    one = runtimes[0] if description.members == 1 else EnsembleRuntime(runtimes, task=description.task)
    return OpenedModel(path=file.path, description=description, runtime=one)


def describe(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Metadata of a model file or an export, without loading weights or torch.

    Args:
        path: A model file or a run folder.

    Returns:
        Plain values: path, bytes, format_version, skipnets_version, architecture, parameters (their
        number of all networks), classes, preprocessing, temperature, provenance; of an ensemble members, its
        number of networks; of a multi-label classifier task and thresholds, of a regression task and scales;
        of a calibrated one uncertainty, its number of images and its score for outliers; of an ensemble of
        different networks architectures, that of each.

    Raises:
        UserError: As for `load`, except for problems in the weights.
    """
    if export_format(path) is not None:
        where, metadata = read_export_metadata(path)
        export = metadata["export"]
        return {
            **_about(where, metadata, export.get("parameters")),
            "export": {key: value for key, value in export.items() if key != "parameters"},
        }
    file = read_model_file(path)
    return _about(file.path, file.metadata, file.parameters)


def _about(path: Path, metadata: dict[str, Any], parameters: int) -> dict[str, Any]:
    description = Description.from_metadata(path, metadata)
    files = path.iterdir() if path.is_dir() else [path]
    values = replace(description, uncertainty=None).to_dict()
    if (uncertainty := description.uncertainty) is not None:
        score = None if uncertainty.outliers is None else uncertainty.outliers.score
        values["uncertainty"] = {"images": uncertainty.images, "outlier_score": score}
    return {
        "path": str(path),
        "bytes": sum(file.stat().st_size for file in files),
        "format_version": metadata["format_version"],
        "skipnets_version": metadata.get("skipnets_version"),
        "architecture": values.pop("architecture"),
        "parameters": parameters,
        **values,
    }
