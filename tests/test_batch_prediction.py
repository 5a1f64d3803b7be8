"""Batch prediction into a folder: nothing lost, nothing repeated, whatever happens."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tarfile
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from tests.helpers.classifiers import make_classifier
from tests.helpers.serving import make_colors, make_label_colors, make_number_colors, write_colors_onnx

from skipnets import batch_prediction
from skipnets.batch_prediction import fingerprint, predict_to_folder, shards_of, summary_of
from skipnets.classifier import Classifier, RegressionPrediction, load
from skipnets.data.streams import ImageSource, Shard
from skipnets.errors import UserError

COUNT = 40


@pytest.fixture
def classifier() -> Classifier:
    return make_colors()


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 24 images, one of them damaged, with a folder of 8 and a tar file of 8."""
    root = tmp_path_factory.mktemp("images")
    (root / "more").mkdir()
    rng = np.random.default_rng(0)

    def encoded() -> bytes:
        file = io.BytesIO()
        Image.fromarray(rng.integers(0, 255, (8, 8, 3), np.uint8)).save(file, "PNG")
        return file.getvalue()

    for index in range(23):
        (root / f"{index:02}.png").write_bytes(encoded())
    (root / "23.png").write_bytes(b"no image")
    for index in range(8):
        (root / "more" / f"{index}.png").write_bytes(encoded())
    with tarfile.open(root / "shard.tar", "w") as tar:
        for index in range(8):
            info, content = tarfile.TarInfo(f"{index:03}.png"), encoded()
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return root


def rows(folder: Path) -> list[dict[str, Any]]:
    return [row for path in sorted(folder.glob("part-*.parquet")) for row in pq.read_table(path).to_pylist()]


def assert_complete(folder: Path, images: Path) -> None:
    paths = [row["path"] for row in rows(folder)]
    assert len(paths) == len(set(paths)) == COUNT
    assert sum(path.startswith(f"{images}/shard.tar:") for path in paths) == 8


def test_every_image_has_a_row_as_predict_gives_it(
    classifier: Classifier, images: Path, tmp_path: Path
) -> None:
    result = predict_to_folder(classifier, [str(images)], tmp_path / "out", top_k=2, rows_per_file=15)
    assert (result.rows, result.failed, len(result.files)) == (COUNT, 1, 3)
    assert_complete(tmp_path / "out", images)
    assert summary_of(result.files) == result
    found = {row["path"]: row for row in rows(tmp_path / "out")}
    paths = [path for path in found if ".tar:" not in path]
    for expected in classifier.predict(paths, top_k=2):
        row = found[expected.source]
        if expected.error is not None:
            assert "not an image" in row["error"]
            assert row["label"] is row["probability"] is row["label_2"] is None
            continue
        assert (row["label"], row["label_2"]) == tuple(label for label, _ in expected.ranking)
        assert row["probability"] == pytest.approx(expected.probability)
        assert row["source"] == str(Path(expected.source).parent)


def test_it_goes_on_where_a_job_stopped(classifier: Classifier, images: Path, tmp_path: Path) -> None:
    class StoppedError(Exception):
        pass

    rng, attempts = random.Random(0), 0
    while True:
        attempts += 1
        until = rng.randint(3, 25)

        def stop(result: Any, until: int = until) -> None:
            if result.rows == until:
                raise StoppedError

        try:
            predict_to_folder(
                classifier, [str(images)], tmp_path, batch_size=4, rows_per_file=5, progress=stop
            )
            break
        except StoppedError:
            continue
    assert attempts > 2
    assert_complete(tmp_path, images)
    again = predict_to_folder(classifier, [str(images)], tmp_path)
    assert (again.rows, again.files) == (0, [])


