"""Images one after another: folders, tar files, Parquet files, addresses."""

from __future__ import annotations

import errno
import io
import os
import tarfile
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet as pq
import pytest
from PIL import Image

from skipnets.data.decoding import ImageDecodeError, Source, open_image
from skipnets.data.streams import Shard, UnlistedError, image_sources, is_failed_read, unreadable_image
from skipnets.errors import UserError


def png(shade: int) -> bytes:
    file = io.BytesIO()
    Image.new("L", (3, 2), shade).save(file, "PNG")
    return file.getvalue()


def read(addresses: Iterable[object]) -> dict[str, Source]:
    """All images, each once; a source that cannot be read is one that fails."""
    pairs: list[tuple[str, Source]] = []
    for source in image_sources(map(str, addresses)):
        try:
            pairs += source.read(lambda _: True)
        except OSError as error:
            pairs.append((source.name, unreadable_image(str(error))))
    assert len(dict(pairs)) == len(pairs)
    return dict(pairs)


def shade(source: Source) -> int:
    return int(np.asarray(open_image(source, 1))[0, 0])


def write_tar(path: Path, shades: dict[str, int]) -> Path:
    with tarfile.open(path, "w:gz" if path.name.endswith("gz") else "w") as tar:
        for name, value in shades.items():
            info, content = tarfile.TarInfo(name), png(value) if name.endswith("png") else b"{}"
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def test_a_folder_gives_its_images_and_those_below(tmp_path: Path) -> None:
    images = ("a.png", "b/c.PNG", "b/d/e.jpg", "b/f.dcm", "b/g.nii.gz", "b/h.heic", "b/i.npy")
    for name in (*images, "notes.txt", ".hidden/f.png", ".g.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(png(1))
    (tmp_path / "b/d/back").symlink_to(tmp_path, target_is_directory=True)
    expected = {str(tmp_path / name) for name in images}
    assert set(read([tmp_path])) == expected
    assert set(read([tmp_path, tmp_path / "b"])) == expected
    assert set(read([tmp_path / "b/*/*"])) == set(read([tmp_path / "b/d/back"]))  # which comes before e.jpg
    assert list(read([tmp_path / "a.png"])) == [str(tmp_path / "a.png")]


def test_matches_of_a_pattern_come_in_the_order_of_their_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Shards divide tar files by their order, which must be that of every machine."""
    shards = [str(write_tar(tmp_path / f"{index}.tar", {"0.png": 0})) for index in range(4)]
    monkeypatch.setattr("glob.iglob", lambda *_, **__: iter([shards[index] for index in (2, 0, 3, 1)]))
    assert [source.name for source in image_sources([str(tmp_path / "*.tar")])] == shards


def test_what_several_addresses_reach_comes_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "photos"
    (folder / "x.png").mkdir(parents=True)
    for name in ("a.png", ".hidden.png", "noext", "x.png/b.png"):
        (folder / name).write_bytes(png(1))
    (folder / "broken.png").symlink_to("nowhere")
    (tmp_path / "link").symlink_to(folder)
    write_tar(folder / "x.tar", {"0.png": 0})
    everything = set(read([folder]))
    names = ("x.png", "a.png", "broken.png", "x.tar")
    monkeypatch.chdir(folder)
    for again in (
        [f"{folder}/{name}" for name in names],
        [f"{tmp_path}/link/{name}" for name in names],
        [f"file://{folder}/{name}" for name in names],
        [f"{folder}/./x.png/../{name}" for name in names],
        [f"{folder}/*.*"],
        list(names),
    ):
        assert set(read([folder, *again])) == everything
        assert len(read([*again, folder])) == len(read([*again, *again, folder])) == len(everything)
    others = {f"{folder}/.hidden.png", f"{folder}/noext"}  # which the folder passes over
    assert set(read([folder, *others])) == everything | others


def test_what_several_addresses_of_a_store_reach_comes_once() -> None:
    files = pytest.importorskip("fsspec").filesystem("memory")
    files.pipe({"/twice/a.png": png(1), "/twice/b/c.png": png(2)})
    try:
        every = ["memory://twice", "memory://twice/", "memory://twice/a.png", "memory://twice/b"]
        for addresses in (every, every[::-1]):
            assert set(read(addresses)) == {"/twice/a.png", "/twice/b/c.png"}
    finally:
        files.rm("/twice", recursive=True)


def test_a_folder_is_not_listed_before_its_first_image_is_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for index in range(100):
        (tmp_path / f"{index}.png").write_bytes(b"")
    seen = []
    scandir = os.scandir

    class Counted:
        def __init__(self, path: str) -> None:
            self._scan = scandir(path)

        def __enter__(self) -> Iterable[os.DirEntry[str]]:
            return (seen.append(entry) or entry for entry in self._scan)  # type: ignore[func-returns-value]

        def __exit__(self, *_: object) -> None:
            self._scan.close()

    monkeypatch.setattr(os, "scandir", Counted)
    images = next(image_sources([str(tmp_path)])).read(lambda _: True)
    for _ in range(5):
        next(images)
    assert len(seen) == 5


def test_what_is_no_regular_file_is_told_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "broken.png").symlink_to(tmp_path / "nowhere.png")
    found = read([tmp_path])
    assert len(found) == 2
    for source in found.values():
        with pytest.raises(ImageDecodeError, match="is not a regular file"):
            open_image(source)


@pytest.mark.parametrize("name", ["x.tar", "x.tar.gz", "x.tgz"])
def test_a_tar_file_gives_its_images(name: str, tmp_path: Path) -> None:
    path = write_tar(tmp_path / name, {"000.png": 10, "000.json": 0, "a/001.png": 20})
    for address in (path, tmp_path):
        found = read([address])
        assert {key: shade(image) for key, image in found.items()} == {
            f"{path}:000.png": 10,
            f"{path}:a/001.png": 20,
        }


def test_a_source_that_cannot_be_read_says_so_and_stops_nothing(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.tar")
    (tmp_path / "broken.tar").symlink_to(tmp_path / "nowhere.tar")
    (tmp_path / "loop.parquet").symlink_to("loop.parquet")
    (tmp_path / "folder").mkdir()
    (tmp_path / "image.png").write_bytes(png(1))
    os.mkfifo(tmp_path / "folder" / "pipe.png")
    found = read([tmp_path])
    assert shade(found.pop(str(tmp_path / "image.png"))) == 1
    for name, reason in (
        ("pipe.tar", "is not a regular file"),
        ("folder/pipe.png", "is not a regular file"),
        ("broken.tar", "No such file"),
        ("loop.parquet", "symbolic links"),
    ):
        with pytest.raises(ImageDecodeError, match=reason):
            open_image(found.pop(str(tmp_path / name)))
    assert not found
    [given] = read([tmp_path / "pipe.tar"]).values()
    with pytest.raises(ImageDecodeError, match="is not a regular file"):
        open_image(given)


def test_a_folder_that_cannot_be_read_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a/locked", "b"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "0.png").write_bytes(png(1))
    scandir = os.scandir

    def refuse(path: str) -> object:  # as the tests may run as root, who may read everything
        if path.endswith("locked"):
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    failed = []
    names = []
    for source in image_sources([str(tmp_path)]):
        try:
            names += [path for path, _ in source.read(lambda _: True)]
        except PermissionError:
            failed.append(source.name)
        except OSError as error:
            failed.append(f"{source.name}: {error}")
    locked = str(tmp_path / "a" / "locked")
    assert failed == [locked, f"{locked}: Permission denied"]  # its images, then its folders
    assert names == [str(tmp_path / "b" / "0.png")]


@pytest.mark.parametrize(("number", "is_passing"), [(errno.EIO, True), (errno.EACCES, False)])
def test_what_cannot_be_listed_just_now_has_no_place_among_shards(
    number: int, is_passing: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A tar file has one in any case: it is one source."""

    def refuse(*_: object) -> int:
        raise OSError(number, "fails")

    for name in ("a.tar", "b.parquet"):
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "c").mkdir()
    monkeypatch.setattr("skipnets.data.streams._Local.stamp", refuse)
    monkeypatch.setattr("skipnets.data.streams._Local.open", refuse)
    for name, is_one in (("a.tar", True), ("b.parquet", False), ("c", False)):
        [source] = image_sources([str(tmp_path / name)])
        with pytest.raises(OSError, match=r"^fails$") as failed:
            list(source.read(lambda _: True))
        is_unlisted = is_passing and not is_one
        assert isinstance(failed.value, UnlistedError) == is_unlisted
        assert source.whole == (name != "c" and not is_unlisted)


