"""The next command where re-ranking does not help."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from diml.cli.advice import given_flags, next_command, shortfall, shortfall_line
from diml.cli.options import DataOptions, EmbedderOptions, HeadOptions
from diml.evaluation import Report


def report(plain: np.ndarray, reranked: np.ndarray | None) -> Report:
    per_query = {0: {"recall@1": plain, "map@r": plain}}
    if reranked is not None:
        per_query[100] = {"recall@1": plain, "map@r": reranked}
    return Report(
        per_query=per_query,
        queries=np.arange(len(plain)),
        without_relevant=np.empty(0, np.int64),
        hits={},
        gallery_size=len(plain),
        unconverged_pairs=0,
        settings={"resamples": 200, "seed": 0},
    )


PLAIN = np.random.default_rng(0).uniform(0.2, 0.8, 50)
NOISE = np.random.default_rng(1).normal(0, 0.02, 50)


@pytest.mark.parametrize(
    ("reranked", "says"),
    [
        (PLAIN + 0.1 + NOISE, None),
        (PLAIN - 0.1 + NOISE, "lowers MAP@R"),
        (PLAIN + NOISE - NOISE.mean(), "shows no gain of MAP@R"),
        (PLAIN, r"shows no gain of MAP@R (+0.00 percentage points, +0.00..+0.00)"),
        (None, None),
    ],
)
def test_what_the_interval_says(reranked, says):
    lacking = shortfall(report(PLAIN, reranked))
    assert (lacking is None) == (says is None)
    if lacking is not None:
        assert says in shortfall_line("resnet50", lacking)


def test_a_perfect_ranking_lacks_nothing():
    assert shortfall(report(np.ones(9), np.ones(9))) is None


@pytest.mark.parametrize(
    ("head", "paper", "tunable", "training", "expected"),
    [
        (HeadOptions(head="identity"), True, True, ["train"], "evaluate {} --grid 7 --head whiten"),
        (HeadOptions(head="whiten", dim=64), True, True, ["train"], "tune {} --grid 7 --head whiten --dim 64"),
        (HeadOptions(fit_on="gallery"), True, False, None, "compare {} --grid 7 --fit-on gallery"),
        (HeadOptions(), False, True, None, "tune {} --grid 7"),
        (HeadOptions(), False, True, ["train", "folder", "--frozen-backbone"], "train folder --frozen-backbone"),
    ],
)
def test_the_next_command_is_what_was_not_tried(head, paper, tunable, training, expected):
    data, opened = given_flags(DataOptions(data=Path("my photos"))), given_flags(EmbedderOptions(grid=7))
    flags = [*data, "--model", "resnet50", *opened]
    bare = head.head == "identity"
    found = next_command("folder", flags, given_flags(head), bare=bare, paper=paper, tunable=tunable, training=training)
    assert found == "diml " + expected.format("folder --data 'my photos' --model resnet50")


@pytest.mark.parametrize(("tunable", "command"), [(True, "diml tune runs/mine"), (False, "diml compare runs/mine")])
@pytest.mark.parametrize("paper", [True, False])
def test_a_run_is_data_set_and_model(tunable, command, paper):
    assert next_command("runs/mine", [], [], bare=False, paper=paper, tunable=tunable, training=None) == command
