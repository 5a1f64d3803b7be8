"""Attribution of a prediction to parts of the image: Grad-CAM, Integrated Gradients and occlusion.

Captum computes the attributions; this module places them on the image. A map of a late stage is a coarse grid
whose values do not lie in the middle of the cells that seem to divide the image (`skipnets.models.accounting`
has their positions), and the network's input is a resized part of the image, or more than all of it. Both are
undone in one interpolation, straight from the grid to the image's own pixels.

Shapes: C channels, H height, W width of the network's input; h height, w width of a map.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from skipnets.classifier import Classifier, as_classifier
from skipnets.errors import UserError, class_hint, listed, needs_extra

with needs_extra("explain"):  # Before torch, which the same extra brings.
    from captum.attr import IntegratedGradients, LayerGradCam, Occlusion

import torch
from torch import Tensor, nn

from skipnets.inputs import named_sources
from skipnets.models.accounting import Grid, grids
from skipnets.models.custom_model import CustomModel, map_shapes
from skipnets.models.family import network_graph, stage_groups
from skipnets.models.graph import Graph
from skipnets.models.modes import evaluating, sharing_tensors
from skipnets.models.operations import Norm

if TYPE_CHECKING:
    from skipnets.data.decoding import Source
    from skipnets.inputs import Images

Method = Literal["gradcam", "integrated-gradients", "occlusion"]
METHODS: tuple[Method, ...] = get_args(Method)

# Values on the shorter side of a stage's map that still locate what the stage responds to.
FINE_ENOUGH = 12
_INTEGRATION_STEPS = 32
_IMAGES_AT_ONCE = 16


@dataclass(frozen=True, kw_only=True)
class Explanation:
    """How much each part of an image contributes to a class.

    Attributes:
        source: The path as it was given, or "[3]" for the fourth image where that is not a path.
        label: The class that is explained.
        probability: The class's predicted probability; of a regression None.
        method: One of `METHODS`.
        stage: The module whose map it is; None where the map is of the input itself.
        image: The image, upright, at its own resolution.
        grid: (h, w) float32, raw attributions: positive values are evidence for the class, negative against.
        position: Where the grid's values lie in the network's input.
        box: (left, top, right, bottom) of the input in the image's pixels.
        input_size: H and W of the network's input.
        value: Of a regression, the predicted number of the target `label`; otherwise None.
        raised: Of a regression, whether that is above the training images' mean: the evidence is then what
            raises it, and else what lowers it.
    """

    source: str
    label: str
    probability: float | None
    method: Method
    stage: str | None
    image: Image.Image
    grid: NDArray[np.float32]
    position: Grid
    box: tuple[float, float, float, float]
    input_size: tuple[int, int]
    value: float | None = None
    raised: bool = True

    def map(self) -> NDArray[np.float32]:
        """The grid on the image's own pixels, (height, width) float32; 0 outside the network's input."""
        left, top, right, bottom = self.box
        rows = _weights(self.image.height, top, bottom, self.input_size[0], self.grid.shape[0], self.position)
        columns = _weights(
            self.image.width, left, right, self.input_size[1], self.grid.shape[1], self.position
        )
        whole = rows @ self.grid @ columns.T
        return whole.astype(np.float32, copy=False)

    def resized(self, scale: float) -> Explanation:
        """The explanation with a resized image: enlarge small ones for a smooth map."""
        image = resized(self.image, scale)
        x, y = image.width / self.image.width, image.height / self.image.height
        left, top, right, bottom = self.box
        return replace(self, image=image, box=(left * x, top * y, right * x, bottom * y))


def resized(image: Image.Image, scale: float) -> Image.Image:
    """Resize an image for display: enlarged pixels stay sharp."""
    if scale == 1:
        return image
    size = (max(round(image.width * scale), 1), max(round(image.height * scale), 1))
    return image.resize(size, Image.Resampling.NEAREST if scale > 1 else Image.Resampling.LANCZOS)


def explain(
    model: str | os.PathLike[str] | Classifier,
    images: Images,
    *,
    classes: Sequence[str] | None = None,
    method: Method = "gradcam",
    stage: str = "auto",
) -> Iterator[list[Explanation]]:
    """Compute which parts of each image contribute to a class.

    Of an ensemble, the map is the mean of its networks' maps, and the class and its probability are the
    ensemble's.

    Args:
        model: A model file, a run folder, or a classifier that runs in PyTorch.
        images: One image or several: paths, PIL images, arrays and tensors, as `Classifier.predict` takes.
        classes: Classes to explain; None explains each image's most probable class, or with a multi-label
            classifier, all labels that are found in it (the most probable one where none is). Of a
            regression, targets; None explains all. Their maps show what raises the number where it is above
            the training images' mean, and what lowers it where it is below.
        method: "gradcam" (Selvaraju et al. 2017, arXiv 1610.02391): the maps of a stage, weighted by how much
            the class depends on each. "integrated-gradients" (Sundararajan et al. 2017, arXiv 1703.01365):
            gradients at the pixels, along the path from the mean color to the image. "occlusion" (Zeiler and
            Fergus 2014, arXiv 1311.2901): how much the class's logit drops as a window slides over the image.
        stage: For "gradcam", one of `stage_names`; "auto" uses the deepest with at least `FINE_ENOUGH`
            values along the shorter side of its map, or else the finest. Of a network that is no part of this
            package, any module whose output is a map, by its path.

    Yields:
        For each image, one explanation per class, the most probable first where none were given.

    Raises:
        UserError: If the class, method or stage is unknown, an image cannot be read, or the map is a
            single value.
    """
    if method not in METHODS:
        raise UserError(f"method={method}: must be one of {', '.join(METHODS)}")
    classifier = as_classifier(model, runtime="torch")
    classifier.preprocessing.require_images("explain")
    for label in classes or ():
        if label not in classifier.classes:
            raise UserError(f"classes={label}: {class_hint(label, classifier.classes)}")
    module_path, position = _stage(classifier, stage) if method == "gradcam" else (None, Grid())
    return _explanations(
        classifier, named_sources(images, classifier.preprocessing), classes, method, module_path, position
    )


def stage_names(classifier: Classifier) -> list[str]:
    """Names of the stages that Grad-CAM can use, finest first."""
    if (layers := _layers(classifier)) is not None:
        return list(layers)
    return list(_stages(classifier))


def _layers(classifier: Classifier) -> dict[str, tuple[int, int]] | None:
    """Path and map size of the modules of a network without a graph that output maps; None with a graph."""
    model = classifier.members[0].model
    if not isinstance(model, CustomModel):
        return None
    parameter = next(model.parameters())
    images = torch.zeros(1, model.in_chans, *classifier.preprocessing.size)
    with evaluating(model):
        shapes = map_shapes(model.stored(), images.to(parameter.device, parameter.dtype))
    return {path: shape for path, shape in shapes.items() if path}


def _stages(classifier: Classifier) -> dict[str, tuple[str, int]]:
    """The module and graph value that Grad-CAM uses for each stage, after a ReLU where possible.

    A dense block's output concatenates features of any sign and scale. Grad-CAM weights maps against each
    other, so it takes them where the next layer reads them: after the norm and ReLU that follow.
    """
    config = classifier.members[0].model.config
    graph = network_graph(config)
    stem, *groups = stage_groups(config)
    rectified = [path for path in stem if _activates(graph, graph.stages[path])]
    path = (rectified or stem)[-1]
    stages = {_last_name(path): (path, graph.stages[path])}
    for path, *_ in groups:
        stages[_last_name(path)] = _after_relu(graph, path)
    return stages


def _after_relu(graph: Graph, path: str) -> tuple[str, int]:
    """The module and value of a stage's output, or of the ReLU that follows it."""
    value = graph.stages[path]
    if _activates(graph, value):
        return path, value
    for reader in graph.readers(value):
        if isinstance(reader, Norm) and not reader.activates:
            reader = graph.readers(reader.output)[0]
        if reader.activates:
            return reader.name, reader.output
    return path, value


