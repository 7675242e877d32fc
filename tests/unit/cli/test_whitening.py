"""Which head a command gives to a network by name, and what it is fitted on."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

import diml.models
from diml.cli.options import EmbedderOptions, HeadOptions, LoadingOptions
from diml.cli.whitening import embedded_set
from diml.data import DataSet, ImageSet
from diml.models import load_embedder
from tiny_model import save_tiny_model

NAME = "test_resnet"
LOADING = LoadingOptions(cache=False, workers=0)


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Networks by name have random weights, the same every time."""

    def load(*args, **options):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return load_embedder(*args, pretrained=False, **options)

    monkeypatch.setattr(diml.models, "load_embedder", load)


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    folder, generator = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    made = [folder / f"{number}.png" for number in range(12)]
    for path in made:
        Image.fromarray(generator.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(path)
    return made


def data_of(test: ImageSet, train: ImageSet | None = None) -> DataSet:
    return DataSet("photos", "all", train, test, None)


def embed(dataset: DataSet, model=NAME, **options):
    return HeadOptions(**options).embed(model, dataset, EmbedderOptions(grid=2, size=64), LOADING)


def test_without_training_images_a_whitening_has_to_be_asked_for(paths):
    found = embed(data_of(ImageSet(paths, [0, 1] * 6)), dim=16)
    assert (found.head["name"], found.notice) == ("identity", None)
    assert embed(data_of(ImageSet(paths, [0, 1] * 6)), dim=16, fit_on="gallery").head["name"] == "whiten"


def test_a_whitening_that_is_asked_for_is_fitted_on_the_gallery_where_nothing_else_is_there(paths):
    found = embed(data_of(ImageSet(paths, [0, 1] * 6)), dim=16, head="whiten")
    assert found.head == {"name": "whiten", "dim": 16, "fitted_on": "gallery", "images": 12}
    assert found.notice == (
        "head whiten, 16 channels, fitted without labels on 12 images: those that are searched themselves "
        "(transductive)"
    )
    sides = {"queries": [0, 1], "gallery": range(2, 12)}
    assert embed(data_of(ImageSet(paths, [0, 1] * 6, **sides)), dim=16, head="whiten").head["images"] == 10
    draws = [([0], [1, 2, 3, 4]), ([1], [3, 4, 5, 6])]
    assert embed(data_of(ImageSet(paths, [0, 1] * 6, draws=draws)), dim=16, head="whiten").head["images"] == 6


def test_training_images_come_first(paths):
    dataset = data_of(ImageSet(paths[:4], [0, 1] * 2), ImageSet(paths[4:], [2, 3] * 4))
    assert embed(dataset, dim=16).head == {"name": "whiten", "dim": 16, "fitted_on": "train", "images": 8}
    assert embed(dataset, dim=16, fit_on="gallery").head["images"] == 4
    assert embed(dataset, dim=16, fit_on="all").head["images"] == 12
    # training images that are searched as well are embedded once
    shared = data_of(ImageSet(paths, [0, 1] * 6), ImageSet(paths[4:], [0, 1] * 4))
    found = embed(shared, dim=16, fit_on="all")
    assert (found.head["images"], len(found.embedded.regions)) == (12, 12)
    assert embed(shared, dim=16).head["images"] == 8


def test_too_few_regions_leave_the_features_as_they_are(paths):
    dataset = data_of(ImageSet(paths[3:6], [0, 0, 1]), ImageSet(paths[:3], [2, 2, 3]))
    found = embed(dataset, dim=16)
    assert found.head["name"] == "identity"
    assert found.embedder.config.head == "identity"
    assert found.notice is not None
    assert "16 channels need 4 images" in found.notice
    with pytest.warns(UserWarning, match="these images span 12 directions"):
        assert embed(dataset, dim=16, head="whiten").head["dim"] == 12


def test_a_head_that_is_asked_for_is_taken(paths):
    found = embed(data_of(ImageSet(paths, [0, 1] * 6)), head="identity")
    assert (found.head["name"], found.notice) == ("identity", None)


def test_a_saved_model_keeps_its_head(paths, tmp_path):
    saved = save_tiny_model(tmp_path / "model")
    found = embed(data_of(ImageSet(paths, [0, 1] * 6)), str(saved))
    assert (found.head["name"], found.notice) == ("identity", None)
    assert found.embedder.fingerprint() == load_embedder(saved, grid=2, size=64).fingerprint()


def test_fit_on_needs_something_that_is_fitted_and_images(paths):
    dataset = data_of(ImageSet(paths, [0, 1] * 6))
    with pytest.raises(ValueError, match="photos has no training images under protocol all; use --fit-on gallery"):
        embed(dataset, fit_on="train")
    with pytest.raises(ValueError, match="only head whiten is fitted, got identity; omit --fit-on"):
        embed(dataset, head="identity", fit_on="gallery")


def test_images_can_be_others_than_those_of_the_test(paths):
    dataset = data_of(ImageSet(paths[:4], [0, 1] * 2), ImageSet(paths[4:], [2, 3] * 4))
    options = HeadOptions(dim=16)
    found = embedded_set(
        options, NAME, dataset, EmbedderOptions(grid=2, size=64), LOADING, dataset.train, lambda _: None
    )
    assert (len(found.embedded.regions), found.head["images"]) == (8, 8)


def test_a_model_can_be_fitted_without_embedding_more(paths):
    dataset = data_of(ImageSet(paths[:4], [0, 1] * 2), ImageSet(paths[4:], [2, 3] * 4))
    opened = HeadOptions(dim=16).open(NAME, dataset, EmbedderOptions(grid=2, size=64), LOADING)
    expected = embed(dataset, dim=16)
    assert opened.head == expected.head
    torch.testing.assert_close(opened.embedder.head.weight, expected.embedder.head.weight)
