"""What is damaged: a tiny model, an index, a run and a sweep, made once."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from diml.cli import main
from end_to_end.small_runs import make_images, small_config
from fuzz.mutations import ran
from tiny_model import save_tiny_model


@pytest.fixture(autouse=True, scope="session")
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def place(tmp_path_factory) -> Path:
    """A folder with `images.csv` and its images, 6 classes of 4."""
    folder = tmp_path_factory.mktemp("fuzz")
    make_images(folder, train=4, test=2)
    return folder


@pytest.fixture(scope="session")
def model(place) -> Path:
    return save_tiny_model(place / "model")


@pytest.fixture(scope="session")
def index(place, model) -> Path:
    words = [
        "index",
        "build",
        place / "images.csv",
        "--index",
        place / "sound.index",
        "--model",
        model,
        "--workers",
        "0",
    ]
    assert ran(words)[0] == 0
    return place / "sound.index"


@pytest.fixture(scope="session")
def run(place) -> Path:
    """A finished training of one epoch of two steps."""
    from diml.training.config import write_config

    changes = {"epochs": 1, "sampler_options": ("batches_per_epoch=2",), "validation_fraction": 0.5, "batch_size": 4}
    write_config(place / "small.yaml", small_config(place / "images.csv", place / "run", **changes))
    assert ran(["train", "--config", place / "small.yaml"])[0] == 0
    return place / "run"


@pytest.fixture(scope="session")
def calibration(place, model, index) -> Path:
    words = ["calibrate", index, "--label", "label", "--fit-on", "all", "--output", place / "calibration"]
    assert main([str(word) for word in words]) == 0
    return place / "calibration" / "calibration.json"


@pytest.fixture(scope="session")
def pair_of_images(place) -> list[Path]:
    return [place / "class0" / "0.png", place / "class0" / "1.png"]
