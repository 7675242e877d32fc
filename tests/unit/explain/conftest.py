"""A tiny embedder that distinguishes colours, and random matches of any grid."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image

from diml.data.images import ImageLike, load_image
from diml.data.loading import LoadedBatch
from diml.data.transforms import Preprocess
from diml.matching import Match, Matcher, Regions
from unit.explain.random_matches import make_match


class ColourEmbedder:
    """A region is its mean colour and the standard deviation of it, on a grid over the output of `preprocess`."""

    def __init__(self, grid: int = 4, matcher: Matcher | None = None) -> None:
        self.grid = grid
        self.matcher = matcher or Matcher()
        self.preprocess = Preprocess(size=56, resize=64)
        self.seen: list[Image.Image] = []

    def to(self, device: str) -> ColourEmbedder:
        assert device == "cpu"
        return self

    def check_matcher(self, matcher: Matcher) -> None:
        assert matcher.weights != "rollout"

    def embed(self, images: Sequence[Image.Image], *, shares: bool = False) -> Regions:
        self.seen += images
        side, dense = 56 // self.grid, []
        for image in images:
            pixels = np.asarray(self.preprocess.view(image), dtype=np.float32) / 255
            cells = pixels.reshape(self.grid, side, self.grid, side, 3).transpose(0, 2, 1, 3, 4).reshape(-1, side**2, 3)
            dense.append(torch.from_numpy(np.concatenate([cells.mean(1) ** 3, cells.std(1)], axis=1)))
        stacked = torch.stack(dense)
        parts = stacked / stacked.shape[1] if shares else None
        return Regions.normalized(stacked, stacked.mean(dim=1), (self.grid, self.grid), shares=parts)

    def embed_batches(
        self, images: Sequence[ImageLike], *_: object, shares: bool = False
    ) -> Iterator[tuple[Regions, LoadedBatch]]:
        regions = self.embed([load_image(image) for image in images], shares=shares)
        yield regions, LoadedBatch(torch.empty(0), torch.arange(len(images)), ())


@pytest.fixture
def embedder() -> ColourEmbedder:
    return ColourEmbedder()


@pytest.fixture
def random_match() -> Callable[..., Match]:
    """`random_match((rows, columns) or R, (rows, columns) or R, pairs=1, signed=False, **settings)`."""
    return make_match


@pytest.fixture
def overlapping_texts() -> Callable[[Figure], list[tuple[str, str]]]:
    """`overlapping_texts(figure)`: texts that are not legible; empty for a good figure."""
    return _overlapping_texts


def _overlapping_texts(figure: Figure) -> list[tuple[str, str]]:
    """Pairs of texts whose boxes overlap by more than a pixel, and texts that leave the figure."""
    figure.canvas.draw()
    texts = [
        text
        for text in figure.findobj(Text)
        if text.get_text().strip() and text.get_visible() and not text.get_text().startswith("#")
    ]
    boxes = [(text.get_text(), text.get_window_extent()) for text in texts if _drawn(text)]
    wrong = [(text, "leaves the figure") for text, box in boxes if not _inside(box, figure.bbox)]
    for (text, box), (other_text, other) in itertools.combinations(boxes, 2):
        wide = min(box.x1, other.x1) - max(box.x0, other.x0)
        high = min(box.y1, other.y1) - max(box.y0, other.y0)
        if wide > 1 and high > 1:
            wrong.append((text, other_text))
    return wrong


def _drawn(text: Text) -> bool:
    """Whether a text is visible: ticks beyond the ends of their axis are texts too, but are not drawn."""
    axes = text.axes
    if axes is None or text in axes.texts or text in (axes.xaxis.label, axes.yaxis.label):
        return True
    box, shown = text.get_window_extent(), axes.get_window_extent()
    x, y = (box.x0 + box.x1) / 2, (box.y0 + box.y1) / 2
    return shown.y0 - 1 <= y <= shown.y1 + 1 or shown.x0 - 1 <= x <= shown.x1 + 1


def _inside(box: Any, outer: Any) -> bool:
    return bool(box.x0 >= outer.x0 and box.x1 <= outer.x1 and box.y0 >= outer.y0 and box.y1 <= outer.y1)
