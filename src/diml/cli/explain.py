"""`diml explain`: why two images match, for everybody and in detail: in words, as table, figure, page and JSON."""

from __future__ import annotations

import json as json_format
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

import tyro

from diml.cli.options import (
    ForegroundFlags,
    ForegroundOptions,
    MatcherFlags,
    MatcherOptions,
    ModelFlags,
    ModelOptions,
)

if TYPE_CHECKING:
    from diml.audit import Foregrounds
    from diml.calibration.finding import FoundCalibration
    from diml.explain import Explanation, RankedHits
    from diml.matching import Matcher
    from diml.models import Embedder

_STDOUT = Path("-")
#: Inches; a wider figure would fill the memory.
_WIDEST: Final = 100


@dataclass(frozen=True, kw_only=True)
class ExplainCommand:
    """Explain the similarity of two images: how sure it is that they show the same, which parts match and what share of
    the similarity each carries; with --view regions, the matches of single regions. Or why one hit of a query ranks
    above another.

    For instance:

    diml explain a.jpg b.jpg

    diml explain a.jpg b.jpg --output why.png --json why.json

    diml explain a.jpg b.jpg --html why.html

    diml explain a.jpg b.jpg --model runs/mine --kind product --masks masks

    diml explain a.jpg b.jpg --view regions --grid 7 --top 12

    diml explain a.jpg b.jpg --output why.pdf --width 3.3

    diml explain a.jpg b.jpg --json - | jq .summary

    diml explain --query a.jpg --hits b.jpg c.jpg d.jpg --html hits.html
    """

    a: Annotated[Path | None, tyro.conf.Positional, tyro.conf.arg(metavar="A")] = None
    """The query image."""

    b: Annotated[Path | None, tyro.conf.Positional, tyro.conf.arg(metavar="B")] = None
    """The image that it is compared with."""

    query: Path | None = None
    """Instead of A and B: a query whose hits are ranked and compared with each other."""

    hits: tuple[Path, ...] = ()
    """The images that the query is compared with, in any order."""

    view: Literal["parts", "regions"] = "parts"
    """`parts`: groups of regions that match, for everybody; `regions`: single regions, for experts. Of the figure and
    of what is printed; page and JSON have both."""

    plan: Literal["exact", "scored"] = "exact"
    """Plan to show: `exact`, in which a region sends its mass to few others; or `scored`, the plan of the matcher, by
    which pairs are ranked. What is printed says where their sums differ."""

    parts: int | None = None
    """Largest number of parts; 3 to 6 by default."""

    top: int = 8
    """With --view regions: number of largest matches of regions to print and to draw."""

    output: Path | None = None
    """Write the figure here; the ending determines the format (png, pdf, svg, jpg)."""

    width: float | None = None
    """Width of the figure in inches; 3.3 and 6.9 fit one and two columns of a paper."""

    overlay: bool = False
    """Tint the parts in the figure in their colours, which changes how the images look."""

    no_overlay: bool = False
    """With --view regions: leave the images as they are, without the weights drawn over them."""

    html: Path | None = None
    """Write an interactive page here, in one file: parts, regions, lines and a sortable ledger."""

    json: Path | None = None
    """Write all numbers here, as fractions; `-` prints them to standard output instead."""

    model: ModelFlags = ModelOptions()

    matcher: MatcherFlags = MatcherOptions()

    calibration: Path | None = None
    """Folder with a calibration.json of `diml calibrate`, from which probabilities are read; by default that of the
    model, if it has one for these settings."""

    kind: str | None = None
    """What images of one class have in common, for the sentences: product, person. By default as calibrated, else
    class."""

    foregrounds: ForegroundFlags = ForegroundOptions()

    def run(self) -> int:
        """Match, print, draw, write."""
        query, gallery = self._images()
        for image in (query, *gallery):  # before a model is loaded
            if not image.exists():
                raise FileNotFoundError(f"image {image}: no such file")
        self._check_options()
        foregrounds = self._foregrounds((query, *gallery)) if self.foregrounds.given else None
        found = self._match(query, gallery, foregrounds)
        written = self._write(found)
        self._print(found, written)
        return 0

    def _images(self) -> tuple[Path, tuple[Path, ...]]:
        """The query and the images that it is compared with."""
        from diml.data.listing import named_file

        if self.a is not None and self.b is not None and self.query is None and not self.hits:
            return named_file(self.a), (named_file(self.b),)
        if self.a is None and self.query is not None and self.hits:
            return named_file(self.query), tuple(map(named_file, self.hits))
        raise ValueError("images: need A and B, or --query Q with --hits A B ..., and not both; see --help")

    def _check_options(self) -> None:
        """Raise for wrong file names and numbers before a model is loaded."""
        from diml.explain.html import check_page_name
        from diml.files import require_writable_file

        if self.parts is not None and self.parts < 1:
            raise ValueError(f"parts: need at least 1, got {self.parts}")
        if self.overlay and self.no_overlay:
            raise ValueError("overlay: need --overlay or --no-overlay, got both")
        if self.top < 0:
            raise ValueError(f"top: need 0 or more, got {self.top}")
        if self.width is not None and not 0 < self.width <= _WIDEST:
            raise ValueError(f"width: need inches, above 0 and at most {_WIDEST}, got {self.width}")
        if self.output is not None:
            from diml.explain.canvas import check_format
            from diml.explain.flows import check_lines

            check_format(self.output)
            check_lines(self.top)
        if self.html is not None:
            check_page_name(self.html)
        for file in (self.output, self.html, self.json):
            if file is not None and file != _STDOUT:
                require_writable_file(file)
        of_pairs = {"plan": self.plan != "exact", "parts": self.parts is not None}
        given = [f"--{name}" for name, value in of_pairs.items() if value]
        if self.query is not None and given:
            raise ValueError(f"{', '.join(given)}: need a pair, A and B; hits are ranked by the plan of the matcher")

    def _foregrounds(self, images: tuple[Path, ...]) -> list[Foregrounds]:
        """Where the object is in each image, by its own path: query and hits may lie in different folders."""
        from diml.data import ImageSet

        return [self.foregrounds.open(ImageSet([image], ["image"])) for image in images]

    def _match(
        self, query: Path, gallery: tuple[Path, ...], foregrounds: list[Foregrounds] | None
    ) -> Explanation | RankedHits:
        from diml.explain import rank_hits
        from diml.explain.explanation import match_query
        from diml.explain.shown_plan import shown_plan

        embedder = self.model.open()
        notice = self.matcher.notice(embedder.matcher)
        if notice is not None:
            print(notice, file=sys.stderr)
        matcher = self.matcher.for_model(embedder)
        calibration = self._calibration(embedder, matcher)
        if calibration.notice:
            print(calibration.notice, file=sys.stderr)
        found = match_query(query, gallery, embedder=embedder, matcher=matcher, calibrator=calibration.calibrator)
        found = [replace(match, kind=self.kind or "") for match in found]
        if foregrounds is not None:
            found = _with_foregrounds(found, foregrounds, embedder)
        return shown_plan(found[0], plan=self.plan) if self.query is None else rank_hits(found)

    def _calibration(self, embedder: Embedder, matcher: Matcher) -> FoundCalibration:
        """The calibration that was named, or that of the model."""
        from diml.calibration.calibrator import FILE
        from diml.calibration.finding import FoundCalibration, find_calibration

        folder = Path(self.model.model or "")
        if self.calibration is None and (not self.model.model or not (folder / FILE).is_file()):
            return FoundCalibration()  # without reading all weights for a fingerprint
        return find_calibration([folder], fingerprint=embedder.fingerprint(), matcher=matcher, named=self.calibration)

    def _write(self, found: Explanation | RankedHits) -> list[Path]:
        """Write the files that were asked for; JSON may go to standard output."""
        from diml.explain import RankedHits, explanation_page
        from diml.explain.description import describe_match
        from diml.explain.hits import describe_hits
        from diml.files import write_text

        settings = self._settings()
        written = []
        if self.output is not None:
            from diml.explain.canvas import save_figure

            written.append(save_figure(self._draw(found), self.output))
        if self.html is not None:
            page = explanation_page(found, settings=settings, plan=self.plan, parts=self.parts)
            written.append(write_text(self.html, page))
        if self.json is not None:
            if isinstance(found, RankedHits):
                numbers = describe_hits(found, top=self.top, settings=settings)
            else:
                numbers = describe_match(found, top=self.top, names=found.names, settings=settings, parts=self.parts)
            text = json_format.dumps(numbers, indent=1, allow_nan=False) + "\n"
            if self.json == _STDOUT:
                sys.stdout.write(text)
            else:
                written.append(write_text(self.json, text))
        return written

    def _draw(self, found: Explanation | RankedHits) -> Any:
        """The figure of a pair, or of hits."""
        from diml.explain import RankedHits

        overlay = True if self.overlay else (False if self.no_overlay else None)
        if isinstance(found, RankedHits):
            return found.draw(view=self.view, overlay=overlay, top=min(self.top, 8), width=self.width)
        return found.draw(
            view=self.view,
            plan=self.plan,
            overlay=overlay,
            top=self.top,
            width=self.width,
            parts=self.parts if self.view == "parts" else None,
        )

    def _settings(self) -> dict[str, Any]:
        """How the images became regions; None where the model's own setting applies."""
        return self.model.settings() | self.foregrounds.settings()

    def _print(self, found: Explanation | RankedHits, written: list[Path]) -> None:
        """What there is to say, and the files written; to standard error when JSON is printed."""
        from rich.console import Console

        from diml.cli.explain_output import print_hits, print_parts, print_regions
        from diml.explain import RankedHits

        console = Console(stderr=self.json == _STDOUT, highlight=False)
        if isinstance(found, RankedHits):
            print_hits(console, found, self.top)
        elif self.view == "parts":
            print_parts(console, found, self.parts)
        else:
            print_regions(console, found, self.top)
        if written:
            console.print("Written: " + ", ".join(str(path) for path in written), markup=False, soft_wrap=True)
        elif self.json is None:
            console.print("Add --html why.html for an interactive page, --output why.png for a figure.", markup=False)


COMMAND = ExplainCommand


def _with_foregrounds(
    found: list[Explanation], foregrounds: list[Foregrounds], embedder: Embedder
) -> list[Explanation]:
    """The matches with the fraction of each region that is object."""
    grids = [found[0].grid_q, *(match.grid_g for match in found)]
    if None in grids:
        raise ValueError("foregrounds: need regions on a known grid, got a model without; choose one with --grid")
    covered = [
        one.cover(embedder.preprocess, grid).values[0]
        for one, grid in zip(foregrounds, grids, strict=True)
        if grid is not None
    ]
    return [replace(match, foregrounds=(covered[0], hit)) for match, hit in zip(found, covered[1:], strict=True)]
