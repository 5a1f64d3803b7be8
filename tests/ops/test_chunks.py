from __future__ import annotations

import pytest
import torch

from skipnets.ops import chunks
from skipnets.ops.chunks import MapShape, Workspace, as_maps, as_matrix, empty_maps, is_channels_last


@pytest.mark.parametrize("images", [1, 2, 7, 16])
@pytest.mark.parametrize("chunk_bytes", [1, 500, 3000, 1 << 30])
def test_chunks_cover_all_rows_with_whole_images(images, chunk_bytes, monkeypatch):
    monkeypatch.setattr(chunks, "CHUNK_BYTES", chunk_bytes)
    shape = MapShape(images, (3, 5))
    pieces = list(shape.chunks(columns=10, itemsize=4))
    assert [row for piece in pieces for row in range(piece.start, piece.stop)] == list(range(shape.rows))
    assert all((piece.stop - piece.start) % shape.area == 0 for piece in pieces)
    assert len({piece.stop - piece.start for piece in pieces[:-1]}) <= 1
    if chunk_bytes == 1 << 30:
        assert len(pieces) == 1
    if chunk_bytes == 1:
        assert len(pieces) == images


@pytest.mark.parametrize(
    "size", [(2, 3, 4, 5), (1, 1, 1, 1), (3, 1, 2, 2), (1, 4, 1, 1), (2, 3, 4), (1, 3, 2, 4, 5)]
)
def test_maps_and_matrix_are_two_views_of_the_same_values(size):
    maps = torch.randn(size)
    shape = MapShape.of(maps)
    last = empty_maps(shape, size[1], like=maps, dtype=maps.dtype).copy_(maps)
    matrix = as_matrix(last)
    assert matrix.data_ptr() == last.data_ptr()
    assert torch.equal(as_maps(matrix, shape), maps)
    assert torch.equal(as_matrix(maps), matrix)
    assert is_channels_last(last)
    assert is_channels_last(maps) is (size[1] == 1 or shape.area == 1)


def test_workspace_gives_the_same_memory_again_until_more_is_needed():
    workspace = Workspace(torch.device("cpu"))
    first = workspace.matrix("a", torch.Size([4, 5]), torch.float32)
    assert workspace.matrix("a", torch.Size([2, 3]), torch.float32).data_ptr() == first.data_ptr()
    assert workspace.matrix("b", torch.Size([2, 3]), torch.float32).data_ptr() != first.data_ptr()
    larger = workspace.matrix("a", torch.Size([40, 5]), torch.float64)
    assert larger.shape == (40, 5)
    assert larger.dtype == torch.float64
    assert larger.is_contiguous()
