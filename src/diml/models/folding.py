"""A network for many images on the processor: normalisation and activation as parts of the convolution before them.

In evaluation mode a batch normalisation is a scale and an offset per channel, which the weights of the convolution
before it can hold. An activation can be applied while the output of a convolution is still in the cache. Both save
passes over memory, which are what networks of small convolutions (MobileNet, EfficientNet) spend their time on.

Which module follows which is observed in a run on one image, as networks do not list their modules in the order of
their use. What was observed is not taken for granted: the result has to give the same features on other images.

Legend: B images.
"""

from __future__ import annotations

import copy
import sys
from collections import Counter
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from diml.models.backbones import Backbone, Features

#: From how many images on it saves more time than the runs on single images take.
WORTH_FOLDING: Final = 128

#: How far features may be from those of the network itself, relative to the largest: rounding in float32.
_TOLERANCE: Final = 1e-4

#: Activations that oneDNN applies within a convolution: their names there, and their numbers.
_ACTIVATIONS: Final[dict[type[nn.Module], tuple[str, tuple[float, ...]]]] = {
    nn.ReLU: ("relu", ()),
    nn.ReLU6: ("hardtanh", (0.0, 6.0)),
    nn.SiLU: ("swish", ()),
    nn.Hardswish: ("hardswish", ()),
}


@torch.inference_mode(False)  # whose tensors do not count changes in place, which `_successors` reads
@torch.no_grad()
def folded(backbone: Backbone, size: int) -> Backbone:
    """Return a backbone with normalisations and activations folded into the convolutions before them.

    Args:
        backbone: in evaluation mode. It is not changed; other weights are shared.
        size: side of its images, pixels.

    Returns:
        A copy whose features differ by rounding, at most 1e-4 of the largest; or the backbone itself, where that cannot
        be: it is not on the processor in float32, has no normalisation after a convolution, or is observed by hooks.
    """
    parts, weights = list(backbone.modules()), [*backbone.parameters(), *backbone.buffers()]
    kinds = {(weight.device.type, weight.dtype) for weight in weights if weight.is_floating_point()}
    if kinds != {("cpu", torch.float32)} or not any(map(_normalizes, parts)):
        return backbone
    if any(part._forward_hooks or part._forward_pre_hooks for part in parts):
        return backbone
    images = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    images = images.contiguous(memory_format=torch.channels_last)
    try:
        copied: Backbone = copy.deepcopy(backbone, {id(weight): weight for weight in weights})
        _fold(copied, _successors(copied, images[:1]))
        found = copied(images)
    except (AttributeError, TypeError, RuntimeError, NotImplementedError):
        return backbone  # a network that cannot be copied, or needs the very modules that were replaced
    return copied if _alike(found, backbone(images)) else backbone


def _successors(backbone: Backbone, images: Tensor) -> dict[nn.Module, nn.Module]:
    """Run a backbone: which convolution, normalisation or activation takes the output of which, as it was given."""
    outputs: dict[int, tuple[nn.Module, Tensor, int]] = {}  # with the tensor, so that no other gets the same id
    pairs: list[tuple[nn.Module, nn.Module]] = []

    def before(module: nn.Module, given: tuple[Any, ...]) -> None:
        if given and id(given[0]) in outputs:
            maker, tensor, changes = outputs[id(given[0])]
            if tensor._version == changes:  # not added to in place, for instance
                pairs.append((maker, module))

    def after(module: nn.Module, given: tuple[Any, ...], output: Any) -> None:
        if isinstance(output, Tensor):
            outputs[id(output)] = (module, output, output._version)

    parts = [part for part in backbone.modules() if _convolves(part) or _normalizes(part) or _activates(part)]
    hooks = [part.register_forward_pre_hook(before) for part in parts]
    hooks += [part.register_forward_hook(after) for part in parts]
    try:
        backbone(images)
    finally:
        for hook in hooks:
            hook.remove()
    makers, takers = Counter(maker for maker, _ in pairs), Counter(taker for _, taker in pairs)
    return {maker: taker for maker, taker in pairs if makers[maker] == takers[taker] == 1}


def _fold(backbone: Backbone, successors: dict[nn.Module, nn.Module]) -> None:
    """Replace the modules of a backbone whose successors are known, in place."""
    replaced: dict[nn.Module, nn.Module] = {}
    for conv, norm in successors.items():
        if not (isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d)):
            continue
        found = (norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias)
        conv.weight, conv.bias = fuse_conv_bn_weights(conv.weight, conv.bias, *found)  # type: ignore[arg-type]
        conv.weight.data = conv.weight.data.contiguous(memory_format=torch.channels_last)
        own = getattr(norm, "act", None)
        activation = successors.get(norm) if own is None else own
        if (
            isinstance(activation, nn.Module)
            and _activates(activation)
            and hasattr(torch.ops.mkldnn, "_convolution_pointwise")
        ):
            replaced |= {conv: _ConvolutionAndActivation(conv, activation), norm: nn.Identity()}
            if own is None:
                replaced[activation] = nn.Identity()
        else:
            replaced[norm] = nn.Identity() if own is None else own
    for parent in list(backbone.modules()):
        for name, child in list(parent.named_children()):
            if child in replaced:
                setattr(parent, name, replaced[child])


class _ConvolutionAndActivation(nn.Module):
    """A convolution whose output is activated before it is written to memory, without gradient."""

    def __init__(self, conv: nn.Conv2d, activation: nn.Module) -> None:
        super().__init__()
        self.conv = conv
        self.name, self.numbers = _ACTIVATIONS[type(activation)]

    def forward(self, images: Tensor) -> Tensor:
        """Return the activated output (B, C, H, W)."""
        conv, numbers = self.conv, list(self.numbers)
        steps = (conv.padding, conv.stride, conv.dilation, conv.groups)
        output: Tensor = torch.ops.mkldnn._convolution_pointwise(
            images, conv.weight, conv.bias, *steps, self.name, numbers, ""
        )
        return output


def _convolves(part: nn.Module) -> bool:
    return type(part) is nn.Conv2d and part.padding_mode == "zeros" and not isinstance(part.padding, str)


def _normalizes(part: nn.Module) -> bool:
    with_activation = getattr(sys.modules.get("timm.layers"), "BatchNormAct2d", None)
    return type(part) in (nn.BatchNorm2d, with_activation) and part.running_mean is not None


def _activates(part: nn.Module) -> bool:
    return type(part) in _ACTIVATIONS


def _alike(found: Features, expected: Features) -> bool:
    pairs = [(found.maps, expected.maps), (found.pooled, expected.pooled)]
    if expected.masses is not None and found.masses is not None:
        pairs.append((found.masses, expected.masses))
    return all(
        bool((one - other).abs().max() <= _TOLERANCE * other.abs().max()) and one.shape == other.shape
        for one, other in pairs
    )
