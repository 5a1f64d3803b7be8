"""What a run is about to do, in a few lines, and when it will have ended."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from skipnets.axes import INPUTS, worded
from skipnets.data.augmentation import AUGMENTATIONS
from skipnets.data.dataset import ImageDataset
from skipnets.data.listing import channel_word, counted
from skipnets.duration import format_duration, parse_duration
from skipnets.tables import as_text, properties_table
from skipnets.training import budget
from skipnets.training.config import ResolvedConfig
from skipnets.training.prepare import Prepared
from skipnets.training.progress_lines import end_text
from skipnets.training.speed import device_count, training_device

# Reading the images is told of where it takes at least so many seconds.
_LONG = 5.0


class Remarks:
    """Notes and warnings about images that come after they have been surveyed.

    Args:
        dataset: With those that there are already.
    """

    def __init__(self, dataset: ImageDataset) -> None:
        self._listing = dataset.listing
        self._known = len(self._listing.notes), len(self._listing.warnings)

    def new(self) -> list[tuple[str, str]]:
        """Those since then, each with "note" or "warning"."""
        notes, warnings = self._known
        return [
            *(("note", text) for text in self._listing.notes[notes:]),
            *(("warning", text) for text in self._listing.warnings[warnings:]),
        ]


def announcement(
    prepared: Prepared, dataset: ImageDataset, *, remarks: Sequence[tuple[str, str]] = ()
) -> str:
    """Network, length and settings of a run.

    Args:
        prepared: The run.
        dataset: Its images.
        remarks: What else there is to say of the images, with what each is called.
    """
    config, model = prepared.config, prepared.model
    size = "×".join(map(str, config.size))
    parameters = sum(parameter.numel() for parameter in model.parameters())
    of_step = config.batch_size * config.accumulate * device_count(config.devices, config.accelerator)
    steps = max(-(-config.epoch_images // of_step), 1)
    color = channel_word(config.channels) if dataset.dims == 2 else INPUTS[dataset.dims]
    network = f"{config.model}, {parameters:,} parameters, {size} {color}"
    if prepared.seconds_per_image is not None:
        milliseconds = float(f"{1000 * prepared.seconds_per_image:.2g}")  # two digits, never an exponent
        network += f", {config.precision}, {milliseconds:g} ms an image on {_device(config)}"
    length = f"{counted(config.epochs, 'epoch')} of {counted(steps, 'step')} of {of_step} images"
    passes = config.epoch_images / len(dataset.split("train"))
    if passes != 1:
        length += f" (an epoch is {passes:.2g} passes over the training images)"
    least = _least_seconds(prepared, dataset)
    if least is None and (seconds := _seconds(prepared, dataset)) is not None:
        length += f"; {end_text(seconds)}"
    lines = [("network", network), ("training", length), (f"recipe {config.recipe}", _settings(config))]
    if prepared.reading.before >= _LONG:
        took = format_duration(prepared.reading.before)
        lines.append(("reading", f"the images are read once, which takes about {took}, and held in memory"))
    if least is not None:
        text = (
            f"a time of {config.time} is too short: all this takes about {format_duration(least)}, from the "
            "start of the run to the end of the evaluation, and is the least that makes sense; epochs that "
            "no longer fit are left out"
        )
        lines.append(("note", text))
    told = [(name, worded(line, dataset.dims)) for name, line in lines]
    return as_text([properties_table([*remarks, *told])])


def _seconds(prepared: Prepared, dataset: ImageDataset) -> float | None:
    """How long the run will take from now on, where the speed is known."""
    speed, config = prepared.seconds_per_image, prepared.config
    if speed is None:
        return None
    test = len(dataset.split("test"))
    finish = budget.finish_seconds(test, speed, to_read=prepared.reading.seconds_per_image)
    if prepared.training_ends is not None:
        return prepared.training_ends - budget.clock() + finish
    epoch = config.epoch_images + budget.VALIDATION_COST * len(dataset.split("val"))
    return prepared.reading.before + config.epochs * epoch * speed + finish


def _least_seconds(prepared: Prepared, dataset: ImageDataset) -> float | None:
    """The least time that the run could be given; None where what it was given is enough."""
    speed, config = prepared.seconds_per_image, prepared.config
    if prepared.training_ends is None or speed is None or config.time is None:
        return None
    epoch = config.epoch_images + budget.VALIDATION_COST * len(dataset.split("val"))
    # Beyond the fewest epochs, those that do not fit are left out.
    training = prepared.reading.before + min(config.epochs, budget.FEWEST_EPOCHS) * epoch * speed
    left = prepared.training_ends - budget.clock()
    if training <= 1.15 * left:
        return None
    return parse_duration(config.time) - left + training


def _device(config: ResolvedConfig) -> str:
    device = training_device(config.accelerator)
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    return f"{threads} CPU thread{'s' if threads > 1 else ''}" if device.type == "cpu" else device.type


def _settings(config: ResolvedConfig) -> str:
    """The settings that matter most, those that are off left out."""
    mirrors = config.augmentation in AUGMENTATIONS and AUGMENTATIONS[config.augmentation].mirror
    settings = [
        f"{config.optimizer}, rate {config.lr:g}, {config.schedule}, warm-up {config.warmup:.2g} epochs",
        f"weight decay {config.weight_decay:g}",
        f"augmentation {config.augmentation}{' (mirrored too)' if mirrors else ''}",
    ]
    if config.task == "multi-label":
        settings.insert(0, f"{config.loss or 'own'} loss over several labels an image")
    elif config.task == "regression":
        settings.insert(0, f"{config.loss or 'own'} loss of scaled targets")
    for name, value in {
        "erasing": config.erasing,
        "focal loss, gamma": config.focal_gamma if config.loss == "focal" else 0,
        "share of the teacher": config.teacher_share if config.teacher is not None else 0,
        "MixUp": config.mixup,
        "CutMix": config.cutmix,
        "label smoothing": config.label_smoothing,
        "averaged weights": config.ema,
    }.items():
        if value:
            settings.append(f"{name} {value:g}")
    return "; ".join(settings)
