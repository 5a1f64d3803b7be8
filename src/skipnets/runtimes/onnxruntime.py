"""Runs an exported network in ONNX Runtime. Needs no torch.

N is the pictures of a batch; C, H and W their channels, height and width.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from skipnets.errors import UserError
from skipnets.runtimes.exported import FEATURES, LOGITS, PICTURES, PictureType

__all__ = ["METADATA_KEY", "OnnxRuntime"]

METADATA_KEY = "skipnets"
_DEVICES = {"CPUExecutionProvider": "cpu", "CUDAExecutionProvider": "cuda"}
_ERRORS_ONLY = 3


class OnnxRuntime:
    """A `skipnets.runtimes.Runtime` around an ONNX Runtime session.

    Args:
        session: Of a graph that `skipnets export` wrote.
    """

    name = "onnxruntime"
    input_type: PictureType = "float32"

    def __init__(self, session: onnxruntime.InferenceSession) -> None:
        self.session = session

    @classmethod
    def open(
        cls, path: Path, *, device: str = "auto", threads: int | None = None
    ) -> tuple[OnnxRuntime, str | None]:
        """Open a file; also gives the text of its metadata, if it has any.

        Raises:
            UserError: If it cannot be read, or there is no such device.
        """
        options = onnxruntime.SessionOptions()
        options.log_severity_level = _ERRORS_ONLY
        if threads is not None:
            options.intra_op_num_threads = threads
        try:
            session = onnxruntime.InferenceSession(path, options, providers=[_provider(device)])
        except UserError:
            raise
        except Exception as error:  # its errors have no common class of their own
            raise UserError(f"{path} is not a readable ONNX file ({_first_line(error)})") from error
        outputs = {output.name for output in session.get_outputs()}
        if [given.name for given in session.get_inputs()] != [PICTURES] or LOGITS not in outputs:
            return cls(session), None
        return cls(session), session.get_modelmeta().custom_metadata_map.get(METADATA_KEY)

    @property
    def device(self) -> str:
        """Where it runs."""
        return _DEVICES.get(self.session.get_providers()[0], self.session.get_providers()[0])

    def logits(self, batch: NDArray[Any]) -> NDArray[np.float32]:
        """(N, C, H, W) → (N, classes)."""
        return self._run(LOGITS, batch)

    def embed(self, batch: NDArray[Any]) -> NDArray[np.float32]:
        """(N, C, H, W) → (N, features): the last feature maps, pooled."""
        return self._run(FEATURES, batch)

    def _run(self, output: str, batch: NDArray[Any]) -> NDArray[np.float32]:
        result: NDArray[np.float32] = self.session.run([output], {PICTURES: np.ascontiguousarray(batch)})[0]
        return result


def _provider(device: str) -> str:
    """The execution provider behind a device's name."""
    available = onnxruntime.get_available_providers()
    if device == "cpu" or (device == "auto" and "CUDAExecutionProvider" not in available):
        return "CPUExecutionProvider"
    if device in ("auto", "cuda") and "CUDAExecutionProvider" in available:
        return "CUDAExecutionProvider"
    raise UserError(f'device "{device}" is not here: this onnxruntime has {", ".join(available)}')


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
