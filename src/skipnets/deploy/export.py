"""Export a classifier to a portable file, verified against the classifier before it appears.

Shapes: N batch, C channels, H height, W width, K classes.
"""

from __future__ import annotations

import contextlib
import logging
import os
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch

from skipnets.classifier import Classifier, as_classifier, load
from skipnets.data.dataset import ImageDataset
from skipnets.deploy.agreement import Agreement
from skipnets.deploy.graph import (
    onnx_graph,
    openvino_graph,
    require_libraries,
    simplify,
    trace,
    trace_ensemble,
    trace_mirrored,
    write_graph,
)
from skipnets.deploy.own_network import portable, trace_own
from skipnets.deploy.quantize import Accuracy, Quantization, judge, open_calibration, quantize
from skipnets.deploy.timing import alternate
from skipnets.deploy.verification import Check, CheckFailedError, CheckImages, check_images
from skipnets.description import COMPARED, Task
from skipnets.errors import UserError, near_matches
from skipnets.files import atomic_path
from skipnets.models.custom_model import CustomModel
from skipnets.models.modified import refused_modification
from skipnets.runtimes.exported import export_format
from skipnets.runtimes.graph_format import EXPORT_FORMATS, ExportFormat
from skipnets.runtimes.model_file import metadata_text
from skipnets.runtimes.runtime import InputType

__all__ = ["Check", "CheckFailedError", "Export", "export_model"]

logger = logging.getLogger("skipnets")

FORMATS = (*EXPORT_FORMATS, "auto")
TOLERANCE = 1e-4
SECONDS_PER_CHOICE = 2.0
_SUFFIXES: dict[str, str] = {"onnx": ".onnx", "openvino": "_openvino", "pt2": ".pt2"}
_AUTO: tuple[ExportFormat, ...] = ("onnx", "openvino")


