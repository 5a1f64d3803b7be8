"""What Lightning's Trainer drives: one step of training, one of validation, the optimizer.

Shapes: N batch, C channels, H height, W width, K classes.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer
from torchmetrics import MeanMetric, Metric
from torchmetrics.classification import MulticlassAccuracy, MulticlassStatScores
from typing_extensions import override

from skipnets.errors import UserError
from skipnets.models.backbone import Backbone
from skipnets.models.family import stage_groups
from skipnets.training.config import ResolvedConfig
from skipnets.training.distillation import Teacher
from skipnets.training.losses import named_loss
from skipnets.training.mixing import make_mix, mixed_batch
from skipnets.training.optimization import (
    layerwise_groups,
    make_optimizer,
    parameter_groups,
    schedule_of_run,
    with_bias_rate,
)

# Images (N, C, H, W) from 0 to 255, uint8 or float32; labels (N,); positions in the split (N,).
Batch = tuple[Tensor, Tensor, Tensor]
Loss = Callable[[Tensor, Tensor], Tensor]
"""Logits (N, K) and labels (N,), or with MixUp and CutMix shares (N, K), → the mean loss.

With several labels an image, logits and labels (N, K) of 1, 0 and NaN for unknown ones; with numbers, scaled
outputs and targets (N, K), NaN for unknown ones.
"""


class TrainingSums:
    """Sums loss and correct predictions over an epoch's training images, and divides once.

    Lightning's own epoch means cost a CPU about a millisecond a step: a tenth of that of a small network.

    Attributes:
        sums: (2,) of losses and of correct predictions, where training runs; None before the first batch.
        images: How many images they are of.
    """

    def __init__(self) -> None:
        self.sums: Tensor | None = None
        self.images = 0

    def add(self, loss: Tensor, correct: Tensor, *, images: int) -> None:
        """Count a batch.

        Args:
            loss: Its sum over the images.
            correct: How many predictions are right.
            images: Number of images.
        """
        # Sums of many images need more digits than the loss of a batch in half precision has.
        wide = torch.promote_types(loss.dtype, torch.float32)
        batch = torch.stack([loss.to(wide), correct.to(wide)])
        self.sums = batch if self.sums is None else self.sums + batch
        self.images += images

    def take(self, reduce: Callable[..., Any]) -> dict[str, Tensor]:
        """The means over all processes, `train_loss` and `train_accuracy`; the sums start anew.

        Args:
            reduce: Sums a tensor over the processes (a Lightning strategy's).
        """
        assert self.sums is not None
        totals = reduce(torch.cat([self.sums, self.sums.new_tensor([self.images])]), reduce_op="sum")
        self.sums, self.images = None, 0
        return {"train_loss": totals[0] / totals[2], "train_accuracy": totals[1] / totals[2]}


class BalancedAccuracy(MulticlassStatScores):
    """Mean recall of the classes that occur, as scikit-learn has it.

    torchmetrics' own mean counts a class that does not occur as 0 where it is predicted.

    Args:
        classes: Their number.
    """

    def __init__(self, classes: int) -> None:
        super().__init__(classes, average="none", validate_args=False)

    @override
    def compute(self) -> Tensor:
        """The mean so far; NaN before the first image."""
        scores = super().compute()
        right, images = scores[:, 0], scores[:, 4]
        occurs = images > 0
        return (right[occurs] / images[occurs]).mean()


class ClassificationTask(pl.LightningModule):
    """Trains a model on (images, labels) and measures it on validation images.

    Args:
        model: The network, with K outputs.
        config: What `prepare` resolved.
        class_weights: (K,) weights of the classes in the training loss; None weighs them alike.
        teacher: Another classifier that it learns from as well.
        loss: Another training loss, of logits (N, K) and labels (N,) or mixed shares (N, K).
        metrics: Further metrics of the validation images, of logits (N, K) and labels (N,); logged as
            `val_NAME`.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        model: Backbone[Any],
        config: ResolvedConfig,
        class_weights: Tensor | None = None,
        *,
        teacher: Teacher | None = None,
        loss: Loss | None = None,
        metrics: Mapping[str, Metric] | None = None,
    ) -> None:
        super().__init__()
        self.model = model
        self.config = config
        self.plan: Sequence[tuple[int, int]] = config.epoch_plan
        self.layout = torch.channels_last if config.channels_last else torch.contiguous_format
        self.model.to(memory_format=self.layout)
        self.loss = _as_module(loss or named_loss(config, class_weights))
        self.teacher = teacher
        self.mix = make_mix(model.num_classes, mixup=config.mixup, cutmix=config.cutmix)
        channel = (1, -1, *[1] * len(config.size))
        self.register_buffer("mean", torch.tensor(config.mean).view(channel), persistent=False)
        self.register_buffer("std", torch.tensor(config.std).view(channel), persistent=False)
        self.frozen = freeze_stages(model, config.freeze)
        self.validation_metrics: dict[str, Metric] = {
            "val_loss": MeanMetric(nan_strategy="disable"),
            "val_accuracy": MulticlassAccuracy(model.num_classes, average="micro", validate_args=False),
            "val_balanced_accuracy": BalancedAccuracy(model.num_classes),
        }
        self.further = [f"val_{name}" for name in metrics or {}]
        self.validation_metrics |= {f"val_{name}": metric for name, metric in (metrics or {}).items()}
        self.metrics = nn.ModuleList(self.validation_metrics.values())
        self.gradient_norms: list[Tensor] = []
        self.training_sums = TrainingSums()
        self.train()

    @property
    def guessing_loss(self) -> float:
        """The loss of one who knows nothing of the images."""
        return math.log(self.model.num_classes)

    def change_plan(self, plan: Sequence[tuple[int, int]]) -> None:
        """Let the learning rate follow another number of epochs; see `schedule_plan.progress`."""
        self.plan = plan

    @override
    def train(self, mode: bool = True) -> ClassificationTask:
        """As in every module, but frozen stages keep their statistics."""
        super().train(mode)
        for stage in self.frozen:
            stage.eval()
        return self

    @override
    def forward(self, images: Tensor) -> Tensor:
        """(N, C, H, W) normalized images → logits (N, K)."""
        logits: Tensor = self.model(images)
        return logits

    def normalize(self, images: Tensor) -> Tensor:
        """(N, C, H, W) from 0 to 255 → normalized, on the device that trains: bytes travel there as bytes."""
        normal = images.to(self.mean.dtype, memory_format=self.layout, copy=True)
        return normal.div_(255).sub_(self.mean).div_(self.std)

    @override
    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The loss of one batch, with mixed images where the recipe mixes."""
        pixels, labels, _ = batch
        images, targets = self.normalize(pixels), labels
        if self.mix is not None:
            images, targets = mixed_batch(self.mix, images, labels)
        logits = self(images)
        loss: Tensor = self.loss(logits, targets)
        if self.teacher is not None:
            loss = self.teacher.blended(loss, images, logits)
        shown = targets if targets.ndim == 1 else targets.argmax(1)
        correct = (logits.detach().argmax(1) == shown).sum()
        self.training_sums.add(loss.detach() * len(labels), correct, images=len(labels))
        return loss

    @override
    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Count one batch of validation images; its loss has neither smoothing nor weights."""
        pixels, labels, _ = batch
        logits = self(self.normalize(pixels)).float()
        # One loss an image: without its check for NaN, MeanMetric ignores the weights of batches.
        self.validation_metrics["val_loss"].update(F.cross_entropy(logits, labels, reduction="none"))
        self.validation_metrics["val_accuracy"].update(logits, labels)
        self.validation_metrics["val_balanced_accuracy"].update(logits, labels)
        self.measure_further(logits, labels)

    def measure_further(self, outputs: Tensor, targets: Tensor) -> None:
        """Update the metrics that a program added."""
        for name in self.further:
            self.validation_metrics[name].update(outputs, targets)

    @override
    def on_validation_epoch_end(self) -> None:
        """Divide the counts of all devices once; those of the epoch's training images, too."""
        if self.training_sums.images:
            for name, mean in self.training_sums.take(self.trainer.strategy.reduce).items():
                self.log(name, mean)
        for name, metric in self.validation_metrics.items():
            value = metric.compute()
            if isinstance(value, Tensor) and value.numel() > 1:
                value = value.float().mean()  # of metrics without an average, such as one for each class
            self.log(name, value, sync_dist=True)
            metric.reset()

    @override
    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: int | float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Shorten the gradient to the recipe's norm, and keep the norm that it had.

        Lightning refuses to with a fused optimizer, which may unscale by itself: ours is fused only where
        nothing is scaled.
        """
        if gradient_clip_val:
            norm = nn.utils.clip_grad_norm_(self._every_parameter, gradient_clip_val)
        else:
            gradients = (parameter.grad for parameter in self._every_parameter)
            norm = nn.utils.get_total_norm([gradient for gradient in gradients if gradient is not None])
        self.gradient_norms.append(norm.detach())

    @functools.cached_property
    def _every_parameter(self) -> list[nn.Parameter]:
        """Those of the network, listed once: going through its modules in every step takes a millisecond."""
        return list(self.parameters())

    def take_gradient_norm(self) -> float | None:
        """Mean of the gradient's norm over the steps since the last call; None without any finite one.

        Under a gradient scaler, steps with an infinite gradient are skipped.
        """
        norms, self.gradient_norms = self.gradient_norms, []
        if not norms:
            return None
        finite = torch.stack(norms)
        finite = finite[torch.isfinite(finite)]
        return float(finite.mean()) if len(finite) else None

    @override
    def configure_optimizers(self) -> Any:
        """The recipe's optimizer and schedule; the rate changes with every step."""
        config = self.config
        decay: dict[str, Any] = {"decay_norm_and_bias": config.decay_norm_and_bias}
        if config.layer_decay < 1:
            decay |= {"lr": config.lr, "layer_decay": config.layer_decay}
            groups = layerwise_groups(self.model, config.weight_decay, **decay)
        else:
            groups = parameter_groups(self.model, config.weight_decay, **decay)
        if config.bias_lr != 1:
            groups = with_bias_rate(groups, self.model, lr=config.lr, multiple=config.bias_lr)
        groups = [*groups, *self._groups_of_loss(decay["decay_norm_and_bias"])]
        optimizer = make_optimizer(
            config.optimizer,
            groups,
            lr=config.lr,
            momentum=config.momentum,
            nesterov=config.nesterov,
            fused=config.precision != "16-mixed",
        )
        steps_per_epoch = max(int(self.trainer.estimated_stepping_batches) // config.epochs, 1)
        schedule = schedule_of_run(optimizer, config, steps_per_epoch=steps_per_epoch, plan=lambda: self.plan)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def _groups_of_loss(self, decay_norm_and_bias: bool) -> list[dict[str, Any]]:
        """Parameters that a program's loss has of its own, such as the centers of classes."""
        shared = {id(parameter) for parameter in self.model.parameters()}
        own = nn.ParameterList(each for each in self.loss.parameters() if id(each) not in shared)
        return parameter_groups(own, self.config.weight_decay, decay_norm_and_bias=decay_norm_and_bias)


class _FunctionLoss(nn.Module):
    """A loss that is a function."""

    def __init__(self, function: Loss) -> None:
        super().__init__()
        self.function = function

    @override
    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        return self.function(logits, targets)


def _as_module(loss: Loss) -> nn.Module:
    return loss if isinstance(loss, nn.Module) else _FunctionLoss(loss)


def freeze_stages(model: Backbone[Any], count: int) -> list[nn.Module]:
    """Fix the parameters of the first stages.

    Args:
        model: Its stem counts as the first stage.
        count: How many of them.

    Returns:
        The modules in which parameters were fixed, to be kept in eval mode.
    """
    if not count:
        return []
    groups, modules = stage_groups(model.config), dict(model.named_stages())
    if count > len(groups):
        raise UserError(
            f"freeze={count}: must be at most {len(groups)}, the stages of {model.config.name} with its stem"
        )
    frozen = [modules[path] for group in groups[:count] for path in group]
    for module in frozen:
        module.requires_grad_(False)
    return frozen
