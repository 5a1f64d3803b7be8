"""Copies of images are found, however they were saved anew, and nothing else is taken for one."""

from __future__ import annotations

import csv
import io

import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps
from scipy.fft import dctn
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from tests.helpers import flawed

from skipnets.data.alignment import align, aligned_distance, halved, unmoved
from skipnets.data.contents import contents, repeated
from skipnets.data.copies import Copy, clusters, expected_seconds, find_copies, write_copies
from skipnets.data.options import DataOptions
from skipnets.data.sources import find_dataset
from skipnets.errors import UserError


def scene(seed: int) -> Image.Image:
    """An image with little fine structure: what is left of it after saving it at low quality is like it."""
    return flawed.scene(seed, size=(96, 72), sides=(4, 9, 20), weights=(4, 2, 1))


def saved(image: Image.Image, **options: object) -> Image.Image:
    file = io.BytesIO()
    image.save(file, **options)
    return Image.open(file)


ALTERATIONS = {
    "JPEG 30": lambda image: saved(image, format="JPEG", quality=30),
    "half as large": lambda image: image.resize((48, 36)),
    "twice as large": lambda image: image.resize((192, 144), Image.Resampling.BICUBIC),
    "brighter": lambda image: ImageEnhance.Brightness(image).enhance(1.2),
    "darker": lambda image: ImageEnhance.Brightness(image).enhance(0.7),
    "more contrast": lambda image: ImageEnhance.Contrast(image).enhance(1.3),
    "gray": lambda image: image.convert("L"),
    "mirrored": ImageOps.mirror,
    "cut to 90%": lambda image: image.crop((2, 5, 88, 70)),
    "cut and mirrored": lambda image: saved(
        ImageOps.mirror(image).crop((7, 3, 93, 68)), format="JPEG", quality=60
    ),
}


@pytest.mark.parametrize("alter", ALTERATIONS.values(), ids=ALTERATIONS.keys())
def test_altered_copies_are_found_and_nothing_else(tmp_path, alter):
    (tmp_path / "a").mkdir()
    for seed in range(30):
        scene(seed).save(tmp_path / "a" / f"{seed:02}.png")
    for seed in range(0, 30, 3):
        alter(scene(seed)).save(tmp_path / "a" / f"{seed:02}_copy.png")
    dataset = find_dataset(tmp_path, fractions=None)
    copies = find_copies(dataset, contents(dataset))
    pairs = {(dataset.names[copy.first], dataset.names[copy.second]) for copy in copies}
    assert pairs == {(f"a/{seed:02}.png", f"a/{seed:02}_copy.png") for seed in range(0, 30, 3)}
    assert all(copy.distance <= 0.2 and not copy.exact for copy in copies)


def slowly_found(dataset) -> dict[tuple[int, int], float]:
    """Every image laid on its nearest three, as it is and mirrored, all in full; of small images."""
    images = [
        dataset.open_reduced(index, 32, channels=1).resize((32, 32), 2) for index in range(len(dataset))
    ]
    images = np.stack([np.asarray(image) for image in images]).astype(np.float32)

    def describe(image):
        lowest = dctn(image, norm="ortho")[:8, :8].ravel()[1:]
        return lowest / np.linalg.norm(lowest)

    found: dict[tuple[int, int], float] = {}
    furthest = []
    for turned in (False, True):
        for index, image in enumerate(images[:, :, ::-1] if turned else images):
            apart = np.array([np.linalg.norm(describe(image) - describe(other)) for other in images])
            nearest = [other for other in np.argsort(apart)[:4] if other != index and apart[other] < 0.8]
            distances = [1.0] * (not turned and len(nearest) < 3)
            for other in nearest:
                one, two = image[None], images[other][None]
                placement = align(halved(one), halved(two), unmoved(1), steps=4)
                placement = align(one, two, placement, steps=2)
                distances.append(float(aligned_distance(one, two, placement)[0]))
                pair = (min(index, other), max(index, other))
                found[pair] = min(found.get(pair, 1.0), distances[-1])
            furthest += [] if turned else [max(distances)]
    return {pair: apart for pair, apart in found.items() if apart <= min(0.2, np.median(furthest) / 4)}


