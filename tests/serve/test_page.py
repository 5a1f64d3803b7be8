"""The page in a real browser: Debian's Chromium, driven by Playwright."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tests.helpers.browser import chromium
from tests.helpers.serving import make_colors, make_image, make_number_colors, ready, served, wait_until

from skipnets.classifier import Classifier, RegressionPrediction, load
from skipnets.data.preprocessing import Preprocessing
from skipnets.models.factory import create_model
from skipnets.serve import Example, Limits, create_app
from skipnets.tables import number_text
from skipnets.training import Run


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as opened:
        yield opened


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Classifier:
    """A real network in PyTorch, which can say where it looks."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("page") / "model.safetensors"
    made = Classifier.from_model(
        create_model("resnet20", num_classes=3, width=4).eval(),
        classes=("ant", "bee", "<b>cat</b>"),
        preprocessing=Preprocessing(size=32),
    )
    made.save(path)
    return load(path, runtime="torch", device="cpu")


@pytest.fixture(scope="module")
def address(classifier: Classifier) -> Iterator[str]:
    examples = [Example(name="first", content=make_image("blue"), media_type="image/png")]
    app = create_app(classifier, examples=examples, limits=Limits(body_bytes=300_000))
    with served(app) as client:
        wait_until(ready(app))
        yield str(client.base_url)


class Visit:
    """A page that is open, and what it said and asked for meanwhile."""

    def __init__(self, browser: Any, address: str, **options: Any) -> None:
        self.address = address
        self.said: list[str] = []
        self.asked_for: list[str] = []
        self.context = browser.new_context(**options)
        self.page = self.context.new_page()
        self.page.set_default_timeout(10_000)
        self.page.on("console", lambda message: self.said.append(message.text))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.on("request", lambda request: self.asked_for.append(request.url))
        self.page.goto(address)

    def __enter__(self) -> Any:
        return self.page

    def __exit__(self, failed: object, *_: object) -> None:
        self.context.close()
        if failed is None:
            # What the policy blocks, and what goes wrong, would be said here.
            assert [text for text in self.said if "401" not in text and "422" not in text] == []
            assert [
                url for url in self.asked_for if not url.startswith((self.address, "blob:", "data:"))
            ] == []


def noise(seed: int) -> bytes:
    file = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def chosen(name: str, content: bytes) -> dict[str, Any]:
    return {"name": name, "mimeType": "image/png", "buffer": content}


def label_of(classifier: Classifier, content: bytes) -> str:
    [prediction] = classifier.predict([Image.open(io.BytesIO(content))])
    assert prediction.label is not None
    return prediction.label


def transfer(page: Any, name: str, content: bytes) -> Any:
    """What a paste or a drop carries."""
    return page.evaluate_handle(
        """([name, content]) => {
            const carried = new DataTransfer();
            const bytes = Uint8Array.from(atob(content), (letter) => letter.charCodeAt(0));
            carried.items.add(new File([bytes], name, { type: "image/png" }));
            return carried;
        }""",
        [name, base64.b64encode(content).decode()],
    )


def test_numbers_are_shown_with_their_targets(browser: Any) -> None:
    colors = make_number_colors()
    app = create_app(colors)
    with served(app) as client:
        wait_until(ready(app))
        with Visit(browser, str(client.base_url)) as page:
            page.get_by_text("The model predicts a number for each of these targets").wait_for()
            assert "3 targets" in page.inner_text("#about")
            page.set_input_files("#files", [chosen("one.png", noise(1)), chosen("notes.txt", b"no image")])
            page.locator("#ranking li").first.wait_for()
            [prediction] = colors.predict([Image.open(io.BytesIO(noise(1)))])
            assert isinstance(prediction, RegressionPrediction)
            expected = [[name, number_text(value)] for name, value in prediction.values]
            assert [row.splitlines() for row in page.locator("#ranking li").all_inner_texts()] == expected
            assert page.inner_text("#verdict") == expected[0][1]
            assert page.inner_text("#sure") == "red"
            assert page.inner_text("#announcement") == "one.png: " + "; ".join(map(" ".join, expected)) + "."
            page.get_by_role("button", name="notes.txt").click()
            page.get_by_role("alert").get_by_text("could not be read: not an image").wait_for()


