"""Dynamic batching: images of concurrent requests go through the network together.

Shapes: N images of a batch, H height, W width, C channels.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from skipnets.errors import UserError

__all__ = ["Batcher"]

Network = Callable[[NDArray[Any]], Sequence[Any]]


@dataclass(frozen=True)
class _Waiting:
    """An image waiting for its prediction.

    Args:
        pixels: (H, W, C).
        answer: Receives what the network answers.
        since: When it arrived, on the event loop's clock.
    """

    pixels: NDArray[Any]
    answer: asyncio.Future[Any]
    since: float


class Batcher:
    """Collects images into batches; one batch is computed while the next is collected.

    Only the network runs in another thread, so nothing here needs a lock.

    Args:
        network: (N, H, W, C) pixels → N answers.
        thread: Runs the network, one batch at a time.
        batch_size: Most images in a batch.
        delay: Longest time that an image waits for others while the network is idle, in seconds.
        under_way: Number of images in progress, including those still being read: the only one does
            not wait.
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
            raise UserError(f"batch_size={batch_size}: must be at least 1")
        if not 0 <= delay <= 1:
            raise UserError(f"batch_delay={delay}: must be from 0 to 1 second")
        self._network = network
        self._thread = thread
        self._batch_size = batch_size
        self._delay = delay
        self._under_way = under_way
        self._queue: asyncio.Queue[_Waiting] = asyncio.Queue()

    async def ask(self, pixels: NDArray[Any]) -> Any:
        """(H, W, C) pixels → the network's answer, computed together with whatever else is waiting."""
        loop = asyncio.get_running_loop()
        waiting = _Waiting(pixels, loop.create_future(), loop.time())
        self._queue.put_nowait(waiting)
        return await waiting.answer

    async def run(self) -> None:
        """Answer until canceled."""
        while True:
            # Requests that timed out while waiting are skipped.
            batch = [waiting for waiting in await self._gather() if not waiting.answer.done()]
            if batch:
                await self._answer(batch)

    async def _gather(self) -> list[_Waiting]:
        """At least one image, and those that arrive within the delay."""
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
