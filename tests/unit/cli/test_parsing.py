"""Help texts and errors of the command line are written for people: no values of Python, options by their flags."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import pytest
import tyro

from diml.cli import COMMANDS, errors, main
from diml.cli.index import ACTIONS
from diml.cli.options import DataFlags, DataOptions
from diml.cli.parsing import option_names, parse_words, switch_off

EVERY = [[name] for name in COMMANDS] + [["index", action] for action in ACTIONS]


@dataclass(frozen=True, kw_only=True)
class _Command:
    """A command."""

    place: Annotated[str | None, tyro.conf.Positional] = None
    folder: Path | None = None
    mode: Literal["crop", "square"] | None = None
    share: float | Literal["auto"] | None = None
    ranks: tuple[int, ...] = ()
    batch_size: int = 4
    cache: Annotated[bool, switch_off("Keep nothing.")] = True
    data: DataFlags = DataOptions()


def _help(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as stopped:
        main([*words, "--help"])
    assert stopped.value.code == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("words", EVERY, ids=" ".join)
def test_no_help_shows_values_of_python(
    words: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    shown = " ".join(_help(words, capsys).replace("│", " ").split())
    for odd in ("{None", "None}", "None)", "(default: )", "''", "PosixPath", "<factory>", "<class", "MISSING"):
        assert odd not in shown


@pytest.mark.parametrize("words", EVERY, ids=" ".join)
def test_a_switch_that_is_on_says_what_its_no_form_does(
    words: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """`--no-cache  Keep embeddings ... (default: True)` says the opposite of what the flag does."""
    monkeypatch.setenv("COLUMNS", "90")  # one column
    found = re.findall(r"│ (--no-[a-z-]+)(.*?)(?=│ -|╰)", _help(words, capsys), flags=re.DOTALL)
    for flag, text in found:
        told = " ".join(text.replace("│", " ").split())
        assert re.match(r"(Omit|Do not|Show no|Embed) ", told), (flag, told)
        assert "True" not in told


def test_the_list_of_commands_has_a_column_of_names(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--help"])
    shown = capsys.readouterr().out
    assert all(f"\n  {name} " in shown for name in COMMANDS)


def test_words_become_values() -> None:
    words = "here --folder a --mode crop --share 0.5 --ranks 1 2 --no-cache --data b"
    found = parse_words(_Command, "x", words.split())
    assert (found.place, found.folder, found.mode, found.share) == ("here", Path("a"), "crop", 0.5)
    assert (found.ranks, found.cache, found.data.data) == ((1, 2), False, Path("b"))
    assert parse_words(_Command, "x", []) == _Command()
    assert parse_words(_Command, "x", ["--share", "auto"]).share == "auto"
    assert parse_words(_Command, "x", ["--share", "None"]).share is None  # undoes the value of a preset
    assert parse_words(_Command, "x", ["--mode", "None", "--ranks"]) == _Command()


@pytest.mark.parametrize("words", [["--mode", "oval"], ["--share", "half"], ["--batch-size", "None"], ["--cache"]])
def test_other_words_are_refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        parse_words(_Command, "x", words)
    assert stopped.value.code == 2
    assert words[0] in capsys.readouterr().err


def test_options_are_known_by_the_names_of_their_fields() -> None:
    names = option_names(_Command)
    assert names["batch_size"] == "--batch-size"
    assert names["protocol"] == "--protocol"  # of the nested group
    assert "place" not in names


@pytest.mark.parametrize(
    ("line", "shown"),
    [
        ("root: orl is not in x", "--data: orl is not in x"),
        ("batch_size: need at least 1, got 0", "--batch-size: need at least 1, got 0"),
        ("batch_size, share: give one", "--batch-size, --share: give one"),
        ("batch_size, other: give one", "batch_size, other: give one"),
        ("regions: need 3 dimensions", "regions: need 3 dimensions"),
        ("a/b.jpg: No such file or directory", "a/b.jpg: No such file or directory"),
        ("interrupted", "interrupted"),
    ],
)
def test_an_error_names_the_option_of_its_argument(line: str, shown: str) -> None:
    assert errors.as_options(line, option_names(_Command)) == shown


def test_missing_data_are_told_with_the_option(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", "cub200", "--data", str(tmp_path)]) == errors.ERROR
    assert capsys.readouterr().err.startswith("diml evaluate: --data: cub200 is not in ")
    assert main(["evaluate", "folder", "--data", str(tmp_path / "none")]) == errors.ERROR
    told = capsys.readouterr().err
    assert told.startswith("diml evaluate: --data: folder is not in ")
    assert "root:" not in told
