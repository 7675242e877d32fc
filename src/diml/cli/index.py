"""`diml index`: images into an index, and the care of it."""

from __future__ import annotations

import json as json_format
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, Protocol

import tyro

from diml.cli.evaluate import open_embedder

if TYPE_CHECKING:
    from diml.search import BuildReport, Share, Store

HELP: Final = """usage: diml index ACTION ...

An index: images embedded once, to be searched by `diml search`.

  build      make an index of a folder or CSV file, or bring it up to date
  info       what an index is of, how many images, how big
  verify     read every row, and compare the images with what was indexed
  remove     take images out
  optimize   index and compact; after many small changes

`diml index ACTION --help` has options and examples. For instance:

diml index build photos --index photos.index

diml index info photos.index

torchrun --nproc-per-node 4 -m diml index build photos --index photos.index"""

_Place = Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="INDEX")]


class Action(Protocol):
    """What each action's dataclass offers."""

    def run(self) -> int:
        """Do the work and print; returns the exit code."""
        ...


@dataclass(frozen=True, kw_only=True)
class Build:
    """Embed the images of a folder or CSV file into an index, or bring an index up to date: images that are new or
    changed are embedded, those gone from this folder or file are removed. What is written stays when the run is
    stopped; the next run goes on from there. Ends with code 1 where images could not be read; they are listed.

    For instance:

    diml index build photos --index photos.index

    diml index build shop.csv --index shop.index --model runs/mine --storage int8

    torchrun --nproc-per-node 4 -m diml index build photos --index photos.index
    """

    images: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="FOLDER_OR_CSV")]
    """A folder, taken with all below it; or a CSV file with the column `path`, whose other columns become metadata."""

    index: str
    """Where the index is, or is to be: a folder; `NAME.db` (Milvus Lite); `http://host:port` (Milvus)."""

    model: str = "mobilenetv2_100"
    """A timm name, the folder of a run or saved embedder, or a checkpoint file of the released code."""

    architecture: str | None = None
    """Backbone of a checkpoint file, for instance resnet50."""

    grid: int | None = None
    """Regions a side: G x G. By default 4, or what the model was saved with."""

    resize: Literal["crop", "square"] | None = None
    """`crop`: short side to 256, centre 224; `square`: all of it to 224 x 224. By default the model's own."""

    storage: Literal["float16", "int8", "none"] = "float16"
    """How regions are stored; `none`: pooled vectors only, no re-ranking."""

    keep_missing: bool = False
    """Leave images in the index that are gone from the folder or file."""

    batch_size: int = 64
    """Images in one batch."""

    commit_every: int = 512
    """Images written at once, at the latest after 20 seconds."""

    workers: int | None = None
    """Loader processes; chosen by the machine when omitted."""

    device: str = "cpu"
    """Where to compute, for instance cuda."""

    json: bool = False
    """Print JSON instead of text."""

    def run(self) -> int:
        """Embed what is new, remove what is gone, tell what happened."""
        from diml.search import join_share

        with join_share() as share:
            report = self._build(share)
            if share.is_first:
                self._print(report)
        return 1 if report.bad else 0

    def _build(self, share: Share) -> BuildReport:
        from diml.search import build_index, list_source

        listing = list_source(self.images)
        if not share.is_first:
            share.gather(None)  # the first fetches weights, the others find them
        embedder = open_embedder(self.model, self.grid, self.resize, architecture=self.architecture)
        if share.is_first:
            share.gather(None)
        return build_index(
            listing,
            self.index,
            embedder.to(share.device(self.device)),
            model=self.model,
            architecture=self.architecture,
            storage=self.storage,
            batch_size=self.batch_size,
            commit_every=self.commit_every,
            workers=self.workers,
            progress=True,
            keep_missing=self.keep_missing,
            share=share,
        )

    def _print(self, report: BuildReport) -> None:
        if self.json:
            print(json_format.dumps(asdict(report), indent=1))
            return
        for image in report.bad:
            print(f"left out {image.path}: {image.reason}")
        print(
            f"{self.index}: {report.total:,} images; {report.embedded:,} embedded, {report.copied:,} copied, "
            f"{report.unchanged:,} unchanged, {report.removed:,} removed, {len(report.bad):,} left out"
        )


@dataclass(frozen=True, kw_only=True)
class Info:
    """Show what an index is of, how many images it has and how big it is.

    For instance:

    diml index info photos.index --json
    """

    index: _Place
    """The index."""

    json: bool = False
    """Print JSON instead of a table."""

    def run(self) -> int:
        """Print the facts."""
        from diml.search import open_store

        store = open_store(self.index)
        facts = describe_index(store)
        if self.json:
            print(json_format.dumps(facts, indent=1))
            return 0
        from rich.console import Console
        from rich.markup import escape
        from rich.table import Table

        table = Table(show_header=False, title=escape(self.index))
        for name, value in facts.items():
            plain = f"{value:,}" if isinstance(value, int) else str(value)
            table.add_row(name.replace("_", " "), escape(plain))
        Console().print(table)
        return 0


