"""The report says what is true, needs nothing beside it, and cannot be turned against its reader."""

from __future__ import annotations

import html.parser
import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import yaml
from tests.helpers.browser import chromium
from tests.helpers.results import results_of, write_results
from tests.helpers.runs import HOSTILE_CLASSES, HOSTILE_FILE, make_run, write_images

from skipnets.classifier import load
from skipnets.errors import UserError
from skipnets.evaluation.reliability import reliability
from skipnets.report import page as page_module
from skipnets.report import write_report
from skipnets.report.gallery import confusion_cells, least_confident_correct
from skipnets.report.gallery import most_confident_mistakes as mistakes
from skipnets.report.results import read_results
from skipnets.training.run import Run

REFERENCES = {"src", "href", "xlink:href", "srcset", "poster", "data", "action", "background", "formaction"}

FIRST_BATCH = 3  # images of the first batch in a run of tests.helpers.runs


class Page(html.parser.HTMLParser):
    """What a browser finds in the page."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.texts: list[str] = []
        self.style = ""
        self._open = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        self._open = tag

    def handle_data(self, data: str) -> None:
        if self._open == "style":
            self.style += data
            self._open = ""
        else:
            self.texts.append(data)

    def values(self, *names: str) -> list[str]:
        return [value for _, name, value in self.attributes if name in names]

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())


@pytest.fixture(scope="module")
def report(hostile_run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_report(hostile_run.folder, tmp_path_factory.mktemp("report") / "r.html", workers=1)


@pytest.fixture(scope="module")
def page(report: Path) -> Page:
    return Page(report.read_text(encoding="utf-8"))


def test_nothing_outside_is_asked_for(page: Page) -> None:
    references = page.values(*REFERENCES)
    assert references
    assert all(value.startswith(("data:image/jpeg;base64,", "#")) for value in references)
    assert not set(page.tags) & {
        "script",
        "link",
        "iframe",
        "object",
        "embed",
        "base",
        "form",
        "video",
        "audio",
    }
    css = page.style + " ".join(page.values("style"))
    assert "@import" not in css
    assert all(url.startswith("#") for url in re.findall(r"url\(['\"]?([^)]*)", css))
    policy = next(v for tag, name, v in page.attributes if tag == "meta" and "default-src" in v)
    assert policy == "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def test_hostile_names_are_text_and_nothing_else(page: Page) -> None:
    assert not [name for _, name, _ in page.attributes if name.startswith("on")]
    assert "owned'<" not in " ".join(page.tags)
    for label in HOSTILE_CLASSES:
        assert label in page.texts
    assert any(HOSTILE_FILE in value for value in page.values("title"))
    assert "49 " not in page.text.split("Per-class metrics")[1].split("Confusion matrix")[0]


def test_every_button_opens_something_and_ids_are_its_own(page: Page) -> None:
    ids = page.values("id")
    assert len(set(ids)) == len(ids)
    assert set(page.values("popovertarget")) <= set(ids)
    assert {value[1:] for value in page.values("href", "xlink:href") if value.startswith("#")} <= set(ids)


def test_everything_is_there(page: Page, hostile_run: Run) -> None:
    evaluation = json.loads(hostile_run.evaluation.read_text())
    low, high = evaluation["accuracy_interval"]
    for expected in (
        f"{100 * evaluation['accuracy']:.2f}%",
        f"{100 * low:.2f}% to {100 * high:.2f}%",
        f"{evaluation['nll']:.3f}",
        "resnet20",
        "scratch: sgd, learning rate 0.1",
        "3 of 3; epoch 2 was the best on validation data",
        "block_execution: auto",
        '"processors":',
        "Loss",
        "Accuracy",
        "The first batch, as the network saw it",
        "Gradient norm",
        "3 min (3 min of processor time)",
        "temperature scaling",
        "Precision-recall curve",
        "ROC curve",
        "Class balance",
        "Most confident mistakes",
        "elsewhere/broken.png",
        "broken<b>",
    ):
        assert expected in " ".join(page.texts), expected
    results = read_results(hostile_run.folder)
    # Seven learning charts, one or two reliability diagrams, two of curves, one for each class that occurs.
    # One alone where no temperature fits, which is said in a sentence that begins otherwise.
    diagrams = sum(page.texts.count(f"{when} temperature scaling") for when in ("Before", "After"))
    assert page.tags.count("svg") == 7 + diagrams + 2 + len(set(results.labels))
    wrong, right = mistakes(results), least_confident_correct(results)
    behind = sum(len(cell.shown) for cell in confusion_cells(results))
    assert page.tags.count("img") == FIRST_BATCH + 3 * len(wrong) + 2 * len(right) + behind


def test_charts_take_their_colors_from_the_page(report: Path) -> None:
    drawings = re.findall(r"<svg.*?</svg>", report.read_text(), flags=re.DOTALL)
    assert all(not re.search(r"#[0-9a-f]{6}\b", drawing) for drawing in drawings)
    assert "var(--c1)" in drawings[0]
    assert "<text" in drawings[0]
    style = (Path(__file__).parents[2] / "src/skipnets/report/page.css").read_text()
    used = set(re.findall(r"var\(--([a-z0-9-]+)\)", report.read_text())) - {"s", "low", "high", "at"}
    for block in (style, style.split("prefers-color-scheme: dark")[1], style.split("@media print")[1]):
        needed = used - ({"font"} if block is not style else set()) - {"on-deep"}
        assert needed <= set(re.findall(r"--([a-z0-9-]+):", block))


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs Chromium")
def test_a_browser_runs_none_of_it(report: Path, tmp_path: Path) -> None:
    result = subprocess.run(
        [
            *(
                "chromium",
                "--headless",
                "--no-sandbox",
                "--disable-gpu",
                f"--user-data-dir={tmp_path / 'browser'}",
            ),
            *("--virtual-time-budget=4000", "--dump-dom", report.as_uri()),
        ],
        check=True,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert "<title>resnet20 on pets</title>" in result.stdout
    assert "<script" not in result.stdout


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as opened:
        yield opened


@pytest.fixture(scope="module")
def wide_report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve classes with long names, and a matrix with every depth of color."""
    folder = tmp_path_factory.mktemp("wide")
    classes = tuple(f"a class with a long name, number {index:02}" for index in range(12))
    run = make_run(folder / "run", write_images(folder / "images", classes, 4))
    rng = np.random.default_rng(0)
    counts = np.round(1000 * rng.random((12, 12)) ** 6).astype(int)
    counts[0] = [919, 1, 20, 60, *[0] * 8]
    results = results_of(int(counts.sum()), 12)
    labels, predicted = np.divmod(np.repeat(np.arange(144), counts.ravel()), 12)
    probabilities = np.full((len(labels), 12), 0.01)
    probabilities[np.arange(len(labels)), predicted] = 0.89
    table = {"path": results.names, "label": [classes[label] for label in labels]}
    table |= {f"p:{name}": probabilities[:, index] for index, name in enumerate(classes)}
    pyarrow.parquet.write_table(pyarrow.table(table), run.folder / "predictions.parquet")
    return write_report(run.folder, folder / "r.html", workers=1)


