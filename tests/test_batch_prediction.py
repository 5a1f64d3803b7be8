"""Batch prediction into a folder: nothing lost, nothing repeated, whatever happens."""

from __future__ import annotations

import io
import os
import random
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray
from PIL import Image
from tests.helpers.serving import make_colors, make_label_colors

from skipnets.batch_prediction import predict_to_folder, shards_of, summary_of
from skipnets.classifier import Classifier
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
    predict_to_folder(classifier, [""], tmp_path, batch_size=8, rows_per_file=100, progress=watch)
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
    for attempt in range(30):
        out = tmp_path / f"{attempt // 10}"
        process = subprocess.Popen([sys.executable, "-c", KILLED, str(images), str(out)], env=env)
        try:
            process.wait(timeout=1.0 + rng.random())
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
