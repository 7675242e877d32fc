"""`docs/deviations.md` has all eleven defects, and every test that it names exists."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
DOCUMENT = (ROOT / "docs" / "deviations.md").read_text(encoding="utf-8")
NAMED = sorted(set(re.findall(r"`(tests/[^`]*)`", DOCUMENT)))
DEFECTS = list(range(1, 12))


def rows(heading: str) -> list[list[str]]:
    """Cells of the table under a heading, without its two lines of head."""
    section = re.split(r"\n#+ ", DOCUMENT.split(f"# {heading}\n", 1)[1])[0]
    lines = [line for line in section.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def names_of(source: str) -> set[str]:
    """Names of the tests in a file, as pytest writes them: `test_x`, `TestClass::test_x`."""
    names = set()
    for node in ast.parse(source).body:
        inside = node.body if isinstance(node, ast.ClassDef) and node.name.startswith("Test") else [node]
        prefix = f"{node.name}::" if isinstance(node, ast.ClassDef) else ""
        functions = [part.name for part in inside if isinstance(part, ast.FunctionDef | ast.AsyncFunctionDef)]
        names |= {prefix + name for name in functions if name.startswith("test_")}
    return names


def test_all_eleven_defects_are_there():
    assert [int(number) for number, *_ in rows("The eleven defects")] == DEFECTS
    assert all(len(row) == 3 and all(row) for row in rows("The eleven defects"))


def test_every_defect_has_a_test_or_says_that_it_has_none():
    table, missing = rows("The tests"), rows("Not under test")
    assert all(len(row) == 3 and re.fullmatch(r"`tests/[^`]+::[^`]+`", row[2]) for row in table)
    shown = [int(number) for number, *_ in table]
    assert shown == sorted(shown)
    assert set(shown) | {int(number) for number, *_ in missing} == set(DEFECTS)


@pytest.mark.parametrize("named", NAMED)
def test_every_test_that_is_named_exists(named):
    file, _, test = named.partition("::")
    assert test in names_of((ROOT / file).read_text(encoding="utf-8"))


def test_methods_and_functions_are_found():
    source = "def test_a(): ...\nclass TestB:\n    def test_c(self): ...\n    def d(self): ...\n"
    source += "class E:\n    def test_f(self): ..."
    assert names_of(source) == {"test_a", "TestB::test_c"}
