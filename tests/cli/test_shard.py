"""`skipnets shard` writes shards that the other commands take for data."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from tests.cli.conftest import Result

Run = Callable[..., Result]


def test_shards_are_data(photos: Path, tmp_path: Path, run: Run) -> None:
    out = tmp_path / "shards"
    result = run("shard", photos, "--out", out)
    assert (result.status, result.out) == (0, f"{out / 'index.json'}\n")
    count = sum(1 for _ in photos.rglob("*.png"))
    assert f"{count} images in 1 shard of " in result.err
    again = json.loads(run("shard", photos, "--out", out, "--json").out)
    assert (again["images"], again["shards"], again["kept"]) == (count, 1, 1)
    told = [json.loads(run("data", each, "--json").out) for each in (photos, out)]
    for name in ("images", "splits", "classes", "width", "formats"):
        assert told[0][name] == told[1][name]


def test_an_image_of_other_bytes_is_named(photos: Path, tmp_path: Path, run: Run) -> None:
    out = tmp_path / "shards"
    run("shard", photos, "--out", out)
    content = (out / "images-00000.tar").read_bytes()
    (out / "images-00000.tar").write_bytes(content[:600] + b"\0" + content[601:])
    result = run("data", out, "--duplicates", "ignore")
    assert "its bytes in the shard are not those that were written" in result.out


def test_options_are_named_as_they_are_typed(photos: Path, tmp_path: Path, run: Run) -> None:
    result = run("shard", photos, "--out", tmp_path / "shards", "--shard-size", 0)
    assert (result.status, result.err) == (2, "skipnets: --shard-size=0: must be at least 1\n")
    result = run("shard", photos, "--out", photos)
    assert (result.status, result.out) == (2, "")
    assert result.err.startswith(f"skipnets: --out={photos}: holds other files than these shards (")
