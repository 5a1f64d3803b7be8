"""What a program hands to `train` beside the configuration: a network, images, a loss and more."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import json
import logging
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.loggers import Logger
from torch import nn
from torchmetrics import Metric

from skipnets.data.dataset import ImageDataset
from skipnets.errors import UserError, one_line
from skipnets.models.backbone import Backbone
from skipnets.models.custom import CustomConfig
from skipnets.models.custom_model import CustomModel, config_of, unwrapped
from skipnets.models.modified import modification
from skipnets.models.registry import REGISTRY, ModelConfig
from skipnets.training.config import TrainConfig
from skipnets.training.copying import own_copy
from skipnets.training.own_measures import check_loss, check_metrics
from skipnets.training.run import Row
from skipnets.training.supplied_data import Images
from skipnets.training.task import Loss
from skipnets.trust import import_trusted, is_import

__all__ = [
    "Model",
    "Supplied",
    "changed_fields",
    "check_supplied",
    "check_task",
    "custom_config",
    "own_model",
    "several",
    "with_own_model",
]

logger = logging.getLogger("skipnets")

Model = nn.Module | Callable[..., nn.Module]
"""A network, or what makes it, such as a class or `functools.partial(MyNet, width=8)`."""
# What is made for the data follows from the data.
_FROM_DATA = ("num_classes", "in_chans")
# Metrics of the validation split that runs measure themselves. Those of other tasks count as well: what a run
# shows first is decided by which of them its rows have.
_MEASURED = frozenset(
    field.name.removeprefix("val_") for field in dataclasses.fields(Row) if field.name.startswith("val_")
)
# Options that need to know the stages of a network → what they are when they are off.
_NEEDS_STAGES: Mapping[str, Any] = {
    "freeze": 0,
    "layer_decay": 1.0,
    "whiten_stem": False,
    "fit_head": False,
}


@dataclass(frozen=True, kw_only=True)
class Supplied:
    """What a program hands to `train`.

    Attributes:
        model: The network or what makes it; None for the configuration's.
        architecture: How a file records a network that is given as a module:
            `{"import": "package.module:Class", "arguments": {…}}`.
        dataset: The images; None for the configuration's.
        callbacks: Lightning's, beside the run's own.
        loss: The training loss; None for the configuration's.
        metrics: Measured on the validation split after every epoch.
        loggers: Lightning's, beside the run's own.
        from_components: Fields that the configuration's `components` have made, and make again.
    """

    model: Model | None = None
    architecture: Mapping[str, Any] | None = None
    dataset: Images | None = None
    callbacks: Sequence[Callback] = ()
    loss: Loss | None = None
    metrics: Mapping[str, Metric] = field(default_factory=dict)
    loggers: Sequence[Logger] = ()
    from_components: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        if self.model is not None and not callable(self.model):
            raise UserError(f"model: must be a module or what makes one, not {type(self.model).__name__}")
        if self.architecture is not None and not isinstance(self.model, nn.Module):
            raise UserError("architecture: must be given with model=, a module that it describes")
        if self.loss is not None and not callable(self.loss):
            raise UserError(f"loss: must be a function of logits and labels, not {type(self.loss).__name__}")
        for kind, values in ((Callback, self.callbacks), (Logger, self.loggers)):
            for value in values:
                if not isinstance(value, kind):
                    name = "logger" if kind is Logger else "callbacks"
                    raise UserError(f"{name}: must be Lightning's, not {type(value).__name__}")
        if not hasattr(self.metrics, "items"):
            raise UserError(f"metrics: must be torchmetrics by name, not {type(self.metrics).__name__}")
        for name, metric in self.metrics.items():
            if not isinstance(metric, Metric):
                raise UserError(f"metrics: {name} must be torchmetrics', not {type(metric).__name__}")
            if name in _MEASURED:
                raise UserError(
                    f"metrics: {name} must have another name: metrics.csv has a column val_{name} of its own"
                )

    def for_run(self, callbacks: Sequence[Callback] = ()) -> Supplied:
        """A copy for one of several runs, which do not share what has a state.

        Args:
            callbacks: Of that run, in addition.

        Raises:
            UserError: If something cannot be copied.
        """
        return dataclasses.replace(
            self,
            model=own_copy(self.model, "model") if isinstance(self.model, nn.Module) else self.model,
            callbacks=[*own_copy(list(self.callbacks), "callbacks"), *callbacks],
            loss=own_copy(self.loss, "loss"),
            metrics=own_copy(dict(self.metrics), "metrics"),
        )

    def names(self, config: TrainConfig) -> tuple[str, ...]:
        """What a run that begins with it cannot be repeated without.

        Args:
            config: From `with_own_model`.
        """
        needed = {
            "model": self.model is not None and not (config.model in REGISTRY or is_import(config.model)),
            "dataset": self.dataset is not None,
            "loss": self.loss is not None,
            "metrics": bool(self.metrics),
        }
        return tuple(
            name for name, is_needed in needed.items() if is_needed and name not in self.from_components
        )

    def dims(self, config: TrainConfig) -> int | None:
        """Spatial axes that the network takes; None where it follows the data.

        Args:
            config: The run's.
        """
        if isinstance(self.model, Backbone):
            return self.model.config.dims
        if config.dims is not None:
            return config.dims
        if self.model is None and (config.model is None or config.model in REGISTRY):
            dims = config.model_options.get("dims")
            return dims if isinstance(dims, int) else None
        return None

    @property
    def module(self) -> nn.Module | None:
        """A module that only the program can make, for whoever loads a model file."""
        if isinstance(self.model, Backbone) and modification(self.model) is None:
            return None
        return self.model if isinstance(self.model, nn.Module) else None


def several(values: Any) -> Sequence[Any]:
    """One value, several, or none (None) as several."""
    if values is None:
        return ()
    return values if isinstance(values, Sequence) else [values]


def with_own_model(config: TrainConfig, supplied: Supplied) -> TrainConfig:
    """The configuration with the name of the network that a program hands over, and its arguments.

    Raises:
        UserError: If the configuration names another one, or has options that such a network cannot have.
    """
    if supplied.loss is not None and config.loss is not None:
        raise UserError(f"loss={config.loss}: must be given once, by name or as loss=")
    if supplied.loss is not None and (config.label_smoothing or config.imbalance == "weighted-loss"):
        option = "label_smoothing" if config.label_smoothing else "imbalance"
        raise UserError(
            f"{option}={getattr(config, option)}: must be given without loss=, which decides that"
        )
    if supplied.model is not None:
        name, options = _record(supplied)
        if config.model not in (None, name):
            raise UserError(f"model={config.model}: must be given once; the module given is {name}")
        config = dataclasses.replace(config, model=name, model_options=options)
    elif config.model is None or config.model in REGISTRY:
        return config
    if config.model in REGISTRY:
        return config
    if config.weights is not None and isinstance(supplied.model, nn.Module):
        raise UserError(f"weights={config.weights}: must be loaded into {config.model} before it is given")
    for option, off in _NEEDS_STAGES.items():
        if getattr(config, option) not in (None, off):
            raise UserError(
                f"{option}={getattr(config, option)}: needs one of the networks that skipnets models lists, "
                f"not {config.model}"
            )
    return dataclasses.replace(config, **_NEEDS_STAGES)


def check_task(supplied: Supplied, dataset: ImageDataset) -> None:
    """Check that what a program hands over is for the labels of the images.

    Raises:
        UserError: If a loss or a metric fails on them, or cannot leave out what is unknown.
    """
    if supplied.loss is not None:
        check_loss(supplied.loss, dataset)
    check_metrics(supplied.metrics, dataset)


def check_supplied(config: TrainConfig, supplied: Supplied) -> None:
    """Check that a program hands over what the program that made the configuration did.

    Args:
        config: A run's, or a new one.
        supplied: By the program.

    Raises:
        UserError: If something is missing.
    """
    for name in config.supplied:
        if getattr(supplied, name) in (None, {}):
            raise UserError(
                f"{name}: the run was given one by its program; give it again, in Python, as {name}=…"
            )


def custom_config(
    config: TrainConfig, supplied: Supplied, *, classes: int, channels: int, dims: int = 2
) -> CustomConfig | None:
    """The network that a program hands over or a configuration imports; None for one of this package.

    Args:
        config: From `with_own_model`.
        supplied: By the program.
        classes: Of the images.
        channels: Of the input.
        dims: Spatial axes of the input.
    """
    if config.model is None or config.model in REGISTRY:
        return None
    given: dict[str, Any] = {"num_classes": classes, "in_chans": channels}
    model = supplied.model
    if isinstance(model, nn.Module):
        recorded = config_of(model, supplied.architecture, dims=dims, **given)
        return dataclasses.replace(recorded, build=functools.partial(own_copy, model, "model"))
    if model is not None:
        accepted = _accepted(model, given)
        bound, importable = _bound(model), is_import(config.model)
        own = CustomConfig(
            name=_name(model),
            import_path=config.model if importable else None,
            arguments=bound | accepted if importable else {},
            build=functools.partial(model, **accepted),
            dims=dims,
            **given,
        )
        if importable and own.arguments != bound | accepted:
            _check_arguments_of_file(own)
        return own
    if not is_import(config.model):
        return None  # no model of this name: the caller says so
    return CustomConfig(
        name=config.model.rpartition(":")[2],
        import_path=config.model,
        arguments=dict(config.model_options) | _accepted(import_trusted(config.model), given),
        dims=dims,
        **given,
    )


def _check_arguments_of_file(config: CustomConfig) -> None:
    """Check that a network can be made of its arguments as a file holds them: of a tuple, a list.

    Raises:
        UserError: If that fails, or makes a network with other tensors.
    """
    path = str(config.import_path)
    network = CustomModel(config).network
    try:
        config_of(
            network,
            {"import": path, "arguments": config.arguments},
            num_classes=config.num_classes,
            in_chans=config.in_chans,
            dims=config.dims,
        )
    except UserError as error:
        raise UserError(
            f"model: a file holds the arguments of {path} as JSON, of a tuple a list, with which it cannot "
            f"be made again ({one_line(error)})"
        ) from error


def own_model(supplied: Supplied, config: CustomConfig) -> CustomModel:
    """The network to train: the module that a program hands over, or a new one.

    Args:
        supplied: By the program.
        config: From `custom_config`.
    """
    if isinstance(supplied.model, nn.Module):
        return CustomModel.around(supplied.model, config)
    return CustomModel(config)


def _record(supplied: Supplied) -> tuple[str, dict[str, Any]]:
    """How a run.yaml names the network, and its arguments without those that follow from the data."""
    model = supplied.model
    if isinstance(model, nn.Module):
        if supplied.architecture is not None:
            name = supplied.architecture.get("import")
            if not is_import(name):
                raise UserError(f"architecture: import={name!r} must be package.module:Class")
            return str(name), {
                key: value
                for key, value in dict(supplied.architecture.get("arguments") or {}).items()
                if key not in _FROM_DATA
            }
        if isinstance(model, Backbone) and modification(model) is None:
            return model.config.name, changed_fields(model.config)
        return type(unwrapped(model)).__name__, {}
    assert model is not None
    if (path := _import_path(model)) is None:
        logger.warning(
            "model: %s cannot be imported again, as it could from a module of its own, so the model file "
            "holds weights alone: loading it takes skipnets.load(path, model=…)",
            _name(model),
        )
        return _name(model), {}
    bound = _bound(model)
    kinds = {
        each.kind for name, each in inspect.signature(_unwrapped(model)).parameters.items() if name in bound
    }
    try:
        json.dumps(bound, allow_nan=False)
        recordable = not kinds & {inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.POSITIONAL_ONLY}
    except (TypeError, ValueError):
        recordable = False
    if not recordable:
        logger.warning(
            "model: the arguments of %s are not all names with JSON values, so the model file holds weights "
            "alone: loading it takes skipnets.load(path, model=…)",
            path,
        )
        return _name(model), {}
    return path, {key: value for key, value in bound.items() if key not in _FROM_DATA}


def changed_fields(config: ModelConfig) -> dict[str, Any]:
    """The fields in which a network differs from the row of its name, but for what the data decide."""
    row = vars(REGISTRY[config.name])
    return {
        name: list(value) if isinstance(value, tuple) else value
        for name, value in vars(config).items()
        if name not in _FROM_DATA and value != row[name]
    }


def _unwrapped(model: Callable[..., Any]) -> Callable[..., Any]:
    return model.func if isinstance(model, functools.partial) else model


def _name(model: Callable[..., Any]) -> str:
    made_by = _unwrapped(model)
    return str(getattr(made_by, "__name__", type(made_by).__name__))


def _import_path(model: Callable[..., Any]) -> str | None:
    """The import that leads to a class or function; None if there is none, as for those of a script."""
    made_by = _unwrapped(model)
    module, path = getattr(made_by, "__module__", ""), getattr(made_by, "__qualname__", "")
    if module == "__main__":  # another program when the file is loaded
        return None
    found: Any = sys.modules.get(module)
    for part in path.split("."):
        found = getattr(found, part, None)
    name = f"{module}:{path}"
    return name if found == made_by and is_import(name) else None  # a class method is a new object each time


def _bound(model: Callable[..., Any]) -> dict[str, Any]:
    """The arguments that a partial has already, by name."""
    if not isinstance(model, functools.partial):
        return {}
    bound = inspect.signature(model.func).bind_partial(*model.args, **model.keywords)
    arguments = dict(bound.arguments)
    for name, parameter in bound.signature.parameters.items():
        if parameter.kind is parameter.VAR_KEYWORD:
            arguments |= arguments.pop(name, {})
    return {
        name: value.item() if isinstance(value, np.generic) else value for name, value in arguments.items()
    }


def _accepted(model: Callable[..., Any], given: Mapping[str, int]) -> dict[str, int]:
    """What of the data's numbers a class or function takes and does not have yet."""
    bound = _bound(model)
    parameters = inspect.signature(_unwrapped(model)).parameters
    # A function with **kwargs hands them on to a network, whose classes have a name that all use.
    any_name = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    return {
        name: value
        for name, value in given.items()
        if name not in bound and (name in parameters or (any_name and name == "num_classes"))
    }
