"""`train`: epochs of steps, a validation after each, checkpoints all along, and the test at the end.

All that decides what comes next is the configuration and a `Position`; so a run that was killed goes on from its last
checkpoint and ends with the weights, to the bit, that it would have had.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diml.data import DataSet, ImageSet
from diml.data.training_batches import TrainingLoader
from diml.evaluation import Report
from diml.evaluation.tables import write_reports
from diml.models import Embedder, load_embedder
from diml.training.checkpoints import (
    BEST,
    LAST,
    load_optimizer,
    publish_model,
    random_states,
    set_random_states,
    write_checkpoint,
)
from diml.training.config import TrainConfig
from diml.training.curves import CURVES, write_curves
from diml.training.logs import Display, MetricLog
from diml.training.named import check_names
from diml.training.optim import set_learning_rates
from diml.training.parts import Parts, build_parts, divide, open_run, open_training_data
from diml.training.shared import SharedEmbedding, Team, embed_shared, evaluate_shared, join_team, warn_of_bad
from diml.training.steps import NonFiniteError, Step, own_random_streams, repeatable
from diml.training.stopping import Stop, TrainingStopped


@dataclass(frozen=True, eq=False)
class TrainResult:
    """What a finished run found.

    Attributes:
        folder: of the run; `load_embedder(folder)` gives the best embedder.
        test: evaluation of the best embedder on the test images, plain and re-ranked.
        best_epoch: counted from 1; None without validation: then it is the last.
        best_value: of the metric that chose it, a fraction.
        left_out: steps that were left out as they were not finite.
    """

    folder: Path
    test: Report
    best_epoch: int | None
    best_value: float | None
    left_out: int


@dataclass
class Position:
    """How far a run is: `epoch` epochs are done, and `batch` batches of the next one; `step` counts all batches."""

    epoch: int = 0
    batch: int = 0
    step: int = 0
    best_epoch: int | None = None
    best_value: float | None = None
    left_out: int = 0


def train(
    config: TrainConfig, *, dataset: DataSet | None = None, resume: bool = False, progress: bool = False
) -> TrainResult:
    """Train an embedder, choose the best epoch, test it once, and write everything to the folder of the run.

    Under torchrun every process calls this, and together they do what one process would.

    Args:
        config: everything that is decided.
        dataset: the images; loaded by the name in `config` when omitted.
        resume: go on with the run in `config.folder` from its last checkpoint, or from the start if it has none.
        progress: show a progress bar and a line an epoch on standard error.

    Raises:
        ValueError: the data set has no training images or too few classes, or settings do not fit.
        FileExistsError: the folder holds a run already, and `resume` is False.
        NonFiniteError: a loss is not finite, and `config.skip_non_finite` is False.
        TrainingStopped: by Ctrl-C or SIGTERM; the checkpoint is written.

    Warns:
        UserWarning: test images choose the best epoch (`select_on="test"`).

    Example:
        >>> train(TrainConfig(dataset="orl", objective="margin", batch_size=16, epochs=2))  # doctest: +SKIP
    """
    with own_random_streams(config.seed):
        check_names(config)  # a slip in a name is told before images are listed and weights fetched
    with join_team(config.device) as team, own_random_streams(config.seed), repeatable(team.device):
        with team.first_goes_ahead():
            data = open_training_data(config) if dataset is None else dataset
        chosen = divide(data, config, warn=team.is_first)
        with team.first_goes_ahead():
            state = open_run(config, chosen, resume=resume, write=team.is_first)
        parts = build_parts(config, chosen.train, team, state)
        run = _Run(config, chosen.validation, chosen.test, parts, team, Display(progress and team.is_first), state)
        try:
            return run.go()
        finally:
            run.close()


class _Run:
    """One run in one process."""

    def __init__(
        self,
        config: TrainConfig,
        validation: ImageSet | None,
        test: ImageSet,
        parts: Parts,
        team: Team,
        display: Display,
        state: dict[str, Any] | None,
    ) -> None:
        self.config, self.validation, self.test, self.team, self.parts = config, validation, test, team, parts
        self.folder, self.display = config.folder, display
        self.position = Position() if state is None else Position(**state["position"])
        if state is not None:
            load_optimizer(parts.optimizer, state["optimizer"])
            parts.stepper.scaler.load_state_dict(state["scaler"])
            parts.sampler.load_state_dict(state["sampler"])
            set_random_states(state["random"])
        writes = self.folder if team.is_first else None
        self.log = MetricLog(writes, epochs=self.position.epoch, steps=self.position.step)
        self.loader = TrainingLoader(
            parts.train.paths, parts.augment, workers=config.workers, on_bad_image=config.on_bad_image
        )
        self.stop = Stop(at_once=team.size == 1)

    def go(self) -> TrainResult:
        """Do what is left to do."""
        position = self.position
        self.log.add("start", step=position.step, **self.parts.facts(self.team))
        if position.step:
            self.display.say(f"going on in {self.folder} after step {position.step}")
        try:
            with self.stop.listening():
                if position.step == 0 and self.parts.sampler.needs_embeddings:
                    self._store_embeddings()
                while position.epoch < self.config.epochs:
                    self._epoch()
                return self._finish()
        except KeyboardInterrupt:
            self._save(LAST)
            raise TrainingStopped(self.folder, position.step) from None

    def close(self) -> None:
        """End worker processes, flush logs."""
        self.loader.close()
        self.log.close()

    def _epoch(self) -> None:
        """Take the steps of an epoch that are left, validate, save."""
        position, config = self.position, self.config
        plan = [list(batch) for batch in self.parts.sampler.batches(position.epoch)]
        shares = [batch[self.team.shares(len(batch))[self.team.rank]] for batch in plan[position.batch :]]
        batches = self.loader.epoch(shares, seed=config.seed, epoch=position.epoch)
        title = f"epoch {position.epoch + 1}/{config.epochs}"
        with self.display.epoch(title, len(plan), position.batch):
            started = time.perf_counter()
            for loaded in batches:
                warn_of_bad(loaded.bad)
                with self.stop.later():
                    self._step(loaded.images, loaded.indices, plan[position.batch], started)
                    if position.step % config.checkpoint_every == 0 and position.batch < len(plan):
                        self._save(LAST)
                self._stop_if_asked()
                started = time.perf_counter()
        last = position.epoch + 1 == config.epochs
        value = self._validate(self.validation, last) if self.validation is not None else None
        with self.stop.later():
            position.epoch, position.batch = position.epoch + 1, 0
            improved = value is not None and (position.best_value is None or value > position.best_value)
            if improved:
                position.best_epoch, position.best_value = position.epoch, value
            if self.team.is_first and (improved or (last and self.validation is None)):
                # The best before the last: killed in between, the epoch is done again and both are written anew.
                self._save(BEST)
                publish_model(self.folder / BEST, self.folder)
            self._save(LAST)
            self.log.write_table()
            self._say_epoch(value)
        self._stop_if_asked()

    def _step(self, images: Any, indices: Any, batch: Sequence[int], started: float) -> None:
        parts, position = self.parts, self.position
        lr = set_learning_rates(parts.optimizer, parts.schedule.factor(position.step))
        step = parts.stepper.step(images, parts.labels[indices], position.step)
        position.batch, position.step = position.batch + 1, position.step + 1
        if step.fault is not None:
            position.left_out += 1
            if not self.config.skip_non_finite:
                paths = tuple(parts.train.paths[index] for index in batch)
                raise NonFiniteError(step.fault, position.step, paths)
        if parts.sampler.needs_embeddings:
            rows = self.team.gather(indices.to(self.team.device))
            if step.pooled is not None:
                parts.sampler.update(rows.cpu(), step.pooled.cpu())
        speed = len(batch) / (time.perf_counter() - started)
        self._log_step(step, lr, speed)

    def _log_step(self, step: Step, lr: float, speed: float) -> None:
        numbers = {"loss": step.loss, "gradient_norm": step.gradient_norm}
        plain = {name: value if math.isfinite(value) else None for name, value in numbers.items()}  # JSON has no NaN
        fault = {} if step.fault is None else {"fault": step.fault}
        counts = self.parts.objective.statistics
        position = self.position
        where = {"epoch": position.epoch + 1, "step": position.step}
        self.log.add("train", **where, **plain, lr=lr, images_per_second=round(speed, 2), **counts, **fault)
        self.display.step(step.loss, lr, speed)

    def _validate(self, images: ImageSet, last: bool) -> float | None:
        """Measure; returns the metric that chooses the best epoch, a fraction. None when it is not yet time."""
        config, epoch = self.config, self.position.epoch + 1
        if not last and epoch % config.validate_every:
            return None
        report = self._evaluate(self.parts.embedder, images, sorted({0, config.select_rerank}), resamples=1)
        for row in report.rows:
            self.log.add("validation", epoch=epoch, step=self.position.step, **row)
        return report.row(config.select_rerank)[config.metric]

    def _say_epoch(self, value: float | None) -> None:
        """One line for people about the epoch just done."""
        config, position = self.config, self.position
        loss = self.log.mean_loss(position.epoch)
        line = f"epoch {position.epoch}/{config.epochs}  loss {math.nan if loss is None else loss:.4f}"
        if value is not None and position.best_value is not None:
            line += f"  {config.select_on} {config.metric} (K = {config.select_rerank}) {100 * value:.2f}"
            line += f"  best {100 * position.best_value:.2f} (epoch {position.best_epoch})"
        self.display.say(line)

    def _evaluate(self, embedder: Embedder, images: ImageSet, reranks: Sequence[int], resamples: int) -> Report:
        found, seed = self._embed(embedder, images), self.config.seed
        return evaluate_shared(found.regions, found.images, self.team, rerank=reranks, seed=seed, resamples=resamples)

    def _embed(self, embedder: Embedder, images: ImageSet) -> SharedEmbedding:
        config = self.config
        return embed_shared(
            embedder,
            images,
            self.team,
            batch_size=config.evaluation_batch_size,
            workers=config.workers,
            on_bad_image=config.on_bad_image,
        )

    def _finish(self) -> TrainResult:
        """Test the best embedder, once; write tables and curves."""
        config, position = self.config, self.position
        self.team.wait()  # until the first has written the best
        embedder = load_embedder(self.folder).to(self.team.device)
        report = self._evaluate(embedder, self.test, sorted({0, config.rerank}), resamples=1000)
        for row in report.rows:
            self.log.add("test", step=position.step, **row)
        if self.team.is_first:
            settings = config.to_dict() | {"best_epoch": position.best_epoch, "left_out_steps": position.left_out}
            write_reports(self.folder, {self.folder.name: report}, settings)
            write_curves(self.folder / CURVES, self.log.records, metric=config.metric, best_epoch=position.best_epoch)
        self.team.wait()
        return TrainResult(self.folder, report, position.best_epoch, position.best_value, position.left_out)

    def _store_embeddings(self) -> None:
        """Embed all training images for a sampler that looks at embeddings."""
        parts = self.parts
        found = self._embed(parts.embedder, parts.train)
        parts.sampler.update(found.kept.cpu(), found.regions.pooled.cpu())

    def _save(self, name: str) -> None:
        """Write a checkpoint; only the first process does."""
        if not self.team.is_first:
            return
        parts = self.parts
        state = {
            "position": dataclasses.asdict(self.position),
            "objective": parts.objective.state_dict(),
            "optimizer": parts.optimizer.state_dict(),
            "scaler": parts.stepper.scaler.state_dict(),
            "sampler": parts.sampler.state_dict(),
            "random": random_states(),
            "data": parts.data_fingerprint,
        }
        write_checkpoint(self.folder / name, parts.embedder, state)

    def _stop_if_asked(self) -> None:
        """Leave, all processes after the same step."""
        if self.team.any(self.stop.asked)[0]:
            raise KeyboardInterrupt
