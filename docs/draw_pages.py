"""Draw the screenshots of the pages in `explain.md` and `serve.md`, of grocery photos or else of the sample images.

The photos (Grocery Store data set, Klasson et al., WACV 2019, MIT licence) are of products whose classes the
calibration has not seen:

    diml calibrate grocery --data GROCERY --protocol class_disjoint --resize square --grid 7 --kind product \\
        --fit-on all --output CALIBRATION
    python docs/draw_pages.py --grocery GROCERY --calibration CALIBRATION

The shop of the served pages is an index with metadata: brand and department are those of the products, prices and stock
are invented.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import io
import shutil
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

import diml
from diml.calibration.finding import FoundCalibration, find_calibration
from diml.data import load_dataset
from diml.data.transforms import Preprocess
from diml.explain import explanation_page
from diml.explain.explanation import match_pair
from diml.files import atomic_file, write_text
from diml.models import Embedder

HERE = Path(__file__).parent
CHROMIUM = Path("/usr/bin/chromium")
SIZE = {"width": 1400, "height": 900}
PHONE = {"width": 390, "height": 844}
#: A product of the training classes of the protocol `class_disjoint`, and two photos of it.
PRODUCT, QUERY, GALLERY = "Tropicana-Apple-Juice", 5, 13
#: Photos of each product in the shop: in all more than the hundred candidates that a search ranks.
PHOTOS = 14
BRANDS = ("Arla", "Bravo", "God-Morgon", "Tropicana")
#: Photos of the training images side by side, and the box around the last one.
BOXED, BOX = ("Lemon/Lemon_005", "Papaya/Papaya_005", "Pineapple/Pineapple_009", "Avocado/Avocado_005"), "0.5,0.5,1,1"


@dataclass(frozen=True)
class Shown:
    """What the pages show: a pair, whose query is searched for in a shop, and an image with several objects."""

    query: Path
    gallery: Path
    boxed: Path
    shop: Path
    embedder: Embedder
    calibration: FoundCalibration


def main() -> None:
    """Write explain-page.png, serve-page.png, serve-browse.png, serve-box.png and serve-phone.png."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--grocery", type=Path, help="folder of the data set; by default the sample images")
    parser.add_argument("--calibration", type=Path, help="folder of calibration.json")
    given = parser.parse_args()
    draw_pages(given.grocery, given.calibration)


def draw_pages(grocery: Path | None = None, calibration: Path | None = None) -> None:
    """Write the screenshots, if Chromium and Playwright are there."""
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
        shown = of_samples(Path(folder)) if grocery is None else of_photos(Path(folder), grocery, calibration)
        save(explained(browser, Path(folder), shown), "explain-page.png")
        with served(shown) as address:
            save(searched(browser, address, shown.query), "serve-page.png")
            save(browsed(browser, address), "serve-browse.png")
            save(boxed(browser, address, shown.boxed), "serve-box.png")
            save(searched(browser, address, shown.query, PHONE), "serve-phone.png")
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
    boxed = collage(folder, [next(iter(grocery.glob(f"train/**/{name}.jpg"))) for name in BOXED])
    return Shown(own[QUERY - 1], own[GALLERY - 1], boxed, shop, embedder, found)


def of_samples(folder: Path) -> Shown:
    """The first two sample images, and a copy of the folder of all of them."""
    images = diml.sample_images()
    shop = folder / "shop"
    shutil.copytree(images[0].parents[1], shop)
    boxed = collage(folder, [*images, *images])
    return Shown(*images[:2], boxed, shop, diml.load_embedder("mobilenetv2_100"), FoundCalibration())


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


