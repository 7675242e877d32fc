"""Whether two images are one photograph: compressed again, brighter, scaled, mirrored or cropped.

Two steps. `align` lays small versions (64 x 64 grey pixels, whatever the shape) over each other: the window of one
image that shows the other is looked for among 51 windows of each, plain and mirrored, and refined by least squares
(Gauss-Newton over scale and offset along both axes, with one gain and one offset of brightness). `agreement` then cuts
what both show out of the two images themselves, so that both are resampled alike, refines once more at 128 x 128 pixels
and measures how well they agree in colour. Two shots of one scene agree less than two copies of one photograph.

Source of the refinement: Lucas and Kanade, IJCAI 1981; with gain and offset, Baker and Matthews, IJCV 2004.

Legend: P pairs, W windows, C colour channels.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Final

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from diml.data.images import ImageLike, load_image

#: Pixels of a side of the small versions, of a window of them, and of what is measured.
SMALL: Final = 64
_COARSE: Final = 16
_FINE: Final = 128
#: Side of a window, as a share of the image's -> windows along each axis.
_WINDOWS: Final = {1.0: 1, 0.92: 3, 0.84: 4, 0.76: 5}
#: Correlation of the best window from which it is refined, and of the refined one from which two images are `alike`.
_PROMISING, _LIKELY = 0.65, 0.85
#: Pixels at most as dark, or at least as light, hold no detail.
_BLACK, _WHITE = 4.0, 250.0
#: (Pixels of a side, steps) of the refinement of small versions, and of the images themselves.
_STEPS: Final = ((32, 6), (64, 3))
_LAST_STEPS: Final = ((64, 2), (128, 2))
#: Blocks of what both show whose agreement is measured by itself, along each axis.
_BLOCKS: Final = 8
#: Variance, in squared grey levels, that the noise of compression adds to a block.
_NOISE: Final = 36.0
#: How many times smaller the disagreement of a whole image is than that of its worst block.
_BLOCK_SCALE: Final = 12.0
#: Smallest share of an image, along an axis, that the other may show.
_LEAST: Final = 0.3


@dataclass(frozen=True, eq=False)
class Alignment:
    """P pairs of small versions laid over each other.

    Args:
        correlation: (P,) of what both show, in [-1, 1]; 0 where no window of one image resembles the other.
        mirrored: (P,) bool, whether the second image is the mirror image.
        view: (P, 4) of the second image (mirrored, where it is) in the first, in coordinates from -1 to 1:
            x_first = view[0] * x_second + view[1], y_first = view[2] * y_second + view[3].
    """

    correlation: NDArray[np.float32]
    mirrored: NDArray[np.bool_]
    view: NDArray[np.float32]

    @property
    def alike(self) -> NDArray[np.bool_]:
        """(P,) which are worth the comparison of the images themselves."""
        return self.correlation >= _LIKELY


@dataclass(frozen=True)
class Agreement:
    """How well two images agree in what both show.

    Args:
        value: at most 1: the correlation in colour, or, where it is less, 1 - d / 12, with d the squared difference
            over the energy of the worst of 64 blocks: another label on the same package is one bad block.
        scale: side of the second image's view, as a share of the first's; below 1 the second is cropped, above 1 the
            first.
        mirrored: whether the second image is the mirror image.
    """

    value: float
    scale: float
    mirrored: bool


def small_image(image: ImageLike) -> NDArray[np.uint8]:
    """(64, 64) grey small version, area by area the mean; JPEG files are decoded at a fraction of their size.

    Args:
        image: of any kind that `load_image` reads.

    Raises:
        BadImageError, FileNotFoundError: the image cannot be read.
    """
    read = load_image(image, at_least=2 * SMALL)
    return np.asarray(read.resize((SMALL, SMALL), Image.Resampling.BOX).convert("L"))


@torch.no_grad()
def align(first: NDArray[np.uint8], second: NDArray[np.uint8]) -> Alignment:
    """Lay the second small version of each pair over the first.

    Args:
        first, second: (P, 64, 64) of `small_image`.

    Raises:
        ValueError: other shapes or types.
    """
    for name, images in (("first", first), ("second", second)):
        if images.dtype != np.uint8 or images.ndim != 3 or images.shape[1:] != (SMALL, SMALL):
            raise ValueError(f"{name}: need uint8 (P, {SMALL}, {SMALL}), got {images.dtype} {images.shape}")
    if len(first) != len(second):
        raise ValueError(f"second: need as many images as in first, {len(first)}, got {len(second)}")
    a, b = (torch.from_numpy(np.array(images, dtype=np.float32))[:, None] for images in (first, second))
    found, kind, window = _best_window(a[:, 0], b[:, 0])
    mirrored = kind % 2 == 1
    correlation, view = torch.zeros(len(a)), torch.tensor([1.0, 0.0, 1.0, 0.0]).repeat(len(a), 1)
    rows = torch.nonzero(found >= _PROMISING)[:, 0]
    if len(rows):
        a, b = a[rows], torch.where(mirrored[rows, None, None, None], b[rows].flip(-1), b[rows])
        view[rows] = _refined(a, b, _start(kind[rows], window[rows]), _STEPS)
        correlation[rows] = _agreement(a, b, view[rows], blocks=False)
    return Alignment(correlation.numpy(), mirrored.numpy(), view.numpy())


@torch.no_grad()
def agreement(first: Image.Image, second: Image.Image, mirrored: bool, view: NDArray[np.float32]) -> Agreement:
    """How well two images agree, once one is laid over the other.

    Args:
        first, second: RGB.
        mirrored, view: of one pair, of `align`.
    """
    if mirrored:
        second = second.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    spans = [_shared(*view[axis : axis + 2].tolist()) for axis in (0, 2)]
    if any(high - low < 2 * _LEAST for own, other in spans for low, high in (own, other)):
        return Agreement(0.0, 1.0, mirrored)
    (x_first, x_second), (y_first, y_second) = spans
    a, b = _cut(first, x_first, y_first), _cut(second, x_second, y_second)
    whole = torch.tensor([[1.0, 0.0, 1.0, 0.0]])
    last = _refined(a, b, whole, _LAST_STEPS)
    value = float(_agreement(a, b, last, blocks=True))
    return Agreement(value, float(np.sqrt(abs(float(view[0]) * float(view[2])))), mirrored)


def _shared(scale: float, offset: float) -> tuple[tuple[float, float], tuple[float, float]]:
    """What both show along an axis, in coordinates of the first and of the second; empty for a mirrored view."""
    if scale <= 0:
        return (0.0, 0.0), (0.0, 0.0)
    low, high = max(-1.0, (-1 - offset) / scale), min(1.0, (1 - offset) / scale)
    return (max(-1.0, scale * low + offset), min(1.0, scale * high + offset)), (low, high)


def _cut(image: Image.Image, along_x: tuple[float, float], along_y: tuple[float, float]) -> Tensor:
    """(1, 3, 128, 128) part of an image."""
    width, height = image.size
    left, right = ((x + 1) / 2 * width for x in along_x)
    top, bottom = ((y + 1) / 2 * height for y in along_y)
    box = (left, top, min(right, width), min(bottom, height))
    part = np.array(image.resize((_FINE, _FINE), Image.Resampling.LANCZOS, box=box), dtype=np.float32)
    return torch.from_numpy(part).permute(2, 0, 1)[None]


@cache
def _windows() -> Tensor:
    """(W, 3) left, top and side of the windows, as shares of the image; the first is the whole image."""
    found = [
        (float(x), float(y), side)
        for side, steps in _WINDOWS.items()
        for y in np.linspace(0, 1 - side, steps)
        for x in np.linspace(0, 1 - side, steps)
    ]
    return torch.tensor(found)


@cache
def _resampling() -> list[Tensor]:
    """For each side of windows a (k * 16, 64) matrix that averages the pixels of its k windows along an axis."""
    edges = torch.arange(_COARSE + 1) / _COARSE
    pixel = torch.arange(SMALL)
    parts = []
    for side, steps in _WINDOWS.items():
        ends = (torch.linspace(0, 1 - side, steps)[:, None] + side * edges) * SMALL
        low, high = ends[:, :-1].reshape(-1, 1), ends[:, 1:].reshape(-1, 1)
        share = (torch.minimum(high, pixel + 1.0) - torch.maximum(low, pixel * 1.0)).clamp_min(0)
        parts.append(share / share.sum(dim=1, keepdim=True))
    return parts


def _crops(grey: Tensor) -> Tensor:
    """(P, W, 256) windows of (P, 64, 64) images with mean 0 and length 1, in the order of `_windows`."""
    parts = []
    for matrix in _resampling():
        steps = len(matrix) // _COARSE
        cells = (matrix @ grey @ matrix.T).reshape(-1, steps, _COARSE, steps, _COARSE)
        parts.append(cells.transpose(2, 3).reshape(-1, steps**2, _COARSE**2))
    values = torch.cat(parts, dim=1)
    values = values - values.mean(dim=2, keepdim=True)
    length: Tensor = values.norm(dim=2, keepdim=True).clamp_min(1.0)
    return values / length


def _best_window(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Correlation, kind and row of the best window of each pair.

    Kinds: 0 a window of a shows b; 1 a window of a shows b mirrored; 2 and 3: a window of b, mirrored or not, shows a.
    """
    of_a, of_b = _crops(a), _crops(b)
    mirror = of_b.reshape(*of_b.shape[:2], _COARSE, _COARSE).flip(3).flatten(2)
    whole = [x[:, 0, :, None] for x in (of_b, mirror, of_a)]
    found = [of_a @ whole[0], of_a @ whole[1], of_b @ whole[2], mirror @ whole[2]]
    best, place = torch.stack(found, dim=1).flatten(1).max(dim=1)
    kind, window = place // len(_windows()), place % len(_windows())
    return best, kind, torch.where(kind == 3, _mirror_rows()[window], window)


