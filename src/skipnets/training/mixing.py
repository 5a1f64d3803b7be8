"""MixUp and CutMix of a batch, also where an image has several labels or numbers, some of them unknown.

Zhang et al.: mixup, 2018 (arXiv 1710.09412). Yun et al.: CutMix, 2019 (arXiv 1905.04899).

Shapes: N batch, C channels, D depth, H height, W width, K classes, labels or targets.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torchvision import tv_tensors
from torchvision.transforms import v2
from typing_extensions import override

__all__ = ["MixedTargets", "TargetMix", "make_mix", "make_target_mix", "mixed_batch"]


def make_mix(classes: int | None, *, mixup: float, cutmix: float) -> nn.Module | None:
    """MixUp, CutMix, for each batch one of the two, or None.

    Args:
        classes: K; None where labels are given as shares already.
        mixup: Alpha of MixUp's beta distribution; 0 leaves it out.
        cutmix: Alpha of CutMix's.
    """
    mixes: list[nn.Module] = []
    if mixup > 0:
        mixes.append(v2.MixUp(alpha=mixup, num_classes=classes))
    if cutmix > 0:
        mixes.append(v2.CutMix(alpha=cutmix, num_classes=classes))
    if len(mixes) < 2:
        return mixes[0] if mixes else None
    choice: nn.Module = v2.RandomChoice(mixes)
    return choice


def mixed_batch(mix: nn.Module, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """The mixed images of a batch, and the shares of their labels.

    Args:
        mix: From `make_mix`.
        images: (N, C, H, W), or volumes (N, C, D, H, W), of which CutMix cuts boxes through the whole depth.
        labels: (N,) or, without classes, (N, K).
    """
    # Torchvision knows five axes as those of videos.
    given = images if images.ndim == 4 else tv_tensors.Video(images)
    mixed, shares = mix(given, labels)
    return mixed.as_subclass(Tensor), shares


def make_target_mix(*, mixup: float, cutmix: float) -> TargetMix | None:
    """As `make_mix`, for targets of which some may be unknown."""
    mix = make_mix(None, mixup=mixup, cutmix=cutmix)
    return None if mix is None else TargetMix(mix)


@dataclass(frozen=True, kw_only=True)
class MixedTargets:
    """The targets of images that are each a mixture of two.

    Attributes:
        first: (N, K) targets of one image of each mixture, NaN where unknown.
        second: (N, K) targets of the other one.
        share: λ, the share of the first; a tensor without axes.
    """

    first: Tensor
    second: Tensor
    share: Tensor

    def interpolated(self) -> MixedTargets:
        """With λ·first + (1 − λ)·second as both, where both are known: what numbers of a mixture are."""
        both = torch.isfinite(self.first) & torch.isfinite(self.second)
        between = torch.lerp(self.second, self.first, self.share.to(self.first.dtype))
        return replace(
            self,
            first=torch.where(both, between, self.first),
            second=torch.where(both, between, self.second),
        )

    def loss(self, loss: Callable[[Tensor, Tensor], Tensor], outputs: Tensor) -> Tensor:
        """λ·loss(outputs, first) + (1 − λ)·loss(outputs, second).

        A target that is known of one image alone counts as much as that image's share: both losses are means
        over the same number of known targets, those of the batch.

        Args:
            loss: Of outputs and targets; leaves out targets that are NaN.
            outputs: (N, K) of the mixed images.
        """
        of_first, of_second = loss(outputs, self.first), loss(outputs, self.second)
        return torch.lerp(of_second, of_first, self.share.to(of_first.dtype))

    @property
    def shares(self) -> Tensor:
        """(N, K) λ·first + (1 − λ)·second, what is unknown counted as 0: how much of each label."""
        return torch.lerp(self.second.nan_to_num(), self.first.nan_to_num(), self.share.to(self.first.dtype))

    @property
    def known(self) -> Tensor:
        """(N, K) what is known of the mixtures: λ·first + (1 − λ)·second, or the one that is known."""
        mixed = self.interpolated()
        return torch.where(torch.isfinite(mixed.first), mixed.first, mixed.second)

    @property
    def larger(self) -> Tensor:
        """(N, K) targets of the image that has the larger share."""
        return torch.where(self.share >= 0.5, self.first, self.second)


class TargetMix(nn.Module):
    """Mixes every image of a batch with another one, and keeps the targets of both.

    Args:
        mix: From `make_mix`, without classes.
    """

    def __init__(self, mix: nn.Module) -> None:
        super().__init__()
        self.mix = mix

    @override
    def forward(self, images: Tensor, targets: Tensor) -> tuple[Tensor, MixedTargets]:
        """(N, C, H, W) or (N, C, D, H, W), and (N, K) → the mixed images, and what they are mixed of."""
        # As classes, the positions in the batch come back as shares: which image went into which.
        mixed, shares = mixed_batch(self.mix, images, torch.eye(len(images), device=images.device))
        own = shares.diagonal()
        partner = (shares - torch.diag(own)).argmax(1)
        return mixed, MixedTargets(first=targets, second=targets[partner], share=own[0])
