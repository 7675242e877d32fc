"""Named keypoints of birds (the "parts" of CUB-200-2011) as known correspondences between two photos.

Legend: n keypoints visible on both sides.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from torch import Tensor

from diml.data import Preprocess
from diml.data.images import opened_image
from diml.faithfulness.correspondence import PlanAccuracy, plan_accuracy
from diml.faithfulness.warps import Truth
from diml.matching import Match

Keypoints = dict[int, tuple[float, float]]

#: In the folder of the data set: lines `image part x y visible`, and lines `image path`.
LOCATIONS, IMAGES = Path("parts/part_locs.txt"), Path("images.txt")


def keypoint_folder(path: Path) -> Path | None:
    """The folder of a data set with keypoints, found from the path of one of its images; None without."""
    return next((parent for parent in path.parents if (parent / LOCATIONS).is_file()), None)


def read_keypoints(folder: Path) -> Mapping[str, Keypoints]:
    """Visible keypoints by the path of their image below `images`: number of the keypoint -> (x, y) in pixels.

    Raises:
        ValueError: a line has another format than the data set.
        FileNotFoundError: `images.txt` is missing.
    """
    names: dict[str, str] = {}
    for words in _lines(folder / IMAGES, 2):
        names[words[0]] = words[1]
    found: dict[str, Keypoints] = {name: {} for name in names.values()}
    for words in _lines(folder / LOCATIONS, 5):
        if words[0] not in names:
            raise ValueError(
                f"{folder / LOCATIONS}: image number {words[0]} is not in {IMAGES}; download the data set again"
            )
        if words[4] == "1":
            found[names[words[0]]][int(words[1])] = (float(words[2]), float(words[3]))
    return found


def _lines(path: Path, count: int) -> list[list[str]]:
    lines = [line.split() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    for number, words in enumerate(lines, start=1):
        if len(words) != count:
            raise ValueError(
                f"{path}, line {number}: need {count} words, got {' '.join(words)!r}; download the data set again"
            )
    return lines


def in_view(preprocess: Preprocess, size: tuple[int, int], place: tuple[float, float]) -> tuple[float, float] | None:
    """Position of a pixel of an image of (width, height) `size` in the network's input, x and y in units of its side.

    None where the pixel is outside the crop.
    """
    x, y = place[0] / size[0], place[1] / size[1]
    if preprocess.mode == "crop":
        short = preprocess.short_side
        scale = short / min(size) / preprocess.size
        x = (x - 0.5) * size[0] * scale + 0.5
        y = (y - 0.5) * size[1] * scale + 0.5
    return (x, y) if 0 <= x < 1 and 0 <= y < 1 else None


def keypoints_in_view(known: Mapping[str, Keypoints], path: Path, folder: Path, preprocess: Preprocess) -> Keypoints:
    """Keypoints of one image inside the network's input, number -> (x, y) in units of its side."""
    name = path.relative_to(folder / "images").as_posix()
    with opened_image(path) as image:
        size = image.size
    places = {number: in_view(preprocess, size, place) for number, place in known.get(name, {}).items()}
    return {number: place for number, place in places.items() if place is not None}


def keypoint_accuracy(
    plan: Tensor, match: Match, pair: int, points_q: Keypoints, points_g: Keypoints
) -> PlanAccuracy | None:
    """Accuracy of a plan on regions with a keypoint; the true cell is that of the keypoint in the gallery image.

    Args:
        plan: (Rq, Rg), rows proportional to mass.
        match, pair: grids and weights of the pair; a keypoint counts in proportion to the mass of its region.
        points_q, points_g: number -> (x, y) in units of the side.

    Returns:
        PlanAccuracy; None where no keypoint is visible on both sides, or no region with a keypoint has any mass.
    """
    common = sorted(set(points_q) & set(points_g))
    if match.grid_q is None or match.grid_g is None or not common:
        return None
    cells_q, cells_g = (
        np.array([_cell(points[number], grid) for number in common])
        for points, grid in ((points_q, match.grid_q), (points_g, match.grid_g))
    )
    truth = Truth(
        cells_g, np.ones(len(common), dtype=bool), np.array([points_g[number] for number in common]), match.grid_g
    )
    return plan_accuracy(plan[cells_q], match.weight_q[pair][cells_q], truth)


def _cell(place: tuple[float, float], grid: tuple[int, int]) -> int:
    return int(place[1] * grid[0]) * grid[1] + int(place[0] * grid[1])
