"""Random weights follow their seed, and leave the network and the global generator unchanged."""

import pytest
import torch

from diml.data import Preprocess
from diml.faithfulness.randomised import randomised
from diml.models import load_embedder


def test_all_weights_are_drawn_by_seed(tiny):
    before = {name: value.clone() for name, value in tiny.state_dict().items()}
    state = torch.get_rng_state()
    made, again, other = (randomised(tiny, seed).state_dict() for seed in (0, 0, 1))
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(before[name], value) for name, value in tiny.state_dict().items())
    assert all(torch.equal(made[name], value) for name, value in again.items())
    matrices = [name for name, value in before.items() if value.ndim > 1]
    assert matrices
    for name in matrices:
        assert not torch.equal(made[name], before[name])
        assert not torch.equal(made[name], other[name])


def test_no_trained_weight_remains(tiny):
    with torch.no_grad():
        for weight in tiny.parameters():
            weight.fill_(7.0)
    made = randomised(tiny, 0)
    assert not any((weight == 7.0).any() for weight in made.parameters())


@pytest.mark.parametrize("options", [{"head": "linear", "dim": 8}, {"head": "whiten", "dim": 8}])
def test_heads_are_randomised(options):
    embedder = load_embedder("test_resnet", pretrained=False, preprocess=Preprocess(size=48, resize=54), **options)
    if options["head"] == "whiten":
        embedder.fit_head([torch.rand(3, 60, 60, generator=torch.Generator().manual_seed(n)) for n in range(4)])
    made = randomised(embedder, 3)
    assert torch.isfinite(made.head.weight).all()
    assert not torch.equal(made.head.weight, embedder.head.weight)
