"""What a calibrated classifier gives besides its outputs: prediction sets or intervals, and rejected images.

Needs no torch.

Shapes: N images, K classes, T targets, F features.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray

from skipnets.errors import UserError
from skipnets.uncertainty import (
    CalibrationScores,
    check_share,
    label_sets,
    prediction_intervals,
    prediction_sets,
)

if TYPE_CHECKING:
    from skipnets.classifier import Classifier

__all__ = ["Selection", "check_calibrated", "needs_features"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Selection:
    """Prediction sets or intervals of images and which of these are rejected, each where it was asked for.

    Attributes:
        coverage: The coverage asked for.
        sets: (N, K) whether a class is in an image's set.
        intervals: (N, T, 2) the lowest and the highest number of each interval.
        reject: The share of the most unusual images that is to be rejected.
        p_values: (N,) how usual each image is.
        rejected: (N,) whether it is rejected.
    """

    coverage: float | None = None
    sets: NDArray[np.bool_] | None = None
    intervals: NDArray[np.float64] | None = None
    reject: float | None = None
    p_values: NDArray[np.float64] | None = None
    rejected: NDArray[np.bool_] | None = None

    @classmethod
    def of(
        cls,
        classifier: Classifier,
        logits: NDArray[np.float32],
        features: NDArray[np.float32] | None,
        *,
        coverage: float | None,
        reject: float | None,
    ) -> Self:
        """Select from the outputs of images, which need not be finite.

        Args:
            classifier: What computed them; `check_calibrated` says whether it can.
            logits: (N, K), not divided by the temperature, or (N, T).
            features: (N, F) embeddings, where `needs_features` says so.
            coverage: As of `Classifier.predict`.
            reject: Likewise.
        """
        found: dict[str, Any] = {}
        if coverage is not None:
            outputs, scores = classifier.outputs_of(logits), _scores(classifier)
            if classifier.scales is not None:
                grades = [scale.grades for scale in classifier.scales]
                found["intervals"] = prediction_intervals(outputs, scores, coverage, grades)
            elif classifier.task == "multi-label":
                found["sets"] = label_sets(outputs, scores[0], coverage)
            else:
                assert classifier.uncertainty is not None
                kind = classifier.uncertainty.set_score
                found["sets"] = prediction_sets(outputs, scores[0], coverage, kind)
        if reject is not None:
            assert classifier.uncertainty is not None
            detector = classifier.uncertainty.outliers
            assert detector is not None
            with np.errstate(invalid="ignore"):  # logits that are not finite are reported by the caller
                found["p_values"] = detector.p_values(logits, features)
            found["rejected"] = detector.calibration.rejects(found["p_values"], reject)
        return cls(coverage=coverage, reject=reject, **found)


def needs_features(classifier: Classifier, reject: float | None) -> bool:
    """Whether rejecting images takes their embeddings.

    Args:
        classifier: Any.
        reject: The share to reject; None for none.
    """
    outliers = None if classifier.uncertainty is None else classifier.uncertainty.outliers
    return reject is not None and outliers is not None and outliers.needs_features


def check_calibrated(
    classifier: Classifier, *, coverage: float | None = None, reject: float | None = None
) -> None:
    """Check, before the work, that a classifier can give sets or intervals, and reject images.

    Args:
        classifier: Any.
        coverage: As of `Classifier.predict`.
        reject: Likewise.

    Raises:
        UserError: If one is not between 0 and 1, the classifier is not calibrated or its temperature was
            changed since, or it was calibrated on too few images.
    """
    check_share(coverage=coverage, reject=reject)
    if coverage is None and reject is None:
        return
    option = f"coverage={coverage}" if coverage is not None else f"reject={reject}"
    uncertainty = classifier.uncertainty
    if uncertainty is None:
        export = ", and export it again" if classifier.export is not None else ""
        raise UserError(f"{option}: needs a calibrated model; first skipnets calibrate MODEL{export}")
    if uncertainty.tta != classifier.tta:
        raise UserError(
            f"{option}: the model was calibrated with tta={uncertainty.tta}, not {classifier.tta}; "
            "use that, or calibrate it again"
        )
    if coverage is not None:
        if uncertainty.temperature != classifier.temperature:
            raise UserError(f"{option}: the temperature was changed after skipnets calibrate; run it again")
        for scores in _scores(classifier):
            scores.quantile(coverage)
    if reject is not None:
        uncertainty.check_reject(reject)


def _scores(classifier: Classifier) -> tuple[CalibrationScores, ...]:
    """The scores of prediction sets, or of each target's intervals; the classifier is calibrated."""
    assert classifier.uncertainty is not None
    return classifier.uncertainty.scores(len(classifier.classes) if classifier.task == "regression" else None)
