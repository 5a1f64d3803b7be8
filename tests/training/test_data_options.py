"""How data is read travels from the configuration through the run folder to evaluation and resuming."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from skipnets.classifier import load
from skipnets.data.options import DataOptions
from skipnets.data.splits import read_split_rows
from skipnets.errors import UserError
from skipnets.evaluation import evaluate
from skipnets.training import TrainConfig, resume, train
from skipnets.training.run import Run

MakeConfig = Callable[..., TrainConfig]


@pytest.fixture
def manifest(digits_folder: Path, tmp_path: Path) -> Path:
    """A table without usual names, of pairs of images that belong together."""
    files = sorted(digits_folder.rglob("*.png"))
    lines = [
        f"{file.relative_to(digits_folder).as_posix()};{file.parent.name};p{number // 2}"
        for number, file in enumerate(files)
    ]
    path = tmp_path / "lists" / "m.csv"
    path.parent.mkdir()
    path.write_text("\n".join(["where;what;who", *lines]))
    return path


def manifest_config(tiny: MakeConfig, manifest: Path, digits_folder: Path, **changes: Any) -> TrainConfig:
    return tiny(
        data=str(manifest),
        root=digits_folder,
        path_column="where",
        label_column="what",
        group_column="who",
        **changes,
    )


def test_groups_stay_together_and_evaluation_finds_the_data(
    tiny: MakeConfig, manifest: Path, digits_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = train(manifest_config(tiny, manifest, digits_folder))
    rows = read_split_rows(run.splits)
    splits: dict[str, set[str]] = {}
    for row in rows:
        splits.setdefault(row.group, set()).add(row.split)
        assert row.size == (digits_folder / row.path).stat().st_size
    assert len(splits) > 10
    assert all(len(found) == 1 for found in splits.values())
    shown = capsys.readouterr().err
    assert "layout    manifest" in shown
    assert f"groups    {len(splits)}" in shown
    classifier = load(run.folder)
    assert classifier.provenance["data_options"] == {
        "root": str(digits_folder),
        "path_column": "where",
        "label_column": "what",
        "group_column": "who",
    }
    test = [row.path for row in rows if row.split == "test"]
    assert sorted(evaluate(classifier).names) == sorted(test)
    assert sorted(evaluate(classifier, str(manifest)).names) == sorted(test)


def test_resuming_without_an_image(
    tiny: MakeConfig, digits_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = tmp_path / "copy"
    for file in digits_folder.rglob("*.png"):
        target = data / file.relative_to(digits_folder)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(file.read_bytes())

    def stop(*_: object, **__: object) -> None:
        raise RuntimeError("stopped")

    with monkeypatch.context() as patch:
        patch.setattr("skipnets.training.trainer.finish", stop)
        with pytest.raises(RuntimeError, match="stopped"):
            train(tiny(data=str(data), epochs=1))
    folder = tiny().out
    lost = next(row.path for row in read_split_rows(Run(folder).splits) if row.split == "test")
    (data / lost).unlink()
    with pytest.raises(UserError, match=f"lists {lost}, which the data do not hold; --missing skip"):
        resume(folder)
    run = resume(folder, missing="skip")
    assert run.scores["images"] == sum(row.split == "test" for row in read_split_rows(run.splits)) - 1


def test_options_go_through_json() -> None:
    options = DataOptions(root=Path("a"), exclude=("*_mask.png",), page=2, class_order="natural")
    values = options.to_dict()
    assert values == {"exclude": ("*_mask.png",), "class_order": "natural", "root": "a", "page": 2}
    assert DataOptions.from_dict(values | {"exclude": ["*_mask.png"]}) == options
