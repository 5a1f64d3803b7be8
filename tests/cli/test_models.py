"""`skipnets models`."""

from __future__ import annotations

import json

import skipnets


def test_models_are_listed_with_their_sizes(run) -> None:
    lines = run("models", "densenet1*").out.splitlines()
    assert [line.split()[0] for line in lines[1:]] == skipnets.list_models("densenet1*")
    assert "7,978,856" in lines[1]
    assert json.loads(run("models", "resnet18", "--json").out)["resnet18"]["parameters"] == 11_689_512
