"""Draw the pictures of the README and of `explain.md` from two pictures of our own: `make docs`."""

import io
import tempfile
from pathlib import Path

from PIL import Image

import diml
from diml.explain import drawn_pair, explanation_page, match_pictures
from diml.files import whole_file

HERE = Path(__file__).parent
CHROMIUM = Path("/usr/bin/chromium")


def main() -> None:
    """Write docs/why.png and, where Chromium and Playwright are, docs/explain-page.png."""
    match = diml.match(*drawn_pair())
    drawn = io.BytesIO()
    match.draw(top=5).savefig(drawn)
    save(drawn, "why.png")
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        print("explain-page.png stays as it is: playwright is not installed")
        return
    if not CHROMIUM.exists():
        print(f"explain-page.png stays as it is: there is no {CHROMIUM}")
        return
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        page_file = Path(folder) / "why.html"
        paths = [Path(folder) / "drawn" / name for name in ("a.png", "b.png")]
        paths[0].parent.mkdir()
        for path, picture in zip(paths, drawn_pair(448), strict=True):
            picture.save(path)
        page_file.write_text(explanation_page(match_pictures(*paths)), encoding="utf-8")
        browser = playwright.chromium.launch(executable_path=str(CHROMIUM), args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page(viewport={"width": 1100, "height": 900})
        page.goto(page_file.as_uri())
        page.click(".cell[data-side=q][data-region='13']")  # on the fish
        page.get_by_role("tab", name="Plan").click()
        drawn = io.BytesIO(page.screenshot(clip={"x": 0, "y": 0, "width": 1100, "height": 1160}, full_page=True))
        browser.close()
    save(drawn, "explain-page.png", 256)


def save(drawn: io.BytesIO, name: str, colours: int = 192) -> None:
    """Write a picture with few colours: a third of the size, to the eye the same."""
    with whole_file(HERE / name) as temporary, Image.open(drawn) as picture:
        picture.convert("RGB").quantize(colours).save(temporary, optimize=True)
    print(HERE / name)


if __name__ == "__main__":
    main()
