"""Where the object is in each image: masks, alpha channels or boxes, and how much of every region it covers.

A region is a cell of the grid in the view of the image that the network sees, which is resized and may be cropped.
All areas are computed in pixels of the upright image as it is stored, without resampling.

Legend: N images, H x W pixels of an image, R regions.
"""

from __future__ import annotations

import math
import os
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, ImageOps

from diml.data import BadImageError, ImageSet, Preprocess
from diml.data.csv_table import folder_of_paths, read_csv
from diml.data.images import BadImage, opened_image
from diml.data.listing import FileListing, find_images, nfc
from diml.data.region_coverage import Box, Plane, Size, region_coverage, view_box
from diml.progress import ShowProgress, progress_bar

#: The plane of an image of a given row and size, and how many of its boxes were clipped.
ReadPlane = Callable[[int, Size], tuple[Plane, int]]

#: In files of lossy formats zeros are blurred near edges; there, values from the middle of the range on are object.
_LOSSY: Final = ("JPEG", "MPO", "WEBP")
_HALF: Final = 128
#: How many parents of the common folder of all images a mask folder may mirror.
_PARENTS: Final = 3
_CORNERS: Final = ("x0", "y0", "x1", "y1")


@dataclass(frozen=True, eq=False, repr=False)
class Coverage:
    """How much of every region of the images is object.

    Args:
        values: (N', R) float64 in [0, 1], fraction of the area of each region, row-major.
        kept: (N',) int64, rows of the images with a foreground.
        left_out: the other images, with the reason.
        clipped: boxes that extended beyond their image and were clipped to it.
        empty: images whose view shows nothing of the object; they are kept.
    """

    values: NDArray[np.float64]
    kept: NDArray[np.int64]
    left_out: tuple[BadImage, ...] = ()
    clipped: int = 0
    empty: int = 0

    def __repr__(self) -> str:
        mean = f"{self.values.mean():.1%} object" if len(self.values) else "none"
        return f"Coverage({len(self.kept):,} images, {len(self.left_out):,} left out, {mean})"


