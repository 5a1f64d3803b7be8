"""The machine is described as the system describes it."""

from __future__ import annotations

import os
import platform
from importlib.metadata import version
from pathlib import Path

import pytest

from skipnets import machine
from skipnets.machine import available_memory, library_versions, processor, usable_cores


def test_versions_are_those_that_are_installed() -> None:
    assert library_versions(["numpy", "no-such-thing"]) == {
        "numpy": version("numpy"),
        "no-such-thing": "not installed",
    }


@pytest.mark.parametrize(
    ("cpuinfo", "expected"),
    [
        (
            "processor\t: 0\nmodel name\t: Fast CPU: 3 GHz\nprocessor\t: 1\nmodel name\t: other\n",
            "Fast CPU: 3 GHz",
        ),
        ("processor\t: 0\n", "fallback"),
        (None, "fallback"),
    ],
)
def test_the_processor_has_a_name_on_every_system(
    cpuinfo: str | None, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read(path: Path, encoding: str) -> str:
        assert (str(path), encoding) == ("/proc/cpuinfo", "utf-8")
        if cpuinfo is None:
            raise OSError
        return cpuinfo

    monkeypatch.setattr(Path, "read_text", read)
    monkeypatch.setattr(platform, "processor", lambda: "")
    monkeypatch.setattr(platform, "machine", lambda: "fallback")
    assert processor() == expected


@pytest.mark.parametrize(
    ("meminfo", "expected"),
    [("MemTotal:  9 kB\nMemAvailable:       7 kB\n", 7 * 1024), ("MemTotal:  9 kB\n", None), (None, None)],
)
def test_available_memory(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, meminfo: str | None, expected: int | None
) -> None:
    file = tmp_path / "meminfo"
    if meminfo is not None:
        file.write_text(meminfo)
    monkeypatch.setattr(machine, "Path", lambda name: file)
    assert available_memory() == expected


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, 8),
        ({"cpu.max": "max 100000\n"}, 8),
        ({"cpu.max": "150000 100000\n"}, 2),
        ({"cpu.max": "5000 100000\n"}, 1),
        ({"cpu.max": "6400000 100000\n"}, 8),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, 8),
        ({"cpu/cpu.cfs_quota_us": "300000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 3),
        ({"cpu/cpu.cfs_quota_us": "300000\n"}, 8),
        ({"cpu.max": "damaged"}, 8),
    ],
    ids=str,
)
def test_a_container_grants_so_many_cores(
    files: dict[str, str], expected: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content)
    monkeypatch.setattr(machine, "_CGROUP", tmp_path)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    assert usable_cores() == expected


def test_cores_that_this_process_may_not_use_do_not_count(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(machine, "_CGROUP", tmp_path)
    allowed = {0: {3, 5}}  # 0 is this process
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    monkeypatch.setattr(os, "sched_getaffinity", allowed.__getitem__, raising=False)
    assert usable_cores() == 2
    monkeypatch.delattr(os, "sched_getaffinity")
    assert usable_cores() == 64
