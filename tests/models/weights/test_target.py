"""What fits where: the first convolution and the head can be adapted, nothing else."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from skipnets.models.weights.target import Target


def test_the_stem_and_the_head_are_found(make: Callable[..., torch.nn.Module]) -> None:
    model = make()
    target = Target.of(model)
    convolutions = [name for name, tensor in model.state_dict().items() if tensor.ndim == 4]
    linear = [name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)]
    assert target.stem == convolutions[0]
    assert target.head_names == (f"{linear[0]}.weight", f"{linear[0]}.bias")
    assert target.num_classes == 5


def test_a_model_without_a_head_says_where_one_would_be(make: Callable[..., torch.nn.Module]) -> None:
    target = Target.of(make(num_classes=0))
    assert target.num_classes == 0
    assert target.head == Target.of(make()).head
    assert target.head_names[0] not in target.tensors


def test_a_backbone_needs_all_but_the_head(make: Callable[..., torch.nn.Module]) -> None:
    target = Target.of(make())
    backbone = target.without_head()
    assert backbone.tensors.keys() == Target.of(make(num_classes=0)).tensors.keys()
    assert (backbone.num_classes, target.num_classes) == (0, 5)


@pytest.mark.parametrize(
    ("change", "stem", "head", "inner"),
    [
        ((0, 0), True, True, True),
        ((0, 1), False, True, False),  # other outputs: another number of classes
        ((1, 1), True, False, False),  # other inputs: another number of channels
        ((2, 2), False, False, False),
    ],
)
def test_shapes(
    change: tuple[int, int], stem: bool, head: bool, inner: bool, make: Callable[..., torch.nn.Module]
) -> None:
    target = Target.of(make())
    dimension, added = change
    convolutions = [name for name, tensor in target.tensors.items() if tensor.ndim == 4]
    for name, fits in ((target.stem, stem), (target.head_names[0], head), (convolutions[-1], inner)):
        shape = list(target.tensors[name].shape)
        if dimension < len(shape):
            shape[dimension] += added
        else:
            shape.append(1)
        assert target.fits(name, tuple(shape)) is fits, name
        shape[0] = 0
        assert not target.fits(name, tuple(shape))
