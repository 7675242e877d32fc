"""Both checkouts of benchmarks/against_commit.py are given the same valid inputs and do all tasks."""

from __future__ import annotations

import argparse

import numpy as np
import pytest
import torch

import against_commit
import commit_work

OPTIONS = argparse.Namespace(
    seed=0, images=40, queries=3, rerank_at=5, evaluation_images=30, classes=5, batch=8, regions=4, dim=8,
    embeddings="hard", tasks=commit_work.TASKS,
)  # fmt: skip


def test_inputs_are_valid_and_repeatable():
    one, other = (against_commit.make_inputs(OPTIONS) for _ in range(2))
    assert all(np.array_equal(one[name], other[name]) for name in one)
    assert one["rerank_dense"].shape == (40, 4, 8)
    assert one["candidates"].shape == (3, 5)
    assert not (one["candidates"] == one["queries"][:, None]).any()
    assert np.unique(one["loss_labels"], return_counts=True)[1].tolist() == [2] * 4


def test_all_tasks_run_and_repeat(monkeypatch):
    monkeypatch.setattr(commit_work, "LEAST_SECONDS", 0)
    inputs = {name: torch.from_numpy(values) for name, values in against_commit.make_inputs(OPTIONS).items()}
    one, other = (
        {name: commit_work.timed(task) for name, task in commit_work.tasks(inputs, 5).items()} for _ in range(2)
    )
    assert len(one) == 6
    assert [each["digest"] for each in one.values()] == [each["digest"] for each in other.values()]
    assert all(each["calls"] == commit_work.LEAST_CALLS and each["seconds"] > 0 for each in one.values())


@pytest.mark.parametrize(("task", "count"), [("rerank", 2), ("maxsim", 1), ("evaluate", 1), ("loss", 2)])
def test_inputs_are_those_of_the_tasks_that_were_asked_for(task, count):
    options = argparse.Namespace(**vars(OPTIONS) | {"tasks": [task]})
    inputs = {name: torch.from_numpy(values) for name, values in against_commit.make_inputs(options).items()}
    assert len(commit_work.tasks(inputs, 5, [task])) == count
    assert len(inputs) < 9


@pytest.mark.parametrize(("digest", "equal"), [("a", True), ("b", False)])
def test_a_result_is_a_ratio_of_this_to_the_other(digest, equal):
    def run(seconds, digest):
        return {"tasks": {"work": {"seconds": seconds, "digest": digest}}}

    runs = {"other": [run(2.0, "a"), run(4.0, "a")], "this": [run(1.0, "a"), run(1.0, digest)]}
    found = against_commit.result("work", runs)
    assert found["ratio"]["values"] == [0.5, 0.25]
    assert found["seconds"]["other"]["median"] == 3
    assert found["equal"] is equal
