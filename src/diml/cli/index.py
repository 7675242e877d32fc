"""`diml index`: build, inspect and maintain an index of images."""

from __future__ import annotations

import datetime
import json as json_format
import os
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

import tyro

from diml.cli.index_copy import CopyCommand
from diml.cli.index_tune import TuneIndexCommand
from diml.cli.options import DEFAULT_MODEL, MatcherFlags, MatcherOptions, ModelFlags, ModelOptions
from diml.cli.output import bad_image_line
from diml.cli.parsing import parse_words

if TYPE_CHECKING:
    from diml.cli import Command
    from diml.distributed import ProcessGroup
    from diml.models import Embedder
    from diml.search.build import BuildReport
    from diml.search.store import Store

HELP: Final = """usage: diml index ACTION ...

An index holds embedded images, to be searched with `diml search`.

  build      build an index of a folder or CSV file, or bring it up to date
  info       show the settings, number of images and size of an index
  verify     read every row, and compare the image files with their indexed content
  remove     remove images
  copy       copy an index to another place or database, without embedding anything
  tune       choose the settings of the matcher by labels in the metadata
  optimize   extend the vector index and compact; after many small changes

`diml index ACTION --help` has options and examples. For example:

diml index build photos --index photos.index

diml index info photos.index

torchrun --nproc-per-node 4 -m diml index build photos --index photos.index"""

_IndexArgument = Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="INDEX")]


#: Processes wait for the slowest share of the images, which may take long.
_WAIT: Final = datetime.timedelta(days=7)


