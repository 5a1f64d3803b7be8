"""Batches of images for training and evaluation, made so that reading is never what the model waits for.

Small training sets are decoded once and held as uint8 (float32 where the preprocessing windows images of more
bits or bands); larger images are read by worker processes, which hand such batches on. Normalizing is left to
the device that trains. PyTorch is imported only where training input is asked for: `evaluation_batches` runs
without it.

N batch, C channels, H height, W width.
"""

from __future__ import annotations

import functools
import logging
import math
import os
import shutil
import warnings
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from skipnets.axes import INPUTS
from skipnets.data.dataset import ImageDataset
from skipnets.data.decoding import ImageDecodeError, Source, open_region
from skipnets.data.listing import counted
from skipnets.data.preprocessing import Preprocessing
from skipnets.data.raster import WindowedImage
from skipnets.errors import UserError
from skipnets.machine import usable_cores
from skipnets.progress import LoggedProgress

if TYPE_CHECKING:
    import torch
    from PIL import Image

    from skipnets.data.augmentation import Augmentation

logger = logging.getLogger("skipnets")

# An epoch's order: positions in the images, drawn with a generator that the seed and the epoch determine.
Order = Callable[["np.random.Generator"], NDArray[np.int64]]  # quoted: numpy.random takes time to load
Failures = list[tuple[int, str]]

HELD_BYTES = 2**30
_HELD_AT_ONCE = 256


@dataclass(frozen=True, kw_only=True, eq=False)
class ImageBatch:
    """Images that were read together: of n images, the m that could be read.

    Attributes:
        positions: (m,) theirs among all images.
        inputs: (m, C, H, W).
        failures: Position and reason of the others.
        names: Of all n, in order.
    """

    positions: NDArray[np.int64]
    inputs: NDArray[Any]
    failures: Failures
    names: list[str]

    def outcomes(self) -> Iterator[tuple[str, str | None]]:
        """The name of each of the n images in order, and why it could not be read; None if it could."""
        reasons = dict(self.failures)
        positions = sorted([*self.positions.tolist(), *reasons])
        return zip(self.names, map(reasons.get, positions), strict=True)


def balanced(labels: NDArray[np.int64]) -> Order:
    """An epoch's order that shows every class equally often: as many draws as images, with replacement."""
    share = 1 / np.bincount(labels)[labels]
    share /= share.sum()
    return lambda generator: generator.choice(len(labels), size=len(labels), p=share)


def training_loader(
    dataset: ImageDataset,
    preprocessing: Preprocessing,
    augmentation: str = "none",
    erasing: float = 0.0,
    *,
    batch_size: int,
    workers: int = 0,
    seed: int = 0,
    sampler: Order | None = None,
    epoch_images: int | None = None,
    rank: int = 0,
    world_size: int = 1,
    shares: int | None = None,
    held_bytes: int = HELD_BYTES,
) -> ImageLoader:
    """Shuffled, augmented batches, the same for the same seed and epoch whatever the number of workers.

    A last batch of one image joins the batch before it: BatchNorm cannot learn from one.

    Args:
        dataset: Images to train on.
        preprocessing: Size, channels, interpolation, and the fit of what is not cropped at random.
        augmentation: A name of `skipnets.data.augmentation.AUGMENTATIONS`.
        erasing: Share of the images in which a box is erased.
        batch_size: Images per step (and process).
        workers: Processes that read. A set that is held in memory is read by them once, and batches
            are then cut in this process unless each image is changed one by one ("trivial", "rand", "augmix",
            erasing).
        seed: Seed of order and augmentation.
        sampler: Draws a pass's order; None for every image once. See `balanced`.
        epoch_images: Images of an epoch, over all processes, where that is not one pass: an epoch then goes
            on where the one before it ended.
        rank: Which of the processes that train together this is.
        world_size: How many these are; each gets another, equally long part of the epoch.
        shares: Into how many parts the epoch is divided: a multiple of the processes, each of which then
            takes a batch of each of its parts in turn. Default: one for each process.
        held_bytes: The most memory that decoded images may take.

    Raises:
        UserError: The augmentation is unknown, or there is nothing to train on.
    """
    from skipnets.data.augmentation import find_augmentation

    order = sampler or (lambda generator: generator.permutation(len(dataset)))
    schedule = EpochSchedule(
        len(dataset),
        order,
        batch_size=batch_size,
        epoch_images=epoch_images,
        seed=seed,
        rank=rank,
        world_size=world_size,
        shares=shares,
    )
    found = find_augmentation(augmentation, preprocessing.size, erasing=erasing)
    if workers > (cores := usable_cores()):
        logger.info(
            "workers=%d: this process may use %s, on which more workers read no faster",
            *(workers, counted(cores, "core")),
        )
    return ImageLoader(dataset, preprocessing, found, schedule, workers=workers, held_bytes=held_bytes)


