"""Training the head alone: batches of cached features in place of images, and the step that they take.

Legend: N images, R regions, R' of them kept, C channels of the backbone, b images of a batch.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from diml.assets import cache_folder
from diml.data import ImageSet
from diml.data.augment import Augment
from diml.data.loading import LoadedBatch
from diml.distributed import ProcessGroup
from diml.matching import Regions
from diml.models import Embedder
from diml.models.decomposition import not_a_mean
from diml.models.heads import LinearHead, WhitenHead
from diml.training.config import TrainConfig
from diml.training.embedding import SharedEmbedding, warn_of_bad
from diml.training.features import BackboneFeatures, cached_features, regions_of
from diml.training.split import TrainingSplit
from diml.training.steps import Stepper


class FrozenImages:
    """The images of a run with a frozen backbone: features are computed when they are first needed, and kept, in memory
    and in the cache folder.

    Training and held-out images are one set, of which each has its rows: another seed holds out other classes of it.

    Args:
        config: `views`, `evaluation_batch_size`, `workers`, `on_bad_image`.
        split: the images.
        embedder: its backbone, grid and preprocessing are used.
        augment: makes the further views of the training images.
        processes: the processes that share the work.
        progress: show progress bars.
    """

    def __init__(
        self,
        config: TrainConfig,
        split: TrainingSplit,
        embedder: Embedder,
        augment: Augment,
        processes: ProcessGroup,
        *,
        progress: bool,
    ) -> None:
        self._config, self._embedder, self._processes, self._progress = config, embedder, processes, progress
        self._crops = [augment] * config.views
        self._split = split
        self._features: dict[int, BackboneFeatures] = {}

    def of(self, images: ImageSet) -> tuple[BackboneFeatures, Tensor]:
        """The features in which these images are, training, validation or test images, and the row of each: (N,).

        A row is -1 where the image cannot be read.
        """
        split, whole, chosen = self._split, images, None
        if images is split.train:
            whole, chosen = split.pool, split.train_rows
        elif images is split.validation and split.validation_rows is not None:
            whole, chosen = split.pool, split.validation_rows
        if id(whole) not in self._features:
            self._features[id(whole)] = self._embed(whole, self._crops if whole is split.pool else [])
        features = self._features[id(whole)]
        rows = torch.full((len(whole),), -1, dtype=torch.int64)
        rows[features.kept] = torch.arange(len(features.kept))
        return features, rows if chosen is None else rows[torch.from_numpy(chosen)]

    def embedded(self, embedder: Embedder, images: ImageSet) -> SharedEmbedding:
        """As `embed_shared`, from the features."""
        features, rows = self.of(images)
        kept = (rows >= 0).nonzero().flatten()
        left = images if len(kept) == len(images) else images.subset(kept.numpy())
        return SharedEmbedding(features.regions(embedder, rows[kept]), left, kept.to(embedder.device))

    def cells(self, images: ImageSet) -> Iterator[Tensor]:
        """Blocks (n, C) of the regions of images, on which a whitening is fitted."""
        features, rows = self.of(images)
        for some in torch.split(rows[rows >= 0], 256):
            yield features.views[0][some, :-1].flatten(0, 1)

    def loader(self) -> FeatureLoader:
        """Batches of the training images."""
        features, rows = self.of(self._split.train)
        mean = not not_a_mean(self._embedder.backbone, self._embedder.config.backbone)
        return FeatureLoader(features, rows, regions=self._config.regions_in_step, pools_by_mean=mean)

    def _embed(self, images: ImageSet, crops: Sequence[Augment]) -> BackboneFeatures:
        config = self._config
        found = cached_features(
            cache_folder() / "embeddings" if config.cache else None,
            self._embedder,
            images,
            crops,
            self._processes,
            batch_size=config.evaluation_batch_size,
            workers=config.workers,
            on_bad_image=config.on_bad_image,
            progress=self._progress,
        )
        if self._processes.is_first:
            warn_of_bad(found.bad)
        return found


class FeatureLoader:
    """Batches of features in place of images, as `TrainingLoader` gives those: a random view of each image, in part.

    What an image gives in an epoch follows from (seed, epoch) and its index alone: in whichever batch it is, and in
    whichever process.

    Args:
        features: of the images and perhaps others.
        rows: (N,) row of each image in `features`; -1 where it cannot be read.
        regions: R', how many regions of each image are kept, another choice each epoch.
        pools_by_mean: whether the pooled feature is the mean of the cells, so that it changes as their mean does when
            regions are left out; otherwise it stays as it is.
    """

    def __init__(self, features: BackboneFeatures, rows: Tensor, *, regions: int, pools_by_mean: bool) -> None:
        self._features, self._rows, self._pools_by_mean = features, rows, pools_by_mean
        self._regions, self._kept = features.grid[0] * features.grid[1], regions

    def epoch(self, batches: Iterable[Sequence[int]], *, seed: int = 0, epoch: int = 0) -> Iterator[LoadedBatch]:
        """Yield one batch for each list of indices; its `images` are (b, R' + 1, C) features, the pooled one last."""
        seeded = np.random.SeedSequence((seed, epoch)).generate_state(1, np.uint64)[0]
        generator = torch.Generator().manual_seed(int(seeded >> np.uint64(1)))
        view = torch.randint(len(self._features.views), (len(self._rows),), generator=generator)
        order = torch.rand(len(self._rows), self._regions, generator=generator).argsort(dim=1)
        kept = order[:, : self._kept].sort(dim=1).values
        for batch in batches:
            indices = torch.tensor(list(batch), dtype=torch.int64)
            indices = indices[self._rows[indices] >= 0]
            yield LoadedBatch(self._taken(indices, view[indices], kept[indices]), indices, ())

    def close(self) -> None:
        """Nothing: there are no worker processes."""

    def _taken(self, indices: Tensor, view: Tensor, kept: Tensor) -> Tensor:
        rows, views = self._rows[indices], self._features.views
        whole = torch.empty(len(rows), *views[0].shape[1:], dtype=views[0].dtype)
        for number in sorted(set(view.tolist())):
            chosen = view == number
            whole[chosen] = views[number][rows[chosen]]
        if self._kept == self._regions:
            return whole
        cells, pooled = whole[:, :-1], whole[:, -1]
        some = cells.gather(1, kept.unsqueeze(2).expand(-1, -1, cells.shape[2]))
        if self._pools_by_mean:
            pooled = pooled + some.mean(dim=1) - cells.mean(dim=1)
        return torch.cat([some, pooled.unsqueeze(1)], dim=1)


class HeadStepper(Stepper):
    """Takes steps on features: of the network, only the head is evaluated and changed."""

    def _embed(self, images: Tensor) -> Regions | Tensor | None:
        if not self._embeds_regions:
            pooled = self.embedder.head(images[:, -1]).float()
            return pooled if torch.isfinite(pooled).all() else None
        regions = regions_of(self.embedder, images)
        if not (torch.isfinite(regions.dense).all() and torch.isfinite(regions.pooled).all()):
            return None
        return regions if self.objective.uses_regions else regions.pooled


def with_trained_whitening(embedder: Embedder) -> Embedder:
    """The embedder, whose head is a fitted whitening, with a linear head that begins as that whitening."""
    whitening = embedder.head
    assert isinstance(whitening, WhitenHead)
    head = LinearHead(whitening.weight.shape[1], whitening.dim)
    with torch.no_grad():
        head.weight.copy_(whitening.weight)
        head.bias.zero_()
    return Embedder(embedder.backbone, head.to(embedder.device), dataclasses.replace(embedder.config, head="linear"))
