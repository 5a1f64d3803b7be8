"""What a run leaves is of its best epoch, and test images are read for it alone."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import skipnets
from skipnets.data.sources import open_dataset
from skipnets.runtimes.model_file import read_model_file
from skipnets.training import TrainConfig, train, trainer

MakeConfig = Callable[..., TrainConfig]


def test_test_images_are_read_at_the_end_only(tiny: MakeConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    finished: list[int] = []
    open_file, finish = Image.open, trainer.finish

    def watched_open(file: Any, *args: Any, **options: Any) -> Image.Image:
        opened.append(str(file if isinstance(file, Path) else file.name))
        return open_file(file, *args, **options)

    def watched_finish(*args: Any) -> dict[str, float]:
        finished.append(len(opened))
        return finish(*args)

    monkeypatch.setattr(Image, "open", watched_open)
    monkeypatch.setattr(trainer, "finish", watched_finish)
    # Looking for copies and the table of the data see all images, and nothing else that is before the end.
    monkeypatch.setattr(trainer, "survey", lambda *_, **__: "")
    config = tiny(epochs=2, duplicates="ignore")
    run = train(config)
    split_of = {
        str(Path(config.data) / line.split(",")[0]): line.split(",")[2]
        for line in run.splits.read_text().splitlines()[1:]
    }
    (end,) = finished
    before = [split_of[path] for path in opened[:end]]
    after = [split_of[path] for path in opened[end:]]
    assert set(before) == {"train", "val"}
    assert set(after) == {"test"}
    assert after.count("test") == 18


def test_undecodable_images_are_named_and_counted(
    tiny: MakeConfig, digits_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "data"
    for split, numbers in {"train": range(20), "val": range(20, 30)}.items():
        for digit in ("0", "1"):
            (root / split / digit).mkdir(parents=True)
            for number in numbers:
                image = (digits_folder / digit / f"{number:02d}.png").read_bytes()
                (root / split / digit / f"{number:02d}.png").write_bytes(image)
    for broken in ("train/0/03.png", "val/1/21.png"):
        (root / broken).write_bytes(b"no image")
    run = train(tiny(data=root, fractions=(0.8, 0.2, 0), epochs=1))
    assert set(run.skipped) == {"train/0/03.png", "val/1/21.png"}
    told = capsys.readouterr().err
    assert "2 images could not be decoded and were left out: train/0/03.png, val/1/21.png" in told
    assert "there are no test images" in told


def test_every_epoch_is_validated_where_damaged_images_leave_batches_out(
    tiny: MakeConfig, digits_folder: Path, tmp_path: Path
) -> None:
    root = tmp_path / "data"
    shutil.copytree(digits_folder, root)
    for broken in ("0/03.png", "1/05.png", "2/07.png"):
        (root / broken).write_bytes(b"no image")
    run = train(tiny(data=root, epochs=2, batch_size=2, duplicates="ignore"))
    assert [row.epoch for row in run.rows] == [1, 2]
    assert run.rows[0].val_loss != run.rows[1].val_loss


@pytest.mark.parametrize("ema", [0.0, 0.9])
def test_a_network_that_a_program_hands_over_ends_with_the_best_weights(tiny: MakeConfig, ema: float) -> None:
    model = skipnets.create_model("resnet8_w16", num_classes=3, in_chans=1, block_config=(1,))
    config = tiny(model=None, model_options={}, epochs=4, ema=ema, best_by="loss", lr=0.5)
    best = train(config, model=model).model
    tensors = read_model_file(best).tensors()
    assert tensors.keys() <= model.state_dict().keys()
    assert all(np.array_equal(model.state_dict()[name].numpy(), tensors[name]) for name in tensors)


def test_the_best_epochs_averaged_weights_are_what_was_validated(tiny: MakeConfig) -> None:
    """The saved model, evaluated through the public path, has the validation accuracy of its row."""
    run = train(tiny(epochs=4, ema=0.8, fractions=(0.5, 0.4, 0.1)))
    val = open_dataset(run.config.data, splits=run.splits).split("val")
    predictions = skipnets.load(run.folder).predict([val.source(index) for index in range(len(val))])
    right = sum(p.label == val.classes[label] for p, label in zip(predictions, val.labels, strict=True))
    best = run.rows[run.best_epoch - 1]
    assert right / len(val) == pytest.approx(best.val_accuracy)
