"""Exports of `torch.export`, run by PyTorch."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import pytest

from skipnets.classifier import Classifier, load
from skipnets.deploy.export import Export
from skipnets.errors import UserError
from skipnets.runtimes.pt2 import Pt2Runtime


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("size", [(16, 20), (33, 18)])
def test_it_computes_what_the_classifier_computes(
    count: int, size: tuple[int, int], exports: dict[str, Export], exported_classifier: Classifier
) -> None:
    runtime, metadata = Pt2Runtime.open(exports["pt2"].path, device="cpu")
    assert metadata is not None
    assert runtime.device == "cpu"
    pixels = np.random.default_rng(count).integers(0, 256, (count, *size, 3), dtype=np.uint8)
    batch = np.ascontiguousarray(pixels.transpose(0, 3, 1, 2))
    normal = exported_classifier.preprocessing.normalize(pixels)
    np.testing.assert_allclose(runtime.logits(batch), exported_classifier.logits(normal), atol=1e-4)
    np.testing.assert_allclose(
        runtime.embed(batch), exported_classifier.runtime.embed(normal), atol=1e-4, rtol=1e-4
    )


def test_what_is_no_program(tmp_path: Path) -> None:
    (tmp_path / "text.pt2").write_text("not an archive")
    with zipfile.ZipFile(tmp_path / "empty.pt2", "w") as archive:
        archive.writestr("readme", "nothing")
    for name in ("text.pt2", "empty.pt2"):
        with pytest.raises(UserError, match=rf"{name} is not a readable \.pt2 file"):
            load(tmp_path / name)
