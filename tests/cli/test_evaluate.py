"""`skipnets evaluate`."""

from __future__ import annotations

import json
from pathlib import Path


def test_evaluation_is_training_s_own_and_prints_json(trained: Path, tmp_path: Path, run) -> None:
    result = run(
        "evaluate", trained, "--json", "--output", tmp_path / "e", "--predictions", tmp_path / "p.csv"
    )
    assert result.status == 0
    assert json.loads(result.out) == json.loads((trained / "evaluation.json").read_text())
    assert json.loads((tmp_path / "e/evaluation.json").read_text()) == json.loads(result.out)
    assert len((tmp_path / "p.csv").read_text().splitlines()) - 1 == json.loads(result.out)["images"]
    assert "were trained on" in run("evaluate", trained, "--split", "train").out
