"""The order of a network's steps and where their values lie.

Concatenated values lie side by side in one buffer, each written where it is read: a dense block copies
nothing. The engine stores whole vectors of channels, which may overwrite the beginning of the range behind,
so the ranges of a buffer must be written in their order. What cannot be, or lies in another buffer already,
or is computed from the same buffer, is copied when all of it is there; copies overwrite nothing else.

A turn is a step's place in the order.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, field
from heapq import heappop, heappush
from typing import Any

from skipnets_engine.fusion import Concatenate, Elementwise, Step
from skipnets_engine.graph import Graph


@dataclass(frozen=True)
class Place:
    """Where a value lies: from `channel` on in the engine's value `number`."""

    number: int
    channel: int = 0


@dataclass(frozen=True)
class Copy:
    """A value that must be copied to where a concatenation wants it."""

    value: int
    place: Place


@dataclass
class _Buffer:
    """Channels that several values share, with the turns at which ranges of them are written."""

    channels: int = 0
    _starts: list[int] = field(default_factory=list)
    _turns: list[int] = field(default_factory=list)

    def add(self, channel: int, turn: int) -> bool:
        """Note that what begins at a channel is written at a turn; False where that would be out of order."""
        at = bisect_left(self._starts, channel)
        after = at == 0 or self._turns[at - 1] <= turn
        before = at == len(self._turns) or turn <= self._turns[at]
        if after and before:
            self._starts.insert(at, channel)
            self._turns.insert(at, turn)
        return after and before


def schedule(steps: dict[int, Step], results: Sequence[int]) -> list[Step]:
    """The steps that the results need, each behind those that it reads from.

    What is added is computed first: the map in front of a residual block is then needed for fewer steps.
    """
    order: list[Step] = []
    seen = {0}
    for result in results:
        stack = [(result, False)]
        while stack:
            value, ready = stack.pop()
            if ready:
                order.append(steps[value])
            elif value not in seen:
                seen.add(value)
                stack.append((value, True))
                stack.extend((read, False) for read in reversed(steps[value].reads))
    return order


class Layout:
    """Places for the values of scheduled steps.

    Args:
        graph: Checked.
        order: What `schedule` gave.
        kept: Values that share no memory: results, and what is to be looked at after a run.

    Attributes:
        channels: Of every value of the engine.
        places: Of every value that is written.
        copies: What is copied at the turn of a concatenation.
    """

    def __init__(self, graph: Graph, order: Sequence[Step], kept: set[int]) -> None:
        self._values = graph.values
        self._order = order
        self._turns = {step.output: turn for turn, step in enumerate(order)}
        self._readers: dict[int, list[Step]] = {}
        for step in order:
            for value in step.reads:
                self._readers.setdefault(value, []).append(step)
        self._buffers = [_Buffer(graph.values[0].channels)]  # the image, which nothing is written into
        self.places: dict[int, Place] = {0: Place(0)}
        self.copies: dict[int, list[Copy]] = {}
        # The outer concatenations before those inside them.
        for step in reversed(order):
            if isinstance(step, Concatenate):
                self._place_concatenated(step)
        self.channels = [buffer.channels for buffer in self._buffers]
        self._place_others(_sizes(graph), kept)

    def new_value(self, channels: int) -> Place:
        """Another value of the engine."""
        self.channels.append(channels)
        return Place(len(self.channels) - 1)

    def _place_concatenated(self, step: Step) -> None:
        place = self.places.get(step.output) or self._common_place(step)
        if place is None:
            place = Place(len(self._buffers))
            self._buffers.append(_Buffer())
        self.places[step.output] = place
        buffer = self._buffers[place.number]
        channel = place.channel
        copies = self.copies.setdefault(step.output, [])
        for value in step.inputs:
            there = Place(place.number, channel)
            if self.places.get(value) != there:
                if self._write_into(value, there):
                    self.places[value] = there
                else:
                    copies.append(Copy(value, there))
            channel += self._values[value].channels
        buffer.channels = max(buffer.channels, channel)

    def _common_place(self, step: Step) -> Place | None:
        """Where a concatenation's first inputs lie side by side already, if the rest can follow them."""
        first = self.places.get(step.inputs[0])
        if first is None or first == Place(0) or self._is_read_into(step.output, first.number):
            return None
        channel = first.channel
        for value in step.inputs:
            place = self.places.get(value)
            free = place is None and channel >= self._buffers[first.number].channels
            if place != Place(first.number, channel) and not free:
                return None
            channel += self._values[value].channels
        return first

    def _write_into(self, value: int, place: Place) -> bool:
        """Whether a value can be written straight into a buffer; if so, the buffer notes it."""
        if value in self.places or self._is_read_into(value, place.number):
            return False
        step, turn = self._order[self._turns[value]], self._turns[value]
        buffer = self._buffers[place.number]
        if not isinstance(step, Concatenate):
            if any(self._lies_in(read, place.number) for read in step.reads):
                return False
            return buffer.add(place.channel, turn)
        # What it concatenates is placed later, and written until its own turn.
        last = place.channel + self._values[value].channels - 1
        return buffer.add(last, turn)

    def _lies_in(self, value: int, number: int) -> bool:
        place = self.places.get(value)
        return place is not None and place.number == number

    def _is_read_into(self, value: int, number: int) -> bool:
        """Whether a step that computes something from a value writes into a buffer."""
        return any(
            self._lies_in(step.output, number)
            for step in self._readers.get(value, ())
            if not isinstance(step, Concatenate)
        )

    def _place_others(self, sizes: Sequence[int], kept: set[int]) -> None:
        """Values of their own; activations that are never needed at the same time share one.

        (The engine itself lets values share memory, but only those with as many channels.)
        """
        last = {
            value: max(self._turns[step.output] for step in steps) for value, steps in self._readers.items()
        }
        free: dict[int, list[tuple[int, int]]] = {}  # by size: the turns of the last readers, and the numbers
        for turn, step in enumerate(self._order):
            value, channels = step.output, self._values[step.output].channels
            if value in self.places:
                continue
            if not isinstance(step, Elementwise) or value in kept or value not in last:
                self.places[value] = self.new_value(channels)
                continue
            waiting = free.setdefault(sizes[value], [])
            if waiting and waiting[0][0] < turn:
                place = Place(heappop(waiting)[1])
                self.channels[place.number] = max(self.channels[place.number], channels)
            else:
                place = self.new_value(channels)
            heappush(waiting, (last[value], place.number))
            self.places[value] = place


def _sizes(graph: Graph) -> list[int]:
    """A number for every value; equal numbers mean maps of equal height and width, whatever the image's."""
    numbers: dict[tuple[int, ...], int] = {}
    sizes = [0] * len(graph.values)
    operation: Any  # its attributes depend on its kind
    for operation in graph.operations:
        size = sizes[operation.inputs[0]]
        if operation.kind in ("convolution", "standardized convolution", "pool", "blur", "border"):
            reach = getattr(operation, "dilation", 1) * (operation.kernel - 1)
            if operation.stride != 1 or 2 * operation.padding != reach:
                window = (size, reach, operation.stride, operation.padding)
                size = numbers.setdefault(window, len(numbers) + 1)
        elif operation.kind == "cell mean":
            size = numbers.setdefault((size,), len(numbers) + 1)
        elif operation.kind in ("mean", "squeeze", "global pool"):
            size = -1
        sizes[operation.output] = size
    return sizes
