"""Networks in ncnn and in OpenCV's DNN module: baselines that are no dependency of this project.

    pip install ncnn pnnx "opencv-python-headless>=5"

OpenCV reads what `torch.onnx.export` writes for one number of images; pnnx converts what `torch.jit.trace`
gives for ncnn, which computes images one by one. Both compute in 32 bits. A runtime that is not installed, or
cannot run a network, is left out with a line that says so.

Shapes: N batch, C channels, H height, W width, K classes.
"""

from __future__ import annotations

import subprocess
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from skipnets.deploy.timing import Predict

TOLERANCE = 1e-3  # of the largest logit


class NotSupportedError(Exception):
    """A runtime is not installed, or cannot run a network; the message says which and why."""


def in_ncnn(network: nn.Module, shape: tuple[int, int, int, int], threads: int) -> Predict:
    """Run a network in ncnn.

    Args:
        network: In eval mode.
        shape: Of a batch of images; N is ignored.
        threads: CPU threads.

    Raises:
        NotSupportedError: If ncnn or pnnx is not installed, or an operation is not known to them.
    """
    try:
        import ncnn
        import pnnx
    except ImportError as error:
        raise NotSupportedError("not installed: pip install ncnn pnnx") from error
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter(
            "ignore"
        )  # tracing is deprecated, and has no other form that pnnx reads as well
        path = Path(folder) / "network.pt"
        trace: Any = torch.jit.trace
        trace(network, torch.zeros(1, *shape[1:])).save(str(path))
        sizes = ",".join(str(size) for size in (1, *shape[1:]))
        # It writes network.ncnn.param and network.ncnn.bin, and files in formats of its own.
        command = [pnnx.EXEC_PATH, path.name, f"inputshape=[{sizes}]", "fp16=0"]
        subprocess.run(command, cwd=folder, check=True, capture_output=True)
        runtime = ncnn.Net()
        runtime.opt.num_threads = threads
        for name in ("use_vulkan_compute", "use_fp16_packed", "use_fp16_storage", "use_fp16_arithmetic"):
            setattr(runtime.opt, name, False)
        loaded = runtime.load_param(str(path.with_suffix(".ncnn.param"))) == 0
        if not (loaded and runtime.load_model(str(path.with_suffix(".ncnn.bin"))) == 0):
            raise NotSupportedError("a layer of pnnx's conversion is not one of ncnn's")
    [source], [target] = runtime.input_names(), runtime.output_names()

    def predict(batch: NDArray[np.float32]) -> NDArray[np.float32]:
        logits = []
        for image in batch:
            extractor = runtime.create_extractor()
            extractor.input(source, ncnn.Mat(image))
            status, result = extractor.extract(target)
            if status != 0:
                raise NotSupportedError(f"it gives up with status {status}")
            logits.append(np.array(result).ravel())
        return np.stack(logits)

    return predict


def in_opencv(network: nn.Module, shape: tuple[int, int, int, int], threads: int) -> Predict:
    """Run a network in OpenCV's DNN module.

    Args:
        network: In eval mode.
        shape: Of a batch of images.
        threads: CPU threads, of everything in OpenCV.

    Raises:
        NotSupportedError: If OpenCV 5 is not installed, or cannot read the export.
    """
    try:
        import cv2
    except ImportError as error:
        raise NotSupportedError('not installed: pip install "opencv-python-headless>=5"') from error
    if int(cv2.__version__.split(".")[0]) < 5:
        raise NotSupportedError(f"OpenCV {cv2.__version__} is installed, and 5 is wanted")
    cv2.setNumThreads(threads)

    def predict(batch: NDArray[np.float32]) -> NDArray[np.float32]:
        runtime.setInput(batch)
        return np.array(runtime.forward(), np.float32)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        exported: Any = torch.onnx.export(network, (torch.zeros(shape),), dynamo=True, verbose=False)
    graph = np.frombuffer(exported.model_proto.SerializeToString(), np.uint8)
    try:
        runtime = cv2.dnn.readNetFromONNX(graph)
        predict(np.zeros(shape, np.float32))
    except cv2.error as error:
        raise NotSupportedError(f"{error.func}: {error.err}") from error
    return predict


OTHER_RUNTIMES: dict[str, Callable[[nn.Module, tuple[int, int, int, int], int], Predict]] = {
    "ncnn": in_ncnn,
    "OpenCV": in_opencv,
}


def other_candidates(network: nn.Module, images: NDArray[np.float32], threads: int) -> dict[str, Predict]:
    """The runtimes that are installed and compute what PyTorch does; a line is printed for each other one.

    Args:
        network: In eval mode.
        images: (N, C, H, W) images to compare logits (N, K) with.
        threads: CPU threads of each.
    """
    with torch.inference_mode():
        wanted = network(torch.from_numpy(images)).numpy()
    found = {}
    for name, make in OTHER_RUNTIMES.items():
        try:
            predict = make(network, images.shape, threads)
            difference = float(np.abs(predict(images) - wanted).max() / np.abs(wanted).max())
        except NotSupportedError as error:
            print(f"{name} is left out: {' '.join(str(error).split())}")
            continue
        if not difference <= TOLERANCE:
            print(f"{name} is left out: its logits differ from PyTorch's by {difference:.2g} of the largest")
            continue
        found[name] = predict
    return found
