"""When a model does not know: sets and intervals with a guaranteed coverage, and images unlike all others.

All are split conformal prediction (Vovk et al. 2005; Angelopoulos & Bates 2021, arXiv 2107.07511): scores of
calibration images, which training did not use, bound the score of a new image of the same kind.

Prediction sets are least ambiguous (LAC: Sadinle, Lei & Wasserman 2019, arXiv 1609.00451), unless adaptive
ones are asked for: the score is one minus the probability of the true class. Of all sets with this coverage
they are the smallest on average. Adaptive sets (APS: Romano, Sesia & Candès 2020, arXiv 2006.02544) are large
where the network is unsure: the score is the sum of the probabilities of all classes that are more probable
than the true one, and half of its own. Regularized ones (RAPS: Angelopoulos et al. 2021, arXiv 2009.14193)
add a penalty for each rank beyond a few. Nothing is drawn at random, so a set is the same each time and in
each runtime: the half stands where these papers have a random share.

Where an image has any number of labels, the sets control the expected share of an image's labels that they
miss (conformal risk control, Angelopoulos et al. 2024, arXiv 2208.02814). This is the same quantile with
weights: of an image with r labels, one minus the probability of each is a score that counts 1/r. With one
label an image it is split conformal prediction again.

Prediction intervals of numbers are as wide as the absolute residuals of calibration images show (Lei et al.
2018, arXiv 1604.04173).

How unusual an image is, is measured by its logits (energy, Liu et al. 2020, arXiv 2010.03759; maximum logit,
Hendrycks et al. 2022, arXiv 1911.11132) or by the distance to its neighbors among training images in feature
space (Sun et al. 2022, arXiv 2204.06507).

Needs no torch.

Shapes: N images, K classes, T targets, F features, R reference vectors, n calibration images, m ≤ n of their
scores.
"""

from __future__ import annotations

import base64
import binascii
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from skipnets.errors import UserError, near_matches
from skipnets.runtimes.views import check_tta

__all__ = [
    "CalibrationScores",
    "OutlierDetector",
    "OutlierScore",
    "SetScore",
    "Uncertainty",
    "check_set_score",
    "check_share",
    "class_scores",
    "joint_scores",
    "label_scores",
    "label_sets",
    "outlier_scores",
    "prediction_intervals",
    "prediction_sets",
    "reference_size",
]

OutlierScore = Literal["energy", "max-logit", "knn"]
SetScore = Literal["lac", "aps", "raps"]

NEIGHBORS = 5
_MOST_SCORES = 1000
_MOST_REFERENCES = 2000
_REFERENCE_BYTES = 1 << 20
_MOST_FEATURES = 1 << 17
_MOST_IMAGES = 1 << 40
_PENALTY, _WITHOUT_PENALTY = 0.01, 5  # of RAPS, for each rank beyond so many


