"""Reuse of the memory of large feature maps between training steps on a CPU.

When large pieces of memory are freed, the C library gives most of them back to the system. A training step
then touches each page of its maps for the first time again, which costs several times as much as writing to
them. PyTorch keeps such memory on GPUs, not on CPUs.

A tuned C library (mallopt) and jemalloc come to the same step time (`benchmarks/allocator.py`). But mallopt
would change the whole process that this library is a guest in, and jemalloc must be preloaded.
"""

from __future__ import annotations

import threading
import weakref
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import UntypedStorage

LARGE_BYTES = 1 << 20
"""Smaller allocations are left to the C library."""

_ALIGNMENT = 64

Bytes = npt.NDArray[np.uint8]


@dataclass(eq=False)
class _Block:
    """A piece of memory, and the part of it that a tensor uses as long as that exists."""

    memory: Bytes
    lent: weakref.ref[Bytes]

    @property
    def idle(self) -> bool:
        return self.lent() is None


class Memory:
    """Lends memory to tensors, and lends it again once no tensor uses it.

    A piece is lent for no less than four fifths of its size, and no more is held than was once lent at the
    same time. Safe to use from several threads.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._blocks: list[_Block] = []
        self._most_used = 0

    def storage(self, size: int) -> UntypedStorage:
        """So many bytes (at least one) of any content on the CPU, for a tensor to be set on."""
        with self._lock:
            needed = size + _ALIGNMENT
            fitting = [
                block
                for block in self._blocks
                if block.idle and needed <= block.memory.nbytes <= needed * 5 // 4
            ]
            if fitting:
                self._blocks.remove(fitting[0])
                memory = fitting[0].memory
            else:
                memory = np.empty(needed, dtype=np.uint8)
            start = -memory.ctypes.data % _ALIGNMENT
            part = memory[start : start + size]
            self._blocks.append(_Block(memory, weakref.ref(part)))
            self._drop_surplus()
        return torch.frombuffer(part, dtype=torch.uint8).untyped_storage()  # It keeps `part` alive.

    @property
    def held_bytes(self) -> int:
        """All memory, lent or idle."""
        return sum(block.memory.nbytes for block in self._blocks)

    def _drop_surplus(self) -> None:
        """Give the longest unused blocks back."""
        held = self.held_bytes
        idle = [block for block in self._blocks if block.idle]
        self._most_used = max(self._most_used, held - sum(block.memory.nbytes for block in idle))
        for block in idle:
            if held <= self._most_used:
                break
            self._blocks.remove(block)
            held -= block.memory.nbytes


MEMORY = Memory()
