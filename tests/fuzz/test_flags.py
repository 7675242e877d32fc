"""Numbers that no one would give on purpose, in every flag that takes a number, of every command."""

from __future__ import annotations

import dataclasses
import importlib
import random
import signal
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
from hypothesis import strategies as st

from diml.cli import COMMANDS
from diml.cli.index import ACTIONS
from fuzz.mutations import few_or, fuzz, ran

HOSTILE = ("nan", "inf", "-inf", "-1", "0", "1e-45", "1e38", "100000000", "99999999999999999999", "1e400")
#: Seconds after which a command is interrupted as by Ctrl-C: 100,000,000 epochs are no error.
PATIENCE = 10


#: Flags that -1 is a value of: scores are not bounded by 0.
NEGATIVE = {"--threshold"}
#: Flags that inf is a value of: ranking by the structural score alone.
UNBOUNDED = {"--structural-weight", "--structural-weights"}
#: Commands without an index or images to run on here.
ELSEWHERE = {"demo"}


@pytest.fixture(scope="session")
def commands(place, model, index, run, calibration, pair_of_images) -> dict[str, list[str]]:
    """A small, valid call of every command that takes numbers."""
    data = ["csv", "--data", f"{place / 'images.csv'}"]
    small = ["--workers", "0", "--batch-size", "8", "--no-cache"]
    named = ["--model", f"{model}"]
    pair = [str(path) for path in pair_of_images]
    plain = ["--no-grad-cam", "--no-sanity", "--no-controls", "--no-interaction", "--warps", "--occlusions"]
    return {
        "evaluate": [*data, *named, *small, "--rerank-at", "3"],
        "compare": [*data, *named, *small],
        "tune": [*data, *named],
        "report": [f"{model}", *data, *small, "--rerank-at", "3", "--html", f"{place / 'report.html'}"],
        "calibrate": [f"{index}", "--label", "label"],
        "faithfulness": [*data, *named, "--pairs", "2", *plain],
        "audit": [*data, *named, "--alpha", "--workers", "0"],
        "explain": [*pair, *named],
        "search": [f"{index}", pair[0], "--calibration", f"{calibration}"],
        "search --all-pairs": [f"{index}", "--all-pairs", "--threshold", "1.9"],
        "duplicates": [f"{index}"],
        "embed": [f"{place / 'images.csv'}", *named, *small, "--output", f"{place / 'flags.npz'}"],
        "export-onnx": [f"{place / 'flags.onnx'}", *named],
        "index build": [f"{place / 'images.csv'}", "--index", f"{place / 'flags.index'}", *named, "--workers", "0"],
        "index tune": [f"{index}"],
        "serve": ["--folder", f"{place / 'class0'}", *named, "--port", "0"],
        "train": ["--config", f"{place / 'small.yaml'}", "--output", f"{place / 'flags-run'}"],
        "train-matcher": [*data, *named, *small, "--no-tune", "--output", f"{place / 'flags-matcher'}"],
    }


@pytest.fixture(autouse=True)
def _nothing_is_served(monkeypatch):
    monkeypatch.setattr("diml.web.serve", lambda *_, **__: None)


def class_of(command: str) -> type:
    """The dataclass of a command or action."""
    name, *action = [word for word in command.split() if not word.startswith("-")]
    if name == "index":
        return ACTIONS[action[0]]
    return importlib.import_module(f"diml.cli.{name.replace('-', '_')}").COMMAND


def number_flags(command: str) -> dict[str, bool]:
    """The flags that take numbers -> whether these are integers only; nested groups of flags included."""
    found: dict[str, bool] = {}

    def walk(kind: type) -> None:
        hints = get_type_hints(kind)
        for field in dataclasses.fields(kind):
            if dataclasses.is_dataclass(hints[field.name]):
                walk(hints[field.name])
            elif kinds := _numbers(hints[field.name]):
                found[f"--{field.name.replace('_', '-')}"] = kinds == {int}

    walk(class_of(command))
    return found


def _numbers(hint: Any) -> set[type]:
    """The types of numbers inside of a type."""
    inner = [_numbers(part) for part in get_args(hint)]
    return {hint} if hint in (int, float) else set().union(*inner)


def test_every_command_that_takes_numbers_is_here(commands):
    known = {" ".join(word for word in command.split() if not word.startswith("-")) for command in commands}
    every = [name for name in COMMANDS if name != "index"] + [f"index {action}" for action in ACTIONS]
    with_numbers = {name for name in every if hasattr(_module(name), "COMMAND") or name.startswith("index ")}
    assert {name for name in with_numbers if number_flags(name)} - ELSEWHERE == known
    assert number_flags("compare")["--recall-at"]
    assert not number_flags("search")["--threshold"]


def _module(name: str) -> Any:
    return importlib.import_module(f"diml.cli.{name.split()[0].replace('-', '_')}")


def refused(commands: dict[str, list[str]]) -> list[tuple[str, str, str]]:
    """(command, flag, value) that no command may accept."""
    found = []
    for command in commands:
        for flag, integers in number_flags(command).items():
            values = ["nan", *([] if flag in UNBOUNDED else ["inf", "1e400"]), *(["1.5"] if integers else [])]
            found += [(command, flag, value) for value in [*values, *([] if flag in NEGATIVE else ["-1"])]]
    return found


@few_or(10**6, 24)
def test_impossible_numbers_are_refused(count, commands, place, monkeypatch):
    """In one line, and at once; some of them by default, all in the slow set."""
    monkeypatch.chdir(place)
    every = refused(commands)
    assert len(every) > 500
    chosen = every if count > len(every) else random.Random(0).sample(every, count)
    accepted = []
    for command, flag, value in chosen:
        signal.signal(signal.SIGALRM, signal.default_int_handler)
        signal.setitimer(signal.ITIMER_REAL, PATIENCE)
        try:
            code, _ = ran([*command.split()[:2], *commands[command], f"{flag}={value}"])
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
        if code != 2:
            accepted.append(f"{command} {flag}={value}: {code}")
    assert not accepted, "\n".join(accepted)


@few_or(800, 12)
def test_every_number(count, commands, place, monkeypatch):
    monkeypatch.chdir(place)
    flags = [(command, flag) for command in commands for flag in number_flags(command) if flag != "--workers"]
    assert len(flags) > 150

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
