"""Losses and metrics that a program hands over, where labels or numbers may be unknown.

Shapes: N batch, K classes, labels or targets.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics import Metric
from typing_extensions import override

from skipnets.data.dataset import ImageDataset
from skipnets.errors import UserError, one_line
from skipnets.training.copying import own_copy
from skipnets.training.losses import known_mean

__all__ = ["UNKNOWN", "check_loss", "check_metrics", "integer_labels", "known_numbers", "of_known"]

UNKNOWN = -1
"""The label that metrics get where one is unknown, which those of torchmetrics ignore by `ignore_index`."""

Measure = Callable[[Tensor, Tensor], Tensor]

# Images on which a loss or a metric is tried before the training.
_TRIED = 256


class _KnownMean(nn.Module):
    """The mean of a loss over the pairs of an image and a label or target that are known.

    Args:
        of_each: Returns the loss of each pair, (N, K).
    """

    def __init__(self, of_each: nn.Module) -> None:
        super().__init__()
        self.of_each = of_each

    @override
    def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """(N, K) outputs and targets (NaN for unknown) → the mean."""
        return known_mean(self.of_each(outputs, targets.nan_to_num()), torch.isfinite(targets))


def of_known(loss: Measure, outputs: int) -> Measure:
    """The loss with unknown pairs left out, where that can be done without knowing what it computes.

    That is where it is a module with PyTorch's `reduction="mean"` which gives a loss for each pair without
    reduction. Others are returned as they are: they get NaN where a target is unknown.

    Args:
        loss: Of outputs (N, K) and targets (N, K).
        outputs: K.
    """
    if not isinstance(loss, nn.Module) or getattr(loss, "reduction", None) != "mean":
        return loss
    of_each = own_copy(loss, "loss")
    of_each.reduction = "none"  # type: ignore[assignment]
    try:
        tried = of_each(torch.zeros(2, outputs), torch.zeros(2, outputs))
    except Exception:  # whatever a user's loss may raise: `check_loss` says so
        return loss
    return _KnownMean(of_each) if tried.shape == (2, outputs) else loss


def check_loss(loss: Measure, dataset: ImageDataset, *, mixed: bool = False) -> None:
    """Try a loss on outputs of 0 and the labels or numbers of training images.

    Args:
        loss: Is not changed.
        dataset: With its splits.
        mixed: Whether the classes of images are shares (N, K), as MixUp and CutMix make them.

    Raises:
        UserError: If it cannot be copied, fails, does not return one number, or that is NaN where a target is
            unknown.
    """
    labels = dataset.split("train").labels
    if dataset.regression:  # about as they are scaled
        labels = (labels - np.nanmean(labels, axis=0)) / np.nanstd(labels, axis=0)
    tried = loss
    if dataset.task == "single-label":
        targets = torch.from_numpy(np.asarray(labels[:_TRIED]))
        outputs = torch.zeros(len(targets), len(dataset.classes), requires_grad=True)
        targets = F.one_hot(targets, outputs.shape[1]).float() if mixed else targets
        with contextlib.suppress(UserError):  # only some runs of classes copy a loss
            tried = own_copy(loss, "loss")
    else:
        targets = _some(labels)
        outputs = torch.zeros_like(targets, requires_grad=True)
        tried = own_copy(of_known(loss, targets.shape[1]), "loss")
    kind = "numbers" if dataset.regression else "mixed labels" if mixed else "labels"
    try:
        value = tried(*(each.to(_device(tried)) for each in (outputs, targets)))
    except Exception as error:  # a user's function, which may raise anything
        hint = "; MixUp and CutMix are switched off by mixup=0 and cutmix=0" if mixed else ""
        shapes = f"outputs of shape {tuple(outputs.shape)} and {kind} of shape {tuple(targets.shape)}"
        if outputs.shape == targets.shape:
            shapes = f"outputs and {kind} of shape {tuple(targets.shape)}"
        raise UserError(f"loss: fails on {shapes} ({one_line(error)}){hint}") from error
    if not isinstance(value, Tensor) or value.ndim or not value.requires_grad:
        found = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
        raise UserError(f"loss: must return one number that has a gradient, the mean loss, not {found}")
    (gradient,) = torch.autograd.grad(value, outputs, allow_unused=True)
    if gradient is None:
        raise UserError("loss: must depend on the network's outputs")
    if (
        targets.is_floating_point()
        and torch.isnan(targets).any()
        and not (torch.isfinite(value) and torch.isfinite(gradient).all())
    ):
        raise UserError(
            f"loss: must leave out {kind} that are unknown, which are NaN in its second argument; the loss "
            "or its gradient is not finite where some are"
        )


def check_metrics(metrics: Mapping[str, Metric], dataset: ImageDataset) -> None:
    """Try metrics on validation images, before the training.

    Args:
        metrics: By name; they are not changed.
        dataset: With its splits.

    Raises:
        UserError: If one cannot be copied, fails, or has no way to leave out what is unknown.
    """
    labels = dataset.split("val").labels
    unknown = labels.dtype.kind == "f" and bool(np.isnan(labels).any())
    for name, metric in metrics.items():
        if unknown and dataset.multi_label and getattr(metric, "ignore_index", None) != UNKNOWN:
            raise UserError(
                f"metrics: {name} must be made with ignore_index={UNKNOWN}, as which it gets labels of "
                "validation images that are unknown"
            )
        if unknown and dataset.regression and labels.shape[1] > 1:
            raise UserError(
                f"metrics: {name}: must be given with one number an image alone, because numbers of "
                "validation images are unknown, and metrics of several have no way to leave these out"
            )
        if not len(labels):
            continue
        given = tuple(each.to(metric.device) for each in _tried_on(dataset, labels))
        tried = own_copy(metric, "metrics")
        try:
            with warnings.catch_warnings():  # of outputs that are all alike
                warnings.simplefilter("ignore")
                tried.update(*given)
                value: Any = tried.compute() if len(given[0]) > 1 else 0.0  # too few are known
        except Exception as error:  # of a metric for other shapes, or whatever a user's own one raises
            shapes = " and ".join(str(tuple(each.shape)) for each in given)
            raise UserError(
                f"metrics: {name} fails on arrays of shapes {shapes} ({one_line(error)})"
            ) from error
        try:
            shape = np.shape(value.cpu() if isinstance(value, Tensor) else float(value))
        except (TypeError, ValueError):
            shape = None
        if shape is None or len(shape) > 1:
            found = type(value).__name__ if shape is None else f"an array of shape {tuple(shape)}"
            raise UserError(
                f"metrics: {name} must compute one number, or one for each class, of which the mean is "
                f"logged, not {found}"
            )


def _tried_on(dataset: ImageDataset, labels: Any) -> tuple[Tensor, Tensor]:
    """What a metric would be given of a network whose outputs are 0."""
    if dataset.task == "single-label":
        targets = torch.from_numpy(np.asarray(labels[:_TRIED]))
        return torch.zeros(len(targets), len(dataset.classes)), targets
    targets = _some(labels)
    if dataset.regression:
        return known_numbers(torch.zeros_like(targets), targets)
    return torch.full_like(targets, 0.5), integer_labels(targets)


def _device(measure: Any) -> torch.device:
    """Where the tensors of a loss are, if it has some."""
    tensors = [*measure.parameters(), *measure.buffers()] if isinstance(measure, nn.Module) else []
    return tensors[0].device if tensors else torch.device("cpu")


def _some(labels: Any) -> Tensor:
    """(≤ 256, K) targets, those with unknown ones first."""
    order = np.argsort(~np.isnan(labels).any(1), kind="stable")[:_TRIED]
    return torch.from_numpy(np.asarray(labels[order], np.float32))


def integer_labels(labels: Tensor) -> Tensor:
    """(N, K) labels 1, 0 or NaN → int64, with `UNKNOWN` for NaN."""
    return labels.nan_to_num(UNKNOWN).long()


def known_numbers(outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """(N, T) outputs and targets as torchmetrics takes them: (N,) of one target, where it is known."""
    if targets.shape[1] > 1:
        return outputs, targets
    known = torch.isfinite(targets[:, 0])
    return outputs[known, 0], targets[known, 0]
