"""Where the numbers of `metrics.jsonl` also go: TensorBoard, Weights & Biases, MLflow.

`metrics.jsonl` is the record of a run, and a logger is a copy of it: one that fails is left out with a warning, and the
run goes on. A resumed run continues the runs of its loggers, whose ids are in its folder.
"""

from __future__ import annotations

import importlib.util
import json
import os
import secrets
import time
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final, Protocol

from diml.checksums import sealed, unsealed
from diml.documents import read_json
from diml.extras import require
from diml.files import write_text
from diml.spelling import did_you_mean

#: Name of a logger -> the extra that installs it.
EXTRA_OF: Final = {"tensorboard": "track", "wandb": "wandb", "mlflow": "mlflow"}
#: The ids of the runs of loggers, in the folder of a run.
IDS: Final = "loggers.json"
#: In it, what a killed process had sent after its last checkpoint.
_SENT: Final = "sent"
#: Name of the project, or experiment, where the user has set none.
_PROJECT: Final = "diml"
#: Characters of a parameter in MLflow.
_LONGEST: Final = 500


class LoggerWarning(UserWarning):
    """A logger has failed; the run goes on without it."""


class Logger(Protocol):
    """One place that numbers go to."""

    #: Whether it still has the rows that a killed process has sent after its last checkpoint.
    keeps: bool

    def add(self, values: Mapping[str, float], step: int) -> None:
        """Add numbers of one step."""

    def close(self) -> None:
        """Send what is left, and end."""


@dataclass(frozen=True)
class _Run:
    """What a logger is opened with.

    Args:
        folder: of the run.
        steps: finished steps; more than 0 where the run is resumed.
        settings: of the run, plain values.
    """

    folder: Path
    steps: int = 0
    settings: Mapping[str, Any] = field(default_factory=dict)


def default_loggers() -> tuple[str, ...]:
    """Those that are used where none are named: TensorBoard, where it is installed."""
    return ("tensorboard",) if importlib.util.find_spec("tensorboard") is not None else ()


def check_loggers(names: Sequence[str] | None) -> None:
    """Check names of loggers, before anything else.

    Raises:
        ValueError: there is no such logger, or one is named twice.
        MissingExtraError: it is not installed.
    """
    for name in names or ():
        if name not in EXTRA_OF:
            raise ValueError(f"loggers: no {name!r}; {did_you_mean(name, EXTRA_OF)}")
        require(EXTRA_OF[name], f"loggers: {name}")
    if names is not None and len(set(names)) < len(names):
        raise ValueError(f"loggers: need each once, got {', '.join(names)}")


class Loggers:
    """All loggers of a run; the one place that decides what happens when one fails.

    Args:
        folder: of the run.
        names: of loggers; None for the default ones.
        steps: finished steps.
        settings: of the run, plain values.
        sent: what the process that is resumed had sent after its last checkpoint.
    """

    def __init__(
        self,
        folder: Path,
        names: Sequence[str] | None = None,
        *,
        steps: int = 0,
        settings: Mapping[str, Any] | None = None,
        sent: Iterable[str] = (),
    ) -> None:
        self._open: dict[str, Logger] = {}
        run = _Run(folder, steps, settings or {})
        for name in default_loggers() if names is None else names:
            self._try(name, partial(self._begin, name, run))
        self._sent: frozenset[str] = frozenset()
        if any(logger.keeps for logger in self._open.values()):
            kept = _kept(folder)
            self._sent = frozenset(sent) | frozenset(kept.get(_SENT, ()))
            _keep(folder, kept | {_SENT: sorted(self._sent)})  # should this process be killed too

    def add(self, values: Mapping[str, float], step: int, place: str) -> None:
        """Add numbers of one step, unless a logger has them already.

        Args:
            values: name -> number.
            step: number of the step, from 1; 0 is before training.
            place: what they are about, as in `sent`.
        """
        for name, logger in list(self._open.items()):
            if not (logger.keeps and place in self._sent):
                self._try(name, partial(logger.add, values, step))

    def close(self) -> None:
        """End all."""
        while self._open:
            name, logger = self._open.popitem()
            self._try(name, logger.close)

    def _begin(self, name: str, run: _Run) -> None:
        self._open[name] = _KINDS[name](run)

    def _try(self, name: str, act: Callable[[], object]) -> None:
        try:
            act()
        except Exception as error:  # other people's servers and libraries: no reason to lose hours of training
            self._open.pop(name, None)
            told = next(iter(str(error).splitlines()), "")
            warnings.warn(
                LoggerWarning(
                    f"logger {name} has failed ({type(error).__name__}: {told}); the run goes on without it, and all "
                    "numbers are in metrics.jsonl. To try it again: diml train --resume"
                ),
                stacklevel=3,
            )


