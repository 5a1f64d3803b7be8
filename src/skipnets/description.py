"""The metadata of a classifier in a model file or an export: validation, and conversion to JSON.

Whatever a file says passes through here, from whichever reader: `Description.from_metadata` for what every
file has, `check_export` for what exports have besides, `check_outputs` for whether the network does so.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Self, cast, get_args

import numpy as np

from skipnets.axes import INPUTS
from skipnets.data.multi_label import check_names
from skipnets.data.preprocessing import Preprocessing
from skipnets.errors import UserError, listed, one_line
from skipnets.models.custom import CustomConfig
from skipnets.models.registry import config_from_dict, config_to_dict
from skipnets.probabilities import logit, sigmoid
from skipnets.runtimes.graph_format import EXPORT_FORMATS
from skipnets.runtimes.runtime import InputType, NoFeaturesError
from skipnets.scaling import TargetScale, common_scales
from skipnets.uncertainty import Uncertainty

if TYPE_CHECKING:
    from skipnets.runtimes.runtime import Runtime

__all__ = [
    "CLASS_NOUNS",
    "COMPARED",
    "MODEL_NOUNS",
    "Description",
    "Task",
    "check_export",
    "check_outputs",
    "check_thresholds",
    "plain",
]

Task = Literal["single-label", "multi-label", "regression"]


MODEL_NOUNS: Mapping[Task, str] = {
    "single-label": "classifier",
    "multi-label": "multi-label classifier",
    "regression": "regression",
}
CLASS_NOUNS: Mapping[Task, str] = {
    "single-label": "classes",
    "multi-label": "labels",
    "regression": "targets",
}


class Compared(NamedTuple):
    """What two models' answers are compared by.

    Attributes:
        differing: What differs.
        unit: What the difference is measured in.
        answer: What is the same or not.
        accuracy: What int8 must not lower.
    """

    differing: str
    unit: str
    answer: str
    accuracy: str = "accuracy"


COMPARED: Mapping[Task, Compared] = {
    "single-label": Compared("probability", "probability", "label"),
    "multi-label": Compared("probability", "probability", "label", "all labels right"),
    "regression": Compared("scaled number", "target's standard deviation", "number"),
}

# More than any network of the families has; a file with more was made to exhaust the memory.
_MOST_LAYERS = 10_000
_MOST_MEMBERS = 1000
_LARGEST_FIELD = 1 << 24
_LARGEST_CHECKED = 1024
_LARGEST_SIZE = 4096
# What other modules read from the provenance, if it is there.
_PROVENANCE: dict[str, tuple[type, ...]] = {
    "created": (str,),
    "data": (str,),
    "data_options": (dict,),
    "images": (dict,),
    "weights": (str,),
    "recipe": (str,),
    "epochs": (int,),
    "seed": (int,),
    "scores": (dict,),
    "calibration": (dict,),
    "thresholds": (dict,),
}
_CHECK = {"images": (str,), "count": (int,), "same_labels": (int,), "largest_difference": (int, float)}
_OF_EACH_TARGET: dict[str, tuple[type, ...]] = {
    "targets": (str,),
    "change": (int, float),
    "share": (int, float),
    "mae_before": (int, float, type(None)),
    "mae_after": (int, float, type(None)),
}
_AGREEMENT: dict[str, tuple[type, ...]] = {**dict.fromkeys(_OF_EACH_TARGET, (list,)), "count": (int,)}
_ACCURACY = {"before": (int, float), "after": (int, float), "count": (int,)}


@dataclass(frozen=True, kw_only=True)
class Description:
    """A classifier's metadata: everything but its weights.

    Args:
        architecture: From `skipnets.models.registry.config_to_dict`.
        classes: Names of the classes, in the order of the logits.
        preprocessing: How an image becomes the network's input.
        temperature: Divides the logits before the softmax.
        provenance: Where the weights come from, as plain values.
        members: Number of networks whose probabilities or numbers are averaged.
        task: "single-label" (a softmax over the classes), "multi-label" (a sigmoid for each) or "regression"
            (a number for each).
        thresholds: Of a multi-label classifier, the probability from which on each label counts as present.
            Default: 0.5 for each.
        uncertainty: What prediction sets and the recognition of outliers need; None before calibration.
        scales: Of a regression, the scale of each target.
        architectures: Of an ensemble of different networks of this package, that of each; the first is
            `architecture`. None where all are of that one.

    Raises:
        UserError: If the arguments do not match one another.
    """

    architecture: Mapping[str, Any]
    classes: Sequence[str]
    preprocessing: Preprocessing
    temperature: float
    provenance: Mapping[str, Any]
    members: int = 1
    task: Task = "single-label"
    thresholds: tuple[float, ...] | None = None
    uncertainty: Uncertainty | None = None
    scales: tuple[TargetScale, ...] | None = None
    architectures: tuple[Mapping[str, Any], ...] | None = None

    def __post_init__(self) -> None:
        # Converted to a config and back, so that an architecture of an older version is upgraded.
        architecture = config_to_dict(config_from_dict(self.architecture))
        _check_fit(architecture, self.classes, self.preprocessing)
        check_temperature(self.temperature)
        is_whole = isinstance(self.members, int) and not isinstance(self.members, bool)
        if not is_whole or not 1 <= self.members <= _MOST_MEMBERS:
            raise UserError(f"members={self.members!r}: must be a number of networks, 1 to {_MOST_MEMBERS:,}")
        architectures = _check_architectures(self.architectures, architecture, self.members)
        for each in architectures or ():
            _check_fit(each, self.classes, self.preprocessing)
        thresholds = check_thresholds(self.task, self.thresholds, self.classes)
        if self.task == "multi-label":
            check_names(self.classes)
        check_scales(self.task, self.scales, self.classes)
        if self.task == "regression" and self.temperature != 1:
            raise UserError(f"temperature={self.temperature!r}: must be 1 with task=regression")
        for name, value in (
            ("architecture", architecture),
            ("architectures", architectures),
            ("thresholds", thresholds),
            ("classes", tuple(self.classes)),
            ("temperature", float(self.temperature)),
            ("provenance", dict(self.provenance)),
        ):
            object.__setattr__(self, name, value)

    @property
    def networks(self) -> tuple[Mapping[str, Any], ...]:
        """The architecture of each network."""
        return self.architectures or (self.architecture,) * self.members

    def uncalibrated(self) -> Self:
        """The same before calibration: at a temperature of 1, with thresholds that find the same labels."""
        thresholds = self.thresholds
        if thresholds is not None and self.temperature != 1:
            logits = self.temperature * logit(np.array(thresholds))
            thresholds = tuple(sigmoid(logits).tolist())
        provenance = {key: value for key, value in self.provenance.items() if key != "calibration"}
        return replace(self, temperature=1.0, thresholds=thresholds, uncertainty=None, provenance=provenance)

    @classmethod
    def of_ensemble(
        cls, members: Sequence[Description], *, names: Sequence[str], provenance: Mapping[str, Any]
    ) -> Self:
        """The description of an ensemble that averages the probabilities, or numbers, of single networks.

        Args:
            members: Those of the networks.
            names: What messages call each.
            provenance: The ensemble's.

        Raises:
            UserError: If there is none, or they differ in more than architecture, thresholds and grades.
        """
        if not members:
            raise UserError("members: must be at least one classifier")
        first = members[0]
        for name, member in zip(names, members, strict=True):
            if member.members > 1:
                raise UserError(f"{name}: must be a single network, not an ensemble of {member.members}")
            _check_alike(first, member, names=(names[0], name))
            if member.temperature != 1:
                raise UserError(
                    f"{name}: must have a temperature of 1, not {member.temperature:g}; calibrate the "
                    "ensemble instead"
                )
        thresholds = [member.thresholds for member in members if member.thresholds is not None]
        scales = [member.scales for member in members if member.scales is not None]
        return cls(
            architecture=first.architecture,
            classes=first.classes,
            preprocessing=first.preprocessing,
            temperature=1.0,
            provenance=provenance,
            architectures=tuple(member.architecture for member in members),
            members=len(members),
            task=first.task,
            thresholds=tuple(np.mean(thresholds, axis=0).tolist()) if thresholds else None,
            scales=common_scales(scales) if scales else None,
        )

    @classmethod
    def from_metadata(cls, path: Path, metadata: Mapping[str, Any]) -> Self:
        """Validate the metadata of a file.

        Raises:
            UserError: If they are damaged.
        """
        try:
            for key, kind in (
                ("architecture", dict),
                ("classes", list),
                ("preprocessing", dict),
                ("provenance", dict),
            ):
                if not isinstance(metadata.get(key), kind):
                    raise UserError(f"{key} is missing or of the wrong type")
            if not isinstance(metadata.get("skipnets_version", ""), str):
                raise UserError("skipnets_version is of the wrong type")
            architectures = metadata.get("architectures")
            if architectures is not None and not isinstance(architectures, list):
                raise UserError("architectures is of the wrong type")
            for architecture in (metadata["architecture"], *(architectures or ())):
                _check_sane(architecture)
            _check_types("provenance", metadata["provenance"], _PROVENANCE)
            uncertainty, scales = metadata.get("uncertainty"), metadata.get("scales")
            return cls(
                architecture=metadata["architecture"],
                classes=metadata["classes"],
                preprocessing=Preprocessing.from_dict(metadata["preprocessing"]),
                temperature=metadata.get("temperature", 1.0),
                provenance=metadata["provenance"],
                members=metadata.get("members", 1),
                task=metadata.get("task", "single-label"),
                thresholds=metadata.get("thresholds"),
                uncertainty=None if uncertainty is None else Uncertainty.from_dict(uncertainty),
                scales=None if scales is None else tuple(map(TargetScale.from_dict, scales)),
                architectures=None if architectures is None else tuple(architectures),
            )
        except (UserError, TypeError, ValueError, KeyError, AttributeError, OverflowError) as error:
            raise UserError(f"{path}: damaged metadata ({error})") from error

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain values for JSON.

        Raises:
            UserError: If the provenance holds values that JSON cannot represent.
        """
        provenance = plain(self.provenance)
        _check_types("provenance", provenance, _PROVENANCE)
        return {
            "architecture": dict(self.architecture),
            **({"members": self.members} if self.members > 1 else {}),
            **({} if self.architectures is None else {"architectures": list(map(dict, self.architectures))}),
            "classes": list(self.classes),
            "preprocessing": self.preprocessing.to_dict(),
            "temperature": self.temperature,
            **({} if self.task == "single-label" else {"task": self.task}),
            **({} if self.thresholds is None else {"thresholds": list(self.thresholds)}),
            **({} if self.scales is None else {"scales": [scale.to_dict() for scale in self.scales]}),
            "provenance": provenance,
            **({} if self.uncertainty is None else {"uncertainty": self.uncertainty.to_dict()}),
        }


