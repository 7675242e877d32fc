"""`diml calibrate` as a user meets it: tables, JSON, the saved file, a run, and errors of use."""

from __future__ import annotations

import json

import numpy as np
import pytest

from diml.calibration import load_calibration
from diml.cli import main
from diml.matching import Matcher
from diml.models import load_embedder
from diml.training import train
from end_to_end.small_runs import make_images, small_config
from tiny_model import save_tiny_model

QUIET = ["--no-cache", "--workers", "0"]


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """A CSV data set with 4 classes for training and 12 for testing, 5 images each."""
    return make_images(tmp_path_factory.mktemp("many"), train=4, test=12, each=5)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_tiny_model(tmp_path_factory.mktemp("model") / "tiny", matcher=Matcher(epsilon=0.1))


@pytest.fixture
def words(many, model):
    return ["calibrate", "csv", "--data", str(many), "--model", str(model), *QUIET]


def test_tables_and_the_file_beside_the_embedder(words, model, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    assert main([*words, "--output", str(model), "--false-accept-rate", "0.1", "0.3", "--seeds", "0", "1"]) == 0
    shown = capsys.readouterr().out
    for expected in (
        "candidates",
        "hits",
        "random",
        "ECE",
        "first hits",
        "Typical scores",
        "Mean and range of 2 splits",
    ):
        assert expected in shown
    assert max(len(line) for line in shown.splitlines() if line.startswith(("│", "┃"))) <= 100
    embedder = load_embedder(model)
    found = load_calibration(model, fingerprint=embedder.fingerprint(), matcher=embedder.matcher)
    assert found.classes == 6
    chances = found.probability(np.linspace(0, 2, 50))
    assert (np.diff(chances) >= 0).all()
    document = json.loads((model / "calibration.json").read_text())
    assert [split["seed"] for split in document["measured"]["splits"]] == [0, 1]
    assert document["measured"]["config"]["dataset"] == "csv"
    with pytest.raises(ValueError, match="another matcher"):
        load_calibration(model, matcher=Matcher(epsilon=0.2))
    with pytest.raises(ValueError, match="diml calibrate"):
        load_calibration(model, fingerprint=load_embedder(model, grid=2).fingerprint())


def test_json_is_the_same_calibration_every_time(words, capsys):
    documents, fixed = [], ["--fit-on", "all", "--prior", "0.5", "--method", "logistic", "--kind", "person"]
    for _ in range(2):
        assert main([*words, "--json", *fixed]) == 0
        documents.append(json.loads(capsys.readouterr().out))
    assert documents[0] == documents[1]
    calibration = documents[0]["calibration"]
    assert (calibration["classes"], calibration["prior"], calibration["method"]) == (12, 0.5, "logistic")
    assert calibration["matcher"]["epsilon"] == 0.1
    assert calibration["kind"] == "person"
    assert len(calibration["present"]) == 101
    (row,) = documents[0]["measured"]["splits"][0]["pairs"]
    assert row["named"] == 0.01
    assert row["interval"][0] <= row["false_accept"] <= row["interval"][1]


def test_a_run_is_calibrated_on_its_test_images(many, tmp_path, capsys):
    short = {"epochs": 1, "sampler_options": ("batches_per_epoch=2",), "per_class": 2, "batch_size": 4}
    run = tmp_path / "run"
    train(small_config(many, run, **short))
    assert main(["calibrate", str(run), "--output", str(run), "--rerank-at", "20", *QUIET]) == 0
    assert "csv, test" in capsys.readouterr().out
    found = load_calibration(run)
    embedder = load_embedder(run)
    found.check(embedder.fingerprint(), embedder.matcher)
    assert found.depth == 20
    assert main(["calibrate", str(run), "--model", "resnet18", *QUIET]) == 2
    assert "omit --model" in capsys.readouterr().err


def test_settings_of_the_matcher_are_those_given(words, tmp_path, capsys):
    assert main([*words, "--epsilon", "0.3", "--output", str(tmp_path)]) == 0
    assert "epsilon 0.3 (the model's own: 0.1)" in capsys.readouterr().err
    assert load_calibration(tmp_path).matcher == Matcher(epsilon=0.3)


def test_errors_of_use_are_one_line(words, images, capsys):
    for more, message in (
        (["--false-accept-rate", "2"], "--false-accept-rate: need fractions in (0, 1)"),
        (["--rerank-at", "0"], "--rerank-at: need at least 1"),
        (["--prior", "1"], "prior: need a fraction"),
    ):
        assert main([*words, *more]) == 2
        assert message in capsys.readouterr().err
    assert main(["calibrate", "nothing"]) == 2
    assert "no data set 'nothing'" in capsys.readouterr().err


def test_help_has_examples(capsys):
    with pytest.raises(SystemExit):
        main(["calibrate", "--help"])
    shown = capsys.readouterr().out
    assert "diml calibrate orl" in shown
    assert "--false-accept-rate" in shown
