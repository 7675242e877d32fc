"""Fitting the codebooks of a new index, with storage "1kb", on images that it is built of.

Legend: M images to fit on, R regions of an image, D channels.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from diml.matching.codebooks import FIT_IMAGES, Codebooks
from diml.search.store import codebooks_text
from diml.search.whitening import embed_drawn

if TYPE_CHECKING:
    from diml.models import Embedder
    from diml.search.sources import SourceListing
    from diml.search.whitening import FittedWhitening


def fit_codebooks(
    listing: SourceListing,
    embedder: Embedder,
    whitening: FittedWhitening | None,
    *,
    batch_size: int,
    workers: int | None,
    progress: bool,
) -> str:
    """Fit codebooks on at most `FIT_IMAGES` images of a listing, drawn with a fixed seed, without labels.

    Args:
        listing: of the new index; images that cannot be read are passed over.
        embedder: of the index, its head fitted.
        whitening: what the head was fitted on in the same build: these images are taken, and embedded no second time.
        batch_size, workers, progress: as of `Embedder.embed`.

    Returns:
        The text for `IndexConfig.codebooks`.

    Raises:
        ValueError: the images have too few regions, see `Codebooks.fit`.
    """
    if whitening is not None:
        regions = whitening.regions(list(whitening.place), embedder)
    else:
        _, found = embed_drawn(listing, embedder, FIT_IMAGES, batch_size=batch_size, workers=workers, progress=progress)
        regions = found.regions
    return codebooks_text(Codebooks.fit(regions.dense))
