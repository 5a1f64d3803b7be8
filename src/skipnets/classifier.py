"""Classifiers: a network with its class names, preprocessing and provenance, stored as one file.

Needs no torch: one of `skipnets.runtimes` runs the network.

Shapes: N batch, C channels, H height, W width.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray

from skipnets.data.listing import channel_word
from skipnets.data.loading import ImageBatch, evaluation_batches
from skipnets.data.preprocessing import Preprocessing
from skipnets.description import Description, Task, check_answers
from skipnets.errors import UserError, check_at_least_1, check_path, listed
from skipnets.inputs import is_tensor, named_sources
from skipnets.models.registry import AXES, INPUTS, config_to_dict
from skipnets.origin import Origin
from skipnets.runtimes import Runtime, TensorsDoNotFitError, open_runtime
from skipnets.runtimes.ensemble import EnsembleRuntime
from skipnets.runtimes.exported import export_format, open_exported, read_export_metadata
from skipnets.runtimes.model_file import FORMAT_VERSION, member_name, read_model_file, write_model_file
from skipnets.runtimes.views import averaged_embeddings, averaged_logits, check_tta
from skipnets.scaling import TargetScale, common_scales, unscaled
from skipnets.tables import Display, make_table, number_text, properties_table
from skipnets.trust import MissingNetworkError, Trust, trusting
from skipnets.uncertainty import (
    CalibrationScores,
    Uncertainty,
    check_share,
    label_sets,
    prediction_intervals,
    prediction_sets,
)

if TYPE_CHECKING:
    import torch
    from rich.table import Table
    from torch import nn

    from skipnets.data.decoding import ImageDecodeError, Source
    from skipnets.inputs import Images
    from skipnets.models.backbone import Backbone
    from skipnets.runtimes.torch import TorchRuntime

_KINDS: Mapping[Task, str] = {
    "single-label": "classifier",
    "multi-label": "multi-label classifier",
    "regression": "regression",
}
_CLASS_NOUNS: Mapping[Task, str] = {
    "single-label": "classes",
    "multi-label": "labels",
    "regression": "targets",
}
NOT_FINITE = "the network computes what is no number: its weights or its preprocessing are wrong"

__all__ = [
    "NOT_FINITE",
    "SET_SEPARATOR",
    "Classifier",
    "Prediction",
    "RegressionPrediction",
    "as_classifier",
    "check_single_label",
    "describe",
    "load",
    "number_columns",
    "sigmoid",
    "softmax",
    "uncertainty_columns",
]

SET_SEPARATOR = "|"  # between the classes of a prediction set in text


@dataclass(frozen=True, kw_only=True)
class Prediction(Display):
    """A classifier's prediction for one image.

    Attributes:
        source: The path as it was given, or "[3]" for the fourth input where that is not a path.
        label: The most probable class; None if the image failed, or of a multi-label classifier.
        probability: Probability of that class.
        labels: Of a multi-label classifier, the labels whose probabilities reach their thresholds, the most
            probable first; else the most probable class alone.
        ranking: The most probable classes with their probabilities, best first; of a multi-label classifier,
            all labels.
        error: Why the image failed; None if it did not.
        prediction_set: The classes that contain the true one with the coverage asked for, most probable
            first; of a multi-label classifier, the labels that hold this share of an image's labels on
            average. None if none was asked for.
        p_value: How usual the image is: the share of calibration images that are at least as unusual; None if
            no share to reject was given.
        rejected: Whether it is among the share of most unusual images that was to be rejected.
    """

    source: str
    label: str | None = None
    probability: float | None = None
    labels: tuple[str, ...] = ()
    ranking: tuple[tuple[str, float], ...] = ()
    error: str | None = None
    prediction_set: tuple[str, ...] | None = None
    p_value: float | None = None
    rejected: bool | None = None

    def tables(self) -> list[Table]:
        """Tables that `print` and notebooks show."""
        rows = [(label, f"{probability:.1%}") for label, probability in self.ranking]
        if self.error is not None:
            rows = [(f"failed: {self.error}", "")]
        if self.prediction_set is not None:
            of_several = self.label is None
            names = ", ".join(self.prediction_set) or "(none)"
            rows.append((f"{'set' if of_several else 'one of'}: {names}", ""))
        if self.rejected:
            rows.append((f"rejected: unlike the calibration images (p={self.p_value:.4f})", ""))
        columns: Any = {"image": "left", "class": "left", "probability": "right"}
        if self.label is None and self.error is None:
            rows = [(f"✓ {name}" if name in self.labels else f"  {name}", share) for name, share in rows]
            columns = {"image": "left", "label": "left", "probability": "right"}
        return [
            make_table(columns, [(self.source if index == 0 else "", *row) for index, row in enumerate(rows)])
        ]


def uncertainty_columns(
    predictions: Sequence[Prediction], *, coverage: bool, reject: bool
) -> dict[str, list[Any]]:
    """Columns of a table of predictions that hold what was asked for besides the most probable classes.

    Args:
        predictions: One a row.
        coverage: Whether there is a column `set`, the prediction set's classes with "|" between them.
        reject: Whether there are `p_value` and `rejected`.
    """
    columns: dict[str, list[Any]] = {}
    if coverage:
        sets = [row.prediction_set for row in predictions]
        columns["set"] = [None if each is None else SET_SEPARATOR.join(each) for each in sets]
    if reject:
        columns["p_value"] = [row.p_value for row in predictions]
        columns["rejected"] = [row.rejected for row in predictions]
    return columns


@dataclass(frozen=True, kw_only=True)
class RegressionPrediction(Prediction):
    """A regression's prediction for one image: a number for each target.

    It has no classes: `label` and `probability` are None, `labels` and `ranking` empty.

    Attributes:
        values: The targets with their numbers in the targets' units, in their order; empty if the image
            failed. Those of ordinal targets are whole.
        intervals: The targets with the lowest and the highest number of an interval that contains the true
            one with the coverage asked for; empty if none was asked for.
    """

    values: tuple[tuple[str, float], ...] = ()
    intervals: tuple[tuple[str, float, float], ...] = ()

    @property
    def value(self) -> float | None:
        """The number of the only target, or of the first of several; None if the image failed."""
        return self.values[0][1] if self.values else None

    def text(self, target: str) -> str:
        """A target's number as text, with its interval if there is one: "41.5 (38.2 to 44.8)"."""
        [value] = [number for name, number in self.values if name == target]
        limits = [
            f" ({number_text(low)} to {number_text(high)})"
            for name, low, high in self.intervals
            if name == target
        ]
        return "".join([number_text(value), *limits])

    def tables(self) -> list[Table]:
        """Tables that `print` and notebooks show."""
        rows = [(name, self.text(name)) for name, _ in self.values]
        if self.error is not None:
            rows = [(f"failed: {self.error}", "")]
        columns: Any = {"image": "left", "target": "left", "value": "right"}
        return [
            make_table(columns, [(self.source if index == 0 else "", *row) for index, row in enumerate(rows)])
        ]


