"""Whether an index is sound, and still what its images are."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from diml.progress import image_progress
from diml.search.coding import decode_regions
from diml.search.index import content_of
from diml.search.sources import image_file

if TYPE_CHECKING:
    from diml.search.store import Store

_PART: Final = 512


@dataclass(frozen=True)
class Check:
    """What `check_index` found.

    Attributes:
        rows: how many images were looked at.
        faults: what is wrong with the index itself, one line each.
        stale: images that changed or are gone since they were indexed, one line each; `diml index build` mends them.
    """

    rows: int
    faults: tuple[str, ...]
    stale: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return not self.faults and not self.stale


def check_index(store: Store, *, images: bool = True, progress: bool = False) -> Check:
    """Read every row of an index, and every image behind it.

    Args:
        store: the index.
        images: also compare the content of the image files with what was indexed.
        progress: show a progress bar.
    """
    listed = [name for part in store.listing(columns=[]) for name in part.ids]
    faults = [f"{name}: stored {count} times" for name, count in Counter(listed).items() if count > 1]
    stale: list[str] = []
    names = list(dict.fromkeys(listed))
    with image_progress(len(names), show=progress, what="checking") as advance:
        for start in range(0, len(names), _PART):
            asked = names[start : start + _PART]
            rows = store.regions(asked)
            fetched = set(rows.ids)
            faults += [f"{name}: listed, but cannot be fetched" for name in asked if name not in fetched]
            length = np.linalg.norm(rows.pooled, axis=1)
            sound = (np.abs(length - 1) < 1e-3) | (length == 0)  # not so of NaN
            faults += [f"{rows.ids[row]}: pooled vector of length {length[row]:.4g}" for row in np.flatnonzero(~sound)]
            if store.config.storage != "none":
                try:
                    decode_regions(rows, store.config)
                except ValueError as error:
                    faults.append(f"{asked[0]} to {asked[-1]}: {error}")
            if images:
                stale += [line for entry in rows.metadata if (line := _stale(entry)) is not None]
            advance(len(asked))
    return Check(len(names), tuple(faults), tuple(stale))


def _stale(metadata: object) -> str | None:
    if not isinstance(metadata, dict) or not {"source", "path", "content"} <= metadata.keys():
        return None
    file = image_file(metadata)
    try:
        return None if content_of(file) == metadata["content"] else f"{file}: changed since it was indexed"
    except FileNotFoundError:
        return f"{file}: gone"
    except OSError as error:
        return f"{file}: cannot be read ({error})"
