from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from skipnets.ops import chunks
from skipnets.ops.stem import StemParameters, StemPlan, stem

EPS = 1e-3


def plain(images, weight, gamma, beta, stride=2, pools=True):
    x = F.conv2d(images, weight, stride=stride, padding=weight.shape[2] // 2)
    x = F.relu(F.batch_norm(x, None, None, gamma, beta, training=True, eps=EPS))
    return F.max_pool2d(x, 3, 2, 1) if pools else x


@pytest.mark.parametrize("size", [(3, 3, 20, 16), (2, 1, 15, 18), (4, 3, 13, 9), (2, 2, 2, 2)])
@pytest.mark.parametrize(
    ("kernel", "stride", "pools"), [(7, 2, True), (3, 1, False)], ids=["imagenet", "cifar"]
)
@pytest.mark.parametrize("keep", [True, False])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_equals_the_layers_one_by_one(size, kernel, stride, pools, keep, layout, monkeypatch):
    monkeypatch.setattr(chunks, "CHUNK_BYTES", 2000)
    images = torch.randn(size, dtype=torch.float64).to(memory_format=layout).requires_grad_()
    parameters = StemParameters(
        torch.randn(5, size[1], kernel, kernel, dtype=torch.float64, requires_grad=True),
        *(torch.randn(5, dtype=torch.float64, requires_grad=True) for _ in range(2)),
    )
    with torch.no_grad():
        parameters.gamma[0] = 0
        parameters.gamma[1] = 1e-9

    expected = plain(images, *parameters, stride, pools)
    downstream = torch.randn_like(expected)
    gradients = torch.autograd.grad(expected, (images, *parameters), downstream)
    result = stem(images, StemPlan(EPS, keep, torch.float64, stride, pools), parameters)
    own = torch.autograd.grad(result.maps, (images, *parameters), downstream)
    for a, b in zip((result.maps, *own), (expected, *gradients), strict=True):
        assert a.shape == b.shape
        assert (a - b).abs().max() <= 1e-9 * b.abs().max() + 1e-12
    assert result.rows == size[0] * -(-size[2] // stride) * -(-size[3] // stride)
