"""What a classifier is timed against."""

from __future__ import annotations

import pytest
import torch
import torchvision
from tests.helpers.classifiers import make_classifier

from skipnets.classifier import Classifier
from skipnets.deploy.candidates import torchvision_network
from skipnets.models.factory import create_model


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("densenet121", {"block_config": (2, 1, 1, 1)}),
        ("densenet121", {"block_config": (1, 2), "in_chans": 1, "num_classes": 7, "growth_rate": 16}),
        ("densenet_bc40_k12", {}),
        ("densenet_bc40_k12", {"in_chans": 1}),
        ("resnet18", {"block_config": (1, 2, 1, 1)}),
        ("resnet50", {"block_config": (1, 1, 1, 1), "in_chans": 1}),
        ("resnext50_32x4d", {"block_config": (1, 1, 1, 1)}),
        ("wide_resnet50_2", {"block_config": (1, 1, 1, 1)}),
    ],
)
@torch.no_grad()
def test_the_baseline_is_torchvisions_and_computes_the_same(name: str, fields: dict[str, object]) -> None:
    model = create_model(name, **fields).eval()
    baseline = torchvision_network(model.config, model.state_dict())
    assert isinstance(baseline, torchvision.models.DenseNet | torchvision.models.ResNet)
    x = torch.randn(1, model.config.in_chans, 64, 64)
    torch.testing.assert_close(baseline(x), model(x))


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("densenet40_k12", {}),
        ("resnet20", {}),
        ("resnet18", {"norm": "group"}),
        ("resnet18", {"activation": "silu"}),
        ("densenet_bc40_k12", {"activation": "gelu"}),
        ("resnet18", {"output_stride": 8}),
        ("resnet18", {"width": 32}),
        ("densenet121", {"compression": 0.3}),
        ("densenet121", {"num_classes": 0}),
    ],
)
def test_where_torchvision_has_nothing(name: str, fields: dict[str, object]) -> None:
    model = create_model(name, **fields)
    assert torchvision_network(model.config, model.state_dict()) is None


def test_the_model_that_is_measured_stays_as_it_is() -> None:
    classifier: Classifier = make_classifier("resnet20")
    network = torchvision_network(classifier.model.config, classifier.model.state_dict())
    assert network is None
    assert all(parameter.requires_grad for parameter in classifier.model.parameters())
