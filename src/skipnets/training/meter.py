"""Measure what a part of the training costs: processor time and memory."""

from __future__ import annotations

import multiprocessing
import time

import psutil
import torch

MIB = 2**20


class Meter:
    """Measures processor time and peak memory between two moments.

    Until it is started it can be sent to another process.

    Args:
        device: What trains. Memory is PyTorch's on a GPU, and this process's resident memory otherwise.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._process: psutil.Process | None = None
        self._before = 0.0
        self._peak = 0

    def start(self) -> None:
        """Measure from now on."""
        self._process = psutil.Process()
        self._before = processor_seconds()
        self._peak = 0
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        self.sample()

    def sample(self) -> None:
        """Look at the memory; on the CPU, its peak is the largest of these samples."""
        if self._process is not None and self.device.type != "cuda":
            self._peak = max(self._peak, self._process.memory_info().rss)

    @property
    def processor_seconds(self) -> float:
        """Processor time since the start, of this process and its workers."""
        return processor_seconds() - self._before

    @property
    def memory(self) -> float:
        """Peak memory since the start, in MiB."""
        peak = torch.cuda.max_memory_allocated(self.device) if self.device.type == "cuda" else self._peak
        return peak / MIB


def processor_seconds() -> float:
    """Processor time, user and system, of this process and the workers that it started so far."""
    times = psutil.Process().cpu_times()
    seconds = time.process_time() + times.children_user + times.children_system  # workers that have ended
    for worker in multiprocessing.active_children():
        try:
            seconds += sum(psutil.Process(worker.pid).cpu_times()[:4])
        except psutil.NoSuchProcess:
            continue
    return seconds
