"""How fast networks answer: every runtime, beside torchvision's network of the same weights, in one run.

    python benchmarks/inference.py
    python benchmarks/inference.py --models densenet121 --batches 1 --json inference.json

For each model it makes a classifier with random weights (speed does not depend on them; the norms have seen
images, so that numbers stay of ordinary size), times what `skipnets benchmark` times, and judges:

- fp32: our export takes at most 1.02 of the time of torchvision's own export in the same runtime
  (densenet121 and resnet50, each batch size);
- the native engine, where it is installed: at most these shares of the fastest fp32 baseline, ONNX Runtime
  or OpenVINO: densenet121 0.60 at batch 1 and 0.58 at larger ones, densenet_bc100_k12 0.60, resnet50 0.88
  and 0.85 (0.92 with AVX2, 0.95 with one thread);
- the native engine beside timm's own export of networks that torchvision does not have: at most these shares
  of the faster of ONNX Runtime and OpenVINO: rdnet_tiny 0.85, resnet50d and seresnet50 0.95, regnety_040 1;
- int8: densenet121 at batch 1 takes at most 0.45 of the time of the fastest fp32 baseline, and no more than
  OpenVINO's int8 of torchvision's own export.

`SKIPNETS_ENGINE_ISA=avx2 ONEDNN_MAX_CPU_ISA=AVX2` before the command limits the engine and OpenVINO to AVX2.
ONNX Runtime cannot be limited, so that OpenVINO alone is the measure then.

ncnn and OpenCV 5's DNN module take part where they are installed, beside torchvision's networks in a second
run; no bar refers to them:

    pip install ncnn pnnx "opencv-python-headless>=5"

Hardware, versions, rounds and spread are printed with the figures. Outputs are compared before anything is
timed. The baseline of densenet_bc100_k12 is torchvision's DenseNet with CIFAR's stem put in. Exit status 1
means that a bar was missed.
"""

from __future__ import annotations

import argparse
import json
import os
from argparse import Namespace
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import timm
import torch
from numpy.typing import NDArray
from torch import nn
from torch.optim.swa_utils import update_bn

from other_runtimes import other_candidates
from skipnets.classifier import Classifier
from skipnets.data.preprocessing import Preprocessing
from skipnets.deploy.benchmark import SpeedTable, compare_speeds, machine
from skipnets.deploy.candidates import in_onnxruntime, in_openvino, plain_onnx, torchvision_network
from skipnets.deploy.graph import openvino_graph
from skipnets.deploy.timing import Predict, Timing, alternate
from skipnets.machine import usable_cores
from skipnets.models.factory import create_model
from skipnets.runtimes import open_runtime

MODELS = {"densenet121": (224, [1, 16]), "densenet_bc100_k12": (32, [1, 16, 64]), "resnet50": (224, [1, 16])}
FP32_LIMIT, INT8_LIMIT = 1.02, 0.45
# Of the native engine, at batch 1 and at larger batches.
NATIVE_LIMITS = {"densenet121": (0.60, 0.58), "densenet_bc100_k12": (0.60, 0.60), "resnet50": (0.88, 0.85)}
# The same for networks whose baseline is timm's export, at every batch size.
TIMM_LIMITS = {"rdnet_tiny": 0.85, "resnet50d": 0.95, "seresnet50": 0.95, "regnety_040": 1.00}
NATIVE = "skipnets, native engine"
Images = NDArray[np.float32]
Candidates = dict[str, Predict]


@dataclass(frozen=True, kw_only=True)
class Bar:
    """One claim and what was measured."""

    claim: str
    ratio: float
    limit: float

    @property
    def holds(self) -> bool:
        """Whether the claim is true."""
        return self.ratio <= self.limit


def make_classifier(name: str, size: int) -> Classifier:
    """Random weights, and norms whose statistics are those of random images."""
    torch.manual_seed(0)
    model = create_model(name)
    update_bn([torch.randn(8, 3, size, size)], model)
    return Classifier.from_model(
        model.eval(),
        classes=[f"class {index}" for index in range(model.num_classes)],
        preprocessing=Preprocessing(size=size),
    )


