"""Run folders read back: their settings, and the test images that several of them share."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from diml.data import DataSet
from diml.training.checkpoints import MODEL_FILES
from diml.training.config import TrainConfig, read_config
from diml.training.parts import CONFIG, fingerprint, open_training_data

#: Written at the very end of a run.
REPORT: Final = "evaluation.json"


@dataclass(frozen=True, kw_only=True)
class Run:
    """A run that has an embedder.

    Args:
        folder: of the run; `load_embedder(folder)` gives the best embedder, with its grid and image size.
        config: all settings of the run.
        finished: whether it came to its end; else the embedder is the best so far.
    """

    folder: Path
    config: TrainConfig
    finished: bool


def read_run(folder: str | Path) -> Run:
    """Read what a run folder says of itself.

    Raises:
        FileNotFoundError: there is no run, or it has no embedder yet.
        ValueError: its `config.yaml` is damaged.

    Example:
        >>> read_run("runs/orl-margin").config.dataset  # doctest: +SKIP
        'orl'
    """
    folder = Path(folder)
    if not (folder / CONFIG).is_file():
        raise FileNotFoundError(
            f"run: no run in {folder} (no {CONFIG}); `diml train` makes one, and "
            "`diml evaluate DATASET --model FOLDER` takes embedders that were saved otherwise"
        )
    if not all((folder / name).is_file() for name in MODEL_FILES):
        raise FileNotFoundError(
            f"run: {folder} has no embedder yet; go on with it by: diml train --resume --output {folder}"
        )
    config = TrainConfig.from_dict(read_config(folder / CONFIG))
    return Run(folder=folder, config=config, finished=(folder / REPORT).is_file())


def run_names(runs: Sequence[Run]) -> tuple[str, ...]:
    """Names for the rows of a table: that of the folder, or its whole path where two are called the same."""
    short = [run.folder.resolve().name for run in runs]
    return tuple(name if short.count(name) == 1 else str(run.folder) for name, run in zip(short, runs, strict=True))


def shared_data(runs: Sequence[Run], data: Path | None = None) -> DataSet:
    """Load the data set of some runs, which must be one: their numbers stand in one table.

    Args:
        runs: at least one.
        data: root in place of the runs' own.

    Raises:
        ValueError: the runs are of different data sets, protocols or test images.
        FileNotFoundError: the data set is not where the runs had it.
    """
    of_dataset = {run.config.dataset: run for run in reversed(runs)}
    if len(of_dataset) > 1:
        listed = ", ".join(f"{name} ({run.folder})" for name, run in sorted(of_dataset.items()))
        raise ValueError(f"runs: need runs of one data set, got {listed}; evaluate those of each data set on their own")
    opened: dict[tuple[Path, str | None], DataSet] = {}
    for run in runs:
        place = (run.config.data if data is None else data, run.config.protocol)
        if place not in opened:
            opened[place] = _opened(dataclasses.replace(run.config, data=place[0]), run, own=data is None)
            _check_alike(next(iter(opened.values())), opened[place], runs[0], run)
    return next(iter(opened.values()))


def _opened(config: TrainConfig, run: Run, *, own: bool) -> DataSet:
    try:
        return open_training_data(config)
    except FileNotFoundError as error:
        if not own:
            raise
        hint = f"{run.folder} was trained with --data {config.data}; say where the data set is now by --data"
        raise FileNotFoundError(f"{error} ({hint})") from error


def _check_alike(first: DataSet, other: DataSet, first_run: Run, run: Run) -> None:
    if first.protocol != other.protocol:
        what = f"protocols {first.protocol} ({first_run.folder}) and {other.protocol} ({run.folder})"
    elif fingerprint(first.test) != fingerprint(other.test):
        what = f"test images: those of {first_run.folder} and of {run.folder}"
    else:
        return
    raise ValueError(f"runs: need runs with one test, got different {what}; evaluate them apart")