@dataclass(frozen=True, kw_only=True)
class Export:
    """An exported file.

    Attributes:
        path: The file, or the folder of an OpenVINO graph.
        file_format: "onnx", "openvino" or "pt2".
        input_type: Input of the graph: "uint8" pixels or "float32" preprocessed images.
        check: Result of the comparison with PyTorch.
        accuracy: Accuracy before and after quantization; None without, or of a regression.
        agreement: Of a regression, by how much quantization changes its numbers; None without.
        seconds: Time for one image of each candidate that `"auto"` measured on this machine.
        task: The model's.
        dims: Spatial axes of its input.
    """

    path: Path
    file_format: ExportFormat
    input_type: InputType
    check: Check
    accuracy: Accuracy | None = None
    agreement: Agreement | None = None
    seconds: dict[str, float] | None = None
    task: Task = "single-label"
    dims: int = 2

    @property
    def int8(self) -> bool:
        """Whether it computes in 8 bits."""
        return self.accuracy is not None or self.agreement is not None

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain values for JSON."""
        return {
            "path": str(self.path),
            "format": self.file_format,
            "input": self.input_type,
            "int8": self.int8,
            "check": asdict(self.check),
            "accuracy": None if self.accuracy is None else asdict(self.accuracy),
            **({} if self.agreement is None else {"agreement": asdict(self.agreement)}),
            "seconds": self.seconds,
        }


def export_model(
    model: str | os.PathLike[str] | Classifier,
    output: str | os.PathLike[str] | None = None,
    *,
    file_format: Literal["onnx", "openvino", "pt2", "auto"] = "onnx",
    input_type: InputType | None = None,
    check: str | os.PathLike[str] | ImageDataset | None = None,
    tolerance: float = TOLERANCE,
    int8: bool = False,
    calibration: str | os.PathLike[str] | ImageDataset | None = None,
    max_drop: float | None = None,
) -> Export:
    """Export a classifier as a graph that runs without this package, verified before the file appears.

    The graph takes any number of images of any size that the architecture allows, and outputs "logits" (N, K)
    and "features" (N, num_features); that of an ensemble holds all its networks, and its logits are the
    logarithms of their mean probabilities. Of a classifier that was loaded with `tta="flip"`, it sees the
    mirror image of each image as well, and averages likewise. It carries the metadata from which
    `skipnets.load` creates a classifier. Of a network that is no part of this package, images have the size
    of the preprocessing.

    Args:
        model: A model file, a run folder, or a classifier that runs in torch.
        output: The file or, for OpenVINO, a new folder. None writes it next to the model file. "auto" adds
            the suffix of the chosen format.
        file_format: "onnx", "openvino", "pt2", or "auto": the faster of ONNX and OpenVINO for one
            image on this machine.
        input_type: "uint8" takes pixels (N, C, H, W) from 0 to 255 and normalizes in the graph; "float32"
            takes the output of `Preprocessing`. None takes "uint8", but "float32" where images are windowed.
        check: Images for the comparison: a folder, a manifest or a named dataset. None uses those of
            `calibration`, else the validation split of the classifier's run, else generated images.
        tolerance: Maximum difference between a probability (of a regression, a number in its standard
            deviations) and PyTorch's; not used with int8.
        int8: Quantize weights and activations to 8 bits.
        calibration: Labeled images of the classifier's classes: the training split for quantization ranges,
            the validation split for accuracy; of several labels an image, the share of images all of whose
            known labels are right at their thresholds. Of a regression, images with its targets.
        max_drop: Maximum drop in accuracy by int8, in percentage points (default: 0.5). It takes at least 100
            / max_drop validation images to judge, 200 for half a point or less. Of a regression, the maximum
            mean change of a prediction, in percent of its target's standard deviation in the training images
            (default: 5); that takes 20 images.

    Raises:
        CheckFailedError: If the export's outputs differ; it is deleted.
        UserError: For impossible options, or if accuracy drops too far.

    Examples:
        >>> export_model("runs/cats", file_format="openvino").check.largest_difference
    """
    _check_options(
        file_format,
        input_type or "uint8",
        tolerance=tolerance,
        int8=int8,
        calibration=calibration,
        max_drop=max_drop,
    )
    classifier = _source(model)
    pixel_type = classifier.preprocessing.pixel_type
    if input_type == "uint8" != pixel_type:
        raise UserError(
            "input=uint8: must be float32 for a model of images with more than 8 bits, or of bands"
        )
    input_type = input_type or pixel_type
    final = _output(classifier, output, file_format)
    require_libraries(file_format, int8=int8)
    quantization = None
    if int8:
        assert calibration is not None
        dataset = open_calibration(calibration, classifier)
        quantization = Quantization(
            dataset=dataset, max_drop=max_drop, is_right=judge(classifier), scales=classifier.scales
        )
    exporter = Exporter(
        classifier=classifier,
        input_type=input_type,
        check=check_images(classifier, calibration if check is None else check),
        tolerance=tolerance,
        quantization=quantization,
    )
    if file_format != "auto":
        return exporter.write(final, file_format)
    return _write_fastest(exporter, final)


class Exporter:
    """Traces the network once, and writes it in any format."""

    def __init__(
        self,
        *,
        classifier: Classifier,
        input_type: InputType,
        check: CheckImages,
        tolerance: float,
        quantization: Quantization | None,
    ) -> None:
        self.classifier = classifier
        self.input_type = input_type
        self.check = check
        self.tolerance = tolerance
        self.quantization = quantization
        self.mirrored = classifier.tta == "flip"
        self.models = [member.model for member in classifier.members]
        self.program = self._trace()
        self._onnx: Any = None

    def write(self, path: Path, file_format: ExportFormat, *, int8: bool | None = None) -> Export:
        """Write and verify a graph, record the result in it, and then rename it to its final path."""
        graph, cost = self._graph(file_format), None
        if self.quantization is not None and int8 is not False:
            graph, cost = quantize(
                graph, file_format, self.quantization, self.classifier.preprocessing, self.input_type
            )
        export: dict[str, Any] = {
            "format": file_format,
            "input": self.input_type,
            "int8": cost is not None,
            "parameters": sum(parameter.numel() for model in self.models for parameter in model.parameters()),
        }
        if self.mirrored:
            export["tta"] = self.classifier.tta
        accuracy = cost if isinstance(cost, Accuracy) else None
        agreement = cost if isinstance(cost, Agreement) else None
        if cost is not None:
            export["accuracy" if agreement is None else "agreement"] = asdict(cost)
        with atomic_path(path) as temporary:
            write_graph(graph, file_format, temporary, self._metadata(export))
            try:
                exported = load(temporary, device="cpu")
            except UserError as error:
                reason = str(error).replace(str(temporary), "it")
                raise CheckFailedError(f"{path} was not written: {reason}") from error
            check = self.check.compare(self.classifier, exported)
            if cost is None and not check.largest_difference <= self.tolerance:
                raise CheckFailedError(
                    f"{path} was not written: a {COMPARED[self.classifier.task].differing} differs by "
                    f"{check.largest_difference:.1e} from PyTorch's on {check.images}; tolerance is "
                    f"{self.tolerance:.1e}"
                )
            del exported  # It may hold the file open, which is about to be replaced.
            write_graph(graph, file_format, temporary, self._metadata({**export, "check": asdict(check)}))
        return Export(
            path=path,
            file_format=file_format,
            input_type=self.input_type,
            check=check,
            accuracy=accuracy,
            agreement=agreement,
            task=self.classifier.task,
            dims=self.classifier.preprocessing.dims,
        )

    def _graph(self, file_format: ExportFormat) -> Any:
        if file_format == "pt2":
            return portable(self.program) if isinstance(self.models[0], CustomModel) else self.program
        if self._onnx is None:
            self._onnx = onnx_graph(self.program)
        return self._onnx if file_format == "onnx" else openvino_graph(self._onnx)

    def _trace(self) -> torch.export.ExportedProgram:
        preprocessing, task = self.classifier.preprocessing, self.classifier.task
        own = [model for model in self.models if isinstance(model, CustomModel)]
        if own:
            return trace_own(own, preprocessing, self.input_type, task=task, mirrored=self.mirrored)
        simplified = [simplify(model, preprocessing, self.input_type) for model in self.models]
        if self.mirrored:
            return trace_mirrored(simplified, preprocessing.size, self.input_type, task=task)
        if len(simplified) == 1:
            return trace(simplified[0], preprocessing.size, self.input_type)
        return trace_ensemble(simplified, preprocessing.size, self.input_type, task=task)

    def _metadata(self, export: dict[str, Any]) -> str:
        metadata = self.classifier.metadata()
        uncertainty = metadata.pop("uncertainty", None) if self.mirrored else None
        if uncertainty is not None and uncertainty["tta"] == self.classifier.tta:
            # The views are the graph's own; none are around it.
            metadata["uncertainty"] = {**uncertainty, "tta": "none"}
        return metadata_text({**metadata, "export": export})


def _write_fastest(exporter: Exporter, final: Path) -> Export:
    """Write all candidates, time them on one image, and keep the fastest."""
    exporter_options = [False] if exporter.quantization is None else [False, True]
    # In the same folder, so that the chosen one is renamed and not copied.
    with _folder_beside(final) as folder:
        exports: dict[str, Export] = {}
        reasons = []
        for file_format in _AUTO:
            for int8 in exporter_options:
                name = f"{file_format}{' int8' if int8 else ''}"
                path = folder / f"{name.replace(' ', '-')}{_SUFFIXES[file_format]}"
                try:
                    exports[name] = exporter.write(path, file_format, int8=int8)
                except UserError as error:
                    logger.info("%s is skipped: %s", name, error)
                    reasons.append(f"{name}: {error}")
        if not exports:
            raise UserError(f"no format could be exported ({'; '.join(reasons)})")
        seconds = _time_one_image({name: export.path for name, export in exports.items()})
        fastest = exports[min(seconds, key=lambda name: seconds[name])]
        path = final.with_name(final.name + _SUFFIXES[fastest.file_format])
        fastest.path.replace(path)
    return replace(fastest, path=path, seconds=seconds)


@contextlib.contextmanager
def _folder_beside(path: Path) -> Iterator[Path]:
    """A temporary folder next to a path."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        folder = tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.")
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error}") from error
    with folder as name:
        yield Path(name)


