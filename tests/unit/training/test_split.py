from __future__ import annotations

import dataclasses
import warnings

import pytest
import torch

from diml.data import ImageSet, load_dataset
from diml.data.listing import LeftOutWarning
from diml.training.config import TrainConfig
from diml.training.split import fingerprint, load_training_data, split_for_training
from end_to_end.small_runs import small_config


def test_validation_classes_are_held_out_training_classes(images, tmp_path):
    data = load_dataset("csv", images)
    split = split_for_training(data, small_config(images, tmp_path, validation_fraction=0.3))
    train, validation = set(split.train.class_names), set(split.validation.class_names)
    assert not train & validation
    assert train | validation == set(data.train.class_names)
    assert len(validation) == 3
    assert split.test is data.test
    again = split_for_training(data, small_config(images, tmp_path, validation_fraction=0.3))
    assert again.validation.class_names == split.validation.class_names


def test_selecting_on_test_images_trains_on_all_and_warns(images, tmp_path):
    data = load_dataset("csv", images)
    with pytest.warns(UserWarning, match="test images select the best epoch"):
        split = split_for_training(data, small_config(images, tmp_path, select_on="test"))
    assert split.train is data.train
    assert split.validation is data.test
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        split_for_training(data, small_config(images, tmp_path, select_on="test"), warn=False)


def test_without_validation_all_classes_are_trained_on(images, tmp_path):
    data = load_dataset("csv", images)
    split = split_for_training(data, small_config(images, tmp_path, validation_fraction=0))
    assert split.train is data.train
    assert split.validation is None


def test_a_data_set_without_training_images_names_remedies(images, tmp_path):
    config = small_config(images.parent, tmp_path, dataset="folder", protocol="all")
    with pytest.warns(LeftOutWarning, match="1 .csv"):
        data = load_training_data(config)
    with pytest.raises(ValueError, match=r"no training images under protocol 'all'; .*--protocol.* CSV file"):
        split_for_training(data, config)


def test_too_few_classes_to_split_for_training(images, tmp_path):
    data = load_dataset("csv", images)
    with pytest.raises(ValueError, match=r"validation_fraction: 0.01 .*--validation-fraction 0 disables"):
        split_for_training(data, small_config(images, tmp_path, validation_fraction=0.01))


def test_the_class_disjoint_protocol_is_the_default(grocery_root):
    config = TrainConfig(dataset="grocery", data=grocery_root)
    assert load_training_data(config).protocol == "class_disjoint"
    chosen = dataclasses.replace(config, protocol="query_gallery")
    assert load_training_data(chosen).protocol == "query_gallery"


def test_images_are_identified_wherever_their_folders_are(images, tmp_path):
    train = load_dataset("csv", images).train
    moved = dataclasses.replace(train, images=tuple(tmp_path / path.parent.name / path.name for path in train.paths))
    assert fingerprint(moved) == fingerprint(train)
    assert fingerprint(train.subset(range(10))) != fingerprint(train)


def test_images_that_are_not_files_are_identified_by_their_place():
    images = torch.rand(4, 3, 8, 8)
    one = ImageSet(images, [0, 0, 1, 1])
    assert fingerprint(one) == fingerprint(ImageSet(images.clone(), [0, 0, 1, 1]))
    assert fingerprint(one) != fingerprint(ImageSet(images, [0, 1, 1, 1]))
