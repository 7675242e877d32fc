"""Damage, drawn by hypothesis: of bytes, of plain values and of folders; and commands run as a user runs them."""

from __future__ import annotations

import contextlib
import copy
import io
import json
import shutil
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from diml.checksums import sealed
from diml.cli import main
from diml.cli.errors import one_line

#: What a command may end with, whatever it is given (docs/errors.md).
EXIT_CODES = (0, 1, 2, 130)

#: Values where none of their kind belongs.
ODD: tuple[Any, ...] = (
    None,
    True,
    -1,
    0,
    2**31,
    2**63,
    10**400,
    0.5,
    1e-45,
    1e38,
    1e308,
    float("nan"),
    float("inf"),
    "",
    "x",
    "1e400",
    "\0",
    "\x1b[31m",
    "a\nb",
    "../" * 50,
    "é漢\U0001f600",
    "x" * 5000,
    [],
    {},
    [[]],
    [None, 1, "x"],
    {"": None},
    {"x": {"x": {"x": []}}},
)


def ran(words: Sequence[str | Path]) -> tuple[int, str]:
    """Run a command; returns its exit code and what it printed, after checking that both are as promised."""
    out, err = io.StringIO(), io.StringIO()
    with (
        warnings.catch_warnings(record=True) as warned,
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        warnings.simplefilter("always")
        try:
            code = main([str(word) for word in words])
        except SystemExit as stopped:
            code = int(stopped.code or 0)
    told = err.getvalue() + "".join(f"warning: {one_line(str(warning.message))}\n" for warning in warned)
    assert code in EXIT_CODES, told[-4000:]
    assert "Traceback" not in told, told[-4000:]
    if code == 2:
        assert told.strip(), "an error without a word"
        assert max(map(len, told.splitlines())) < 2200
    return code, out.getvalue() + told


def fuzz(count: int, *strategies: st.SearchStrategy[Any]) -> Callable[[Callable[..., None]], Callable[[], None]]:
    """Run a check with `count` drawn values: always the same ones where they are few."""
    slow_is_fine = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.large_base_example]
    chosen = settings(
        max_examples=count,
        derandomize=count < 1000,
        deadline=None,
        database=None,
        phases=(Phase.generate,),  # the input is short enough to be read as it is
        suppress_health_check=[*slow_is_fine, HealthCheck.function_scoped_fixture],
    )
    return lambda check: chosen(given(*strategies)(check))


def few_or(many: int, few: int) -> pytest.MarkDecorator:
    """`count`: few inputs by default, many in the slow set."""
    return pytest.mark.parametrize("count", [few, pytest.param(many, marks=pytest.mark.slow)])


def damaged_bytes() -> st.SearchStrategy[Callable[[bytes], bytes]]:
    """Ways to damage the content of a file."""

    def at(content: bytes, place: float) -> int:
        return int(place * len(content))

    place, some = st.floats(0, 1, exclude_max=True), st.binary(min_size=1, max_size=64)
    return st.one_of(
        place.map(lambda where: lambda content: content[: at(content, where)]),
        st.tuples(place, some).map(lambda d: lambda c: c[: at(c, d[0])] + d[1] + c[at(c, d[0]) + len(d[1]) :]),
        st.tuples(place, some).map(lambda d: lambda c: c[: at(c, d[0])] + d[1] + c[at(c, d[0]) :]),
        st.tuples(place, place).map(lambda d: lambda c: c[: at(c, d[0])] + c[at(c, max(d)) :]),
        st.tuples(place, st.integers(1, 4096)).map(
            lambda d: lambda c: c[: at(c, d[0])] + bytes(min(d[1], len(c) - at(c, d[0]))) + c[at(c, d[0]) + d[1] :]
        ),
        st.binary(max_size=200).map(lambda content: lambda _: content),
    )


def odd_values() -> st.SearchStrategy[Any]:
    """A value that hardly belongs where it is put."""
    return st.sampled_from(ODD) | st.integers() | st.floats() | st.text(max_size=20)


def edits() -> st.SearchStrategy[list[tuple[int, str, Any]]]:
    """One to three changes of plain values, for `edited`: replaced, removed, added or wrapped."""
    kinds = st.sampled_from(["replace", "replace", "remove", "add", "wrap"])
    return st.lists(st.tuples(st.integers(0, 10**6), kinds, odd_values()), min_size=1, max_size=3)


def damaged_values(of: Any) -> st.SearchStrategy[Any]:
    """Plain values, nested, with one to three places replaced, removed, added or wrapped."""
    return edits().map(lambda many: edited(of, many))


def edited(of: Any, changes: Sequence[tuple[int, str, Any]]) -> Any:
    """A copy of plain values with these changes."""
    value = copy.deepcopy(of)
    for number, kind, drawn in changes:
        odd = copy.deepcopy(drawn)  # each time another one, which never comes to lie in itself
        places = list(_places(value))
        if not places:
            return odd
        holder, key = places[number % len(places)]
        if kind == "replace":
            holder[key] = odd
        elif kind == "remove":
            del holder[key]
        elif kind == "wrap":
            holder[key] = [holder[key]]
        elif isinstance(holder, dict):
            holder[str(odd)[:50]] = odd
        else:
            holder.insert(key, odd)
    return value


def _places(value: Any) -> list[tuple[Any, Any]]:
    keys = list(value) if isinstance(value, dict) else list(range(len(value))) if isinstance(value, list) else []
    return [(value, key) for key in keys] + [place for key in keys for place in _places(value[key])]


def resealed(value: Any) -> str:
    """JSON of a value; of a document with the checksum of what it holds now, so that its values are looked at."""
    if not isinstance(value, dict):
        return json.dumps(value)
    return json.dumps(sealed({name: part for name, part in value.items() if name != "sha256"}))


def fresh_copy(source: Path, target: Path) -> Path:
    """A copy of a folder in place of an earlier one."""
    shutil.rmtree(target, ignore_errors=True)
    return Path(shutil.copytree(source, target, symlinks=True))


def files_of(folder: Path) -> list[str]:
    """Relative paths of the files in a folder, sorted."""
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
