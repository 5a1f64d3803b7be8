"""An audit's page shows what was found, counts all of it, stays readable, and needs nothing beside it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.helpers.browser import chromium
from tests.helpers.flawed import scene, write_flawed, write_predictions
from tests.helpers.runs import HOSTILE_CLASSES, HOSTILE_FILE
from tests.report.test_page import REFERENCES, Page

from skipnets.data.options import DataOptions
from skipnets.errors import UserError
from skipnets.report import Audit, audit, audit_page


@pytest.fixture(scope="module")
def checked(tmp_path_factory: pytest.TempPathFactory) -> Audit:
    folder = tmp_path_factory.mktemp("flawed")
    write_flawed(folder / "pets")
    write_predictions(folder / "pets", folder / "p.csv")
    return audit(folder / "pets", folder / "p.csv")


@pytest.fixture(scope="module")
def file(checked: Audit, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / "audit.html"
    checked.write_page(path)
    return path


@pytest.fixture(scope="module")
def page(file: Path) -> Page:
    return Page(file.read_text(encoding="utf-8"))


def test_nothing_outside_is_asked_for(page: Page) -> None:
    references = page.values(*REFERENCES)
    assert all(value.startswith(("data:image/jpeg;base64,", "#")) for value in references)
    assert not set(page.tags) & {"script", "link", "iframe", "object", "embed", "base", "form"}
    assert "@import" not in page.style
    policy = next(v for tag, name, v in page.attributes if tag == "meta" and "default-src" in v)
    assert policy == "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    ids = page.values("id")
    assert len(set(ids)) == len(ids)
    assert {value[1:] for value in page.values("href")} <= set(ids)


def test_everything_is_there(page: Page, checked: Audit) -> None:
    for expected in (
        "61 images of 3 classes; 20 with at least one finding.",
        "Copies across splits 1",
        "Probable label errors 2",
        "With --write: 1 corrected, 1 marked.",
        "cat dog train corrected 99.3% dog, 0.7% cat",
        "train/cat/seen.jpg",
        "480×640 pixels",
        "Unreadable files 1",
        'Cat dog 1 image; "dog" has 35'.replace("Cat", "Dog"),
        "p.csv --write clean.csv skipnets train clean.csv --out runs/clean",
        "Looked for and not found: missing files, small classes.",
        "The largest class has 35.0 times as many images as the smallest.",
        "split folders with class folders (train/CLASS/…)",
    ):
        assert expected in page.text, expected
    # Every image of a finding once in its gallery, and what copies are copies of beside them.
    assert page.tags.count("img") == (
        len(checked.findings["label-error"])
        + sum(len(checked.findings[kind]) for kind in audit_page._LOOKS)
        + 2 * len(checked.findings["leak"])
        + sum(
            len(group)
            for kind in ("contradiction", "exact-copy", "near-copy")
            for group in groups(checked, kind)
        )
    )


def groups(found: Audit, kind: str) -> list[set[int]]:
    """The groups of copies, put together in the plainest way."""
    joined: list[set[int]] = []
    for finding in found.findings[kind]:
        assert finding.image is not None
        assert finding.other is not None
        pair = {finding.image, finding.other}
        with_it = [group for group in joined if group & pair]
        joined = [group for group in joined if group not in with_it] + [pair.union(*with_it)]
    return joined


def test_however_much_is_found_the_page_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for kind in ("IMAGES", "GROUPS", "COPIES", "LISTED", "CLASSES"):
        monkeypatch.setattr(audit_page, kind, 2)
    for label in "abcd":
        (tmp_path / "set" / label).mkdir(parents=True)
        for seed in range(3):
            scene(ord(label) + 100 * seed).save(tmp_path / "set" / label / f"{seed}.png")
            scene(ord(label) + 100 * seed).convert("L").save(tmp_path / "set" / label / f"gray{seed}.png")
        (tmp_path / "set" / label / "broken.png").write_bytes(label.encode())
    audit(tmp_path / "set").write_page(tmp_path / "audit.html")
    page = Page((tmp_path / "audit.html").read_text(encoding="utf-8"))
    for expected in (
        "Near copies 12",
        "2 of 12 groups, the most serious first; audit.csv lists all.",
        "Unreadable files 4",
        "2 of 4 files, the most serious first; audit.csv lists all.",
        "Gray among color 12",
        "2 of 12 images, the most serious first; audit.csv lists all.",
        "Of 4 classes, the 1 largest and the 1 smallest.",
    ):
        assert expected in page.text, expected
    assert page.tags.count("img") == 2 * 2 + 2


def test_commands_have_the_options_of_the_audit(tmp_path: Path) -> None:
    (tmp_path / "my set" / "a").mkdir(parents=True)
    scene(0).save(tmp_path / "my set" / "a" / "0.tif", save_all=True, append_images=[scene(1)])
    (tmp_path / "my set" / "a" / "broken.tif").write_bytes(b"")
    options = DataOptions(page=2, exclude=("masks", "*.bmp"), layout="classes")
    audit(tmp_path / "my set", options=options).write_page(tmp_path / "audit.html")
    page = Page((tmp_path / "audit.html").read_text(encoding="utf-8"))
    command = (
        f"skipnets audit '{tmp_path}/my set' --layout classes --exclude masks --exclude '*.bmp' --page 2"
    )
    assert f"{command} --write clean.csv skipnets train clean.csv --out runs/clean --page 2 " in page.text


def test_hostile_names_are_text_and_nothing_else(tmp_path: Path) -> None:
    for seed, label in enumerate(HOSTILE_CLASSES):
        (tmp_path / "set" / label).mkdir(parents=True)
        scene(seed).save(tmp_path / "set" / label / HOSTILE_FILE, "PNG")
        scene(seed).save(tmp_path / "set" / label / f"copy {seed}.png")
        (tmp_path / "set" / label / "broken<b>.png").write_bytes(b"")
    audit(tmp_path / "set").write_page(tmp_path / "audit.html")
    page = Page((tmp_path / "audit.html").read_text(encoding="utf-8"))
    assert not [name for _, name, _ in page.attributes if name.startswith("on")]
    assert all(value.startswith(("data:image/jpeg;base64,", "#")) for value in page.values(*REFERENCES))
    for label in HOSTILE_CLASSES:
        assert label in page.texts
    assert any("broken<b>.png" in text for text in page.texts)


def test_colors_are_those_of_the_report(file: Path) -> None:
    text = file.read_text(encoding="utf-8")
    css = (Path(__file__).parents[2] / "src/skipnets/report/page.css").read_text()
    assert css.strip() in text
    assert not re.search(r"#[0-9a-f]{6}\b", text.replace(css.strip(), ""))


def test_other_file_names_are_refused(checked: Audit, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"output=.*audit\.pdf: must end in \.html"):
        checked.write_page(tmp_path / "audit.pdf")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as opened:
        yield opened


@pytest.mark.parametrize("width", [320, 390, 1280])
def test_nothing_but_tables_scrolls_sideways(browser: Any, file: Path, width: int) -> None:
    opened = browser.new_page(viewport={"width": width, "height": 900})
    opened.goto(file.as_uri())
    assert opened.evaluate("document.documentElement.scrollWidth") == width
    opened.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_has_enough_contrast(browser: Any, file: Path, scheme: str) -> None:
    """WCAG 2.2, 1.4.3: 4.5 to 1 for all text."""
    opened = browser.new_page(viewport={"width": 1280, "height": 900}, color_scheme=scheme)
    opened.goto(file.as_uri())
    worst = opened.evaluate(
        """() => {
            const paint = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
            const rgb = (color) => {
                paint.clearRect(0, 0, 1, 1);
                paint.fillStyle = color;
                paint.fillRect(0, 0, 1, 1);
                return [...paint.getImageData(0, 0, 1, 1).data];
            };
            const light = ([r, g, b]) => [r, g, b].map((v) => v / 255)
                .map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4))
                .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
            let worst = 21;
            const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
            while (walker.nextNode()) {
                if (!walker.currentNode.textContent.trim()) continue;
                const element = walker.currentNode.parentElement;
                let under = element;
                while (under && rgb(getComputedStyle(under).backgroundColor)[3] === 0) {
                    under = under.parentElement;
                }
                const back = under ? getComputedStyle(under).backgroundColor : "white";
                const ink = getComputedStyle(element).color;
                const pair = [light(rgb(ink)), light(rgb(back))].sort((a, b) => b - a);
                worst = Math.min(worst, (pair[0] + 0.05) / (pair[1] + 0.05));
            }
            return worst;
        }"""
    )
    opened.close()
    assert worst >= 4.5
