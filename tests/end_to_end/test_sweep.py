"""`diml sweep`: combinations of settings x seeds from a file, resumed, and tabulated."""

from __future__ import annotations

import csv
import errno
import json
import os
import signal
from pathlib import Path
from statistics import mean

import pytest
import yaml

from diml.cli import main
from diml.matching import Matcher
from diml.training.logs import DamagedLogWarning
from diml.training.steps import Stepper
from diml.training.sweep import collect_results, read_sweep
from end_to_end.small_runs import SMALL

SHORT = {"epochs": 1, "sampler_options": {"batches_per_epoch": 2}, "rerank_at": 4}


@pytest.fixture
def write(images, tmp_path):
    """Write a sweep file, with some keys replaced."""

    def written(**parts):
        base = {name: list(v) if isinstance(v, tuple) else v for name, v in SMALL.items()}
        values = {"output": str(tmp_path / "sweep"), "base": base | SHORT | {"data": str(images)}, "seeds": [0, 1]}
        path = tmp_path / "sweep.yaml"
        path.write_text(yaml.safe_dump(values | parts))
        return path

    return written


RUNS = {"margin": {"miner": "distance"}, "broken": {"batch_size": 400}}
BASELINE = {"frozen": {"head": "identity", "pretrained": False}, "white": {"head": "whiten", "dim": 8}}


def test_a_sweep_gives_one_table_and_a_failed_run_does_not_stop_the_others(write, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    path = write(runs=RUNS, baseline=BASELINE)
    assert main(["sweep", str(path), "--no-progress"]) == 1
    printed = capsys.readouterr()
    assert "Missing: broken, seed 1: batch_size: " in printed.out
    for name in ("frozen", "white + DIML (4)", "margin", "margin + DIML (4)"):
        assert name in printed.out
    folder = tmp_path / "sweep"
    folders = {"frozen", "white", "margin-0", "margin-1", "broken-0", "broken-1"}
    names = folders | {"results.csv", "results.json", "results.md", ".in_use"}
    assert {place.name for place in folder.iterdir()} == names
    document = json.loads((folder / "results.json").read_text())
    assert document["missing"] == ["broken, seed 0", "broken, seed 1"]
    rows = {(row["method"], row["rerank_at"]): row for row in document["rows"]}
    assert list(rows) == [(name, k) for name in ("frozen", "white", "margin") for k in (0, 4)]
    # compared with the tests of the runs themselves
    tests = [json.loads((folder / f"margin-{seed}" / "evaluation.json").read_text()) for seed in (0, 1)]
    plain, refined = ([test["methods"][f"margin-{s}"]["rows"][i] for s, test in enumerate(tests)] for i in (0, 1))
    for metric in ("recall@1", "r_precision", "map@r"):
        values = [row[metric] for row in refined]
        found = rows["margin", 4]["metrics"][metric]
        assert found["values"] == values
        assert (found["mean"], found["min"], found["max"]) == pytest.approx((mean(values), min(values), max(values)))
        gains = [ours[metric] - theirs[metric] for ours, theirs in zip(refined, plain, strict=True)]
        assert rows["margin", 4]["gains"][metric]["values"] == pytest.approx(gains)
    assert rows["margin", 0]["gains"] is None
    assert rows["margin", 0]["best_epochs"] == [1, 1]
    lines = list(csv.DictReader((folder / "results.csv").read_text().splitlines()))
    assert [line["seeds"] for line in lines] == [""] * 4 + ["0 1"] * 2
    assert float(lines[-1]["map@r_gain"]) == pytest.approx(rows["margin", 4]["gains"]["map@r"]["mean"], abs=1e-6)
    text = (folder / "results.md").read_text()
    assert "| margin + DIML (4) | 2 | " in text
    assert "Not finished: broken, seed 0; broken, seed 1." in text
    # again: finished runs are skipped
    before = {file: file.stat().st_mtime_ns for file in folder.glob("*/evaluation.json")}
    assert main(["sweep", str(write(runs={"margin": RUNS["margin"]}, baseline=BASELINE)), "--no-progress"]) == 0
    assert capsys.readouterr().err.count("already finished") == 4
    assert {file: file.stat().st_mtime_ns for file in before} == before


def test_ctrl_c_stops_the_sweep_and_the_same_command_resumes(write, tmp_path, capsys, monkeypatch):
    path = write(runs={"first": {}, "second": {}}, seeds=[3])
    whole = Stepper.step

    def step(self, images, labels, number):
        if "second" in str(self.config.folder):
            os.kill(os.getpid(), signal.SIGINT)
        return whole(self, images, labels, number)

    with monkeypatch.context() as patched:
        patched.setattr(Stepper, "step", step)
        assert main(["sweep", str(path), "--no-progress"]) == 130
    assert f"Resume with: diml sweep {path}" in capsys.readouterr().err
    assert main(["sweep", str(path), "--table-only"]) == 0
    assert "Missing: second, seed 3: not finished" in capsys.readouterr().out
    assert main(["sweep", str(path), "--no-progress"]) == 0
    error = capsys.readouterr().err
    assert "first, seed 3: already finished" in error
    assert "second, seed 3: resuming" in error
    # the interrupted run has the results of the other one, as their settings are the same
    first, second = collect_results(read_sweep(path)).rows[1::2]
    assert first.metrics == second.metrics


@pytest.mark.parametrize(
    ("error", "line", "shown"),
    [
        (
            OSError(errno.ENOSPC, "No space left on device", "run/last.ckpt"),
            "last.ckpt: No space left on device; the disk is full; free",
            False,
        ),
        (RuntimeError("DataLoader worker (pid 1) is killed"), "lower --workers or --batch-size", False),
        (KeyError("conv"), "KeyError: 'conv': a bug of diml, not of your input; please report", True),
    ],
)
def test_an_error_of_a_run_is_told_as_that_of_a_command(error, line, shown, write, capsys, monkeypatch):
    def fails(*_, **__):
        raise error

    monkeypatch.setattr("diml.training.loop.train", fails)
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["sweep", str(write(runs={"margin": {}}, seeds=[0])), "--no-progress"]) == 1
    printed = capsys.readouterr()
    assert line in printed.err
    assert line in printed.out
    assert ("Traceback" in printed.err) == shown


