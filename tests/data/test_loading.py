"""Batches: the same whatever the number of workers, every image once, failures named."""

from __future__ import annotations

import gc
import itertools
import logging
import os
import re
import resource
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from skipnets.data import ImageDataset, Preprocessing, open_dataset
from skipnets.data.loading import (
    EpochSchedule,
    balanced,
    evaluation_batches,
    training_loader,
    validation_loader,
)
from skipnets.errors import UserError

PREPROCESSING = Preprocessing(16)


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """41 images of two classes."""
    root = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for number in range(41):
        path = root / "ab"[number % 2] / f"{number:02d}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (20, 24, 3), dtype=np.uint8)).save(path)
    return root


@pytest.fixture
def dataset(root) -> ImageDataset:
    return open_dataset(root, fractions=None)


@pytest.fixture
def damaged(root, tmp_path) -> ImageDataset:
    """The same, in which two files are not images."""
    dataset = open_dataset(root, fractions=None)
    for name in dataset.names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes((root / name).read_bytes())
    for name in ("a/04.png", "b/11.png"):
        (tmp_path / name).write_bytes(b"nothing")
    return open_dataset(tmp_path, fractions=None)


def epoch(loader, number):
    loader.sampler.set_epoch(number)
    return [tuple(part.clone() for part in batch) for batch in loader]


def equal(one, other):
    return len(one) == len(other) and all(
        torch.equal(a, b)
        for left, right in zip(one, other, strict=True)
        for a, b in zip(left, right, strict=True)
    )


@pytest.mark.parametrize(
    ("augmentation", "held_bytes"),
    [("none", 2**30), ("crop-flip", 2**30), ("crop-flip", 0), ("resized-crop", 0), ("trivial", 2**30)],
)
def test_same_batches_whatever_the_number_of_workers(dataset, augmentation, held_bytes):
    def loader(workers, seed=7):
        return training_loader(
            dataset,
            PREPROCESSING,
            augmentation,
            batch_size=8,
            workers=workers,
            seed=seed,
            held_bytes=held_bytes,
        )

    one, two = loader(0), loader(2)
    first = epoch(one, 0)
    assert equal(first, epoch(two, 0))
    second = epoch(one, 1)
    assert equal(second, epoch(two, 1))
    assert not equal(first, second)
    assert equal(second, epoch(loader(0), 1))  # as a resumed run begins
    assert equal(first, epoch(one, 0))
    assert not equal(first, epoch(loader(0, seed=8), 0))


def test_held_and_read_images_are_varied_alike(dataset):
    held, read = (
        training_loader(dataset, PREPROCESSING, "crop-flip", batch_size=8, held_bytes=size)
        for size in (2**30, 0)
    )
    assert equal(epoch(held, 3), epoch(read, 3))


@pytest.mark.parametrize("augmentation", ["none", "flip", "crop-flip", "resized-crop", "trivial"])
def test_an_epoch_shows_every_image_once(dataset, augmentation):
    loader = training_loader(dataset, PREPROCESSING, augmentation, batch_size=8)
    batches = epoch(loader, 0)
    assert len(loader) == len(batches) == 5
    index = torch.cat([index for _, _, index in batches])
    assert sorted(index.tolist()) == list(range(41))
    assert index.tolist() != list(range(41))
    for images, labels, index in batches:
        assert images.shape == (len(index), 3, 16, 16)
        assert images.dtype == torch.uint8
        assert labels.dtype == torch.int64
        assert labels.tolist() == dataset.labels[index.numpy()].tolist()


@pytest.mark.parametrize("epoch_images", [10, 30, 41, 60, 100])
def test_epochs_of_any_length_go_on_where_the_last_one_ended(dataset, epoch_images):
    loader = training_loader(dataset, PREPROCESSING, batch_size=8, epoch_images=epoch_images)
    shown = [torch.cat([index for _, _, index in epoch(loader, number)]).tolist() for number in range(5)]
    assert {len(index) for index in shown} == {epoch_images}
    row = [index for part in shown for index in part]
    for start in range(0, len(row) - 40, 41):
        assert sorted(row[start : start + 41]) == list(range(41))
    whole = training_loader(dataset, PREPROCESSING, batch_size=8)
    assert row[:10] == torch.cat([index for _, _, index in epoch(whole, 0)]).tolist()[:10]


