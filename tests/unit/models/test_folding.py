"""Networks with normalisation and activation folded into convolutions: the same features, or the network itself."""

from __future__ import annotations

import copy

import pytest
import timm
import torch
from torch import Tensor, nn

from diml.data.transforms import Preprocess
from diml.matching import Regions
from diml.models import Embedder
from diml.models.backbones import Backbone, Features, inference
from diml.models.config import EmbedderConfig
from diml.models.folding import WORTH_FOLDING, _ConvolutionAndActivation, folded


class Maps(Backbone):
    """The last map of a network, averaged."""

    def forward(self, images: Tensor) -> Features:
        maps = self.net(images)
        return Features(maps, maps.mean(dim=(2, 3)))


class Residual(nn.Module):
    """In-place sum between normalisation and activation, which therefore do not follow each other."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.norm, self.act = nn.BatchNorm2d(8), nn.ReLU(inplace=True)

    def forward(self, images: Tensor) -> Tensor:
        short = self.first(images)
        found = self.norm(self.second(short))
        found += short
        return self.act(found)


class Twice(nn.Module):
    """A convolution whose output is also used without the normalisation: it must keep its weights."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)

    def forward(self, images: Tensor) -> Tensor:
        found = self.conv(images)
        return self.norm(found) - found


def layers(act: nn.Module | None = None, **options: object) -> nn.Module:
    made = [nn.Conv2d(3, 8, 3, **options), nn.BatchNorm2d(8), *([act] if act else []), nn.Conv2d(8, 4, 1)]
    return nn.Sequential(*made)


def backbone(net: nn.Module) -> Backbone:
    """With statistics and weights of the normalisation that matter."""
    generator = torch.Generator().manual_seed(0)
    for part in net.modules():
        if isinstance(part, nn.BatchNorm2d):
            for tensor in (part.weight, part.bias, part.running_mean, part.running_var):
                tensor.data = torch.rand(tensor.shape, generator=generator) + 0.5
    return Maps(net, channels=4).eval()


def images(count: int = 3, side: int = 32) -> Tensor:
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(1))


def parts(net: nn.Module, kind: type[nn.Module]) -> int:
    return sum(isinstance(part, kind) for part in net.modules())


@torch.no_grad()
@pytest.mark.parametrize(
    "net",
    [
        layers(),
        layers(nn.ReLU()),
        layers(nn.ReLU6(inplace=True)),
        layers(nn.SiLU(), bias=False, stride=2, padding=1),
        layers(nn.Hardswish(), dilation=2),
        layers(nn.GELU()),
        timm.create_model("mobilenetv2_035", num_classes=0, global_pool=""),
        timm.create_model("resnet10t", num_classes=0, global_pool=""),
    ],
    ids=["none", "relu", "relu6", "silu", "hardswish", "gelu", "mobilenetv2", "resnet"],
)
def test_features_are_the_same_and_the_network_is_left_alone(net: nn.Module) -> None:
    own = backbone(net)
    before, given = copy.deepcopy(own.state_dict()), images()
    expected = own(given)
    found = folded(own, 32)
    assert found is not own
    assert parts(found, nn.BatchNorm2d) == 0
    largest = expected.maps.abs().max()
    torch.testing.assert_close(found(given).maps, expected.maps, atol=1e-5 * float(largest), rtol=1e-5)
    assert torch.equal(own(given).maps, expected.maps)
    assert all(torch.equal(own.state_dict()[name], value) for name, value in before.items())
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in own.modules())


def test_it_is_folded_in_inference_mode_too() -> None:
    own = backbone(layers(nn.ReLU()))
    with torch.inference_mode():
        found = folded(own, 32)
        assert parts(found, nn.BatchNorm2d) == 0
        torch.testing.assert_close(found(images()).maps, own(images()).maps)


@torch.no_grad()
def test_an_activation_is_applied_within_the_convolution() -> None:
    if not hasattr(torch.ops.mkldnn, "_convolution_pointwise"):
        pytest.skip("this build of torch has no oneDNN")
    assert parts(folded(backbone(layers(nn.ReLU())), 32), _ConvolutionAndActivation) == 1
    assert parts(folded(backbone(layers(nn.GELU())), 32), _ConvolutionAndActivation) == 0
    found = folded(backbone(Residual()), 32)
    assert (parts(found, _ConvolutionAndActivation), parts(found, nn.BatchNorm2d)) == (0, 0)


@torch.no_grad()
def test_what_cannot_be_folded_is_run_as_it_is() -> None:
    shared = nn.Conv2d(3, 3, 1)
    for net in (
        nn.Conv2d(3, 4, 3),  # nothing to fold
        Twice(),
        nn.Sequential(shared, nn.BatchNorm2d(3), shared, nn.BatchNorm2d(3)),
        layers().double(),
        layers(padding=1, padding_mode="reflect"),
    ):
        own = backbone(net)
        assert folded(own, 32) is own or parts(folded(own, 32), nn.BatchNorm2d) == parts(own, nn.BatchNorm2d), net
    observed = backbone(layers())
    observed.net[0].register_forward_hook(lambda *_: None)
    assert folded(observed, 32) is observed


def test_many_images_and_few_give_the_same_regions_with_the_weights_of_the_moment() -> None:
    config = EmbedderConfig(backbone="layers", preprocess=Preprocess(size=32, resize=32), dim=4)
    embedder = Embedder(backbone(layers(nn.ReLU())), config=config)
    given = list(images(WORTH_FOLDING, 32).clamp(0, 1))
    few = Regions.cat([embedder.embed(given[:100]), embedder.embed(given[100:])])
    torch.testing.assert_close(embedder.embed(given).dense, few.dense, atol=1e-5, rtol=0)
    with torch.no_grad():
        embedder.backbone.net[1].bias.data.add_(torch.arange(8.0))
    changed = embedder.embed(given).dense
    assert (changed - few.dense).abs().max() > 1e-3
    torch.testing.assert_close(changed[:100], embedder.embed(given[:100]).dense, atol=1e-5, rtol=0)


def test_the_residual_network_gives_the_same() -> None:
    own = backbone(Residual())
    with inference(own, torch.device("cpu"), None):
        torch.testing.assert_close(folded(own, 32)(images()).maps, own(images()).maps, atol=1e-5, rtol=1e-5)