def test_a_damaged_log_is_named(write, tmp_path, capsys):
    path = write(runs={"margin": {}}, seeds=[0])
    assert main(["sweep", str(path), "--no-progress"]) == 0
    log = tmp_path / "sweep" / "margin-0" / "metrics.jsonl"
    log.write_text(log.read_text().replace('"epoch": 1', '"epoch": 7', 1))
    for words in (["sweep", str(path)], ["report", str(log.parent), "--html", str(tmp_path / "a.html"), "--no-cache"]):
        with pytest.warns(DamagedLogWarning, match=r"metrics.jsonl: line \d is damaged"):
            assert main(words) == 0
    with pytest.warns(DamagedLogWarning, match=r"metrics.jsonl: line \d is damaged"):
        assert main(["train", "--resume", "--output", str(log.parent), "--no-progress"]) == 0
    capsys.readouterr()


def test_matching_settings_are_combined_key_by_key(write, tmp_path):
    """Matching settings of `base` hold for all runs and baselines, and each of them can change single ones."""
    settings = {"base": {"dataset": "orl", "matcher": {"epsilon": 0.02}}}
    settings |= {"runs": {"same": {}, "uniform": {"matcher": {"weights": "uniform"}}}, "seeds": [0]}
    settings |= {"baseline": {"frozen": {"matcher": {"epsilon": 0.1}}}}
    path = write(**settings)
    jobs = {job.name: job for job in read_sweep(path).jobs}
    assert jobs["same"].config.matcher == Matcher(epsilon=0.02)
    assert jobs["uniform"].config.matcher == Matcher(epsilon=0.02, weights="uniform")
    assert jobs["frozen"].config.matcher == Matcher(epsilon=0.1)
    assert jobs["frozen"].settings["matcher"] == Matcher(epsilon=0.1).to_dict()


def test_the_matcher_is_that_of_training_and_of_the_results(write, tmp_path):
    base = yaml.safe_load(write().read_text())["base"] | {"objective": "margin_diml", "matcher": {"epsilon": 0.02}}
    path = write(base=base, runs={"one": {}}, seeds=[0], baseline={"frozen": {"pretrained": False}})
    assert main(["sweep", str(path), "--no-progress"]) == 0
    for name in ("one-0", "frozen"):
        document = json.loads((tmp_path / "sweep" / name / "evaluation.json").read_text())
        for report in document["methods"].values():  # of the network before training too
            assert report["settings"]["matcher"] == document["config"]["matcher"] == Matcher(epsilon=0.02).to_dict()
    other = write(base=base | {"matcher": {"epsilon": 0.05}}, runs={"one": {}}, seeds=[0])
    assert collect_results(read_sweep(other)).missing == ("one, seed 0",)


