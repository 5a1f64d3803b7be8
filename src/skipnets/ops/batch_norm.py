"""Batch normalization in parts: statistics, scale and shift, and the gradient, each computed when needed.

Batch normalization of a channel x (Ioffe and Szegedy 2015, arXiv 1502.03167, algorithm 1) is

    y = γ x̂ + β,   x̂ = (x − μ) s,   s = (v + ε)^-½,

with mean μ and variance v over the M values of the channel. μ and v do not depend on γ, β and ε: however
many norms see a channel, its statistics are computed once. With known statistics the norm is a scale and a
shift, y = x·(γ s) + (β − μ γ s), cheap enough to be repeated in the backward pass instead of being kept.

For g = ∂loss/∂y, the gradients are dβ = Σ g, dγ = Σ g x̂ (sums over the M values), and

    dx = γ s [g − dβ/M − x̂ dγ/M] = γ s g − (γ s dβ)/M − (x − μ) (γ s² dγ)/M.

**dγ without a pass over the data.** If a = relu(y) feeds a convolution with weights W, and dW is the
gradient of these, then Σ dW ⊙ W over everything but the input channel is Σ a ∂loss/∂a = Σ g y = γ dγ + β
dβ. The correction above needs γ dγ, which this gives without a division. Only dγ itself divides by γ; where
|γ| is small, rounding errors would grow by 1/|γ|, and the sum Σ g x̂ is made explicitly.

Shapes: M values of each of C channels, as matrices (M, C).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from skipnets.ops.chunks import MapShape, as_matrix

SMALL_GAMMA = 2.0**-8
"""Below this |γ|, dγ is summed explicitly: above it, the product formula loses at most 8 bits."""

_FOLDS, _WIDE = 16, 1024

Columns = Tensor | slice | None
"""Which channels of a norm: their numbers, all (a slice) or none."""


class Statistics(NamedTuple):
    """Mean and biased variance of each channel, (C,) each."""

    mean: Tensor
    variance: Tensor

    def first(self, channels: int) -> Statistics:
        """The statistics of the first channels."""
        return Statistics(self.mean[:channels], self.variance[:channels])

    def row(self, index: int) -> Statistics:
        """The statistics of one norm, where those of several are stacked (L, C)."""
        return Statistics(self.mean[index], self.variance[index])


class Affine(NamedTuple):
    """A norm with known statistics: y = x·scale + shift, (C,) each."""

    scale: Tensor
    shift: Tensor

    @classmethod
    def of(cls, statistics: Statistics, gamma: Tensor, beta: Tensor, eps: float) -> Affine:
        """From a norm's statistics and parameters."""
        scale = gamma * torch.rsqrt(statistics.variance + eps)
        return cls(scale, beta - statistics.mean * scale)


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype in which values of this dtype are summed."""
    return torch.float32 if dtype in (torch.bfloat16, torch.float16) else dtype


def scale_shift_relu(x: Tensor, affine: Affine, out: Tensor) -> Tensor:
    """relu(x·scale + shift) of a matrix (m, C), written into `out`."""
    return torch.addcmul(affine.shift, x, affine.scale, out=out).relu_()


def relu_backward(gradient: Tensor, activated: Tensor, out: Tensor) -> Tensor:
    """The gradient where relu's result is positive, else 0, written into `out` (which may be `gradient`)."""
    threshold_backward = torch.ops.aten.threshold_backward.grad_input
    result: Tensor = threshold_backward(gradient, activated, 0, grad_input=out)
    return result


