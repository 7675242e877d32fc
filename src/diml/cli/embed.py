"""`diml embed`: regions of images in a file that numpy, pandas and other programs read."""

from __future__ import annotations

import json as json_format
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from diml.cli.options import DataFlags, DataOptions, LoadingFlags, LoadingOptions, ModelFlags, ModelOptions
from diml.cli.output import bad_image_line

if TYPE_CHECKING:
    from diml.data.images import BadImage, ImageLike
    from diml.matching import QuantizedRegions, Regions
    from diml.models import Embedder
    from diml.models.embedder import Embedded


@dataclass(frozen=True, kw_only=True)
class EmbedCommand:
    """Embed images and write their regions, with paths and labels, to a file that other programs read: an .npz file of
    numpy arrays, or a .parquet file with one row an image. `diml.load_regions(FILE)` reads either again. Exits with
    status 1 if images were left out; they are listed.

    For instance:

    diml embed photos --output regions.npz

    diml embed shop.csv --label-from product --model runs/mine --output regions.parquet --storage float16

    diml embed grocery --data data --split train --output train.parquet
    """

    images: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="FOLDER_OR_CSV | DATASET")]
    """A folder, including its subfolders; a CSV file with the column `path`; or the name of a data set (`diml datasets`
    lists them)."""

    output: Path
    """The file: NAME.npz or NAME.parquet, which needs pyarrow (extra `search`). It is replaced if it exists. Paths in
    it are relative to the folder, the CSV file or the folder `--data`, where the images are below it."""

    data: DataFlags = DataOptions()

    split: Literal["train", "test"] = "test"
    """Of a data set by name: which images."""

    label_from: Annotated[str | None, tyro.conf.arg(metavar="parent|top|COLUMN")] = None
    """Of a folder or CSV file: what the label of an image is: `top`, the first folder below the source on the path to
    the image, which is the default for a folder; `parent`, the folder that the image is in; or a column of the CSV
    file, by default `label`."""

    model: ModelFlags = ModelOptions()

    storage: Literal["float32", "float16", "bfloat16", "int16", "int8"] = "float32"
    """Type of the numbers. Programs without bfloat16 see its 16 bits as an integer; int16 and int8 are codes with a
    scale."""

    shares: bool = False
    """Also write the share of the pooled vector that comes from each region, which explanations need. Doubles the file;
    images are embedded again, whatever is cached."""

    loading: LoadingFlags = LoadingOptions()

    json: bool = False
    """Print JSON instead of text."""

    def run(self) -> int:
        """Embed, write the file, and print what is in it."""
        from diml.models import save_regions
        from diml.models.region_files import require_region_file

        if self.shares and self.storage.startswith("int"):
            raise ValueError(f"shares: regions in {self.storage} have none; omit --shares, or use --storage float16")
        require_region_file(self.output)
        listed = self._listed()
        embedder = self.model.open()
        embedded = self._embedded(embedder, listed.images)
        rows = embedded.kept.tolist()
        labels = None if listed.labels is None else [listed.labels[row] for row in rows]
        regions = self._stored(embedded.regions)
        save_regions(regions, self.output, paths=[listed.paths[row] for row in rows], labels=labels, embedder=embedder)
        bad = (*listed.bad, *embedded.bad)
        self._print(regions, bad, listed.notice)
        return 1 if bad else 0

    def _listed(self) -> _Listed:
        """The images, with paths and labels; none is read."""
        from diml.data import dataset_names

        if self.images not in dataset_names():
            return _of_source(self.images, self.label_from)
        if self.label_from is not None:
            raise ValueError(
                f"label_from: need a folder or CSV file, got the data set {self.images}; omit --label-from"
            )
        dataset = self.data.open(self.images)
        chosen = dataset.test if self.split == "test" else dataset.train
        if chosen is None:
            raise ValueError(f"split: {dataset.name} has no training images under protocol {dataset.protocol}")
        root = self.data.data or Path("data")
        root = root.parent if root.is_file() else root
        names = [Path(chosen.image_name(row)) for row in range(len(chosen))]
        paths = [(name.relative_to(root) if name.is_relative_to(root) else name).as_posix() for name in names]
        return _Listed(chosen.images, paths, [chosen.class_names[label] for label in chosen.labels])

    def _embedded(self, embedder: Embedder, images: Sequence[ImageLike]) -> Embedded:
        from diml.models.cache import embed_cached

        arguments = self.loading.arguments() | {"progress": True}
        cache = arguments.pop("cache")
        if cache is None or self.shares:
            return embedder.embed_checked(images, shares=self.shares, **arguments)
        return embed_cached(embedder, images, cache_dir=cache, **arguments)

    def _stored(self, regions: Regions) -> Regions | QuantizedRegions:
        import torch

        dtype = getattr(torch, self.storage)
        return regions.to(dtype) if dtype.is_floating_point else regions.quantized(dtype)

    def _print(self, regions: Regions | QuantizedRegions, bad: Sequence[BadImage], notice: str | None) -> None:
        size = self.output.stat().st_size
        if self.json:
            facts = {"output": str(self.output), "images": len(regions), "regions": regions.num_regions}
            facts |= {"dim": regions.dim, "storage": self.storage, "bytes": size}
            print(json_format.dumps(facts | {"bad": [asdict(image) for image in bad]}, indent=1))
            return
        for line in (notice, *map(bad_image_line, bad)):
            if line is not None:
                print(line)
        print(
            f"{self.output}: {len(regions):,} images, {regions.num_regions} regions of {regions.dim} channels each, "
            f"{self.storage}, {size / 1e6:,.1f} MB"
        )


COMMAND = EmbedCommand


@dataclass(frozen=True)
class _Listed:
    """Images to be embedded, with a path and a label each, and what was left out."""

    images: Sequence[ImageLike]
    paths: list[str]
    labels: list[str] | None
    bad: tuple[BadImage, ...] = ()
    notice: str | None = None


def _of_source(place: str, label_from: str | None) -> _Listed:
    """The images of a folder or CSV file; labels where any image has one."""
    from diml.search.sources import list_source

    if not Path(place).expanduser().exists():
        raise FileNotFoundError(
            f"images: need a folder, a .csv file or the name of a data set (`diml datasets`), got {place!r}"
        )
    listing = list_source(place, label_from=label_from)
    labels = [cells.get("label") or "" for cells in listing.cells]
    files = [listing.file(row) for row in range(len(listing))]
    return _Listed(files, list(listing.paths), labels if any(labels) else None, listing.bad, listing.notice())
