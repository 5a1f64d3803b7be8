"""Signals and volumes at another size, against PyTorch's interpolation and a slow loop."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from skipnets.data.volume_fitting import AxisFit, fit_axes, fit_volume, resize_axis

LINEAR = Image.Resampling.BILINEAR


def test_enlarged_volumes_are_pytorch_s() -> None:
    volume = np.random.default_rng(0).uniform(0, 255, (4, 5, 6, 2)).astype(np.float32)
    size = (9, 10, 7)
    found = fit_volume(
        volume, fit_axes((4, 5, 6), (1, 1, 1), size, "stretch"), size, interpolation=LINEAR, padding=(0, 0)
    )
    batch = torch.from_numpy(volume).permute(3, 0, 1, 2)[None]
    expected = F.interpolate(batch, size, mode="trilinear", align_corners=False)[0].permute(1, 2, 3, 0)
    np.testing.assert_allclose(found, expected.numpy(), atol=1e-3)


def test_reduced_axes_are_antialiased_as_pytorch_does() -> None:
    plane = np.random.default_rng(0).uniform(0, 255, (40, 30, 1)).astype(np.float32)
    expected = F.interpolate(
        torch.from_numpy(plane[None, None, ..., 0]), (13, 7), mode="bilinear", antialias=True
    )
    found = resize_axis(resize_axis(plane, 0, 13, LINEAR), 1, 7, LINEAR)
    np.testing.assert_allclose(found[..., 0], expected[0, 0].numpy(), atol=1e-2)
    assert resize_axis(plane, 0, 40, LINEAR) is plane


def test_how_axes_become_the_input_s() -> None:
    sides, spacing = (10, 40, 20), (4.0, 1.0, 1.0)
    assert fit_axes(sides, spacing, (8, 8, 8), "stretch") == [AxisFit(8, 0)] * 3
    assert fit_axes(sides, spacing, (12, 30, 5), "center") == [(10, -1), (40, 5), (20, 8)]
    # By distances it is 40 × 40 × 20.
    assert fit_axes(sides, spacing, (20, 20, 20), "pad") == [(20, 0), (20, 0), (10, -5)]
    assert fit_axes(sides, spacing, (10, 10, 10), "crop") == [(20, 5), (20, 5), (10, 0)]
    assert fit_axes((8,), (1,), (8,), "crop", 0.5) == [(16, 4)]


def test_cut_and_padded_as_a_slow_loop_does() -> None:
    volume = np.random.default_rng(0).uniform(0, 255, (5, 8, 6, 1)).astype(np.float32)
    size = (9, 4, 6)
    axes = fit_axes((5, 8, 6), (1, 1, 1), size, "center")
    found = fit_volume(volume, axes, size, interpolation=LINEAR, padding=[7])
    for place in itertools.product(*map(range, size)):
        source = [position + axis.start for position, axis in zip(place, axes, strict=True)]
        inside = all(0 <= index < side for index, side in zip(source, (5, 8, 6), strict=True))
        assert found[(*place, 0)] == (volume[(*source, 0)] if inside else 7)


def test_what_would_be_too_large_is_refused() -> None:
    line = np.zeros((1, 1, 5000, 1), np.float32)
    size = (64, 64, 64)
    axes = fit_axes((1, 1, 5000), (1, 1, 1), size, "crop")
    with pytest.raises(ValueError, match="too elongated to be cut to 64×64×64"):
        fit_volume(line, axes, size, interpolation=LINEAR, padding=[0])