def collage(folder: Path, photos: list[Path]) -> Path:
    """Four photos side by side, as one image with four objects."""
    side = 400
    sheet = Image.new("RGB", (2 * side, 2 * side))
    for place, photo in enumerate(photos[:4]):
        with Image.open(photo) as image:
            sheet.paste(image.convert("RGB").resize((side, side)), (side * (place % 2), side * (place // 2)))
    sheet.save(folder / "four.png")
    return folder / "four.png"


def write_csv(shop: Path) -> Path:
    """The list of a shop's photos with brand, department, price and stock."""

    def number(text: str, most: int) -> int:
        return int(hashlib.sha256(text.encode()).hexdigest()[:8], 16) % most

    with (shop / "shop.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "label", "brand", "department", "price", "stock"])
        for photo in sorted(path for path in shop.rglob("*") if path.suffix in (".jpg", ".png")):
            product = photo.parent.name
            brand = next((name for name in BRANDS if product.startswith(name)), "")
            department = "Juice and milk" if brand else "Fruit and vegetables"
            price = f"{0.99 + number(product, 40) / 10:.2f}"
            words = [text.replace("-", " ") for text in (product, brand, department)]
            writer.writerow([photo.relative_to(shop).as_posix(), *words, price, number(photo.name, 60)])
    return shop / "shop.csv"


@contextmanager
def served(shown: Shown) -> Iterator[str]:
    """The address of a server of an index of the shop."""
    import uvicorn

    from diml.search import Searcher, build_index, open_store
    from diml.search.sources import list_source
    from diml.web import Engine, create_app
    from diml.web.index import IndexGallery
    from diml.web.server import open_port

    place = shown.shop.parent / "shop.index"
    listing = list_source(write_csv(shown.shop), {"price": "number", "stock": "integer"})
    build_index(listing, place, shown.embedder, model="mobilenetv2_100")
    with Searcher(open_store(place), shown.embedder) as searcher, open_port(0) as port:
        engine = Engine(shown.embedder, gallery=IndexGallery(searcher, "shop"), calibration=shown.calibration)
        server = uvicorn.Server(uvicorn.Config(create_app(engine), log_level="error"))
        thread = threading.Thread(target=server.run, args=([port],))
        thread.start()
        yield f"http://127.0.0.1:{port.getsockname()[1]}"
        server.should_exit = True
        thread.join()


def searched(browser: Any, address: str, query: Path, size: dict[str, int] = SIZE) -> io.BytesIO:
    """The page with the hits of an image, as it is seen without scrolling."""
    page = browser.new_page(viewport=size)
    page.goto(address)
    page.wait_for_selector(".sample")
    page.locator("[data-place=query] input").set_input_files(query)
    page.wait_for_selector(".badge")
    return seen(page)


def browsed(browser: Any, address: str) -> io.BytesIO:
    """The page with the gallery, filtered."""
    page = browser.new_page(viewport=SIZE)
    page.goto(f"{address}/?is.brand=Tropicana&is.brand=God+Morgon&to.price=4")
    page.wait_for_selector(".sample, .none")
    return seen(page)


def boxed(browser: Any, address: str, query: Path) -> io.BytesIO:
    """The page with the hits of a part of an image."""
    page = browser.new_page(viewport=SIZE)
    page.goto(address)
    page.wait_for_selector(".sample")
    page.locator("[data-place=query] input").set_input_files(query)
    page.wait_for_selector(".badge")
    page.locator(".edges summary").click()
    for field, edge in zip(page.locator(".edges input").all(), BOX.split(","), strict=True):
        field.fill(str(100 * float(edge)))
    with page.expect_response(lambda answer: "box=" in answer.url):
        page.keyboard.press("Enter")
    page.wait_for_selector(".badge")
    page.locator(".edges summary").click()
    page.mouse.move(0, 0)
    return seen(page)


def seen(page: Any) -> io.BytesIO:
    """A screenshot when all images are there."""
    page.wait_for_load_state("networkidle")
    page.wait_for_timeout(300)  # until the outlines have the size of the images
    drawn = io.BytesIO(page.screenshot())
    page.close()
    return drawn


def save(drawn: io.BytesIO, name: str) -> None:
    """Write a screenshot with 256 colours: a third of the size, visually the same."""
    with atomic_file(HERE / name) as temporary, Image.open(drawn) as image:
        image.convert("RGB").quantize(256, kmeans=1).save(temporary, "PNG", optimize=True)
    print(HERE / name)


if __name__ == "__main__":
    main()