def check_export(path: Path, metadata: Mapping[str, Any]) -> None:
    """Validate what an export's metadata say of its graph.

    Raises:
        UserError: If it is missing or damaged.
    """
    export = metadata.get("export")
    input_type = export.get("input") if isinstance(export, dict) else None
    if not isinstance(input_type, str) or input_type not in get_args(InputType):
        raise UserError(f"{path}: damaged metadata (export.input is {input_type!r})")
    assert isinstance(export, dict)
    try:
        if export.get("format", "onnx") not in EXPORT_FORMATS:
            raise UserError(f"export.format is {export['format']!r}")
        _check_types(
            "export", export, {"int8": (bool,), "parameters": (int,), "check": (dict,), "tta": (str,)}
        )
        _check_types("export.check", export.get("check") or {}, _CHECK, all_of_them=True)
        _check_types("export", export, {"accuracy": (dict,)})
        _check_types("export.accuracy", export.get("accuracy") or {}, _ACCURACY, all_of_them=True)
        _check_types("export", export, {"agreement": (dict,)})
        _check_agreement(export.get("agreement") or {})
    except (UserError, TypeError) as error:
        raise UserError(f"{path}: damaged metadata ({error})") from error


def _check_agreement(agreement: Mapping[str, Any]) -> None:
    """Check that the entries of a regression's agreement have a number, or none, for each target."""
    _check_types("export.agreement", agreement, _AGREEMENT, all_of_them=True)
    for name, allowed in _OF_EACH_TARGET.items() if agreement else ():
        values = agreement[name]
        if len(values) != len(agreement["targets"]) or not all(isinstance(each, allowed) for each in values):
            raise UserError(f"export.agreement.{name} is {_short(values)}, which is of the wrong type")


