"""What a run records of its execution, and that it is repeated."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.training.test_prepare import images_in_memory

from skipnets.models import execution_choice
from skipnets.models.execution_choice import Execution
from skipnets.ops import dense_block
from skipnets.ops.choices import CHOICES
from skipnets.training import execution
from skipnets.training.prepare import prepare


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What was asked to be chosen; linear execution wins."""
    questions: list[dict[str, Any]] = []

    def fastest(model, shape, **given):
        questions.append({"shape": shape, **given})
        return Execution(given["policy"] or "linear", given["channels_last"] in (None, True))

    monkeypatch.setattr(execution, "fastest_execution", fastest)
    monkeypatch.setattr(
        dense_block, "unsupported_natively", lambda *given, **options: "PyTorch's operators are tested here"
    )
    return questions


def test_what_is_measured_is_recorded(tiny, asked) -> None:
    images = images_in_memory(10, (8, 8))
    config = prepare(tiny(), images).config
    assert asked == [{"shape": (16, 1, 8, 8), "policy": None, "channels_last": None}]
    assert (config.block_execution, config.channels_last) == ("linear", True)
    assert config.operators
    assert all(name.startswith(("1x1 convolution", "transition")) for name in config.operators)


def test_a_recorded_run_asks_for_nothing(tiny, asked, monkeypatch) -> None:
    images = images_in_memory(10, (8, 8))
    config = prepare(tiny(), images).config
    monkeypatch.setattr(execution_choice.CHOICES, "_measure", None)  # The clock is not to be asked.
    recorded = {name: "product" if name.startswith("1x1") else way for name, way in config.operators.items()}
    again = prepare(
        tiny(block_execution=config.block_execution, channels_last=config.channels_last, operators=recorded),
        images,
    )
    assert again.config.operators == recorded
    assert asked[-1] == {"shape": (16, 1, 8, 8), "policy": "linear", "channels_last": True}
    problem = next(iter(recorded))
    assert CHOICES.choose(problem, {"maps": int, "product": int}) == "product"


def test_what_was_recorded_for_other_shapes_is_not_recorded_again(tiny, asked) -> None:
    images = images_in_memory(10, (8, 8))
    config = prepare(tiny(operators={"1x1 convolution of another network": "product"}), images).config
    assert config.operators == prepare(tiny(), images).config.operators
    assert prepare(tiny(block_execution="plain", operators=config.operators), images).config.operators == {}


def test_the_next_run_repeats_nothing(tiny, asked) -> None:
    images = images_in_memory(10, (8, 8))
    prepare(tiny(operators={"problem": "odd"}), images)
    prepare(tiny(), images)
    assert CHOICES.choose("problem", {"even": int}) == "even"


def test_what_the_user_gives_holds(tiny, asked) -> None:
    images = images_in_memory(10, (8, 8))
    config = prepare(tiny(block_execution="plain", channels_last=False), images).config
    assert (config.block_execution, config.channels_last) == ("plain", False)
    assert config.operators == {}


def test_processes_that_train_together_have_one_memory_format(tiny, asked, monkeypatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    prepare(tiny(), images_in_memory(10, (8, 8)))
    assert asked == [{"shape": (16, 1, 8, 8), "policy": None, "channels_last": True}]


def test_nothing_is_measured_for_a_gpu(tiny, asked, monkeypatch) -> None:
    images = images_in_memory(10, (8, 8))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    config = prepare(tiny(accelerator="auto", recipe="scratch"), images).config
    assert (config.block_execution, config.channels_last, config.operators) == ("auto", True, {})
    assert asked == []


def test_residual_networks_are_measured_too(tiny, asked) -> None:
    images = images_in_memory(10, (8, 8))
    prepare(tiny(model="resnet20", model_options={}), images)
    assert asked == [{"shape": (16, 1, 8, 8), "policy": None, "channels_last": None}]


def test_a_policy_that_norms_rule_out_is_a_warning(tiny, asked, caplog) -> None:
    options = {**tiny().model_options, "norm": "evonorm-s0"}
    with caplog.at_level("WARNING", "skipnets"):
        prepare(
            tiny(block_execution="linear", model_options=options, operators={}), images_in_memory(10, (8, 8))
        )
    assert "block_execution=linear: not applied to features.denseblock1" in caplog.text
    assert "its norm is an EvoNormS0, not a BatchNorm2d" in caplog.text