def _activates(graph: Graph, value: int) -> bool:
    """Whether a value is what an activation returns."""
    producer = graph.producer(value)
    return producer is not None and producer.activates


def _last_name(path: str) -> str:
    """The last part of a path; all of it where that is only a number."""
    name = path.rpartition(".")[2]
    return path if name.isdigit() else name


def _explanations(
    classifier: Classifier,
    images: Iterator[tuple[str, Source]],
    classes: Sequence[str] | None,
    method: Method,
    module_path: str | None,
    position: Grid,
) -> Iterator[list[Explanation]]:
    # Captum puts hooks on a model, which must not see what other threads predict or explain meanwhile.
    models = [sharing_tensors(member.model.stored()) for member in classifier.members]
    preprocessing = classifier.preprocessing
    for name, source in images:
        opened = preprocessing.open(source)
        image, batch = preprocessing.shown(opened), preprocessing.batch([opened])
        answers, logits = classifier.outputs(batch)[0], classifier.logits(batch)[0]
        is_number = classifier.task == "regression"
        labels = classes or (classifier.classes if is_number else _found(classifier, answers))
        explanations = []
        for label in labels:
            target = classifier.classes.index(label)
            grids_of_models = []
            for model in models:
                with evaluating(model):
                    grids_of_models.append(_attribute(model, batch, target, method, module_path))
            raised = not is_number or bool(logits[target] >= 0)
            explanations.append(
                Explanation(
                    source=name,
                    label=label,
                    probability=None if is_number else float(answers[target]),
                    method=method,
                    stage=module_path,
                    image=image,
                    grid=np.mean(grids_of_models, axis=0) * (1 if raised else -1),
                    position=position,
                    box=preprocessing.geometry(*image.size),
                    input_size=preprocessing.height_width,
                    value=float(answers[target]) if is_number else None,
                    raised=raised,
                )
            )
        yield explanations