class _TensorBoard:
    """Events in the folder of the run; those after its last checkpoint are deleted."""

    keeps = False

    def __init__(self, run: _Run) -> None:
        from torch.utils.tensorboard import SummaryWriter

        writer: Any = SummaryWriter
        self._writer = writer(str(run.folder / "tensorboard"), purge_step=run.steps + 1)

    def add(self, values: Mapping[str, float], step: int) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()


class _WeightsAndBiases:
    """A run of Weights & Biases; WANDB_PROJECT, WANDB_MODE and so on apply."""

    def __init__(self, run: _Run) -> None:
        import wandb

        known = _known_id(run.folder, "wandb")
        self.keeps = known is not None
        # Its own counter of steps only grows, and drops the rest; so the step is a value like the others.
        self._run = wandb.init(
            project=wandb.Settings().project or _PROJECT,
            name=run.folder.name,
            id=known or secrets.token_hex(4),
            resume="allow",
            dir=str(run.folder),
            config=dict(run.settings),
            settings=wandb.Settings(console="off"),
            reinit="create_new",
        )
        self._run.define_metric("*", step_metric="step")
        _keep_id(run.folder, "wandb", self._run.id)

    def add(self, values: Mapping[str, float], step: int) -> None:
        self._run.log({"step": step, **values})

    def close(self) -> None:
        self._run.finish()


class _MLflow:
    """A run of MLflow; MLFLOW_TRACKING_URI, MLFLOW_EXPERIMENT_NAME and so on apply."""

    def __init__(self, run: _Run) -> None:
        from mlflow import MlflowClient
        from mlflow.entities import Param

        self._client = MlflowClient()
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or _PROJECT
        known = _known_id(run.folder, "mlflow")
        self.keeps = known is not None
        if known is not None:
            self._id: str = known
            self._client.update_run(known, status="RUNNING")
            return
        experiment = self._client.get_experiment_by_name(name)
        place = self._client.create_experiment(name) if experiment is None else experiment.experiment_id
        self._id = self._client.create_run(place, run_name=run.folder.name).info.run_id
        _keep_id(run.folder, "mlflow", self._id)
        settings = [Param(key, str(value)[:_LONGEST]) for key, value in run.settings.items() if value is not None]
        self._client.log_batch(self._id, params=settings)

    def add(self, values: Mapping[str, float], step: int) -> None:
        from mlflow.entities import Metric

        now = int(1000 * time.time())
        # `@` is not allowed in its names
        metrics = [Metric(key.replace("@", "_at_"), float(value), now, step) for key, value in values.items()]
        self._client.log_batch(self._id, metrics=metrics)

    def close(self) -> None:
        self._client.set_terminated(self._id)


_KINDS: Final[dict[str, Callable[[_Run], Logger]]] = {
    "tensorboard": _TensorBoard,
    "wandb": _WeightsAndBiases,
    "mlflow": _MLflow,
}


def _known_id(folder: Path, name: str) -> str | None:
    """The id of a logger's run, where the run has one already."""
    found = _kept(folder).get(name)
    return None if found is None else str(found)


def _keep_id(folder: Path, name: str, value: str) -> None:
    _keep(folder, _kept(folder) | {name: value})


def _keep(folder: Path, values: Mapping[str, Any]) -> None:
    write_text(folder / IDS, json.dumps(sealed(values), indent=1))


def _kept(folder: Path) -> dict[str, Any]:
    path = folder / IDS
    if not path.is_file():
        return {}
    return unsealed(read_json(path), str(path), "remove it: the logger then begins a new run")
