"""Training with any number of labels an image: options, losses, the task, and thresholds at the end.

Shapes: N batch, C channels, H height, W width, K labels.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from torchmetrics import MeanMetric, Metric
from torchmetrics.utilities import dim_zero_cat
from typing_extensions import override

from skipnets.classifier import Classifier
from skipnets.data.dataset import ImageDataset
from skipnets.errors import UserError, listed
from skipnets.evaluation.evaluating import evaluate
from skipnets.evaluation.multi_label import ranking_metrics
from skipnets.evaluation.multi_label_evaluation import MultiLabelEvaluation
from skipnets.evaluation.ratios import defined_mean, ratio
from skipnets.evaluation.thresholds import ThresholdRule, choose_thresholds
from skipnets.models.backbone import Backbone
from skipnets.training.config import ResolvedConfig, TrainConfig
from skipnets.training.distillation import Teacher
from skipnets.training.losses import known_mean
from skipnets.training.mixing import make_target_mix
from skipnets.training.own_measures import integer_labels, of_known
from skipnets.training.task import Batch, ClassificationTask, Loss

__all__ = ["AsymmetricLoss", "LabelLoss", "MultiLabelTask", "fit_thresholds", "with_label_defaults"]

_BEST_BY = ("average-precision", "auroc", "loss")
_LOSSES_OF_CLASSES = ("cross-entropy", "focal")


def with_label_defaults(config: TrainConfig, dataset: ImageDataset) -> TrainConfig:
    """Fill in what several labels an image change among the options, and refuse what they cannot have.

    Args:
        config: As the user gave it.
        dataset: The data set with its splits.

    Raises:
        UserError: An option is for the other task, or the validation images do not show a good epoch.
    """
    if not dataset.multi_label:
        for name in ("loss", "threshold"):
            if getattr(config, name) not in (None, *_LOSSES_OF_CLASSES):
                raise UserError(
                    f"{name}={getattr(config, name)}: must be given with several labels an image alone; "
                    "these data have one (task=multi-label reads them as several)"
                )
        if config.best_by in ("average-precision", "auroc"):
            raise UserError(f"best_by={config.best_by}: must be accuracy, balanced-accuracy or loss")
        return config
    if config.loss in _LOSSES_OF_CLASSES:
        raise UserError(f"loss={config.loss}: must be bce or asymmetric with several labels an image")
    if config.imbalance == "balanced-sampling":
        raise UserError(
            "imbalance=balanced-sampling: images with several labels are of no one class; weighted-loss "
            "weighs the images that have a label up to those that do not"
        )
    if config.best_by is not None and config.best_by not in _BEST_BY:
        raise UserError(f"best_by={config.best_by}: must be one of {', '.join(_BEST_BY)}")
    if config.loss == "asymmetric":
        for name, off in (("label_smoothing", (None, 0.0)), ("imbalance", (None, "none"))):
            if getattr(config, name) not in off:
                raise UserError(f"{name}={getattr(config, name)}: must not be given with loss=asymmetric")
    ThresholdRule.parse(config.threshold or "f1")
    best_by = config.best_by or "average-precision"
    labels = dataset.split("val").labels
    if best_by != "loss" and not ((labels == 1).any(0) & (labels == 0).any(0)).any():
        raise UserError(
            f"best_by={best_by}: no label is present in some validation images and absent in others, so no "
            "epoch is better than another; more validation images, or best_by=loss"
        )
    if not np.isfinite(labels).any():
        raise UserError(
            "best_by=loss: no label is known of any validation image, so there is no loss of them"
        )
    if not np.isfinite(dataset.split("train").labels).any():
        raise UserError(
            f"{config.data}: no label is known of any training image, so there is nothing to learn"
        )
    defaults: dict[str, Any] = {"label_smoothing": 0.0, "loss": "bce", "threshold": "f1"}
    missing = {name: value for name, value in defaults.items() if getattr(config, name) is None}
    return dataclasses.replace(config, task="multi-label", best_by=best_by, **missing)


class LabelLoss(nn.Module):
    """Binary cross-entropy of the labels that are known.

    Args:
        positive_weights: (K,) weights of images that have a label; None weighs them like those that do not.
        smoothing: Fraction of a target that is moved to one half.
    """

    positive_weights: Tensor | None

    def __init__(self, positive_weights: Tensor | None = None, smoothing: float = 0.0) -> None:
        super().__init__()
        self.register_buffer("positive_weights", positive_weights, persistent=False)
        self.smoothing = smoothing

    @override
    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        """(N, K) logits and targets (1, 0, or NaN for unknown) → the mean over the known pairs."""
        known = torch.isfinite(targets)
        smooth = targets.nan_to_num() * (1 - self.smoothing) + self.smoothing / 2
        losses = F.binary_cross_entropy_with_logits(
            logits, smooth.to(logits.dtype), pos_weight=self.positive_weights, reduction="none"
        )
        return known_mean(losses, known)


class AsymmetricLoss(nn.Module):
    """Binary cross-entropy that counts easy negatives less, of which images with many labels have most.

    Source: Ridnik et al. 2021, arXiv 2009.14119, equations 4 to 7.

    Args:
        gamma_positive: Focusing parameter of labels that are present.
        gamma_negative: Focusing parameter of labels that are absent.
        margin: Labels that are absent and have a lower probability count nothing.
    """

    def __init__(
        self, *, gamma_positive: float = 1.0, gamma_negative: float = 4.0, margin: float = 0.05
    ) -> None:
        super().__init__()
        self.gamma_positive = gamma_positive
        self.gamma_negative = gamma_negative
        self.margin = margin

    @override
    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        """(N, K) logits and targets (1, 0, or NaN for unknown) → the mean over the known pairs."""
        known = torch.isfinite(targets)
        scores = logits.float()
        probability = scores.sigmoid()
        shifted = (probability - self.margin).clamp(min=0)
        present = (1 - probability) ** self.gamma_positive * F.logsigmoid(scores)
        # Without a margin, log(1 - p) is exact where p is rounded to 1.
        log_absent = F.logsigmoid(-scores) if self.margin == 0 else torch.log1p(-shifted)
        absent = shifted**self.gamma_negative * log_absent
        return known_mean(-torch.where(targets == 1, present, absent), known)


class LabelScores(Metric):
    """Collects logits and labels of validation images, and computes AUROC and average precision."""

    full_state_update = False

    def __init__(self) -> None:
        super().__init__()
        self.add_state("logits", default=[], dist_reduce_fx="cat")
        self.add_state("labels", default=[], dist_reduce_fx="cat")

    @override
    def update(self, logits: Tensor, labels: Tensor) -> None:
        """Take a batch, (N, K) of each."""
        self.logits.append(logits.float())  # type: ignore[union-attr, operator]
        self.labels.append(labels.float())  # type: ignore[union-attr, operator]

    @override
    def compute(self) -> dict[str, float]:
        """The metrics of an epoch; see `skipnets.training.run.Row`."""
        logits, labels = (dim_zero_cat(each).cpu().numpy() for each in (self.logits, self.labels))  # type: ignore[arg-type]
        rankings = ranking_metrics(logits, labels)
        right, known = (logits >= 0) == (labels == 1), np.isfinite(labels)
        recalls = np.stack(
            [ratio((right & of_value).sum(0), of_value.sum(0)) for of_value in (labels == 0, labels == 1)]
        )
        return {
            "val_accuracy": float(right[known].mean()) if known.any() else 0.0,
            "val_balanced_accuracy": defined_mean(recalls),
            "val_average_precision": defined_mean(rankings["average_precision"]),
            "val_auroc": defined_mean(rankings["auroc"]),
        }


class MultiLabelTask(ClassificationTask):
    """Trains a model on (images, labels) with any number of labels an image; unknown ones count nothing.

    Args:
        model: The network, with K outputs.
        config: What `prepare` resolved.
        positive_weights: (K,) weights of images that have a label; None weighs them alike.
        teacher: Another classifier of the same labels that it learns from as well.
        loss: Another training loss, of logits and labels (N, K), NaN where unknown; see `own_measures`.
        metrics: Further metrics of the validation images, of probabilities (N, K) and whole labels (N, K), -1
            where unknown.
    """

    def __init__(
        self,
        model: Backbone[Any],
        config: ResolvedConfig,
        positive_weights: Tensor | None = None,
        *,
        teacher: Teacher | None = None,
        loss: Loss | None = None,
        metrics: Mapping[str, Metric] | None = None,
    ) -> None:
        own = None if loss is None else of_known(loss, model.num_classes)
        super().__init__(model, config, teacher=teacher, loss=own, metrics=metrics)
        self.mix = make_target_mix(mixup=config.mixup, cutmix=config.cutmix)
        self.label_loss = (
            AsymmetricLoss()
            if config.loss == "asymmetric"
            else LabelLoss(positive_weights, config.label_smoothing)
        )
        if own is None:
            self.loss = self.label_loss
        self.scores = LabelScores()
        further = {name: self.validation_metrics[name] for name in self.further}
        self.validation_metrics = {"val_loss": MeanMetric(nan_strategy="disable"), **further}
        self.metrics = nn.ModuleList([*self.validation_metrics.values(), self.scores])

    @override
    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The loss of one batch, with mixed images where the configuration mixes."""
        pixels, labels, _ = batch
        images = self.normalize(pixels)
        loss: Tensor
        if self.mix is None:
            logits = self(images)
            loss = self.loss(logits, labels)
        else:
            images, mixed = self.mix(images, labels)
            logits = self(images)
            loss, labels = mixed.loss(self.loss, logits), mixed.larger
        if self.teacher is not None:
            loss = self.teacher.blended(loss, images, logits)
        # The recipes' rates are made for cross-entropy, the likelihood of an image's class: so what is
        # minimized is the likelihood of all labels of an image, not of one.
        minimized = loss * labels.shape[1]
        known = torch.isfinite(labels)
        right = ((logits.detach() >= 0) == (labels == 1)) & known
        share = right.sum() / known.sum().clamp(min=1)
        self.training_sums.add(loss.detach() * len(labels), share * len(labels), images=len(labels))
        return minimized

    @override
    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Collect one batch of validation images; its loss has neither smoothing nor weights."""
        pixels, labels, _ = batch
        logits = self(self.normalize(pixels)).float()
        # One loss a pair: without its check for NaN, MeanMetric ignores the weights of batches.
        losses = F.binary_cross_entropy_with_logits(logits, labels.nan_to_num(), reduction="none")
        if len(of_known := losses[torch.isfinite(labels)]):
            self.validation_metrics["val_loss"].update(of_known)
        self.scores.update(logits, labels)
        self.measure_further(logits.sigmoid(), integer_labels(labels))

    @override
    def on_validation_epoch_end(self) -> None:
        """Compute the metrics over the images of all devices."""
        super().on_validation_epoch_end()
        for name, value in self.scores.compute().items():
            self.log(name, value)
        self.scores.reset()


def positive_weights(labels: NDArray[np.float32]) -> Tensor:
    """(K,) weights by which the images that have a label weigh as much as those that do not.

    Args:
        labels: (N, K), NaN where unknown.
    """
    present, absent = (labels == 1).sum(0), (labels == 0).sum(0)
    both = (present > 0) & (absent > 0)
    return torch.from_numpy(np.where(both, absent / np.maximum(present, 1), 1).astype(np.float32))


def fit_thresholds(
    classifier: Classifier, dataset: ImageDataset, rule: ThresholdRule, *, batch_size: int
) -> str | None:
    """Choose the thresholds of a classifier's labels on validation images.

    Args:
        classifier: Gets the thresholds, and an entry "thresholds" in its provenance.
        dataset: With its splits.
        rule: How they are chosen.
        batch_size: Images per forward pass.

    Returns:
        What is to be said of labels without a threshold of their own; None if all have one.
    """
    evaluation = evaluate(classifier, dataset, split="val", batch_size=batch_size)
    assert isinstance(evaluation, MultiLabelEvaluation)
    thresholds, undefined = choose_thresholds(
        evaluation.probabilities, evaluation.labels, rule, classifier.classes
    )
    classifier.thresholds = thresholds
    classifier.provenance["thresholds"] = {
        "rule": str(rule),
        "split": "val",
        "images": len(evaluation.names),
        "undefined": undefined,
    }
    if not undefined:
        return None
    return (
        f"the threshold of {listed(undefined)} is 0.5: no validation image is known to have it, or every one "
        "does, so there is nothing to choose it by"
    )
