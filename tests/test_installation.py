"""`pip install .` without extras is all that predicting from an export needs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from tests.helpers.classifiers import some_image

from skipnets.classifier import Classifier
from skipnets.deploy.export import Export

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
def test_an_onnx_file_is_predicted_from_without_torch(
    exports: dict[str, Export], exported_classifier: Classifier, tmp_path: Path
) -> None:
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
    programs = tmp_path / "venv" / ("Scripts" if sys.platform == "win32" else "bin")
    installed = subprocess.run(
        [programs / "python", "-m", "pip", "install", "--quiet", ROOT],
        capture_output=True,
        text=True,
        check=False,
    )
    if "Failed to establish a new connection" in installed.stderr:
        pytest.skip("needs a package index")
    assert installed.returncode == 0, installed.stderr
    Image.fromarray(some_image()).save(tmp_path / "odd.jpg")
    predicted = subprocess.run(
        [programs / "skipnets", "predict", exports["onnx"].path, tmp_path / "odd.jpg", "--top-k", "3"],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
    )
    assert (predicted.returncode, predicted.stderr) == (0, "")
    expected = exported_classifier.predict([tmp_path / "odd.jpg"], 3)[0].ranking
    _, *ranking = predicted.stdout.split("\t")
    assert ranking[::2] == [label for label, _ in expected]
    assert [float(share) for share in ranking[1::2]] == pytest.approx(
        [probability for _, probability in expected], abs=1e-4
    )
    there = subprocess.run(
        [programs / "python", "-c", "import importlib.util; print(importlib.util.find_spec('torch'))"],
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
    )
    assert there.stdout == "None\n"
