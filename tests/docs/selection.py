"""How much a score gains by being the best of several on the same images: a simulation.

Every epoch's classifier is right with probability `ACCURACY` on any new image, so no epoch is better than
another and whatever the choice seems to gain is luck. Classifiers of one run resemble one another: an image
that is hard for one is hard for the next (`ALIKE` is the correlation).
"""

from __future__ import annotations

from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

ACCURACY = 0.9
ALIKE = 0.7


@dataclass(frozen=True)
class Selection:
    """Mean over trials of reported minus true accuracy, and the standard errors of the two means.

    Attributes:
        by_test: If the epoch is the best on the test images.
        by_validation: If it is the best on as many validation images.
        errors: Of these two.
    """

    by_test: float
    by_validation: float
    errors: tuple[float, float]


def simulate(*, epochs: int, images: int, trials: int, seed: int = 0) -> Selection:
    """Choose an epoch both ways, many times.

    Args:
        epochs: To choose from.
        images: In the test split, and as many in the validation split.
        trials: Runs to simulate.
        seed: Of the draws.
    """
    generator = np.random.default_rng(seed)
    gaps = np.empty((trials, 2))
    for trial in range(trials):
        test = _scores(epochs, images, generator)
        validation = _scores(epochs, images, generator)
        gaps[trial] = test.max() - ACCURACY, test[validation.argmax()] - ACCURACY
    by_test, by_validation = gaps.mean(0)
    errors = gaps.std(0, ddof=1) / trials**0.5
    return Selection(float(by_test), float(by_validation), (float(errors[0]), float(errors[1])))


def _scores(epochs: int, images: int, generator: np.random.Generator) -> NDArray[np.float64]:
    """The accuracy of every epoch (epochs,) on one set of images."""
    hard = generator.standard_normal(images, dtype=np.float32)
    luck = generator.standard_normal((epochs, images), dtype=np.float32)
    margin = ALIKE**0.5 * hard + (1 - ALIKE) ** 0.5 * luck
    scores: NDArray[np.float64] = (margin < NormalDist().inv_cdf(ACCURACY)).mean(1)
    return scores
