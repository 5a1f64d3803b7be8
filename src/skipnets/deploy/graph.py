"""Convert a network to a graph in a portable format, and write it to a file.

Shapes: N batch, C channels, H height, W width.
"""

from __future__ import annotations

import contextlib
import copy
import importlib
import importlib.util
import io
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch._dynamo.exc import UserError, UserErrorType

from skipnets.data.preprocessing import Preprocessing
from skipnets.deploy.rewrite import fold_norms, normalize_inside, pool_before_convolution
from skipnets.description import Task
from skipnets.errors import missing_extra, needs_extra
from skipnets.models.backbone import Backbone
from skipnets.runtimes.graph_format import (
    AXIS_NAMES,
    FEATURES,
    IMAGES,
    LOGITS,
    ONNX_METADATA,
    OPENVINO_GRAPH,
    OPENVINO_METADATA,
    PT2_METADATA,
    ExportFormat,
)
from skipnets.runtimes.runtime import InputType

__all__ = [
    "DeployedEnsemble",
    "DeployedMirrored",
    "onnx_graph",
    "openvino_graph",
    "require_libraries",
    "simplify",
    "trace",
    "trace_ensemble",
    "trace_mirrored",
    "write_graph",
]

_LIBRARIES = {
    "onnx": ("onnx", "onnxscript"),
    "openvino": ("onnx", "onnxscript", "openvino"),
    "pt2": (),
    "auto": ("onnx", "onnxscript"),
}


class _Deployed(nn.Module):
    """A network that also outputs its pooled features, which it computes anyway."""

    def __init__(self, network: Backbone[Any]) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """(N, C, H, W) → logits (N, classes) and features (N, num_features)."""
        maps = images
        for _, stage in self.network.named_stages():
            maps = stage(maps)
        features = self.network.forward_head(maps, pre_logits=True)
        return self.network.get_classifier()(features), features


class DeployedEnsemble(nn.Module):
    """Networks whose probabilities or numbers are averaged, as `skipnets.runtimes.ensemble` does.

    Args:
        members: Each returns logits and features, or all of them logits alone.
        task: What the networks' outputs are.
    """

    def __init__(self, members: Sequence[nn.Module], *, task: Task) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)
        self.average = _AVERAGES[task]

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """(N, C, H, W) → logits (N, classes) and all features (N, E * num_features), if there are any."""
        logits, *features = zip(*(member(images) for member in self.members), strict=True)
        return self.average(logits), *(torch.cat(each, 1) for each in features)


class DeployedMirrored(nn.Module):
    """A network that sees each image and its mirror image, as `skipnets.runtimes.views` does for "flip".

    Volumes (N, C, D, H, W) are mirrored along their width, too.

    Args:
        network: Returns logits and features, or logits alone.
        task: What its outputs are.
    """

    def __init__(self, network: nn.Module, *, task: Task) -> None:
        super().__init__()
        self.network = network
        self.average = _AVERAGES[task]

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """(N, C, H, W) → logits (N, classes) and features (N, F), if there are any."""
        logits, *features = zip(self.network(images), self.network(images.flip(-1)), strict=True)
        return self.average(logits), *(torch.stack(each).mean(0) for each in features)


def _mean_logits(logits: Sequence[Tensor]) -> Tensor:
    """Logarithms of the mean of softmaxes, whose softmax is that mean itself."""
    probabilities = torch.stack([each.softmax(1) for each in logits]).mean(0)
    return probabilities.clamp(min=torch.finfo(probabilities.dtype).tiny).log()


def _mean_label_logits(logits: Sequence[Tensor]) -> Tensor:
    """What the sigmoid makes the mean of sigmoids of: the mean's logarithm less that of its complement."""
    smallest = torch.finfo(logits[0].dtype).tiny
    present, absent = (
        torch.stack([(sign * each).sigmoid() for each in logits]).mean(0).clamp(min=smallest).log()
        for sign in (1, -1)
    )
    return present - absent


def _mean_numbers(numbers: Sequence[Tensor]) -> Tensor:
    return torch.stack(list(numbers)).mean(0)


_AVERAGES = {"single-label": _mean_logits, "multi-label": _mean_label_logits, "regression": _mean_numbers}


def simplify(model: Backbone[Any], preprocessing: Preprocessing, input_type: InputType) -> Backbone[Any]:
    """Apply every exact rewrite that makes the exported network faster."""
    model = pool_before_convolution(fold_norms(copy.deepcopy(model).cpu().float()))
    if input_type == "uint8":
        model = normalize_inside(model, preprocessing.mean, preprocessing.std)
    return model


def trace(model: Backbone[Any], size: Sequence[int], input_type: InputType) -> torch.export.ExportedProgram:
    """Trace a network for any number of images of any size that the architecture allows.

    Args:
        model: From `simplify`.
        size: Usual height and width of the images; sides of volumes, length of signals.
        input_type: Input type of the graph.
    """
    return _trace(_Deployed(model), [model], size, input_type)


def trace_ensemble(
    models: Sequence[Backbone[Any]], size: Sequence[int], input_type: InputType, *, task: Task
) -> torch.export.ExportedProgram:
    """Trace networks as a single graph that averages their probabilities, or numbers.

    Args:
        models: From `simplify`.
        size: Usual height and width of the images; sides of volumes, length of signals.
        input_type: Input type of the graph.
        task: What the networks' outputs are.
    """
    ensemble = DeployedEnsemble([_Deployed(model) for model in models], task=task)
    return _trace(ensemble, models, size, input_type)


