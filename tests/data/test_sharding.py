"""Shards hold every file as it is, are the same from the same data, and go on after a kill."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tests.helpers.disks import TARGETS, write_disks
from tests.helpers.labels import write_tiles
from webdataset.tariterators import group_by_keys, tar_file_expander

from skipnets.data import open_dataset, write_shards
from skipnets.data.contents import contents
from skipnets.data.options import DataOptions
from skipnets.data.sharding import Sharded, extension
from skipnets.errors import UserError


def write_images(root: Path, count: int = 24) -> Path:
    """Three classes with split folders for the test images only; noise of 120 KB, in several formats."""
    rng = np.random.default_rng(0)
    for index in range(count):
        split = "test" if index % 4 == 3 else "train"
        suffix = (".bmp", ".png", ".JPG")[index % 3]
        path = root / split / "abc"[index // 4 % 3] / f"patient{index % 5}.{index}{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (200, 200, 3), dtype=np.uint8)).save(path)
    return root


def content_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="module")
def shards(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shards(images, tmp_path_factory.mktemp("shards") / "out", shard_size=1).index.parent


def test_what_is_read_is_what_was_in_the_folder(images: Path, shards: Path) -> None:
    files, packed = open_dataset(images), open_dataset(shards)
    assert packed.names == files.names
    assert packed.classes == files.classes
    assert packed.labels.tolist() == files.labels.tolist()
    assert packed.splits.tolist() == files.splits.tolist()  # val is cut from train in the same draw
    assert contents(packed) == contents(files)
    assert packed.members is not None
    for index in range(len(files)):
        assert packed.members[index].read(packed.file(index)) == files.file(index).read_bytes()
        assert np.array_equal(np.asarray(packed.open(index)), np.asarray(files.open(index)))


def test_webdataset_reads_the_same(images: Path, shards: Path) -> None:
    names = {}
    for tar in sorted(shards.glob("*.tar")):
        with tar.open("rb") as file:  # which webdataset would leave open
            samples = list(group_by_keys(tar_file_expander([{"url": str(tar), "stream": file}])))
        for sample in samples:
            described = json.loads(sample["json"])
            path = images / described["name"]
            assert sample[path.suffix.lower()[1:]] == path.read_bytes()
            assert ("a", "b", "c")[int(sample["cls"])] == described["label"] == path.parent.name
            assert described["split"] == path.parts[-3] == tar.name.partition("-")[0]
            names[sample["__key__"]] = described["name"]
    assert sorted(names) == [f"{number:09}" for number in range(24)]
    assert sorted(names.values()) == open_dataset(images).names


def test_shards_are_cut_by_length_and_shuffled_within_splits(images: Path, shards: Path) -> None:
    index = json.loads((shards / "index.json").read_text())
    assert [shard["file"] for shard in index["shards"]] == [
        *("train-00000.tar", "train-00001.tar"),
        *("test-00000.tar",),
    ]
    assert all(shard["bytes"] <= 2**20 for shard in index["shards"])
    for shard in index["shards"]:
        listed = json.loads((shards / shard["file"]).with_suffix(".json").read_text())["names"]
        assert len(listed) == shard["images"]
        assert listed != sorted(listed)


def test_an_image_longer_than_a_shard_has_its_own(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / "data" / name).mkdir(parents=True)
        Image.new("RGB", (800, 800)).save(tmp_path / "data" / name / "large.bmp")
        Image.new("RGB", (80, 80)).save(tmp_path / "data" / name / "small.bmp")
    written = write_shards(tmp_path / "data", tmp_path / "out", shard_size=1)
    assert (written.images, written.kept) == (4, 0)
    assert written.shards in (3, 4)
    assert len(open_dataset(tmp_path / "out", fractions=None)) == 4


def test_the_same_data_gives_the_same_bytes_and_another_seed_another_order(
    images: Path, shards: Path, tmp_path: Path
) -> None:
    write_shards(images, tmp_path / "again", shard_size=1)
    assert content_of(tmp_path / "again") == content_of(shards)
    write_shards(images, tmp_path / "other", shard_size=1, seed=1)
    assert content_of(tmp_path / "other") != content_of(shards)


@pytest.mark.parametrize("stop", [0, 5, 13, 23])
def test_a_job_that_was_stopped_goes_on(stop: int, images: Path, shards: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"

    def interrupt(done: int, _total: int) -> None:
        if done == stop:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_shards(images, out, shard_size=1, progress=interrupt)
    assert not (out / "index.json").exists()
    if stop > 5:
        with pytest.raises(UserError, match=r"holds shards without their index\.json, which is written last"):
            open_dataset(out)
    written = write_shards(images, out, shard_size=1)
    assert written.kept == {0: 0, 5: 0, 13: 1, 23: 2}[stop]
    assert content_of(out) == content_of(shards)
    assert write_shards(images, out, shard_size=1) == Sharded(**{**vars(written), "kept": 3})


@pytest.mark.slow
def test_killed_at_twenty_moments(images: Path, shards: Path, tmp_path: Path) -> None:
    code = (
        "import sys, time\n"
        "from skipnets.data import write_shards\n"
        "print(flush=True)\n"
        "write_shards(*sys.argv[1:3], shard_size=1, progress=lambda *_: time.sleep(0.005))\n"
    )
    for number in range(20):
        out = tmp_path / str(number)
        command = [sys.executable, "-c", code, str(images), str(out)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as job:
            assert job.stdout is not None
            job.stdout.readline()
            time.sleep(0.02 * number)
            job.send_signal(signal.SIGKILL)
        write_shards(images, out, shard_size=1)
        left = {name: content for name, content in content_of(out).items() if ".tmp" not in name}
        assert left == content_of(shards)


def test_a_file_that_changed_is_stored_anew(tmp_path: Path) -> None:
    images = write_images(tmp_path / "images", 8)
    write_shards(images, tmp_path / "out")
    changed = images / "train" / "a" / "patient0.0.bmp"
    content = bytearray(changed.read_bytes())
    content[-1] ^= 255  # of the same length
    changed.write_bytes(content)
    later = time.time_ns() + 10**9
    os.utime(changed, ns=(later, later))
    assert write_shards(images, tmp_path / "out").kept == 1  # of two
    packed = open_dataset(tmp_path / "out")
    assert packed.members is not None
    place = packed.names.index("train/a/patient0.0.bmp")
    assert packed.members[place].read(packed.file(place)) == content


def test_a_folder_of_other_data_is_refused(images: Path, shards: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^out=.*: holds other files than these shards \(test, train\)"):
        write_shards(images, images)
    with pytest.raises(UserError, match=r"^out=.*: holds shards of other data or of another size or seed"):
        write_shards(images, shards, shard_size=1, seed=1)
    with pytest.raises(UserError, match=r"^out=.*: holds other files than these shards \(.*train-00001"):
        write_shards(images, shards)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"^out=.*: is a file; name a folder"):
        write_shards(images, tmp_path / "file")


def test_what_cannot_be_sharded(images: Path, shards: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^data=digits: has no image files to put into shards"):
        write_shards("digits", tmp_path / "out")
    with pytest.raises(UserError, match=r"^data=.*: holds shards already"):
        write_shards(shards, tmp_path / "out")
    with pytest.raises(UserError, match=r"^shard_size=0: must be at least 1"):
        write_shards(images, tmp_path / "out", shard_size=0)
    with pytest.raises(UserError, match=r"^page=2: is for those who read the shards"):
        write_shards(images, tmp_path / "out", options=DataOptions(page=2))
    assert not (tmp_path / "out").exists()


def test_groups_are_kept_and_no_draw_divides_them(images: Path, tmp_path: Path) -> None:
    for path in images.rglob("*.*"):
        if not path.is_dir():
            copy = tmp_path / "data" / path.parent.name / path.name
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(path.read_bytes())
    options = DataOptions(group_pattern=r"patient\d")
    write_shards(tmp_path / "data", tmp_path / "out", options=options)
    files = open_dataset(tmp_path / "data", options=options, seed=3, fractions=(0.5, 0.25, 0.25))
    packed = open_dataset(tmp_path / "out", seed=3, fractions=(0.5, 0.25, 0.25))
    assert packed.groups is not None
    assert files.groups is not None
    assert packed.groups.tolist() == files.groups.tolist()
    assert packed.splits.tolist() == files.splits.tolist()
    assert len({(group, split) for group, split in zip(packed.groups, packed.splits, strict=True)}) == 5


def test_files_from_elsewhere_get_names_that_are_not_absolute(images: Path, tmp_path: Path) -> None:
    paths = sorted(path for path in images.rglob("*.*") if path.is_file())
    lines = [f"{path},{path.parent.name}" for path in paths]
    (tmp_path / "labels.csv").write_text("\n".join(["path,label", *lines]))
    write_shards(tmp_path / "labels.csv", tmp_path / "out")
    assert open_dataset(tmp_path / "out").names == [str(path).removeprefix("/") for path in paths]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("a/b.c.JPG", "jpg"),
        ("scan.nii.gz", "nii.gz"),
        ("no_suffix", "bin"),
        ("odd.cls", "bin"),
        ("odd.json", "bin"),
        ("odd.j-g", "bin"),
    ],
)
def test_extensions(name: str, expected: str) -> None:
    assert extension(name) == expected


def test_members_have_neither_time_nor_owner(shards: Path) -> None:
    with tarfile.open(shards / "test-00000.tar") as tar:
        assert {(member.mtime, member.uid, member.uname, member.mode) for member in tar} == {
            (0, 0, "", 0o644)
        }


@pytest.fixture(scope="module")
def tiles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images with several labels in a manifest and, in "packed" beside it, as shards."""
    folder = tmp_path_factory.mktemp("tiles")
    manifest = write_tiles(folder / "tiles", 24, test=6)
    options = DataOptions(group_column="patient")
    write_shards(manifest, folder / "packed", options=options)
    return manifest


