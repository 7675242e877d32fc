"""`diml calibrate`: what a score means, as a probability, with thresholds for a named false-accept rate."""

from __future__ import annotations

import json as json_format
import platform
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from diml.calibration.calibrator import FILE
from diml.cli.options import (
    DataFlags,
    DataOptions,
    LoadingFlags,
    LoadingOptions,
    MatcherFlags,
    MatcherOptions,
    ModelFlags,
    ModelOptions,
    dataset_or_run,
)
from diml.cli.output import bad_image_line

if TYPE_CHECKING:
    from rich.console import Console

    from diml.calibration.evaluate import Calibration
    from diml.data import DataSet, ImageSet
    from diml.matching import Matcher, QuantizedRegions, Regions
    from diml.models import Embedder


@dataclass(frozen=True)
class _Source:
    """What a calibration is learned from: images with their regions, and by which model and matcher."""

    images: ImageSet
    regions: Regions | QuantizedRegions
    embedder: Embedder
    matcher: Matcher
    dataset: str
    protocol: str
    model: str
    rerank_at: int = 100


@dataclass(frozen=True, kw_only=True)
class CalibrateCommand:
    """Learn from labelled images how likely a score means "same class", and from which score on a pair, or the first
    hit of a search, is accepted at a named false-accept rate. Fitted on half of the classes, measured on the other.

    For instance:

    diml calibrate orl

    diml calibrate grocery --data data --resize square --false-accept-rate 0.01 0.05 --output shop/embedder

    diml calibrate runs/mine --output runs/mine

    diml calibrate folder --data IMAGES --model runs/mine --fit-on all --seeds 0 1 2 3 4 --output photos.index

    diml calibrate photos.index --label product --kind product --fit-on all --output photos.index
    """

    dataset: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="DATASET | RUN | INDEX")]
    """Name of a data set (`diml datasets` lists them), whose test images are used; the folder of a run, whose embedder
    is calibrated on the test images of its data set; or an index, whose stored regions and labels are used. The model
    must not have been trained on these images."""

    label: str = "label"
    """Of an index: the column that has the class of each image."""

    where: str | None = None
    """Of an index: only images that satisfy a condition on metadata."""

    most_images: int = 10_000
    """Of an index: number of images at most; of a larger one whole classes are drawn."""

    data: DataFlags = DataOptions()

    model: ModelFlags = ModelOptions()

    false_accept_rate: tuple[float, ...] = (0.01,)
    """One or more false-accept rates, as fractions, whose thresholds are shown; any other can be asked for later."""

    pairs: Literal["candidates", "random"] = "candidates"
    """What is calibrated on: the re-ranked candidates of each query, which are the pairs that a search shows; or
    random pairs of a query and a gallery image, which are easier to tell apart."""

    method: Literal["auto", "isotonic", "logistic"] = "auto"
    """Isotonic regression needs many pairs, logistic regression few; `auto` takes isotonic from 1,000 same-class and
    1,000 different-class pairs on."""

    prior: float | None = None
    """Share of same-class pairs where the probability will be used, for instance 0.5; by default as among the pairs
    that are calibrated on. Thresholds do not depend on it."""

    fit_on: Literal["half", "all"] = "half"
    """What the saved calibration is fitted on: `half` of the classes, so that it is the one that was measured; or
    `all`, which can promise smaller rates, and of which the figures of the halves are an estimate."""

    kind: str = "class"
    """What images of one class have in common, one noun for sentences: `product` gives "likely the same product"."""

    rerank_at: int | None = None
    """K: the number of candidates of each query; by default that of searches in the index, else 100."""

    matcher: MatcherFlags = MatcherOptions()

    loading: LoadingFlags = LoadingOptions()

    seeds: tuple[int, ...] = (0,)
    """Of the splits of the classes into halves; several show the spread. The first split is the one that is saved."""

    output: str | None = None
    """Embedder, run or index that calibration.json is saved with: a folder, or an index of Milvus."""

    json: bool = False
    """Print JSON instead of tables."""

    def run(self) -> int:
        """Embed, fit, measure, print, write."""
        from diml.calibration import calibrate
        from diml.extras import require

        require("train", "diml calibrate")
        self.loading.check()
        _require_place(self.output)
        source = self._labelled()
        notice = self.matcher.notice(source.matcher)
        if notice is not None:
            print(notice, file=sys.stderr)
        found = calibrate(
            source.embedder,
            source.images,
            regions=source.regions,
            matcher=self.matcher.applied_to(source.matcher),
            false_accept_rates=self.false_accept_rate,
            pairs=self.pairs,
            method=self.method,
            prior=self.prior,
            depth=source.rerank_at if self.rerank_at is None else self.rerank_at,
            fit_on=self.fit_on,
            seeds=self.seeds,
            kind=self.kind,
            progress=True,
        )
        about = self._about(source)
        place = None if self.output is None else _save(found, self.output, about)
        if self.json:
            document = {"calibration": found.calibrator.to_dict(), "measured": found.to_dict() | about}
            print(json_format.dumps(document, indent=1))
        else:
            size = f"input {source.embedder.preprocess.size} pixels"
            _print(found, f"{source.dataset}, {source.protocol}, {source.model}, {size}")
            if place is not None:
                print(f"Written: {place}")
            else:
                print("Add --output FOLDER to save the calibration beside an embedder, run or index.")
        return 0

    def _labelled(self) -> _Source:
        """The images to learn from, with their regions."""
        from diml.search.index import is_index

        if is_index(self.dataset):
            return self._of_index()
        dataset, name = dataset_or_run(self.dataset, self.data, self.model, "calibrate")
        dataset.require_classes()
        embedder = self.model.load(name)
        self.matcher.for_model(embedder)
        images, regions = self._embed(embedder, dataset)
        return _Source(images, regions, embedder, embedder.matcher, dataset.name, dataset.protocol, name)

    def _of_index(self) -> _Source:
        from diml.search import Searcher
        from diml.search.labelled import labelled_images

        self.model.refuse_for_index()
        if self.data.data is not None or self.data.protocol is not None:
            raise ValueError("data, protocol: an index has its own images; omit --data and --protocol")
        name = Path(self.dataset).name
        with Searcher.open(self.dataset, model=self.model.model, device=self.model.device) as searcher:
            images, regions = labelled_images(
                searcher.store,
                self.label,
                name=name,
                where=self.where,
                most=self.most_images,
                seed=self.seeds[0] if self.seeds else 0,
            )
            embedder, matcher, depth = searcher.embedder, searcher.matcher, searcher.rerank_at
            return _Source(images, regions, embedder, matcher, name, "leave-one-out", searcher.source, depth)

    def _embed(self, embedder: Any, dataset: DataSet) -> tuple[Any, Any]:
        """The images that can be read, and their regions."""
        loading = self.loading.arguments()
        cache = loading.pop("cache")
        if cache is None:
            embedded = embedder.embed_checked(dataset.test, progress=True, **loading)
        else:
            from diml.models.cache import embed_cached

            embedded = embed_cached(embedder, dataset.test, cache_dir=cache, progress=True, **loading)
        for bad in embedded.bad:
            print(bad_image_line(bad), file=sys.stderr)
        images = dataset.test.subset(embedded.kept.numpy()) if embedded.bad else dataset.test
        return images, embedded.regions

    def _about(self, source: _Source) -> dict[str, Any]:
        """How the numbers were obtained."""
        from importlib.metadata import version

        depth = source.rerank_at if self.rerank_at is None else self.rerank_at
        config = {"dataset": source.dataset, "protocol": source.protocol, "data": str(self.data.data or "data")}
        config |= self.model.settings() | {"model": source.model, "rerank_at": depth, "prior": self.prior}
        return {
            "config": config,
            "versions": {package: version(package) for package in ("diml", "torch", "numpy", "scikit-learn")},
            "machine": {"system": platform.platform(), "processor": platform.machine()},
        }