def number_columns(
    predictions: Sequence[Prediction], targets: Sequence[str], *, coverage: bool = False
) -> dict[str, list[Any]]:
    """Columns of a table of a regression's predictions: one for each target.

    A target that is called like another column, "path", "error" or "source", has "p:" before its name.

    Args:
        predictions: One a row.
        targets: Their names.
        coverage: Whether there are "low:NAME" and "high:NAME" for each, the limits of its interval.
    """
    rows = [
        row if isinstance(row, RegressionPrediction) else RegressionPrediction(source="")
        for row in predictions
    ]
    values = [dict(row.values) for row in rows]
    limits = [{name: ends for name, *ends in row.intervals} for row in rows]
    taken = ("path", "error", "source")
    columns: dict[str, list[Any]] = {}
    for name in targets:
        columns[f"p:{name}" if name in taken else name] = [numbers.get(name) for numbers in values]
        for end, title in enumerate(("low", "high") if coverage else ()):
            columns[f"{title}:{name}"] = [ends[name][end] if name in ends else None for ends in limits]
    return columns


class Classifier(Display):
    """Classifies images, or predicts numbers of them.

    Usually created by `skipnets.load` or `Classifier.from_model`.

    Args:
        architecture: From `skipnets.models.registry.config_to_dict`.
        classes: Names of the classes, in the order of the logits.
        preprocessing: How an image becomes the network's input.
        provenance: Where the weights come from, as plain values. Training writes `created` (ISO date), `data`
            (the DATA argument), `recipe`, `epochs`, `scores`.
        runtime: Runs the network.
        temperature: Divides the logits before the softmax; `skipnets calibrate` fits it.
        path: The file it was loaded from.
        export: Metadata of an export: format, input, int8, check; None for a model file.
        ensemble: Number of networks whose probabilities are averaged; 1 for a single network.
        task: "single-label" for one class an image, "multi-label" for any number of labels, "regression" for
            numbers; `classes` are then the names of the targets.
        thresholds: Of a multi-label classifier, the probability from which on each label counts as present,
            from 0 to 1. Default: 0.5 for each.
        scales: Of a regression, the scale of each target: what makes its number of the network's output.
        uncertainty: What prediction sets and the recognition of outliers need; `skipnets calibrate` fits it.
        tta: Test-time augmentation, one of `skipnets.runtimes.views.TTA`: averages the probabilities of
            several views of each image. It can be changed later, and no file keeps it.

    Raises:
        UserError: If the arguments do not match one another.
    """

    def __init__(
        self,
        *,
        architecture: Mapping[str, Any],
        classes: Sequence[str],
        preprocessing: Preprocessing,
        provenance: Mapping[str, Any],
        runtime: Runtime,
        temperature: float = 1.0,
        path: Path | None = None,
        export: Mapping[str, Any] | None = None,
        ensemble: int = 1,
        task: Task = "single-label",
        thresholds: Sequence[float] | None = None,
        scales: Sequence[TargetScale] | None = None,
        uncertainty: Uncertainty | None = None,
        tta: str = "none",
    ) -> None:
        description = Description(
            architecture=architecture,
            classes=classes,
            preprocessing=preprocessing,
            temperature=temperature,
            provenance=provenance,
            members=ensemble,
            task=task,
            thresholds=cast(Any, thresholds),
            scales=None if scales is None else tuple(scales),
        )
        self.architecture = dict(description.architecture)
        self.classes = tuple(description.classes)
        self.preprocessing = preprocessing
        self.provenance = dict(description.provenance)
        self.runtime = runtime
        self.temperature = description.temperature
        self.path = path
        self.export = None if export is None else dict(export)
        self.ensemble = description.members
        self.task = description.task
        self.thresholds = description.thresholds
        self.scales = description.scales
        self.uncertainty = uncertainty
        check_tta(tta)
        if tta != "none":
            preprocessing.require_images(f"tta={tta}")
        self.tta = tta
        self._members: tuple[Classifier, ...] = ()
        self._number: int | None = None  # among the networks of an ensemble's file
        self._origin: Origin | None = None

    @classmethod
    def from_model(
        cls,
        model: nn.Module,
        *,
        classes: Sequence[str] | None = None,
        preprocessing: Preprocessing | None = None,
        provenance: Mapping[str, Any] | None = None,
        architecture: Mapping[str, Any] | None = None,
        task: Task | None = None,
        thresholds: Sequence[float] | None = None,
        scales: Sequence[TargetScale] | None = None,
    ) -> Classifier:
        """Create a classifier from a torch model, which is not copied, moved or switched to eval mode.

        Args:
            model: From `skipnets.create_model`, or any module (N, C, H, W) → logits (N, K), or of signals
                (N, C, L) or volumes (N, C, D, H, W).
            classes: Names of the classes, in the order of the logits; None takes the labels of the published
                weights that the model was created with, with their thresholds.
            preprocessing: How an image becomes the model's input; None takes what the published weights that
                the model was created with were evaluated with.
            provenance: As for `Classifier`; `created` is added if it is missing.
            architecture: Of a module that is no part of this package, or of a modified model, what makes it:
                `{"import": "package.module:Class", "arguments": {…}}`. It is called to see that it does.
                Without it, loading the file takes such a module: `skipnets.load(path, model=…)`.
            task: As for `Classifier`. Default: "multi-label" for the labels of published weights, otherwise
                "single-label".
            thresholds: As for `Classifier`.
            scales: As for `Classifier`.

        Raises:
            UserError: If `preprocessing` or `classes` is None and the model's weights state none, or a module
                that is no part of this package fails on an image or does not return logits (1, K).
        """
        import torch

        from skipnets.models.backbone import Backbone
        from skipnets.models.custom_model import CustomModel, check_output, config_of
        from skipnets.runtimes.torch import TorchRuntime

        if classes is None:
            labels = getattr(getattr(model, "weights_report", None), "labels", None)
            if labels is None:
                raise UserError("classes: must be given, the model has no published weights that name them")
            classes, task = labels.names, task or "multi-label"
            if task == "multi-label" and thresholds is None:
                thresholds = labels.thresholds
        if not isinstance(model, Backbone) or architecture is not None:
            if preprocessing is None:
                raise UserError("preprocessing: must be given for a network that is no part of this package")
            config = config_of(
                model,
                architecture,
                num_classes=len(classes),
                in_chans=preprocessing.channels,
                dims=preprocessing.dims,
            )
            model = CustomModel.around(model, config)
            check_output(model, torch.zeros(1, preprocessing.channels, *preprocessing.size))
        if preprocessing is None:
            preprocessing = _published_preprocessing(model)
        return cls(
            architecture=config_to_dict(model.config),
            classes=classes,
            preprocessing=preprocessing,
            provenance={"created": datetime.now(UTC).isoformat(timespec="seconds"), **(provenance or {})},
            runtime=TorchRuntime(model),
            task=task or "single-label",
            thresholds=thresholds,
            scales=scales,
        )

    @classmethod
    def from_members(
        cls, members: Sequence[Classifier], *, provenance: Mapping[str, Any] | None = None
    ) -> Classifier:
        """Create an ensemble: a classifier that averages the probabilities, or numbers, of others.

        Args:
            members: Classifiers of one architecture, with the same classes and preprocessing, such as those
                of a run's folds. Their temperatures must be 1: `skipnets calibrate` calibrates the ensemble.
                With several labels an image, the ensemble's thresholds are the means of theirs; regressions
                must have the same mean and standard deviation of each target.
            provenance: As for `Classifier`; `created` is added if it is missing.

        Raises:
            UserError: If there is none, or they differ.
        """
        if not members:
            raise UserError("members: must be at least one classifier")
        first = members[0]
        for name in ("architecture", "classes", "preprocessing", "temperature", "task"):
            if any(getattr(member, name) != getattr(first, name) for member in members):
                raise UserError(f"members: must be classifiers of the same {name}")
        if first.temperature != 1:
            raise UserError("members: must have a temperature of 1; calibrate the ensemble instead")
        if any(member.ensemble > 1 for member in members):
            raise UserError("members: must be single networks, not ensembles")
        scales = None if first.scales is None else common_scales([member.scales or () for member in members])
        thresholds = None
        if first.thresholds is not None:
            thresholds = np.mean(np.array([member.thresholds for member in members]), axis=0).tolist()
        ensemble = cls(
            architecture=first.architecture,
            classes=first.classes,
            preprocessing=first.preprocessing,
            provenance={"created": datetime.now(UTC).isoformat(timespec="seconds"), **(provenance or {})},
            runtime=EnsembleRuntime([member.runtime for member in members], task=first.task),
            ensemble=len(members),
            task=first.task,
            thresholds=thresholds,
            scales=scales,
        )
        ensemble._members = tuple(members)
        return ensemble

    @property
    def runs_in(self) -> str:
        """Runtime, device, and precision where that is known: "torch on cuda:0, 16-mixed"."""
        precision = getattr(self.runtime, "precision", None)
        where = f"{self.runtime.name} on {self.runtime.device}"
        return where if precision is None else f"{where}, {precision}"

    @property
    def members(self) -> tuple[Classifier, ...]:
        """The classifiers of the networks that an ensemble averages; of a single network, itself.

        Raises:
            UserError: If the classifier is an export of an ensemble, which is one graph.
        """
        if self.ensemble > 1 and self.export is not None:
            raise self._no_module()
        return self._members or (self,)

    @property
    def model(self) -> Backbone[Any]:
        """The torch module that the runtime uses: changing it changes the classifier.

        A classifier in the native engine is loaded again and runs in torch from then on.

        Raises:
            UserError: If the classifier is an export, which has no module, or an ensemble, which has several.
        """
        if self.ensemble > 1 and self.export is None:
            raise UserError(
                f"{self.path or 'this classifier'} is an ensemble of {self.ensemble} networks: name the run "
                "folder of one of its folds, or in Python take one of classifier.members"
            )
        return self._torch_runtime().model

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the model file atomically.

        Args:
            path: Usually ends in `.safetensors`; an existing file is replaced.

        Raises:
            UserError: If it cannot be written, weights are not finite, or the model was changed and no longer
                matches its config.
        """
        if self.ensemble == 1:
            tensors = self._tensors()
        else:
            tensors = {
                member_name(number, name): tensor
                for number, member in enumerate(self.members)
                for name, tensor in member._tensors().items()
            }
        write_model_file(path, self.metadata(), tensors)

    def metadata(self) -> dict[str, Any]:
        """The metadata of a model file or an export, as plain values for JSON.

        Raises:
            UserError: If the provenance holds values that JSON cannot represent.
        """
        from skipnets.version import (
            __version__,
        )  # here, because looking it up takes time and predicting does not need it

        description = Description(
            architecture=self.architecture,
            classes=self.classes,
            preprocessing=self.preprocessing,
            temperature=self.temperature,
            provenance=self.provenance,
            members=self.ensemble,
            task=self.task,
            thresholds=self.thresholds,
            scales=self.scales,
            uncertainty=self.uncertainty,
        )
        return {"format_version": FORMAT_VERSION, "skipnets_version": __version__, **description.to_dict()}

    def predict(
        self,
        inputs: Images,
        top_k: int = 1,
        *,
        coverage: float | None = None,
        reject: float | None = None,
        batch_size: int = 32,
        workers: int | None = None,
    ) -> list[Prediction]:
        """Classify images, or predict their numbers, in the order of the inputs.

        Args:
            inputs: One image or any mixture of them: paths, PIL images, arrays ((H, W) or (H, W, C), uint8 or
                uint16) and torch tensors ((H, W) or (C, H, W), uint8, or floats from 0 to 1); where the
                preprocessing has a window, arrays and tensors of any numbers. A folder or a pattern such as
                "new/*.jpg" stands for the images in it. Of signals and volumes, arrays ((L,) or (L, C),
                (D, H, W) or (D, H, W, C)) and tensors (channels first) of the input's size.
            top_k: Number of classes in a ranking; a multi-label classifier ranks all labels.
            coverage: Give each image the set of classes that contains the true one with this probability,
                above 0 and below 1; of a multi-label classifier, the labels that hold this share of an
                image's labels on average; of a regression, an interval for each number.
            reject: Mark images that are as unusual as this share of the calibration images, such as 0.05.
            batch_size: Images per forward pass.
            workers: Threads that read images; None uses one per core.

        Returns:
            One prediction per input, of a regression a `RegressionPrediction`; an unreadable image has an
            `error` and does not stop the others.

        Raises:
            UserError: If a coverage or a share to reject is given, and the classifier is not calibrated.
        """
        return list(
            self.predict_iter(
                inputs, top_k, coverage=coverage, reject=reject, batch_size=batch_size, workers=workers
            )
        )

    def predict_iter(
        self,
        inputs: Images,
        top_k: int = 1,
        *,
        coverage: float | None = None,
        reject: float | None = None,
        batch_size: int = 32,
        workers: int | None = None,
    ) -> Iterator[Prediction]:
        """Like `predict`, one prediction at a time: only a few batches of images are in memory."""
        return self.predict_named(
            named_sources(inputs, self.preprocessing),
            top_k,
            coverage=coverage,
            reject=reject,
            batch_size=batch_size,
            workers=workers,
        )

    def predict_named(
        self,
        sources: Iterable[tuple[str, Source]],
        top_k: int = 1,
        *,
        coverage: float | None = None,
        reject: float | None = None,
        batch_size: int = 32,
        workers: int | None = None,
        failed: Callable[[str, ImageDecodeError], object] | None = None,
    ) -> Iterator[Prediction]:
        """Like `predict_iter`, for images that have names already; they are taken as they are needed.

        Args:
            sources: Names, which become the `source` of the predictions, with what `open_image` takes.
            top_k: As of `predict`.
            coverage: As of `predict`.
            reject: As of `predict`.
            batch_size: As of `predict`.
            workers: As of `predict`.
            failed: Called with name and error of an image that cannot be read, by the thread that reads it.
        """
        check_at_least_1(top_k=top_k)
        self.check_calibrated(coverage=coverage, reject=reject)
        batches = self._named_batches(sources, batch_size, workers, failed)
        return self._predictions(batches, top_k, coverage, reject)

    def check_calibrated(self, *, coverage: float | None = None, reject: float | None = None) -> None:
        """Check, before the work, that `predict` can give these.

        Raises:
            UserError: If one is not between 0 and 1, the classifier is not calibrated or its temperature was
                changed since, or it was calibrated on too few images.
        """
        check_share(coverage=coverage, reject=reject)
        if coverage is None and reject is None:
            return
        option = f"coverage={coverage}" if coverage is not None else f"reject={reject}"
        if self.uncertainty is None:
            export = ", and export it again" if self.export is not None else ""
            raise UserError(f"{option}: needs a calibrated model; first skipnets calibrate MODEL{export}")
        if self.uncertainty.tta != self.tta:
            raise UserError(
                f"{option}: the model was calibrated with tta={self.uncertainty.tta}, not {self.tta}; "
                "use that, or calibrate it again"
            )
        if coverage is not None:
            if self.uncertainty.temperature != self.temperature:
                raise UserError(
                    f"{option}: the temperature was changed after skipnets calibrate; run it again"
                )
            for scores in self._covering:
                scores.quantile(coverage)
        if reject is not None:
            if self.uncertainty.outliers is None:
                raise UserError(
                    f"{option}: the model was calibrated without its training images, by which unusual ones "
                    "are told; calibrate it again where they are"
                )
            self.uncertainty.outliers.calibration.check_reject(reject)

    @property
    def _covering(self) -> tuple[CalibrationScores, ...]:
        """The scores of sets, or of each target's intervals; `check_calibrated` makes sure of them."""
        assert self.uncertainty is not None
        sets, intervals = self.uncertainty.sets, self.uncertainty.intervals
        found = intervals if self.task == "regression" else () if sets is None else (sets,)
        if len(found) != (len(self.classes) if self.task == "regression" else 1):
            what = "prediction intervals" if self.task == "regression" else "prediction sets"
            raise UserError(f"coverage: the model was calibrated without {what}; calibrate it again")
        return found

    def preprocess(self, inputs: Images, *, workers: int | None = None) -> NDArray[Any]:
        """Convert images to the network's input, (N, C, H, W): float32, or uint8 if the graph normalizes.

        Raises:
            UserError: If one of them cannot be read.
        """
        batches = [_require_readable(batch) for batch in self._batches(inputs, 64, workers)]
        return np.concatenate(batches) if batches else self._no_images()

    def logits(self, batch: NDArray[Any] | torch.Tensor) -> NDArray[np.float32]:
        """Logits of a preprocessed batch: (N, C, H, W) → (N, classes).

        With test-time augmentation they are those of the mean probabilities of the views. Of a regression
        they are the scaled numbers; `values` gives them in the targets' units.

        Raises:
            UserError: If the batch has another shape, or is normalized although the graph normalizes.
        """
        return averaged_logits(self.runtime.logits, self._checked(batch), self.tta, task=self.task)

    def embed_batch(self, batch: NDArray[Any] | torch.Tensor) -> NDArray[np.float32]:
        """Embeddings of a preprocessed batch: (N, C, H, W) → (N, num_features).

        With test-time augmentation they are the means of the views'.

        Raises:
            UserError: As `logits`.
        """
        return averaged_embeddings(self.runtime.embed, self._checked(batch), self.tta)

    def probabilities(self, batch: NDArray[Any] | torch.Tensor) -> NDArray[np.float64]:
        """Class probabilities of a preprocessed batch: (N, C, H, W) → (N, classes).

        They are the softmax of the logits divided by the temperature; of a multi-label classifier, the
        sigmoid of each.

        Raises:
            UserError: As `logits`, if the network's outputs are not finite, and of a regression.
        """
        if self.task == "regression":
            raise UserError("probabilities: a regression has none; values gives its numbers")
        return self.answers(batch)

    def values(self, batch: NDArray[Any] | torch.Tensor) -> NDArray[np.float64]:
        """Numbers of a preprocessed batch in the targets' units: (N, C, H, W) → (N, targets).

        Raises:
            UserError: As `logits`, if the network's outputs are not finite, and of a classifier.
        """
        if self.task != "regression":
            raise UserError(f"values: a {_KINDS[self.task]} has probabilities, not numbers")
        return self.answers(batch)

    def answers(self, batch: NDArray[Any] | torch.Tensor) -> NDArray[np.float64]:
        """`probabilities`, or of a regression `values`: what `prediction` takes a row of.

        Raises:
            UserError: As `logits`, and if the network's outputs are not finite.
        """
        answers = self._normalized(self.logits(batch))
        if not np.isfinite(answers).all():
            raise UserError(f"batch: {NOT_FINITE}")
        return answers

    def _normalized(self, logits: NDArray[np.float32]) -> NDArray[np.float64]:
        with np.errstate(invalid="ignore"):  # those that are not finite are reported by the caller
            if self.scales is not None:
                return unscaled(logits, self.scales)
            if self.task == "multi-label":
                return sigmoid(logits, self.temperature)
            return softmax(logits, self.temperature)

    def prediction(self, source: str, probabilities: NDArray[np.float64], top_k: int = 1) -> Prediction:
        """The prediction for one image from its probabilities, or numbers.

        Args:
            source: Its name.
            probabilities: (classes,) a row of `answers`.
            top_k: As of `predict`.
        """
        if self.task == "regression":
            values = tuple(zip(self.classes, probabilities.tolist(), strict=True))
            return RegressionPrediction(source=source, values=values)
        if self.thresholds is not None:
            ranking = self.ranking(probabilities, len(self.classes))
            threshold = dict(zip(self.classes, self.thresholds, strict=True))
            labels = tuple(name for name, probability in ranking if probability >= threshold[name])
            return Prediction(source=source, labels=labels, ranking=ranking)
        ranking = self.ranking(probabilities, top_k)
        label, probability = ranking[0]
        return Prediction(
            source=source, label=label, probability=probability, labels=(label,), ranking=ranking
        )

    def failed(self, source: str, error: str) -> Prediction:
        """The prediction for an image that failed.

        Args:
            source: Its name.
            error: Why.
        """
        kind = RegressionPrediction if self.task == "regression" else Prediction
        return kind(source=source, error=error)

    def ranking(self, probabilities: NDArray[np.float64], top_k: int) -> tuple[tuple[str, float], ...]:
        """The most probable classes of one image with their probabilities, best first.

        Args:
            probabilities: (classes,) probabilities of one image.
            top_k: Number of classes.
        """
        best = np.argsort(-probabilities, kind="stable")[:top_k]
        return tuple((self.classes[index], float(probabilities[index])) for index in best)

    def embed(
        self, inputs: Images, *, batch_size: int = 32, workers: int | None = None
    ) -> NDArray[np.float32]:
        """Embed images as vectors, the pooled features before the classifier head: similar images are close.

        Returns:
            (N, num_features) vectors.

        Raises:
            UserError: If an image cannot be read.
        """
        vectors = [
            self.embed_batch(_require_readable(batch)) for batch in self._batches(inputs, batch_size, workers)
        ]
        if vectors:
            return np.concatenate(vectors)
        one = np.zeros((1, *self._no_images().shape[1:]), self.runtime.input_type)
        return self.runtime.embed(one)[:0]

    def tables(self) -> list[Table]:
        """Tables that `print` and notebooks show."""
        size = "×".join(map(str, self.preprocessing.size))
        dims, channels = self.preprocessing.dims, self.preprocessing.channels
        return [
            properties_table(
                {
                    "model": self._name(),
                    _CLASS_NOUNS[self.task]: f"{len(self.classes)}: {listed(self.classes, 10)}",
                    INPUTS[dims]: f"{size}, {channel_word(channels)}" if dims == 2 else size,
                    "runs in": self.runs_in,
                    **({} if self.path is None else {"file": str(self.path)}),
                }
            )
        ]

    def __repr__(self) -> str:
        return (
            f"Classifier({self._name()}, {len(self.classes)} {_CLASS_NOUNS[self.task]}, "
            f"runtime={self.runtime.name!r}, device={self.runtime.device!r})"
        )

    def _name(self) -> str:
        name = str(self.architecture["name"])
        return name if self.ensemble == 1 else f"ensemble of {self.ensemble} {name}"

    def _no_module(self) -> UserError:
        return UserError(
            f"{self.path} is an export without a torch module: use the model file that it was made from"
        )

    def __getstate__(self) -> dict[str, Any]:
        """What another process gets: a torch module by value, of other runtimes the file to open again."""
        state = vars(self).copy()
        if self._origin is not None and (self.export is not None or self.runtime.name != "torch"):
            del state["runtime"], state["_members"]
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Open the file again where the state holds no runtime.

        Raises:
            UserError: If it is no longer the same file.
        """
        vars(self).update(state)
        if "runtime" not in state:
            assert self._origin is not None
            self._origin.check()
            again = load(
                self._origin.path,
                runtime=self._origin.runtime,
                device=self._origin.device,
                threads=self._origin.threads,
            )
            self.runtime, self._members = again.runtime, again._members

    def _torch_runtime(self) -> TorchRuntime:
        if self.export is not None:
            raise self._no_module()
        from skipnets.runtimes.torch import TorchRuntime

        if self.runtime.name == "native":
            # The caller may change the module, so it runs the classifier from here on.
            self.runtime = TorchRuntime.from_tensors(self.architecture, self._tensors_of_file(), device="cpu")
        return cast(TorchRuntime, self.runtime)

    def _tensors_of_file(self) -> dict[str, NDArray[Any]]:
        assert self.path is not None  # only `load` makes a classifier that does not run in torch
        file = read_model_file(self.path)
        return file.tensors() if self._number is None else file.members()[self._number]

    def _tensors(self) -> dict[str, NDArray[Any]]:
        return self._tensors_of_file() if self.runtime.name == "native" else self._torch_runtime().tensors()

    def _no_images(self) -> NDArray[Any]:
        shape = (0, self.preprocessing.channels, *self.preprocessing.size)
        return np.zeros(shape, self.runtime.input_type)

    def _checked(self, batch: NDArray[Any] | torch.Tensor) -> NDArray[Any]:
        array = batch.detach().cpu().numpy() if is_tensor(batch) else batch
        channels, dims = self.preprocessing.channels, self.preprocessing.dims
        wanted = f"(N, {channels}, {AXES[dims]})"
        if not isinstance(array, np.ndarray):
            raise UserError(f"batch: must be an array or tensor {wanted}, not {type(batch).__name__}")
        if array.ndim != 2 + dims or array.shape[1] != channels:
            raise UserError(f"batch: must be {wanted}, not {array.shape}")
        if self.runtime.input_type == "float32":
            return np.asarray(array, np.float32)
        if array.dtype != np.uint8:
            raise UserError(f"batch: must be uint8 pixels, which this network normalizes, not {array.dtype}")
        return np.asarray(array)

    def _predictions(
        self, batches: Iterator[ImageBatch], top_k: int, coverage: float | None, reject: float | None
    ) -> Iterator[Prediction]:
        for batch in batches:
            rows = iter(
                self.judged(batch.inputs, coverage=coverage, reject=reject) if len(batch.inputs) else ()
            )
            for source, error in batch.outcomes():
                if error is not None:
                    yield self.failed(source, error)
                    continue
                probabilities, uncertainty = next(rows)
                if not np.isfinite(probabilities).all():
                    yield self.failed(source, f"{source}: {NOT_FINITE}")
                    continue
                yield replace(self.prediction(source, probabilities, top_k), **uncertainty)

    def judged(
        self, batch: NDArray[Any], *, coverage: float | None = None, reject: float | None = None
    ) -> list[tuple[NDArray[np.float64], dict[str, Any]]]:
        """`answers` with what is asked for besides: for each image a row, and fields of `Prediction`.

        Args:
            batch: (N, C, H, W), preprocessed.
            coverage: As of `predict`; `check_calibrated` says whether the classifier can.
            reject: Likewise.

        Returns:
            N pairs of (classes,) probabilities or numbers, which need not be finite, and of `prediction_set`
            or `intervals`, `p_value` and `rejected`, where they were asked for.
        """
        logits = self.logits(batch)
        probabilities = self._normalized(logits)
        fields: list[dict[str, Any]] = [{} for _ in probabilities]
        if coverage is not None and self.task == "regression":
            for row, ends in zip(fields, self.intervals(probabilities, coverage).tolist(), strict=True):
                row["intervals"] = tuple(
                    (name, low, high) for name, (low, high) in zip(self.classes, ends, strict=True)
                )
        elif coverage is not None:
            sets = self.sets(probabilities, coverage)
            for row, chosen, shares in zip(fields, sets, probabilities, strict=True):
                row["prediction_set"] = tuple(name for name, _ in self.ranking(shares, int(chosen.sum())))
        if reject is not None and self.uncertainty is not None and self.uncertainty.outliers is not None:
            detector = self.uncertainty.outliers
            features = self.embed_batch(batch) if detector.needs_features else None
            with np.errstate(invalid="ignore"):  # logits that are not finite are reported by the caller
                values = detector.p_values(logits, features)
            for row, value in zip(fields, values.tolist(), strict=True):
                row["p_value"] = value
                row["rejected"] = detector.calibration.rejects(value, reject)
        return list(zip(probabilities, fields, strict=True))

    def sets(self, probabilities: NDArray[np.float64], coverage: float) -> NDArray[np.bool_]:
        """Prediction sets of images: (N, classes) probabilities → whether each class is in an image's set.

        Args:
            probabilities: From `probabilities`.
            coverage: As of `predict`; `check_calibrated` says whether the classifier can.
        """
        [scores] = self._covering
        of_task = label_sets if self.task == "multi-label" else prediction_sets
        return of_task(probabilities, scores, coverage)

    def intervals(self, values: NDArray[np.float64], coverage: float) -> NDArray[np.float64]:
        """Prediction intervals of a regression: (N, T) numbers → (N, T, 2), the lowest and the highest.

        Args:
            values: From `values`.
            coverage: As of `predict`; `check_calibrated` says whether the model can.
        """
        grades = [scale.grades for scale in self.scales or ()]
        return prediction_intervals(values, self._covering, coverage, grades)

    def _batches(self, inputs: Images, batch_size: int, workers: int | None) -> Iterator[ImageBatch]:
        return self._named_batches(named_sources(inputs, self.preprocessing), batch_size, workers)

    def _named_batches(
        self,
        sources: Iterable[tuple[str, Source]],
        batch_size: int,
        workers: int | None,
        failed: Callable[[str, ImageDecodeError], object] | None = None,
    ) -> Iterator[ImageBatch]:
        """Read images in threads, two batches ahead."""
        check_at_least_1(batch_size=batch_size, workers=workers)
        return evaluation_batches(
            sources,
            self.preprocessing,
            batch_size=batch_size,
            workers=workers,
            normalize=self.runtime.input_type == "float32",
            failed=failed,
        )


def _published_preprocessing(model: Backbone[Any]) -> Preprocessing:
    """How the images were prepared on which a model's published weights were evaluated."""
    published = model.weights_report.input if model.weights_report is not None else None
    if published is None:
        raise UserError("preprocessing: must be given, the model has no published weights that state it")
    return Preprocessing(**published.to_preprocessing())