@pytest.mark.parametrize(("augmentation", "held_bytes"), [("flip", 2**30), ("flip", 0), ("resized-crop", 0)])
@pytest.mark.parametrize("epoch_images", [None, 30])
def test_two_passes_show_every_image_from_both_sides(
    damaged, monkeypatch, augmentation, held_bytes, epoch_images
):
    """In each pass about half of the images are mirrored, in the next one the others."""
    monkeypatch.setattr("skipnets.data.augmentation.draw_box", lambda width, height: (0, 0, width, height))
    preprocessing = Preprocessing(16, fit="stretch")
    loader = training_loader(
        damaged, preprocessing, augmentation, batch_size=8, held_bytes=held_bytes, epoch_images=epoch_images
    )
    readable = [number for number, name in enumerate(damaged.names) if name not in ("a/04.png", "b/11.png")]
    plain = dict(zip(readable, preprocessing.batch([damaged.source(n) for n in readable]), strict=True))
    shown: dict[int, list[bool]] = {number: [] for number in readable}
    for number in range(6):
        for images, _, index in epoch(loader, number):
            for image, position in zip(images, index.tolist(), strict=True):
                seen = preprocessing.normalize(image.numpy().transpose(1, 2, 0)[None])[0]
                both = [
                    np.allclose(seen, side, atol=0.02)
                    for side in (plain[position], plain[position][..., ::-1])
                ]
                assert sum(both) == 1
                shown[position].append(both[1])
    assert 10 < sum(sides[0] for sides in shown.values()) < 30
    assert all(a != b for sides in shown.values() for a, b in itertools.pairwise(sides))


def test_an_image_that_a_pass_shows_repeatedly_alternates():
    rare = np.array([0] * 38 + [1] * 3)
    schedule = EpochSchedule(41, balanced(rare), batch_size=8, seed=1)
    for number in range(4):
        schedule.set_epoch(number)
        shown: dict[int, list[bool]] = {}
        for _, draws in schedule:
            for position, mirrored in zip(draws.positions.tolist(), draws.mirrored.tolist(), strict=True):
                shown.setdefault(position, []).append(mirrored)
        assert max(map(len, shown.values())) > 3
        assert all(a != b for sides in shown.values() for a, b in itertools.pairwise(sides))


@pytest.mark.parametrize(
    ("batch_size", "sizes"), [(8, [8, 8, 8, 8, 9]), (40, [41]), (41, [41]), (50, [41]), (13, [13, 13, 13, 2])]
)
def test_no_last_batch_of_one(dataset, batch_size, sizes):
    loader = training_loader(dataset, PREPROCESSING, batch_size=batch_size)
    assert [len(index) for _, _, index in loader] == sizes
    assert len(loader) == len(sizes)


def test_batches_of_one_for_who_asks_for_them(dataset):
    assert len(list(training_loader(dataset, PREPROCESSING, batch_size=1))) == 41


def test_pixels_without_augmentation_are_the_preprocessings(dataset):
    for images, _, index in training_loader(dataset, PREPROCESSING, batch_size=8):
        expected = np.stack([PREPROCESSING.pixels(dataset.source(i)) for i in index.tolist()])
        np.testing.assert_array_equal(images.permute(0, 2, 3, 1).numpy(), expected)


def test_the_global_generator_is_left_alone(dataset):
    for augmentation in ("crop-flip", "resized-crop", "trivial"):
        before = torch.get_rng_state()
        list(training_loader(dataset, PREPROCESSING, augmentation, batch_size=8))
        assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("held_bytes", [2**30, 0])
def test_processes_share_an_epoch_equally(dataset, held_bytes):
    parts = [
        training_loader(dataset, PREPROCESSING, batch_size=8, rank=rank, world_size=2, held_bytes=held_bytes)
        for rank in range(2)
    ]
    seen = [torch.cat([index for _, _, index in epoch(part, 4)]).tolist() for part in parts]
    assert [len(part) for part in seen] == [20, 20]
    assert len(set(seen[0]) | set(seen[1])) == 40
    assert len(parts[0]) == len(parts[1])