def test_runs_with_other_settings_do_not_count_as_finished(write, tmp_path, capsys):
    assert main(["sweep", str(write(runs={"one": {}}, seeds=[0])), "--no-progress"]) == 0
    other = write(runs={"one": {"lr": 0.5}}, seeds=[0])
    capsys.readouterr()
    assert main(["sweep", str(other), "--table-only"]) == 2
    assert "is finished yet; omit --table-only to train" in capsys.readouterr().err
    assert main(["sweep", str(other), "--no-progress"]) == 1
    shown = capsys.readouterr().out
    assert "lr (0.001 to 0.5)" in shown
    assert f"remove {tmp_path / 'sweep' / 'one-0'}" in shown


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"runs": {"a": {"learningrate": 1}}}, r"runs: a: unknown key 'learningrate'"),
        (
            {"runs": {"a": {"seed": 1}}},
            r"runs: a: seed is not allowed here; each combination is trained with all `seeds`",
        ),
        ({"base": {"dataset": "orl", "output": "x"}}, r"base: output is not allowed here; .*`output`, at the top"),
        ({"base": {"dataset": "orll"}}, r"base: dataset: .*'orll'; did you mean 'orl'"),
        ({"runs": {"a": {"sampler": "fidd"}}}, r"runs: a: .*'fidd'; did you mean 'fid'"),
        ({"runs": {"a": {"sampler_options": {"pool": "x"}}}}, r"runs: a: sampler class_balanced: no option 'pool'"),
        ({"runs": {"a": {"objective_options": {"beta": "x"}}}}, r"runs: a: objective_options: beta: need a number"),
        ({"runs": {"a": {"data": "x"}}}, r"runs: a: data is not allowed here; .* see `base`"),
        ({"runs": {"a": {"objective": "margn"}}}, r"runs: a: .*'margn'.*margin"),
        ({"runs": {"a": {"objective_options": {"bta": 1}}}}, r"runs: a: .*bta"),
        ({"runs": {"a": {"objective": "proxyanchor", "miner": "distance"}}}, r"runs: a: .*miner"),
        ({"runs": {"a": {"matcher": {"epsilom": 1}}}}, r"runs: a: matcher: unknown setting 'epsilom'"),
        (
            {"runs": {"a": {"matcher": {"epsilon": -1}}}},
            r"runs: a: matcher: epsilon: need a finite number of at least 0",
        ),
        ({"runs": {"a": {"objective_options": {"epsilon": 0.1}}}}, r"runs: a: .*epsilon is a matching setting"),
        ({"runs": {"a": {"epochs": 0}}}, r"runs: a: epochs: need a number of at least 1"),
        ({"runs": {"a b": {}}}, r"need a name of letters"),
        ({"runs": ["a"]}, r"runs: need lines"),
        ({"runs": {}}, r"at least one run or baseline"),
        ({"runs": {"a": {}}, "seeds": [1, 1]}, r"seeds: need a list of distinct"),
        ({"runs": {"a": {}}, "seeds": 3}, r"seeds: need a list of distinct"),
        ({"runs": {"a": {}}, "baseline": {"a-0": {}}}, r"two runs would be written to"),
        ({"baseline": {"b": {"head": "linear"}}}, r"baseline: b: head: need identity or whiten for a frozen baseline"),
        ({"baseline": {"b": {"epochs": 2}}}, r"baseline: b: unknown key 'epochs'"),
        ({"base": {"epochs": 2}, "runs": {"a": {}}}, r"base: need the name of a data set"),
        ({"rnus": {}}, r"unknown key 'rnus'; did you mean 'runs'"),
    ],
)
def test_errors_in_the_file_are_found_before_anything_is_trained(parts, message, write):
    with pytest.raises(ValueError, match=message):
        read_sweep(write(**parts))


def test_several_processes_raise(write, capsys, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(["sweep", str(write(runs={"a": {}}))]) == 2
    assert "torchrun" in capsys.readouterr().err


def test_a_missing_file_is_an_error(capsys):
    assert main(["sweep", "nowhere.yaml"]) == 2
    assert "no file nowhere.yaml" in capsys.readouterr().err


def test_the_sweep_of_the_repository_reads():
    sweep = read_sweep(Path(__file__).parents[2] / "benchmarks" / "grocery_training.yaml")
    assert [job.title for job in sweep.jobs][:3] == [
        "baseline frozen_mobilenetv2_100",
        "margin, seed 0",
        "margin, seed 1",
    ]
    assert len(sweep.jobs) == 11
    assert {job.config.protocol for job in sweep.jobs} == {"class_disjoint"}
