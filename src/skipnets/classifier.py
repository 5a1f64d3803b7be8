"""The artifact: a network with its class names, its preprocessing and where it came from, as one file.

Needs no torch: what runs the network is one of `skipnets.runtimes`.

N is the images of a batch; C, H and W their channels, height and width.
"""

from __future__ import annotations

import contextlib
import math
import os
import sys
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeGuard, cast

import numpy as np
import PIL.Image
from numpy.typing import NDArray

from skipnets.data.loading import Failures, evaluation_batches
from skipnets.data.preprocessing import Preprocessing
from skipnets.errors import UserError
from skipnets.models.registry import config_from_dict, config_to_dict
from skipnets.runtimes import Runtime, TensorsDoNotFitError, open_runtime
from skipnets.runtimes.exported import export_format, open_exported
from skipnets.runtimes.model_file import read_model_file, write_model_file

if TYPE_CHECKING:
    import torch

    from skipnets.data.decoding import Source
    from skipnets.models.backbone import Backbone
    from skipnets.runtimes.torch import TorchRuntime

    Image = str | os.PathLike[str] | PIL.Image.Image | NDArray[Any] | torch.Tensor

__all__ = ["Classifier", "Prediction", "describe", "load"]


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """What a classifier says about one image.

    Attributes:
        source: The path as it was given, or "[3]" for the fourth input where that is not a path.
        label: The most probable class; None if the image failed.
        probability: Of that class.
        ranking: The most probable classes with their probabilities, best first.
        error: Why the image failed; None if it did not.
    """

    source: str
    label: str | None = None
    probability: float | None = None
    ranking: tuple[tuple[str, float], ...] = ()
    error: str | None = None


