"""From weights that others trained to a classifier, without training."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch

from skipnets.classifier import Classifier
from skipnets.data.preprocessing import Preprocessing
from skipnets.description import Task
from skipnets.errors import UserError
from skipnets.models.backbone import Backbone
from skipnets.models.factory import create_model
from skipnets.models.weights import network_of
from skipnets.models.weights.loading import without_ignored
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

    It is multi-label where the weights say that their outputs are labels, as Keras's do with a sigmoid.

    Args:
        weights: As for `skipnets.create_model`.
        model: A registry name. Default: what the weights are of, where they say so.
        classes: Names of the classes, in the order of the outputs. Default: those of the published labels,
            whose thresholds are kept under other names, too. Two names for one output z, of a file, make a
            single-label classifier: sigmoid(z) is the probability of the second.
        weights_ignore: As for `skipnets.create_model`.
        preprocessing: Fields of `Preprocessing`; those that are not given are what the weights were
            evaluated with, where they say so.

    Raises:
        UserError: If something must be given, the weights have no head for these classes, or they are of a
            regression.
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
    is_binary = classes is not None and len(classes) == 2 and _is_binary(source, weights_ignore)
    if classes is not None:
        outputs = 1 if is_binary else len(classes)
        if outputs != fields.get("num_classes", outputs):
            raise UserError(
                f"classes: must be {fields['num_classes']}, the outputs of {source}, not {len(classes)}"
            )
        options["num_classes"] = outputs
    network = create_model(name, weights=source, weights_ignore=weights_ignore, **options).eval()
    report = network.weights_report
    assert report is not None
    if f"{network.head_name}.weight" not in report.mapping:
        raise UserError(
            f"weights={source}: must have a head for {network.num_classes} classes; skipnets train --weights "
            "trains one"
        )
    if report.task == "regression":
        raise UserError(f"weights={source}: must be of a classifier, not of a regression")
    task = cast(Task | None, report.task)
    if is_binary:
        _add_output(network)
        task = "single-label"
    elif network.num_classes == 1 and task != "multi-label":
        raise UserError(
            f"classes: must be two for the one output of {source}, the second of high values; a softmax over "
            "one class is 100% for every image"
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
        task=task,
        thresholds=None if labels is None else labels.thresholds,
    )


def _is_binary(source: str, weights_ignore: Sequence[str]) -> bool:
    """Whether a file's network tells two classes apart by one output, as a head with a sigmoid does."""
    if not Path(source).is_file():
        return False
    checkpoint = read_source(source, model_name="")
    tensors, _ = without_ignored(checkpoint, weights_ignore)
    outputs = [len(tensor) for tensor in tensors.values() if tensor.ndim == 2]
    return outputs == [1] and checkpoint.labels is None and checkpoint.task != "regression"


def _add_output(network: Backbone[Any]) -> None:
    """Put a first output of 0 before the only one, z: softmax(0, z) is (1 - sigmoid(z), sigmoid(z))."""
    head = network.get_classifier().state_dict()
    network.reset_classifier(2)
    network.get_classifier().load_state_dict(
        {name: torch.cat([torch.zeros_like(tensor), tensor]) for name, tensor in head.items()}
    )