def open_page(browser: Any, report: Path, width: int, scheme: str) -> Any:
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    page.goto(report.as_uri())
    return page


@pytest.mark.parametrize("width", [320, 390, 1280])
def test_nothing_but_tables_scrolls_sideways(
    browser: Any, report: Path, wide_report: Path, width: int
) -> None:
    for path in (report, wide_report):
        page = open_page(browser, path, width, "light")
        assert page.evaluate("document.documentElement.scrollWidth") == width
        # On a phone a row of metrics is a block, whose cells say what they are.
        scrolling = page.evaluate(
            """() => [...document.querySelectorAll(".scroll:has(.stacked)")].map(
                (each) => each.scrollWidth - each.clientWidth
            )"""
        )
        assert scrolling
        assert width > 620 or max(scrolling) <= 0
        titles = page.evaluate(
            """() => [...document.querySelectorAll(".stacked")].flatMap((table) => {
                const headings = [...table.querySelectorAll("thead th")].map((cell) => cell.textContent);
                return [...table.querySelectorAll("tbody td")].map(
                    (cell) => [cell.dataset.title ?? "", headings[cell.cellIndex]]
                );
            })"""
        )
        assert all(heading == title for title, heading in titles)
        page.close()


def test_words_of_class_names_are_whole_on_a_phone(browser: Any, report: Path) -> None:
    page = open_page(browser, report, 390, "light")
    lines = page.evaluate(
        """() => [...document.querySelectorAll(".classes tbody th")].map((cell) => {
            cell.textContent = "automobile";
            const range = document.createRange();
            range.selectNodeContents(cell);
            return range.getClientRects().length;
        })"""
    )
    assert set(lines) == {1}
    page.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_confusion_colors_are_proportional_and_digits_readable(
    browser: Any, wide_report: Path, scheme: str
) -> None:
    page = open_page(browser, wide_report, 1280, scheme)
    cells = page.evaluate(
        """() => {
            const paint = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
            const rgb = (color) => {
                paint.fillStyle = color;
                paint.fillRect(0, 0, 1, 1);
                return [...paint.getImageData(0, 0, 1, 1).data].slice(0, 3);
            };
            const page = getComputedStyle(document.querySelector("section")).backgroundColor;
            const cells = document.querySelectorAll(".matrix tbody td:not(.edge):not(tr.edge td)");
            return [...cells].map((cell) => {
                const style = getComputedStyle(cell);
                const color = style.backgroundColor === "rgba(0, 0, 0, 0)" ? page : style.backgroundColor;
                return [Number(cell.textContent.replace(",", "")), rgb(color), rgb(style.color)];
            });
        }"""
    )
    page.close()
    assert len(cells) == 144
    for count, background, ink in cells:
        if count:
            light, dark = sorted((luminance(background), luminance(ink)), reverse=True)
            assert (light + 0.05) / (dark + 0.05) >= 4.5, (count, background, ink)
    none, one, twenty, sixty = (np.array(cells[index][1]) for index in (4, 1, 2, 3))
    assert [cells[index][0] for index in (4, 1, 2, 3)] == [0, 1, 20, 60]
    assert np.abs(one - none).max() >= 8
    assert np.abs(sixty - twenty).max() >= 8


