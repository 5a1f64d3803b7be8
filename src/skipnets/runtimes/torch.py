"""Run a network in PyTorch.

Shapes: N batch, C channels, H height, W width.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from skipnets.errors import UserError, listed
from skipnets.models.backbone import Backbone
from skipnets.models.custom import CustomConfig
from skipnets.models.custom_model import CustomModel, NoEmbeddingError
from skipnets.models.factory import build_model
from skipnets.models.modes import evaluating
from skipnets.models.modified import refused_modification
from skipnets.models.registry import config_from_dict
from skipnets.runtimes.precision import HalfPrecisionCheck, check_precision
from skipnets.runtimes.runtime import InputType, NoFeaturesError, TensorsDoNotFitError

__all__ = ["TorchRuntime", "check_tensors", "pick_device", "without_lost_threads"]

_HALF = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}
"""What autocast computes in."""
_STATISTICS = ("running_mean", "running_var")

_process = os.getpid()
_exact_lock = threading.Lock()
_exact_blocks = 0  # at present
_tf32_before = (False, False)  # matrix products, convolutions


class TorchRuntime:
    """A `skipnets.runtimes.Runtime` around a torch module.

    Args:
        model: Used without a copy: it is not moved, and its mode (train or eval) is kept.
        precision: One of `skipnets.runtimes.precision.PRECISIONS` that the device computes in. None computes
            as PyTorch is set to.

    Attributes:
        precision: What it computes in: "32-true", "bf16-mixed" or "16-mixed"; None as PyTorch is set to. With
            "auto" on a GPU it becomes half precision or "32-true", after as many images as
            `HalfPrecisionCheck` compares.
    """

    name = "torch"
    input_type: InputType = "float32"

    def __init__(self, model: Backbone[Any], precision: str | None = None) -> None:
        self.model = model
        half = fast_precision(self._where()) if precision == "auto" else None
        self.precision = None if precision == "auto" else precision
        self._check = None if half is None else HalfPrecisionCheck(half)

    @classmethod
    def from_tensors(
        cls,
        architecture: Mapping[str, Any],
        tensors: Mapping[str, NDArray[Any]],
        *,
        device: str = "auto",
        threads: int | None = None,
        precision: str = "auto",
        network: nn.Module | None = None,
    ) -> TorchRuntime:
        """Build the architecture's model from the tensors, which it then owns.

        Args:
            architecture: From `config_to_dict`.
            tensors: The model's state dict.
            device: "auto" (CUDA, then Apple's MPS, then the CPU) or a device's name.
            threads: CPU threads of the whole process; None leaves torch's setting.
            precision: One of `skipnets.runtimes.precision.PRECISIONS`.
            network: The module of a `CustomConfig`, which gets the tensors. Default: what its import makes.

        Raises:
            UserError: If the device is not available, or does not compute in this precision; or if the
                network is no part of this package and is not trusted (`skipnets.trust`).
            TensorsDoNotFitError: If the tensors do not fit the architecture.
        """
        target = pick_device(device)
        check_precision(precision, device=target.type)
        model = _skeleton(architecture, at_most=len(tensors), network=network)
        check_tensors(model.stored(), tensors)
        # assign: the skeleton has no memory of its own to copy into. A module of somebody else's has, and
        # keeps its types, and what parameters share.
        model.stored().load_state_dict(
            {name: torch.from_numpy(array) for name, array in tensors.items()},
            assign=not isinstance(model, CustomModel),
        )
        if threads is not None:
            torch.set_num_threads(threads)
        model = model.eval().to(target)
        if target.type == "cuda" and model.config.dims == 2:
            model = model.to(memory_format=torch.channels_last)
        return cls(model, precision)

    @property
    def device(self) -> str:
        """The device of the model's parameters."""
        return str(self._where())

    def logits(self, batch: NDArray[Any]) -> NDArray[np.float32]:
        """(N, C, H, W) images → (N, classes) logits."""
        without_lost_threads()
        with evaluating(self.model), torch.inference_mode():
            images = self._to_tensor(batch)
            with self._computing_in(self._now()):
                logits = _to_numpy(self.model(images))
            self._compare(images, logits)
            return logits

    def embed(self, batch: NDArray[Any]) -> NDArray[np.float32]:
        """(N, C, H, W) images → (N, num_features) pooled features.

        Raises:
            NoFeaturesError: If the network does not say what its features are.
        """
        without_lost_threads()
        with evaluating(self.model), torch.inference_mode():
            images = self._to_tensor(batch)
            with self._computing_in(self._now()):
                try:
                    features = _to_numpy(self.model.embed(images))
                except NoEmbeddingError as error:
                    raise NoFeaturesError(str(error)) from error
                logits = None if self._check is None else _to_numpy(self.model(images))
            self._compare(images, logits)
            return features

    def tensors(self) -> dict[str, NDArray[Any]]:
        """The state dict as contiguous arrays; floating-point tensors as float32.

        Raises:
            TensorsDoNotFitError: If the model was changed and no longer matches its config.
        """
        state = self.model.stored().state_dict()
        if others := [name for name, tensor in state.items() if not isinstance(tensor, Tensor)]:
            raise TensorsDoNotFitError(f"{listed(others, 3)}: a model file holds tensors, nothing else")
        arrays = {
            name: (tensor.float() if tensor.is_floating_point() else tensor).cpu().contiguous().numpy()
            for name, tensor in state.items()
        }
        if not isinstance(self.model, CustomModel) and (refused := refused_modification(self.model)):
            raise TensorsDoNotFitError(refused)
        check_tensors(self.model.skeleton(), arrays)
        return arrays

    def _now(self) -> str | None:
        """What to compute in: float32 as long as half precision is compared with it."""
        return self.precision if self._check is None else "32-true"

    def _compare(self, images: Tensor, logits: NDArray[np.float32] | None) -> None:
        """Find out whether half precision would give the same labels, as long as that is open."""
        check = self._check
        if check is None or logits is None:
            return
        with self._computing_in(check.precision):
            half = _to_numpy(self.model(images))
        decided = check.add(logits, half)
        if decided is not None:
            self.precision, self._check = decided, None

    @contextlib.contextmanager
    def _computing_in(self, precision: str | None) -> Iterator[None]:
        """Compute in a number format."""
        device = self._where().type
        if precision in _HALF:
            with torch.autocast(device, _HALF[precision]):
                yield
        elif precision == "32-true" and device == "cuda":
            with exact_products():
                yield
        else:
            yield

    def _where(self) -> torch.device:
        return self._like().device

    def _like(self) -> Tensor:
        """A tensor with the type and device of the model's parameters."""
        real = (parameter for parameter in self.model.parameters() if parameter.is_floating_point())
        return next(real, torch.empty(0))

    def _to_tensor(self, batch: NDArray[Any]) -> Tensor:
        parameter = self._like()
        images = torch.from_numpy(np.ascontiguousarray(batch))
        if not parameter.is_cuda:
            return images.to(parameter.device, parameter.dtype)
        images = images.pin_memory().to(parameter.device, non_blocking=True)
        layout = torch.channels_last if images.ndim == 4 else torch.contiguous_format
        return images.to(parameter.dtype, memory_format=layout)


def pick_device(name: str) -> torch.device:
    """Resolve a device name, and check that the device is available.

    Raises:
        UserError: If the device is not available.
    """
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UserError(f"device={name}: must be auto, cpu, cuda, cuda:1 or mps") from error
    counts = {"cpu": 1, "cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available())}
    available = counts.get(device.type, 0)
    if (device.index or 0) >= available:
        raise UserError(f"device={name}: not available; torch finds {available} of type {device.type}")
    return device


@contextlib.contextmanager
def exact_products() -> Iterator[None]:
    """Let NVIDIA GPUs multiply float32 as such for the block, not in TF32.

    The setting is the process's. Blocks of several threads may overlap: the last one restores it.
    """
    global _exact_blocks, _tf32_before
    products, convolutions = torch.backends.cuda.matmul, torch.backends.cudnn
    with _exact_lock:
        if _exact_blocks == 0:
            _tf32_before = products.allow_tf32, convolutions.allow_tf32
            products.allow_tf32 = convolutions.allow_tf32 = False
        _exact_blocks += 1
    try:
        yield
    finally:
        with _exact_lock:
            _exact_blocks -= 1
            if _exact_blocks == 0:
                products.allow_tf32, convolutions.allow_tf32 = _tf32_before


def fast_precision(device: torch.device) -> str | None:
    """The half precision that is worth a try on a device, or None."""
    return "16-mixed" if device.type == "cuda" else None


def without_lost_threads() -> None:
    """Let a forked process compute in one thread: it lacks its parent's, and would wait for them forever."""
    global _process
    if os.getpid() != _process:
        torch.set_num_threads(1)
        _process = os.getpid()


def check_tensors(model: nn.Module, tensors: Mapping[str, NDArray[Any]]) -> None:
    """Check that tensors match a model's in name, shape and type, and are finite.

    Buffers need not be finite, such as masks of attention; a norm's running statistics do. Lazy parameters
    take any shape.

    Raises:
        TensorsDoNotFitError: If a tensor is missing, unexpected or wrong.
    """
    expected = model.state_dict()
    for problem, names in (
        ("missing", [name for name in expected if name not in tensors]),
        ("left over", [name for name in tensors if name not in expected]),
    ):
        if names:
            raise TensorsDoNotFitError(
                f"the tensors do not fit the architecture: {problem}: {listed(names, 3)}"
            )
    constants = {name for name, _ in model.named_buffers() if name.rpartition(".")[2] not in _STATISTICS}
    for name, array in tensors.items():
        wanted = expected[name]
        if is_lazy(wanted):
            continue
        if array.shape != tuple(wanted.shape):
            raise TensorsDoNotFitError(
                f"tensor {name} has shape {array.shape}, the architecture needs {tuple(wanted.shape)}"
            )
        kind = np.dtype(
            np.float32 if wanted.is_floating_point() else str(wanted.dtype).removeprefix("torch.")
        )
        if array.dtype != kind:
            raise TensorsDoNotFitError(f"tensor {name} is {array.dtype}, it should be {kind}")
        if name not in constants and not np.isfinite(array).all():
            raise TensorsDoNotFitError(
                f"tensor {name} is not finite: the training diverged or the file is damaged"
            )


def _skeleton(
    architecture: Mapping[str, Any], *, at_most: int, network: nn.Module | None = None
) -> Backbone[Any]:
    """The model on the meta device, so that absurd sizes allocate no memory.

    Args:
        architecture: From `config_to_dict`.
        at_most: Number of tensors. Every layer has at least one, so an architecture with more layers is
            refused before it is built.
        network: The module of a `CustomConfig`, which is used as it is.
    """
    config = config_from_dict(architecture)
    if network is not None:
        if not isinstance(config, CustomConfig):
            raise UserError(f"model: must not be given for {config.name}, a network of this package")
        return CustomModel.around(network, config)
    if sum(config.block_config) > at_most:
        raise TensorsDoNotFitError(
            f"the tensors do not fit the architecture: {at_most} for blocks of {config.block_config} layers"
        )
    with torch.device("meta"):
        return build_model(config)


def _to_numpy(tensor: Tensor) -> NDArray[np.float32]:
    array: NDArray[np.float32] = tensor.float().cpu().numpy()
    return array
