"""`diml report`: an evaluation as a page that can be looked into, query by query."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from diml.cli.evaluate import embedding_cache, open_dataset, open_embedder, print_evaluation

if TYPE_CHECKING:
    from diml.data import DataSet


@dataclass(frozen=True, kw_only=True)
class Report:
    """Evaluate a model on a data set and write a page: metrics with intervals, then queries with their hits before and
    after re-ranking, right and wrong marked, each with its explanation; worst failures first.

    For instance:

    diml report mobilenetv2_100 orl

    diml report runs/mine --html mine.html

    diml report mobilenetv2_100 folder --data IMAGES --queries 30 --choose random
    """

    model: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RUN_OR_MODEL")]
    """Folder of a run or of a saved embedder, a timm name, or a checkpoint file of the released code."""

    dataset: Annotated[str | None, tyro.conf.Positional, tyro.conf.arg(metavar="DATASET")] = None
    """Name of the data set (`diml datasets` lists them); of a run its own when omitted."""

    data: Path | None = None
    """Folder that has the data set inside; for `folder` and `csv`, that folder or file itself. By default `data`, or
    where the run had it."""

    protocol: str | None = None
    """Which of the data set's protocols; its first one when omitted."""

    architecture: str | None = None
    """Backbone of a checkpoint file, for instance resnet50."""

    html: Path = Path("report.html")
    """Where to write the page."""

    queries: int = 20
    """How many queries to show."""

    hits: int = 4
    """Best hits of each to show, before and after re-ranking; 1 to 10."""

    choose: Literal["worst", "changed", "random"] = "worst"
    """Which queries: the worst after re-ranking, those that it changed most, or by chance."""

    rerank: int = 100
    """K: how many candidates to re-rank."""

    grid: int | None = None
    """Regions a side: G x G, 1 to 14; by default as the model was saved, else 4."""

    resize: Literal["crop", "square"] | None = None
    """`crop`: short side to 256, centre 224; `square`: all of it to 224 x 224. By default the model's own."""

    marginals: Literal["cross_correlation", "uniform"] = "cross_correlation"
    """Mass of each region: by its agreement with the other image, or the same for all."""

    epsilon: float = 0.05
    """Entropy of the transport plan, in units of cosine."""

    on_bad_image: Literal["fail", "skip"] = "fail"
    """Unreadable images: stop and name the first, or leave them out and name them all."""

    cache: bool = True
    """Keep embeddings by content in the cache folder, so that the same images are embedded once."""

    batch_size: int = 64
    """Images in one batch."""

    workers: int | None = None
    """Loader processes; chosen by the machine when omitted."""

    device: str = "cpu"
    """Where to compute, for instance cuda."""

    seed: int = 0
    """Of the bootstrap, and of queries by chance."""

    def run(self) -> int:
        """Evaluate, print, write the page."""
        from diml.evaluation import evaluate_dataset
        from diml.explain import check_page_name, gallery_report
        from diml.files import write_text

        check_page_name(self.html)
        if self.rerank < 1:
            raise ValueError(f"rerank: need at least 1, got {self.rerank}; the plain ranking is shown beside it anyway")
        dataset = self._dataset()
        embedder = open_embedder(self.model, self.grid, self.resize, architecture=self.architecture).to(self.device)
        found = evaluate_dataset(
            embedder,
            dataset.test,
            rerank=(0, self.rerank),
            seed=self.seed,
            cache=embedding_cache() if self.cache else None,
            batch_size=self.batch_size,
            workers=self.workers,
            on_bad_image=self.on_bad_image,
            progress=True,
            marginals=self.marginals,
            epsilon=self.epsilon,
        )
        page = gallery_report(
            found,
            embedder,
            method=Path(self.model).name,
            rerank=self.rerank,
            queries=self.queries,
            hits=self.hits,
            choose=self.choose,
            seed=self.seed,
            settings=self._settings(dataset),
            marginals=self.marginals,
            epsilon=self.epsilon,
        )
        print_evaluation(f"{dataset.name}, {dataset.protocol}", {Path(self.model).name: found})
        print(f"Written: {write_text(self.html, page)}")
        return 0

    def _dataset(self) -> DataSet:
        """The data set by name, or that of the run."""
        if self.dataset is not None:
            return open_dataset(self.dataset, self.data or Path("data"), self.protocol)
        from diml.training.runs import read_run, shared_data

        if not Path(self.model).is_dir():
            raise ValueError(
                f"dataset: need the name of a data set for the model {self.model!r}; only runs know theirs"
            )
        if self.protocol:
            raise ValueError("protocol: the run tells it; leave --protocol away, or name the data set")
        return shared_data([read_run(self.model)], self.data)

    def _settings(self, dataset: DataSet) -> dict[str, Any]:
        """What the numbers depend on; None where the model's own was taken."""
        names = ("model", "architecture", "grid", "resize", "rerank", "marginals", "epsilon", "seed")
        told = {"dataset": dataset.name, "protocol": dataset.protocol}
        return told | {name: getattr(self, name) for name in names}
