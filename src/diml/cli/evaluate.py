"""`diml evaluate`: retrieval on a data set, plain and re-ranked, as a table, CSV and JSON."""

from __future__ import annotations

import json as json_format
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

if TYPE_CHECKING:
    from diml.data import DataSet
    from diml.evaluation import DatasetEvaluation
    from diml.models import Embedder


@dataclass(frozen=True, kw_only=True)
class Evaluate:
    """Evaluate retrieval on a data set: plain cosine ranking (K = 0) against structural re-ranking of the best K.

    For instance:

    diml evaluate orl

    diml evaluate cub200 --data data --model resnet50 --rerank 0 100

    diml evaluate grocery --data shop/grocery --model mobilenetv2_100 tf_efficientnet_lite0 --head whiten

    diml evaluate csv --data mine.csv --model runs/mine --grid 7 --marginals uniform --output runs/ablation
    """

    dataset: Annotated[str, tyro.conf.Positional]
    """Name of the data set; `diml datasets` lists them."""

    data: Path = Path("data")
    """Folder that has the data set inside; for `folder` and `csv`, that folder or file itself."""

    protocol: str | None = None
    """Which of the data set's protocols; its first one when omitted."""

    model: tuple[str, ...] = ("mobilenetv2_100",)
    """One or more: timm names, folders of saved embedders, or checkpoint files of the released code."""

    architecture: str | None = None
    """Backbone of a checkpoint file, for instance resnet50."""

    rerank: tuple[int, ...] = (0, 100)
    """The K to evaluate; 0 is the plain ranking."""

    grid: int | None = None
    """Regions a side: G x G, 1 to 14; by default as the model was saved, else 4."""

    head: Literal["identity", "linear", "whiten"] | None = None
    """What makes embeddings of features; by default what the model was saved with, else `identity`."""

    dim: int | None = None
    """Channels of a `linear` or `whiten` head; by default 128."""

    fit_on: Literal["train", "test"] = "train"
    """Pictures that a `whiten` head is fitted on; no labels are used."""

    resize: Literal["crop", "square"] | None = None
    """`crop`: short side to 256, centre 224; `square`: all of it to 224 x 224. By default the model's own."""

    marginals: Literal["cross_correlation", "uniform"] = "cross_correlation"
    """Mass of each region: by its agreement with the other picture, or the same for all."""

    epsilon: float = 0.05
    """Entropy of the transport plan, in units of cosine."""

    score: Literal["both", "structural", "pooled"] = "both"
    """What to re-rank by; `both` is the sum, as in the paper."""

    without_relevant: Literal["exclude", "miss", "fail"] = "exclude"
    """Queries without a relevant picture: left out and counted apart, counted as misses, or an error."""

    on_bad_picture: Literal["fail", "skip"] = "fail"
    """Unreadable pictures: stop and name the first, or leave them out and name them all."""

    output: Path | None = None
    """Folder for evaluation.csv and evaluation.json."""

    cache: bool = True
    """Keep embeddings by content in the cache folder, so that the same pictures are embedded once."""

    batch_size: int = 64
    """Pictures in one batch."""

    workers: int | None = None
    """Loader processes; chosen by the machine when omitted."""

    device: str = "cpu"
    """Where to compute, for instance cuda."""

    seed: int = 0
    """Of the bootstrap."""

    json: bool = False
    """Print JSON instead of tables."""

    def run(self) -> int:
        """Embed, evaluate, print, write."""
        from diml.evaluation.tables import write_reports

        dataset = open_dataset(self.dataset, self.data, self.protocol)
        found = {name: self._evaluate(name, dataset) for name in self.model}
        reports = {name: evaluation.report for name, evaluation in found.items()}
        config = json_format.loads(json_format.dumps(asdict(self), default=str)) | {"protocol": dataset.protocol}
        if self.json:
            methods = {name: report.to_dict() for name, report in reports.items()}
            print(json_format.dumps({"unit": "fraction", "config": config, "methods": methods}, indent=1))
        else:
            print_evaluation(f"{dataset.name}, {dataset.protocol}", found)
        if self.output is not None:
            written = write_reports(self.output, reports, config)
            if not self.json:
                print("Written: " + ", ".join(str(path) for path in written))
        return 0

    def _evaluate(self, model: str, dataset: DataSet) -> DatasetEvaluation:
        from diml.evaluation import evaluate_dataset

        return evaluate_dataset(
            self._embedder(model, dataset),
            dataset.test,
            rerank=self.rerank,
            score=self.score,
            without_relevant=self.without_relevant,
            seed=self.seed,
            cache=embedding_cache() if self.cache else None,
            batch_size=self.batch_size,
            workers=self.workers,
            on_bad_picture=self.on_bad_picture,
            progress=True,
            marginals=self.marginals,
            epsilon=self.epsilon,
        )

    def _embedder(self, model: str, dataset: DataSet) -> Embedder:
        """Load the model; fit its head where it is one that is fitted."""
        from diml.models import Embedder, load_embedder

        grid: int | Literal["default"] = "default" if self.grid is None else self.grid
        embedder = load_embedder(model, grid=grid, head=self.head, dim=self.dim, architecture=self.architecture)
        if self.resize is not None:
            preprocess = replace(embedder.preprocess, mode=self.resize)
            config = replace(embedder.config, preprocess=preprocess)
            embedder = Embedder(embedder.backbone, embedder.head, config).eval()
        embedder = embedder.to(self.device)
        if self.head == "whiten":
            pictures = dataset.train if self.fit_on == "train" else dataset.test
            if pictures is None:
                raise ValueError(
                    f"--fit-on: {dataset.name} has no training pictures under protocol {dataset.protocol}; "
                    "use --fit-on test, or another --protocol"
                )
            embedder.fit_head(pictures.paths, batch_size=self.batch_size, workers=self.workers, progress=True)
        return embedder


def open_dataset(name: str, data: Path, protocol: str | None) -> DataSet:
    """Load a data set from below `data`; the faces, which are fetched, need not be there."""
    from diml.data import load_dataset, locate_dataset

    fetched = name == "orl" and locate_dataset(name, data) is None
    return load_dataset(name, None if fetched else data, protocol=protocol)


def embedding_cache() -> Path:
    """Where embeddings are kept by content."""
    from diml.assets import cache_folder

    return cache_folder() / "embeddings"


def print_evaluation(title: str, found: dict[str, DatasetEvaluation]) -> None:
    """Print the table, the paired differences, and what was left out."""
    from rich.console import Console

    from diml.evaluation.tables import difference_table, report_table

    console = Console()
    reports = {name: evaluation.report for name, evaluation in found.items()}
    first = next(iter(reports.values()))
    console.print(
        report_table(reports, f"{title}: {len(first.queries)} queries, {first.gallery_size} gallery pictures")
    )
    differences = difference_table(reports)
    if differences is not None:
        console.print(differences)
    for name, evaluation in found.items():
        for picture in evaluation.bad:
            console.print(f"{name}: left out {picture.path}: {picture.reason}", markup=False, soft_wrap=True)
        if len(evaluation.report.without_relevant):
            how = evaluation.report.settings["without_relevant"]
            count = len(evaluation.report.without_relevant)
            console.print(f"{name}: {count} queries have no relevant picture ({how})", markup=False)
