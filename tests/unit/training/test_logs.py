from __future__ import annotations

import csv
import json
import re
import sys
import types

import pytest
from rich.console import Console

from diml.evaluation.metrics import METRICS
from diml.training.logs import DamagedLogWarning, Display, MetricLog, read_records


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
    found = [json.loads(line) for line in lines]
    assert [line.pop("line") for line in found] == list(range(1, 11))
    assert all(re.fullmatch("[0-9a-f]{64}", line.pop("sha256")) for line in found)
    assert found == log.records == read_records(tmp_path / "metrics.jsonl")
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


def _changed(lines: list[bytes], change: str) -> list[bytes]:
    """Ten lines of which the fourth, or more, is damaged."""
    fourth = lines[3]
    assert b'"recall@1": 0.1' in fourth
    return {
        "another number": [*lines[:3], fourth.replace(b'"recall@1": 0.1', b'"recall@1": 0.2'), *lines[4:]],
        "cut": [*lines[:3], fourth[:20], *lines[4:]],
        "no checksum": [*lines[:3], b'{"kind": "train", "step": 2}', *lines[4:]],
        "not UTF-8": [*lines[:3], b"\xff" * 20, *lines[4:]],
        "zeros": [*lines[:3], bytes(40) + lines[5], *lines[6:]],
        "missing": [*lines[:3], *lines[4:]],
        "doubled": [*lines[:4], fourth, *lines[4:]],
    }[change]


@pytest.mark.parametrize(
    ("change", "said", "kept"),
    [
        ("another number", "line 4 is damaged; ", 9),
        ("cut", "line 4 is damaged; ", 9),
        ("no checksum", "line 4 is damaged; ", 9),
        ("not UTF-8", "line 4 is damaged; ", 9),
        ("zeros", r"line 4 is damaged \(1 more\)", 7),
        ("missing", "lines 4 to 4 are missing", 9),
        ("doubled", "line 4 is doubled", 10),
    ],
)
def test_damage_is_named_and_the_other_lines_are_kept(change, said, kept, tmp_path):
    path = tmp_path / "metrics.jsonl"
    log = MetricLog(tmp_path)
    fill(log)
    lines = path.read_bytes().splitlines()
    path.write_bytes(b"".join(line + b"\n" for line in _changed(lines, change)))
    with pytest.warns(DamagedLogWarning, match=f"metrics.jsonl: {said}"):
        records = read_records(path)
    assert len(records) == kept
    assert all(record in log.records for record in records)
    with pytest.warns(DamagedLogWarning, match=said):
        resumed = MetricLog(tmp_path, epochs=2, steps=4)
    assert read_records(path) == resumed.records  # whole again


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


def test_the_bar_shows_loss_rate_and_speed(capsys, monkeypatch):
    display = Display(True)
    monkeypatch.setattr(display, "_console", Console(stderr=True, force_terminal=True))
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
