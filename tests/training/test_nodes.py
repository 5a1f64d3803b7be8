"""Training on several machines: torchrun starts a process on each, and one of them is lost."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from tests.helpers.commands import write_image

ROOT = Path(__file__).parents[2]


def start_nodes(folder: Path, *words: str) -> list[subprocess.Popen[bytes]]:
    """Two agents of torchrun, as on two machines, each with a process."""
    with socket.create_server(("127.0.0.1", 0)) as found:
        port = found.getsockname()[1]
    path = os.pathsep.join([str(ROOT / "src"), str(ROOT)])
    nodes = []
    for rank in range(2):
        command = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "1"]
        command += ["--node-rank", str(rank), "--master-addr", "127.0.0.1", "--master-port", str(port)]
        command += ["-m", "skipnets", "train", *words]
        with (folder / f"node{rank}.log").open("ab") as log:
            environment = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
            nodes.append(
                subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=subprocess.STDOUT)
            )
    return nodes


def wait_for(folder: Path, text: str, seconds: float = 120) -> None:
    until = time.monotonic() + seconds
    while text not in (folder / "node0.log").read_text():
        assert time.monotonic() < until, (folder / "node0.log").read_text()
        time.sleep(0.2)


def kill_all(nodes: list[subprocess.Popen[bytes]]) -> None:
    for node in nodes:
        if node.poll() is None:
            for child in psutil.Process(node.pid).children(recursive=True):
                child.kill()
            node.kill()
        node.wait()


@pytest.mark.slow
def test_a_lost_machine_ends_the_others_with_a_line_and_the_run_goes_on(tmp_path: Path) -> None:
    for index in range(48):
        write_image(
            tmp_path / "data" / ("dark", "bright")[index % 2] / f"{index:02}.png", index % 2 * 180, index
        )
    words = ["data", "--model", "resnet20", "--model-options.block-config", "[1,1]", "--epochs", "1000"]
    words += ["--model-options.width", "4", "--batch-size", "8", "--ema", "0", "--workers", "0"]
    words += ["--augmentation", "flip", "--accelerator", "cpu", "--block-execution", "plain", "--out", "run"]
    nodes = start_nodes(tmp_path, *words)
    try:
        wait_for(tmp_path, "epoch    3/1000")
        [lost] = psutil.Process(nodes[1].pid).children()
        lost.send_signal(signal.SIGKILL)
        started = time.monotonic()
        assert nodes[0].wait(60) != 0
        assert time.monotonic() - started < 60
    finally:
        kill_all(nodes)
    log = (tmp_path / "node0.log").read_text()
    assert "skipnets: another process of this training was lost; go on with all of them: " in log
    assert "[rank0]" not in log  # a traceback of the training itself
    assert not (tmp_path / "run" / "evaluation.json").exists()

    (tmp_path / "node0.log").unlink()
    nodes = start_nodes(tmp_path, "--resume", "run")
    try:
        wait_for(tmp_path, "epoch ")
    finally:
        kill_all(nodes)
    first = (tmp_path / "node0.log").read_text().partition("epoch ")[2]
    assert int(first.partition("/")[0]) > 1

    # Until there are two machines again, one goes on alone.
    (tmp_path / "node0.log").unlink()
    with (tmp_path / "node0.log").open("ab") as log:
        command = [sys.executable, "-m", "skipnets", "train", "--resume", "run"]
        environment = os.environ | {"PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
        alone = subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=log, stderr=subprocess.STDOUT)
    try:
        wait_for(tmp_path, "epoch ")
    finally:
        kill_all([alone])
    log_alone = (tmp_path / "node0.log").read_text()
    assert "the run was started with 2 processes: each of 1 takes the batches of 2" in log_alone
    assert int(log_alone.partition("\nepoch ")[2].partition("/")[0]) > 1
