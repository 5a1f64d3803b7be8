"""Estimate the memory that training takes from a network's graph, without running it.

A training step is replayed: forward, every value lives until its last use or, if it is kept for the backward
pass, until that has used it; backward, gradients of values come and go. The highest level is the peak.
Gradients of weights are counted from the start: they appear while saved values are freed, but seldom fit into
the gaps that those leave.

Memory is in bytes unless a name says MiB; everything is float32.
"""

from __future__ import annotations

import re
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ByteSize, TypeAdapter, ValidationError

from skipnets.errors import UserError
from skipnets.insight.source import Source, architecture_of
from skipnets.insight.summary import weight_bytes
from skipnets.models.accounting import FLOAT_BYTES, Step, steps, value_bytes
from skipnets.models.family import family_of
from skipnets.models.graph import BlockExecution

# What PyTorch's CPU kernels allocate when they first run: threads, generated code, caches.
RUNTIME_BYTES = 96 << 20
# Gaps that the C library's allocator leaves between tensors: 0 to 25% were measured.
SLACK = 1.1


@dataclass(frozen=True, kw_only=True)
class TrainingMemory:
    """Peak memory of a training process, by component.

    Attributes:
        program: The interpreter with its libraries, before a model is built.
        weights: Parameters and running statistics.
        gradients: Gradients of the parameters.
        optimizer: The optimizer's state: one number for each parameter with SGD's momentum.
        step: Activations and their gradients at the peak of a training step.
    """

    program: int
    weights: int
    gradients: int
    optimizer: int
    step: int

    @property
    def peak(self) -> int:
        """Sum of all components."""
        return self.program + self.weights + self.gradients + self.optimizer + self.step


def training_memory(
    source: Source,
    *,
    batch_size: int,
    input_size: int | tuple[int, ...] | None = None,
    execution: BlockExecution = "plain",
    remembered: int = 1,
    program: int | None = None,
    **fields: Any,
) -> TrainingMemory:
    """Estimate how much memory training takes on a CPU.

    Args:
        source: A registry name, a model file, a run folder, a configuration, a model or a classifier.
        batch_size: Images per training step.
        input_size: Height and width of the images, or as many sides as the input has; None uses the model's
            default size.
        execution: How blocks run in training: "plain", "linear" or "linear-recompute". Blocks that do not
            support it run as "plain", as in training.
        remembered: Values of optimizer state per parameter: 0 for plain SGD, 1 with momentum, 2 for AdamW;
            one more if an average of the weights is kept.
        program: Bytes of the process before a model is built; None uses this process's current memory.
        fields: Configuration fields to replace; for registry names only.

    Raises:
        UserError: For an unknown model or field, impossible sizes, or an execution that training refuses.
    """
    if batch_size < 1:
        raise UserError(f"batch_size={batch_size}: must be at least 1")
    plan = _Plan(source, input_size, execution, remembered, program, fields)
    return plan.memory(batch_size)


def largest_batch(
    source: Source,
    memory: str | int,
    *,
    input_size: int | tuple[int, ...] | None = None,
    execution: BlockExecution = "plain",
    remembered: int = 1,
    program: int | None = None,
    **fields: Any,
) -> int:
    """Find the largest batch that trains within a given amount of memory.

    Args:
        source: As for `training_memory`, like the other arguments.
        memory: Bytes, or text such as "16GiB".
        input_size: Height and width of the images.
        execution: How blocks run in training.
        remembered: Values of optimizer state per parameter.
        program: Bytes of the process before a model is built.
        fields: Configuration fields to replace.

    Raises:
        UserError: If not even one image fits.
    """
    available = parse_bytes(memory) if isinstance(memory, str) else memory
    plan = _Plan(source, input_size, execution, remembered, program, fields)
    if (least := plan.memory(1).peak) > available:
        raise UserError(f"memory={memory}: training needs {least / 2**30:.2f} GiB for a single image")
    # The peak grows almost linearly with the batch, so a few extrapolations find the limit.
    slope = plan.memory(2).peak - least
    fits, too_many = 1, sys.maxsize
    guess = 1 + (available - least) // slope
    while too_many - fits > 1:
        guess = min(max(guess, fits + 1), too_many - 1)
        left = available - plan.memory(guess).peak
        if left >= 0:
            fits = guess
        else:
            too_many = guess
        guess += left // slope
    return fits


