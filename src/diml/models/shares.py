"""The shares of the pooled vectors of images whose regions are stored without them: computed again from the images.

A store keeps the regions and the pooled vector of each image. To divide the pooled cosine of two images among pairs of
regions, the share of each region of the pooled vector is needed as well (`Regions.shares`), which would double the
store. The few images that are explained are embedded again instead.

Legend: N images, R regions, D channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import torch
from PIL import Image

from diml.matching import Regions
from diml.models.embedder import Embedder

#: Difference of a stored unit vector from the same embedded again: float16 rounds by 5e-4 at most.
_SAME: Final = 5e-3


def with_shares(
    stored: Regions, images: Sequence[Image.Image | bytes | str], embedder: Embedder, *, kept: str
) -> list[Regions]:
    """The stored regions of N images with the shares of their pooled vectors, each image by itself.

    Regions and pooled vectors stay as they are stored, so that scores are those by which the images were ranked; what
    rounding in the store changed of a pooled vector is spread evenly over its shares.

    Args:
        stored: N images.
        images: each as it was embedded, or the bytes of its file; or, as text, why it is not available. Files are
            decoded one after the other, so that no more than one image is in memory.
        embedder: of the stored regions.
        kept: why the shares have to be computed again: "the index keeps no shares".

    Returns:
        N Regions of one image; without shares, and with the reason, where there is no image, or it cannot be read, or
        it is not embedded as it is stored, or the embedder has no shares.
    """
    why = {row: image for row, image in enumerate(images) if isinstance(image, str)}
    there = [row for row in range(len(images)) if row not in why]
    place: dict[int, int] = {}
    again: Regions | None = None
    if there:
        given = [images[row] for row in there]
        ((again, batch),) = embedder.embed_batches(given, len(given), 0, False, "skip", shares=True)
        again = None if again is None else again.to("cpu")
        place = {there[index]: at for at, index in enumerate(batch.indices.tolist())}
        unread = (row for row in there if row not in place)
        why |= {row: f"its file cannot be read ({bad.reason})" for row, bad in zip(unread, batch.bad, strict=True)}
    found = []
    for row in range(len(images)):
        own = stored[[row]]
        if again is None or row in why:
            found.append(_without(own, f"{kept}, and {why[row]}"))
        elif again.shares is None:
            found.append(_without(own, again.undivided))
        else:
            found.append(_joined(own, again[[place[row]]], kept))
    return found


def _joined(own: Regions, again: Regions, kept: str) -> Regions:
    assert again.shares is not None
    shares = again.shares.to(own.dense.dtype)
    same = shares.shape == own.dense.shape
    rounding = own.pooled - shares.sum(dim=1) if same else torch.tensor(torch.inf)
    if not torch.linalg.vector_norm(rounding) <= _SAME:
        return _without(own, f"{kept}, and the image is embedded differently now")
    whole = shares + rounding.unsqueeze(1) / shares.shape[1]
    return Regions._trusted(own.dense, own.pooled, own.grid, whole, "", own.masses, own.massless)


def _without(own: Regions, reason: str) -> Regions:
    return Regions._trusted(own.dense, own.pooled, own.grid, None, reason, own.masses, own.massless)
