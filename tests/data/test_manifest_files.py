"""The files that a manifest lists, found however their paths are written."""

from __future__ import annotations

import pytest
from tests.helpers.folders import found, image_bytes, plant
from tests.helpers.manifests import FOUR, ROWS, Case, check_manifest, table

from skipnets.data.manifest_files import MissingFilesError
from skipnets.data.options import DataOptions
from skipnets.data.sources import find_dataset
from skipnets.errors import UserError

CASES = {
    "identifiers": Case("m.csv", table("image_id,label").replace(".png", ""), FOUR),
    "Windows paths": Case("m.csv", table("path,label", prefix=".\\").replace("a.png", "in\\..\\a.png"), FOUR),
    "another machine": Case(
        "m.csv",
        table("path,label", prefix="C:\\Users\\me\\set\\"),
        FOUR,
        ('"C:/Users/me/set/" in the paths is read as',),
    ),
    "another home": Case(
        "m.csv",
        table("path,label", prefix="/home/me/set/"),
        FOUR,
        ('"/home/me/set/" in the paths is read as',),
    ),
    "missing files": Case(
        "m.csv",
        table("path,label") + "x.png,cat\ny.png,cat\n",
        r"error: 2 of 6 listed files are not below .*: x\.png, y\.png; --root names .* --missing skip",
    ),
    "missing files skipped": Case(
        "m.csv",
        table("path,label") + "x.png,cat\n",
        FOUR,
        ("1 listed file not there: x.png", "1 listed files that are not there"),
        {"missing": "skip"},
    ),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_paths(tmp_path, case):
    check_manifest(tmp_path, case)


def test_missing_files_are_all_known(tmp_path):
    (tmp_path / "m.csv").write_text("path,label\n" + "".join(f"{n}.png,cat\n" for n in range(500)))
    with pytest.raises(MissingFilesError, match=r"500 of 500 .* 18\.png, 19\.png and 480 more") as caught:
        find_dataset(tmp_path / "m.csv")
    assert caught.value.names == [f"{n}.png" for n in range(500)]


def test_root(tmp_path):
    plant(tmp_path / "images", {name: image_bytes() for name, _ in ROWS})
    (tmp_path / "m.csv").write_text(table("path,label"))
    with pytest.raises(UserError, match="4 of 4 listed files are not below"):
        find_dataset(tmp_path / "m.csv")
    dataset = find_dataset(tmp_path / "m.csv", fractions=None, options=DataOptions(root=tmp_path / "images"))
    assert found(dataset) == FOUR
    assert dataset.names == ["a.png", "b.png", "c.png", "d.png"]


def test_absolute_paths_elsewhere(tmp_path, monkeypatch):
    plant(tmp_path / "images", {name: image_bytes() for name, _ in ROWS})
    (tmp_path / "lists").mkdir()
    (tmp_path / "lists" / "m.csv").write_text(table("path,label", prefix="../images/"))
    monkeypatch.chdir(tmp_path / "lists")
    dataset = find_dataset("m.csv", fractions=None)
    assert dataset.names == [f"{tmp_path.as_posix()}/images/{name}" for name, _ in ROWS]
    assert dataset.open(0).size == (5, 6)