def test_a_finished_source_is_not_read_again(
    classifier: Classifier, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    predict_to_folder(classifier, [str(images)], tmp_path)
    monkeypatch.setattr("skipnets.data.streams._in_tar", lambda *_: pytest.fail("was read"))
    monkeypatch.setattr("skipnets.data.streams._in_folder", lambda *_: pytest.fail("was read"))
    assert predict_to_folder(classifier, [str(images)], tmp_path).rows == 0


def test_an_image_that_is_added_later_is_predicted_later(classifier: Classifier, tmp_path: Path) -> None:
    images = tmp_path / "images"
    images.mkdir()
    for index in range(3):
        Image.new("RGB", (4, 4)).save(images / f"{index}.png")
    assert predict_to_folder(classifier, [str(images)], tmp_path / "out").rows == 3
    Image.new("RGB", (4, 4)).save(images / "later.png")
    again = predict_to_folder(classifier, [str(images)], tmp_path / "out")
    assert (again.rows, again.skipped) == (1, 3)
    assert len({row["path"] for row in rows(tmp_path / "out")}) == len(rows(tmp_path / "out")) == 4


def test_an_image_that_is_added_to_an_object_store_is_predicted_later(
    classifier: Classifier, images: Path, tmp_path: Path
) -> None:
    files = pytest.importorskip("fsspec").filesystem("memory")
    content = (images / "00.png").read_bytes()
    files.pipe({"/added/a.png": content, "/added/x.tar": (images / "shard.tar").read_bytes()})
    try:
        assert predict_to_folder(classifier, ["memory://added"], tmp_path).rows == 9
        files.pipe("/added/b.png", content)
        again = predict_to_folder(classifier, ["memory://added"], tmp_path)
        assert (again.rows, again.skipped) == (1, 1)  # the tar file is not read again
    finally:
        files.rm("/added", recursive=True)


@pytest.mark.parametrize("name", ["x.tar", "x.parquet"])
def test_a_file_of_images_that_was_replaced_is_refused(
    name: str, classifier: Classifier, images: Path, tmp_path: Path
) -> None:
    path = tmp_path / name
    if name.endswith("tar"):
        path.write_bytes((images / "shard.tar").read_bytes())
    else:
        pq.write_table(pa.table({"image": [(images / "00.png").read_bytes()]}), path)
    assert predict_to_folder(classifier, [str(path)], tmp_path / "out").rows in (8, 1)
    assert predict_to_folder(classifier, [str(path)], tmp_path / "out").rows == 0
    os.utime(path, (1, 1))
    with pytest.raises(UserError, match=rf"{name}.* changed since it was predicted; choose another folder"):
        predict_to_folder(classifier, [str(path)], tmp_path / "out")


def test_a_tar_file_that_was_replaced_half_way_is_refused(
    classifier: Classifier, images: Path, tmp_path: Path
) -> None:
    path, out = tmp_path / "x.tar", tmp_path / "out"
    shutil.copy(images / "shard.tar", path)

    def stop(result: Any) -> None:
        if result.rows == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        predict_to_folder(classifier, [str(path)], out, batch_size=2, progress=stop)
    os.utime(path, (1, 1))
    with pytest.raises(UserError, match=r"x\.tar changed since it was predicted; choose another folder"):
        predict_to_folder(classifier, [str(path)], out)


def test_a_damaged_tar_file_that_was_repaired_goes_on(
    classifier: Classifier, images: Path, tmp_path: Path
) -> None:
    path, out = tmp_path / "x.tar", tmp_path / "out"
    whole = (images / "shard.tar").read_bytes()
    path.write_bytes(whole[:5000])
    predict_to_folder(classifier, [str(path)], out, batch_size=2, rows_per_file=1)
    before = len(rows(out)) - 1  # the last says what is wrong with it
    assert 0 < before < 8
    path.write_bytes(whole)
    os.utime(path, (1, 1))
    assert predict_to_folder(classifier, [str(path)], out).rows == 8 - before
    assert len({row["path"] for row in rows(out)}) == len(rows(out)) == 8
    assert {row["error"] for row in rows(out)} == {None}
    os.utime(path, (2, 2))
    with pytest.raises(UserError, match=r"x\.tar changed since it was predicted"):
        predict_to_folder(classifier, [str(path)], out)


FOLDER, PATTERN, FILE, INPUT = "images", "images/*.png", "images/1.png", "-"
SPELLED, LINKED = "images/more/..", "linked"


@pytest.mark.parametrize("stopped", [False, True])
@pytest.mark.parametrize(
    ("first", "then"),
    [
        *((FOLDER, each) for each in (PATTERN, FILE, INPUT, SPELLED, LINKED)),
        *((each, FOLDER) for each in (PATTERN, FILE, INPUT, SPELLED, LINKED)),
        *((PATTERN, INPUT), (INPUT, PATTERN)),
    ],
)
def test_an_image_by_another_address_has_one_row(
    first: str,
    then: str,
    stopped: bool,
    classifier: Classifier,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    names = ["0.png", "1.png", "2.png", "more/1.png"]
    for name in names:
        Path("images", name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4)).save(Path("images", name))
    with tarfile.open("images/x.tar", "w") as tar:
        tar.add("images/1.png", "1.png")
    Path("linked").symlink_to("images", target_is_directory=True)

    def predict(address: str, *, until: int = 0) -> None:
        def progress(result: Any) -> None:
            if result.rows == until:
                raise KeyboardInterrupt

        lines = "".join(f"{tmp_path}/images/{name}\n" for name in names)
        monkeypatch.setattr("sys.stdin", io.StringIO(lines))
        with contextlib.suppress(KeyboardInterrupt):
            predict_to_folder(classifier, [address], "out", batch_size=1, progress=progress)

    predict(first, until=2 if stopped else 0)
    found = len(rows(Path("out")))
    assert 0 < found <= 5
    predict(then)
    predict(FOLDER)
    paths = [row["path"] for row in rows(Path("out"))]
    assert sorted(os.path.realpath(path) for path in paths) == sorted(
        os.path.realpath(f"images/{name}") for name in [*names, "x.tar:1.png"]
    )


def stop_after(rows: int) -> Callable[[Any], None]:
    """Ctrl-C when a job has predicted so many."""

    def progress(result: Any) -> None:
        if result.rows == rows:
            raise KeyboardInterrupt

    return progress


def without_metadata(folder: Path, *keys: str) -> None:
    """Make the files in a folder those of a version that did not record these."""
    for path in folder.glob("part-*.parquet"):
        table = pq.read_table(path)
        recorded = json.loads(table.schema.metadata[b"skipnets"])
        for key in keys:
            del recorded[key]
        pq.write_table(table.replace_schema_metadata({"skipnets": json.dumps(recorded)}), path)


@pytest.mark.parametrize("stopped", [False, True])
def test_names_that_are_the_same_in_another_folder_are_other_images(
    stopped: bool, classifier: Classifier, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    for patient in ("a", "b"):
        folder = tmp_path / patient / "images"
        folder.mkdir(parents=True)
        for index in range(3):
            Image.new("RGB", (4, 4)).save(folder / f"{index}.png")
        shutil.copy(images / "shard.tar", folder / "x.tar")
        for path in (folder / "x.tar", folder):
            os.utime(path, (1, 1))
        monkeypatch.chdir(folder.parent)
        with contextlib.suppress(KeyboardInterrupt):
            rows_before = len(rows(out))
            stop = stop_after(2) if stopped and patient == "a" else None
            predict_to_folder(classifier, ["images"], out, batch_size=1, progress=stop)
            assert len(rows(out)) - rows_before == 11
    monkeypatch.chdir(tmp_path)
    addresses = (f"{tmp_path}/a/images", "b/images/*", "a", f"{tmp_path}/b")
    found = [predict_to_folder(classifier, [address], out).rows for address in addresses]
    assert found == [9 if stopped else 0, 0, 0, 0]
    assert len(rows(out)) == 22


def test_files_that_do_not_say_what_they_are_relative_to_are_of_the_current_folder(
    classifier: Classifier, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = pytest.importorskip("fsspec").filesystem("memory")
    files.pipe("/old/a.png", (images / "00.png").read_bytes())
    monkeypatch.chdir(images)
    addresses = ["more", "memory://old"]
    try:
        assert predict_to_folder(classifier, addresses, tmp_path).rows == 9
        without_metadata(tmp_path, "cwd", "remote")
        os.utime(images / "more")
        again = predict_to_folder(classifier, addresses, tmp_path)
        assert (again.rows, again.skipped) == (0, 9)
    finally:
        files.rm("/old", recursive=True)


def test_names_in_a_store_are_the_same_from_every_folder(
    classifier: Classifier, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("fsspec")
    with zipfile.ZipFile(tmp_path / "store.zip", "w") as store:
        for name in ("00.png", "shard.tar"):
            store.write(images / name, f"photos/{name}")
    (tmp_path / "photos").mkdir()
    shutil.copy(images / "00.png", tmp_path / "photos")
    address, out = f"zip://photos::{tmp_path}/store.zip", tmp_path / "out"
    for folder, addresses, expected in (
        (images, [address], 9),
        (tmp_path, [address], 0),
        (tmp_path, [address, "photos"], 1),  # of this machine, with the same name
    ):
        monkeypatch.chdir(folder)
        assert predict_to_folder(classifier, addresses, out).rows == expected


@pytest.mark.parametrize("last", [24, 32, 40])  # of the folder, the folder in it and the tar file
def test_a_row_that_ctrl_c_came_before_is_predicted_later(
    last: int, classifier: Classifier, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    added = 0

    def add(*arguments: Any, **options: Any) -> None:
        nonlocal added
        added += 1
        if added == last:
            raise KeyboardInterrupt
        add_row(*arguments, **options)

    with monkeypatch.context() as patch:
        add_row = batch_prediction._Writer.add
        patch.setattr(batch_prediction._Writer, "add", add)
        with pytest.raises(KeyboardInterrupt):
            predict_to_folder(classifier, [str(images)], tmp_path)
    assert predict_to_folder(classifier, [str(images)], tmp_path).rows == COUNT - last + 1
    assert_complete(tmp_path, images)


def test_the_fingerprint_of_what_is_in_a_file_is_that_of_the_file(
    exported_classifier: Classifier, colors_onnx: Path
) -> None:
    """Of every runtime, and as versions computed it that did not look at the weights."""
    assert exported_classifier.path is not None
    for path in (exported_classifier.path, colors_onnx):
        content = hashlib.blake2b(path.read_bytes()).digest()
        expected = hashlib.blake2b(content, digest_size=16).hexdigest()
        assert fingerprint(load(path, device="cpu")) == expected
    assert fingerprint(exported_classifier) == fingerprint(load(exported_classifier.path, runtime="torch"))


def test_what_is_changed_in_memory_is_another_model(exported_classifier: Classifier, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    exported_classifier.save(path)
    for classifier in (make_classifier(), load(path, runtime="torch", device="cpu")):
        weight = next(classifier.model.parameters())
        before = fingerprint(classifier)
        with torch.no_grad():
            weight.mul_(2)
            assert fingerprint(classifier) != before
            weight.div_(2)
        assert fingerprint(classifier) == before
        weight.data[0, 0, 0, 0] = torch.nan  # it cannot be saved, but predicts
        assert fingerprint(classifier) != before
    for runtime in ("auto", "torch"):
        classifier = load(path, runtime=runtime, device="cpu")
        before = fingerprint(classifier)
        classifier.temperature = 2.0
        assert fingerprint(classifier) != before
        assert fingerprint(classifier.uncalibrated()) == before


def test_networks_of_an_ensemble_are_told_apart(tmp_path: Path) -> None:
    about = {"created": "2026-01-01"}
    networks = [make_classifier(growth_rate=rate) for rate in (4, 4, 6)]
    with torch.no_grad():
        next(networks[1].model.parameters()).mul_(2)
    ensembles = [
        Classifier.from_members([networks[first], networks[second]], provenance=about)
        for first, second in ((0, 1), (0, 0), (1, 0))
    ]
    assert len({fingerprint(each) for each in (*networks, *ensembles)}) == 6
    path = tmp_path / "model.safetensors"
    ensembles[0].save(path)
    for runtime in ("auto", "torch"):
        loaded = load(path, runtime=runtime, device="cpu")
        content = hashlib.blake2b(path.read_bytes()).digest()
        assert fingerprint(loaded) == hashlib.blake2b(content, digest_size=16).hexdigest()
        assert len({fingerprint(each) for each in (loaded, *loaded.members)}) == 3
    with torch.no_grad():
        next(loaded.members[1].model.parameters()).mul_(2)
    assert fingerprint(loaded) != fingerprint(load(path, runtime="torch", device="cpu"))


def test_a_file_that_was_replaced_is_not_taken_for_the_one_that_was_loaded(
    exported_classifier: Classifier, tmp_path: Path
) -> None:
    path = write_colors_onnx(tmp_path / "model.onnx")
    classifier = load(path)
    write_colors_onnx(path)
    os.utime(path, (1, 1))
    with pytest.raises(UserError, match=r"model\.onnx was replaced since it was loaded; load it again"):
        fingerprint(classifier)
    path = tmp_path / "model.safetensors"
    exported_classifier.save(path)
    shown = load(path, runtime="torch", device="cpu")
    before = fingerprint(shown)
    with torch.no_grad():
        other = make_classifier()
        next(other.model.parameters()).mul_(2)
    other.save(path)
    assert len({before, fingerprint(shown), fingerprint(load(path, device="cpu"))}) == 3


@pytest.mark.parametrize("unlisted", ["a.parquet", "folder"])
def test_a_shard_ends_where_its_part_is_not_known(
    unlisted: str, classifier: Classifier, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else this job would take other jobs' tar files for its own, and leave its own out."""
    data, out = tmp_path / "data", tmp_path / "out"
    (data / "folder").mkdir(parents=True)
    content = [(images / "00.png").read_bytes()] * 3
    pq.write_table(pa.table({"image": content}), data / "a.parquet", row_group_size=1)
    for name in ("folder/x.tar", "y.tar", "z.tar"):
        shutil.copy(images / "shard.tar", data / name)
    opened, scandir = Path.open, os.scandir

    def fail(path: str) -> None:
        if path.endswith(unlisted):
            raise OSError(errno.EIO, "Input/output error")

    def open_file(path: Path, *arguments: Any, **options: Any) -> Any:
        fail(str(path))
        return opened(path, *arguments, **options)

    def scan(path: Any) -> Any:
        fail(str(path))
        return scandir(path)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", open_file)
        patch.setattr(os, "scandir", scan)
        for number in (1, 2):
            with pytest.raises(
                UserError, match=rf"/{unlisted} could not be listed \(Input/output error\), so"
            ):
                predict_to_folder(classifier, [str(data)], out, shard=Shard(number, 2))
        whole = predict_to_folder(classifier, [str(data)], tmp_path / "whole")
        assert list(whole.failures.values()) == ["image: Input/output error"]
    for number in (1, 2):
        predict_to_folder(classifier, [str(data)], out, shard=Shard(number, 2))
    predict_to_folder(classifier, [str(data)], tmp_path / "whole")
    for folder in (out, tmp_path / "whole"):
        paths = [row["path"] for row in rows(folder)]
        assert len(paths) == len(set(paths)) == 3 + 3 * 8


def test_a_folder_that_no_job_may_read_stops_no_shard(
    classifier: Classifier, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scandir = os.scandir

    def refuse(path: Any) -> Any:  # as the tests may run as root, who may read everything
        if str(path).endswith("more"):
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    results = [predict_to_folder(classifier, [str(images)], tmp_path, shard=Shard(n, 2)) for n in (1, 2)]
    assert sum(result.rows for result in results) == COUNT - 8 + 1
    assert [row["error"] for row in rows(tmp_path) if row["path"] == f"{images}/more"] == [
        "image: Permission denied"
    ]


def test_shards_divide_the_images(classifier: Classifier, images: Path, tmp_path: Path) -> None:
    results = [
        predict_to_folder(classifier, [str(images)], tmp_path, shard=Shard(number, 3)) for number in (3, 1, 2)
    ]
    assert_complete(tmp_path, images)
    assert min(result.rows for result in results) > 4
    assert shards_of(tmp_path) == 3
    with pytest.raises(UserError, match="holds predictions in 3 shards, not in 2"):
        predict_to_folder(classifier, [str(images)], tmp_path, shard=Shard(1, 2))


def test_memory_does_not_grow_with_the_images(
    classifier: Classifier, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is held are the images that are read ahead and the rows of one file."""
    given = 0
    most = 0

    class Endless:
        def __iter__(self) -> Iterator[tuple[str, NDArray[np.uint8]]]:
            nonlocal given
            for given in range(1, 2001):
                yield f"{given}.png", np.zeros((4, 4, 3), np.uint8)

    def watch(result: Any) -> None:
        nonlocal most
        most = max(most, given - result.rows)

    source = ImageSource("endless", False, lambda _: iter(Endless()))
    monkeypatch.setattr("skipnets.batch_prediction.image_sources", lambda _: iter([source]))
    predict_to_folder(classifier, ["-"], tmp_path, batch_size=8, rows_per_file=100, progress=watch)
    assert most <= 3 * 8
    assert len(list(tmp_path.glob("part-*.parquet"))) == 20


def test_other_predictions_are_never_mixed_in(classifier: Classifier, images: Path, tmp_path: Path) -> None:
    predict_to_folder(classifier, [str(images / "more")], tmp_path)
    with pytest.raises(UserError, match="holds predictions with top_k=1"):
        predict_to_folder(classifier, [str(images)], tmp_path, top_k=2)
    other = make_colors()
    other.provenance = {"data": "others"}
    with pytest.raises(UserError, match="holds predictions with another model"):
        predict_to_folder(other, [str(images)], tmp_path)
    [part] = tmp_path.glob("part-*.parquet")
    part.write_bytes(part.read_bytes()[:100])
    with pytest.raises(UserError, match="is damaged; delete it"):
        predict_to_folder(classifier, [str(images)], tmp_path)


def test_one_job_at_a_time(classifier: Classifier, images: Path, tmp_path: Path) -> None:
    def again(_: Any) -> None:
        predict_to_folder(make_colors(), [str(images)], tmp_path)

    with pytest.raises(UserError, match="another job is writing this shard"):
        predict_to_folder(classifier, [str(images)], tmp_path, progress=again)


def test_a_source_that_failed_is_tried_again(
    classifier: Classifier, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shard = str(images / "shard.tar")
    whole = (images / "shard.tar").read_bytes()

    class Broken(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            if self.tell() >= len(whole) // 2:
                raise OSError("connection reset")
            return super().read(512)

    with monkeypatch.context() as patch:
        patch.setattr("skipnets.data.streams._Local.open", lambda *_: Broken(whole))
        first = predict_to_folder(classifier, [shard], tmp_path)
        assert 1 < first.rows < 9
        assert first.failures == {shard: "image: is damaged from here on (connection reset)"}
        again = predict_to_folder(classifier, [shard], tmp_path)
        assert (again.rows, again.failures) == (1, first.failures)
    assert predict_to_folder(classifier, [shard], tmp_path).rows == 8 - (first.rows - 1)
    assert {row["path"]: row["error"] for row in rows(tmp_path)} == dict.fromkeys(
        f"{shard}:{index:03}.png" for index in range(8)
    )
    assert len(rows(tmp_path)) == 8
    assert predict_to_folder(classifier, [shard], tmp_path).rows == 0


def test_an_image_that_could_not_be_read_is_tried_again(
    classifier: Classifier, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = Image.open

    def refuse(file: Any, *arguments: Any, **options: Any) -> Image.Image:
        if str(file).endswith(("03.png", "more/4.png")):
            raise OSError(5, "Input/output error", file)
        return opened(file, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Image, "open", refuse)
        for attempted in (COUNT, 2):
            result = predict_to_folder(classifier, [str(images)], tmp_path, rows_per_file=7)
            assert (result.rows, len(rows(tmp_path))) == (attempted, COUNT)
            assert sum("Input/output error" in (row["error"] or "") for row in rows(tmp_path)) == 2
    assert predict_to_folder(classifier, [str(images)], tmp_path).rows == 2
    assert_complete(tmp_path, images)
    assert [row["path"] for row in rows(tmp_path) if row["error"]] == [str(images / "23.png")]
    assert predict_to_folder(classifier, [str(images)], tmp_path).rows == 0


def test_an_object_that_a_store_did_not_give_is_tried_again(
    classifier: Classifier, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = pytest.importorskip("fsspec").filesystem("memory")
    files.pipe({f"/busy/{index}.png": (images / "00.png").read_bytes() for index in range(3)})

    class BusyError(Exception):
        pass

    def refuse(*_: object) -> bytes:
        raise BusyError("slow down")

    try:
        with monkeypatch.context() as patch:
            patch.setattr(type(files), "cat_file", refuse)
            result = predict_to_folder(classifier, ["memory://busy"], tmp_path)
        assert (result.rows, result.failed) == (3, 3)
        assert "slow down" in result.failures["/busy/0.png"]
        assert predict_to_folder(classifier, ["memory://busy"], tmp_path).rows == 3
        assert [row["error"] for row in rows(tmp_path)] == [None] * 3
    finally:
        files.rm("/busy", recursive=True)


def test_a_folder_that_cannot_be_read_is_one_row(
    classifier: Classifier, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: str) -> Any:
        raise PermissionError(13, "Permission denied", path)

    with monkeypatch.context() as patch:
        patch.setattr(os, "scandir", refuse)
        result = predict_to_folder(classifier, [str(images)], tmp_path)
    assert (result.rows, result.failed) == (1, 1)
    assert predict_to_folder(classifier, [str(images)], tmp_path).rows == COUNT


def test_a_missing_address_stops_a_job_before_it_begins(
    classifier: Classifier, images: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="missing does not exist"):
        predict_to_folder(classifier, [str(images), str(tmp_path / "missing")], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_error_later_keeps_the_rows_before_it(
    classifier: Classifier, images: Path, tmp_path: Path
) -> None:
    pytest.importorskip("fsspec")
    with pytest.raises(UserError, match="memory://missing does not exist"):
        predict_to_folder(classifier, [str(images), "memory://missing"], tmp_path, batch_size=4)
    assert len(rows(tmp_path)) >= COUNT - 3 * 4  # those that were read ahead are predicted the next time
    predict_to_folder(classifier, [str(images)], tmp_path)
    assert_complete(tmp_path, images)


def test_an_output_that_cannot_be_written_is_said(
    classifier: Classifier, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "afile").write_text("kept")
    for output in (tmp_path / "afile", tmp_path / "afile" / "below"):
        with pytest.raises(UserError, match=rf"output={output}: cannot be written \((File exists|Not a dir)"):
            predict_to_folder(classifier, [str(images)], output)
    assert (tmp_path / "afile").read_text() == "kept"
    path_open = Path.open

    def refuse(path: Path, mode: str = "r", **options: Any) -> Any:  # as root may write everywhere
        if "w" in mode:
            raise PermissionError(13, "Permission denied", str(path))
        return path_open(path, mode, **options)

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(UserError, match=r"out: cannot be written \(Permission denied\)"):
        predict_to_folder(classifier, [str(images)], tmp_path / "out")


def test_names_that_are_not_text_stay_apart(classifier: Classifier, tmp_path: Path) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    for name in (b"a\xff.png", b"a\xfe.png"):
        Image.new("RGB", (4, 4)).save(os.fsdecode(os.fsencode(folder) + b"/" + name), "PNG")
    for expected in (2, 0):
        assert predict_to_folder(classifier, [str(folder)], tmp_path / "out").rows == expected
    found = {Path(row["path"]).name for row in rows(tmp_path / "out")}
    assert found == {r"a\xff.png", r"a\xfe.png"}


KILLED = """
import sys
from tests.helpers.serving import make_colors, make_label_colors
from skipnets.batch_prediction import predict_to_folder
colors = make_colors()
colors.runtime.seconds = 0.002
predict_to_folder(colors, [sys.argv[1]], sys.argv[2], batch_size=1, rows_per_file=3)
"""


@pytest.mark.slow
def test_kills_at_any_moment_lose_and_repeat_nothing(images: Path, tmp_path: Path) -> None:
    root = Path(__file__).parents[1]
    env = os.environ | {"PYTHONPATH": f"{root / 'src'}{os.pathsep}{root}", "OMP_NUM_THREADS": "1"}
    rng, kills = random.Random(1), 0
    started = time.monotonic()
    subprocess.run([sys.executable, "-c", KILLED, str(images), str(tmp_path / "whole")], env=env, check=True)
    whole = time.monotonic() - started
    for attempt in range(30):
        out = tmp_path / f"{attempt // 10}"
        process = subprocess.Popen([sys.executable, "-c", KILLED, str(images), str(out)], env=env)
        try:
            process.wait(timeout=whole * rng.uniform(0.5, 1))
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
            kills += 1
    assert kills
    started = time.monotonic()
    for number in range(3):
        out = tmp_path / f"{number}"
        subprocess.run([sys.executable, "-c", KILLED, str(images), str(out)], env=env, check=True)
        assert_complete(out, images)
        assert not list(out.glob(".part*.tmp.parquet"))
    assert time.monotonic() - started < 60


def test_several_labels_have_a_column_each(images: Path, tmp_path: Path) -> None:
    classifier = make_label_colors()
    predict_to_folder(classifier, [str(images / "more")], tmp_path / "out")
    [row, *_] = pq.read_table(tmp_path / "out" / "part-00000.parquet").to_pylist()
    [expected] = classifier.predict(row["path"])
    assert list(row) == ["path", "labels", *(f"p:{name}" for name in classifier.classes), "error", "source"]
    assert row["labels"] == "|".join(expected.labels)
    assert {name: row[f"p:{name}"] for name in classifier.classes} == pytest.approx(dict(expected.ranking))


def test_numbers_have_a_column_for_each_target(images: Path, tmp_path: Path) -> None:
    classifier = make_number_colors()
    predict_to_folder(classifier, [str(images / "more")], tmp_path / "out")
    [row, *_] = pq.read_table(tmp_path / "out" / "part-00000.parquet").to_pylist()
    [expected] = classifier.predict(row["path"])
    assert isinstance(expected, RegressionPrediction)
    assert list(row) == ["path", *classifier.classes, "error", "source"]
    assert {name: row[name] for name in classifier.classes} == pytest.approx(dict(expected.values))