def bars(name: str, table: SpeedTable, batches: list[int], threads: int) -> list[Bar]:
    """What must hold of a table."""
    found = []
    if name in ("densenet121", "resnet50"):
        for batch in batches:
            for runtime in ("ONNX Runtime", "OpenVINO"):
                ratio = table.ratio(f"skipnets, {runtime}", f"torchvision, {runtime}", batch)
                claim = f"{name}, batch {batch}, {runtime}: our export to torchvision's"
                found.append(Bar(claim=claim, ratio=ratio, limit=FP32_LIMIT))
    for batch in batches:
        found += native_bar(name, table, batch, threads)
    has_int8 = any(row.precision == "int8" for row in table.rows)
    if name == "densenet121" and 1 in batches and has_int8:
        ours = "skipnets, OpenVINO int8"
        [to_fastest] = [row.ratio for row in table.rows if (row.candidate, row.batch_size) == (ours, 1)]
        assert to_fastest is not None  # torchvision takes part
        to_int8 = table.ratio(ours, "torchvision, OpenVINO int8", 1)
        found += [
            Bar(claim=f"{name} int8 to the fastest fp32 baseline", ratio=to_fastest, limit=INT8_LIMIT),
            Bar(claim=f"{name} int8 to torchvision's int8 in OpenVINO", ratio=to_int8, limit=1.0),
        ]
    return found


def limited() -> bool:
    """Whether the engine and OpenVINO are limited to AVX2."""
    return os.environ.get("SKIPNETS_ENGINE_ISA") == "avx2" and os.environ.get("ONEDNN_MAX_CPU_ISA") == "AVX2"


def judges() -> tuple[str, ...]:
    """The runtimes that the native engine is compared with: those that use the same instructions."""
    return ("OpenVINO",) if limited() else ("ONNX Runtime", "OpenVINO")


def native_limit(name: str, batch: int, threads: int) -> float:
    """The share of the fastest baseline's time that the native engine may take."""
    if name in TIMM_LIMITS:
        return TIMM_LIMITS[name]
    first, others = NATIVE_LIMITS[name]
    limit = first if batch == 1 else others
    if name == "resnet50":
        limit = 0.95 if threads == 1 else 0.92 if limited() else limit
    return limit


def fastest_runtime(table: SpeedTable, batch: int) -> str:
    """The fastest of the runtimes to compare with, running torchvision's own export in float32."""
    rows = [
        row
        for row in table.rows
        if row.batch_size == batch
        and row.baseline
        and row.precision == "fp32"
        and row.candidate.endswith(tuple(f", {runtime}" for runtime in judges()))
    ]
    return min(rows, key=lambda row: row.seconds).candidate


def native_bar(name: str, table: SpeedTable, batch: int, threads: int) -> list[Bar]:
    """What must hold of the native engine, if it took part."""
    if NATIVE not in [row.candidate for row in table.rows if row.batch_size == batch]:
        return []
    return [
        Bar(
            claim=f"{name}, batch {batch}, native engine to the fastest of {' and '.join(judges())}",
            ratio=table.ratio(NATIVE, fastest_runtime(table, batch), batch),
            limit=native_limit(name, batch, threads),
        )
    ]


def time_in_turn(
    label: str,
    network: nn.Module,
    classifier: Classifier,
    images: Images,
    others: Candidates,
    options: Namespace,
) -> dict[str, Timing]:
    """Time a library's own network in other runtimes beside the native engine, and print the times.

    Args:
        label: The library's name.
        network: Its network, with the classifier's weights.
        classifier: What the native engine runs.
        images: (N, C, H, W) images of one call.
        others: From `other_candidates`.
        options: `seconds` for all candidates, `threads` of each.
    """
    graph = plain_onnx(network, classifier)
    height, width = images.shape[2:]
    native = open_runtime(
        "native",
        architecture=classifier.architecture,
        tensors={key: value.numpy() for key, value in classifier.model.state_dict().items()},
        device="cpu",
        threads=options.threads,
    )
    candidates: Candidates = {
        f"{label}, ONNX Runtime": in_onnxruntime(graph, options.threads, (height, width)),
        f"{label}, OpenVINO": in_openvino(openvino_graph(graph), options.threads),
        **{f"{label}, {name}": predict for name, predict in others.items()},
        NATIVE: native.logits,
    }
    with torch.inference_mode():
        wanted = network(torch.from_numpy(images)).numpy()
    for predict in candidates.values():
        np.testing.assert_allclose(predict(images), wanted, rtol=0, atol=1e-3 * np.abs(wanted).max())
    timings = alternate(
        {key: partial(predict, images) for key, predict in candidates.items()}, seconds=options.seconds
    )
    for key, timing in timings.items():
        low, high = (1000 * value for value in timing.quartiles)
        print(f"batch {len(images):3}  {key:26}{1000 * timing.median:8.1f} ms  {low:.1f}–{high:.1f}")
    return timings


