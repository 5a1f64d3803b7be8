"""Images that come together are computed together, and everybody gets the own answer."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from skipnets.errors import UserError
from skipnets.serve.batching import Batcher


class Doubling:
    """(N, 1, 1, 1) → (N, 1): twice the pixel."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.started = threading.Event()
        self.go_on = threading.Event()
        self.go_on.set()

    def __call__(self, pixels: np.ndarray) -> np.ndarray:
        self.started.set()
        assert self.go_on.wait(10)
        values = pixels.reshape(len(pixels), 1).astype(np.float64)
        self.batches.append(values[:, 0].astype(int).tolist())
        if 99 in values:
            raise ZeroDivisionError
        return values * 2


def with_batcher(
    body: Callable[[Batcher], Awaitable[None]],
    network: Callable[[np.ndarray], np.ndarray],
    *,
    batch_size: int = 8,
    delay: float = 0.05,
    under_way: int = 100,
) -> None:
    async def main() -> None:
        with ThreadPoolExecutor(1) as thread:
            batcher = Batcher(
                network, thread, batch_size=batch_size, delay=delay, under_way=lambda: under_way
            )
            running = asyncio.create_task(batcher.run())
            try:
                await asyncio.wait_for(body(batcher), 10)
            finally:
                running.cancel()

    asyncio.run(main())


def pixel(value: int) -> np.ndarray:
    return np.full((1, 1, 1), value, np.uint8)


async def doubled(batcher: Batcher, values: range) -> list[float]:
    rows = await asyncio.gather(*[batcher.ask(pixel(value)) for value in values])
    return [float(row[0]) for row in rows]


def test_what_comes_together_is_computed_together_up_to_a_batch() -> None:
    network = Doubling()

    async def body(batcher: Batcher) -> None:
        assert await doubled(batcher, range(20)) == [2.0 * value for value in range(20)]

    with_batcher(body, network)
    assert network.batches == [list(range(8)), list(range(8, 16)), list(range(16, 20))]


def test_an_image_waits_for_others_but_not_long() -> None:
    network = Doubling()

    async def body(batcher: Batcher) -> None:
        async def late(seconds: float, value: int) -> None:
            await asyncio.sleep(seconds)
            await batcher.ask(pixel(value))

        await asyncio.gather(late(0, 1), late(0.1, 2), late(0.9, 3))

    with_batcher(body, network, delay=0.5)
    assert network.batches == [[1, 2], [3]]


@pytest.mark.parametrize(("delay", "under_way"), [(0, 9), (1, 2)])
def test_nothing_is_held_back_without_a_delay_or_when_all_are_there(delay: float, under_way: int) -> None:
    network = Doubling()

    async def body(batcher: Batcher) -> None:
        before = asyncio.get_running_loop().time()
        assert await doubled(batcher, range(2)) == [0, 2]
        assert asyncio.get_running_loop().time() - before < 0.5

    with_batcher(body, network, delay=delay, under_way=under_way)
    assert network.batches == [[0, 1]]


def test_what_comes_while_the_network_is_busy_makes_the_next_batch_at_once() -> None:
    network = Doubling()
    network.go_on.clear()

    async def body(batcher: Batcher) -> None:
        first = asyncio.create_task(batcher.ask(pixel(1)))
        while not network.started.is_set():
            await asyncio.sleep(0.001)
        others = asyncio.create_task(doubled(batcher, range(2, 6)))
        await asyncio.sleep(0.05)
        network.go_on.set()
        assert (await first)[0] == 2
        assert await others == [4, 6, 8, 10]

    with_batcher(body, network, delay=0.01)
    assert network.batches == [[1], [2, 3, 4, 5]]


def test_requests_that_timed_out_are_not_computed() -> None:
    network = Doubling()
    network.go_on.clear()

    async def body(batcher: Batcher) -> None:
        first = asyncio.create_task(batcher.ask(pixel(1)))
        while not network.started.is_set():
            await asyncio.sleep(0.001)
        given_up, stays = (asyncio.create_task(batcher.ask(pixel(value))) for value in (2, 3))
        await asyncio.sleep(0.02)
        given_up.cancel()
        first.cancel()  # under way: its answer is dropped
        network.go_on.set()
        assert (await stays)[0] == 6

    with_batcher(body, network, delay=0)
    assert network.batches == [[1], [3]]


def test_a_failure_reaches_its_whole_batch_and_the_next_batch_succeeds() -> None:
    async def body(batcher: Batcher) -> None:
        asked = [batcher.ask(pixel(value)) for value in (99, 1)]
        results = await asyncio.gather(*asked, return_exceptions=True)
        assert [type(result) for result in results] == [ZeroDivisionError] * 2
        assert (await batcher.ask(pixel(1)))[0] == 2

    with_batcher(body, Doubling())


@pytest.mark.parametrize(("batch_size", "delay"), [(0, 0.1), (1, -0.1), (1, 2.0)])
def test_impossible_values_are_refused(batch_size: int, delay: float) -> None:
    with ThreadPoolExecutor(1) as thread, pytest.raises(UserError, match="batch"):
        Batcher(Doubling(), thread, batch_size=batch_size, delay=delay, under_way=lambda: 0)
