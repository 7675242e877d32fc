from __future__ import annotations

import dataclasses
import warnings
from pathlib import Path

import pytest
import torch

from diml.data import load_dataset
from diml.models import load_embedder
from diml.training.checkpoints import write_checkpoint
from diml.training.config import TrainConfig
from diml.training.parts import (
    build_parts,
    divide,
    fingerprint,
    new_embedder,
    open_run,
    open_training_data,
)
from diml.training.shared import Team
from end_to_end.small_runs import small_config

ALONE = Team(0, 1, torch.device("cpu"))


def test_validation_classes_are_training_classes_that_are_not_trained_on(images, tmp_path):
    data = load_dataset("csv", images)
    division = divide(data, small_config(images, tmp_path, validation_fraction=0.3))
    train, validation = set(division.train.class_names), set(division.validation.class_names)
    assert not train & validation
    assert train | validation == set(data.train.class_names)
    assert len(validation) == 3
    assert division.test is data.test
    again = divide(data, small_config(images, tmp_path, validation_fraction=0.3))
    assert again.validation.class_names == division.validation.class_names


def test_selecting_on_test_images_trains_on_all_and_warns(images, tmp_path):
    data = load_dataset("csv", images)
    with pytest.warns(UserWarning, match="test images choose the best epoch"):
        division = divide(data, small_config(images, tmp_path, select_on="test"))
    assert division.train is data.train
    assert division.validation is data.test
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        divide(data, small_config(images, tmp_path, select_on="test"), warn=False)


def test_without_validation_all_classes_are_trained_on(images, tmp_path):
    data = load_dataset("csv", images)
    division = divide(data, small_config(images, tmp_path, validation_fraction=0))
    assert division.train is data.train
    assert division.validation is None


def test_a_data_set_without_training_images_names_remedies(images, tmp_path):
    config = small_config(images.parent, tmp_path, dataset="folder", protocol="all")
    with pytest.raises(ValueError, match=r"no training images under protocol 'all'; .*--protocol.* CSV file"):
        divide(open_training_data(config), config)


def test_too_few_classes_to_divide(images, tmp_path):
    data = load_dataset("csv", images)
    with pytest.raises(ValueError, match=r"validation_fraction: 0.01 .*--validation-fraction 0 does without"):
        divide(data, small_config(images, tmp_path, validation_fraction=0.01))


def test_too_few_classes_for_a_batch_names_both_remedies(images, tmp_path):
    data = load_dataset("csv", images)
    config = small_config(images, tmp_path, batch_size=16)
    with pytest.raises(
        ValueError, match=r"need 8 classes .* got 7; take batch_size 14.*30% of the classes are held out"
    ):
        build_parts(config, divide(data, config).train, ALONE, None)


def test_more_processes_than_images_in_a_batch(images, tmp_path):
    data = load_dataset("csv", images)
    with pytest.raises(ValueError, match=r"batch_size: need a image for each of 9 processes, got 8"):
        build_parts(small_config(images, tmp_path), data.train, Team(0, 9, torch.device("cpu")), None)


def test_training_takes_the_protocol_with_disjoint_classes(grocery_root):
    config = TrainConfig(dataset="grocery", data=grocery_root)
    assert open_training_data(config).protocol == "class_disjoint"
    chosen = dataclasses.replace(config, protocol="query_gallery")
    assert open_training_data(chosen).protocol == "query_gallery"


def test_a_folder_with_a_run_is_refused_and_remedies_named(images, tmp_path):
    config = small_config(images, tmp_path / "run")
    division = divide(load_dataset("csv", images), config)
    assert open_run(config, division, resume=False, write=True) is None
    (config.folder / "metrics.jsonl").touch()
    with pytest.raises(FileExistsError, match=r"holds a run already; .*--resume --output .*run.* another --output"):
        open_run(config, division, resume=False, write=True)
    assert open_run(config, division, resume=False, write=False) is None  # another process of the same run
    assert open_run(config, division, resume=True, write=True) is None  # killed before its first checkpoint


def test_there_is_nothing_to_resume(images, tmp_path):
    config = small_config(images, tmp_path / "run")
    with pytest.raises(FileNotFoundError, match=r"no run to resume in .*run"):
        open_run(config, divide(load_dataset("csv", images), config), resume=True, write=True)


def test_a_run_is_resumed_with_its_own_settings_and_images(images, tmp_path, tiny):
    config = small_config(images, tmp_path / "run", objective_options=("beta=1.20",))
    data = load_dataset("csv", images)
    division = divide(data, config)
    open_run(config, division, resume=False, write=True)
    write_checkpoint(config.folder / "last.ckpt", tiny(), {"data": fingerprint(division.train)})
    same = dataclasses.replace(config, objective_options=("beta=1.2",), workers=2, epochs=9, data=Path("moved"))
    assert open_run(same, division, resume=True, write=True) == {"data": fingerprint(division.train)}
    other = dataclasses.replace(config, lr=1.0, batch_size=6)
    with pytest.raises(ValueError, match=r"resume: settings differ .*batch_size \(8 to 6\), lr \(0.001 to 1.0\)"):
        open_run(other, division, resume=True, write=True)
    with pytest.raises(ValueError, match="data: the training images are not those"):
        open_run(config, dataclasses.replace(division, train=data.train), resume=True, write=True)


def test_a_cosine_over_more_epochs_is_another_run(images, tmp_path):
    config = small_config(images, tmp_path / "run", schedule="cosine")
    division = divide(load_dataset("csv", images), config)
    open_run(config, division, resume=False, write=True)
    with pytest.raises(ValueError, match=r"epochs \(2 to 3\)"):
        open_run(dataclasses.replace(config, epochs=3), division, resume=True, write=True)


def test_what_a_killed_process_left_is_put_right(images, tmp_path, tiny):
    config = small_config(images, tmp_path / "run")
    division = divide(load_dataset("csv", images), config)
    open_run(config, division, resume=False, write=True)
    embedder = tiny()
    write_checkpoint(config.folder / "best.ckpt", embedder, {})
    (config.folder / "best.ckpt").rename(config.folder / ".best.ckpt.new")
    (config.folder / ".last.ckpt.partial").mkdir()
    (config.folder / ".model-abcd_fgh.safetensors").write_text("half")
    open_run(config, division, resume=True, write=True)
    names = {path.name for path in config.folder.iterdir()}
    assert names == {"config.yaml", "best.ckpt", "model.safetensors", "embedder.json"}
    assert load_embedder(config.folder).fingerprint() == embedder.fingerprint()


def test_a_saved_embedder_is_a_start_as_well(images, tmp_path, tiny):
    tiny(dim=24).save(tmp_path / "saved")
    again = new_embedder(small_config(images, tmp_path, model=str(tmp_path / "saved"), size=32))
    assert (again.dim, again.preprocess.size, again.grid) == (24, 32, 2)


def test_structural_objectives_train_the_mean_of_the_regions(images, tmp_path):
    def pooled(**changes):
        return new_embedder(small_config(images, tmp_path, **changes)).config.pooled

    assert pooled() == "backbone"
    assert pooled(objective="margin_diml") == "grid_mean"
    assert pooled(similarity="structural") == "grid_mean"
    assert pooled(similarity="structural", pooled="backbone") == "backbone"


def test_images_are_the_same_wherever_they_lie(images, tmp_path):
    train = load_dataset("csv", images).train
    moved = dataclasses.replace(train, paths=tuple(tmp_path / path.parent.name / path.name for path in train.paths))
    assert fingerprint(moved) == fingerprint(train)
    assert fingerprint(train.subset(range(10))) != fingerprint(train)
