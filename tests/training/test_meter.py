from __future__ import annotations

import multiprocessing
import time

import numpy as np
import pytest
import torch

from skipnets.training.meter import Meter


def work(seconds: float) -> None:
    """Use the processor for so long."""
    until = time.process_time() + seconds
    while time.process_time() < until:
        pass


def work_and_wait(seconds: float, done: multiprocessing.synchronize.Event) -> None:
    work(seconds)
    done.wait()


def test_processor_time_is_that_of_the_process_and_not_of_the_clock() -> None:
    meter = Meter(torch.device("cpu"))
    meter.start()
    before = time.process_time()
    work(0.2)
    time.sleep(0.2)
    assert meter.processor_seconds == pytest.approx(time.process_time() - before, abs=0.03)  # ticks of 10 ms


def test_processor_time_counts_a_worker_while_it_runs_and_after_its_end() -> None:
    context = multiprocessing.get_context("fork")
    done = context.Event()
    meter = Meter(torch.device("cpu"))
    meter.start()
    worker = context.Process(target=work_and_wait, args=(0.3, done))
    worker.start()
    while meter.processor_seconds < 0.3:
        time.sleep(0.01)
    done.set()
    worker.join()
    assert 0.3 <= meter.processor_seconds < 0.6


def test_memory_is_the_peak_of_the_samples_since_the_start() -> None:
    meter = Meter(torch.device("cpu"))
    meter.start()
    before = meter.memory
    held = np.ones(64 * 2**20, np.uint8)
    meter.sample()
    del held
    meter.sample()
    assert meter.memory - before == pytest.approx(64, abs=8)
    meter.start()
    assert meter.memory - before < 32
