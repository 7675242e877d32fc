"""Where the labels of each source of an index come from: kept with it, so that later builds take them from there."""

from __future__ import annotations

import json
import os
from contextlib import closing
from typing import Final

from diml.checksums import sealed
from diml.search.index import open_store
from diml.search.sources import SourceListing
from diml.search.store import IndexNotFoundError, Store, kept_document

#: Name of the text that is kept with an index of which a source was listed with `label_from`.
LABELS_FILE: Final = "labels.json"
_FORMAT: Final = 1
_REMEDY: Final = "build with --label-from again"


def labels_of_sources(index: Store | str | os.PathLike[str]) -> dict[str, str]:
    """`label_from` of the sources of an index, by `SourceListing.source`, for those that were listed with one.

    Args:
        index: an index, or the address of one; where there is none yet, nothing is kept.

    Raises:
        ValueError: what was kept is damaged, or was written by a newer version.
    """
    if not isinstance(index, str | os.PathLike):
        return _read(index)
    try:
        store = open_store(index)
    except IndexNotFoundError:
        return {}
    with closing(store):
        return _read(store)


def keep_label_from(store: Store, listing: SourceListing) -> None:
    """Keep what `label_from` was of a listing; nothing where it had none."""
    if listing.label_from is None:
        return
    try:
        sources = _read(store)
    except ValueError:  # of which this is the remedy
        sources = {}
    if sources.get(listing.source) != listing.label_from:
        plain = {"format": _FORMAT, "sources": {**sources, listing.source: listing.label_from}}
        store.write_text(LABELS_FILE, json.dumps(sealed(plain), indent=1))


def _read(store: Store) -> dict[str, str]:
    text = store.read_text(LABELS_FILE)
    if text is None:
        return {}
    found = kept_document(text, LABELS_FILE, _FORMAT, _REMEDY)
    try:
        return {str(source): str(label_from) for source, label_from in found["sources"].items()}
    except (AttributeError, KeyError) as error:
        raise ValueError(f"index: {LABELS_FILE}: not what was written: {error}; {_REMEDY}") from error
