"""Any module that maps images to logits, in the form of the models of this package.

Shapes: N batch, C channels, H height, W width, K classes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Self

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from skipnets.errors import UserError, listed, one_line
from skipnets.models.backbone import Backbone
from skipnets.models.custom import CustomConfig
from skipnets.models.modes import evaluating, sharing_tensors
from skipnets.trust import MissingNetworkError, import_trusted, trusting

if TYPE_CHECKING:
    from skipnets.models.graph import ExecutionPolicy

__all__ = [
    "CustomModel",
    "NoEmbeddingError",
    "check_output",
    "config_of",
    "logits_and_head_input",
    "map_shapes",
    "misshapen",
    "unwrapped",
]


class NoEmbeddingError(UserError):
    """A network does not say what its features are."""


class CustomModel(Backbone[CustomConfig]):
    """A module of somebody else's.

    Args:
        config: With what makes the module.

    Attributes:
        network: The module, (N, C, H, W) → logits (N, K).
    """

    head_name: ClassVar[str] = ""

    def __init__(self, config: CustomConfig) -> None:
        # What made the module is not kept: it may hold another module, and is in the way of a copy.
        super().__init__(dataclasses.replace(config, build=None))
        self.network = _build(config)

    @classmethod
    def around(cls, network: nn.Module, config: CustomConfig) -> Self:
        """The form of a module that there is already; it is not copied."""
        return cls(dataclasses.replace(config, build=lambda: network))

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) images → logits (N, K)."""
        logits: Tensor = self.network(x)
        return logits

    def embed(self, x: Tensor) -> Tensor:
        """(N, C, H, W) images → (N, features): what the last linear layer of K outputs reads.

        A module with timm's `forward_features` and `forward_head` says itself what that is.

        Raises:
            NoEmbeddingError: If it has neither.
        """
        features, head = (getattr(self.network, name, None) for name in ("forward_features", "forward_head"))
        if callable(features) and callable(head):
            pooled: Tensor = head(features(x), pre_logits=True)
            return pooled
        # On a copy, because another thread may use the module meanwhile.
        _, read = logits_and_head_input(sharing_tensors(self.network), x, self.num_classes)
        if read is None:
            raise NoEmbeddingError(
                f"embed: {self.config.name} has no linear layer of {self.num_classes} outputs, whose input "
                "would be the features; give it timm's forward_features and forward_head"
            )
        return read

    def named_stages(self) -> Iterator[tuple[str, nn.Module]]:
        """The whole module."""
        yield "network", self.network

    def set_block_execution(self, policy: ExecutionPolicy, *, warn: bool = True) -> None:
        """Choose how those of its parts run in training that are blocks of this package."""
        from skipnets.models.block_execution import set_block_execution

        set_block_execution(self, policy, warn=warn)

    def stored(self) -> nn.Module:
        """The module whose tensors a model file holds: under the names that they have there."""
        return unwrapped(self.network)

    def skeleton(self) -> nn.Module:
        """The same: nothing else says what tensors it must have."""
        return self.stored()


def unwrapped(network: nn.Module) -> nn.Module:
    """The module inside of what `torch.compile` or `nn.DataParallel` makes of it."""
    inside = getattr(network, "_orig_mod", network)
    if isinstance(inside, nn.DataParallel | nn.parallel.DistributedDataParallel):
        inside = inside.module
    return network if inside is network else unwrapped(inside)


def _build(config: CustomConfig) -> nn.Module:
    """Make the module."""
    if config.build is None and config.import_path is None:
        raise MissingNetworkError(
            f"its network {config.name} was made by the program that trained it: give such a module, "
            f"as model={config.name}(...)"
        )
    make = config.build or import_trusted(str(config.import_path))
    arguments: Mapping[str, Any] = {} if config.build is not None else config.arguments
    try:
        with torch.device("cpu"):  # not a skeleton: what a constructor computes would be lost
            network = make(**arguments)
    except UserError:
        raise
    except Exception as error:  # a user's constructor, which may raise anything
        text = ", ".join(f"{name}={value!r}" for name, value in config.arguments.items())
        raise UserError(f"model: {config.name}({text}) fails ({one_line(error)})") from error
    if not isinstance(network, nn.Module):
        raise UserError(f"model: {config.name} must make an nn.Module, not {type(network).__name__}")
    return network


