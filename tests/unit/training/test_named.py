"""Objective and sampler by name, with options that come as text."""

from __future__ import annotations

import typing

import numpy as np
import pytest
import torch

from diml.data.samplers import sampler_names, sampler_option_types
from diml.models.zoo import is_backbone
from diml.objectives import build_objective, miner_names, objective_names, option_types
from diml.training.config import TrainConfig, converted
from diml.training.named import check_names, named_objective, named_sampler


def config(**changes) -> TrainConfig:
    return TrainConfig(**({"dataset": "orl", "model": "test_resnet"} | changes))


def test_options_reach_the_objective_with_their_types():
    found = named_objective(
        config(objective_options=("beta=1", "miner_upper_cutoff=none", "learn_beta=false", "nu=0")),
        num_classes=3,
        dim=8,
    )
    assert found.options["beta"] == 1.0
    assert type(found.options["beta"]) is float
    assert found.options["miner_upper_cutoff"] is None
    assert found.options["learn_beta"] is False


def test_lists_reach_objective_and_miner():
    parts = ("parts=discriminative,shared,intra",)
    assert (
        len(
            named_objective(
                config(objective="adversarial_separation", objective_options=parts), num_classes=3, dim=9
            ).loss.losses
        )
        == 3
    )
    weights = ("miner_bins=3", "miner_probabilities=0.2,0,1")
    miner = named_objective(config(miner="parametric", objective_options=weights), num_classes=3, dim=8).miner
    assert miner.weights.tolist() == [0.2, 0.0, 1.0]


def test_options_reach_the_sampler():
    sampler = named_sampler(
        config(sampler="greedy_coreset", batch_size=4, sampler_options=("softened=true", "batches_per_epoch=3")),
        np.repeat(np.arange(5), 3),
    )
    assert len(sampler) == 3
    assert sampler._choice.softened is True


@pytest.mark.parametrize("name", objective_names())
def test_every_option_there_is_has_a_type_that_text_is_brought_to(name):
    defaults = build_objective(name, num_classes=3, embedding_dim=12, num_regions=4).options
    arguments = ("name", "num_classes", "embedding_dim", "similarity", "miner", "mining", "num_regions")
    options = {key: value for key, value in defaults.items() if key not in arguments}
    types = option_types(name)
    assert options.keys() <= types.keys()
    for key, value in options.items():
        assert converted(value, types[key], key) == value


@pytest.mark.parametrize("name", [name for name in miner_names() if name != "none"])
def test_options_of_every_miner_have_types(name):
    objective = "multisimilarity" if name == "multisimilarity" else "margin"
    options = build_objective(objective, num_classes=3, embedding_dim=12, miner=name).options
    own = {key for key in options if key.startswith("miner_")}
    assert own == {key for key in option_types(objective, name) if key.startswith("miner_")}


@pytest.mark.parametrize("name", sampler_names())
def test_options_of_every_sampler_have_types(name):
    kinds = {int, float, bool}
    for wanted in sampler_option_types(name).values():
        assert wanted in kinds or set(typing.get_args(wanted)) <= {int, type(None)}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"objective_options": ("beta=abc",)}, r"objective_options: beta: need a number, got 'abc'"),
        ({"objective_options": ("beta=none",)}, r"objective_options: beta: need a number, got None"),
        ({"objective_options": ("learn_beta=2",)}, r"learn_beta: need true or false, got 2"),
        ({"objective": "histogram", "objective_options": ("nodes=6.5",)}, r"nodes: need a whole number, got 6.5"),
        ({"objective_options": ("beta=1,2",)}, r"beta: need a number, got \[1, 2\]"),
        ({"objective_options": ("miner=random",)}, r"miner is no option, it is set by --miner"),
        ({"objective_options": ("num_classes=3",)}, r"num_classes is no option"),
        ({"objective_options": ("generator=3",)}, r"generator is no option, it is set by --seed"),
        ({"objective_options": ("bet=1",)}, r"did you mean beta"),
        ({"objective": "marginn"}, r"unknown 'marginn'; did you mean 'margin'"),
        ({"miner": "distanc"}, r"unknown 'distanc'; did you mean 'distance'"),
        ({"objective": "npair", "miner": "distance"}, r"does not work with 'distance'; allowed: \('none',\)"),
        ({"objective": "adversarial_separation", "dim": 7}, r"need a multiple of the number of parts"),
        ({"sampler": "fidd"}, r"no sampler 'fidd'; did you mean 'fid'"),
        ({"sampler": "fid", "sampler_options": ("pol=9",)}, r"sampler fid: no option 'pol'; did you mean 'pool'"),
        (
            {"sampler": "fid", "sampler_options": ("pool=abc",)},
            r"sampler_options: pool: need a whole number, got 'abc'",
        ),
        ({"sampler_options": ("batches_per_epoch=x",)}, r"batches_per_epoch: need a whole number"),
    ],
)
def test_what_cannot_work_is_told_without_images(changes, message):
    with pytest.raises(ValueError, match=message):
        check_names(config(**changes))


def test_what_may_work_is_not_refused():
    """The length of embeddings is the backbone's own with head `identity`: nobody knows it yet."""
    assert is_backbone("test_resnet")
    parts = ("parts=discriminative,shared,intra",)
    check_names(config(objective="adversarial_separation", objective_options=parts, head="identity"))
    check_names(config(objective="proxyanchor", similarity="structural"))
    check_names(config(sampler="random", sampler_options=("batches_per_epoch=none",)))


def test_the_check_leaves_a_run_as_it_is(images, tmp_path):
    """Its draws are its own: proxies start from the seed as they did without it."""
    from diml.training import loop
    from end_to_end.small_runs import small_config, tensors_of

    before = torch.get_rng_state()
    for name, check in (("with", check_names), ("without", lambda _: None)):
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(loop, "check_names", check)
            loop.train(small_config(images, tmp_path / name, objective="proxyanchor", epochs=1, rerank=0))
    ours, theirs = (tensors_of(tmp_path / name / "last.ckpt") for name in ("with", "without"))
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
    assert torch.equal(before, torch.get_rng_state())