@cache
def _mirror_rows() -> Tensor:
    """(W,) row of the window that each becomes if the image is mirrored."""
    x, y, side = _windows().T
    wanted = torch.stack([1 - side - x, y, side], dim=1)
    rows: Tensor = torch.cdist(wanted, _windows()).argmin(dim=1)
    return rows


def _start(kind: Tensor, window: Tensor) -> Tensor:
    """(P, 4) view of b in a: x_a = view[0] * x_b + view[1], y_a = view[2] * y_b + view[3], from -1 to 1."""
    x, y, side = _windows()[window].T
    middle_x, middle_y = 2 * x + side - 1, 2 * y + side - 1
    inside = torch.stack([side, middle_x, side, middle_y], dim=1)
    outside = torch.stack([1 / side, -middle_x / side, 1 / side, -middle_y / side], dim=1)
    return torch.where((kind < 2)[:, None], inside, outside)


def _seen(images: Tensor, view: Tensor, side: int) -> tuple[Tensor, Tensor]:
    """(P, C, side, side) what a view shows of images, and (P, side, side) whether it is inside of them."""
    place = _places(side)
    x, y = view[:, 0, None] * place + view[:, 1, None], view[:, 2, None] * place + view[:, 3, None]
    grid = torch.stack([x[:, None, :].expand(-1, side, -1), y[:, :, None].expand(-1, -1, side)], dim=3)
    shown = F.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)
    return shown, (x.abs() <= 1)[:, None, :] & (y.abs() <= 1)[:, :, None]