def test_several_labels_are_those_of_the_manifest(tiles: Path) -> None:
    files = open_dataset(tiles, options=DataOptions(group_column="patient"))
    packed = open_dataset(tiles.parents[1] / "packed")
    assert (packed.task, packed.classes, packed.names) == ("multi-label", files.classes, files.names)
    np.testing.assert_array_equal(packed.labels, files.labels)
    assert np.isnan(packed.labels).any()
    assert packed.splits.tolist() == files.splits.tolist()
    assert packed.groups is not None
    assert files.groups is not None
    assert packed.groups.tolist() == files.groups.tolist()
    # As webdataset reads them: what is known of each image, and no class.
    place = {name: index for index, name in enumerate(files.names)}
    for tar in (tiles.parents[1] / "packed").glob("*.tar"):
        with tar.open("rb") as file:
            for sample in group_by_keys(tar_file_expander([{"url": tar.name, "stream": file}])):
                assert "cls" not in sample
                told = json.loads(sample["json"])
                row = files.labels[place[told["name"]]]
                known = {
                    name: value for name, value in zip(files.classes, row, strict=True) if np.isfinite(value)
                }
                assert told["labels"] == known
    with pytest.raises(
        UserError, match=r"task=single-label: .* holds shards that were written for task=multi"
    ):
        open_dataset(tiles.parents[1] / "packed", options=DataOptions(task="single-label"))
    with pytest.raises(UserError, match="holds shards, for which --uncertain positive comes too late"):
        open_dataset(tiles.parents[1] / "packed", options=DataOptions(uncertain="positive"))