def _time_one_image(paths: dict[str, Path]) -> dict[str, float]:
    """Seconds for one image with each export, medians of alternating runs."""
    candidates: dict[str, Callable[[], object]] = {}
    for name, path in paths.items():
        classifier = load(path, device="cpu")
        shape = (1, classifier.preprocessing.channels, *classifier.preprocessing.size)
        batch = np.zeros(shape, classifier.runtime.input_type)
        candidates[name] = partial(classifier.logits, batch)
    return {name: timing.median for name, timing in alternate(candidates, seconds=SECONDS_PER_CHOICE).items()}


def _check_options(
    file_format: str,
    input_type: str,
    *,
    tolerance: float,
    int8: bool,
    calibration: object,
    max_drop: float | None,
) -> None:
    if file_format not in FORMATS:
        raise UserError(
            f"format={file_format}: must be one of {', '.join(FORMATS)}{near_matches(file_format, FORMATS)}"
        )
    if input_type not in get_args(InputType):
        raise UserError(f"input={input_type}: must be {' or '.join(get_args(InputType))}")
    if int8 and calibration is None:
        raise UserError("calibration: must be given for int8, labeled images of the same classes")
    if int8 and file_format == "pt2":
        raise UserError("format=pt2: must be onnx or openvino for int8")
    if not tolerance >= 0:
        raise UserError(f"tolerance={tolerance}: must be at least 0")
    if max_drop is not None and not max_drop >= 0:
        raise UserError(f"max_drop={max_drop}: must be 0 or more percentage points")
    if max_drop is not None and not int8:
        raise UserError(f"max_drop={max_drop}: needs int8, whose drop in accuracy it limits")


