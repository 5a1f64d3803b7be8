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
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from skipnets.axes import INPUTS
from skipnets.classifier import Classifier, as_classifier
from skipnets.errors import UserError, class_hint, listed, needs_extra

with needs_extra("explain"):  # Before torch, which the same extra brings.
    from captum.attr import IntegratedGradients, LayerGradCam, Occlusion

import torch
from torch import Tensor, nn

from skipnets.inputs import named_sources
from skipnets.insight.planes import curve_image, curve_map, planes_image, planes_map, shown_values
from skipnets.models.accounting import Grid, grids
from skipnets.models.custom_model import CustomModel, map_shapes
from skipnets.models.family import network_graph, stage_groups
from skipnets.models.graph import Graph
from skipnets.models.modes import evaluating, sharing_tensors
from skipnets.models.operations import Norm
from skipnets.predicting import make_prediction

if TYPE_CHECKING:
    from skipnets.data.decoding import Source
    from skipnets.data.preprocessing import Preprocessing
    from skipnets.data.volume_files import Volume
    from skipnets.inputs import Images

Method = Literal["gradcam", "integrated-gradients", "occlusion"]
METHODS: tuple[Method, ...] = get_args(Method)

# Values on the shorter side of a stage's map that still locate what the stage responds to.
FINE_ENOUGH = 12
_INTEGRATION_STEPS = 32
_IMAGES_AT_ONCE = 16
# The path of a network's module, or None for the input, and the positions of its map's values in the input.
_Place = tuple[str | None, tuple[Grid, ...]]


