"""`train`: epochs of steps, a validation after each, regular checkpoints, and the test at the end.

The configuration and a `Position` determine everything that follows; so a run that was killed continues from its last
checkpoint and ends with bit-identical weights.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diml.data import DataSet, ImageSet
from diml.data.loading import TrainingLoader
from diml.distributed import ProcessGroup, process_group
from diml.evaluation import Report, evaluate_regions
from diml.evaluation.split import draws_of
from diml.evaluation.tables import write_reports
from diml.models import Embedder, load_embedder
from diml.training.baseline import FROZEN, gains, network_before_training, reports_of_test, warn_of_saturation
from diml.training.checkpoints import BEST, LAST, check_like, load_optimizer, publish_model, restoring, write_checkpoint
from diml.training.checks import check_images, check_output, check_space, with_weights_recorded
from diml.training.components import Components, build_components, check_names
from diml.training.config import TrainConfig
from diml.training.embedding import SharedEmbedding, embed_shared, warn_of_bad
from diml.training.head_training import FeatureLoader
from diml.training.interrupts import InterruptHandler, TrainingStopped
from diml.training.loggers import check_loggers
from diml.training.logs import Display, MetricLog
from diml.training.optim import set_learning_rates
from diml.training.randomness import deterministic, random_states, separate_random_streams, set_random_states
from diml.training.runs import CURVES, claim_run, open_run
from diml.training.split import load_training_data, split_for_training
from diml.training.steps import NonFiniteError, Step


@dataclass(frozen=True, eq=False, repr=False)
class TrainResult:
    """Result of a finished run.

    Attributes:
        folder: of the run; `load_embedder(folder)` gives the best embedder.
        test: evaluation of the best embedder on the test images, plain and re-ranked.
        frozen: that of the network before training; None with `frozen_baseline=False`. `test.minus(frozen)` is what
            training has changed, paired by query.
        best_epoch: from 1; None without validation, where the last epoch is kept.
        best_value: its validation metric, a fraction; None without validation.
        skipped_steps: number of steps that were skipped: they were not finite, or none of their images could be read.
    """

    folder: Path
    test: Report
    frozen: Report | None
    best_epoch: int | None
    best_value: float | None
    skipped_steps: int

    def __repr__(self) -> str:
        best = "last epoch" if self.best_value is None else f"best epoch {self.best_epoch}: {self.best_value:.4f}"
        tested = ", ".join(f"{row['map@r']:.4f} (K = {int(row['rerank_at'])})" for row in self.test.rows)
        skipped = f", {self.skipped_steps} steps skipped" if self.skipped_steps else ""
        return f"TrainResult({self.folder}, {best}, test map@r {tested}{skipped})"


@dataclass
class Position:
    """Progress of a run: `epoch` epochs are done, and `batch` batches of the next one; `step` counts all batches."""

    epoch: int = 0
    batch: int = 0
    step: int = 0
    best_epoch: int | None = None
    best_value: float | None = None
    skipped_steps: int = 0
    frozen_value: float | None = None
    """Validation metric of the network before training, a fraction."""


def train(
    config: TrainConfig, *, dataset: DataSet | None = None, resume: bool = False, progress: bool = False
) -> TrainResult:
    """Train an embedder, select the best epoch, test it once, and write everything to the folder of the run.

    Under torchrun every process calls it, and together they do what one process would.

    Args:
        config: all settings.
        dataset: the images; by default loaded by the name in `config`.
        resume: continue the run in `config.folder` from its last checkpoint, or from the start if it has none.
        progress: show a progress bar and one line per epoch on standard error.

    Raises:
        ValueError: the data set has no training images or too few classes, or settings are incompatible.
        FileExistsError: the folder already holds a run, and `resume` is False.
        InUseError: another process is training there.
        NonFiniteError: embeddings, loss or gradient are not finite, and `config.skip_non_finite` is False.
        TrainingStopped: on Ctrl-C, SIGTERM or SIGHUP; the checkpoint has been written, unless that was the third one.

    Warns:
        UserWarning: test images select the best epoch (`select_on="test"`).

    Example:
        >>> train(TrainConfig(dataset="orl", objective="margin", batch_size=16, epochs=2))  # doctest: +SKIP
    """
    with separate_random_streams(config.seed):
        check_names(config)  # a misspelt name is reported before images are listed and weights downloaded
    check_loggers(config.loggers)
    check_output(config.folder)
    config = with_weights_recorded(config, needed=not (resume and (config.folder / LAST).exists()))
    with (
        process_group(config.device) as processes,
        separate_random_streams(config.seed),
        deterministic(processes.device),
        contextlib.ExitStack() as claimed,
    ):
        with processes.first_goes_ahead():
            if processes.is_first:  # before anything is read or written, until the end
                claimed.enter_context(claim_run(config.folder, resume=resume))
            data = load_training_data(config) if dataset is None else dataset
        split = split_for_training(data, config, warn=processes.is_first)
        check_images(config, split)
        with processes.first_goes_ahead():
            state = open_run(config, split, resume=resume, write=processes.is_first)
        components = build_components(config, split, processes, state, progress=progress)
        check_space(config.folder, components.embedder, components.optimizer)
        display = Display(progress and processes.is_first)
        run = _TrainingRun(config, split.validation, split.test, components, processes, display, state)
        try:
            return run.finish()
        finally:
            run.close()


class _TrainingRun:
    """One run in one process."""

    def __init__(
        self,
        config: TrainConfig,
        validation: ImageSet | None,
        test: ImageSet,
        components: Components,
        processes: ProcessGroup,
        display: Display,
        state: dict[str, Any] | None,
    ) -> None:
        self.config, self.validation, self.test, self.processes = config, validation, test, processes
        self.folder, self.display, self.components = config.folder, display, components
        self.position = Position()
        if state is not None:
            with restoring(self.folder / LAST):
                self._restore(state)
        writes = self.folder if processes.is_first else None
        done = {"epochs": self.position.epoch, "steps": self.position.step}
        self.log = MetricLog(writes, **done, loggers=config.loggers, settings=config.to_dict())
        self.loader: TrainingLoader | FeatureLoader
        if components.frozen is None:
            self.loader = TrainingLoader(
                components.train.images, components.augment, workers=config.workers, on_bad_image=config.on_bad_image
            )
        else:
            self.loader = components.frozen.loader()
        self.warned_of_saturation = False
        self.interrupts = InterruptHandler(immediate=processes.size == 1)

    def _restore(self, state: Mapping[str, Any]) -> None:
        own, components = self._progress(), self.components
        for name in ("position", "sampler"):
            check_like(state[name], own[name], name)
        for given, mine in ((state["random"], own["random"]), (state["scaler"], own["scaler"])):
            for name in mine.keys() - {"cuda"}:  # another machine may have another number of GPUs, or none
                check_like(given[name], mine[name], name)
        self.position = Position(**state["position"])
        if min(self.position.epoch, self.position.batch, self.position.step) < 0:
            raise ValueError(f"position: need 0 or more, got {self.position}")
        load_optimizer(components.optimizer, state["optimizer"])
        components.stepper.scaler.load_state_dict(state["scaler"])
        components.sampler.load_state_dict(state["sampler"])
        set_random_states(state["random"])

    def finish(self) -> TrainResult:
        """Train the remaining epochs and test."""
        position = self.position
        self.log.add("start", step=position.step, **self.components.facts(self.processes))
        if position.step:
            self.display.say(f"resuming {self.folder} after step {position.step}")
        with self.interrupts.installed():
            try:
                if position.step == 0:
                    self._before_training()
                while position.epoch < self.config.epochs and not self._out_of_patience():
                    self._epoch()
                return self._test()
            except KeyboardInterrupt:
                raise TrainingStopped(self.folder, position.step, saved=self._save_if_whole()) from None

    def _save_if_whole(self) -> bool:
        """Save what is between two steps; a state within a step is not worth a good checkpoint."""
        if self.interrupts.torn:
            return False
        try:
            with self.interrupts.protected():
                self._save(LAST)
        except KeyboardInterrupt:
            return False
        return True

    def close(self) -> None:
        """Stop worker processes and flush logs."""
        self.loader.close()
        self.log.close()

    def _before_training(self) -> None:
        """Save and validate the network as it is, as epoch 0."""
        config = self.config
        if self.components.sampler.needs_embeddings:
            self._store_embeddings()
        if not config.frozen_baseline:
            return
        embedder = network_before_training(config, self.components.embedder)
        if self.processes.is_first:
            embedder.save(self.folder / FROZEN)
        if self.validation is None:
            return
        value = self.position.frozen_value = self._measure(embedder, self.validation, epoch=0)
        line = f"before training: {config.select_on} {config.metric} (K = {config.select_rerank_at}) {100 * value:.2f}"
        self.display.say(f"{line} (epoch 0)")

    def _out_of_patience(self) -> bool:
        """Whether the last validations have brought nothing better."""
        config, position = self.config, self.position
        if config.patience is None or position.best_epoch is None:
            return False
        return position.epoch - position.best_epoch >= config.patience * config.validate_every

    def _epoch(self) -> None:
        """Take the remaining steps of an epoch, validate, save."""
        position, config = self.position, self.config
        planned = [list(batch) for batch in self.components.sampler.batches(position.epoch)]
        mine = [batch[self.processes.shares(len(batch))[self.processes.rank]] for batch in planned[position.batch :]]
        batches = self.loader.epoch(mine, seed=config.seed, epoch=position.epoch)
        title = f"epoch {position.epoch + 1}/{config.epochs}"
        with self.display.epoch(title, len(planned), position.batch):
            started = time.perf_counter()
            for loaded in batches:
                warn_of_bad(loaded.bad)
                with self.interrupts.protected():
                    self._step(loaded.images, loaded.indices, planned[position.batch], started)
                    if position.step % config.checkpoint_every == 0 and position.batch < len(planned):
                        self._save(LAST)
                self._stop_if_requested()
                started = time.perf_counter()
        last = position.epoch + 1 == config.epochs
        value = self._validated(last)
        with self.interrupts.protected():
            position.epoch, position.batch = position.epoch + 1, 0
            improved = value is not None and (position.best_value is None or value > position.best_value)
            if improved:
                position.best_epoch, position.best_value = position.epoch, value
            if self.processes.is_first and (improved or (last and self.validation is None)):
                # BEST before LAST: if killed in between, the epoch is repeated and both are written again.
                self._save(BEST)
                publish_model(self.folder / BEST, self.folder)
            self._save(LAST)
            self.log.write_table()
            self._say_epoch(value)
        self._stop_if_requested()

    def _step(self, images: Any, indices: Any, batch: Sequence[int], started: float) -> None:
        components, position = self.components, self.position
        lr = set_learning_rates(components.optimizer, components.schedule.factor(position.step))
        step = components.stepper.step(images, components.labels[indices], position.step)
        position.batch, position.step = position.batch + 1, position.step + 1
        if step.fault is not None:
            position.skipped_steps += 1
            if not self.config.skip_non_finite and not step.empty:
                names = tuple(components.train.image_name(index) for index in batch)
                raise NonFiniteError(step.fault, position.step, names)
        if components.sampler.needs_embeddings:
            rows = self.processes.gather(indices.to(self.processes.device))
            if step.pooled is not None:
                components.sampler.update(rows.cpu(), step.pooled.cpu())
        speed = len(batch) / (time.perf_counter() - started)
        self._log_step(step, lr, speed)

    def _log_step(self, step: Step, lr: float, speed: float) -> None:
        numbers = {"loss": step.loss, "gradient_norm": step.gradient_norm}
        plain = {name: value if math.isfinite(value) else None for name, value in numbers.items()}  # JSON has no NaN
        fault = {} if step.fault is None else {"fault": step.fault}
        counts = self.components.objective.statistics
        position = self.position
        where = {"epoch": position.epoch + 1, "step": position.step}
        self.log.add("train", **where, **plain, lr=lr, images_per_second=round(speed, 2), **counts, **fault)
        self.display.step(step.loss, lr, speed)

    def _validate(self, images: ImageSet, last: bool) -> float | None:
        """Evaluate; returns the metric that selects the best epoch, a fraction. None between validations."""
        config, epoch = self.config, self.position.epoch + 1
        if not last and epoch % config.validate_every:
            return None
        return self._measure(self.components.embedder, images, epoch)

    def _validated(self, last: bool) -> float | None:
        """Validate after the steps of an epoch; should it fail, they are saved, and a resumed run tries it again."""
        if self.validation is None:
            return None
        try:
            return self._validate(self.validation, last)
        except Exception:
            self._save(LAST)
            raise

    def _measure(self, embedder: Embedder, images: ImageSet, epoch: int) -> float:
        """The metric that selects the best epoch, logged with all others."""
        config = self.config
        report = self._evaluate(embedder, images, sorted({0, config.select_rerank_at}), resamples=1)
        for row in report.rows:
            self.log.add("validation", epoch=epoch, step=self.position.step, **row)
        value = report.row(config.select_rerank_at)[config.metric]
        if value >= 1 and not self.warned_of_saturation and self.processes.is_first:
            self.warned_of_saturation = True
            warn_of_saturation(config, images, epoch)
        return value

    def _say_epoch(self, value: float | None) -> None:
        """Print one line about the finished epoch."""
        config, position = self.config, self.position
        loss = self.log.mean_loss(position.epoch)
        line = f"epoch {position.epoch}/{config.epochs}  loss {math.nan if loss is None else loss:.4f}"
        if value is not None and position.best_value is not None:
            line += f"  {config.select_on} {config.metric} (K = {config.select_rerank_at}) {100 * value:.2f}"
            line += f"  best {100 * position.best_value:.2f} (epoch {position.best_epoch})"
            if position.frozen_value is not None:
                line += f"  before training {100 * position.frozen_value:.2f}"
        self.display.say(line)

    def _evaluate(self, embedder: Embedder, images: ImageSet, rerank_at: Sequence[int], resamples: int) -> Report:
        found = self._embed(embedder, images)
        parts = [
            evaluate_regions(
                found.regions,
                found.images.labels,
                rerank_at=rerank_at,
                matcher=self.config.matcher,
                seed=self.config.seed,
                resamples=resamples,
                processes=self.processes,
                **sides,
            )
            for sides in draws_of(found.images)
        ]
        return Report.concat(parts)

    def _embed(self, embedder: Embedder, images: ImageSet) -> SharedEmbedding:
        config = self.config
        if self.components.frozen is not None:
            return self.components.frozen.embedded(embedder, images)
        return embed_shared(
            embedder,
            images,
            self.processes,
            batch_size=config.evaluation_batch_size,
            workers=config.workers,
            on_bad_image=config.on_bad_image,
        )

    def _test(self) -> TrainResult:
        """Test the best embedder once, beside the network before training; write tables and curves."""
        config, position = self.config, self.position
        self.processes.wait()  # until the first process has written the best embedder
        embedder = load_embedder(self.folder).to(self.processes.device)
        ks = sorted({0, config.rerank_at})
        report = self._evaluate(embedder, self.test, ks, resamples=1000)
        frozen = None
        if config.frozen_baseline and (self.folder / FROZEN).is_dir():  # a run of an earlier version has none
            before = load_embedder(self.folder / FROZEN).to(self.processes.device)
            frozen = self._evaluate(before, self.test, ks, resamples=1000)
        reports = reports_of_test(self.folder.name, report, frozen)
        for name, tested in reports.items():
            for row in tested.rows:
                self.log.add("test" if name == self.folder.name else "frozen_test", step=position.step, **row)
        if self.processes.is_first:
            settings = config.to_dict() | {"best_epoch": position.best_epoch, "skipped_steps": position.skipped_steps}
            write_reports(self.folder, reports, settings, gains(report, frozen))
            self._draw_curves()
        self.processes.wait()
        best = (position.best_epoch, position.best_value)
        return TrainResult(self.folder, report, frozen, *best, position.skipped_steps)

    def _draw_curves(self) -> None:
        """Write the curves if matplotlib is installed."""
        if importlib.util.find_spec("matplotlib") is None:
            return
        from diml.training.curves import write_curves

        path, best_epoch = self.folder / CURVES, self.position.best_epoch
        write_curves(path, self.log.records, metric=self.config.metric, best_epoch=best_epoch)

    def _store_embeddings(self) -> None:
        """Embed all training images for a sampler that depends on embeddings."""
        components = self.components
        found = self._embed(components.embedder, components.train)
        components.sampler.update(found.kept.cpu(), found.regions.pooled.cpu())

    def _save(self, name: str) -> None:
        """Write a checkpoint; only the first process does."""
        if not self.processes.is_first:
            return
        components = self.components
        state = {
            **self._progress(),
            "objective": components.objective.state_dict(),
            "optimizer": components.optimizer.state_dict(),
            "data": components.data_fingerprint,
            "config": self.config.to_dict(),
        }
        write_checkpoint(self.folder / name, components.embedder, state)

    def _progress(self) -> dict[str, Any]:
        """Return those parts of a checkpoint's state that have the same form from the first step to the last."""
        return {
            "position": dataclasses.asdict(self.position),
            "scaler": self.components.stepper.scaler.state_dict(),
            "sampler": self.components.sampler.state_dict(),
            "random": random_states(),
        }

    def _stop_if_requested(self) -> None:
        """Stop if an interrupt was requested in any process, all after the same step."""
        if self.processes.any(self.interrupts.requested)[0]:
            raise KeyboardInterrupt
