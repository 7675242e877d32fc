"""Sweeps: every combination of settings in a file trained with every seed, and one table of their results.

Each run has a folder of its own, and the folders alone tell what is finished: a sweep that was stopped or killed
continues where it was.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import os
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from rich.table import Table
from rich.text import Text

from diml.checksums import unsealed
from diml.data.registry import dataset_info
from diml.documents import read_json, read_yaml
from diml.evaluation.tables import SHOWN, row_name
from diml.files import InUseError, only_user, write_text
from diml.spelling import did_you_mean, shown
from diml.training.config import TrainConfig, checked_settings
from diml.training.logs import RECORDS, read_records

CAPTION: Final = "Percent, mean over seeds; second line: minimum..maximum."
GAINS: Final = "Re-ranked minus plain, percentage points, paired by seed"

_KEYS: Final = ("output", "base", "runs", "seeds", "baseline")
_BASELINE_KEYS: Final = (
    *("model", "head", "dim", "size", "grid", "pretrained", "matcher"),
    *("weights_file", "weights_sha256"),
)

#: Settings that are common to all runs, as their results are in one table, and where they belong.
_SHARED: Final = dict.fromkeys(("dataset", "data", "protocol"), "it is common to all runs: see `base`")

#: Settings that the sweep determines for each run.
_OWN: Final = {
    "seed": "each combination is trained with all `seeds`, at the top of the file",
    "output": "each run has its own folder in `output`, at the top of the file",
}

#: Settings that may differ between a finished run and the file, as the results do not depend on them.
_FREE: Final = {"output", "data", "workers", "device", "checkpoint_every", "on_bad_image", "weights_file", "loggers"}


@dataclass(frozen=True, kw_only=True)
class Baseline:
    """A frozen backbone, evaluated without a head or with one that is fitted without labels."""

    model: str
    head: Literal["identity", "whiten"]
    dim: int | None
    size: int | None
    grid: int
    pretrained: bool
    weights_sha256: str | None

    def __post_init__(self) -> None:
        if self.head not in ("identity", "whiten"):
            raise ValueError(f"head: need identity or whiten for a frozen baseline, got {shown(self.head)}")


@dataclass(frozen=True, kw_only=True)
class Job:
    """One unit of work: a training with one seed, or the evaluation of a baseline.

    Args:
        name: name of the combination of settings or of the baseline; its row in the table.
        config: of the training; for a baseline, the source of its images, K and matcher.
        baseline: the model to evaluate without training; None for a training.
    """

    name: str
    config: TrainConfig
    baseline: Baseline | None = None

    @property
    def title(self) -> str:
        """Its name in messages."""
        return f"{self.name}, seed {self.config.seed}" if self.baseline is None else f"baseline {self.name}"

    @property
    def settings(self) -> dict[str, Any]:
        """The settings that its results depend on, as in its `evaluation.json`."""
        values = {name: value for name, value in self.config.to_dict().items() if name not in _FREE}
        if self.baseline is not None:
            values = {name: values[name] for name in ("dataset", "protocol", "rerank_at", "matcher")}
            values |= dataclasses.asdict(self.baseline)
        plain: dict[str, Any] = json.loads(json.dumps(values))
        return plain

    def report(self) -> dict[str, Any] | None:
        """Its `evaluation.json`; None if it is not finished, was made with other settings, or is damaged (warns)."""
        path = self.config.folder / "evaluation.json"
        if not path.is_file():
            return None
        try:
            whole = unsealed(read_json(path), str(path), "the run is tested again")
            document = _checked_report(whole, path)
        except (OSError, ValueError) as error:
            warnings.warn(f"{error}; {self.title} counts as unfinished", stacklevel=2)
            return None
        # What a report of an earlier version does not name was not set.
        same = all(document["config"].get(name) == value for name, value in self.settings.items())
        if not same:
            return None
        read_records(path.with_name(RECORDS))  # names damage; the results do not depend on it
        return document


def _trained(document: Mapping[str, Any]) -> dict[str, Any]:
    """The report of the trained network, or of a baseline; the network before training may stand before it."""
    trained: dict[str, Any] = [*document["methods"].values()][-1]
    return trained


def _checked_report(document: Any, path: Path) -> dict[str, Any]:
    """The content of an `evaluation.json` with all that a table of results needs; ValueError where it lacks any."""
    try:
        measured = _trained(document)
        rows = {int(row["rerank_at"]): [float(row[metric]) for metric in SHOWN] for row in measured["rows"]}
        complete = 0 in rows and all(int(measured[name]) >= 0 for name in ("queries", "gallery"))
        complete = complete and isinstance(document["config"], dict)
    except (KeyError, TypeError, AttributeError, IndexError, OverflowError) as error:
        raise ValueError(f"{path}: not a complete report ({type(error).__name__}: {error})") from error
    if not complete:
        raise ValueError(f"{path}: not a complete report (no plain ranking, or no settings)")
    checked: dict[str, Any] = document
    return checked


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """The content of a sweep file: all jobs, in order, and their common folder."""

    output: Path
    jobs: tuple[Job, ...]
    seeds: tuple[int, ...]


def read_sweep(path: str | Path) -> Sweep:
    """Read a sweep file and check all of its runs before anything is trained.

    Args:
        path: YAML with `base` (settings of all runs, including the data set), `runs` (name -> further settings, which
            override those of `base`, under `matcher` key by key), `seeds`, `output`, and optionally `baseline` (name ->
            model, head, dim, size, grid, pretrained, weights_file, weights_sha256, matcher). Paths are relative to the
            working folder.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: no YAML, an unknown key (the nearest known one is named), or a value of another type or range.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"sweep: no file {path}")
    values = _mapping(read_yaml(path), f"{path}")
    _known(values, _KEYS, str(path))
    base = _settings(values.get("base"), f"{path}: base", disallowed=_OWN)
    if "dataset" not in base:
        raise ValueError(f"{path}: base: need the name of a data set, for instance `dataset: orl`")
    try:
        dataset_info(base["dataset"])
    except ValueError as error:
        raise ValueError(f"{path}: base: dataset: {error}") from error
    output = Path(_text(values.get("output", f"runs/{path.stem}"), f"{path}: output"))
    seeds = _seeds(values.get("seeds", [0]), f"{path}: seeds")
    runs = _mapping(values.get("runs", {}), f"{path}: runs")
    baselines = _mapping(values.get("baseline", {}), f"{path}: baseline")
    recorded = _Recorder()
    jobs = (
        *_baseline_jobs(baselines, base, output, recorded, f"{path}: baseline"),
        *_training_jobs(runs, base, output, seeds, recorded, f"{path}: runs"),
    )
    if not jobs:
        raise ValueError(f"{path}: need at least one run or baseline, for instance `runs: {{margin: {{}}}}`")
    folders = [job.config.folder for job in jobs]
    repeated = next((folder for folder in folders if folders.count(folder) > 1), None)
    if repeated is not None:
        raise ValueError(f"{path}: two runs would be written to {repeated}; rename one of them")
    return Sweep(output=output, jobs=jobs, seeds=seeds)


