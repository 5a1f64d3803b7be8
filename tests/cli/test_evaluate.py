"""`skipnets evaluate`."""

from __future__ import annotations

import json
from pathlib import Path


def test_evaluation_is_training_s_own_and_prints_json(trained: Path, tmp_path: Path, run) -> None:
    result = run(
        "evaluate", trained, "--json", "--output", tmp_path / "e", "--predictions", tmp_path / "p.csv"
    )
    assert result.status == 0
    printed = json.loads(result.out)
    assert printed.pop("written") == [str(tmp_path / "e"), str(tmp_path / "p.csv")]
    assert printed == json.loads((trained / "evaluation.json").read_text())
    assert printed == json.loads((tmp_path / "e/evaluation.json").read_text())
    assert len((tmp_path / "p.csv").read_text().splitlines()) - 1 == printed["images"]
    assert "were trained on" in " ".join(run("evaluate", trained, "--split", "train").out.split())
