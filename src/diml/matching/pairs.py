"""Unordered pairs of images, each listed once, with a query side that depends on the contents of the two images only.

A pair's score depends, within the tolerance of the solver, on which of the two images is the query. In an evaluation
two images are often candidates of each other, and are compared once. Were the query side chosen by row, two copies of
an image in a gallery would get different scores for the same query, and so would the same images in another order
(laws: `test_copies_of_an_image_score_the_same` and `test_the_order_of_two_images_depends_on_their_contents`).

Legend: N images, P pairs.
"""

from __future__ import annotations

import torch
from torch import Tensor

from diml.matching.regions import QuantizedRegions, Regions

#: Images whose fingerprints are computed together.
AT_ONCE = 1024


def by_content(images: Regions | QuantizedRegions, left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    """Rows `left` and `right` (P,) of `images`, swapped where the contents of the two say so; copies count as equal."""
    used = torch.zeros(len(images), dtype=torch.bool, device=left.device)
    used[left] = used[right] = True
    rows = used.nonzero().squeeze(1)
    prints = torch.zeros(len(images), dtype=torch.int64, device=left.device)
    prints[rows] = _fingerprints(images.pooled, rows)
    first, second = prints[left], prints[right]
    exchange = first > second
    alike = (first == second).nonzero().squeeze(1)
    if len(alike):  # rare: equal pooled vectors, so the regions are read as well
        rows = torch.unique(torch.cat([left[alike], right[alike]]))
        prints[rows] = _fingerprints(images.codes if isinstance(images, QuantizedRegions) else images.dense, rows)
        if images.masses is not None:
            prints[rows] += _fingerprints(images.masses, rows)
        first, second = prints[left[alike]], prints[right[alike]]
        exchange[alike] = (first > second) | ((first == second) & (left[alike] > right[alike]))
    return torch.where(exchange, right, left), torch.where(exchange, left, right)


def without_copies(images: Regions | QuantizedRegions, rows: Tensor) -> Tensor:
    """`rows` (...) of `images`, each copy replaced by the lowest of the rows with its contents."""
    used, place = torch.unique(rows, return_inverse=True)
    prints = _fingerprints(images.pooled, used)
    order = prints.sort(stable=True).indices
    alike = prints[order][1:] == prints[order][:-1]
    if not alike.any():
        return rows
    regions = images.codes if isinstance(images, QuantizedRegions) else images.dense
    both = torch.stack([prints, _fingerprints(regions, used)], dim=1)
    _, group = torch.unique(both, dim=0, return_inverse=True)
    first = torch.full((int(group.max()) + 1,), len(images), dtype=used.dtype, device=used.device)
    first = first.scatter_reduce(0, group, used, reduce="amin")
    return first[group][place]


def _fingerprints(vectors: Tensor, rows: Tensor) -> Tensor:
    """(n,) int64 of `vectors` (N, ...) at `rows`: a random linear hash, equal for copies and rarely for others."""
    part, found = vectors.flatten(1), torch.zeros_like(rows)
    size = part.element_size()
    words = -(-part.shape[1] * size // 8)
    generator = torch.Generator().manual_seed(0)
    factors = torch.randint(-(2**62), 2**62, (words,), generator=generator).to(part.device) * 2 + 1
    filled = part.new_zeros(min(AT_ONCE, len(rows)), words * 8 // size)
    for start in range(0, len(rows), AT_ONCE):
        some = part[rows[start : start + AT_ONCE]]
        filled[: len(some), : part.shape[1]] = some + 0  # 0 and -0 are the same number
        found[start : start + len(some)] = (filled[: len(some)].view(torch.int64) * factors).sum(dim=1)
    return found
