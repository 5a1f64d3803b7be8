"""What the guide says about the trained networks is what docs/data holds."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from skipnets.models import model_config
from skipnets.models.family import network_graph

DOCS = Path(__file__).resolve().parents[2] / "docs"
RUNS = json.loads((DOCS / "data" / "accuracy.json").read_text(encoding="utf-8"))["runs"]
ACCURACY = {(run["kind"], run["label"]): 100 * run["accuracy"] for run in RUNS}
PARAMETERS = {(run["kind"], run["label"]): run["parameters"] for run in RUNS}


def test_parameters_are_those_of_the_models() -> None:
    for run in RUNS:
        config = model_config(run["model"], **run["fields"], in_chans=1, num_classes=10)
        assert network_graph(config).parameter_count() == run["parameters"]


def test_a_larger_growth_rate_is_more_accurate() -> None:
    found = [ACCURACY["DenseNet-BC", f"k={rate}"] for rate in (4, 8, 12, 16)]
    assert found == pytest.approx([81.8, 83.4, 84.8, 85.0], abs=0.051)
    assert found == sorted(found)
    assert ACCURACY["DenseNet", "k=4"] < ACCURACY["DenseNet", "k=8"]


def test_bottleneck_and_compression_save_parameters_at_equal_accuracy() -> None:
    compact, plain = ("DenseNet-BC", "k=12"), ("DenseNet", "k=8")
    assert ACCURACY[compact] == pytest.approx(ACCURACY[plain], abs=0.1)
    assert (round(PARAMETERS[compact], -3), round(PARAMETERS[plain], -3)) == (71_000, 131_000)


def test_compression_alone() -> None:
    without, compressed = ("DenseNet-B", "k=8"), ("DenseNet-BC", "k=8")
    assert PARAMETERS[compressed] / PARAMETERS[without] == pytest.approx(0.75, abs=0.005)
    assert ACCURACY[without] - ACCURACY[compressed] == pytest.approx(1.4, abs=0.05)


@pytest.mark.parametrize(
    ("channels", "plain", "bottleneck"),
    [(64, 18_432, 45_056), (256, 73_728, 69_632), (1024, 294_912, 167_936)],
)
def test_the_bottleneck_pays_from_7_2_k_channels_on(channels: int, plain: int, bottleneck: int) -> None:
    k = 32
    assert 9 * channels * k == plain
    assert 4 * channels * k + 36 * k * k == bottleneck
    assert (plain > bottleneck) is (channels > 7.2 * k)
