"""The report of an audit as an HTML page in one file: totals, classes, and queries with their hits, worst first.

It needs no script, no other file and no network. All names are escaped.
"""

from __future__ import annotations

from collections.abc import Iterable
from html import escape
from importlib.metadata import version
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from diml.audit.audit import Audit, ClassEvidence
from diml.audit.foregrounds import view_plane
from diml.data import load_image
from diml.data.region_coverage import view_box
from diml.explain.formatting import MINUS, short_path
from diml.explain.html import ImageShelf
from diml.matching.retrieval import NOTHING

_SIDE: Final = 224  # pixels of an image
_IMAGE_BYTES: Final = 14_000
_CLASSES: Final = 60  # rows of the table of classes; all are in the CSV and JSON
#: Colour blind safe (Okabe and Ito), in the order of KINDS, dark and light text on them.
_COLOURS: Final = ("#009e73", "#e69f00", "#cc79a7", "#56606a")
_LABELS: Final = ("object to object", "object to background", "background to object", "background to background")
_OUTLINE: Final = ((0, 0, 0), (255, 235, 59))

_STYLE: Final = """
:root { color-scheme: light dark; --paper: #fff; --panel: #f6f8fa; --ink: #1f2328; --quiet: #59636e;
  --line: #d1d9e0; --alarm: #b04300; }
@media (prefers-color-scheme: dark) { :root { --paper: #0f1419; --panel: #1a2129; --ink: #e6edf3; --quiet: #9aa7b4;
  --line: #36414d; --alarm: #ff9e64; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1120px; padding: 1rem 1.25rem 3rem; background: var(--paper); color: var(--ink);
  font: 15px/1.45 system-ui, -apple-system, "Segoe UI", "DejaVu Sans", sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.3rem; } h2 { font-size: 1.1rem; margin-top: 1.6rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; overflow-wrap: normal; }
th, td { padding: 0.15rem 0.7rem 0.15rem 0; text-align: right; border-bottom: 1px solid var(--line); }
th:first-child, td:first-child { text-align: left; }
.query { background: var(--panel); border-radius: 8px; padding: 0.8rem; margin: 0 0 1rem; }
.images { display: flex; flex-wrap: wrap; gap: 0.8rem; }
figure { margin: 0; width: min(14rem, calc(50% - 0.4rem)); }
figure img { width: 100%; height: auto; display: block; border-radius: 4px; }
figcaption, .quiet { color: var(--quiet); font-size: 0.87rem; }
.bar { display: flex; height: 14px; max-width: 46rem; margin: 0.5rem 0 0.2rem; gap: 1px; }
.bar span { min-width: 0; }
.key { display: inline-block; width: 0.8em; height: 0.8em; border-radius: 2px; margin-right: 0.3em; }
.shares span.share { margin-right: 1.1em; white-space: nowrap; }
.alarm { color: var(--alarm); font-weight: 600; }
"""


def audit_page(found: Audit, *, title: str, queries: int = 20) -> str:
    """An audit as an HTML document that needs no other file or network.

    Args:
        found: of `audit_dataset`.
        title: of the page, for instance data set and model.
        queries: number of queries to display, worst first, at least 1.

    Raises:
        ValueError: `queries` is below 1, or the audit has no foregrounds to outline.
    """
    if queries < 1:
        raise ValueError(f"queries: need at least 1, got {queries}")
    if found.foregrounds is None:
        raise ValueError("found: need the foregrounds of the images, got none; use audit_dataset")
    shelf = ImageShelf(_SIDE, _IMAGE_BYTES)
    shown = found.worst_first()[:queries]
    parts = [
        f"<h1>{escape(title)}</h1>",
        _summary(found),
        _legend(),
        "<h2>Shares of the scores of best hits, percent</h2>",
        _table(found),
        f"<h2>{len(shown)} of {len(found.queries):,} queries: right only because of the background first</h2>",
        *(_query(found, int(query), shelf) for query in shown),
    ]
    head = (
        '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; img-src data:; '
        "style-src 'unsafe-inline'\">"
        f'<meta name="generator" content="diml {version("diml")}"><link rel="icon" href="data:,">'
    )
    return (
        f'<!doctype html>\n<html lang="en">\n<head>{head}\n<title>{escape(title)}</title>\n<style>{_STYLE}</style>'
        "</head>\n<body>\n<main>\n" + "\n".join(parts) + "\n</main>\n</body>\n</html>\n"
    )