def validation_loader(
    dataset: ImageDataset,
    preprocessing: Preprocessing,
    *,
    batch_size: int,
    workers: int = 0,
    held_bytes: int = HELD_BYTES,
) -> ImageLoader:
    """Every image once and in order, unchanged, to be looked at after every epoch; see `training_loader`.

    Pixels are exactly those of `Preprocessing`.
    """
    from skipnets.data.augmentation import Augmentation

    schedule = EpochSchedule(len(dataset), None, batch_size=batch_size)
    return ImageLoader(
        dataset, preprocessing, Augmentation(), schedule, workers=workers, held_bytes=held_bytes
    )


def evaluation_batches(
    sources: ImageDataset | Iterable[tuple[str, Source]],
    preprocessing: Preprocessing,
    *,
    batch_size: int = 64,
    workers: int | None = None,
    normalize: bool = True,
    failed: Callable[[str, ImageDecodeError], object] | None = None,
) -> Iterator[ImageBatch]:
    """Model input from images, in order, read ahead by threads; needs no torch.

    Args:
        sources: A dataset, or any number of names with what `open_image` takes; two batches are taken at a
            time.
        preprocessing: How they become input.
        batch_size: Images a batch, counting those that fail.
        workers: Threads that read (Pillow decodes and resizes without Python's lock), at least one; None uses
            one per core.
        normalize: False gives the pixels as they are, from 0 to 255, for a network that normalizes by itself.
        failed: Called with name and error of an image that cannot be read, by the thread that reads it.
    """
    numbered = enumerate(sources.sources() if isinstance(sources, ImageDataset) else sources)
    reading: deque[tuple[int, str, Future[NDArray[Any] | ImageDecodeError]]] = deque()
    pool = ThreadPoolExecutor(usable_cores() if workers is None else max(workers, 1))

    as_displayed: list[str] = []

    def read(name: str, source: Source) -> NDArray[Any] | ImageDecodeError:
        try:
            if preprocessing.window is None or preprocessing.dims != 2:
                return preprocessing.pixels(source)
            image = preprocessing.open(source)
            if isinstance(image, WindowedImage) and image.as_displayed:
                as_displayed.append(name)
            return preprocessing.pixels(image)
        except ImageDecodeError as error:
            if failed is not None:
                failed(name, error)
            return error

    def read_ahead(count: int) -> None:
        for position, (name, source) in islice(numbered, count):
            reading.append((position, name, pool.submit(read, name, source)))

    try:
        # Two batches are in hand: one is used, one is read ahead.
        read_ahead(2 * batch_size)
        while reading:
            pixels: list[NDArray[Any]] = []
            index: list[int] = []
            failures: Failures = []
            names: list[str] = []
            for _ in range(min(batch_size, len(reading))):
                position, name, future = reading.popleft()
                names.append(name)
                result = future.result()
                read_ahead(1)
                if isinstance(result, ImageDecodeError):
                    failures.append((position, str(result)))
                else:
                    pixels.append(result)
                    index.append(position)
            shape = (len(pixels), *preprocessing.size, preprocessing.channels)
            stacked = np.array(pixels, dtype=preprocessing.pixel_type).reshape(shape)
            inputs = preprocessing.normalize(stacked) if normalize else preprocessing.planes(stacked)
            yield ImageBatch(
                positions=np.array(index, dtype=np.int64), inputs=inputs, failures=failures, names=names
            )
        if as_displayed:
            logger.warning(
                "warning: %s of 8 bits, where the model was trained on %d: taken as shown, such as %s",
                counted(len(as_displayed), "image"),
                preprocessing.bits,
                as_displayed[0],
            )
    finally:
        pool.shutdown(cancel_futures=True)


class Draws(NamedTuple):
    """The images of a batch.

    Attributes:
        positions: (n,) theirs among all images.
        mirrored: (n,) whether each is mirrored, by an augmentation that mirrors.
    """

    positions: NDArray[np.int64]
    mirrored: NDArray[np.bool_]

    def at(self, chosen: NDArray[Any]) -> Draws:
        """Some of them: (n,) booleans, or indices."""
        return Draws(self.positions[chosen], self.mirrored[chosen])


