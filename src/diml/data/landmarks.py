"""Landmarks judged image by image: `roxford5k`, `rparis6k` and `gldv2`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from diml.data.boxes import Box, BoxedImages
from diml.data.csv_table import LineFault, read_csv
from diml.data.image_sets import DataSet, DatasetImages, ImageSet
from diml.data.inventory import Inventory, find_folder, missing_data, require_complete
from diml.data.judgements import Judgements
from diml.data.list_files import Entry, found_images
from diml.data.plain_pickle import load_plain_pickle
from diml.data.registry import DataSetInfo

#: What is relevant and what is ignored under each protocol; `junk` is ignored under all.
_RELEVANT: Final = {"medium": ("easy", "hard"), "hard": ("hard",), "easy": ("easy",)}
_IGNORED: Final = {"medium": ("junk",), "hard": ("junk", "easy"), "easy": ("junk", "hard")}
_SOLUTIONS: Final = ("retrieval_solution_v2.1.csv", "retrieval_solution.csv")


@dataclass(frozen=True)
class _Truth:
    """The file of the revisited judgements: names of query and database images, boxes, lists of database rows."""

    queries: tuple[str, ...]
    database: tuple[str, ...]
    boxes: tuple[Box, ...]
    lists: tuple[Mapping[str, NDArray[np.int64]], ...]


def locate_revisited(info: DataSetInfo, root: str | Path) -> Path | None:
    """Return the folder of `roxford5k` or `rparis6k`, which contains the file of judgements, or None."""
    return find_folder(info, root, [f"gnd_{info.name}.pkl"])


def inspect_revisited(info: DataSetInfo, root: str | Path | None) -> Inventory:
    """Compare the images named in the file of judgements with those on disk."""
    folder = None if root is None else locate_revisited(info, root)
    if folder is None:
        raise missing_data(info, root)
    return _revisited_images(folder, _read_truth(folder / f"gnd_{info.name}.pkl"))


def load_revisited(info: DataSetInfo, root: str | Path | None, protocol: str) -> DataSet:
    """Load the queries, cropped to their boxes when they are read, and the database with the judgements.

    Labels are the landmarks of the file names, which say nothing sure about the content; judgements decide.
    """
    inventory = inspect_revisited(info, root)
    require_complete(info, inventory)
    truth = _read_truth(inventory.folder.parent / f"gnd_{info.name}.pkl")
    count = len(truth.queries)
    boxes: list[Box | None] = [*truth.boxes, *[None] * len(truth.database)]
    test = ImageSet(
        DatasetImages(BoxedImages(inventory.paths, boxes)),
        inventory.labels,
        class_names=inventory.class_names,
        queries=np.arange(count),
        gallery=np.arange(count, count + len(truth.database)),
        judgements=_judgements(truth, protocol),
        name=f"{info.name} {protocol}",
    )
    return DataSet(info.name, protocol, None, test, info.credit)


def locate_gldv2(info: DataSetInfo, root: str | Path) -> Path | None:
    """Return the folder of `gldv2`, which contains `index` and `test`, or None."""
    places = [f"{place}{name}" for place in ("test/", "", "metadata/") for name in _SOLUTIONS]
    return find_folder(info, root, places)


def inspect_gldv2(info: DataSetInfo, root: str | Path | None) -> Inventory:
    """Compare the index and the judged test images with those on disk; ignored test images are not needed."""
    folder = None if root is None else locate_gldv2(info, root)
    if folder is None:
        raise missing_data(info, root)
    return _gldv2_images(folder, _read_solution(_csv_file(folder, "test", *_SOLUTIONS)))


def load_gldv2(info: DataSetInfo, root: str | Path | None, protocol: str) -> DataSet:
    """Load the judged test images of `Usage` Private or Public (protocol `private`, `public`), or both (`all`)."""
    folder = None if root is None else locate_gldv2(info, root)
    if folder is None:
        raise missing_data(info, root)
    solution = _read_solution(_csv_file(folder, "test", *_SOLUTIONS))
    inventory = _gldv2_images(folder, solution)
    require_complete(info, inventory)
    row = {path.stem: number for number, path in enumerate(inventory.paths)}
    chosen = {name: images for name, (usage, images) in solution.items() if protocol in ("all", usage)}
    unknown = [image for images in chosen.values() for image in images if image not in row]
    if unknown or not chosen:
        what = (
            f"{len(unknown):,} images that are not in index.csv (the first is {unknown[0]})" if unknown else "no query"
        )
        raise ValueError(f"{folder}: the solution has {what} for protocol {protocol}; get the files again")
    test = ImageSet(
        inventory.paths,
        inventory.labels,
        class_names=inventory.class_names,
        queries=[row[name] for name in chosen],
        gallery=inventory.in_parts("gallery"),
        judgements=Judgements([[row[image] for image in images] for images in chosen.values()]),
        name=f"{info.name} {protocol}",
    )
    # Test images of the other usage would only be embedded for nothing.
    used = np.sort(np.concatenate([inventory.in_parts("gallery"), [row[name] for name in chosen]]))
    return DataSet(info.name, protocol, None, test.subset(used), info.credit)


def _read_truth(path: Path) -> _Truth:
    """Read and check the file of judgements."""
    content = load_plain_pickle(path)
    try:
        queries, database = (tuple(map(str, content[name])) for name in ("qimlist", "imlist"))
        judged = list(content["gnd"])
        boxes = tuple(_box(one["bbx"]) for one in judged)
        lists = tuple(
            {name: np.unique(np.asarray(one[name], dtype=np.int64)) for name in ("easy", "hard", "junk")}
            for one in judged
        )
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise ValueError(
            f"{path}: expected a dict with imlist, qimlist and gnd, a list of dicts with bbx, easy, hard and junk "
            f"({type(error).__name__}: {error})"
        ) from error
    largest = max((int(rows.max()) for one in lists for rows in one.values() if len(rows)), default=-1)
    if not queries or len(judged) != len(queries) or largest >= len(database):
        raise ValueError(
            f"{path}: {len(queries)} queries with {len(judged)} judgements, and rows up to {largest} of "
            f"{len(database)} images do not fit together"
        )
    return _Truth(queries, database, boxes, lists)


def _box(values: Any) -> Box:
    left, upper, right, lower = (float(edge) for edge in np.asarray(values).reshape(-1))
    return left, upper, right, lower


def _judgements(truth: _Truth, protocol: str) -> Judgements:
    """What is relevant and ignored under a protocol, in rows of the set: queries, then database."""
    count = len(truth.queries)
    relevant = [count + _joined(lists, _RELEVANT[protocol]) for lists in truth.lists]
    ignored = [count + _joined(lists, _IGNORED[protocol]) for lists in truth.lists]
    return Judgements(relevant, [np.setdiff1d(rows, right) for rows, right in zip(ignored, relevant, strict=True)])


def _joined(lists: Mapping[str, NDArray[np.int64]], names: Sequence[str]) -> NDArray[np.int64]:
    return np.concatenate([lists[name] for name in names])


def _revisited_images(folder: Path, truth: _Truth) -> Inventory:
    """The queries, then the database, both in their order."""
    entries = [
        Entry(part, name if name.lower().endswith(".jpg") else f"{name}.jpg", Path(name).stem.rpartition("_")[0])
        for part, names in (("query", truth.queries), ("gallery", truth.database))
        for name in names
    ]
    return found_images(folder / "jpg", entries)


def _gldv2_images(folder: Path, solution: Mapping[str, tuple[str, tuple[str, ...]]]) -> Inventory:
    """The judged test images, then the index."""
    index = [cells["id"] for cells in _read_csv(_csv_file(folder, "index", "index.csv"), ("id",))]
    entries = [
        Entry(part, f"{place}/{name[0]}/{name[1]}/{name[2]}/{name}.jpg", "landmark")
        for part, place, names in (("query", "test", solution), ("gallery", "index", index))
        for name in names
    ]
    return found_images(folder, entries)


def _read_solution(path: Path) -> dict[str, tuple[str, tuple[str, ...]]]:
    """Read test image -> (usage in lower case, its relevant index images), without those that are ignored."""
    return {
        cells["id"]: (cells["Usage"].lower(), tuple(cells["images"].split()))
        for cells in _read_csv(path, ("id", "images", "Usage"))
        if cells["Usage"].lower() in ("private", "public")
    }


def _csv_file(folder: Path, part: str, *names: str) -> Path:
    """A CSV file, in the folder of its part, in the data set's folder or in `metadata`."""
    places = [place / name for name in names for place in (folder / part, folder, folder / "metadata")]
    for place in places:
        if place.is_file():
            return place
    raise FileNotFoundError(f"gldv2: {names[0]} is neither in {folder / part} nor in {folder} or its folder metadata")


def _read_csv(path: Path, columns: Sequence[str]) -> Iterable[Mapping[str, str]]:
    """The lines of a CSV file that has these columns.

    Raises:
        ValueError: Columns or cells are missing.
    """
    table = read_csv(path, path_column="id")
    missing = [name for name in columns if name not in table.columns]
    if missing:
        raise ValueError(f"{path}: expected the columns {', '.join(columns)}, missing: {', '.join(missing)}")
    need = "need an id of 3 characters or more"
    short = [(row.line, row.cells["id"]) for row in table.rows if len(row.cells["id"]) < 3]
    table.require_sound([LineFault(line, f"{need}, got {name!r}") for line, name in short])
    return (row.cells for row in table.rows)
