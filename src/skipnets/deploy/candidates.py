"""Candidates of `compare_speeds`: a classifier in every runtime, and torchvision's network as the baseline.

Shapes: N batch, C channels, H height, W width, K classes.
"""

from __future__ import annotations

import copy
import logging
import math
import os
import warnings
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from skipnets.classifier import Classifier
from skipnets.data.dataset import ImageDataset
from skipnets.data.volumes import VolumeDataset
from skipnets.deploy.graph import onnx_graph, openvino_graph, simplify, trace
from skipnets.deploy.own_network import trace_own
from skipnets.deploy.quantize import Quantization, judge, open_calibration, quantize
from skipnets.deploy.timing import Candidate, Predict
from skipnets.errors import UserError, needs_extra
from skipnets.models.custom_model import CustomModel
from skipnets.models.family import family_of
from skipnets.models.modes import copied
from skipnets.models.modified import refused_modification
from skipnets.models.registry import ModelConfig
from skipnets.runtimes import open_runtime
from skipnets.runtimes.graph_format import IMAGES, LOGITS

__all__ = [
    "candidates_for",
    "exported_candidate",
    "in_onnxruntime",
    "in_openvino",
    "in_pytorch",
    "plain_onnx",
    "torchvision_network",
]

logger = logging.getLogger("skipnets")

_GENERATED = 40


def candidates_for(
    classifier: Classifier,
    *,
    threads: int,
    compiled: bool,
    int8: bool,
    calibration: str | os.PathLike[str] | None,
) -> list[Candidate]:
    """List every way to run a classifier's network on this machine's CPU.

    If torchvision has no equal network, the baseline is the trained network itself. Of a network that is no
    part of this package, nothing is rewritten: the graphs are its exports.

    Raises:
        UserError: For a model of this package that was modified.
    """
    torch.set_num_threads(threads)
    own = isinstance(classifier.model, CustomModel)
    if not own and (refused := refused_modification(classifier.model)) is not None:
        raise UserError(refused)
    # A copy: the classifier may be the caller's, on a GPU, of another type and laid out in another way.
    model = copied(classifier.model).cpu().float().eval().requires_grad_(False)
    model = model.to(memory_format=torch.contiguous_format)
    baseline = torchvision_network(model.config, model.state_dict())
    label = "torchvision" if baseline is not None else "as trained"
    plain = model if baseline is None else baseline
    size = classifier.preprocessing.size
    candidates = [
        Candidate(name=f"{label}, eager", predict=in_pytorch(plain, torch.contiguous_format), baseline=True),
    ]
    layout = torch.channels_last if len(size) == 2 else torch.contiguous_format
    if layout == torch.channels_last:
        candidates.append(
            Candidate(name=f"{label}, eager, channels_last", predict=in_pytorch(plain, layout), baseline=True)
        )
    if compiled:
        candidates.append(
            Candidate(
                name=f"{label}, torch.compile",
                predict=in_pytorch(torch.compile(copy.deepcopy(plain)), torch.contiguous_format),
                baseline=True,
            )
        )
    images = None
    if int8:
        images = _noise(classifier) if calibration is None else open_calibration(calibration, classifier)
    graphs: list[tuple[str, Any, bool]] = []
    if isinstance(model, CustomModel):
        try:
            program = trace_own([model], classifier.preprocessing, "float32", task=classifier.task)
            graphs.append(("skipnets", onnx_graph(program), False))
        except UserError as error:
            logger.warning("ONNX Runtime and OpenVINO are left out: %s", error)
    else:
        rewritten = simplify(model, classifier.preprocessing, "float32")
        candidates.append(Candidate(name="skipnets, rewritten eager", predict=in_pytorch(rewritten, layout)))
        candidates += _native(model, classifier.architecture, threads)
        graphs += [
            (label, plain_onnx(plain, classifier), True),
            ("skipnets", onnx_graph(trace(rewritten, size, "float32")), False),
        ]
    of_task: dict[str, Any] = {}
    if images is not None and images.multi_label:
        of_task = {"is_right": judge(classifier)}
    elif images is not None and images.regression:
        of_task = {"scales": classifier.scales}
    for name, graph, is_baseline in graphs:
        candidates += [
            Candidate(
                name=f"{name}, ONNX Runtime",
                predict=in_onnxruntime(graph, threads, size),
                baseline=is_baseline,
            ),
            Candidate(
                name=f"{name}, OpenVINO",
                predict=in_openvino(openvino_graph(graph), threads),
                baseline=is_baseline,
            ),
        ]
        if images is not None:
            quantized, _ = quantize(
                openvino_graph(graph),
                "openvino",
                Quantization(
                    dataset=images,
                    max_drop=math.inf,
                    **of_task,
                ),
                classifier.preprocessing,
                "float32",
            )
            candidates.append(
                Candidate(
                    name=f"{name}, OpenVINO int8",
                    predict=in_openvino(quantized, threads),
                    baseline=is_baseline,
                    precision="int8",
                )
            )
    return candidates


