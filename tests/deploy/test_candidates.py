"""What a classifier is timed against."""

from __future__ import annotations

from copy import deepcopy

import numpy as np
import pytest
import torch
import torchvision
from tests.helpers.classifiers import make_classifier

from skipnets.deploy import candidates
from skipnets.deploy.candidates import candidates_for, torchvision_network
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


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float64])
def test_a_model_of_another_type_is_measured_in_float32_and_stays_as_it_is(
    kind: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("plain_onnx", "trace", "onnx_graph", "in_onnxruntime", "openvino_graph", "in_openvino"):
        monkeypatch.setattr(candidates, name, lambda *_: None)  # graphs are made of the same copy
    classifier = make_classifier("resnet20")  # torchvision has none, so the baseline is the network itself
    model = classifier.model.train().to(kind, memory_format=torch.channels_last)
    before = {name: (value, value.clone()) for name, value in model.state_dict(keep_vars=True).items()}
    found = candidates_for(
        classifier, threads=torch.get_num_threads(), compiled=False, int8=False, calibration=None
    )
    after = model.state_dict(keep_vars=True)
    assert list(after) == list(before)
    for name, (value, copy) in before.items():
        assert after[name] is value
        assert (value.dtype, value.requires_grad) == (copy.dtype, copy.requires_grad)
        assert torch.equal(value, copy)
    assert all(module.training for module in model.modules())
    images = np.random.default_rng(0).normal(size=(2, 3, 16, 20)).astype(np.float32)
    with torch.no_grad():
        expected = deepcopy(model).float().eval()(torch.from_numpy(images)).numpy()
    in_torch = [each for each in found if "eager" in each.name or "engine" in each.name]
    assert len(in_torch) >= 3
    for each in in_torch:
        np.testing.assert_allclose(each.predict(images), expected, rtol=1e-3, atol=1e-4)