def _found(classifier: Classifier, probabilities: NDArray[np.float64]) -> Sequence[str]:
    """The labels that are found in an image, or its most probable class."""
    found = classifier.prediction("", probabilities)
    return found.labels or [found.ranking[0][0]]


def _attribute(
    model: nn.Module, batch: NDArray[np.float32], target: int, method: Method, module_path: str | None
) -> NDArray[np.float32]:
    """(1, C, H, W) → (h, w)."""
    parameter = next(model.parameters())
    x = torch.from_numpy(batch).to(parameter.device, parameter.dtype).requires_grad_()
    if module_path is not None:
        attribution = LayerGradCam(model, model.get_submodule(module_path)).attribute(x, target=target)
    elif method == "integrated-gradients":
        attribution = IntegratedGradients(model).attribute(
            x, target=target, n_steps=_INTEGRATION_STEPS, internal_batch_size=_IMAGES_AT_ONCE
        )
    else:
        _, channels, height, width = batch.shape
        window = (channels, max(height // 8, 1), max(width // 8, 1))
        strides = (channels, max(window[1] // 2, 1), max(window[2] // 2, 1))
        with torch.no_grad():
            attribution = Occlusion(model).attribute(
                x,
                target=target,
                sliding_window_shapes=window,
                strides=strides,
                perturbations_per_eval=_IMAGES_AT_ONCE,
            )
    assert isinstance(attribution, Tensor)
    # Occlusion attributes the same drop to every channel of a pixel.
    over_channels = attribution.mean(1) if method == "occlusion" else attribution.sum(1)
    grid: NDArray[np.float32] = over_channels[0].detach().float().cpu().numpy()
    return grid


def _stage(classifier: Classifier, stage: str) -> tuple[str, Grid]:
    """The module of a named stage, and the positions of its map's values in the input."""
    size = classifier.preprocessing.height_width
    if (layers := _layers(classifier)) is not None:
        return _layer(layers, size, stage)
    graph = network_graph(classifier.members[0].model.config)
    shapes, stages = graph.shapes(size), _stages(classifier)
    if stage == "auto":
        fine = [name for name, (_, value) in stages.items() if min(shapes[value][1:]) >= FINE_ENOUGH]
        stage = fine[-1] if fine else next(iter(stages))
    if stage not in stages:
        raise UserError(f"stage={stage}: must be auto or one of {', '.join(stages)}")
    path, value = stages[stage]
    if shapes[value][1:] == (1, 1):
        raise UserError(
            f"stage={stage}: makes a map of 1×1 of images of {size[0]}×{size[1]}, which locates nothing: "
            "choose a finer one"
        )
    return path, grids(graph)[value]


def _layer(layers: dict[str, tuple[int, int]], size: tuple[int, int], stage: str) -> tuple[str, Grid]:
    """As `_stage`, of a network without a graph: its maps are taken to lie in the middle of the input.

    Args:
        layers: Path → height and width of its map, in the order in which they run.
        size: Of the input.
        stage: Path, or "auto".
    """
    if not layers:
        raise UserError(
            "method=gradcam: needs a module whose output is a map (N, C, H, W), and there is none"
        )
    if stage == "auto":
        fine = [path for path, shape in layers.items() if min(shape) >= FINE_ENOUGH]
        finest = max(layers, key=lambda path: min(layers[path]))
        stage = fine[-1] if fine else [path for path in layers if layers[path] == layers[finest]][-1]
    if stage not in layers:
        raise UserError(f"stage={stage}: must be auto or one of {listed(layers, 12)}")
    shape = layers[stage]
    if shape == (1, 1):
        raise UserError(
            f"stage={stage}: makes a map of 1×1 of images of {size[0]}×{size[1]}, which locates nothing: "
            "choose a finer one"
        )
    step = max(round(size[0] / shape[0]), 1)
    return stage, Grid(step=step, start=((size[0] - 1) - (shape[0] - 1) * step) / 2)


def _weights(
    pixels: int, start: float, end: float, input_pixels: int, values: int, position: Grid
) -> NDArray[np.float32]:
    """(pixels, values): weight of each value of the grid at each pixel of the image, along one axis.

    Args:
        pixels: Number of pixels of the image.
        start: Where the input begins in the image.
        end: Where the input ends in the image.
        input_pixels: Number of pixels of the input.
        values: Number of values of the grid.
        position: Where the values lie in the input.
    """
    scale = input_pixels / (end - start)
    in_input = (np.arange(pixels) + 0.5 - start) * scale - 0.5
    in_grid = np.clip((in_input - position.start) / position.step, 0, values - 1)
    low = np.minimum(in_grid.astype(np.int64), max(values - 2, 0))
    share = (in_grid - low).astype(np.float32)
    weights = np.zeros((pixels, values), np.float32)
    everywhere = np.arange(pixels)
    weights[everywhere, low] = 1 - share
    weights[everywhere, np.minimum(low + 1, values - 1)] += share
    seen = (in_input > -0.5) & (in_input < input_pixels - 0.5)
    weights[~seen] = 0
    return weights
