"""The base class of all models: input check, head, intermediate feature maps.

Methods, arguments and return values follow timm, so that code written for its models works with these.

Shapes: N batch, C channels, H height, W width; of signals (N, C, L), of volumes (N, C, D, H, W).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Literal, TypedDict, TypeVar

import torch
from torch import Tensor, nn

from skipnets.axes import AXES, INPUTS
from skipnets.errors import UserError
from skipnets.models.family import family_of, network_graph
from skipnets.models.layers import (
    ChannelConvolution,
    EvoNormS0,
    FilterResponseNorm,
    LayerNorm2d,
    make_activation,
)
from skipnets.models.operations import norm_eps, norm_groups
from skipnets.models.registry import (
    ACTIVATED_NORMS,
    BlockActivation,
    ModelConfig,
    Norm,
    Pooling,
)
from skipnets.models.spatial import ADAPTIVE_AVERAGES, BATCH_NORMS, INSTANCE_NORMS, Convolution, spatial_axes

if TYPE_CHECKING:
    from skipnets.models.graph import ExecutionPolicy
    from skipnets.models.weights import LoadReport

ConfigT = TypeVar("ConfigT", bound=ModelConfig)


class FeatureMapInfo(TypedDict):
    """A feature map: its channels, reduction relative to the input, and module path."""

    num_chs: int
    reduction: int
    module: str


class GlobalPool(nn.Module):
    """Global pooling of a feature map, timm's `SelectAdaptivePool2d`.

    Args:
        pool_type: `"avg"`, `"max"`, `"avgmax"` (the mean of both), `"catavgmax"` (both, concatenated), or
            `""` for none.
        dims: Spatial axes.
    """

    def __init__(self, pool_type: Pooling, *, dims: int = 2) -> None:
        super().__init__()
        self.pool_type = pool_type
        self.dims = dims

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) → (N, C), or (N, 2C) for `"catavgmax"`; x itself for `""`."""
        if self.pool_type == "":
            return x
        axes = spatial_axes(self.dims)
        if self.pool_type == "max":
            return x.amax(axes)
        average: Tensor = ADAPTIVE_AVERAGES[self.dims](x, 1).flatten(1)
        if self.pool_type == "avgmax":
            return 0.5 * (average + x.amax(axes))
        return torch.cat([average, x.amax(axes)], dim=1) if self.pool_type == "catavgmax" else average

    def extra_repr(self) -> str:
        """The pooling, for `print(model)`."""
        return f"pool_type={self.pool_type!r}"


