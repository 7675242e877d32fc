"""Fitting the whitening of a new index on images that it is built of, without embedding them twice.

Legend: M images to fit on, R regions of an image, C channels of the network, D of the head.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import numpy as np

from diml.models.fitting import KEPT_BYTES, cells_of, projected
from diml.search.index_model import head_text

if TYPE_CHECKING:
    from diml.matching import Regions
    from diml.models import Embedder
    from diml.models.embedder import Embedded
    from diml.search.sources import SourceListing

#: Images that a whitening is fitted on at most.
FIT_IMAGES: Final = 2_000
_SEED: Final = 0


@dataclass(frozen=True, eq=False)
class FittedWhitening:
    """A whitening, and the images that it was fitted on.

    Args:
        text: see `head_text`.
        images: how many images it was fitted on.
        dim: D.
        place: row of the listing -> row of `raw`.
        raw: regions of these images with the network's own channels; None in processes that did not fit.
    """

    text: str
    images: int
    dim: int
    place: dict[int, int] = field(default_factory=dict)
    raw: Regions | None = None

    def regions(self, rows: Sequence[int], embedder: Embedder) -> Regions:
        """The regions of images of the listing that it was fitted on, as the embedder gives them up to rounding."""
        assert self.raw is not None
        return projected(self.raw[[self.place[row] for row in rows]], embedder.head)


def embed_drawn(
    listing: SourceListing, embedder: Embedder, most: int, *, batch_size: int, workers: int | None, progress: bool
) -> tuple[list[int], Embedded]:
    """Embed at most `most` images of a listing, drawn with a fixed seed; those that cannot be read are passed over.

    Returns:
        The rows that were drawn, ascending, and what came of them.
    """
    rows = np.sort(np.random.default_rng(_SEED).permutation(len(listing))[:most]).tolist()
    files = [str(listing.file(row)) for row in rows]
    found = embedder.embed_checked(
        files, batch_size=batch_size, workers=workers, progress=progress, on_bad_image="skip"
    )
    return rows, found


def fit_whitening(
    listing: SourceListing, embedder: Embedder, *, batch_size: int, workers: int | None, progress: bool
) -> FittedWhitening:
    """Fit the head of an embedder, in place, on at most `FIT_IMAGES` images of a listing, drawn with a fixed seed.

    Args:
        listing: of the new index; images that cannot be read are passed over.
        embedder: with a head "whiten" that is not fitted.
        batch_size, workers, progress: as of `Embedder.embed`.

    Raises:
        ValueError: no image can be read.
    """
    raw = embedder.without_head()
    most = min(FIT_IMAGES, max(1, KEPT_BYTES // (4 * cells_of(raw) * raw.backbone.channels)))
    rows, found = embed_drawn(listing, raw, most, batch_size=batch_size, workers=workers, progress=progress)
    embedder.fit_head(found.regions)
    kept = [rows[index] for index in found.kept.tolist()]
    place = {row: number for number, row in enumerate(kept)}
    return FittedWhitening(head_text(embedder, len(kept)), len(kept), embedder.dim, place, found.regions.to("cpu"))
