from __future__ import annotations

import csv
import json
import sys
import types

import pytest

from diml.evaluation.metrics import METRICS
from diml.training.logs import Display, MetricLog, read_records


def fill(log: MetricLog) -> None:
    log.add("start", step=0)
    for step in range(1, 5):
        epoch = (step + 1) // 2
        loss = None if step == 3 else float(step)
        log.add("train", epoch=epoch, step=step, loss=loss, lr=0.1, images_per_second=10.0 * step)
        if step % 2 == 0:
            for k in (0, 5):
                log.add("validation", epoch=epoch, step=step, rerank_at=k, **dict.fromkeys(METRICS, 0.1 * epoch))
    log.add("test", step=4, rerank_at=0, **dict.fromkeys(METRICS, 0.5))


def test_one_line_per_record(tmp_path):
    log = MetricLog(tmp_path)
    fill(log)
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == log.records == read_records(tmp_path / "metrics.jsonl")
    assert len(lines) == 10


def test_the_table_has_one_line_per_epoch(tmp_path):
    log = MetricLog(tmp_path)
    fill(log)
    log.write_table()
    rows = list(csv.DictReader((tmp_path / "metrics.csv").read_text().splitlines()))
    assert [(row["epoch"], row["step"], float(row["loss"]), float(row["images_per_second"])) for row in rows] == [
        ("1", "2", 1.5, 15.0),
        ("2", "4", 4.0, 35.0),  # the skipped step has no loss
    ]
    assert float(rows[1]["validation_map@r_k5"]) == pytest.approx(0.2)


def test_resuming_drops_records_that_will_be_repeated_and_an_incomplete_line(tmp_path):
    fill(MetricLog(tmp_path))
    with (tmp_path / "metrics.jsonl").open("a") as lines:
        lines.write('{"kind": "tra')
    log = MetricLog(tmp_path, epochs=1, steps=3)
    kinds = [(record["kind"], record["step"]) for record in log.records]
    assert kinds == [("start", 0), ("train", 1), ("train", 2), ("validation", 2), ("validation", 2), ("train", 3)]
    assert read_records(tmp_path / "metrics.jsonl") == log.records


def test_an_unsaved_validation_is_repeated(tmp_path):
    fill(MetricLog(tmp_path))
    log = MetricLog(tmp_path, epochs=1, steps=4)
    assert [record["step"] for record in log.records if record["kind"] == "validation"] == [2, 2]


def test_other_processes_write_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    log = MetricLog(None)
    fill(log)
    log.write_table()
    log.close()
    assert list(tmp_path.iterdir()) == []
    assert log.mean_loss(1) is None


def test_tensorboard_gets_the_same_numbers_if_installed(tmp_path, monkeypatch):
    written = []

    class Writer:
        def __init__(self, folder, purge_step):
            written.append((folder, purge_step))

        def add_scalar(self, name, value, step):
            written.append((name, value, step))

        def close(self):
            written.append("closed")

    monkeypatch.setattr("importlib.util.find_spec", lambda name: name == "tensorboard" or None)
    module = types.SimpleNamespace(SummaryWriter=Writer)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    log = MetricLog(tmp_path, steps=6)
    log.add("train", epoch=1, step=7, loss=0.5, lr=0.1, fault="words are no number")
    log.add("validation", epoch=1, step=7, rerank_at=5, **{"map@r": 0.25})
    log.close()
    assert written == [
        (str(tmp_path / "tensorboard"), 7),
        ("train/loss", 0.5, 7),
        ("train/lr", 0.1, 7),
        ("validation/k5/map@r", 0.25, 7),
        "closed",
    ]


def test_the_bar_shows_loss_rate_and_speed(capsys):
    display = Display(True)
    with display.epoch("epoch 1/3", 4, 1):
        display.step(0.123456, 1e-3, 81.2)
        numbers = display._bar.tasks[0]
        assert numbers.completed == 2
        assert numbers.fields["numbers"] == "loss 0.1235  lr 0.001  81 images/s"
    display.say("epoch 1/3 [done]")
    out, error = capsys.readouterr()
    assert out == ""
    assert "epoch 1/3 [done]" in error


def test_nothing_is_shown_if_not_wanted(capsys):
    display = Display(False)
    with display.epoch("epoch", 4, 0):
        display.step(1.0, 1.0, 1.0)
    display.say("words")
    assert capsys.readouterr() == ("", "")
