"""What each exact rewrite of `skipnets.deploy.rewrite` gains, in PyTorch, ONNX Runtime and OpenVINO.

    python benchmarks/rewrites.py
    python benchmarks/rewrites.py --models densenet121 --batches 1 --seconds 60

The network as it was trained is timed against the same after each rewrite alone and after those that an
export uses together, in turns within one run. In a column of its own: the ratio to the network as it was in
the same runtime, as the median of the ratios within a round. Graphs that take pixels, 0–255, are compared
with those that take normalized images, the normalization in numpy counted. Weights are random (speed does
not depend on them), with norms that have seen images.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from inference import make_classifier
from skipnets.classifier import Classifier
from skipnets.deploy.benchmark import machine
from skipnets.deploy.candidates import in_onnxruntime, in_openvino, in_pytorch
from skipnets.deploy.graph import onnx_graph, openvino_graph, trace
from skipnets.deploy.rewrite import fold_norms, normalize_inside, pool_before_convolution
from skipnets.deploy.timing import Timing, alternate
from skipnets.models.backbone import Backbone

Network = Backbone[Any]
Rewrite = Callable[[Network], Network]

SIZE = 224
PLAIN, USED = "as trained", "folded, pooled first"
VARIANTS: dict[str, tuple[Rewrite, ...]] = {
    PLAIN: (),
    "norms folded": (fold_norms,),
    "pooled first": (pool_before_convolution,),
    USED: (fold_norms, pool_before_convolution),
}
RESNET_VARIANTS = (PLAIN, "norms folded")


def variants(classifier: Classifier) -> dict[str, Network]:
    """The network after each rewrite that changes it."""
    model = classifier.model
    names = VARIANTS if model.config.family == "densenet" else RESNET_VARIANTS
    made: dict[str, Network] = {}
    for name in names:
        made[name] = model
        for rewrite in VARIANTS[name]:
            made[name] = rewrite(made[name])
    return made


def runs(
    classifier: Classifier, batch: int, graphs: dict[str, Any], threads: int
) -> dict[str, Callable[[], object]]:
    """What is timed, by runtime and variant."""
    random = np.random.default_rng(0)
    pixels = random.integers(0, 256, (batch, SIZE, SIZE, 3), dtype=np.uint8)
    normalize: Callable[[NDArray[np.uint8]], NDArray[np.float32]] = classifier.preprocessing.normalize
    images = normalize(pixels)
    planar = np.ascontiguousarray(pixels.transpose(0, 3, 1, 2))
    found: dict[str, Callable[[], object]] = {}
    for name, network in variants(classifier).items():
        found[f"PyTorch: {name}"] = partial(in_pytorch(network, torch.channels_last), images)
        for runtime, opened in in_runtimes(graphs[name], threads):
            found[f"{runtime}: {name}"] = partial(opened, images)
            if name == rewritten(classifier):
                found[f"{runtime}: {name}, and normalized in numpy"] = partial(
                    lambda opened: opened(normalize(pixels)), opened
                )
    for runtime, opened in in_runtimes(graphs["pixels"], threads):
        found[f"{runtime}: the same from pixels"] = partial(opened, planar)
    return found


def in_runtimes(graph: Any, threads: int) -> list[tuple[str, Callable[[Any], object]]]:
    """A graph in each runtime."""
    return [
        ("ONNX Runtime", in_onnxruntime(graph, threads, (SIZE, SIZE))),
        ("OpenVINO", in_openvino(openvino_graph(graph), threads)),
    ]


def rewritten(classifier: Classifier) -> str:
    """The variant that an export is."""
    return USED if classifier.model.config.family == "densenet" else "norms folded"


def export(classifier: Classifier) -> dict[str, Any]:
    """An ONNX graph of each variant, and one that takes pixels."""
    made = variants(classifier)
    preprocessing = classifier.preprocessing
    graphs = {}
    for name, network in made.items():
        print(f"exporting {classifier.model.config.name}, {name}", flush=True)
        graphs[name] = onnx_graph(trace(network, (SIZE, SIZE), "float32"))
    inside = normalize_inside(made[rewritten(classifier)], preprocessing.mean, preprocessing.std)
    graphs["pixels"] = onnx_graph(trace(inside, (SIZE, SIZE), "uint8"))
    return graphs


def show(name: str, batch: int, times: dict[str, Timing]) -> list[dict[str, Any]]:
    """Print a table, and give it back as data."""
    rounds = len(next(iter(times.values())).seconds)
    print(f"\n{name}, batch {batch}, {rounds} rounds{'':24}ms  to the network as trained")
    rows = []
    for what, timing in times.items():
        base = times[f"{what.split(':')[0]}: {PLAIN}"]
        ratio = timing.ratio(base)
        print(f"{what:58}{1000 * timing.median:8.1f}{ratio:8.3f}")
        rows.append({"model": name, "batch": batch, "what": what, "seconds": timing.median, "ratio": ratio})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", default=["densenet121", "resnet50"])
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 16])
    parser.add_argument("--seconds", type=float, default=60.0, help="for the timing of one batch size")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--json", type=Path, help="write every figure to this file")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    about = machine(arguments.threads)
    print(", ".join(f"{key} {value}" for key, value in about.items()))
    rows = []
    for name in arguments.models:
        classifier = make_classifier(name, SIZE)
        graphs = export(classifier)
        for batch in arguments.batches:
            candidates = runs(classifier, batch, graphs, arguments.threads)
            rows += show(name, batch, alternate(candidates, seconds=arguments.seconds))
    if arguments.json:
        arguments.json.write_text(json.dumps({"machine": about, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
