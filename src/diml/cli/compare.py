"""`diml compare`: settings of the matcher against each other on one data set, paired by query."""

from __future__ import annotations

import json as json_format
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

import tyro

from diml.cli.options import (
    DataFlags,
    DataOptions,
    HeadFlags,
    HeadOptions,
    LoadingFlags,
    LoadingOptions,
    ModelFlags,
    ModelOptions,
    dataset_or_run,
)
from diml.matching import Matcher

if TYPE_CHECKING:
    from rich.table import Table

    from diml.evaluation.compare import MatcherComparison

#: The matcher that the model was saved with.
OWN: Final = "own"
#: The setting of the paper, which is the default of `Matcher`.
PAPER: Final = "paper"
#: Columns of the printed table.
_SHOWN: Final = {"recall@1": "R@1", "map@r": "MAP@R"}


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

    storage: Literal["float32", "float16", "int16", "int8"] = "float32"
    """How regions are stored while they are compared."""

    without_relevant: Literal["exclude", "miss", "fail"] = "exclude"
    """Queries without a relevant image: excluded and counted apart, counted as misses, or an error."""

    loading: LoadingFlags = LoadingOptions()

    resamples: int = 1000
    """Bootstrap resamples of the 95 % intervals."""

    seed: int = 0
    """Of the bootstrap."""

    output: Path | None = None
    """Folder for comparison.csv, comparison.json and comparison.png."""

    json: bool = False
    """Print JSON instead of a table."""

    def run(self) -> int:
        """Embed once, rank by every matcher, print, write."""
        from diml.evaluation.compare import compare_matchers
        from diml.evaluation.evaluate import embed_images, stored_as

        parsed = [named_settings(word) for word in self.matchers]  # before anything is loaded
        for _, settings in parsed:
            Matcher.from_dict(settings or {})
        dataset, model = dataset_or_run(self.dataset, self.data, self.model, "compare")
        embedder = self.head_options.load(model, dataset, self.model, self.loading)
        matchers = {name: matcher_of(settings, embedder.matcher) for name, settings in parsed}
        if len(matchers) != len(parsed):
            raise ValueError(f"matchers: need every name once, got {' '.join(self.matchers)}")
        embedded, images = embed_images(embedder, dataset.test, progress=True, **self.loading.arguments())
        found = compare_matchers(
            stored_as(embedded.regions, self.storage),
            images.labels,
            matchers,
            neighbours=self.neighbours,
            baseline=self.baseline,
            rerank_at=self.rerank_at,
            queries=images.queries,
            gallery=images.gallery,
            cameras=images.cameras,
            judgements=images.judgements,
            without_relevant=self.without_relevant,
            resamples=self.resamples,
            seed=self.seed,
            progress=True,
        )
        config = self._config(dataset.name, dataset.protocol, model, embedder.grid)
        if self.json:
            print(json_format.dumps({"unit": "fraction", "config": config} | found.to_dict(), indent=1))
        else:
            self._print(found, f"{dataset.name}, {dataset.protocol}", len(embedded.bad))
        if self.output is not None:
            written = self._write(found, config)
            if not self.json:
                print("Written: " + ", ".join(str(path) for path in written))
        return 0

    def _config(self, dataset: str, protocol: str, model: str, grid: int | None) -> dict[str, Any]:
        head = {name: getattr(self.head_options, name) for name in ("head", "dim", "fit_on")}
        return {
            "dataset": dataset,
            "protocol": protocol,
            "model": str(model),
            "grid": grid,
            "storage": self.storage,
        } | head

    def _print(self, found: MatcherComparison, title: str, bad: int) -> None:
        from rich.console import Console

        console = Console()
        console.print(comparison_table(found, title))
        if bad:
            console.print(f"{bad} unreadable images left out; `diml evaluate` names them")

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
    return replace(own, **{name: getattr(given, name) for name in settings})


def comparison_table(found: MatcherComparison, title: str) -> Table:
    """The table of a comparison, in percent."""
    from rich.table import Table
    from rich.text import Text

    sizes = f"{len(found.queries)} queries, {found.gallery_size} gallery images, K = {found.settings['rerank_at']}"
    caption = (
        "Percent; second line: 95 % bootstrap interval over queries, of the difference paired by query; where it "
        "contains 0, no difference is shown. s: time for ranking all queries. steps: mean iterations of a plan."
    )
    table = Table(
        title=f"{title}: {sizes}", title_justify="left", caption=caption, caption_justify="left", expand=False
    )
    table.add_column("matcher", min_width=12, overflow="fold")
    for column in _SHOWN.values():
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column(f"MAP@R minus {found.baseline}", justify="right", min_width=12)
    for column in ("s", "steps"):
        table.add_column(column, justify="right", no_wrap=True)
    for name in found.per_query:
        cells = []
        for metric in _SHOWN:
            mean = found.mean(name, metric)
            cells.append(Text.assemble(f"{100 * mean.value:.2f}", "\n", _bounds(mean.low, mean.high, ".1f")))
        change = found.difference(name, "map@r")
        own = name == found.baseline
        cells.append(
            Text("") if own else Text.assemble(f"{100 * change.value:+.2f}", "\n", _bounds(*change[1:], "+.2f"))
        )
        steps = found.iterations[name]
        table.add_row(Text(name), *cells, f"{found.seconds[name]:.2f}", "" if steps is None else f"{steps:.1f}")
    return table


def _bounds(low: float, high: float, form: str) -> tuple[str, str]:
    return f"{format(100 * low, form)}..{format(100 * high, form)}", "dim"