COMMAND = CalibrateCommand


def _require_place(output: str | None) -> None:
    """Find out before the work whether the calibration can be saved."""
    from diml.files import require_writable
    from diml.search.index import is_milvus, open_store

    if output is not None and is_milvus(output):
        open_store(output).close()
    elif output is not None:
        require_writable(output)


def _save(found: Calibration, output: str, about: dict[str, Any]) -> str:
    """Save the calibration with an index, or in a folder; returns its place."""
    from diml.search.index import is_milvus, open_store

    if not is_milvus(output):
        found.save(output, more=about)
        return str(Path(output) / FILE)
    store = open_store(output)
    store.write_text(FILE, found.calibrator.to_json(measured=found.to_dict() | about))
    shown = store.info().uri
    store.close()
    return f"{shown}, {FILE}"


def _print(found: Calibration, title: str) -> None:
    from rich.console import Console

    console = Console(highlight=False)
    calibrator = found.calibrator
    console.print(
        f"{title}: {calibrator.method} regression on {calibrator.same_pairs:,} same-class and "
        f"{calibrator.different_pairs:,} different-class pairs ({calibrator.pairs}) of {calibrator.images:,} images, "
        f"{calibrator.classes:,} classes; probabilities refer to {calibrator.prior:.1%} same-class pairs.",
        markup=False,
        soft_wrap=True,
    )
    if len(found.reports) > 1:
        console.print(f"Mean and range of {len(found.reports)} splits of the classes; intervals are of the first.")
    _print_reliability(console, found)
    _print_acceptance(console, found)
    same, different = calibrator.landmarks.same, calibrator.landmarks.different
    console.print(
        f"Typical scores (5, 50, 95 %): same class {same[0]:.3f} {same[2]:.3f} {same[4]:.3f}, different classes "
        f"{different[0]:.3f} {different[2]:.3f} {different[4]:.3f}, an image with itself "
        f"{calibrator.landmarks.self_match:.3f}",
        soft_wrap=True,
    )
    if not calibrator.separates:
        low, high = calibrator.auc_interval
        console.print(
            f"Warning: this model hardly separates these classes: AUC of random pairs {calibrator.auc:.3f} "
            f"({low:.3f}..{high:.3f}); explanations of its scores say little.",
            soft_wrap=True,
        )


