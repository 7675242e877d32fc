from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from diml.matching import Matcher
from diml.training.config import FIELDS, TrainConfig, parse_options, read_config, write_config


def test_yaml_and_back_is_the_same_configuration(tmp_path):
    config = TrainConfig(
        dataset="orl",
        data=Path("some/where"),
        lr=1e-5,
        clip_norm=None,
        milestones=(3, 5),
        schedule="step",
        matcher=Matcher(epsilon=0.02, weights="uniform"),
        objective_options=("beta=0.6", "learn_beta=false", "mining=pooled", "pool=none"),
    )
    path = write_config(tmp_path / "config.yaml", config)
    assert TrainConfig.from_dict(read_config(path)) == config


def test_the_matcher_is_a_nested_mapping(tmp_path):
    (tmp_path / "mine.yaml").write_text("dataset: orl\nmatcher: {epsilon: 2e-2}\n")
    config = TrainConfig.from_dict(read_config(tmp_path / "mine.yaml"))
    assert config.matcher == Matcher(epsilon=0.02)
    assert config.to_dict()["matcher"] == Matcher(epsilon=0.02).to_dict()
    text = write_config(tmp_path / "config.yaml", config).read_text()
    assert "\nmatcher:\n" in text
    assert "\n  epsilon: 0.02\n" in text
    with pytest.raises(TypeError, match=r"matcher: need a Matcher, got dict; TrainConfig.from_dict takes plain values"):
        TrainConfig(dataset="orl", matcher={"epsilon": 0.02})


def test_later_settings_override_earlier_ones_under_matcher_key_by_key():
    base = {"dataset": "orl", "epochs": 2, "matcher": {"epsilon": 0.02, "weights": "uniform"}}
    config = TrainConfig.from_dict(base, {"epochs": 3, "matcher": {"weights": "cross_correlation"}})
    assert config.epochs == 3
    assert config.matcher == Matcher(epsilon=0.02)
    assert TrainConfig.from_dict(base, {"matcher": Matcher()}).matcher == Matcher()
    assert base["matcher"] == {"epsilon": 0.02, "weights": "uniform"}


def test_a_matcher_without_a_pooled_part_survives_yaml(tmp_path):
    config = TrainConfig(dataset="orl", matcher=Matcher(structural_weight=float("inf")))
    assert TrainConfig.from_dict(read_config(write_config(tmp_path / "config.yaml", config))) == config


def test_plain_values_give_options_as_a_dict():
    config = TrainConfig(dataset="orl", objective_options=("beta=0.6", "miner_cutoff=1e-3"))
    assert config.to_dict()["objective_options"] == {"beta": 0.6, "miner_cutoff": 0.001}


def test_options_have_types():
    pairs = ("a=1", "b=1.5", "c=true", "d=False", "e=none", "f=word", "g=1e-4", "h=x=y")
    expected = {"a": 1, "b": 1.5, "c": True, "d": False, "e": None, "f": "word", "g": 1e-4, "h": "x=y"}
    found = parse_options(pairs, "objective_options")
    assert found == expected
    assert {name: type(value) for name, value in found.items()} == {n: type(v) for n, v in expected.items()}


def test_lists_are_separated_by_commas_and_survive_yaml(tmp_path):
    (tmp_path / "mine.yaml").write_text("objective_options: {parts: [discriminative, shared], one: [0.5], none: []}\n")
    config = TrainConfig.from_dict({"dataset": "orl"}, read_config(tmp_path / "mine.yaml"))
    assert config.objective_options == ("parts=discriminative,shared", "one=0.5,", "none=,")
    expected = {"parts": ["discriminative", "shared"], "one": [0.5], "none": []}
    assert parse_options(config.objective_options, "objective_options") == expected
    assert TrainConfig.from_dict(read_config(write_config(tmp_path / "config.yaml", config))) == config


def test_an_option_without_a_value_raises():
    with pytest.raises(ValueError, match=r"objective_options: need NAME=VALUE.*got 'beta'"):
        TrainConfig(dataset="orl", objective_options=("beta",))


def test_an_unknown_key_names_the_nearest(tmp_path):
    (tmp_path / "mine.yaml").write_text("dataset: orl\nbatchsize: 12\n")
    with pytest.raises(ValueError, match=r"mine.yaml: unknown key 'batchsize'; did you mean 'batch_size'\?"):
        read_config(tmp_path / "mine.yaml")


def test_numbers_that_yaml_reads_as_text_are_numbers(tmp_path):
    (tmp_path / "mine.yaml").write_text("lr: 1e-5\nweight_decay: 0\n")
    assert read_config(tmp_path / "mine.yaml") == {"lr": 1e-5, "weight_decay": 0.0}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("epochs: many", "epochs: need an integer, got 'many'"),
        ("epochs: 1.5", "epochs: need an integer"),
        ("epochs: true", "epochs: need an integer"),
        ("lr: fast", "lr: need a number, got 'fast'"),
        ("lr: true", "lr: need a number"),
        ("pretrained: 1", "pretrained: need true or false"),
        ("milestones: 3", "milestones: need a list"),
        ("optimizer: adamm", "optimizer: no 'adamm'; did you mean 'adam"),
        ("objective: 3", "objective: need a string"),
        ("data: 3", "data: need a path"),
        ("matcher: 0.02", r"matcher: need a mapping, for instance \{epsilon: 0.02\}, got 0.02"),
        ("matcher: {epsilom: 0.02}", "matcher: unknown setting 'epsilom'; did you mean epsilon"),
        ("matcher: {epsilon: small}", "matcher: epsilon: need a number, got 'small'"),
        ("matcher: {epsilon: -1}", "matcher: epsilon: need a finite number of at least 0"),
        ("matcher: {weights: unifrom}", "matcher: weights: no 'unifrom'; did you mean 'uniform'"),
    ],
)
def test_a_value_of_another_type_raises(tmp_path, line, message):
    (tmp_path / "mine.yaml").write_text(line)
    with pytest.raises(ValueError, match=message):
        read_config(tmp_path / "mine.yaml")


@pytest.mark.parametrize("text", ["- a\n- b\n", "just words", "a: [", ""])
def test_a_file_without_a_mapping_raises(tmp_path, text):
    (tmp_path / "mine.yaml").write_text(text)
    with pytest.raises(ValueError, match=r"config:|not readable as YAML"):
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
        ({"validation_fraction": 1.0}, "validation_fraction: need a fraction"),
        ({"metric": "map"}, "metric: no 'map'; did you mean 'map@r'"),
        ({"schedule": "step"}, "milestones: schedule 'step' needs"),
        ({"schedule": "step", "milestones": (3, -1)}, "milestones: need epochs of 1 or more"),
        ({"seed": -1}, "seed: need"),
    ],
)
def test_values_out_of_range_raise(changes, message):
    with pytest.raises(ValueError, match=message):
        TrainConfig(dataset="orl", **changes)


def test_structural_objectives_are_selected_by_re_ranking():
    assert TrainConfig(dataset="orl").select_rerank_at == 0
    assert TrainConfig(dataset="orl", objective="margin_diml").select_rerank_at == 100
    assert TrainConfig(dataset="orl", similarity="structural", rerank_at=7).select_rerank_at == 7
    assert TrainConfig(dataset="orl", similarity="structural", validation_rerank_at=0).select_rerank_at == 0


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
