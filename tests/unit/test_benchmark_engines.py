"""The engines that benchmarks/peers.py measures compute what ours computes; those that are not installed say how."""

from __future__ import annotations

import argparse

import pytest
import torch

import engines
import peers
import regimes
import solvers
from diml.matching import Matcher, nearest


@pytest.fixture
def work() -> engines.Work:
    images = regimes.generate("hard", images=60, classes=6, regions=4, dim=16).regions
    queries = torch.tensor([3, 11, 40])
    candidates = nearest(images[queries], images, 7, exclude=queries).order
    return engines.Work(images, queries, candidates, 7)


@pytest.mark.parametrize("name", engines.MAXSIM)
def test_an_engine_of_maxsim_gives_the_structural_score_of_ours(name: str, work: engines.Work) -> None:
    engine = engines.MAXSIM[name]
    if engine.missing():
        pytest.skip(str(engine.missing()))
    found = engine.prepare(work)()
    query, matcher = work.images[work.queries], Matcher(matching="maxsim_query", weights="uniform")
    for row, (of_query, candidates) in enumerate(zip(query.pooled, work.candidates, strict=True)):
        pooled = work.images.pooled[candidates] @ of_query
        ours = matcher.score(query[[row]], work.images, candidates[None])[0] - pooled
        torch.testing.assert_close(found[row], ours, atol=2e-6, rtol=0)


@pytest.mark.parametrize("name", engines.NEAREST)
def test_a_search_gives_the_largest_cosines_without_the_query_itself(name: str, work: engines.Work) -> None:
    engine = engines.NEAREST[name]
    if engine.missing():
        pytest.skip(str(engine.missing()))
    ours = (work.images.pooled[work.queries].unsqueeze(1) * work.images.pooled[work.candidates]).sum(dim=2)
    torch.testing.assert_close(engine.prepare(work)(), ours, atol=2e-6, rtol=0)


def test_rows_have_the_difference_from_ours_and_both_times() -> None:
    found = regimes.generate("easy", images=40, classes=4, regions=4, dim=8)
    options = argparse.Namespace(
        pairs=10, rerank_at=5, seed=0, runs=1, warmup=0, peers=["torch_maxsim", "torch_topk", "pot_batch"]
    )
    for task, known in (("maxsim", engines.MAXSIM), ("nearest", engines.NEAREST)):
        (row,) = peers.compare_engines(found, options, task, known)
        assert (row["task"], row["queries"], row["depth"]) == (task, 2, 5)
        assert row["largest_difference"] < 2e-6
        assert row["ratio"]["median"] > 0
        assert len(peers.engine_table([row]).rows) == 1


def test_what_is_not_installed_is_named_with_the_line_that_installs_it() -> None:
    absent = engines.Engine("no_such_engine", "pip install no-such-engine", engines.torch_topk)
    assert absent.missing() == "no_such_engine is not installed: pip install no-such-engine"
    found = regimes.generate("easy", images=20, classes=4, regions=4, dim=8)
    options = argparse.Namespace(pairs=5, rerank_at=5, seed=0, runs=1, warmup=0, peers=["absent"])
    (row,) = peers.compare_engines(found, options, "nearest", {"absent": absent})
    assert row["skipped"] == absent.missing()
    named = [*solvers.PEERS.values(), *engines.MAXSIM.values(), *engines.NEAREST.values()]
    assert all(bool(peer.package) == peer.install.startswith("pip install ") for peer in named)