class EpochSchedule:
    """Which images make up which batch of an epoch; nothing but seed, epoch and share decides it.

    An epoch is divided into shares, one for each process. With more shares than processes, a process takes a
    batch of each of its shares in turn: so fewer processes, which add up the gradients of as many batches
    before a step, take the same batches in every step.

    Args:
        count: Number of images.
        order: Draws an epoch's order, for training: every process gets equally many images, and a last
            batch of one joins the one before it. None takes all of them in order.
        batch_size: Images per batch.
        epoch_images: Images of an epoch, over all processes; None for one pass.
        seed: Not negative.
        rank: Of this process.
        world_size: Number of processes that share an epoch.
        shares: Number of shares, a multiple of the processes. Default: as many.
    """

    def __init__(
        self,
        count: int,
        order: Order | None,
        *,
        batch_size: int,
        epoch_images: int | None = None,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        shares: int | None = None,
    ) -> None:
        if batch_size < 1:
            raise UserError(f"batch_size={batch_size}: must be at least 1")
        self.count = count
        self.order = order
        self.batch_size = batch_size
        self.epoch_images = count if epoch_images is None else epoch_images
        self.seed = seed
        self.shares = shares or world_size
        of_each = self.shares // world_size
        self.mine = range(rank * of_each, (rank + 1) * of_each)
        self.epoch = 0
        self.start = 0  # batches of the next iteration that were used before

    @property
    def smallest(self) -> int:
        """How many images make a batch worth handing on: BatchNorm cannot learn from one."""
        return 1 if self.order is None else min(2, self.batch_size)

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch that the next iteration goes through; Lightning calls this by itself."""
        self.epoch = epoch

    def batches(self) -> Iterator[tuple[int, int, Draws]]:
        """For each batch the number of its share, its own in that share, and its images."""
        draws = np.arange(self.count) if self.order is None else self._epoch(self.order)
        by_share = [
            self._cut(draws[share : len(draws) - len(draws) % self.shares : self.shares])
            for share in self.mine
        ]
        for number, batches in enumerate(zip(*by_share, strict=True)):
            for share, batch in zip(self.mine, batches, strict=True):
                turns, positions = np.divmod(batch, self.count)
                yield share, number, Draws(positions, self.mirrored_first[positions] ^ (turns % 2 == 1))

    @functools.cached_property
    def mirrored_first(self) -> NDArray[np.bool_]:
        """Which images are mirrored the first time, and every other time; the rest the times between.

        So an image is seen from both sides in any two passes, which teaches more than a coin for each of them
        (Jordan, "94% on CIFAR-10 in 3.29 Seconds on a Single GPU", arXiv:2404.00498: alternating flip).
        """
        coins = np.random.default_rng(np.random.SeedSequence(self.seed, spawn_key=(1,)))
        return coins.integers(2, size=self.count).astype(bool)

    def _cut(self, share: NDArray[np.int64]) -> list[NDArray[np.int64]]:
        """The batches of a share, in order."""
        batches = np.split(share, range(self.batch_size, len(share), self.batch_size))
        if len(batches) > 1 and len(batches[-1]) < self.smallest:
            batches[-2:] = [np.concatenate(batches[-2:])]
        return batches

    def _epoch(self, order: Order) -> NDArray[np.int64]:
        """The epoch's part of an endless row of passes, each with an order of its own.

        An image is the number (turn · images + position): its turn is that of the pass and, where an order
        has it several times, of its repetition.
        """
        start, end = self.epoch * self.epoch_images, (self.epoch + 1) * self.epoch_images
        first, last = start // self.count, (end - 1) // self.count
        passes = []
        for number in range(first, last + 1):
            drawn = order(np.random.default_rng((self.seed, number)))
            passes.append((number + _repetitions(drawn)) * self.count + drawn)
        return np.concatenate(passes)[start - first * self.count : end - first * self.count]

    def __len__(self) -> int:
        return len(self.mine) * len(self._cut(np.empty(self.epoch_images // self.shares, dtype=np.int64)))

    def __iter__(self) -> Iterator[tuple[int, Draws]]:
        """Per batch, the seed of its augmentation and its images."""
        start, self.start = self.start, 0
        for share, number, batch in islice(self.batches(), start, None):
            sequence = np.random.SeedSequence((self.seed, self.epoch, share, number))
            yield int(sequence.generate_state(1, np.uint64)[0]), batch


def _repetitions(positions: NDArray[np.int64]) -> NDArray[np.int64]:
    """How often each of them came before: (n,)."""
    by_position = np.argsort(positions, kind="stable")
    is_new = np.diff(positions[by_position], prepend=-1) != 0
    starts = np.flatnonzero(is_new)
    found = np.empty_like(positions)
    found[by_position] = np.arange(len(positions)) - starts[np.cumsum(is_new) - 1]
    return found


class ImageLoader:
    """Iterate over (images, labels, index): (N, C, H, W) stored channels last, and int64 (N,) twice.

    Signals (N, C, L) and volumes (N, C, D, H, W) likewise.

    Images are of the preprocessing's `pixel_type`, from 0 to 255.

    Images that cannot be decoded are left out of their batch, named in the log once, and kept in
    `failures`. In training, a batch of which fewer than two remain is left out too, and another comes twice
    for it: an epoch has as many steps as was said, and as many in every process.

    Attributes:
        sampler: The schedule; call its `set_epoch` before each epoch. (Lightning does.)
        failures: Name → reason for every image that could not be read so far.
    """

    # Lightning looks for one wherever there is a sampler.
    batch_sampler = None

    def __init__(
        self,
        dataset: ImageDataset,
        preprocessing: Preprocessing,
        augmentation: Augmentation,
        schedule: EpochSchedule,
        *,
        workers: int,
        held_bytes: int,
    ) -> None:
        import torch
        from torch.utils.data import DataLoader

        if len(dataset) == 0:
            raise UserError(f"there are no {INPUTS[dataset.dims]} to iterate over in this split")
        if workers < 0:
            raise UserError(f"workers={workers}: must not be negative")
        self.dataset = dataset
        self.sampler = schedule
        self.failures: dict[str, str] = {}
        self._position = _Position()
        self._resumed: _Position | None = None
        reader = _Reader(dataset, preprocessing, augmentation, training=schedule.order is not None)
        values = math.prod(preprocessing.size) * preprocessing.channels
        image_bytes = values * np.dtype(preprocessing.pixel_type).itemsize
        if not augmentation.resized_crop and len(dataset) * image_bytes <= held_bytes:
            reader.hold(_affordable(workers, min(_HELD_AT_ONCE, len(dataset)) * image_bytes))
            workers = workers if augmentation.policy or augmentation.erasing else 0
        workers = _affordable(workers, schedule.batch_size * image_bytes)
        with _without_advice():
            self._batches: DataLoader[Any] = DataLoader(
                reader,  # type: ignore[arg-type]  # any object with __getitem__ will do
                batch_size=None,
                sampler=schedule,
                num_workers=workers,
                persistent_workers=workers > 0,
                pin_memory=torch.cuda.is_available(),
                generator=torch.Generator(),  # or it would draw from the global one
            )
        self._process = os.getpid()
        weakref.finalize(self, _end_workers, self._batches, self._process).atexit = False

    def __len__(self) -> int:
        """Batches an epoch."""
        return len(self.sampler)

    def close(self) -> None:
        """End the worker processes, which otherwise keep Python from exiting for seconds each."""
        _end_workers(self._batches, self._process)

    def state_dict(self) -> dict[str, Any]:
        """How far the epoch is, for `load_state_dict`."""
        at_end = self._position.read == len(self.sampler) and not self._position.left
        position = _Position() if at_end and not self._position.owed else self._position
        return {**asdict(position), "failures": dict(self.failures)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Let the next iteration go on where `state_dict` was called."""
        self._resumed = _Position(read=state["read"], owed=state["owed"], left=state["left"])
        self.failures.update(state["failures"])

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
        import torch

        labels = torch.from_numpy(self.dataset.labels)
        resumed, self._resumed = self._resumed, None
        at = self._position = resumed or _Position()
        served = at.read
        if at.left:  # in the middle of a batch that comes several times: it is read again
            at.read -= 1
        self.sampler.start = at.read
        for images, index, failures in _loaded(self._batches):
            at.read += 1
            for position, reason in failures:
                name = self.dataset.names[position]
                if name not in self.failures:
                    logger.warning("left out: %s", reason)
                    self.failures[name] = reason
            if len(index) < self.sampler.smallest:
                at.owed += self.sampler.order is not None
                continue
            batch = images.movedim(-1, 1), labels[index], index
            served += 1
            at.left = at.left or 1 + at.owed
            at.owed = 0
            while at.left:
                at.left -= 1
                yield batch
        if served:
            at.left, at.owed = at.owed, 0
            while at.left:
                at.left -= 1
                yield batch
        elif self.failures:
            reason = next(iter(self.failures.values()))
            raise UserError(
                f"too few {INPUTS[self.dataset.dims]} could be read to make one batch; for one, {reason}"
            )
        self._position = _Position()


