from __future__ import annotations

import multiprocessing
import pickle
import time
from types import SimpleNamespace

import psutil
import pytest
import torch

from skipnets.training.meter import MIB, Meter


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
    assert meter.processor_seconds == pytest.approx(time.process_time() - before, abs=0.01)


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


def test_memory_is_the_peak_of_the_samples_since_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = iter([100, 164, 130, 120, 110])
    monkeypatch.setattr(psutil.Process, "memory_info", lambda process: SimpleNamespace(rss=next(sizes) * MIB))
    meter = Meter(torch.device("cpu"))
    meter.start()
    assert meter.memory == 100
    meter.sample()
    meter.sample()
    assert meter.memory == 164
    meter.start()
    meter.sample()
    assert meter.memory == 120


def test_memory_is_what_the_system_says_of_the_process() -> None:
    meter = Meter(torch.device("cpu"))
    meter.start()
    assert meter.memory == pytest.approx(psutil.Process().memory_info().rss / MIB, rel=0.2)


def test_a_meter_can_be_sent_to_the_process_that_starts_it() -> None:
    meter = pickle.loads(pickle.dumps(Meter(torch.device("cpu"))))
    meter.start()
    assert meter.memory > 0
