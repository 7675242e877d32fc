"""Settings of the matcher chosen by a metric: the choice, and the gain that is to be expected of it."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from diml.data.judgements import Judgements
from diml.evaluation import evaluate_regions
from diml.evaluation.tune import setting_text, tune_matcher
from diml.matching import Matcher, Regions

TRIED = {"epsilons": (0.05, 0), "structural_weights": (0, 1, 4, float("inf")), "rerank_at": (5, 12)}


def regions_of(informative: bool, images: int = 60, seed: int = 0) -> tuple[Regions, torch.Tensor]:
    """Images of ten classes whose regions agree within a class, in any order, and whose pooled vectors do not."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(images) % 10
    own = torch.randn(10, 6, 16, generator=generator)[labels]
    noise = torch.randn(images, 6, 16, generator=generator)
    dense = (1.0 if informative else 0.0) * own + noise
    pooled = torch.randn(images, 16, generator=generator)
    return Regions.normalized(dense, pooled, (2, 3)), labels


@pytest.fixture(scope="module")
def tuned():
    regions, labels = regions_of(informative=True)
    return regions, labels, tune_matcher(regions, labels, **TRIED, baseline_rerank_at=12, folds=5, seed=1)


def test_every_setting_has_the_metric_of_its_own_evaluation(tuned) -> None:
    regions, labels, found = tuned
    assert len(found.tried) == 24  # two epsilons and MaxSim, four weights, two K
    assert {matcher.matching for matcher, _, _ in found.tried} == {"transport", "maxsim"}
    for matcher, k, value in found.tried:
        alone = evaluate_regions(regions, labels, matcher=matcher, rerank_at=(k,)).row(k)["map@r"]
        assert value == pytest.approx(alone, abs=2e-3)  # pooled cosines are summed in another order: a tie may turn
    assert found.tried[0][:2] == (found.matcher, found.rerank_at)
    assert found.tried[0][2] == max(value for _, _, value in found.tried)


def test_where_regions_tell_classes_apart_tuning_gains(tuned) -> None:
    found = tuned[2]
    assert found.matcher.structural_weight > 1
    assert found.is_better
    assert found.gain.low <= found.gain.value <= found.gain.high
    assert found.gain.value <= found.gain_of_choice.value + 1e-9
    assert len(found.chosen_by_fold) == 5


def test_the_gain_is_that_of_settings_chosen_without_the_fold() -> None:
    """By hand, over two folds."""
    regions, labels = regions_of(informative=True, images=40, seed=3)
    found = tune_matcher(regions, labels, **TRIED, baseline_rerank_at=12, folds=2, seed=4)
    fold = (np.random.default_rng(4).permutation(10) % 2)[labels]
    start = evaluate_regions(regions, labels, rerank_at=(12,)).per_query[12]["map@r"]
    gains = np.empty(40)
    for left_out, (matcher, k) in enumerate(found.chosen_by_fold):
        values = evaluate_regions(regions, labels, matcher=matcher, rerank_at=(k,)).per_query[k]["map@r"]
        gains[fold == left_out] = (values - start)[fold == left_out]
    assert found.gain.value == pytest.approx(gains.mean(), abs=2e-3)


def test_noise_shows_no_gain() -> None:
    regions, labels = regions_of(informative=False, images=100, seed=2)
    found = tune_matcher(regions, labels, **TRIED, baseline_rerank_at=12)
    assert not found.is_better
    assert found.gain_of_choice.value >= 0  # the luck of the choice


def test_other_settings_of_the_base_are_kept() -> None:
    regions, labels = regions_of(informative=True)
    base = Matcher(weights="uniform", structural_weight=2)
    tried = {"matchings": ("transport",), "epsilons": (0.02,), "structural_weights": (4,), "rerank_at": (7,)}
    found = tune_matcher(regions, labels, base=base, **tried)
    assert found.matcher == replace(base, epsilon=0.02, structural_weight=4)
    assert found.baseline == base
    assert found.tried == ((found.matcher, 7, found.tried[0][2]),)  # the baseline was not to be chosen
    assert setting_text(found.matcher, base, 7) == "epsilon 0.02, structural_weight 4, K 7"


def test_epsilon_is_varied_for_transport_only() -> None:
    regions, labels = regions_of(informative=True)
    tried = {"epsilons": (0.05, 0.2), "structural_weights": (4,), "rerank_at": (7,)}
    found = tune_matcher(regions, labels, matchings=("maxsim", "transport", "maxsim_query"), **tried)
    kinds = sorted((matcher.matching, matcher.epsilon) for matcher, _, _ in found.tried)
    assert kinds == [("maxsim", 0.05), ("maxsim_query", 0.05), ("transport", 0.05), ("transport", 0.2)]
    alone = tune_matcher(regions, labels, matchings=("maxsim",), **tried | {"epsilons": ()})
    assert [matcher.matching for matcher, _, _ in alone.tried] == ["maxsim"]
    assert setting_text(alone.matcher, alone.baseline, 7) == "matching maxsim, structural_weight 4, K 7"


def test_maxsim_is_tried_with_all_mass_beside_a_base_that_transports_a_share() -> None:
    regions, labels = regions_of(informative=True)
    base = Matcher(share=0.7, epsilon=0.2)
    found = tune_matcher(regions, labels, base=base, epsilons=(0.2,), structural_weights=(1,), rerank_at=(7,))
    assert {(matcher.matching, matcher.share) for matcher, _, _ in found.tried} == {("transport", 0.7), ("maxsim", 1)}


def test_the_result_is_plain_json(tuned) -> None:
    document = json.loads(json.dumps(tuned[2].to_dict(), allow_nan=False))
    assert document["settings_tried"] == 24
    assert Matcher.from_dict(document["matcher"]) == tuned[2].matcher
    assert "map@r" in repr(tuned[2])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"matchings": ("transport",), "epsilons": ()}, "epsilons, structural_weights, rerank_at"),
        ({"matchings": ()}, "matchings, epsilons"),
        ({"rerank_at": (0,)}, "K of at least 1"),
        ({"folds": 1}, "two classes and two folds"),
        ({"metric": "precision"}, "metrics: no metric 'precision'"),
    ],
)
def test_errors(arguments, message) -> None:
    regions, labels = regions_of(informative=True)
    with pytest.raises(ValueError, match=message):
        tune_matcher(regions, labels, **arguments)


def test_judgements_say_what_is_right_and_which_queries_belong_together() -> None:
    regions, labels = regions_of(informative=True, images=40, seed=5)
    queries, gallery = list(range(20)), list(range(20, 40))
    relevant = [[row for row in gallery if labels[row] == labels[query]] for query in queries]
    settings = dict(TRIED, baseline_rerank_at=12, folds=5, seed=1, queries=queries, gallery=gallery)
    by_class = tune_matcher(regions, labels, **settings)
    judged = tune_matcher(regions, torch.zeros(40, dtype=torch.int64), judgements=Judgements(relevant), **settings)
    assert judged.to_dict() == by_class.to_dict()
    assert judged.classes == 10
    # a query with a relevant image of two classes makes one of them
    relevant[0] = [*relevant[0], *relevant[1]]
    joined = tune_matcher(regions, [0] * 40, judgements=Judgements(relevant), **settings)
    assert joined.classes == 9