def load(
    path: str | os.PathLike[str],
    *,
    runtime: str = "auto",
    device: str = "auto",
    threads: int | None = None,
    precision: str = "auto",
    tta: str = "none",
    trust: Trust = None,
    model: nn.Module | None = None,
) -> Classifier:
    """Load a classifier.

    A file never makes anything run by itself: where its network is no part of this package, it names an
    import, which `trust` must name as well.

    Args:
        path: A model file, a run folder, or an export: a .onnx or .pt2 file or an OpenVINO folder.
        runtime: "auto" or one of `skipnets.runtimes.RUNTIMES`.
        device: "auto" (the fastest available), "cpu", "cuda", "cuda:1" or "mps".
        threads: CPU threads that compute; None leaves it to the runtime.
        precision: "auto", "32-true" (float32), "bf16-mixed" or "16-mixed". On a CUDA device, "auto" compares
            half precision with float32 on the first 64 images and takes it where no label changes; elsewhere
            it is float32, and so it is for multi-label classifiers and regressions.
        tta: Test-time augmentation: "none", "flip", "crops" or "flip-crops".
        trust: The import that makes a network which is no part of this package, such as
            "package.module:Class". It is imported and run.
        model: Such a network, instead of an import; it gets the file's weights, and is moved to the device.

    Raises:
        UserError: If there is no model file, it is truncated, damaged, from a newer version or of another
            type, or cannot run here; or if it names an import that `trust` does not.
    """
    check_path("path", path)
    check_tta(tta)
    with trusting(trust):
        classifier = _load(path, runtime, device, threads, precision, model)
    if tta != "none":
        classifier.preprocessing.require_images(f"tta={tta}")
    classifier.tta = tta
    return classifier


