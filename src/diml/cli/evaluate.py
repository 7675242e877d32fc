"""`diml evaluate`: retrieval on a data set, plain and re-ranked, as a table, CSV and JSON."""

from __future__ import annotations

import json as json_format
import warnings
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

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

    diml evaluate runs/orl-margin-0 runs/orl-margin_diml-0 --metrics all
    """

    dataset: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="DATASET | RUN ...")]
    """Name of the data set (`diml datasets` lists them); or folders of runs of one data set, whose best embedders are
    evaluated on the test images of the runs."""

    data: Path | None = None
    """Folder that has the data set inside; for `folder` and `csv`, that folder or file itself. By default `data`, or
    where the runs had it."""

    protocol: str | None = None
    """Which of the data set's protocols; its first one when omitted."""

    model: tuple[str, ...] = ()
    """One or more: timm names, folders of saved embedders, or checkpoint files of the released code. When omitted
    mobilenetv2_100, or the runs."""

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
    """Images that a `whiten` head is fitted on; no labels are used."""

    resize: Literal["crop", "square"] | None = None
    """`crop`: short side to 256, centre 224; `square`: all of it to 224 x 224. By default the model's own."""

    marginals: Literal["cross_correlation", "uniform"] = "cross_correlation"
    """Mass of each region: by its agreement with the other image, or the same for all."""

    epsilon: float = 0.05
    """Entropy of the transport plan, in units of cosine."""

    score: Literal["both", "structural", "pooled"] = "both"
    """What to re-rank by; `both` is the sum, as in the paper."""

    storage: Literal["float32", "float16", "int16", "int8"] = "float32"
    """How regions are kept while they are compared: `int16` is fastest on a CPU (scores change by 1e-5), `int8` takes
    a quarter of the memory."""

    without_relevant: Literal["exclude", "miss", "fail"] = "exclude"
    """Queries without a relevant image: left out and counted apart, counted as misses, or an error."""

    on_bad_image: Literal["fail", "skip"] = "fail"
    """Unreadable images: stop and name the first, or leave them out and name them all."""

    metrics: Literal["standard", "all"] = "standard"
    """`all` adds Recall@1,2,4,8, NMI, F1, variants of mAP, distances within and between classes, and spectral decay."""

    output: Path | None = None
    """Folder for evaluation.csv and evaluation.json; with `--metrics all` metrics.csv besides."""

    cache: bool = True
    """Keep embeddings by content in the cache folder, so that the same images are embedded once."""

    batch_size: int = 64
    """Images in one batch."""

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
        from diml.evaluation.extra_tables import extra_of, print_extra, write_extra
        from diml.evaluation.tables import write_reports

        dataset, models = self._open()
        found = {name: self._evaluate(model, dataset) for name, model in models.items()}
        reports = {name: evaluation.report for name, evaluation in found.items()}
        extra = {name: extra_of(evaluation, self.seed) for name, evaluation in found.items() if self.metrics == "all"}
        more = {"metrics": extra} if extra else {}
        config = self._config(dataset, models)
        if self.json:
            methods = {name: report.to_dict() for name, report in reports.items()}
            print(json_format.dumps({"unit": "fraction", "config": config, "methods": methods} | more, indent=1))
        else:
            print_evaluation(f"{dataset.name}, {dataset.protocol}", found)
            if extra:
                print_extra(reports, extra)
        if self.output is not None:
            written = [*write_reports(self.output, reports, config, more)]
            if extra:
                written.append(write_extra(self.output, extra))
            if not self.json:
                print("Written: " + ", ".join(str(path) for path in written))
        return 0

    def _open(self) -> tuple[DataSet, dict[str, str | Path]]:
        """The images, and the models by the names of their rows."""
        from diml.data import dataset_names

        words = self.dataset
        if len(words) == 1 and (words[0] in dataset_names() or not _like_a_path(words[0])):
            models = self.model or ("mobilenetv2_100",)
            return open_dataset(words[0], self.data or Path("data"), self.protocol), {name: name for name in models}
        if not words or any(word in dataset_names() and not _like_a_path(word) for word in words):
            raise ValueError(
                f"dataset: need the name of one data set, or folders of runs, got {' '.join(words) or 'nothing'}; for "
                "runs on a data set of your choice: diml evaluate DATASET --model RUN ..."
            )
        return self._open_runs(words)

    def _open_runs(self, words: tuple[str, ...]) -> tuple[DataSet, dict[str, str | Path]]:
        from diml.training.runs import read_run, run_names, shared_data

        for name in ("model", "architecture", "protocol", "head", "dim"):
            if getattr(self, name):
                raise ValueError(
                    f"{name}: run folders tell it; leave --{name} away, or: diml evaluate DATASET --model RUN ..."
                )
        runs = [read_run(word) for word in dict.fromkeys(words)]
        for run in runs:
            if not run.finished:
                warnings.warn(f"{run.folder} is not finished; this is its best embedder so far", stacklevel=2)
        models: dict[str, str | Path] = {name: run.folder for name, run in zip(run_names(runs), runs, strict=True)}
        return shared_data(runs, self.data), models

    def _config(self, dataset: DataSet, models: dict[str, str | Path]) -> dict[str, Any]:
        """The settings as plain values, those that were left open filled in."""
        plain: dict[str, Any] = json_format.loads(json_format.dumps(asdict(self), default=str))
        names = [str(model) for model in models.values()]
        filled = {"dataset": dataset.name, "protocol": dataset.protocol, "model": names}
        runs = any(isinstance(model, Path) for model in models.values())
        return plain | filled | ({} if runs or self.data else {"data": "data"}) | ({"runs": names} if runs else {})

    def _evaluate(self, model: str | Path, dataset: DataSet) -> DatasetEvaluation:
        from diml.evaluation import evaluate_dataset

        return evaluate_dataset(
            self._embedder(model, dataset),
            dataset.test,
            rerank=self.rerank,
            score=self.score,
            without_relevant=self.without_relevant,
            seed=self.seed,
            storage=self.storage,
            cache=embedding_cache() if self.cache else None,
            batch_size=self.batch_size,
            workers=self.workers,
            on_bad_image=self.on_bad_image,
            progress=True,
            marginals=self.marginals,
            epsilon=self.epsilon,
        )

    def _embedder(self, model: str | Path, dataset: DataSet) -> Embedder:
        """Load the model; fit its head where it is one that is fitted."""

        words = {"head": self.head, "dim": self.dim, "architecture": self.architecture}
        embedder = open_embedder(model, self.grid, self.resize, **words).to(self.device)
        if self.head == "whiten":
            images = dataset.train if self.fit_on == "train" else dataset.test
            if images is None:
                raise ValueError(
                    f"--fit-on: {dataset.name} has no training images under protocol {dataset.protocol}; "
                    "use --fit-on test, or another --protocol"
                )
            embedder.fit_head(images.paths, batch_size=self.batch_size, workers=self.workers, progress=True)
        return embedder