def _source(model: str | os.PathLike[str] | Classifier) -> Classifier:
    """The classifier to be exported, in torch on the CPU."""
    if isinstance(model, str | os.PathLike) and export_format(model) is not None:
        raise UserError(f"{model} is an export: export the model file that it was made from")
    classifier = as_classifier(model, runtime="torch", device="cpu")
    if classifier.export is not None:
        raise UserError(f"{classifier.path} is an export: export the model file that it was made from")
    if classifier.tta not in ("none", "flip"):
        raise UserError(
            f"tta={classifier.tta}: must be none or flip, the views that fit into a graph; predict, evaluate "
            "and serve take the others around it"
        )
    if classifier.tta == "flip" and classifier.uncertainty and classifier.uncertainty.tta != "flip":
        logger.warning(
            "tta=flip: the model was calibrated without, so the export has no prediction sets or "
            "intervals, and no outliers; skipnets calibrate --tta flip before"
        )
    if not classifier.classes:
        raise UserError(f"{classifier.path or 'this classifier'} has no classes to predict")
    for member in classifier.members:
        network = member.model
        if not isinstance(network, CustomModel) and (refused := refused_modification(network)):
            raise UserError(refused)
    return classifier


def _output(classifier: Classifier, output: str | os.PathLike[str] | None, file_format: str) -> Path:
    """The final path, where nothing is yet; without suffix for "auto"."""
    suffix = {**_SUFFIXES, "auto": ""}[file_format]
    if output is None:
        if classifier.path is None:
            raise UserError("output: must be given for a classifier that was never saved")
        return _free(classifier.path.with_name(classifier.path.stem + suffix), file_format)
    path = Path(output)
    wanted = export_format(path) if path.suffix else None
    if file_format in ("onnx", "pt2") and path.suffix.lower() != suffix:
        raise UserError(f"output={output}: must end in {suffix} for format={file_format}")
    if file_format in ("openvino", "auto") and wanted is not None:
        raise UserError(
            f"output={output}: must be {'a folder' if file_format == 'openvino' else 'without suffix'} "
            f"for format={file_format}"
        )
    return _free(path, file_format)


def _free(path: Path, file_format: str) -> Path:
    """The path, if nothing is there that the export would replace."""
    names = [path.name + _SUFFIXES[each] for each in _AUTO] if file_format == "auto" else [path.name]
    for name in names:
        if path.with_name(name).exists():
            raise UserError(f"output={path.with_name(name)}: already exists; remove it or name another")
    return path
