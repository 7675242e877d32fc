from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import pytest

from diml.data import load_dataset
from diml.files import InUseError
from diml.matching import Matcher
from diml.models import load_embedder
from diml.training.checkpoints import write_checkpoint
from diml.training.config import TrainConfig, read_config
from diml.training.runs import claim_run, open_run
from diml.training.split import fingerprint, split_for_training
from end_to_end.small_runs import small_config


def test_a_folder_with_a_run_raises_with_remedies(images, tmp_path):
    config = small_config(images, tmp_path / "run")
    split = split_for_training(load_dataset("csv", images), config)
    assert open_run(config, split, resume=False, write=True) is None
    (config.folder / "metrics.jsonl").touch()
    with pytest.raises(FileExistsError, match=r"already holds a run; .*--resume --output .*run.* another --output"):
        open_run(config, split, resume=False, write=True)
    assert open_run(config, split, resume=False, write=False) is None  # another process of the same run
    assert open_run(config, split, resume=True, write=True) is None  # killed before its first checkpoint


def test_there_is_nothing_to_resume(images, tmp_path):
    config = small_config(images, tmp_path / "run")
    with pytest.raises(FileNotFoundError, match=r"no run to resume in .*run"):
        open_run(config, split_for_training(load_dataset("csv", images), config), resume=True, write=True)


def test_a_run_is_resumed_with_its_own_settings_and_images(images, tmp_path, tiny):
    config = small_config(images, tmp_path / "run", objective_options=("beta=1.20",))
    data = load_dataset("csv", images)
    split = split_for_training(data, config)
    open_run(config, split, resume=False, write=True)
    state = {"data": fingerprint(split.train), "config": config.to_dict()}
    write_checkpoint(config.folder / "last.ckpt", tiny(), state)
    same = dataclasses.replace(config, objective_options=("beta=1.2",), workers=2, epochs=9, data=Path("moved"))
    assert open_run(same, split, resume=True, write=True)["data"] == state["data"]
    other = dataclasses.replace(config, lr=1.0, batch_size=6)
    with pytest.raises(ValueError, match=r"resume: settings differ .*batch_size \(8 to 6\), lr \(0.001 to 1.0\)"):
        open_run(other, split, resume=True, write=True)
    with pytest.raises(ValueError, match="data: the training images are not those"):
        open_run(config, dataclasses.replace(split, train=data.train), resume=True, write=True)


def test_a_changed_configuration_is_found_by_the_checkpoint(images, tmp_path, tiny):
    """Also where it is read from the file, as with `diml train --resume --output RUN`."""
    config = small_config(images, tmp_path / "run")
    split = split_for_training(load_dataset("csv", images), config)
    open_run(config, split, resume=False, write=True)
    state = {"data": fingerprint(split.train), "config": config.to_dict()}
    write_checkpoint(config.folder / "last.ckpt", tiny(), state)
    path = config.folder / "config.yaml"
    path.write_text(path.read_text().replace("lr: 0.001", "lr: 0.101"))
    changed = TrainConfig.from_dict(read_config(path))
    assert changed.lr == 0.101
    with pytest.raises(ValueError, match=r"config.yaml: damaged or changed, .*last.ckpt: lr \(0.001 to 0.101\)"):
        open_run(changed, split, resume=True, write=True)


def test_a_folder_is_claimed_by_one(images, tmp_path):
    with claim_run(tmp_path / "run", resume=False):
        (tmp_path / "run" / "config.yaml").touch()
        for resume in (False, True):
            with (
                pytest.raises(InUseError, match=rf"output: .*run is in use by process {os.getpid()} on "),
                claim_run(tmp_path / "run", resume=resume),
            ):
                pass
    with claim_run(tmp_path / "run", resume=True):
        pass
    with claim_run(tmp_path / "missing", resume=True):
        assert not (tmp_path / "missing").exists()


def test_a_cosine_over_more_epochs_is_another_run(images, tmp_path):
    config = small_config(images, tmp_path / "run", schedule="cosine")
    split = split_for_training(load_dataset("csv", images), config)
    open_run(config, split, resume=False, write=True)
    with pytest.raises(ValueError, match=r"epochs \(2 to 3\)"):
        open_run(dataclasses.replace(config, epochs=3), split, resume=True, write=True)


def test_leftovers_of_a_killed_process_are_repaired(images, tmp_path, tiny):
    config = small_config(images, tmp_path / "run")
    split = split_for_training(load_dataset("csv", images), config)
    open_run(config, split, resume=False, write=True)
    embedder = tiny()
    write_checkpoint(config.folder / "best.ckpt", embedder, {})
    (config.folder / "best.ckpt").rename(config.folder / ".best.ckpt.new")
    (config.folder / ".last.ckpt.partial").mkdir()
    open_run(config, split, resume=True, write=True)
    names = {path.name for path in config.folder.iterdir()}
    assert names == {"config.yaml", "best.ckpt", "model.safetensors", "embedder.json"}
    assert load_embedder(config.folder).fingerprint() == embedder.fingerprint()


def test_a_resumed_run_keeps_its_matcher(images, tmp_path):
    config = small_config(images, tmp_path / "run", matcher=Matcher(epsilon=0.02))
    split = split_for_training(load_dataset("csv", images), config)
    open_run(config, split, resume=False, write=True)
    assert open_run(config, split, resume=True, write=True) is None
    with pytest.raises(ValueError, match=r"matcher .*0\.02.* to .*0\.05"):
        open_run(dataclasses.replace(config, matcher=Matcher()), split, resume=True, write=True)