def _like_a_path(word: str) -> bool:
    """Whether a word means a folder rather than the name of a data set."""
    return Path(word).is_dir() or len(Path(word).parts) > 1


def open_dataset(name: str, data: Path, protocol: str | None) -> DataSet:
    """Load a data set from below `data`; the faces, which are fetched, need not be there."""
    from diml.data import load_dataset, locate_dataset

    fetched = name == "orl" and locate_dataset(name, data) is None
    return load_dataset(name, None if fetched else data, protocol=protocol)


def open_embedder(
    model: str | Path, grid: int | None, resize: Literal["crop", "square"] | None, **options: Any
) -> Embedder:
    """Load a model with the grid and the way of resizing that were asked for, else its own."""
    from diml.models import Embedder, load_embedder

    embedder = load_embedder(model, grid="default" if grid is None else grid, **options)
    if resize is None:
        return embedder
    config = replace(embedder.config, preprocess=replace(embedder.preprocess, mode=resize))
    return Embedder(embedder.backbone, embedder.head, config).eval()


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
    console.print(report_table(reports, f"{title}: {len(first.queries)} queries, {first.gallery_size} gallery images"))
    differences = difference_table(reports)
    if differences is not None:
        console.print(differences)
    for name, evaluation in found.items():
        for image in evaluation.bad:
            console.print(f"{name}: left out {image.path}: {image.reason}", markup=False, soft_wrap=True)
        if len(evaluation.report.without_relevant):
            how = evaluation.report.settings["without_relevant"]
            count = len(evaluation.report.without_relevant)
            console.print(f"{name}: {count} queries have no relevant image ({how})", markup=False)