def test_numbers_are_those_of_the_manifest(tmp_path: Path) -> None:
    manifest = write_disks(tmp_path / "disks", 12, unknown=3)
    options = DataOptions(targets=TARGETS, group_column="patient")
    write_shards(manifest, tmp_path / "packed", options=options)
    files, packed = open_dataset(manifest, options=options), open_dataset(tmp_path / "packed")
    assert (packed.task, packed.classes, packed.names) == ("regression", TARGETS, files.names)
    np.testing.assert_array_equal(packed.labels, files.labels)
    assert np.isnan(packed.labels).sum() == 4
    assert packed.splits.tolist() == files.splits.tolist()
    # As a model of the same targets reads them, whatever their order.
    chosen = DataOptions().of_model("regression", TARGETS[::-1])
    assert open_dataset(tmp_path / "packed", options=chosen).classes == TARGETS
    with pytest.raises(
        UserError, match=r"targets=radius mm: must be all that the shards of .* hold: radius mm, "
    ):
        open_dataset(tmp_path / "packed", options=DataOptions(targets=TARGETS[:1]))


@pytest.mark.slow
def test_training_from_shards_of_several_labels_is_that_from_files(tiles: Path, tmp_path: Path) -> None:
    from skipnets.training import TrainConfig, train

    losses = []
    for name, data, group in (("files", tiles, "patient"), ("shards", tiles.parents[1] / "packed", None)):
        config = TrainConfig(
            data=str(data),
            out=tmp_path / name,
            group_column=group,
            model="resnet8_w16",
            epochs=2,
            batch_size=8,
            workers=0,
            accelerator="cpu",
        )
        run = train(config)
        losses.append([row.val_loss for row in run.rows])
        assert {"auroc", "f1"} <= set(run.scores["macro"])
    assert losses[0] == losses[1]
