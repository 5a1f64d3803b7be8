"""DenseNet against its paper's equation, x_l = H_l([x_0, …, x_(l-1)]), written out with functions.

Shapes: N batch, C channels, H height, W width.
"""

from __future__ import annotations

import pytest
import timm
import torch
import torch.nn.functional as F
from tests.helpers.graphs import assert_equal_to_the_built_model, saved_bytes
from torch import Tensor

from skipnets.models import create_model, network_graph
from skipnets.models.accounting import kept_bytes
from skipnets.models.family import family_of


def paper(weights: dict[str, Tensor], images: Tensor, blocks: tuple[int, ...]) -> Tensor:
    """A DenseNet for CIFAR in eval mode, straight from its tensors (Huang et al. 2017, section 3)."""

    def h(name: str, number: str, x: Tensor) -> Tensor:
        mean, var, gamma, beta = (
            weights[f"{name}.norm{number}.{part}"]
            for part in ("running_mean", "running_var", "weight", "bias")
        )
        shape = (1, -1, 1, 1)
        normal = (x - mean.view(shape)) / (var.view(shape) + 1e-5).sqrt()
        return (normal * gamma.view(shape) + beta.view(shape)).clamp(min=0)

    x = F.conv2d(images, weights["features.conv0.weight"], padding=1)
    for block, layers in enumerate(blocks, start=1):
        for layer in range(1, layers + 1):
            name = f"features.denseblock{block}.denselayer{layer}"
            new = h(name, "1", x)
            if f"{name}.conv2.weight" in weights:
                new = h(name, "2", F.conv2d(new, weights[f"{name}.conv1.weight"]))
                new = F.conv2d(new, weights[f"{name}.conv2.weight"], padding=1)
            else:
                new = F.conv2d(new, weights[f"{name}.conv1.weight"], padding=1)
            x = torch.cat([x, new], dim=1)
        if block < len(blocks):
            name = f"features.transition{block}"
            x = F.conv2d(h(name, "", x), weights[f"{name}.conv.weight"])
            x = x.unfold(2, 2, 2).unfold(3, 2, 2).mean((-1, -2))  # average pooling, 2×2
    x = h("features", "5", x).mean((2, 3))
    return x @ weights["classifier.weight"].T + weights["classifier.bias"]


@pytest.mark.parametrize(
    "fields",
    [
        {"bottleneck": 4, "compression": 0.5},  # DenseNet-BC
        {"bottleneck": 4, "compression": 1.0},  # DenseNet-B
        {"bottleneck": None, "compression": 0.5},
        {"bottleneck": None, "compression": 1.0},  # the plain DenseNet
    ],
)
def test_it_computes_the_papers_equation(fields: dict[str, object]) -> None:
    blocks = (3, 1, 2)
    model = create_model(
        "densenet_bc40_k12", block_config=blocks, growth_rate=5, num_classes=4, **fields
    ).double()
    for _ in range(3):
        model(torch.randn(8, 3, 16, 16, dtype=torch.double))  # so that norms have statistics
    for tensor in model.parameters():
        if tensor.ndim == 1:
            torch.nn.init.normal_(tensor, 1, 0.3)
    model.eval()
    images = torch.randn(2, 3, 16, 16, dtype=torch.double)
    torch.testing.assert_close(model(images), paper(model.state_dict(), images, blocks))


@pytest.mark.parametrize("name", ["densenetblur121d", "densenet264d"])
def test_deep_stems_and_blurs_are_timm_s(name: str) -> None:
    with torch.device("meta"):
        theirs, ours = timm.create_model(name), create_model(name)
    expected = [(key, tuple(value.shape)) for key, value in theirs.state_dict().items()]
    assert [(key, tuple(value.shape)) for key, value in ours.state_dict().items()] == expected
    assert [info["num_chs"] for info in ours.feature_info] == [
        info["num_chs"] for info in theirs.feature_info
    ]
    if name == "densenet264d":
        return
    torch.manual_seed(0)
    theirs = timm.create_model(name, growth_rate=8, block_config=(2, 1, 2), num_classes=4)
    ours = create_model(name, growth_rate=8, block_config=(2, 1, 2), num_classes=4)
    theirs(torch.randn(4, 3, 64, 64))
    ours.load_state_dict(theirs.state_dict())
    x, outputs = torch.randn(2, 3, 51, 70), []
    for model in (theirs, ours):
        outputs.append(model.train()(x))
        outputs[-1].square().sum().backward()
    torch.testing.assert_close(outputs[1], outputs[0], rtol=1e-4, atol=1e-4)
    gradients = [[parameter.grad for parameter in model.parameters()] for model in (theirs, ours)]
    largest = max(float(gradient.abs().max()) for gradient in gradients[0])
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-4, atol=1e-5 * largest)
    with torch.no_grad():
        torch.testing.assert_close(ours.eval()(x), theirs.eval()(x), rtol=1e-5, atol=1e-5)
        smallest = ours.config.smallest_size
        assert ours(torch.zeros(1, 3, smallest, smallest)).shape == (1, 4)
        with pytest.raises(RuntimeError):
            ours._run_stages(torch.zeros(1, 3, smallest - 1, smallest - 1))
    assert_equal_to_the_built_model(ours.config)
    graph = network_graph(ours.config)
    for execution in family_of(ours.config).executions:
        assert kept_bytes(graph, (38, 45), 2, execution) == saved_bytes(ours.config, execution, 38, 45)
