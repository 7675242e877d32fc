"""Groups of copies in an index: which image to keep, and which to remove.

Pairs are linked to groups, but an image is in a group only if it was compared with the image that the group keeps, and
is a copy of it: in a chain of crops, where the first and the last show nothing in common, the last is in no group with
the first. Source of such star-shaped groups: Aslam, Pelekhov and Rus, Journal of Graph Algorithms and Applications,
2004.

Legend: G groups.
"""

from __future__ import annotations

import csv
import io
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from diml.data.alignment import Agreement
from diml.data.images import BadImage, opened_image
from diml.progress import ShowProgress
from diml.search.copies import CopyComparison, GalleryFiles, neighbour_pairs
from diml.search.copy_threshold import CopyThreshold, choose_threshold, copy_trials, given_threshold
from diml.search.filters import Where, parse_where

if TYPE_CHECKING:
    from diml.models import Embedder
    from diml.search.store import Store, Value

Relation = Literal["kept", "exact", "copy", "mirrored", "cropped"]
#: Change of the side of what an image shows from which a copy is called cropped.
_CROPPED: Final = 0.02
#: Columns of the CSV file, of `--csv` and of the page.
COLUMNS: Final = ("group", "action", "path", "relation", "agreement", "width", "height", "bytes", "id", "kept")
_Measure = Callable[[NDArray[np.int64]], list[Agreement]]


@dataclass(frozen=True)
class DuplicateImage:
    """An image of a group.

    Args:
        id: in the index.
        file: where it is, if the index records that.
        relation: to the image that is kept: "exact" (the same bytes), "mirrored", "cropped" (or the kept one is), or
            "copy"; "kept" of itself.
        agreement: with the image that is kept; 1 of exact copies and of itself.
        width, height: in pixels, as stored; 0 where the file cannot be read.
        bytes: of the file.
        modified: date of the file, seconds.
        metadata: columns.
    """

    id: str
    file: Path | None
    relation: Relation
    agreement: float
    width: int
    height: int
    bytes: int
    modified: float
    metadata: Mapping[str, Value]

    @property
    def name(self) -> str:
        """File, else id."""
        return self.id if self.file is None else str(self.file)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        named = ("id", "relation", "agreement", "width", "height", "bytes")
        plain = {name: getattr(self, name) for name in named}
        action = "keep" if self.relation == "kept" else "remove"
        file = None if self.file is None else str(self.file)
        return {"file": file, "action": action, **plain, "metadata": dict(self.metadata)}


@dataclass(frozen=True)
class DuplicateGroup:
    """Copies of one photograph: first the image to keep, then the others, exact copies first."""

    images: tuple[DuplicateImage, ...]

    @property
    def exact(self) -> bool:
        """Whether there are exact copies in it."""
        return any(image.relation == "exact" for image in self.images)