@dataclass(frozen=True, kw_only=True)
class Explanation:
    """How much each part of an image contributes to a class.

    Attributes:
        source: The path as it was given, or "[3]" for the fourth image where that is not a path.
        label: The class that is explained.
        probability: The class's predicted probability; of a regression None.
        method: One of `METHODS`.
        stage: The module whose map it is; None where the map is of the input itself. Of an ensemble of
            different networks, the modules whose maps it is the mean of.
        image: The image, upright, at its own resolution.
        grid: (h, w) float32, raw attributions: positive values are evidence for the class, negative against.
        positions: Where the grid's values lie in the network's input, along each of its axes.
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
    positions: tuple[Grid, ...]
    box: tuple[float, float, float, float]
    input_size: tuple[int, int]
    value: float | None = None
    raised: bool = True

    def array(self) -> NDArray[np.float32]:
        """The map as it is written to a file; of a signal or a volume, (L,) or (D, H, W)."""
        return self.map()

    def map(self) -> NDArray[np.float32]:
        """The grid on the image's own pixels, (height, width) float32; 0 outside the network's input."""
        left, top, right, bottom = self.box
        whole = self.grid
        ends = ((self.image.height, top, bottom), (self.image.width, left, right))
        for axis, (pixels, start, end) in enumerate(ends):
            whole = _enlarged(whole, axis, pixels, start, end, self.input_size[axis], self.positions[axis])
        return whole

    def resized(self, scale: float) -> Explanation:
        """The explanation with a resized image: enlarge small ones for a smooth map."""
        image = resized(self.image, scale)
        x, y = image.width / self.image.width, image.height / self.image.height
        left, top, right, bottom = self.box
        return replace(self, image=image, box=(left * x, top * y, right * x, bottom * y))


@dataclass(frozen=True, kw_only=True)
class VolumeExplanation(Explanation):
    """How much each part of a signal or a volume contributes to a class.

    `image` shows three of its planes or its curve (`skipnets.insight.planes`), and `map` is what lies over
    that; `array` is the map of all of it. The grid is (l,) or (d, h, w).

    Attributes:
        sides: (L,) or (D, H, W) of the signal or volume itself.
        spacing: The distance between neighbors along each axis.
        ranges: Where the network's input begins and ends along each axis.
        sizes: Of the network's input.
        center: The place with the strongest evidence, or the middle, through which planes are shown.
    """

    sides: tuple[int, ...]
    spacing: tuple[float, ...]
    ranges: tuple[tuple[float, float], ...]
    sizes: tuple[int, ...]
    center: tuple[int, ...] = ()

    def array(self) -> NDArray[np.float32]:
        """The grid at the signal's or volume's own resolution; 0 outside the network's input."""
        whole = self.grid
        for axis, (side, (start, end), size) in enumerate(
            zip(self.sides, self.ranges, self.sizes, strict=True)
        ):
            whole = _enlarged(whole, axis, side, start, end, size, self.positions[axis])
        return whole

    def map(self) -> NDArray[np.float32]:
        """The part of the map that `image` shows, (height, width) float32."""
        whole = self.array()
        if len(self.sides) == 1:
            seen = curve_map(whole, self.image.height)
        else:
            seen = planes_map(whole, self.spacing, self.center)
        if seen.shape == self.image.size[::-1]:
            return seen
        return np.asarray(Image.fromarray(seen).resize(self.image.size, Image.Resampling.BILINEAR))

    def resized(self, scale: float) -> VolumeExplanation:
        """The explanation with a resized image."""
        return replace(self, image=resized(self.image, scale))


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

    Of an ensemble, the map is the mean of its networks' maps (of different networks, at the input's pixels
    and each with 1 as its largest magnitude), and the class and its probability are the ensemble's.

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
        UserError: If the class, method or stage is unknown, a stage is given for another method than
            "gradcam", an image cannot be read, or the map is a single value.
    """
    if method not in METHODS:
        raise UserError(f"method={method}: must be one of {', '.join(METHODS)}")
    if stage != "auto" and method != "gradcam":
        raise UserError(f"stage={stage}: needs method=gradcam, not {method}")
    classifier = as_classifier(model, runtime="torch")
    for label in classes or ():
        if label not in classifier.classes:
            raise UserError(f"classes={label}: {class_hint(label, classifier.classes)}")
    of_input: _Place = (None, (Grid(),) * classifier.preprocessing.dims)
    places = [_stage(member, stage) if method == "gradcam" else of_input for member in classifier.members]
    return _explanations(classifier, named_sources(images, classifier.preprocessing), classes, method, places)


def stage_names(classifier: Classifier) -> list[str]:
    """Names of the stages that Grad-CAM can use, finest first."""
    if (layers := _layers(classifier)) is not None:
        return list(layers)
    return list(_stages(classifier))


def _layers(classifier: Classifier) -> dict[str, tuple[int, ...]] | None:
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
    places: Sequence[_Place],
) -> Iterator[list[Explanation]]:
    """As `explain`.

    Args:
        classifier: It runs in PyTorch.
        images: With their names.
        classes: As of `explain`.
        method: As of `explain`.
        places: The module whose map is taken of each network, and where the map's values lie.
    """
    # Captum puts hooks on a model, which must not see what other threads predict or explain meanwhile.
    models = [sharing_tensors(member.model.stored()) for member in classifier.members]
    preprocessing = classifier.preprocessing
    alike = len(set(places)) == 1
    stage, positions = places[0] if alike else (", ".join(_paths(places)), (Grid(),) * preprocessing.dims)
    for name, source in images:
        is_image = preprocessing.dims == 2
        opened: Any = preprocessing.open(source) if is_image else preprocessing.open_volume(source)
        batch = preprocessing.batch([opened])
        answers, logits = classifier.outputs(batch)[0], classifier.logits(batch)[0]
        is_number = classifier.task == "regression"
        labels = classes or (classifier.classes if is_number else _found(classifier, answers))
        explanations = []
        for label in labels:
            target = classifier.classes.index(label)
            grids_of_models = []
            for model, (module_path, places_of_values) in zip(models, places, strict=True):
                with evaluating(model):
                    grid = _attribute(model, batch, target, method, module_path)
                grids_of_models.append(
                    grid if alike else _comparable(grid, preprocessing.size, places_of_values)
                )
            raised = not is_number or bool(logits[target] >= 0)
            about: dict[str, Any] = {
                "source": name,
                "label": label,
                "probability": None if is_number else float(answers[target]),
                "method": method,
                "stage": stage,
                "grid": np.mean(grids_of_models, axis=0) * (1 if raised else -1),
                "positions": positions,
                "value": float(answers[target]) if is_number else None,
                "raised": raised,
            }
            of_kind: Any = _of_image if is_image else _of_volume
            explanations.append(of_kind(preprocessing, opened, about))
        yield explanations


def _of_image(preprocessing: Preprocessing, opened: Any, about: dict[str, Any]) -> Explanation:
    image = preprocessing.shown(opened)
    return Explanation(
        image=image,
        box=preprocessing.geometry(*image.size),
        input_size=preprocessing.height_width,
        **about,
    )


def _of_volume(preprocessing: Preprocessing, volume: Volume, about: dict[str, Any]) -> VolumeExplanation:
    values, sides = shown_values(preprocessing, volume), volume.array.shape[:-1]
    axes = preprocessing.volume_axes(sides, volume.spacing)
    ranges = tuple(
        (axis.start * side / axis.resized, (axis.start + size) * side / axis.resized)
        for axis, side, size in zip(axes, sides, preprocessing.size, strict=True)
    )
    flat = curve_image(values) if len(sides) == 1 else Image.new("L", (1, 1))
    explanation = VolumeExplanation(
        image=flat,
        box=(0, 0, *flat.size),
        input_size=(flat.height, flat.width),
        sides=sides,
        spacing=volume.spacing,
        ranges=ranges,
        sizes=preprocessing.size,
        **about,
    )
    if len(sides) == 1:
        return explanation
    whole = explanation.array()
    strongest = np.unravel_index(whole.argmax(), sides)
    # Without any evidence, through the middle.
    center = tuple(map(int, strongest)) if whole.max() > 0 else tuple(side // 2 for side in sides)
    image = planes_image(values, volume.spacing, center)
    return replace(
        explanation,
        center=center,
        image=image,
        box=(0, 0, *image.size),
        input_size=(image.height, image.width),
    )


def _found(classifier: Classifier, probabilities: NDArray[np.float64]) -> Sequence[str]:
    """The labels that are found in an image, or its most probable class."""
    found = make_prediction(classifier, "", probabilities)
    return found.labels or [found.ranking[0][0]]


def _attribute(
    model: nn.Module, batch: NDArray[np.float32], target: int, method: Method, module_path: str | None
) -> NDArray[np.float32]:
    """(1, C, H, W) → (h, w); of signals and volumes likewise."""
    parameter = next(model.parameters())
    x = torch.from_numpy(batch).to(parameter.device, parameter.dtype).requires_grad_()
    if module_path is not None:
        attribution = LayerGradCam(model, model.get_submodule(module_path)).attribute(x, target=target)
    elif method == "integrated-gradients":
        attribution = IntegratedGradients(model).attribute(
            x, target=target, n_steps=_INTEGRATION_STEPS, internal_batch_size=_IMAGES_AT_ONCE
        )
    else:
        _, channels, *sides = batch.shape
        window = (channels, *(max(side // 8, 1) for side in sides))
        strides = (channels, *(max(side // 2, 1) for side in window[1:]))
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


def _paths(places: Sequence[_Place]) -> list[str]:
    """The modules of several networks, each once."""
    return list(dict.fromkeys(path for path, _ in places if path is not None))


def _comparable(
    grid: NDArray[np.float32], size: Sequence[int], positions: Sequence[Grid]
) -> NDArray[np.float32]:
    """A grid at each pixel of the network's input, with 1 as its largest magnitude.

    Maps of different networks have only the pixels in common, and their values have no common unit.
    """
    for axis, (side, position) in enumerate(zip(size, positions, strict=True)):
        grid = _enlarged(grid, axis, side, 0, side, side, position)
    largest = float(np.abs(grid).max())
    return grid if largest == 0 else grid / np.float32(largest)


def _stage(classifier: Classifier, stage: str) -> tuple[str, tuple[Grid, ...]]:
    """The module of a named stage, and the positions of its map's values in the input."""
    size = classifier.preprocessing.size
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
    _check_locates(stage, shapes[value][1:], size)
    return path, (grids(graph)[value],) * len(size)