def check_outputs(path: Path, runtime: Runtime, description: Description) -> None:
    """Check that a graph computes what its metadata say: run it on one black image.

    Raises:
        UserError: If it fails, has another number of classes, or computes what is not finite.
    """
    if runtime.input_type != "float32" and description.preprocessing.window is not None:
        raise UserError(f"{path}: damaged: its graph takes bytes, which its preprocessing does not make")
    # Opening a file that claims an enormous size must not cost memory; most graphs take any.
    ours = config_from_dict(description.architecture).takes_any_size
    size = [min(side, _LARGEST_CHECKED if ours else _LARGEST_SIZE) for side in description.preprocessing.size]
    batch = np.zeros((1, description.preprocessing.channels, *size), runtime.input_type)
    try:
        logits = runtime.logits(batch)
        features = runtime.embed(batch)
    except NoFeaturesError:
        if ours:
            raise UserError(f"{path}: damaged: its graph has no features") from None
        features = np.zeros((1, 0), np.float32)
    except Exception as error:  # each runtime's library has errors of its own
        raise UserError(
            f"{path}: its graph cannot compute images of its own preprocessing ({one_line(error, 0)})"
        ) from error
    if logits.shape != (1, len(description.classes)) or features.ndim != 2 or len(features) != 1:
        raise UserError(
            f"{path}: damaged: its graph computes {logits.shape} and {features.shape} "
            f"for one image and {len(description.classes)} classes"
        )
    if not (np.isfinite(logits).all() and np.isfinite(features).all()):
        raise UserError(f"{path}: damaged: its graph's outputs are not finite")


