"""From a configuration and the images to everything that a run starts with."""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch.nn.modules.batchnorm import _BatchNorm

from skipnets.axes import INPUTS, worded
from skipnets.classifier import describe
from skipnets.data.augmentation import find_augmentation
from skipnets.data.dataset import ImageDataset
from skipnets.data.decoding import ImageDecodeError, Source, image_size, none_decoded, open_region
from skipnets.data.preprocessing import VOI, Preprocessing, Window, resize_values
from skipnets.data.raster import WindowedImage
from skipnets.data.volumes import VolumeDataset
from skipnets.data.window import PERCENTILES, measure_window
from skipnets.description import CLASS_NOUNS
from skipnets.errors import UserError, listed
from skipnets.machine import usable_cores
from skipnets.models.backbone import Backbone
from skipnets.models.custom_model import CustomModel, check_output
from skipnets.models.factory import create_model
from skipnets.models.registry import REGISTRY, ModelConfig, config_from_dict, model_config
from skipnets.models.weights import is_cached, network_of
from skipnets.models.weights.named import load_named_weights
from skipnets.models.weights.sources import read_source
from skipnets.training import budget
from skipnets.training.auto import PRETRAINED
from skipnets.training.callbacks import seed_everything
from skipnets.training.choice import choose
from skipnets.training.config import FIELDS, Precision, ResolvedConfig, TrainConfig
from skipnets.training.distillation import Teacher
from skipnets.training.early_checks import check_options
from skipnets.training.execution import choose_execution
from skipnets.training.multi_label import with_label_defaults
from skipnets.training.own_measures import check_loss
from skipnets.training.own_network import check_step, usable_channels_last
from skipnets.training.reading import NOT_MEASURED, Reading, sample_size
from skipnets.training.recipes import RECIPES, with_recipe
from skipnets.training.regression import check_not_regression, target_scales, with_regression_defaults
from skipnets.training.supplied import (
    Supplied,
    changed_fields,
    check_task,
    custom_config,
    own_model,
    with_own_model,
)
from skipnets.training.volumes import with_volume_options
from skipnets.training.whitening import whiten_stem

logger = logging.getLogger("skipnets")

# Images up to this side are shown to the network as they are, by a stem that does not shrink them.
SMALL = 64
LARGE_SIZE = 224
SMALL_MODEL, LARGE_MODEL = "densenet_bc40_k12", "densenet121"
# How many images are read for size, mean and standard deviation; fewer where each is large, as in time.
SAMPLE = 512
_VOLUMES = 64  # each has more values
# From this ratio on of the largest class to the smallest, training says that they are unequal.
_UNEQUAL = 10
# Images of which so many are elongated in one direction are shown so, up to 2 to this power.
_ALIKE_SHARE, _MOST_ELONGATED = 0.9, 3


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """What a run starts with.

    Attributes:
        config: Resolved: nothing is left to the recipe or the data.
        model: With its initial weights.
        preprocessing: For validation, evaluation, and every later use of the model.
        training_ends: Where the clock decides the number of epochs, the time on `budget.clock` at which
            training must have ended.
        seconds_per_image: Seconds of a training image on the device, where they were measured.
        teacher: Another classifier that the network learns from as well.
        reading: What reading the images adds, where it was measured.
    """

    config: ResolvedConfig
    model: Backbone[Any]
    preprocessing: Preprocessing
    training_ends: float | None = None
    seconds_per_image: float | None = None
    teacher: Teacher | None = None
    reading: Reading = NOT_MEASURED


