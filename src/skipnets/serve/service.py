"""Runs a classifier for concurrent requests: loading, the queue, and refusals.

Images are decoded by a pool of threads, and the network runs in one thread (and in those of its runtime);
the event loop does neither.

Shapes: N images of a batch, H height, W width, C channels.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.metadata
import math
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from typing import Any, BinaryIO, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from skipnets.classifier import Classifier, Prediction
from skipnets.data.arrays import is_array
from skipnets.data.decoding import (
    ImageDecodeError,
    TooManyPixelsError,
    declared_size,
    decoding_bytes,
)
from skipnets.data.pixel_budget import AbandonedError, PixelBudget
from skipnets.data.raster import WindowedImage
from skipnets.data.volume_files import Volume, read_volume_header
from skipnets.errors import UserError
from skipnets.predicting import failed_prediction, make_prediction, outputs_with_uncertainty
from skipnets.probabilities import NOT_FINITE
from skipnets.selection import check_calibrated
from skipnets.serve.batching import Batcher
from skipnets.serve.explaining import explanation_png, why_unexplained
from skipnets.serve.limits import BYTES_OF_VALUE, Limits
from skipnets.serve.metrics import Metrics
from skipnets.uncertainty import check_share

__all__ = ["BusyError", "Service", "Upload"]

# Bodies of the largest size that are in memory at a time.
_BODIES_HELD = 4
# Pillow stores color in four; of a windowed image, three of float32.
_BYTES_RESIZED = 12

State = Literal["loading", "ready", "draining", "failed"]


class BusyError(Exception):
    """The server cannot take this request now.

    Args:
        reason: One line.
        seconds: When to try again.
    """

    def __init__(self, reason: str, seconds: int) -> None:
        super().__init__(reason)
        self.seconds = seconds


@dataclass(frozen=True)
class Upload:
    """A file that a client sent.

    Args:
        name: The client's name for it; never used as a path.
        file: Its content.
    """

    name: str
    file: BinaryIO


class _Awaited:
    """A file that is read as long as its request is waited for.

    Args:
        file: An open binary file.
        given_up: Set when nobody waits any more.
    """

    def __init__(self, file: BinaryIO, given_up: threading.Event) -> None:
        self._file = file
        self._given_up = given_up
        self.seek, self.tell = file.seek, file.tell

    def read(self, size: int = -1) -> bytes:
        """Read bytes, as of any file.

        Raises:
            AbandonedError: If nobody waits any more; decoders that read in pieces end with it.
        """
        if self._given_up.is_set():
            raise AbandonedError
        return self._file.read(size)


class Service:
    """A classifier with a queue, batching and metrics, used by the routes.

    Args:
        load: Returns the classifier; called once, in the network's thread.
        limits: Beyond them requests are refused.
        batch_size: Most images in a batch.
        batch_delay: Longest time that an image waits for others, in seconds.
        workers: Threads that decode images.
        coverage: Answers hold sets of classes with this coverage, as of `Classifier.predict`.
        reject: Answers say whether an image is among this share of the most unusual ones.

    Attributes:
        state: "ready" while images are accepted.
        failure: Why loading failed, if it did.
        running: Number of requests in progress.
    """

    def __init__(
        self,
        load: Callable[[], Classifier],
        *,
        limits: Limits,
        batch_size: int,
        batch_delay: float,
        workers: int,
        coverage: float | None = None,
        reject: float | None = None,
    ) -> None:
        check_share(coverage=coverage, reject=reject)
        if workers < 1:
            raise UserError(f"workers={workers}: must be at least 1")
        self.limits = limits
        self.metrics = Metrics()
        self.state: State = "loading"
        self.failure: Exception | None = None
        self.running = 0
        self._load = load
        self._asked = {"coverage": coverage, "reject": reject}
        self._classifier: Classifier | None = None
        self._unexplained: str | None = None
        self._admitted = 0
        self._held = 0
        self._seconds_an_image = 0.05
        self._budget = PixelBudget(limits.memory)
        self.metrics.image_memory.set_function(lambda: self._budget.used)
        self._readers = ThreadPoolExecutor(workers, thread_name_prefix="reader")
        self._network = ThreadPoolExecutor(1, thread_name_prefix="network")
        self._batcher = Batcher(
            self._answer,
            self._network,
            batch_size=batch_size,
            delay=batch_delay,
            under_way=lambda: self._admitted,
        )

    @property
    def classifier(self) -> Classifier:
        """The classifier that is served.

        Raises:
            BusyError: If it is not loaded yet.
        """
        if self._classifier is None:
            raise BusyError("the model is being loaded", 1)
        return self._classifier

    @property
    def unexplained(self) -> str | None:
        """Why there are no Grad-CAM maps; None where there are."""
        return self._unexplained

    @property
    def drained(self) -> bool:
        """Whether no more images are accepted and none are in progress."""
        return self.state == "draining" and self.running == 0

    def drain(self) -> None:
        """Accept no more images; requests in progress go on."""
        self._become("draining")

    @contextlib.asynccontextmanager
    async def opened(self) -> AsyncIterator[None]:
        """Load the classifier and serve while the context is open."""
        tasks = [asyncio.create_task(self._open()), asyncio.create_task(self._batcher.run())]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            self._readers.shutdown(wait=False, cancel_futures=True)
            self._network.shutdown(wait=False, cancel_futures=True)

    @contextlib.contextmanager
    def admitted(self) -> Iterator[Callable[[int], None]]:
        """A place in the queue for a request whose number of images is not known yet.

        Yields:
            A function that takes places for this many images instead of one.

        Raises:
            BusyError: If the queue is full, or images are not accepted yet or any more. The function that
                is yielded may raise it, too.
        """
        if self.state != "ready":
            raise BusyError(f"the server is {self.state}", 1 if self.state == "loading" else 5)
        places = 0

        def take(count: int) -> None:
            nonlocal places
            if self._admitted + count - places > self.limits.queue:
                seconds = math.ceil(self._admitted * self._seconds_an_image)
                raise BusyError(
                    f"{self._admitted} images are waiting, of {self.limits.queue} at most",
                    min(max(seconds, 1), 60),
                )
            self._admitted += count - places
            places = count
            self.metrics.queue.set(self._admitted)

        take(1)
        try:
            yield take
        finally:
            self._admitted -= places
            self.metrics.queue.set(self._admitted)

    @contextlib.contextmanager
    def holding(self) -> Iterator[Callable[[int], None]]:
        """Room for a request's body, which is held in memory until the request is answered.

        What has arrived counts, not what is announced: clients that send nothing take no room from others.

        Yields:
            A function that takes room for this many bytes more.

        Raises:
            BusyError: By the function that is yielded, if the bodies of other requests take all the room.
        """
        held = 0

        def hold(size: int) -> None:
            nonlocal held
            if self._held + size > _BODIES_HELD * self.limits.body_bytes:
                self._held -= held  # at once: of bodies that grow side by side, some must fit
                held = 0
                raise BusyError("the bodies of other requests fill the memory that is set aside for them", 1)
            self._held += size
            held += size

        try:
            yield hold
        finally:
            self._held -= held

    async def predict(self, uploads: Sequence[Upload], top_k: int) -> list[Prediction]:
        """Classify each image; one that cannot be read, or computed, has an error and stops no other."""
        with _until_given_up() as given_up:
            return await asyncio.gather(*[self._predict(upload, top_k, given_up) for upload in uploads])

    async def probabilities(self, images: Sequence[Upload | NDArray[Any]]) -> NDArray[np.float64]:
        """Probabilities of images, or their numbers: (N, classes).

        Args:
            images: Files, or pixels (H, W, C).

        Raises:
            ImageDecodeError: If one of them cannot be read, or its outputs are not finite.
        """
        with _until_given_up() as given_up:
            answers = await asyncio.gather(*[self._ask(image, given_up) for image in images])
            return np.stack([row for row, _ in answers])

    async def explain(self, upload: Upload, label: str | None) -> bytes:
        """A PNG of the image with the Grad-CAM map of a class; None takes the most probable class.

        Only where nothing leaves it `unexplained`.

        Raises:
            UserError: If the image cannot be read or the class is unknown.
        """
        loop = asyncio.get_running_loop()
        with _until_given_up() as given_up:
            return await loop.run_in_executor(self._readers, self._explain, upload, label, given_up)

    async def _open(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            await loop.run_in_executor(self._network, self._warm_up)
        except Exception as error:
            self.failure = error
            self._become("failed")
            return
        if self.state == "loading":
            self._become("ready")

    def _warm_up(self) -> None:
        """Load, and predict once, so that the first client does not wait for a runtime's warm-up."""
        classifier = self._load()
        preprocessing = classifier.preprocessing
        check_calibrated(classifier, **self._asked)
        shape = (1, *preprocessing.size, preprocessing.channels)
        [(row, _)] = _answers(classifier, np.zeros(shape, preprocessing.pixel_type), **self._asked)
        if not np.isfinite(row).all():
            raise UserError(NOT_FINITE)
        self._unexplained = why_unexplained(classifier)
        self._classifier = classifier
        self.metrics.model.info(
            {
                "name": classifier.network,
                "runtime": classifier.runtime.name,
                "skipnets_version": importlib.metadata.version("skipnets"),
            }
        )

    def _become(self, state: State) -> None:
        self.state = state
        self.metrics.ready.set(state == "ready")

    async def _predict(self, upload: Upload, top_k: int, given_up: threading.Event) -> Prediction:
        try:
            row, uncertainty = await self._ask(upload, given_up)
        except ImageDecodeError as error:
            return failed_prediction(self.classifier, upload.name, str(error).removeprefix("image: "))
        return replace(make_prediction(self.classifier, upload.name, row, top_k), **uncertainty)

    async def _ask(
        self, image: Upload | NDArray[Any], given_up: threading.Event
    ) -> tuple[NDArray[np.float64], dict[str, Any]]:
        """(classes,) probabilities of an image, and `Prediction` fields that were asked for; counted."""
        loop = asyncio.get_running_loop()
        try:
            pixels = await loop.run_in_executor(self._readers, self._pixels, image, given_up)
        except ImageDecodeError:
            self.metrics.images.labels("unreadable").inc()
            raise
        answer: tuple[NDArray[np.float64], dict[str, Any]] = await self._batcher.ask(pixels)
        if not np.isfinite(answer[0]).all():
            self.metrics.images.labels("failed").inc()
            raise ImageDecodeError(f"image: {NOT_FINITE}")
        self.metrics.images.labels("answered").inc()
        return answer

    @contextlib.contextmanager
    def _decoded(
        self, image: Upload | NDArray[Any], given_up: threading.Event
    ) -> Iterator[Image.Image | WindowedImage]:
        """An image, upright; its memory is reserved while the context is open."""
        source: Any = _Awaited(image.file, given_up) if isinstance(image, Upload) else image
        preprocessing, limit = self.classifier.preprocessing, self.limits.pixels
        with _naming_option():
            size = decoding_bytes(source, max_pixels=limit, windowed=preprocessing.window is not None)
            sides = declared_size(source, max_pixels=limit)
        # A row of a thousand pixels, fitted to the input's height, is some hundred thousand times as large.
        size += _BYTES_RESIZED * max(
            preprocessing.resized_pixels(*sides), preprocessing.resized_pixels(*sides[::-1])
        )
        if size > self._budget.limit:
            raise self._needs_memory(size)
        with self._budget.reserved(size, abandoned=given_up.is_set):
            yield preprocessing.open(source, max_pixels=limit)

    def _needs_memory(self, size: int) -> ImageDecodeError:
        more = "skipnets serve --max-image-memory allows more"
        return ImageDecodeError(f"image: {self._budget.refusal(size)}; {more}")

    @contextlib.contextmanager
    def _read_volume(self, image: Upload | NDArray[Any], given_up: threading.Event) -> Iterator[Volume]:
        """A signal or a volume; its memory is reserved while the context is open."""
        source: Any = _Awaited(image.file, given_up) if isinstance(image, Upload) else image
        preprocessing, limit = self.classifier.preprocessing, self.limits.pixels
        if isinstance(image, Upload) and preprocessing.dims == 1:
            image.file.seek(0)
            if not is_array(image.file.read(300)):  # the lines of a table take many times their size
                raise ImageDecodeError("image: must be a signal in a .npy or .npz file")
        with _naming_option():
            header = read_volume_header(source, preprocessing.dims, preprocessing.channels, max_values=limit)
        resized = [axis.resized for axis in preprocessing.volume_axes(header.sides, header.spacing)]
        places = max(map(math.prod, (header.sides, resized, preprocessing.size)))
        size = BYTES_OF_VALUE * places * header.channels
        if size > self._budget.limit:
            raise self._needs_memory(size)
        with self._budget.reserved(size, abandoned=given_up.is_set):
            yield preprocessing.open_volume(source, max_values=limit)

    def _pixels(self, image: Upload | NDArray[Any], given_up: threading.Event) -> NDArray[Any]:
        preprocessing = self.classifier.preprocessing
        if preprocessing.dims != 2:
            with self._read_volume(image, given_up) as volume:
                return preprocessing.fitted_volume(volume)
        with self._decoded(image, given_up) as opened:
            return preprocessing.pixels(opened)

    def _explain(self, upload: Upload, label: str | None, given_up: threading.Event) -> bytes:
        is_image = self.classifier.preprocessing.dims == 2
        reading = self._decoded if is_image else self._read_volume
        with reading(upload, given_up) as image:
            explained = self._network.submit(explanation_png, self.classifier, image, label)
            while not wait([explained], timeout=0.1).done:
                if given_up.is_set() and explained.cancel():
                    raise AbandonedError
            return explained.result()

    def _answer(self, pixels: NDArray[Any]) -> list[tuple[NDArray[np.float64], dict[str, Any]]]:
        """(N, H, W, C) → N answers of `Classifier.outputs_with_uncertainty`, timed."""
        start = time.perf_counter()
        answers = _answers(self.classifier, pixels, **self._asked)
        seconds = time.perf_counter() - start
        self.metrics.batch_images.observe(len(pixels))
        self.metrics.batch_seconds.observe(seconds)
        self._seconds_an_image += (seconds / len(pixels) - self._seconds_an_image) / 8
        return answers


@contextlib.contextmanager
def _until_given_up() -> Iterator[threading.Event]:
    """An event that is set when the block ends, however it does: work in threads then stops."""
    event = threading.Event()
    try:
        yield event
    finally:
        event.set()


@contextlib.contextmanager
def _naming_option() -> Iterator[None]:
    """Name the option that allows larger images."""
    try:
        yield
    except TooManyPixelsError as error:
        raise ImageDecodeError(f"{error}; skipnets serve --max-megapixels allows more") from error


def _answers(
    classifier: Classifier, pixels: NDArray[Any], **asked: float | None
) -> list[tuple[NDArray[np.float64], dict[str, Any]]]:
    """(N, H, W, C) → what `outputs_with_uncertainty` gives of each."""
    normalizes = classifier.runtime.input_type == "uint8"
    prepare = classifier.preprocessing.planes if normalizes else classifier.preprocessing.normalize
    return outputs_with_uncertainty(classifier, prepare(pixels), **asked)
