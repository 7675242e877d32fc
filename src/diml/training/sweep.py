"""A grid of runs: every set of settings with every seed, one after the other, each in a folder of its own.

What is done is known by the folders alone: a sweep that was stopped, or killed, goes on where it was.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import yaml

from diml.data.registry import dataset_info, nearest
from diml.training.config import TrainConfig, checked_values

_KEYS: Final = ("output", "base", "runs", "seeds", "baseline")
_BASELINE_KEYS: Final = ("model", "head", "dim", "size", "grid", "pretrained")

#: Settings that every run shares, as the results stand in one table, and where they belong.
_SHARED: Final = dict.fromkeys(("dataset", "data", "protocol"), "it is the same for all runs: see `base`")

#: Settings that a sweep gives each run, and from what.
_OWN: Final = {
    "seed": "each run has every seed of `seeds`, at the top of the file",
    "output": "each run is in a folder of its own in `output`, at the top of the file",
}

#: Settings that may differ between a finished run and the file: no number depends on them.
_FREE: Final = {"output", "data", "workers", "device", "checkpoint_every", "on_bad_image"}


@dataclass(frozen=True, kw_only=True)
class Baseline:
    """A frozen backbone: evaluated as it is, or with a head that needs no labels."""

    model: str
    head: Literal["identity", "whiten"]
    dim: int | None
    size: int | None
    grid: int
    pretrained: bool

    def __post_init__(self) -> None:
        if self.head not in ("identity", "whiten"):
            raise ValueError(f"head: a frozen baseline has head identity or whiten, got {self.head!r}")


@dataclass(frozen=True, kw_only=True)
class Job:
    """One thing to do: a training with one seed, or the evaluation of a baseline.

    Args:
        name: row of the table.
        config: of the training; for a baseline, where its images and K come from.
        baseline: what is evaluated without training; None for a training.
    """

    name: str
    config: TrainConfig
    baseline: Baseline | None = None

    @property
    def title(self) -> str:
        """What messages call it."""
        return f"{self.name}, seed {self.config.seed}" if self.baseline is None else f"baseline {self.name}"

    @property
    def settings(self) -> dict[str, Any]:
        """What its numbers depend on, as its `evaluation.json` has it."""
        values = {name: value for name, value in self.config.to_dict().items() if name not in _FREE}
        if self.baseline is not None:
            values = {name: values[name] for name in ("dataset", "protocol", "rerank")}
            values |= dataclasses.asdict(self.baseline)
        plain: dict[str, Any] = json.loads(json.dumps(values))
        return plain

    def report(self) -> dict[str, Any] | None:
        """Its finished `evaluation.json`; None when it is not finished, or was made with other settings."""
        path = self.config.folder / "evaluation.json"
        if not path.is_file():
            return None
        document: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        settings, missing = document["config"], object()
        same = all(settings.get(name, missing) == value for name, value in self.settings.items())
        return document if same else None


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """What a sweep file says: everything to do, in order, and the folder that all of it is in."""

    output: Path
    jobs: tuple[Job, ...]
    seeds: tuple[int, ...]


def read_sweep(path: str | Path) -> Sweep:
    """Read and check a sweep file, every run of it, before anything is trained.

    Args:
        path: YAML with `base` (settings of all runs, the data set among them), `runs` (name -> further settings),
            `seeds`, `output`, and perhaps `baseline` (name -> model, head, dim, size, grid, pretrained). Paths are
            relative to the working folder.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: no YAML, an unknown key (the nearest known one is named), a value of another type or range.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"sweep: no file {path}")
    try:
        values = _mapping(yaml.safe_load(path.read_text(encoding="utf-8")), f"{path}")
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"sweep: {path} is not YAML ({error})") from error
    _known(values, _KEYS, str(path))
    base = _settings(values.get("base"), f"{path}: base", refused=_OWN)
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
    jobs = (
        *_baseline_jobs(baselines, base, output, f"{path}: baseline"),
        *_training_jobs(runs, base, output, seeds, f"{path}: runs"),
    )
    if not jobs:
        raise ValueError(f"{path}: need at least one run or baseline, for instance `runs: {{margin: {{}}}}`")
    folders = [job.config.folder for job in jobs]
    doubled = next((folder for folder in folders if folders.count(folder) > 1), None)
    if doubled is not None:
        raise ValueError(f"{path}: two runs would be written to {doubled}; give them other names")
    return Sweep(output=output, jobs=jobs, seeds=seeds)


