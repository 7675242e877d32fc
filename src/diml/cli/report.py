"""`diml report`: an evaluation as an interactive page, query by query."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from diml.cli.options import (
    DataFlags,
    DataOptions,
    EmbedderFlags,
    EmbedderOptions,
    HeadFlags,
    HeadOptions,
    LoadingFlags,
    LoadingOptions,
    MatcherFlags,
    MatcherOptions,
)
from diml.cli.output import print_evaluation

if TYPE_CHECKING:
    from diml.data import DataSet


@dataclass(frozen=True, kw_only=True)
class ReportCommand:
    """Evaluate a model on a data set and write an interactive page: metrics with intervals, then queries with their
    hits before and after re-ranking, marked right or wrong and explained; worst failures first.

    For instance:

    diml report mobilenetv2_100 orl

    diml report runs/mine --html mine.html

    diml report mobilenetv2_100 folder --data IMAGES --queries 30 --choose random
    """

    model: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RUN_OR_MODEL")]
    """Folder of a run or of a saved embedder, a timm name, or a checkpoint file of the released code."""

    dataset: Annotated[str | None, tyro.conf.Positional, tyro.conf.arg(metavar="DATASET")] = None
    """Name of the data set (`diml datasets` lists them); for a run its own when omitted."""

    data: DataFlags = DataOptions()

    embedder: EmbedderFlags = EmbedderOptions()

    head_options: HeadFlags = HeadOptions()

    html: Path = Path("report.html")
    """Where to write the page."""

    queries: int = 20
    """Number of queries to display."""

    hits: int = 4
    """Number of best hits of each to display, before and after re-ranking; 1 to 10."""

    choose: Literal["worst", "changed", "random"] = "worst"
    """Which queries: the worst after re-ranking, those that it changed most, or a random sample."""

    rerank_at: int = 100
    """K: the number of candidates to re-rank."""

    matcher: MatcherFlags = MatcherOptions()

    loading: LoadingFlags = LoadingOptions()

    calibration: Path | None = None
    """Folder or file of a calibration (`diml calibrate`), which gives each hit its probability; by default that of the
    model, if it fits. It should be of other images than these."""

    false_accept_rate: float = 0.05
    """Share of the queries missing from the gallery that may be taken to be there, as a fraction."""

    seed: int = 0
    """Of the bootstrap, and of random queries."""

    def run(self) -> int:
        """Evaluate, print, write the page."""
        from diml.calibration.finding import find_calibration
        from diml.evaluation import evaluate_dataset
        from diml.explain import evaluation_page
        from diml.explain.html import check_page_name
        from diml.files import require_writable_file, write_text

        check_page_name(self.html)
        if not 0 < self.false_accept_rate < 1:
            raise ValueError(f"false_accept_rate: need a fraction in (0, 1), got {self.false_accept_rate}; 0.01 is 1 %")
        if self.rerank_at < 1:
            raise ValueError(f"rerank_at: need at least 1, got {self.rerank_at}; the plain ranking is always included")
        require_writable_file(self.html)  # known before the work, not after
        dataset = self._dataset().require_classes()
        images = dataset.test.first_draw()
        opened = self.head_options.embed(
            self.model, dataset, self.embedder, self.loading, images, check=self.matcher.for_model
        )
        embedder = opened.embedder
        matcher = self.matcher.applied_to(embedder.matcher)
        calibration = find_calibration(
            [self.model], fingerprint=embedder.fingerprint(), matcher=matcher, named=self.calibration
        )
        for line in (opened.notice, self.matcher.notice(embedder.matcher), calibration.notice):
            if line:
                print(line, file=sys.stderr)
        found = evaluate_dataset(
            embedder,
            images,
            matcher=matcher,
            rerank_at=(0, self.rerank_at),
            seed=self.seed,
            embedded=opened.embedded,
            progress=True,
        )
        method = Path(self.model).name
        page = evaluation_page(
            found,
            embedder,
            method=method,
            rerank_at=self.rerank_at,
            queries=self.queries,
            hits=self.hits,
            choose=self.choose,
            seed=self.seed,
            settings=self._settings(dataset) | {"head": opened.head["name"]},
            calibrator=calibration.calibrator,
            false_accept_rate=self.false_accept_rate,
        )
        print_evaluation(f"{dataset.name}, {dataset.protocol}", {method: found})
        print(f"Written: {write_text(self.html, page)}")
        return 0

    def _dataset(self) -> DataSet:
        """The data set that was named, or that of the run."""
        if self.dataset is not None:
            return self.data.open(self.dataset)
        from diml.training.runs import read_run, shared_data

        if not Path(self.model).is_dir():
            raise ValueError(
                f"dataset: need the name of a data set for the model {self.model!r}; only runs know theirs"
            )
        if self.data.protocol:
            raise ValueError("protocol: set by the run; omit --protocol, or name the data set")
        return shared_data([read_run(self.model)], self.data.data)

    def _settings(self, dataset: DataSet) -> dict[str, Any]:
        """What the numbers depend on besides the matcher; None where the model's own setting applies."""
        own = {name: getattr(self, name) for name in ("model", "rerank_at", "seed")}
        return {"dataset": dataset.name, "protocol": dataset.protocol} | own | self.embedder.settings()


COMMAND = ReportCommand
