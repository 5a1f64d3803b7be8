"""`skipnets compare`."""

from __future__ import annotations

import json
from pathlib import Path

from tests.helpers.commands import QUICK


def test_runs_are_compared(trained: Path, photos: Path, unsure: Path, tmp_path: Path, run) -> None:
    assert run("train", photos, "--out", tmp_path / "other", *QUICK, "--lr", 0.01).status == 0
    result = run("compare", trained, tmp_path / "other", "--resamples", 50)
    assert result.status == 0
    for expected in (
        "6 (",
        "the same for all",
        "accuracy",
        "other against light",
        "alone correct on",
        "95% interval",
    ):
        assert expected in " ".join(result.out.split())
    comparison = json.loads(run("compare", trained, tmp_path / "other", "--resamples", 50, "--json").out)
    assert comparison["runs"] == ["light", "other"]
    refused = run("compare", trained, unsure)
    assert refused.status == 2
    assert "cannot be compared: their classes differ" in refused.err
    assert run("compare", trained).status == 2
    assert "is not a run folder" in run("compare", trained, tmp_path / "none").err
