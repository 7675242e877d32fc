"""Objective, sampler and network built from a configuration, whose options are given as text."""

from __future__ import annotations

import typing

import numpy as np
import pytest
import torch

from diml.data import load_dataset
from diml.data.samplers import sampler_names, sampler_option_types
from diml.distributed import ProcessGroup
from diml.matching import Matcher
from diml.models.zoo import is_backbone
from diml.objectives import build_objective, objective_names
from diml.objectives.objective import MINERS, option_types
from diml.training.components import (
    build_components,
    check_names,
    configured_embedder,
    configured_objective,
    configured_sampler,
)
from diml.training.config import TrainConfig, converted
from diml.training.split import split_for_training
from end_to_end.small_runs import small_config


def config(**changes) -> TrainConfig:
    return TrainConfig(**({"dataset": "orl", "model": "test_resnet"} | changes))


def test_the_matcher_reaches_objective_and_embedder(images, tmp_path):
    matcher = Matcher(epsilon=0.02, weights="uniform")
    chosen = small_config(images, tmp_path, objective="margin_diml", matcher=matcher)
    split = split_for_training(load_dataset("csv", images), chosen)
    found = build_components(chosen, split, ProcessGroup(), None)
    assert found.embedder.matcher == matcher
    assert found.objective.matcher == matcher
    found.embedder.save(tmp_path / "saved")
    again = configured_embedder(small_config(images, tmp_path, model=str(tmp_path / "saved")))
    assert again.matcher == Matcher()  # of the configuration, not of the saved embedder


def test_options_reach_the_objective_with_their_types():
    found = configured_objective(
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
            configured_objective(
                config(objective="adversarial_separation", objective_options=parts), num_classes=3, dim=9
            ).loss.losses
        )
        == 3
    )
    weights = ("miner_bins=3", "miner_probabilities=0.2,0,1")
    miner = configured_objective(config(miner="parametric", objective_options=weights), num_classes=3, dim=8).miner
    assert miner.weights.tolist() == [0.2, 0.0, 1.0]


def test_options_reach_the_sampler():
    sampler = configured_sampler(
        config(sampler="greedy_coreset", batch_size=4, sampler_options=("softened=true", "batches_per_epoch=3")),
        np.repeat(np.arange(5), 3),
    )
    assert len(sampler) == 3
    assert sampler._rule.softened is True


@pytest.mark.parametrize("name", objective_names())
def test_every_option_has_a_type_that_text_is_converted_to(name):
    defaults = build_objective(name, num_classes=3, embedding_dim=12, num_regions=4).options
    arguments = ("loss", "num_classes", "embedding_dim", "similarity", "miner", "mining", "num_regions", "matcher")
    options = {key: value for key, value in defaults.items() if key not in arguments}
    types = option_types(name)
    assert options.keys() <= types.keys()
    for key, value in options.items():
        assert converted(value, types[key], key) == value


@pytest.mark.parametrize("name", [name for name in MINERS if name != "none"])
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
        ({"objective": "histogram", "objective_options": ("nodes=6.5",)}, r"nodes: need an integer, got 6.5"),
        ({"objective_options": ("beta=1,2",)}, r"beta: need a number, got \[1, 2\]"),
        ({"objective_options": ("miner=random",)}, r"miner is not an option; it is set by --miner"),
        ({"objective_options": ("num_classes=3",)}, r"num_classes is not an option"),
        ({"objective_options": ("generator=3",)}, r"generator is not an option; it is set by --seed"),
        ({"objective_options": ("matcher=x",)}, r"matcher is not an option; it is set by --epsilon"),
        (
            {"objective_options": ("epsilon=0.02",)},
            r"epsilon is a matching setting.*--epsilon.*matcher.epsilon",
        ),
        (
            {"objective": "margin_diml", "objective_options": ("max_iterations=9",)},
            r"max_iterations is a matching setting.*use --max-iterations, or .*matcher.max_iterations",
        ),
        ({"objective_options": ("bet=1",)}, r"did you mean beta"),
        ({"objective": "marginn"}, r"unknown 'marginn'; did you mean 'margin'"),
        ({"miner": "distanc"}, r"unknown 'distanc'; did you mean 'distance'"),
        ({"objective": "npair", "miner": "distance"}, r"does not work with 'distance'; allowed: \('none',\)"),
        ({"objective": "adversarial_separation", "dim": 7}, r"need a multiple of the number of parts"),
        ({"sampler": "fidd"}, r"no sampler 'fidd'; did you mean 'fid'"),
        ({"sampler": "fid", "sampler_options": ("pol=9",)}, r"sampler fid: no option 'pol'; did you mean 'pool'"),
        (
            {"sampler": "fid", "sampler_options": ("pool=abc",)},
            r"sampler_options: pool: need an integer, got 'abc'",
        ),
        ({"sampler_options": ("batches_per_epoch=x",)}, r"batches_per_epoch: need an integer"),
    ],
)
def test_errors_are_found_without_images(changes, message):
    with pytest.raises(ValueError, match=message):
        check_names(config(**changes))


def test_what_may_be_valid_passes():
    """With head `identity` the embedding dimension is that of the backbone, which is not known yet."""
    assert is_backbone("test_resnet")
    parts = ("parts=discriminative,shared,intra",)
    check_names(config(objective="adversarial_separation", objective_options=parts, head="identity"))
    check_names(config(objective="proxyanchor", similarity="structural"))
    check_names(config(sampler="random", sampler_options=("batches_per_epoch=none",)))


def test_the_check_does_not_change_a_run(images, tmp_path):
    """It restores the random streams: proxies are initialized as without it."""
    from diml.training import loop
    from end_to_end.small_runs import small_config, tensors_of

    before = torch.get_rng_state()
    for name, check in (("with", check_names), ("without", lambda _: None)):
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(loop, "check_names", check)
            loop.train(small_config(images, tmp_path / name, objective="proxyanchor", epochs=1, rerank_at=0))
    ours, theirs = (tensors_of(tmp_path / name / "last.ckpt") for name in ("with", "without"))
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
    assert torch.equal(before, torch.get_rng_state())


def test_too_few_classes_for_a_batch_names_both_remedies(images, tmp_path):
    data = load_dataset("csv", images)
    config = small_config(images, tmp_path, batch_size=16)
    with pytest.raises(
        ValueError, match=r"need 8 classes .* got 7; use a batch_size of at most 14.*30% of the classes are held out"
    ):
        build_components(config, split_for_training(data, config), ProcessGroup(), None)


def test_more_processes_than_images_in_a_batch(images, tmp_path):
    config = small_config(images, tmp_path)
    split = split_for_training(load_dataset("csv", images), config)
    with pytest.raises(ValueError, match=r"batch_size: need at least one image for each of 9 processes, got 8"):
        build_components(config, split, ProcessGroup(0, 9), None)


def test_training_can_start_from_a_saved_embedder(images, tmp_path, tiny):
    tiny(dim=24).save(tmp_path / "saved")
    again = configured_embedder(small_config(images, tmp_path, model=str(tmp_path / "saved"), size=32))
    assert (again.dim, again.preprocess.size, again.grid) == (24, 32, 2)


def test_structural_objectives_train_the_mean_of_the_regions(images, tmp_path):
    def pooled(**changes):
        return configured_embedder(small_config(images, tmp_path, **changes)).config.pooled

    assert pooled() == "backbone"
    assert pooled(objective="margin_diml") == "grid_mean"
    assert pooled(similarity="structural") == "grid_mean"
    assert pooled(similarity="structural", pooled="backbone") == "backbone"
