"""Loggers beside metrics.jsonl: each gets every number once, also after a kill; one that fails does not end a run."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import random
import subprocess
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

from diml.cli.train import parse
from diml.extras import MissingExtraError
from diml.training import TrainConfig, train
from diml.training import loggers as module
from diml.training.loggers import IDS, Loggers, LoggerWarning, check_loggers
from diml.training.logs import MetricLog
from diml.training.sweep import Job
from end_to_end.small_runs import make_images, small_config


class Recorder:
    """A logger in memory that continues a run where the folder has an id, as those of other people do."""

    runs: dict[str, list[tuple[str, float, int]]]
    failing: str = ""

    def __init__(self, run: Any) -> None:
        if self.failing == "open":
            raise ConnectionError("nobody answers\nand more")
        known = module._known_id(run.folder, "wandb")
        self.keeps = known is not None
        self.id = known or f"run{len(self.runs)}"
        module._keep_id(run.folder, "wandb", self.id)
        self.rows = self.runs.setdefault(self.id, [])

    def add(self, values: Any, step: int) -> None:
        if self.failing == "add":
            raise RuntimeError("the server is gone")
        self.rows += [(name, value, step) for name, value in values.items()]

    def close(self) -> None:
        if self.failing == "close":
            raise TimeoutError("no answer")


@pytest.fixture
def recorder(monkeypatch):
    kind = type("Recorder", (Recorder,), {"runs": {}})
    monkeypatch.setitem(module._KINDS, "wandb", kind)
    return kind


def steps_of(rows) -> list[int]:
    return [step for name, _, step in rows if name == "train/loss"]


def add_steps(log: MetricLog, *steps: int) -> None:
    for step in steps:
        log.add("train", epoch=1, step=step, loss=1 / step, lr=0.1, images_per_second=9.0)


def test_rows_after_the_checkpoint_are_not_doubled_however_often_it_is_killed(recorder, tmp_path):
    log = MetricLog(tmp_path, loggers=("wandb",))
    add_steps(log, 1, 2, 3, 4, 5, 6)  # killed: nothing is closed; the last checkpoint is that of step 4
    log.add("validation", epoch=1, step=6, rerank_at=0, **{"map@r": 0.5})
    log = MetricLog(tmp_path, steps=4, loggers=("wandb",))
    add_steps(log, 5)  # killed again: metrics.jsonl has no step 6 any more, the logger has
    log = MetricLog(tmp_path, steps=4, loggers=("wandb",))
    add_steps(log, 5, 6)
    log.add("validation", epoch=1, step=6, rerank_at=0, **{"map@r": 0.5})
    log.add("validation", epoch=1, step=6, rerank_at=5, **{"map@r": 0.75})
    add_steps(log, 7)
    log.close()
    (rows,) = recorder.runs.values()
    assert steps_of(rows) == [1, 2, 3, 4, 5, 6, 7]
    found = [row for row in rows if row[0].startswith("validation")]
    assert found == [("validation/k0/map@r", 0.5, 6), ("validation/k5/map@r", 0.75, 6)]


def test_a_logger_that_is_added_when_a_run_is_resumed_gets_what_follows(recorder, tmp_path):
    add_steps(MetricLog(tmp_path, loggers=()), 1, 2, 3)
    log = MetricLog(tmp_path, steps=2, loggers=("wandb",))
    add_steps(log, 3, 4)
    assert steps_of(recorder.runs["run0"]) == [3, 4]


@pytest.mark.parametrize("when", ["open", "add", "close"])
def test_a_logger_that_fails_is_left_out_and_the_run_goes_on(recorder, tmp_path, when):
    recorder.failing = when
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        log = MetricLog(tmp_path, loggers=("wandb",))
        add_steps(log, 1, 2)
        log.close()
    assert [entry.category for entry in caught] == [LoggerWarning]
    assert "logger wandb has failed" in str(caught[0].message)
    assert "\n" not in str(caught[0].message)
    assert [record["step"] for record in log.records] == [1, 2]


def test_a_damaged_file_of_ids_is_told_with_the_remedy(recorder, tmp_path):
    MetricLog(tmp_path, loggers=("wandb",)).close()
    (tmp_path / IDS).write_text((tmp_path / IDS).read_text().replace("run0", "run9"))
    with pytest.warns(LoggerWarning, match=r"loggers\.json: damaged.*remove it: the logger then begins a new run"):
        MetricLog(tmp_path, loggers=("wandb",))


def test_names_are_checked_before_anything_else(monkeypatch):
    with pytest.raises(ValueError, match="loggers: no 'wandbb'; did you mean 'wandb'"):
        check_loggers(("wandbb",))
    monkeypatch.setattr(module, "require", lambda *_: None)
    with pytest.raises(ValueError, match="loggers: need each once, got tensorboard, tensorboard"):
        check_loggers(("tensorboard", "tensorboard"))
    monkeypatch.undo()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"loggers: mlflow.*pip install 'diml\[mlflow\]'"):
        check_loggers(("mlflow",))
    check_loggers(None)


def test_loggers_are_a_setting_of_the_command_line_and_of_files():
    assert parse(["orl"]).loggers is None
    assert parse(["orl", "--loggers", "wandb", "mlflow"]).loggers == ("wandb", "mlflow")
    assert parse(["orl", "--loggers"]).loggers == ()
    config = TrainConfig.from_dict({"dataset": "orl", "loggers": ["wandb"]})
    assert config.loggers == ("wandb",)
    assert TrainConfig.from_dict(config.to_dict()) == config


def test_a_training_ends_although_its_logger_fails_and_may_be_resumed_with_another(recorder, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "require", lambda *_: None)
    recorder.failing = "add"
    images = make_images(tmp_path, train=6, test=2)
    small = {"epochs": 1, "sampler_options": ("batches_per_epoch=2",), "frozen_baseline": False}
    config = small_config(images, tmp_path / "run", loggers=("wandb",), **small)
    with pytest.warns(LoggerWarning, match=r"logger wandb has failed \(RuntimeError: the server is gone\)") as caught:
        result = train(config)
    assert len([entry for entry in caught if entry.category is LoggerWarning]) == 1
    assert (result.folder / "evaluation.json").is_file()
    assert train(dataclasses.replace(config, loggers=()), resume=True).test.rows == result.test.rows
    assert "loggers" not in Job(name="a", config=config).settings  # a sweep has not to repeat the run


def states() -> list[Any]:
    return [random.getstate(), torch.get_rng_state().tolist()]


def test_weights_and_biases_offline_has_every_number_once(tmp_path, monkeypatch):
    """In the mode without a network, continued under one id; no random number of the training is drawn."""
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    folder = tmp_path / "margin-0"
    folder.mkdir()
    before = states()
    rows: list[dict[str, Any]] = []
    original = wandb.Run.log
    monkeypatch.setattr(wandb.Run, "log", lambda self, data: (rows.append(data), original(self, data))[1])
    log = MetricLog(folder, loggers=("wandb",), settings={"lr": 0.1, "matcher": {"epsilon": 0.05}})
    add_steps(log, 1, 2)
    log.close()
    log = MetricLog(folder, steps=1, loggers=("wandb",))
    add_steps(log, 2, 3)
    log.close()
    assert states() == before
    assert [row["step"] for row in rows] == [1, 2, 3]
    run_id = json.loads((folder / IDS).read_text())["wandb"]
    written = list((folder / "wandb").glob(f"offline-run-*/run-{run_id}.wandb"))
    assert written
    deadline = time.monotonic() + 60  # wandb writes in a process of its own, which may be behind
    while not all(b"train/loss" in path.read_bytes() for path in written) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert all(b"train/loss" in path.read_bytes() for path in written)


MLFLOW = """
import sys
from mlflow import MlflowClient
from pathlib import Path
from diml.training.logs import MetricLog
folder = Path(sys.argv[1])
for done, steps in ((0, (1, 2)), (1, (2, 3))):
    log = MetricLog(folder, steps=done, loggers=("mlflow",), settings={"lr": 0.1, "note": "x" * 900})
    for step in steps:
        log.add("train", epoch=1, step=step, loss=1 / step, lr=0.1)
    log.add("validation", epoch=1, step=steps[-1], rerank_at=5, **{"map@r": 0.25})
    log.close()
