"""What callers rely on: any batch, any number of threads and callers, one answer."""

from __future__ import annotations

import multiprocessing
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from networks import NETWORKS, dense
from skipnets_engine import Engine, EngineError, isas


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