def _check_types(
    name: str,
    values: Mapping[str, Any],
    types: Mapping[str, tuple[type, ...]],
    *,
    all_of_them: bool = False,
) -> None:
    """Check the types of values that may be absent or None; where there are any, perhaps none of them may."""
    if all_of_them and values and (missing := [key for key in types if values.get(key) is None]):
        raise UserError(f"{name}.{missing[0]} is missing")
    for key, allowed in types.items():
        value = values.get(key)
        is_wrong = not isinstance(value, allowed) or (isinstance(value, bool) and bool not in allowed)
        if value is not None and is_wrong:
            raise UserError(f"{name}.{key} is {_short(value)}, which is of the wrong type")


def _check_architectures(
    architectures: Sequence[Mapping[str, Any]] | None, first: Mapping[str, Any], members: int
) -> tuple[Mapping[str, Any], ...] | None:
    """The architectures of an ensemble's networks; None where all are the first.

    Raises:
        UserError: If they are not one for each network, or of networks that are no part of this package.
    """
    if architectures is None:
        return None
    configs = [config_from_dict(each) for each in architectures]
    upgraded = tuple(map(config_to_dict, configs))
    if len(upgraded) != members or upgraded[0] != first:
        raise UserError(
            f"architectures: must be {members}, one for each network, beginning with architecture"
        )
    if all(each == first for each in upgraded):
        return None
    if any(isinstance(config, CustomConfig) for config in configs):
        names = ", ".join(sorted({config.name for config in configs}))
        raise UserError(
            f"architectures: must be of networks that skipnets models lists, or all one, not of {names}"
        )
    return upgraded


def _check_alike(first: Description, other: Description, *, names: tuple[str, str]) -> None:
    """Check that the outputs of two networks mean the same, of the same images.

    Raises:
        UserError: If not.
    """
    model, name = names
    if other.task != first.task:
        raise UserError(
            f"{name}: must be a {MODEL_NOUNS[first.task]}, as {model} is, not a {MODEL_NOUNS[other.task]}"
        )
    if other.classes != first.classes:
        noun = CLASS_NOUNS[first.task]
        differing = sorted(set(first.classes) ^ set(other.classes))
        raise UserError(
            f"{name}: must have the {noun} of {model}"
            + (f"; one of them lacks {listed(differing)}" if differing else " in the same order")
        )
    if other.preprocessing != first.preprocessing:
        ours, theirs = first.preprocessing.to_dict(), other.preprocessing.to_dict()
        differing = [key for key in ours | theirs if ours.get(key) != theirs.get(key)]
        parts = (f"{key} {_short(theirs.get(key))} instead of {_short(ours.get(key))}" for key in differing)
        hint = "; runs with one splits.csv (--splits) measure the same"
        raise UserError(
            f"{name}: must have the preprocessing of {model}, but has {', '.join(parts)}"
            f"{hint if set(differing) <= {'mean', 'std'} else ''}"
        )


