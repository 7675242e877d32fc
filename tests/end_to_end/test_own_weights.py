"""Training from a file of weights: in a run, with a frozen backbone and in a sweep; recorded with its sha256."""

from __future__ import annotations

import json
import re

import pytest
import timm
import torch
import yaml
from safetensors.torch import load_file, save_file

from diml.checksums import file_sha256
from diml.cli import main
from diml.models import load_embedder
from diml.training import train
from diml.training.checkpoints import read_checkpoint
from diml.training.config import read_config
from diml.training.sweep import read_sweep
from end_to_end.small_runs import SMALL, small_config

SHORT = {"epochs": 1, "sampler_options": ("batches_per_epoch=1",)}


@pytest.fixture
def weights(tmp_path):
    with torch.random.fork_rng():
        torch.manual_seed(3)
        save_file(timm.create_model("test_resnet").state_dict(), tmp_path / "own.safetensors")
    return tmp_path / "own.safetensors"


def first_of(folder):
    """A weight of the network with which a run began."""
    return load_file(folder / "frozen" / "model.safetensors")["backbone.net.conv1.0.weight"]


@pytest.mark.parametrize("frozen", [False, True])
def test_a_run_begins_with_the_weights_of_the_file_and_records_them(frozen, images, weights, tmp_path, capsys):
    config = small_config(images, tmp_path / "unused", **SHORT)
    words = [f"--{name}={getattr(config, name)}" for name in ("data", "model", "size", "grid", "dim", "epochs")]
    words += ["--batch-size=4", "--per-class=2", "--no-pretrained", f"--output={tmp_path / 'run'}", "--no-progress"]
    words += ["--sampler-options", "batches_per_epoch=1", *["--frozen-backbone", "--no-cache"] * frozen]
    assert main(["train", "csv", *words, "--weights-file", str(weights)]) == 0, capsys.readouterr().err
    digest = file_sha256(weights)
    own = load_file(weights)["conv1.0.weight"]
    assert torch.equal(first_of(tmp_path / "run"), own)
    settings = read_config(tmp_path / "run" / "config.yaml")
    assert (settings["weights_file"], settings["weights_sha256"]) == (weights, digest)
    state = read_checkpoint(tmp_path / "run" / "last.ckpt")["config"]
    assert (state["weights_file"], state["weights_sha256"]) == (str(weights), digest)
    tested = json.loads((tmp_path / "run" / "evaluation.json").read_text())["config"]
    assert tested["weights_sha256"] == digest
    weights.unlink()  # the run has its weights now
    assert main(["train", "--resume", "--output", str(tmp_path / "run"), "--epochs", "2", "--no-progress"]) == 0
    assert load_embedder(tmp_path / "run").config.backbone == "test_resnet"


def test_another_file_is_refused_before_an_image_is_read(images, weights, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("diml.training.loop.load_training_data", None)
    missing = small_config(images, tmp_path / "run", weights_file=tmp_path / "nowhere.safetensors")
    with pytest.raises(FileNotFoundError, match=r"weights_file: .*nowhere.safetensors does not exist"):
        train(missing)
    with pytest.raises(ValueError, match=r"own.safetensors: damaged, or not the file .*weights_sha256"):
        train(small_config(images, tmp_path / "run", weights_file=weights, weights_sha256="0" * 64))
    for changes, line in (
        ({"weights_sha256": "0" * 64}, "weights_sha256: is that of --weights-file, got none"),
        ({"weights_file": weights, "weights_sha256": "abc"}, "weights_sha256: need 64 hexadecimal digits"),
    ):
        with pytest.raises(ValueError, match=line):
            small_config(images, tmp_path / "run", **changes)
    load_embedder("test_resnet", pretrained=False, size=64).save(tmp_path / "saved")
    with pytest.raises(ValueError, match=r"weights_file: is for a network by name, .*saved has weights of its own"):
        train(small_config(images, tmp_path / "run", model=str(tmp_path / "saved"), weights_file=weights))
    assert not (tmp_path / "run").exists()


def test_a_resumed_run_takes_no_other_weights(images, weights, tmp_path):
    train(small_config(images, tmp_path / "run", weights_file=weights, frozen_baseline=False, **SHORT))
    state = load_file(weights)
    save_file({name: value + 0.5 if value.is_floating_point() else value for name, value in state.items()}, weights)
    with pytest.raises(ValueError, match=r"resume: settings differ .*weights_sha256"):
        train(small_config(images, tmp_path / "run", weights_file=weights, frozen_baseline=False, **SHORT), resume=True)


def test_a_sweep_trains_and_evaluates_with_them(images, weights, tmp_path, capsys):
    base = {name: list(v) if isinstance(v, tuple) else v for name, v in SMALL.items()}
    base |= {"epochs": 1, "sampler_options": {"batches_per_epoch": 1}, "rerank_at": 4, "data": str(images)}
    base["weights_file"] = str(weights)
    runs = {"own": {}, "random": {"weights_file": None}}
    values = {"output": str(tmp_path / "sweep"), "base": base, "runs": runs, "baseline": {"frozen": {}}}
    path = tmp_path / "sweep.yaml"
    path.write_text(yaml.safe_dump(values))
    assert main(["sweep", str(path), "--no-progress"]) == 0
    capsys.readouterr()
    own = load_file(weights)["conv1.0.weight"]
    assert torch.equal(first_of(tmp_path / "sweep" / "own-0"), own)
    assert not torch.equal(first_of(tmp_path / "sweep" / "random-0"), own)
    jobs = {job.name: job for job in read_sweep(path).jobs}
    assert jobs["frozen"].settings["weights_sha256"] == file_sha256(weights)
    assert all(job.report() is not None for job in jobs.values())
    weights.rename(tmp_path / "moved.safetensors")  # the same content: nothing is trained again
    path.write_text(yaml.safe_dump(values | {"base": base | {"weights_file": str(tmp_path / "moved.safetensors")}}))
    assert main(["sweep", str(path), "--no-progress"]) == 0
    assert capsys.readouterr().err.count("already finished") == 3
    torch.save({"conv1.0.weight": torch.zeros(1)}, weights)  # another content: that is another run
    path.write_text(yaml.safe_dump(values))
    finished = {job.name: job.report() is not None for job in read_sweep(path).jobs}
    assert finished == {"frozen": False, "own": False, "random": True}
    weights.unlink()
    assert main(["sweep", str(path)]) == 2
    assert re.search(r"baseline: frozen: weights_file: .*does not exist", capsys.readouterr().err)
