"""Images of a data set embedded by a model, a whitening fitted on the way: what all commands on data sets do first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from diml.cli.options import Check, EmbedderOptions, HeadOptions, LoadingOptions
    from diml.data import DataSet, ImageSet
    from diml.data.images import ImageLike
    from diml.models import Embedder
    from diml.models.embedder import Embedded
    from diml.models.fitting import Fitted


@dataclass(frozen=True, eq=False)
class OpenedModel:
    """A model whose head is fitted, if it is one that is fitted.

    Args:
        embedder: the model.
        head: plain values: the head, and what it was fitted on.
        notice: a line about a head that was chosen or fitted here; None for a model's own.
    """

    embedder: Embedder
    head: dict[str, Any]
    notice: str | None


@dataclass(frozen=True, eq=False)
class EmbeddedSet(OpenedModel):
    """Images embedded by a model.

    Args:
        embedded: regions of the images that could be read.
        images: these images.
    """

    embedded: Embedded
    images: ImageSet


@dataclass(frozen=True, eq=False)
class _Source:
    """Images that a whitening is fitted on: rows of those to embed, and others; and the words for them."""

    rows: NDArray[np.int64]
    others: Sequence[ImageLike] | None
    name: str
    words: str

    def __len__(self) -> int:
        return len(self.rows) + len(self.others or ())


def embedded_set(
    options: HeadOptions,
    model: str | Path,
    dataset: DataSet,
    embedder: EmbedderOptions,
    loading: LoadingOptions,
    images: ImageSet,
    check: Check,
) -> EmbeddedSet:
    """See `HeadOptions.embed`."""
    from diml.evaluation.evaluate import embed_images
    from diml.models.fitting import fit_and_embed

    loaded, source, notice = _loaded(options, model, dataset, embedder, images)
    check(loaded)
    arguments = loading.arguments()
    if source is None:
        embedded, kept = embed_images(loaded, images, progress=True, **arguments)
        return EmbeddedSet(loaded, _facts(loaded), notice, embedded, kept)
    fitted = fit_and_embed(loaded, images, rows=source.rows, others=source.others, progress=True, **arguments)
    kept = images.subset(fitted.embedded.kept.numpy()) if fitted.embedded.bad else images
    facts = _facts(loaded, source, fitted)
    return EmbeddedSet(loaded, facts, _notice(facts, source, fitted), fitted.embedded, kept)


def opened_model(
    options: HeadOptions,
    model: str | Path,
    dataset: DataSet,
    embedder: EmbedderOptions,
    loading: LoadingOptions,
    images: ImageSet,
    check: Check,
) -> OpenedModel:
    """See `HeadOptions.open`."""
    from diml.models.fitting import fit_and_embed, some_images

    loaded, source, notice = _loaded(options, model, dataset, embedder, images)
    check(loaded)
    if source is None:
        return OpenedModel(loaded, _facts(loaded), notice)
    wanted = [*some_images(images.images, source.rows), *(source.others or ())]
    fitted = fit_and_embed(loaded, wanted, rows=range(len(wanted)), progress=True, **loading.arguments())
    facts = _facts(loaded, source, fitted)
    return OpenedModel(loaded, facts, _notice(facts, source, fitted))


def _loaded(
    options: HeadOptions, model: str | Path, dataset: DataSet, embedder: EmbedderOptions, images: ImageSet
) -> tuple[Embedder, _Source | None, str | None]:
    """The model with the head that was asked for, or the default one; what to fit it on; why it is not fitted."""
    from diml.models.fitting import cells_of
    from diml.models.zoo import is_backbone

    named = isinstance(model, str) and is_backbone(model)
    head = options.head
    # Fitted on the gallery it does not help everywhere (docs/experiments/whitening.md): there it has to be asked for.
    wanted = head == "whiten" or (head is None and named and (dataset.train is not None or options.fit_on is not None))
    source = _source(options.fit_on, dataset, images) if wanted else None
    if source is None and options.fit_on is not None:
        raise ValueError(f"fit_on: only head whiten is fitted, got {head or 'a saved model'}; omit --fit-on")
    if source is None:
        return embedder.load(model, head=head, dim=options.dim), None, None
    loaded = embedder.load(model, head="whiten", dim=options.dim)
    enough = -(-loaded.dim // cells_of(loaded))
    if head is None and len(source) < enough:
        notice = (
            f"head identity, as {len(source):,} images ({source.words}) have fewer regions than a whitening has "
            f"channels: {loaded.dim} channels need {enough} images; --head whiten fits as many as it can"
        )
        return loaded.without_head(), None, notice
    return loaded, source, None


def _facts(embedder: Embedder, source: _Source | None = None, fitted: Fitted | None = None) -> dict[str, Any]:
    facts: dict[str, Any] = {"name": embedder.config.head, "dim": embedder.dim}
    if source is not None and fitted is not None:
        facts |= {"fitted_on": source.name, "images": fitted.images}
    return facts


def _notice(facts: dict[str, Any], source: _Source, fitted: Fitted) -> str:
    """The line about a head that was fitted."""
    drawn = f" of {fitted.offered:,}" if fitted.images < fitted.offered else ""
    return (
        f"head whiten, {facts['dim']} channels, fitted without labels on {fitted.images:,}{drawn} images: "
        f"{source.words}"
    )


def _source(fit_on: str | None, dataset: DataSet, images: ImageSet) -> _Source:
    """The images to fit on."""
    train = dataset.train
    if fit_on is None:
        fit_on = "gallery" if train is None else "train"
    if fit_on == "train" and train is None:
        raise ValueError(
            f"--fit-on: {dataset.name} has no training images under protocol {dataset.protocol}; use --fit-on "
            "gallery, or another --protocol"
        )
    searched = _searched(images)
    if fit_on == "gallery":
        return _Source(searched, None, "gallery", "those that are searched themselves (transductive)")
    inside, others = _where(train, images) if train is not None else (np.empty(0, np.int64), None)
    if fit_on == "train":
        return _Source(inside, others, "train", "the training images")
    return _Source(np.arange(len(images)), others, "all", "all of the data set, the queries included (transductive)")


def _searched(images: ImageSet) -> NDArray[np.int64]:
    """Rows of the images in any gallery."""
    if images.draws:
        return np.unique(np.concatenate([gallery for _, gallery in images.draws]))
    return np.arange(len(images)) if images.gallery is None else np.sort(images.gallery)


def _where(train: ImageSet, images: ImageSet) -> tuple[NDArray[np.int64], Sequence[ImageLike] | None]:
    """Training images: rows of those among `images`, by their paths, and the others."""
    from diml.models.fitting import some_images

    if train is images:
        return np.arange(len(images)), None
    place = {path: row for row, path in enumerate(_paths(images)) if path is not None}
    found = [None if path is None else place.get(path) for path in _paths(train)]
    inside = np.array(sorted(row for row in found if row is not None), dtype=np.int64)
    others = np.array([number for number, row in enumerate(found) if row is None], dtype=np.int64)
    return inside, some_images(train.images, others) if len(others) else None


def _paths(images: ImageSet) -> list[Path | None]:
    """The path of each image that is a file; none is read."""
    from diml.data.image_sets import DatasetImages

    if isinstance(images.images, DatasetImages):
        return [None] * len(images)
    return [image if isinstance(image, Path) else None for image in images.images]
