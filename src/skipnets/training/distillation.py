"""Distillation: a network learns from the probabilities of another one as well as from labels.

Hinton, Vinyals, Dean: Distilling the Knowledge in a Neural Network, 2015 (arXiv 1503.02531).

Shapes: N batch, C channels, H height, W width, K classes.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor

from skipnets.classifier import Classifier, load
from skipnets.data.preprocessing import Preprocessing
from skipnets.errors import UserError, listed, naming
from skipnets.models.modes import evaluating

__all__ = ["Teacher", "divergence"]


class Teacher:
    """A trained classifier, from whose logits a network learns. Its weights do not change.

    No module, so that its weights are in no checkpoint.

    Args:
        classifier: It runs in PyTorch.
        classes: The network's, in the order of its logits; the teacher has the same in any order.
        preprocessing: The network's; the teacher's may have another size and other normalization.
        temperature: T: above 1, smaller probabilities count more.
        share: α, the share of the loss that is the teacher's.

    Raises:
        UserError: If it has other classes, reads other images, or finds several labels in one.
    """

    def __init__(
        self,
        classifier: Classifier,
        *,
        classes: Sequence[str],
        preprocessing: Preprocessing,
        temperature: float,
        share: float,
    ) -> None:
        name = classifier.path or "the teacher"
        if classifier.task != "single-label":
            has = "numbers" if classifier.task == "regression" else "several labels"
            raise UserError(f"teacher={name}: must have one class an image, not {has}")
        if set(classifier.classes) != set(classes):
            differing = sorted(set(classifier.classes) ^ set(classes))
            raise UserError(
                f"teacher={name}: must have the classes of the images, not others: {listed(differing)}"
            )
        for field in ("channels", "window", "bits"):
            its, ours = getattr(classifier.preprocessing, field), getattr(preprocessing, field)
            if its != ours:
                raise UserError(
                    f"teacher={name}: must read images as the run does, with {field} {ours}, not {its}"
                )
        self.temperature = temperature
        self.share = share
        self._classifier = classifier
        self._order = [classifier.classes.index(label) for label in classes]
        self._size = classifier.preprocessing.size
        self._resizes = classifier.preprocessing.size != preprocessing.size
        self._student, self._own = (
            _normalization(each) for each in (preprocessing, classifier.preprocessing)
        )

    @classmethod
    def from_file(
        cls,
        path: str | os.PathLike[str],
        *,
        classes: Sequence[str],
        preprocessing: Preprocessing,
        temperature: float,
        share: float,
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
        )

    def logits(self, images: Tensor) -> Tensor:
        """(N, C, H, W) images, normalized as the network reads them → (N, K) float32, in the network's order.

        Of an ensemble, the logarithms of its mean probabilities.
        """
        with torch.no_grad():
            mean, std = (value.to(images) for value in self._student)
            own_mean, own_std = (value.to(images) for value in self._own)
            pixels = images * std + mean
            if self._resizes:
                pixels = F.interpolate(pixels, self._size, mode="bilinear", antialias=True)
            batch = (pixels - own_mean) / own_std
            outputs = []
            for member in self._classifier.members:
                network = member.model.to(batch.device)
                with evaluating(network):
                    outputs.append(network(batch).float())
            if len(outputs) == 1:
                return outputs[0][:, self._order]
            probabilities = torch.stack([output.softmax(1) for output in outputs]).mean(0)
            return probabilities.clamp(min=torch.finfo(torch.float32).tiny).log()[:, self._order]

    def blended(self, loss: Tensor, images: Tensor, logits: Tensor) -> Tensor:
        """(1 − α)·loss + α·T²·KL(teacher ‖ network); T² keeps the gradients of both of one size.

        Args:
            loss: On the labels.
            images: (N, C, H, W) that the network saw, normalized.
            logits: (N, K) that it computed.
        """
        from_teacher = divergence(logits, self.logits(images), self.temperature)
        return torch.lerp(loss, self.temperature**2 * from_teacher.to(loss.dtype), self.share)


def divergence(logits: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """KL(softmax(teacher / T) ‖ softmax(logits / T)), the mean over the images: (N, K) twice → ()."""
    return F.kl_div(
        (logits.float() / temperature).log_softmax(1),
        (teacher.float() / temperature).log_softmax(1),
        reduction="batchmean",
        log_target=True,
    )


def _normalization(preprocessing: Preprocessing) -> tuple[Tensor, Tensor]:
    """(1, C, 1, 1) mean and standard deviation."""
    mean, std = (torch.tensor(values).view(1, -1, 1, 1) for values in (preprocessing.mean, preprocessing.std))
    return mean, std
