"""The measures equal their naive definitions, and the samplers pick by them and survive an interruption."""

import itertools
import math
import warnings
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import linalg, stats

from diml.data import batch_selection as selection
from diml.data.batch_selection import SELECTION_RULES, Pool
from diml.data.class_groups import ClassGroups
from diml.data.samplers import build_sampler

NAMES = sorted(SELECTION_RULES)


def points(seed: int, count: int = 24, dim: int = 4) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, dim)) * np.arange(1, dim + 1)


@given(seed=st.integers(0, 50))
def test_greedy_picks_the_farthest_point_of_a_new_class(seed) -> None:
    where, labels = points(seed), np.arange(24) % 8
    picked = selection.greedy_coreset(where, labels, 8, np.random.default_rng(seed))
    assert sorted(labels[picked]) == list(range(8))
    for count in range(1, 8):
        done = picked[:count]
        reach = {
            row: min(math.dist(where[row], where[other]) for other in done)
            for row in range(24)
            if labels[row] not in labels[done]
        }
        assert reach[picked[count]] == pytest.approx(max(reach.values()))


def test_the_first_greedy_point_is_random() -> None:
    firsts = {selection.greedy_coreset(points(0), np.arange(24), 1, np.random.default_rng(i))[0] for i in range(300)}
    assert firsts == set(range(24))


def test_softened_greedy_picks_among_the_farthest() -> None:
    where, labels = points(1, count=200), np.arange(200)
    second = set()
    for seed in range(60):
        generator = np.random.default_rng(seed)
        first, other = selection.greedy_coreset(where, labels, 2, generator, softened=True)
        farther = (np.linalg.norm(where - where[first], axis=1) > np.linalg.norm(where[other] - where[first])).sum()
        assert farther < 0.03 * 200
        second.add(farther)
    assert len(second) > 1


@given(seed=st.integers(0, 50), power=st.sampled_from([0.0, 0.5, 1.0, 2.0]))
def test_d2_probabilities_equal_the_definition(seed, power) -> None:
    where = points(seed)
    free = np.arange(24) >= 3
    reach = sum((np.linalg.norm(where - where[row], axis=1) ** 2 for row in range(3)), np.zeros(24))
    normal = stats.multivariate_normal(where.mean(axis=0), np.cov(where.T))
    wanted = np.where(free, normal.pdf(where) * reach**power, 0)
    got = selection.d2_probabilities(normal.logpdf(where), reach, free, power)
    np.testing.assert_allclose(got, wanted / wanted.sum(), rtol=1e-9, atol=1e-300)


def test_d2_draws_by_those_probabilities() -> None:
    where, labels = points(3, count=6, dim=2), np.arange(6)
    counts = np.zeros((6, 6))
    for seed in range(6000):
        first, second = selection.d2_coreset(where, labels, 2, np.random.default_rng(seed))
        counts[first, second] += 1
    normal = stats.multivariate_normal(where.mean(axis=0), np.cov(where.T))
    start = np.bincount(
        [
            int(np.argmin(((where - draw) ** 2).sum(axis=1)))
            for draw in normal.rvs(6000, random_state=np.random.default_rng(1))
        ],
        minlength=6,
    )
    np.testing.assert_allclose(counts.sum(axis=1) / 6000, start / 6000, atol=0.03)
    for first in np.flatnonzero(counts.sum(axis=1) > 500):
        weight = normal.pdf(where) * ((where - where[first]) ** 2).sum(axis=1)
        np.testing.assert_allclose(counts[first] / counts[first].sum(), weight / weight.sum(), atol=0.06)


