"""`skipnets models`."""

from __future__ import annotations

import json

import skipnets


def test_models_are_listed_with_their_sizes(run) -> None:
    lines = run("models", "densenet1*").out.splitlines()
    assert [line.split()[0] for line in lines[1:]] == skipnets.list_models("densenet1*")
    assert "7,978,856" in lines[1]
    assert json.loads(run("models", "resnet18", "--json").out)["resnet18"]["parameters"] == 11_689_512


def test_models_are_compared(run, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    first = run("models", "resnet8_w16", "--compare", "--batch-size", "1", "--json").out
    (model,) = json.loads(first)["models"]
    assert (model["name"], model["size"]) == ("resnet8_w16", 64)
    again = json.loads(run("models", "resnet8_w16", "--compare", "--batch-size", "1", "--json").out)
    assert again["models"][0]["images_per_second"] == model["images_per_second"]
    assert "resnet8_w16" in run("models", "resnet8_w16", "--compare", "--batch-size", "1").out