def prepare(
    config: TrainConfig,
    dataset: ImageDataset,
    *,
    load_weights: bool = True,
    started: float | None = None,
    supplied: Supplied | None = None,
    on_checked: Callable[[], None] | None = None,
) -> Prepared:
    """Build the model and fill in what the configuration leaves to the recipe, the data or the weights.

    Args:
        config: As the user gave it.
        dataset: The data set with its splits.
        load_weights: False where a checkpoint will replace them anyway.
        started: When the run's time began, on `budget.clock`. Default: now.
        supplied: What a program hands over beside the configuration.
        on_checked: Called when what was asked for has been checked, before anything is measured.
    """
    supplied = supplied or Supplied()
    config = _with_task_defaults(with_own_model(config, supplied), dataset)
    check_task(supplied, dataset)
    if supplied.loss is not None:
        config = dataclasses.replace(config, loss=None)
    given = config
    check_options(config)
    started = budget.clock() if started is None else started
    train = dataset.split("train")
    if isinstance(train, VolumeDataset):
        config = with_volume_options(config, train)
    elif isinstance(config.size, tuple) and len(config.size) != 2:
        raise UserError(f"size={' '.join(map(str, config.size))}: must be one side, or height and width")
    own = None if config.model or config.model_options else _network_of(config.weights)
    if own is not None:
        config = dataclasses.replace(config, model=own.name, model_options=changed_fields(own))
    expected: Mapping[str, Any] = {}
    # Made by an import or a program.
    is_own = config.model is not None and config.model not in REGISTRY
    if own is None and load_weights and not is_own:
        config, expected = _with_network_of_weights(config)
    _note_unequal_classes(config, train)
    automatic = config.recipe in (None, "auto")
    recipe = RECIPES[config.recipe or "auto"]
    networks: tuple[str, ...] = ()
    if automatic and config.model is None and not config.model_options and dataset.dims == 2:
        config, networks = _with_published_weights(config, train)
    if config.fit_head and config.weights is None and supplied.model is None and load_weights:
        raise UserError(
            "fit_head: needs weights; the features of random ones change so much in the first steps that a "
            "head fitted to them is far off"
        )
    if own is not None:
        channels = config.channels or own.in_chans
    else:
        channels = config.channels or int(
            expected.get("in_chans") or _channels(train, pretrained=config.weights is not None and not is_own)
        )
    options = dict(config.model_options) | {"num_classes": len(dataset.classes), "in_chans": channels}
    custom = custom_config(
        config, supplied, classes=len(dataset.classes), channels=channels, dims=dataset.dims
    )
    if custom is None and options.setdefault("dims", dataset.dims) != dataset.dims:
        raise UserError(
            f"dims={options['dims']}: must be {dataset.dims}, as the data are {INPUTS[dataset.dims]}"
        )
    precision = resolve_precision(config.precision, config.accelerator)
    own_sides = automatic and config.weights is None
    kept = LARGE_SIZE if own_sides else SMALL
    natural = (
        config.size
        or recipe.get("size")
        or _stated_size(config, supplied, read=load_weights and dataset.dims == 2 and not networks)
    )
    if not natural:
        natural = LARGE_SIZE if networks else natural_size(train, kept=kept, elongated=own_sides)
    small = max(_pair(natural)) <= SMALL
    static_model = SMALL_MODEL if small and config.weights is None else LARGE_MODEL
    static_model = recipe.get("model", static_model)
    if custom is None and not isinstance(supplied.model, Backbone):
        _check_network(model_config(config.model or static_model, **options), config)
    if on_checked is not None:
        on_checked()
    pretrained = config.weights is not None or getattr(supplied.model, "weights_report", None) is not None
    chosen = choose(
        config,
        dataset,
        sides=_pair(natural),
        channels=channels,
        default_model=static_model,
        networks=networks,
        network=lambda name: custom or model_config(name, **options),
        precision=precision,
        pretrained=pretrained,
        started=started,
    )
    config = with_recipe(config, **{"model": static_model, **chosen.values})
    config = dataclasses.replace(config, precision=chosen.precision)
    if given.whiten_stem is None and (config.weights is not None or supplied.model is not None):
        config = dataclasses.replace(config, whiten_stem=False)
    name = config.model or static_model
    seed_everything(config.seed)
    model: Backbone[Any]
    if custom is not None:
        model = own_model(supplied, custom)
    elif isinstance(supplied.model, Backbone):
        model = supplied.model
    else:
        weights = config.weights if load_weights else None
        ignored = config.weights_ignore if load_weights else ()
        model = create_model(name, weights=weights, weights_ignore=ignored, **options)
        if weights is not None:
            _reset_head_of_other_classes(model, weights, dataset)

    if config.batch_size == 1 and any(isinstance(module, _BatchNorm) for module in model.modules()):
        raise UserError(f"batch_size=1: must be at least 2 for the batch norms of {name}")

    published = getattr(model.weights_report, "input", None)
    size = config.size or (published.size if published else natural)
    mean, std = config.mean, config.std
    reading = Preprocessing(
        size,
        fit="pad" if train.dims == 2 else "stretch",  # nothing of a volume is padded while it is measured
        channels=channels,
        window=_window(config, train, channels),
        bits=max(train.bits, 8),
        shown_channels=_shown(config, channels),
    )
    # Bands are measured one by one: they are not what the published numbers are of.
    if published is not None and channels in (1, 3):
        mean, std = (
            mean or _fit_channels(published.mean, channels),
            std or _fit_channels(published.std, channels),
        )
    if mean is None or std is None:
        measured = channel_statistics(train, reading)
        if config.window is not None and set(measured[0]) in ({0.0}, {1.0}):
            text = (
                "window: nearly all values of the images looked at lie below or above it, and the images are "
                f"{'white' if measured[0][0] else 'black'} all over"
            )
            train.listing.warnings.append(worded(text, train.dims))
        mean, std = mean or measured[0], std or measured[1]
    preprocessing = Preprocessing(
        size,
        fit=config.fit or "pad",
        crop_fraction=config.crop_fraction or 1.0,
        channels=channels,
        mean=mean,
        std=std,
        interpolation=config.interpolation or (published.interpolation if published else "bilinear"),
        window=reading.window,
        bits=reading.bits,
        shown_channels=reading.shown_channels,
    )
    if isinstance(model, CustomModel):
        images = torch.zeros(2, channels, *preprocessing.size)
        check_output(model, images)
        images = images.double() if config.precision == "64-true" else images
        if config.weights is not None and load_weights:
            load_named_weights(model, config.weights, ignore=config.weights_ignore)
        check_step(model, images)
        usable = usable_channels_last(model, images, given.channels_last)
        given, config = (
            dataclasses.replace(each, channels_last=usable) if usable is False else each
            for each in (given, config)
        )
    if supplied.loss is not None and dataset.task == "single-label" and (config.mixup or config.cutmix):
        check_loss(supplied.loss, dataset, mixed=True)
    find_augmentation(config.augmentation or "none", preprocessing.size)
    if config.whiten_stem and load_weights:
        whiten_stem(model, train, preprocessing)
    window = None if preprocessing.window == VOI else preprocessing.window
    resolved: dict[str, Any] = {
        "size": preprocessing.size,
        "fit": preprocessing.fit,
        "crop_fraction": preprocessing.crop_fraction,
        "channels": channels,
        "mean": preprocessing.mean,
        "std": preprocessing.std,
        "interpolation": preprocessing.interpolation,
        "dims": None if train.dims == 2 else train.dims,
        "window": None if window is None else tuple(value for pair in window for value in pair),
        "percentiles": None,
        "epoch_images": config.epoch_images or len(train),
        "workers": usable_cores() if config.workers is None else config.workers,
        "epoch_plan": config.epoch_plan
        or (((0, config.epochs),) if chosen.training_ends is not None else ()),
        **choose_execution(model, given, config, preprocessing.size),
        "supplied": supplied.names(config),
        **({} if supplied.loss is None else {"label_smoothing": 0.0}),
        "best_by": config.best_by or ("accuracy" if config.imbalance == "none" else "balanced-accuracy"),
    }
    values = {field: getattr(config, field) for field in FIELDS} | resolved
    return Prepared(
        config=ResolvedConfig(**values),
        model=model,
        preprocessing=preprocessing,
        training_ends=chosen.training_ends,
        seconds_per_image=chosen.seconds_per_image,
        reading=chosen.reading,
        teacher=None if config.teacher is None else _teacher(config.teacher, config, dataset, preprocessing),
    )


