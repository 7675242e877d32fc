"""Text files that list the images of a data set, and the images that they list."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from diml.data.image_sets import numbered
from diml.data.inventory import Inventory, examples
from diml.data.listing import FileListing


@dataclass(frozen=True)
class Entry:
    """An image that a list, or a file name, describes.

    Attributes:
        part: The part it belongs to, such as `train`, `query`, `gallery`.
        path: Below the folder of images.
        label: Its class in the data set's own files.
        camera: Its camera, where there are any.
    """

    part: str
    path: str
    label: int | str
    camera: str = ""


#: Reads a line of a part; None for a line without an image. The expected form stands in backquotes in its docstring.
ReadLine = Callable[[str, str], Entry | None]


def read_lists(folder: Path, lists: Mapping[str, str], read_line: ReadLine) -> tuple[list[Entry], list[str]]:
    """Read the lists of all parts (part -> file name).

    Returns:
        The entries, and a fault for each list that is missing or empty.

    Raises:
        ValueError: A line is invalid; the message has its number and the expected form.
    """
    entries: list[Entry] = []
    faults: list[str] = []
    for part, name in lists.items():
        path = folder / name
        if not path.is_file():
            faults.append(f"the list {path} is missing")
            continue
        before = len(entries)
        for number, line in enumerate(path.read_text(encoding="utf-8-sig").splitlines(), start=1):
            if line.strip():
                entries += filter(None, [_read_entry(path, number, part, line, read_line)])
        if len(entries) == before:
            faults.append(f"the list {path} contains no image")
    return entries, faults


def found_images(
    images: Path,
    entries: Sequence[Entry],
    faults: Sequence[str] = (),
    names: Mapping[int | str, str] | None = None,
) -> Inventory:
    """Look up every listed image below the folder `images`.

    Args:
        images: Folder.
        entries: What is listed; classes are numbered in the order of their labels.
        faults: What is missing already.
        names: Names of classes; default their labels.
    """
    listing = FileListing()
    found = [listing.find(images / entry.path) for entry in entries]
    missing = [entry.path for entry, path in zip(entries, found, strict=True) if path is None]
    if missing:
        faults = [
            *faults,
            f"{len(missing):,} of {len(entries):,} listed images are missing below {images} ({examples(missing)})",
        ]
    present = [(entry, path) for entry, path in zip(entries, found, strict=True) if path is not None]
    labels, class_ids = numbered(entry.label for entry, _ in present)
    cameras = numbered(entry.camera for entry, _ in present)[0] if any(e.camera for e, _ in present) else None
    return Inventory(
        folder=images,
        paths=tuple(path for _, path in present),
        labels=labels,
        class_names=tuple((names or {}).get(class_id, str(class_id)) for class_id in class_ids),
        class_ids=tuple(class_ids),
        parts=tuple(entry.part for entry, _ in present),
        faults=tuple(faults),
        cameras=None if cameras is None else np.asarray(cameras),
    )


def _read_entry(path: Path, number: int, part: str, line: str, read_line: ReadLine) -> Entry | None:
    try:
        return read_line(part, line)
    except ValueError as error:
        expected = (read_line.__doc__ or "").split("`")[1]
        raise ValueError(f"{path}, line {number}: expected `{expected}`, got {line.strip()!r}") from error
