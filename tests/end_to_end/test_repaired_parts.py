"""Complete runs with parts that fail in the released code: `parametric`, `adversarial_separation`, `fid` batches."""

from __future__ import annotations

import math

import pytest
import torch

from diml.data.batch_selection import FrechetDistance
from diml.training import train
from diml.training.interrupts import TrainingStopped
from diml.training.logs import read_records
from diml.training.steps import Stepper
from end_to_end.small_runs import small_config, tensors_of

RUNS = {
    "parametric": {"objective": "margin", "miner": "parametric", "objective_options": ("miner_mode=hards",)},
    "parametric_diml": {"objective": "margin_diml", "miner": "parametric"},
    "adversarial_separation": {"objective": "adversarial_separation", "miner": "parametric"},
    "fid": {"objective": "margin", "sampler": "fid", "sampler_options": ("batches_per_epoch=4", "comparisons=3")},
}


def stop_in_step(monkeypatch, number: int) -> None:
    """Interrupt before that step, from 1."""
    whole = Stepper.step

    def step(self, images, labels, done):
        if done + 1 == number:
            raise KeyboardInterrupt
        return whole(self, images, labels, done)

    monkeypatch.setattr(Stepper, "step", step)


@pytest.mark.parametrize("name", RUNS)
def test_it_trains_is_tested_and_resumes_bit_identically(name, images, tmp_path, monkeypatch):
    whole = train(small_config(images, tmp_path / "whole", **RUNS[name]))
    for row in whole.test.rows:
        assert all(0 <= row[metric] <= 1 for metric in ("recall@1", "r_precision", "map@r"))
    steps = [record for record in read_records(whole.folder / "metrics.jsonl") if record["kind"] == "train"]
    assert len(steps) == 8
    assert all(math.isfinite(step["loss"]) and step["gradient_norm"] > 0 for step in steps)

    config = small_config(images, tmp_path / "stopped", **RUNS[name])
    with monkeypatch.context() as patched:
        stop_in_step(patched, 7)  # in the second epoch, whose batches `fid` selects by embeddings of the first
        with pytest.raises(TrainingStopped, match="stopped after step 6"):
            train(config)
    resumed = train(config, resume=True)
    ours, theirs = (tensors_of(run.folder / "last.ckpt") for run in (resumed, whole))
    assert ours.keys() == theirs.keys()
    assert [key for key in ours if not torch.equal(ours[key], theirs[key])] == []
    assert resumed.test.rows == whole.test.rows


def test_every_batch_of_fid_is_selected_by_stored_embeddings(images, tmp_path, monkeypatch):
    """From the first epoch on, as all training images are embedded before it; no batch is drawn randomly instead."""
    chosen, choose = [], FrechetDistance.batch

    def batch(self, pools, generator):
        chosen.append((choose(self, pools, generator), sum(len(member) for member in pools.known.members)))
        return chosen[-1][0]

    monkeypatch.setattr(FrechetDistance, "batch", batch)
    train(small_config(images, tmp_path / "run", **RUNS["fid"]))
    assert [known for _, known in chosen] == [28] * 8
    assert all(len(set(indices.tolist())) == 8 for indices, _ in chosen)