def _words(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


def run_sweep(
    sweep: Sweep,
    *,
    say: Callable[[str], None],
    describe: Callable[[Exception], str] = _words,
    progress: bool = False,
) -> dict[str, str]:
    """Do the unfinished jobs one after the other; runs that were begun continue from their last checkpoint.

    Args:
        sweep: the jobs.
        say: called with one line of text before each job.
        describe: the words for an error of a job.
        progress: show the progress of each job.

    Returns:
        Title -> error, for the jobs that failed; the others are done nevertheless.

    Raises:
        ValueError: started by torchrun with several processes.
        InUseError: another process is doing the jobs of this folder.
        KeyboardInterrupt: on Ctrl-C; the current run is saved by `train`.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ValueError("sweep: uses one process; for several, start each run with: torchrun ... -m diml train ...")
    with only_user(sweep.output, "output"):
        return _run_jobs(sweep.jobs, say, describe, progress)


def _run_jobs(
    jobs: Sequence[Job], say: Callable[[str], None], describe: Callable[[Exception], str], progress: bool
) -> dict[str, str]:
    failed: dict[str, str] = {}
    for number, job in enumerate(jobs, 1):
        head = f"[{number}/{len(jobs)}] {job.title}"
        if job.report() is not None:
            say(f"{head}: already finished, in {job.config.folder}")
            continue
        begun = job.baseline is None and (job.config.folder / "config.yaml").is_file()
        say(f"{head}: {'resuming' if begun else 'starting'}, in {job.config.folder}")
        try:
            _do(job, resume=begun, progress=progress)
        except Exception as error:  # reported; the other runs do not depend on this one
            in_use = isinstance(error, InUseError)
            hint = f" (to start it again, remove {job.config.folder})" if begun and not in_use else ""
            failed[job.title] = f"{describe(error)}{hint}"
            say(f"{head}: FAILED: {failed[job.title]}")
    return failed


def _do(job: Job, *, resume: bool, progress: bool) -> None:
    if job.baseline is not None:
        _evaluate_baseline(job, job.baseline, progress)
        return
    from diml.training.loop import train

    train(job.config, resume=resume, progress=progress)


def _evaluate_baseline(job: Job, baseline: Baseline, progress: bool) -> None:
    """Evaluate a frozen backbone on the test images of the runs, like the final test of a run."""
    from diml.distributed import process_group
    from diml.evaluation import evaluate_dataset
    from diml.evaluation.tables import write_reports
    from diml.models import load_embedder
    from diml.models.zoo import default_preprocess
    from diml.training.checks import with_weights_recorded
    from diml.training.components import resized
    from diml.training.split import load_training_data

    config = job.config
    loading: dict[str, Any] = {"batch_size": config.evaluation_batch_size, "workers": config.workers}
    loading |= {"on_bad_image": config.on_bad_image, "progress": progress}
    data = load_training_data(config)
    preprocess = default_preprocess(baseline.model)
    embedder = load_embedder(
        baseline.model,
        grid=baseline.grid,
        head=baseline.head,
        dim=baseline.dim,
        pretrained=baseline.pretrained,
        weights_file=with_weights_recorded(config).weights_file,
        preprocess=preprocess if baseline.size is None else resized(preprocess, baseline.size),
        matcher=config.matcher,
    )
    with process_group(config.device) as processes:
        embedder = embedder.to(processes.device)
        if baseline.head == "whiten":
            if data.train is None:
                raise ValueError(f"head: whiten is fitted on training images, and {data.name} has none")
            embedder.fit_head(data.train.images, **loading)
        found = evaluate_dataset(embedder, data.test, rerank_at=sorted({0, config.rerank_at}), **loading)
    write_reports(config.folder, {job.name: found.report}, job.settings)


class _Recorder:
    """Adds the sha256 of its file of weights to a configuration, reading each file once."""

    def __init__(self) -> None:
        self._known: dict[Path, str | None] = {}

    def __call__(self, config: TrainConfig) -> TrainConfig:
        from diml.training.checks import with_weights_recorded

        path = config.weights_file
        if path is None or config.weights_sha256 is not None:  # with its sha256, results can be tabulated without it
            return with_weights_recorded(config, needed=False)
        if path not in self._known:
            self._known[path] = with_weights_recorded(config).weights_sha256
        return dataclasses.replace(config, weights_sha256=self._known[path])


def _baseline_jobs(
    baselines: Mapping[str, Any], base: dict[str, Any], output: Path, recorded: _Recorder, what: str
) -> Iterator[Job]:
    for name, given in baselines.items():
        values = _mapping(given or {}, f"{what}: {name}")
        _known(values, _BASELINE_KEYS, f"{what}: {name}")
        plain = {key: value for key, value in values.items() if key != "head"}
        try:
            config = recorded(TrainConfig.from_dict(base, plain, {"output": output / _name(name)}))
            baseline = Baseline(
                model=config.model,
                head=values.get("head", "identity"),
                dim=config.dim if values.get("head") == "whiten" else None,
                size=config.size,
                grid=config.grid,
                pretrained=config.pretrained,
                weights_sha256=config.weights_sha256,
            )
        except (ValueError, FileNotFoundError) as error:
            raise ValueError(f"{what}: {name}: {error}") from error
        yield Job(name=name, config=config, baseline=baseline)


def _training_jobs(
    runs: Mapping[str, Any],
    base: dict[str, Any],
    output: Path,
    seeds: tuple[int, ...],
    recorded: _Recorder,
    what: str,
) -> Iterator[Job]:
    for name, given in runs.items():
        own = _settings(given, f"{what}: {name}", disallowed=_OWN | _SHARED)
        for seed in seeds:
            try:
                folder = output / f"{_name(name)}-{seed}"
                config = recorded(TrainConfig.from_dict(base, own, {"seed": seed, "output": folder}))
                _check(config)
            except (ValueError, FileNotFoundError) as error:
                raise ValueError(f"{what}: {name}: {error}") from error
            yield Job(name=name, config=config)


def _check(config: TrainConfig) -> None:
    """Report a wrong name, option or combination before hours of other runs."""
    import torch

    from diml.training.components import check_names

    with torch.random.fork_rng():
        check_names(config)


def _settings(values: Any, what: str, *, disallowed: Mapping[str, str]) -> dict[str, Any]:
    values = _mapping(values or {}, what)
    for key, why in disallowed.items():
        if key in values:
            raise ValueError(f"{what}: {key} is not allowed here; {why}")
    return checked_settings(values, what)


def _mapping(values: Any, what: str) -> dict[str, Any]:
    if not isinstance(values, dict):
        raise ValueError(f"{what}: need lines `name: value`, got {shown(values)}")  # noqa: TRY004
    return values


def _known(values: Mapping[str, Any], keys: tuple[str, ...], what: str) -> None:
    for key in values:
        if key not in keys:
            raise ValueError(f"{what}: unknown key {shown(key)}; {did_you_mean(str(key), keys)}")


def _seeds(values: Any, what: str) -> tuple[int, ...]:
    good = isinstance(values, list) and values and all(type(seed) is int and seed >= 0 for seed in values)
    if not good or len(set(values)) < len(values):
        raise ValueError(f"{what}: need a list of distinct integers >= 0, for instance [0, 1], got {shown(values)}")
    return tuple(values)


def _text(value: Any, what: str) -> str:
    if not isinstance(value, str) or not value:
        raise ValueError(f"{what}: need a path, got {shown(value)}")
    return value


def _name(name: Any) -> str:
    """A name that is part of the name of a folder."""
    if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
        raise ValueError(f"need a name of letters, digits, `.`, `_` and `-`, as it names a folder; got {shown(name)}")
    return name


@dataclass(frozen=True, kw_only=True)
class Spread:
    """The values of one metric over seeds, fractions, in the order of the seeds."""

    values: tuple[float, ...]

    @property
    def mean(self) -> float:
        """Mean over seeds."""
        return sum(self.values) / len(self.values)

    def text(self, sign: str = "") -> str:
        """In percent: the mean, and minimum..maximum if there are several seeds."""
        mean = f"{100 * self.mean:{sign}.2f}"
        return mean if len(self.values) == 1 else f"{mean} ({self.range(sign)})"

    def range(self, sign: str = "") -> str:
        """Minimum..maximum, in percent."""
        return f"{100 * min(self.values):{sign}.2f}..{100 * max(self.values):{sign}.2f}"

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {"mean": self.mean, "min": min(self.values), "max": max(self.values), "values": list(self.values)}


@dataclass(frozen=True, kw_only=True)
class ResultRow:
    """Results of one method with one K, over seeds.

    Args:
        method: name of the combination of settings or of the baseline.
        rerank_at: K; 0 is the plain ranking.
        seeds: the finished ones, in order; None for a baseline, which has no seed.
        metrics: metric -> values.
        gains: metric -> difference to the plain ranking, seed by seed; None in the plain row.
        best_epochs: the epoch that was tested, for each seed; None where the last one was kept.
    """

    method: str
    rerank_at: int
    seeds: tuple[int, ...] | None
    metrics: dict[str, Spread]
    gains: dict[str, Spread] | None
    best_epochs: tuple[int | None, ...]

    @property
    def name(self) -> str:
        """Its name in tables."""
        return row_name(self.method, self.rerank_at)


@dataclass(frozen=True, kw_only=True)
class SweepResults:
    """The results of the finished runs of a sweep, and the titles of the missing ones."""

    title: str
    rows: tuple[ResultRow, ...]
    missing: tuple[str, ...]


def collect_results(sweep: Sweep) -> SweepResults:
    """Read the reports of the finished runs of a sweep."""
    found = [(job, job.report()) for job in sweep.jobs]
    missing = tuple(job.title for job, document in found if document is None)
    done = [(job, document) for job, document in found if document is not None]
    rows: list[ResultRow] = []
    for name in dict.fromkeys(job.name for job, _ in done):
        rows += _rows_of(name, [(job, document) for job, document in done if job.name == name])
    config = sweep.jobs[0].config
    title = config.dataset + (f", {config.protocol}" if config.protocol else "")
    if done:
        measured = _trained(done[0][1])
        title += f": {measured['queries']} queries, {measured['gallery']} gallery images"
    return SweepResults(title=title, rows=tuple(rows), missing=missing)


def _rows_of(name: str, done: Sequence[tuple[Job, dict[str, Any]]]) -> list[ResultRow]:
    """The rows of one method: the plain one, and the re-ranked one."""
    reports = [_trained(document) for _, document in done]
    by_k = [{int(row["rerank_at"]): row for row in report["rows"]} for report in reports]
    frozen = done[0][0].baseline is not None
    rows = []
    for k in by_k[0]:
        gains = {m: Spread(values=tuple(rows_[k][m] - rows_[0][m] for rows_ in by_k)) for m in SHOWN}
        rows.append(
            ResultRow(
                method=name,
                rerank_at=k,
                seeds=None if frozen else tuple(job.config.seed for job, _ in done),
                metrics={m: Spread(values=tuple(rows_[k][m] for rows_ in by_k)) for m in SHOWN},
                gains=gains if k else None,
                best_epochs=tuple(document["config"].get("best_epoch") for _, document in done),
            )
        )
    return rows


def results_tables(results: SweepResults) -> list[Table]:
    """Tables to print: the metrics, and the gains of re-ranking."""
    metrics, gains = _table(results.title, CAPTION), _table(GAINS, None)
    for row in results.rows:
        count = "-" if row.seeds is None else str(len(row.seeds))
        metrics.add_row(row.name, count, *(_cell(row.metrics[m]) for m in SHOWN))
        if row.gains is not None:
            gains.add_row(row.name, count, *(_cell(row.gains[m], "+") for m in SHOWN))
    return [table for table in (metrics, gains) if table.row_count]


def write_results(folder: Path, results: SweepResults, seeds: Sequence[int]) -> tuple[Path, Path, Path]:
    """Write `results.csv` and `results.json` (fractions) and `results.md` (percent), each atomically."""
    document = {
        "unit": "fraction",
        "title": results.title,
        "seeds": list(seeds),
        "rows": [_plain(row) for row in results.rows],
        "missing": list(results.missing),
    }
    return (
        write_text(folder / "results.csv", _csv(results)),
        write_text(folder / "results.json", json.dumps(document, indent=1)),
        write_text(folder / "results.md", markdown(results)),
    )


def markdown(results: SweepResults) -> str:
    """Both tables as Markdown."""
    head = f"| method | seeds | {' | '.join(SHOWN.values())} |\n|---|---|{'---|' * len(SHOWN)}\n"
    lines, gains = [], []
    for row in results.rows:
        start = f"| {row.name} | {'-' if row.seeds is None else len(row.seeds)} | "
        lines.append(start + " | ".join(row.metrics[m].text() for m in SHOWN) + " |\n")
        if row.gains is not None:
            gains.append(start + " | ".join(row.gains[m].text("+") for m in SHOWN) + " |\n")
    text = f"{results.title}. Percent, mean over seeds (minimum..maximum).\n\n{head}{''.join(lines)}"
    if gains:
        text += f"\n{GAINS}, mean (minimum..maximum).\n\n{head}{''.join(gains)}"
    if results.missing:
        text += f"\nNot finished: {'; '.join(results.missing)}.\n"
    return text


def _csv(results: SweepResults) -> str:
    names = [name for m in SHOWN for kind in (m, f"{m}_gain") for name in (kind, f"{kind}_min", f"{kind}_max")]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["method", "rerank_at", "seeds", *names])
    for row in results.rows:
        line = [row.method, str(row.rerank_at), "" if row.seeds is None else " ".join(map(str, row.seeds))]
        for m in SHOWN:
            for spread in (row.metrics[m], None if row.gains is None else row.gains[m]):
                numbers = () if spread is None else (spread.mean, min(spread.values), max(spread.values))
                line += [f"{value:.6f}" for value in numbers] or ["", "", ""]
        writer.writerow(line)
    return text.getvalue()


def _plain(row: ResultRow) -> dict[str, Any]:
    return {
        "method": row.method,
        "rerank_at": row.rerank_at,
        "seeds": None if row.seeds is None else list(row.seeds),
        "best_epochs": list(row.best_epochs),
        "metrics": {m: spread.to_dict() for m, spread in row.metrics.items()},
        "gains": None if row.gains is None else {m: spread.to_dict() for m, spread in row.gains.items()},
    }


def _table(title: str, caption: str | None) -> Table:
    table = Table(title=title, title_justify="left", caption=caption, caption_justify="left")
    table.add_column("method", min_width=15, overflow="fold")
    for column in ("seeds", *SHOWN.values()):
        table.add_column(column, justify="right", no_wrap=True)
    return table


def _cell(spread: Spread, sign: str = "") -> Text:
    """The mean, with the range on a second line so that tables fit 80 columns."""
    mean = f"{100 * spread.mean:{sign}.2f}"
    return Text(mean) if len(spread.values) == 1 else Text.assemble(mean, "\n", (spread.range(sign), "dim"))
