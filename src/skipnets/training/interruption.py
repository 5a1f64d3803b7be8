"""End a training on Ctrl-C or SIGTERM within a second, and say how to resume it."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import TextIO

import psutil

from skipnets.training.run import Run

# How long a step in progress may take to end by itself. Python runs no signal handler during a call into
# PyTorch, which the whole backward pass is.
GRACE = 0.6

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
# What to say of the work in progress, the outermost first.
_running: list[Callable[[], str]] = []


class TrainingInterrupted(KeyboardInterrupt):
    """Ctrl-C or SIGTERM during training; the message says where the best model is and how to resume.

    Attributes:
        exit_status: Of the command, as a shell would give it: 128 and the signal's number.
    """

    def __init__(self, message: str = "", exit_status: int = 128 + signal.SIGINT) -> None:
        super().__init__(message)
        self.exit_status = exit_status


@contextlib.contextmanager
def resumable(run: Run, *, evaluating: bool = False) -> Iterator[None]:
    """Turn an interruption in the block into TrainingInterrupted; signals are then handled as before.

    Args:
        run: What the block trains or evaluates.
        evaluating: Whether all epochs are done.
    """
    with announced(lambda: how_to_resume(run, evaluating=evaluating)):
        yield


@contextlib.contextmanager
def announced(message: Callable[[], str]) -> Iterator[None]:
    """Turn an interruption in the block into TrainingInterrupted; signals are then handled as before.

    Args:
        message: What the block has come to, and the command that goes on with it.
    """
    in_main_thread = threading.current_thread() is threading.main_thread()
    before = {number: signal.getsignal(number) for number in _SIGNALS} if in_main_thread else {}
    _running.append(message)
    try:
        yield
    except KeyboardInterrupt as interruption:
        raise _interrupted(message, interruption) from None
    except SystemExit as end:  # Lightning's way to end after a KeyboardInterrupt
        if not isinstance(end.__context__, KeyboardInterrupt):
            raise
        raise _interrupted(message, end.__context__) from None
    except RuntimeError as error:  # a worker that loads images got the signal, and ended first
        killed = re.search(r"DataLoader worker .* killed by signal: (Interrupt|Terminated)", str(error))
        if killed is None:
            raise
        number = signal.SIGINT if killed[1] == "Interrupt" else signal.SIGTERM
        raise TrainingInterrupted(message(), 128 + number) from None
    finally:
        _running.pop()
        for number, handler in before.items():
            signal.signal(number, handler)  # Lightning ignores SIGINT after the first


def _interrupted(message: Callable[[], str], interruption: KeyboardInterrupt) -> TrainingInterrupted:
    return TrainingInterrupted(message(), getattr(interruption, "exit_status", 128 + signal.SIGINT))


def how_to_resume(run: Run, *, evaluating: bool) -> str:
    """What an interrupted run has come to, and the command that goes on with it."""
    # A fold goes on with the whole run.
    whole = run.folder.parent if Run(run.folder.parent).config_file.exists() else run.folder
    command = f"skipnets train --resume {whole}"
    if not run.config_file.exists():
        return "interrupted before the first epoch; nothing was written"
    if run.config.folds is not None:
        return f"interrupted after the last fold; go on with: {command}"
    if evaluating:
        return f"interrupted in the evaluation of the test images; go on with: {command}"
    rows = run.rows
    if not rows or not run.model.exists():
        return f"interrupted in epoch 1; start it again with: {command}"
    return (
        f"interrupted in epoch {rows[-1].epoch + 1}; the best model so far (epoch {run.best_epoch}) is "
        f"{run.model}; go on with: {command}"
    )


@contextlib.contextmanager
def prompt_end() -> Iterator[None]:
    """End the whole process within a second of Ctrl-C or SIGTERM; for commands, not for a notebook.

    Both raise KeyboardInterrupt. Where the block has not ended then after `GRACE` seconds, such as in a
    long step, a thread prints the message and ends the process and its workers. What a run has written is
    replaced atomically, so nothing is lost.
    """
    if threading.current_thread() is not threading.main_thread() or os.name == "nt":
        yield
        return
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    ended = threading.Event()
    watcher = threading.Thread(target=_watch, args=(reading, ended, sys.stderr), daemon=True)
    interrupted = threading.Event()

    def interrupt(number: int, frame: FrameType | None) -> None:  # noqa: ARG001
        if interrupted.is_set():  # `timeout` sends two; the second must not interrupt the end
            return
        interrupted.set()
        interruption = KeyboardInterrupt()
        interruption.exit_status = 128 + number  # type: ignore[attr-defined]
        raise interruption

    before = {number: signal.signal(number, interrupt) for number in _SIGNALS}
    fd_before = signal.set_wakeup_fd(writing)  # written to at once, whatever the main thread does
    watcher.start()
    try:
        yield
    finally:
        ended.set()
        signal.set_wakeup_fd(fd_before)
        for number, handler in before.items():
            signal.signal(number, handler)
        os.close(writing)  # ends the watcher
        watcher.join()
        os.close(reading)


def _watch(reading: int, ended: threading.Event, errors: TextIO) -> None:
    while number := os.read(reading, 1):
        if number[0] not in _SIGNALS:
            continue
        if ended.wait(GRACE):
            return
        text = _running[0]() if _running else "interrupted"
        with contextlib.suppress(OSError, ValueError):
            errors.write(f"\nskipnets: {text}\n")
            errors.flush()
        for child in psutil.Process().children(recursive=True):
            with contextlib.suppress(psutil.Error):
                child.kill()
        os._exit(128 + number[0])