@dataclass(frozen=True, eq=False, repr=False)
class Foregrounds:
    """Where the object is in each image of a set; made by `from_masks`, `from_alpha` or `from_boxes`.

    Args:
        images: N images in files.
        kind: what was given.
        read: from the row and the upright size of an image to its plane.

    Example:
        >>> foregrounds = Foregrounds.from_masks(load_dataset("folder", "shop").test, "shop-masks")  # doctest: +SKIP
    """

    images: ImageSet
    kind: Literal["masks", "alpha", "boxes"]
    read: ReadPlane

    @classmethod
    def from_masks(cls, images: ImageSet, folder: str | os.PathLike[str]) -> Foregrounds:
        """Masks in files with the relative path and stem of their image, in any image format; nonzero is object.

        In colour masks a pixel is object where any channel is nonzero; with an alpha channel only where that is nonzero
        too. In JPEG and WebP files, which blur zeros, values of at least 128 are object. Images of palettes count by
        their index.

        Args:
            images: N images in files; paths are relative to their common folder, or to one of its next parents.
            folder: the masks.

        Raises:
            FileNotFoundError: the folder is missing.
            ValueError: the images are not files; two masks of one stem; a mask is its own image.
        """
        masks = _masks_below(Path(folder))
        relative = _relative_keys(images.paths, {key.as_posix() for key in masks}, without_suffix=True)

        def read(row: int, size: Size) -> tuple[Plane, int]:
            path = images.paths[row]
            mask = masks.get(Path(relative[row]))
            if mask is None:
                raise BadImageError(str(path), f"has no mask {relative[row]}.* in {folder}")
            if mask.resolve() == path.resolve():
                raise ValueError(f"masks: need other files than the images, got {mask}; name the folder of the masks")
            return _checked_size(_read_mask(mask, path), size, f"mask {mask}", path), 0

        return cls(images, "masks", read)

    @classmethod
    def from_alpha(cls, images: ImageSet) -> Foregrounds:
        """The alpha channels of the images themselves; opacity is the fraction of a pixel that is object.

        The network sees transparent parts as white.
        """

        def read(row: int, size: Size) -> tuple[Plane, int]:
            path = images.paths[row]
            return _checked_size(_read_alpha(path), size, f"alpha channel of {path}", path), 0

        _ = images.paths  # raises where images are not files
        return cls(images, "alpha", read)

    @classmethod
    def from_boxes(cls, images: ImageSet, file: str | os.PathLike[str]) -> Foregrounds:
        """Boxes in pixels of the original images; several boxes of one image are united.

        Args:
            images: N images in files.
            file: `bounding_boxes.txt` of CUB-200-2011 with `images.txt` next to it (lines `id x y width height` and
                `id path`), or a CSV file with the columns path,x0,y0,x1,y1 (paths relative to the file, or absolute;
                other columns are ignored). x1 and y1 are the far edges, so that x1 - x0 is the width.

        Raises:
            FileNotFoundError: a file is missing.
            ValueError: a line is invalid; the images are not files.
        """
        given = Path(file)
        if given.suffix.lower() == ".csv":
            listing = FileListing()
            found = _boxes_of_csv(given, listing)
            keys = [listing.identity(path) for path in images.paths]
            boxes = {row: found[key] for row, key in enumerate(keys) if key in found}
        else:
            found = _boxes_of_cub(given)
            relative = _relative_keys(images.paths, found)
            boxes = {row: found[key] for row, key in enumerate(relative) if key in found}

        def read(row: int, size: Size) -> tuple[Plane, int]:
            if row not in boxes:
                raise BadImageError(str(images.paths[row]), f"has no box in {file}")
            plane, clipped = _box_plane(boxes[row], size)
            if not plane.any():
                raise BadImageError(str(images.paths[row]), f"its box in {file} lies outside of the image")
            return plane, clipped

        return cls(images, "boxes", read)

    def __len__(self) -> int:
        return len(self.images)

    def __repr__(self) -> str:
        return f"Foregrounds({self.kind} of {self.images!r})"

    def plane(self, row: int) -> Plane:
        """(H, W) float32, fraction of each pixel of an upright image that belongs to the object.

        Raises:
            BadImageError: the image, or what its foreground is read from, is missing or unreadable.
            ValueError: a mask has another size than its image.
        """
        return self._read(row)[0]

    def cover(self, preprocess: Preprocess, grid: tuple[int, int], *, progress: ShowProgress = False) -> Coverage:
        """How much of every region in the network's view is object.

        Args:
            preprocess: of the embedder; its resizing and cropping decide what a region is.
            grid: (rows, columns) of the regions.
            progress: show a progress bar.

        Raises:
            ValueError: a mask has another size than its image; no image has a foreground.
        """
        values, kept, left_out = [], [], []
        clipped = 0
        with progress_bar(len(self), show=progress, what="foregrounds", unit="images") as advance:
            for row in range(len(self)):
                try:
                    plane, beyond = self._read(row)
                except BadImageError as error:
                    left_out.append(BadImage(error.path, error.reason))
                else:
                    kept.append(row)
                    values.append(region_coverage(plane, view_box(preprocess, plane.shape[::-1]), grid))
                    clipped += beyond
                advance(1)
        if not kept:
            reasons = "; ".join(f"{image.path} {image.reason}" for image in left_out[:3])
            raise ValueError(f"foregrounds: none of the {len(self)} images has one ({reasons}); check {self.kind}")
        covered = np.stack(values)
        empty = int((covered.max(axis=1) == 0).sum())
        return Coverage(covered, np.array(kept, dtype=np.int64), tuple(left_out), clipped, empty)

    def _read(self, row: int) -> tuple[Plane, int]:
        return self.read(row, _upright_size(self.images.paths[row]))