def _load(
    path: str | os.PathLike[str],
    runtime: str,
    device: str,
    threads: int | None,
    precision: str,
    model: nn.Module | None = None,
) -> Classifier:
    if export_format(path) is not None:
        if precision not in ("auto", "32-true"):
            raise UserError(f"precision={precision}: an export computes as it was made; take the model file")
        opened = open_exported(path, runtime=runtime, device=device, threads=threads)
        description = Description.from_metadata(opened.path, opened.metadata)
        check_answers(opened.path, opened.runtime, description)
        classifier = _classifier(description, opened.runtime, opened.path, export=opened.metadata["export"])
        return _remembering(classifier, device, threads)
    file = read_model_file(path)
    description = Description.from_metadata(file.path, file.metadata)
    networks = [file.tensors()] if description.members == 1 else file.members()
    if len(networks) != description.members:
        raise UserError(f"{file.path}: holds {len(networks)} networks, not {description.members}")
    try:
        engines = [
            open_runtime(
                runtime,
                architecture=description.architecture,
                tensors=tensors,
                device=device,
                threads=threads,
                # The trial compares the most probable classes, and nothing else.
                precision="32-true"
                if precision == "auto" and description.task != "single-label"
                else precision,
                network=copy.deepcopy(model) if description.members > 1 else model,
            )
            for tensors in networks
        ]
    except (TensorsDoNotFitError, MissingNetworkError) as error:
        raise UserError(f"{file.path}: {error}") from error
    if description.members == 1:
        return _remembering(_classifier(description, engines[0], file.path), device, threads)
    average = EnsembleRuntime(engines, task=description.task)
    ensemble = _classifier(description, average, file.path)
    single = replace(description, members=1, temperature=1.0, uncertainty=None)
    ensemble._members = tuple(_classifier(single, engine, file.path) for engine in engines)
    for number, member in enumerate(ensemble._members):
        member._number = number
    return _remembering(ensemble, device, threads)


