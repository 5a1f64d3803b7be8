from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest

from skipnets.errors import UserError
from skipnets.models.custom import CustomConfig, NoGraphError
from skipnets.models.family import network_graph
from skipnets.models.registry import config_from_dict, config_to_dict

CONFIG = CustomConfig(
    name="Net", import_path="a.b:Net", arguments={"width": 8, "depths": (1, 2)}, num_classes=3, in_chans=1
)


def test_a_file_holds_the_import_and_its_arguments_alone() -> None:
    values = config_to_dict(dataclasses.replace(CONFIG, build=lambda: None))
    assert values == {
        "family": "custom",
        "name": "Net",
        "import_path": "a.b:Net",
        "arguments": {"width": 8, "depths": [1, 2]},
        "in_chans": 1,
        "num_classes": 3,
        "dims": 2,
    }
    assert config_from_dict(json.loads(json.dumps(values))) == CONFIG


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"import_path": "os.system"}, "import_path='os.system': must be package.module:Class"),
        ({"import_path": "os:system('x')"}, "must be package.module:Class"),
        ({"arguments": [1]}, "arguments=.*: must be names with values"),
        ({"arguments": {"x": float("nan")}}, "must be values that JSON can hold"),
        ({"build": "x"}, "custom has no fields build"),
        ({"block_config": [1]}, "custom has no fields block_config"),
    ],
)
def test_what_a_file_says_is_checked(change: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        config_from_dict(config_to_dict(CONFIG) | change)


def test_it_has_no_graph() -> None:
    with pytest.raises(NoGraphError, match="Net has no graph, which this needs"):
        network_graph(CONFIG)
