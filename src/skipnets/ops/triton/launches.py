"""Repeats the kernel launches of a pass without Triton's own work for each of them.

Triton examines every argument of every launch, which takes longer than most of these kernels run. But the
launches of a pass over tensors of the same sizes differ in nothing but addresses. The first time they are
made by Triton and recorded; from then on its compiled kernels are launched directly.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from skipnets.machine import usable_cores
from skipnets.ops.triton.tuning import TUNER, Config

logger = logging.getLogger("skipnets")

_ALIGNMENT = 16
"""Bytes: Triton compiles another kernel for a pointer that is not a multiple of it."""

_MOST_RECORDINGS = 256

SLOWER: dict[str, str] = {}
"""What the installed version of Triton cannot do, at a cost in time: what happens instead → why."""


def _report_slower(instead: str, error: Exception) -> None:
    """Warn, the first time, and remember it for `skipnets.ops.triton.slower_launches`."""
    if instead not in SLOWER:
        SLOWER[instead] = f"Triton {triton.__version__}: {' '.join(str(error).split())[:200]}"
        logger.warning("fused kernels are slower than they could be: %s (%s)", instead, SLOWER[instead])


class Launch(NamedTuple):
    """A launch that can be repeated.

    Attributes:
        compiled: Triton's compiled kernel.
        grid: Its extents.
        arguments: In the kernel's order, constants included; None for pointers.
        pointers: The position of each pointer among the arguments, the tensor that it points into, and how
            many bytes behind its beginning.
    """

    compiled: Any
    grid: tuple[int, int, int]
    arguments: tuple[Any, ...]
    pointers: tuple[tuple[int, int, int], ...]


class Recorder:
    """Launches kernels by Triton and keeps what it takes to repeat that.

    Args:
        tensors: All that the kernels' pointers point into.

    Attributes:
        launches: So far; None if they cannot be repeated.
    """

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        extents = sorted((tensor.data_ptr(), _end(tensor), index) for index, tensor in enumerate(tensors))
        distinct = all(end <= start for (_, end, _), (start, _, _) in itertools.pairwise(extents))
        self._extents = extents
        self._recording = True
        self.launches: list[Launch] | None = [] if distinct and _aligned(tensors) else None

    def __call__(self, kernel: Any, grid: tuple[int, ...], *arguments: object, **options: object) -> None:
        """Launch a kernel.

        Args:
            kernel: A function of Triton's.
            grid: How many programs.
            arguments: Of the kernel, in its order.
            options: Arguments by name, and options of the compiler.
        """
        compiled = kernel[grid](*arguments, **options)
        if self.launches is None or not self._recording:
            return
        if not hasattr(compiled, "run"):  # Triton's interpreter compiles nothing.
            self.launches = None
            return
        names = kernel.arg_names
        given = dict(zip(names, arguments, strict=False)) | options
        ordered = [given[name] for name in names]
        pointers = []
        for position, argument in enumerate(ordered):
            if isinstance(argument, Tensor):
                pointers.append((position, *self._locate(argument.data_ptr())))
                ordered[position] = None
        x, y, z = (*grid, 1, 1)[:3]
        self.launches.append(Launch(compiled, (x, y, z), tuple(ordered), tuple(pointers)))

    def tune(
        self,
        kernel: str,
        problem: tuple[object, ...],
        candidates: tuple[Config, ...],
        run: Callable[[Config], object],
        device: torch.device,
    ) -> Config:
        """As `Tuner.choose`; what is launched to measure is not part of the pass."""
        self._recording = False
        try:
            return TUNER.choose(kernel, problem, candidates, run, device)
        finally:
            self._recording = True

    def _locate(self, pointer: int) -> tuple[int, int]:
        for start, end, index in self._extents:
            if start <= pointer < end:
                return index, pointer - start
        raise LookupError("a kernel's argument does not lie in any tensor of the pass")


class Compiler:
    """Takes the launches of a pass to compile their kernels, and launches none."""

    def __call__(self, kernel: Any, grid: tuple[int, ...], *arguments: object, **options: object) -> None:
        """Compile what this launch needs."""
        kernel.warmup(*arguments, grid=grid, **options)

    def tune(
        self,
        kernel: str,
        problem: tuple[object, ...],
        candidates: tuple[Config, ...],
        run: Callable[[Config], object],
        device: torch.device,
    ) -> Config:
        """Compile all candidates between which nothing has been chosen yet; returns one of them."""
        left = TUNER.left(kernel, problem, candidates, device)
        for config in left[1:]:
            run(config)
        return left[0]


def compile_kernels(build: Callable[[Compiler], None]) -> None:
    """Compile the kernels of a pass side by side: each takes seconds, and most of that outside of Python."""
    mode = getattr(triton, "AsyncCompileMode", None)
    if mode is None:  # Triton before 3.4 compiles each at its first launch.
        return
    try:
        with ThreadPoolExecutor(usable_cores()) as pool, mode(pool, ignore_errors=True):
            build(Compiler())
    except Exception as error:  # A kernel that is not ready is compiled at its first launch.
        _report_slower("kernels are compiled one by one", error)


class Launches:
    """The recorded launches of many passes."""

    def __init__(self) -> None:
        self._recorded: dict[Hashable, list[Launch]] = {}
        self._repeats = True

    def run(
        self, key: Hashable, tensors: Sequence[Tensor], build: Callable[[Recorder | Compiler], None]
    ) -> None:
        """Run a pass: by `build` the first time, repeated from then on.

        Args:
            key: All that its launches depend on but addresses.
            tensors: All that its kernels' pointers point into, always in the same order.
            build: Makes the launches; also called to compile them.
        """
        launches = self._recorded.get(key)
        if launches is not None and _aligned(tensors) and not _observed():
            try:
                repeat(launches, [tensor.data_ptr() for tensor in tensors], _stream(tensors[0].device))
            except (AttributeError, TypeError) as error:  # Another version's way to launch.
                _report_slower("Triton examines every launch", error)
                self._recorded.clear()
                self._repeats = False
            else:
                return
        if launches is None and tensors[0].is_cuda:
            compile_kernels(build)
        recorder = Recorder(tensors)
        build(recorder)
        if recorder.launches is not None and self._repeats:
            if len(self._recorded) >= _MOST_RECORDINGS:
                self._recorded.clear()
            self._recorded[key] = recorder.launches


def repeat(launches: Sequence[Launch], addresses: Sequence[int], stream: int) -> None:
    """Make launches again, with tensors at other addresses."""
    for compiled, (x, y, z), fixed, pointers in launches:
        arguments = list(fixed)
        for position, tensor, offset in pointers:
            arguments[position] = addresses[tensor] + offset
        compiled.run(
            x, y, z, stream, compiled.function, compiled.packed_metadata, None, None, None, *arguments
        )


def _aligned(tensors: Sequence[Tensor]) -> bool:
    return all(tensor.data_ptr() % _ALIGNMENT == 0 for tensor in tensors)


def _end(tensor: Tensor) -> int:
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return tensor.data_ptr() + (last + 1) * tensor.element_size()


def _observed() -> bool:
    """Whether a profiler of Triton's own wants to hear of every launch."""
    runtime = getattr(getattr(triton, "knobs", None), "runtime", None)
    hooks = (getattr(runtime, name, None) for name in ("launch_enter_hook", "launch_exit_hook"))
    return any(hook is not None and getattr(hook, "calls", True) for hook in hooks)


def _stream(device: torch.device) -> int:
    return int(torch.cuda.current_stream(device).cuda_stream) if device.type == "cuda" else 0


LAUNCHES = Launches()
