"""Draw the figures of the README and of `examples.md`, and write that page.

They show photos of the Grocery Store data set (Klasson et al., WACV 2019, MIT licence), of products whose classes the
calibration has not seen:

    diml calibrate grocery --data GROCERY --protocol class_disjoint --resize square --grid 7 --kind product \\
        --fit-on all --output CALIBRATION
    python docs/draw_figures.py --grocery GROCERY --calibration CALIBRATION

The figures of `faithfulness.md` are the plots of two runs of several minutes and are copied from their folders:

    diml faithfulness grocery --data GROCERY --protocol class_disjoint --grid 7 --model RUN --output runs/grocery
    diml faithfulness orl --protocol class_disjoint --grid 7 --model RUN --output runs/orl
    python docs/draw_figures.py --faithfulness runs/grocery runs/orl

The screenshots of the pages are drawn by `draw_pages.py`.
"""

import argparse
import io
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from draw_pages import draw_pages
from PIL import Image

import diml
from diml.calibration import Calibrator, load_calibration
from diml.data.region_coverage import region_coverage, view_box
from diml.data.transforms import Preprocess
from diml.explain import Explanation
from diml.explain.summary import Summary
from diml.explain.wording import whole_percent
from diml.files import atomic_file, write_text
from diml.models import Embedder

HERE = Path(__file__).parent

#: Data set -> its plots in faithfulness.md.
PLOTS = {"grocery": ("correspondence", "controls", "parts"), "orl": ("controls-parts",)}

#: (left, top, right, bottom) as fractions of an image.
Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Example:
    """A pair of `examples.md`.

    Args:
        name: of the figure.
        title: what the pair is.
        query, gallery: below the folder of the data set.
        boxes: where the object is in both images, drawn by hand, where the share of the background is to be shown.
        share: of the mass that is transported.
    """

    name: str
    title: str
    query: str
    gallery: str
    boxes: tuple[Box, Box] | None = None
    share: Any = 1.0


_JUICE = "Packages/Juice"
EXAMPLES = (
    Example(
        "granny-smith",
        "The same product",
        "test/Fruit/Apple/Granny-Smith/Granny-Smith_053.jpg",
        "train/Fruit/Apple/Granny-Smith/Granny-Smith_030.jpg",
    ),
    Example(
        "orange-juice",
        "The same product before other shelves",
        f"test/{_JUICE}/Bravo-Orange-Juice/Bravo-Orange-Juice_012.jpg",
        f"train/{_JUICE}/Bravo-Orange-Juice/Bravo-Orange-Juice_019.jpg",
    ),
    Example(
        "apple-juice",
        "The same product, held in the same way",
        f"test/{_JUICE}/God-Morgon-Apple-Juice/God-Morgon-Apple-Juice_006.jpg",
        f"train/{_JUICE}/God-Morgon-Apple-Juice/God-Morgon-Apple-Juice_015.jpg",
    ),
    Example(
        "milk",
        "The same product before other shelves",
        "test/Packages/Milk/Arla-Lactose-Medium-Fat-Milk/Arla-Lactose-Medium-Fat-Milk_001.jpg",
        "train/Packages/Milk/Arla-Lactose-Medium-Fat-Milk/Arla-Lactose-Medium-Fat-Milk_002.jpg",
    ),
    Example(
        "turned",
        "The same product, turned",
        f"test/{_JUICE}/Tropicana-Apple-Juice/Tropicana-Apple-Juice_003.jpg",
        f"train/{_JUICE}/Tropicana-Apple-Juice/Tropicana-Apple-Juice_005.jpg",
    ),
    Example(
        "nectarine",
        "The same product at another size",
        "test/Fruit/Nectarine/Nectarine_004.jpg",
        "train/Fruit/Nectarine/Nectarine_035.jpg",
    ),
    Example(
        "two-apples",
        "Different products: two kinds of apples",
        "test/Fruit/Apple/Golden-Delicious/Golden-Delicious_015.jpg",
        "train/Fruit/Apple/Granny-Smith/Granny-Smith_030.jpg",
    ),
    Example(
        "one-brand",
        "Different products of one brand",
        f"test/{_JUICE}/Tropicana-Mandarin-Morning/Tropicana-Mandarin-Morning_020.jpg",
        f"train/{_JUICE}/Tropicana-Juice-Smooth/Tropicana-Juice-Smooth_008.jpg",
    ),
    Example(
        "shelf",
        "A failure: different products before the same shelf",
        f"test/{_JUICE}/Bravo-Orange-Juice/Bravo-Orange-Juice_012.jpg",
        f"train/{_JUICE}/Bravo-Apple-Juice/Bravo-Apple-Juice_017.jpg",
        boxes=((0.14, 0.0, 0.74, 1.0), (0.12, 0.08, 0.87, 0.97)),
    ),
    Example(
        "clutter",
        "What has no counterpart: the front and the back of a product, with `--share auto`",
        f"test/{_JUICE}/God-Morgon-Orange-Juice/God-Morgon-Orange-Juice_010.jpg",
        f"train/{_JUICE}/God-Morgon-Orange-Juice/God-Morgon-Orange-Juice_019.jpg",
        share="auto",
    ),
)

