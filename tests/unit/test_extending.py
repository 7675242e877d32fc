"""Parts of the user's own by name: the blocks of docs/extending.md, entry points, and errors."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

import diml
from diml import extending
from diml.data.datasets import check_dataset
from diml.data.registry import dataset_info, dataset_names
from diml.extending import KINDS, need_registered, register, registered, registered_names
from diml.objectives import build_objective, objective_names
from diml.objectives.objective import miner_defaults, option_types
from diml.search import open_store

DOCUMENT = Path(__file__).parents[2] / "docs" / "extending.md"


@pytest.fixture(autouse=True)
def nothing_stays_registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extending, "_REGISTERED", {kind: {} for kind in KINDS})


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An installed package that declares a loss, a miner that cannot be imported, and a data set."""
    (tmp_path / "outside_parts.py").write_text(
        "from typing import Literal\n"
        "from pytorch_metric_learning import losses\n"
        "import diml\n"
        "def pull(given, *, margin: float = 0.5):\n"
        "    return losses.ContrastiveLoss(0, margin, distance=given.distance())\n"
        "def shop(root, protocol: Literal['small', 'large']):\n"
        "    '''Photos of a shop.'''\n"
        "    paths = diml.sample_images()[: 6 if protocol == 'small' else 12]\n"
        "    images = diml.ImageSet(paths, [path.parent.name for path in paths])\n"
        "    return diml.DataSet('shop', protocol, train=None, test=images, credit=None)\n"
        "number = 3\n"
    )
    info = tmp_path / "outside_parts-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: outside-parts\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[diml.losses]\npull = outside_parts:pull\nnumber = outside_parts:number\n"
        "[diml.miners]\nlost = outside_parts_missing:Lost\n"
        "[diml.datasets]\nshop = outside_parts:shop\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    sys.modules.pop("outside_parts", None)


def test_the_blocks_of_the_document_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {"__name__": "document"}
    blocks = re.findall(r"^```python\n(.*?)^```", DOCUMENT.read_text(), re.MULTILINE | re.DOTALL)
    printed = []
    for number, block in enumerate(blocks):
        exec(compile(block, f"extending.md, Python block {number + 1}", "exec"), names)
        printed.append(capsys.readouterr().out)
    loss, miner, backbone, data, store, knn = printed
    assert "precision_at_1" in knn
    assert "0.3" in loss
    assert re.search(r"'triplets': [1-8]\b", miner)
    assert "12" in backbone
    assert "K = 5: R@1" in data
    assert Path(diml.sample_images()[0]).name in store
    assert (tmp_path / "team" / "photos" / "images.lance").is_dir()
    assert [registered_names(kind) for kind in KINDS] == [
        ("soft_triplets",), ("all_triplets",), ("patches",), ("samples",), ("team",)
    ]  # fmt: skip
    assert check_dataset("samples").images == 12


def test_an_entry_point_works_like_a_built_in_name(package: Path) -> None:
    assert "pull" in objective_names()
    assert option_types("pull", "random")["margin"] is float
    objective = build_objective("pull", num_classes=2, embedding_dim=4, margin=0.25)
    assert objective.options["margin"] == 0.25
    vectors = nn.functional.normalize(torch.randn(4, 4, generator=torch.Generator().manual_seed(0)))
    labels = torch.tensor([0, 0, 1, 1])
    twin = build_objective(
        "contrastive", num_classes=2, embedding_dim=4, miner="none", neg_margin=0.25, active_only=True
    )
    torch.testing.assert_close(objective(vectors, labels), twin(vectors, labels))


def test_the_protocols_of_a_data_set_are_those_of_its_parameter(package: Path) -> None:
    assert "shop" in dataset_names()
    info = dataset_info("shop")
    assert (info.description, info.protocols) == ("Photos of a shop.", ("small", "large"))
    assert len(diml.load_dataset("shop").test) == 6
    assert len(diml.load_dataset("shop", protocol="large").test) == 12
    with pytest.raises(ValueError, match="protocol: shop has no 'medium'"):
        diml.load_dataset("shop", protocol="medium")


def test_nothing_is_imported_before_its_name_is_used(package: Path) -> None:
    assert "lost" in registered_names("miners")
    assert "outside_parts" not in sys.modules
    with pytest.raises(ValueError, match=r"entry point 'lost' of group diml.miners.*ModuleNotFoundError.*repair"):
        registered("miners", "lost")
    with pytest.raises(ValueError, match="need a function or class, got int"):
        registered("losses", "number")


def test_what_is_registered_hides_an_entry_point(package: Path) -> None:
    def other(given):
        return nn.Identity()

    register("losses", "pull", other)
    assert registered("losses", "pull") is other


def test_a_built_in_name_comes_first() -> None:
    register("losses", "margin", lambda given: nn.Identity())
    objective = build_objective("margin", num_classes=2, embedding_dim=4)
    assert type(objective.loss).__name__ == "MarginLoss"


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (("loss", "a", print), ValueError, "kind: need one of losses, miners"),
        (("losses", "a b", print), ValueError, "name: need a letter"),
        (("losses", "3d", print), ValueError, "name: need a letter"),
        (("losses", "a", nn.Parameter()), TypeError, "make: need a function or class, got Parameter"),
    ],
)
def test_what_cannot_be_registered_is_named(arguments, error, message) -> None:
    with pytest.raises(error, match=message):
        register(*arguments)


def test_parts_that_return_something_else_are_named() -> None:
    register("losses", "three", lambda given: 3)
    register("backbones", "three", lambda pretrained: 3)
    register("datasets", "three", lambda root: 3)
    with pytest.raises(TypeError, match="loss: need a module or a Recipe from 'three', got int"):
        build_objective("three", num_classes=2, embedding_dim=4)
    with pytest.raises(TypeError, match=r"backbone: need an nn.Module from 'three', got int"):
        diml.load_embedder("three")
    with pytest.raises(TypeError, match="dataset: need a DataSet from 'three', got int"):
        diml.load_dataset("three")


def test_unknown_names_are_errors_that_list_the_registered_ones() -> None:
    register("losses", "pulled", lambda given: nn.Identity())
    register("backbones", "patches", lambda pretrained: nn.Identity())
    register("stores", "team", dict)
    with pytest.raises(ValueError, match="did you mean 'pulled'"):
        build_objective("puled", num_classes=2, embedding_dim=4)
    with pytest.raises(ValueError, match=r"backbone: no model 'patchez'.*registered one \(patches\)"):
        diml.models.zoo.check_name("patchez")
    with pytest.raises(ValueError, match=r"index: no store for taem://; did you mean 'team'\?"):
        open_store("taem://photos")
    with pytest.raises(ValueError, match="weights_file: 'patches' is a registered backbone"):
        diml.load_embedder("patches", weights_file="weights.safetensors")


def test_a_name_that_has_to_be_registered_and_is_not_is_a_users_error() -> None:
    with pytest.raises(ValueError, match=r"stores: 'team' is neither registered nor .*installed package; none is"):
        need_registered("stores", "team")
    register("miners", "all_pairs", nn.Identity)
    with pytest.raises(ValueError, match=r"miners: 'al_pairs' is neither .*did you mean 'all_pairs'"):
        miner_defaults("al_pairs")
