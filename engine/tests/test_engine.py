"""What callers rely on: any batch, any number of threads and callers, one answer."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import signal
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from networks import NETWORKS, Build, Network, dense
from skipnets_engine import Engine, EngineError, isas
from skipnets_engine import engine as module


def images(count: int, *, height: int = 33, width: int = 29) -> Any:
    return np.random.default_rng(count).standard_normal((count, 3, height, width)).astype(np.float32)


@pytest.fixture(params=NETWORKS)
def network(request: pytest.FixtureRequest) -> Any:
    return NETWORKS[request.param]()


@pytest.mark.parametrize("threads", [1, 2, 3, 7])
def test_threads_and_batches_change_no_image(network: Any, threads: int, isa: str) -> None:
    batch = images(11)
    alone = Engine(*network, threads=1, isa=isa)
    one_by_one = np.concatenate([alone.logits(batch[i : i + 1]) for i in range(len(batch))])
    together = Engine(*network, threads=threads, isa=isa).logits(batch)
    # Not bit for bit: larger batches may take another algorithm.
    np.testing.assert_allclose(together, one_by_one, rtol=2e-5, atol=2e-5)


def test_the_same_batch_gives_the_same_bits_on_any_team(network: Any) -> None:
    batch = images(1)
    first = Engine(*network, threads=1).logits(batch)
    for threads in (2, 3, 8):
        assert (Engine(*network, threads=threads).logits(batch) == first).all()


def deep() -> Network:
    """Of maps so small, and channels so many, that two images at a time take another algorithm than one."""
    build = Build()
    x = build.convolution(0, 128, 3, stride=8)
    return build.finish(build.convolution(x, 128, 3))


def algorithms(of: Engine, images: int) -> list[str]:
    return [line["algorithm"] for line in of.plan((24, 32), images=images, rounds=1)]


def test_the_same_batch_gives_the_same_bits_however_many_workers_are_free() -> None:
    engine, batch = Engine(*deep(), threads=2), images(5, height=24, width=32)
    assert algorithms(engine, 1) != algorithms(engine, 4)
    wanted = engine.logits(batch)
    with ThreadPoolExecutor(12) as pool:  # more callers than there are workers
        assert all(pool.map(lambda _: (engine.logits(batch) == wanted).all(), range(120)))


def test_instruction_sets_agree(network: Any) -> None:
    results = [Engine(*network, threads=1, isa=isa).logits(images(2)) for isa in isas()]
    for result in results[1:]:
        np.testing.assert_allclose(result, results[0], rtol=2e-5, atol=2e-5)


def test_logits_are_the_head_over_the_features(network: Any) -> None:
    _, tensors = network
    engine = Engine(*network)
    features = engine.embed(images(3)).astype(float)
    wanted = features @ tensors["head.weight"].T.astype(float) + tensors["head.bias"]
    np.testing.assert_allclose(engine.logits(images(3)), wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", NETWORKS)
def test_without_a_head_the_features_come_out(name: str) -> None:
    engine, whole = Engine(*NETWORKS[name](classes=0)), Engine(*NETWORKS[name]())
    assert (engine.logits(images(2)) == engine.embed(images(2))).all()
    assert (engine.embed(images(2)) == whole.embed(images(2))).all()


def test_sizes_take_turns(network: Any) -> None:
    """More sizes than plans are kept, back and forth."""
    engine = Engine(*network, threads=2)
    sizes = [(16 + i, 40 - i) for i in range(12)]
    first = [engine.logits(images(2, height=h, width=w)) for h, w in sizes]
    for (height, width), wanted in zip(sizes, first, strict=True):
        assert (engine.logits(images(2, height=height, width=width)) == wanted).all()


def test_an_empty_batch(network: Any) -> None:
    assert Engine(*network).logits(images(0)).shape == (0, 4)


def test_many_callers_and_models_at_once() -> None:
    """Models that share the workers, each called by several threads, with batches of several sizes."""
    engines = [Engine(*make(seed), threads=3) for make in NETWORKS.values() for seed in (0, 1)]
    batches = [images(count, height=20 + count) for count in (1, 2, 5)]
    wanted = {
        (i, j): engine.logits(batch) for i, engine in enumerate(engines) for j, batch in enumerate(batches)
    }
    start = threading.Barrier(8)

    def caller(number: int) -> bool:
        start.wait()
        order = np.random.default_rng(number).permutation(list(wanted))
        return all((engines[i].logits(batches[j]) == wanted[i, j]).all() for i, j in order)

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(caller, range(8)))


def _logits_in_child(queue: Any, engine: Engine, batch: Any) -> None:
    queue.put(engine.logits(batch))


@pytest.mark.skipif(not hasattr(multiprocessing, "get_context"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_after_a_fork_the_child_has_its_own_workers() -> None:
    if "fork" not in multiprocessing.get_all_start_methods():
        pytest.skip("this system cannot fork")
    engine = Engine(*dense(), threads=2)
    wanted = engine.logits(images(1))
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    child = context.Process(target=_logits_in_child, args=(queue, engine, images(1)))
    child.start()
    assert (queue.get(timeout=60) == wanted).all()
    child.join()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_fork_while_another_thread_plans_for_a_size() -> None:
    """The child lacks that thread, but waits for nothing of it."""
    engine, batch = Engine(*dense(), threads=2), images(1)
    wanted, stop = engine.logits(batch), threading.Event()

    def plan() -> None:
        for extra in itertools.cycle(range(20)):  # more sizes than plans are kept
            engine.logits(images(1, height=34 + extra))
            if stop.is_set():
                return

    planner = threading.Thread(target=plan)
    planner.start()
    try:
        for _ in range(20):
            child = os.fork()
            if child == 0:
                signal.alarm(60)  # which ends it
                os._exit(0 if (engine.logits(batch) == wanted).all() else 1)
            assert os.waitpid(child, 0)[1] == 0
    finally:
        stop.set()
        planner.join()


@pytest.mark.skipif(
    sys.platform != "linux" or "san.so" in os.environ.get("LD_PRELOAD", ""),
    reason="measures memory as Linux does, of which sanitizers take more",
)
def test_callers_at_once_take_memory_for_the_threads_that_compute() -> None:
    """Not for as many threads each as could."""

    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    engine, start = Engine(*dense(), threads=8), threading.Barrier(8)

    def caller(_: int) -> None:
        start.wait()
        for _ in range(20):
            engine.logits(images(1))

    Engine(*dense(), threads=8).logits(images(1))  # starts the workers
    before = resident()
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(caller, range(8)))
    assert resident() - before < 48 << 20


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, 8),
        ({"cpu.max": "max 100000\n"}, 8),
        ({"cpu.max": "150000 100000\n"}, 2),
        ({"cpu.max": "5000 100000\n"}, 1),
        ({"cpu.max": "6400000 100000\n"}, 8),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, 8),
        ({"cpu/cpu.cfs_quota_us": "300000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 3),
        ({"cpu/cpu.cfs_quota_us": "300000\n"}, 8),
        ({"cpu.max": "damaged"}, 8),
    ],
    ids=str,
)
def test_the_default_is_what_a_container_may_use(
    files: dict[str, str], expected: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content)
    monkeypatch.setattr(module, "_CGROUP", tmp_path)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    assert Engine(*dense()).threads == expected


def test_the_default_is_never_more_than_the_engine_takes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_CGROUP", tmp_path)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(2000)), raising=False)
    assert Engine(*dense()).threads == 1024


def test_the_plan_divides_a_batch_as_a_call_does() -> None:
    """Fewer images than threads are computed one by one."""
    engine = Engine(*deep(), threads=3)
    together, two_each = algorithms(engine, 1), algorithms(engine, 6)
    assert together != two_each
    assert [algorithms(engine, images) for images in (2, 3, 5)] == [together] * 3
    assert algorithms(engine, 8) == two_each


def test_the_plan_lists_every_step(network: Any) -> None:
    engine = Engine(*network, threads=2)
    for images in (1, 4):
        lines = engine.plan((32, 32), images=images, rounds=3)
        assert sum(line["macs"] for line in lines) > 0
        assert all(line["seconds"] >= 0 and line["bytes"] > 0 for line in lines)
        assert {"product", "mean"} <= {line["algorithm"] for line in lines}


def test_forced_instruction_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SKIPNETS_ENGINE_ISA", "baseline")
    assert Engine(*dense()).isa == "baseline"
    monkeypatch.setenv("SKIPNETS_ENGINE_ISA", "mmx")
    with pytest.raises(EngineError, match=r'"mmx" is not one .*baseline'):
        Engine(*dense())