@dataclass(frozen=True, kw_only=True)
class BuildCommand:
    """Embed the images of a folder or CSV file into an index, or bring an index up to date: new and changed images are
    embedded, images missing from this folder or file are removed. An interrupted run keeps what it has written, and the
    next run continues from there. A run that would remove more than a tenth of the index (and more than 10 images), or
    all images of a folder, stops first. Exits with status 1 if images could not be read; they are listed.

    For instance:

    diml index build photos --index photos.index

    diml index build shop.csv --index shop.index --model runs/mine --storage int8 --types price=float

    diml index build photos --index photos.index --label-from parent

    diml index build photos --index photos.index --head whiten --dim 256 --storage float16

    torchrun --nproc-per-node 4 -m diml index build photos --index photos.index
    """

    images: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="FOLDER_OR_CSV")]
    """A folder, including its subfolders; or a CSV file with the column `path`, whose other columns become metadata."""

    index: str
    """The index to create or update: a folder; `NAME.db` (Milvus Lite); `http://host:port` (Milvus)."""

    model: ModelFlags = ModelOptions()

    head: Literal["identity", "whiten"] | None = None
    """What maps features to embeddings, for a network by name: `whiten` is a projection fitted without labels on at
    most 2,000 of the images, kept with the index; `identity` leaves the features as they are. By default that of the
    existing index, and of a new one `whiten`, where there are at least as many regions as channels."""

    dim: int | None = None
    """Channels of a `whiten` head; by default 128, or as many as the network has."""

    matcher: MatcherFlags = MatcherOptions()

    storage: Literal["float16", "int8", "1kb", "none"] | None = None
    """How regions are stored; `1kb`: codes of at most 32 bytes a region, fitted on at most 2,000 of the images of a new
    index, which have to have 1,024 regions; `none`: pooled vectors only, without re-ranking. By default as in the
    existing index, and in a new one `int8`."""

    types: tuple[str, ...] = ()
    """Types of columns of the CSV file, for instance `price=float stock=int code=text new=bool`. By default a column is
    of numbers only if every cell is written as that number is printed; `label` is always text."""

    label_from: Annotated[str | None, tyro.conf.arg(metavar="parent|top|COLUMN")] = None
    """What the column `label` is: `top`, the first folder below the source on the path to the image, which is the
    default for a folder; `parent`, the folder that the image is in; or a column of the CSV file, by default its own
    `label`. Kept with the index for each of its sources; a change embeds nothing anew."""

    keep_missing: bool = False
    """Keep images in the index that are missing from the folder or file."""

    allow_removals: bool = False
    """Remove missing images however many they are."""

    batch_size: int = 64
    """Images per batch."""

    commit_every: int = 512
    """Images written together, at the latest after 20 seconds."""

    workers: int | None = None
    """Loader processes; chosen by the number of cores when omitted."""

    json: bool = False
    """Print JSON instead of text."""

    def run(self) -> int:
        """Update the index and print what was done."""
        from diml.distributed import process_group

        with process_group(self.model.device, timeout=_WAIT) as processes:
            report = self._build(processes)
            if processes.is_first:
                self._print(report)
        return 1 if report.bad else 0

    def _build(self, processes: ProcessGroup) -> BuildReport:
        from diml.search import build_index
        from diml.search.cells import read_types
        from diml.search.labels import labels_of_sources
        from diml.search.sources import list_source

        kept = {} if self.label_from is not None else labels_of_sources(self.index)
        listing = list_source(self.images, read_types(self.types), label_from=self.label_from, kept=kept)
        notice = listing.notice()
        if notice is not None and processes.is_first and not self.json:
            print(notice)
        with processes.first_goes_ahead():  # it downloads weights, which the others then find
            embedder, notice = self._embedder(len(listing))
        if notice is not None and processes.is_first and not self.json:
            print(notice)
        notice = self.matcher.notice(embedder.matcher)
        if notice is not None and processes.is_first and not self.json:
            print(notice)
        return build_index(
            listing,
            self.index,
            embedder.to(processes.device),
            model=self.model.model or DEFAULT_MODEL,
            architecture=self.model.architecture,
            weights_file=self.model.weights_file,
            matcher=self.matcher.applied_to(embedder.matcher) if self.matcher.given() else None,
            storage=self.storage,
            batch_size=self.batch_size,
            commit_every=self.commit_every,
            workers=self.workers,
            progress=True,
            keep_missing=self.keep_missing,
            allow_removals=self.allow_removals,
            processes=processes,
        )

    def _embedder(self, images: int) -> tuple[Embedder, str | None]:
        """The embedder of the existing index, or that of a new one of `images` images, and what to say of its head."""
        from contextlib import closing

        from diml.models.zoo import is_backbone
        from diml.search import open_store
        from diml.search.index_model import load_index_embedder
        from diml.search.store import IndexNotFoundError

        named = is_backbone(self.model.model or DEFAULT_MODEL)
        if not named and (self.head or self.dim) is not None:
            raise ValueError(f"head, dim: {self.model.model} has its own head; omit --head and --dim")
        if self.dim is not None and self.head == "identity":
            raise ValueError("dim: head identity has as many channels as the network; omit --dim, or use --head whiten")
        try:
            store = open_store(self.index)
        except IndexNotFoundError:
            return self._new_embedder(images) if named else (self.model.open(), None)
        with closing(store):
            if not self._describes_a_model():
                return load_index_embedder(store).to(self.model.device), None
            own = store.config.model["config"]
            head, dim = self.head or own["head"], self.dim or own["dim"]
        return self.model.open(**({"head": head, "dim": dim} if named else {})), None

    def _new_embedder(self, images: int) -> tuple[Embedder, str | None]:
        """A network by name with the head that was asked for, or the default one; why that is not a whitening."""
        from diml.models.fitting import cells_of
        from diml.search.index_model import INDEX_DIM

        bare = self.model.open(head="identity")
        if self.head == "identity":
            return bare, None
        if self.dim is not None and not 1 <= self.dim <= bare.dim:
            raise ValueError(f"dim: {bare.config.backbone} has {bare.dim} channels, got {self.dim}")
        whitened = bare.with_whitening(self.dim or INDEX_DIM)
        enough = -(-whitened.dim // cells_of(bare))
        if self.head is None and images < enough:
            notice = (
                f"head identity, as {images:,} images have fewer regions than a whitening has channels: {whitened.dim} "
                f"channels need {enough} images; --head whiten fits as many as it can. An index keeps its head: build "
                "a new one when there are more images"
            )
            return bare, notice
        return whitened, None

    def _describes_a_model(self) -> bool:
        """Whether anything was said of the model, so that the one of the existing index is not simply taken."""
        said = {name: value for name, value in vars(self.model).items() if name != "device"}
        return any(value is not None for value in (self.head, self.dim, *said.values()))

    def _print(self, report: BuildReport) -> None:
        if self.json:
            print(json_format.dumps(asdict(report), indent=1))
            return
        for line in report.notices:
            print(line)
        for image in report.bad:
            print(bad_image_line(image))
        print(
            f"{self.index}: {report.total:,} images; {report.embedded:,} embedded, {report.copied:,} copied, "
            f"{report.moved:,} moved, {report.unchanged:,} unchanged, {report.removed:,} removed, "
            f"{len(report.bad):,} left out"
        )


@dataclass(frozen=True, kw_only=True)
class InfoCommand:
    """Show the settings, number of images and size of an index.

    For instance:

    diml index info photos.index --json
    """

    index: _IndexArgument
    """The index."""

    json: bool = False
    """Print JSON instead of a table."""

    def run(self) -> int:
        """Print the description."""
        from diml.search import open_store

        facts = describe_index(open_store(self.index))
        if self.json:
            print(json_format.dumps(facts, indent=1))
            return 0
        from rich.console import Console
        from rich.markup import escape
        from rich.table import Table

        table = Table(show_header=False, title=escape(self.index))
        for name, value in facts.items():
            if name == "sources":
                value = "\n".join(
                    f"{source}: {found['images']:,} images" + ("" if found["exists"] else ", missing")
                    for source, found in value.items()
                )
            table.add_row(name.replace("_", " "), escape(_shown(value)))
        Console().print(table)
        return 0


@dataclass(frozen=True, kw_only=True)
class VerifyCommand:
    """Read every row of an index, and compare the image files with their indexed content. Exits with status 1 if the
    index has faults or is out of date.

    For instance:

    diml index verify photos.index

    diml index verify photos.index --no-images
    """

    index: _IndexArgument
    """The index."""

    no_images: bool = False
    """Check the index only, not the image files."""

    def run(self) -> int:
        """Verify the index and print its faults."""
        from diml.search import open_store
        from diml.search.index import verify_index

        check = verify_index(open_store(self.index), images=not self.no_images, progress=True)
        for line in (*check.faults, *check.stale):
            print(line)
        stale = f"{len(check.stale):,} images out of date" if check.stale else "all images up to date"
        images = "image files not checked" if self.no_images else stale
        print(f"{self.index}: {check.rows:,} rows, {len(check.faults):,} faults; {images}")
        return 0 if check.ok else 1


@dataclass(frozen=True, kw_only=True)
class RemoveCommand:
    """Remove images from an index, by their paths as shown by `diml search`, by a condition, or by both.

    For instance:

    diml index remove photos.index photos/a.jpg photos/b.jpg

    diml index remove photos.index --where "label = 'milk'"
    """

    index: _IndexArgument
    """The index."""

    images: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="[IMAGE ...]")] = ()
    """Images to remove; their files are kept."""

    where: str | None = None
    """Only images that satisfy this condition on metadata."""

    def run(self) -> int:
        """Find the images, remove them, print how many."""
        from diml.data.listing import named_file
        from diml.search import open_store
        from diml.search.filters import parse_where
        from diml.search.sources import image_file

        if not self.images and self.where is None:
            raise ValueError("images: need at least one, or --where; to remove the whole index, delete its folder")
        store = open_store(self.index)
        condition = None if self.where is None else parse_where(self.where, store.config.columns)
        asked = {os.path.realpath(named_file(image)): image for image in self.images}
        chosen: list[str] = []
        seen: set[str] = set()
        for part in store.listing(condition):
            for name, metadata in zip(part.ids, part.metadata, strict=True):
                real = os.path.realpath(image_file(metadata)) if asked else ""
                if not asked or real in asked:
                    chosen.append(name)
                    seen.add(real)
        missing = [image for real, image in asked.items() if real not in seen]
        if missing:
            raise ValueError(
                f"images: {missing[0]} is not in {self.index} (or does not satisfy --where); nothing was removed"
            )
        print(f"{self.index}: {store.remove(chosen):,} removed, {store.count():,} left")
        return 0


