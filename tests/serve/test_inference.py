"""The Open Inference Protocol (KServe V2)."""

from __future__ import annotations

import base64
import io
import json
import struct
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image
from tests.helpers.serving import CLASSES, SCALES, Serving, detail, make_image, upload

from skipnets.classifier import Classifier
from skipnets.errors import UserError
from skipnets.scaling import TargetScale
from skipnets.serve import Limits
from skipnets.serve.inference import read_inference

INFER = "/v2/models/resnet20/infer"


def in_json(*images: bytes, **more: Any) -> dict[str, Any]:
    data = [base64.b64encode(image).decode() for image in images]
    return {"inputs": [{"name": "images", "shape": [len(images)], "datatype": "BYTES", "data": data}], **more}


def outputs(response: httpx.Response) -> dict[str, Any]:
    assert response.status_code == 200, response.text
    return {output["name"]: output["data"] for output in response.json()["outputs"]}


def test_answers_are_those_of_our_own_interface(serving: Serving) -> None:
    client = serving()
    images = [make_image(name) for name in ("blue", "red")]
    ours = client.post("/v1/predict", files=upload(*images), params={"top_k": 3}).json()["predictions"]
    found = client.post(INFER, json=in_json(*images, id="7"))
    assert (found.json()["id"], found.json()["model_name"]) == ("7", "resnet20")
    assert outputs(found)["labels"] == [row["label"] for row in ours] == ["blue", "red"]
    rows = np.array(outputs(found)["probabilities"]).reshape(2, 3)
    for row, expected in zip(rows, ours, strict=True):
        shares = {entry["label"]: entry["probability"] for entry in expected["ranking"]}
        assert row == pytest.approx([shares[name] for name in CLASSES], abs=1e-7)


def test_several_labels_are_one_text(serving: Serving, colors: Classifier) -> None:
    colors.task, colors.thresholds = "multi-label", (0.9, 0.9, 0.9)
    client = serving()
    images = [make_image((255, 255, 0)), make_image((0, 0, 0))]
    found = outputs(client.post(INFER, json=in_json(*images)))
    assert [set(text.split("|")) for text in found["labels"]] == [{"red", "green"}, {""}]
    probabilities = np.array(found["probabilities"]).reshape(2, 3)
    assert (probabilities[1] < 0.9).all()
    parameters = client.get("/v2/models/resnet20").json()["parameters"]
    assert parameters["thresholds"] == [0.9, 0.9, 0.9]


def test_a_regression_has_values_alone(serving: Serving, colors: Classifier) -> None:
    colors.task, colors.scales = "regression", SCALES
    client = serving()
    images = [make_image(color, (16, 16)) for color in ("red", "blue")]
    found = outputs(client.post(INFER, json=in_json(*images)))
    assert list(found) == ["values"]
    assert found["values"] == pytest.approx(
        [100 + 2200 / 16, 30 / 16, 20 / 16, 100 + 200 / 16, 40 / 16, 210 / 16]
    )
    metadata = client.get("/v2/models/resnet20").json()
    assert metadata["outputs"] == [{"name": "values", "datatype": "FP64", "shape": [-1, 3]}]
    assert metadata["parameters"] == {"targets": list(CLASSES)}
    request = in_json(make_image("red")) | {"outputs": [{"name": "labels"}]}
    assert "there is no 'labels'; the model has values" in client.post(INFER, json=request).json()["error"]


def test_numbers_far_from_zero_keep_their_digits(serving: Serving, colors: Classifier) -> None:
    colors.task, colors.scales = "regression", (TargetScale(mean=1.7e9, std=16.0),) * 3
    client = serving()
    request = in_json(make_image("red", (16, 16)))
    values = outputs(client.post(INFER, json=request))["values"]
    assert values[0] - 1.7e9 == pytest.approx(220, abs=1e-4)  # float32 would round to multiples of 128
    answer = client.post(INFER, json=request | {"parameters": {"binary_data_output": True}})
    length = int(answer.headers["inference-header-content-length"])
    assert np.frombuffer(answer.content[length:], "<f8").tolist() == values


