"""Every run of the authors is a preset, can be built, takes a step, and has the numbers of the recipe."""

import warnings
from types import MappingProxyType

import pytest
import torch

from diml.data.samplers import build_sampler
from diml.matching import Matcher, Regions
from diml.objectives import build_objective
from diml.training.components import check_names
from diml.training.config import TrainConfig
from diml.training.presets import EPOCHS, NOTES, PRESETS, preset, preset_names

RUNS = {name.partition("/")[2] for name in PRESETS}

#: Runs of scripts/baselines and scripts/diml of the released code, by objective and miner.
BASELINES = {
    ("npair", "none"),
    ("lifted", "none"),
    ("proxynca", "none"),
    ("histogram", "none"),
    ("contrastive", "distance"),
    ("softtriple", "none"),
    ("angular", "none"),
    ("arcface", "none"),
    ("triplet", "random"),
    ("triplet", "semihard"),
    ("triplet", "softhard"),
    ("triplet", "distance"),
    ("quadruplet", "distance"),
    ("margin", "distance"),
    ("snr", "distance"),
    ("multisimilarity", "multisimilarity"),
    ("softmax", "none"),
    ("margin_diml", "distance"),
    ("multisimilarity_diml", "multisimilarity"),
}


def test_every_run_on_every_data_set() -> None:
    assert preset_names() == tuple(PRESETS)
    assert len(PRESETS) == 3 * 20
    assert set(EPOCHS) == {"cub200", "cars196", "online_products"}
    for dataset in EPOCHS:
        found = [preset(f"{dataset}/{run}") for run in RUNS]
        assert {(its["objective"], its["miner"]) for its in found} == BASELINES
    for run in ("margin_b06_distance", "margin_b12_distance"):
        assert run in RUNS


@pytest.mark.parametrize("name", preset_names())
def test_each_is_a_training_configuration(name) -> None:
    config = TrainConfig.from_dict(preset(name))
    assert config.dataset == name.partition("/")[0]
    check_names(config)  # its options have the right types
    assert config.select_on == "validation"  # unlike the authors: defect 8
    assert config.matcher == Matcher()  # the authors' settings
    back = config.to_dict()
    assert {key: back[key] for key in preset(name)} == preset(name)


@pytest.mark.parametrize("name", preset_names())
def test_each_builds_and_takes_a_step(name) -> None:
    its = preset(name)
    classes, grid = 6, its["grid"]
    labels = torch.arange(classes).repeat_interleave(its["per_class"])
    sampler = build_sampler(its["sampler"], labels, batch_size=len(labels), per_class=its["per_class"])
    (batch,) = sampler.batches(0)
    objective = build_objective(
        its["objective"],
        num_classes=classes,
        embedding_dim=its["dim"],
        miner=its["miner"],
        num_regions=grid**2,
        generator=torch.Generator().manual_seed(0),
        **its["objective_options"],
    )
    generator = torch.Generator().manual_seed(its["seed"])
    maps = torch.nn.Parameter(torch.randn(len(batch), its["dim"], grid, grid, generator=generator))
    before = maps.detach().clone()
    model = {"params": [maps], "lr": its["lr"], "weight_decay": its["weight_decay"]}
    optimizer = torch.optim.Adam([model, *objective.parameter_groups(lr=its["lr"])])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        given = maps.mean(dim=(2, 3)) if objective.unnormalized else Regions.from_maps(maps)
        loss = objective(given, labels[batch])
        loss.backward()
        optimizer.step()
    assert loss.isfinite()
    assert maps.grad is not None
    assert maps.grad.abs().sum() > 0
    assert maps.isfinite().all()
    assert not torch.equal(maps, before)


def test_the_recipe_of_all_runs() -> None:
    odd = {"online_products/softtriple", "cars196/multisimilarity"}
    for name, its in PRESETS.items():
        assert its["epochs"] == (100 if name.startswith("online") else 150)
        assert (its["head"], its["dim"], its["grid"]) == ("linear", 128, 4)
        assert its["model"].startswith("resnet50")
        assert (its["optimizer"], its["weight_decay"], its["freeze_batch_norm"]) == ("adam", 4e-4, True)
        assert (its["size"], its["flip"], its["per_class"]) == (224, 0.5, 2)
        if name not in odd:
            assert (its["batch_size"], its["lr"], its["seed"]) == (112, 1e-5, 0)
        assert its["pooled"] == ("grid_mean" if name.endswith("_diml") else "backbone")


def test_what_differs_from_data_set_to_data_set_has_a_note() -> None:
    assert PRESETS["cars196/multisimilarity"]["seed"] == 2
    assert PRESETS["online_products/histogram"]["objective_options"]["nodes"] == 11
    assert PRESETS["cub200/histogram"]["objective_options"]["nodes"] == 65
    assert PRESETS["online_products/softmax"]["objective_options"]["weight_lr"] == 2e-3
    soft = PRESETS["online_products/softtriple"]
    assert (soft["batch_size"], soft["lr"], soft["objective_options"]["scale"]) == (32, 0.1, 20)
    assert set(NOTES) <= set(PRESETS)
    for run in RUNS:
        cub = {**preset(f"cub200/{run}"), "dataset": "", "epochs": 0}
        for dataset in EPOCHS:
            its = {**preset(f"{dataset}/{run}"), "dataset": "", "epochs": 0}
            assert its == cub or f"{dataset}/{run}" in NOTES


def test_margin_with_its_two_betas_and_learning_rate() -> None:
    for run, beta in (("margin_b06_distance", 0.6), ("margin_b12_distance", 1.2), ("margin_diml", 1.2)):
        options = PRESETS[f"cub200/{run}"]["objective_options"]
        assert (options["beta"], options["margin"], options["beta_lr"]) == (beta, 0.2, 5e-4)


def test_presets_are_frozen_and_copies_are_not() -> None:
    its = PRESETS["cub200/margin_diml"]
    assert isinstance(its, MappingProxyType)
    with pytest.raises(TypeError):
        its["lr"] = 1  # type: ignore[index]
    with pytest.raises(TypeError):
        its["objective_options"]["beta"] = 1
    copy = preset("cub200/margin_diml")
    copy["objective_options"]["beta"] = 7
    copy["crop_scale"][0] = 0.5
    assert preset("cub200/margin_diml") != copy
    assert preset("cub200/margin_diml")["crop_scale"] == [0.08, 1.0]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("cub200/margin_b12", "did you mean 'cub200/margin_b12_distance'"),
        ("cub/triplet_random", "did you mean 'cub200/triplet_random'"),
        ("cars/arcface", "did you mean 'cars196/arcface'"),
        ("margin_diml", "cub200/margin_diml, cars196/margin_diml, online_products/margin_diml"),
        ("", "`diml presets` lists them all"),
    ],
)
def test_an_unknown_name_is_answered_with_the_nearest(name, message) -> None:
    with pytest.raises(ValueError, match=message):
        preset(name)