def outlined(image: Image.Image, inside: NDArray[np.bool_]) -> Image.Image:
    """An image with the border of its object drawn as a light line with a dark rim.

    Args:
        image: RGB.
        inside: (height, width) whether each pixel is object.
    """
    pixels = np.array(image.convert("RGB"))
    line = inside & ~_eroded(inside)
    pixels[_dilated(_dilated(line)) & ~line] = _OUTLINE[0]
    pixels[_dilated(line) & inside] = _OUTLINE[1]
    return Image.fromarray(pixels)


def _summary(found: Audit) -> str:
    total, shares = found.total, found.total.shares
    what = "whole score" if found.whole is not None else "structural score"
    lines = [
        f"{total.queries:,} queries, {total.right:,} with a right best hit; "
        f'<span class="alarm">{total.background_only:,} of them only because of the background</span> '
        f"(without it, re-sorting the {found.candidates:,} candidates, the best hit would be wrong), "
        f"{total.confirmed:,} also where the size of the objects does not count. "
        f"Wrong because of the background: {total.object_only:,}.",
        f"{_percent(shares[0])} of the {what} of best hits comes from object to object; if evidence were distributed "
        f"evenly over the area, it would be {_percent(total.by_area[0])}.",
    ]
    if found.undivided:
        lines.append(f"The pooled cosine is not divided and counts in full: {escape(found.undivided)}.")
    notes = [f"{len(found.left_out):,} images left out"] if found.left_out else []
    notes += [f"{found.without_relevant:,} queries without a relevant image left out"] if found.without_relevant else []
    notes += [f"{found.clipped:,} boxes clipped to their images"] if found.clipped else []
    notes += [f"{found.empty:,} images show nothing of their object"] if found.empty else []
    notes += [f"{found.unconverged:,} pairs did not converge"] if found.unconverged else []
    settings = ", ".join(f"{name} {value}" for name, value in found.matcher.to_dict().items())
    body = "".join(f"<p>{line}</p>" for line in lines)
    left_out = "".join(f"<li>{escape(f'{image.path}: {image.reason}')}</li>" for image in found.left_out[:50])
    body += f'<p class="quiet">{escape("; ".join([*notes, settings]))}</p>'
    return body + (f"<details><summary>Images left out</summary><ul>{left_out}</ul></details>" if left_out else "")


def _legend() -> str:
    return (
        '<p class="shares">'
        + "".join(
            f'<span class="share"><span class="key" style="background:{colour}"></span>{label}</span>'
            for colour, label in zip(_COLOURS, _LABELS, strict=True)
        )
        + "</p>"
    )


def _table(found: Audit) -> str:
    heads = (
        "",
        "queries",
        "right",
        "only by background",
        "confirmed",
        "wrong by background",
        *_LABELS,
        "object to object by area",
    )
    classes = found.classes
    rows = [_row(one) for one in (found.total, *classes[:_CLASSES])]
    more = f'<p class="quiet">and {len(classes) - _CLASSES:,} more classes</p>' if len(classes) > _CLASSES else ""
    head = "".join(f"<th>{name}</th>" for name in heads)
    return f'<div class="wide"><table><tr>{head}</tr>{"".join(rows)}</table></div>{more}'


def _row(one: ClassEvidence) -> str:
    counts = (one.queries, one.right, one.background_only, one.confirmed, one.object_only)
    numbers = [f"{count:,}" for count in counts] + [_percent(share, unit="") for share in (*one.shares, one.by_area[0])]
    return f"<tr><td>{escape(one.name)}</td>" + "".join(f"<td>{number}</td>" for number in numbers) + "</tr>"


