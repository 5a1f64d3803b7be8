"""Quantize weights and activations to 8 bits with NNCF, measuring accuracy before and after.

Shapes: N batch, C channels, H height, W width, K classes.
"""

from __future__ import annotations

import contextlib
import io
import logging
import math
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from skipnets.axes import INPUTS
from skipnets.classifier import Classifier
from skipnets.data.dataset import ImageDataset
from skipnets.data.loading import evaluation_batches
from skipnets.data.preprocessing import Preprocessing
from skipnets.deploy.agreement import Agreement, changes, measure_agreement
from skipnets.deploy.timing import alternate
from skipnets.errors import UserError, listed, naming, needs_extra
from skipnets.evaluation.evaluating import open_with_runs_splits
from skipnets.evaluation.intervals import paired_interval
from skipnets.evaluation.multi_label import all_right
from skipnets.evaluation.multi_label_evaluation import labels_by_name
from skipnets.evaluation.regression_evaluation import numbers_by_name
from skipnets.probabilities import sigmoid
from skipnets.runtimes.graph_format import IMAGES, LOGITS, ExportFormat
from skipnets.runtimes.runtime import InputType
from skipnets.scaling import TargetScale

__all__ = ["Accuracy", "Quantization", "judge", "open_calibration", "quantize"]

logger = logging.getLogger("skipnets")

CALIBRATION_IMAGES = 300
_MAX_DROP = 0.5  # percentage points
_MAX_CHANGE = 5.0  # percent of a target's standard deviation
_FEWEST_NUMBERS = 20  # images: their mean change is told to about a fifth of itself
_FINEST_DROP = 0.5  # percentage points: what a smaller max_drop is judged as, for the number of images
Inputs = NDArray[Any]
Predict = Callable[[Inputs], NDArray[np.float32]]


IsRight = Callable[[NDArray[np.float32], NDArray[Any]], NDArray[np.bool_]]
"""(N, K) logits and the labels of N images → (N,) whether each is classified correctly."""


@dataclass(frozen=True, kw_only=True)
class Accuracy:
    """Accuracy before and after quantization; with several labels an image, of all its known labels together.

    Attributes:
        before: Accuracy of the 32-bit graph on the validation images.
        after: Accuracy of the 8-bit graph.
        count: Number of validation images.
        accuracy_aware: Whether layers were kept in 32 bits to preserve accuracy.
        drop_interval: 95% confidence interval of `drop`.
    """

    before: float
    after: float
    count: int
    accuracy_aware: bool
    drop_interval: tuple[float, float]

    @property
    def drop(self) -> float:
        """Drop in accuracy, in percentage points."""
        return 100 * (self.before - self.after)

    @property
    def cost(self) -> str:
        """What int8 costs, as the end of a sentence."""
        return f"accuracy drops by {self.drop:.2f} points ({self.before:.2%} to {self.after:.2%})"

    def __str__(self) -> str:
        low, high = self.drop_interval
        return (
            f"{self.before:.2%} before, {self.after:.2%} after int8, on {self.count:,} images; "
            f"drop {self.drop:.2f} points (95% interval {low:.2f} to {high:.2f})"
        )


@dataclass(frozen=True, kw_only=True)
class Quantization:
    """Options of quantization.

    Args:
        dataset: Images with splits, labeled in the order of the classifier's classes.
        max_drop: Maximum drop in accuracy, in percentage points; of numbers, the maximum mean change of a
            prediction in percent of its target's standard deviation. Default: 0.5, of numbers 5.
        is_right: What accuracy is the share of. Default: that the most probable class is an image's own.
        scales: Of numbers, those of the targets; None for classes.
    """

    dataset: ImageDataset
    max_drop: float | None = None
    is_right: IsRight = field(default_factory=lambda: _class_right)
    scales: Sequence[TargetScale] | None = None

    @property
    def limit(self) -> float:
        """`max_drop`, or its default."""
        if self.max_drop is not None:
            return self.max_drop
        return _MAX_DROP if self.scales is None else _MAX_CHANGE


def _class_right(logits: NDArray[np.float32], labels: NDArray[Any]) -> NDArray[np.bool_]:
    right: NDArray[np.bool_] = logits.argmax(1) == labels
    return right


def judge(classifier: Classifier) -> IsRight:
    """When an image is classified correctly: its class, or all of its known labels at their thresholds."""
    if classifier.thresholds is None:
        return _class_right
    thresholds, temperature = np.asarray(classifier.thresholds), classifier.temperature
    return lambda logits, labels: all_right(sigmoid(logits, temperature) >= thresholds, labels)