def _with_task_defaults(config: TrainConfig, dataset: ImageDataset) -> TrainConfig:
    """Fill in what depends on the images having classes, several labels, or numbers."""
    if dataset.regression:
        return with_regression_defaults(config, dataset)
    check_not_regression(config)
    return with_label_defaults(config, dataset)


def _note_unequal_classes(config: TrainConfig, train: ImageDataset) -> None:
    """Say how to count rare classes for more, where accuracy hardly depends on them and nothing was asked."""
    if train.task != "single-label" or config.imbalance is not None:
        return
    counts = train.counts()
    most, least = int(counts.argmax()), int(np.where(counts > 0, counts, counts.max()).argmin())
    if counts[most] >= _UNEQUAL * counts[least]:
        text = (
            f"{train.classes[most]} has {counts[most]:,} training images, {train.classes[least]} "
            f"{counts[least]:,}: accuracy says little of rare classes; --imbalance weighted-loss makes each "
            "class count the same"
        )
        train.listing.notes.append(worded(text, train.dims))


def _teacher(path: str, config: TrainConfig, dataset: ImageDataset, preprocessing: Preprocessing) -> Teacher:
    return Teacher.from_file(
        path,
        classes=dataset.classes,
        preprocessing=preprocessing,
        temperature=config.teacher_temperature,
        share=config.teacher_share,
        task=dataset.task,
        scales=target_scales(config, dataset.split("train")) if dataset.regression else None,
    )


