"""An explanation as a page in one file: images, numbers and viewer inside, nothing fetched from anywhere.

The viewer is plain JavaScript in `page/`, modules that a web application can serve as they are.
"""

from __future__ import annotations

import base64
import hashlib
import html
import io
import json
import os
import re
from collections.abc import Mapping, Sequence
from functools import cache
from importlib import resources
from importlib.metadata import version
from pathlib import PurePath
from string import Template
from typing import Any, Final

from PIL import Image

from diml.explain.explanation import Explanation, describe_match
from diml.explain.hits import RankedHits
from diml.matching import Match

#: In the order in which they need each other; joined into one script, as a file cannot import from itself.
MODULES: Final = (
    "numbers.js",
    "dom.js",
    "lines.js",
    "stage.js",
    "matrix.js",
    "ledger.js",
    "viewer.js",
    "contrast.js",
    "hits.js",
)
#: Of the report of an evaluation.
REPORT_MODULES: Final = (*MODULES, "report.js")
_IMPORT: Final = re.compile(r'^import \{[^}]*\} from "\./[a-z]+\.js";\n', re.MULTILINE)


def explanation_page(
    found: Explanation | RankedHits, *, settings: Mapping[str, Any] | None = None, side: int = 512
) -> str:
    """Write the explanation of a pair, or of a query's hits, as an HTML document that needs no other file or network.

    Args:
        found: the pair with its images; or hits, which can be compared with each other on the page.
        settings: how the match was made; shown at the end.
        side: longest side of the images inside, in pixels; larger ones are scaled down.

    Returns:
        The document; for a pair under 1 MB at grids up to 14 x 14.

    Raises:
        ValueError: `side` is below 16.

    Example:
        >>> write_text("why.html", explanation_page(match_images("a.jpg", "b.jpg")))  # doctest: +SKIP
    """
    shelf = ImageShelf(side)
    pairs = [pair_data(found, shelf)] if isinstance(found, Explanation) else hits_data(found, shelf)
    names = found.names if isinstance(found, Explanation) else (found.matches[0].names[0], "its hits")
    data = {"images": shelf.images, "pairs": pairs, "settings": dict(settings or {})}
    return page_text(" and ".join(_short(name) for name in names), data, MODULES, "mountExplanation")


class ImageShelf:
    """Images of a page, each kept once: `{src, name, width, height}`, `src` a JPEG as a data URL.

    Args:
        side: longest side in pixels; larger images are scaled down.
        limit: bytes of a JPEG to stay below, where a lower quality can do it.
    """

    def __init__(self, side: int = 512, limit: int = 75_000) -> None:
        if side < 16:
            raise ValueError(f"side: need at least 16 pixels, got {side}; 512 is enough to see the regions")
        self.images: list[dict[str, Any]] = []
        self._side, self._limit = side, limit
        self._places: dict[tuple[str, tuple[int, int], bytes], int] = {}

    def place(self, image: Image.Image, name: str) -> int:
        """Row of a image in `images`, where it is put unless it is there."""
        small = image.convert("RGB")
        content = (name, image.size, hashlib.sha256(small.tobytes()).digest())
        if content not in self._places:
            self._places[content] = len(self.images)
            small.thumbnail((self._side, self._side), Image.Resampling.LANCZOS)
            source = "data:image/jpeg;base64," + base64.b64encode(_jpeg(small, self._limit)).decode("ascii")
            self.images.append({"src": source, "name": name, "width": small.width, "height": small.height})
        return self._places[content]


def pair_data(found: Explanation, shelf: ImageShelf, digits: int = 5) -> dict[str, Any]:
    """A pair as the viewer takes it: its `pair_numbers` and the rows of its two images."""
    query, gallery = (shelf.place(*side) for side in zip(found.images, found.names, strict=True))
    return {**pair_numbers(found, found.names, digits=digits), "images": {"query": query, "gallery": gallery}}


def pair_numbers(found: Match, names: tuple[str, str], pair: int = 0, digits: int = 5) -> dict[str, Any]:
    """The numbers of `describe_match` without the list of the largest flows, which the viewer finds by itself.

    Plan and cosines are rounded to so many significant digits (5 are finer than what is shown, and half the size of
    all); scores, weights and totals are not.
    """
    told = describe_match(found, pair, top=0, names=names)
    matrices = {name: [[_rounded(value, digits) for value in row] for row in told[name]] for name in ("plan", "cosine")}
    return {**{name: value for name, value in told.items() if name not in ("top", "settings")}, **matrices}


def hits_data(
    hits: RankedHits,
    shelf: ImageShelf,
    correct: Sequence[bool | None] = (),
    notes: Sequence[str] = (),
    digits: int = 5,
) -> list[dict[str, Any]]:
    """The hits of a query as the viewer takes them: pairs, best first, each with its place among the others.

    Args:
        hits: H hits.
        shelf: where their images go.
        correct: (H,) whether each is of the query's class, where that is known.
        notes: (H,) a few words for each, such as its class.
        digits: as of `pair_data`.
    """
    pairs = []
    for place, match in enumerate(hits.matches):
        facts = {
            "rank": place + 1,
            "pooled_rank": hits.pooled_rank[place],
            "lift": hits.lift[place].tolist(),
            "correct": correct[place] if correct else None,
            "note": notes[place] if notes else "",
        }
        pairs.append({**pair_data(match, shelf, digits), "hit": facts})
    return pairs


def page_text(title: str, data: Mapping[str, Any], modules: Sequence[str], mount: str) -> str:
    """The document: template, style, modules and data in one.

    Args:
        title: of the document.
        data: plain values; no NaN.
        modules: files of `page/`, each after those that it imports.
        mount: the function of the modules that shows the data in an element.
    """
    # `<` cannot end the element or open a comment in it when it is written as an escape, which JSON allows anywhere
    numbers = json.dumps(data, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")
    script = "\n".join(_IMPORT.sub("", page_asset(name)) for name in modules)
    return Template(page_asset("page.html")).substitute(
        title=html.escape(title),
        version=version("diml"),
        style=page_asset("viewer.css"),
        data=numbers,
        modules=script,
        mount=mount,
    )


@cache
def page_asset(name: str) -> str:
    """The text of a file in `page/`, which is part of the package."""
    return resources.files("diml.explain").joinpath("page", name).read_text(encoding="utf-8")


def check_page_name(path: str | os.PathLike[str]) -> None:
    """Refuse a file name that browsers would not open as a page."""
    if PurePath(path).suffix.lower() not in (".html", ".htm"):
        raise ValueError(f"html: need a file name ending in .html or .htm, got {os.fspath(path)!r}")


def _jpeg(image: Image.Image, limit: int) -> bytes:
    """The best of some qualities that stays within the limit of bytes, or the least of them."""
    stream = io.BytesIO()
    for quality in (90, 82, 72, 60, 45):
        stream = io.BytesIO()
        image.save(stream, "JPEG", quality=quality, optimize=True)
        if stream.tell() <= limit:
            break
    return stream.getvalue()


def _rounded(value: float, digits: int) -> float:
    return float(f"{value:.{digits}g}")


def _short(path: str) -> str:
    """The end of a path that tells one image from another."""
    return "/".join(path.replace("\\", "/").split("/")[-2:])
