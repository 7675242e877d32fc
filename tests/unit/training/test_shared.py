"""One process; two real ones are in tests/end_to_end/test_distributed.py."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from torch import nn

from diml.data import load_dataset
from diml.evaluation import evaluate_regions
from diml.training.shared import Team, _queries_with_relevant, embed_shared, evaluate_shared, join_team

ALONE = Team(0, 1, torch.device("cpu"))


@pytest.mark.parametrize("size", [1, 2, 3, 8])
@pytest.mark.parametrize("count", [0, 1, 7, 8, 112])
def test_shares_follow_each_other_and_are_even(size, count):
    shares = Team(0, size, torch.device("cpu")).shares(count)
    assert [i for share in shares for i in range(count)[share]] == list(range(count))
    sizes = [share.stop - share.start for share in shares]
    assert max(sizes) - min(sizes) <= 1


def test_alone_everything_is_a_plain_copy(tiny):
    rows = torch.randn(3, 2, requires_grad=True)
    assert ALONE.gather(rows) is rows
    regions = tiny()(torch.randn(2, 3, 64, 64))
    assert ALONE.gather_regions(regions) is regions
    assert ALONE.any(True, False) == (True, False)
    weight = nn.Parameter(torch.ones(2))
    weight.grad = torch.full((2,), 3.0)
    ALONE.add_gradients([weight])
    ALONE.average_gradients([weight])
    assert weight.grad.tolist() == [3, 3]
    with ALONE.first_goes_ahead():
        ALONE.wait()


def test_alone_without_torchrun(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with join_team("cpu") as team:
        assert (team.rank, team.size, team.is_first, team.device.type) == (0, 1, True, "cpu")


@pytest.mark.parametrize("device", ["cuda:99", "toaster"])
def test_a_device_that_is_not_there_is_named(device):
    with pytest.raises(ValueError, match=f"device: '{device}' cannot be used here"), join_team(device):
        pass


def test_embedding_and_evaluating_alone_are_those_of_the_other_rooms(tiny, images):
    test = load_dataset("csv", images).test
    embedder = tiny()
    found = embed_shared(embedder, test, ALONE, batch_size=5)
    direct = embedder.embed(test.paths, batch_size=5)
    assert torch.equal(found.regions.dense, direct.dense)
    assert found.images is test
    report = evaluate_shared(found.regions, test, ALONE, rerank=(0, 3), seed=0)
    assert report.to_dict() == evaluate_regions(direct, test.labels, rerank=(0, 3)).to_dict()


def test_unreadable_images_are_left_out_by_name(tiny, images, tmp_path):
    test = load_dataset("csv", images).test
    (tmp_path / "broken.png").write_bytes(b"no image")
    paths = (*test.paths[:2], tmp_path / "broken.png", *test.paths[3:])
    mixed = type(test)(name="mixed", paths=paths, labels=test.labels, class_names=test.class_names)
    with pytest.warns(UserWarning, match=r"left out .*broken.png: is not a image"):
        found = embed_shared(tiny(), mixed, ALONE, batch_size=5, on_bad_image="skip")
    assert found.kept.tolist() == [i for i in range(len(test)) if i != 2]
    assert len(found.images) == len(found.regions) == len(test) - 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(ValueError, match=r"broken.png"):
            embed_shared(tiny(), mixed, ALONE, batch_size=5)


def test_queries_with_something_to_find(images):
    test = load_dataset("csv", images).test
    lonely = test.subset([0, 1, 4, 8, 9])
    assert _queries_with_relevant(lonely).tolist() == [0, 1, 3, 4]
    sides = {"queries": np.array([0, 2]), "gallery": np.array([1, 2, 3])}
    divided = type(test)(name="x", paths=lonely.paths, labels=lonely.labels, class_names=lonely.class_names, **sides)
    assert _queries_with_relevant(divided).tolist() == [0]
