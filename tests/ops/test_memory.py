from __future__ import annotations

import threading

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from skipnets.ops import chunks
from skipnets.ops.chunks import MapShape, empty_maps
from skipnets.ops.memory import Memory, _Block


def test_memory_is_lent_again_only_when_no_tensor_uses_it():
    memory = Memory()
    first = torch.empty(0).set_(memory.storage(4000), 0, (1000,), (1,))
    address = first.data_ptr()
    assert address % 64 == 0
    view = first[10:20]
    del first
    assert memory.storage(4000).data_ptr() != address  # A view still uses it.
    del view
    assert memory.storage(3500).data_ptr() == address  # What is a little smaller fits, too.
    assert memory.storage(2000).data_ptr() != address


@given(st.lists(st.tuples(st.booleans(), st.integers(1, 5000)), max_size=40))
def test_tensors_never_share_memory_and_no_more_is_held_than_was_used(steps):
    memory = Memory()
    alive: list[torch.Tensor] = []
    most = 0
    for number, (free, size) in enumerate(steps):
        if free and alive:
            alive.pop(size % len(alive))
            continue
        alive.append(torch.empty(0, dtype=torch.uint8).set_(memory.storage(size), 0, (size,), (1,)))
        alive[-1].fill_(number)
        values = [tensor.unique().tolist() for tensor in alive]
        assert all(len(value) == 1 for value in values)
        assert len({value[0] for value in values}) == len(values)
        most = max(most, len(alive))
        assert memory.held_bytes <= most * (5000 + 64)


def test_lending_looks_at_each_piece_a_few_times_alone(monkeypatch: pytest.MonkeyPatch):
    memory = Memory()
    lent = [memory.storage(1000 + 300 * number) for number in range(60)]
    lent.clear()
    looks = []
    idle = _Block.idle.fget
    monkeypatch.setattr(_Block, "idle", property(lambda block: looks.append(block) or idle(block)))
    memory.storage(10_000)
    assert len(looks) <= 2 * 61


def test_threads_get_memory_of_their_own():
    memory = Memory()
    wrong = []

    def work(number: int) -> None:
        for _ in range(300):
            tensor = torch.empty(0, dtype=torch.uint8).set_(memory.storage(2000), 0, (2000,), (1,))
            tensor.fill_(number)
            if not bool((tensor == number).all()):
                wrong.append(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("sides", [(3, 4), (2, 3, 4)])
@pytest.mark.parametrize("large", [1, 1 << 40])
def test_maps_are_like_the_librarys_own(dtype, sides, large, monkeypatch):
    monkeypatch.setattr(chunks, "LARGE_BYTES", large)
    shape = MapShape(2, sides)
    maps = empty_maps(shape, 5, like=torch.zeros(1), dtype=dtype)
    last = torch.channels_last if len(sides) == 2 else torch.channels_last_3d
    own = torch.empty((2, 5, *sides), dtype=dtype, memory_format=last)
    assert maps.stride() == own.stride()
    assert (maps.shape, maps.dtype) == (own.shape, own.dtype)
    assert not maps._is_view()  # What is a view may not be changed in place behind a custom operation.
    assert maps.untyped_storage().nbytes() == own.untyped_storage().nbytes()