client = MlflowClient()
(run,) = client.search_runs([client.get_experiment_by_name("diml").experiment_id])
history = [(m.step, m.value) for m in client.get_metric_history(run.info.run_id, "train/loss")]
maps = [(m.step, m.value) for m in client.get_metric_history(run.info.run_id, "validation/k5/map_at_r")]
print(run.info.run_name, run.info.status, run.data.params["lr"], sorted(history), sorted(maps))
"""


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["folder", "sqlite"])
def test_mlflow_has_every_number_once(tmp_path, monkeypatch, kind):
    """With a local folder and a local database, in a process of its own: it warns about itself when imported."""
    pytest.importorskip("mlflow")
    if kind == "sqlite":
        pytest.importorskip("sqlalchemy")
        pytest.importorskip("alembic")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    address = f"sqlite:///{tmp_path / 'mlflow.db'}" if kind == "sqlite" else (tmp_path / "store").as_uri()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    folder = tmp_path / "margin-0"
    folder.mkdir()
    script = tmp_path / "script.py"
    script.write_text(MLFLOW)
    done = subprocess.run(
        [sys.executable, "-W", "error::diml.training.loggers.LoggerWarning", str(script), str(folder)],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert "has failed" not in done.stderr
    expected = "margin-0 FINISHED 0.1 [(1, 1.0), (2, 0.5), (3, 0.3333333333333333)] [(2, 0.25), (3, 0.25)]"
    assert done.stdout.splitlines()[-1] == expected


def test_without_loggers_nothing_is_opened(tmp_path):
    loggers = Loggers(tmp_path, ())
    loggers.add({"train/loss": 1.0}, 1, "train step=1")
    loggers.close()
    assert list(Path(tmp_path).iterdir()) == []
