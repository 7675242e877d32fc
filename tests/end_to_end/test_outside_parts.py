"""Commands with parts of an installed package of the user's own, by the names of its entry points."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from diml import extending
from diml.cli import main
from diml.extending import KINDS
from end_to_end.small_runs import make_images
from tiny_model import save_tiny_model

PARTS = '''
import os
from pathlib import Path

import torch
from pytorch_metric_learning import losses

import diml
from diml.search.backends.lance import LanceStore


def pull(given, *, margin: float = 0.5):
    return losses.ContrastiveLoss(0, margin, distance=given.distance())


def small_net(*, pretrained: bool, channels: int = 8):
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Conv2d(3, channels, 16, stride=16), torch.nn.ReLU())


def shop(root):
    """Photos of a shop."""
    paths = sorted(Path(root).glob("class*/*.png"))
    labels = [path.parent.name for path in paths]
    train, test = ([i for i, name in enumerate(labels) if (int(name[5:]) < 6) == part] for part in (True, False))
    sets = [diml.ImageSet([paths[i] for i in rows], [labels[i] for i in rows]) for rows in (train, test)]
    return diml.DataSet("shop", "class_disjoint", train=sets[0], test=sets[1], credit=None)


class TeamStore(LanceStore):
    @classmethod
    def open(cls, uri):
        return cls(Path(os.environ["TEAM"]) / uri.removeprefix("team://"))

    @classmethod
    def create(cls, uri, config, texts=None):
        return super().create(Path(os.environ["TEAM"]) / uri.removeprefix("team://"), config, texts)
'''


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with images and an installed package whose parts are known by their names."""
    monkeypatch.setattr(extending, "_REGISTERED", {kind: {} for kind in KINDS})
    make_images(tmp_path / "images", train=6, test=2, each=3)
    package = tmp_path / "package"
    info = package / "team_parts-1.0.dist-info"
    info.mkdir(parents=True)
    (package / "team_parts.py").write_text(PARTS)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: team-parts\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[diml.losses]\npull = team_parts:pull\n[diml.backbones]\nsmall_net = team_parts:small_net\n"
        "[diml.datasets]\nshop = team_parts:shop\n[diml.stores]\nteam = team_parts:TeamStore\n"
    )
    monkeypatch.syspath_prepend(package)
    monkeypatch.setenv("TEAM", str(tmp_path / "team"))
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    sys.modules.pop("team_parts", None)


@pytest.mark.slow
def test_a_training_and_an_evaluation_with_own_network_loss_and_data_set(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["train", "shop", "--data", "images", "--model", "small_net", "--objective", "pull", "--output", "run"]
    words += ["--objective-options", "margin=0.3", "--size", "64", "--batch-size", "4", "--epochs", "1", "--dim", "8"]
    words += ["--rerank-at", "3", "--sampler-options", "batches_per_epoch=2", "--validation-fraction", "0.4"]
    assert main([*words, "--no-progress"]) == 0
    assert "Run: run" in capsys.readouterr().out
    config = json.loads((place / "run" / "evaluation.json").read_text())["config"]
    assert (config["dataset"], config["model"], config["objective"]) == ("shop", "small_net", "pull")
    again = ["evaluate", "shop", "--data", "images", "--model", "run", "--json", "--rerank-at", "0", "3", "--no-cache"]
    assert main([*again, "--workers", "0"]) == 0
    found = json.loads(capsys.readouterr().out)["methods"]
    trained = json.loads((place / "run" / "evaluation.json").read_text())["methods"]["run"]
    assert next(iter(found.values()))["rows"] == trained["rows"]


def test_an_index_in_a_registered_store_is_built_searched_and_copied_from(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Copying into one is refused: a store has no operation that gives a finished copy its name."""
    model = save_tiny_model(place / "model", grid=2)
    build = ["index", "build", "images", "--index", "team://photos", "--model", str(model), "--workers", "0"]
    assert main(build) == 0
    assert (place / "team" / "photos").is_dir()
    assert main(build) == 0  # brought up to date, in the same place
    capsys.readouterr()
    query = str(place / "images" / "class0" / "0.png")
    assert main(["search", "team://photos", query, "-k", "1", "--json"]) == 0
    hits = json.loads(capsys.readouterr().out)["hits"]
    assert hits[0]["file"].endswith("class0/0.png")
    for action in ("info", "verify"):
        assert main(["index", action, "team://photos"]) == 0
    assert main(["index", "copy", "team://photos", "copy.index"]) == 0
    assert "24 images" in capsys.readouterr().out
    assert main(["index", "copy", "copy.index", "team://other"]) == 2
    error = capsys.readouterr().err
    assert "need a folder, NAME.db or a Milvus server, got team://other" in error
    assert "build the index with `diml index build`" in error
    assert not (place / "team" / "other").exists()
    assert main(["search", "copy.index", query, "-k", "1"]) == 0
