"""Explanations as interactive HTML pages in one file, which contains images, numbers and viewer and fetches nothing.

The viewer is plain JavaScript in `page/`: modules that a web application can serve unchanged.
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

from diml.explain.description import describe_match
from diml.explain.explanation import Explanation, Plan
from diml.explain.formatting import short_path
from diml.explain.hits import RankedHits
from diml.explain.shown_plan import shown_plan
from diml.explain.summary import summarise
from diml.matching import Match

#: In the order of their imports; joined into one script, as a page in one file cannot import modules.
MODULES: Final = (
    "numbers.js",
    "outline.js",
    "dom.js",
    "state.js",
    "scale.js",
    "parts.js",
    "lines.js",
    "stage.js",
    "matrix.js",
    "ledger.js",
    "totals.js",
    "experts.js",
    "viewer.js",
    "contrast.js",
    "hits.js",
)
#: Of the page of an evaluation.
REPORT_MODULES: Final = (*MODULES, "report.js")
#: Pairs of regions up to which a page holds what each accounts for of the pooled cosine, not only each region.
_PAIRS: Final = 64 * 64
_IMPORT: Final = re.compile(r'^import \{[^}]*\} from "\./[a-z]+\.js";\n', re.MULTILINE)


def explanation_page(
    found: Explanation | RankedHits,
    *,
    settings: Mapping[str, Any] | None = None,
    side: int = 512,
    plan: Plan = "exact",
    parts: int | None = None,
) -> str:
    """The explanation of a pair, or of the hits of a query, as an HTML document that needs no other file or network.

    Args:
        found: one pair with its images; or hits, which can be compared with each other on the page.
        settings: how the images became regions; shown at the end, with the settings of the matcher.
        side: longest side of the images on the page in pixels; larger ones are scaled down.
        plan: of a pair: "exact", or "scored" for that of the matcher (see `shown_plan`).
        parts: number of parts of a pair; chosen by itself when omitted.

    Returns:
        The document; for a pair less than 1 MB at grids up to 14 x 14.

    Raises:
        ValueError: images are unknown, there are several pairs, or `side` is below 16.

    Example:
        >>> write_text("why.html", explanation_page(diml.match("a.jpg", "b.jpg")))  # doctest: +SKIP
    """
    shelf = ImageShelf(side)
    first = found if isinstance(found, Explanation) else found.matches[0]
    if isinstance(found, Explanation):
        pairs = [pair_data(found, shelf, plan=plan, parts=parts)]
    else:
        pairs = hits_data(found, shelf)
    names = found.names if isinstance(found, Explanation) else (first.names[0], "its hits")
    made_with = dict(settings or {}) | first.matcher.to_dict()
    data = {"images": shelf.images, "pairs": pairs, "settings": made_with}
    return page_text(" and ".join(short_path(name) for name in names), data, MODULES, "mountExplanation")


class ImageShelf:
    """The images of a page, each stored once: `{src, name, width, height}`, `src` a JPEG as a data URL.

    Args:
        side: longest side in pixels; larger images are scaled down.
        limit: bytes that a JPEG should not exceed; its quality is reduced down to 45 for that.
    """

    def __init__(self, side: int = 512, limit: int = 75_000) -> None:
        if side < 16:
            raise ValueError(f"side: need at least 16 pixels, got {side}; 512 is enough to see the regions")
        self.images: list[dict[str, Any]] = []
        self._side, self._limit = side, limit
        self._places: dict[tuple[str, tuple[int, int], bytes], int] = {}

    def place(self, image: Image.Image, name: str) -> int:
        """Row of an image in `images`, to which it is added if it is new."""
        small = image.convert("RGB")
        content = (name, image.size, hashlib.sha256(small.tobytes()).digest())
        if content not in self._places:
            self._places[content] = len(self.images)
            small.thumbnail((self._side, self._side), Image.Resampling.LANCZOS)
            source = "data:image/jpeg;base64," + base64.b64encode(_jpeg(small, self._limit)).decode("ascii")
            self.images.append({"src": source, "name": name, "width": small.width, "height": small.height})
        return self._places[content]


def pair_data(
    found: Explanation, shelf: ImageShelf, digits: int = 5, *, plan: Plan = "exact", parts: int | None = None
) -> dict[str, Any]:
    """One pair in the viewer's format: its `pair_numbers` and the rows of its two images.

    Raises:
        ValueError: images are unknown, or there are several pairs.
    """
    images = _places(found, shelf)
    return {**pair_numbers(found, found.names, digits=digits, plan=plan, parts=parts), "images": images}


def pair_numbers(
    found: Match,
    names: tuple[str, str],
    pair: int = 0,
    digits: int = 5,
    *,
    plan: Plan = "exact",
    parts: int | None = None,
) -> dict[str, Any]:
    """The numbers of `describe_match` without settings and the largest flows, which the viewer finds itself.

    Args:
        found: B pairs.
        names: of the two images.
        pair: which pair, -B..B-1.
        digits: significant digits of plan and cosines (5 are more than is displayed, and halve the size); scores,
            weights and totals are not rounded.
        plan: which is shown, see `shown_plan`.
        parts: number of parts; chosen by itself when omitted.
    """
    numbers = describe_match(shown_plan(found, pair, plan), top=0, names=names, parts=parts)
    if found.pooled_parts is not None and found.pooled_parts[pair].numel() <= _PAIRS:
        rows = found.pooled_parts[pair].tolist()
        numbers["pooled_parts"]["pairs"] = [[_rounded(value, digits) for value in row] for row in rows]
    return _viewer_numbers(numbers, digits)


def hit_numbers(found: Match, names: tuple[str, str], pair: int = 0, digits: int = 5) -> dict[str, Any]:
    """`pair_numbers` of a hit that is ranked and compared with others: of the plan by which it is ranked.

    Only its summary is of the exact plan, which has clearer parts.
    """
    summary = summarise(shown_plan(found, pair))
    return _viewer_numbers(describe_match(found, pair, top=0, names=names, summary=summary), digits)


def _viewer_numbers(numbers: dict[str, Any], digits: int) -> dict[str, Any]:
    left_out = ("top", "settings", "matcher", "parts")  # the summary has the parts
    matrices = {name: [[_rounded(x, digits) for x in row] for row in numbers[name]] for name in ("plan", "cosine")}
    return {**{name: value for name, value in numbers.items() if name not in left_out}, **matrices}


def _places(found: Explanation, shelf: ImageShelf) -> dict[str, int]:
    """Rows of the images of a pair on the shelf; ValueError where they are unknown."""
    if found.images is None:
        raise ValueError(
            f"found: need one pair with its images, got {found!r}; add them: Explanation.of(match, images, pair=...)"
        )
    query, gallery = (shelf.place(*side) for side in zip(found.images, found.names, strict=True))
    return {"query": query, "gallery": gallery}


def hits_data(
    hits: RankedHits,
    shelf: ImageShelf,
    correct: Sequence[bool | None] = (),
    notes: Sequence[str] = (),
    digits: int = 5,
) -> list[dict[str, Any]]:
    """The hits of a query in the viewer's format: pairs, best first, each with its ranks.

    Args:
        hits: H hits.
        shelf: to which their images are added.
        correct: (H,) whether each has the query's class, where this is known.
        notes: (H,) a few words for each, such as its class.
        digits: as of `pair_numbers`.
    """
    pairs = []
    for place, match in enumerate(hits.matches):
        facts = {
            "rank": place + 1,
            "pooled_rank": hits.pooled_rank[place],
            "probability": match.probability_of(),
            "lift": hits.lift[place].tolist(),
            "correct": correct[place] if correct else None,
            "note": notes[place] if notes else "",
        }
        images = _places(match, shelf)
        pairs.append({**hit_numbers(match, match.names, digits=digits), "images": images, "hit": facts})
    return pairs


def page_text(title: str, data: Mapping[str, Any], modules: Sequence[str], mount: str) -> str:
    """The document: template, style, modules and data in one file.

    Args:
        title: of the document.
        data: plain values without NaN.
        modules: files of `page/`, each after its imports.
        mount: name of the function of the modules that displays the data in an element.
    """
    # with `<` escaped, as JSON allows anywhere, no string can end the script element or open a comment in it
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
    """The text of a file of `page/`, which is part of the package."""
    return resources.files("diml.explain").joinpath("page", name).read_text(encoding="utf-8")


def check_page_name(path: str | os.PathLike[str]) -> None:
    """Raise ValueError for a file name that browsers would not open as a page."""
    if PurePath(path).suffix.lower() not in (".html", ".htm"):
        raise ValueError(f"html: need a file name ending in .html or .htm, got {os.fspath(path)!r}")


def _jpeg(image: Image.Image, limit: int) -> bytes:
    """The image at the highest quality within the limit of bytes, or at the lowest quality."""
    stream = io.BytesIO()
    for quality in (90, 82, 72, 60, 45):
        stream = io.BytesIO()
        image.save(stream, "JPEG", quality=quality, optimize=True)
        if stream.tell() <= limit:
            break
    return stream.getvalue()


def _rounded(value: float, digits: int) -> float:
    return float(f"{value:.{digits}g}")
