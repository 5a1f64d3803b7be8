"""Hardware and software of this machine, to record with measurements and runs."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from collections.abc import Iterable
from pathlib import Path

__all__ = ["available_memory", "library_versions", "processor", "usable_cores"]

_CGROUP = Path("/sys/fs/cgroup")


def processor() -> str:
    """Name of the processor or, if the system does not report it, its architecture."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def usable_cores() -> int:
    """Processor cores that this process may use, which may be fewer than the machine has.

    A container's limit of processor time (`docker run --cpus`) counts as so many cores, rounded up.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores, _granted_cores() or cores)


def _granted_cores() -> int | None:
    """Cores that the time granted to this container keeps busy, rounded up; None without a limit."""
    # Of control groups of version 2, then 1.
    for names in (("cpu.max",), ("cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us")):
        try:
            quota, period = " ".join((_CGROUP / name).read_text("ascii") for name in names).split()
            if int(quota) > 0:
                return -(-int(quota) // int(period))
        except (OSError, ValueError, ZeroDivisionError):  # no such file, "max"
            continue
    return None


def available_memory() -> int | None:
    """Bytes that programs could take without swapping; None where the system does not report it."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    sizes = [int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")]
    return sizes[0] * 1024 if sizes else None


def library_versions(names: Iterable[str]) -> dict[str, str]:
    """Versions of installed distributions by name, or "not installed"."""
    versions = {}
    for name in names:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = "not installed"
    return versions