def test_a_tar_file_cut_short_gives_what_it_has_and_says_so(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "x.tar", {f"{index}.png": index for index in range(5)})
    path.write_bytes(path.read_bytes()[:2600])
    found = read([path])
    assert shade(found[f"{path}:0.png"]) == 0
    with pytest.raises(ImageDecodeError, match="is damaged from here on"):
        open_image(found[str(path)])


@pytest.mark.parametrize("nested", [False, True])
def test_a_parquet_file_gives_a_source_for_each_row_group(nested: bool, tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    values = [{"bytes": png(index), "path": "p"} if nested else png(index) for index in range(5)]
    pq.write_table(
        pyarrow.table({"image": [*values, None], "label": list(range(6)), "mask": [b""] * 6}),
        path,
        row_group_size=2,
    )
    assert [source.name for source in image_sources([str(path)])] == [f"{path}#{index}" for index in range(3)]
    found = read([path])
    assert [found[f"{path}:{index}"] for index in range(5)] == [png(index) for index in range(5)]
    with pytest.raises(ImageDecodeError, match="has no image in this row"):
        open_image(found[f"{path}:5"])


def test_a_parquet_file_without_images_is_refused(tmp_path: Path) -> None:
    pq.write_table(pyarrow.table({"label": [1]}), tmp_path / "x.parquet")
    with pytest.raises(UserError, match="must have one column of image bytes"):
        read([tmp_path / "x.parquet"])
    (tmp_path / "y.parquet").write_bytes(b"nothing")
    [damaged] = read([tmp_path / "y.parquet"]).values()
    with pytest.raises(ImageDecodeError, match="is not a readable Parquet file"):
        open_image(damaged)


def test_addresses_are_read_through_fsspec() -> None:
    fsspec = pytest.importorskip("fsspec")
    files = fsspec.filesystem("memory")
    files.pipe({"/photos/a.png": png(1), "/photos/b/c.png": png(2), "/photos/notes.txt": b""})
    tar = io.BytesIO()
    with tarfile.open(fileobj=tar, mode="w") as opened:
        info = tarfile.TarInfo("d.png")
        info.size = len(png(3))
        opened.addfile(info, io.BytesIO(png(3)))
    files.pipe("/photos/x.tar", tar.getvalue())
    try:
        found = {name: shade(image) for name, image in read(["memory://photos"]).items()}
        assert found == {"/photos/a.png": 1, "/photos/b/c.png": 2, "/photos/x.tar:d.png": 3}
        with pytest.raises(UserError, match="memory://nowhere does not exist"):
            read(["memory://nowhere"])
        with pytest.raises(UserError, match="nosuch://x cannot be opened"):
            read(["nosuch://x"])
    finally:
        files.rm("/photos", recursive=True)


def test_failing_to_read_is_told_from_damage(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.effect_noise((64, 64), 50).save(path)
    whole = path.read_bytes()
    for content in (whole[:-500], b"no image", b"", b"MM\0*\xff\xff\xff\xff"):
        path.write_bytes(content)
        with pytest.raises(ImageDecodeError) as damaged:
            open_image(path)
        assert not is_failed_read(damaged.value.__cause__)
    path.unlink()
    with pytest.raises(ImageDecodeError) as absent:
        open_image(path)
    assert is_failed_read(absent.value.__cause__)
    assert is_failed_read(PermissionError(13, "Permission denied"))
    assert is_failed_read(TimeoutError())


def test_paths_come_from_standard_input_one_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("a.png\n\nb c.png\r\n./a.png\nno/folder.png\n"))
    assert read(["-"]) == {name: name for name in ("a.png", "b c.png", "no/folder.png")}


def test_paths_on_standard_input_may_hold_any_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    content = io.BytesIO("größe.png\n".encode() + b"gr\xf6\xdfe .png \n")
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(content, encoding="utf-8"))
    assert list(read(["-"])) == ["größe.png", os.fsdecode(b"gr\xf6\xdfe .png ")]
    monkeypatch.setattr("sys.stdin", None)  # closed by the shell
    assert list(read(["-"])) == []