def open_calibration(data: str | os.PathLike[str] | ImageDataset, classifier: Classifier) -> ImageDataset:
    """Open labeled images with splits, and check that their classes are the classifier's.

    Images that its own run used have the run's splits, wherever they are now.

    Raises:
        UserError: If the classes or the task differ, or a split has no images.
    """
    classes = classifier.classes
    with naming("calibration"):
        dataset = data if isinstance(data, ImageDataset) else open_with_runs_splits(classifier, data)
    if dataset.task != classifier.task:
        noun = "regression" if classifier.task == "regression" else f"{classifier.task} classifier"
        raise UserError(f"calibration: has {dataset.label_kind}, which does not fit a {noun}")
    labels: NDArray[Any]
    if dataset.multi_label:
        with naming("calibration"):
            labels = labels_by_name(dataset.labels, dataset.classes, classes, "the data")
    elif dataset.regression:
        with naming("calibration"):
            labels = numbers_by_name(dataset.labels, dataset.classes, classes, "the data")
    elif set(dataset.classes) != set(classes):
        wrong = sorted(set(dataset.classes) ^ set(classes))
        raise UserError(
            f"calibration: must have the classifier's classes; only one of the two has {listed(wrong)}"
        )
    else:
        labels = np.array([classes.index(name) for name in dataset.classes])[dataset.labels]
    dataset = replace(dataset, classes=tuple(classes), labels=labels)
    # An image of which no label is known cannot be judged.
    judged = np.isfinite(labels).reshape(len(labels), -1).any(1) | (dataset.splits != "val")
    dataset = dataset if judged.all() else dataset.select(np.flatnonzero(judged))
    for split in ("train", "val"):
        if not len(dataset.split(split)):
            raise UserError(f'calibration: must have images in the split "{split}"')
    return dataset


def quantize(
    graph: Any,
    file_format: ExportFormat,
    options: Quantization,
    preprocessing: Preprocessing,
    input_type: InputType,
) -> tuple[Any, Accuracy | Agreement]:
    """Quantize a graph, keeping layers in 32 bits if accuracy would drop too far, or numbers change too much.

    Args:
        graph: An `openvino.Model` or an `onnx.ModelProto`.
        file_format: Its format.
        options: Dataset and limits.
        preprocessing: How an image becomes the graph's input.
        input_type: Input type of the graph.

    Returns:
        The 8-bit graph, of the same format, and its accuracy or, of numbers, its agreement.

    Raises:
        UserError: If accuracy still drops too far, or numbers change too much, there are too few images to
            judge that, or an ONNX graph does not get faster.
    """
    limit = options.limit
    _check_count(len(options.dataset.split("val")), options)
    backend = _OPENVINO if file_format == "openvino" else _ONNX
    data = _Data(options, preprocessing, input_type)
    measure: Any = _Accuracies(data) if options.scales is None else _Changes(data, options.scales)
    nncf = _import_nncf()
    with _quiet(), _signal_stack_kept():
        before = measure.outcome(backend.predictor(graph))
        calibration = nncf.Dataset(data.calibration(), lambda batch: {IMAGES: batch})
        quantized = nncf.quantize(
            graph,
            calibration,
            subset_size=CALIBRATION_IMAGES,
            preset=nncf.QuantizationPreset.MIXED,
            fast_bias_correction=True,
        )
        cost: Accuracy | Agreement = measure.compare(before, measure.outcome(backend.predictor(quantized)))
    if not cost.drop <= limit:  # also where it is no number
        logger.info("int8: %s, more than %g: looking for layers that must keep 32 bits", cost.cost, limit)
        with _quiet(), _signal_stack_kept():
            quantized = nncf.quantize_with_accuracy_control(
                graph,
                calibration_dataset=calibration,
                validation_dataset=nncf.Dataset(measure.items(before), lambda item: {IMAGES: item[0]}),
                validation_fn=partial(_validate, _cache_last(backend.predictor_of_prepared), measure.scores),
                max_drop=limit / 100,
                drop_type=nncf.DropType.ABSOLUTE,
                subset_size=CALIBRATION_IMAGES,
            )
            after = measure.outcome(backend.predictor(quantized))
        cost = replace(measure.compare(before, after), accuracy_aware=True)
    if not cost.drop <= limit:  # also where it is no number
        raise UserError(f"int8 was not written: {cost.cost}, more than max_drop={limit:g}")
    if file_format == "onnx":
        _require_gain(backend.predictor(graph), backend.predictor(quantized), next(iter(data.calibration())))
    return quantized, cost


