"""The settings of an index, as they are kept."""

from __future__ import annotations

import dataclasses
import json

import pytest

from diml.search.store import IndexConfig
from unit.search.contract import CONFIG


def test_settings_survive_as_json():
    assert IndexConfig.from_json(CONFIG.to_json()) == CONFIG
    assert IndexConfig.from_json(dataclasses.replace(CONFIG, grid=None).to_json()).grid is None


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[]", "not those of an index"),
        ("{", "not those of an index"),
        (b"\xff", "not those of an index"),
        (json.dumps(json.loads(CONFIG.to_json()) | {"surprise": 1}), "surprise"),
        (json.dumps(json.loads(CONFIG.to_json()) | {"matcher": {"epsilom": 0.1}}), "did you mean epsilon"),
        (json.dumps(json.loads(CONFIG.to_json()) | {"format": 2}), "need format 1, got 2"),
    ],
)
def test_other_texts_are_refused(text, told):
    with pytest.raises(ValueError, match=told):
        IndexConfig.from_json(text)


@pytest.mark.parametrize(
    "change",
    [
        {"storage": "float8"},
        {"dim": 0},
        {"num_regions": 0},
        {"storage": "none"},
        {"columns": {"id": "text"}},
        {"columns": {"a b": "text"}},
        {"columns": {"a": "date"}},
    ],
)
def test_settings_out_of_range_are_refused(change):
    with pytest.raises(ValueError, match=r"storage|dim|columns"):
        dataclasses.replace(CONFIG, **change)


def test_bytes_of_a_row():
    sizes = {"float16": 4 * 8 * 2, "int8": 4 * (8 + 4)}
    assert {storage: dataclasses.replace(CONFIG, storage=storage).row_bytes for storage in sizes} == sizes
    assert dataclasses.replace(CONFIG, storage="none", num_regions=0).row_bytes == 0
