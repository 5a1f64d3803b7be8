"""An evaluation in a run folder is read, whichever version wrote it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.helpers.results import make_predictions, write_results

from skipnets import run_folder
from skipnets.errors import UserError


def test_metrics_are_read_back(tmp_path: Path) -> None:
    folder = write_results(tmp_path, *make_predictions(0, 30, 1.0))
    metrics = run_folder.read_evaluation(folder)
    assert metrics == json.loads((folder / "evaluation.json").read_text())
    # Version 0.1 had another word for images.
    old = {("pictures" if key == "images" else key): value for key, value in metrics.items()}
    (folder / "evaluation.json").write_text(json.dumps(old))
    assert run_folder.read_evaluation(folder) == metrics


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"evaluation\.json"):
        run_folder.read_evaluation(tmp_path)
    for text, message in (("{", "not JSON"), ("[1]", "must be a JSON object")):
        (tmp_path / "evaluation.json").write_text(text)
        with pytest.raises(UserError, match=rf"evaluation\.json: {message}"):
            run_folder.read_evaluation(tmp_path)


def test_no_two_files_have_one_name() -> None:
    names = [value for key, value in vars(run_folder).items() if key.isupper()]
    assert len(set(names)) == len(names) > 10