def view_plane(plane: Plane, view: Box, side: int) -> NDArray[np.bool_]:
    """(side, side) whether the centre of each pixel of the view, shown at this size, is object."""
    left, top, right, bottom = view
    centre = (np.arange(side) + 0.5) / side
    rows, columns = (
        np.clip(start + centre * (end - start), 0, size - 1).astype(np.int64)
        for start, end, size in ((top, bottom, plane.shape[0]), (left, right, plane.shape[1]))
    )
    inside: NDArray[np.bool_] = plane[rows][:, columns] >= 0.5
    return inside


def _upright_size(path: Path) -> Size:
    try:
        with opened_image(path) as image:
            width, height = image.size
            turned = image.getexif().get(ExifTags.Base.Orientation, 1) in (5, 6, 7, 8)
    except FileNotFoundError as error:
        raise BadImageError(str(path), "no such file") from error
    return (height, width) if turned else (width, height)


def _read_mask(mask: Path, path: Path) -> Plane:
    try:
        with opened_image(mask) as image:
            least = _HALF if image.format in _LOSSY else 1
            upright = ImageOps.exif_transpose(image)
            upright = upright.convert("RGB") if upright.mode in ("CMYK", "YCbCr", "LAB", "HSV") else upright
            transparent = upright.mode in ("LA", "PA", "RGBA")
            values: NDArray[Any] = np.asarray(upright)
    except (OSError, BadImageError) as error:
        reason = error.reason if isinstance(error, BadImageError) else str(error)
        raise BadImageError(str(path), f"its mask {mask} cannot be read ({reason})") from error
    inside: NDArray[Any] = np.asarray(values >= least if values.dtype == np.uint8 else np.nan_to_num(values) != 0)
    if inside.ndim == 2:
        return inside.astype(np.float32)
    visible = inside[..., -1] if transparent else True
    colours = inside[..., :-1] if transparent else inside
    return np.asarray(colours.any(axis=2) & visible, dtype=np.float32)


def _read_alpha(path: Path) -> Plane:
    try:
        with opened_image(path) as image:
            image.load()
            if not image.has_transparency_data:
                raise BadImageError(str(path), "has no alpha channel")
            alpha = ImageOps.exif_transpose(image).convert("RGBA").getchannel("A")
            return np.asarray(alpha, dtype=np.float32) / np.float32(255)
    except FileNotFoundError as error:
        raise BadImageError(str(path), "no such file") from error


def _checked_size(plane: Plane, size: Size, what: str, path: Path) -> Plane:
    height, width = plane.shape
    if (width, height) != size:
        raise ValueError(
            f"{what}: need the size of its image {path}, {size[0]} x {size[1]} pixels, got {width} x {height}; masks "
            "are of the original, upright image"
        )
    return plane


def _masks_below(folder: Path) -> dict[Path, Path]:
    """Relative path without suffix -> file, of all images below a folder."""
    if not folder.is_dir():
        raise FileNotFoundError(f"masks: need a folder, got {folder}")
    found: dict[Path, Path] = {}
    for path in find_images(folder).paths:
        key = Path(nfc(str(path.relative_to(folder).with_suffix(""))))
        if key in found:
            raise ValueError(f"masks: need one file for each image, got {found[key]} and {path}")
        found[key] = path
    if not found:
        raise FileNotFoundError(f"masks: need image files below {folder}, got none")
    return found


def _relative_keys(paths: Sequence[Path], known: Any, without_suffix: bool = False) -> list[str]:
    """Paths relative to their common folder, or to that of its next parents by which most of them are in `known`."""
    absolute = [_absolute(path) for path in paths]
    common = Path(os.path.commonpath([path.parent for path in absolute]))
    best: list[str] = []
    most = -1
    for root in (common, *common.parents[:_PARENTS]):
        keys = [path.relative_to(root) for path in absolute]
        names = [nfc((key.with_suffix("") if without_suffix else key).as_posix()) for key in keys]
        found = sum(name in known for name in names)
        if found > most:
            best, most = names, found
    return best


def _absolute(path: Path) -> Path:
    """The path without `..`; symbolic links are kept, as they may be how a data set is arranged."""
    return Path(os.path.normpath(path.absolute()))


