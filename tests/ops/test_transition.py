from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from skipnets.ops import chunks
from skipnets.ops.batch_norm import map_statistics
from skipnets.ops.transition import TransitionParameters, transition

EPS = 1e-4


def plain(x, gamma, beta, weight):
    x = F.batch_norm(x, None, None, gamma, beta, training=True, eps=EPS)
    return F.avg_pool2d(F.conv2d(F.relu(x), weight), 2)


@pytest.mark.parametrize("size", [(3, 6, 4, 8), (2, 5, 7, 4), (4, 3, 2, 9), (2, 1, 5, 3), (1, 4, 3, 3)])
@pytest.mark.parametrize("given", [True, False])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_equals_the_layers_one_by_one(size, given, layout, monkeypatch):
    monkeypatch.setattr(chunks, "CHUNK_BYTES", 1000)
    channels = size[1]
    x = torch.randn(size, dtype=torch.float64).to(memory_format=layout).requires_grad_()
    parameters = TransitionParameters(
        *(torch.randn(channels, dtype=torch.float64, requires_grad=True) for _ in range(2)),
        torch.randn(3, channels, 1, 1, dtype=torch.float64, requires_grad=True),
    )
    with torch.no_grad():
        parameters.gamma[0] = 1e-7

    expected = plain(x, *parameters)
    downstream = torch.randn_like(expected)
    gradients = torch.autograd.grad(expected, (x, *parameters), downstream)

    result = transition(x, parameters, EPS, map_statistics(x.detach()) if given else None)
    own = torch.autograd.grad(result.maps, (x, *parameters), downstream)
    for a, b in zip((result.maps, *own), (expected, *gradients), strict=True):
        assert a.shape == b.shape
        assert (a - b).abs().max() <= 1e-9 * b.abs().max() + 1e-12


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_keeps_the_memory_format(layout):
    x = torch.randn(2, 4, 6, 6).to(memory_format=layout)
    parameters = TransitionParameters(torch.ones(4), torch.zeros(4), torch.randn(3, 4, 1, 1))
    assert transition(x, parameters, EPS).maps.is_contiguous(memory_format=layout)
