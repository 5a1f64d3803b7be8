"""From weights that others trained to a classifier, without training."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from skipnets.classifier import Classifier
from skipnets.data.preprocessing import Preprocessing
from skipnets.errors import UserError
from skipnets.models.factory import create_model
from skipnets.models.weights import network_of
from skipnets.models.weights.sources import SUFFIXES, read_source

__all__ = ["classifier_from_weights"]


def classifier_from_weights(
    weights: str | os.PathLike[str],
    *,
    model: str | None = None,
    classes: Sequence[str] | None = None,
    weights_ignore: Sequence[str] = (),
    **preprocessing: Any,
) -> Classifier:
    """Create a classifier from weights that have a head.

    Args:
        weights: As for `skipnets.create_model`.
        model: A registry name. Default: what the weights are of, where they say so.
        classes: Names of the classes, in the order of the outputs. Default: those of the published labels,
            whose thresholds are kept under other names, too.
        weights_ignore: As for `skipnets.create_model`.
        preprocessing: Fields of `Preprocessing`; those that are not given are what the weights were
            evaluated with, where they say so.

    Raises:
        UserError: If something must be given, or the weights have no head for these classes.
    """
    source = os.fspath(weights)
    if classes is not None and not classes:
        raise UserError("classes: must have a name for each output, not none")
    name, fields = network_of(source)
    name = model or name
    if name is None:
        if Path(source).suffix.lower() in SUFFIXES:
            read_source(source, model_name="")  # one that is missing or damaged is said to be that
        raise UserError(f"model: must be given, {source} does not say which network it is of")
    options: dict[str, Any] = {}
    if classes is not None:
        outputs = fields.get("num_classes", len(classes))
        if len(classes) != outputs:
            raise UserError(f"classes: must be {outputs}, the outputs of {source}, not {len(classes)}")
        options["num_classes"] = len(classes)
    network = create_model(name, weights=source, weights_ignore=weights_ignore, **options).eval()
    report = network.weights_report
    assert report is not None
    if f"{network.head_name}.weight" not in report.mapping:
        raise UserError(
            f"weights={source}: must have a head for {network.num_classes} classes; skipnets train --weights "
            "trains one"
        )
    if report.input is None and not {"size", "mean", "std"} <= preprocessing.keys():
        raise UserError(f"size, mean, std: must be given, {source} states no preprocessing")
    chosen = None
    if preprocessing:
        stated = {} if report.input is None else report.input.to_preprocessing()
        chosen = Preprocessing.from_dict({"channels": network.in_chans, **stated, **preprocessing})
    labels = report.labels
    return Classifier.from_model(
        network,
        classes=classes,
        preprocessing=chosen,
        provenance={"weights": source},
        task=None if labels is None else "multi-label",
        thresholds=None if labels is None else labels.thresholds,
    )
