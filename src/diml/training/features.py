"""Features of a frozen backbone: computed once for every image, from which any head gives the regions.

A head is affine and acts on every cell alike, and a region is a mean of cells, with weights that add up to 1. So the
head of a mean of cells is the mean of their embeddings, and the R + 1 vectors before the head (those of the regions,
and the pooled one) are all that has to be kept of an image.

Legend: N images, N' readable ones, R regions, C channels of the backbone, b images of a batch.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import torch
from torch import Tensor

from diml.data import ImageSet
from diml.data.augment import Augment
from diml.data.images import BadImage, BadImageError
from diml.data.loading import LoadedBatch, TrainingLoader, iterate_batches
from diml.distributed import ProcessGroup
from diml.matching import Regions
from diml.models import Embedder
from diml.models.backbones import inference
from diml.models.cache import cache_file, read_if_whole, read_tensors, write_tensors
from diml.models.grids import resize_grid
from diml.models.inputs import as_images
from diml.models.rollout import features_with_masses
from diml.progress import ShowProgress, progress_bar

#: Images whose regions are computed together.
_AT_ONCE: Final = 1024

_FORMAT: Final = "diml-backbone-features-1"


@dataclass(frozen=True, eq=False)
class BackboneFeatures:
    """The features of the readable images of a set; the same in every process.

    Attributes:
        views: (N', R + 1, C) for each view, on the CPU: the regions before the head, then the pooled feature. First the
            image as it is evaluated, then its random crops.
        masses: (N', R) attention rollout of the first view, as `Regions.masses`; None where there is none.
        massless: why not, as `Regions.massless`.
        kept: (N',) int64, ascending: index of each among the N images.
        bad: the others, with the reason.
        grid: rows and columns of the regions.
    """

    views: tuple[Tensor, ...]
    masses: Tensor | None
    massless: str
    kept: Tensor
    bad: tuple[BadImage, ...]
    grid: tuple[int, int]

    def regions(self, embedder: Embedder, rows: Tensor) -> Regions:
        """What `embedder`, which has this backbone, gives for rows 0 .. N' - 1; of the first view, without gradient."""
        parts = []
        with inference(embedder, embedder.device, None):
            for some in torch.split(rows, _AT_ONCE):
                masses = None if self.masses is None else self.masses[some].to(embedder.device)
                vectors = self.views[0][some].to(embedder.device)
                parts.append(regions_of(embedder, vectors, self.grid, masses=masses, massless=self.massless))
        return Regions.cat(parts)


def regions_of(embedder: Embedder, vectors: Tensor, grid: tuple[int, int] | None = None, **weighed: Any) -> Regions:
    """Regions from (b, R + 1, C) features before the head; differentiable.

    Args:
        embedder: its head and its way of pooling are used.
        vectors: the regions, then the pooled feature.
        grid: rows and columns; None where regions were left out.
        weighed: `masses` and `massless`, as of `Regions`.
    """
    embedded = _exact(embedder.head(vectors))
    dense = embedded[:, :-1]
    pooled = dense.mean(dim=1) if embedder.config.pooled == "grid_mean" else embedded[:, -1]
    return Regions.normalized(dense, pooled, grid, **weighed)


def embed_features(
    embedder: Embedder,
    images: ImageSet,
    crops: Sequence[Augment],
    processes: ProcessGroup,
    *,
    batch_size: int,
    workers: int = 0,
    on_bad_image: Literal["fail", "skip"] = "fail",
    progress: ShowProgress = False,
) -> BackboneFeatures:
    """Compute the features of images, each process its share of the batches.

    Args:
        embedder: its backbone, grid and preprocessing are used; the same in every process.
        images: the images.
        crops: augmentation of each further view. The crop of an image depends on the number of the view and the index
            of the image only, not on the seed of a run.
        processes: the processes that share the images.
        batch_size, workers, on_bad_image: as in `Embedder.embed_checked`.
        progress: show a progress bar.

    Raises:
        BadImageError: an unreadable image, with "fail".
        ValueError: none can be read.
    """
    batches = -(-len(images) // batch_size)
    alone = batches < processes.size  # some processes would have no batch: then each embeds everything
    share = slice(0, batches) if alone else processes.shares(batches)[processes.rank]
    rows = range(len(images))[share.start * batch_size : share.stop * batch_size]

    def joined(own: Tensor) -> Tensor:
        return own if alone or processes.size == 1 else processes.gather(own.to(processes.device)).cpu()

    with progress_bar(len(rows) * (1 + len(crops)), show=progress and processes.is_first) as advance:
        plain = iterate_batches(
            images.images[rows.start : rows.stop],
            embedder.preprocess,
            batch_size=batch_size,
            workers=workers,
            on_bad_image=on_bad_image,
        )
        first = _View(embedder, plain, len(rows), advance)
        own = first.indices + rows.start
        views = [joined(first.vectors)]
        for number, augment in enumerate(crops):
            with TrainingLoader(images.images, augment, workers=workers) as loader:
                planned = [own[start : start + batch_size].tolist() for start in range(0, len(own), batch_size)]
                crop = _View(embedder, loader.epoch(planned, seed=0, epoch=number), len(own), advance)
            views.append(joined(crop.vectors))
    kept = joined(own)
    if not len(kept):
        reasons = "; ".join(f"{image.path}: {image.reason}" for image in first.bad[:3])
        raise ValueError(f"images: none of the {len(images)} can be read ({reasons}); check the paths")
    masses = None if first.masses is None else joined(first.masses)
    bad = first.bad if alone else tuple(image for part in processes.gather_objects(first.bad) for image in part)
    return BackboneFeatures(tuple(views), masses, first.massless, kept, bad, first.grid)


def cached_features(
    folder: Path | None,
    embedder: Embedder,
    images: ImageSet,
    crops: Sequence[Augment],
    processes: ProcessGroup,
    *,
    on_bad_image: Literal["fail", "skip"] = "fail",
    **loading: Any,
) -> BackboneFeatures:
    """`embed_features`, or what it gave before for the same backbone, image contents and crops.

    Args:
        folder: of cache files; one for a set of images with its crops, safe to delete. None: nothing is cached.
        embedder, images, crops, processes, on_bad_image, loading: as of `embed_features`.

    Raises:
        BadImageError, ValueError: as `embed_features`.
    """
    if folder is None:
        return embed_features(embedder, images, crops, processes, on_bad_image=on_bad_image, **loading)
    backbone = embedder.without_head(pooled="backbone").fingerprint()
    what = f"{_FORMAT} {backbone} {embedder.autocast_type()} {list(crops)}"
    file = cache_file(folder, what, as_images(images))
    found = read_if_whole(file, lambda: _read(file))
    if not processes.any(found is None)[0] and found is not None:
        if found.bad and on_bad_image == "fail":
            raise BadImageError(found.bad[0].path, found.bad[0].reason)
        return found
    made = embed_features(embedder, images, crops, processes, on_bad_image=on_bad_image, **loading)
    if processes.is_first:
        _write(file, made)
    return made


def _write(file: Path, features: BackboneFeatures) -> None:
    tensors = {f"view{number}": view for number, view in enumerate(features.views)} | {"kept": features.kept}
    if features.masses is not None:
        tensors["masses"] = features.masses
    bad = [[image.path, image.reason] for image in features.bad]
    write_tensors(file, _FORMAT, tensors, {"massless": features.massless, "grid": features.grid, "bad": bad})


def _read(file: Path) -> BackboneFeatures:
    tensors, about = read_tensors(file, _FORMAT)
    return BackboneFeatures(
        views=tuple(tensors[f"view{number}"] for number in range(sum(name.startswith("view") for name in tensors))),
        masses=tensors.get("masses"),
        massless=str(about["massless"]),
        kept=tensors["kept"],
        bad=tuple(BadImage(path, reason) for path, reason in about["bad"]),
        grid=(about["grid"][0], about["grid"][1]),
    )


class _View:
    """The features of one view of up to `count` images, in memory that is allocated once."""

    def __init__(self, embedder: Embedder, batches: Iterable[LoadedBatch], count: int, advance: Any) -> None:
        assert embedder.grid is not None, "training has a grid"
        self.grid = (embedder.grid, embedder.grid)
        regions = embedder.grid**2
        vectors = torch.empty(count, regions + 1, embedder.backbone.channels)
        masses: list[Tensor] = []
        self.massless, filled = "", 0
        indices: list[Tensor] = []
        bad: list[BadImage] = []
        for batch in batches:
            bad += batch.bad
            if len(batch.images):
                found, own, self.massless = _features(embedder, batch.images)
                vectors[filled : filled + len(found)] = found
                filled += len(found)
                indices.append(batch.indices)
                masses += [] if own is None else [own]
            advance(len(batch.images) + len(batch.bad))
        self.vectors, self.bad = vectors[:filled], tuple(bad)
        self.indices = torch.cat(indices) if indices else torch.empty(0, dtype=torch.int64)
        self.masses = torch.cat(masses) if masses else None


def _features(embedder: Embedder, images: Tensor) -> tuple[Tensor, Tensor | None, str]:
    """(b, R + 1, C) vectors before the head, and masses as of `Embedder.forward`."""
    grid = embedder.grid
    assert grid is not None, "training has a grid"
    reference = next(embedder.backbone.parameters(), torch.zeros(0))
    with inference(embedder, embedder.device, embedder.autocast_type()):
        given = images.to(embedder.device, reference.dtype).contiguous(memory_format=torch.channels_last)
        features, massless = features_with_masses(embedder.backbone, given, embedder.config.rollout_blocks)
        masses = features.masses
        cells = resize_grid(_exact(features.maps), grid).flatten(2).transpose(1, 2)
        if masses is not None:
            masses = resize_grid(masses.unsqueeze(1), grid).flatten(1).cpu()
        vectors = torch.cat([cells, _exact(features.pooled).unsqueeze(1)], dim=1)
    if not torch.isfinite(vectors).all():
        raise ValueError("images: the features of the backbone are not finite; try --precision float32")
    return vectors.cpu(), masses, massless


def _exact(values: Tensor) -> Tensor:
    return values if values.dtype == torch.float64 else values.float()