def random_images(classifier: Classifier, batch: int) -> Images:
    """(N, C, H, W) preprocessed noise."""
    shape = (batch, classifier.preprocessing.channels, *classifier.preprocessing.size)
    return np.random.default_rng(0).standard_normal(shape, dtype=np.float32)


def timm_bars(name: str, options: Namespace) -> list[Bar]:
    """Time the native engine beside timm's own export, print the times, and say what must hold of them."""
    classifier = make_classifier(name, 224)
    network = timm.create_model(name)
    network.load_state_dict(classifier.model.state_dict())
    network.eval()
    found = []
    print(f"{name}: {', '.join(f'{key} {value}' for key, value in machine(options.threads).items())}")
    for batch in options.batches or [1, 16]:
        images = random_images(classifier, batch)
        others = {} if options.no_others else other_candidates(network, images, options.threads)
        timings = time_in_turn("timm", network, classifier, images, others, options)
        fastest = min((timings[f"timm, {key}"] for key in judges()), key=lambda each: each.median)
        found.append(
            Bar(
                claim=f"{name}, batch {batch}, native engine to the fastest of {' and '.join(judges())}",
                ratio=timings[NATIVE].ratio(fastest),
                limit=native_limit(name, batch, options.threads),
            )
        )
    return found


def time_others(table: SpeedTable, classifier: Classifier, options: Namespace) -> None:
    """Time torchvision's network in ncnn and OpenCV, where they are installed, beside the native engine."""
    network = torchvision_network(classifier.model.config, classifier.model.state_dict())
    if network is None or NATIVE not in [row.candidate for row in table.rows]:
        return
    for batch in sorted({row.batch_size for row in table.rows}):
        images = random_images(classifier, batch)
        others = other_candidates(network, images, options.threads)
        if others:
            time_in_turn("torchvision", network, classifier, images, others, options)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = [*MODELS, *TIMM_LIMITS]
    parser.add_argument("--models", nargs="+", default=names, choices=names)
    parser.add_argument("--batches", nargs="+", type=int, help="default: 1 and 16; 64, too, for small images")
    parser.add_argument("--seconds", type=float, default=60.0, help="for the timing of one batch size")
    parser.add_argument("--threads", type=int, default=usable_cores())
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out")
    parser.add_argument("--no-int8", action="store_true", help="leave 8-bit graphs out")
    parser.add_argument("--no-others", action="store_true", help="leave ncnn and OpenCV out")
    parser.add_argument("--json", type=Path, default=None, help="write every figure to this file")
    options = parser.parse_args()

    tables, judged = [], []
    for name in options.models:
        if name in TIMM_LIMITS:
            judged += timm_bars(name, options)
            continue
        size, batches = MODELS[name]
        batches = options.batches or batches
        classifier = make_classifier(name, size)
        table = compare_speeds(
            classifier,
            batch_sizes=batches,
            seconds=options.seconds,
            threads=options.threads,
            compiled=not options.no_compile,
            int8=not options.no_int8,
        )
        print(table)
        tables.append(table.to_dict())
        judged += bars(name, table, batches, options.threads)
        if not options.no_others:
            time_others(table, classifier, options)
    for bar in judged:
        print(f"{'holds ' if bar.holds else 'MISSED'} {bar.ratio:.3f} (at most {bar.limit}) {bar.claim}")
    if options.json is not None:
        figures = {
            "tables": tables,
            "bars": [{**vars(bar), "holds": bar.holds} for bar in judged],
        }
        options.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    return 0 if all(bar.holds for bar in judged) else 1


if __name__ == "__main__":
    raise SystemExit(main())
