"""`load_embedder`: the size of the input, and the usual number of channels of a head."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from diml.data.transforms import Preprocess
from diml.models import load_embedder


class Net(nn.Module):
    """A network of a user."""

    def __init__(self, channels: int = 8) -> None:
        super().__init__()
        self.layer = nn.Conv2d(3, channels, 8, stride=8)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.layer(images)


@pytest.mark.parametrize("given", [{}, {"preprocess": Preprocess(size=64, resize=80)}])
def test_the_size_of_the_input_is_that_of_any_model(given, tmp_path):
    by_name = load_embedder("test_resnet", pretrained=False, size=96, **given)
    short = 120 if given else round(96 * 256 / 224)
    assert (by_name.preprocess.size, by_name.preprocess.resize) == (96, short)
    by_name.save(tmp_path / "model")
    saved = load_embedder(tmp_path / "model", size=48)
    assert (saved.preprocess.size, saved.preprocess.resize) == (48, short // 2)
    assert load_embedder(tmp_path / "model").preprocess == by_name.preprocess
    assert load_embedder(tmp_path / "model", size=96).preprocess == by_name.preprocess
    own = load_embedder(Net(), size=112)
    assert (own.preprocess.size, own.preprocess.resize) == (112, 128)
    assert len(saved.embed(torch.rand(2, 3, 70, 90))) == 2


def test_without_a_short_side_there_is_none_at_another_size():
    found = load_embedder("test_resnet", pretrained=False, preprocess=Preprocess(size=64, resize=None), size=32)
    assert found.preprocess == Preprocess(size=32, resize=None)


@pytest.mark.parametrize("size", [0, -3, 64.0, True])
def test_a_size_that_is_none_is_refused(size):
    with pytest.raises(ValueError, match="size: need pixels, an integer of at least 1"):
        load_embedder("test_resnet", pretrained=False, size=size)


def test_a_whitening_has_at_most_the_channels_of_the_network():
    by_name = load_embedder("test_resnet", pretrained=False, head="whiten")
    assert by_name.dim == by_name.backbone.channels < 512
    assert load_embedder("resnet34", pretrained=False, head="whiten").dim == 512
    assert load_embedder(Net(600), head="whiten").dim == 512
    assert load_embedder(Net(12), head="whiten").dim == 12
    assert (
        load_embedder(Net(12), head="linear").dim
        == load_embedder("test_resnet", pretrained=False, head="linear").dim
        == 128
    )
    with pytest.raises(ValueError, match="at most the 12 channels"):
        load_embedder(Net(12), head="whiten", dim=13)