@dataclass
class _Position:
    """How far an epoch is.

    Attributes:
        read: Batches of the schedule that were read.
        owed: Batches that could not be read, for each of which another comes twice.
        left: How often the last one read is still to come.
    """

    read: int = 0
    owed: int = 0
    left: int = 0


def _affordable(workers: int, batch_bytes: int) -> int:
    """How many workers shared memory has room for; where it is full, they would wait forever.

    Each worker keeps up to two batches there (DataLoader's prefetch_factor), and one more is in use.
    """
    shared = Path("/dev/shm")  # noqa: S108 - where Linux keeps it; containers often allow 64 MiB
    if workers == 0 or not shared.is_dir():
        return workers
    free = shutil.disk_usage(shared).free
    room = max(free - batch_bytes, 0) // (2 * batch_bytes)
    if room < workers:
        logger.warning(
            "workers=%d: shared memory (/dev/shm) has room for the batches of %d only, so %d read; "
            "in a container, --shm-size or --ipc=host gives more",
            *(workers, room, room),
        )
    return min(workers, room)


@contextmanager
def _without_advice() -> Iterator[None]:
    """Suppress PyTorch's warning of more workers than cores, which `training_loader` says in one line."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="This DataLoader will create")
        yield


class _SharedMemoryError(Exception):
    """A worker cannot hand over what it has read."""


def _loaded(
    loader: torch.utils.data.DataLoader[Any],
) -> Iterator[tuple[torch.Tensor, torch.Tensor, Failures]]:
    """What the workers read.

    Raises:
        UserError: Another program has filled shared memory since the workers began.
    """
    batches: object = None
    try:
        with _without_advice():
            batches = iter(loader)
        yield from batches
    except _SharedMemoryError:
        raise UserError(
            f"workers={loader.num_workers}: shared memory (/dev/shm) is full; fewer workers need less, "
            "and in a container, --shm-size or --ipc=host gives more"
        ) from None
    finally:
        if not loader.persistent_workers:
            _shut_down(batches)


def _end_workers(loader: torch.utils.data.DataLoader[Any], process: int) -> None:
    """End a loader's worker processes, if there are any; not from a fork of the process that began them."""
    if os.getpid() != process:
        return
    running, loader._iterator = loader._iterator, None
    _shut_down(running)