def parse_bytes(text: str) -> int:
    """Parse a size such as "16GiB"; units are kB, MB, GB, TB and KiB, MiB, GiB, TiB.

    Raises:
        UserError: If it is not a size.
    """
    try:
        amount = int(TypeAdapter(ByteSize).validate_python(text))
    except ValidationError:
        amount = 0
    if amount == 0:
        raise UserError(f'memory="{text}": must be an amount such as 16GiB or 800MB')
    return amount


class _Plan:
    """The parts of an estimate that do not depend on the batch size."""

    def __init__(
        self,
        source: Source,
        input_size: int | tuple[int, ...] | None,
        execution: BlockExecution,
        remembered: int,
        program: int | None,
        fields: dict[str, Any],
    ) -> None:
        architecture = architecture_of(source, **fields)
        if architecture.network is not None:
            raise UserError(
                f"memory: cannot be told of {architecture.config.name}, which has no graph; "
                "skipnets benchmark MODEL --training measures it"
            )
        graph, size = architecture.graph, architecture.image_size(input_size)
        family = family_of(architecture.config)
        if execution not in family.executions:
            raise UserError(
                f"execution={execution}: must be {' or '.join(family.executions)} for "
                f"{architecture.config.name}"
            )
        family.module()  # Imports libraries that count as part of the program.
        self._program = resident_bytes() if program is None else program
        self._weights = weight_bytes(graph)
        self._gradients = FLOAT_BYTES * graph.parameter_count()
        self._optimizer = remembered * self._gradients
        self._steps = steps(graph, size, execution)
        self._values = value_bytes(graph.shapes(size))

    def memory(self, batch_size: int) -> TrainingMemory:
        """The estimate for a batch size."""
        return TrainingMemory(
            program=self._program,
            weights=self._weights,
            gradients=self._gradients,
            optimizer=self._optimizer,
            step=RUNTIME_BYTES + int(SLACK * self._peak_of_step(batch_size)),
        )

    def _peak_of_step(self, batch_size: int) -> int:
        replay = _Replay(self._steps, self._values, batch_size)
        for step in self._steps:
            replay.forward(step)
        for step in reversed(self._steps):
            replay.backward(step)
        return replay.peak


def resident_bytes() -> int:
    """Resident memory of this process; where unknown, that of a typical program with PyTorch loaded."""
    status = Path("/proc/self/status")
    if status.exists():
        match = re.search(r"VmRSS:\s+(\d+) kB", status.read_text())
        if match is not None:
            return int(match[1]) << 10
    return 512 << 20


class _Replay:
    """Tracks the memory of a training step, operation by operation."""

    def __init__(self, run: Sequence[Step], values: Sequence[int], batch_size: int) -> None:
        self.peak = self._level = 0
        self._values = [value * batch_size for value in values]
        self._batch_size = batch_size
        self._uses = Counter(index for step in run for index in step.inputs)
        self._keepers = Counter(index for step in run for index in step.keeps)
        self._gradients: dict[int, int] = {}
        self._made = {0}
        self._take(self._values[0])

    def forward(self, step: Step) -> None:
        """Allocate the step's output and saved values, and free values that are no longer needed."""
        made = {step.output, *step.keeps} - self._made
        self._made |= made
        self._take(sum(self._values[index] for index in made) + self._extra(step))
        for index in step.inputs:
            self._uses[index] -= 1
            if self._uses[index] == 0 and self._keepers[index] == 0:
                self._level -= self._values[index]

    def backward(self, step: Step) -> None:
        """Allocate gradients of the step's inputs, and free its output's gradient and its saved values."""
        out = self._gradients.pop(step.output, self._values[step.output])
        if step.kind in ("add", "concatenate"):
            # Views of the output's gradient take no memory, unless they are added to another gradient.
            for place, index in enumerate(step.inputs):
                shared = step.kind == "add" and place > 0
                self._accumulate(index, 0 if shared else self._values[index])
            out = 0
        else:
            scratch = step.scratch * self._batch_size
            self._take(scratch)
            for index in step.inputs:
                if index != 0:
                    self._take(self._values[index])
                    self._accumulate(index, self._values[index])
            self._level -= scratch
        self._level -= out
        for index in step.keeps:
            self._keepers[index] -= 1
            if self._keepers[index] == 0:
                self._level -= self._values[index]
        self._level -= self._extra(step)

    def _accumulate(self, index: int, new: int) -> None:
        present = self._gradients.get(index)
        if present is None:
            self._gradients[index] = new
        else:
            self._level -= min(new, present)
            self._gradients[index] = max(new, present)

    def _extra(self, step: Step) -> int:
        return step.keeps_besides * self._batch_size + step.keeps_once

    def _take(self, amount: int) -> None:
        self._level += amount
        self.peak = max(self.peak, self._level)