def _with_published_weights(config: TrainConfig, train: ImageDataset) -> tuple[TrainConfig, tuple[str, ...]]:
    """Start from ImageNet's weights where these are asked for, or are on this machine and fit the images.

    They fit color images of more than 64 pixels, whose size is not given. A given `whiten_stem` asks for
    random weights.

    Returns:
        The configuration with its weights, and the networks that there are such weights for.
    """
    if config.weights is not None:
        return config, PRETRAINED if config.weights == "imagenet" else ()
    if (
        config.whiten_stem
        or config.size is not None
        or config.channels not in (None, 3)
        or train.bands
        or train.channels != 3
    ):
        return config, ()
    cached = tuple(name for name in PRETRAINED if is_cached(name))
    if not cached or max(_pair(natural_size(train))) <= SMALL:
        return config, ()
    logger.info("starts from ImageNet weights that are on this machine; --recipe scratch does not")
    return dataclasses.replace(config, weights="imagenet"), cached


def _check_network(network: ModelConfig, config: TrainConfig) -> None:
    """Refuse a size that the network of the configuration cannot take.

    Raises:
        UserError: If it is too small.
    """
    if config.model is not None and config.size is not None:
        sides = (config.size,) * network.dims if isinstance(config.size, int) else config.size
        if min(sides) < network.smallest_size:
            found, least = (
                "×".join(map(str, each)) for each in (sides, (network.smallest_size,) * network.dims)
            )
            raise UserError(
                f"size={found}: must give {INPUTS[network.dims]} of at least {least} for {network.name}"
            )


def _with_network_of_weights(config: TrainConfig) -> tuple[TrainConfig, Mapping[str, Any]]:
    """Take the network, and the parts of it that weights do not show, from a source that says them.

    Returns:
        The configuration, and the fields of the source's network.
    """
    name, fields = network_of(config.weights)
    options = {field: value for field, value in fields.items() if field not in ("num_classes", "in_chans")}
    return (
        dataclasses.replace(
            config, model=config.model or name, model_options={**options, **config.model_options}
        ),
        fields,
    )


def _network_of(weights: str | None) -> ModelConfig | None:
    """The network whose weights one of our model files or run folders holds; None for other weights."""
    if weights is None or not Path(weights).exists():
        return None
    try:
        config = config_from_dict(describe(weights)["architecture"])
    except (UserError, KeyError):
        return None
    return config if config.name in REGISTRY else None


def _stated_size(config: TrainConfig, supplied: Supplied, *, read: bool) -> tuple[int, ...] | None:
    """The input size that weights state: those to be loaded, or those of a network that a program hands over.

    Args:
        config: As the user gave it.
        supplied: What a program hands over.
        read: Whether weights that are no model file of ours may be read for it, or downloaded.

    Returns:
        None where they state none.
    """
    if isinstance(supplied.model, Backbone):
        report = supplied.model.weights_report
        return report.input.size if report is not None and report.input is not None else None
    if config.weights is None:
        return None
    try:
        return tuple(describe(config.weights)["preprocessing"]["size"])
    except (UserError, KeyError):  # not a model file or run folder of ours
        pass
    name = config.model or RECIPES[config.recipe or "auto"].get("model", LARGE_MODEL)
    if not read or name not in REGISTRY:
        return None
    stated = read_source(config.weights, model_name=name).input
    return None if stated is None else stated.size


def _reset_head_of_other_classes(model: Backbone[Any], weights: str, dataset: ImageDataset) -> None:
    """Initialize the head where one of our model files has as many classes, but others than the images.

    With another number of classes, loading has done so.
    """
    try:
        before = describe(weights)["classes"] if Path(weights).exists() else []
    except UserError:  # other weights, which name no classes
        return
    if len(before) == len(dataset.classes) and list(before) != list(dataset.classes):
        model.reset_classifier(len(before))
        noun = CLASS_NOUNS[dataset.task]
        logger.warning("%s: head re-initialized: it is for other %s: %s", weights, noun, listed(before))