def _shut_down(running: object) -> None:
    """End the workers of a loader's iterator before its parts can be garbage.

    PyTorch does so when the iterator is garbage, at the latest. But if it is with its queues, these may be
    closed before: the word that ends an idle worker is then written to whatever file has the number of the
    pipe that was. (In a test it was the shared memory of another loader's batch.)
    """
    if shut_down := getattr(running, "_shutdown_workers", None):
        shut_down()


class _Reader:
    """From a batch's seed and positions to its pixels; it runs in the workers.

    Args:
        images: Where they come from.
        preprocessing: How they are fitted to their size.
        augmentation: Random changes to the training images.
        training: Whether the images are trained on; others are read exactly.
    """

    def __init__(
        self,
        dataset: ImageDataset,
        preprocessing: Preprocessing,
        augmentation: Augmentation,
        *,
        training: bool,
    ) -> None:
        self.dataset = dataset
        self.preprocessing = preprocessing
        self.augmentation = augmentation
        self.training = training
        self.held: NDArray[Any] | None = None
        self.held_failures: dict[int, str] = {}

    def hold(self, workers: int) -> None:
        """Decode all images now and keep them, (N, H, W, C)."""
        import torch
        from torch.utils.data import DataLoader

        from skipnets.data.augmentation import Augmentation

        plain = _Reader(self.dataset, self.preprocessing, Augmentation(), training=self.training)
        count = len(self.dataset)
        positions = np.split(np.arange(count), range(_HELD_AT_ONCE, count, _HELD_AT_ONCE))
        parts = [(0, Draws(part, np.zeros(len(part), bool))) for part in positions]
        held = self._empty(count)
        with _without_advice():
            loader: DataLoader[Any] = DataLoader(
                plain,  # type: ignore[arg-type]  # any object with __getitem__ will do
                batch_size=None,
                sampler=parts,
                num_workers=workers if self.dataset.images is None else 0,
                generator=torch.Generator(),  # or it would draw from the global one
            )
        progress, done = LoggedProgress("reading images into memory"), 0
        for pixels, index, failures in _loaded(loader):
            held[index.numpy()] = pixels.numpy()
            self.held_failures.update(failures)
            done += len(index) + len(failures)
            progress(done, count)
        self.held = held

    def __getitem__(self, key: tuple[int, Draws]) -> tuple[torch.Tensor, torch.Tensor, Failures]:
        import torch

        from skipnets.data.augmentation import erase, shift_and_mirror, vary
        from skipnets.data.volume_augmentation import shift_and_mirror_volumes

        seed, batch = key
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            pixels, read, failures = self._read(batch)
            shifts = self.augmentation.padding or self.augmentation.mirror
            if self.preprocessing.dims != 2:
                pixels = shift_and_mirror_volumes(pixels, self.augmentation, read.mirrored)
            elif not self.augmentation.resized_crop and shifts:
                pixels = shift_and_mirror(
                    pixels,
                    padding=self.augmentation.padding,
                    mirrored=read.mirrored & self.augmentation.mirror,
                    reflect=self.augmentation.reflect,
                )
            if self.augmentation.policy is not None:
                pixels = vary(pixels, self.augmentation.policy)
            if self.augmentation.erasing:
                mean = [255 * value for value in self.preprocessing.mean]
                pixels = erase(pixels, self.augmentation.erasing, mean)
        parts = torch.from_numpy(pixels), torch.from_numpy(read.positions)
        if torch.utils.data.get_worker_info() is not None:
            try:
                # DataLoader would do so in a thread, whose errors nobody sees, and wait forever.
                for part in parts:
                    part.untyped_storage().share_memory_()
            except RuntimeError as error:
                raise _SharedMemoryError(str(error)) from None
        return *parts, failures

    def _empty(self, count: int) -> NDArray[Any]:
        """(count, H, W, C)."""
        shape = (count, *self.preprocessing.size, self.preprocessing.channels)
        return np.empty(shape, dtype=self.preprocessing.pixel_type)

    def _read(self, batch: Draws) -> tuple[NDArray[Any], Draws, Failures]:
        """The images that can be read, their pixels (N, H, W, C) first, and the failures of the others."""
        failures: Failures = []
        if self.held is not None:
            if self.held_failures:
                missing = self.held_failures
                failures = [(each, missing[each]) for each in batch.positions.tolist() if each in missing]
                batch = batch.at(~np.isin(batch.positions, list(missing)))
            return self.held[batch.positions], batch, failures
        from simplejpeg import decode_jpeg

        from skipnets.data.augmentation import draw_box, resized_crop

        size, channels = self.preprocessing.size, self.preprocessing.channels
        crops = self.augmentation.resized_crop
        pixels = self._empty(len(batch.positions))
        read: list[int] = []
        for number, (position, mirrored) in enumerate(zip(*map(np.ndarray.tolist, batch), strict=True)):
            source = self.dataset.source(position)
            try:
                if crops:
                    image: Image.Image | NDArray[Any]
                    height, width = size
                    if self.preprocessing.window is None:
                        image, box = open_region(
                            source,
                            draw_box,
                            size=(height, width),
                            channels=channels,
                            decode_jpeg=decode_jpeg,
                            luma=False,
                        )
                    else:
                        opened = self.preprocessing.open(source)
                        assert isinstance(opened, WindowedImage)
                        image, box = opened.values, draw_box(*opened.size)
                    pixels[len(read)] = resized_crop(
                        image,
                        box,
                        size=(height, width),
                        interpolation=self.preprocessing.interpolation,
                        mirror=mirrored and self.augmentation.mirror,
                    )
                elif self.training:
                    pixels[len(read)] = self.preprocessing.training_pixels(source)
                else:
                    pixels[len(read)] = self.preprocessing.pixels(source)
            except ImageDecodeError as error:
                failures.append((position, str(error)))
            else:
                read.append(number)
        return pixels[: len(read)], batch.at(np.array(read, dtype=np.int64)), failures