def _places(side: int) -> Tensor:
    """Middles of the pixels, from -1 to 1."""
    return (torch.arange(side) + 0.5) / side * 2 - 1


def _refined(a: Tensor, b: Tensor, view: Tensor, stages: tuple[tuple[int, int], ...]) -> Tensor:
    """The view of b in a that minimises the squared difference, in grey, up to gain and offset."""
    for side, steps in stages:
        grey_a, grey_b = (F.adaptive_avg_pool2d(x.mean(dim=1, keepdim=True), side) for x in (a, b))
        sources = torch.cat([grey_a, *_slopes(grey_a)], dim=1)
        for _ in range(steps):
            view = view + _step(sources, grey_b[:, 0], view)
    return view


def _slopes(grey: Tensor) -> tuple[Tensor, Tensor]:
    """Derivatives along x and y, for coordinates from -1 to 1."""
    side = grey.shape[-1]
    padded = F.pad(grey, (1, 1, 1, 1), mode="replicate")
    across = (padded[:, :, 1:-1, 2:] - padded[:, :, 1:-1, :-2]) * (side / 4)
    down = (padded[:, :, 2:, 1:-1] - padded[:, :, :-2, 1:-1]) * (side / 4)
    return across, down


def _step(sources: Tensor, target: Tensor, view: Tensor) -> Tensor:
    """One step of Gauss-Newton for the view; gain and offset are solved for at the same time."""
    side = target.shape[-1]
    shown, inside = _seen(sources, view, side)
    value, across, down = shown.unbind(dim=1)
    used = (inside & _detailed(value) & _detailed(target)).float()
    gain, offset = _brightness(value, target, used)
    place = _places(side)
    columns = [across * place, across, down * place[:, None], down]
    scaled = [gain[:, None, None] * column for column in columns]
    design = (torch.stack([*scaled, value, torch.ones_like(value)], dim=3) * used[..., None]).flatten(1, 2)
    left = ((target - gain[:, None, None] * value - offset[:, None, None]) * used).flatten(1)
    normal = design.transpose(1, 2) @ design
    normal = normal + torch.diag_embed(normal.diagonal(dim1=1, dim2=2) * 1e-3 + 1e-3)
    found = torch.linalg.solve(normal, design.transpose(1, 2) @ left[..., None])[:, :4, 0]
    step: Tensor = found.nan_to_num(0.0, 0.0, 0.0).clamp(-0.1, 0.1)
    return step