#: The example of the README.
WHY = "apple-juice"


def main() -> None:
    """Draw the figures, or copy the plots of runs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--faithfulness", type=Path, nargs="+", help="folders of runs: only copy their plots")
    parser.add_argument("--grocery", type=Path, help="folder of the data set: only draw examples.md and why.png")
    parser.add_argument("--calibration", type=Path, help="folder of calibration.json")
    given = parser.parse_args()
    if given.faithfulness:
        for folder in given.faithfulness:
            copy_plots(folder)
    elif given.grocery:
        draw_examples(given.grocery, None if given.calibration is None else load_calibration(given.calibration))
    else:
        draw_pages()


def copy_plots(folder: Path) -> None:
    """Write docs/faithfulness-DATASET-MEASURE.png from the plots of a run."""
    dataset = json.loads((folder / "faithfulness.json").read_text(encoding="utf-8"))["config"]["dataset"]
    for measure in PLOTS[dataset]:
        save(io.BytesIO((folder / f"{measure}.png").read_bytes()), f"faithfulness-{dataset}-{measure}.png")


def draw_examples(grocery: Path, calibrator: Calibrator | None) -> None:
    """Write docs/examples/, docs/examples.md and docs/why.png."""
    embedder = diml.load_embedder("mobilenetv2_100", grid=7, preprocess=Preprocess(mode="square"))
    page = [PAGE]
    for number, example in enumerate(EXAMPLES, 1):
        found = explained_example(example, grocery, embedder, calibrator)
        figure = io.BytesIO()
        found.draw(width=3.3).savefig(figure)
        save(figure, f"examples/{example.name}.png")
        summary = found.summary()
        names = " and ".join(f"`{name}`" for name in (example.query, example.gallery))
        page.append(
            f"## {number}. {example.title}\n\n![{summary.headline}](examples/{example.name}.png)\n\n"
            f"{summary.headline}. {summary.sentence} {' '.join(summary.warnings)}".strip()
            + f"\n\n{names}\n"
        )
        if example.name == WHY:
            large = io.BytesIO()
            found.draw().savefig(large, dpi=150)
            save(large, "why.png", 250_000)
    print(write_text(HERE / "examples.md", "\n".join(page)))


def shares_text(summary: Summary) -> str:
    """What the similarity comes from, where boxes are known."""
    shares = summary.background
    if shares is None:
        return ""
    object_, mixed, background = (whole_percent(value) for value in (shares.object, shares.mixed, shares.background))
    return (
        f"{object_} of the similarity comes from object and object, {mixed} from object and background, {background} "
        "from background and background, by boxes drawn by hand."
    )


def explained_example(
    example: Example, grocery: Path, embedder: Embedder, calibrator: Calibrator | None
) -> Explanation:
    """The pair with what is known about it; a calibration is for the matcher that it was fitted with only."""
    foregrounds = None
    if example.boxes is not None:
        foregrounds = tuple(covered(box, embedder) for box in example.boxes)
    own = embedder.matcher if example.share == 1 else replace(embedder.matcher, share=example.share)
    found = diml.match(grocery / example.query, grocery / example.gallery, embedder=embedder, matcher=own)
    names = tuple(str(Path(path).relative_to(grocery)) for path in found.names)
    return replace(found, names=names, calibrator=calibrator if example.share == 1 else None, foregrounds=foregrounds)


def covered(box: Box, embedder: Embedder) -> Any:
    """Fraction of each region inside a box."""
    size = 256
    plane = np.zeros((size, size), dtype=np.float32)
    left, top, right, bottom = (round(edge * size) for edge in box)
    plane[top:bottom, left:right] = 1
    assert embedder.grid is not None
    return region_coverage(plane, view_box(embedder.preprocess, (size, size)), (embedder.grid, embedder.grid)).reshape(
        -1
    )


PAGE = """# Ten pairs, explained

Photos of products (Grocery Store data set, Klasson et al., WACV 2019, MIT licence), compared by a frozen MobileNetV2 in
7 x 7 regions. The figures are those of

    diml explain QUERY GALLERY --resize square --grid 7 --width 3.3 --output why.png

The probabilities are those of `diml calibrate grocery --protocol class_disjoint`, which has not seen these classes; the
model has not been trained on the photos either. They are for the hundred nearest photos of a query, so that most of the
pairs that are not of one product are hard ([calibration](calibration.md)). The texts below the figures are computed.

Written by `docs/draw_figures.py`.
"""


def save(drawn: io.BytesIO, name: str, most: int = 150_000) -> None:
    """Write an image with as many colours, 256 to 32, as fit into a number of bytes: visually the same."""
    (HERE / name).parent.mkdir(exist_ok=True)
    with atomic_file(HERE / name) as temporary, Image.open(drawn) as image:
        for colours in (256, 192, 128, 96, 64, 48, 32):
            written = io.BytesIO()
            image.convert("RGB").quantize(colours, kmeans=1).save(written, "PNG", optimize=True)
            if written.tell() <= most:
                break
        temporary.write_bytes(written.getvalue())
    print(HERE / name, written.tell())


if __name__ == "__main__":
    main()