def _print_reliability(console: Console, found: Calibration) -> None:
    from rich.table import Table

    held_out = found.reports[0]
    table = Table(
        title=f"Probabilities on {held_out.classes} held-out classes, {held_out.images:,} images",
        title_justify="left",
        caption="hits: the candidates, each seen with the other scores of its query. ECE: 15 bins.",
        caption_justify="left",
    )
    for column in ("pairs", "same class", "ECE", "Brier", "AUC"):
        table.add_column(column, justify="left" if column == "pairs" else "right")
    for name in ("candidates", "hits", "random"):
        measured = [getattr(report, name) for report in found.reports]
        table.add_row(
            name,
            _over([one.prior for one in measured], "{:.1%}"),
            *(_over([getattr(one, key) for one in measured], "{:.4f}") for key in ("ece", "brier", "auc")),
        )
    console.print(table)


def _print_acceptance(console: Console, found: Calibration) -> None:
    from rich.table import Table

    first = found.reports[0]
    table = Table(
        title="Acceptance on these classes, percent, with 95 % intervals",
        title_justify="left",
        caption="* too few classes to promise this rate: the threshold is that of the calibration pairs themselves",
        caption_justify="left",
    )
    for column in ("what", "named", "threshold", "false accepts", "true accepts"):
        table.add_column(column, justify="left" if column == "what" else "right")
    for what, key, accepted in (("pairs", "pairs", "true_accept"), ("first hits", "open_set", "identified")):
        for place, row in enumerate(getattr(first, key)):
            rows = [getattr(report, key)[place] for report in found.reports]
            low, high = row.interval
            table.add_row(
                what,
                f"{100 * row.named:g}" + ("" if row.promised else " *"),
                _over([one.threshold for one in rows], "{:.3f}"),
                _over([one.false_accept for one in rows], "{:.2f}", 100) + f"\n{100 * low:.2f}..{100 * high:.2f}",
                _over([getattr(one, accepted) for one in rows], "{:.1f}", 100),
            )
    console.print(table)
    console.print(
        f"First hits: {first.absent_classes} of {first.classes} classes removed from the gallery "
        f"({first.gallery_images:,} images); false accepts are queries of removed classes, true accepts are correctly "
        "identified queries. "
        f"ROC AUC of present against removed: {_over([report.open_set_auc for report in found.reports], '{:.3f}')}",
        soft_wrap=True,
        markup=False,
    )


def _over(values: Sequence[float], form: str, factor: float = 1) -> str:
    """A value; of several splits their mean and range."""
    show: Callable[[float], str] = lambda value: form.format(factor * value)  # noqa: E731
    if len(values) == 1:
        return show(values[0])
    return f"{show(sum(values) / len(values))}\n{show(min(values))}..{show(max(values))}"