class Classifier:
    """Tells what images show.

    Usually made by `skipnets.load` or `Classifier.from_model`.

    Args:
        architecture: What `skipnets.models.registry.config_to_dict` gives.
        classes: Their names, in the order of the logits.
        preprocessing: How an image becomes the network's input.
        provenance: Where the weights come from, as plain values. Training writes `created` (ISO date), `data`
            (the DATA it was given), `recipe`, `epochs`, `scores`.
        runtime: What runs the network.
        temperature: Divides the logits where they become probabilities; `skipnets calibrate` fits it.
        path: The file it was loaded from.
        export: If that is an export, what it says about itself: format, input, int8, check.

    Raises:
        UserError: If these do not fit one another.
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
    ) -> None:
        _check_fit(architecture, classes, preprocessing)
        _check_temperature(temperature)
        self.architecture = dict(architecture)
        self.classes = tuple(classes)
        self.preprocessing = preprocessing
        self.provenance = dict(provenance)
        self.runtime = runtime
        self.temperature = float(temperature)
        self.path = path
        self.export = None if export is None else dict(export)

    @classmethod
    def from_model(
        cls,
        model: Backbone[Any],
        *,
        classes: Sequence[str],
        preprocessing: Preprocessing,
        provenance: Mapping[str, Any] | None = None,
    ) -> Classifier:
        """Make a classifier of a torch model, which is used as it is: not copied, moved or switched to eval.

        Args:
            model: From `skipnets.create_model`.
            classes: Their names, in the order of the logits.
            preprocessing: How an image becomes the model's input.
            provenance: As for `Classifier`; `created` is added if it is not there.
        """
        from skipnets.runtimes.torch import TorchRuntime

        return cls(
            architecture=config_to_dict(model.config),
            classes=classes,
            preprocessing=preprocessing,
            provenance={"created": datetime.now(UTC).isoformat(timespec="seconds"), **(provenance or {})},
            runtime=TorchRuntime(model),
        )

    @property
    def model(self) -> Backbone[Any]:
        """The torch module, in the runtime's own hands: changing it changes the classifier.

        A classifier that the native engine runs is read again and runs in torch from here on.

        Raises:
            UserError: If the classifier is an export, which is a graph and no module.
        """
        return self._torch_runtime().model

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the model file, whole or not at all.

        Args:
            path: Usually ends in `.safetensors`; a file that is there is replaced.

        Raises:
            UserError: If it cannot be written, weights are not finite, or the model was changed so that its
                config no longer describes it.
        """
        import importlib.metadata  # here: it brings the parsers of e-mail along, which no prediction needs

        if self.runtime.name == "native":
            tensors = self._tensors_of_file()
        else:
            tensors = self._torch_runtime().tensors()
        metadata = {
            "skipnets_version": importlib.metadata.version("skipnets"),
            "architecture": self.architecture,
            "classes": list(self.classes),
            "preprocessing": self.preprocessing.to_dict(),
            "temperature": self.temperature,
            "provenance": _plain(self.provenance),
        }
        _check_temperature(self.temperature)
        write_model_file(path, metadata, tensors)

    def predict(
        self,
        inputs: Iterable[Image],
        top_k: int = 1,
        *,
        batch_size: int = 32,
        workers: int | None = None,
    ) -> list[Prediction]:
        """What each image shows, in the order of the inputs.

        Args:
            inputs: Any mixture of paths, PIL images, arrays ((H, W) or (H, W, C), uint8 or uint16) and
                torch tensors ((H, W) or (C, H, W), uint8, or floats from 0 to 1).
            top_k: How many classes a ranking holds, at most all of them.
            batch_size: Images that go through the network at once.
            workers: Threads that read images; None takes one a processor, at most 8.

        Returns:
            One prediction an input. An image that cannot be read has an `error` and stops nothing.
        """
        return list(self.predict_iter(inputs, top_k, batch_size=batch_size, workers=workers))

    def predict_iter(
        self,
        inputs: Iterable[Image],
        top_k: int = 1,
        *,
        batch_size: int = 32,
        workers: int | None = None,
    ) -> Iterator[Prediction]:
        """`predict`, one at a time: holds a few batches of images however long the input is."""
        if top_k < 1:
            raise UserError(f"top_k must be at least 1, not {top_k}")
        return self._predictions(self._batches(inputs, batch_size, workers), top_k)

    def preprocess(self, inputs: Iterable[Image], *, workers: int | None = None) -> NDArray[Any]:
        """Images as the network's input, (N, C, H, W): float32, or uint8 where the graph normalizes.

        Raises:
            UserError: If one of them cannot be read.
        """
        batches = [_all_read(batch) for batch in self._batches(inputs, 64, workers)]
        return np.concatenate(batches) if batches else self._no_images()

    def logits(self, batch: NDArray[Any] | torch.Tensor) -> NDArray[np.float32]:
        """What the network says about a preprocessed batch: (N, C, H, W) → (N, classes).

        Raises:
            UserError: If the batch has another shape, or is normalized where the graph normalizes by itself.
        """
        return self.runtime.logits(self._checked(batch))

    def probabilities(self, batch: NDArray[Any] | torch.Tensor) -> NDArray[np.float64]:
        """How probable each class is, for a preprocessed batch: (N, C, H, W) → (N, classes).

        The temperature is in them; it is not in the logits.

        Raises:
            UserError: As `logits`.
        """
        return softmax(self.logits(batch), self.temperature)

    def ranking(self, probabilities: NDArray[np.float64], top_k: int) -> tuple[tuple[str, float], ...]:
        """The most probable classes of one image with their probabilities, best first.

        Args:
            probabilities: (classes,).
            top_k: How many, at most all of them.
        """
        best = np.argsort(-probabilities, kind="stable")[:top_k]
        return tuple((self.classes[index], float(probabilities[index])) for index in best)

    def embed(
        self, inputs: Iterable[Image], *, batch_size: int = 32, workers: int | None = None
    ) -> NDArray[np.float32]:
        """A vector an image, such that similar images have near vectors: the pooled maps before the head.

        Returns:
            (N, features).

        Raises:
            UserError: If an image cannot be read.
        """
        vectors = [
            self.runtime.embed(_all_read(batch)) for batch in self._batches(inputs, batch_size, workers)
        ]
        if vectors:
            return np.concatenate(vectors)
        one = np.zeros((1, *self._no_images().shape[1:]), self.runtime.input_type)
        return self.runtime.embed(one)[:0]

    def __repr__(self) -> str:
        return (
            f"Classifier({self.architecture['name']}, {len(self.classes)} classes, "
            f"runtime={self.runtime.name!r}, device={self.runtime.device!r})"
        )

    def _torch_runtime(self) -> TorchRuntime:
        if self.export is not None:
            raise UserError(
                f"{self.path} is an export, a graph and no module: take the model file that it was made from"
            )
        from skipnets.runtimes.torch import TorchRuntime

        if self.runtime.name == "native":
            # Whoever asks for the module may change it, so from here on it is what runs.
            self.runtime = TorchRuntime.from_tensors(self.architecture, self._tensors_of_file(), device="cpu")
        return cast(TorchRuntime, self.runtime)

    def _tensors_of_file(self) -> dict[str, NDArray[Any]]:
        assert self.path is not None  # only `load` makes a classifier that does not run in torch
        return read_model_file(self.path).tensors()

    def _no_images(self) -> NDArray[Any]:
        height, width = self.preprocessing.size
        return np.zeros((0, self.preprocessing.channels, height, width), self.runtime.input_type)

    def _checked(self, batch: NDArray[Any] | torch.Tensor) -> NDArray[Any]:
        array = batch.detach().cpu().numpy() if _is_tensor(batch) else batch
        channels = self.preprocessing.channels
        if array.ndim != 4 or array.shape[1] != channels:
            raise UserError(f"a batch must be (N, {channels}, H, W), not {array.shape}")
        if self.runtime.input_type == "float32":
            return np.asarray(array, np.float32)
        if array.dtype != np.uint8:
            raise UserError(
                f"this network normalizes by itself: a batch must be uint8 pixels, not {array.dtype}"
            )
        return np.asarray(array)

    def _predictions(self, batches: Iterator[_Batch], top_k: int) -> Iterator[Prediction]:
        for batch in batches:
            rows: Iterator[NDArray[np.float64]]
            rows = iter(self.probabilities(batch.inputs) if len(batch.inputs) else ())
            for source, error in batch.images:
                if error is not None:
                    yield Prediction(source=source, error=error)
                    continue
                ranking = self.ranking(next(rows), top_k)
                yield Prediction(
                    source=source, label=ranking[0][0], probability=ranking[0][1], ranking=ranking
                )

    def _batches(self, inputs: Iterable[Image], batch_size: int, workers: int | None) -> Iterator[_Batch]:
        """Read images in threads, two batches ahead."""
        if _is_one_image(inputs):
            raise UserError("images are given as a list: put the one you have into [ ]")
        if batch_size < 1:
            raise UserError(f"batch_size must be at least 1, not {batch_size}")
        if workers is not None and workers < 0:
            raise UserError(f"workers must be at least 0, not {workers}")
        threads = min(os.cpu_count() or 1, 8) if workers is None else workers
        names: deque[str] = deque()
        batches = evaluation_batches(
            _named_sources(inputs, names),
            self.preprocessing,
            batch_size=batch_size,
            workers=threads,
            normalize=self.runtime.input_type == "float32",
        )
        return (_named_batch(names, *batch) for batch in batches)


