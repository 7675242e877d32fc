"""`diml duplicates`: copies of one photograph in an index, as groups, a page and a CSV file."""

from __future__ import annotations

import json as json_format
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from diml.cli.errors import one_line
from diml.cli.output import bad_image_line

if TYPE_CHECKING:
    from diml.search.duplicates import Duplicates

_BAD_LISTED = 10


@dataclass(frozen=True, kw_only=True)
class DuplicatesCommand:
    """Find the copies of one photograph in an index: the same file twice, and images that were compressed again, made
    brighter, scaled, mirrored or cropped. They are shown as groups, exact copies first, each with the image to keep:
    the largest, or the earliest of those. Nothing is removed: the page or the CSV file says what could be.

    The threshold is learnt from the index itself: copies of some of its images are made, to see how many are found.
    The image files have to be where they were when they were indexed.

    For instance:

    diml duplicates photos.index --html duplicates.html

    diml duplicates photos.index --csv duplicates.csv --precision 0.99

    diml duplicates shop.index --where "stock > 0" --differ label --json

    diml duplicates photos.index --threshold 0.995
    """

    index: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="INDEX")]
    """The index: a folder; `NAME.db` (Milvus Lite); `http://host:port` (Milvus)."""

    html: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """Write a page in one file: the groups with their images, a choice to keep or remove each, and a button that saves
    the choices as a CSV file."""

    csv: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """Write the groups as a CSV file with the columns group, action (keep or remove), path, relation, agreement, width,
    height, bytes, id and kept (the path of the image that is kept)."""

    precision: float = 0.95
    """Share of the pairs found, exact copies left out, that should be of one photograph, as a fraction: the threshold
    is the smallest that is estimated to have it."""

    threshold: float | None = None
    """Agreement from which two images are copies, in (0, 1], instead of the one of the calibration."""

    sample: int = 50
    """Images of which copies are made for the calibration; 0 for none, and the threshold 0.99."""

    neighbours: int = 10
    """Number of nearest neighbours that each image is compared with."""

    where: str | None = None
    """Only images whose metadata satisfy this condition, for instance "label = 'milk' and price < 3"."""

    differ: Annotated[str | None, tyro.conf.arg(metavar="COLUMN")] = None
    """Only groups with different values in this column, such as one photograph under two labels."""

    page_groups: int = 500
    """Number of groups on the page; the CSV file has all."""

    seed: int = 0
    """Of the choice of images for the calibration."""

    model: str | None = None
    """Present name or path of the embedder of the index, if it has moved."""

    device: str = "cpu"
    """Where copies are embedded, for instance cuda."""

    json: bool = False
    """Print JSON instead of text."""

    def run(self) -> int:
        """Find, print, write."""
        from diml.explain.html import check_page_name
        from diml.files import require_writable_file, write_text
        from diml.search import Searcher, open_store
        from diml.search.duplicates import check_options, find_duplicates

        if self.html is not None:
            check_page_name(self.html)
        if self.page_groups < 1:
            raise ValueError(f"page_groups: need at least 1, got {self.page_groups}")
        for file in (self.csv, self.html):
            if file is not None:
                require_writable_file(file)  # known before the work, not after
        store, embedder = open_store(self.index), None
        check_options(store, self.threshold, self.precision, self.sample, self.neighbours, self.where, self.differ)
        if self.sample > 0:
            embedder = Searcher.open(self.index, model=self.model, device=self.device).embedder
        found = find_duplicates(
            store,
            embedder,
            threshold=self.threshold,
            precision=self.precision,
            sample=self.sample,
            neighbours=self.neighbours,
            where=self.where,
            differ=self.differ,
            seed=self.seed,
            progress=True,
        )
        written = []
        if self.csv is not None:
            written.append(write_text(self.csv, found.to_csv()))
        if self.html is not None:
            from diml.search.duplicates_page import duplicates_page

            written.append(write_text(self.html, duplicates_page(found, title=self.index, groups=self.page_groups)))
        if self.json:
            print(json_format.dumps({"index": self.index, **found.to_dict()}, indent=1, allow_nan=False))
        else:
            _print(found)
            if written:
                print("Written: " + ", ".join(str(path) for path in written))
            elif found.groups:
                print("Add --html FILE to look at them and choose, or --csv FILE.")
        return 1 if found.bad else 0


def _print(found: Duplicates) -> None:
    """The groups, what the threshold means, and images that cannot be read."""
    for number, group in enumerate(found.groups, start=1):
        print(f"Group {number}: keep   {one_line(group.images[0].name)}")
        for image in group.images[1:]:
            how = "exact copy" if image.relation == "exact" else f"{image.relation}, agreement {image.agreement:.4f}"
            print(f"{'':{len(str(number)) + 6}}  remove {one_line(image.name)} ({how})")
    exact = sum(image.relation == "exact" for group in found.groups for image in group.images)
    print(
        f"{found.images:,} images: {len(found.groups):,} groups with {found.removed:,} images to remove, "
        f"{exact:,} of them exact copies."
    )
    for line in found.threshold.lines():
        print(line)
    for bad in found.bad[:_BAD_LISTED]:
        print(bad_image_line(bad), file=sys.stderr)
    if found.bad:
        print(f"{len(found.bad):,} images cannot be read; only exact copies of them are found", file=sys.stderr)


COMMAND = DuplicatesCommand
