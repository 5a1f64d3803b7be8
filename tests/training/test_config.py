from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import get_args

import pytest
import yaml

from skipnets.data.augmentation import AUGMENTATIONS
from skipnets.errors import UserError
from skipnets.training.config import (
    FIELDS,
    Augmentation,
    TrainConfig,
    config_to_dict,
    config_to_yaml,
    read_config,
)
from skipnets.training.recipes import with_recipe


def config(**fields: object) -> TrainConfig:
    return TrainConfig(**({"data": "digits", "out": "runs/x"} | fields))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"lr": -0.1}, "lr=-0.1: must be greater than 0"),
        ({"lr": float("nan")}, "lr=nan: must be a finite number"),
        ({"epochs": 0, "lr": -1.0}, "epochs=0: must be at least 1; lr=-1.0: must be greater than 0"),
        ({"epochs": 0}, "epochs=0: must be at least 1"),
        ({"time": "abc"}, "time='abc': must be a time such as 90s, 5m or 1h30m"),
        ({"momentum": 1.0}, "momentum=1.0: must be less than 1"),
        ({"recipe": "paper"}, "recipe='paper': must be 'auto', 'speedrun', 'scratch'"),
        ({"milestones": (0.5, 1.5)}, "milestones=1.5: must be less than 1"),
        ({"channels": 0}, "channels=0: must be at least 1"),
        ({"batchsize": 4}, "batchsize: no such option; did you mean batch_size"),
    ],
)
def test_a_wrong_value_is_one_line_that_names_the_option(fields: dict[str, object], message: str) -> None:
    with pytest.raises(UserError) as error:
        config(**fields)
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)


def test_a_missing_option_is_named() -> None:
    with pytest.raises(UserError, match=r"^out: must be given \(the folder to write the run to\)$"):
        TrainConfig(data="digits")  # type: ignore[call-arg]


@pytest.mark.parametrize("written", ["none", "null", "None", None])
def test_none_has_several_spellings(written: str | None, tmp_path: Path) -> None:
    assert config(weights=written, epochs=written).weights is None
    assert config(model_options={"norm": written}).model_options == {"norm": None}
    path = tmp_path / "run.yaml"
    path.write_text(f"data: digits\nout: x\nweights: {written or 'null'}\nlr: {written or 'null'}\n")
    assert (read_config(path).weights, read_config(path).lr) == (None, None)
    assert config(augmentation="none", imbalance="none").augmentation == "none"


def test_milestones_are_not_forgotten() -> None:
    """A schedule without them would be a constant rate."""
    with pytest.raises(UserError, match=r"^milestones: must be given for schedule=milestones"):
        with_recipe(config(schedule="milestones"))
    assert with_recipe(config(schedule="milestones", milestones=(0.5,))).milestones == (0.5,)


def test_yaml_and_back_is_the_same(tmp_path: Path) -> None:
    written = with_recipe(
        config(model_options={"block_config": [2, 2]}, size=(8, 9), mean=(0.5,), splits=Path("a.csv"))
    )
    path = tmp_path / "run.yaml"
    path.write_text(config_to_yaml(written))
    assert read_config(path) == written
    assert list(yaml.safe_load(path.read_text())) == [
        "format_version",
        *(name for name in FIELDS if name in config_to_dict(written)),
    ]


def test_a_run_of_version_0_1_keeps_its_dropouts(tmp_path: Path) -> None:
    """Its `drop_rate` was the layers', and nothing but the run folder tells its run.yaml's version."""
    path = tmp_path / "run.yaml"
    path.write_text("data: digits\nout: x\nmodel_options: {drop_rate: 0.1, head_drop_rate: 0.3, width: 4}\n")
    present = {"proj_drop_rate": 0.1, "drop_rate": 0.3, "width": 4}
    with pytest.raises(
        UserError, match=r"model_options.drop_rate=0.1: .*add format_version: 2, or 1 for the"
    ):
        read_config(path)
    (tmp_path / "splits.csv").touch()
    assert read_config(path).model_options == present
    again = tmp_path / "again.yaml"
    again.write_text("format_version: 1\n" + path.read_text())
    assert read_config(again).model_options == present
    path.write_text(config_to_yaml(read_config(path)))
    assert read_config(path).model_options == present
    again.write_text("data: digits\nout: x\nformat_version: 2\nmodel_options: {drop_rate: 0.1}\n")
    assert read_config(again).model_options == {"drop_rate": 0.1}
    again.write_text("data: digits\nout: x\nformat_version: 3\n")
    with pytest.raises(UserError, match=r"format_version=3: must be 1 or 2"):
        read_config(again)


