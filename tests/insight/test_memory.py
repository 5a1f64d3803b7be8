"""Memory of training: the accounting against processes that train."""

from __future__ import annotations

import subprocess
import sys

import pytest
from tests.helpers.own_networks import TinyNet

from skipnets.errors import UserError
from skipnets.insight import largest_batch, training_memory
from skipnets.insight.memory import parse_bytes
from skipnets.models.graph import BlockExecution

# Prints the bytes of the process before there is a model, the batch, and the bytes at the peak. The batch is
# the largest for so many bytes beside the program, unless it is given.
TRAIN = """
import re, sys, torch, torch.nn.functional as F
import skipnets.models.densenet, skipnets.models.resnet  # The libraries belong to the program.
from skipnets import create_model
from skipnets.insight import largest_batch
name, size, execution, batch, room = sys.argv[1], int(sys.argv[2]), sys.argv[3], *map(int, sys.argv[4:])
def memory(kind):
    return int(re.search(kind + r":\\s+(\\d+)", open("/proc/self/status").read())[1]) << 10
torch.set_num_threads(1)
program = memory("VmRSS")
batch = batch or largest_batch(name, program + room, input_size=size, execution=execution, program=program)
model = create_model(name).to(memory_format=torch.channels_last)
if execution != "plain":
    model.set_block_execution(execution)
optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
x = torch.randn(batch, 3, size, size).contiguous(memory_format=torch.channels_last)
for _ in range(3):
    F.cross_entropy(model(x), torch.zeros(batch, dtype=torch.int64)).backward()
    optimizer.step()
    optimizer.zero_grad()
print(program, batch, memory("VmHWM"))
"""
ON_LINUX = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


def _trained(name: str, size: int, execution: str, *, batch: int = 0, room: int = 0) -> tuple[int, int, int]:
    """The program's bytes, the batch, the peak's bytes."""
    words = [name, str(size), execution, str(batch), str(room)]
    done = subprocess.run(
        [sys.executable, "-c", TRAIN, *words], capture_output=True, text=True, check=True
    )  # fmt: skip
    program, batch, peak = map(int, done.stdout.split())
    return program, batch, peak


@ON_LINUX
@pytest.mark.parametrize(
    ("name", "size", "execution"),
    [
        pytest.param("densenet_bc40_k12", 32, "plain", marks=pytest.mark.slow),
        pytest.param("densenet_bc40_k12", 32, "linear", marks=pytest.mark.slow),
        pytest.param("densenet_bc40_k12", 32, "linear-recompute", marks=pytest.mark.slow),
        ("resnet20", 32, "plain"),
        pytest.param("resnet18", 64, "plain", marks=pytest.mark.slow),
        pytest.param("densenet121", 64, "plain", marks=pytest.mark.slow),
    ],
)
def test_the_batch_that_fits_takes_the_memory_that_was_given(name: str, size: int, execution: str) -> None:
    room = 512 << 20
    program, batch, peak = _trained(name, size, execution, room=room)
    assert batch > 20
    assert peak == pytest.approx(program + room, rel=0.15)


@pytest.mark.slow
@ON_LINUX
@pytest.mark.parametrize(
    ("name", "size", "batch", "execution"),
    [
        ("densenet121", 224, 8, "plain"),
        ("densenet121", 224, 16, "linear"),
        ("densenet121", 224, 16, "linear-recompute"),
        ("densenet_bc100_k12", 32, 32, "plain"),
        ("densenet_bc100_k12", 32, 64, "linear"),
        ("resnet18", 224, 24, "plain"),
        ("resnet50", 224, 8, "plain"),
        ("resnet110", 32, 64, "plain"),
        ("rdnet_tiny", 160, 8, "plain"),
        ("rdnet_tiny", 160, 12, "linear"),
        ("rdnet_tiny", 160, 12, "linear-recompute"),
    ],
)
def test_peak_is_within_15_percent_of_a_process(name: str, size: int, batch: int, execution: str) -> None:
    program, _, peak = _trained(name, size, execution, batch=batch)
    expected = training_memory(name, batch_size=batch, input_size=size, execution=execution, program=program)
    assert expected.peak == pytest.approx(peak, rel=0.15)


def test_the_largest_batch_fits_and_one_more_does_not() -> None:
    options = {"input_size": 64, "program": 500 << 20}
    batch = largest_batch("resnet18", "2GiB", **options)
    assert training_memory("resnet18", batch_size=batch, **options).peak <= 2 << 30
    assert training_memory("resnet18", batch_size=batch + 1, **options).peak > 2 << 30
    batches = [
        largest_batch("densenet121", "8GiB", execution=execution)
        for execution in ("plain", "linear", "linear-recompute")
    ]
    assert batches[0] * 3 < batches[1] < batches[2]


def test_optimizers_and_averages_count() -> None:
    plain = training_memory("resnet18", batch_size=1, remembered=0)
    adam = training_memory("resnet18", batch_size=1, remembered=2, program=plain.program)
    assert adam.peak - plain.peak == 2 * 4 * 11_689_512


@pytest.mark.parametrize(
    ("text", "number"),
    [("16GiB", 16 << 30), ("800MB", 800_000_000), ("1.5 gib", 3 << 29), ("1000", 1000), ("2k", 2000)],
)
def test_amounts(text: str, number: int) -> None:
    assert parse_bytes(text) == number


@pytest.mark.parametrize("text", ["", "GiB", "16 apples", "0MB", "-3GB"])
def test_what_is_no_amount(text: str) -> None:
    with pytest.raises(UserError, match="such as 16GiB"):
        parse_bytes(text)


@pytest.mark.parametrize(
    ("name", "execution", "message"),
    [
        ("resnet18", "linear-recompute", "execution=linear-recompute: must be plain or linear for resnet18"),
        ("regnetx_002", "linear", "execution=linear: must be plain for regnetx_002"),
    ],
)
def test_an_execution_that_training_refuses(name: str, execution: BlockExecution, message: str) -> None:
    with pytest.raises(UserError, match=f"^{message}$"):
        training_memory(name, batch_size=1, execution=execution)


def test_too_little_memory() -> None:
    with pytest.raises(UserError, match=r"memory=100MB: training needs .* GiB for a single image"):
        largest_batch("densenet121", "100MB")


def test_a_network_without_a_graph_is_measured_instead() -> None:
    with pytest.raises(
        UserError, match=r"^memory: .* TinyNet, which has no graph; skipnets benchmark .*--train"
    ):
        training_memory(TinyNet(3), batch_size=2, input_size=8)
