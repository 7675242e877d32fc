"""Draw the screenshots of the pages in `explain.md` and `serve.md`, of grocery photos or else of drawn images.

The photos (Grocery Store data set, Klasson et al., WACV 2019, MIT licence) are of products whose classes the
calibration has not seen:

    diml calibrate grocery --data GROCERY --protocol class_disjoint --resize square --grid 7 --kind product \\
        --fit-on all --output CALIBRATION
    python docs/draw_pages.py --grocery GROCERY --calibration CALIBRATION
"""

from __future__ import annotations

import argparse
import io
import tempfile
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

import diml
from diml.calibration.finding import FoundCalibration, find_calibration
from diml.data import load_dataset
from diml.data.transforms import Preprocess
from diml.explain import drawn_pair, explanation_page
from diml.explain.explanation import match_pair
from diml.files import atomic_file, write_text
from diml.models import Embedder

HERE = Path(__file__).parent
CHROMIUM = Path("/usr/bin/chromium")
SIZE = {"width": 1400, "height": 900}
#: A product of the training classes of the protocol `class_disjoint`, and two photos of it.
PRODUCT, QUERY, GALLERY = "Tropicana-Apple-Juice", 5, 13
#: Photos of each product in the shop: in all more than the hundred candidates that a search ranks.
PHOTOS = 14


@dataclass(frozen=True)
class Shown:
    """What the pages show: a pair, whose query is searched for in a folder."""

    query: Path
    gallery: Path
    shop: Path
    embedder: Embedder
    calibration: FoundCalibration


def main() -> None:
    """Write docs/explain-page.png and docs/serve-page.png."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--grocery", type=Path, help="folder of the data set; by default drawn images")
    parser.add_argument("--calibration", type=Path, help="folder of calibration.json")
    given = parser.parse_args()
    draw_pages(given.grocery, given.calibration)


def draw_pages(grocery: Path | None = None, calibration: Path | None = None) -> None:
    """Write docs/explain-page.png and docs/serve-page.png, if Chromium and Playwright are there."""
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        print("the pages are not drawn: playwright is missing")
        return
    if not CHROMIUM.exists():
        print(f"the pages are not drawn: {CHROMIUM} is missing")
        return
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=str(CHROMIUM), args=["--no-sandbox", "--disable-gpu"])
        shown = of_drawn_images(Path(folder)) if grocery is None else of_photos(Path(folder), grocery, calibration)
        save(explained(browser, Path(folder), shown), "explain-page.png")
        save(served(browser, shown), "serve-page.png")
        browser.close()


def of_photos(folder: Path, grocery: Path, calibration: Path | None) -> Shown:
    """Photos of a product, and a shop with others of it and of all products that the calibration has not seen."""
    images = load_dataset("grocery", grocery, protocol="class_disjoint").train
    assert images is not None
    shop = folder / "shop"
    own = sorted(grocery.glob(f"test/**/{PRODUCT}/*.jpg"))
    for product in {images.class_names[label] for label in images.labels}:
        (shop / product).mkdir(parents=True)
        for photo in sorted(grocery.glob(f"test/**/{product}/*.jpg"))[:PHOTOS]:
            if photo != own[QUERY - 1]:
                (shop / product / photo.name).write_bytes(photo.read_bytes())
    embedder = diml.load_embedder("mobilenetv2_100", grid=7, preprocess=Preprocess(mode="square"))
    found = find_calibration(fingerprint=embedder.fingerprint(), matcher=embedder.matcher, named=calibration)
    return Shown(own[QUERY - 1], own[GALLERY - 1], shop, embedder, found)


def of_drawn_images(folder: Path) -> Shown:
    """The two drawn images, and a folder of rotated and cropped ones."""
    a, b = drawn_pair(448)
    shop, paths = folder / "shop", (folder / "drawn" / "a.png", folder / "drawn" / "b.png")
    shop.mkdir()
    paths[0].parent.mkdir()
    for path, image in zip(paths, (a, b), strict=True):
        image.save(path)
    for number in range(6):
        cut = (0, 0, 448 - 28 * number, 448 - 28 * number)
        a.rotate(9 * number, fillcolor="white").crop(cut).save(shop / f"seen-{number}.png")
        b.rotate(60 + 50 * number, fillcolor="white").save(shop / f"turned-{number}.png")
    return Shown(*paths, shop, diml.load_embedder("mobilenetv2_100"), FoundCalibration())


def explained(browser: Any, folder: Path, shown: Shown) -> io.BytesIO:
    """The page of a pair, as it opens."""
    calibrator = shown.calibration.calibrator
    pair = match_pair(shown.query, shown.gallery, embedder=shown.embedder, calibrator=calibrator)
    path = write_text(folder / "why.html", explanation_page(pair))
    page = browser.new_page(viewport=SIZE)
    page.goto(path.as_uri())
    page.wait_for_selector(".badge")
    end = page.locator(".everybody").evaluate("one => one.getBoundingClientRect().bottom")
    return io.BytesIO(page.screenshot(clip={"x": 0, "y": 0, "width": 1400, "height": end + 16}, full_page=True))


def served(browser: Any, shown: Shown) -> io.BytesIO:
    """The page of `diml serve` with the hits of an image in a folder."""
    import uvicorn

    from diml.web import Engine, create_app
    from diml.web.folder import FolderGallery
    from diml.web.server import open_port

    gallery = FolderGallery(shown.shop, shown.embedder)
    gallery.start()
    gallery.wait()
    with open_port(0) as port:
        engine = Engine(shown.embedder, gallery=gallery, calibration=shown.calibration)
        server = uvicorn.Server(uvicorn.Config(create_app(engine), log_level="error"))
        thread = threading.Thread(target=server.run, args=([port],))
        thread.start()
        page = browser.new_page(viewport=SIZE)
        page.goto(f"http://127.0.0.1:{port.getsockname()[1]}")
        page.wait_for_selector(".sample")
        page.locator("[data-place=query] input").set_input_files(shown.query)
        page.wait_for_selector(".badge")
        page.wait_for_load_state("networkidle")
        end = page.locator(".everybody").evaluate("one => one.getBoundingClientRect().bottom")
        drawn = io.BytesIO(page.screenshot(clip={"x": 0, "y": 0, "width": 1400, "height": end + 16}, full_page=True))
        server.should_exit = True
        thread.join()
    return drawn


def save(drawn: io.BytesIO, name: str) -> None:
    """Write a screenshot with 256 colours: a third of the size, visually the same."""
    with atomic_file(HERE / name) as temporary, Image.open(drawn) as image:
        image.convert("RGB").quantize(256, kmeans=1).save(temporary, "PNG", optimize=True)
    print(HERE / name)


if __name__ == "__main__":
    main()