def trace_mirrored(
    models: Sequence[Backbone[Any]], size: Sequence[int], input_type: InputType, *, task: Task
) -> torch.export.ExportedProgram:
    """Trace a network, or an ensemble, as a graph that also sees the mirror image of each image.

    Args:
        models: From `simplify`.
        size: Usual height and width of the images; sides of volumes.
        input_type: Input type of the graph.
        task: What the networks' outputs are.
    """
    members = [_Deployed(model) for model in models]
    network = members[0] if len(members) == 1 else DeployedEnsemble(members, task=task)
    return _trace(DeployedMirrored(network, task=task), models, size, input_type)


def _trace(
    deployed: nn.Module, models: Sequence[Backbone[Any]], size: Sequence[int], input_type: InputType
) -> torch.export.ExportedProgram:
    config = models[0].config
    smallest = max(model.config.smallest_size for model in models)
    # Two images, not square, and no extent of 1: torch.export would specialize on equal sizes.
    sides: list[int] = []
    for side in size:
        larger = max(side, 2 * smallest)
        sides.append(next(each for each in range(larger, larger + 3) if each not in sides))
    shape = (2, config.in_chans, *sides)

    def export(least: int) -> torch.export.ExportedProgram:
        dynamic = {0: torch.export.Dim("batch", min=1)}
        for axis, name in enumerate(AXIS_NAMES[config.dims], 2):
            dynamic[axis] = torch.export.Dim(name, min=least)
        return torch.export.export(
            deployed.eval(),
            (torch.zeros(shape, dtype=getattr(torch, input_type)),),
            dynamic_shapes=(dynamic,),
            strict=False,
        )

    # Without the patch, torch.export specializes on maps of one pixel and refuses small sizes.
    settings: Any = importlib.import_module("torch.fx.experimental._config")
    with settings.patch(backed_size_oblivious=True):
        try:
            return export(smallest)
        except UserError as error:
            # Layer norms look at strides, which say nothing about a map of one pixel; what is computed is
            # the same for all sizes, as the check of the export shows.
            if error.error_type != UserErrorType.CONSTRAINT_VIOLATION:
                raise
            return export(2 * smallest)


def onnx_graph(program: torch.export.ExportedProgram) -> Any:
    """Convert the program to an `onnx.ModelProto`."""
    with needs_extra("deploy"), _quiet_exporter():
        import onnx

        exported = torch.onnx.export(
            program,
            dynamo=True,
            input_names=[IMAGES],
            output_names=[LOGITS, FEATURES][: len(program.graph_signature.user_outputs)],
            dynamic_axes=None,
            external_data=False,
            verbose=False,
        )
        assert exported is not None
        graph = cast(Any, exported).model_proto
        assert isinstance(graph, onnx.ModelProto)
        _name_dimensions(graph)
        return graph


def openvino_graph(onnx_model: Any) -> Any:
    """Convert an `onnx.ModelProto` to an `openvino.Model`."""
    with needs_extra("deploy"):
        from skipnets.runtimes.openvino import shared_core

        return shared_core().read_model(onnx_model.SerializeToString(), b"")


def write_graph(graph: Any, file_format: ExportFormat, path: Path, metadata: str) -> None:
    """Write a graph with its metadata.

    Args:
        graph: An `onnx.ModelProto`, `openvino.Model` or `torch.export.ExportedProgram`.
        file_format: Its format.
        path: A file or, for OpenVINO, a new folder.
        metadata: Text to store in the file.
    """
    if file_format == "onnx":
        import onnx

        onnx.helper.set_model_props(graph, {ONNX_METADATA: metadata})
        onnx.save(graph, path)
    elif file_format == "openvino":
        with needs_extra("deploy"):
            import openvino

        path.mkdir(exist_ok=True)
        graph.set_rt_info(metadata, OPENVINO_METADATA)
        openvino.save_model(graph, path / OPENVINO_GRAPH, compress_to_fp16=False)
    else:
        torch.export.save(graph, path, extra_files={PT2_METADATA: metadata})


def require_libraries(file_format: str, *, int8: bool) -> None:
    """Check that the libraries of a format are installed, before any work.

    Raises:
        UserError: If a library of the extra "deploy" is not installed.
    """
    names = (*_LIBRARIES[file_format], *(("nncf",) if int8 else ()))
    if any(importlib.util.find_spec(name) is None for name in names):
        raise missing_extra("deploy")


@contextlib.contextmanager
def _quiet_exporter() -> Iterator[None]:
    """Suppress the exporter's progress messages and deprecation warnings, which do not concern users."""
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _name_dimensions(graph: Any) -> None:
    """Name the dynamic dimensions, in place of the exporter's symbols."""
    names = {}
    dimensions = graph.graph.input[0].type.tensor_type.shape.dim
    for name, dimension in zip(("batch", "", *AXIS_NAMES[len(dimensions) - 2]), dimensions, strict=True):
        if name and dimension.dim_param:  # an own network's sides are numbers
            names[dimension.dim_param] = name
    for value in (*graph.graph.input, *graph.graph.output):
        for dimension in value.type.tensor_type.shape.dim:
            if dimension.dim_param in names:
                dimension.dim_param = names[dimension.dim_param]
    del graph.graph.value_info[:]  # Inner shapes use the old symbols; runtimes infer their own.
