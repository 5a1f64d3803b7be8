"""Compare named networks: size, compute, published accuracy, and speed measured on this machine.

Shapes: N batch, C channels, H height, W width.
"""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from rich.console import RenderableType

from skipnets.duration import format_duration
from skipnets.errors import UserError
from skipnets.insight.memory import resident_bytes, training_memory
from skipnets.insight.summary import short_count
from skipnets.models.accounting import macs
from skipnets.models.factory import build_model
from skipnets.models.family import family_of, network_graph
from skipnets.models.registry import ModelConfig, config_to_dict, model_config
from skipnets.models.weights.accuracy import published_accuracy
from skipnets.ops.choices import ChoiceFile, cache_folder, machine
from skipnets.tables import Display, FittingTable

__all__ = ["ComparedModel", "ModelComparison", "compare_models"]

logger = logging.getLogger("skipnets")

_SECONDS, _LEAST_ROUNDS = 1.0, 3


@dataclass(frozen=True, kw_only=True)
class ComparedModel:
    """A network's row.

    Attributes:
        name: Of the registry.
        size: Height and width of the images.
        parameters: Number of trainable parameters.
        macs: Multiply-accumulates for one image.
        top1: The best published top-1 accuracy on ImageNet, in percent; None where none is known here.
        weights: What `create_model(weights=…)` takes for it; "" where `top1` is None.
        source: Who published it; "" where `top1` is None.
        images_per_second: Measured on this machine.
        training_bytes: Memory that a training process takes at its peak, estimated: that of this process
            before the first network was measured, and what the network takes.
    """

    name: str
    size: int
    parameters: int
    macs: int
    top1: float | None
    weights: str
    source: str
    images_per_second: float
    training_bytes: int


@dataclass(frozen=True, kw_only=True)
class ModelComparison(Display):
    """Networks, the most accurate first, then in the registry's order.

    Attributes:
        models: A row each.
        batch_size: Images of a batch, for speed and memory.
        device: On which the speed was measured, with its threads and versions.
    """

    models: tuple[ComparedModel, ...]
    batch_size: int
    device: str

    def tables(self) -> list[RenderableType]:
        """One table."""
        headings: dict[str, Literal["left", "right"]] = {
            "name": "left",
            "image": "right",
            "parameters": "right",
            "MACs": "right",
            "top-1 %": "right",
            "images/s": "right",
            "training GiB": "right",
            "source of top-1": "left",
        }
        rows = [
            (
                model.name,
                str(model.size),
                f"{model.parameters:,}",
                short_count(model.macs),
                "" if model.top1 is None else f"{model.top1:.1f}",
                f"{model.images_per_second:.3g}",
                f"{model.training_bytes / 2**30:.2f}",
                f"{model.source} {model.weights}".strip(),
            )
            for model in self.models
        ]
        title = f"batches of {self.batch_size}; speed of PyTorch, float32, on {self.device}"
        return [FittingTable(headings, rows, optional=["source of top-1", "image"], title=title)]

    def to_dict(self) -> dict[str, Any]:
        """The comparison as plain values for JSON."""
        return asdict(self)


def compare_models(
    names: Sequence[str],
    *,
    batch_size: int = 16,
    progress: Callable[[str, int, int], None] = lambda _name, _done, _total: None,
) -> ModelComparison:
    """Compare networks at their default image sizes, newly initialized.

    Speeds are measured once for each network, batch size and machine (processor, threads, versions) and kept
    in the user's cache folder, one by one: an interruption loses none. How many are to be measured is logged,
    and after the first about how long the others will take.

    Args:
        names: Of the registry.
        batch_size: Images of a batch.
        progress: Called with a name, how many are done, and of how many.

    Raises:
        UserError: For an unknown name or a batch size below 1.
    """
    if batch_size < 1:
        raise UserError(f"batch_size={batch_size}: must be at least 1")
    configs = [model_config(name) for name in names]
    for config in configs:  # Their libraries count as part of the training process, for all alike.
        family_of(config).module()
    program = resident_bytes()  # before networks are built and run, which leave memory behind
    speeds = ChoiceFile(cache_folder() / "speeds.json")
    unknown = [config for config in configs if _known_speed(config, batch_size, speeds) is None]
    if len(unknown) > 1:
        logger.info(
            "measuring %d of %d networks, each for at least %.0f s, and keeping what is measured",
            *(len(unknown), len(configs), _SECONDS),
        )
    rows = []
    for number, config in enumerate(configs):
        progress(config.name, number, len(configs))
        rows.append(_row(config, batch_size, speeds, program))
        if len(unknown) > 1 and config is unknown[0]:
            seconds = _expected_seconds(rows[-1], unknown[1:], batch_size)
            logger.info("the other %d will take about %s", len(unknown) - 1, format_duration(seconds))
    rows.sort(key=lambda row: -(row.top1 or 0))
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else machine()
    return ModelComparison(models=tuple(rows), batch_size=batch_size, device=device)


def _row(config: ModelConfig, batch_size: int, speeds: ChoiceFile, program: int) -> ComparedModel:
    graph, size = network_graph(config), config.default_size
    published = published_accuracy(config.name)
    memory = training_memory(config, batch_size=batch_size, program=program)
    return ComparedModel(
        name=config.name,
        size=size,
        parameters=graph.parameter_count(),
        macs=sum(macs(graph, (size, size))),
        top1=published.top1 if published else None,
        weights=published.weights if published else "",
        source=published.source if published else "",
        images_per_second=_images_per_second(config, batch_size, speeds),
        training_bytes=memory.peak,
    )


def _expected_seconds(measured: ComparedModel, others: Sequence[ModelConfig], batch_size: int) -> float:
    """About how long measuring others takes, if they compute as many multiply-accumulates a second."""
    per_second = measured.macs * measured.images_per_second
    passes = [
        batch_size * sum(macs(network_graph(config), (config.default_size,) * 2)) / per_second
        for config in others
    ]
    return sum(each + max(_SECONDS, _LEAST_ROUNDS * each) for each in passes)


def _known_speed(config: ModelConfig, batch_size: int, speeds: ChoiceFile) -> float | None:
    """Images a second as measured before; None if they were not."""
    known = speeds.get(_key(config, batch_size))
    return known if isinstance(known, float) and known > 0 else None


def _key(config: ModelConfig, batch_size: int) -> str:
    """What a speed depends on: network, batch size, device and versions."""
    where = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    fields = json.dumps(config_to_dict(config), sort_keys=True)
    digest = hashlib.sha256(fields.encode()).hexdigest()[:16]
    return f"{config.name} {digest} batch {batch_size} {where} | {machine()}"


def _images_per_second(config: ModelConfig, batch_size: int, speeds: ChoiceFile) -> float:
    if (known := _known_speed(config, batch_size, speeds)) is not None:
        return known
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = build_model(config).eval().to(device)
    images = torch.randn(batch_size, config.in_chans, config.default_size, config.default_size, device=device)

    def run() -> float:
        started = time.perf_counter()
        model(images)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - started

    with torch.inference_mode():
        run()
        seconds = [run()]
        while len(seconds) < _LEAST_ROUNDS or sum(seconds) < _SECONDS:
            seconds.append(run())
    speed = batch_size / min(seconds)  # other load only adds to them
    speeds.put(_key(config, batch_size), speed)
    return speed