def _check_locates(stage: str, shape: tuple[int, ...], size: tuple[int, ...]) -> None:
    if set(shape) == {1}:
        one, sides = "×".join("1" * len(size)), "×".join(map(str, size))
        raise UserError(
            f"stage={stage}: makes a map of {one} of {INPUTS[len(size)]} of {sides}, which locates nothing: "
            "choose a finer one"
        )


def _layer(
    layers: dict[str, tuple[int, ...]], size: tuple[int, ...], stage: str
) -> tuple[str, tuple[Grid, ...]]:
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
    _check_locates(stage, shape, size)
    return stage, tuple(_centered(side, values) for side, values in zip(size, shape, strict=True))


def _centered(side: int, values: int) -> Grid:
    """Positions of so many values in the middle of an axis of the input."""
    step = max(round(side / values), 1)
    return Grid(step=step, start=((side - 1) - (values - 1) * step) / 2)


def _enlarged(
    grid: NDArray[np.float32],
    axis: int,
    pixels: int,
    start: float,
    end: float,
    input_pixels: int,
    position: Grid,
) -> NDArray[np.float32]:
    """The grid at each pixel of the image along one axis, interpolated; 0 outside the network's input.

    Args:
        grid: With any axes.
        axis: The one that is interpolated.
        pixels: Number of pixels of the image.
        start: Where the input begins in the image.
        end: Where the input ends in the image.
        input_pixels: Number of pixels of the input.
        position: Where the grid's values lie in the input.
    """
    values = grid.shape[axis]
    scale = input_pixels / (end - start)
    in_input = (np.arange(pixels) + 0.5 - start) * scale - 0.5
    in_grid = np.clip((in_input - position.start) / position.step, 0, values - 1)
    low = np.minimum(in_grid.astype(np.int64), max(values - 2, 0))
    share = (in_grid - low).astype(np.float32)
    seen = (in_input > -0.5) & (in_input < input_pixels - 0.5)
    along = tuple(pixels if each == axis else 1 for each in range(grid.ndim))
    enlarged = grid.take(low, axis) * np.where(seen, 1 - share, 0).reshape(along)
    enlarged += grid.take(np.minimum(low + 1, values - 1), axis) * np.where(seen, share, 0).reshape(along)
    return enlarged.astype(np.float32, copy=False)
