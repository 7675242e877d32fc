"""What is known before the first step is said before the first step, with a remedy."""

from __future__ import annotations

import os
import shutil
from collections import namedtuple

import numpy as np
import pytest
import torch
from PIL import Image

from diml.data import DataSet, ImageSet
from diml.training import train
from diml.training.checks import check_images, check_output, check_space
from diml.training.logs import read_records
from diml.training.split import split_for_training
from end_to_end.small_runs import small_config


def image_set(sizes, **options) -> ImageSet:
    """Images in memory, so many of each class."""
    labels = np.repeat(np.arange(len(sizes)), sizes)
    return ImageSet([Image.new("RGB", (8, 8), (int(label), 0, 0)) for label in labels], labels, **options)


def split_of(tmp_path, train_sizes, test, validation=None, **changes):
    data = DataSet(
        name="mine", protocol="all", credit=None, train=image_set(train_sizes), test=test, validation=validation
    )
    config = small_config(tmp_path, tmp_path / "run", **changes)
    return config, split_for_training(data, config)


def test_classes_of_single_images_held_out(tmp_path):
    config, split = split_of(tmp_path, [1] * 10, image_set([2, 2]), objective="softmax")
    with pytest.raises(ValueError, match=r"validation: none of its 3 images .*--validation-fraction 0"):
        check_images(config, split)


def test_own_validation_images_without_pairs(tmp_path):
    config, split = split_of(tmp_path, [2] * 4, image_set([2, 2]), image_set([1, 1]))
    with pytest.raises(ValueError, match=r"validation: none of its 2 images .*add images to its classes"):
        check_images(config, split)


@pytest.mark.parametrize(
    ("sizes", "options"),
    [
        ([1, 1, 1], {}),
        ([2, 2], {"queries": [0, 1], "gallery": [2, 3]}),
        ([2, 2], {"cameras": ["a", "a", "b", "b"]}),
        ([2, 2], {"draws": [([0], [1, 2]), ([0], [2, 3])]}),
    ],
)
def test_test_images_with_nothing_to_find(tmp_path, sizes, options):
    """Single images, no image of the class in the gallery, none of another camera, one such draw of several."""
    config, split = split_of(tmp_path, [2] * 4, image_set(sizes, **options), validation_fraction=0)
    with pytest.raises(ValueError, match=r"test: none of its \d images .*could not be tested"):
        check_images(config, split)


def test_training_images_without_pairs(tmp_path):
    config, split = split_of(tmp_path, [1] * 4, image_set([2]), validation_fraction=0)
    with pytest.raises(ValueError, match=r"each of the 4 training classes has one image, .*proxyanchor"):
        check_images(config, split)
    config, split = split_of(tmp_path, [1] * 4, image_set([2]), validation_fraction=0, objective="proxyanchor")
    check_images(config, split)


def test_nothing_is_written_where_training_could_not_end(tmp_path):
    data = DataSet(name="mine", protocol="all", credit=None, train=image_set([2] * 8), test=image_set([1, 1]))
    with pytest.raises(ValueError, match=r"test: none"):
        train(small_config(tmp_path, tmp_path / "run"), dataset=data)
    assert not list((tmp_path / "run").glob("*.ckpt"))


def test_an_output_that_cannot_be_written(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(FileExistsError, match=r"output: .*file is a file"):
            check_output(path)
    check_output(tmp_path / "new" / "run")
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(PermissionError, match=r"output: .* is not writable; use another --output"):
        check_output(tmp_path / "new" / "run")


def test_a_disk_without_space_for_the_checkpoints(tmp_path, monkeypatch):
    network = torch.nn.Linear(1000, 100)
    optimizer = torch.optim.Adam(network.parameters())
    check_space(tmp_path, network, optimizer)
    usage = namedtuple("usage", "free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(4_000_000))
    with pytest.raises(OSError, match=r"output: the checkpoints need about 5 MB in .* and 4 MB are free"):
        check_space(tmp_path, network, optimizer)
    (tmp_path / "last.ckpt").write_bytes(b"0" * 2_000_000)  # of a run that is resumed: it will be replaced
    check_space(tmp_path, network, optimizer)


@pytest.mark.parametrize("failing", ["_validate", "_test"])
def test_a_run_whose_evaluation_fails_has_its_checkpoint(images, tmp_path, monkeypatch, failing):
    from diml.training import loop

    config = small_config(images, tmp_path / "run", epochs=1)
    with monkeypatch.context() as patched:

        def fail(*_):
            raise ValueError("no metric today")

        patched.setattr(loop._TrainingRun, failing, fail)
        with pytest.raises(ValueError, match="no metric today"):
            train(config)
    result = train(config, resume=True)
    assert result.best_epoch == 1
    steps = [record["step"] for record in read_records(config.folder / "metrics.jsonl") if record["kind"] == "train"]
    assert steps == [1, 2, 3, 4]  # none was taken twice


def test_training_stops_early_and_says_so_when_resumed(images, tmp_path, monkeypatch):
    from diml.training import loop

    values = iter([0.5, 0.9, 0.7, 0.8, 0.95, 0.1, 0.1, 0.1])
    monkeypatch.setattr(loop._TrainingRun, "_validate", lambda *_: next(values))
    result = train(small_config(images, tmp_path / "run", epochs=9, patience=2))
    assert (result.best_epoch, result.best_value) == (2, 0.9)
    assert read_records(tmp_path / "run" / "metrics.jsonl")[-1]["step"] == 16  # four epochs
    again = train(small_config(images, tmp_path / "run", epochs=9, patience=3), resume=True)
    assert again.best_epoch == 5


def test_validation_that_cannot_choose_is_named(images, tmp_path):
    with pytest.warns(UserWarning, match=r"validation is saturated: recall@1 is 100 % .* on 3 classes with 12 images"):
        train(small_config(images, tmp_path / "run", metric="recall@1", epochs=1))
