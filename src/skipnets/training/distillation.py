"""Distillation: a network learns from the probabilities or numbers of another one as well as from labels.

Hinton, Vinyals, Dean: Distilling the Knowledge in a Neural Network, 2015 (arXiv 1503.02531).

Shapes: N batch, C channels, H height, W width, K classes, labels or targets; of signals (N, C, L), of volumes
(N, C, D, H, W).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor

from skipnets.axes import INPUTS, worded
from skipnets.classifier import Classifier, load
from skipnets.data.preprocessing import Preprocessing
from skipnets.description import Task
from skipnets.errors import UserError, listed, naming
from skipnets.models.modes import evaluating
from skipnets.scaling import TargetScale

__all__ = ["Teacher", "divergence", "label_divergence"]


_HAS: Mapping[Task, str] = {
    "single-label": "one class an image",
    "multi-label": "several labels an image",
    "regression": "numbers to predict",
}


class Teacher:
    """A trained classifier, from whose outputs a network of the same task learns. Its weights do not change.

    No module, so that its weights are in no checkpoint.

    Args:
        classifier: It runs in PyTorch.
        classes: The network's classes, labels or targets, in the order of its outputs; the teacher has the
            same in any order.
        preprocessing: The network's; the teacher's may have another size and other normalization.
        temperature: T: above 1, smaller probabilities count more. Of numbers it means nothing.
        share: α, the share of the loss that is the teacher's.
        task: The network's.
        scales: Of numbers, those of the network's targets.

    Raises:
        UserError: If it has other classes or another task, or reads other images, or signals or volumes.
    """

    def __init__(
        self,
        classifier: Classifier,
        *,
        classes: Sequence[str],
        preprocessing: Preprocessing,
        temperature: float,
        share: float,
        task: Task = "single-label",
        scales: Sequence[TargetScale] | None = None,
    ) -> None:
        name = classifier.path or "the teacher"
        its_input = classifier.preprocessing
        if its_input.dims != preprocessing.dims:
            raise UserError(
                f"teacher={name}: must take {INPUTS[preprocessing.dims]}, as the run does, not "
                f"{INPUTS[its_input.dims]}"
            )
        if classifier.task != task:
            wanted, found = (worded(_HAS[each], preprocessing.dims) for each in (task, classifier.task))
            raise UserError(f"teacher={name}: must have {wanted}, not {found}")
        if set(classifier.classes) != set(classes):
            differing = sorted(set(classifier.classes) ^ set(classes))
            noun = {"multi-label": "labels", "regression": "targets"}.get(task, "classes")
            raise UserError(
                f"teacher={name}: must have the {noun} of the {INPUTS[preprocessing.dims]}, not others: "
                f"{listed(differing)}"
            )
        for field in ("channels", "window", "bits"):
            its, ours = getattr(its_input, field), getattr(preprocessing, field)
            if its != ours:
                raise UserError(
                    f"teacher={name}: must read {INPUTS[preprocessing.dims]} as the run does, with {field} "
                    f"{ours}, not {its}"
                )
        self._size = its_input.size
        self._resizes = its_input.size != preprocessing.size
        if self._resizes and "center" in (its_input.fit, preprocessing.fit):
            raise UserError(
                f"teacher={name}: must have size {preprocessing.size}, not {its_input.size}, as fit=center "
                "keeps resolutions"
            )
        self.temperature = temperature
        self.share = share
        self._classifier = classifier
        self._order = [classifier.classes.index(label) for label in classes]
        self._scales = scales
        self._student, self._own = (_normalization(each) for each in (preprocessing, its_input))

    @classmethod
    def from_file(
        cls,
        path: str | os.PathLike[str],
        *,
        classes: Sequence[str],
        preprocessing: Preprocessing,
        temperature: float,
        share: float,
        task: Task = "single-label",
        scales: Sequence[TargetScale] | None = None,
    ) -> Self:
        """Load the teacher from a model file or a run folder."""
        with naming("teacher"):
            classifier = load(path, runtime="torch", device="cpu")
        return cls(
            classifier,
            classes=classes,
            preprocessing=preprocessing,
            temperature=temperature,
            share=share,
            task=task,
            scales=scales,
        )

    def outputs(self, images: Tensor) -> Tensor:
        """(N, C, H, W) images, normalized as the network reads them → (N, K) float32, in the network's order.

        Logits, or numbers as the network's targets are scaled. Of an ensemble, the logits of its mean
        probabilities, or its mean numbers.
        """
        with torch.no_grad():
            mean, std = (value.to(images) for value in self._student)
            own_mean, own_std = (value.to(images) for value in self._own)
            pixels = images * std + mean
            if self._resizes:
                pixels = _resized(pixels, self._size)
            batch = ((pixels - own_mean) / own_std).float()  # as its weights are, also in 64-true
            outputs = []
            for member in self._classifier.members:
                network = member.model.to(batch.device)
                with evaluating(network):
                    outputs.append(network(batch).float())
            joined = outputs[0] if len(outputs) == 1 else _AVERAGES[self._classifier.task](outputs)
            return self._rescaled(joined)[:, self._order]

    def _rescaled(self, outputs: Tensor) -> Tensor:
        """(N, T) numbers in the teacher's scales → in the network's; logits as they are."""
        its = self._classifier.scales
        if self._scales is None or its is None:
            return outputs
        ours = [self._scales[self._order.index(index)] for index in range(len(its))]
        factors = [own.std / scale.std for own, scale in zip(its, ours, strict=True)]
        shifts = [(own.mean - scale.mean) / scale.std for own, scale in zip(its, ours, strict=True)]
        return outputs * outputs.new_tensor(factors) + outputs.new_tensor(shifts)

    def blended(
        self,
        loss: Tensor,
        images: Tensor,
        outputs: Tensor,
        number_loss: Callable[[Tensor, Tensor], Tensor] | None = None,
    ) -> Tensor:
        """(1 − α)·loss + α·distance from the teacher's outputs.

        Of probabilities the distance is T²·KL(teacher ‖ network), of several labels the mean over the labels,
        also of those that are not known of an image; T² keeps the gradients of both of one size. Of numbers
        it is the loss itself, with the teacher's numbers as targets.

        Args:
            loss: On the labels.
            images: (N, C, H, W) that the network saw, normalized.
            outputs: (N, K) that it computed.
            number_loss: Of numbers, the loss of outputs and targets.
        """
        taught = self.outputs(images)
        if number_loss is not None:
            distance = number_loss(outputs, taught.to(outputs.dtype))
        else:
            of_task = label_divergence if self._classifier.task == "multi-label" else divergence
            distance = self.temperature**2 * of_task(outputs, taught, self.temperature)
        return torch.lerp(loss, distance.to(loss.dtype), self.share)


def divergence(logits: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """KL(softmax(teacher / T) ‖ softmax(logits / T)), the mean over the images: (N, K) twice → ()."""
    return F.kl_div(
        (logits.float() / temperature).log_softmax(1),
        (teacher.float() / temperature).log_softmax(1),
        reduction="batchmean",
        log_target=True,
    )


def label_divergence(logits: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """KL(σ(teacher / T) ‖ σ(logits / T)), the mean over images and labels: (N, K) twice → ()."""
    network, its = logits.float() / temperature, teacher.float() / temperature
    present = its.sigmoid() * (F.logsigmoid(its) - F.logsigmoid(network))
    absent = (-its).sigmoid() * (F.logsigmoid(-its) - F.logsigmoid(-network))
    return (present + absent).mean()


def _mean_of_classes(logits: Sequence[Tensor]) -> Tensor:
    """Logarithms of the mean of softmaxes."""
    probabilities = torch.stack([each.softmax(1) for each in logits]).mean(0)
    return probabilities.clamp(min=torch.finfo(torch.float32).tiny).log()


def _mean_of_labels(logits: Sequence[Tensor]) -> Tensor:
    """Log-odds of the mean of sigmoids."""
    stacked = torch.stack(list(logits))
    return F.logsigmoid(stacked).logsumexp(0) - F.logsigmoid(-stacked).logsumexp(0)


def _mean_of_numbers(numbers: Sequence[Tensor]) -> Tensor:
    return torch.stack(list(numbers)).mean(0)


_AVERAGES: Mapping[Task, Callable[[Sequence[Tensor]], Tensor]] = {
    "single-label": _mean_of_classes,
    "multi-label": _mean_of_labels,
    "regression": _mean_of_numbers,
}


def _normalization(preprocessing: Preprocessing) -> tuple[Tensor, Tensor]:
    """(1, C, 1, 1) mean and standard deviation."""
    shape = (1, -1, *[1] * preprocessing.dims)
    mean, std = (torch.tensor(values).view(shape) for values in (preprocessing.mean, preprocessing.std))
    return mean, std


def _resized(images: Tensor, size: Sequence[int]) -> Tensor:
    """(N, C, …) at another size: linearly and antialiased along each axis, as preprocessing does."""
    for axis, side in enumerate(size, 2):
        lines = images.movedim(axis, -1)
        planes = lines.flatten(2, -2) if lines.ndim > 3 else lines[:, :, None]
        resized = F.interpolate(planes, (planes.shape[2], side), mode="bilinear", antialias=True)
        images = resized.reshape(*lines.shape[:-1], side).movedim(-1, axis)
    return images
