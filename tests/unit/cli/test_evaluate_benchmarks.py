"""`diml evaluate` on data sets with a protocol of their own: metrics of the publications, draws, judgements, copies."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import tyro
from PIL import Image
from tests.tiny_model import save_tiny_model

from diml.cli.evaluate import EvaluateCommand

pytestmark = pytest.mark.filterwarnings("ignore::diml.data.inventory.IncompleteDataSetWarning")


def run(*words: str | Path) -> int:
    return tyro.cli(EvaluateCommand, args=[str(word) for word in words], config=(tyro.conf.FlagCreatePairsOff,)).run()


def draw(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    blocks = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    Image.fromarray(blocks.repeat(12, axis=0).repeat(12, axis=1)).save(path)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("model") / "tiny")


def evaluated(capsys: pytest.CaptureFixture[str], *words: str | Path) -> dict:
    assert run(*words, "--rerank-at", "0", "--workers", "0", "--json") == 0
    return json.loads(capsys.readouterr().out)


def test_reid_and_copies(tmp_path: Path, model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    home = tmp_path / "Market-1501-v15.09.15"
    for seed, name in enumerate(
        [
            "bounding_box_train/0003_c1s1_000001_01.jpg",
            "query/0001_c1s1_000001_00.jpg",
            "query/0002_c1s1_000001_00.jpg",
            "bounding_box_test/0001_c2s1_000001_00.jpg",
            "bounding_box_test/0001_c1s1_000002_00.jpg",
            "bounding_box_test/0002_c3s1_000001_00.jpg",
            "bounding_box_test/0000_c3s1_000001_00.jpg",
        ]
    ):
        draw(home / name, seed)
    draw(home / "bounding_box_test/0002_c4s1_000001_00.jpg", 2)  # the second query again
    words = ("market1501", "--data", tmp_path, "--model", model)
    found = evaluated(capsys, *words)
    method = found["methods"][str(model)]
    assert set(method["rows"][0]) == {
        "rerank_at",
        *("recall@1", "recall@5", "recall@10", "map", "map_trapezoid", "minp"),
    }
    copies = found["copies"][str(model)]
    assert (copies["queries"], copies["with_copy"]) == (2, 1)
    assert run(*words, "--rerank-at", "0", "--workers", "0") == 0
    assert "Copies: 1 of 2 queries (50.0 %) have an exact or near copy among their ten best hits." in " ".join(
        capsys.readouterr().out.split()
    )
    standard = evaluated(capsys, *words, "--metrics", "standard")["methods"][str(model)]["rows"][0]
    assert "map@r" in standard
    assert "map" not in standard
    ranks = evaluated(capsys, *words, "--recall-at", "3")["methods"][str(model)]["rows"][0]
    assert list(ranks) == ["rerank_at", "recall@3", "map", "map_trapezoid", "minp"]


def test_draws(tmp_path: Path, model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    home = tmp_path / "VehicleID_V1.0"
    (home / "train_test_split").mkdir(parents=True)
    (home / "train_test_split" / "train_list.txt").write_text("0000001 1\n")
    (home / "train_test_split" / "test_list_800.txt").write_text("".join(f"{i:07} {i // 3}\n" for i in range(9)))
    for number in range(9):
        draw(home / "image" / f"{number:07}.jpg", number)
    words = ("vehicleid", "--data", tmp_path, "--protocol", "small", "--model", model)
    found = evaluated(capsys, *words)["methods"][str(model)]
    assert (found["queries"], found["gallery"], found["settings"]["draws"]) == (60, 3, 10)
    with pytest.raises(ValueError, match="vehicleid has drawn galleries"):
        evaluated(capsys, *words, "--metrics", "all")


def test_judgements(tmp_path: Path, model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    home = tmp_path / "rparis6k"
    names = [f"louvre_{i:06}" for i in range(6)]
    for number, name in enumerate(names):
        draw(home / "jpg" / f"{name}.jpg", number)
    content = {
        "qimlist": names[:1],
        "imlist": names[1:],
        "gnd": [{"bbx": [3, 3, 80, 90], "easy": [0], "hard": [2], "junk": [1]}],
    }
    (home / "gnd_rparis6k.pkl").write_bytes(pickle.dumps(content))
    words = ("rparis6k", "--data", tmp_path, "--model", model)
    for protocol in ("easy", "medium", "hard"):
        found = evaluated(capsys, *words, "--protocol", protocol)["methods"][str(model)]
        assert list(found["rows"][0]) == ["rerank_at", "map_trapezoid", "recall@1", "recall@5", "recall@10"]
        assert 0 < found["rows"][0]["map_trapezoid"] <= 1
    with pytest.raises(ValueError, match="rparis6k has judgements; use `standard`"):
        evaluated(capsys, *words, "--metrics", "all")
