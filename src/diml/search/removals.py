"""What a build would take out of an index, and whether that may be an accident.

A disk that is not mounted, a class that was moved, a list that was cut off: all look like images that were removed.
"""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from diml.search.sources import SourceListing, image_file
from diml.search.store import Store, Value

#: A build stops where it would remove more images than this number, and than this share of the index.
MOST_REMOVED: Final = 10
LARGEST_SHARE: Final = 0.1
#: An other source whose place is gone was moved if at least this share of its images is in the new one.
SAME_SOURCE: Final = 0.5
_SHOWN: Final = 3

Entries = Mapping[str, Mapping[str, Value]]


@dataclass(frozen=True)
class Removals:
    """Rows of an index that are not among the listed images any more.

    Args:
        moved: ids of images that are listed under another path.
        lost: ids of the others.
        sources: places that are gone, whose images were found in the listing.
        why_not: why the build should stop; None where it need not.
    """

    moved: tuple[str, ...] = ()
    lost: tuple[str, ...] = ()
    sources: tuple[str, ...] = ()
    why_not: str | None = None


def find_removals(store: Store, listing: SourceListing, known: Entries, contents: Collection[str]) -> Removals:
    """Compare an index with the listing of one of its sources.

    Args:
        store: the index.
        listing: the images of a source.
        known: the rows of that source in the index.
        contents: sha256 of each listed image that can be read.
    """
    present = {listing.name(row) for row in range(len(listing))}
    gone = {name: entry for name, entry in known.items() if name not in present and not _is_closed(entry, listing)}
    # Of several copies of an image as many have moved as there are new places of it.
    new = Counter(contents)
    new.subtract(str(entry["content"]) for name, entry in known.items() if name in present)
    sources = _moved_sources(store, listing, set(contents)) if new.total() > 0 else {}
    for rows in sources.values():
        gone |= rows
    moved = [name for name, entry in gone.items() if _takes(new, str(entry["content"]))]
    lost = {name: entry for name, entry in gone.items() if name not in set(moved)}
    reason = _reason(store.count(), lost, dict(known) | gone, set(contents))
    return Removals(tuple(moved), tuple(lost), tuple(sources), reason)


def _takes(new: Counter[str], content: str) -> bool:
    if new[content] < 1:
        return False
    new[content] -= 1
    return True


def _is_closed(entry: Mapping[str, Value], listing: SourceListing) -> bool:
    """Whether an image is in a folder that could not be opened, so that nobody knows whether it is still there."""
    file = str(image_file(entry))
    return any(file.startswith(os.path.join(folder, "")) for folder in listing.closed)  # noqa: PTH118


def _moved_sources(store: Store, listing: SourceListing, contents: Collection[str]) -> dict[str, Entries]:
    """Other sources whose place is gone, and most of whose images are in the listing."""
    found: dict[str, dict[str, Mapping[str, Value]]] = defaultdict(dict)
    for part in store.listing(columns=["source", "path", "content"]):
        for name, entry in zip(part.ids, part.metadata, strict=True):
            if entry["source"] != listing.source:
                found[str(entry["source"])][name] = entry
    moved: dict[str, Entries] = {}
    for source, rows in found.items():
        known = sum(str(entry["content"]) in contents for entry in rows.values())
        if known >= SAME_SOURCE * len(rows) and not Path(source).exists():
            moved[source] = rows
    return moved


def _reason(total: int, lost: Entries, known: Entries, contents: Collection[str]) -> str | None:
    """Why these removals may be an accident; None where they are few, and no folder loses all its images."""
    really = {name: entry for name, entry in lost.items() if str(entry["content"]) not in contents}
    folders = _emptied_folders(really, known)
    many = len(really) > MOST_REMOVED and len(really) > LARGEST_SHARE * total
    if not many and not folders:
        return None
    told = _causes(really)
    if folders:
        rest = f" and {len(folders) - _SHOWN:,} more" if len(folders) > _SHOWN else ""
        told += f"; all images of {', '.join(folders[:_SHOWN])}{rest}"
    return f"this build would remove {len(really):,} of {total:,} images: {told}"


def _emptied_folders(lost: Entries, known: Entries) -> list[str]:
    """The folders of more than one image that lose all of them, as they are in the source."""
    before, after = (Counter(str(image_file(entry).parent) for entry in rows.values()) for rows in (known, lost))
    return sorted(folder for folder, count in after.items() if count > 1 and before[folder] == count)


def _causes(lost: Entries) -> str:
    """Why images are missing: a missing folder or file, or a list that does not name it any more."""
    counts: Counter[str] = Counter()
    there: dict[Path, bool] = {}
    for entry in lost.values():
        file = image_file(entry)
        if not there.setdefault(file.parent, file.parent.is_dir()):
            counts["whose folder is missing"] += 1
        elif file.exists():
            counts["whose file is there but not listed any more"] += 1
        else:
            counts["whose file is missing"] += 1
    return ", ".join(f"{count:,} {why}" for why, count in counts.most_common())
