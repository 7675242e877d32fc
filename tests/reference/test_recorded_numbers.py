"""Reports, losses and explanations equal those recorded before the refactoring; bit for bit on a like machine."""

from __future__ import annotations

from pathlib import Path

import pytest

from reference import number_runs
from reference.number_cases import compare

HERE = Path(__file__).parent


def test_numbers_are_those_recorded_before():
    recorded = number_runs.read(HERE / "recorded_numbers.json")
    now = number_runs.collect(HERE / "record_numbers.py")
    assert recorded["inputs"] == now["inputs"]
    exact = number_runs.same_machine(recorded["machine"], now["machine"])
    differences = compare(recorded["numbers"], now["numbers"], exact=exact)
    if differences:
        pytest.fail("\n".join([f"exact: {exact}", *differences[:50]]))
