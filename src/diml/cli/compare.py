"""`diml compare`: settings of the matcher against each other on one data set, paired by query."""

from __future__ import annotations

import json as json_format
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

import tyro

from diml.cli.options import (
    DataFlags,
    DataOptions,
    FormatFlags,
    FormatOptions,
    HeadFlags,
    HeadOptions,
    LoadingFlags,
    LoadingOptions,
    ModelFlags,
    ModelOptions,
    dataset_or_run,
    metric_names,
)
from diml.cli.output import bad_image_line
from diml.evaluation.metrics import main_metric
from diml.evaluation.result_table import Cell, ResultTable
from diml.matching import Matcher

if TYPE_CHECKING:
    from diml.cli.whitening import EmbeddedSet
    from diml.data import DataSet
    from diml.evaluation.compare import MatcherComparison
    from diml.models import Embedder

#: The matcher that the model was saved with.
OWN: Final = "own"
#: The setting of the paper, which is the default of `Matcher`.
PAPER: Final = "paper"


@dataclass(frozen=True, kw_only=True)
class CompareCommand:
    """Compare matchers on a data set: the same candidates re-ranked by each, with differences paired by query; and
    published methods that rank by neighbours.

    A matcher is written as its settings, comma-separated: epsilon=0.02,structural_weight=4. `paper` stands for the
    setting of the paper, `own` for the one that the model was saved with, as do settings that are not given. A name may
    stand before a colon: sharp:epsilon=0.02.

    For instance:

    diml compare orl

    diml compare orl --matchers paper epsilon=0 epsilon=0,structural_weight=4 --baseline paper

    diml compare grocery --data shop/grocery --head whiten --grid 7 --output runs/matchers

    diml compare csv --data mine.csv --model runs/mine --matchers own structural_weight=4 --neighbours k_reciprocal
    """

    dataset: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="DATASET | RUN")]
    """Name of the data set (`diml datasets` lists them), or the folder of a run."""

    data: DataFlags = DataOptions()

    model: ModelFlags = ModelOptions()

    head_options: HeadFlags = HeadOptions()

    matchers: tuple[str, ...] = (
        PAPER,
        "weight 4:structural_weight=4",
        "weight 4, 0.02:matching=transport,structural_weight=4,epsilon=0.02",
        "weight 4, exact:matching=transport,structural_weight=4,epsilon=0",
        "MaxSim, weight 4:matching=maxsim,share=1,structural_weight=4,weights=uniform",
        "MaxSim weighted, weight 4:matching=maxsim,share=1,structural_weight=4,weights=cross_correlation",
    )
    """The matchers."""

    neighbours: tuple[Literal["alpha_qe", "k_reciprocal", "superglobal"], ...] = (
        "alpha_qe",
        "k_reciprocal",
        "superglobal",
    )
    """Methods that rank by neighbours of the pooled vectors; `--neighbours` without a value omits them."""

    baseline: str = "plain"
    """Name of the matcher, as given, that differences are against; `plain` is the ranking by pooled cosine."""

    rerank_at: int = 100
    """K, candidates of each query."""

    storage: Literal["float32", "float16", "int16", "int8", "1kb"] = "float32"
    """How regions are stored while they are compared; with `1kb` queries are compared as they are."""

    without_relevant: Literal["exclude", "miss", "fail"] = "exclude"
    """Queries without a relevant image: excluded and counted apart, counted as misses, or an error."""

    loading: LoadingFlags = LoadingOptions()

    metrics: Literal["standard", "reid"] | None = None
    """`standard`: Recall@1,2,4,8, RP and MAP@R; `reid`: CMC at ranks 1, 5 and 10, mAP by both conventions and mINP.
    When omitted, those of the data set's publications, else the standard ones. The table shows recall at the first
    rank and one average precision; the files have all."""

    recall_at: tuple[int, ...] = ()
    """Ranks k of Recall@k, instead of those of the metrics; the table shows them all."""

    resamples: int = 1000
    """Bootstrap resamples of the 95 % intervals."""

    seed: int = 0
    """Of the bootstrap."""

    output: Path | None = None
    """Folder for comparison.csv, comparison.json and comparison.png."""

    printing: FormatFlags = FormatOptions()

    def run(self) -> int:
        """Embed once, rank by every matcher, print, write."""
        from diml.evaluation.compare import compare_matchers
        from diml.evaluation.evaluate import stored_as
        from diml.evaluation.split import sides_of
        from diml.files import require_writable

        self.printing.check()
        if self.output is not None:  # known before the work, not after
            require_writable(self.output)
        parsed = [named_settings(word) for word in self.matchers]  # before anything is loaded
        for _, settings in parsed:
            Matcher.from_dict(settings or {})
        if len(dict(parsed)) != len(parsed):
            raise ValueError(f"matchers: need every name once, got {' '.join(self.matchers)}")
        dataset, model = dataset_or_run(self.dataset, self.data, self.model, "compare")
        opened = self.head_options.embed(
            model, dataset, self.model, self.loading, check=lambda embedder: _matchers_for(embedder, parsed)
        )
        matchers = _matchers_for(opened.embedder, parsed)
        images = opened.images
        found = compare_matchers(
            stored_as(opened.embedded.regions, self.storage),
            images.labels,
            matchers,
            originals=opened.embedded.regions if self.storage == "1kb" else None,
            neighbours=self.neighbours,
            baseline=self.baseline,
            rerank_at=self.rerank_at,
            **sides_of(images),
            metrics=metric_names(dataset, self.metrics, self.recall_at),
            without_relevant=self.without_relevant,
            resamples=self.resamples,
            seed=self.seed,
            progress=True,
        )
        config = self._config(dataset, model, opened)
        lines = [] if opened.notice is None else [f"{model}: {opened.notice}"]
        lines += [bad_image_line(image) for image in opened.embedded.bad]
        if self.printing.json:
            print(json_format.dumps({"unit": "fraction", "config": config} | found.to_dict(), indent=1))
        elif self.printing.format == "csv":
            print(found.to_csv(), end="")
        else:
            size = f", input {opened.embedder.preprocess.size} pixels"
            ranks = [f"recall@{k}" for k in self.recall_at]
            self.printing.show([comparison_table(found, f"{dataset.name}, {dataset.protocol}{size}", ranks)])
        if self.output is not None:
            lines.append("Written: " + ", ".join(map(str, self._write(found, config))))
        for line in lines if not self.printing.json else ():
            self.printing.say(line)
        return 0

    def _config(self, dataset: DataSet, model: str, opened: EmbeddedSet) -> dict[str, Any]:
        preprocess = opened.embedder.preprocess
        return {
            "dataset": dataset.name,
            "protocol": dataset.protocol,
            "model": str(model),
            "grid": opened.embedder.grid,
            "input": {"size": preprocess.size} | preprocess.resizing(),
            "storage": self.storage,
            "head": opened.head,
        }

    def _write(self, found: MatcherComparison, config: dict[str, Any]) -> list[Path]:
        from diml.explain.canvas import save_figure
        from diml.files import write_text

        assert self.output is not None
        document = {"unit": "fraction", "config": config} | found.to_dict()
        return [
            write_text(self.output / "comparison.csv", found.to_csv()),
            write_text(self.output / "comparison.json", json_format.dumps(document, indent=1)),
            save_figure(found.draw(), self.output / "comparison.png"),
        ]


