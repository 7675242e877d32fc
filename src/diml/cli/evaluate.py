"""`diml evaluate`: retrieval on a data set, plain and re-ranked, as a table, CSV and JSON."""

from __future__ import annotations

import json as json_format
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from diml.cli.advice import given_flags, is_tunable, next_command, shortfall, shortfall_line, training_words
from diml.cli.options import (
    DEFAULT_MODEL,
    DataFlags,
    DataOptions,
    EmbedderFlags,
    EmbedderOptions,
    FormatFlags,
    FormatOptions,
    HeadFlags,
    HeadOptions,
    LoadingFlags,
    LoadingOptions,
    MatcherFlags,
    MatcherOptions,
    metric_names,
)
from diml.cli.output import left_out_lines, report_tables
from diml.cli.parsing import switch_off
from diml.evaluation.differences import Row
from diml.matching import Matcher

if TYPE_CHECKING:
    from diml.data import DataSet
    from diml.evaluation import DatasetEvaluation, Report


@dataclass(frozen=True, kw_only=True)
class EvaluateCommand:
    """Evaluate retrieval on a data set: plain cosine ranking (K = 0) against structural re-ranking of the best K.

    For instance:

    diml evaluate orl

    diml evaluate cub200 --data data --model resnet50 --rerank-at 0 100

    diml evaluate grocery --data shop/grocery --model mobilenetv2_100 tf_efficientnet_lite0 --format latex

    diml evaluate csv --data mine.csv --model runs/mine --grid 7 --weights uniform --output runs/ablation

    diml evaluate folder --data IMAGES --save models/mine

    diml evaluate runs/orl-margin-0 runs/orl-margin_diml-0 --metrics all
    """

    dataset: Annotated[
        tuple[str, ...],
        tyro.conf.Positional,
        tyro.conf.arg(metavar="DATASET | RUN ...", help_behavior_hint="(required)"),
    ]
    """Name of the data set (`diml datasets` lists them); or folders of runs on one data set, whose best embedders are
    evaluated on the test images of the runs."""

    data: DataFlags = DataOptions()

    model: tuple[str, ...] = ()
    """One or more: timm names, folders of runs or saved embedders, or checkpoint files of the released code. When
    omitted mobilenetv2_100, or the runs."""

    embedder: EmbedderFlags = EmbedderOptions()

    rerank_at: tuple[int, ...] = (0, 100)
    """The K to evaluate; 0 is the plain ranking."""

    matcher: MatcherFlags = MatcherOptions()

    head_options: HeadFlags = HeadOptions()

    storage: Literal["float32", "float16", "int16", "int8", "1kb"] = "float32"
    """How regions are stored while they are compared: `int16` is the fastest on a CPU (scores change by about 1e-5),
    `int8` takes a quarter of the memory, `1kb` 32 bytes a region, with codes fitted on the images and queries as they
    are."""

    without_relevant: Literal["exclude", "miss", "fail"] = "exclude"
    """Queries without a relevant image: excluded and counted apart, counted as misses, or an error."""

    loading: LoadingFlags = LoadingOptions()

    metrics: Literal["standard", "reid", "all"] | None = None
    """`standard`: Recall@1,2,4,8, RP and MAP@R; `reid`: CMC at ranks 1, 5 and 10, mAP by both conventions and mINP, as
    in person re-identification; `all` adds to the standard ones NMI, F1, variants of mAP, distances within and between
    classes, and spectral decay. When omitted, those of the data set's publications, else the standard ones."""

    recall_at: tuple[int, ...] = ()
    """Ranks k of Recall@k, instead of those of the metrics."""

    baseline: str | None = None
    """Row of the table that all others are compared with, as the table writes it, for instance "resnet50 + DIML (100)".
    When omitted, re-ranked is compared with plain, and every model with the first; evaluation.json and
    differences.csv have the difference of any two rows."""

    copies: Annotated[
        bool,
        switch_off(
            "Do not look for copies. By default the queries that have an exact or near copy in the gallery are "
            "counted, with R@1 without copies, for which images are read once more at a small size."
        ),
    ] = True

    output: Path | None = None
    """Folder for evaluation.csv, evaluation.json and differences.csv, and metrics.csv with `--metrics all`."""

    save: Path | None = None
    """Folder to save the embedder to, with its fitted head and the matcher that was used: a model for all other
    commands."""

    seed: int = 0
    """Of the bootstrap."""

    printing: FormatFlags = FormatOptions()

    def run(self) -> int:
        """Embed, evaluate, print, write."""
        from diml.evaluation.copies import find_copies
        from diml.evaluation.tables import write_extra, write_reports
        from diml.files import require_writable
        from diml.models.folder import require_savable

        self.printing.check()
        if self.output is not None:  # known before the work, not after
            require_writable(self.output)
        dataset, models = self._open()
        if self.metrics == "all" and (dataset.test.judgements is not None or dataset.test.draws):
            raise ValueError(
                f"metrics: `all` needs classes and one gallery, and {dataset.name} has "
                f"{'judgements' if dataset.test.judgements is not None else 'drawn galleries'}; use `standard`"
            )
        self._check_baseline(models)
        if self.save is not None:
            if len(models) > 1:
                raise ValueError(f"save: need one model to save, got {', '.join(models)}")
            require_savable(self.save)
        found = {name: self._evaluate(name, model, dataset) for name, model in models.items()}
        extra = self._extra(found)
        copies = {name: find_copies(one, progress=True) for name, one in found.items()} if self.copies else {}
        advice = self._advice(dataset, models, found)
        more: dict[str, Any] = {"metrics": extra} if extra else {}
        if copies:
            more["copies"] = {name: one.to_dict() for name, one in copies.items()}
        more["advice"] = {name: command for name, (_, command) in advice.items()}
        config = self._config(dataset, models)
        self._print(f"{dataset.name}, {dataset.protocol}", found, extra, config, more)
        for name, one in copies.items():
            self._say(f"{name}: {one.line()}" if len(copies) > 1 else one.line())
        if self.output is not None:
            written = write_reports(self.output, _reports(found), config, more)
            if extra:
                written.append(write_extra(self.output, extra))
            self._say("Written: " + ", ".join(str(path) for path in written))
        if self.save is not None:
            self._say(f"Saved: {self.save}")
        for line, command in advice.values():
            self._say(f"{line} Next, try:\n  {command}")
        return 0

    def _print(
        self,
        title: str,
        found: dict[str, DatasetEvaluation],
        extra: dict[str, dict[str, float]],
        config: dict[str, Any],
        more: dict[str, Any],
    ) -> None:
        """The tables, or the document, on standard output; what was left out."""
        from diml.evaluation.tables import (
            csv_lines,
            csv_text,
            difference_records,
            extra_table,
            recall_table,
        )

        reports = _reports(found)
        if self.printing.json:
            document = {"unit": "fraction", "config": config}
            document |= {"methods": {name: report.to_dict() for name, report in reports.items()}}
            print(json_format.dumps(document | {"differences": difference_records(reports)} | more, indent=1))
        elif self.printing.format == "csv":
            print(csv_text(csv_lines(reports)), end="")
        else:
            tables = report_tables(title, reports, self.baseline)
            self.printing.show([*tables, recall_table(reports), extra_table(extra)] if extra else tables)
        for line in left_out_lines(found):
            self._say(line)

    def _say(self, line: str) -> None:
        """Print a line for people, but not beside JSON."""
        if not self.printing.json:
            self.printing.say(line)

    def _check_baseline(self, models: Mapping[str, str | Path]) -> None:
        """Raise before anything is embedded where no row will have the name of the baseline."""
        rows = [str(Row(name, k)) for name in models for k in dict.fromkeys(self.rerank_at)]
        if self.baseline is not None and self.baseline not in rows:
            raise ValueError(f"baseline: need a row of the table, {' | '.join(rows)}; got {self.baseline!r}")

    def _extra(self, found: Mapping[str, DatasetEvaluation]) -> dict[str, dict[str, float]]:
        """The further metrics of `--metrics all`."""
        from diml.evaluation.extra import extra_metrics

        extra: dict[str, dict[str, float]] = {}
        for name, evaluation in found.items() if self.metrics == "all" else ():
            images = evaluation.images
            sides = {"queries": images.queries, "gallery": images.gallery, "cameras": images.cameras}
            extra[name] = extra_metrics(evaluation.regions, images.labels, seed=self.seed, **sides)
        return extra

    def _advice(
        self, dataset: DataSet, models: Mapping[str, str | Path], found: Mapping[str, DatasetEvaluation]
    ) -> dict[str, tuple[str, str]]:
        """For each model whose re-ranking shows no gain: what the interval says, and the next command to try."""
        from diml.models.zoo import is_backbone

        advice = {}
        for name, evaluation in found.items():
            lacking = shortfall(evaluation.report)
            if lacking is None:
                continue
            model, run = str(models[name]), isinstance(models[name], Path)
            named = [] if run else ["--model", model]
            head = evaluation.report.settings["head"]["name"]
            command = next_command(
                model if run else dataset.name,
                [*given_flags(self.data), *named, *given_flags(self.embedder), *given_flags(self.loading)],
                given_flags(self.head_options),
                bare=not run and is_backbone(model) and _could_whiten(evaluation),
                paper=evaluation.matcher == Matcher(),
                tunable=is_tunable(dataset),
                training=None
                if run or dataset.train is None
                else training_words(dataset.name, self.data, model, self.embedder, self.loading, head=head),
            )
            advice[name] = (shortfall_line(name, lacking), command)
        return advice

    def _open(self) -> tuple[DataSet, dict[str, str | Path]]:
        """The data set, and the models by the names of their rows."""
        from diml.data import dataset_names

        words = self.dataset
        if len(words) == 1 and (words[0] in dataset_names() or not _like_a_path(words[0])):
            return self.data.open(words[0]), {name: name for name in self.model or (DEFAULT_MODEL,)}
        if not words or any(word in dataset_names() and not _like_a_path(word) for word in words):
            raise ValueError(
                f"dataset: need the name of one data set, or folders of runs, got {' '.join(words) or 'nothing'}; to "
                "evaluate runs on another data set: diml evaluate DATASET --model RUN ..."
            )
        return self._open_runs(words)

    def _open_runs(self, words: tuple[str, ...]) -> tuple[DataSet, dict[str, str | Path]]:
        from diml.training.runs import read_run, run_names, shared_data

        given = {"model": self.model, "architecture": self.embedder.architecture, "protocol": self.data.protocol}
        for name, value in (given | {"head": self.head_options.head, "dim": self.head_options.dim}).items():
            if value:
                raise ValueError(f"{name}: set by the run; omit --{name}, or: diml evaluate DATASET --model RUN ...")
        runs = [read_run(word) for word in dict.fromkeys(words)]
        for run in runs:
            if not run.finished:
                warnings.warn(f"{run.folder} is not finished; evaluating its best embedder so far", stacklevel=2)
        models: dict[str, str | Path] = {name: run.folder for name, run in zip(run_names(runs), runs, strict=True)}
        return shared_data(runs, self.data.data), models

    def _config(self, dataset: DataSet, models: dict[str, str | Path]) -> dict[str, Any]:
        """The settings as plain values, with what was left open filled in; the matcher stands in each report."""
        plain: dict[str, Any] = json_format.loads(json_format.dumps(asdict(self), default=str))
        for group in ("data", "embedder", "head_options", "loading", "printing"):
            plain |= plain.pop(group)
        plain |= {
            "matcher": {
                name: str(value) if value == float("inf") else value for name, value in plain["matcher"].items()
            }
        }
        names = [str(model) for model in models.values()]
        filled = {"dataset": dataset.name, "protocol": dataset.protocol, "model": names}
        runs = any(isinstance(model, Path) for model in models.values())
        data = {} if runs or self.data.data else {"data": "data"}
        return plain | filled | data | ({"runs": names} if runs else {})

    def _evaluate(self, name: str, model: str | Path, dataset: DataSet) -> DatasetEvaluation:
        from diml.evaluation import evaluate_dataset

        opened = self.head_options.embed(model, dataset, self.embedder, self.loading, check=self.matcher.for_model)
        own = opened.embedder.matcher
        for line in (opened.notice, self.matcher.notice(own)):
            if line is not None:
                self._say(f"{name}: {line}")
        matcher = self.matcher.applied_to(own)
        found = evaluate_dataset(
            opened.embedder,
            dataset.test,
            matcher=matcher,
            rerank_at=self.rerank_at,
            metrics=metric_names(dataset, self.metrics, self.recall_at),
            without_relevant=self.without_relevant,
            seed=self.seed,
            storage=self.storage,
            embedded=opened.embedded,
            progress=True,
        )
        if self.save is not None:
            opened.embedder.with_settings(matcher=matcher).save(self.save)
        return replace(found, report=replace(found.report, settings=found.report.settings | {"head": opened.head}))


COMMAND = EvaluateCommand


def _like_a_path(word: str) -> bool:
    """Whether a word means a folder rather than the name of a data set."""
    return Path(word).is_dir() or len(Path(word).parts) > 1


def _could_whiten(evaluation: DatasetEvaluation) -> bool:
    """Whether features were compared as they are, and there are regions enough to fit a whitening on."""
    from diml.models.loading import WHITEN_DIM

    regions, head = evaluation.regions, evaluation.report.settings["head"]["name"]
    return bool(head == "identity" and len(regions) * regions.num_regions >= min(WHITEN_DIM, regions.dim))


def _reports(found: Mapping[str, DatasetEvaluation]) -> dict[str, Report]:
    return {name: evaluation.report for name, evaluation in found.items()}
