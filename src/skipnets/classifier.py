"""Classifiers: a network with its class names, preprocessing and provenance, stored as one file.

Needs no torch: one of `skipnets.runtimes` runs the network.

Shapes: N batch, C channels, H height, W width.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray

from skipnets.axes import INPUTS
from skipnets.data.listing import channel_word
from skipnets.data.loading import ImageBatch, evaluation_batches
from skipnets.data.preprocessing import Preprocessing
from skipnets.description import CLASS_NOUNS, MODEL_NOUNS, Description, Task
from skipnets.errors import UserError, check_at_least_1, check_path, listed
from skipnets.inputs import checked_batch, empty_batch, named_sources, readable
from skipnets.models.registry import config_to_dict
from skipnets.opening import OpenedModel, describe, open_model
from skipnets.origin import Origin
from skipnets.predicting import predictions
from skipnets.prediction import Prediction, RegressionPrediction
from skipnets.probabilities import NOT_FINITE, sigmoid, softmax
from skipnets.runtimes import Runtime
from skipnets.runtimes.ensemble import EnsembleRuntime
from skipnets.runtimes.model_file import FORMAT_VERSION, member_name, read_model_file, write_model_file
from skipnets.runtimes.views import averaged_embeddings, averaged_logits, check_tta
from skipnets.scaling import TargetScale, unscaled
from skipnets.selection import check_calibrated
from skipnets.tables import Display, properties_table
from skipnets.trust import Trust, trusting
from skipnets.uncertainty import Uncertainty

if TYPE_CHECKING:
    import torch
    from rich.table import Table
    from torch import nn

    from skipnets.data.decoding import ImageDecodeError, Source
    from skipnets.inputs import Images
    from skipnets.models.backbone import Backbone
    from skipnets.runtimes.torch import TorchRuntime

__all__ = [
    "Classifier",
    "Prediction",
    "RegressionPrediction",
    "as_classifier",
    "check_single_label",
    "describe",
    "load",
]


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
        architectures: Of an ensemble of different networks, that of each; None where all have `architecture`.
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
        architectures: Sequence[Mapping[str, Any]] | None = None,
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
            architectures=None if architectures is None else tuple(architectures),
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
        self.architectures = description.networks
        self.task = description.task
        self.thresholds = description.thresholds
        self.scales = description.scales
        self.uncertainty = uncertainty
        check_tta(tta, preprocessing.dims)
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
            preprocessing: How an image becomes the model's input; None takes what the published weights, or
                the model file, that the model was created with were evaluated with.
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
            provenance=_dated(provenance),
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
            members: Classifiers with the same classes and preprocessing, such as those of a run's folds.
                Networks of this package may differ; others must be of one architecture. Their temperatures
                must be 1: `skipnets calibrate` calibrates the ensemble. With several labels an image, the
                ensemble's thresholds are the means of theirs; regressions must have the same mean and
                standard deviation of each target.
            provenance: As for `Classifier`; `created` is added if it is missing.

        Raises:
            UserError: If there is none, or they differ.
        """
        description = Description.of_ensemble(
            [member._description() for member in members],
            names=[str(member.path or f"member {number}") for number, member in enumerate(members, start=1)],
            provenance=_dated(provenance),
        )
        runtime = EnsembleRuntime([member.runtime for member in members], task=description.task)
        ensemble = cls._described(description, runtime)
        ensemble._members = tuple(members)
        return ensemble

    def uncalibrated(self) -> Classifier:
        """The classifier as before `skipnets calibrate`, with the same network; this one is not changed.

        Its temperature is 1, and it has no uncertainty. Thresholds change with the probabilities, so that the
        same labels are found.
        """
        description = self._description().uncalibrated()
        before = self._described(description, self.runtime, self.path, export=self.export)
        before.tta = self.tta
        before._members, before._number, before._origin = self._members, self._number, self._origin
        return before

    @classmethod
    def _described(
        cls,
        description: Description,
        runtime: Runtime,
        path: Path | None = None,
        *,
        export: Mapping[str, Any] | None = None,
    ) -> Classifier:
        return cls(
            architecture=description.architecture,
            classes=description.classes,
            preprocessing=description.preprocessing,
            provenance=description.provenance,
            runtime=runtime,
            temperature=description.temperature,
            path=path,
            export=export,
            ensemble=description.members,
            architectures=description.architectures,
            task=description.task,
            thresholds=description.thresholds,
            scales=description.scales,
            uncertainty=description.uncertainty,
        )

    @classmethod
    def _opened(cls, opened: OpenedModel, *, device: str, threads: int | None) -> Classifier:
        """The classifier of a file, which can be pickled: it knows how to open the file again."""
        path, runtime = opened.path, opened.runtime
        classifier = cls._described(opened.description, runtime, path, export=opened.export)
        if isinstance(runtime, EnsembleRuntime):
            single = replace(opened.description.uncalibrated(), members=1, architectures=None)
            classifier._members = tuple(
                cls._described(replace(single, architecture=architecture), member, path)
                for architecture, member in zip(classifier.architectures, runtime.members, strict=True)
            )
            for number, member in enumerate(classifier._members):
                member._number = number
        classifier._origin = Origin.of(path, runtime=runtime.name, device=device, threads=threads)
        return classifier

    def _description(self) -> Description:
        return Description(
            architecture=self.architecture,
            classes=self.classes,
            preprocessing=self.preprocessing,
            temperature=self.temperature,
            provenance=self.provenance,
            members=self.ensemble,
            architectures=self.architectures,
            task=self.task,
            thresholds=self.thresholds,
            scales=self.scales,
            uncertainty=self.uncertainty,
        )

    @property
    def runs_in(self) -> str:
        """Runtime, device, and precision where that is known: "torch on cuda:0, 16-mixed"."""
        precision = getattr(self.runtime, "precision", None)
        where = f"{self.runtime.name} on {self.runtime.device}"
        return where if precision is None else f"{where}, {precision}"

    @property
    def network(self) -> str:
        """The network's name; of an ensemble of different networks all names, joined by "+"."""
        return "+".join(dict.fromkeys(str(each["name"]) for each in self.architectures))

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
                "folder of one of its networks, or in Python take one of classifier.members"
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
        from skipnets.version import __version__  # looking it up takes time, and predicting does not need it

        return {
            "format_version": FORMAT_VERSION,
            "skipnets_version": __version__,
            **self._description().to_dict(),
        }

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
                (D, H, W) or (D, H, W, C)) and tensors (channels first).
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
        check_calibrated(self, coverage=coverage, reject=reject)
        batches = self._named_batches(sources, batch_size, workers, failed)
        return predictions(self, batches, top_k, coverage=coverage, reject=reject)

    def preprocess(self, inputs: Images, *, workers: int | None = None) -> NDArray[Any]:
        """Convert images to the network's input, (N, C, H, W): float32, or uint8 if the graph normalizes.

        Raises:
            UserError: If one of them cannot be read.
        """
        batches = [readable(batch) for batch in self._batches(inputs, 64, workers)]
        return (
            np.concatenate(batches) if batches else empty_batch(self.preprocessing, self.runtime.input_type)
        )

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
        return self.outputs(batch)

    def values(self, batch: NDArray[Any] | torch.Tensor) -> NDArray[np.float64]:
        """Numbers of a preprocessed batch in the targets' units: (N, C, H, W) → (N, targets).

        Raises:
            UserError: As `logits`, if the network's outputs are not finite, and of a classifier.
        """
        if self.task != "regression":
            raise UserError(f"values: a {MODEL_NOUNS[self.task]} has probabilities, not numbers")
        return self.outputs(batch)

    def outputs(self, batch: NDArray[Any] | torch.Tensor) -> NDArray[np.float64]:
        """`probabilities`, or of a regression `values`: what a prediction is made of.

        Raises:
            UserError: As `logits`, and if the network's outputs are not finite.
        """
        outputs = self.outputs_of(self.logits(batch))
        if not np.isfinite(outputs).all():
            raise UserError(f"batch: {NOT_FINITE}")
        return outputs

    def outputs_of(self, logits: NDArray[np.float32]) -> NDArray[np.float64]:
        """`outputs` of logits: (N, classes) → (N, classes), which are not finite where the logits are not."""
        with np.errstate(invalid="ignore"):
            if self.scales is not None:
                return unscaled(logits, self.scales)
            if self.task == "multi-label":
                return sigmoid(logits, self.temperature)
            return softmax(logits, self.temperature)

    def embed(
        self, inputs: Images, *, batch_size: int = 32, workers: int | None = None
    ) -> NDArray[np.float32]:
        """Embed images as vectors, the pooled features before the classifier head: similar images are close.

        Returns:
            (N, num_features) vectors.

        Raises:
            UserError: If an image cannot be read.
        """
        vectors = [self.embed_batch(readable(batch)) for batch in self._batches(inputs, batch_size, workers)]
        if vectors:
            return np.concatenate(vectors)
        one = empty_batch(self.preprocessing, self.runtime.input_type, images=1)
        return self.runtime.embed(one)[:0]

    def tables(self) -> list[Table]:
        """Tables that `print` and notebooks show."""
        size = "×".join(map(str, self.preprocessing.size))
        dims, channels = self.preprocessing.dims, self.preprocessing.channels
        return [
            properties_table(
                {
                    "model": self._name(),
                    CLASS_NOUNS[self.task]: f"{len(self.classes)}: {listed(self.classes, 10)}",
                    INPUTS[dims]: f"{size}, {channel_word(channels)}" if dims == 2 else size,
                    "runs in": self.runs_in,
                    **({} if self.path is None else {"file": str(self.path)}),
                }
            )
        ]

    def __repr__(self) -> str:
        return (
            f"Classifier({self._name()}, {len(self.classes)} {CLASS_NOUNS[self.task]}, "
            f"runtime={self.runtime.name!r}, device={self.runtime.device!r})"
        )

    def _name(self) -> str:
        return self.network if self.ensemble == 1 else f"ensemble of {self.ensemble} {self.network}"

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
            opened = open_model(
                self._origin.path,
                runtime=self._origin.runtime,
                device=self._origin.device,
                threads=self._origin.threads,
            )
            again = self._opened(opened, device=self._origin.device, threads=self._origin.threads)
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

    def _checked(self, batch: NDArray[Any] | torch.Tensor) -> NDArray[Any]:
        return checked_batch(batch, self.preprocessing, self.runtime.input_type)

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


def _dated(provenance: Mapping[str, Any] | None) -> dict[str, Any]:
    return {"created": datetime.now(UTC).isoformat(timespec="seconds"), **(provenance or {})}


def _published_preprocessing(model: Backbone[Any]) -> Preprocessing:
    """How the images were prepared on which a model's published weights, or model file, were evaluated."""
    published = model.weights_report.input if model.weights_report is not None else None
    if published is None:
        raise UserError("preprocessing: must be given, the model has no published weights that state it")
    return Preprocessing.from_dict(published.to_preprocessing())


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
        opened = open_model(
            path, runtime=runtime, device=device, threads=threads, precision=precision, model=model
        )
    classifier = Classifier._opened(opened, device=device, threads=threads)
    check_tta(tta, classifier.preprocessing.dims)
    classifier.tta = tta
    return classifier


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
            f"{what}: not yet with a {MODEL_NOUNS[classifier.task]}, as {classifier.path or 'this one'} is"
        )