def _check_sane(architecture: Mapping[str, Any]) -> None:
    """Refuse numbers that no network has, before something is built of them."""
    for name, value in architecture.items():
        numbers = value if isinstance(value, list) else [value]
        if any(isinstance(each, int) and abs(each) > _LARGEST_FIELD for each in numbers):
            raise UserError(f"architecture.{name} is {_short(value)}, which no network has")
    blocks = architecture.get("block_config")
    if isinstance(blocks, list) and sum(each for each in blocks if isinstance(each, int)) > _MOST_LAYERS:
        raise UserError(f"architecture.block_config is {_short(blocks)}, which no network has")


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:59]}…"


def check_temperature(temperature: object) -> None:
    """Check that a temperature is a positive number."""
    is_number = isinstance(temperature, int | float) and not isinstance(temperature, bool)
    if not (is_number and 0 < cast(float, temperature) < math.inf):
        raise UserError(f"temperature={temperature!r}: must be a positive number")


def check_thresholds(task: object, thresholds: object, classes: Sequence[str]) -> tuple[float, ...] | None:
    """Check the thresholds of a task's labels.

    Returns:
        One for each label; None where the task has none.

    Raises:
        UserError: If there is no such task, it has no thresholds, or these are not numbers from 0 to 1.
    """
    if task not in get_args(Task):
        raise UserError(f"task={task!r}: must be one of {', '.join(get_args(Task))}")
    if task != "multi-label":
        if thresholds is not None:
            raise UserError(f"thresholds: must not be given with task={task}")
        return None
    if thresholds is None:
        return (0.5,) * len(classes)
    if isinstance(thresholds, str) or not isinstance(thresholds, Sequence):
        raise UserError("thresholds: must be a list of numbers from 0 to 1")
    if len(thresholds) != len(classes):
        raise UserError(f"thresholds: must be {len(classes)}, one for each label, not {len(thresholds)}")
    for name, value in zip(classes, thresholds, strict=True):
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not (is_number and 0 <= value <= 1):
            raise UserError(f"thresholds: {name}={value!r}: must be a number from 0 to 1")
    return tuple(map(float, thresholds))


def check_scales(task: Task, scales: Sequence[TargetScale] | None, targets: Sequence[str]) -> None:
    """Check that a regression, and nothing else, has the scale of each target.

    Raises:
        UserError: If not.
    """
    if task != "regression":
        if scales is not None:
            raise UserError(f"scales: must not be given with task={task}")
    elif scales is None or len(scales) != len(targets):
        raise UserError(f"scales: must be {len(targets)}, one for each target, with task=regression")


def plain(value: Any) -> Any:
    """Convert a value for JSON: arrays and tuples to lists, paths to text, NaN and infinity to null.

    Raises:
        UserError: If JSON cannot represent it.
    """
    if isinstance(value, Mapping):
        return {str(key): plain(inner) for key, inner in value.items()}
    if isinstance(value, np.ndarray | np.generic):
        return plain(value.tolist())
    if isinstance(value, list | tuple):
        return [plain(inner) for inner in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, str | int):
        return value
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    raise UserError(f"provenance: must hold plain values, not {type(value).__name__} ({value!r})")


def _check_fit(architecture: Mapping[str, Any], classes: Sequence[str], preprocessing: Preprocessing) -> None:
    """Check that classes, sizes and channels match the architecture."""
    config = config_from_dict(architecture)
    if isinstance(classes, str) or not classes or not all(isinstance(name, str) and name for name in classes):
        raise UserError("classes: must be a list of at least one name")
    if len(set(classes)) != len(classes):
        repeated = sorted({name for name in classes if list(classes).count(name) > 1})
        raise UserError(f"classes: must be unique; repeated: {', '.join(repeated)}")
    if len(classes) != config.num_classes:
        raise UserError(f"classes: must be {config.num_classes}, the network's outputs, not {len(classes)}")
    if preprocessing.channels != config.in_chans:
        raise UserError(
            f"preprocessing: must give in_chans={config.in_chans} channels for {config.name}, "
            f"not {preprocessing.channels}"
        )
    sizes = (config.smallest_size,) * config.dims, preprocessing.size
    least, found = ("×".join(map(str, size)) for size in sizes)
    if preprocessing.dims != config.dims:
        raise UserError(
            f"preprocessing: must have a size of {config.dims} numbers for dims={config.dims}, not {found}"
        )
    if min(preprocessing.size) < config.smallest_size:
        raise UserError(
            f"preprocessing: must give {INPUTS[config.dims]} of at least {least} for {config.name}, "
            f"not {found}"
        )