def test_paths_on_standard_input_are_not_those_of_other_addresses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a.png", "b/c.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(png(1))
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{tmp_path}/a.png\n{tmp_path}/b/c.png\n"))
    assert set(read(["-", tmp_path / "b"])) == {f"{tmp_path}/a.png", f"{tmp_path}/b/c.png"}


def test_nothing_there_is_an_error(tmp_path: Path) -> None:
    for address, said in (
        (tmp_path / "no", "does not exist"),
        (tmp_path / "*.png", "no file matches"),
    ):
        with pytest.raises(UserError, match=said):
            read([address])


def test_shards_are_parts_that_neither_overlap_nor_leave_anything_out() -> None:
    paths = [f"{index:05}.png" for index in range(4000)]
    owners = Counter(
        tuple(number for number in range(1, 9) if Shard(number, 8).has_path(path)) for path in paths
    )
    assert set(owners) == {(number,) for number in range(1, 9)}
    assert min(owners.values()) > 400
    assert [Shard(2, 3).has_index(index) for index in range(6)] == [False, True, False] * 2
    assert Shard.parse("3/16") == Shard(3, 16)
    for wrong in ("0/4", "5/4", "3", "a/b", "1/0", "-1/2"):
        with pytest.raises(UserError, match=r"must be like 3/16"):
            Shard.parse(wrong)
