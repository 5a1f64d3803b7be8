"""A stem's training passes against NumPy in float64; gradients against differences of the loss."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from passes import Case, Floats, assert_close, convolution, matrix, normed
from skipnets_engine import training


class Stem(Case):
    """Random numbers of one stem.

    Args:
        images: Their number, height and width.
        channels: Of the images.
        outputs: Channels of the output.
        size: Of the convolution.
        stride: The same.
        pools: Whether max-pooling follows.
    """

    def __init__(
        self,
        images: tuple[int, int, int],
        channels: int,
        outputs: int,
        size: int,
        stride: int,
        *,
        pools: bool,
    ) -> None:
        super().__init__()
        self.stride, self.pools, self.eps = stride, pools, 1e-3
        self.images, self.weight = self.normal(*images, channels), self.normal(outputs, channels, size, size)
        self.norm = [self.normal(outputs) for _ in range(2)]
        self.downstream = self.normal(*self.y().shape)

    def convolved(self) -> Floats:
        return convolution(self.images, self.weight, self.stride)

    def y(self) -> Floats:
        maps = np.maximum(normed(self.convolved(), *self.norm, self.eps), 0)
        if not self.pools:
            return maps
        height, width = maps.shape[1:3]
        bordered = np.pad(maps, ((0, 0), (1, 1), (1, 1), (0, 0)))
        shifted = [bordered[:, y : y + height : 2, x : x + width : 2] for y in range(3) for x in range(3)]
        return np.asarray(np.max(shifted, axis=0))

    def arguments(self) -> dict[str, Any]:
        """What both passes of the engine are given."""
        outputs = len(self.weight)
        pooled = self.downstream.size // outputs
        return {
            "images": self.images.transpose(0, 3, 1, 2).astype(np.float32),
            "weight": self.weight.astype(np.float32),
            "stride": self.stride,
            "norm": [own.astype(np.float32) for own in self.norm],
            "eps": self.eps,
            "statistics": [np.full(outputs, np.nan, np.float32) for _ in range(2)],
            "convolved": np.full_like(matrix(self.convolved()), np.nan),
            "places": np.full((pooled, outputs), 99, np.uint8) if self.pools else None,
        }


@pytest.mark.parametrize(
    "case",
    [
        Stem((2, 9, 12), 1, 3, 7, 2, pools=True),
        Stem((2, 8, 5), 3, 17, 3, 2, pools=True),
        Stem((2, 4, 5), 3, 5, 3, 1, pools=False),
    ],
    ids=["imagenet", "small", "cifar"],
)
@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("recompute", [False, True])
def test_both_passes(isa: str, case: Stem, threads: int, recompute: bool) -> None:
    given, y = case.arguments(), np.full_like(matrix(case.downstream), np.nan)
    training.stem_forward(**given, y=y, isa=isa, threads=threads)
    assert_close(y, case.y(), 1e-5)
    assert_close(given["convolved"], case.convolved(), 1e-5)
    for own, wanted in zip(given["statistics"], ("mean", "var"), strict=True):
        assert_close(own, getattr(case.convolved(), wanted)((0, 1, 2)), 1e-5)
    if recompute:
        given["convolved"].fill(np.nan)
    made = {
        "weight_gradient": np.full_like(given["weight"], np.nan),
        "norm_gradients": [np.full_like(own, np.nan) for own in given["norm"]],
    }
    training.stem_backward(
        **given, recompute=recompute, gradient=matrix(case.downstream), **made, isa=isa, threads=threads
    )
    assert_close(made["weight_gradient"], case.difference(case.weight), 1e-4)
    for own, numbers in zip(made["norm_gradients"], case.norm, strict=True):
        assert_close(own, case.difference(numbers), 1e-4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weight": np.ones((4, 3, 2, 2), np.float32)}, "the convolution must be of 1×1, 3×3, …, 15×15"),
        ({"weight": np.ones((4, 3, 17, 17), np.float32)}, "the convolution must be of 1×1, 3×3, …, 15×15"),
        ({"weight": np.ones((4, 2, 3, 3), np.float32)}, "channels are not those of the images"),
        ({"stride": 3}, "strides must be 1 or 2"),
        ({"images": np.ones((0, 3, 6, 5), np.float32)}, "images, height or width out of range"),
        ({"images": np.ones((2, 3, 7, 5), np.float32)}, "what the convolution makes must be a matrix"),
        ({"norm": [np.ones(3, np.float32)] * 2}, "gamma must hold 4 numbers, not 3"),
        ({"statistics": []}, "wrong number of arguments"),
        ({"convolved": np.ones((60, 3), np.float32)}, "what the convolution makes must be a matrix"),
        ({"places": np.ones(7, np.uint8)}, "places must hold 72 numbers, not 7"),
        ({"y": np.ones((4, 3), np.float32)}, "y must hold 72 numbers, not 12"),
        ({"isa": "abacus"}, 'instruction set "abacus"'),
        ({"threads": 0}, "threads must be 1 to 4096"),
    ],
    ids=str,
)
def test_arguments_that_do_not_fit_are_refused(change: dict[str, Any], message: str) -> None:
    case = Stem((2, 6, 5), 3, 4, 3, 1, pools=True)
    given = {**case.arguments(), "y": matrix(case.downstream), "isa": "", "threads": 1, **change}
    with pytest.raises(ValueError, match=message):
        training.stem_forward(**given)


@pytest.mark.parametrize(
    ("name", "lossy"),
    [
        ("y", lambda y: y.astype(np.float64)),
        ("y", lambda y: y.repeat(2, axis=1)[:, ::2]),
        ("convolved", lambda convolved: convolved.astype(np.float64)),
        ("places", lambda places: places.astype(np.int64)),
        ("statistics", lambda statistics: [each.astype(np.float64) for each in statistics]),
    ],
)
def test_results_never_go_into_a_copy(name: str, lossy: Any) -> None:
    case = Stem((2, 6, 5), 3, 4, 3, 1, pools=True)
    given = {**case.arguments(), "y": matrix(case.downstream), "isa": "", "threads": 1}
    with pytest.raises(TypeError, match="incompatible function arguments"):
        training.stem_forward(**{**given, name: lossy(given[name])})
