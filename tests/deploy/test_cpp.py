"""The C++ program of the guide compiles and says what Python says."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import openvino
import pytest
from tests.helpers.classifiers import some_image

from skipnets.classifier import load
from skipnets.deploy.export import Export

SOURCE = Path(__file__).parents[2] / "docs" / "guide" / "predict.cpp"


@pytest.mark.slow
def test_the_guides_program(exports: dict[str, Export], tmp_path: Path) -> None:
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("needs g++")
    home = Path(openvino.__file__).parent
    (library,) = (home / "libs").glob("libopenvino.so.*")
    words = [
        "-std=c++17",
        "-Wall",
        "-Werror",
        "-I",
        home / "include",
        SOURCE,
        library,
        "-o",
        tmp_path / "predict",
    ]
    subprocess.run([compiler, *words, f"-Wl,-rpath,{home / 'libs'}"], check=True)
    exported = load(exports["openvino"].path)
    for seed in range(5):
        pixels = exported.preprocessing.pixels(some_image(seed=seed))
        result = subprocess.run(
            [tmp_path / "predict", exports["openvino"].path, *map(str, pixels.shape[:2])],
            input=pixels.tobytes(),
            capture_output=True,
            check=True,
        )
        assert int(result.stdout) == exported.logits(exported.preprocessing.planes(pixels[None])).argmax()
