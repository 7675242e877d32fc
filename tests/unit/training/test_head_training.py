"""Training the head alone: cached features give what the network gives, and the run is a run like any other."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from diml.data import load_dataset
from diml.data.augment import Augment
from diml.distributed import ProcessGroup
from diml.evaluation import evaluate_dataset
from diml.models import load_embedder
from diml.models.heads import LinearHead
from diml.training import TrainConfig, read_config, train
from diml.training.baseline import FROZEN
from diml.training.features import embed_features, regions_of
from diml.training.head_training import FeatureLoader
from diml.training.interrupts import TrainingStopped
from diml.training.logs import read_records
from diml.training.split import split_for_training
from end_to_end.small_runs import SMALL, make_images, tensors_of

#: Settings of a run of the head that takes a second; the recipe supplies the rest.
HEAD = {name: SMALL[name] for name in ("dataset", "model", "pretrained", "dim", "size", "grid", "batch_size", "lr")} | {
    "frozen_backbone": True,
    "per_class": 2,
    "epochs": 3,
    "rerank_at": 5,
    "validation_fraction": 0.3,
    "sampler_options": ["batches_per_epoch=4"],
    "region_dropout": 0.25,
    "views": 1,
    "device": "cpu",
}


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("DIML_CACHE", str(tmp_path / "cache"))


def head_config(images, output, **changes) -> TrainConfig:
    return TrainConfig.from_dict(HEAD | {"data": images, "output": output} | changes)


@pytest.fixture
def features(images, tiny):
    """The embedder, the images and their features in three views."""
    embedder, pool = tiny(), load_dataset("csv", images).train
    crops = [Augment(preprocess=embedder.preprocess, scale=(0.3, 1.0))] * 2
    return embedder, pool, embed_features(embedder, pool, crops, ProcessGroup(), batch_size=16)


@pytest.mark.parametrize("pooled", ["backbone", "grid_mean"])
@pytest.mark.parametrize("grid", [1, 2, 3])
def test_regions_from_features_are_those_of_the_network(images, tiny, pooled, grid):
    """For a head with a bias, both ways of pooling, and grids that do and do not divide the map."""
    embedder, pool = tiny(pooled=pooled, grid=grid), load_dataset("csv", images).train
    with torch.no_grad():
        embedder.head.bias.normal_(generator=torch.Generator().manual_seed(0))
    found = embed_features(embedder, pool, [], ProcessGroup(), batch_size=16)
    rows = torch.tensor([3, 0, 7])
    ours, theirs = found.regions(embedder, rows), embedder.embed([pool.images[row] for row in rows.tolist()])
    assert torch.allclose(ours.dense, theirs.dense, atol=1e-6, rtol=0)
    assert torch.allclose(ours.pooled, theirs.pooled, atol=1e-6, rtol=0)
    assert ours.grid == theirs.grid


def test_the_gradient_of_the_head_is_that_of_the_network(features):
    embedder, pool, found = features
    batch = torch.stack([embedder.preprocess(image) for image in _opened(pool, 5)])
    gradients = []
    for regions in (regions_of(embedder.eval(), found.views[0][:5]), embedder(batch)):
        embedder.zero_grad()
        (regions.dense[..., 0].sum() + regions.pooled[..., 1].sum()).backward()
        gradients.append(embedder.head.weight.grad.clone())
    assert torch.allclose(*gradients, atol=1e-6)


def _opened(pool, count):
    from diml.data import load_image

    return [load_image(image) for image in pool.images[:count]]


def test_a_crop_is_the_same_whichever_images_are_embedded_with_it(features):
    embedder, pool, found = features
    crops = [Augment(preprocess=embedder.preprocess, scale=(0.3, 1.0))] * 2
    again = embed_features(embedder, pool.subset(np.arange(9)), crops, ProcessGroup(), batch_size=4)
    for view, other in zip(found.views, again.views, strict=True):
        assert torch.allclose(view[:9], other, atol=1e-5)
    assert not torch.allclose(found.views[1], found.views[2], atol=1e-3)


@settings(max_examples=20, deadline=None)
@given(kept=st.integers(1, 4), seed=st.integers(0, 99), epoch=st.integers(0, 9), by_mean=st.booleans())
def test_a_batch_holds_regions_of_one_view_of_each_image(kept, seed, epoch, by_mean):
    generator = torch.Generator().manual_seed(0)
    features = _Features(tuple(torch.randn(6, 5, 3, generator=generator) for _ in range(3)))
    rows = torch.tensor([5, -1, 0, 2])
    loader = FeatureLoader(features, rows, regions=kept, pools_by_mean=by_mean)
    whole = list(loader.epoch([[0, 1], [3, 2, 0]], seed=seed, epoch=epoch))
    assert [batch.indices.tolist() for batch in whole] == [[0], [3, 2, 0]]  # image 1 cannot be read
    alone = next(iter(loader.epoch([[0]], seed=seed, epoch=epoch)))
    assert torch.equal(whole[1].images[2:], alone.images)  # whatever else is in the batch
    for index, vectors in zip(whole[1].indices.tolist(), whole[1].images, strict=True):
        assert vectors.shape == (kept + 1, 3)
        views = [view[rows[index]] for view in features.views]
        source = next(view for view in views if (view == vectors[0]).all(dim=1).any())
        assert all((source[:4] == cell).all(dim=1).any() for cell in vectors[:-1])
        pooled = source[4] + by_mean * (kept < 4) * (vectors[:-1].mean(dim=0) - source[:4].mean(dim=0))
        assert torch.allclose(vectors[-1], pooled, atol=1e-6)


class _Features:
    def __init__(self, views) -> None:
        self.views, self.grid = views, (2, 2)


@pytest.mark.parametrize("changes", [{}, {"objective": "multisimilarity_diml"}, {"objective": "proxyanchor"}])
def test_only_the_head_is_changed(images, tmp_path, changes):
    result = train(head_config(images, tmp_path / "run", **changes))
    before, after = load_embedder(tmp_path / "run" / FROZEN), load_embedder(tmp_path / "run" / "last.ckpt")
    assert isinstance(after.head, LinearHead)
    assert after.config.head == "linear"
    ours, theirs = before.backbone.state_dict(), after.backbone.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert not torch.equal(before.head.weight, after.head.weight)
    # every command evaluates the folder as the run was tested
    found = evaluate_dataset(load_embedder(result.folder), load_dataset("csv", images).test, rerank_at=(0, 5))
    for row, tested in zip(found.report.rows, result.test.rows, strict=True):
        assert row == pytest.approx(tested, abs=1e-6)


def test_it_begins_as_the_whitening_of_the_training_images(images, tmp_path):
    config = head_config(images, tmp_path / "run", epochs=1)
    result = train(config)
    split = split_for_training(load_dataset("csv", images), config)
    whitened = load_embedder(tmp_path / "run" / FROZEN)  # has random weights: taken from the run, with another head
    from diml.models import Embedder
    from diml.models.heads import build_head

    settings_ = whitened.config.__class__.from_dict(whitened.config.to_dict() | {"head": "whiten"})
    fitted = Embedder(whitened.backbone, build_head("whiten", whitened.backbone.channels, 16), settings_)
    fitted.fit_head(split.train)
    assert torch.allclose(fitted.head.weight, whitened.head.weight, atol=1e-4)
    assert not whitened.head.bias.any()
    by_hand = evaluate_dataset(whitened, load_dataset("csv", images).test, rerank_at=(0, 5)).report
    assert result.frozen.rows[0] == pytest.approx(by_hand.rows[0], abs=1e-6)


def test_the_run_shows_the_network_before_training_as_epoch_0(images, tmp_path):
    result = train(head_config(images, tmp_path / "run"))
    records = read_records(tmp_path / "run" / "metrics.jsonl")
    validated = [record["epoch"] for record in records if record["kind"] == "validation"]
    assert validated == sorted(validated)
    assert set(validated) == set(range(max(validated) + 1)) > {0}
    document = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    assert list(document["methods"]) == ["frozen", "run"]
    found = {(row["rerank_at"], row["metric"]): row for row in document["trained_minus_frozen"]}
    for k in (0, 5):
        expected = result.test.row(k)["map@r"] - result.frozen.row(k)["map@r"]
        assert found[k, "map@r"]["value"] == pytest.approx(expected)
        assert found[k, "map@r"]["low"] <= expected <= found[k, "map@r"]["high"]


def test_a_stopped_run_ends_as_an_uninterrupted_one(images, tmp_path, monkeypatch):
    from diml.training.head_training import HeadStepper

    whole = train(head_config(images, tmp_path / "whole"))
    original = HeadStepper.step

    def step(self, images, labels, number):
        if number == 6:
            raise KeyboardInterrupt
        return original(self, images, labels, number)

    config = head_config(images, tmp_path / "run", checkpoint_every=2)
    with monkeypatch.context() as patched:
        patched.setattr(HeadStepper, "step", step)
        with pytest.raises(TrainingStopped):
            train(config)
    result = train(config, resume=True)
    ours, theirs = tensors_of(tmp_path / "run" / "last.ckpt"), tensors_of(whole.folder / "last.ckpt")
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert result.test.rows == whole.test.rows
    assert result.frozen.rows == whole.frozen.rows


def test_the_recipe_supplies_what_is_not_given(images, tmp_path):
    plain, config = TrainConfig(dataset="orl"), head_config(images, tmp_path)
    assert (config.head, config.objective, config.lr, config.batch_size) == ("whiten", "multisimilarity", 1e-3, 8)
    assert TrainConfig.from_dict({"dataset": "orl", "frozen_backbone": True}).lr != plain.lr
    assert TrainConfig.from_dict({"dataset": "orl", "frozen_backbone": False}) == plain
    assert TrainConfig.from_dict(config.to_dict()) == config


def test_an_unreadable_image_is_left_out_by_name(tmp_path):
    images = make_images(tmp_path, train=6, test=2)
    (tmp_path / "class1" / "2.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"class1/2.png"):
        train(head_config(images, tmp_path / "fail", validation_fraction=0, patience=None))
    with pytest.warns(UserWarning, match=r"skipped .*class1/2.png"):
        train(head_config(images, tmp_path / "skip", validation_fraction=0, patience=None, on_bad_image="skip"))
    assert read_config(tmp_path / "skip" / "config.yaml")["frozen_backbone"] is True
