"""What clients are answered, over real sockets."""

from __future__ import annotations

import io
import json
import random
import re
import struct
import zlib

import numpy as np
import pytest
from PIL import Image
from tests.helpers.serving import CLASSES, SCALES, Serving, detail, make_image, upload

from skipnets.classifier import Classifier
from skipnets.errors import UserError
from skipnets.models.registry import config_to_dict, model_config
from skipnets.serve import Example, Limits, create_app
from skipnets.uncertainty import CalibrationScores, OutlierDetector, Uncertainty


def test_one_image_gets_the_same_prediction_as_predict(serving: Serving, colors: Classifier) -> None:
    response = serving().post("/v1/predict", files=upload(make_image("green")), params={"top_k": 2})
    assert response.status_code == 200
    [answer] = response.json()["predictions"]
    [expected] = colors.predict([Image.open(io.BytesIO(make_image("green")))], top_k=2)
    assert answer == {
        "file": "0.png",
        "label": expected.label,
        "probability": expected.probability,
        "labels": ["green"],
        "ranking": [{"label": label, "probability": share} for label, share in expected.ranking],
        "error": None,
    }
    assert answer["label"] == "green"
    assert len(answer["ranking"]) == 2


def test_several_labels_come_with_the_probabilities_of_all(serving: Serving, colors: Classifier) -> None:
    colors.task, colors.thresholds = "multi-label", (0.9, 0.9, 0.9)
    client = serving()
    [answer] = client.post("/v1/predict", files=upload(make_image((255, 0, 255)))).json()["predictions"]
    assert set(answer["labels"]) == {"red", "blue"}
    assert answer["label"] is None
    assert len(answer["ranking"]) == 3
    told = client.get("/v1/model").json()
    assert (told["task"], told["thresholds"]) == ("multi-label", [0.9, 0.9, 0.9])


def test_a_regression_answers_with_the_number_of_each_target(serving: Serving, colors: Classifier) -> None:
    colors.task, colors.scales = "regression", SCALES
    client = serving()
    files = upload(make_image("red", (16, 16)), b"none")
    [answer, failed] = client.post("/v1/predict", files=files).json()["predictions"]
    # The network computes a sixteenth of the color.
    assert [each["target"] for each in answer["values"]] == list(CLASSES)
    numbers = [each["value"] for each in answer["values"]]
    assert numbers == pytest.approx([100 + 10 * 220 / 16, 30 / 16, 20 / 16])
    assert (answer["label"], answer["probability"], answer["ranking"]) == (None, None, [])
    assert failed["values"] == []
    assert failed["error"]
    told = client.get("/v1/model").json()
    assert (told["task"], told["scales"][0]) == ("regression", {"mean": 100.0, "std": 10.0})


def test_many_images_get_predictions_in_order(serving: Serving) -> None:
    order = [*CLASSES, *reversed(CLASSES)]
    response = serving().post("/v1/predict", files=upload(*map(make_image, order)))
    assert [answer["label"] for answer in response.json()["predictions"]] == order


def test_undecodable_files_do_not_stop_the_others(serving: Serving) -> None:
    client = serving()
    cut_short = make_image("red", (64, 64))[:60]
    response = client.post("/v1/predict", files=upload(b"no image", make_image("blue"), cut_short, b""))
    assert response.status_code == 200
    first, second, third, fourth = response.json()["predictions"]
    assert second["label"] == "blue"
    assert "not an image in a known format" in first["error"]
    for failed in (first, third, fourth):
        assert failed["error"]
        assert (failed["label"], failed["probability"], failed["ranking"]) == (None, None, [])
    response = client.post("/v1/predict", files=upload(b"no image", b"nor this"))
    assert "no image could be read" in detail(response, 422)
    assert len(response.json()["predictions"]) == 2


def test_what_would_have_no_effect_is_refused(serving: Serving) -> None:
    client = serving()
    image = make_image("red")
    misspelled = client.post("/v1/predict", files=upload(image), params={"topk": "2"})
    assert detail(misspelled, 422) == "topk: there is no such parameter; did you mean top_k?"
    misplaced = client.post("/v1/predict", files=upload(image), data={"top_k": "2"})
    assert detail(misplaced, 422) == "top_k: there is no such field"


def test_top_k_is_bounded(serving: Serving) -> None:
    client = serving()
    for top_k in ("0", "101", "x", "-1"):
        response = client.post("/v1/predict", files=upload(make_image("red")), params={"top_k": top_k})
        assert detail(response, 422).startswith("top_k: ")


