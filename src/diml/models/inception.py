"""The two Inception networks of the authors' base code, with the same normalised RGB input as every other backbone.

"googlenet" comes from torchvision, "bninception" from the optional package pretrainedmodels.
"""

from __future__ import annotations

import importlib.util
from collections import OrderedDict
from pathlib import Path
from types import ModuleType
from typing import Any, Final, Literal

import torch
from torch import Tensor, nn

from diml.data.transforms import IMAGENET_MEAN, IMAGENET_STD
from diml.extras import require
from diml.models.backbones import Backbone, Features
from diml.models.pretrained import fetch_state, load_exactly
from diml.models.weights_file import read_weights_file

Inception = Literal["googlenet", "bninception"]

_CHANNELS: Final = 1024
#: Children of torchvision's GoogLeNet after the last map.
_BEHIND_MAP: Final = ("aux1", "aux2", "avgpool", "dropout", "fc")


class InputAdapter(nn.Module):
    """From RGB normalised with ImageNet's mean and standard deviation to the input that a network was trained on.

    Args:
        mean, std: of the network's three channels in its own order, for pixel values in [0, 1].
        reverse: the network takes B, G, R.
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, mean: tuple[float, ...], std: tuple[float, ...], *, reverse: bool = False) -> None:
        super().__init__()
        self.order = [2, 1, 0] if reverse else [0, 1, 2]
        from_mean, from_std = (torch.tensor(values)[self.order] for values in (IMAGENET_MEAN, IMAGENET_STD))
        to_mean, to_std = torch.tensor(mean), torch.tensor(std)
        self.register_buffer("scale", (from_std / to_std)[:, None, None], persistent=False)
        self.register_buffer("shift", ((from_mean - to_mean) / to_std)[:, None, None], persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Convert (B, 3, H, W)."""
        return images[:, self.order] * self.scale + self.shift


class InceptionBackbone(Backbone):
    """An Inception network up to its last map; pooled = mean of the cells."""

    def __init__(self, net: nn.Module, adapter: InputAdapter) -> None:
        super().__init__(net, _CHANNELS)
        self.adapter = adapter

    def forward(self, images: Tensor) -> Features:
        """Return the features of normalised images (B, 3, H, W)."""
        run: Any = getattr(self.net, "features", self.net)
        maps = run(self.adapter(images))
        return Features(maps, maps.mean(dim=(2, 3)))


def build_inception(name: Inception, *, pretrained: bool, weights_file: Path | None = None) -> InceptionBackbone:
    """Return "googlenet" or "bninception", with ImageNet weights, those of a file, or random ones.

    Raises:
        MissingExtraError: the optional package of "bninception" is missing.
        WeightsError: the weights are neither cached nor reachable.
    """
    build = _googlenet if name == "googlenet" else _bninception
    return build(pretrained, weights_file)


def _googlenet(pretrained: bool, weights_file: Path | None) -> InceptionBackbone:
    from torchvision.models import GoogLeNet, GoogLeNet_Weights

    whole = GoogLeNet(init_weights=not pretrained, aux_logits=False)
    children = ((name, child) for name, child in whole.named_children() if name not in _BEHIND_MAP)
    net = nn.Sequential(OrderedDict(children))
    if pretrained or weights_file:
        state = _state("googlenet", GoogLeNet_Weights.IMAGENET1K_V1.url, weights_file)
        kept = {name: value for name, value in state.items() if name.split(".")[0] not in _BEHIND_MAP}
        load_exactly(net, kept, "googlenet")
    return InceptionBackbone(net, InputAdapter((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)))


def _bninception(pretrained: bool, weights_file: Path | None) -> InceptionBackbone:
    module = _bninception_module()
    net: nn.Module = module.BNInception()
    del net.last_linear, net.global_pool
    settings = module.pretrained_settings["bninception"]["imagenet"]
    if pretrained or weights_file:
        state = _state("bninception", settings["url"], weights_file)
        load_exactly(net, {name: v for name, v in state.items() if not name.startswith("last_linear.")}, "bninception")
    high = float(settings["input_range"][1])
    mean, std = (tuple(value / high for value in settings[key]) for key in ("mean", "std"))
    return InceptionBackbone(net, InputAdapter(mean, std, reverse=settings["input_space"] == "BGR"))


def _state(name: str, url: str, weights_file: Path | None) -> dict[str, Any]:
    """The weights of a file, else those at an address."""
    return fetch_state(name, url) if weights_file is None else read_weights_file(weights_file)


def _bninception_module() -> ModuleType:
    """The one file of pretrainedmodels that is needed.

    Importing the whole package imports all its networks, and with them packages that it does not declare.
    """
    require("bninception", "backbone 'bninception'")
    package = importlib.util.find_spec("pretrainedmodels")
    assert package is not None
    assert package.origin is not None
    file = Path(package.origin).parent / "models" / "bninception.py"
    spec = importlib.util.spec_from_file_location("diml.models._bninception", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