@dataclass(frozen=True, kw_only=True)
class OptimizeCommand:
    """Build or extend the vector index over pooled vectors, merge small files, drop old versions. `build` does this at
    its end.

    For instance:

    diml index optimize photos.index
    """

    index: _IndexArgument
    """The index."""

    def run(self) -> int:
        """Optimize the index and print its size."""
        from diml.search import open_store

        store = open_store(self.index)
        store.optimize()
        found = store.info()
        size = "" if found.disk_bytes is None else f", {found.disk_bytes / 1e6:,.1f} MB"
        searched = "" if found.searched is None else f"; {found.searched}"
        print(f"{self.index}: {found.rows:,} images, {found.indexed:,} indexed ({found.index}){size}{searched}")
        return 0


ACTIONS: Final[dict[str, type[Command]]] = {
    "build": BuildCommand,
    "info": InfoCommand,
    "verify": VerifyCommand,
    "remove": RemoveCommand,
    "copy": CopyCommand,
    "tune": TuneIndexCommand,
    "optimize": OptimizeCommand,
}


def parse(words: Sequence[str]) -> Command:
    """Parse the words after `diml index`.

    Raises:
        SystemExit: 0 after --help, 2 without an action.
    """
    if not words or words[0] in ("-h", "--help"):
        print(HELP)
        sys.exit(0 if words else 2)
    if words[0] not in ACTIONS:
        raise ValueError(f"action: need one of {', '.join(ACTIONS)}, got {words[0]!r}")
    kind: Any = ACTIONS[words[0]]
    action: Command = parse_words(kind, f"index {words[0]}", words[1:])
    return action