def natural_size(train: ImageDataset, *, kept: int = SMALL, elongated: bool = False) -> tuple[int, ...] | int:
    """The size to show images at: their own where they are small, otherwise at most 224.

    Signals and volumes keep their own.

    Small ones of different sizes are shown at the largest height and width among them, larger ones as a
    square.

    Args:
        train: The training images.
        kept: Up to this side, larger images keep their typical size; above it they are shown at 224.
        elongated: Whether images of which nearly all are at least twice as wide as high, or as high as wide,
            are shown so (up to eight times), in as many pixels as the square has.
    """
    if isinstance(train, VolumeDataset):
        return train.sides
    if train.images is not None:
        height, width = train.images.shape[1:3]
    else:
        sizes = []
        first = None
        for index in _sample(len(train), 64):
            try:
                sizes.append(image_size(train.source(index)))
            except ImageDecodeError as error:
                first = first or error
        if not sizes:
            raise none_decoded(len(train), first, dims=train.dims)
        width, height = (max(side) for side in zip(*sizes, strict=True))
    if max(height, width) <= SMALL:
        return (int(height), int(width))
    if train.images is not None:
        sizes = [(width, height)]
    if elongated and (found := _elongated(sizes, kept)):
        return found
    typical = int(np.median([max(side) for side in sizes]))
    return typical if typical <= kept else LARGE_SIZE


def _elongated(sizes: Sequence[tuple[int, int]], kept: int) -> tuple[int, int] | None:
    """Height and width where nearly all images are elongated in the same direction; otherwise None.

    Args:
        sizes: Width and height of each.
        kept: The side of the square of at most as many pixels.
    """
    widths, heights = np.array(sizes, dtype=np.float64).T
    shapes = np.log2(widths / heights)
    usual = float(np.median(shapes))
    if abs(usual) < 1 or np.mean(shapes * np.sign(usual) >= 1) < _ALIKE_SHARE:
        return None
    shape = 2 ** float(np.clip(usual, -_MOST_ELONGATED, _MOST_ELONGATED))
    pixels = min(float(np.median(widths * heights)), kept**2)
    return round(math.sqrt(pixels / shape)), round(math.sqrt(pixels * shape))


def _channels(train: ImageDataset, *, pretrained: bool) -> int:
    """As many as the images have; gray ones become color for published weights."""
    found = train.channels
    return 3 if pretrained and found == 1 else found


def _window(config: TrainConfig, train: ImageDataset, channels: int) -> Window | None:
    """Which values are black and white: as the user says or, of more than 8 bits, as is measured and said."""
    given = [name for name in ("window", "percentiles", "voi") if getattr(config, name)]
    if len(given) > 1:
        raise UserError(f"{given[0]}: must be given without {given[1]}")
    if config.window is not None:
        return config.window
    if config.voi:
        _note_own_windows(train)
        return VOI
    if config.percentiles is None and train.bits <= 8:
        return None
    low, high = percentiles = config.percentiles or PERCENTILES
    measured = measure_window(train, _looked_at(train), channels=channels, percentiles=percentiles)
    window, around = measured.window, ""
    if train.dims == 1 and config.percentiles is None:  # of an ECG, the peaks are one percent
        window = tuple((low - (high - low), high + (high - low)) for low, high in window)
        around = " with as much again on either side"
    pairs = listed(dict.fromkeys(f"{low:g} to {high:g}" for low, high in window), 4)
    own = any(header.display_window for header in train.some_headers)
    train.listing.notes.append(
        f"window: {pairs}, the {low:g} and {high:g} percentiles of the training {INPUTS[train.dims]}"
        f"{around}; --window LOW HIGH sets another{', --voi takes the one in each DICOM file' if own else ''}"
    )
    return window


def _note_own_windows(train: ImageDataset) -> None:
    """Say what becomes of images that have no window of their own, where each file's own is asked for."""
    headers = train.some_headers
    if headers and all(header.bits <= 8 for header in headers):
        train.listing.notes.append("voi: the images have 8 bits, and are taken as they are")
        return
    deep = [header for header in headers if header.format == "DICOM" and header.bits > 8]
    without = sum(header.channels == 1 and not header.display_window for header in deep)
    if without:
        train.listing.notes.append(
            f"voi: {without:,} of the {len(headers):,} files looked at have no window of their own: each of "
            "these is shown from its lowest value (black) to its highest (white)"
        )


