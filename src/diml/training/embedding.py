"""Embeddings in several processes: the images of a data set shared out, and the regions of all processes gathered."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from diml.data import ImageSet
from diml.data.images import BadImage
from diml.distributed import ProcessGroup
from diml.matching import Regions
from diml.models import Embedder


@dataclass(frozen=True, eq=False)
class SharedEmbedding:
    """The readable images of a set, in order, with their regions; the same in every process.

    Attributes:
        regions: N' images.
        images: these N' images.
        kept: (N',) int64, their indices among all images.
    """

    regions: Regions
    images: ImageSet
    kept: Tensor


def embed_shared(
    embedder: Embedder,
    images: ImageSet,
    processes: ProcessGroup,
    *,
    batch_size: int,
    workers: int = 0,
    on_bad_image: Literal["fail", "skip"] = "fail",
) -> SharedEmbedding:
    """Embed images, each process its share of the batches.

    Only whole batches are shared out, so that every batch, and with it every embedding, equals that of one process.

    Args:
        embedder: the same in every process.
        images: the images to embed.
        processes: the processes that share them.
        batch_size, workers, on_bad_image: as in `Embedder.embed_checked`.

    Warns:
        UserWarning: for each image that cannot be read and is skipped.
    """
    batches = -(-len(images) // batch_size)
    alone = batches < processes.size  # some processes would have no batch: then each embeds everything
    share = slice(0, batches) if alone else processes.shares(batches)[processes.rank]
    rows = range(len(images))[share.start * batch_size : share.stop * batch_size]
    mine = images.images[rows.start : rows.stop]
    own = embedder.embed_checked(mine, batch_size=batch_size, workers=workers, on_bad_image=on_bad_image)
    warn_of_bad(own.bad)
    kept = (own.kept + rows.start).to(processes.device)
    regions = own.regions if alone else gather_regions(own.regions, processes)
    kept = kept if alone else processes.gather(kept)
    left = images if len(kept) == len(images) else images.subset(kept.cpu().numpy())
    return SharedEmbedding(regions, left, kept)


def gather_regions(own: Regions, processes: ProcessGroup) -> Regions:
    """Concatenate the images of all processes, in rank order; differentiable."""
    if processes.size == 1:
        return own
    flat = processes.gather(torch.cat([own.dense.flatten(1), own.pooled], dim=1))
    vectors = flat.view(len(flat), own.num_regions + 1, own.dim)
    masses = None if own.masses is None else processes.gather(own.masses)
    return Regions(vectors[:, :-1], vectors[:, -1], own.grid, masses=masses, massless=own.massless)


def warn_of_bad(bad: Iterable[BadImage]) -> None:
    """Warn of images that cannot be read and are skipped."""
    for image in bad:
        warnings.warn(f"skipped {image.path}: {image.reason}", stacklevel=2)