def test_pixels_get_the_same_answers_as_files(serving: Serving) -> None:
    client = serving()
    pixels = np.asarray(Image.open(io.BytesIO(make_image("green"))))[None]
    tensor = {
        "name": "images",
        "shape": list(pixels.shape),
        "datatype": "UINT8",
        "data": pixels.ravel().tolist(),
    }
    by_pixels = client.post(INFER, json={"inputs": [tensor], "outputs": [{"name": "probabilities"}]})
    by_file = client.post(INFER, json=in_json(make_image("green")))
    assert list(outputs(by_pixels)) == ["probabilities"]
    assert outputs(by_pixels)["probabilities"] == outputs(by_file)["probabilities"]


def test_tensors_behind_the_json(serving: Serving) -> None:
    client = serving()
    images = [make_image("red"), make_image("blue")]
    packed = b"".join(struct.pack("<I", len(image)) + image for image in images)
    head = json.dumps(
        {
            "inputs": [
                {
                    "name": "images",
                    "shape": [2],
                    "datatype": "BYTES",
                    "parameters": {"binary_data_size": len(packed)},
                }
            ],
            "parameters": {"binary_data_output": True},
        }
    ).encode()
    headers = {"inference-header-content-length": str(len(head))}
    response = client.post(INFER, content=head + packed, headers=headers)
    assert response.status_code == 200
    length = int(response.headers["inference-header-content-length"])
    answer, binary = json.loads(response.content[:length]), response.content[length:]
    [shares, labels] = answer["outputs"]
    first = shares["parameters"]["binary_data_size"]
    rows = np.frombuffer(binary[:first], "<f4").reshape(shares["shape"])
    assert [CLASSES[row.argmax()] for row in rows] == ["red", "blue"]
    assert rows.sum(axis=1) == pytest.approx([1, 1])
    assert binary[first:] == b"\x03\0\0\0red\x04\0\0\0blue"
    assert labels["shape"] == [2]


def test_health_and_metadata(serving: Serving) -> None:
    client = serving()
    assert client.get("/v2").json()["extensions"] == ["binary_tensor_data"]
    assert client.get("/v2/health/live").json() == {"live": True}
    assert client.get("/v2/health/ready").json() == {"ready": True}
    for path in ("/v2/models/resnet20", "/v2/models/resnet20/versions/1"):
        about = client.get(path).json()
        assert about["inputs"] == [{"name": "images", "datatype": "BYTES", "shape": [-1]}]
        assert about["outputs"][0] == {"name": "probabilities", "datatype": "FP32", "shape": [-1, 3]}
        assert client.get(f"{path}/ready").json()["ready"] is True
        assert client.get("/v2/models/other/ready").status_code == 404
    wrong = client.post("/v2/models/other/infer", json=in_json(make_image("red")))
    assert "this server has 'resnet20'" in wrong.json()["error"]
    metrics = client.get("/metrics").text
    assert 'path="/v2/infer",status="404"' in metrics
    assert "other/infer" not in metrics


def test_what_clients_get_wrong_is_one_line(serving: Serving, colors: Classifier) -> None:
    client = serving(limits=Limits(files=2, body_bytes=100_000), token="Sesame")
    assert client.get("/v2/health/ready").status_code == 200
    assert "token" in client.get("/v2").json()["error"]
    client.headers["authorization"] = "Bearer Sesame"
    image = make_image("red")
    bad = {
        "images: there may be 2": in_json(image, image, image),
        "not an image in a known format": in_json(image, b"no image"),
        "inputs: must be one, named images": {"inputs": []},
        "outputs: there is no 'logits'": in_json(image, outputs=[{"name": "logits"}]),
    }
    for said, request in bad.items():
        response = client.post(INFER, json=request)
        assert response.status_code == 400
        assert said in response.json()["error"]
    assert client.post(INFER, content=b"x" * 200_000).status_code == 413
    response = client.post(INFER, json=in_json(image), headers={"content-encoding": "gzip"})
    assert response.status_code == 415
    assert detail(client.get("/v1/examples/9"), 404)  # beside it, our own interface keeps its form