def test_what_is_no_form_of_images_is_refused(serving: Serving) -> None:
    client = serving()
    assert "application/json" in detail(client.post("/v1/predict", json={"a": 1}), 415)
    assert "a bare body" in detail(client.post("/v1/predict", content=b"x"), 415)
    form = {"content-type": "multipart/form-data"}
    assert "boundary" in detail(client.post("/v1/predict", content=b"x", headers=form), 400)
    form = {"content-type": "multipart/form-data; boundary=b"}
    for body in (b"x", b"--b\r\n\r\nx\r\n--b--\r\n", b"--b\r\nContent-Disposition: x; name"):
        assert client.post("/v1/predict", content=body, headers=form).status_code in (400, 422)
    assert client.get("/v1/predict").status_code == 405
    assert client.get("/redoc").status_code == 404


# Starlette forgets, and so leaves to the collector, the temporary file of a part that never ends.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_damaged_forms_are_refused_and_never_an_internal_error(serving: Serving) -> None:
    client = serving()
    rng = random.Random(0)
    head = b'--b\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\n\r\n'
    whole = head + make_image("red") + b"\r\n" + head + make_image("blue") + b"\r\n--b--\r\n"
    statuses = set()
    for _ in range(150):
        body = bytearray(whole)
        for _ in range(rng.randint(1, 5)):
            place = rng.randrange(len(body))
            change = rng.choice([b"", b"--b", b"--b--", b"\r\n", b'filename="', b"\xff\0", rng.randbytes(5)])
            body[place : place + rng.randint(0, 9)] = change
        kind = rng.choice(["boundary=b", "boundary=b; charset=rot13", "boundary=", "boundary=\xe4"])
        headers = {"content-type": f"multipart/form-data; {kind}".encode("latin-1")}
        statuses.add(client.post("/v1/predict", content=bytes(body), headers=headers).status_code)
    assert statuses == {200, 400, 422}


def test_no_path_and_no_url_is_read_for_a_client(serving: Serving, tmp_path) -> None:
    path = tmp_path / "red.png"
    path.write_bytes(make_image("red"))
    client = serving()
    for text in (str(path), path.as_uri(), "http://127.0.0.1:9/red.png"):
        response = client.post("/v1/predict", files=[("files", (None, text))])
        assert "there is no image" in detail(response, 422)
        response = client.post("/v1/predict", files=[("files", (text, b"nothing"))])
        assert "not an image" in detail(response, 422)
        response = client.post("/v1/predict", files=[("files", (text, make_image("blue")))])
        [answer] = response.json()["predictions"]
        assert (answer["file"], answer["label"]) == (text, "blue")


def test_the_number_of_files_is_limited(serving: Serving) -> None:
    client = serving(limits=Limits(files=2))
    assert "2" in detail(client.post("/v1/predict", files=upload(*[make_image("red")] * 3)), 400)
    assert client.post("/v1/predict", files=upload(*[make_image("red")] * 2)).status_code == 200


