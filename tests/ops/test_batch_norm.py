from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from skipnets.ops import chunks
from skipnets.ops.batch_norm import (
    NormGradient,
    Statistics,
    StatisticsCollector,
    explicit_columns,
    map_statistics,
    matrix_statistics,
    update_all_running_statistics,
    update_running_statistics,
)


@pytest.mark.parametrize("sizes", [[5], [4, 4, 4], [4, 4, 1], [3, 2]])
def test_merged_statistics_are_those_of_the_whole(sizes):
    values = torch.randn(sum(sizes), 6, dtype=torch.float64) * 0.01 + 1000
    collector = StatisticsCollector()
    for part in values.split(sizes):
        collector.add(part)
    mean, variance = collector.merged()
    torch.testing.assert_close(mean, values.mean(0), rtol=1e-14, atol=0)
    torch.testing.assert_close(variance, values.var(0, correction=0), rtol=1e-9, atol=0)


def test_a_large_mean_does_not_cancel_in_float32():
    values = torch.randn(4096, 3) + 1000
    expected = values.double().var(0, correction=0)
    collector = StatisticsCollector()
    for part in values.split(512):
        collector.add(part)
    torch.testing.assert_close(collector.merged().variance.double(), expected, rtol=1e-4, atol=0)


def test_the_way_of_other_devices_gives_the_same_statistics():
    values = torch.randn(50, 7, dtype=torch.float64)
    image = values.view(1, 50, 1, 7).permute(0, 3, 1, 2)
    variance, mean = torch.var_mean(image, dim=(0, 2, 3), correction=0)
    torch.testing.assert_close(matrix_statistics(values), Statistics(mean, variance), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_values_are_summed_in_float32(dtype):
    values = torch.randn(1000, 4).to(dtype)
    statistics = matrix_statistics(values)
    assert statistics.mean.dtype == torch.float32
    torch.testing.assert_close(statistics.mean, values.float().mean(0), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_map_statistics(layout, monkeypatch):
    monkeypatch.setattr(chunks, "CHUNK_BYTES", 300)
    maps = torch.randn(5, 3, 4, 2, dtype=torch.float64).to(memory_format=layout)
    mean, variance = map_statistics(maps)
    torch.testing.assert_close(mean, maps.mean((0, 2, 3)))
    torch.testing.assert_close(variance, maps.var((0, 2, 3), correction=0))


@pytest.mark.parametrize("momentum", [0.1, 0.9, 0.0, 1.0, None])
def test_running_statistics_move_as_in_the_norms_own_forward(momentum):
    theirs = nn.BatchNorm2d(3, momentum=momentum).double()
    ours = copy.deepcopy(theirs)
    for _ in range(4):
        maps = torch.randn(2, 3, 4, 5, dtype=torch.float64) + 3
        theirs(maps)
        update_running_statistics(ours, map_statistics(maps), count=40)
        for name, buffer in theirs.named_buffers():
            torch.testing.assert_close(ours.get_buffer(name), buffer, rtol=1e-13, atol=1e-14)


def test_a_norm_without_running_statistics_is_left_alone():
    norm = nn.BatchNorm2d(3, track_running_stats=False)
    update_running_statistics(norm, Statistics(torch.zeros(3), torch.ones(3)), count=4)
    assert norm.running_mean is None


@pytest.mark.parametrize("momentum", [0.1, None])
@pytest.mark.parametrize(
    "changes",
    [
        {"track_running_stats": False},
        {"num_batches_tracked": None},
        {"running_mean": None, "running_var": None},
    ],
    ids=str,
)
def test_what_a_norm_does_not_track_stays_as_in_its_own_forward(changes, momentum):
    norms = [nn.BatchNorm2d(3, momentum=momentum).double() for _ in range(2)]
    for name, value in changes.items():
        setattr(norms[0], name, value)
    ours = copy.deepcopy(norms)
    maps = torch.randn(2, 3, 4, 5, dtype=torch.float64) + 3
    for norm in norms:
        norm(maps)
    update_all_running_statistics(ours, [map_statistics(maps)] * 2, count=40)
    for norm, own in zip(norms, ours, strict=True):
        assert dict(own.named_buffers()).keys() == dict(norm.named_buffers()).keys()
        for name, buffer in norm.named_buffers():
            torch.testing.assert_close(own.get_buffer(name), buffer, rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize(
    "explicit", [None, slice(None), torch.tensor([0, 2])], ids=["product", "all", "some"]
)
def test_gradients_of_a_norm_equal_autograds(explicit):
    count, channels, eps = 40, 5, 1e-3
    x = (torch.randn(count, channels, dtype=torch.float64) * 2 + 1).requires_grad_()
    norm = nn.BatchNorm1d(channels, eps=eps).double()
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    weight = torch.randn(7, channels, dtype=torch.float64, requires_grad=True)
    downstream = torch.randn(count, 7, dtype=torch.float64)
    (norm(x).relu() @ weight.t()).backward(downstream)

    with torch.no_grad():
        statistics = matrix_statistics(x)
        gradient = NormGradient(statistics, norm.weight, norm.bias, eps, explicit)
        activated = torch.relu(x * gradient.affine.scale + gradient.affine.shift)
        masked = (downstream @ weight) * (activated > 0)
        for rows in (slice(0, 25), slice(25, 40)):
            gradient.add(masked[rows], x[rows])
        weight_gradient = downstream.t() @ activated
        gamma, beta, correction = gradient.finish((weight_gradient * weight).sum(0))
        slope, offset = correction.as_line(statistics.mean, count)
    torch.testing.assert_close(gamma, norm.weight.grad, rtol=1e-11, atol=1e-12)
    torch.testing.assert_close(beta, norm.bias.grad, rtol=1e-11, atol=1e-12)
    torch.testing.assert_close(
        masked * gradient.affine.scale + x * slope + offset, x.grad, rtol=1e-11, atol=1e-12
    )


def test_explicit_columns_are_those_with_a_small_gamma():
    large, mixed = torch.tensor([1.0, -0.5]), torch.tensor([0.0, 1.0, -1e-9])
    first, second = explicit_columns([large, mixed], torch.float32)
    assert first is None
    assert second.tolist() == [0, 2]
    assert explicit_columns([large, mixed], torch.bfloat16) == [slice(None)] * 2
    assert explicit_columns([], torch.float32) == []
