"""Training losses by name.

Shapes: N batch, K classes.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import override

from skipnets.training.config import TrainConfig

__all__ = ["FocalLoss", "known_mean", "named_loss"]


class FocalLoss(nn.Module):
    """Cross-entropy in which images that are already classified well count less (arXiv 1708.02002).

    −Σ_k w_k t_k (1 − p_k)^γ log p_k, for softmax probabilities p and targets t, the mean over the images.
    Lin et al. define it for two classes; this is the usual form for K.

    Args:
        gamma: γ: how much less; 0 is cross-entropy.
        weight: (K,) weights of the classes; None weighs them alike.
        label_smoothing: Share of the targets that is spread over all classes.
    """

    weight: Tensor | None

    def __init__(
        self, gamma: float = 2.0, *, weight: Tensor | None = None, label_smoothing: float = 0.0
    ) -> None:
        super().__init__()
        self.gamma = gamma
        self.label_smoothing = label_smoothing
        self.register_buffer("weight", weight, persistent=False)

    @override
    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Logits (N, K) and labels (N,) or shares (N, K) → the mean loss.

        With class weights, as in PyTorch's cross-entropy, it is the weighted mean for labels.
        """
        logits = logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits
        shares = F.one_hot(targets, logits.shape[1]).to(logits.dtype) if targets.ndim == 1 else targets
        smoothed = shares * (1 - self.label_smoothing) + self.label_smoothing / logits.shape[1]
        log_probabilities = logits.log_softmax(1)
        terms = smoothed * (1 - log_probabilities.exp()).pow(self.gamma) * log_probabilities
        if self.weight is None:
            return -terms.sum(1).mean()
        losses = -(terms * self.weight).sum(1)
        return losses.sum() / self.weight[targets].sum() if targets.ndim == 1 else losses.mean()


def known_mean(losses: Tensor, known: Tensor) -> Tensor:
    """The mean over what is known; 0 where nothing is.

    Args:
        losses: (N, K) of each pair of an image and a label or target.
        known: (N, K).
    """
    return torch.where(known, losses, 0).sum() / known.sum().clamp(min=1)


def named_loss(config: TrainConfig, weight: Tensor | None) -> nn.Module:
    """The loss that a configuration names, of logits (N, K) and labels (N,) or shares (N, K).

    Args:
        config: With a recipe's values.
        weight: (K,) weights of the classes; None weighs them alike.
    """
    smoothing = config.label_smoothing or 0.0
    if config.loss == "focal":
        return FocalLoss(config.focal_gamma, weight=weight, label_smoothing=smoothing)
    return nn.CrossEntropyLoss(weight, label_smoothing=smoothing)