def test_changes_take_precedence_over_the_file(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("data: digits\nout: runs/a\nseed: 3\n")
    assert read_config(path, out="runs/b") == config(out="runs/b", seed=3)


def test_a_recorded_warm_up_is_not_that_of_another_length(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "run.yaml"
    settings = config(epochs=100, warmup=10, epoch_plan=((0, 100),), time="1h", recipe="scratch")
    path.write_text(config_to_yaml(dataclasses.replace(settings, operators={})))
    with caplog.at_level("INFO", logger="skipnets"):
        assert with_recipe(read_config(path)).warmup == 10
        assert with_recipe(read_config(path, epochs=4, warmup=3)).warmup == 3
        assert caplog.messages == []
        assert with_recipe(read_config(path, epochs=4)).warmup == 1
        assert with_recipe(read_config(path, time="20s"), epochs=8).warmup == 2
    assert len(caplog.messages) == 2
    assert caplog.messages[0].startswith("warmup=10: was recorded for 100 epochs; the recipe chooses another")
    path.write_text(config_to_yaml(settings))  # as a person writes it
    assert with_recipe(read_config(path, epochs=4)).warmup == 10


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("data: digits\nout: x\nlearning_rate: 1\n", r"run.yaml: learning_rate: no such option"),
        ("data: digits\nout: x\nlabel_smoothin: 0.1\n", r"no such option; did you mean label_smoothing"),
        ("data: digits\nout: x\nlr: fast\n", r"run.yaml: lr='fast': must be a valid number"),
        ("- data\n", r"run.yaml: must be a mapping"),
        ("data: [\n", r"run\.yaml, line 2: not YAML \(expected the node content"),
    ],
)
def test_a_wrong_file_is_one_line_that_names_it(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=message) as error:
        read_config(path)
    assert "\n" not in str(error.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none\.yaml: cannot be read: No such file"):
        read_config(tmp_path / "none.yaml")


def test_model_options_from_a_command_line_are_read_as_yaml() -> None:
    options = {"growth-rate": "12", "block_config": "[2, 2]", "bottleneck": "null", "norm": "group"}
    assert config(model_options=options).model_options == {
        "growth_rate": 12,
        "block_config": [2, 2],
        "bottleneck": None,
        "norm": "group",
    }


def test_every_field_is_documented() -> None:
    from docstring_parser import parse_from_object

    documented = {param.arg_name: param.description for param in parse_from_object(TrainConfig).params}
    assert set(FIELDS) == {name for name, text in documented.items() if text}


@pytest.mark.parametrize(
    ("given", "expected"), [([12], 12), ([12, 10], (12, 10)), (12, 12), ((12, 10), (12, 10))]
)
def test_a_size_is_one_side_or_two(given: object, expected: object) -> None:
    assert TrainConfig(data="x", out=Path("y"), size=given).size == expected  # type: ignore[arg-type]


def test_other_targets_get_scales_of_their_own(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    config = TrainConfig(
        data="list.csv", out=tmp_path, targets=("age",), target_mean=(40.0,), target_std=(5.0,)
    )
    path.write_text(config_to_yaml(config))
    assert (read_config(path).target_mean, read_config(path).target_std) == ((40.0,), (5.0,))
    changed = read_config(path, targets=("height",))
    assert (changed.targets, changed.target_mean, changed.target_std) == (("height",), None, None)


def test_augmentations_are_those_that_there_are() -> None:
    assert get_args(Augmentation) == tuple(AUGMENTATIONS)