def test_validation_goes_through_everything_in_order(dataset):
    loader = validation_loader(dataset, PREPROCESSING, batch_size=8)
    for _ in range(2):
        batches = list(loader)
        assert torch.cat([index for _, _, index in batches]).tolist() == list(range(41))
    assert len(batches[-1][2]) == 1
    expected = PREPROCESSING.batch([dataset.source(i) for i in range(41)])
    pixels = torch.cat([dataset for dataset, _, _ in batches]).permute(0, 2, 3, 1).numpy()
    np.testing.assert_array_equal(PREPROCESSING.normalize(pixels), expected)


def test_balanced_order_shows_classes_equally_often():
    labels = np.repeat([0, 1, 2], [900, 90, 10])
    order = balanced(labels)(np.random.default_rng(0))
    assert len(order) == 1000
    counts = np.bincount(labels[order])
    assert counts.min() > 280
    assert counts.max() < 390


def test_balanced_loader(dataset):
    rare = dataset.select(np.flatnonzero((dataset.labels == 0) | (np.arange(41) > 38)))
    loader = training_loader(rare, PREPROCESSING, batch_size=8, sampler=balanced(rare.labels), seed=1)
    labels = torch.cat([labels for number in range(20) for _, labels, _ in epoch(loader, number)])
    assert labels.float().mean() == pytest.approx(0.5, abs=0.08)


@pytest.mark.parametrize(("held_bytes", "workers"), [(2**30, 0), (2**30, 2), (0, 0), (0, 2)])
def test_undecodable_images_are_left_out_named_and_counted(damaged, held_bytes, workers, caplog):
    loader = training_loader(
        damaged, PREPROCESSING, "crop-flip", batch_size=8, held_bytes=held_bytes, workers=workers
    )
    with caplog.at_level(logging.WARNING, "skipnets"):
        for number in range(2):
            index = torch.cat([index for _, _, index in epoch(loader, number)])
            assert len(set(index.tolist())) == len(index) == 39
    assert sorted(loader.failures) == ["a/04.png", "b/11.png"]
    assert "not an image in a known format" in loader.failures["a/04.png"]
    assert [str(damaged.root / name) in caplog.text for name in loader.failures] == [True, True]
    assert len(caplog.records) == 2


def test_a_batch_that_failures_leave_one_of_is_left_out(damaged):
    three = damaged.select(np.array([damaged.names.index(n) for n in ("a/04.png", "b/11.png", "a/00.png")]))
    with pytest.raises(
        UserError, match=r"too few images could be read to make one batch; for one, .*\.png: not a"
    ):
        list(training_loader(three, PREPROCESSING, batch_size=3))
    assert [len(index) for _, _, index in validation_loader(three, PREPROCESSING, batch_size=2)] == [1]


def test_an_epoch_has_as_many_steps_as_was_said(damaged):
    loader = training_loader(damaged, PREPROCESSING, batch_size=2)
    for number in range(6):
        seen = [tuple(index.tolist()) for _, _, index in epoch(loader, number)]
        assert len(seen) == len(loader) == 20
        assert min(map(len, seen)) == 2
    assert len(list(validation_loader(damaged, PREPROCESSING, batch_size=1))) == 39  # none is counted twice


def test_processes_that_train_together_take_equally_many_steps(damaged):
    """With batches of two, each of the two damaged images leaves a batch of one behind."""
    for number in range(6):
        for rank in (0, 1):
            loader = training_loader(damaged, PREPROCESSING, batch_size=2, rank=rank, world_size=2)
            seen = [tuple(index.tolist()) for _, _, index in epoch(loader, number)]
            assert len(seen) == len(loader) == 10
            assert {len(index) for index in seen} == {2}
            assert len(set(seen)) == 10 - sum(
                any(damaged.names[position] in ("a/04.png", "b/11.png") for position in batch.positions)
                for _, _, batch in loader.sampler.batches()
            )


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_evaluation_batches(damaged, workers):
    batches = list(evaluation_batches(damaged, PREPROCESSING, batch_size=8, workers=workers))
    assert len(batches) == 6
    failed = [damaged.names[position] for batch in batches for position, _ in batch.failures]
    assert failed == ["a/04.png", "b/11.png"]
    index = np.concatenate([batch.positions for batch in batches])
    assert [name for batch in batches for name in batch.names] == damaged.names
    outcomes = [outcome for batch in batches for outcome in batch.outcomes()]
    assert [name for name, reason in outcomes if reason is not None] == failed
    assert [name for name, _ in outcomes] == damaged.names
    assert sorted([*index.tolist(), *(damaged.names.index(name) for name in failed)]) == list(range(41))
    assert (np.diff(index) > 0).all()
    inputs = np.concatenate([batch.inputs for batch in batches])
    np.testing.assert_array_equal(inputs, PREPROCESSING.batch([damaged.source(i) for i in index]))


