"""The options of a training run: one frozen dataclass, read by the command line and from YAML."""

from __future__ import annotations

import dataclasses
import functools
import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import yaml
from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic.dataclasses import dataclass

from skipnets.data.multi_label import Uncertain
from skipnets.data.options import ClassOrder, DataOptions, Dims, Layout, Missing, Task
from skipnets.data.sources import Duplicates
from skipnets.duration import parse_duration
from skipnets.errors import UserError, near_matches, one_line
from skipnets.models.graph import ExecutionPolicy
from skipnets.models.registry import means_none, parse_fields, rename_version_1_fields
from skipnets.trust import is_import

logger = logging.getLogger("skipnets")

T = TypeVar("T")

Rate = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, lt=1)]
Precision = Literal["auto", "32-true", "bf16-mixed", "16-mixed", "64-true"]
BestBy = Literal["accuracy", "balanced-accuracy", "loss", "average-precision", "auroc", "mae", "r2"]
Recipe = Literal["auto", "speedrun", "scratch", "finetune", "paper-cifar", "paper-imagenet"]
Augmentation = Literal[
    "none", "flip", "crop", "crop-flip", "shift", "shift-flip", "resized-crop", "trivial", "rand", "augmix"
]
LoggerName = Literal["csv", "tensorboard", "wandb", "mlflow"]
Count = Annotated[int, Field(ge=1)]
Side = Annotated[int, Field(ge=1, le=2**20)]  # of a signal, its length

# A run.yaml without it was cut short.
END_OF_FILE = "# end of the configuration"
FORMAT_VERSION = 2  # of run.yaml; version 0.1 wrote none, and its models' `drop_rate` was the layers'


# Options of which "none" is a value of its own.
_NONE_IS_A_VALUE = ("augmentation", "imbalance")


def _sides(value: object) -> object:
    """One side, or height and width, of which a list may hold one or both; of volumes the depth, too."""
    if not isinstance(value, list | tuple):
        return value
    if len(value) not in (1, 2, 3):
        raise ValueError("must be one side, or height and width")
    if any(isinstance(side, int) and side < 1 for side in value):
        raise ValueError("must be at least 1")
    return value[0] if isinstance(value, list) and len(value) == 1 else tuple(value)


def _text(value: object) -> object:
    return str(value) if isinstance(value, Path) else value


def _time(value: object) -> object:
    """A time in its shortest text: the number of seconds where it is given as a number."""
    if value is None or means_none(value):
        return None
    parse_duration(value if isinstance(value, int | float | str) else str(value))
    return value if isinstance(value, str) else f"{value:g}s"


def _import(value: str | None) -> str | None:
    if value is not None and not is_import(value):
        raise ValueError("must be an import such as package.module:function")
    return value


def _plain_values(value: object) -> object:
    return parse_fields(value) if isinstance(value, Mapping) else value


def _for_people(checked: type[T]) -> type[T]:
    """Let a pydantic dataclass take "none" for None, and name the first wrong field in a UserError."""
    check = checked.__init__

    @functools.wraps(check)
    def __init__(self: T, *args: Any, **fields: Any) -> None:  # noqa: N807
        given = {
            name: None if means_none(value) and name not in _NONE_IS_A_VALUE else value
            for name, value in fields.items()
        }
        try:
            check(self, *args, **given)
        except ValidationError as error:
            raise UserError(_complaints(error)) from None

    checked.__init__ = __init__  # type: ignore[method-assign, assignment]
    return checked


