from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch
from torch import nn

from skipnets.errors import UserError
from skipnets.models import config_to_dict, create_model, model_config
from skipnets.models.custom import CustomConfig
from skipnets.training import benchmark
from skipnets.training.benchmark import StepCost, saved_bytes, training_costs

MEBIBYTE = 2**20


def test_saved_bytes_counts_what_autograd_keeps_once():
    class Squares(nn.Module):
        def forward(self, x):
            doubled = x * 2  # keeps nothing but the input, which does not count
            return (doubled.square() + doubled.exp()).sum()  # square keeps its input, exp its result

    x = torch.ones(1000, requires_grad=True)
    assert saved_bytes(Squares(), x) == 2 * 1000 * 4


def test_peak_memory_sees_what_is_gone_again():
    # In a process of its own, as the benchmark does: elsewhere what others give back blurs the figure.
    measure = """
import torch
from skipnets.training.benchmark import peak_memory
with peak_memory(torch.device("cpu")) as peak:
    torch.ones(50 * 2**20 // 4)
print(peak[0])
"""
    done = subprocess.run([sys.executable, "-c", measure], capture_output=True, text=True, check=True)
    assert 45 * MEBIBYTE < int(done.stdout) < 80 * MEBIBYTE


def test_the_largest_batch_lies_on_the_line_through_two_peaks(monkeypatch):
    monkeypatch.setattr(benchmark, "free_memory", lambda device: 1000)

    def cost(batch_size, peak_bytes):
        return StepCost(
            execution="plain",
            batch_size=batch_size,
            seconds=1,
            slowest=1,
            saved_bytes=0,
            peak_bytes=peak_bytes,
        )

    assert benchmark._largest_batch(cost(4, 140), cost(8, 180), "cpu") == 90
    assert benchmark._largest_batch(cost(4, 140), cost(8, 140), "cpu") is None


def test_a_request_is_answered_in_json(capsys):
    config = model_config("densenet_bc40_k12", block_config=(2, 2, 2))
    request = {
        "model": config_to_dict(config),
        "execution": "linear",
        "batch_size": 4,
        "size": 16,
        "steps": 1,
        "device": "cpu",
        "threads": None,
    }
    benchmark.main([json.dumps(request)])
    cost = StepCost(**json.loads(capsys.readouterr().out))
    assert (cost.execution, cost.batch_size) == ("linear", 4)
    assert cost.seconds > 0
    assert cost.saved_bytes > 0


def test_an_own_network_is_imported_where_it_is_trusted(capsys):
    own = "tests.helpers.own_networks:TinyNet"
    config = CustomConfig(
        name="TinyNet", import_path=own, arguments={"num_classes": 3}, num_classes=3, in_chans=1
    )
    request = {
        "model": config_to_dict(config),
        "execution": "plain",
        "batch_size": 4,
        "size": [8, 12],
        "steps": 0,
        "device": "cpu",
        "threads": None,
        "trust": [own],
    }
    benchmark.main([json.dumps(request)])
    cost = StepCost(**json.loads(capsys.readouterr().out))
    # The maps of four images that the convolutions and the last ReLU read, and what the norm keeps.
    assert cost.saved_bytes > 4 * (2 * 4 * 8 * 12 + 8 * 4 * 6) * 4
    with pytest.raises(UserError, match=f"its network is {own}"):
        benchmark.main([json.dumps({**request, "trust": []})])


@pytest.mark.slow
def test_costs_of_every_execution():
    config = model_config("densenet_bc40_k12", block_config=(6, 6, 6))
    costs = training_costs(config, batch_size=8, size=32, steps=1, threads=1)
    assert [cost.execution for cost in costs] == ["plain", "linear", "linear-recompute"]
    plain, linear, recompute = costs
    assert plain.saved_bytes > 2 * linear.saved_bytes > 4 * recompute.saved_bytes
    assert plain.peak_bytes > linear.peak_bytes > recompute.peak_bytes
    assert plain.largest_batch < linear.largest_batch
    assert all(cost.seconds > 0 and cost.batch_size == 8 for cost in costs)


def test_a_batch_of_one_cannot_train():
    with pytest.raises(UserError, match="batch_size=1: must be at least 2"):
        training_costs(create_model("densenet_bc40_k12").config, batch_size=1, size=32)