def test_labels_of_a_run_are_shown_with_their_thresholds(browser: Any, label_run: Run) -> None:
    """Of scanned digits, computed by the engine where there is one: all labels, and those that are found."""
    classifier = load(label_run)
    image = Path(label_run.config.data).with_name("003.png")
    [prediction] = classifier.predict(image)
    assert classifier.thresholds is not None
    app = create_app(classifier)
    with served(app) as client:
        wait_until(ready(app))
        with Visit(browser, str(client.base_url)) as page:
            page.locator("#chips li").first.wait_for()
            assert "3 labels" in page.inner_text("#about")
            assert page.locator("#chips li").all_inner_texts() == list(classifier.classes)
            page.set_input_files("#files", [chosen(image.name, image.read_bytes())])
            rows = page.locator("#ranking li")
            rows.first.wait_for()
            shown = [row.splitlines()[0] for row in rows.all_inner_texts()]
            assert shown == [
                f"✓ {name}" if name in prediction.labels else name for name, _ in prediction.ranking
            ]
            assert page.inner_text("#verdict") == ", ".join(prediction.labels) or "None of the labels"
            assert f"{len(prediction.labels)} of 3 labels reach their thresholds" in page.inner_text("#sure")
            marks = [mark.get_attribute("title") for mark in page.locator("#ranking li u").all()]
            limits = dict(zip(classifier.classes, classifier.thresholds, strict=True))
            assert len(marks) == 3
            for mark, (name, _) in zip(marks, prediction.ranking, strict=True):
                assert mark == f"threshold {100 * limits[name]:.1f}%"


def test_an_image_is_chosen_pasted_dropped_or_taken_from_the_examples(
    browser: Any, address: str, classifier: Classifier
) -> None:
    with Visit(browser, address) as page:
        page.get_by_text("The model predicts a probability").wait_for()
        assert page.locator("#chips li").all_inner_texts() == list(classifier.classes)

        page.set_input_files("#files", [chosen("one.png", noise(1)), chosen("notes.txt", b"no image")])
        page.locator("#ranking li").first.wait_for()
        assert page.inner_text("#verdict") == label_of(classifier, noise(1))
        [prediction] = classifier.predict([Image.open(io.BytesIO(noise(1)))], top_k=3)
        rows = [text.splitlines() for text in page.locator("#ranking li").all_inner_texts()]
        assert [row[0] for row in rows] == [label for label, _ in prediction.ranking]
        assert [row[1] for row in rows] == [f"{100 * share:.1f}%" for _, share in prediction.ranking]
        wait_until(lambda: page.locator(".track i").first.bounding_box()["width"] > 20)
        assert page.inner_text("#announcement").startswith(f"one.png: {prediction.label}, ")

        page.get_by_role("button", name="notes.txt").click()
        page.get_by_role("alert").get_by_text("could not be read: not an image").wait_for()
        assert page.inner_text("#verdict") == "No prediction"

        for number, (name, way) in enumerate((("pasted.png", "paste"), ("dropped.png", "drop")), start=2):
            page.evaluate(
                """([way, carried]) => dispatchEvent(
                    way === "paste" ? new ClipboardEvent(way, { clipboardData: carried, cancelable: true })
                                    : new DragEvent(way, { dataTransfer: carried, cancelable: true }))""",
                [way, transfer(page, name, noise(number))],
            )
            page.get_by_text("Answered in").wait_for()
            assert page.inner_text("#name") == name
            assert page.inner_text("#verdict") == label_of(classifier, noise(number))
        assert page.locator("#alert").is_hidden()

        page.get_by_role("button", name="Example 1: first").press("Enter")
        page.locator("#name").get_by_text("first").wait_for()
        page.get_by_text("Answered in").wait_for()
        assert page.inner_text("#verdict") == label_of(classifier, make_image("blue"))
        assert page.locator("#seen .thumb").count() == 5

        page.set_input_files("#files", [chosen("large.png", bytes(400_000))])
        page.get_by_role("alert").get_by_text("the server takes up to 0.3 MB").wait_for()