class StatisticsCollector:
    """Accumulates statistics of channels chunk by chunk; all chunks but the last are equally large.

    Each chunk's own mean and variance are merged by the formula of Chan, Golub and LeVeque (1979, "Updating
    Formulae and a Pairwise Algorithm for Computing Sample Variances"), which, unlike Σx² − (Σx)²/M, does
    not cancel.
    """

    def __init__(self) -> None:
        self._parts: list[Statistics] = []
        self._counts: list[int] = []

    def add(self, values: Tensor) -> None:
        """Add the contiguous values (m, C) of a chunk.

        A narrow matrix is read as a wider one, several rows as one, because the library's kernel is three to
        six times faster there; the parts are merged like chunks.
        """
        rows, columns = values.shape
        folds = math.gcd(rows, _FOLDS) if columns * _FOLDS <= _WIDE else 1
        part = matrix_statistics(values.view(rows // folds, folds * columns))
        self._parts.append(Statistics(part.mean.view(folds, columns), part.variance.view(folds, columns)))
        self._counts.append(rows // folds)

    def merged(self) -> Statistics:
        """The statistics of all values so far."""
        means = torch.cat([part.mean for part in self._parts])
        variances = torch.cat([part.variance for part in self._parts])
        if len(means) == 1:
            return Statistics(means[0], variances[0])
        folds = [len(part.mean) for part in self._parts]
        total = sum(count * fold for count, fold in zip(self._counts, folds, strict=True))
        # Filled on the device: building it from a list would make a GPU wait.
        shares = means.new_full((len(means), 1), self._counts[0] / total)
        shares[-folds[-1] :].fill_(self._counts[-1] / total)
        mean = (shares * means).sum(0)
        between = (means - mean).square_()
        return Statistics(mean, (variances.add_(between).mul_(shares)).sum(0))


def matrix_statistics(values: Tensor) -> Statistics:
    """Mean and biased variance of each column of a contiguous matrix (m, C)."""
    values = values.to(accumulation_dtype(values.dtype))
    as_image = values.view(1, values.shape[0], 1, values.shape[1]).permute(0, 3, 1, 2)
    if values.device.type == "cpu":
        # The library's own kernel for this; var_mean over the leading axis is twenty times slower on a CPU.
        return Statistics(*torch.batch_norm_update_stats(as_image, None, None, 0.0))
    variance, mean = torch.var_mean(as_image, dim=(0, 2, 3), correction=0)
    return Statistics(mean, variance)


def map_statistics(maps: Tensor) -> Statistics:
    """Mean and biased variance of each channel of (N, C, H, W), in any memory format."""
    collector = StatisticsCollector()
    matrix = as_matrix(maps)
    for rows in MapShape.of(maps).chunks(maps.shape[1], maps.dtype.itemsize, maps.device):
        collector.add(matrix[rows].contiguous())
    return collector.merged()


@torch.no_grad()
def update_running_statistics(norm: nn.BatchNorm2d, statistics: Statistics, count: int) -> None:
    """Move a norm's running statistics towards a batch with `count` values a channel, as its forward does.

    Those of a norm whose `track_running_stats` is off stay as they are, also where it has some. Nothing is
    read back from the device, not even for `momentum=None`, the average over all batches so far.
    """
    if not norm.track_running_stats:
        return
    batches = norm.num_batches_tracked
    if batches is not None:
        batches.add_(1)
    if norm.running_mean is None or norm.running_var is None:
        return
    dtype = norm.running_mean.dtype
    momentum: Tensor | float | None = norm.momentum
    if momentum is None:
        momentum = 0.0 if batches is None else batches.to(dtype).reciprocal()
    norm.running_mean.lerp_(statistics.mean.to(dtype), momentum)
    norm.running_var.lerp_(statistics.variance.to(dtype) * (count / (count - 1)), momentum)


@torch.no_grad()
def update_all_running_statistics(
    norms: Sequence[nn.BatchNorm2d], statistics: Sequence[Statistics], count: int
) -> None:
    """`update_running_statistics` of many norms; on a GPU in a handful of launches where they are alike."""
    momentum = norms[0].momentum
    means = [norm.running_mean for norm in norms if norm.running_mean is not None]
    variances = [norm.running_var for norm in norms if norm.running_var is not None]
    counters = [norm.num_batches_tracked for norm in norms if norm.num_batches_tracked is not None]
    alike = momentum is not None and all(
        norm.momentum == momentum and norm.track_running_stats for norm in norms
    )
    if not (alike and len(means) == len(variances) == len(counters) == len(norms)) or means[0].is_cpu:
        for norm, own in zip(norms, statistics, strict=True):
            update_running_statistics(norm, own, count)
        return
    assert momentum is not None
    unbiased = torch._foreach_mul([own.variance for own in statistics], count / (count - 1))
    torch._foreach_add_(counters, 1)
    torch._foreach_lerp_(means, [own.mean for own in statistics], momentum)
    torch._foreach_lerp_(variances, list(unbiased), momentum)


class Correction(NamedTuple):
    """The terms of dx due to the mean and variance: −mean_term/M − (x − μ)·projection/M; (C,) each."""

    mean_term: Tensor
    projection: Tensor

    def as_line(self, mean: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """The same as slope and offset: dx = scale·g + x·slope + offset."""
        slope = self.projection / -count
        return slope, self.mean_term / -count - mean * slope


class ParameterGradients(NamedTuple):
    """Gradients of a norm's parameters, (C,) each, and the correction that follows from them."""

    gamma: Tensor
    beta: Tensor
    correction: Correction


class NormGradient:
    """Accumulates, chunk by chunk, the sums that the backward pass of one norm needs.

    Args:
        statistics: Of the norm's input, (C,) each.
        gamma: The norm's weight (C,).
        beta: The norm's bias (C,).
        eps: The norm's ε.
        explicit: The channels whose dγ is to be summed explicitly.
    """

    def __init__(
        self, statistics: Statistics, gamma: Tensor, beta: Tensor, eps: float, explicit: Columns
    ) -> None:
        self._mean = statistics.mean
        self._gamma, self._beta = gamma, beta
        self._inverse_std = torch.rsqrt(statistics.variance + eps)
        self.affine = Affine.of(statistics, gamma, beta, eps)
        self._explicit = explicit
        self._beta_gradient = torch.zeros_like(self._mean)
        self._explicit_sum = torch.zeros_like(self._mean) if explicit is not None else None

    def add(self, gradient: Tensor, x: Tensor) -> None:
        """Add a chunk of g (m, C), after the ReLU's backward, and of the norm's input x (m, C)."""
        self._beta_gradient += gradient.sum(0, dtype=self._mean.dtype)
        if self._explicit_sum is not None:
            columns = self._explicit
            centered = x[:, columns] - self._mean[columns]
            self._explicit_sum[columns] += (gradient[:, columns] * centered).sum(0, dtype=self._mean.dtype)

    def finish(self, weight_product: Tensor) -> ParameterGradients:
        """Finish the sums.

        Args:
            weight_product: (C,), that of the convolution behind this norm and its ReLU.
        """
        gamma_product = weight_product - self._beta * self._beta_gradient  # γ dγ
        gamma_gradient = gamma_product / self._gamma
        if self._explicit_sum is not None:
            columns = self._explicit
            explicit = self._explicit_sum[columns] * self._inverse_std[columns]
            gamma_gradient[columns] = explicit
            gamma_product[columns] = explicit * self._gamma[columns]
        correction = Correction(
            mean_term=self.affine.scale * self._beta_gradient,
            projection=self._inverse_std.square() * gamma_product,
        )
        return ParameterGradients(gamma_gradient, self._beta_gradient, correction)


def weight_product(gradient: Tensor, weight: Tensor) -> Tensor:
    """(C,) Σ dW ⊙ W of a convolution's weights (K, C, s, s), over everything but the input channel."""
    return (gradient * weight).sum((0, *range(2, weight.ndim)))


def explicit_columns(gammas: list[Tensor], dtype: torch.dtype) -> list[Columns]:
    """For each norm, the channels whose dγ has to be summed explicitly.

    The product formula cancels, which values of eight or eleven bits do not allow: all channels for these.
    Otherwise those with small |γ|; finding them makes a GPU wait, once for the whole list.
    """
    if dtype != accumulation_dtype(dtype):
        return [slice(None)] * len(gammas)
    if not gammas:
        return []
    small = [gamma.abs() < SMALL_GAMMA for gamma in gammas]
    concerned = torch.stack([flags.any() for flags in small]).tolist()
    return [flags.nonzero()[:, 0] if some else None for flags, some in zip(small, concerned, strict=True)]