def _boxes_of_csv(file: Path, listing: FileListing) -> dict[str, list[Box]]:
    """Identity of an image (see `FileListing`) -> its boxes."""
    if not file.is_file():
        raise FileNotFoundError(f"boxes: no such file: {file}")
    table = read_csv(file)
    missing = [name for name in ("path", *_CORNERS) if name not in table.columns]
    if missing:
        got = ",".join(table.columns) or "nothing"
        raise ValueError(f"boxes: {file} needs the columns path,{','.join(_CORNERS)}, got {got}")
    table.require_sound()
    folder = folder_of_paths(file, [row.cells["path"] for row in table.rows], listing)
    boxes: dict[str, list[Box]] = defaultdict(list)
    for row in table.rows:
        corners = [row.cells[name] for name in _CORNERS]
        if not any(corners):  # no box of this image, for instance in training
            continue
        path = folder / row.cells["path"]
        boxes[listing.identity(listing.find(path) or path)].append(_checked_box(corners, f"{file}, line {row.line}"))
    return boxes


def _boxes_of_cub(file: Path) -> dict[str, list[Box]]:
    """Path below the folder of images -> its boxes."""
    file = file / "bounding_boxes.txt" if file.is_dir() else file
    listing = file.with_name("images.txt")
    paths = {image: path for image, path in _cub_lines(listing, 2)}  # noqa: C416
    boxes: dict[str, list[Box]] = defaultdict(list)
    for number, (image, x, y, width, height) in enumerate(_cub_lines(file, 5), start=1):
        where = f"{file}, line {number}"
        if image not in paths:
            raise ValueError(f"{where}: image {image} is not in {listing}")
        try:
            corners = [float(x), float(y), float(x) + float(width), float(y) + float(height)]
        except ValueError as error:
            raise ValueError(f"{where}: need `id x y width height`, got {x} {y} {width} {height}") from error
        boxes[paths[image]].append(_checked_box(corners, where))
    return boxes


def _cub_lines(file: Path, columns: int) -> list[list[str]]:
    """The words of the lines of a file of CUB-200-2011; the last word may contain spaces."""
    if not file.is_file():
        raise FileNotFoundError(f"boxes: no such file: {file}; CUB needs bounding_boxes.txt and images.txt together")
    lines = []
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), start=1):
        words = line.split(maxsplit=columns - 1)
        if words and len(words) != columns:
            raise ValueError(f"{file}, line {number}: need {columns} words, got {line!r}")
        if words:
            lines.append(words)
    return lines


def _checked_box(corners: Sequence[str | float], where: str) -> Box:
    try:
        left, top, right, bottom = (float(corner) for corner in corners)
    except ValueError as error:
        raise ValueError(f"{where}: need four numbers x0,y0,x1,y1, got {','.join(map(str, corners))}") from error
    if not (math.isfinite(left + top + right + bottom) and left < right and top < bottom):
        raise ValueError(f"{where}: need x0 < x1 and y0 < y1, got x {left:g} to {right:g}, y {top:g} to {bottom:g}")
    return (left, top, right, bottom)


def _box_plane(boxes: Sequence[Box], size: Size) -> tuple[Plane, int]:
    """The union of boxes, and how many of them extended beyond the image."""
    plane = np.zeros((size[1], size[0]), dtype=np.float32)
    clipped = 0
    for left, top, right, bottom in boxes:
        clipped += left < 0 or top < 0 or right > size[0] or bottom > size[1]
        rows, columns = (_inside(*side) for side in ((size[1], top, bottom), (size[0], left, right)))
        np.maximum(plane, rows[:, None] * columns, out=plane)
    return plane, clipped


def _inside(pixels: int, start: float, end: float) -> Plane:
    """(pixels,) fraction of each pixel that lies between start and end."""
    first = np.arange(pixels, dtype=np.float64)
    return (np.minimum(first + 1, end) - np.maximum(first, start)).clip(0, 1).astype(np.float32)
