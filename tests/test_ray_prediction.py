"""Batch prediction on a Ray cluster; where Ray is: pip install "skipnets[ray]"."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pyarrow.parquet as pq
import pytest
from PIL import Image
from tests.helpers.serving import write_colors_onnx

from skipnets.errors import UserError
from skipnets.ray_prediction import _loaded, predict_with_ray

COUNT = 600

# Two nodes of one processor each; one of them is lost while it works.
CLUSTER = """
import os, sys, threading, time
from pathlib import Path
from types import SimpleNamespace
from ray.cluster_utils import Cluster
import ray
from skipnets.ray_prediction import predict_with_ray

model, images, output = sys.argv[1:]
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
nodes = [cluster.add_node(num_cpus=1) for _ in range(2)]
ray.init(address=cluster.address, log_to_driver=False)
cluster.wait_for_nodes()
lost = []

def lose():
    while len(list(Path(output).glob("part-*.parquet"))) < 2:
        time.sleep(0.05)
    cluster.remove_node(nodes[0], allow_graceful=False)
    lost.append(True)

thread = threading.Thread(target=lose)
thread.start()
result = predict_with_ray(model, [images], output, shards=12, batch_size=4)
thread.join()
print("lost" if lost else "kept", result.rows, result.failed, flush=True)
ray.shutdown()
cluster.shutdown()
os._exit(0)  # Ray itself exits with 1 after it has lost a node
"""


def test_paths_on_standard_input_are_refused(tmp_path: Path) -> None:
    pytest.importorskip("ray")
    with pytest.raises(UserError, match="cannot come from standard input with engine=ray"):
        predict_with_ray(tmp_path / "model.onnx", ["-"], tmp_path)


@pytest.mark.parametrize(
    ("device", "runtime", "in_cluster", "expected"),
    [
        ("auto", "auto", 2, 1),
        ("auto", "torch", 2, 1),
        ("auto", "auto", 0, None),
        ("auto", "native", 2, None),
        ("cpu", "auto", 2, None),
        ("cuda", "auto", 0, 1),  # of a node that is still to come
    ],
)
def test_a_task_asks_ray_for_the_gpu_that_it_takes(
    device: str,
    runtime: str,
    in_cluster: int,
    expected: int | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ray = pytest.importorskip("ray")
    pytest.importorskip("ray.data")
    asked: list[object] = []

    class Rows:
        def map(self, _: object, *, num_cpus: int, num_gpus: int | None) -> Rows:
            asked.append(num_gpus)
            return self

        def iter_rows(self) -> Iterator[dict[str, int]]:
            return iter([{"rows": 1}])

    monkeypatch.setattr(ray, "is_initialized", lambda: True)
    monkeypatch.setattr(ray.data.DataContext, "get_current", SimpleNamespace)
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 2.0, "GPU": float(in_cluster)})
    monkeypatch.setattr(ray.data, "range", lambda *_, **__: Rows())
    predict_with_ray(tmp_path / "model", [str(tmp_path)], tmp_path, device=device, runtime=runtime)
    assert asked == [expected]


def test_a_numbered_gpu_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("ray")
    with pytest.raises(UserError, match="device=cuda:1: must be cuda with engine=ray"):
        predict_with_ray(tmp_path / "model", [str(tmp_path)], tmp_path, device="cuda:1")


def test_a_model_that_was_replaced_is_loaded_again(tmp_path: Path) -> None:
    """Ray hands a process that has loaded a model to the next call."""
    path = write_colors_onnx(tmp_path / "model.onnx")
    before = _loaded(str(path), device="cpu")
    assert _loaded(str(path), device="cpu") is before
    write_colors_onnx(path)
    os.utime(path, (1, 1))
    after = _loaded(str(path), device="cpu")
    assert after is not before
    assert _loaded(str(path), device="cpu") is after
    assert _loaded(str(path), device="auto") is not after


@pytest.mark.slow
def test_a_lost_machine_loses_and_repeats_no_image(tmp_path: Path) -> None:
    pytest.importorskip("ray")
    images = tmp_path / "images"
    images.mkdir()
    for index in range(COUNT):
        Image.new("RGB", (512, 512), (index % 256, 200, 30)).save(images / f"{index:03}.jpg")
    (images / "broken.jpg").write_bytes(b"no image")
    model = write_colors_onnx(tmp_path / "model.onnx")
    root = Path(__file__).parents[1]
    found = [str(root / "src"), str(root), *filter(None, sys.path)]
    ran = subprocess.run(
        [sys.executable, "-c", CLUSTER, str(model), str(images), str(tmp_path / "out")],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(found), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert f"lost {COUNT + 1} 1" in ran.stdout.splitlines()
    paths = [
        path
        for part in (tmp_path / "out").glob("part-*.parquet")
        for path in pq.read_table(part)["path"].to_pylist()
    ]
    assert len(paths) == len(set(paths)) == COUNT + 1
