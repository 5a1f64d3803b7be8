"""The recipe `auto`: network, size, batch and settings from the images, the device and the time.

Every rule is a row of a table with what it was measured by; `benchmarks/recipes.py` repeats the measurements.
A rule looks at properties of the data (`Facts`), never at its name.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What rules look at.

    Attributes:
        images: Number of training images.
        side: Of the square of as many pixels as the input has; of signals and volumes the largest side.
        passes: How often the training goes through the images.
        batch_size: Images of a step.
        mirrored: 1 where a mirrored image still shows its class, 0 where it does not.
        pretrained: 1 with initial weights, 0 from scratch.
    """

    images: float
    side: float
    passes: float
    batch_size: float
    mirrored: float
    pretrained: float


@dataclass(frozen=True, kw_only=True)
class Rule:
    """Values of options, where every fact lies within its limits.

    Attributes:
        values: Option → value.
        least: Fact → the smallest value with which the rule holds.
        below: Fact → the value below which it holds.
        evidence: What it was measured by.
    """

    values: Mapping[str, Any]
    least: Mapping[str, float] = field(default_factory=dict)
    below: Mapping[str, float] = field(default_factory=dict)
    evidence: str

    def holds(self, facts: Facts) -> bool:
        """Whether the facts lie within the limits."""
        return all(getattr(facts, name) >= limit for name, limit in self.least.items()) and all(
            getattr(facts, name) < limit for name, limit in self.below.items()
        )


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A network, and the input size that it is considered at.

    Attributes:
        model: Name in the registry.
        side: Side of the square of as many pixels as the input has.
    """

    model: str
    side: int


# Networks to start from ImageNet's weights, at the size of those, from cheap to costly.
PRETRAINED = ("resnet18", "densenet121", "resnet50")
# How often a pretrained network is to see each image before a larger one is worth its time.
PRETRAINED_PASSES = 10

# Without a time, a training takes at least and at most so many seconds.
SHORTEST_DEFAULT, LONGEST_DEFAULT = 60.0, 3600.0

# The share of the training over which the learning rate rises.
WARMUP_SHARE = 0.1

# Images up to this side keep their size.
KEPT_SIDE = 64
# All seconds below are processor time of one thread of an AMD EPYC (Zen 4); what is reached in them is test
# accuracy in percent.
# Networks from cheap to costly, up to a side of the input in pixels: the stem leaves maps of about 16×16.
# 32 pixels, CIFAR-10, 10,000 images: 54.8 in 40 s with a stem to half the size, 46.6 in 60 s with a stem that
# keeps it (both of width 32). 64 pixels, clothing, 40 s: 67.1 with ImageNet's stem, 47.5 with one to half the
# size; rendered clothing, 60 s: 70.9 with 10 layers, 62.3 with 18.
_NETWORKS: tuple[tuple[int, tuple[str, ...]], ...] = (
    (40, ("resnet8_w16", "resnet8_w32", "resnet14_w32", "resnet8_w64", "resnet14_w64")),
    (10**9, ("resnet10_w16", "resnet10_w24", "resnet10_w32", "resnet10_w48", "resnet10", "resnet18")),
)
# How many images a training should show with a network, of 2,500 different ones. Clothing (3,409 images): in
# 40 s width 24 reached 67.1 (26,000 shown), width 32 68.7 (18,000); in 80 s width 32 70.4 (40,000), width 48
# 67.9 (22,000). CIFAR-10 (10,000 images): in 40 s width 32 54.8 (38,000), width 64 45.2 (12,000); in 80 s, in
# bfloat16, the whole recipe with width 16 64.1 (94,000).
_WANTED: Mapping[str, float] = {
    "resnet8_w16": 0,
    "resnet8_w32": 30_000,
    "resnet14_w32": 60_000,
    "resnet8_w64": 100_000,
    "resnet14_w64": 250_000,
    "resnet10_w16": 0,
    "resnet10_w24": 10_000,
    "resnet10_w32": 15_000,
    "resnet10_w48": 60_000,
    "resnet10": 100_000,
    "resnet18": 250_000,
}
# Larger images, with the size that they are shrunk to, from cheap to costly.
_SHRUNK: tuple[Candidate, ...] = tuple(
    Candidate(model=model, side=side)
    for model, side in (
        ("resnet10_w16", 64),
        ("resnet10_w24", 64),
        ("resnet10_w32", 64),
        ("resnet10_w24", 96),
        ("resnet10_w32", 96),
        ("resnet10_w32", 128),
        ("resnet10_w48", 128),
        ("resnet10_w48", 160),
        ("resnet10_w48", 224),
        ("resnet10", 224),
        ("resnet18", 224),
    )
)

# The first rule of each group that holds gives its values. Evidence is test accuracy in percent for equal
# processor time of one thread (AMD EPYC, Zen 4), one seed: differences of two points may be chance.
RULES: Mapping[str, tuple[Rule, ...]] = {
    # Decided before the number of passes is known.
    "batch": (
        Rule(
            least={"pretrained": 1},
            values={"batch_size": 32},
            evidence="what fine-tuning was measured with",
        ),
        Rule(
            least={"images": 20_000},
            below={"side": 65},
            values={"batch_size": 128},
            evidence="CIFAR-10, 43,750 images, 60 s of a plain loop, resnet8_w32: 67.1, batches of 32 65.8 "
            "(of 6,250 training images held out)",
        ),
        Rule(
            least={"images": 5_000},
            below={"side": 65},
            values={"batch_size": 64},
            evidence="CIFAR-10, 10,000 images, 40 s: 56.6, batches of 32 55.8, each at its rate below",
        ),
        Rule(
            values={"batch_size": 32},
            evidence="what smaller sets were measured with: an epoch of 1,000 images has 31 steps",
        ),
    ),
    "rate": (
        Rule(
            least={"pretrained": 1},
            below={"side": 65},
            values={"lr": 0.03},
            evidence="a resnet8_w64 of CIFAR-10 to nine other sets, 20 s (Intel Xeon, AMX): mean 58.8, at "
            "0.07 60.2, at 0.01 51.0, from scratch 41.8; to CIFAR-10 itself: 79.5, 69.3, 83.2",
        ),
        Rule(
            least={"pretrained": 1},
            values={"lr": 0.01},
            evidence="usual for ImageNet's weights, which cannot be had here: not measured",
        ),
        Rule(
            least={"batch_size": 128},
            values={"lr": 0.2},
            evidence="the evidence of its batch; not measured at other rates",
        ),
        Rule(
            least={"batch_size": 64},
            values={"lr": 0.1},
            evidence="the evidence of its batch; not measured at other rates",
        ),
        Rule(
            values={"lr": 0.07},
            evidence="clothing, 40 s: 68.7 at 0.05, 70.9 at 0.1; CIFAR-10, 10,000 images, 40 s: 59.3, 59.2",
        ),
    ),
    "start": (
        Rule(
            least={"pretrained": 1},
            values={"whiten_stem": False},
            evidence="pretrained filters are kept; with fit_head, which took 3 of 20 s, 93.5, without 95.0",
        ),
        Rule(
            below={"side": 41},
            values={"whiten_stem": True},
            evidence="CIFAR-10, 10,000 images, 40 s: 60.9 whitened, 59.3 from random filters",
        ),
        Rule(
            values={"whiten_stem": False},
            evidence="measured for 3×3 filters only",
        ),
    ),
    "augmentation": (
        Rule(
            below={"mirrored": 1},
            values={"augmentation": "crop"},
            evidence="mirroring makes other classes of digits and letters; sign digits, 45 s: 99.2",
        ),
        Rule(
            least={"images": 5_000},
            below={"side": 41, "passes": 10},
            values={"augmentation": "shift-flip"},
            evidence="CIFAR-10, 43,750 images, 2 passes in 60 s of a plain loop: 70.2, crop-flip 67.1 "
            "(of 6,250 training images held out)",
        ),
        Rule(
            below={"passes": 150},
            values={"augmentation": "crop-flip"},
            evidence="clothing, 1,000 images, about 22 passes: 62.5, trivial 55.3, MixUp 58.6",
        ),
        Rule(
            values={"augmentation": "trivial"},
            evidence="not measured here: TrivialAugment's paper (arXiv 2103.10158) trains for 200 passes",
        ),
    ),
    "regularization": (
        Rule(
            values={"label_smoothing": 0.1, "weight_decay": 5e-4, "mixup": 0.0, "cutmix": 0.0},
            evidence="clothing, 1,000 images, 19 to 26 passes: 62.5, with MixUp 58.6",
        ),
    ),
    "averaging": (
        Rule(
            values={"ema": 0.0},
            evidence="where the rate reaches zero, averages (0.99) are 0.3 below the last weights in 17 runs",
        ),
    ),
}


def apply_rules(facts: Facts, groups: Sequence[str] = tuple(RULES)) -> dict[str, Any]:
    """Option → value, by the first rule that holds in each group."""
    values: dict[str, Any] = {}
    for group in groups:
        rule = next((rule for rule in RULES[group] if rule.holds(facts)), None)
        if rule is not None:
            values.update(rule.values)
    return values


def candidates(side: int, *, fixed: bool) -> tuple[Candidate, ...]:
    """Networks for images, with input sizes, from cheap to costly.

    Args:
        side: Of the square of as many pixels as the images have.
        fixed: Whether the input has this size; otherwise larger images may be shrunk.
    """
    if fixed or side <= KEPT_SIDE:
        return tuple(Candidate(model=name, side=side) for name in _networks(side))
    shrunk = [candidate for candidate in _SHRUNK if candidate.side < 1.2 * side]
    widest, largest = shrunk[-1].model, shrunk[-1].side
    names = _networks(largest)
    wider = names[names.index(widest) + 1 :]
    return (*shrunk, *(Candidate(model=name, side=largest) for name in wider))


def _networks(side: int) -> tuple[str, ...]:
    return next(names for largest, names in _NETWORKS if side <= largest)


def choose_network(
    ladder: Sequence[Candidate],
    seconds_per_image: Callable[[Candidate], float],
    *,
    wanted: Callable[[Candidate], float],
    seconds: float,
) -> tuple[Candidate, float]:
    """The most costly of the candidates that sees the images often enough in the time.

    Args:
        ladder: From cheap to costly; they are measured until one is too slow.
        seconds_per_image: Measures a candidate.
        wanted: How many images the training should show with a candidate.
        seconds: The time for training.

    Returns:
        The candidate and its seconds an image.
    """
    chosen, speed = ladder[0], seconds_per_image(ladder[0])
    for candidate in ladder[1:]:
        slower = seconds_per_image(candidate)
        if seconds / slower < wanted(candidate):
            break
        chosen, speed = candidate, slower
    return chosen, speed


def wanted_images(candidate: Candidate, images: int) -> float:
    """How many images a training should show before a network is worth its time.

    Args:
        candidate: The network.
        images: Number of training images. More of them are worth more, in less than proportion.
    """
    return _WANTED[candidate.model] * math.sqrt(max(images, 500) / 2500)


def default_seconds(images: int, side: float, *, reading: float = 0.0) -> float:
    """A sensible time for a training where none is given: 1 minute to 1 hour, by the amount of pixels.

    Args:
        images: Number of training images.
        side: Of the square of as many pixels as the input has.
        reading: Seconds that reading all images once takes.
    """
    amount = images * side**2 / (2000 * 64**2)
    return min(max(300 * math.sqrt(amount), SHORTEST_DEFAULT) + reading, LONGEST_DEFAULT)