def _check_count(images: int, options: Quantization) -> None:
    """One image more or less must not be more than the drop that is to be noticed."""
    noun = INPUTS[options.dataset.dims]
    if options.scales is not None:
        if images < _FEWEST_NUMBERS:
            raise UserError(
                f"calibration: has {images:,} validation {noun}; to judge by how much numbers change it "
                f"takes at least {_FEWEST_NUMBERS}"
            )
        return
    needed = math.ceil(100 / max(options.limit, _FINEST_DROP))
    if images < needed:
        raise UserError(
            f"calibration: has {images:,} validation {noun}, of which one is {100 / images:.2g} points of "
            f"accuracy; to judge max_drop={options.limit:g} it takes at least {needed:,}"
        )


def _accuracy(before: NDArray[np.bool_], after: NDArray[np.bool_]) -> Accuracy:
    """Both accuracies, from which images were classified correctly before and after."""
    lost, won = int((before & ~after).sum()), int((after & ~before).sum())
    low, high = paired_interval(lost, won, len(before))
    return Accuracy(
        before=float(before.mean()),
        after=float(after.mean()),
        count=len(before),
        accuracy_aware=False,
        drop_interval=(100 * low, 100 * high),
    )


class _Data:
    """Calibration and validation images as a graph's input."""

    def __init__(self, options: Quantization, preprocessing: Preprocessing, input_type: InputType) -> None:
        dataset, self.is_right, self.targets = options.dataset, options.is_right, options.dataset.classes
        train = dataset.split("train")
        chosen = np.random.default_rng(0).permutation(len(train))[:CALIBRATION_IMAGES]
        self._train, self._val = train.select(np.sort(chosen)), dataset.split("val")
        self._preprocessing, self._input_type = preprocessing, input_type

    def calibration(self) -> list[Inputs]:
        """Inputs with one image each."""
        batches = [batch for batch, _ in self._batches(self._train)]
        return [batch[index : index + 1] for batch in batches for index in range(len(batch))]

    def validation(self) -> Iterator[tuple[Inputs, NDArray[Any]]]:
        """Batches of inputs with their labels."""
        return self._batches(self._val)

    def right(self, predict: Predict) -> NDArray[np.bool_]:
        """Which of the validation images are classified correctly."""
        return _joined([self.is_right(predict(batch), labels) for batch, labels in self.validation()])

    def outputs(self, predict: Predict) -> tuple[NDArray[np.float32], NDArray[Any]]:
        """The outputs of the validation images, and their labels."""
        pairs = [(predict(batch), labels) for batch, labels in self.validation()]
        return _joined([outputs for outputs, _ in pairs]), _joined([labels for _, labels in pairs])

    def _batches(self, dataset: ImageDataset) -> Iterator[tuple[Inputs, NDArray[Any]]]:
        for batch in evaluation_batches(
            dataset, self._preprocessing, batch_size=16, workers=2, normalize=self._input_type == "float32"
        ):
            if len(batch.positions):
                yield batch.inputs, dataset.labels[batch.positions]


def _joined(parts: list[NDArray[Any]]) -> NDArray[Any]:
    if not parts:
        raise UserError("calibration: none of the validation images can be read")
    return np.concatenate(parts)


Items = Iterable[tuple[Inputs, NDArray[Any]]]
"""Batches of inputs, and what the outputs of each are compared with."""


class _Accuracies:
    """Compares graphs by the share of images that they classify correctly."""

    def __init__(self, data: _Data) -> None:
        self._data = data
        self.outcome = data.right
        self.scores = data.is_right
        self.compare = _accuracy

    def items(self, _: NDArray[np.bool_]) -> Items:
        """Inputs with labels."""
        return list(self._data.validation())