@_for_people
@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class TrainConfig:
    """What to train, on what, how, and where the run folder goes.

    A field left at None takes its value from the recipe or from the data; `run.yaml` in the run folder holds
    the values that were used, so that it repeats the run.
    """

    data: Annotated[str, BeforeValidator(_text)]
    """A folder, a manifest (.csv, .tsv, .txt, .jsonl, .parquet) or a named dataset such as cifar10."""
    out: Path
    """The run folder to write; it must be empty or not exist."""

    model: str | None = None
    """A name from `skipnets models`, or the import of your own network, package.module:Class. Default: the
    recipe auto chooses by the images, the device and the time; speedrun takes resnet8_w64, the others
    densenet_bc40_k12 up to 64 pixels and densenet121 above."""
    model_options: Annotated[dict[str, Any], BeforeValidator(_plain_values)] = dataclasses.field(
        default_factory=dict
    )
    """Fields of the model to change, such as growth_rate or block_config."""
    components: Annotated[str | None, AfterValidator(_import)] = None
    """The import of a function of your own, package.module:function, that returns a dictionary of loss,
    metrics, callbacks, logger or dataset, as train takes them in Python."""
    weights: Annotated[str | None, BeforeValidator(_text)] = None
    """Initial weights: a torchvision tag (imagenet), hf-hub:NAME, xrv:NAME, or a file. Default: random
    weights, or with the recipe auto ImageNet's, where they are on this machine and fit the images."""
    weights_ignore: tuple[str, ...] = ()
    """Names of tensors in these weights that are not the network's, or patterns such as "projection.*". They
    are listed."""

    recipe: Recipe | None = None
    """Default values of the other options. Default: auto, which chooses them by the images and the time."""
    time: Annotated[str | None, BeforeValidator(_time)] = None
    """How long the run may take, evaluation included, such as 90s, 5m or 1h30m; a bare number is seconds.
    Default, with the recipe auto and without epochs: from the number and size of the images."""
    epochs: Count | None = None
    """Number of epochs: passes over the training images, unless epoch_images says otherwise. Default: what
    fits into the time; without one, the recipe's."""
    epoch_images: Count | None = None
    """Training images of an epoch. Default: all of them; less where the time is too short for four passes,
    several times as many where it is enough for hundreds."""
    epoch_plan: tuple[tuple[int, int], ...] = ()
    """What a run decided about its length, to repeat it: after which epoch, how many epochs in all."""
    batch_size: Count | None = None
    """Images per step and device."""
    accumulate: Count | None = None
    """Batches whose gradients are added up before the weights change."""

    optimizer: Literal["sgd", "adamw"] | None = None
    """The optimizer."""
    lr: Rate | None = None
    """The highest learning rate, reached after the warm-up. It is not scaled with the batch size."""
    find_lr: bool = False
    """Look for that rate before: train 100 steps at rising rates, and take the one at which the loss falls
    fastest."""
    momentum: Share | None = None
    """SGD's momentum, or AdamW's first beta."""
    nesterov: bool | None = None
    """Nesterov's form of SGD's momentum."""
    weight_decay: NotNegative | None = None
    """Shrinks the weights: as an L2 penalty in SGD, decoupled in AdamW."""
    decay_norm_and_bias: bool | None = None
    """Whether weight decay also acts on norms and biases (as in the papers)."""
    layer_decay: Annotated[float, Field(gt=0, le=1)] | None = None
    """Factor by which the learning rate falls from stage to stage, from the head down to the stem: below 1,
    early stages of a pretrained network change less."""
    bias_lr: Rate | None = None
    """The rate of biases (of norms, and of the head), as a multiple of the others' rate."""
    whiten_stem: bool | None = None
    """Whether the first convolution starts with filters that whiten patches of the training images (Jordan
    2024, arXiv 2404.00498) instead of random ones. Must be given without weights."""
    fit_head: bool | None = None
    """Whether the new head is fitted to the features of the given weights before all layers are trained, so
    that a random head does not spoil them (Kumar et al. 2022, arXiv 2202.10054)."""
    schedule: Literal["constant", "milestones", "cosine", "linear"] | None = None
    """How the learning rate changes: constant, divided by ten at milestones, or down to zero on a cosine or
    a line."""
    milestones: tuple[Annotated[float, Field(gt=0, lt=1)], ...] | None = None
    """Where the rate is divided by ten, as fractions of the training: 0.5 is after half of the epochs."""
    warmup: NotNegative | None = None
    """Epochs over which the rate rises linearly from a hundredth."""
    clip: NotNegative | None = None
    """The largest norm of the gradient; longer ones are shortened to it. 0 switches it off."""
    loss: Literal["cross-entropy", "focal", "bce", "asymmetric", "l1", "l2", "huber"] | None = None
    """The loss. With one class an image: cross-entropy (the default), or focal (Lin et al. 2017, arXiv
    1708.02002), in which images that are already classified well count less. With several labels an image:
    bce (binary cross-entropy, the default), or asymmetric (Ridnik et al. 2021, arXiv 2009.14119), which
    counts easy negatives less. With numbers: l2 (the squared error, the default), l1 (the absolute one), or
    huber (squared up to one standard deviation, absolute above)."""
    focal_gamma: NotNegative = 2.0
    """How much less they count; 0 is cross-entropy."""
    teacher: Annotated[str | None, BeforeValidator(_text)] = None
    """A model file or run folder with the same classes, labels or targets, whose probabilities or numbers the
    network learns as well (distillation, arXiv 1503.02531)."""
    teacher_temperature: Rate = 4.0
    """Divides the logits of both before they are compared; above 1, smaller probabilities count more."""
    teacher_share: Annotated[float, Field(ge=0, le=1)] = 0.9
    """Share of the loss that is the teacher's."""
    label_smoothing: Share | None = None
    """Fraction of the target that is spread over all classes."""
    imbalance: Literal["none", "weighted-loss", "balanced-sampling"] | None = None
    """For unequal classes: weight the loss by 1/frequency, or sample every class equally often. With several
    labels an image, weighted-loss weighs the images that have a label up to those that do not."""
    ema: Share | None = None
    """Decay per step of the averaged weights that are validated and saved; 0 saves the plain weights."""
    freeze: Annotated[int, Field(ge=0)] | None = None
    """Number of stages that keep their weights and statistics, from the stem on: 1 is the stem alone."""

    augmentation: Augmentation | None = None
    """How training images are varied; trivial is TrivialAugment, rand RandAugment and augmix AugMix. Volumes
    take none to shift-flip; signals none, crop and shift."""
    erasing: Share = 0.0
    """Share of the training images in which a box of random size gets the mean color (random erasing)."""
    mixup: NotNegative | None = None
    """Strength of MixUp (alpha of its beta distribution); 0 switches it off. Numbers are mixed, too."""
    cutmix: NotNegative | None = None
    """Strength of CutMix; where MixUp is on as well, each batch gets one of the two. Not with numbers."""

    size: Annotated[Side | tuple[Side, ...] | None, BeforeValidator(_sides)] = None
    """Input height and width, in pixels; of volumes depth, height and width, of signals the length. Default:
    the images' own up to 64, otherwise 224, or with the recipe auto what fits the time, up to as many pixels
    and elongated where nearly all images are; of volumes their usual proportions with 64 at most; of signals
    the longest, 4096 at most."""
    fit: Literal["pad", "crop", "stretch", "center"] | None = None
    """How an image of another shape is brought to that size: pad (all of it, proportions kept), crop (its
    middle), stretch (all of it), center (its middle at its own resolution, cut or padded). Default: pad; of
    volumes stretch, of signals center."""
    crop_fraction: Annotated[float, Field(gt=0, le=1)] | None = None
    """With crop: fraction of the shorter side that is kept."""
    channels: Count | None = None
    """1 for gray, 3 for color, or a number of bands; volumes and signals of another number are left out.
    Default: what the images have, or the weights expect."""
    window: tuple[float, ...] | None = None
    """Which values are black and white, in the images' own units (for CT, Hounsfield units); one pair, or one
    a channel. Default: found by `percentiles` where images have more than 8 bits, otherwise 0 to 255."""
    percentiles: tuple[float, float] | None = None
    """Which shares of the training images' values, in percent, are the window. Default: 0.5 and 99.5 where
    images have more than 8 bits."""
    voi: bool = False
    """Whether each DICOM file's own window (its VOI LUT) is used instead. Images of 8 bits are taken as
    they are."""
    shown_channels: tuple[Count, Count, Count] | None = None
    """Of many bands, the three that people are shown as red, green and blue, from 1. Default: 1 2 3."""
    mean: tuple[float, ...] | None = None
    """Mean of each channel, in 0..1. Default: the weights' published one, or the training split's."""
    std: tuple[Rate, ...] | None = None
    """Standard deviation of each channel, in 0..1; its default is found like the mean's."""
    interpolation: Literal["bilinear", "bicubic", "nearest", "lanczos"] | None = None
    """How pixels are computed when an image is resized. Default: the weights' published one, or bilinear."""

    fractions: tuple[NotNegative, NotNegative, NotNegative] | None = None
    """Sizes of the training, validation and test splits where the data does not come split. Default: 0.7,
    0.15 and 0.15, but about 5,000 validation images where that would be more."""
    folds: Annotated[int, Field(ge=2, le=100)] | None = None
    """Cross-validation: train that many models, each on other images, and join them to one classifier. Of a
    time, the first takes its share, and the others train as many epochs."""
    splits: Path | None = None
    """A splits.csv (path,label,split) to repeat, such as an earlier run's."""
    download: bool = False
    """Allow downloading a named dataset."""
    duplicates: Duplicates = "keep-together"
    """Copies of an image: keep them in one split, where splits are drawn; drop all but one; ignore them."""
    dims: Dims | None = None
    """2 for images, 3 for volumes (.npy, .npz, .nii, .nii.gz), 1 for signals (.npy, .npz, .csv). Default:
    what the network takes, if it is given with its dims, or images."""
    layout: Layout = "auto"
    """Of a folder: take every folder for a class, or require split folders."""
    exclude: tuple[str, ...] = ()
    """Patterns of folders and files to leave out, such as masks or "*_mask.png"."""
    task: Task = "auto"
    """Whether images have one class each (single-label), any number of labels (multi-label), or numbers to
    predict (regression). Default: several labels where a manifest has a column for each label, or a column
    labels with names such as "cat|dog"; numbers where targets are given."""
    label_columns: tuple[str, ...] = ()
    """A manifest's columns of single labels, with 1, 0, -1 (uncertain) or nothing (unknown). Default: all
    columns of such values, where there is no column of classes."""
    uncertain: Uncertain = "ignore"
    """How -1 in them is treated: as unknown (ignore), positive or negative."""
    targets: tuple[str, ...] = ()
    """A manifest's columns of numbers to predict. Default, with task=regression: the only column of numbers
    that is not used otherwise."""
    target_mean: tuple[Finite, ...] | None = None
    """What the network's output of 0 stands for, for each target. Default: the mean of the training
    images."""
    target_std: tuple[Rate, ...] | None = None
    """What an output of 1 adds to it. Default: the standard deviation of the training images."""
    ordinal: bool = False
    """Whether the numbers are grades, such as 0 to 4: predictions are rounded to whole numbers between the
    lowest and the highest of the training images."""
    class_order: ClassOrder = "alphabetical"
    """The order of the classes: 1, 10, 2 or 1, 2, 10."""
    root: Path | None = None
    """What a manifest's relative paths start from. Default: the manifest's folder."""
    path_column: str | None = None
    """The manifest's column of image files, or its number. Default: recognized by its name."""
    label_column: str | None = None
    """Its column of classes. Default: recognized by its name."""
    split_column: str | None = None
    """Its column of splits. Default: recognized by its name, if there is one."""
    group_column: str | None = None
    """Its column of what must not be divided among splits, such as patients."""
    group_pattern: str | None = None
    """A regular expression that finds the group in an image's path."""
    page: Count | Literal["all"] | None = None
    """Which page of a TIFF file, frame or slice of a volume is the image; all makes an image of each."""
    max_pixels: Count | None = None
    """The most pixels that an image may have; larger ones are refused. Default: 89,478,485."""
    missing: Missing = "error"
    """Whether files that a manifest or splits.csv lists and that are not there are an error or skipped."""

    best_by: BestBy | None = None
    """The validation metric that picks the best epoch; by accuracy, it is the latest one within a standard
    error of the highest. Default: accuracy, balanced with `imbalance`; with several labels an image, the mean
    average precision of the labels; with numbers, the loss. mae is their mean absolute error, r2 the
    coefficient of determination."""
    threshold: str | None = None
    """With several labels an image, how the probability from which on a label counts as present is chosen on
    validation images: f1 (the default), youden, sensitivity=0.9 or specificity=0.9, or one number for all."""
    patience: Annotated[int, Field(ge=0)] | None = None
    """Stop after this many epochs without a new best value of `best_by`; 0 never stops early."""
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    """Random seed. The same run.yaml gives the same result on the same machine with the same versions; a new
    run decides by measured speed what is not given (network, epochs, number format, block execution), so
    its result may differ."""

    checkpoint_minutes: NotNegative = 10
    """Minutes between checkpoints within an epoch, from which --resume goes on to the step; 0 writes them at
    the end of epochs only."""

    logger: tuple[LoggerName, ...] = ("tensorboard",)
    """Where metrics go besides metrics.csv: tensorboard (in the run folder), wandb (Weights & Biases) or
    mlflow; csv is that file alone."""
    workers: Annotated[int, Field(ge=0)] | None = None
    """Processes that read images. Default: one per core, none for datasets held in memory."""
    accelerator: str = "auto"
    """What to train on, in Lightning's words: auto, cpu, gpu, mps."""
    devices: int | str = 1
    """How many devices, or which ("0,2"), or auto for all. On the CPU, processes."""
    strategy: str = "auto"
    """How several devices share the work, in Lightning's words: auto, ddp, ddp_spawn."""
    precision: Precision = "auto"
    """Number format of the computation. Default: bf16-mixed on GPUs that have it, 16-mixed on older ones; on
    CPUs 32-true, or bf16-mixed where the speed is measured (for a time, or to choose the network) and that is
    faster. On a GPU, 32-true also keeps convolutions and matrix products from using TF32."""
    channels_last: bool | None = None
    """Keep images in memory channel by channel within a pixel, which is faster for most convolutions.
    Default: yes on a GPU; on a CPU whichever is faster, which is measured."""
    supplied: tuple[Literal["model", "dataset", "loss", "metrics"], ...] = ()
    """What a program handed to the run beside this configuration, without which the run cannot be resumed."""
    block_execution: ExecutionPolicy | None = None
    """How blocks run: auto (what is fastest on the device; on a CPU some steps are measured), plain (layer by
    layer), linear (dense blocks in linear memory, residual blocks in less than plain), or linear-recompute
    (dense blocks in still less, for more time). The numbers are the same."""
    operators: dict[str, str] | None = None
    """What computes each layer shape on a CPU, as measured where the run was started. It is written into
    run.yaml, so that the same run again rounds alike. Default: measured."""

    @property
    def data_options(self) -> DataOptions:
        """How the data is read, as `skipnets.data` takes it."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(DataOptions)}
        values["dims"] = self.dims or self.model_options.get("dims", 2)
        return DataOptions(**values)


@_for_people
@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class ResolvedConfig(TrainConfig):
    """A `TrainConfig` in which nothing is left to the recipe, the data or the weights; see `prepare`."""

    model: str
    recipe: Recipe
    epochs: Count
    epoch_images: Count
    batch_size: Count
    accumulate: Count
    optimizer: Literal["sgd", "adamw"]
    lr: Rate
    momentum: Share
    nesterov: bool
    weight_decay: NotNegative
    decay_norm_and_bias: bool
    layer_decay: Annotated[float, Field(gt=0, le=1)]
    bias_lr: Rate
    whiten_stem: bool
    fit_head: bool
    schedule: Literal["constant", "milestones", "cosine", "linear"]
    milestones: tuple[Annotated[float, Field(gt=0, lt=1)], ...]
    warmup: NotNegative
    clip: NotNegative
    label_smoothing: Share
    imbalance: Literal["none", "weighted-loss", "balanced-sampling"]
    ema: Share
    freeze: Annotated[int, Field(ge=0)]
    augmentation: Augmentation
    mixup: NotNegative
    cutmix: NotNegative
    size: tuple[Side, ...]
    fit: Literal["pad", "crop", "stretch", "center"]
    crop_fraction: Annotated[float, Field(gt=0, le=1)]
    channels: Count
    mean: tuple[float, ...]
    std: tuple[Rate, ...]
    interpolation: Literal["bilinear", "bicubic", "nearest", "lanczos"]
    best_by: BestBy
    patience: Annotated[int, Field(ge=0)]
    workers: Annotated[int, Field(ge=0)]
    channels_last: bool
    precision: Literal["32-true", "bf16-mixed", "16-mixed", "64-true"]
    block_execution: ExecutionPolicy


FIELDS = tuple(field.name for field in dataclasses.fields(TrainConfig))


def _complaints(error: ValidationError) -> str:
    """What pydantic found, as `option=value: what would be right` for each option, by "; "."""
    found: dict[str, str] = {}
    for each in error.errors():
        name = str(each["loc"][0]) if each["loc"] else "config"
        found.setdefault(name, _complaint(name, each))
    return "; ".join(found.values())


# What an option is that has no default.
_MISSING = {"out": " (the folder to write the run to)"}


def _complaint(name: str, details: Mapping[str, Any]) -> str:
    if details["type"] == "unexpected_keyword_argument":
        return f"{name}: no such option{near_matches(name, FIELDS)}"
    if details["type"] in ("missing", "missing_argument"):
        return f"{name}: must be given{_MISSING.get(name, '')}"
    if isinstance(complaint := details.get("ctx", {}).get("error"), UserError):
        return str(complaint)  # complete
    right = details["msg"].removeprefix("Value error, ").replace("Input should", "must", 1)
    right = right.replace("greater than or equal to", "at least").replace("less than or equal to", "at most")
    if details["type"] == "literal_error":
        right += near_matches(str(details["input"]), re.findall("'(.*?)'", details["ctx"]["expected"]))
    return f"{name}={details['input']!r}: {right[0].lower()}{right[1:]}"


def read_config(path: str | Path, **changes: Any) -> TrainConfig:
    """The configuration that a YAML file (such as a run's `run.yaml`) describes.

    Args:
        path: A mapping of TrainConfig's fields.
        changes: Fields that take precedence over the file.

    Raises:
        UserError: The file is missing, is not a mapping, or names a field or value that does not exist.
    """
    path = Path(path)
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"{path}: cannot be read: {getattr(error, 'strerror', None) or one_line(error)}"
        ) from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}, line {mark.line + 1}" if mark is not None else f"{path}"
        raise UserError(f"{where}: not YAML ({getattr(error, 'problem', None) or one_line(error)})") from None
    if not isinstance(content, dict):
        raise UserError(f'{path}: must be a mapping of options, such as "data: digits"')
    options = _present_options(path, content)
    if any(changes.get(name) is not None for name in ("time", "epochs")):
        options = _without_warmup_of_run(options, changes)
    # A run's file holds the time that was asked for and the epochs that fitted: the change decides the other.
    if changes.get("time") is not None:
        options = {name: value for name, value in options.items() if not name.startswith("epoch")}
    elif changes.get("epochs") is not None:
        options = {name: value for name, value in options.items() if name not in ("time", "epoch_plan")}
    if changes.get("targets") is not None:  # the scales are those of the file's
        options = {
            name: value for name, value in options.items() if name not in ("target_mean", "target_std")
        }
    try:
        return TrainConfig(**options | changes)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def _without_warmup_of_run(options: dict[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """The options without a warm-up that a run recorded for its own number of epochs, which is logged."""
    # Only a run records operators: in a file that a person wrote, the warm-up is meant.
    if "operators" not in options or not options.get("warmup") or changes.get("warmup") is not None:
        return options
    logger.info(
        f"warmup={options['warmup']:g}: was recorded for {options.get('epochs')} epochs; the recipe chooses "
        "another for the new length (--warmup keeps it)"
    )
    return {name: value for name, value in options.items() if name != "warmup"}


def _present_options(path: Path, content: dict[Any, Any]) -> dict[str, Any]:
    """The options of a file, whose `model_options` may be from version 0.1, under their present names."""
    options = {str(name): value for name, value in content.items()}
    in_run_folder = path.with_name("splits.csv").exists()
    version = options.pop("format_version", 1 if in_run_folder else None)
    if version not in (None, 1, FORMAT_VERSION):
        raise UserError(f"format_version={version!r}: must be 1 or {FORMAT_VERSION}")
    model_options = options.get("model_options")
    if isinstance(model_options, dict) and version != FORMAT_VERSION:
        if version is None and (unclear := {"drop_rate", "head_drop_rate"} & model_options.keys()):
            option = min(unclear)
            raise UserError(
                f"model_options.{option}={model_options[option]!r}: drop_rate is now the head's dropout, in "
                f"version 0.1 the layers'; add format_version: {FORMAT_VERSION}, or 1 for the old meaning"
            )
        options["model_options"] = rename_version_1_fields(model_options) if version else model_options
    return options


def config_to_dict(config: TrainConfig) -> dict[str, Any]:
    """The configuration as plain values, in the order of its fields, without those that are None."""
    return {name: _plain(value) for name in FIELDS if (value := getattr(config, name)) is not None}


def _plain(value: object) -> object:
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Mapping):
        return {str(name): _plain(v) for name, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return value


def config_to_yaml(config: TrainConfig) -> str:
    """The text of a `run.yaml`."""
    text: str = yaml.safe_dump(
        {"format_version": FORMAT_VERSION, **config_to_dict(config)},
        sort_keys=False,
        allow_unicode=True,
        default_flow_style=None,
        width=110,
    )
    return f"{text}{END_OF_FILE}\n"
