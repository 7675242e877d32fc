"""Numbers that no one would give on purpose, in every flag that takes a number, of every command."""

from __future__ import annotations

import re
import signal
from pathlib import Path

import pytest
from hypothesis import strategies as st

from fuzz.mutations import few_or, fuzz, ran

HOSTILE = ("nan", "inf", "-inf", "-1", "0", "1e-45", "1e38", "100000000", "99999999999999999999", "1e400")
#: Seconds after which a command is interrupted as by Ctrl-C: 100,000,000 epochs are no error.
PATIENCE = 10


@pytest.fixture(scope="session")
def commands(place, model, index, run, calibration, pair_of_images) -> dict[str, list[str]]:
    """A small, valid call of every command that takes numbers; `serve` would wait for visitors."""
    data = ["csv", "--data", f"{place / 'images.csv'}"]
    small = ["--workers", "0", "--batch-size", "8", "--no-cache"]
    named = ["--model", f"{model}"]
    pair = [str(path) for path in pair_of_images]
    return {
        "evaluate": [*data, *named, *small, "--rerank-at", "3"],
        "compare": [*data, *named, *small],
        "tune": [*data, *named],
        "report": [f"{model}", *data, *small, "--rerank-at", "3", "--html", f"{place / 'report.html'}"],
        "calibrate": [f"{index}", "--label", "label"],
        "faithfulness": [*data, *named, "--pairs", "2", "--no-grad-cam", "--no-sanity", "--no-controls"],
        "explain": [*pair, *named],
        "search": [f"{index}", pair[0], "--calibration", f"{calibration}"],
        "search --all-pairs": [f"{index}", "--all-pairs"],
        "index build": [f"{place / 'images.csv'}", "--index", f"{place / 'flags.index'}", *named, "--workers", "0"],
        "train": ["--config", f"{place / 'small.yaml'}", "--output", f"{place / 'flags-run'}"],
    }


def number_flags(command: str) -> list[str]:
    """The flags whose help names an integer or a fraction."""
    words = [word for word in command.split() if not word.startswith("-")]
    _, told = ran([*words, "--help"])
    found = re.findall(r"(--[a-z][a-z0-9-]*) [^\n]*?(?:INT|FLOAT)", told)
    return sorted({flag for flag in found if flag not in ("--workers",)})


@few_or(800, 12)
def test_every_number(count, commands, place, monkeypatch):
    monkeypatch.chdir(place)
    flags = [(command, flag) for command in commands for flag in number_flags(command)]
    assert len(flags) > 80

    @fuzz(count, st.sampled_from(flags), st.sampled_from(HOSTILE))
    def check(chosen, value):
        command, flag = chosen
        signal.signal(signal.SIGALRM, signal.default_int_handler)
        signal.setitimer(signal.ITIMER_REAL, PATIENCE)
        try:
            ran([*command.split()[:2], *commands[command], f"{flag}={value}"])
        except AssertionError as error:
            raise AssertionError(f"diml {command} ... {flag}={value}") from error
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)

    check()


def test_a_threshold_that_is_no_number_is_refused(index):
    for value in ("nan", "inf"):
        code, told = ran(["search", index, "--all-pairs", "--threshold", value])
        assert code == 2
        assert "threshold: need a finite score" in told


@pytest.mark.parametrize(
    ("flag", "value", "line"),
    [
        ("lr", "1e38", "lr: need a number of at most 1e+06"),
        ("lr", "nan", "lr: need a number above 0"),
        ("dim", "100000000", "dim: need a number of at most 65536"),
        ("seed", str(2**64), "seed: need a number of at most"),
        ("epsilon", "1e-45", "epsilon: need 0, for exact plans, or at least 1e-06"),
    ],
)
def test_numbers_of_a_training_that_would_end_it_late_are_refused(flag, value, line, tmp_path):
    name = f"--{flag}"
    code, told = ran(["train", "csv", "--data", Path("x.csv"), "--output", tmp_path / "run", f"{name}={value}"])
    assert (code, line in told) == (2, True), told
    assert not (tmp_path / "run").exists()
