"""What fuzzing starts from is read, and what it found stays found; a short run without its library."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from tests.fuzz.readers import READERS, read

SEEDS = Path(__file__).with_name("seeds")
FINDINGS: dict[str, list[bytes]] = {
    "environment_json": [
        b'{"files": {"splits.csv": {"linli": 1, "blake2b": "00"}}}',
        b'{"files": [1]}',
        b"[1]",
    ],
}


def seeds(name: str) -> list[bytes]:
    return [path.read_bytes() for path in sorted((SEEDS / name).iterdir())]


def test_there_are_seeds_for_every_reader() -> None:
    assert sorted(path.name for path in SEEDS.iterdir()) == sorted(READERS)
    assert sum(path.stat().st_size for path in SEEDS.rglob("*")) < 200_000


@pytest.mark.parametrize("name", READERS)
def test_seeds_and_findings_are_read_or_refused(name: str) -> None:
    for data in [*seeds(name), *FINDINGS.get(name, []), b"", b"\0"]:
        read(name, data)


def mutated(data: bytes, generator: random.Random) -> bytes:
    """A file with a byte changed, a part cut out, or a part doubled."""
    start, end = sorted(generator.choices(range(len(data) + 1), k=2))
    how = generator.randrange(3)
    if how == 0:
        return data[:start] + bytes([generator.randrange(256)]) + data[start + 1 :]
    return data[:start] + data[end:] if how == 1 else data[:end] + data[start:]


@pytest.mark.parametrize("name", READERS)
def test_files_that_are_a_little_damaged(name: str) -> None:
    generator = random.Random(0)
    for data in seeds(name):
        for _ in range(3 if name == "pt2" else 20):
            read(name, mutated(data, generator))