def bomb(width: int, height: int) -> bytes:
    """The header of a PNG that is that large, and nothing behind it."""
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = b"IDAT" + zlib.compress(bytes(100))
    chunks = [
        struct.pack(">I", len(part) - 4) + part + struct.pack(">I", zlib.crc32(part))
        for part in (header, data)
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def test_pixels_are_counted_before_anything_is_decoded(
    serving: Serving, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded = []
    load = Image.Image.load
    monkeypatch.setattr(Image.Image, "load", lambda self: (decoded.append(self.size), load(self))[1])
    client = serving(limits=Limits(pixels=1000))
    files = upload(bomb(60_000, 60_000), bomb(40, 26), make_image("blue", (40, 25)))
    huge, larger, fits = client.post("/v1/predict", files=files).json()["predictions"]
    for refused in (huge, larger):
        assert refused["error"] == (
            "larger than 1,000 pixels, the most that is read; skipnets serve --max-megapixels allows more"
        )
    assert fits["label"] == "blue"
    assert decoded
    assert max(width * height for width, height in decoded) <= 1000


def test_the_model_is_described(serving: Serving, colors: Classifier) -> None:
    about = serving(limits=Limits(files=7)).get("/v1/model").json()
    assert about["name"] == "resnet20"
    assert about["classes"] == list(CLASSES)
    assert about["preprocessing"] == colors.preprocessing.to_dict()
    assert about["provenance"] == {"data": "colors"}
    assert about["runtime"] == {"name": "onnxruntime", "device": "cpu"}
    assert about["limits"]["files"] == 7
    assert about["explains"] is False
    assert "gives no gradients" in about["unexplained"]


def test_openapi_has_an_example_of_every_body(serving: Serving) -> None:
    described = serving().get("/openapi.json").json()
    text = json.dumps(described)
    assert {"/v1/predict", "/v1/explain", "/v1/model", "/healthz", "/readyz", "/metrics"} <= set(
        described["paths"]
    )
    schemas = described["components"]["schemas"]
    for name in re.findall(r"#/components/schemas/(\w+)", text):
        assert name in schemas
    for name in ("Answers", "ModelAnswer"):
        assert schemas[name]["examples"]
    predict = described["paths"]["/v1/predict"]["post"]
    assert predict["requestBody"]["content"]["multipart/form-data"]["schema"]["required"] == ["files"]
    for status in ("413", "503", "504"):
        content = predict["responses"][status]["content"]["application/json"]
        assert content["example"]["detail"]


def test_an_ensemble_of_different_networks_is_named_after_all(serving: Serving, colors: Classifier) -> None:
    assert serving().get("/v1/model").json()["architectures"] == []
    other = config_to_dict(model_config("densenet121", num_classes=3))
    colors.ensemble, colors.architectures = 2, (colors.architecture, other)
    client = serving()
    answer = client.get("/v1/model").json()
    assert answer["name"] == "resnet20+densenet121"
    assert answer["architectures"] == [answer["architecture"], other]
    assert client.get("/v2/models/resnet20+densenet121").json()["name"] == answer["name"]


def test_examples_are_shown_by_their_number_alone(serving: Serving) -> None:
    example = Example(name="one", content=make_image("red"), media_type="image/png")
    client = serving(examples=[example])
    assert client.get("/v1/model").json()["examples"] == ["one"]
    response = client.get("/v1/examples/0")
    assert (response.content, response.headers["content-type"]) == (example.content, "image/png")
    assert "there are 1 examples" in detail(client.get("/v1/examples/1"), 404)
    assert client.get("/v1/examples/..%2Fx").status_code in (404, 422)


def test_sets_and_rejection_are_those_of_predict(serving: Serving, colors: Classifier) -> None:
    colors.uncertainty = Uncertainty(
        temperature=colors.temperature,
        tta="none",
        sets=CalibrationScores.of(np.linspace(0, 0.999, 99)),
        outliers=OutlierDetector(
            score="max-logit", calibration=CalibrationScores.of(-np.linspace(0, 20, 99))
        ),
    )
    asked = {"coverage": 0.99, "reject": 0.3}
    images = [make_image(color) for color in ("green", (40, 40, 40), (255, 0, 255))]
    answers = serving(**asked).post("/v1/predict", files=upload(*images, b"none")).json()["predictions"]
    expected = colors.predict([Image.open(io.BytesIO(image)) for image in images], **asked)
    for answer, prediction in zip(answers, expected, strict=False):
        assert tuple(answer["prediction_set"]) == prediction.prediction_set
        assert (answer["p_value"], answer["rejected"]) == (prediction.p_value, prediction.rejected)
        assert answer["label"] == prediction.label
    assert {answer["rejected"] for answer in answers[:3]} == {True, False}
    assert max(len(answer["prediction_set"]) for answer in answers[:3]) > 1
    assert not {"prediction_set", "p_value", "rejected"} & set(answers[3])


def test_views_of_an_image_are_averaged(serving: Serving, colors: Classifier) -> None:
    half = np.zeros((16, 16, 3), np.uint8)
    half[:, 14:] = (250, 20, 20)  # the margin, which crops show more or less of
    file = io.BytesIO()
    Image.fromarray(half).save(file, "PNG")
    [plain] = colors.predict([Image.fromarray(half)], top_k=3)
    colors.tta = "crops"
    [averaged] = colors.predict([Image.fromarray(half)], top_k=3)
    [answer] = serving().post("/v1/predict", files=upload(file.getvalue())).json()["predictions"]
    assert answer["probability"] == pytest.approx(averaged.probability)
    assert answer["probability"] != pytest.approx(plain.probability, abs=1e-4)


def test_a_share_that_is_none_is_refused_at_once() -> None:
    with pytest.raises(UserError, match=r"^reject=2: must be above 0 and below 1"):
        create_app("model", reject=2)