def test_evaluation_of_anything_that_is_an_image(damaged):
    sources = [
        damaged.root / "a/00.png",
        damaged.open(1),
        np.zeros((3, 3), np.uint8),
        b"nothing",
        "absent.png",
    ]
    [batch] = evaluation_batches(zip("abcde", sources, strict=True), PREPROCESSING)
    assert batch.positions.tolist() == [0, 1, 2]
    assert batch.inputs.shape == (3, 3, 16, 16)
    assert [position for position, _ in batch.failures] == [3, 4]
    assert "absent.png: no such file" in batch.failures[1][1]
    assert [(name, reason is None) for name, reason in batch.outcomes()] == list(
        zip("abcde", [True, True, True, False, False], strict=True)
    )
    assert list(evaluation_batches([], PREPROCESSING)) == []
    [batch] = evaluation_batches([("none", b"")], PREPROCESSING)
    assert batch.inputs.shape == (0, 3, 16, 16)


def test_evaluation_may_be_left_early(dataset):
    batches = evaluation_batches(dataset, PREPROCESSING, batch_size=4, workers=2)
    assert next(batches).positions.tolist() == [0, 1, 2, 3]
    batches.close()


def test_images_in_memory():
    dataset = open_dataset("digits").split("val")
    preprocessing = Preprocessing(8, channels=1)
    images, labels, index = next(iter(training_loader(dataset, preprocessing, batch_size=64)))
    np.testing.assert_array_equal(images[:, 0].numpy(), dataset.images[index.numpy()])
    np.testing.assert_array_equal(labels.numpy(), dataset.labels[index.numpy()])
    cropped = next(iter(training_loader(dataset, preprocessing, "resized-crop", batch_size=64)))[0]
    assert cropped.shape == (64, 1, 8, 8)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size=0: must be at least 1"),
        ({"workers": -1}, "workers=-1: must not be negative"),
        ({"augmentation": "x"}, "augmentation='x': must be one of"),
    ],
)
def test_impossible_options(dataset, options, message):
    with pytest.raises(UserError, match=message):
        training_loader(dataset, PREPROCESSING, **{"batch_size": 8, **options})


def test_an_empty_split(dataset):
    with pytest.raises(UserError, match="no images"):
        training_loader(dataset.split("val"), PREPROCESSING, batch_size=8)


@pytest.mark.slow
def test_real_images(shared_data):
    folder = shared_data / "cifar10-png-20"
    sources = sorted(folder.iterdir())
    named = [(path.name, path) for path in sources]
    [batch] = evaluation_batches(named, Preprocessing(32), workers=2)
    assert (len(batch.positions), batch.inputs.shape, batch.failures) == (20, (20, 3, 32, 32), [])


@pytest.mark.parametrize(
    ("free", "workers", "said"),
    [
        (10**9, 2, ""),
        # A batch of 8 images of 16×16 pixels has 6,144 bytes.
        (3 * 6144, 1, "workers=2: shared memory (/dev/shm) has room for the batches of 1 only, so 1 read"),
        (1000, 0, "workers=2: shared memory (/dev/shm) has room for the batches of 0 only, so 0 read"),
    ],
)
def test_no_more_workers_than_shared_memory_has_room_for(dataset, monkeypatch, caplog, free, workers, said):
    asked = []

    def disk_usage(path):
        asked.append(str(path))
        return SimpleNamespace(free=free)

    monkeypatch.setattr("skipnets.data.loading.shutil.disk_usage", disk_usage)
    monkeypatch.setattr("skipnets.data.loading.Path.is_dir", lambda path: str(path) == "/dev/shm")
    with caplog.at_level(logging.WARNING, "skipnets"):
        loader = training_loader(
            dataset, Preprocessing(16), "resized-crop", batch_size=8, workers=2, held_bytes=0
        )
        batches = epoch(loader, 0)
    assert asked == ["/dev/shm"]
    assert loader._batches.num_workers == workers
    assert caplog.text.count("shared memory") == bool(said)
    assert said in caplog.text
    alone = training_loader(dataset, Preprocessing(16), "resized-crop", batch_size=8, workers=0, held_bytes=0)
    assert equal(batches, epoch(alone, 0))


