"""The page of `diml duplicates`: choices by mouse and keyboard, the CSV file they become, names that are scripts."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from diml.files import write_text
from diml.search.copy_threshold import CopyEstimate, CopyThreshold
from diml.search.duplicates import DuplicateGroup, DuplicateImage, Duplicates
from diml.search.duplicates_page import duplicates_page
from end_to_end.browser.conftest import text_faults
from end_to_end.browser.test_payloads import PAYLOADS

OpenPage = Callable[..., Any]
THRESHOLD = CopyThreshold(0.99, "calibration", {"all": CopyEstimate(1.0, 0.9, 1.0)}, 10, None, None, 3)


def image(name: str, relation: Any, file: Path, label: str = "milk") -> DuplicateImage:
    """An image whose `file` has the name that is shown and saved; its pixels are those of `file`, if it exists."""
    agreement = 1.0 if relation in ("kept", "exact") else 0.9953
    return DuplicateImage(name, file, relation, agreement, 640, 480, 123_456, 0.0, {"label": label})


@pytest.fixture
def found(tmp_path: Path) -> Duplicates:
    """A group of three, with commas, quotes and line ends in the paths, and one for each payload."""
    odd = [tmp_path / name for name in ("a, b.png", 'say "x".png', "two\nlines.png")]
    for place, file in enumerate(odd):
        Image.new("RGB", (64, 48), (60 * place, 120, 90)).save(file)
    groups = [DuplicateGroup((image("i0", "kept", odd[0]), image("i1", "exact", odd[1]), image("i2", "copy", odd[2])))]
    for name in PAYLOADS:
        file = tmp_path / f"{name.replace('/', chr(8725))}.png"
        groups.append(DuplicateGroup((image(name, "kept", file, name), image("other", "cropped", Path(name), name))))
    return Duplicates(100, tuple(groups), THRESHOLD, 500, ())


def opened(open_page: OpenPage, tmp_path: Path, found: Duplicates, size: str = "1400") -> Any:
    return open_page(write_text(tmp_path / "page.html", duplicates_page(found, title=PAYLOADS[0])), size)


def saved(page: Any) -> str:
    with page.expect_download() as download:
        page.click("#save")
    return str(Path(download.value.path()).read_bytes().decode())


def test_no_payload_runs_and_all_names_are_text(open_page: OpenPage, tmp_path: Path, found: Duplicates) -> None:
    page = opened(open_page, tmp_path, found)
    page.wait_for_timeout(200)
    assert page.evaluate("window.ran") is None
    assert page.locator("section").count() == len(found.groups)
    assert page.evaluate("document.querySelectorAll('iframe, svg, section script').length") == 0
    assert page.locator("h1").inner_text() == f"Copies in {PAYLOADS[0]}"


def test_the_saved_choices_are_those_of_the_csv_option(open_page: OpenPage, tmp_path: Path, found: Duplicates) -> None:
    page = opened(open_page, tmp_path, found)
    assert saved(page) == found.to_csv()


def test_choices_by_mouse_and_keyboard(open_page: OpenPage, tmp_path: Path, found: Duplicates) -> None:
    page = opened(open_page, tmp_path, found)
    page.locator(".card img").nth(1).click()  # keep the exact copy as well
    page.locator("#all").focus()
    for _ in range(2):
        page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.type") == "checkbox"
    page.keyboard.press("Space")
    lines = list(csv.DictReader(io.StringIO(saved(page), newline="")))
    assert [line["action"] for line in lines[:3]] == ["remove", "keep", "remove"]
    assert {line["kept"] for line in lines[:3]} == {lines[1]["path"]}
    page.locator(".card input").nth(1).press("Space")
    assert "1 group keeps no image" in page.inner_text("#state")
    assert page.locator(".warning:visible").count() == 1
    page.click("#all")
    assert page.inner_text("#state").startswith("0 of ")
    page.click("#suggested")
    assert saved(page) == found.to_csv()


@pytest.mark.parametrize("size", ["1400", "390"])
def test_nothing_overlaps(open_page: OpenPage, tmp_path: Path, found: Duplicates, size: str) -> None:
    page = opened(open_page, tmp_path, found, size)
    page.click("#sure summary")
    page.evaluate("document.querySelector('header').style.position = 'static'")  # it covers what is scrolled
    assert text_faults(page) == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_texts_are_legible(
    open_page: OpenPage, tmp_path: Path, found: Duplicates, contrast: Callable[[Any, str], float], scheme: str
) -> None:
    path = write_text(tmp_path / "page.html", duplicates_page(found, title="shop"))
    page = open_page(path, "1400", scheme)
    for selector in (".facts", ".choice", ".card.remove .choice", "#state", "h2"):
        assert contrast(page, selector) >= 4.5
