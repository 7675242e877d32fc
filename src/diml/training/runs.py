"""The folder of a run: created, opened to be resumed, and read back for evaluation."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from diml.data import DataSet
from diml.files import only_user
from diml.training.checkpoints import BEST, LAST, MODEL_FILES, publish_model, read_checkpoint, restoring, settle
from diml.training.config import FIELDS, TrainConfig, read_config, write_config
from diml.training.logs import RECORDS, read_records
from diml.training.split import TrainingSplit, fingerprint, load_training_data

CONFIG: Final = "config.yaml"
CURVES: Final = "curves.png"

#: Written at the very end of a run.
REPORT: Final = "evaluation.json"

#: Settings that a resumed run may change, as the weights do not depend on them; `epochs` too, except under `cosine`.
_MAY_CHANGE: Final = {
    *("output", "data", "workers", "device", "checkpoint_every", "rerank_at", "on_bad_image", "loggers"),
    *("patience", "frozen_baseline", "cache", "weights_file"),
}


def claim_run(folder: Path, *, resume: bool) -> contextlib.AbstractContextManager[None]:
    """Keep the folder of a run for this process while it trains; InUseError where another one trains there.

    A folder without a run, which `open_run` refuses to resume, is not created.
    """
    if resume and not (folder / CONFIG).is_file():
        return contextlib.nullcontext()
    return only_user(folder, "output")


def open_run(config: TrainConfig, split: TrainingSplit, *, resume: bool, write: bool) -> dict[str, Any] | None:
    """Create the folder of a run, or find the state to resume from.

    Args:
        config: of the run; `folder` is the folder.
        split: the images, to check that they are still the same.
        resume: continue the run in the folder.
        write: whether this process is the one that writes.

    Returns:
        The state of the last checkpoint; None to begin at the beginning.

    Raises:
        FileExistsError: there is a run already, and `resume` is False.
        FileNotFoundError: there is none, and `resume` is True.
        ValueError: the run was begun with other settings or images.
    """
    folder = config.folder
    # A folder with nothing but a configuration holds no run: building it failed, by an unknown name for instance.
    exists = any((folder / name).exists() for name in (LAST, BEST, RECORDS))
    if write and not resume:
        if exists:
            raise FileExistsError(
                f"output: {folder} already holds a run; continue it with --resume --output {folder}, or use another "
                "--output"
            )
        write_config(folder / CONFIG, config)
    if not resume:
        return None
    _check_same(config, folder)
    if write:
        _repair(folder)
    state = read_checkpoint(folder / LAST) if (folder / LAST).exists() else None
    if state is not None:
        _check_continues(state, config, split)
    if write:
        write_config(folder / CONFIG, config)
    return state


def _check_continues(state: Mapping[str, Any], config: TrainConfig, split: TrainingSplit) -> None:
    """Raise ValueError unless a checkpoint is of these settings and images."""
    folder = config.folder
    with restoring(folder / LAST):
        same_images = state["data"] == fingerprint(split.train)
        listed = _changed(TrainConfig.from_dict(state["config"]), config)
    if not same_images:
        raise ValueError(f"data: the training images are not those that {folder} was begun with; start a new run")
    if listed:
        raise ValueError(
            f"{folder / CONFIG}: damaged or changed, it differs from the settings in {LAST}: {listed}; put them back"
        )


def _check_same(config: TrainConfig, folder: Path) -> None:
    if not (folder / CONFIG).is_file():
        raise FileNotFoundError(f"output: no run to resume in {folder} (no {CONFIG}); omit --resume to start one")
    listed = _changed(TrainConfig.from_dict(read_config(folder / CONFIG)), config)
    if listed:
        raise ValueError(
            f"resume: settings differ from those that {folder} was begun with: {listed}; omit them, or use another "
            "--output"
        )


def _changed(old: TrainConfig, new: TrainConfig) -> str:
    """Settings that a run may not change, with their values, as text; empty where they are the same."""
    free = _MAY_CHANGE | ({"epochs"} if new.schedule != "cosine" else set())
    before, after = old.to_dict(), new.to_dict()
    changed = [name for name in FIELDS if name not in free and before[name] != after[name]]
    return ", ".join(f"{name} ({before[name]} to {after[name]})" for name in changed)


def _repair(folder: Path) -> None:
    """Complete or undo what a killed process left unfinished."""
    settle(folder / LAST)
    if settle(folder / BEST) and not all((folder / name).is_file() for name in MODEL_FILES):
        publish_model(folder / BEST, folder)


@dataclass(frozen=True, kw_only=True)
class Run:
    """A run that has an embedder.

    Args:
        folder: of the run; `load_embedder(folder)` gives the best embedder, with its grid, image size and matcher.
        config: all settings of the run.
        finished: whether it was tested; otherwise the embedder is the best so far.
    """

    folder: Path
    config: TrainConfig
    finished: bool


def read_run(folder: str | Path) -> Run:
    """Read the settings and the progress of a run from its folder.

    Raises:
        FileNotFoundError: there is no run, or it has no embedder yet.
        ValueError: its `config.yaml` is damaged.

    Warns:
        DamagedLogWarning: Its log is damaged.

    Example:
        >>> read_run("runs/orl-margin").config.dataset  # doctest: +SKIP
        'orl'
    """
    folder = Path(folder)
    if not (folder / CONFIG).is_file():
        raise FileNotFoundError(
            f"run: no run in {folder} (no {CONFIG}); `diml train` creates runs, and "
            "`diml evaluate DATASET --model FOLDER` takes embedders that were saved otherwise"
        )
    if not all((folder / name).is_file() for name in MODEL_FILES):
        raise FileNotFoundError(
            f"run: {folder} has no embedder yet; continue it with: diml train --resume --output {folder}"
        )
    config = TrainConfig.from_dict(read_config(folder / CONFIG))
    read_records(folder / RECORDS)  # names damage
    return Run(folder=folder, config=config, finished=(folder / REPORT).is_file())


def run_names(runs: Sequence[Run]) -> tuple[str, ...]:
    """Row names for a table: the name of the folder, or its path where two runs have the same name."""
    short = [run.folder.resolve().name for run in runs]
    return tuple(name if short.count(name) == 1 else str(run.folder) for name, run in zip(short, runs, strict=True))


def shared_data(runs: Sequence[Run], data: Path | None = None) -> DataSet:
    """Load the data set of several runs, which must be the same so that their numbers are comparable.

    Args:
        runs: at least one.
        data: root in place of the runs' own.

    Raises:
        ValueError: the runs have different data sets, protocols or test images.
        FileNotFoundError: the data set is no longer where the runs had it.
    """
    of_dataset = {run.config.dataset: run for run in reversed(runs)}
    if len(of_dataset) > 1:
        listed = ", ".join(f"{name} ({run.folder})" for name, run in sorted(of_dataset.items()))
        raise ValueError(f"runs: need runs of one data set, got {listed}; evaluate those of each data set separately")
    opened: dict[tuple[Path, str | None], DataSet] = {}
    for run in runs:
        place = (run.config.data if data is None else data, run.config.protocol)
        if place not in opened:
            opened[place] = _opened(dataclasses.replace(run.config, data=place[0]), run, own=data is None)
            _check_comparable(next(iter(opened.values())), opened[place], runs[0], run)
    return next(iter(opened.values()))


def _opened(config: TrainConfig, run: Run, *, own: bool) -> DataSet:
    try:
        return load_training_data(config)
    except FileNotFoundError as error:
        if not own:
            raise
        hint = f"{run.folder} was trained with --data {config.data}; use --data to give the present location"
        raise FileNotFoundError(f"{error} ({hint})") from error


def _check_comparable(first: DataSet, other: DataSet, first_run: Run, run: Run) -> None:
    if first.protocol != other.protocol:
        what = f"protocols: {first.protocol} ({first_run.folder}) and {other.protocol} ({run.folder})"
    elif fingerprint(first.test) != fingerprint(other.test):
        what = f"test images: those of {first_run.folder} and of {run.folder}"
    else:
        return
    raise ValueError(f"runs: need runs with the same test, got different {what}; evaluate them separately")
