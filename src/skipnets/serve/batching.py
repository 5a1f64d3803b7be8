"""Images of many requests go through the network together.

N is the images of a batch; H, W and C their height, width and channels.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from skipnets.errors import UserError

__all__ = ["Batcher"]

Network = Callable[[NDArray[np.uint8]], NDArray[np.float64]]


@dataclass(frozen=True)
class _Waiting:
    """An image that waits for its answer.

    Args:
        pixels: (H, W, C).
        answer: Gets the probabilities, (classes,).
        since: When it came, on the event loop's clock.
    """

    pixels: NDArray[np.uint8]
    answer: asyncio.Future[NDArray[np.float64]]
    since: float


class Batcher:
    """Collects images into batches; one batch is computed while the next one gathers.

    Only the network runs elsewhere, so nothing here needs a lock.

    Args:
        network: (N, H, W, C) pixels → (N, classes) probabilities.
        thread: Where the network runs; a batch is computed at a time.
        batch_size: The most images of a batch.
        delay: The longest that an image waits for others while the network has nothing to do, in seconds.
        under_way: How many images there are in all, with those that are still being read: an image does
            not wait if there is no other.
    """

    def __init__(
        self,
        network: Network,
        thread: Executor,
        *,
        batch_size: int,
        delay: float,
        under_way: Callable[[], int],
    ) -> None:
        if batch_size < 1:
            raise UserError(f"batch_size must be at least 1, not {batch_size}")
        if not 0 <= delay <= 1:
            raise UserError(f"the delay of a batch must be from 0 to 1 second, not {delay}")
        self._network = network
        self._thread = thread
        self._batch_size = batch_size
        self._delay = delay
        self._under_way = under_way
        self._queue: asyncio.Queue[_Waiting] = asyncio.Queue()

    async def ask(self, pixels: NDArray[np.uint8]) -> NDArray[np.float64]:
        """(H, W, C) pixels → (classes,) probabilities, computed with whatever else is there."""
        loop = asyncio.get_running_loop()
        waiting = _Waiting(pixels, loop.create_future(), loop.time())
        self._queue.put_nowait(waiting)
        return await waiting.answer

    async def run(self) -> None:
        """Answer until canceled."""
        while True:
            # Whoever gave up while waiting is passed over.
            batch = [waiting for waiting in await self._gather() if not waiting.answer.done()]
            if batch:
                await self._answer(batch)

    async def _gather(self) -> list[_Waiting]:
        """At least one image, and what comes within the delay."""
        batch = [await self._queue.get()]
        until = batch[0].since + self._delay
        while len(batch) < self._batch_size:
            try:
                batch.append(self._queue.get_nowait())
            except asyncio.QueueEmpty:
                if len(batch) >= self._under_way():
                    break
                try:
                    async with asyncio.timeout_at(until):
                        batch.append(await self._queue.get())
                except TimeoutError:
                    break
        return batch

    async def _answer(self, batch: list[_Waiting]) -> None:
        pixels = np.stack([waiting.pixels for waiting in batch])
        loop = asyncio.get_running_loop()
        try:
            rows = await loop.run_in_executor(self._thread, self._network, pixels)
        except Exception as error:
            for waiting in batch:
                if not waiting.answer.done():
                    waiting.answer.set_exception(error)
            return
        for waiting, row in zip(batch, rows, strict=True):
            if not waiting.answer.done():
                waiting.answer.set_result(row)