@dataclass(frozen=True, eq=False)
class CalibrationScores:
    """Scores of calibration images, of which a model file keeps at most 1,000.

    Those that are kept are evenly spaced in rank, and a quantile between two is rounded up, which only makes
    it safer, by at most a thousandth.

    Args:
        images: Number n of calibration images.
        scores: (m,) scores in rising order: the i-th has the rank ⌈i·n/m⌉ among all n.
    """

    images: int
    scores: NDArray[np.float64]

    @classmethod
    def of(
        cls, scores: NDArray[np.floating[Any]], weights: NDArray[np.floating[Any]] | None = None
    ) -> CalibrationScores:
        """Keep those of n images, in any order.

        Args:
            scores: One of each image; with weights, several.
            weights: The part of an image that each score is; they add up to n. A score's rank is then what it
                and those below it add up to, rounded down, which makes sets larger if anything.
        """
        order = np.argsort(scores, kind="stable")
        parts = np.ones(len(scores)) if weights is None else weights[order]
        below = np.cumsum(parts) + 1e-9  # thirds add up to one
        count = int(below[-1])
        kept = min(count, _MOST_SCORES)
        ranks = -(-np.arange(1, kept + 1) * count // kept)
        return cls(count, scores[order].astype(np.float64)[np.searchsorted(below, ranks)])

    @property
    def highest_coverage(self) -> float:
        """The highest coverage that so many images can give."""
        return self.images / (self.images + 1)

    def quantile(self, coverage: float) -> float:
        """The score that a new image's does not exceed with at least this probability.

        It is the ⌈(n + 1)·coverage⌉-th smallest of the n, the finite-sample correction of split conformal
        prediction.

        Args:
            coverage: Above 0, below 1.

        Raises:
            UserError: If there are too few images.
        """
        wanted = Fraction(str(coverage))
        rank = math.ceil((self.images + 1) * wanted)
        if rank > self.images:
            limit = math.floor(1e4 * self.images / (self.images + 1)) / 1e4
            raise self._too_few(f"coverage={coverage:g}", wanted, f"at most {limit:g}")
        return float(self.scores[(rank - 1) * len(self.scores) // self.images])

    def p_values(self, scores: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
        """How unusual scores are: the probability that an image of the calibration's kind has at least this.

        Args:
            scores: (N,).

        Returns:
            (N,) values from 1 / (n + 1) to 1. For images of the same kind, at most a share r of them is ≤ r.
        """
        below = np.searchsorted(self.scores, scores, side="left")
        ranks = -(-below * self.images // len(self.scores))
        values: NDArray[np.float64] = (1 + self.images - ranks) / (1 + self.images)
        return values

    def check_reject(self, share: float) -> None:
        """Check that there are images enough to reject so small a share.

        Raises:
            UserError: If there are too few.
        """
        wanted = Fraction(str(share))
        if wanted * (self.images + 1) < 1:
            limit = math.ceil(1e4 / (self.images + 1)) / 1e4
            raise self._too_few(f"reject={share:g}", 1 - wanted, f"at least {limit:g}")

    @staticmethod
    def rejects(p_values: NDArray[np.float64], share: float) -> NDArray[np.bool_]:
        """Which images are among a share of the most unusual ones: (N,) → (N,)."""
        return p_values <= share * (1 + 1e-12)  # 0.05 is 5 of 100, however it is rounded

    def _too_few(self, given: str, coverage: Fraction, limit: str) -> UserError:
        needed = math.ceil(coverage / (1 - coverage))
        return UserError(
            f"{given}: needs at least {needed:,} calibration images, and the model has {self.images:,}, "
            f"enough for {limit}: skipnets calibrate with more"
        )

    def to_dict(self) -> dict[str, Any]:
        """As plain values for JSON."""
        return {"images": self.images, "scores": self.scores.tolist()}

    @classmethod
    def from_dict(cls, values: Any) -> CalibrationScores:
        """The inverse of `to_dict`.

        Raises:
            UserError: If the values are damaged.
        """
        images, scores = _field(values, "images", int), _field(values, "scores", list)
        if not all(isinstance(each, int | float) and not isinstance(each, bool) for each in scores):
            raise UserError("scores must be numbers")
        if not 1 <= len(scores) <= min(images, _MOST_SCORES) or images > _MOST_IMAGES:
            raise UserError(f"scores must be 1 to {_MOST_SCORES:,}, and no more than its {images} images")
        array = np.array(scores, np.float64)
        if not np.isfinite(array).all() or (np.diff(array) < 0).any():
            raise UserError("scores must be finite and in rising order")
        return cls(images, array)


def class_scores(probabilities: NDArray[np.floating[Any]], score: SetScore) -> NDArray[np.float64]:
    """How little each class fits each image; a prediction set holds the classes with the lowest scores.

    Args:
        probabilities: (N, K).
        score: "lac" is one minus the probability; "aps" the sum of the probabilities of the more probable
            classes and half of its own; "raps" adds 0.01 for each rank beyond the fifth.

    Returns:
        (N, K).
    """
    exact = probabilities.astype(np.float64)
    if score == "lac":
        return 1 - exact
    order = np.argsort(-exact, axis=1, kind="stable")
    falling = np.take_along_axis(exact, order, 1)
    ranked = np.cumsum(falling, axis=1) - falling / 2
    if score == "raps":
        ranked += _PENALTY * np.maximum(np.arange(1, exact.shape[1] + 1) - _WITHOUT_PENALTY, 0)
    scores = np.empty_like(exact)
    np.put_along_axis(scores, order, ranked, 1)
    return scores


def prediction_sets(
    probabilities: NDArray[np.floating[Any]],
    scores: CalibrationScores,
    coverage: float,
    score: SetScore = "lac",
) -> NDArray[np.bool_]:
    """Sets of classes that contain the true one with a given probability.

    The probability is over calibration and new images of the same kind together, not for each class or image.
    The most probable class is always in the set, so a classifier that is more accurate than the coverage
    asked for covers more.

    Args:
        probabilities: (N, K).
        scores: The `class_scores` of the true classes of calibration images.
        coverage: Above 0, below 1.
        score: Which of them.

    Returns:
        (N, K), whether a class is in the set.

    Raises:
        UserError: If there are too few calibration images for this coverage.
    """
    sets: NDArray[np.bool_] = class_scores(probabilities, score) <= scores.quantile(coverage)
    sets[np.arange(len(sets)), probabilities.argmax(1)] = True
    return sets


def label_scores(
    probabilities: NDArray[np.floating[Any]], labels: NDArray[np.floating[Any]]
) -> CalibrationScores | None:
    """The scores of `label_sets`, from calibration images that are known to have a label.

    Args:
        probabilities: (n, K) of the labels.
        labels: (n, K) with 1 for present, 0 for absent, NaN for unknown.

    Returns:
        None if no image is known to have a label.
    """
    present = labels == 1
    if not present.any():
        return None
    shares = present / np.maximum(present.sum(1, keepdims=True), 1)
    return CalibrationScores.of(1 - probabilities[present].astype(np.float64), shares[present])


def label_sets(
    probabilities: NDArray[np.floating[Any]], scores: CalibrationScores, coverage: float
) -> NDArray[np.bool_]:
    """Sets of labels that hold, on average, a given share of an image's labels.

    The mean is over calibration and new images that have a label, not for each label or image. There is one
    limit for the probabilities of all labels, so a rare label is missed more often than a common one.

    Args:
        probabilities: (N, K).
        scores: From `label_scores`.
        coverage: Above 0, below 1.

    Returns:
        (N, K), whether a label is in the set; it may be empty.

    Raises:
        UserError: If there are too few calibration images for this coverage.
    """
    sets: NDArray[np.bool_] = 1 - probabilities.astype(np.float64) <= scores.quantile(coverage)
    return sets


def prediction_intervals(
    values: NDArray[np.float64],
    scores: Sequence[CalibrationScores],
    coverage: float,
    grades: Sequence[tuple[int, int] | None],
) -> NDArray[np.float64]:
    """Intervals that each contain the true number with a given probability.

    The probability is over calibration and new images of the same kind together, and for each target by
    itself, or for all of an image's at once with `joint_scores`. All images have intervals of one width.

    Args:
        values: (N, T) predicted numbers.
        scores: Of each target, the absolute residuals of calibration images.
        coverage: Above 0, below 1.
        grades: Of each target the lowest and the highest grade, beyond which no interval goes; None where
            there are none.

    Returns:
        (N, T, 2), the lowest and the highest number.

    Raises:
        UserError: If there are too few calibration images for this coverage.
    """
    widths = np.array([each.quantile(coverage) for each in scores])
    limits = np.stack([values - widths, values + widths], axis=2)
    for index, ends in enumerate(grades):
        if ends is not None:
            limits[:, index] = np.clip(limits[:, index], *ends)
    return limits


def joint_scores(
    residuals: NDArray[np.floating[Any]], deviations: Sequence[float]
) -> tuple[CalibrationScores, ...] | None:
    """The scores of `prediction_intervals` that hold all numbers of an image at once with the coverage.

    The score of an image is its largest residual, each in standard deviations of its target, so that targets
    of any unit have a part in it; times the standard deviation it is the score of each target.

    Args:
        residuals: (n, T) absolute residuals of calibration images, NaN where a number is unknown.
        deviations: (T,) standard deviations of the targets.

    Returns:
        Those of each target, from the images of which all numbers are known; None if there is none.
    """
    whole = residuals[np.isfinite(residuals).all(1)]
    if not len(whole):
        return None
    largest = (whole / np.asarray(deviations)).max(1)
    return tuple(CalibrationScores.of(largest * deviation) for deviation in deviations)


def outlier_scores(
    score: OutlierScore,
    logits: NDArray[np.floating[Any]],
    features: NDArray[np.floating[Any]] | None = None,
    reference: NDArray[np.floating[Any]] | None = None,
) -> NDArray[np.float64]:
    """How unusual images are; higher is more so.

    Args:
        score: "energy" is minus the logarithm of the sum of the exponentials of the logits, "max-logit" minus
            the largest, "knn" one minus the cosine of the 5th nearest reference vector, or of the last.
        logits: (N, K), not divided by a temperature.
        features: (N, F) embeddings, for "knn".
        reference: (R, F) embeddings of training images, of length 1.

    Returns:
        (N,) scores.

    Raises:
        UserError: If features and reference do not match.
    """
    if score == "knn":
        assert features is not None
        assert reference is not None
        if features.shape[1] != reference.shape[1]:
            raise UserError(
                f"the reference for outliers has {reference.shape[1]} features, and the network "
                f"{features.shape[1]}: skipnets calibrate makes another"
            )
        lengths = np.linalg.norm(features, axis=1, keepdims=True)
        cosines = (features / np.maximum(lengths, np.finfo(np.float32).tiny)) @ reference.T.astype(np.float32)
        rank = min(NEIGHBORS, len(reference))
        distances: NDArray[np.float64] = 1 - np.partition(cosines, -rank, axis=1)[:, -rank].astype(np.float64)
        return distances
    largest = logits.max(1).astype(np.float64)
    if score == "max-logit":
        return -largest
    return -(largest + np.log(np.exp(logits.astype(np.float64) - largest[:, None]).sum(1)))


def reference_size(features: int) -> int:
    """How many reference vectors a model file keeps: at most 2,000, in at most 1 MiB."""
    return max(min(_MOST_REFERENCES, _REFERENCE_BYTES // (2 * features)), 1)


@dataclass(frozen=True, kw_only=True, eq=False)
class OutlierDetector:
    """A score of how unusual an image is, and its values for calibration images.

    Args:
        score: Its name.
        calibration: Its values for calibration images.
        reference: (R, F) embeddings of training images of length 1, float16, for "knn".
        auroc: Score → AUROC by which it was chosen, calibration images against altered ones.
    """

    score: OutlierScore
    calibration: CalibrationScores
    reference: NDArray[np.float16] | None = None
    auroc: Mapping[str, float] = field(default_factory=dict)

    @property
    def needs_features(self) -> bool:
        """Whether the score needs embeddings besides logits."""
        return self.score == "knn"

    def p_values(
        self, logits: NDArray[np.floating[Any]], features: NDArray[np.floating[Any]] | None
    ) -> NDArray[np.float64]:
        """(N, K) logits and (N, F) embeddings → (N,), see `CalibrationScores.p_values`."""
        return self.calibration.p_values(outlier_scores(self.score, logits, features, self.reference))

    def to_dict(self) -> dict[str, Any]:
        """As plain values for JSON."""
        values: dict[str, Any] = {
            "score": self.score,
            "auroc": dict(self.auroc),
            **self.calibration.to_dict(),
        }
        if self.reference is not None:
            packed = base64.b64encode(self.reference.astype("<f2").tobytes()).decode("ascii")
            values["reference"] = {"features": self.reference.shape[1], "vectors": packed}
        return values

    @classmethod
    def from_dict(cls, values: Any) -> OutlierDetector:
        """The inverse of `to_dict`.

        Raises:
            UserError: If the values are damaged.
        """
        score, auroc = _field(values, "score", str), _field(values, "auroc", dict)
        if score not in get_args(OutlierScore):
            raise UserError(f"score is {score[:60]!r}, which is not known")
        if not all(isinstance(each, float | int) and 0 <= each <= 1 for each in auroc.values()):
            raise UserError("auroc must be numbers from 0 to 1")
        reference = _unpacked(_field(values, "reference", dict)) if score == "knn" else None
        return cls(
            score=score,
            calibration=CalibrationScores.from_dict(values),
            reference=reference,
            auroc={str(name): float(value) for name, value in auroc.items()},
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class Uncertainty:
    """What `skipnets calibrate` stores in a model file besides the temperature.

    Args:
        temperature: At which the scores of prediction sets were computed.
        tta: The test-time augmentation with which everything was computed.
        sets: The scores of prediction sets: `class_scores` of the true classes of calibration images, or
            those of `label_scores`; None where there are no sets.
        set_score: Which of the former.
        intervals: Of a regression, the absolute residuals of calibration images for each target, or
            `joint_scores`.
        outliers: How unusual images are recognized; None where that was not possible.
    """

    temperature: float
    tta: str
    sets: CalibrationScores | None = None
    set_score: SetScore = "lac"
    intervals: tuple[CalibrationScores, ...] = ()
    outliers: OutlierDetector | None = None

    @property
    def images(self) -> int:
        """The number of calibration images."""
        scores = self.outliers.calibration if self.outliers is not None else self.sets
        if scores is None:
            return max((each.images for each in self.intervals), default=0)
        return scores.images

    @property
    def highest_coverage(self) -> float | None:
        """The highest coverage of sets, or of intervals of all targets; None where there are none."""
        scores = self.intervals if self.sets is None else (self.sets,)
        return min((each.highest_coverage for each in scores), default=None)

    def scores(self, targets: int | None) -> tuple[CalibrationScores, ...]:
        """The scores by which prediction sets, or intervals, are made.

        Args:
            targets: Of a regression, the number of targets; None of a classifier.

        Returns:
            Those of sets, or of each target's intervals.

        Raises:
            UserError: If the model was calibrated without them.
        """
        if targets is not None:
            if len(self.intervals) != targets:
                raise UserError(_without("prediction intervals"))
            return self.intervals
        if self.sets is None:
            raise UserError(_without("prediction sets"))
        return (self.sets,)

    def check_reject(self, share: float) -> None:
        """Check that a share of the most unusual images can be rejected.

        Raises:
            UserError: If the model was calibrated without its training images or features of them, or with
                too few others.
        """
        if self.outliers is None:
            raise UserError(
                f"reject={share}: the model was calibrated without what outliers are compared with, features "
                "(embed) of its training images; calibrate it again where these are"
            )
        self.outliers.calibration.check_reject(share)

    def to_dict(self) -> dict[str, Any]:
        """As plain values for JSON."""
        return {
            "temperature": self.temperature,
            "tta": self.tta,
            **({} if self.sets is None else {"sets": self.sets.to_dict()}),
            **({} if self.set_score == "lac" else {"set_score": self.set_score}),
            **({"intervals": [each.to_dict() for each in self.intervals]} if self.intervals else {}),
            **({} if self.outliers is None else {"outliers": self.outliers.to_dict()}),
        }

    @classmethod
    def from_dict(cls, values: Any) -> Uncertainty:
        """The inverse of `to_dict`.

        Raises:
            UserError: If the values are damaged.
        """
        try:
            tta = _field(values, "tta", str)
            check_tta(tta)
            set_score: Any = _field(values, "set_score", str) if "set_score" in values else "lac"
            check_set_score(set_score)
            return cls(
                temperature=_field(values, "temperature", float),
                tta=tta,
                sets=CalibrationScores.from_dict(_field(values, "sets", dict)) if "sets" in values else None,
                set_score=set_score,
                intervals=tuple(
                    CalibrationScores.from_dict(each)
                    for each in (_field(values, "intervals", list) if "intervals" in values else ())
                ),
                outliers=OutlierDetector.from_dict(_field(values, "outliers", dict))
                if "outliers" in values
                else None,
            )
        except UserError as error:
            raise UserError(f"uncertainty: {error}") from error


def check_share(**options: float | None) -> None:
    """Check that shares lie between 0 and 1; None stands for no share.

    Raises:
        UserError: If one does not; it names the option.
    """
    for name, value in options.items():
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if value is not None and not (is_number and 0 < value < 1):
            raise UserError(f"{name}={value!r}: must be above 0 and below 1, such as 0.9")


def check_set_score(score: object) -> None:
    """Check the name of a score of prediction sets.

    Raises:
        UserError: If it is none of `SetScore`.
    """
    if score not in (names := get_args(SetScore)):
        raise UserError(f"sets={score}: must be one of {', '.join(names)}{near_matches(str(score), names)}")


def _without(what: str) -> str:
    return f"coverage: the model was calibrated without {what}; calibrate it again"


def _field(record: Any, name: str, kind: type) -> Any:
    value = record.get(name) if isinstance(record, dict) else None
    if not isinstance(value, kind) or isinstance(value, bool):
        raise UserError(f"{name} is missing or of the wrong type")
    return value


def _unpacked(values: Mapping[str, Any]) -> NDArray[np.float16]:
    features, packed = _field(values, "features", int), _field(values, "vectors", str)
    if not 1 <= features <= _MOST_FEATURES or len(packed) > 2 * max(_REFERENCE_BYTES, 2 * features):
        raise UserError("reference is too large")
    try:
        flat = np.frombuffer(base64.b64decode(packed, validate=True), "<f2")
    except (binascii.Error, ValueError) as error:
        raise UserError("reference.vectors is damaged") from error
    if not len(flat) or len(flat) % features or not np.isfinite(flat).all():
        raise UserError("reference.vectors is damaged")
    return flat.reshape(-1, features).astype(np.float16)