@dataclass(frozen=True, kw_only=True)
class _Batch:
    """Images that were read together.

    Attributes:
        images: Source and error of each input, in order.
        inputs: (n, C, H, W) for the n that have no error.
    """

    images: list[tuple[str, str | None]]
    inputs: NDArray[Any]


def load(
    path: str | os.PathLike[str], *, runtime: str = "auto", device: str = "auto", threads: int | None = None
) -> Classifier:
    """Open a classifier.

    Args:
        path: A model file, a run folder, or an export: a .onnx or .pt2 file or an OpenVINO folder.
        runtime: What runs it: "auto" or one of `skipnets.runtimes.RUNTIMES`.
        device: "auto" (the fastest there is), "cpu", "cuda", "cuda:1" or "mps".
        threads: How many CPU threads compute; None leaves it to the runtime.

    Raises:
        UserError: If there is no model file, it is truncated, damaged, from a newer version or of another
            kind, or cannot run here.
    """
    if export_format(path) is not None:
        opened = open_exported(path, runtime=runtime, device=device, threads=threads)
        return Classifier(
            **_about(opened.path, opened.metadata),
            runtime=opened.runtime,
            path=opened.path,
            export=opened.metadata["export"],
        )
    file = read_model_file(path)
    about = _about(file.path, file.metadata)
    tensors = file.tensors()
    try:
        engine = open_runtime(
            runtime, architecture=about["architecture"], tensors=tensors, device=device, threads=threads
        )
    except TensorsDoNotFitError as error:
        raise UserError(f"{file.path}: {error}") from error
    return Classifier(**about, runtime=engine, path=file.path)


