"""The settings of an index, as they are kept."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from diml.checksums import sealed
from diml.matching import QuantizedRegions
from diml.matching.codebooks import Codebooks
from diml.search.cells import widened_rows
from diml.search.store import (
    DamagedIndexError,
    IndexConfig,
    Rows,
    checked_rows,
    codebooks_text,
    decode_regions,
    encode_regions,
    require_sound,
    row_checksums,
    row_faults,
)
from unit.search.contract import COLUMNS, CONFIG, codebooks_of, make_regions, make_rows

#: Of regions as `CONFIG` has them.
CODEBOOKS = codebooks_of(make_regions(5))

#: Without their checksum.
SETTINGS = {name: value for name, value in json.loads(CONFIG.to_json()).items() if name != "sha256"}


def test_settings_survive_as_json():
    assert IndexConfig.from_json(CONFIG.to_json()) == CONFIG
    assert IndexConfig.from_json(dataclasses.replace(CONFIG, grid=None).to_json()).grid is None


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[]", "not those of an index"),
        ("{", "not those of an index"),
        (b"\xff", "not those of an index"),
        (json.dumps(sealed(SETTINGS | {"surprise": 1})), "surprise"),
        (json.dumps(sealed(SETTINGS | {"matcher": {"epsilom": 0.1}})), "did you mean epsilon"),
        (
            json.dumps(json.loads(CONFIG.to_json()) | {"matcher": CONFIG.matcher.to_dict() | {"epsilon": 0.3}}),
            "damaged",
        ),
        (json.dumps(json.loads(CONFIG.to_json()) | {"format": 1}), "need format 2, got 1; build the index again"),
        (json.dumps(json.loads(CONFIG.to_json()) | {"format": 3}), "need format 2, got 3; update diml"),
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
        {"columns": {"": "text"}},
        {"columns": {" a": "text"}},
        {"columns": {"a\nb": "number"}},
        {"columns": {"a\u00a0b": "number"}},
        {"columns": {"u\u0308": "text"}},
        {"columns": {"a" * 101: "integer"}},
        {"columns": {"checksum": "integer"}},
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
    assert dataclasses.replace(CONFIG, storage="1kb", codebooks=CODEBOOKS).row_bytes == 4 * 8
    wide = Codebooks(torch.zeros(32, 256, 4, dtype=torch.int8), 1.0, 128)
    config = IndexConfig(dim=128, num_regions=16, storage="1kb", codebooks=codebooks_text(wide))
    assert config.row_bytes + 4 * config.dim == 1024  # with the pooled vector in float32


def test_codebooks_come_back_as_they_were():
    config = dataclasses.replace(CONFIG, storage="1kb", codebooks=CODEBOOKS)
    assert IndexConfig.from_json(config.to_json()) == config
    regions = make_regions(3)
    coded = encode_regions(regions, config)
    found = decode_regions(Rows(("a", "b", "c"), regions.pooled.numpy(), coded, ({},) * 3), config)
    assert isinstance(found, QuantizedRegions)
    assert found.codebooks is not None
    known = Codebooks(found.codebooks.centroids, found.codebooks.step, 8)
    assert codebooks_text(known) == CODEBOOKS
    assert found.codes.equal(regions.quantized("1kb", codebooks=known).codes)
    assert found.pooled.equal(regions.pooled)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"storage": "1kb"}, "codebooks: need them for storage 1kb, and only there, got none with storage 1kb"),
        ({"codebooks": "AAAA"}, "got some with storage float16"),
        ({"storage": "1kb", "codebooks": "AAAA"}, "need the text of 2,048 numbers of 8 bits and a step for D 8"),
        ({"storage": "1kb", "codebooks": "?"}, "need the text of 2,048 numbers"),
        ({"codebooks": 3}, "codebooks: need a str"),
    ],
)
def test_wrong_codebooks_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(CONFIG, **change)


@given(st.data())
def test_a_checksum_changes_with_every_byte_and_with_no_widening(data):
    rows = make_rows(2, seed=data.draw(st.integers(0, 99)))
    rows = checked_rows(rows, CONFIG)
    assert not row_faults(rows)
    kind = data.draw(st.sampled_from(["pooled", "coded", "metadata", "id"]))
    pooled, coded = rows.pooled.copy(), rows.coded.copy()
    if kind in ("pooled", "coded"):
        array = (pooled if kind == "pooled" else coded)[1]
        array.view(np.uint8)[data.draw(st.integers(0, array.nbytes - 1))] ^= 1 << data.draw(st.integers(0, 7))
    entry = dict(rows.metadata[1]) | ({"shelf": 99} if kind == "metadata" else {})
    names = (rows.ids[0], "another" if kind == "id" else rows.ids[1])
    damaged = dataclasses.replace(rows, ids=names, pooled=pooled, coded=coded, metadata=(rows.metadata[0], entry))
    assert [fault.split(":")[0] for fault in row_faults(damaged)] == [names[1]]
    wide = dataclasses.replace(CONFIG, columns={**COLUMNS, "shelf": "text", "price": "text", "new": "number"})
    assert not row_faults(widened_rows(rows, wide))


@pytest.mark.parametrize("length", [0.9, 1.1, 1e15, np.nan])
def test_vectors_of_another_length_are_told_even_with_a_right_checksum(length):
    rows = make_rows(2)
    spoiled = dataclasses.replace(rows, pooled=(rows.pooled * np.float32(length)))
    if np.isfinite(length):
        with pytest.raises(ValueError, match="vectors of length 1"):
            checked_rows(spoiled, CONFIG)
    read = dataclasses.replace(spoiled, checksums=row_checksums(spoiled))
    assert len(row_faults(read)) == 2
    with pytest.raises(DamagedIndexError, match=r"2 of 2 rows.*diml index verify"):
        require_sound(read, "photos.index")


@pytest.mark.parametrize("value", [2**63, -(2**63), 10**30])
def test_whole_numbers_beyond_64_bits_are_told(value):
    rows = dataclasses.replace(make_rows(1), metadata=({"shelf": value},))
    with pytest.raises(ValueError, match=r"shelf needs whole numbers up to 9223372036854775807"):
        checked_rows(rows, CONFIG)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 10**400])
def test_numbers_that_are_not_finite_are_told(value):
    rows = dataclasses.replace(make_rows(1), metadata=({"price": value},))
    with pytest.raises(ValueError, match="price needs finite numbers"):
        checked_rows(rows, CONFIG)
