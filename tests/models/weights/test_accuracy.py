"""Published accuracies, and where they come from."""

from __future__ import annotations

import pytest

from skipnets.models import list_models
from skipnets.models.weights.accuracy import published_accuracy


def test_torchvision_s_best_weights_are_named() -> None:
    """Its documentation: 80.858 for IMAGENET1K_V2, against 76.130 for V1."""
    found = published_accuracy("resnet50")
    assert found is not None
    assert (found.top1, found.weights) == (80.858, "IMAGENET1K_V2")
    assert found.source.startswith("torchvision ")


@pytest.mark.parametrize("name", list_models(pretrained=True))
def test_every_model_with_weights_has_an_accuracy(name: str) -> None:
    found = published_accuracy(name)
    assert found is not None
    assert 60 < found.top1 < 90


def test_rdnet_s_are_the_authors() -> None:
    """The table in their repository: 82.8 % for the tiny to 84.8 % for the large."""
    found = [published_accuracy(name) for name in list_models("rdnet_*")]
    assert [each.top1 for each in found if each is not None] == [82.8, 83.7, 84.4, 84.8]
    assert published_accuracy("resnet20") is None


def test_the_better_of_torchvision_s_and_timm_s_is_named() -> None:
    found = published_accuracy("resnet152")
    assert found is not None
    assert (found.top1, found.weights) == (82.818, "hf-hub:timm/resnet152.a1h_in1k")
    found = published_accuracy("resnetv2_50")
    assert found is not None
    assert (found.top1, found.weights) == (80.41, "hf-hub:timm/resnetv2_50.a1h_in1k")
