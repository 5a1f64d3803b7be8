"""The native engine beyond speed: cold start, memory, and how well each stage uses the processor.

    python benchmarks/native_engine.py

For densenet121 with random weights:

- the time from a cold start to the first answer (`skipnets.load` of the model file and one JPEG), over that
  of `import numpy, PIL.Image`: at most 0.4 s more, as medians of five, in turns; torch is not imported;
- peak memory of a whole process that answers one batch, beside one that does the same in OpenVINO with
  torchvision's own export: no more than that;
- multiply-adds per second in each stage as a share of what fused multiply-adds on registers reach.

How fast it answers is in `benchmarks/inference.py`; with SKIPNETS_ENGINE_ISA=avx2 and ONEDNN_MAX_CPU_ISA=AVX2
before that command both keep to AVX2. Exit status 1 means that a bar was missed.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path

import numpy as np
import openvino
from PIL import Image

from inference import make_classifier
from skipnets.classifier import Classifier, load
from skipnets.deploy.benchmark import machine
from skipnets.deploy.candidates import plain_onnx, torchvision_network
from skipnets.deploy.graph import openvino_graph
from skipnets.runtimes.native import NativeRuntime

SIZE = 224
COLD_LIMIT, MEMORY_LIMIT = 0.4, 1.0

IMPORTS = "import numpy, PIL.Image"
ANSWER = """
import sys
import skipnets
skipnets.load({model!r}, runtime="native").predict([{image!r}])
assert not {{"torch", "torchvision"}} & set(sys.modules)
"""
# Not ru_maxrss, which begins with the memory of the process that started this one.
PEAK = """
import pathlib, re
print(int(re.search(r"VmHWM:\\s+(\\d+)", pathlib.Path("/proc/self/status").read_text())[1]) / 1024)
"""
NATIVE_BATCH = """
import numpy, skipnets
classifier = skipnets.load({model!r}, runtime="native", threads={threads})
classifier.runtime.logits(numpy.zeros(({batch}, 3, 224, 224), numpy.float32))
"""
OPENVINO_BATCH = """
import numpy, openvino
settings = {{"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": {threads}}}
compiled = openvino.Core().compile_model({graph!r}, "CPU", {{"PERFORMANCE_HINT": "LATENCY", **settings}})
compiled(numpy.zeros(({batch}, 3, 224, 224), numpy.float32))
"""


def run(code: str) -> str:
    """What a fresh interpreter prints; it may keep compiled modules, as after an installation."""
    command = [sys.executable, "-W", "ignore", "-c", code]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    return subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout


def cold_start(model: Path, image: Path) -> bool:
    """Print both medians; whether the bar holds."""
    seconds: dict[str, list[float]] = {"imports": [], "answer": []}
    answer = ANSWER.format(model=str(model), image=str(image))
    run(answer)
    for _ in range(5):
        for name, code in (("imports", IMPORTS), ("answer", answer)):
            start = time.perf_counter()
            run(code)
            seconds[name].append(time.perf_counter() - start)
    imports, whole = (statistics.median(seconds[name]) for name in ("imports", "answer"))
    print(f"\nimport numpy, PIL.Image {imports:.3f} s; first answer {whole:.3f} s")
    return judge("seconds more than the imports", whole - imports, COLD_LIMIT)


def peak_memory(model: Path, graph: Path, batch: int, threads: int) -> bool:
    """Print both peaks; whether the bar holds."""
    native = float(run(NATIVE_BATCH.format(model=str(model), batch=batch, threads=threads) + PEAK))
    other = float(run(OPENVINO_BATCH.format(graph=str(graph), batch=batch, threads=threads) + PEAK))
    print(f"\nbatch {batch}: peak of the process {native:.0f} MiB, with OpenVINO {other:.0f} MiB")
    return judge("of OpenVINO's peak", native / other, MEMORY_LIMIT)


def shares(classifier: Classifier, batch: int) -> None:
    """Print each stage's time and share of the peak."""
    assert isinstance(classifier.runtime, NativeRuntime)
    report = classifier.runtime.plan(classifier.preprocessing.height_width, batch_size=batch, rounds=20)
    macs: dict[str, float] = defaultdict(float)
    seconds: dict[str, float] = defaultdict(float)
    for step in report["steps"]:
        macs[_part(step["name"])] += step["macs"]
        seconds[_part(step["name"])] += step["seconds"]
    print(f"\nbatch {batch}, {report['isa']}: ms an image, and share of the peak,")
    print(f"{report['peak_macs'] / 1e9:.0f} thousand million multiply-adds a second (Winograd needs fewer)")
    for part, spent in seconds.items():
        print(f"{part:24}{1e3 * spent:8.2f}{macs[part] / spent / report['peak_macs']:8.2f}")
    total = sum(seconds.values())
    print(f"{'all':24}{1e3 * total:8.2f}{sum(macs.values()) / total / report['peak_macs']:8.2f}")


def _part(step: str) -> str:
    """Which line a step is counted in; a block's two convolutions may run as one."""
    for block in range(1, 5):
        if step.startswith(f"features.denseblock{block}."):
            return f"block {block}"
    return "stem, transitions, head"


def judge(claim: str, value: float, limit: float) -> bool:
    """Print whether a bar holds."""
    print(f"{'holds ' if value <= limit else 'MISSED'} {value:.3f} (at most {limit}) {claim}")
    return value <= limit


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    about = machine(arguments.threads)
    print(", ".join(f"{key} {value}" for key, value in about.items()))
    with tempfile.TemporaryDirectory() as folder:
        model, graph, image = (Path(folder) / name for name in ("model.safetensors", "g.xml", "p.jpg"))
        classifier = make_classifier("densenet121", SIZE)
        classifier.save(model)
        network = torchvision_network(classifier.model.config, classifier.model.state_dict())
        assert network is not None
        openvino.save_model(openvino_graph(plain_onnx(network, classifier)), graph, compress_to_fp16=False)
        pixels = np.random.default_rng(0).integers(0, 256, (333, 500, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((500, 333)).save(image)
        holds = [cold_start(model, image)]
        holds += [peak_memory(model, graph, batch, arguments.threads) for batch in (1, 16)]
        native = load(model, runtime="native", threads=arguments.threads)
        for batch in (1, 16):
            shares(native, batch)
    return 0 if all(holds) else 1


if __name__ == "__main__":
    sys.exit(main())
