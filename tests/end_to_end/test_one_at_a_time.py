"""One process works in the folder of a run or of a sweep at a time; a second one is refused in one line."""

from __future__ import annotations

import sys

import pytest
import yaml

from diml.cli import main
from diml.files import only_user
from diml.training.config import write_config
from diml.training.logs import read_records
from end_to_end.small_runs import SMALL, small_config, start, tensors_of
from end_to_end.stopping import MarkedCommand
from end_to_end.test_distributed import COMMAND

REFUSED = "is in use by process "


@pytest.fixture
def settings(images, tmp_path):
    return write_config(tmp_path / "settings.yaml", small_config(images, tmp_path / "run", epochs=1))


@pytest.fixture
def sweep(images, tmp_path):
    base = {name: list(v) if isinstance(v, tuple) else v for name, v in SMALL.items()}
    values = {"output": str(tmp_path / "sweep"), "base": base | {"data": str(images), "epochs": 1}, "runs": {"a": {}}}
    path = tmp_path / "sweep.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def refused(capsys, words) -> None:
    assert main(list(map(str, words))) == 2
    error = capsys.readouterr().err.strip()
    assert "\n" not in error
    assert REFUSED in error
    assert error.endswith("wait until it has ended, or name another")


def test_a_second_training_and_a_second_resume_are_refused(settings, tmp_path, capsys):
    words = ["train", "csv", "--config", settings, "--no-progress"]
    resume = ["train", "--resume", "--output", tmp_path / "run", "--no-progress"]
    with only_user(tmp_path / "run", "output"):
        refused(capsys, words)
    assert main(list(map(str, words))) == 0
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    with only_user(tmp_path / "run", "output"):
        refused(capsys, resume)
    after = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    assert {path for path in after if after[path] != before.get(path)} <= {tmp_path / "run" / ".in_use"}


def test_a_second_sweep_is_refused_and_a_run_in_use_is_no_reason_to_remove_it(sweep, tmp_path, capsys):
    with only_user(tmp_path / "sweep", "output"):
        refused(capsys, ["sweep", sweep, "--no-progress"])
    (tmp_path / "sweep" / "a-0").mkdir(parents=True)
    (tmp_path / "sweep" / "a-0" / "config.yaml").touch()
    with only_user(tmp_path / "sweep" / "a-0", "output"):
        assert main(["sweep", str(sweep), "--no-progress"]) == 1
    error = capsys.readouterr().err
    assert REFUSED in error
    assert "remove" not in error


@pytest.mark.slow
def test_under_torchrun_only_the_first_process_says_why(settings, tmp_path):
    code = COMMAND.replace("sys.exit(parse(sys.argv[1:]).run())", "from diml.cli import main\nsys.exit(main())")
    assert code != COMMAND
    with only_user(tmp_path / "run", "output"):
        process = start(code, tmp_path / "start", "train", "csv", "--config", settings, processes=2)
        _, error = process.communicate(timeout=200)
    assert process.returncode == 1
    ours = [line for line in error.splitlines() if line.startswith("diml train: ")]
    assert sum(REFUSED in line for line in ours) == 1
    assert all(REFUSED in line or "its message says why" in line for line in ours)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("resume", [False, True])
def test_of_two_processes_one_trains_as_if_alone(settings, tmp_path, resume):
    """Real ones, the second started when the first has written its first checkpoint; then the first is killed."""
    longer = ("--epochs", "40", "--no-progress")
    whole = MarkedCommand("train", "csv", "--config", settings, "--output", tmp_path / "whole", *longer)
    with whole:
        assert whole.end(600)[0] == 0
    words = ("train", "csv", "--config", settings, "--output", tmp_path / "run", *longer)
    again = ("train", "--resume", "--output", tmp_path / "run", "--no-progress")
    with MarkedCommand(*words) as first:
        first.wait_for_file(tmp_path / "run" / "last.ckpt")
        with MarkedCommand(*(again if resume else words)) as second:
            code, _, error = second.end(120)
            assert code == 2
            assert f"{REFUSED}{first.process.pid} on" in error
        first.process.kill()
        first.end()
        with MarkedCommand(*again) as third:  # the lock of the killed process does not outlive it
            code, _, error = third.end(600)
            assert code == 0, error
    ours, theirs = tensors_of(tmp_path / "run" / "last.ckpt"), tensors_of(tmp_path / "whole" / "last.ckpt")
    assert all(bool((ours[name] == theirs[name]).all()) for name in ours)
    assert len(read_records(tmp_path / "run" / "metrics.jsonl")) > 40