@dataclass(frozen=True, eq=False)
class Duplicates:
    """The copies of an index.

    Args:
        images: number that were compared.
        groups: G, those with exact copies first, then by agreement.
        threshold: from which agreement images are copies.
        pairs: number that were compared.
        bad: images that cannot be read; only exact copies of them are found.
    """

    images: int
    groups: tuple[DuplicateGroup, ...]
    threshold: CopyThreshold
    pairs: int
    bad: tuple[BadImage, ...]

    @property
    def removed(self) -> int:
        """Images that the groups do not keep."""
        return sum(len(group.images) - 1 for group in self.groups)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; fractions."""
        return {
            "images": self.images,
            "compared_pairs": self.pairs,
            "threshold": self.threshold.to_dict(),
            "groups": [{"images": [image.to_dict() for image in group.images]} for group in self.groups],
            "bad": [{"path": image.path, "reason": image.reason} for image in self.bad],
        }

    def rows(self) -> list[list[str]]:
        """The lines of the CSV file, below `COLUMNS`."""
        lines = []
        for number, group in enumerate(self.groups, start=1):
            for image in group.images:
                action = "keep" if image.relation == "kept" else "remove"
                sizes = [str(value) for value in (image.width, image.height, image.bytes)]
                agreement = f"{image.agreement:.4f}"
                lines.append(
                    [str(number), action, image.name, image.relation, agreement, *sizes, image.id, group.images[0].name]
                )
        return lines

    def to_csv(self) -> str:
        """The groups as CSV."""
        stream = io.StringIO()
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerows([list(COLUMNS), *self.rows()])
        return stream.getvalue()


def find_duplicates(
    store: Store,
    embedder: Embedder | None = None,
    *,
    threshold: float | None = None,
    precision: float = 0.95,
    sample: int = 50,
    neighbours: int = 10,
    where: str | None = None,
    differ: str | None = None,
    seed: int = 0,
    progress: ShowProgress = False,
) -> Duplicates:
    """Find the copies of an index: exact ones, and photographs compressed again, brighter, scaled, mirrored or cropped.

    Args:
        store: the index.
        embedder: that of the index, for the calibration; None: no calibration.
        threshold: agreement from which two images are copies, in (0, 1]; when omitted chosen by the calibration.
        precision: that the threshold should have, in (0, 1).
        sample: images of which copies are made for the calibration; 0: none.
        neighbours: of each image, with which it is compared.
        where: only images that satisfy this condition.
        differ: only groups with different values in this column, such as one photograph under two labels.
        seed: of the calibration.
        progress: as of `progress_bar`.

    Raises:
        ValueError: an argument is out of range, or no such column.
    """
    condition = check_options(store, threshold, precision, sample, neighbours, where, differ)
    gallery = GalleryFiles.of(store, condition)
    with CopyComparison(gallery) as compared:
        trials = None
        if embedder is not None and sample and len(gallery):
            trials = copy_trials(
                store,
                embedder,
                compared,
                images=sample,
                neighbours=neighbours,
                where=condition,
                seed=seed,
                progress=progress,
            )
        least = -1.0 if trials is None else trials.least_cosine()
        pairs = neighbour_pairs(store, gallery, neighbours=neighbours, least=least, where=condition, progress=progress)
        found = compared.of(pairs, progress)
        agreements = np.array([one.value for one in found])
        if trials is None or threshold is not None:
            chosen = given_threshold(trials, agreements, threshold)
        else:
            chosen = choose_threshold(trials, agreements, precision)
        known = {(int(a), int(b)): one for (a, b), one in zip(pairs.tolist(), found, strict=True)}
        links = [pair for pair, one in known.items() if one.value >= chosen.value]
        groups = _groups(gallery, links, known, compared.of, chosen.value)
        bad = tuple(compared.bad.values())
    if differ is not None:
        groups = [group for group in groups if len({image.metadata.get(differ) for image in group.images} - {None}) > 1]
    return Duplicates(len(gallery), tuple(groups), chosen, len(pairs), bad)


def check_options(
    store: Store,
    threshold: float | None,
    precision: float,
    sample: int,
    neighbours: int,
    where: str | None,
    differ: str | None,
) -> Where | None:
    """Validate the arguments of `find_duplicates`; returns the condition."""
    if threshold is not None and not 0 < threshold <= 1:
        raise ValueError(f"threshold: need an agreement in (0, 1], got {threshold}; copies have about 0.99")
    if not 0 < precision < 1:
        raise ValueError(f"precision: need a fraction in (0, 1), got {precision}; 0.95 is 95 %")
    if sample < 0:
        raise ValueError(f"sample: need a number of images, at least 0, got {sample}")
    if neighbours < 1:
        raise ValueError(f"neighbours: need at least 1, got {neighbours}")
    columns = store.config.columns
    if differ is not None and differ not in columns:
        raise ValueError(f"differ: no column {differ!r}; there are {', '.join(columns)}")
    return None if where is None else parse_where(where, columns)


def _groups(
    gallery: GalleryFiles,
    links: Sequence[tuple[int, int]],
    known: Mapping[tuple[int, int], Agreement],
    measure: _Measure,
    threshold: float,
) -> list[DuplicateGroup]:
    """Groups from pairs of copies and from exact copies, those with exact copies first, then by agreement."""
    exact = [(rows[0], row) for rows in gallery.exact() for row in rows[1:]]
    groups = []
    for rows in _linked([*exact, *links]):
        images = {row: _image(gallery, row) for row in rows}
        left = sorted(rows, key=lambda row: _preference(images[row]))
        while left:
            kept, others = left[0], left[1:]
            relations = _relations(gallery, kept, others, known, measure)
            copies = [row for row in others if relations[row][1] >= threshold]
            if copies:
                members = [images[kept]]
                members += [
                    replace(images[row], relation=relations[row][0], agreement=relations[row][1]) for row in copies
                ]
                first, *rest = members
                rest.sort(key=lambda image: (image.relation != "exact", -image.agreement, image.name))
                groups.append(DuplicateGroup((first, *rest)))
            left = [row for row in others if row not in set(copies)]
    return sorted(groups, key=lambda group: (not group.exact, -group.images[1].agreement, group.images[0].name))


def _linked(links: Sequence[tuple[int, int]]) -> list[list[int]]:
    """Connected rows, each set in ascending order."""
    near = defaultdict(list)
    for a, b in links:
        near[a].append(b)
        near[b].append(a)
    sets, seen = [], set()
    for start in sorted(near):
        if start in seen:
            continue
        found, waiting = [], [start]
        seen.add(start)
        while waiting:
            row = waiting.pop()
            found.append(row)
            fresh = [other for other in near[row] if other not in seen]
            seen.update(fresh)
            waiting += fresh
        sets.append(sorted(found))
    return sets


def _relations(
    gallery: GalleryFiles,
    kept: int,
    others: Sequence[int],
    known: Mapping[tuple[int, int], Agreement],
    measure: _Measure,
) -> dict[int, tuple[Relation, float]]:
    """How other images are related to the one that is kept; pairs that were not compared yet are compared."""
    same = set(gallery.same(kept))
    stands = {row: gallery.same(row)[0] for row in (kept, *others)}  # of exact copies the first was compared
    pairs = {row: (min(stands[kept], stands[row]), max(stands[kept], stands[row])) for row in others if row not in same}
    missing = sorted({pair for pair in pairs.values() if pair not in known})
    fresh = dict(zip(missing, measure(np.array(missing, dtype=np.int64)), strict=True)) if missing else {}
    found: dict[int, tuple[Relation, float]] = dict.fromkeys((row for row in others if row in same), ("exact", 1.0))
    for row, pair in pairs.items():
        one = known[pair] if pair in known else fresh[pair]
        cropped = abs(one.scale - 1) > _CROPPED
        found[row] = ("mirrored" if one.mirrored else "cropped" if cropped else "copy", one.value)
    return found


def _image(gallery: GalleryFiles, row: int) -> DuplicateImage:
    """An image with the size and date of its file, as the one that is kept."""
    file, width, height, size, modified = gallery.file(row), 0, 0, 0, 0.0
    if file is not None:
        try:
            state = file.stat()
            size, modified = state.st_size, state.st_mtime
            with opened_image(file) as opened:
                width, height = opened.size
        except (OSError, ValueError):
            pass
    return DuplicateImage(gallery.ids[row], file, "kept", 1.0, width, height, size, modified, gallery.metadata[row])


def _preference(image: DuplicateImage) -> tuple[float, float, float, str]:
    """Most pixels first, then the earliest, to a second, then most bytes, then by name."""
    return (-image.width * image.height, int(image.modified), -image.bytes, image.name)
