"""What a run leaves open, decided where it runs: by the images, the device and the time."""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from skipnets.data.dataset import ImageDataset
from skipnets.duration import parse_duration
from skipnets.machine import usable_cores
from skipnets.models.registry import ModelConfig
from skipnets.training import budget
from skipnets.training.auto import (
    PRETRAINED_PASSES,
    WARMUP_SHARE,
    Candidate,
    Facts,
    apply_rules,
    candidates,
    choose_network,
    default_seconds,
    wanted_images,
)
from skipnets.training.config import Precision, TrainConfig
from skipnets.training.mirroring import keeps_class_mirrored
from skipnets.training.reading import NOT_MEASURED, Reading, ReadingCost, seconds_to_read
from skipnets.training.recipes import RECIPES
from skipnets.training.speed import device_count, seconds_per_image, training_device

logger = logging.getLogger("skipnets")

# Beside the network, a step costs this much in the training loop: reading, moving, logging (one thread of an
# AMD EPYC, Zen 4).
STEP_SECONDS = 0.006
# A number format of fewer bits is taken where it needs less than this share of float32's time.
_FASTER = 0.85
# Where several processes train together nothing is measured before, because they must decide alike: the first
# plan of epochs assumes this, and is corrected after each epoch.
_ASSUMED_SECONDS_PER_IMAGE = 0.001


@dataclass(frozen=True, kw_only=True)
class Choice:
    """What was decided.

    Attributes:
        values: Option → value, for options that are not given.
        precision: Number format: on a CPU bf16-mixed where that is measurably faster.
        training_ends: The time on `budget.clock` at which training must have ended; None where the number of
            epochs is given.
        seconds_per_image: Of a training image; None where it was not measured.
        reading: What reading the images adds, where it was measured.
    """

    values: Mapping[str, Any] = field(default_factory=dict)
    precision: Precision
    training_ends: float | None = None
    seconds_per_image: float | None = None
    reading: Reading = NOT_MEASURED