def tensor(**fields: Any) -> dict[str, Any]:
    return {"inputs": [{"name": "images", "shape": [1], "datatype": "BYTES", "data": ["AAAA"]} | fields]}


@pytest.mark.parametrize(
    ("request_", "said"),
    [
        ([], "inputs: must be in a JSON object"),
        ({"inputs": 1}, "inputs: must be of type list"),
        ({"inputs": [1]}, "name: must be in a JSON object"),
        (tensor(name="other"), "inputs: must be one, named images"),
        (tensor(datatype="FP32"), "datatype=FP32: must be BYTES .* or UINT8"),
        (tensor(shape=[2]), r"shape=\[2\]: must be \[1\], the number of images"),
        (tensor(shape=[-1]), "shape=.*: must be of numbers above 0"),
        (tensor(data=["ä"]), "data: must be image files in base64"),
        (tensor(data=[1]), "data: must be image files in base64"),
        (tensor(data=None), "data: must be a list"),
        (tensor(parameters={"binary_data_size": 3}), "binary_data_size=3: 0 bytes follow"),
        (tensor(datatype="UINT8"), r"shape=\[1\]: must be \[N, H, W, 3\]"),
        *(
            (tensor(datatype="UINT8", shape=[1, 2, 2, 3], data=data), "data: must be 1×2×2×3 whole numbers")
            for data in ([1], [[1], [1, 2]], [[[[1] * 3] * 2] * 2, [1]], [None] * 12, ["1"] * 12, [{}] * 12)
        ),
        ({**tensor(), "outputs": [{"name": 1}]}, "name: must be of type str"),
        ({**tensor(), "id": 7}, "id: must be of type str"),
    ],
)
def test_damaged_requests_are_refused(request_: Any, said: str) -> None:
    with pytest.raises(UserError, match=said):
        read_inference(json.dumps(request_).encode(), None, 3)


@pytest.mark.parametrize(
    ("datatype", "wrong", "said"),
    [
        *(
            ("UINT8", value, r"1×2×1×3 whole numbers from 0 to 255$")
            for value in (
                0.87,
                254.5,
                -1,
                -0.5,
                256,
                1e300,
                10**19,
                float("nan"),
                float("inf"),
                True,
                "1",
                None,
            )
        ),
        *(("UINT16", value, "whole numbers from 0 to 65535$") for value in (0.5, -1, 65536, False)),
        *(("INT16", value, "whole numbers from -32768 to 32767$") for value in (0.5, -32769, 32768, True)),
        *(("FP32", value, "1×2×1×3 numbers$") for value in (True, "1.5", None, [1])),
    ],
)
def test_json_numbers_that_a_type_does_not_hold_are_refused(datatype: str, wrong: Any, said: str) -> None:
    request = tensor(datatype=datatype, shape=[1, 2, 1, 3], data=[1, 2, 3, 4, 5, wrong])
    with pytest.raises(UserError, match=f"^data: must be .*{said}"):
        read_inference(json.dumps(request).encode(), None, 3, windowed=True)


@pytest.mark.parametrize(
    ("datatype", "data"),
    [
        ("UINT8", [0, 255, 7.0, 1, 2, 3]),
        ("UINT8", [[[[0, 255, 7]], [[1, 2, 3]]]]),
        ("UINT16", [0, 65535, 1e3, 1, 2, 3]),
        ("INT16", [-32768, 32767, 0, 1, 2, 3]),
        ("FP32", [0.87, -1.5, 7, 1, 2, 3]),
    ],
)
def test_json_numbers_are_taken_as_they_are(datatype: str, data: list[Any]) -> None:
    request = tensor(datatype=datatype, shape=[1, 2, 1, 3], data=data)
    [pixels] = read_inference(json.dumps(request).encode(), None, 3, windowed=True).images
    assert isinstance(pixels, np.ndarray)
    assert pixels.dtype == {"FP32": "f4"}.get(datatype, datatype.lower())
    np.testing.assert_array_equal(pixels, np.reshape(data, (2, 1, 3)).astype(pixels.dtype))