@given(seed=st.integers(0, 50), count=st.integers(2, 12), dim=st.integers(1, 9))
def test_frechet_distance_equals_the_matrix_root(seed, count, dim) -> None:
    pool, candidate = points(seed, 30, dim), points(seed + 1, count, dim) + 0.3
    one, two = np.atleast_2d(np.cov(pool.T)), np.atleast_2d(np.cov(candidate.T))
    half = linalg.sqrtm(one)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of scipy, where two has not full rank
        root = np.trace(linalg.sqrtm(half @ two @ half + 1e-14 * np.eye(dim))).real
    mean = ((pool.mean(axis=0) - candidate.mean(axis=0)) ** 2).sum()
    wanted = mean + np.trace(one) + np.trace(two) - 2 * root
    assert selection.frechet_distance(pool, candidate) == pytest.approx(wanted, rel=1e-5, abs=1e-4)


def test_frechet_distance_laws() -> None:
    pool = points(0, 50, 3)
    assert selection.frechet_distance(pool, pool) == pytest.approx(0, abs=1e-9)
    shifted = pool + np.array([3, 0, 4])
    assert selection.frechet_distance(pool, shifted) == pytest.approx(25)
    assert selection.frechet_distance(pool, 2 * pool) == pytest.approx(
        ((pool.mean(axis=0)) ** 2).sum() + np.trace(np.cov(pool.T))
    )
    rows = [np.arange(10), np.arange(5, 30)]
    np.testing.assert_allclose(
        selection.frechet_distances(pool, rows), [selection.frechet_distance(pool, pool[chosen]) for chosen in rows]
    )


@given(seed=st.integers(0, 50), weight=st.sampled_from([0.0, 1.0, 75.0]))
def test_histogram_distance_equals_the_definition(seed, weight) -> None:
    pool = points(seed)
    rows = np.random.default_rng(seed).choice(24, 9, replace=False)
    every = [math.dist(a, b) for a, b in itertools.combinations(pool, 2)]
    some = [math.dist(a, b) for a, b in itertools.combinations(pool[rows], 2)]
    width = (max(every) - min(every)) / 50
    bins = [np.minimum(((np.array(d) - min(every)) / width).astype(int), 49) for d in (every, some)]
    wanted = weight * width * stats.wasserstein_distance(*bins)
    wanted += math.dist(pool.mean(axis=0), pool[rows].mean(axis=0)) + math.dist(
        pool.std(axis=0), pool[rows].std(axis=0)
    )
    (got,) = selection.histogram_distances(pool, [rows], weight=weight)
    # a distance on the edge of two bins may fall to either side
    assert got == pytest.approx(wanted, rel=1e-6, abs=weight * width * 2 / len(some))
    assert selection.histogram_distances(pool, [np.arange(24)], weight=weight)[0] == pytest.approx(0, abs=1e-9)


def test_points_that_coincide_do_no_harm() -> None:
    same, labels, generator = np.ones((12, 3)), np.arange(12) % 6, np.random.default_rng(0)
    rows = [np.arange(4), np.arange(6)]
    for pick in (selection.greedy_coreset, selection.d2_coreset, partial(selection.d2_coreset, power=0)):
        assert sorted(labels[pick(same, labels, 6, generator)]) == list(range(6))
    assert selection.frechet_distances(same, rows).tolist() == [0, 0]
    assert selection.histogram_distances(same, rows).tolist() == [0, 0]


def test_fewer_points_than_dimensions_do_no_harm() -> None:
    where = points(0, 8, 30)
    assert len(selection.d2_coreset(where, np.arange(8), 8, np.random.default_rng(0))) == 8
    assert np.isfinite(selection.frechet_distances(where, [np.arange(3)])).all()


def pool_of(embeddings: np.ndarray, members: tuple, classes: int, per_class: int, pool: int) -> Pool:
    groups = ClassGroups(tuple(np.array(member) for member in members))
    return Pool(groups, groups, lambda rows: embeddings[rows], classes, per_class, pool)