def choose(
    config: TrainConfig,
    dataset: ImageDataset,
    *,
    sides: tuple[int, ...],
    channels: int,
    default_model: str,
    networks: Sequence[str] = (),
    network: Callable[[str], ModelConfig],
    precision: Precision,
    pretrained: bool,
    started: float,
) -> Choice:
    """Decide what the configuration leaves open.

    Args:
        config: As the user gave it.
        dataset: The data set with its splits.
        sides: Height and width of the input, if nothing is chosen; those of signals and volumes.
        channels: Of the input.
        default_model: The network where none is given or chosen.
        networks: Those to choose from that the weights are published for, from cheap to costly.
        network: The configuration of a name, for the data's classes and channels.
        precision: Number format that training will have, if nothing is measured.
        pretrained: Whether the network has other than random weights.
        started: When the run's time began, on `budget.clock`.
    """
    automatic = config.recipe in (None, "auto")
    timed = config.epochs is None and (automatic or config.time is not None)
    by_rules = automatic and any(getattr(config, name) is None for name in RECIPES["auto"])
    if not (timed or by_rules):
        return Choice(precision=precision)
    train, val, test = (dataset.split(name) for name in ("train", "val", "test"))
    side = typical_side(sides)
    facts = Facts(
        images=len(train),
        side=side,
        passes=0,
        batch_size=config.batch_size or 0,
        mirrored=float(config.augmentation is not None or keeps_class_mirrored(train)),
        pretrained=float(pretrained),
    )
    values: dict[str, Any] = {}
    if automatic:
        values |= apply_rules(facts, ("batch",))
    batch_size = (
        config.batch_size or values.get("batch_size") or RECIPES[config.recipe or "auto"]["batch_size"]
    )
    facts = dataclasses.replace(facts, batch_size=batch_size)
    device = training_device(config.accelerator)
    together = device_count(config.devices, config.accelerator) > 1
    workers = min(max(usable_cores() if config.workers is None else config.workers, 1), usable_cores())

    def reading_seconds(*, exactly: bool) -> float:
        if together:  # and must decide alike
            return 0.0
        how = {"fit": config.fit, "interpolation": config.interpolation}
        return seconds_to_read(train, sides, channels=channels, exactly=exactly, **how) / workers

    to_read, to_evaluate = reading_seconds(exactly=False), reading_seconds(exactly=True)
    cost = ReadingCost(
        train,
        others=len(val),
        channels=channels,
        to_read=to_read,
        to_evaluate=to_evaluate,
        workers=workers,
    )

    def with_reading(seconds: float, size: tuple[int, ...], augmentation: str | None) -> float:
        # Reading and computing take turns on a processor, and go on at once beside a GPU.
        each = cost.of_each(size, augmentation)
        return seconds + each if device.type == "cpu" else max(seconds, each)

    if config.time:
        total = parse_duration(config.time)
    else:  # a volume counts as the image of as many pixels
        read_once = cost.before(sides, config.augmentation)
        if cost.is_held(sides, config.augmentation):
            read_once += to_evaluate * len(test)
        total = default_seconds(len(train), math.sqrt(math.prod(sides)), reading=read_once)

    def measured(candidate: Candidate, precision: Precision) -> float:
        measured_network, size = network(candidate.model), _scaled(sides, candidate.side)
        if min(size) < measured_network.smallest_size:  # It is refused later, with a message.
            return _ASSUMED_SECONDS_PER_IMAGE
        seconds = seconds_per_image(
            measured_network,
            size=size,
            batch_size=min(batch_size, max(len(train), 2)),
            device=device,
            precision=precision,
            channels_last=config.channels_last is not False and dataset.dims == 2,
        )
        return with_reading(seconds + STEP_SECONDS / batch_size, size, config.augmentation)

    def fastest_precision(candidate: Candidate) -> Precision:
        if config.precision != "auto" or device.type != "cpu" or together:
            return precision
        plain, mixed = measured(candidate, "32-true"), measured(candidate, "bf16-mixed")
        return "bf16-mixed" if mixed < _FASTER * plain else "32-true"

    speed: float | None = None
    if automatic and config.model is None and not config.model_options and (networks or not config.weights):
        given_images = config.epochs * (config.epoch_images or len(train)) if config.epochs else None
        if networks:
            ladder = tuple(Candidate(model=name, side=side) for name in networks)
        else:
            ladder = candidates(side, fixed=config.size is not None or dataset.dims != 2)

        def wanted(candidate: Candidate) -> float:
            if given_images is not None:
                return given_images
            if networks:
                return PRETRAINED_PASSES * len(train)
            return wanted_images(candidate, len(train))

        precision = fastest_precision(ladder[min(1, len(ladder) - 1)])
        if together:
            chosen = ladder[0]
        else:
            chosen, speed = choose_network(
                ladder,
                lambda candidate: measured(candidate, precision),
                wanted=wanted,
                seconds=total - cost.before(sides, config.augmentation),
            )
        values["model"] = chosen.model
        if chosen.side != side:
            sides = values["size"] = _scaled(sides, chosen.side)
            facts = dataclasses.replace(facts, side=chosen.side)
            # Of small images, batches may be larger than what was measured with.
            values |= apply_rules(facts, ("batch",))
            batch_size = config.batch_size or values["batch_size"]
            facts = dataclasses.replace(facts, batch_size=batch_size)
    elif timed and not together:
        given = Candidate(model=config.model or default_model, side=side)
        precision = fastest_precision(given)
        speed = measured(given, precision)

    def plan_with(speed: float | None, augmentation: str | None) -> tuple[budget.EpochPlan, float]:
        expected = _ASSUMED_SECONDS_PER_IMAGE if speed is None else speed
        ends = started + total - budget.finish_seconds(len(test), expected, to_read=to_evaluate)
        starting = budget.GPU_START_SECONDS if device.type == "cuda" else 0.0
        left = ends - budget.clock() - starting - cost.before(sides, augmentation)
        plan = budget.plan_epochs(
            len(train),
            len(val),
            seconds_per_image=expected,
            seconds=total if together else left,
            batch_size=batch_size,
            epoch_images=config.epoch_images,
        )
        return plan, ends

    def rules_with(plan: budget.EpochPlan) -> dict[str, Any]:
        passes = plan.epochs * plan.images / len(train)
        return apply_rules(dataclasses.replace(facts, passes=passes)) if automatic else {}

    ends = None
    plan = budget.EpochPlan(epochs=config.epochs or 0, images=config.epoch_images or len(train))
    if timed:
        plan, ends = plan_with(speed, config.augmentation)
    rules = rules_with(plan)
    augmentation = config.augmentation or rules.get("augmentation")
    if speed is not None and config.augmentation is None and cost.of_each(sides, augmentation):
        # Such an augmentation reads or varies images one by one: is it still right for what then fits?
        slower = with_reading(speed, sides, augmentation)
        other_plan, other_ends = plan_with(slower, augmentation) if timed else (plan, ends)
        rules = rules_with(other_plan)
        if rules.get("augmentation") == augmentation:
            speed, plan, ends = slower, other_plan, other_ends
    values |= rules
    if timed:
        values["time"] = config.time or f"{total:.0f}s"
        values |= {"epochs": plan.epochs, "epoch_images": plan.images}
    if automatic:
        values["warmup"] = WARMUP_SHARE * plan.epochs
    if together and (timed or "model" in values):
        _tell_unmeasured(values.get("model"), timed=timed)
    before = cost.before(sides, config.augmentation or rules.get("augmentation"))
    return Choice(
        values=values,
        precision=precision,
        training_ends=ends,
        seconds_per_image=speed,
        reading=Reading(seconds_per_image=to_evaluate, before=before),
    )


def typical_side(sides: tuple[int, ...]) -> int:
    """The side of the square of as many pixels as an image; of signals and volumes the largest side."""
    return round(math.sqrt(math.prod(sides))) if len(sides) == 2 else max(sides)


def _scaled(sides: tuple[int, ...], side: int) -> tuple[int, ...]:
    """Height and width in the same ratio, with the pixels of a square of `side`."""
    if typical_side(sides) == side:
        return sides
    return tuple(max(round(part * side / typical_side(sides)), 1) for part in sides)


def _tell_unmeasured(model: str | None, *, timed: bool) -> None:
    taken = f"takes {model}, the cheapest network (--model names another), and " if model else ""
    ends = "corrects the number of epochs after each one" if timed else "does not know when it will end"
    logger.info(f"where several processes train together, the speed is not measured: the run {taken}{ends}")