def _query(found: Audit, query: int, shelf: ImageShelf) -> str:
    images, labels = found.images, found.images.labels
    own = int(found.queries[query])
    figures = [_figure(found, own, shelf, f"query, {images.class_names[labels[own]]}")]
    bars = []
    shares = found.shares()[query]
    for rank, hit in enumerate(found.hits[query]):
        if hit == NOTHING:
            continue
        mark = "right" if found.correct[query, rank] else "wrong"
        name = images.class_names[labels[hit]]
        figures.append(_figure(found, int(hit), shelf, f"hit {rank + 1}, {mark}: {name}"))
        caption = f"hit {rank + 1}, score {found.scores[query, rank]:.3f}"
        bars.append(_bar(shares[rank], caption))
    without = int(found.object_hits[query])
    verdict = ""
    if found.background_only[query] or found.object_only[query]:
        mark = "right" if found.object_correct[query] else "wrong"
        name = images.class_names[labels[without]]
        figures.append(_figure(found, without, shelf, f"best hit without background, {mark}: {name}"))
        why = "Wrong because of the background"
        if found.background_only[query]:
            how = "also" if found.confirmed[query] else "but not"
            why = f"Right only because of the background, {how} where the size of the objects does not count"
        verdict = f'<p class="alarm">{why}.</p>'
    return f'<section class="query">{verdict}<div class="images">{"".join(figures)}</div>{"".join(bars)}</section>'


def _figure(found: Audit, row: int, shelf: ImageShelf, caption: str) -> str:
    """An image of the audit as the network saw it, its object outlined."""
    name = found.images.image_name(row)
    view = found.preprocess.view(load_image(found.images.images[row], at_least=found.preprocess.at_least))
    view = view.resize((_SIDE, _SIDE), Image.Resampling.BICUBIC)
    assert found.foregrounds is not None
    plane = found.foregrounds.plane(row if found.kept is None else int(found.kept[row]))
    box = view_box(found.preprocess, (plane.shape[1], plane.shape[0]))
    place = shelf.place(outlined(view, view_plane(plane, box, _SIDE)), name)
    source = shelf.images[place]["src"]
    covered = _percent(found.coverage[row].mean())
    return (
        f'<figure><img src="{source}" width="{_SIDE}" height="{_SIDE}" alt="{escape(short_path(name))}">'
        f"<figcaption><b>{escape(caption)}</b><br>{escape(short_path(name))}<br>object {covered} of the view"
        "</figcaption></figure>"
    )


def _bar(shares: NDArray[np.float64], caption: str) -> str:
    """Shares as a bar; negative ones, which lower the score, stand in the text only."""
    if not np.isfinite(shares).all():
        return f'<p class="quiet">{escape(caption)}</p>'
    widths = shares.clip(0) / shares.clip(0).sum()
    spans = "".join(
        f'<span style="flex:0 1 {100 * width:.2f}%;background:{colour}"></span>'
        for width, colour in zip(widths, _COLOURS, strict=True)
    )
    texts = "".join(
        f'<span class="share"><span class="key" style="background:{colour}"></span>{_percent(share)}</span>'
        for share, colour in zip(shares, _COLOURS, strict=True)
    )
    label = ", ".join(f"{name} {_percent(share)}" for name, share in zip(_LABELS, shares, strict=True))
    return (
        f'<div class="bar" role="img" aria-label="{escape(label)}">{spans}</div>'
        f'<div class="shares quiet"><span class="share">{escape(caption)}:</span>{texts}</div>'
    )


def _percent(fraction: float, unit: str = " %") -> str:
    if not np.isfinite(fraction):
        return "unknown"
    return f"{100 * fraction:.1f}".replace("-", MINUS) + unit


def _dilated(inside: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The pixels that are inside or next to one that is."""
    grown = inside.copy()
    grown[1:] |= inside[:-1]
    grown[:-1] |= inside[1:]
    grown[:, 1:] |= inside[:, :-1]
    grown[:, :-1] |= inside[:, 1:]
    return grown


def _eroded(inside: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The pixels that are inside with all their neighbours; beyond the image everything is inside."""
    return ~_dilated(~inside)


def write_audit(folder: Path, found: Audit, *, title: str, queries: int = 20, document: str) -> Iterable[Path]:
    """Write audit.html, audit.csv and audit.json (`document`) into a folder, each atomically; returns their paths."""
    from diml.files import write_text

    folder.mkdir(parents=True, exist_ok=True)
    page = audit_page(found, title=title, queries=queries)
    texts = {"audit.html": page, "audit.csv": found.to_csv(), "audit.json": document}
    return [write_text(folder / name, text) for name, text in texts.items()]