class _Changes:
    """Compares graphs by the numbers that they predict."""

    def __init__(self, data: _Data, scales: Sequence[TargetScale]) -> None:
        self._data = data
        self._scales = scales
        self.outcome = data.outputs

    def compare(
        self,
        before: tuple[NDArray[np.float32], NDArray[Any]],
        after: tuple[NDArray[np.float32], NDArray[Any]],
    ) -> Agreement:
        """By how much the second graph's numbers differ from the first one's."""
        (outputs, numbers), (quantized, _) = before, after
        return measure_agreement(outputs, quantized, numbers, targets=self._data.targets, scales=self._scales)

    def items(self, before: tuple[NDArray[np.float32], NDArray[Any]]) -> Items:
        """Inputs with the numbers of the 32-bit graph."""
        found, start = [], 0
        for batch, _ in self._data.validation():
            found.append((batch, before[0][start : start + len(batch)]))
            start += len(batch)
        return found

    @staticmethod
    def scores(outputs: NDArray[np.float32], before: NDArray[np.float32]) -> NDArray[np.float64]:
        """One less the largest change of an image's numbers, so that no target hides behind the others."""
        scores: NDArray[np.float64] = 1 - changes(before, outputs).max(1)
        return scores


@dataclass(frozen=True)
class _Backend:
    """How to run graphs of one format.

    Attributes:
        predictor: Maps a graph to a function from a batch to logits.
        predictor_of_prepared: The same for graphs that NNCF prepared during accuracy-aware quantization.
    """

    predictor: Callable[[Any], Predict]
    predictor_of_prepared: Callable[[Any], Predict]


def _run_openvino(graph: Any) -> Predict:
    from skipnets.runtimes.openvino import shared_core

    return _run_compiled(shared_core().compile_model(graph, "CPU", {"INFERENCE_PRECISION_HINT": "f32"}))


def _run_compiled(compiled: Any) -> Predict:
    return lambda batch: np.asarray(compiled({IMAGES: batch})[LOGITS])


def _run_onnx(graph: Any) -> Predict:
    from skipnets.runtimes.onnxruntime import open_session

    session = open_session(graph.SerializeToString())
    return lambda batch: np.asarray(session.run([LOGITS], {IMAGES: batch})[0])


# NNCF passes compiled OpenVINO graphs, but unchanged ONNX graphs.
_OPENVINO, _ONNX = _Backend(_run_openvino, _run_compiled), _Backend(_run_onnx, _run_onnx)


def _validate(
    predictor: Callable[[Any], Predict],
    scores: Callable[[NDArray[np.float32], NDArray[Any]], NDArray[Any]],
    prepared: Any,
    items: Items,
) -> tuple[float, list[float]]:
    """Mean score over all batches and in each batch, as NNCF requires."""
    predict = predictor(prepared)
    sums = [(float(scores(predict(batch), wanted).sum()), len(wanted)) for batch, wanted in items]
    total = sum(score for score, _ in sums) / sum(count for _, count in sums)
    return total, [score / count for score, count in sums]


def _cache_last(predictor: Callable[[Any], Predict]) -> Callable[[Any], Predict]:
    """Cache the predictor of the last graph: NNCF requests it for every batch."""
    last: list[tuple[Any, Predict]] = []

    def predictor_of(graph: Any) -> Predict:
        if not last or last[0][0] is not graph:
            last[:] = [(graph, predictor(graph))]
        return last[0][1]

    return predictor_of


def _require_gain(before: Predict, after: Predict, batch: Inputs) -> None:
    """Refuse an 8-bit graph that is not faster than the 32-bit one on this machine."""
    timings = alternate({"fp32": lambda: before(batch), "int8": lambda: after(batch)}, seconds=2.0)
    fp32, int8 = timings["fp32"].median, timings["int8"].median
    if int8 >= fp32:
        raise UserError(
            f"int8 was not written: in ONNX Runtime on this machine it takes {1000 * int8:.1f} ms an image, "
            f"32 bits take {1000 * fp32:.1f} ms; use --format openvino for int8"
        )


def _import_nncf() -> Any:
    """Import NNCF with its telemetry off, which would report every use to a server."""
    os.environ.setdefault("NNCF_CI", "1")
    with needs_extra("deploy"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import nncf
    return nncf


def _signal_stack_kept() -> contextlib.AbstractContextManager[None]:
    """Protect the signal stack: NNCF creates OpenVINO cores and releases them in any order."""
    with needs_extra("deploy"):
        from skipnets.runtimes.openvino import keeping_signal_stack
    return keeping_signal_stack()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Suppress NNCF's progress bars and logs."""
    # The second is PyTorch's, which warns about CUDA when NNCF imports it.
    loggers = [logging.getLogger(name) for name in ("nncf", "torch.utils.cpp_extension")]
    levels = [each.level for each in loggers]
    for each in loggers:
        each.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for each, level in zip(loggers, levels, strict=True):
            each.setLevel(level)
