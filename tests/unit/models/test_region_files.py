"""Regions in .npz and .parquet files: the same bits come back, damage is refused, other programs read and write."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import diml
from diml.matching import Matcher, QuantizedRegions, Regions
from diml.models.region_files import require_region_file

ENDINGS = (".npz", ".parquet")
TYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


@pytest.fixture(params=ENDINGS)
def file(request, tmp_path) -> Path:
    return tmp_path / f"regions{request.param}"


def some_regions(dtype: torch.dtype = torch.float32, count: int = 5, *, masses: bool = True) -> Regions:
    """Regions with a blank cell, negative zeros, shares, masses, and a grid that is no square."""
    generator = torch.Generator().manual_seed(0)
    maps = torch.randn(count, 8, 2, 3, generator=generator, dtype=torch.float64)
    maps[0, :, 0, 0] = -0.0
    given = torch.rand(count, 2, 3, generator=generator) if masses else None
    return Regions.from_maps(maps, shares=True, masses=given).to(dtype)


def bits(tensor: torch.Tensor | None) -> bytes | None:
    return None if tensor is None else tensor.contiguous().view(torch.uint8).numpy().tobytes()


def assert_same(found, expected) -> None:
    assert type(found) is type(expected)
    names = ("codes", "scale", "pooled", "masses") if isinstance(expected, QuantizedRegions) else ()
    for name in names or ("dense", "pooled", "shares", "masses"):
        ours, theirs = getattr(found, name), getattr(expected, name)
        assert (ours is None) == (theirs is None), name
        assert bits(ours) == bits(theirs), name
        assert ours is None or (ours.dtype, ours.shape) == (theirs.dtype, theirs.shape)
    assert (found.grid, found.massless) == (expected.grid, expected.massless)
    if isinstance(expected, Regions):
        assert found.undivided == expected.undivided


@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_the_same_bits_come_back(file, dtype):
    regions = some_regions(dtype)
    diml.save_regions(regions, file)
    table = diml.load_regions(file)
    assert_same(table.regions, regions)
    assert (table.paths, table.labels, table.model) == (None, None, None)
    matcher = Matcher(weights="rollout")
    assert torch.equal(matcher.match(table.regions, table.regions).score, matcher.match(regions, regions).score)


@pytest.mark.parametrize("dtype", [torch.int8, torch.int16], ids=str)
def test_quantized_regions_are_stored_as_their_codes(file, dtype):
    quantized = some_regions().quantized(dtype)
    diml.save_regions(quantized, file)
    assert_same(diml.load_regions(file).regions, quantized)


def test_regions_without_shares_and_masses_keep_the_reasons(file):
    plain = some_regions(masses=False)
    regions = Regions(plain.dense, plain.pooled, plain.grid, undivided="no mean", massless="no attention")
    diml.save_regions(regions, file)
    assert_same(diml.load_regions(file).regions, regions)


def test_paths_labels_and_the_model_come_back(file, tiny, paths):
    embedder = tiny("test_vit")
    names = ["shoe", "", "Pokémon", "a,b\n", "鞋", "hat ", "hat"]
    regions = embedder.embed(paths)
    diml.save_regions(regions, file, paths=paths, labels=names, embedder=embedder)
    table = diml.load_regions(file)
    assert table.paths == tuple(map(str, paths))
    assert table.labels == tuple(names)
    assert table.model is not None
    assert table.model["fingerprint"] == embedder.fingerprint()
    assert table.model["config"] == embedder.config.to_dict()
    assert_same(table.regions, regions)
    assert repr(table).endswith("with paths, labels, model)")


@pytest.mark.parametrize(
    "labels", [[3, 1, 2**62, -1, 0], np.arange(5), torch.arange(5)], ids=["list", "array", "tensor"]
)
def test_labels_may_be_whole_numbers(file, labels):
    diml.save_regions(some_regions(), file, labels=labels)
    assert diml.load_regions(file).labels == tuple(int(label) for label in labels)


def test_row_groups_of_a_large_file_are_joined(tmp_path, monkeypatch):
    import pyarrow.parquet

    monkeypatch.setattr("diml.models.region_files._GROUP_BYTES", 10_000)
    regions, file = some_regions(torch.float16, 101), tmp_path / "regions.parquet"
    diml.save_regions(regions, file, labels=range(101))
    assert pyarrow.parquet.ParquetFile(file).num_row_groups > 2
    table = diml.load_regions(file)
    assert_same(table.regions, regions)
    assert table.labels == tuple(range(101))


def test_numpy_reads_the_arrays(tmp_path):
    regions = some_regions(torch.bfloat16)
    diml.save_regions(regions, tmp_path / "r.npz", paths=["a.jpg"] * 5)
    with np.load(tmp_path / "r.npz", allow_pickle=False) as found:
        assert set(found.files) == {"pooled", "dense", "shares", "masses", "path", "about"}
        about = json.loads(str(found["about"]))
        assert about["arrays"]["dense"] == "bfloat16"
        assert about["grid"] == [2, 3]
        high = found["dense"].astype(np.uint32) << 16  # the documented reading of bfloat16
        assert np.array_equal(high.view(np.float32), regions.dense.float().numpy())


def test_other_programs_read_the_columns(tmp_path):
    import pyarrow.parquet

    regions = some_regions()
    diml.save_regions(regions, tmp_path / "r.parquet", paths=list("abcde"), labels=["x"] * 5)
    rows = pyarrow.parquet.read_table(tmp_path / "r.parquet").to_pylist()
    assert [row["path"] for row in rows] == list("abcde")
    assert np.array_equal(np.float32([row["dense"] for row in rows]), regions.dense.numpy())
    types = {field.name: str(field.type) for field in pyarrow.parquet.read_schema(tmp_path / "r.parquet")}
    assert types["dense"] == "fixed_size_list<element: fixed_size_list<element: float>[8]>[6]"


def test_files_of_other_programs_are_read(file):
    regions = some_regions(masses=False)
    dense, pooled = regions.dense.numpy(), regions.pooled.numpy()
    if file.suffix == ".npz":
        np.savez(file, dense=dense, pooled=pooled, label=np.array(list("abcde")), more=np.zeros(3))
    else:
        import pyarrow
        import pyarrow.parquet

        table = {"dense": dense.tolist(), "pooled": pooled.tolist(), "label": list("abcde"), "more": [None] * 5}
        pyarrow.parquet.write_table(pyarrow.table(table), file)
    table = diml.load_regions(file)
    assert np.array_equal(table.regions.dense.numpy(), dense)
    assert np.array_equal(table.regions.pooled.numpy(), pooled)
    assert table.labels == tuple("abcde")
    assert table.regions.grid is None


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"pooled": np.eye(3)}, "need pooled"),
        ({"pooled": np.eye(3), "dense": 2 * np.ones((3, 4, 3))}, "need unit"),
        ({"pooled": np.eye(3), "dense": np.full((3, 4, 3), np.nan)}, "need finite"),
        ({"pooled": np.eye(3), "dense": np.zeros((3, 4, 3), np.float32)}, "need the same"),
        ({"pooled": np.eye(3), "dense": np.zeros((3, 4, 3), np.uint16)}, "need a floating-point"),
        ({"pooled": np.eye(3), "dense": np.zeros((3, 12))}, "need 3 axes"),
        ({"pooled": np.eye(3), "dense": np.zeros((3, 4, 3)), "label": np.array(["a"])}, "need 3, one an image"),
        ({"pooled": np.eye(3), "dense": np.zeros((3, 4, 3)), "label": np.ones(3)}, "need one text or whole number"),
        ({"pooled": np.eye(3), "dense": np.array([{}, 1, 2], dtype=object)}, "allow_pickle"),
        ({"pooled": np.eye(3), "codes": np.ones((3, 4, 3), np.int8), "scale": np.ones((3, 4), np.float32)}, "unit"),
    ],
)  # fmt: skip
def test_what_are_no_regions_is_refused(tmp_path, arrays, message):
    np.savez(tmp_path / "r.npz", **arrays)
    with pytest.raises(ValueError, match=message) as caught:
        diml.load_regions(tmp_path / "r.npz")
    assert "r.npz: " in str(caught.value)
    assert "save_regions" in str(caught.value)


@pytest.mark.parametrize(
    "dense", [[[[1.0, 0.0]], [[1.0, 0.0]] * 2], [[[1.0, 0.0]], None], [[[1.0, 0.0]], [[1.0, None]]]]
)
def test_lists_of_several_lengths_and_nulls_are_refused(tmp_path, dense):
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.table({"pooled": [[1.0, 0.0]] * 2, "dense": dense}), tmp_path / "r.parquet")
    with pytest.raises(ValueError, match=r"dense: need (lists of one length|numbers)"):
        diml.load_regions(tmp_path / "r.parquet")


def test_damage_is_refused_or_harmless(file):
    """Bytes changed, cut off or added: an error in one line, or exactly the regions that were written."""
    regions = some_regions(torch.float16)
    diml.save_regions(regions, file, paths=list("abcde"), labels=list("vwxyz"))
    whole, random = file.read_bytes(), np.random.default_rng(0)
    refused = 0
    for place in random.choice(len(whole), 150, replace=False):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << int(random.integers(8))
        refused += changed(file, bytes(damaged), regions)
    assert refused > 100
    for cut in random.choice(len(whole), 20, replace=False):
        assert changed(file, whole[:cut], regions)
    assert changed(file, b"", regions)


def test_a_table_whose_description_has_a_damaged_name_is_refused(tmp_path):
    """It would be read like one of other tools: without grid, and with nothing that vouches for it."""
    import pyarrow.parquet

    file = tmp_path / "r.parquet"
    diml.save_regions(some_regions(), file)
    table = pyarrow.parquet.read_table(file)
    text = table.schema.metadata[b"diml"]
    pyarrow.parquet.write_table(table.replace_schema_metadata({b"dhml": text}), file)
    with pytest.raises(ValueError, match="not as the metadata diml"):
        diml.load_regions(file)


def changed(file: Path, content: bytes, regions: Regions) -> bool:
    file.write_bytes(content)
    try:
        table = diml.load_regions(file)
    except ValueError as error:
        told = str(error)
        return told.startswith(str(file)) and "\n" not in told
    assert_same(table.regions, regions)
    assert (table.paths, table.labels) == (tuple("abcde"), tuple("vwxyz"))
    return False


def test_an_edited_description_is_refused(tmp_path):
    file = tmp_path / "r.npz"
    diml.save_regions(some_regions(), file)
    with np.load(file) as found:
        arrays = dict(found)
    for about in (str(arrays["about"]).replace("[2, 3]", "[3, 2]"), "{}", "null", "not JSON"):
        np.savez(file, **{**arrays, "about": np.asarray(about)})
        with pytest.raises(ValueError, match="about: "):
            diml.load_regions(file)
    arrays.pop("masses")  # an array that is described is missing
    np.savez(file, **arrays)
    with pytest.raises(ValueError, match="masses"):
        diml.load_regions(file)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"paths": ["a"]}, ValueError, "paths: need 5, one an image, got 1"),
        ({"labels": ["a"] * 6}, ValueError, "labels: need 5"),
        ({"labels": [1, "a", 1, 1, 1]}, TypeError, "labels: need strings only or whole numbers only, got 'a'"),
        ({"labels": [0.5] * 5}, TypeError, "labels: need strings only"),
        ({"labels": [True] * 5}, TypeError, "labels: need strings only"),
        ({"labels": ["a\0"] * 5}, ValueError, "null characters"),
        ({"paths": ["caf\udce9.jpg"] * 5}, ValueError, "need UTF-8"),
    ],
)
def test_wrong_arguments_are_refused_before_anything_is_written(file, arguments, error, message):
    with pytest.raises(error, match=message):
        diml.save_regions(some_regions(), file, **arguments)
    assert not list(file.parent.iterdir())


def test_names_places_and_packages_are_checked(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=r"r\.csv: need a file name that ends in \.npz or \.parquet"):
        diml.save_regions(some_regions(), tmp_path / "r.csv")
    with pytest.raises(ValueError, match=r"ends in \.npz"):
        diml.load_regions("regions")
    with pytest.raises(FileNotFoundError, match=r"path: .*none\.npz is no file; name one"):
        diml.load_regions(tmp_path / "none.npz")
    with pytest.raises(ValueError, match="at least one image"):
        diml.save_regions(some_regions()[:0], tmp_path / "r.npz")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    for act in (lambda path: diml.save_regions(some_regions(), path), require_region_file):
        with pytest.raises(ImportError, match=r"pip install 'diml\[search\]', or use an \.npz file"):
            act(tmp_path / "r.parquet")
    require_region_file(tmp_path / "r.npz")


def test_a_write_that_fails_leaves_the_old_file(file, monkeypatch):
    diml.save_regions(some_regions(), file)
    before = file.read_bytes()
    monkeypatch.setattr("diml.models.region_files._array", lambda tensor: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        diml.save_regions(some_regions(count=3), file)
    assert file.read_bytes() == before
    assert [path.name for path in file.parent.iterdir()] == [file.name]