def test_the_overlay_shows_the_evidence_for_a_class(browser: Any, address: str) -> None:
    with Visit(browser, address) as page:
        page.set_input_files("#files", [chosen("one.png", noise(1))])
        button = page.get_by_role("button", name="Grad-CAM", exact=True)
        button.click()
        page.locator(".explaining").wait_for()
        assert button.get_attribute("aria-pressed") == "true"
        wait_until(lambda: page.locator("#overlay").evaluate("(image) => image.naturalWidth") == 384)
        first = page.get_attribute("#overlay", "src")
        other = page.locator("#ranking button").nth(1)
        other.click()
        wait_until(lambda: page.get_attribute("#overlay", "src") != first)
        assert page.locator("#ranking [aria-pressed=true]").count() == 1
        button.click()
        page.locator("#stage:not(.explaining)").wait_for()
        assert button.get_attribute("aria-pressed") == "false"


def test_it_is_used_with_the_keyboard_and_heard(browser: Any, address: str) -> None:
    with Visit(browser, address) as page:
        page.get_by_text("The model predicts a probability").wait_for()
        page.locator("#examples .thumb").wait_for()
        names = []
        for _ in range(3):
            page.keyboard.press("Tab")
            names.append(page.evaluate("document.activeElement.id || document.activeElement.title"))
        assert names[:2] == ["choose", "Example 1: first"]
        with page.expect_file_chooser() as waiting:
            page.locator("#choose").press("Enter")
        waiting.value.set_files([chosen("one.png", noise(1))])
        page.get_by_role("list", name="Most probable classes").wait_for()
        assert page.get_by_role("heading", level=1).count() == 1
        assert page.get_by_role("heading", level=2).first.is_visible()
        assert page.get_by_role("img", name="one.png").count() >= 1
        assert page.evaluate("document.activeElement.id") == "verdict"
        unnamed = "[...document.querySelectorAll('button')].filter((b) => !b.textContent.trim() && !b.title)"
        assert page.evaluate(f"{unnamed}.length") == 0


@pytest.mark.parametrize(("scheme", "width"), [("dark", 390), ("light", 320)])
def test_it_fits_a_phone(browser: Any, address: str, scheme: str, width: int) -> None:
    phone = {"width": width, "height": 740}
    options = {"viewport": phone, "is_mobile": True, "has_touch": True, "color_scheme": scheme}
    with Visit(browser, address, **options) as page:
        page.get_by_text("The model predicts a probability").wait_for()
        assert page.evaluate("document.documentElement.scrollWidth") == width
        cut = "[...document.querySelectorAll('header *')].filter((e) => e.scrollWidth > e.clientWidth + 1)"
        assert page.evaluate(f"{cut}.filter((e) => getComputedStyle(e).display !== 'inline').length") == 0
        assert page.inner_text("#model") == "resnet20 · 3 classes"
        assert page.get_by_role("button", name="Take a photo").is_visible()
        assert page.get_attribute("#shoot", "capture") == "environment"
        with page.expect_file_chooser() as waiting:
            page.get_by_role("button", name="Take a photo").tap()
        waiting.value.set_files([chosen("photo.png", noise(1))])
        page.get_by_text("Answered in").wait_for()
        assert page.evaluate("document.documentElement.scrollWidth") == width
        tools = page.locator(".tool:visible")
        heights = {round(tools.nth(index).bounding_box()["y"]) for index in range(tools.count())}
        assert tools.count() == 3
        assert len(heights) == 1, "the buttons stand in one row"
        lightness = page.evaluate(
            "getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)[0]"
        )
        assert (lightness < 60) is (scheme == "dark")


def test_it_asks_for_the_token_and_waits_for_the_model(browser: Any) -> None:
    app = create_app(make_colors(), token="Sesame")
    with served(app) as client:
        wait_until(ready(app))
        with Visit(browser, str(client.base_url)) as page:
            for token in ("wrong", "Sesame"):
                page.get_by_role("dialog").wait_for()
                page.get_by_role("textbox", name="Token").fill(token)
                page.keyboard.press("Enter")
            page.get_by_text("The model predicts a probability").wait_for()
            page.set_input_files("#files", [chosen("green.png", make_image("green"))])
            page.locator("#verdict").get_by_text("green").wait_for()
            assert page.locator("#gradcam").is_hidden()
            assert page.locator("#ranking button").count() == 0
            assert "No Grad-CAM: runtime onnxruntime gives no gradients" in page.inner_text("#note")


def test_the_page_is_one_file_of_moderate_size() -> None:
    page = Path(create_app.__globals__["__file__"]).with_name("page.html")
    assert page.stat().st_size < 64_000
