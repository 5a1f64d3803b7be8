"""Batch prediction from folders, tar files and Parquet files, in one process and in two, and its memory.

    python benchmarks/batch_prediction.py
    python benchmarks/batch_prediction.py --images 100000 --model runs/cats/model.onnx

Writes copies of generated JPEGs, predicts them by `skipnets predict --output FOLDER/`, and checks that every
image has exactly one row. `--shard 1/2` and `2/2` then run side by side. Reported are images per second, the
start included, and the peak of resident memory, for a quarter of the images and for all: it should not depend
on how many there are.

Without --model, it is resnet20 with random weights, exported to ONNX. Each process computes with one thread.
"""

from __future__ import annotations

import argparse
import os
import platform
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path

import pyarrow
import pyarrow.parquet

from serving import write_photographs
from soak import export_resnet

FILES_IN_A_FOLDER = 1000
# The command, and the peak of its resident memory in KiB (that of `wait4` would count the parent's as well).
PREDICT = """
import sys
from skipnets.cli import main
status = main(sys.argv[1:])
print(open("/proc/self/status").read().split("VmHWM:")[1].split()[0])
sys.exit(status)
"""


def write_folder(root: Path, contents: list[bytes], count: int) -> None:
    for index in range(count):
        folder = root / f"{index // FILES_IN_A_FOLDER:04}"
        if index % FILES_IN_A_FOLDER == 0:
            folder.mkdir(parents=True)
        (folder / f"{index:07}.jpg").write_bytes(contents[index % len(contents)])


def write_tars(root: Path, files: Path) -> None:
    root.mkdir()
    for folder in sorted(files.iterdir()):
        with tarfile.open(root / f"{folder.name}.tar", "w") as tar:
            for path in sorted(folder.iterdir()):
                tar.add(path, path.name)


def write_parquet(root: Path, files: Path) -> None:
    root.mkdir()
    for folder in sorted(files.iterdir()):
        images = [path.read_bytes() for path in sorted(folder.iterdir())]
        table = pyarrow.table({"image": images})
        pyarrow.parquet.write_table(table, root / f"{folder.name}.parquet", row_group_size=1000)


def predict(model: Path, source: Path, output: Path, shards: int) -> tuple[float, float]:
    """Seconds, and the largest peak of a process in MiB."""
    start = time.perf_counter()
    running = []
    for number in range(1, shards + 1):
        words = ["predict", str(model), str(source), "--output", str(output), "--threads", "1"]
        words += ["--shard", f"{number}/{shards}"]
        command = [sys.executable, "-c", PREDICT, *words]
        running.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
    peaks = []
    for process in running:
        printed, _ = process.communicate()
        assert process.returncode == 0
        peaks.append(int(printed.split()[-1]) / 1024)
    return time.perf_counter() - start, max(peaks)


def check(output: Path, count: int) -> None:
    """That every image has one row, and a good one."""
    tables = [pyarrow.parquet.read_table(path, columns=["path", "error"]) for path in output.glob("part-*")]
    paths = [path for table in tables for path in table["path"].to_pylist()]
    assert len(paths) == len(set(paths)) == count
    assert all(table["error"].null_count == table.num_rows for table in tables)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=4000)
    parser.add_argument("--model", type=Path, default=None, help="what `skipnets predict` takes")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        model = options.model or export_resnet(root)
        (root / "originals").mkdir()
        contents = [path.read_bytes() for path in write_photographs(root / "originals", 32)]
        print(
            f"{platform.machine()}, {os.cpu_count()} processors, Python {platform.python_version()}; "
            f"{options.images:,} JPEGs of {sum(map(len, contents)) / len(contents) / 1024:.0f} KiB"
        )
        write_folder(root / "quarter", contents, options.images // 4)
        write_folder(root / "folder", contents, options.images)
        write_tars(root / "tar", root / "folder")
        write_parquet(root / "parquet", root / "folder")
        for source, shards in (
            ("quarter", 1),
            ("folder", 1),
            ("tar", 1),
            ("parquet", 1),
            ("folder", 2),
            ("tar", 2),
        ):
            output = root / f"{source}-{shards}"
            seconds, peak = predict(model, root / source, output, shards)
            count = options.images // (4 if source == "quarter" else 1)
            check(output, count)
            print(
                f"{source:8} {shards} process{'es' if shards > 1 else ''}: {count / seconds:6.0f} images/s, "
                f"peak {peak:.0f} MiB"
            )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
