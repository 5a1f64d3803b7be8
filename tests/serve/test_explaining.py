"""Where a classifier looked, as clients get it."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace

import httpx
import numpy as np
import pytest
import torch
from PIL import Image
from tests.helpers.serving import ready, served, wait_until

from skipnets.classifier import Classifier
from skipnets.data.preprocessing import Preprocessing
from skipnets.insight import explain
from skipnets.models.factory import create_model
from skipnets.serve import create_app
from skipnets.serve.explaining import _scale_for_a_screen, why_unexplained


@pytest.fixture(scope="module")
def classifier() -> Classifier:
    torch.manual_seed(0)
    return Classifier.from_model(
        create_model("resnet20", num_classes=3, width=4).eval(),
        classes=("ant", "bee", "cat"),
        preprocessing=Preprocessing(size=32, fit="crop"),
    )


@pytest.fixture(scope="module")
def client(classifier: Classifier) -> Iterator[httpx.Client]:
    app = create_app(classifier)
    with served(app) as asking:
        wait_until(ready(app))
        yield asking


def make_image(width: int, height: int) -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize((width, height), Image.Resampling.BOX)


def as_file(image: Image.Image) -> io.BytesIO:
    file = io.BytesIO()
    image.save(file, "PNG")
    file.seek(0)
    return file


def test_what_would_have_no_effect_is_refused(client: httpx.Client) -> None:
    for params, fields, said in (
        ({"label": "bee"}, {}, "label: there is no such parameter"),
        ({}, {"lable": "bee"}, "lable: there is no such field; did you mean label?"),
    ):
        image = {"file": as_file(make_image(40, 30))}
        response = client.post("/v1/explain", files=image, params=params, data=fields)
        assert (response.status_code, response.json()) == (422, {"detail": said})


@pytest.mark.parametrize(
    ("size", "shown"), [((64, 48), (384, 288)), ((500, 400), (500, 400)), ((2048, 1000), (1024, 500))]
)
def test_an_image_comes_back_colored_in_a_size_for_screens(
    client: httpx.Client, size: tuple[int, int], shown: tuple[int, int]
) -> None:
    assert client.get("/v1/model").json()["explains"] is True
    response = client.post("/v1/explain", files={"file": as_file(make_image(*size))}, data={"label": "cat"})
    assert response.headers["content-type"] == "image/png"
    colored = Image.open(io.BytesIO(response.content))
    assert colored.size == shown
    assert np.ptp(np.asarray(colored, int), axis=2).max() > 40


def test_without_a_class_it_is_the_most_probable_one(client: httpx.Client, classifier: Classifier) -> None:
    image = make_image(64, 48)
    [prediction] = classifier.predict([image])
    answers = [
        client.post("/v1/explain", files={"file": as_file(image)}, data=data).content
        for data in ({}, {"label": prediction.label})
    ]
    assert answers[0] == answers[1]


def test_what_cannot_be_explained_is_refused_in_one_line(client: httpx.Client) -> None:
    image = as_file(make_image(40, 40)).getvalue()
    for files, data, said in (
        ({"file": image}, {"label": "dog"}, "label=dog: must be a class of the classifier: ant, bee, cat"),
        ({"file": b"no image"}, {}, "not an image in a known format"),
        ([("file", image), ("file", image)], {}, "Too many files"),
    ):
        response = client.post("/v1/explain", files=files, data=data)
        assert response.status_code in (400, 422)
        assert said in response.json()["detail"]
    assert client.post("/v1/explain", files={"file": image}).status_code == 200


def test_the_map_keeps_its_place_on_a_smaller_image(classifier: Classifier) -> None:
    [[explanation]] = explain(classifier, [make_image(2048, 1024)])
    small = explanation.resized(_scale_for_a_screen(explanation.image))
    assert small.image.size == (1024, 512)
    halved = explanation.map().reshape(512, 2, 1024, 2).mean((1, 3))
    difference = np.abs(small.map() - halved)
    # But for the pixels at the edge of what the network saw.
    assert np.quantile(difference, 0.99) < 1e-3 * np.abs(halved).max()
    moved = replace(small, box=explanation.box).map()
    assert np.quantile(np.abs(moved - halved), 0.99) > 0.1 * np.abs(halved).max()


def test_only_a_module_in_pytorch_can_explain(classifier: Classifier) -> None:
    assert why_unexplained(classifier) is None
    of_export = "gives no gradients of an export; serve the model file with --runtime torch"
    for name, export, said in (
        ("torch", {"format": "pt2"}, f"runtime torch {of_export}"),
        ("openvino", {"format": "openvino"}, f"runtime openvino {of_export}"),
        ("native", None, "the native engine gives no gradients; --runtime torch does"),
    ):
        other = Classifier(
            architecture=classifier.architecture,
            classes=classifier.classes,
            preprocessing=classifier.preprocessing,
            provenance={},
            runtime=SimpleNamespace(name=name, device="cpu"),  # type: ignore[arg-type]
            export=export,
        )
        assert why_unexplained(other) == said
