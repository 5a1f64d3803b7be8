from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from skipnets.errors import UserError
from skipnets.training import Run, TrainConfig, TrainingInterrupted, outcome, resume, train
from skipnets.training.config import config_to_yaml
from skipnets.training.interruption import announced, how_to_resume, prompt_end, resumable

MakeConfig = Callable[..., TrainConfig]

# A second is promised; a test machine may be busy with other things.
PATIENCE = 6.0

COMMAND = """
import sys, time
import torch
from skipnets import cli
from skipnets.training.task import ClassificationTask
original = ClassificationTask.training_step
class Slow(torch.autograd.Function):
    '''Its backward pass takes long, in one call into PyTorch.'''
    forward = staticmethod(lambda context, x: x)
    @staticmethod
    def backward(context, gradient):
        return SLOW(gradient)
steps = 0
def training_step(self, batch, batch_idx):
    global steps
    steps += 1
    if steps == 8:
        (FLAG).touch()
    loss = original(self, batch, batch_idx)
    return Slow.apply(loss) if steps == 8 else loss
def SLOW(gradient):
    KIND
    return gradient
ClassificationTask.training_step = training_step
sys.exit(cli.main())
"""
IN_PYTHON = "time.sleep(60)"
# Like a long step: the signal does not come to the thread that computes, and Python runs no handler there.
IN_ONE_CALL = (
    "import ctypes, signal; signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM)); "
    "ctypes.CDLL(None).sleep(60)"
)


def run_until_interrupted(
    config: TrainConfig, folder: Path, number: signal.Signals, kind: str
) -> tuple[subprocess.CompletedProcess[str], float]:
    """Train in a process of its own, send it a signal in its eighth step, and wait for the end."""
    (folder / "config.yaml").write_text(config_to_yaml(config))
    flag = folder / "in-step-8"
    script = COMMAND.replace("(FLAG)", f"__import__('pathlib').Path({str(flag)!r})").replace("KIND", kind)
    command = [sys.executable, "-c", script, "train", "--config", str(folder / "config.yaml")]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    while not flag.exists():
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.02)
    time.sleep(0.3)
    started = time.perf_counter()
    # A terminal sends Ctrl-C to all processes of the command, a service manager SIGTERM to its first.
    os.killpg(process.pid, number) if number == signal.SIGINT else process.send_signal(number)
    output, errors = process.communicate(timeout=60)
    took = time.perf_counter() - started
    return subprocess.CompletedProcess(command, process.returncode, output, errors), took


@pytest.mark.parametrize(
    ("number", "kind", "workers"),
    [
        (signal.SIGTERM, IN_ONE_CALL, 0),
        pytest.param(signal.SIGINT, IN_ONE_CALL, 2, marks=pytest.mark.slow),
        pytest.param(signal.SIGINT, IN_PYTHON, 0, marks=pytest.mark.slow),
        pytest.param(signal.SIGTERM, IN_PYTHON, 2, marks=pytest.mark.slow),
    ],
)
def test_a_command_ends_at_once_and_says_how_to_resume(
    tiny: MakeConfig, tmp_path: Path, number: signal.Signals, kind: str, workers: int
) -> None:
    config = tiny(epochs=2, workers=workers, augmentation="trivial" if workers else "none")
    ended, took = run_until_interrupted(config, tmp_path, number, kind)
    assert took < PATIENCE
    assert ended.returncode == 128 + number
    run = Run(config.out)
    lines = ended.stderr.splitlines()
    assert lines[-1] == (
        f"skipnets: interrupted in epoch 2; the best model so far (epoch 1) is {run.model}; "
        f"go on with: skipnets train --resume {run.folder}"
    )
    assert "Traceback" not in ended.stderr
    assert [row.epoch for row in resume(run.folder).rows] == [1, 2]


def interrupt_as_lightning_does() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    raise KeyboardInterrupt


def test_only_an_interruption_is_turned_into_one_that_can_be_resumed(tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with (
        pytest.raises(TrainingInterrupted, match=r"^interrupted before .*; nothing was written$"),
        resumable(run),
    ):
        interrupt_as_lightning_does()
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == handlers
    with pytest.raises(UserError, match="another"), resumable(run):
        raise UserError("another")
    with pytest.raises(SystemExit), resumable(run):
        raise SystemExit(3)


def test_a_fold_is_resumed_with_the_whole_run(tmp_path: Path) -> None:
    for folder in (tmp_path / "run", tmp_path / "run" / "fold-1"):
        folder.mkdir()
        (folder / "run.yaml").write_text(f"data: digits\nout: {folder}\nepochs: 3\n")
    assert how_to_resume(Run(tmp_path / "run" / "fold-1"), evaluating=False) == (
        f"interrupted in epoch 1; start it again with: skipnets train --resume {tmp_path / 'run'}"
    )


def test_an_interrupted_evaluation_is_made_up_for(tiny: MakeConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    config = tiny(epochs=1)
    with monkeypatch.context() as patch:
        patch.setattr(outcome, "evaluate", interrupted)
        with pytest.raises(
            TrainingInterrupted, match=r"^interrupted in the evaluation .* go on with: skipnets"
        ):
            train(config)
    run = resume(config.out)
    assert len(run.rows) == 1
    assert run.evaluation.exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_raise_in_the_block_and_are_as_before_after_it(number: signal.Signals) -> None:
    before, threads = signal.getsignal(number), threading.active_count()
    with pytest.raises(KeyboardInterrupt) as interrupted, prompt_end():
        signal.raise_signal(number)
    assert interrupted.value.exit_status == 128 + number  # type: ignore[attr-defined]
    assert signal.getsignal(number) is before
    assert signal.set_wakeup_fd(-1) == -1
    assert threading.active_count() == threads


def test_a_worker_that_ends_first_and_a_second_signal_are_the_same_interruption() -> None:
    with pytest.raises(TrainingInterrupted, match=r"^go on$") as ended, announced(lambda: "go on"):
        raise RuntimeError("DataLoader worker (pid 7) is killed by signal: Terminated. ")
    assert ended.value.exit_status == 128 + signal.SIGTERM
    with pytest.raises(RuntimeError, match="Killed"), announced(lambda: "go on"):
        raise RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. ")
    with prompt_end():
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)