def config_of(
    network: nn.Module,
    architecture: Mapping[str, Any] | None,
    *,
    num_classes: int,
    in_chans: int,
    dims: int = 2,
) -> CustomConfig:
    """What a file records of a module.

    Args:
        network: The module.
        architecture: `{"import": "package.module:Class", "arguments": {…}}`: what makes such a module, which
            is called here to see that it has the same tensors. None records nothing but a name.
        num_classes: Its outputs.
        in_chans: Channels of its input.
        dims: Spatial axes of its input.

    Raises:
        UserError: If that makes a module with other tensors, or fails.
    """
    network = unwrapped(network)
    config = CustomConfig(name=type(network).__name__, num_classes=num_classes, in_chans=in_chans, dims=dims)
    if architecture is None:
        return config
    if set(architecture) - {"arguments"} != {"import"}:
        raise UserError(f"architecture: must have import and arguments, not {listed(map(str, architecture))}")
    config = dataclasses.replace(
        config,
        name=str(architecture["import"]).rpartition(":")[2],
        import_path=architecture["import"],
        arguments=architecture.get("arguments") or {},
    )
    with trusting(config.import_path):
        again = _build(config)
    made, given = (each.state_dict() for each in (again, network))
    differing = [
        key
        for key in {**made, **given}
        if key not in made or key not in given or not _may_be_of_one_shape(made[key], given[key])
    ]
    if differing:
        raise UserError(
            f"architecture: {config.import_path} makes a module with other tensors: {listed(differing)}"
        )
    return config


def _may_be_of_one_shape(first: Tensor, second: Tensor) -> bool:
    """Whether two tensors are, or one of them gets its shape in the first call."""
    return is_lazy(first) or is_lazy(second) or first.shape == second.shape


def logits_and_head_input(
    network: nn.Module, images: Tensor, num_classes: int
) -> tuple[Tensor, Tensor | None]:
    """Logits, and what the last linear layer of as many outputs reads, (N, features); None without one.

    Args:
        network: Has hooks meanwhile.
        images: (N, C, H, W).
        num_classes: K.
    """
    read: list[Tensor] = []
    hooks = [
        module.register_forward_pre_hook(lambda _, inputs: read.append(inputs[0]))
        for module in network.modules()
        if isinstance(module, nn.Linear) and module.out_features == num_classes
    ]
    logits: Tensor = network(images)
    for hook in hooks:
        hook.remove()
    return logits, read[-1].flatten(1) if read else None


def map_shapes(model: nn.Module, images: Tensor) -> dict[str, tuple[int, ...]]:
    """Path → height and width of every module's output that is a feature map, in the order in which they run.

    Args:
        model: In eval mode; it is not changed.
        images: (N, C, H, W), or signals or volumes.
    """
    copy = sharing_tensors(model)
    paths = {module: path for path, module in copy.named_modules()}
    shapes: dict[str, tuple[int, ...]] = {}

    def record(module: nn.Module, _: object, output: object) -> None:
        if isinstance(output, Tensor) and output.ndim == images.ndim:
            shapes.pop(paths[module], None)  # of a module that runs twice, where it ran last
            shapes[paths[module]] = tuple(output.shape[2:])

    for module in copy.modules():
        module.register_forward_hook(record)
    with torch.inference_mode():
        copy(images)
    return shapes


def check_output(model: CustomModel, images: Tensor) -> None:
    """Check that a network takes images and returns logits.

    Args:
        model: In any mode; it is not changed.
        images: (N, C, H, W), which are converted to its dtype and moved to its device.

    Raises:
        UserError: If it fails, or returns something else.
    """
    like = next((each for each in model.parameters() if each.is_floating_point()), images)
    shape = tuple(images.shape)
    try:
        if any(map(is_lazy, (*model.parameters(), *model.buffers()))):
            with evaluating(model), torch.no_grad():  # what inference mode makes cannot be trained
                model(images)
        with evaluating(model), torch.inference_mode():
            output = model(images.to(like.device, like.dtype))
    except Exception as error:  # a user's forward pass, which may raise anything
        raise UserError(
            f"model: {model.config.name} fails on images of shape {shape} ({one_line(error)})"
        ) from error
    wanted = (len(images), model.num_classes)
    if found := misshapen(output, wanted):
        raise UserError(
            f"model: {model.config.name} must return an output for each of the {model.num_classes} classes, "
            f"labels or numbers, shape {wanted}, not {found}"
        )


def misshapen(output: object, shape: tuple[int, ...]) -> str | None:
    """What a network returned, in words, unless it is a tensor of this shape."""
    if not isinstance(output, Tensor):
        return type(output).__name__
    return None if tuple(output.shape) == shape else str(tuple(output.shape))
