"""`skipnets tune`."""

from __future__ import annotations

from pathlib import Path

from tests.helpers.commands import TINY


def test_tuning_prints_trials_and_writes_its_page(photos: Path, tmp_path: Path, run) -> None:
    fixed = [*TINY, "--epochs", 1, "--workers", 0, "--augmentation", "none", "--weight-decay", 0.001]
    words = ["--time", "10m", "--trials", 1, "--batch-size", 8, "--out", tmp_path / "tuned", *fixed]
    result = run("tune", photos, *words)
    assert result.status == 0
    assert "trial 1: val accuracy" in result.err
    assert "skipnets train --config" in result.out
    assert result.out.splitlines()[-1] == str(tmp_path / "tuned" / "trials.html")
    assert (tmp_path / "tuned" / "trials.html").is_file()
    wrong = run("tune", photos, "--resume", tmp_path / "tuned")
    assert wrong.status == 2
    assert "--resume must be given with --time, --trials" in wrong.err
