"""Groups of copies as an HTML page in one file, with a choice to keep or remove each image, saved as a CSV file."""

from __future__ import annotations

import base64
import hashlib
import html
import json
from functools import cache
from importlib import resources
from importlib.metadata import version
from string import Template
from typing import Any, Final

from diml.data.images import BadImageError, load_image
from diml.explain.formatting import short_path
from diml.explain.html import ImageShelf
from diml.search.duplicates import COLUMNS, DuplicateImage, Duplicates

_SIDE: Final = 256  # pixels of a thumbnail
_BYTES: Final = 14_000


def duplicates_page(found: Duplicates, *, title: str, groups: int = 500) -> str:
    """The page; it needs no other file and no network.

    Args:
        found: of `find_duplicates`.
        title: name of the index.
        groups: number on the page at most; the first ones.

    Raises:
        ValueError: `groups` is below 1.
    """
    if groups < 1:
        raise ValueError(f"groups: need at least 1, got {groups}")
    shown = found.groups[:groups]
    shelf = ImageShelf(_SIDE, _BYTES)
    listed = [[_entry(image, shelf) for image in group.images] for group in shown]
    more = len(found.groups) - len(shown)
    notes = [
        *found.threshold.lines(),
        "Exact copies have the same bytes. Agreement is that of the pixels that both images show, once one is laid "
        "over the other. In each group the image with most pixels is suggested to be kept, of several the earliest "
        "file. Nothing is removed: the CSV file says what was chosen.",
    ]
    if found.bad:
        notes.append(f"{len(found.bad):,} images cannot be read; only exact copies of them are found.")
    summary = f"{found.images:,} images, {len(found.groups):,} groups of copies"
    if more:
        summary += f"; the first {len(shown):,} are shown, and --csv writes all"
    data = {
        "summary": summary,
        "notes": notes,
        "columns": COLUMNS,
        "groups": listed,
        "thumbnails": [image["src"] for image in shelf.images],
    }
    # with `<` escaped, as JSON allows anywhere, no string can end the script element or open a comment in it
    numbers = json.dumps(data, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")
    style, script = _asset("duplicates.css"), _asset("duplicates.js")
    return Template(_asset("duplicates.html")).substitute(
        title=html.escape(f"Copies in {title}"),
        version=version("diml"),
        style=style,
        style_hash=_hash(style),
        script=script,
        script_hash=_hash(script),
        data=numbers,
    )


def _entry(image: DuplicateImage, shelf: ImageShelf) -> dict[str, Any]:
    """An image in the page's format; `thumbnail` is -1 where the file cannot be read."""
    place = -1
    if image.file is not None:
        try:
            place = shelf.place(load_image(image.file, at_least=_SIDE), image.name)
        except (OSError, BadImageError):
            place = -1
    named = ("id", "relation", "agreement", "width", "height", "bytes")
    label = image.metadata.get("label")
    note = f"label {label}" if label not in (None, "") else ""
    plain = {name: getattr(image, name) for name in named}
    return {"path": image.name, "short": short_path(image.name), "note": note, "thumbnail": place, **plain}


def _hash(text: str) -> str:
    """The sha256 by which the page allows its own style and script, and no others."""
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode("ascii")


@cache
def _asset(name: str) -> str:
    return resources.files("diml.search").joinpath("page", name).read_text(encoding="utf-8")