def describe_index(store: Store) -> dict[str, Any]:
    """Describe an index in plain values."""
    from diml.search.index_model import head_facts
    from diml.search.tuned import index_matcher

    facts, config, own = asdict(store.info()), store.config, index_matcher(store)
    return facts | {
        "sources": _sources_of(store),
        "model": config.model.get("name_or_path"),
        "matcher": own.matcher.to_dict(),
        "rerank_at": own.rerank_at,
        "tuned": own.tuned and dict(own.tuned),
        "embedder": config.embedder,
        "head": dict(head_facts(store)),
        "calibration": _calibration_of(store),
        "dim": config.dim,
        "regions": config.num_regions,
        "storage": config.storage,
        "columns": dict(config.columns),
    }


def _sources_of(store: Store) -> dict[str, dict[str, Any]]:
    """The folders and CSV files of an index: number of images, and whether the place is there now."""
    if "source" not in store.config.columns:
        return {}
    counts = Counter(str(entry["source"]) for part in store.listing(columns=["source"]) for entry in part.metadata)
    return {source: {"images": count, "exists": Path(source).exists()} for source, count in sorted(counts.items())}


def _calibration_of(store: Store) -> str | None:
    """What the calibration that is kept with an index was learned from, and whether it fits; None without one."""
    from diml.calibration.calibrator import FILE
    from diml.calibration.finding import find_calibration
    from diml.search.tuned import index_matcher

    text = store.read_text(FILE)
    if text is None:
        return None
    found = find_calibration(
        texts={"the index": text}, fingerprint=store.config.embedder, matcher=index_matcher(store).matcher
    )
    return str(found.calibrator) if found.calibrator is not None else found.notice


def _shown(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {entry}" for name, entry in value.items())
    return f"{value:,}" if isinstance(value, int) else str(value)
