"""`diml embed`: the regions of a folder, a CSV file or a data set in a file, with paths and labels."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

import diml
from diml.cli import main
from end_to_end.small_runs import make_images
from tiny_model import save_tiny_model


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`images.csv`, the folders of its 12 images, and a model."""
    folder = tmp_path_factory.mktemp("embed")
    make_images(folder, train=4, test=2, each=2)
    save_tiny_model(folder / "model")
    for number in range(6):
        (folder / "photos").mkdir(exist_ok=True)
        (folder / f"class{number}").rename(folder / "photos" / f"class{number}")
    (folder / "images.csv").write_text((folder / "images.csv").read_text().replace("\nclass", "\nphotos/class"))
    return folder


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DIML_CACHE", str(tmp_path / "cache"))


def embed(place: Path, images: str | Path, *words: str | Path) -> int:
    return main(["embed", *map(str, (images, "--model", place / "model", "--workers", "0", *words))])


def test_a_folder_with_its_labels(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "new" / "regions.parquet"
    assert embed(place, place / "photos", "--output", output) == 0
    assert f"{output}: 12 images, 16 regions of 96 channels each, float32" in capsys.readouterr().out
    table = diml.load_regions(output)
    assert table.paths is not None
    assert table.paths[:3] == ("class0/0.png", "class0/1.png", "class1/0.png")
    assert table.labels == tuple(f"class{number}" for number in range(6) for _ in range(2))
    embedder = diml.load_embedder(place / "model")
    assert table.model is not None
    assert table.model["fingerprint"] == embedder.fingerprint()
    assert isinstance(table.regions, diml.Regions)
    fresh = embedder.embed([place / "photos" / path for path in table.paths])
    torch.testing.assert_close(table.regions.dense, fresh.dense)
    report = diml.evaluate_regions(table.regions, table.labels, rerank_at=(0, 5))
    assert len(report.queries) == 12


@pytest.mark.parametrize("storage", ["float16", "bfloat16", "int8"])
def test_a_csv_file_in_other_types(place: Path, tmp_path: Path, storage: str) -> None:
    output = tmp_path / "regions.npz"
    words = ("--label-from", "parent", "--storage", storage, "--output", output)
    (place / "paths.csv").write_text("path\n" + "\n".join(f"photos/class{number}/0.png" for number in range(6)))
    assert embed(place, place / "paths.csv", *words) == 0
    table = diml.load_regions(output)
    assert str(table.regions.stored[0].dtype) == f"torch.{storage}"
    assert table.labels == tuple(f"class{number}" for number in range(6))
    assert table.paths == tuple(f"photos/class{number}/0.png" for number in range(6))


def test_without_labels_there_are_none(place: Path, tmp_path: Path) -> None:
    assert embed(place, place / "photos" / "class0", "--output", tmp_path / "r.npz") == 0
    assert diml.load_regions(tmp_path / "r.npz").labels is None


def test_a_split_of_a_data_set_with_shares(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = ("--data", place / "images.csv", "--shares", "--json", "--output", tmp_path / "r.npz")
    for split, count in (("train", 8), ("test", 4)):
        assert embed(place, "csv", "--split", split, *data) == 0
        facts = json.loads(capsys.readouterr().out)
        assert (facts["images"], facts["bad"]) == (count, [])
        table = diml.load_regions(tmp_path / "r.npz")
        assert isinstance(table.regions, diml.Regions)
        assert table.regions.shares is not None
        assert table.labels is not None
        assert len(set(table.labels)) == count // 2
        assert table.paths is not None
        assert all((place / path).is_file() and not Path(path).is_absolute() for path in table.paths)


def test_images_that_are_left_out_are_named(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("a", "b"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        (tmp_path / "photos" / name / "0.png").write_bytes((place / "photos" / "class0" / "0.png").read_bytes())
    (tmp_path / "photos" / "a" / "1.png").write_bytes(b"no image")
    output = ("--output", tmp_path / "r.npz")
    assert embed(place, tmp_path / "photos", *output) == 2
    assert not (tmp_path / "r.npz").exists()
    assert embed(place, tmp_path / "photos", *output, "--on-bad-image", "skip") == 1
    assert "left out" in capsys.readouterr().out
    table = diml.load_regions(tmp_path / "r.npz")
    assert (table.paths, table.labels) == (("a/0.png", "b/0.png"), ("a", "b"))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nowhere"], "need a folder, a .csv file or the name of a data set (`diml datasets`), got 'nowhere'"),
        (["orl", "--label-from", "top"], "--label-from: need a folder or CSV file, got the data set orl"),
        (["photos", "--shares", "--storage", "int8"], "--shares: regions in int8 have none"),
    ],
)
def test_what_does_not_fit_is_refused(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words, message
) -> None:
    monkeypatch.chdir(place)
    assert embed(place, *words, "--output", tmp_path / "r.npz") == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "r.npz").exists()


def test_npz_needs_no_extra_and_parquet_names_its_own(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("pyarrow", "lancedb"):
        monkeypatch.setitem(sys.modules, name, None)
    assert embed(place, place / "photos", "--output", tmp_path / "r.npz") == 0
    assert embed(place, place / "photos", "--output", tmp_path / "r.parquet") == 2
    assert "pip install 'diml[search]', or use an .npz file" in capsys.readouterr().err
