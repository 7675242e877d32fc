from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from diml.training.config import FIELDS, TrainConfig, parse_options, read_config, write_config


def test_yaml_and_back_is_the_same_configuration(tmp_path):
    config = TrainConfig(
        dataset="orl",
        data=Path("some/where"),
        lr=1e-5,
        clip_norm=None,
        milestones=(3, 5),
        schedule="step",
        objective_options=("beta=0.6", "learn_beta=false", "marginals=uniform", "pool=none"),
    )
    path = write_config(tmp_path / "config.yaml", config)
    assert TrainConfig.from_dict(read_config(path)) == config


def test_plain_values_give_options_as_a_dict():
    config = TrainConfig(dataset="orl", objective_options=("beta=0.6", "miner_cutoff=1e-3"))
    assert config.to_dict()["objective_options"] == {"beta": 0.6, "miner_cutoff": 0.001}


def test_options_have_types():
    pairs = ("a=1", "b=1.5", "c=true", "d=False", "e=none", "f=word", "g=1e-4", "h=x=y")
    expected = {"a": 1, "b": 1.5, "c": True, "d": False, "e": None, "f": "word", "g": 1e-4, "h": "x=y"}
    found = parse_options(pairs, "objective_options")
    assert found == expected
    assert {name: type(value) for name, value in found.items()} == {n: type(v) for n, v in expected.items()}


def test_lists_have_commas_and_come_back_from_yaml(tmp_path):
    (tmp_path / "mine.yaml").write_text("objective_options: {parts: [discriminative, shared], one: [0.5], none: []}\n")
    config = TrainConfig(dataset="orl", **read_config(tmp_path / "mine.yaml"))
    assert config.objective_options == ("parts=discriminative,shared", "one=0.5,", "none=,")
    expected = {"parts": ["discriminative", "shared"], "one": [0.5], "none": []}
    assert parse_options(config.objective_options, "objective_options") == expected
    assert TrainConfig.from_dict(read_config(write_config(tmp_path / "config.yaml", config))) == config


def test_an_option_without_a_value_is_refused():
    with pytest.raises(ValueError, match=r"objective_options: need NAME=VALUE.*got 'beta'"):
        TrainConfig(dataset="orl", objective_options=("beta",))


def test_an_unknown_key_names_the_nearest(tmp_path):
    (tmp_path / "mine.yaml").write_text("dataset: orl\nbatchsize: 12\n")
    with pytest.raises(ValueError, match=r"mine.yaml: unknown key 'batchsize'; did you mean 'batch_size'\?"):
        read_config(tmp_path / "mine.yaml")


def test_numbers_that_yaml_takes_for_text_are_numbers(tmp_path):
    (tmp_path / "mine.yaml").write_text("lr: 1e-5\nweight_decay: 0\n")
    assert read_config(tmp_path / "mine.yaml") == {"lr": 1e-5, "weight_decay": 0.0}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("epochs: many", "epochs: need a whole number, got 'many'"),
        ("epochs: 1.5", "epochs: need a whole number"),
        ("epochs: true", "epochs: need a whole number"),
        ("lr: fast", "lr: need a number, got 'fast'"),
        ("lr: true", "lr: need a number"),
        ("pretrained: 1", "pretrained: need true or false"),
        ("milestones: 3", "milestones: need a list"),
        ("optimizer: adamm", "optimizer: no 'adamm'; did you mean 'adam"),
        ("objective: 3", "objective: need a text"),
        ("data: 3", "data: need a path"),
    ],
)
def test_a_value_of_another_type_is_refused(tmp_path, line, message):
    (tmp_path / "mine.yaml").write_text(line)
    with pytest.raises(ValueError, match=message):
        read_config(tmp_path / "mine.yaml")


@pytest.mark.parametrize("text", ["- a\n- b\n", "just words", "a: [", ""])
def test_what_is_no_mapping_is_refused(tmp_path, text):
    (tmp_path / "mine.yaml").write_text(text)
    with pytest.raises(ValueError, match="config:"):
        read_config(tmp_path / "mine.yaml")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nothing\.yaml"):
        read_config(tmp_path / "nothing.yaml")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"epochs": 0}, "epochs: need a number of at least 1, got 0"),
        ({"lr": 0.0}, "lr: need a number above 0"),
        ({"lr": float("nan")}, "lr: need"),
        ({"clip_norm": -1.0}, "clip_norm: need"),
        ({"validation_fraction": 1.0}, "validation_fraction: need a share"),
        ({"metric": "map"}, "metric: no 'map'; did you mean 'map@r'"),
        ({"schedule": "step"}, "milestones: schedule 'step' needs"),
        ({"seed": -1}, "seed: need"),
    ],
)
def test_values_out_of_range_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        TrainConfig(dataset="orl", **changes)


def test_structural_objectives_are_selected_by_their_re_ranking():
    assert TrainConfig(dataset="orl").select_rerank == 0
    assert TrainConfig(dataset="orl", objective="margin_diml").select_rerank == 100
    assert TrainConfig(dataset="orl", similarity="structural", rerank=7).select_rerank == 7
    assert TrainConfig(dataset="orl", similarity="structural", validation_rerank=0).select_rerank == 0


def test_the_folder_is_named_by_what_is_trained():
    assert TrainConfig(dataset="orl").folder == Path("runs/orl-margin-0")
    assert TrainConfig(dataset="orl", similarity="structural", seed=2).folder == Path("runs/orl-margin_diml-2")
    assert TrainConfig(dataset="orl", objective="margin_diml").folder == Path("runs/orl-margin_diml-0")
    assert TrainConfig(dataset="orl", output=Path("there")).folder == Path("there")


def test_every_setting_is_documented():
    source = Path(__import__("diml.training.config", fromlist=["x"]).__file__).read_text()
    for field in dataclasses.fields(TrainConfig):
        place = source.index(f"\n    {field.name}: ")
        assert '\n    """' in source[place : place + 250].split("\n\n")[0], field.name
    assert len(FIELDS) == len(set(FIELDS))