def luminance(color: list[int]) -> float:
    """WCAG 2's relative luminance of sRGB bytes."""
    share = np.array(color) / 255
    linear = np.where(share <= 0.04045, share / 12.92, ((share + 0.055) / 1.055) ** 2.4)
    return float(linear @ (0.2126, 0.7152, 0.0722))


def test_a_report_without_its_images_says_so(hostile_data: Path, tmp_path: Path) -> None:
    data = shutil.copytree(hostile_data, tmp_path / "pets")
    run = make_run(tmp_path / "run", data)
    shutil.rmtree(data)
    page = Page(write_report(run.folder).read_text(encoding="utf-8"))
    assert (run.folder / "report.html").is_file()
    assert "the images are not shown" in page.text
    assert "no validation images to fit a temperature on" in page.text
    assert page.tags.count("img") == FIRST_BATCH  # which the run folder holds


def test_a_calibrated_run_shows_its_temperature(hostile_data: Path, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", hostile_data)
    classifier = load(run.model)
    classifier.temperature = 2.5
    classifier.provenance["calibration"] = {"images": 6, "data": "pets", "split": "val"}
    classifier.save(run.model)
    results = read_results(run.folder)
    page = Page(write_report(run.folder, workers=1).read_text(encoding="utf-8"))
    assert "fitted on 6 images (pets, val). It is stored in the model file" in page.text
    assert "T\N{NO-BREAK SPACE}=\N{NO-BREAK SPACE}2.50" in " ".join(page.texts)
    ece = reliability(results.probabilities, results.labels).ece
    assert f"{100 * ece:.2f}%" in " ".join(page.texts)


def test_many_classes_and_two_classes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page_module, "_SINGLE_CURVES", 3)
    many = write_images(tmp_path / "many", tuple(f"class {index:02}" for index in range(32)), 4)
    page = Page(write_report(make_run(tmp_path / "run", many).folder, workers=1).read_text(encoding="utf-8"))
    assert "only the most frequent mistakes are listed" in page.text
    assert "The 3 classes with the lowest average precision" in page.text
    assert page.values("popovertarget")
    two = write_images(tmp_path / "two", ("no", "yes"), 8)
    page = Page(write_report(make_run(tmp_path / "run2", two).folder, workers=1).read_text(encoding="utf-8"))
    assert "Click a cell" in page.text
    assert "not be read and are not in any metric" not in page.text
    assert "Every image could be read." in page.text


def test_a_perfect_run_says_where_its_intervals_come_from(hostile_run: Run, tmp_path: Path) -> None:
    folder = shutil.copytree(hostile_run.folder, tmp_path / "perfect")
    results = read_results(folder)
    write_results(
        folder,
        20 * np.eye(len(results.classes))[results.labels],
        results.labels,
        classes=results.classes,
        names=results.names,
    )
    text = Page(write_report(folder, workers=1).read_text(encoding="utf-8")).text
    note = "every resample gives the same balanced accuracy, macro F1, macro AUROC"
    assert note in text
    assert note not in Page(write_report(hostile_run.folder, tmp_path / "r.html").read_text("utf-8")).text


def test_what_cannot_be_reported_on_is_refused(hostile_run: Run, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"output=.*report\.pdf: must end in \.html"):
        write_report(hostile_run.folder, tmp_path / "report.pdf")
    with pytest.raises(UserError, match=r"is not a run folder \(no run\.yaml\)"):
        write_report(tmp_path)
    folder = shutil.copytree(hostile_run.folder, tmp_path / "unfinished")
    (folder / "evaluation.json").unlink()
    with pytest.raises(UserError, match=r"has no evaluation\.json: the run is not finished"):
        write_report(folder)
    assert not (folder / "report.html").exists()
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        write_report(hostile_run.folder, tmp_path / "file" / "r.html")


def test_run_yaml_is_shown_as_it_is(page: Page, hostile_run: Run) -> None:
    settings = yaml.safe_load(hostile_run.config_file.read_text())
    assert settings["model"] == "resnet20"
    assert hostile_run.config_file.read_text() in page.texts