@pytest.mark.parametrize(("name", "measure"), [("fid", "frechet_distances"), ("disthist", "histogram_distances")])
def test_the_closest_of_the_candidates_is_taken(name, measure, monkeypatch: pytest.MonkeyPatch) -> None:
    """The batch has the least cost of ten; with more to compare, batches grow more like the pool."""
    embeddings = points(0, 60, 3)
    pools = pool_of(embeddings, tuple(range(start, start + 6) for start in range(0, 60, 6)), 5, 2, 60)
    cost = getattr(selection, measure)
    seen = []

    def spy(where, candidates, **options):
        seen.append((where, candidates, cost(where, candidates, **options)))
        return seen[-1][2]

    monkeypatch.setattr(f"diml.data.batch_selection.{measure}", spy)
    batch = SELECTION_RULES[name]().batch(pools, np.random.default_rng(4))
    ((where, candidates, costs),) = seen
    assert len(candidates) == 10
    assert sorted(where[:, 0]) == sorted(embeddings[:, 0])  # all 60 fit into the pool
    np.testing.assert_array_equal(embeddings[batch], where[candidates[int(np.argmin(costs))]])

    def mean_cost(comparisons: int) -> float:
        choice = SELECTION_RULES[name](comparisons=comparisons)
        batches = [choice.batch(pools, np.random.default_rng(i)) for i in range(30)]
        return float(cost(embeddings, batches).mean())

    assert mean_cost(20) < 0.8 * mean_cost(1)


def test_a_balanced_pool_has_as_many_classes_as_it_can() -> None:
    members = ([0, 1, 2, 3, 4], [5, 6], [7, 8, 9], [10])
    sizes = []
    for pool in (4, 6, 8, 100):
        drawn = SELECTION_RULES["fid"]()
        spied: list[np.ndarray] = []
        pools = pool_of(np.zeros((11, 2)), members, 2, 2, pool)
        pools = Pool(
            **{**vars(pools), "embed": lambda rows, spied=spied: spied.append(rows) or np.zeros((len(rows), 2))}
        )
        drawn.batch(pools, np.random.default_rng(0))
        (rows,) = spied
        assert len(set(rows)) == len(rows)
        assert 10 not in rows
        sizes.append(len(rows))
    assert sizes == [4, 6, 8, 8]


def test_coresets_are_more_diverse_than_random_batches() -> None:
    labels = np.repeat(np.arange(30), 4)
    generator = torch.Generator().manual_seed(0)
    embeddings = torch.randn(30, 6, generator=generator).repeat_interleave(4, dim=0)
    embeddings += 0.1 * torch.randn(120, 6, generator=generator)

    def nearest(name: str) -> float:
        sampler = build_sampler(name, labels, batch_size=16, batches_per_epoch=30)
        sampler.update(torch.arange(120), embeddings)
        gaps = []
        for batch in sampler.batches(0):
            anchors = embeddings[batch[::2]]
            gaps.append((torch.cdist(anchors, anchors) + 99 * torch.eye(8)).amin(dim=1).mean().item())
        return float(np.mean(gaps))

    assert nearest("greedy_coreset") > 1.2 * nearest("class_balanced")


@pytest.mark.parametrize("name", NAMES)
def test_every_image_comes_before_batches_are_chosen(name) -> None:
    labels = np.repeat(np.arange(9), [2, 3, 4, 5, 6, 7, 8, 9, 10])
    sampler = build_sampler(name, labels, batch_size=6)
    assert sampler.needs_embeddings
    seen: set[int] = set()
    for epoch in range(3):
        for batch in sampler.batches(epoch):
            seen |= set(batch)
            sampler.update(torch.tensor(batch), torch.randn(6, 3))
    assert seen == set(range(54))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("options", [{}, {"project_to": 2}])
def test_a_run_resumed_in_the_middle_of_an_epoch_goes_on_alike(name, options) -> None:
    labels = np.repeat(np.arange(10), 5)

    def embeddings(step: int) -> torch.Tensor:
        return torch.randn(10, 4, generator=torch.Generator().manual_seed(step))

    whole = build_sampler(name, labels, batch_size=10, **options)
    history, state, step = [], None, 0
    for epoch in range(4):
        for number, batch in enumerate(whole.batches(epoch)):
            history.append(batch)
            whole.update(torch.tensor(batch), embeddings(step))
            step += 1
            if (epoch, number) == (2, 2):
                state = whole.state_dict()
    resumed = build_sampler(name, labels, batch_size=10, **options)
    assert state is not None
    resumed.load_state_dict(state)
    step, again = 13, history[:13]
    for epoch, done in ((2, 3), (3, 0)):
        for batch in itertools.islice(resumed.batches(epoch), done, None):
            again.append(batch)
            resumed.update(torch.tensor(batch), embeddings(step))
            step += 1
    assert again == history