class Backbone(nn.Module, Generic[ConfigT]):
    """An image classifier: stem and stages, global pooling, and one linear layer.

    Attributes:
        config: The configuration that describes it.
        num_features: Channels of the last map.
        head_hidden_size: Features that the linear layer reads: `num_features`, or twice as many for
            `global_pool="catavgmax"`.
        feature_info: The maps that `forward_intermediates` returns, finest first.
        weights_report: How `create_model(weights=…)` matched tensors; None without `weights`.
    """

    head_name: ClassVar[str]
    head_type: ClassVar[type[nn.Linear]] = nn.Linear

    config: ConfigT
    num_features: int
    head_hidden_size: int
    feature_info: list[FeatureMapInfo]
    global_pool: GlobalPool
    head_drop: nn.Module

    def __init__(self, config: ConfigT) -> None:
        super().__init__()
        self.config = config
        self.weights_report: LoadReport | None = None

    @property
    def num_classes(self) -> int:
        """Outputs of the head."""
        return self.config.num_classes

    @property
    def in_chans(self) -> int:
        """Channels of the input."""
        return self.config.in_chans

    @property
    def pretrained_cfg(self) -> dict[str, Any]:
        """Preprocessing and names of the first and last layer, in timm's form.

        The values are those of the weights that were loaded, or else ImageNet's. With them
        `timm.data.resolve_model_data_config(model)` works.
        """
        from skipnets.models.weights.sources import DEFAULT_INPUT

        default = DEFAULT_INPUT[self.config.stem].for_channels(self.in_chans)
        images = (self.weights_report and self.weights_report.input) or default
        sides = (self.config.default_size,) * self.config.dims
        return {
            "architecture": self.config.name,
            **images.to_timm(),
            **({} if self.config.dims == 2 else {"input_size": (self.in_chans, *sides)}),
            "num_classes": self.num_classes,
            "first_conv": network_graph(self.config).first_convolution.name,
            "classifier": self.head_name,
        }

    @property
    def default_cfg(self) -> dict[str, Any]:
        """The same as `pretrained_cfg`, under timm's older name."""
        return self.pretrained_cfg

    def named_stages(self) -> Iterator[tuple[str, nn.Module]]:
        """The modules from the input to the last map with their paths, in the order in which they run."""
        raise NotImplementedError

    def set_block_execution(
        self,
        policy: ExecutionPolicy,
        *,
        warn: bool = True,  # noqa: ARG002 - of families with operations for their blocks
    ) -> None:
        """Choose how blocks run in training. Families without operations for them support only "plain".

        Args:
            policy: One of `"auto"`, `"plain"`, `"linear"`, `"linear-recompute"`.
            warn: Whether to say where it will not be applied, and why.

        Raises:
            UserError: For any other policy.
        """
        if policy not in ("auto", "plain"):
            raise UserError(
                f'block_execution="{policy}": must be plain or auto, the blocks of {self.config.name} run '
                "layer by layer only"
            )

    def forward_features(self, x: Tensor) -> Tensor:
        """(N, C, H, W) images → the last map (N, num_features, h, w), after its norm and ReLU."""
        return self._run_stages(self._checked(x))

    def _checked(self, x: Tensor) -> Tensor:
        """Check the shape of (N, C, H, W) images before the first stage runs, and return them."""
        return check_input(x, self.config.in_chans, self.config.smallest_size, self.config.dims)

    def _run_stages(self, x: Tensor) -> Tensor:
        """(N, C, H, W) images → the last map."""
        for _, stage in self.named_stages():
            x = stage(x)
        return x

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """The last map (N, num_features, h, w) → logits (N, num_classes).

        With `pre_logits` it returns the pooled features (N, head_hidden_size) instead.
        """
        x = self.head_drop(self._pooled_features(x))
        return x if pre_logits else self.get_classifier()(x)

    def _pooled_features(self, x: Tensor) -> Tensor:
        """The last map (N, num_features, h, w) → (N, head_hidden_size)."""
        pooled: Tensor = self.global_pool(x)
        return pooled

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) images → logits (N, num_classes)."""
        return self.forward_head(self.forward_features(x))

    def embed(self, x: Tensor) -> Tensor:
        """(N, C, H, W) images → the pooled features (N, head_hidden_size)."""
        return self.forward_head(self.forward_features(x), pre_logits=True)

    def stored(self) -> nn.Module:
        """The module whose state dict a model file holds."""
        return self

    def skeleton(self) -> nn.Module:
        """A network of this configuration without memory for its tensors, which shows what these must be."""
        with torch.device("meta"):
            return family_of(self.config).module()(self.config)

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | Sequence[int] | None = None,
        norm: bool = False,  # noqa: ARG002 - timm's argument
        stop_early: bool = False,
        output_fmt: Literal["NCHW"] = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """The last map, and those that `feature_info` lists.

        Args:
            x: (N, C, H, W) images.
            indices: Indices into `feature_info`; an int selects that many of the last, None selects all.
            norm: Has no effect, as in timm's DenseNet and ResNet: the last map is normalized anyway.
            stop_early: Do not run the layers after the last requested map.
            output_fmt: Layout of the maps, `"NCHW"`.
            intermediates_only: Return only the list of requested maps.

        Returns:
            The last map (N, num_features, h, w) and the requested maps, finest first; or the latter alone.

        Raises:
            UserError: For indices that do not exist, or another layout.
        """
        if output_fmt != "NCHW":
            raise UserError(f'output_fmt="{output_fmt}": must be "NCHW"')
        wanted = {self.feature_info[index]["module"] for index in self.feature_indices(indices)}
        maps: list[Tensor] = []
        x = self._checked(x)
        for path, stage in self.named_stages():
            x = stage(x)
            if path in wanted:
                maps.append(x)
            if stop_early and len(maps) == len(wanted):
                break
        return maps if intermediates_only else (x, maps)

    def get_classifier(self) -> nn.Module:
        """The linear layer that outputs the logits; the identity for 0 classes."""
        return self.get_submodule(self.head_name)

    def reset_classifier(self, num_classes: int, global_pool: Pooling | None = None) -> None:
        """Replace the head with a newly initialized one of the same device and dtype.

        Args:
            num_classes: Outputs of the linear layer; 0 removes it.
            global_pool: As in the configuration; None keeps the pooling.
        """
        global_pool = self.config.global_pool if global_pool is None else global_pool
        self.config = dataclasses.replace(self.config, num_classes=num_classes, global_pool=global_pool)
        weight = next(self.parameters())
        self._replace_classifier()
        self.get_classifier().to(weight.device, weight.dtype).train(self.training)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Run blocks in the way that keeps least for the backward pass, or plainly, under timm's name.

        Raises:
            UserError: If the blocks run in one way only.
        """
        executions = family_of(self.config).executions
        leanest = executions[-1] if len(executions) > 1 else "linear-recompute"  # refused where there is none
        self.set_block_execution(leanest if enable else "plain")

    def prune_intermediate_layers(
        self,
        indices: int | Sequence[int] = 1,
        prune_norm: bool = False,  # noqa: ARG002 - timm's argument
        prune_head: bool = True,
    ) -> list[int]:
        """Remove the layers that the requested maps do not need.

        Args:
            indices: As in `forward_intermediates`.
            prune_norm: Has no effect, as in timm's DenseNet and ResNet.
            prune_head: Remove the head even if the last map is requested.

        Returns:
            Sorted indices into `feature_info`.
        """
        kept = self.feature_indices(indices)
        last = self.feature_info[kept[-1]]
        paths = [path for path, _ in self.named_stages()]
        unused = paths[paths.index(last["module"]) + 1 :]
        for path in unused:
            parent, _, name = path.rpartition(".")
            delattr(self.get_submodule(parent), name)
        if unused:
            self.num_features, self.feature_info = last["num_chs"], self.feature_info[: kept[-1] + 1]
        if unused or prune_head:
            self.reset_classifier(0, "")
        return kept

    def feature_indices(self, indices: int | Sequence[int] | None) -> list[int]:
        """Resolve `indices` to sorted, non-negative indices into `feature_info`.

        Raises:
            UserError: If there are no such maps.
        """
        count = len(self.feature_info)
        if indices is None:
            return list(range(count))
        if isinstance(indices, int):
            positions = set(range(count - indices, count))
        else:
            positions = {index + count if index < 0 else index for index in indices}
        if not positions or min(positions) < 0 or max(positions) >= count:
            raise UserError(
                f"indices={indices!r}: must be from 0 to {count - 1}, the maps of {self.config.name}"
            )
        return sorted(positions)

    def _children(self, names: Iterable[str]) -> Iterator[tuple[str, nn.Module]]:
        """The children of these names that are there: pruning removes some."""
        for name in names:
            child = self._modules.get(name)
            if child is not None:
                yield name, child

    def _add_head(self, num_features: int) -> None:
        """Add pooling, dropout and the linear layer, after the stages."""
        self.num_features = num_features
        self.global_pool = GlobalPool(self.config.global_pool, dims=self.config.dims)
        self.head_drop = nn.Dropout(self.config.drop_rate)
        self._replace_classifier()

    def _replace_classifier(self) -> None:
        self.global_pool.pool_type = self.config.global_pool
        self.head_hidden_size = self.config.pooled(self.num_features)
        parent, _, name = self.head_name.rpartition(".")
        head = make_head(self.head_hidden_size, self.num_classes, self.head_type)
        setattr(self.get_submodule(parent), name, head)