def _shown(config: TrainConfig, channels: int) -> list[int]:
    """The channels that people are shown, from 0."""
    shown = config.shown_channels or (1, 2, 3)
    if max(shown) > max(channels, 3):
        raise UserError(f"shown_channels={shown}: must be from 1 to {max(channels, 3)}")
    return [number - 1 for number in shown]


def channel_statistics(
    train: ImageDataset, reading: Preprocessing
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel over training images, in 0..1.

    Up to 512 images (64 volumes), evenly spread over the split; what fills the edges around an image does not
    count.

    Args:
        train: The training images.
        reading: Size, channels and window.
    """
    channels = reading.channels
    total = np.zeros(channels)
    squares = np.zeros(channels)
    count = 0
    first = None
    for index in _looked_at(train):
        try:
            pixels = _resized(train.source(index), reading)
        except ImageDecodeError as error:
            first = first or error
            continue
        values = pixels.reshape(-1, channels) / 255.0
        total += values.sum(0)
        squares += (values**2).sum(0)
        count += len(values)
    if count == 0:
        raise none_decoded(len(train), first, dims=train.dims)
    mean = total / count
    # Images of one color have no spread; 1/255 keeps them finite.
    std = np.sqrt(np.maximum(squares / count - mean**2, 0)).clip(1 / 255)
    return tuple(round(float(v), 4) for v in mean), tuple(round(float(v), 4) for v in std)


def _resized(source: Source, reading: Preprocessing) -> NDArray[Any]:
    """All of an image, at the input's size."""
    if reading.dims != 2:
        return reading.pixels(source)
    height, width = reading.size
    if reading.window is not None:
        opened = reading.open(source)
        assert isinstance(opened, WindowedImage)
        return resize_values(opened.values, (width, height), "bilinear")
    image, _ = open_region(
        source,
        lambda wide, high: (0, 0, wide, high),
        size=(height, width),
        channels=reading.channels,
        luma=False,
    )
    return np.asarray(image.resize((width, height), Image.Resampling.BILINEAR))


def class_weights(labels: NDArray[np.int64], classes: int) -> NDArray[np.float32]:
    """(classes,) 1/frequency, scaled to a mean weight of 1 an image; 0 for an absent class."""
    counts = np.bincount(labels, minlength=classes)
    weights = len(labels) / (np.count_nonzero(counts) * np.maximum(counts, 1))
    return np.where(counts > 0, weights, 0).astype(np.float32)


def resolve_precision(precision: Precision, accelerator: str) -> Precision:
    """The number format to compute in, on the device that training will use.

    Raises:
        UserError: 16-mixed on a CPU, which computes it many times slower than float32.
    """
    on_gpu = accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available()
    if precision == "16-mixed" and not on_gpu and accelerator != "mps":
        raise UserError("precision=16-mixed: needs a GPU; on a CPU take 32-true or bf16-mixed")
    if precision != "auto":
        return precision
    if not on_gpu:
        return "32-true"
    # Older GPUs have no bfloat16 units; PyTorch would emulate it.
    return "bf16-mixed" if torch.cuda.get_device_capability() >= (8, 0) else "16-mixed"


def _sample(count: int, most: int) -> list[int]:
    """Up to `most` of `count` positions, evenly spread."""
    return [int(index) for index in np.linspace(0, count - 1, min(count, most)).astype(int)]


def _looked_at(train: ImageDataset) -> list[int]:
    """Positions of the images that window, mean and standard deviation are measured on."""
    if train.dims != 2:
        return _sample(len(train), SAMPLE if train.dims == 1 else _VOLUMES)
    return _sample(len(train), sample_size(train, SAMPLE))


def _pair(size: int | tuple[int, ...]) -> tuple[int, ...]:
    return (size, size) if isinstance(size, int) else size


def _fit_channels(values: Sequence[float], channels: int) -> tuple[float, ...]:
    """Published per-channel numbers for another channel count: their mean in each."""
    if len(values) == channels:
        return tuple(float(value) for value in values)
    return (float(np.mean(values)),) * channels
