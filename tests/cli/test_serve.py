"""`skipnets serve`."""

from __future__ import annotations

import io
import signal
from pathlib import Path

import httpx
import pytest
from PIL import Image
from tests.helpers.modules import modules_imported_anew
from tests.helpers.serving import announced, make_image, started

from skipnets.classifier import Classifier
from skipnets.cli import main
from skipnets.data.preprocessing import Preprocessing
from skipnets.errors import missing_extra
from skipnets.models.factory import create_model

# `skipnets serve`; at the end it tells which of the heavy libraries were loaded.
COMMAND = """
import sys
from skipnets.cli import main
status = main(sys.argv[1:])
print("heavy:", *sorted({"torch", "torchvision", "matplotlib", "scipy"} & set(sys.modules)))
sys.exit(status)
"""


def test_an_onnx_file_is_served_without_torch(colors_onnx: Path) -> None:
    with started(COMMAND, "serve", colors_onnx, "--port", 0, "--threads", 1) as process:
        line, address = announced(process)
        assert line == (
            f"{address}: serving resnet20 (3 classes) in onnxruntime on cpu; no Grad-CAM: "
            "runtime onnxruntime gives no gradients of an export; serve the model file with --runtime torch\n"
        )
        answer = httpx.post(f"{address}/v1/predict", files={"files": make_image("green")}).json()
        assert answer["predictions"][0]["label"] == "green"
        assert httpx.get(address).status_code == 200
        explanation = httpx.post(f"{address}/v1/explain", files={"file": make_image("green")})
        assert explanation.status_code == 501
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=20)
    assert (process.returncode, out, err) == (0, "heavy:\n", "")


def test_a_model_file_is_served_by_the_engine_without_torch(tmp_path: Path) -> None:
    pytest.importorskip("skipnets_engine", reason="needs the native engine: pip install ./engine")
    network = create_model("resnet20", num_classes=3, width=4).eval()
    made = Classifier.from_model(network, classes=("a", "b", "c"), preprocessing=Preprocessing(size=32))
    made.save(tmp_path / "model.safetensors")
    [expected] = made.predict([Image.open(io.BytesIO(make_image("green")))])
    with started(COMMAND, "serve", tmp_path, "--port", 0, "--runtime", "native") as process:
        line, address = announced(process)
        said = "no Grad-CAM: the native engine gives no gradients; --runtime torch does"
        assert line.endswith(f"in native on cpu; {said}\n")
        assert said.endswith(httpx.get(f"{address}/v1/model").json()["unexplained"])
        [answer] = httpx.post(f"{address}/v1/predict", files={"files": make_image("green")}).json()[
            "predictions"
        ]
        assert answer["label"] == expected.label
        assert answer["probability"] == pytest.approx(expected.probability, abs=1e-5)
        process.terminate()
        assert process.communicate(timeout=20)[0] == "heavy:\n"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--port", "70000"], "--port=70000: must be from 0 to 65535"),
        (["--host", "256.0.0.1", "--no-token"], "--host=256.0.0.1: not an address of this machine"),
        (["--host", "203.0.113.7", "--no-token"], "--host=203.0.113.7: not an address of this machine"),
        (["--host", "0.0.0.0"], "--host=0.0.0.0: every machine that reaches it could use the server"),
        (["--max-image-memory", "0"], "--max-image-memory=0.0: must be a finite number above 0"),
        (["--batch-size", "0"], "--batch-size=0: must be at least 1"),
        (["--workers", "0"], "--workers=0: must be at least 1"),
        (["--max-files", "0"], "--max-files=0: must be a finite number above 0"),
        (["--max-megapixels", "0"], "--max-megapixels=0.0: must be a finite number above 0"),
        *(
            ([f"--{name}", value], f"--{name}={float(value)}: must be a finite number above 0")
            for name in ("max-megabytes", "max-megapixels", "max-image-memory", "timeout", "timeout-head")
            for value in ("inf", "nan")
        ),
        (["--max-megabytes", "1e308"], "--max-megabytes=1e+308: must be a finite number above 0"),
        (["--batch-delay", "inf"], "--batch-delay=inf: must be from 0 to 1 second"),
        (["--batch-delay", "nan"], "--batch-delay=nan: must be from 0 to 1 second"),
        (["--coverage", "nan"], "--coverage=nan: must be above 0 and below 1"),
        (["--reject", "inf"], "--reject=inf: must be above 0 and below 1"),
        (["--examples", "nowhere"], "nowhere"),
        (["--token", ""], "--token is empty"),
        (["--token", "ü"], "--token must be printable ASCII"),
        (["--port", "0", "--threads", "0"], "--threads=0: must be at least 1"),
        (["--port", "0", "--runtime", "torch"], "runs only in onnxruntime"),
    ],
)
def test_wrong_options_are_one_line_and_status_2(
    words: list[str], said: str, colors_onnx: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["serve", str(colors_onnx), *words]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert said in line


def test_a_model_that_is_not_there_is_one_line_and_status_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["serve", str(tmp_path / "none.onnx"), "--port", "0"]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert "none.onnx does not exist" in line


@pytest.mark.parametrize("library", ["fastapi", "uvicorn", "prometheus_client", "python_multipart"])
def test_a_missing_extra_says_what_to_install(
    library: str, colors_onnx: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with modules_imported_anew("skipnets.serve", missing=library):
        assert main(["serve", str(colors_onnx), "--port", "0"]) == 2
    assert capsys.readouterr().err == f"skipnets: {missing_extra('serve')}\n"


def test_the_token_may_come_from_the_environment(colors_onnx: Path) -> None:
    with started(COMMAND, "serve", colors_onnx, "--port", 0, SKIPNETS_TOKEN="Sesame") as process:
        _, address = announced(process)
        assert httpx.get(f"{address}/v1/model").status_code == 401
        assert httpx.get(f"{address}/v1/model", headers={"authorization": "Bearer Sesame"}).status_code == 200