def as_classifier(
    model: str | os.PathLike[str] | Classifier,
    *,
    runtime: str = "auto",
    device: str = "auto",
    threads: int | None = None,
) -> Classifier:
    """The classifier that a function was given: itself, or what `load` opens at a path."""
    if isinstance(model, Classifier):
        return model
    check_path("model", model, " or a Classifier")
    return load(model, runtime=runtime, device=device, threads=threads)


def _classifier(
    description: Description, runtime: Runtime, path: Path, *, export: Mapping[str, Any] | None = None
) -> Classifier:
    return Classifier(
        architecture=description.architecture,
        classes=description.classes,
        preprocessing=description.preprocessing,
        provenance=description.provenance,
        runtime=runtime,
        temperature=description.temperature,
        path=path,
        export=export,
        ensemble=description.members,
        task=description.task,
        thresholds=description.thresholds,
        scales=description.scales,
        uncertainty=description.uncertainty,
    )


def _remembering(classifier: Classifier, device: str, threads: int | None) -> Classifier:
    """The classifier, which can then be pickled."""
    assert classifier.path is not None
    classifier._origin = Origin.of(
        classifier.path, runtime=classifier.runtime.name, device=device, threads=threads
    )
    return classifier


def describe(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Metadata of a model file or an export, without loading weights or torch.

    Args:
        path: A model file or a run folder.

    Returns:
        Plain values: path, bytes, format_version, skipnets_version, architecture, parameters (their
        number of all networks), classes, preprocessing, temperature, provenance; of an ensemble members, its
        number of networks; of a multi-label classifier task and thresholds, of a regression task and scales;
        of a calibrated one uncertainty, its number of images and its score for outliers.

    Raises:
        UserError: As for `load`, except for problems in the weights.
    """
    if export_format(path) is not None:
        where, metadata = read_export_metadata(path)
        export = metadata["export"]
        return {
            **_description(where, metadata, export.get("parameters")),
            "export": {key: value for key, value in export.items() if key != "parameters"},
        }
    file = read_model_file(path)
    return _description(file.path, file.metadata, file.parameters)


def _description(path: Path, metadata: dict[str, Any], parameters: int) -> dict[str, Any]:
    description = Description.from_metadata(path, metadata)
    files = path.iterdir() if path.is_dir() else [path]
    values = replace(description, uncertainty=None).to_dict()
    if (uncertainty := description.uncertainty) is not None:
        score = None if uncertainty.outliers is None else uncertainty.outliers.score
        values["uncertainty"] = {"images": uncertainty.images, "outlier_score": score}
    return {
        "path": str(path),
        "bytes": sum(file.stat().st_size for file in files),
        "format_version": metadata["format_version"],
        "skipnets_version": metadata.get("skipnets_version"),
        "architecture": values.pop("architecture"),
        "parameters": parameters,
        **values,
    }


def softmax(logits: NDArray[np.floating[Any]], temperature: float = 1.0) -> NDArray[np.float64]:
    """(N, classes) logits → probabilities, in float64 so that high ones are not rounded to 1."""
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    powers = np.exp(shifted / temperature)
    probabilities: NDArray[np.float64] = powers / powers.sum(axis=1, keepdims=True)
    return probabilities


def sigmoid(logits: NDArray[np.floating[Any]], temperature: float = 1.0) -> NDArray[np.float64]:
    """(N, labels) logits → probabilities of each label, which do not depend on one another, in float64."""
    scaled = logits.astype(np.float64) / temperature
    smaller = np.exp(-np.abs(scaled))  # never above 1, so that nothing overflows
    probabilities: NDArray[np.float64] = np.where(scaled >= 0, 1, smaller) / (1 + smaller)
    return probabilities


def check_single_label(classifier: Classifier, what: str) -> None:
    """Refuse a multi-label classifier or a regression where something is made for one label an image.

    Args:
        classifier: Any.
        what: What is made for one label, as the message's beginning.

    Raises:
        UserError: If it is one.
    """
    if classifier.task != "single-label":
        raise UserError(
            f"{what}: not yet with a {_KINDS[classifier.task]}, as {classifier.path or 'this one'} is"
        )


def _require_readable(batch: ImageBatch) -> NDArray[Any]:
    for name, error in batch.outcomes():
        if error is not None:
            raise UserError(error if name in error else f"{name}: {error}")
    return batch.inputs