@dataclass(frozen=True, kw_only=True)
class Verify:
    """Read every row of an index, and compare the image files with what was indexed. Ends with code 1 where
    something is wrong.

    For instance:

    diml index verify photos.index

    diml index verify photos.index --no-images
    """

    index: _Place
    """The index."""

    no_images: bool = False
    """Look at the index only."""

    def run(self) -> int:
        """Read all, print what is wrong."""
        from diml.search import check_index, open_store

        check = check_index(open_store(self.index), images=not self.no_images, progress=True)
        for line in (*check.faults, *check.stale):
            print(line)
        stale = f"{len(check.stale):,} images out of date" if check.stale else "images as they were indexed"
        told = "not looked at" if self.no_images else stale
        print(f"{self.index}: {check.rows:,} rows, {len(check.faults):,} faults; {told}")
        return 0 if check.ok else 1


@dataclass(frozen=True, kw_only=True)
class Remove:
    """Take images out of an index: by their paths as `diml search` shows them, by a condition, or both.

    For instance:

    diml index remove photos.index photos/a.jpg photos/b.jpg

    diml index remove photos.index --where "label = 'milk'"
    """

    index: _Place
    """The index."""

    images: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="[IMAGE ...]")] = ()
    """Images to take out; their files are left alone."""

    where: str | None = None
    """Those that fit this condition on metadata."""

    def run(self) -> int:
        """Find them, take them out, tell how many."""
        from diml.search import image_file, open_store, parse_where

        if not self.images and self.where is None:
            raise ValueError("images: name some, or give --where; to be rid of the whole index, delete its folder")
        store = open_store(self.index)
        condition = None if self.where is None else parse_where(self.where, store.config.columns)
        asked = {image.expanduser().absolute() for image in self.images}
        chosen: list[str] = []
        seen: set[Path] = set()
        for part in store.listing(condition):
            for name, metadata in zip(part.ids, part.metadata, strict=True):
                file = image_file(metadata) if asked else None
                if file is None or file in asked or file.resolve() in asked:
                    chosen.append(name)
                    seen |= set() if file is None else {file}
        missing = [path for path in asked if path not in seen and path.resolve() not in seen]
        if missing:
            raise ValueError(f"images: {missing[0]} is not in {self.index} (or does not fit --where); nothing removed")
        print(f"{self.index}: {store.remove(chosen):,} removed, {store.count():,} left")
        return 0


@dataclass(frozen=True, kw_only=True)
class Optimize:
    """Build or extend the index over pooled vectors, join small files, drop old versions. `build` does so at its end.

    For instance:

    diml index optimize photos.index
    """

    index: _Place
    """The index."""

    def run(self) -> int:
        """Do it, tell the size."""
        from diml.search import open_store

        store = open_store(self.index)
        store.optimize()
        found = store.info()
        size = "" if found.disk_bytes is None else f", {found.disk_bytes / 1e6:,.1f} MB"
        print(f"{self.index}: {found.rows:,} images, {found.indexed:,} indexed ({found.index}){size}")
        return 0


ACTIONS: Final[dict[str, type[Action]]] = {
    "build": Build,
    "info": Info,
    "verify": Verify,
    "remove": Remove,
    "optimize": Optimize,
}


def parse(words: Sequence[str]) -> Action:
    """The action that the words after `diml index` ask for.

    Raises:
        SystemExit: 0 after --help, 2 without an action.
    """
    if not words or words[0] in ("-h", "--help"):
        print(HELP)
        sys.exit(0 if words else 2)
    if words[0] not in ACTIONS:
        raise ValueError(f"action: need one of {', '.join(ACTIONS)}, got {words[0]!r}")
    kind: Any = ACTIONS[words[0]]
    prog = f"diml index {words[0]}"
    action: Action = tyro.cli(kind, prog=prog, args=list(words[1:]), config=(tyro.conf.FlagCreatePairsOff,))
    return action


def describe_index(store: Store) -> dict[str, Any]:
    """Facts about an index as plain values."""
    facts, config = asdict(store.info()), store.config
    return facts | {
        "model": config.model.get("name_or_path"),
        "embedder": config.embedder,
        "dim": config.dim,
        "regions": config.num_regions,
        "storage": config.storage,
        "columns": dict(config.columns),
    }