@pytest.mark.parametrize(
    ("body", "length", "said"),
    [
        (b"{", None, "is not JSON"),
        (b"[" * 100_000, None, "is not JSON"),
        (b"{}", "3", "must be at most the body's 2 bytes"),
        (b"{}", "-1", "must be at most the body's 2 bytes"),
        (b"{}", "0" * 5000 + "2", "must be at most the body's 2 bytes"),
        (b"[" + b"[]," * 500_000 + b"[]]", None, "the JSON holds more than 1,000,000 values"),
        (b"[%s]" % (b"1" * 21), None, "is not JSON"),
        ('"😀'.encode() + b"x" * 2**20 + b'"', None, "JSON of more than 1,048,576 bytes must be in ASCII"),
        (b'{"a":{}' + b',"":{}' * 333_334 + b"}", None, "the JSON holds more than 1,000,000 values"),
    ],
)
def test_bodies_that_are_no_requests_are_refused(body: bytes, length: str | None, said: str) -> None:
    with pytest.raises(UserError, match=said):
        read_inference(body, length, 3)


@pytest.mark.parametrize("packed", [b"\1", b"\5\0\0\0ab"])
def test_binary_tensors_cut_short_are_refused(packed: bytes) -> None:
    head = json.dumps(tensor(data=None, parameters={"binary_data_size": len(packed)})).encode()
    with pytest.raises(UserError, match="cut short"):
        read_inference(head + packed, str(len(head)), 3)


def test_images_are_counted_before_they_are_unpacked() -> None:
    packed = struct.pack("<I", 0) * 4
    for shape in ([3], [2]):
        about = tensor(data=None, shape=shape, parameters={"binary_data_size": len(packed)})
        head = json.dumps(about).encode()
        with pytest.raises(UserError, match="images: there may be 2 in a request"):
            read_inference(head + packed, str(len(head)), 3, most_images=2)


def test_no_error_repeats_all_that_was_sent(serving: Serving) -> None:
    client = serving()
    for wrong in (
        {"shape": [0] * 1000},
        {"parameters": {"binary_data_size": "7" * 1000}},
        {"datatype": "7" * 1000},
    ):
        response = client.post(INFER, json=tensor(**wrong))
        assert response.status_code == 400
        assert 20 < len(response.json()["error"]) <= 200
    missing = client.post(INFER.replace("resnet20", "x" * 1000), json=tensor())
    assert missing.status_code == 404
    assert len(missing.json()["error"]) < 250
    long = client.post(INFER, json=in_json(make_image("red"), id="7" * 1001))
    assert "id: must have at most 1,000 characters" in long.json()["error"]
    assert client.post(INFER, json=in_json(make_image("red"), id="7" * 1000)).json()["id"] == "7" * 1000


@pytest.mark.slow  # and only where its client is: pip install "tritonclient[http]"
def test_triton_s_client_is_answered(serving: Serving) -> None:
    triton = pytest.importorskip("tritonclient.http")
    address = serving().base_url
    client = triton.InferenceServerClient(f"{address.host}:{address.port}")
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("resnet20")
    assert client.get_model_metadata("resnet20")["outputs"][1]["name"] == "labels"
    files = np.array([make_image("blue"), make_image("green")], object)
    for binary in (True, False):
        asked = triton.InferInput("images", [2], "BYTES")
        asked.set_data_from_numpy(files)
        wanted = [triton.InferRequestedOutput(name, binary) for name in ("labels", "probabilities")]
        result = client.infer("resnet20", [asked], outputs=wanted)
        assert [bytes(name) if binary else name.encode() for name in result.as_numpy("labels")] == [
            b"blue",
            b"green",
        ]
        assert result.as_numpy("probabilities").shape == (2, 3)
    pixels = triton.InferInput("images", [1, 8, 8, 3], "UINT8")
    pixels.set_data_from_numpy(np.full((1, 8, 8, 3), (220, 30, 20), np.uint8))
    assert client.infer("resnet20", [pixels]).as_numpy("labels")[0] == b"red"
    asked = triton.InferInput("images", [1], "BYTES")
    asked.set_data_from_numpy(np.array([b"no image"], object))
    with pytest.raises(Exception, match="not an image"):
        client.infer("resnet20", [asked])