def _native(model: nn.Module, architecture: Mapping[str, Any], threads: int) -> list[Candidate]:
    """The native engine, if it is installed and supports this network."""
    try:
        runtime = open_runtime(
            "native",
            architecture=architecture,
            tensors={name: value.numpy() for name, value in model.state_dict().items()},
            device="cpu",
            threads=threads,
        )
    except (UserError, ModuleNotFoundError) as error:
        logger.info("the native engine is skipped: %s", error)
        return []
    return [Candidate(name="skipnets, native engine", predict=runtime.logits)]


def exported_candidate(classifier: Classifier) -> Candidate:
    """A candidate for an export in its own runtime."""
    export = classifier.export or {}
    return Candidate(
        name=f"{classifier.path}, {classifier.runtime.name}",
        predict=classifier.runtime.logits,
        precision="int8" if export.get("int8") else "fp32",
    )


def torchvision_network(config: ModelConfig, state: Mapping[str, torch.Tensor]) -> nn.Module | None:
    """Build torchvision's network for a configuration, with these weights; None if it has none."""
    network = family_of(config).baseline(config)
    if network is None:
        return None
    network.load_state_dict(state)
    return network.eval().requires_grad_(False)


def in_pytorch(network: Callable[..., Any], memory_format: torch.memory_format) -> Predict:
    """Run a network eagerly."""
    if isinstance(network, nn.Module) and memory_format == torch.channels_last:
        network = copy.deepcopy(network).to(memory_format=torch.channels_last)

    def predict(batch: NDArray[np.float32]) -> NDArray[np.float32]:
        with torch.inference_mode():
            logits = network(torch.from_numpy(batch).contiguous(memory_format=memory_format))
        return np.asarray(logits.numpy())

    return predict


def plain_onnx(network: nn.Module, classifier: Classifier) -> Any:
    """Export a network unchanged with torch.onnx.export, as users would, for any number of images."""
    images = torch.zeros(2, classifier.preprocessing.channels, *classifier.preprocessing.size)
    with needs_extra("deploy"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        exported: Any = torch.onnx.export(
            network,
            (images,),
            dynamo=True,
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            input_names=[IMAGES],
            output_names=[LOGITS],
            verbose=False,
        )
    return exported.model_proto


def in_onnxruntime(graph: Any, threads: int, size: tuple[int, ...]) -> Predict:
    """Run an ONNX graph in ONNX Runtime, opened for one image size as `skipnets.load` opens an export."""
    from skipnets.runtimes.onnxruntime import open_session

    session = open_session(graph.SerializeToString(), threads=threads, size=size)
    return lambda batch: np.asarray(session.run([LOGITS], {IMAGES: batch})[0])


def in_openvino(graph: Any, threads: int) -> Predict:
    """Run a graph in OpenVINO, compiled as `skipnets.load` compiles an export."""
    from skipnets.runtimes.openvino import OpenVINORuntime, compile_graph

    return OpenVINORuntime(compile_graph(graph, "CPU", threads), "CPU").logits


def _noise(classifier: Classifier) -> ImageDataset:
    """Labeled noise, to calibrate an 8-bit graph that is only timed."""
    generator = np.random.default_rng(0)
    channels, dims = classifier.preprocessing.channels, classifier.preprocessing.dims
    shape = (_GENERATED, *classifier.preprocessing.size, channels if dims != 2 else max(channels, 3))
    images = generator.integers(0, 256, shape, dtype=np.uint8)
    if channels == 1 and dims == 2:
        images = images[..., 0]
    of_kind = ImageDataset if dims == 2 else partial(VolumeDataset, axes=dims)
    return of_kind(
        classes=classifier.classes,
        names=[f"noise/{index}" for index in range(_GENERATED)],
        labels=np.arange(_GENERATED) % len(classifier.classes),
        splits=np.array(["train", "val"] * (_GENERATED // 2)),
        images=classifier.preprocessing.unwindowed(images),
    )