@pytest.mark.parametrize("alike", [False, True])
def test_they_are_those_of_an_obvious_slow_search(tmp_path, alike):
    (tmp_path / "a").mkdir()
    background = np.asarray(scene(99).resize((48, 40)), dtype=float)
    for seed in range(40):
        image = scene(seed).resize((48, 40))
        if alike:  # all are alike, so copies must be more so
            image = Image.fromarray((0.8 * background + 0.2 * np.asarray(image)).astype(np.uint8))
        image.save(tmp_path / "a" / f"{seed:02}.png")
        if seed % 2 == 0:
            image = list(ALTERATIONS.values())[seed // 2 % len(ALTERATIONS)](image.resize((96, 72)))
            image.convert("RGB").resize((48, 40)).save(tmp_path / "a" / f"{seed:02}_copy.png")
    dataset = find_dataset(tmp_path, fractions=None)
    found = {(copy.first, copy.second): copy.distance for copy in find_copies(dataset, contents(dataset))}
    expected = slowly_found(dataset)
    assert len(found) > 15
    assert found.keys() == expected.keys()
    assert all(found[pair] == pytest.approx(expected[pair], abs=1e-4) for pair in found)


def test_where_time_is_short_only_exact_copies_are_looked_for(tmp_path):
    write_pairs(tmp_path, 4)
    (tmp_path / "a" / "same.png").write_bytes((tmp_path / "a" / "0.png").read_bytes())
    short = find_dataset(tmp_path, duplicates="keep-together", copies_within=0.0)
    assert [copy.exact for copy in short.copies] == [True]
    assert short.listing.notes[-1].startswith("only exact copies are looked for: near ones would take about")
    ample = find_dataset(tmp_path, duplicates="keep-together", copies_within=60.0)
    assert len(ample.copies) == 9
    # Who asks for one of each gets it, however long it takes.
    assert len(find_dataset(tmp_path, duplicates="drop", copies_within=0.0)) == 8


def test_the_time_that_it_takes_is_foreseen(tmp_path):
    (tmp_path / "a").mkdir()
    for seed in range(30):
        scene(seed).save(tmp_path / "a" / f"{seed}.png")
    few = find_dataset(tmp_path, fractions=None)
    assert 0 < expected_seconds(few) < 5
    many = few.select(np.tile(np.arange(30), 400))
    assert expected_seconds(many) > 20 * expected_seconds(few)
    assert expected_seconds(few.select(np.zeros(1, dtype=np.int64))) == 0


def test_progress_goes_up_to_the_end(tmp_path):
    (tmp_path / "a").mkdir()
    for seed in range(6):
        scene(seed).save(tmp_path / "a" / f"{seed}.png")
    dataset = find_dataset(tmp_path, fractions=None)
    told = []
    find_copies(dataset, contents(dataset), lambda done, total: told.append((done, total)))
    assert [done for done, _ in told] == sorted(done for done, _ in told)
    assert told[-1] == (18, 18)


def test_the_same_bytes(tmp_path):
    for name, seed in (("a/0", 0), ("a/1", 1), ("b/2", 0), ("b/3", 3), ("b/4", 0)):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        scene(seed).save(tmp_path / f"{name}.png")
    dataset = find_dataset(tmp_path, fractions=None)
    known = contents(dataset)
    assert list(repeated(known)) == [[0, 2, 4]]
    assert known[1].size == (tmp_path / "a/1.png").stat().st_size
    copies = find_copies(dataset, known)
    assert copies == [Copy(0, 2, True, 0.0), Copy(0, 4, True, 0.0)]
    write_copies(tmp_path / "copies.csv", copies, dataset)
    with (tmp_path / "copies.csv").open(newline="") as file:
        assert list(csv.DictReader(file))[1] == {
            "path": "a/0.png",
            "label": "a",
            "split": "test",
            "copy": "b/4.png",
            "copy_label": "b",
            "copy_split": "test",
            "exact": "True",
            "distance": "0.0000",
        }


def test_images_of_one_color_and_tiny_ones_are_no_copies(tmp_path):
    (tmp_path / "a").mkdir()
    for level in range(8):
        Image.new("L", (40, 40), 30 * level).save(tmp_path / "a" / f"plain{level}.png")
        scene(0).resize((10 + level % 4, 9)).save(tmp_path / "a" / f"tiny{level}.jpg", quality=50 + level)
    (tmp_path / "a" / "broken.png").write_bytes(b"no image")
    dataset = find_dataset(tmp_path, fractions=None)
    assert find_copies(dataset, contents(dataset)) == []


def test_clusters_are_joined():
    found = clusters([Copy(*pair, False, 0.1) for pair in ((0, 3), (2, 4), (3, 4), (1, 5))], 7)
    assert found.tolist() == [0, 1, 0, 0, 0, 1, 6]


def test_clusters_are_the_connected_components_of_a_graph():
    pairs = np.random.default_rng(0).integers(0, 500, (300, 2))
    found = clusters([Copy(*sorted(pair), False, 0.1) for pair in pairs.tolist()], 500)
    graph = coo_array((np.ones(300), pairs.T), shape=(500, 500))
    _, component = connected_components(graph, directed=False)
    first = np.unique(component, return_index=True)[1]
    assert found.tolist() == first[component].tolist()


def write_pairs(root, count: int) -> None:
    """Two classes; every image has a copy in JPEG."""
    for label, start in (("a", 0), ("b", 100)):
        (root / label).mkdir(parents=True, exist_ok=True)
        for seed in range(start, start + count):
            scene(seed).save(root / label / f"{seed}.png")
            scene(seed).save(root / label / f"{seed}.jpg", quality=80)


def test_copies_are_kept_together(tmp_path):
    write_pairs(tmp_path, 12)
    dataset = find_dataset(tmp_path, duplicates="keep-together")
    assert len(dataset.copies) == 24
    split_of = dict(zip(dataset.names, dataset.splits, strict=True))
    assert all(split_of[name] == split_of[name.replace(".png", ".jpg")] for name in split_of)
    for split, expected in (("train", 16), ("val", 4), ("test", 4)):
        assert np.bincount(dataset.split(split).labels).tolist() == [expected, expected]
    assert "24 copies of images (0 equal byte by byte, 24 nearly equal)" in dataset.listing.warnings
    apart = find_dataset(tmp_path)
    split_of = dict(zip(apart.names, apart.splits, strict=True))
    assert any(split_of[name] != split_of[name.replace(".png", ".jpg")] for name in split_of)


def test_copies_are_dropped(tmp_path):
    write_pairs(tmp_path, 6)
    dataset = find_dataset(tmp_path, duplicates="drop")
    assert len(dataset) == 12
    assert dataset.listing.passed_over == {"copies of other images": 12}
    assert dataset.copies == []


def test_leaks_between_given_splits_are_named(tmp_path):
    for split in ("train", "test"):
        write_pairs(tmp_path / split, 2)
    scene(50).save(tmp_path / "train" / "a" / "more.png")
    dataset = find_dataset(tmp_path, fractions=None, duplicates="keep-together")
    assert any("images of train and test are copies of one another" in w for w in dataset.listing.warnings)
    dropped = find_dataset(tmp_path, fractions=None, duplicates="drop")
    assert dropped.names == [
        "test/a/0.jpg",
        "test/a/1.jpg",
        "test/b/100.jpg",
        "test/b/101.jpg",
        "train/a/more.png",
    ]


def test_copies_with_different_labels_are_named(tmp_path):
    write_pairs(tmp_path, 4)
    scene(0).save(tmp_path / "b" / "zero.png")
    dataset = find_dataset(tmp_path, duplicates="keep-together")
    expected = "1 pair of copies with different labels, such as a/0.png and b/zero.png"
    assert expected in dataset.listing.warnings


def test_a_class_of_copies_is_too_small(tmp_path):
    write_pairs(tmp_path, 4)
    (tmp_path / "c").mkdir()
    for number in range(5):
        scene(7).save(tmp_path / "c" / f"{number}.png")
    with pytest.raises(UserError, match=r'class "c" has 1 image .*copies of one another counted once'):
        find_dataset(tmp_path, duplicates="keep-together")


def test_groups_and_copies_stay_together(tmp_path):
    write_pairs(tmp_path, 12)  # a/0.png … a/11.png are grouped by their first digit
    options = DataOptions(group_pattern=r"/\d")
    dataset = find_dataset(tmp_path, duplicates="keep-together", options=options)
    split_of = dict(zip(dataset.names, dataset.splits, strict=True))
    for name, group in zip(dataset.names, dataset.groups, strict=True):
        assert {
            split_of[other] for other, g in zip(dataset.names, dataset.groups, strict=True) if g == group
        } == {split_of[name]}
        assert split_of[name] == split_of[name.replace(".png", ".jpg")]


def test_different_things_before_one_background_are_no_copies(tmp_path):
    """They agree in everything but their details."""
    generator = np.random.default_rng(0)
    background = np.asarray(scene(0).resize((128, 128)), dtype=float)
    for number in range(6):
        print_on_it = np.asarray(
            Image.fromarray(generator.integers(0, 256, (24, 24), dtype=np.uint8)).resize((64, 64)),
            dtype=float,
        )
        image = background / 2
        image[32:96, 32:96] = 190 + 0.35 * (print_on_it[..., None] - 128)
        Image.fromarray(image.astype(np.uint8)).save(tmp_path / f"{number}.png")
    for seed in range(1, 21):
        scene(seed).save(tmp_path / f"other{seed}.png")
    Image.open(tmp_path / "3.png").crop((3, 2, 124, 126)).save(tmp_path / "copy.jpg", quality=60)
    (tmp_path / "list.csv").write_text(
        "path,label\n" + "".join(f"{path.name},a\n" for path in sorted(tmp_path.iterdir()))
    )
    dataset = find_dataset(tmp_path / "list.csv", fractions=None, duplicates="ignore")
    found = [
        (dataset.names[copy.first], dataset.names[copy.second])
        for copy in find_copies(dataset, contents(dataset))
    ]
    assert found == [("3.png", "copy.jpg")]