def test_a_state_is_a_copy_of_tensors_and_numbers() -> None:
    sampler = build_sampler("fid", [0, 0, 1, 1], batch_size=4)
    sampler.update(torch.arange(4), torch.ones(4, 2))
    state = sampler.state_dict()
    assert all(isinstance(value, torch.Tensor | int) for value in state.values())
    sampler.update(torch.tensor([2]), torch.zeros(1, 2))
    assert state["embeddings"].sum() == 8
    assert sampler.state_dict()["embeddings"].sum() == 6


def test_a_state_of_another_run_is_rejected() -> None:
    sampler = build_sampler("fid", [0, 0, 1, 1], batch_size=4)
    with pytest.raises(ValueError, match="was the sampler changed"):
        sampler.load_state_dict({})
    with pytest.raises(ValueError, match="embeddings has size 6, this sampler needs 4"):
        sampler.load_state_dict(build_sampler("fid", [0, 0, 1, 1, 2, 2], batch_size=4).state_dict())
    with pytest.raises(ValueError, match="plan has size 2, this sampler needs 4"):
        sampler.load_state_dict(build_sampler("fid", [0, 0, 1, 1], batch_size=2).state_dict())


def test_updates_are_checked_and_detached() -> None:
    sampler = build_sampler("fid", [0, 0, 1, 1], batch_size=4)
    sampler.update(torch.tensor([1, 3, 1]), torch.tensor([[1.0], [2], [3]], dtype=torch.bfloat16, requires_grad=True))
    state = sampler.state_dict()
    assert state["embeddings"].flatten().tolist() == [0, 3, 0, 2]
    assert state["known"].tolist() == [False, True, False, True]
    assert not state["embeddings"].requires_grad
    sampler.update(torch.tensor([0]), torch.tensor([[math.nan]]))
    assert not sampler.state_dict()["known"][0]
    with pytest.raises(ValueError, match="need 1 channels"):
        sampler.update(torch.tensor([0]), torch.ones(1, 2))
    with pytest.raises(ValueError, match=r"need images 0\.\.3"):
        sampler.update(torch.tensor([4]), torch.ones(1, 1))
    with pytest.raises(ValueError, match="need shapes"):
        sampler.update(torch.tensor([0, 1]), torch.ones(1, 1))


@pytest.mark.parametrize("name", NAMES)
def test_without_embeddings_it_warns_once_that_batches_are_only_balanced(name) -> None:
    sampler = build_sampler(name, np.repeat(np.arange(4), 3), batch_size=4, batches_per_epoch=9)
    assert len(list(sampler.batches(0))) == 9  # the first look needs none
    with pytest.warns(UserWarning, match="only 0 of 12 images have an embedding") as said:
        batches = list(sampler.batches(1))
    assert len(said) == 1
    assert said[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(list(sampler.batches(2))) == len(batches) == 9


@pytest.mark.parametrize("name", NAMES)
def test_an_unreadable_image_stops_nothing(name) -> None:
    labels = np.repeat(np.arange(4), 4)
    sampler = build_sampler(name, labels, batch_size=4)
    for epoch in range(4):
        for batch in sampler.batches(epoch):
            kept = torch.tensor([index for index in batch if index != 5])
            sampler.update(kept, torch.randn(len(kept), 3, generator=torch.Generator().manual_seed(epoch)))
    assert not sampler.state_dict()["known"][5]
    assert sampler.state_dict()["known"].sum() == 15