def _detailed(values: Tensor) -> Tensor:
    return (values > _BLACK) & (values < _WHITE)


def _brightness(value: Tensor, target: Tensor, used: Tensor) -> tuple[Tensor, Tensor]:
    """(P,) gain and offset that bring the values nearest to the target, over the pixels that are used."""
    over = tuple(range(1, value.ndim))
    wide = (slice(None),) + (None,) * len(over)
    count = used.sum(over).clamp_min(1)
    mean_v, mean_t = (value * used).sum(over) / count, (target * used).sum(over) / count
    from_v, from_t = (value - mean_v[wide]) * used, (target - mean_t[wide]) * used
    gain = ((from_v * from_t).sum(over) / from_v.square().sum(over).clamp_min(1)).clamp(1 / 3, 3)
    return gain, mean_t - gain * mean_v


def _agreement(a: Tensor, b: Tensor, view: Tensor, *, blocks: bool) -> Tensor:
    """(P,) agreement of what both show; without blocks the correlation alone."""
    shown, inside = _seen(a, view, b.shape[-1])
    # a lighter image has lost what became white, so that only the darker one can predict it
    return torch.maximum(_predicted(shown, b, inside, blocks), _predicted(b, shown, inside, blocks))


def _predicted(source: Tensor, target: Tensor, inside: Tensor, blocks: bool) -> Tensor:
    """(P,) agreement of images with others laid over them, once their brightness is changed to that of the others."""
    within = inside[:, None].expand_as(source)
    gain, offset = _brightness(source, target, (within & _detailed(source) & _detailed(target)).float())
    made = (gain[:, None, None, None] * source + offset[:, None, None, None]).clamp(0, 255)
    empty = ((made >= _WHITE) & (target >= _WHITE)) | ((made <= _BLACK) & (target <= _BLACK))
    used = (within & ~empty).float()
    count = used.sum((1, 2, 3), keepdim=True).clamp_min(1)
    left, right = ((x - (x * used).sum((1, 2, 3), keepdim=True) / count) * used for x in (made, target))
    power = (left.square().sum((1, 2, 3)) * right.square().sum((1, 2, 3))).sqrt().clamp_min(1)
    found = (left * right).sum((1, 2, 3)) / power
    if blocks:
        found = torch.minimum(found, 1 - _worst_block(left, right, used) / _BLOCK_SCALE)
    enough = count.flatten() >= source[0].numel() / 50  # a few pixels can agree without being alike
    return torch.where(enough, found, 0.0)


def _worst_block(left: Tensor, right: Tensor, used: Tensor) -> Tensor:
    """(P,) squared difference / energy of the block where this is largest, without blocks that are mostly empty."""
    size = left.shape[-1] // _BLOCKS

    def total(values: Tensor) -> Tensor:
        return F.avg_pool2d(values.sum(dim=1, keepdim=True), size)[:, 0] * size**2

    number = total(used)
    energy = sum(total(x.square()) - total(x).square() / number.clamp_min(1) for x in (left, right)) / 2
    apart = total((left - right).square()) / (energy + _NOISE * number).clamp_min(1)
    return torch.where(number >= 0.25 * left.shape[1] * size**2, apart, 0.0).flatten(1).amax(dim=1)
