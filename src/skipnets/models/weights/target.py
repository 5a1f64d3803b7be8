"""The tensors that a model needs, and the error for a source that does not have them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from skipnets.models.backbone import Backbone
from skipnets.models.family import network_graph


class NoMatchError(Exception):
    """A source's tensors cannot be matched with a model's; `load_weights` raises a UserError from it."""


class AmbiguousMatchError(NoMatchError):
    """Several matches are possible."""


@dataclass(frozen=True, kw_only=True)
class Target:
    """The tensors that a model needs.

    Args:
        tensors: The model's state dict.
        stem: The name of the first convolution's weight (O, C, height, width).
        head: Path of the head's linear layer, which a model with 0 classes does not have.
        num_classes: Outputs of the head; 0 for a model without one.
    """

    tensors: dict[str, Tensor]
    stem: str
    head: str
    num_classes: int

    @classmethod
    def of(cls, model: Backbone[Any]) -> Target:
        """The target for a model."""
        return cls(
            tensors=dict(model.state_dict()),
            stem=f"{network_graph(model.config).first_convolution.name}.weight",
            head=model.head_name,
            num_classes=model.num_classes,
        )

    @property
    def head_names(self) -> tuple[str, str]:
        """The head's weight and bias."""
        return f"{self.head}.weight", f"{self.head}.bias"

    def without_head(self) -> Target:
        """The same without the head: what a source of a backbone alone has."""
        tensors = {name: tensor for name, tensor in self.tensors.items() if name not in self.head_names}
        return replace(self, tensors=tensors, num_classes=0)

    def fits(self, name: str, shape: torch.Size | tuple[int, ...]) -> bool:
        """Whether a tensor of this shape can become `name`, adapted if that is the stem or the head."""
        wanted, shape = tuple(self.tensors[name].shape), tuple(shape)
        if len(shape) != len(wanted) or 0 in shape:
            return False
        if name == self.stem:
            return shape[0] == wanted[0] and shape[2:] == wanted[2:]
        if name in self.head_names:
            return shape[1:] == wanted[1:]
        return shape == wanted
