from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from skipnets.errors import UserError
from skipnets.training import TrainConfig, resume, train
from skipnets.training.batches import MOST, ShownImage, caption, draw_batch, read_batch, shown_images

MakeConfig = Callable[..., TrainConfig]


def test_normalization_is_undone_and_shares_are_named() -> None:
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (3, 3, 4, 5), dtype=np.uint8)
    mean, std = torch.tensor([0.1, 0.5, 0.9]).view(1, 3, 1, 1), torch.tensor([0.2, 0.3, 0.4]).view(1, 3, 1, 1)
    images = (torch.from_numpy(pixels) / 255 - mean) / std
    shares = torch.tensor([[0.0, 1.0, 0.0], [0.25, 0.0, 0.75], [1.0, 0.0, 0.0]])
    shown = shown_images(images, shares, ("a", "b", "c"), mean, std)
    for each, expected in zip(shown, pixels, strict=True):
        np.testing.assert_array_equal(np.asarray(each.image), expected.transpose(1, 2, 0))
    assert [each.labels for each in shown] == [
        (("b", 1.0),),
        (("c", 0.75), ("a", 0.25)),
        (("a", 1.0),),
    ]
    plain = shown_images(images, torch.tensor([1, 2, 0]), ("a", "b", "c"), mean, std)
    assert [each.labels for each in plain] == [(("b", 1.0),), (("c", 1.0),), (("a", 1.0),)]


def test_captions() -> None:
    assert caption([("cat", 1.0)]) == ["cat"]
    assert caption([("cat", 0.7), ("dog", 0.3)]) == ["cat 70%", "dog 30%"]


@pytest.mark.parametrize("size", [(8, 8), (40, 24), (300, 200)])
def test_a_sheet_holds_its_images_and_labels(tmp_path: Path, size: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    shades = rng.integers(0, 256, 11).tolist()
    shown = [
        ShownImage(image=Image.new("RGB", size, (shade, 0, 0)), labels=((f"größe {shade} " * 9, 1.0),))
        for shade in shades
    ]
    draw_batch(shown, tmp_path / "batches.png")
    read = read_batch(tmp_path / "batches.png")
    assert [each.labels for each in read] == [each.labels for each in shown]
    for each, shade in zip(read, shades, strict=True):
        assert each.image.width / each.image.height == pytest.approx(size[0] / size[1], rel=0.05)
        np.testing.assert_array_equal(np.unique(np.asarray(each.image)[..., 0]), [shade])


def test_another_file_is_refused(tmp_path: Path) -> None:
    Image.new("RGB", (4, 4)).save(tmp_path / "other.png")
    (tmp_path / "text.png").write_text("text")
    for name in ("other.png", "text.png", "none.png"):
        with pytest.raises(UserError, match=rf"{name}: not a sheet of a batch"):
            read_batch(tmp_path / name)


def test_a_run_keeps_its_first_batch_as_the_network_saw_it(tiny: MakeConfig, digits_folder: Path) -> None:
    """Every image of the sheet is one of the files, under its label: nothing is augmented here."""
    run = train(tiny(epochs=1, batch_size=48))
    files = {path: np.asarray(Image.open(path)) for path in digits_folder.rglob("*.png")}
    shown = read_batch(run.batches)
    assert len(shown) == MOST
    for each in shown:
        small = np.asarray(each.image.convert("L").resize((8, 8), Image.Resampling.NEAREST))
        ((label, share),) = each.labels
        same = [path for path, pixels in files.items() if np.abs(pixels.astype(int) - small).max() <= 1]
        assert share == 1
        assert label in {path.parent.name for path in same}


def test_mixed_images_show_both_classes_and_are_the_same_in_a_repeated_epoch(
    tiny: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    from skipnets.training.callbacks import Record

    def stop(*_: object) -> None:
        raise RuntimeError("power cut")

    with monkeypatch.context() as patch:
        patch.setattr(Record, "on_train_epoch_end", stop)
        with pytest.raises(RuntimeError, match="power cut"):
            train(tiny(epochs=2, mixup=5.0))
    run_folder = tiny().out
    before = (run_folder / "batches.png").read_bytes()
    labels = [each.labels for each in read_batch(run_folder / "batches.png")]
    assert any(len(each) == 2 and 0.5 <= each[0][1] < 1 for each in labels)
    assert (
        resume(run_folder).batches.read_bytes() == before
    )  # the run began anew: the same seed, the same batch
