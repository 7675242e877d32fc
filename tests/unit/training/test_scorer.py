"""Training of a learned matcher, and its way from the model's folder to every command."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from diml.cli import main
from diml.matching import LearnedMatcher, Matcher, Regions
from diml.matching.learned import MOST_PARAMETERS, VoteScorer
from diml.models import load_embedder
from diml.training.scorer import _scores, smooth_average_precision_loss, train_scorer


def noisy_classes(classes: int = 10, per_class: int = 6, dim: int = 12, seed: int = 0) -> tuple[Regions, np.ndarray]:
    """Classes differ in a few channels, the others are strong noise: a linear map can learn to leave it out."""
    generator = torch.Generator().manual_seed(seed)
    count = classes * per_class
    labels = np.repeat(np.arange(classes), per_class)
    centres = torch.randn(classes, 4, dim // 2, generator=generator)[torch.from_numpy(labels)]
    noise = 1.5 * torch.randn(count, 4, dim - dim // 2, generator=generator)
    dense = torch.cat([centres + 0.5 * torch.randn(centres.shape, generator=generator), noise], dim=2)
    return Regions.normalized(dense, dense.mean(dim=1)), labels


def test_training_raises_the_precision_of_classes_that_it_has_not_seen():
    regions, labels = noisy_classes()
    seen = []
    trained = train_scorer(
        regions, labels, max_steps=30, learning_rate=1e-2, images_per_class=4, seed=1, on_validation=seen.append
    )
    best = max(entry.map_at_r for entry in trained.history)
    assert best > trained.history[0].map_at_r + 0.02
    assert best > trained.paper
    assert list(trained.history[1:]) == seen
    assert trained.steps == max(trained.history, key=lambda entry: entry.map_at_r).step
    assert trained.matcher.scorer.parameters_used <= MOST_PARAMETERS
    assert json.loads(json.dumps(trained.to_dict()))["steps"] == trained.steps
    again = train_scorer(regions, labels, max_steps=30, learning_rate=1e-2, images_per_class=4, seed=1)
    assert again.matcher == trained.matcher
    other_domain = noisy_classes(seed=5, classes=2)[0]
    assert torch.isfinite(trained.matcher.match(other_domain[:1], other_domain).score).all()


def test_scores_of_training_are_those_of_the_matcher():
    regions, _ = noisy_classes(classes=3)
    scorer = VoteScorer(12)
    with torch.no_grad():
        scorer.reader[2].weight.normal_(generator=torch.Generator().manual_seed(0))
    matcher = LearnedMatcher.of(scorer)
    found = _scores(scorer, regions.dense, regions.pooled) * (1 + matcher.structural_weight)
    expected = torch.stack([matcher.match(regions[i], regions).score for i in range(len(regions))])
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


def test_the_loss_is_one_minus_average_precision_where_ranks_are_clear():
    labels = torch.tensor([0, 0, 1, 1])
    assert float(smooth_average_precision_loss((labels.unsqueeze(1) == labels) * 10.0, labels)) < 1e-6
    wrong = (labels.unsqueeze(1) != labels) * 10.0
    assert float(smooth_average_precision_loss(wrong, labels)) == pytest.approx(2 / 3, abs=1e-6)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"validation_fraction": 0.9}, "leaves two"),
        ({"max_steps": 0}, "max_steps"),
        ({"channels": 13}, "channels: need 1 to 12"),
        ({"region_dropout": 1.0}, "region_dropout"),
        ({"images_per_class": 1}, "images_per_class"),
    ],
)
def test_settings_out_of_range_are_refused(change, told):
    with pytest.raises(ValueError, match=told):
        train_scorer(*noisy_classes(classes=4), **change)


def test_too_few_classes_are_refused():
    regions, labels = noisy_classes(classes=3)
    with pytest.raises(ValueError, match="at least four classes"):
        train_scorer(regions, labels)
    with pytest.raises(ValueError, match="one for each"):
        train_scorer(regions, labels[:-1])


@pytest.fixture
def model(tmp_path):
    """The folder of a small model with a learned matcher."""
    embedder = load_embedder("test_resnet", head="linear", dim=8, grid=2, pretrained=False)
    matcher = LearnedMatcher.of(VoteScorer(8))
    embedder.with_settings(matcher=matcher).save(tmp_path / "model")
    return tmp_path / "model", matcher


def test_a_model_is_saved_with_its_scorer(model, tmp_path):
    folder, matcher = model
    opened = load_embedder(folder)
    assert isinstance(opened.matcher, LearnedMatcher)
    assert opened.matcher == matcher
    regions = noisy_classes(dim=8)[0]
    expected = matcher.match(regions[:1], regions).score
    assert torch.equal(opened.matcher.match(regions[:1], regions).score, expected)
    opened.with_settings(matcher=Matcher()).save(tmp_path / "plain")
    assert not (tmp_path / "plain" / "scorer.safetensors").exists()


def test_a_damaged_or_missing_scorer_is_an_error(model):
    folder, _ = model
    file = folder / "scorer.safetensors"
    written = bytearray(file.read_bytes())
    written[-1] ^= 1
    file.write_bytes(written)
    with pytest.raises(ValueError, match=r"scorer\.safetensors: damaged, or of another model"):
        load_embedder(folder)
    file.unlink()
    with pytest.raises(FileNotFoundError, match=r"it has no scorer\.safetensors"):
        load_embedder(folder)


def test_commands_use_the_scorer_of_a_model(model, tmp_path, capsys):
    from PIL import Image

    folder, matcher = model
    generator = np.random.default_rng(0)
    for name in "abcd":
        Image.fromarray(generator.integers(0, 255, (48, 48, 3), dtype=np.uint8)).save(tmp_path / f"{name}.png")
    pair = [str(tmp_path / "a.png"), str(tmp_path / "b.png")]
    assert main(["explain", *pair, "--model", str(folder), "--json", str(tmp_path / "pair.json")]) == 0
    found = json.loads((tmp_path / "pair.json").read_text())
    assert found["matcher"]["scorer_id"] == matcher.scorer_id
    assert found["plan_shown"] == "votes"
    assert found["unmatched"]["query"] is not None
    assert main(["explain", *pair, "--model", str(folder), "--epsilon", "0.02"]) == 0
    assert "the learned scorer of the model is not used" in capsys.readouterr().err