def describe(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Everything that a model file knows, from its header alone: no weights are read and no torch is loaded.

    Args:
        path: A model file or a run folder.

    Returns:
        Plain values: path, bytes, format_version, skipnets_version, architecture, parameters (how many were
        learned), classes, preprocessing, temperature, provenance.

    Raises:
        UserError: As `load`, as far as the header can tell.
    """
    if export_format(path) is not None:
        opened = open_exported(path)
        export = opened.metadata["export"]
        return {
            **_description(opened.path, opened.metadata, export.get("parameters")),
            "export": {key: value for key, value in export.items() if key != "parameters"},
        }
    file = read_model_file(path)
    return _description(file.path, file.metadata, file.parameters)


def _description(path: Path, metadata: dict[str, Any], parameters: int) -> dict[str, Any]:
    about = _about(path, metadata)
    files = path.iterdir() if path.is_dir() else [path]
    return {
        "path": str(path),
        "bytes": sum(file.stat().st_size for file in files),
        "format_version": metadata["format_version"],
        "skipnets_version": metadata.get("skipnets_version"),
        "architecture": dict(about["architecture"]),
        "parameters": parameters,
        "classes": list(about["classes"]),
        "preprocessing": about["preprocessing"].to_dict(),
        "temperature": about["temperature"],
        "provenance": about["provenance"],
    }


def softmax(logits: NDArray[np.floating[Any]], temperature: float = 1.0) -> NDArray[np.float64]:
    """(N, classes) logits → probabilities, in float64 so that sure ones are not rounded to 1."""
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    powers = np.exp(shifted / temperature)
    probabilities: NDArray[np.float64] = powers / powers.sum(axis=1, keepdims=True)
    return probabilities


def _about(path: Path, metadata: dict[str, Any]) -> dict[str, Any]:
    """What the metadata say, judged: the arguments of `Classifier` but for the runtime."""
    try:
        for key, kind in (
            ("architecture", dict),
            ("classes", list),
            ("preprocessing", dict),
            ("provenance", dict),
        ):
            if not isinstance(metadata.get(key), kind):
                raise UserError(f"{key} is missing or of the wrong type")
        preprocessing = Preprocessing.from_dict(metadata["preprocessing"])
        _check_fit(metadata["architecture"], metadata["classes"], preprocessing)
        temperature = metadata.get("temperature", 1.0)
        _check_temperature(temperature)
    except (UserError, TypeError, ValueError, KeyError) as error:
        raise UserError(f"{path}: damaged metadata ({error})") from error
    return {
        "architecture": metadata["architecture"],
        "classes": tuple(metadata["classes"]),
        "preprocessing": preprocessing,
        "temperature": float(temperature),
        "provenance": metadata["provenance"],
    }


def _check_temperature(temperature: object) -> None:
    is_number = isinstance(temperature, int | float) and not isinstance(temperature, bool)
    if not (is_number and 0 < cast(float, temperature) < math.inf):
        raise UserError(f"temperature must be a positive number, not {temperature!r}")


def _check_fit(architecture: Mapping[str, Any], classes: Sequence[str], preprocessing: Preprocessing) -> None:
    """Refuse names, sizes and channels that do not belong together."""
    config = config_from_dict(architecture)
    if isinstance(classes, str) or not classes or not all(isinstance(name, str) and name for name in classes):
        raise UserError("classes must be a list of names, at least one")
    if len(set(classes)) != len(classes):
        twice = sorted({name for name in classes if list(classes).count(name) > 1})
        raise UserError(f"classes must differ from one another; twice: {', '.join(twice)}")
    if len(classes) != config.num_classes:
        raise UserError(f"{len(classes)} classes for a network with {config.num_classes} outputs")
    if preprocessing.channels != config.in_chans:
        raise UserError(
            f"preprocessing makes {preprocessing.channels} channels, "
            f"{config.name} takes in_chans={config.in_chans}"
        )
    if min(preprocessing.size) < config.smallest_size:
        height, width = preprocessing.size
        raise UserError(
            f"preprocessing makes images of {height}×{width}; "
            f"the smallest that {config.name} takes is {config.smallest_size}×{config.smallest_size}"
        )


def _named_sources(inputs: Iterable[Image], names: deque[str]) -> Iterator[Source]:
    """What is to be read of each input; on the way its name goes to `names`."""
    for index, image in enumerate(inputs):
        names.append(os.fspath(image) if isinstance(image, str | os.PathLike) else f"[{index}]")
        if isinstance(image, PIL.Image.Image):
            # It may be in the list twice, and two threads must not decode it at once. A failure recurs there.
            with contextlib.suppress(Exception):
                image.load()
        yield _array_from_tensor(image) if _is_tensor(image) else cast("Source", image)


def _named_batch(
    names: deque[str], read: NDArray[np.int64], inputs: NDArray[np.float32], failures: Failures
) -> _Batch:
    """A batch of `evaluation_batches` with the names, which it takes from the front of the queue."""
    reasons = dict(failures)
    order = sorted([*read.tolist(), *reasons])
    return _Batch(images=[(names.popleft(), reasons.get(position)) for position in order], inputs=inputs)


def _is_tensor(value: object) -> TypeGuard[torch.Tensor]:
    """Whether this is a torch tensor. If torch was never imported, nothing can be one."""
    loaded = sys.modules.get("torch")
    return loaded is not None and isinstance(value, loaded.Tensor)


def _is_one_image(inputs: object) -> bool:
    """Whether an image was given in place of a list of them."""
    if isinstance(inputs, np.ndarray):
        return inputs.ndim < 3 or (inputs.ndim == 3 and inputs.shape[2] in (1, 3, 4))
    if _is_tensor(inputs):
        return inputs.ndim < 3 or (inputs.ndim == 3 and inputs.shape[0] in (1, 3, 4))
    return isinstance(inputs, str | bytes | os.PathLike | PIL.Image.Image)


def _array_from_tensor(tensor: torch.Tensor) -> NDArray[Any]:
    """(C, H, W) or (H, W) tensor of uint8, or of floats from 0 to 1 → (H, W, C) or (H, W) uint8."""
    array: NDArray[Any] = tensor.detach().cpu().numpy()
    if array.ndim == 3:
        array = array.transpose(1, 2, 0)
    # Floats beyond that, and NaN, stay as they are: the reader refuses them.
    from_0_to_1 = array.dtype.kind == "f" and bool(((array >= 0) & (array <= 1)).all())
    return np.rint(array * 255).astype(np.uint8) if from_0_to_1 else array


def _all_read(batch: _Batch) -> NDArray[Any]:
    for source, error in batch.images:
        if error is not None:
            raise UserError(error if source in error else f"{source}: {error}")
    return batch.inputs


def _plain(value: Any) -> Any:
    """A value as JSON has it: arrays and tuples as lists, paths as text, what is not finite as null."""
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, np.ndarray | np.generic):
        return _plain(value.tolist())
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, str | int):
        return value
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    raise UserError(f"provenance must hold plain values, not {type(value).__name__} ({value!r})")
