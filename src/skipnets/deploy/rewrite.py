"""The same function of the input in fewer steps: exact rewrites of a trained network, for eval mode.

Each takes a network and returns a new one in eval mode that computes the same; the given one is untouched.
Constants are computed in float64 and rounded once. Where a norm is not batch normalization there is nothing
to fold, and it stays; so does a norm that no convolution precedes: as one multiplication and one addition a
value it was slower than the norm in PyTorch, ONNX Runtime and OpenVINO (`benchmarks/rewrites.py` measures
those that are here).

Shapes: N batch, C channels, H height, W width. γ, β, μ, σ² are a batch norm's weight, bias, running mean and
running variance: in eval mode y = γ (x − μ) / √(σ² + ε) + β, which is s·x + t with s = γ / √(σ² + ε) and
t = β − s·μ.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn

from skipnets.models.densenet import DenseLayer, DenseNet, Transition
from skipnets.models.resnet import BasicBlock, BottleneckBlock, ResNet

__all__ = [
    "CenterdConvolution",
    "fold_norms",
    "normalize_inside",
    "pool_before_convolution",
]

Network = TypeVar("Network", bound=DenseNet | ResNet)

_RESIDUAL_PAIRS = (("conv1", "bn1"), ("conv2", "bn2"), ("conv3", "bn3"))


def fold_norms(model: Network) -> Network:
    """Fold every batch norm that follows a convolution into it.

    s·(W∗x + b) + t = (s·W)∗x + (s·b + t), with s and t per output channel of W. That is norm2 of a dense
    layer with a bottleneck, the ImageNet stem's norm, and every norm of a ResNet.
    """
    rewritten = _evaluated_copy(model)
    for parent, convolution, norm in _convolutions_with_norms(rewritten):
        if isinstance(following := getattr(parent, norm), nn.BatchNorm2d):
            setattr(parent, convolution, _folded(getattr(parent, convolution), following))
            setattr(parent, norm, nn.Identity())
    return rewritten


def pool_before_convolution(model: Network) -> Network:
    """Let transitions pool first, so that their 1×1 convolution runs on a quarter of the pixels.

    Both are linear, the one over channels at each pixel, the other over pixels in each channel, so they
    commute: mean_p(Σ_c w_c·x_cp + b) = Σ_c w_c·mean_p(x_cp) + b, as the mean of a constant is that constant.
    A network without transitions (a ResNet) is returned as it is.
    """
    rewritten = _evaluated_copy(model)
    for transition in rewritten.modules():
        if isinstance(transition, Transition):
            convolution = transition.conv
            del transition.conv  # Transition is a Sequential: taken out and put back, it comes last.
            transition.conv = convolution
    return rewritten


def normalize_inside(model: Network, mean: Sequence[float], std: Sequence[float]) -> Network:
    """Make a network of pixels 0–255 (uint8 or float) out of one that takes normalized images.

    A network's input is x = (p/255 − mean) / std. With centerd pixels c = p − 255·mean that is
    x = c/(255·std), a factor per input channel, which goes into the first convolution:
    W∗x = (W/(255·std))∗c. The centring cannot follow it into a bias: the convolution's zero padding means
    x = 0 beyond the border, which is c = 0, but not p = 0. So it stays, as one subtraction, and borders are
    exact.

    Args:
        model: Takes (N, C, H, W) images normalized with mean and std.
        mean: Per channel, in units where white is 1.
        std: Per channel, as `mean`.
    """
    rewritten = _evaluated_copy(model)
    parent, name = (rewritten.features, "conv0") if isinstance(rewritten, DenseNet) else (rewritten, "conv1")
    convolution = getattr(parent, name)
    factor = 1 / (255 * torch.tensor(std, dtype=torch.float64))
    center = 255 * torch.tensor(mean, dtype=torch.float64)
    weight_dtype = convolution.weight.dtype
    weight = convolution.weight.double() * factor[:, None, None]
    bias = None if convolution.bias is None else convolution.bias.double()
    setattr(parent, name, CenterdConvolution(center.to(weight_dtype), _like(convolution, weight, bias)))
    return rewritten


class CenterdConvolution(nn.Module):
    """A convolution of pixels from which the mean color is taken first.

    Args:
        center: (C,), from 0 to 255.
        convolution: Takes centerd pixels; its padding is the mean color.
    """

    def __init__(self, center: Tensor, convolution: nn.Conv2d) -> None:
        super().__init__()
        self.center = nn.Parameter(center[:, None, None], requires_grad=False)
        self.convolution = convolution

    def forward(self, pixels: Tensor) -> Tensor:
        """(N, C, H, W) pixels 0–255, uint8 or float → (N, out_channels, …)."""
        return self.convolution(pixels.to(self.center.dtype) - self.center)


def _evaluated_copy(model: Network) -> Network:
    rewritten = copy.deepcopy(model)
    rewritten.eval().requires_grad_(False)
    return rewritten


def _convolutions_with_norms(model: nn.Module) -> Iterator[tuple[nn.Module, str, str]]:
    """Modules with the names of a convolution in them and of the norm that alone reads its output."""
    for module in model.modules():
        if isinstance(module, DenseNet) and hasattr(module.features, "norm0"):
            yield module.features, "conv0", "norm0"
        elif isinstance(module, DenseLayer):
            yield module, "conv1", "norm2"
        elif isinstance(module, ResNet):
            yield module, "conv1", "bn1"
        elif isinstance(module, BasicBlock | BottleneckBlock):
            for convolution, norm in _RESIDUAL_PAIRS:
                if hasattr(module, convolution):
                    yield module, convolution, norm
            if isinstance(module.downsample, nn.Sequential):
                yield module.downsample, "0", "1"


def _scale_and_shift(norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """The norm in eval mode as s and t, (C,) each, in float64."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    scale = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
    return scale, norm.bias.double() - scale * norm.running_mean.double()


def _folded(convolution: nn.Conv2d, norm: nn.BatchNorm2d) -> nn.Conv2d:
    scale, shift = _scale_and_shift(norm)
    if convolution.bias is not None:
        shift = shift + scale * convolution.bias.double()
    return _like(convolution, convolution.weight.double() * scale[:, None, None, None], shift)


def _like(convolution: nn.Conv2d, weight: Tensor, bias: Tensor | None) -> nn.Conv2d:
    """A convolution of the same shape with other constants, rounded to the given one's dtype."""
    like = copy.deepcopy(convolution)
    like.weight = nn.Parameter(weight.to(convolution.weight.dtype), requires_grad=False)
    like.bias = None if bias is None else nn.Parameter(bias.to(convolution.weight.dtype), requires_grad=False)
    return like
