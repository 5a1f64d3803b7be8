"""The choice among a kernel's configurations, and compiling them side by side; the GPU is pretended."""

from __future__ import annotations

import json
import logging
from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("triton")
from skipnets.ops.triton import launches, tuning
from skipnets.ops.triton.launches import Compiler, Launches
from skipnets.ops.triton.tuning import Tuner

CUDA = torch.device("cuda")
CANDIDATES = ({"BLOCK": 16}, {"BLOCK": 32}, {"BLOCK": 64})


@pytest.fixture(autouse=True)
def card(monkeypatch):
    """Milliseconds of a configuration, by its block."""
    milliseconds = {16: 3.0, 32: 1.0, 64: 2.0}

    def measure(run, config):
        run(config)
        return milliseconds[config["BLOCK"]]

    monkeypatch.setattr(tuning, "_platform", lambda device: ("card", "3"))
    monkeypatch.setattr(tuning, "_milliseconds", measure)
    return milliseconds


def test_the_fastest_is_chosen_once_and_kept(tmp_path):
    path = tmp_path / "folder" / "choices.json"
    runs = []
    for tuner in (Tuner(path), Tuner(path)):
        for _ in range(2):
            assert tuner.choose("kernel", (1, "a"), CANDIDATES, runs.append, CUDA) == {"BLOCK": 32}
    assert runs == list(CANDIDATES)
    assert json.loads(path.read_text()) == {"kernel 1 a card 3": {"BLOCK": 32}}


def test_other_problems_are_measured_anew(card):
    tuner = Tuner(None)
    assert tuner.choose("kernel", (1,), CANDIDATES, lambda _: None, CUDA) == {"BLOCK": 32}
    card[64] = 0.5
    assert tuner.choose("kernel", (2,), CANDIDATES, lambda _: None, CUDA) == {"BLOCK": 64}
    assert tuner.choose("kernel", (1,), CANDIDATES, lambda _: None, CUDA) == {"BLOCK": 32}


@pytest.mark.parametrize("text", ["{", "", json.dumps({"kernel 1 card 3": {"BLOCK": 128}})])
def test_a_file_that_is_damaged_or_of_another_version_is_measured_anew(tmp_path, text):
    path = tmp_path / "choices.json"
    path.write_text(text)
    assert Tuner(path).choose("kernel", (1,), CANDIDATES, lambda _: None, CUDA) == {"BLOCK": 32}
    assert json.loads(path.read_text()) == {"kernel 1 card 3": {"BLOCK": 32}}


def test_a_folder_that_cannot_be_written_costs_the_memory_alone(tmp_path):
    (tmp_path / "file").touch()
    tuner = Tuner(tmp_path / "file" / "choices.json")
    assert tuner.choose("kernel", (1,), CANDIDATES, lambda _: None, CUDA) == {"BLOCK": 32}


def test_what_does_not_run_is_not_chosen(card):
    card.update({16: float("inf"), 32: float("inf")})
    assert Tuner(None).choose("kernel", (1,), CANDIDATES, lambda _: None, CUDA) == {"BLOCK": 64}
    card[64] = float("inf")
    with pytest.raises(RuntimeError, match="none of the configurations of kernel runs on this card"):
        Tuner(None).choose("kernel", (1,), CANDIDATES, lambda _: None, CUDA)


def test_the_first_choice_is_announced_and_none_after_it(tmp_path, caplog):
    path = tmp_path / "choices.json"
    with caplog.at_level(logging.INFO, "skipnets"):
        tuner = Tuner(path)
        for problem in (1, 2):
            tuner.choose("kernel", (problem,), CANDIDATES, lambda _: None, CUDA)
    (message,) = caplog.messages
    assert message.startswith(
        "compiling and timing kernels for this GPU, once for each network and batch size"
    )
    assert str(path) in message
    caplog.clear()
    with caplog.at_level(logging.INFO, "skipnets"):
        Tuner(path).choose("kernel", (1,), CANDIDATES, lambda _: None, CUDA)
    assert not caplog.messages


def test_progress_is_said_now_and_then(monkeypatch, caplog):
    clock = iter([100.0, 103.0, 107.0, 108.0])
    monkeypatch.setattr(tuning, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    tuner = Tuner(None)
    with caplog.at_level(logging.INFO, "skipnets"):
        for problem in range(3):
            tuner.choose("kernel", (problem,), CANDIDATES, lambda _: None, CUDA)
    assert caplog.messages[1:] == ["2 kernels timed after 7 s"]


def test_compiling_takes_all_candidates_or_the_one_that_was_chosen(monkeypatch):
    tuner = Tuner(None)
    monkeypatch.setattr(launches, "TUNER", tuner)
    compiled = []
    kernel = SimpleNamespace(warmup=lambda *arguments, grid, **options: compiled.append((arguments, options)))

    def build(launch):
        def run(config):
            launch(kernel, (1,), 7, **config)

        run(launch.tune("kernel", (1,), CANDIDATES, run, CUDA))

    build(Compiler())
    assert sorted(options["BLOCK"] for _, options in compiled) == [16, 32, 64]
    compiled.clear()
    tuner.choose("kernel", (1,), CANDIDATES, lambda _: None, CUDA)
    build(Compiler())
    assert compiled == [((7,), {"BLOCK": 32})]


def test_a_pass_is_compiled_once_before_it_is_launched_on_a_gpu(monkeypatch):
    class OnGPU(torch.Tensor):
        is_cuda = True

    calls = []
    monkeypatch.setattr(launches, "compile_kernels", lambda build: build("compiler"))
    monkeypatch.setattr(launches, "_stream", lambda device: 0)
    passes = Launches()
    for key in (1, 1, 2):
        tensor = torch.zeros(16).as_subclass(OnGPU)
        passes.run(key, [tensor], lambda launch: calls.append(launch if launch == "compiler" else "launched"))
    assert calls == ["compiler", "launched", "compiler", "launched"]