@pytest.mark.parametrize("held_bytes", [0, 10**9])
def test_shared_memory_that_fills_up_ends_in_one_line(dataset, held_bytes):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    augmentation = "none" if held_bytes else "resized-crop"
    # As if less were left than a batch takes: 41 or 8 images of 196,608 bytes.
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, before[1]))
    try:
        with pytest.raises(UserError) as raised:
            epoch(
                training_loader(
                    *(dataset, Preprocessing(256), augmentation),
                    batch_size=8,
                    workers=2,
                    held_bytes=held_bytes,
                ),
                0,
            )
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert re.match(r"workers=2: shared memory \(/dev/shm\) is full; fewer .* gives more$", str(raised.value))


@pytest.mark.parametrize("augmentation", ["crop-flip", "resized-crop"])
@pytest.mark.parametrize("workers", [0, 1, 2, pytest.param(8, marks=pytest.mark.slow)])
def test_an_epoch_goes_on_where_it_was_left_with_any_number_of_workers(dataset, augmentation, workers):
    def loader(workers: int) -> object:
        return training_loader(
            dataset, PREPROCESSING, augmentation, batch_size=8, workers=workers, seed=3, held_bytes=0
        )

    whole = epoch(loader(0), 1)
    first = loader(workers)
    first.sampler.set_epoch(1)
    iterator = iter(first)
    begun = [tuple(part.clone() for part in next(iterator)) for _ in range(2)]
    state = first.state_dict()
    first.close()
    second = loader(workers)
    second.load_state_dict(state)
    assert equal([*begun, *epoch(second, 1)], whole)
    # What comes after is a whole epoch again.
    assert equal(epoch(second, 2), epoch(loader(0), 2))
    second.close()


def test_a_forgotten_loader_ends_its_workers_while_their_queues_are_there(dataset):
    few = dataset.select(np.arange(3))
    loader = training_loader(few, PREPROCESSING, "crop-flip", batch_size=3, workers=3, held_bytes=0)
    iterator = iter(loader)
    next(iterator)
    running = loader._batches._iterator
    workers = list(running._workers)
    loader.itself = loader  # garbage in a cycle, whose parts end in any order
    del loader, iterator
    gc.collect()
    assert running._shutdown
    assert not any(worker.is_alive() for worker in workers)


def test_the_position_after_an_epoch_is_the_beginning_of_another(dataset):
    loader = training_loader(dataset, PREPROCESSING, batch_size=8)
    beginning = loader.state_dict()
    iterator = iter(loader)
    for _ in range(len(loader)):
        next(iterator)
    assert loader.state_dict() == beginning  # at the last batch, before the iterator is asked for another
    assert next(iterator, None) is None
    assert loader.state_dict() == beginning


def test_a_batch_that_comes_twice_is_remembered_between_its_times(damaged):
    def loader() -> object:
        # Of two processes, so that each of the two images that cannot be read leaves one batch too few.
        return training_loader(damaged, PREPROCESSING, batch_size=1, seed=5, world_size=2, rank=0)

    whole = epoch(loader(), 0)
    for count in range(1, len(whole)):
        first = loader()
        first.sampler.set_epoch(0)
        iterator = iter(first)
        for _ in range(count):
            next(iterator)
        second = loader()
        second.load_state_dict(first.state_dict())
        assert equal(epoch(second, 0), whole[count:])
        assert second.failures.items() >= first.failures.items()


def test_more_workers_than_cores_are_one_line_and_no_warning(dataset, monkeypatch, caplog):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0})
    caplog.set_level("INFO", "skipnets")
    loader = training_loader(dataset, PREPROCESSING, "trivial", batch_size=8, workers=2)
    assert len(list(loader)) == len(loader)
    loader.close()
    assert caplog.messages == ["workers=2: this process may use 1 core, on which more workers read no faster"]