def every_child(module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """A module's children by name; one in several places each time, which `named_children` yields once."""
    return ((name, child) for name, child in module._modules.items() if child is not None)


@torch.fx.wrap
def check_input(x: Tensor, channels: int, smallest_size: int, dims: int = 2) -> Tensor:
    """Check the shape of the input, and return it.

    `torch.fx.wrap` keeps symbolic tracing from evaluating the shapes.

    Raises:
        UserError: If the channels are wrong or the image is too small.
    """
    if x.ndim != 2 + dims or x.shape[1] != channels:
        raise UserError(f"input: must be (N, {channels}, {AXES[dims]}), not {tuple(x.shape)}")
    if min(x.shape[2:]) < smallest_size:
        least, found = ("×".join(map(str, size)) for size in ((smallest_size,) * dims, x.shape[2:]))
        raise UserError(f"input: {INPUTS[dims]} must be at least {least} for this network, not {found}")
    return x


def make_norm(kind: Norm, channels: int, *, activated: bool = True, dims: int = 2) -> nn.Module:
    """Create a config's norm.

    Args:
        kind: Its kind; None for the identity.
        channels: C.
        activated: Whether a nonlinearity comes behind it, which some kinds contain.
        dims: Spatial axes.
    """
    if kind == "batch":
        return BATCH_NORMS[dims](channels)
    if kind == "group":
        return nn.GroupNorm(norm_groups(channels), channels)
    if kind == "layer2d":
        return LayerNorm2d(channels, eps=norm_eps(kind))
    if kind == "instance":
        return INSTANCE_NORMS[dims](channels, affine=True)
    if kind == "filter-response":
        return FilterResponseNorm(channels, activated=activated, dims=dims)
    if kind == "evonorm-s0":
        return EvoNormS0(channels, norm_groups(channels), activated=activated, dims=dims)
    return nn.Identity()


def activation_after(norm: Norm, function: BlockActivation) -> nn.Module:
    """Create the activation behind a norm; the identity for norms that contain one."""
    return nn.Identity() if norm in ACTIVATED_NORMS else make_activation(function)


def make_head(num_features: int, num_classes: int, kind: type[nn.Linear] = nn.Linear) -> nn.Module:
    """Create the linear layer of the head, with zero bias; the identity for 0 classes."""
    if num_classes == 0:
        return nn.Identity()
    head = kind(num_features, num_classes)
    nn.init.zeros_(head.bias)
    return head


def initialize_convolutions(model: nn.Module) -> None:
    """Initialize every convolution from N(0, 2 / (kernel area × output channels)).

    He et al. 2015 (arXiv 1502.01852, equation 14), the form for the backward pass ("fan-out"): what the
    authors' Torch code of both ResNet (fb.resnet.torch) and DenseNet does. Norms keep PyTorch's
    initialization of 1 and 0.
    """
    for module in model.modules():
        if isinstance(module, Convolution) and not isinstance(module, ChannelConvolution):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
