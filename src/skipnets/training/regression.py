"""Training to predict numbers: options, losses, the task, and the targets' scales.

The network learns targets of mean 0 and standard deviation 1; the model file holds what makes numbers of its
outputs (`skipnets.scaling`).

Shapes: N batch, C channels, H height, W width, T targets.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torchmetrics import MeanMetric, Metric
from torchmetrics.utilities import dim_zero_cat
from typing_extensions import override

from skipnets.data.dataset import ImageDataset
from skipnets.errors import UserError
from skipnets.evaluation.ratios import defined_mean
from skipnets.evaluation.regression import error_metrics
from skipnets.models.backbone import Backbone
from skipnets.scaling import TargetScale, scaled
from skipnets.tables import number_text
from skipnets.training.config import ResolvedConfig, TrainConfig
from skipnets.training.distillation import Teacher
from skipnets.training.losses import known_mean
from skipnets.training.mixing import make_target_mix
from skipnets.training.own_measures import known_numbers, of_known
from skipnets.training.task import Batch, ClassificationTask, Loss

__all__ = [
    "LOSSES",
    "NumberLoss",
    "RegressionTask",
    "TargetScores",
    "check_not_regression",
    "scaled_dataset",
    "target_scales",
    "with_regression_defaults",
]

LOSSES: dict[str, type[nn.L1Loss | nn.MSELoss | nn.HuberLoss]] = {
    "l1": nn.L1Loss,
    "l2": nn.MSELoss,
    "huber": nn.HuberLoss,
}
"""Losses by name; the Huber loss is quadratic up to one standard deviation of the target."""

_BEST_BY = ("loss", "mae", "r2")
# What is of classes alone, with the value that switches it off.
_OFF: dict[str, Any] = {"label_smoothing": 0.0, "imbalance": "none", "threshold": None}


def check_not_regression(config: TrainConfig) -> None:
    """Refuse what is made for numbers where the images have classes or labels.

    Raises:
        UserError: An option is for numbers, or these were asked for.
    """
    if config.task == "regression" or config.targets:
        raise UserError(f"task=regression: {config.data} has no numbers to predict")
    for name, values in (("loss", tuple(LOSSES)), ("best_by", ("mae", "r2")), ("ordinal", (True,))):
        if (value := getattr(config, name)) in values:
            raise UserError(f"{name}={value}: must be given with numbers to predict alone (task=regression)")
    for name in ("target_mean", "target_std"):
        if getattr(config, name) is not None:
            raise UserError(f"{name}: must be given with numbers to predict alone (task=regression)")


def with_regression_defaults(config: TrainConfig, dataset: ImageDataset) -> TrainConfig:
    """Fill in what numbers change among the options, and refuse what they cannot have.

    Args:
        config: As the user gave it.
        dataset: The data set with its splits.

    Raises:
        UserError: An option is for classes, a target is the same in all training images, an ordinal one is
            not of whole numbers, or R² is to choose an epoch on validation images that do not define it.
    """
    if config.task not in ("auto", "regression"):
        raise UserError(f"task={config.task}: {config.data} has numbers to predict (task=regression)")
    if config.loss is not None and config.loss not in LOSSES:
        raise UserError(f"loss={config.loss}: must be one of {', '.join(LOSSES)} with numbers to predict")
    if config.best_by is not None and config.best_by not in _BEST_BY:
        raise UserError(f"best_by={config.best_by}: must be one of {', '.join(_BEST_BY)}")
    for name, off in _OFF.items():
        if getattr(config, name) not in (None, off):
            raise UserError(f"{name}={getattr(config, name)}: must be left out with numbers to predict")
    if config.cutmix:
        raise UserError(
            f"cutmix={config.cutmix:g}: must be 0 with numbers to predict, as a box of an image has no "
            "known share of its number; mixup mixes whole images"
        )
    if config.teacher is not None and config.teacher_temperature != TrainConfig.teacher_temperature:
        raise UserError(
            f"teacher_temperature={config.teacher_temperature:g}: must be left out with numbers to predict, "
            "which have no probabilities"
        )
    targets = dataset.split("train").labels
    for name, of_images in zip(dataset.classes, targets.T, strict=True):
        column = of_images[np.isfinite(of_images)]
        if not len(column):
            raise UserError(
                f"targets={name}: is not known of any training image, so there is nothing to learn"
            )
        if column.min() == column.max():
            raise UserError(
                f"targets={name}: is {number_text(column[0])} in all training images, so there is nothing to "
                "learn"
            )
        if not np.std(column) > 0:  # squares of such differences are 0
            raise UserError(
                f"targets={name}: the numbers of the training images differ by so little that they cannot be "
                "scaled; another unit makes them larger"
            )
        # Images that are evaluated have grades as well.
        everywhere = dataset.labels[:, dataset.classes.index(name)]
        everywhere = everywhere[np.isfinite(everywhere)]
        if config.ordinal and len(others := everywhere[everywhere != np.rint(everywhere)]):
            raise UserError(
                f"ordinal: must be given for whole numbers; {name} is {number_text(others[0])}, too"
            )
    val = dataset.split("val").labels
    if config.best_by == "r2" and np.isnan(error_metrics(val, val)["r2"]).all():
        raise UserError("best_by=r2: all validation images have the same numbers, so R² is undefined")
    means, deviations = np.nanmean(targets, axis=0), np.nanstd(targets, axis=0)
    for option, values in (("target_mean", means), ("target_std", deviations)):
        given = getattr(config, option)
        if given is not None and len(given) != len(values):
            raise UserError(f"{option}={given}: must be {len(values)}, one for each target")
    defaults = {
        **_OFF,
        "cutmix": 0.0,
        "loss": "l2",
        "best_by": "loss",
        # What enlarges, turns or colors images may change the number that they have.
        "augmentation": "crop",
        "target_mean": tuple(means.tolist()),
        "target_std": tuple(deviations.tolist()),
    }
    missing = {name: value for name, value in defaults.items() if getattr(config, name) is None}
    return dataclasses.replace(config, task="regression", **missing)


def target_scales(config: TrainConfig, train: ImageDataset) -> tuple[TargetScale, ...]:
    """The scale of each target.

    Args:
        config: From `with_regression_defaults`.
        train: The training images.
    """
    assert config.target_mean is not None
    assert config.target_std is not None
    return tuple(
        TargetScale(
            mean=mean,
            std=std,
            grades=(int(np.nanmin(column)), int(np.nanmax(column))) if config.ordinal else None,
        )
        for mean, std, column in zip(config.target_mean, config.target_std, train.labels.T, strict=True)
    )


def scaled_dataset(dataset: ImageDataset, scales: tuple[TargetScale, ...]) -> ImageDataset:
    """A dataset with its targets as the network learns them, in float32."""
    return dataclasses.replace(dataset, labels=scaled(dataset.labels, scales).astype(np.float32))


class NumberLoss(nn.Module):
    """The mean loss of the numbers that are known.

    Args:
        name: One of `LOSSES`.
    """

    def __init__(self, name: str) -> None:
        super().__init__()
        self.of_each = LOSSES[name](reduction="none")

    @override
    def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """(N, T) outputs and targets (NaN for unknown) → the mean over the known pairs."""
        # A loss that is NaN would have a gradient that is NaN, even where it counts nothing.
        return known_mean(self.of_each(outputs, targets.nan_to_num()), torch.isfinite(targets))


class TargetScores(Metric):
    """Collects outputs and targets of validation images, and computes errors.

    Args:
        scales: Of the targets.
    """

    full_state_update = False

    def __init__(self, scales: tuple[TargetScale, ...]) -> None:
        super().__init__()
        self.unit = scales[0].std if len(scales) == 1 else 1.0
        self.add_state("outputs", default=[], dist_reduce_fx="cat")
        self.add_state("targets", default=[], dist_reduce_fx="cat")

    @override
    def update(self, outputs: Tensor, targets: Tensor) -> None:
        """Take a batch, (N, T) of each, scaled; targets are NaN where unknown."""
        self.outputs.append(outputs.float())  # type: ignore[union-attr, operator]
        self.targets.append(targets.float())  # type: ignore[union-attr, operator]

    @override
    def compute(self) -> dict[str, float]:
        """The metrics of an epoch; see `skipnets.training.run.Row`."""
        outputs, targets = (dim_zero_cat(each).cpu().numpy() for each in (self.outputs, self.targets))  # type: ignore[arg-type]
        errors = error_metrics(outputs, targets)
        return {"val_mae": self.unit * defined_mean(errors["mae"]), "val_r2": defined_mean(errors["r2"])}


class RegressionTask(ClassificationTask):
    """Trains a model on (images, numbers), whose targets are scaled.

    Args:
        model: The network, with T outputs.
        config: What `prepare` resolved.
        scales: Of the T targets.
        teacher: Another regression of the same targets that it learns from as well.
        loss: Another training loss, of scaled outputs and targets (N, T), NaN where unknown; see
            `own_measures`. The validation loss is then L2.
        metrics: Further metrics of the validation images, of outputs and targets in their units: (N, T), or
            (N,) of one target where it is known.
    """

    def __init__(
        self,
        model: Backbone[Any],
        config: ResolvedConfig,
        scales: tuple[TargetScale, ...],
        *,
        teacher: Teacher | None = None,
        loss: Loss | None = None,
        metrics: Mapping[str, Metric] | None = None,
    ) -> None:
        number_loss = NumberLoss(config.loss or "l2")
        own = None if loss is None else of_known(loss, len(scales))
        super().__init__(
            model, config, teacher=teacher, loss=number_loss if own is None else own, metrics=metrics
        )
        self.mix = make_target_mix(mixup=config.mixup, cutmix=0.0)
        self.number_loss = number_loss
        self.scales = scales
        self.scores = TargetScores(scales)
        further = {name: self.validation_metrics[name] for name in self.further}
        self.validation_metrics = {"val_loss": MeanMetric(nan_strategy="disable"), **further}
        self.metrics = nn.ModuleList([*self.validation_metrics.values(), self.scores])

    @property
    @override
    def guessing_loss(self) -> float:
        """About that of the mean: targets have a variance of 1."""
        return 1.0

    @override
    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The loss of one batch, mixed where the configuration mixes, and added up over the targets."""
        pixels, targets, _ = batch
        images, mixed = self.normalize(pixels), None
        if self.mix is not None:
            images, mixed = self.mix(images, targets)
        outputs = self(images).to(targets.dtype)  # float32, or float64 in that precision
        loss: Tensor = (
            self.loss(outputs, targets) if mixed is None else mixed.interpolated().loss(self.loss, outputs)
        )
        if self.teacher is not None:
            loss = self.teacher.blended(loss, images, outputs, self.loss)
        self.training_sums.add(loss.detach() * len(targets), torch.zeros_like(loss), images=len(targets))
        return loss * targets.shape[1]

    @override
    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Collect one batch of validation images."""
        pixels, targets, _ = batch
        outputs = self(self.normalize(pixels)).to(targets.dtype)
        # One loss a pair, as in `MultiLabelTask`.
        losses = self.number_loss.of_each(outputs, targets.nan_to_num())
        if len(of_known := losses[torch.isfinite(targets)]):
            self.validation_metrics["val_loss"].update(of_known)
        self.scores.update(outputs, targets)
        if self.further:
            self.measure_further(*known_numbers(self._in_units(outputs), self._in_units(targets)))

    def _in_units(self, numbers: Tensor) -> Tensor:
        """(N, T) scaled numbers in the targets' units, not rounded."""
        means, stds = zip(*((scale.mean, scale.std) for scale in self.scales), strict=True)
        return numbers * numbers.new_tensor(stds) + numbers.new_tensor(means)

    @override
    def on_validation_epoch_end(self) -> None:
        """Compute the metrics over the images of all devices."""
        super().on_validation_epoch_end()
        for name, value in self.scores.compute().items():
            self.log(name, value)
        self.scores.reset()