COMMAND = CompareCommand


def named_settings(word: str) -> tuple[str, dict[str, str] | None]:
    """The name and the settings of a matcher as written on the command line; None for the paper's.

    Raises:
        ValueError: a setting without a value, or given twice.
    """
    name, colon, text = word.rpartition(":")
    name = name if colon else word
    if not name:
        raise ValueError(f"matchers: need NAME:SETTINGS or SETTINGS, got {word!r}")
    if text == PAPER:
        return name, None
    settings: dict[str, str] = {}
    for part in text.split(",") if text != OWN else ():
        key, equals, value = (piece.strip() for piece in part.partition("="))
        if not (key and equals and value) or key in settings:
            need = "settings such as epsilon=0.02,structural_weight=4, each once"
            raise ValueError(f"matchers: need {need}, or {PAPER} or {OWN}; got {word!r}")
        settings[key] = value
    return name, settings


def matcher_of(settings: dict[str, str] | None, own: Matcher) -> Matcher:
    """The matcher of the settings: others are those of `own`, and None means the paper's."""
    if settings is None:
        return Matcher()
    given = Matcher.from_dict(settings)
    return own.changed(**{name: getattr(given, name) for name in settings})


def _matchers_for(embedder: Embedder, parsed: Sequence[tuple[str, dict[str, str] | None]]) -> dict[str, Matcher]:
    """The matchers by name, checked against the model."""
    matchers = {name: matcher_of(settings, embedder.matcher) for name, settings in parsed}
    for matcher in matchers.values():
        embedder.check_matcher(matcher)
    return matchers


def comparison_table(found: MatcherComparison, title: str, ranks: Sequence[str] = ()) -> ResultTable:
    """The table of a comparison, in percent.

    Args:
        found: the comparison.
        title: what was compared.
        ranks: names of the recalls to show; that of the first rank when none are given.
    """
    from diml.evaluation.tables import metric_name

    main = main_metric(found.metrics)
    shown = [*(ranks or [name for name in found.metrics if name.startswith("recall@")][:1]), main]
    sizes = f"{len(found.queries)} queries, {found.gallery_size} gallery images, K = {found.settings['rerank_at']}"
    caption = (
        "Percent, with 95 % bootstrap intervals over queries; those of differences are paired by query, and where one "
        "contains 0, no difference is shown. s: time for ranking all queries. steps: mean iterations of a plan."
    )
    names = [metric_name(metric) for metric in shown]
    columns = ["matcher", *names, f"{names[-1]}\nminus {found.baseline}", "s", "steps"]
    table = ResultTable(columns, f"{title}: {sizes}", caption)
    for name in found.per_query:
        means = [found.mean(name, metric) for metric in shown]
        change, steps = found.difference(name, main), found.iterations[name]
        table.add(
            name,
            *(Cell.of(mean.value, (mean.low, mean.high), ".2f", ".1f") for mean in means),
            Cell("") if name == found.baseline else Cell.of(change.value, (change.low, change.high), "+.2f", "+.2f"),
            f"{found.seconds[name]:.2f}",
            "" if steps is None else f"{steps:.1f}",
        )
    return table