def run_sweep(sweep: Sweep, *, say: Callable[[str], None], progress: bool = False) -> dict[str, str]:
    """Do what is not done yet, one after the other; what was begun goes on from its last checkpoint.

    Args:
        sweep: what to do.
        say: gets a line before each.
        progress: show the progress of each.

    Returns:
        Title -> error, of those that failed; they do not stop the others.

    Raises:
        ValueError: started by torchrun with several processes.
        KeyboardInterrupt: Ctrl-C; the run under way is saved, as `train` does it.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ValueError("sweep: runs in one process; with several, start each run by: torchrun ... -m diml train ...")
    failed: dict[str, str] = {}
    for number, job in enumerate(sweep.jobs, 1):
        head = f"[{number}/{len(sweep.jobs)}] {job.title}"
        if job.report() is not None:
            say(f"{head}: done already, in {job.config.folder}")
            continue
        begun = job.baseline is None and (job.config.folder / "config.yaml").is_file()
        say(f"{head}: {'going on' if begun else 'begins'}, in {job.config.folder}")
        try:
            _do(job, resume=begun, progress=progress)
        except Exception as error:  # whatever it is, it is told, and the other runs are as good as before
            hint = f" (to train it anew, remove {job.config.folder})" if begun else ""
            failed[job.title] = f"{type(error).__name__}: {error}{hint}"
            say(f"{head}: FAILED: {failed[job.title]}")
    return failed


def _do(job: Job, *, resume: bool, progress: bool) -> None:
    if job.baseline is not None:
        _evaluate_baseline(job, job.baseline, progress)
        return
    from diml.training.loop import train

    train(job.config, resume=resume, progress=progress)


def _evaluate_baseline(job: Job, baseline: Baseline, progress: bool) -> None:
    """Evaluate a frozen backbone on the test images of the runs, as a run ends."""
    from diml.evaluation import evaluate_dataset
    from diml.evaluation.tables import write_reports
    from diml.models import default_preprocess, load_embedder
    from diml.training.parts import open_training_data, resized
    from diml.training.shared import join_team

    config = job.config
    loading: dict[str, Any] = {"batch_size": config.evaluation_batch_size, "workers": config.workers}
    loading |= {"on_bad_image": config.on_bad_image, "progress": progress}
    data = open_training_data(config)
    preprocess = default_preprocess(baseline.model)
    embedder = load_embedder(
        baseline.model,
        grid=baseline.grid,
        head=baseline.head,
        dim=baseline.dim,
        pretrained=baseline.pretrained,
        preprocess=preprocess if baseline.size is None else resized(preprocess, baseline.size),
    )
    with join_team(config.device) as team:
        embedder = embedder.to(team.device)
        if baseline.head == "whiten":
            if data.train is None:
                raise ValueError(f"head: whiten is fitted on training images, and {data.name} has none")
            embedder.fit_head(data.train.paths, **loading)
        found = evaluate_dataset(embedder, data.test, rerank=sorted({0, config.rerank}), **loading)
    write_reports(config.folder, {job.name: found.report}, job.settings)


def _baseline_jobs(baselines: Mapping[str, Any], base: dict[str, Any], output: Path, what: str) -> Iterator[Job]:
    for name, given in baselines.items():
        values = _mapping(given or {}, f"{what}: {name}")
        _known(values, _BASELINE_KEYS, f"{what}: {name}")
        plain = {key: value for key, value in values.items() if key != "head"}
        try:
            config = TrainConfig(**(base | checked_values(plain) | {"output": output / _name(name)}))
            baseline = Baseline(
                model=config.model,
                head=values.get("head", "identity"),
                dim=config.dim if values.get("head") == "whiten" else None,
                size=config.size,
                grid=config.grid,
                pretrained=config.pretrained,
            )
        except ValueError as error:
            raise ValueError(f"{what}: {name}: {error}") from error
        yield Job(name=name, config=config, baseline=baseline)


def _training_jobs(
    runs: Mapping[str, Any], base: dict[str, Any], output: Path, seeds: tuple[int, ...], what: str
) -> Iterator[Job]:
    for name, given in runs.items():
        own = _settings(given, f"{what}: {name}", refused=_OWN | _SHARED)
        for seed in seeds:
            try:
                config = TrainConfig(**(base | own | {"seed": seed, "output": output / f"{_name(name)}-{seed}"}))
                _check(config)
            except ValueError as error:
                raise ValueError(f"{what}: {name}: {error}") from error
            yield Job(name=name, config=config)


def _check(config: TrainConfig) -> None:
    """Tell a wrong name, option or combination before hours of other runs."""
    import torch

    from diml.training.named import check_names

    with torch.random.fork_rng():
        check_names(config)


def _settings(values: Any, what: str, *, refused: Mapping[str, str]) -> dict[str, Any]:
    values = _mapping(values or {}, what)
    for key, why in refused.items():
        if key in values:
            raise ValueError(f"{what}: {key} does not belong here, {why}")
    return checked_values(values, what)


def _mapping(values: Any, what: str) -> dict[str, Any]:
    if not isinstance(values, dict):
        raise ValueError(f"{what}: need lines `name: value`, got {values!r}")  # noqa: TRY004
    return values


def _known(values: Mapping[str, Any], keys: tuple[str, ...], what: str) -> None:
    for key in values:
        if key not in keys:
            raise ValueError(f"{what}: unknown key {key!r}; {nearest(str(key), keys)}")


def _seeds(values: Any, what: str) -> tuple[int, ...]:
    good = isinstance(values, list) and values and all(type(seed) is int and seed >= 0 for seed in values)
    if not good or len(set(values)) < len(values):
        raise ValueError(f"{what}: need a list of distinct whole numbers from 0, for instance [0, 1], got {values!r}")
    return tuple(values)


def _text(value: Any, what: str) -> str:
    if not isinstance(value, str) or not value:
        raise ValueError(f"{what}: need a path, got {value!r}")
    return value


def _name(name: Any) -> str:
    """A name that is part of a folder's."""
    if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
        raise ValueError(f"need a name of letters, digits, `.`, `_` and `-`, as folders are called by it; got {name!r}")
    return name
