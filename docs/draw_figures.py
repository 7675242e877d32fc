"""Draw the figures of the README, `explain.md` and `serve.md` from the drawn sample images: `make docs`.

The figures of `faithfulness.md` are the plots of two runs of several minutes and are copied from their folders:

    diml faithfulness grocery --data GROCERY --protocol class_disjoint --grid 7 --model RUN --output runs/grocery
    diml faithfulness orl --protocol class_disjoint --grid 7 --model RUN --output runs/orl
    python docs/draw_figures.py --faithfulness runs/grocery runs/orl
"""

import argparse
import io
import json
import tempfile
import threading
from pathlib import Path
from typing import Any

from PIL import Image

import diml
from diml.explain import drawn_pair, explanation_page
from diml.files import atomic_file

HERE = Path(__file__).parent
CHROMIUM = Path("/usr/bin/chromium")

#: Data set -> its plots in faithfulness.md.
PLOTS = {"grocery": ("correspondence", "deletion"), "orl": ("deletion",)}


def main() -> None:
    """Draw the figures, or copy the plots of runs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--faithfulness", type=Path, nargs="+", help="folders of runs: only copy their plots")
    folders = parser.parse_args().faithfulness
    if folders:
        for folder in folders:
            copy_plots(folder)
    else:
        draw()


def copy_plots(folder: Path) -> None:
    """Write docs/faithfulness-DATASET-MEASURE.png from the plots of a run."""
    dataset = json.loads((folder / "faithfulness.json").read_text(encoding="utf-8"))["config"]["dataset"]
    for measure in PLOTS[dataset]:
        save(io.BytesIO((folder / f"{measure}.png").read_bytes()), f"faithfulness-{dataset}-{measure}.png", 64)


def draw() -> None:
    """Write docs/why.png and, if Chromium and Playwright are there, docs/explain-page.png and docs/serve-page.png."""
    match = diml.match(*drawn_pair())
    drawn = io.BytesIO()
    match.draw(top=5).savefig(drawn)
    save(drawn, "why.png")
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
        save(explained(browser, Path(folder)), "explain-page.png", 256)
        save(served(browser, Path(folder)), "serve-page.png", 256)
        browser.close()


def explained(browser: Any, folder: Path) -> io.BytesIO:
    """The page of a pair with a pinned region."""
    page_file = folder / "why.html"
    paths = [folder / "drawn" / name for name in ("a.png", "b.png")]
    paths[0].parent.mkdir()
    for path, image in zip(paths, drawn_pair(448), strict=True):
        image.save(path)
    page_file.write_text(explanation_page(diml.match(*paths)), encoding="utf-8")
    page = browser.new_page(viewport={"width": 1100, "height": 900})
    page.goto(page_file.as_uri())
    page.click(".cell[data-side=q][data-region='13']")  # on the fish
    page.get_by_role("tab", name="Plan").click()
    return io.BytesIO(page.screenshot(clip={"x": 0, "y": 0, "width": 1100, "height": 1160}, full_page=True))


def served(browser: Any, folder: Path) -> io.BytesIO:
    """The page of `diml serve` with the hits of an image among rotated and cropped ones."""
    import uvicorn

    from diml.web import Engine, create_app
    from diml.web.folder import FolderGallery
    from diml.web.server import open_port

    a, b = drawn_pair(448)
    query, shop = folder / "query.png", folder / "shop"
    b.save(query)
    shop.mkdir()
    for number in range(6):
        cut = (0, 0, 448 - 28 * number, 448 - 28 * number)
        a.rotate(9 * number, fillcolor="white").crop(cut).save(shop / f"seen-{number}.png")
        b.rotate(60 + 50 * number, fillcolor="white").save(shop / f"turned-{number}.png")
    embedder = diml.load_embedder("mobilenetv2_100")
    gallery = FolderGallery(shop, embedder)
    gallery.start()
    gallery.wait()
    with open_port(0) as port:
        server = uvicorn.Server(uvicorn.Config(create_app(Engine(embedder, gallery=gallery)), log_level="error"))
        thread = threading.Thread(target=server.run, args=([port],))
        thread.start()
        page = browser.new_page(viewport={"width": 1100, "height": 1060})
        page.goto(f"http://127.0.0.1:{port.getsockname()[1]}")
        page.wait_for_selector(".sample")
        page.locator("[data-place=query] input").set_input_files(query)
        page.wait_for_selector(".stage .flow")
        page.wait_for_load_state("networkidle")
        drawn = io.BytesIO(page.screenshot())
        server.should_exit = True
        thread.join()
    return drawn


def save(drawn: io.BytesIO, name: str, colours: int = 192) -> None:
    """Write an image with few colours: a third of the size, visually the same."""
    with atomic_file(HERE / name) as temporary, Image.open(drawn) as image:
        image.convert("RGB").quantize(colours).save(temporary, optimize=True)
    print(HERE / name)


if __name__ == "__main__":
    main()
