"""The authors' checkpoints: their `best.pth`, read without executing anything in it.

Their file is a dictionary with the network's weights under `model` (or `state_dict`): a torchvision-style network with
prefix `model.`, its classifier replaced by the embedding `last_linear`, a 1 x 1 convolution in the `_diml` networks.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from diml.models.config import EmbedderConfig
from diml.models.embedder import Embedder
from diml.models.heads import LinearHead
from diml.models.pretrained import load_exactly
from diml.models.weights_file import read_state
from diml.models.zoo import build_backbone, default_preprocess

_CONTAINERS: Final = ("model", "state_dict")
_HEAD: Final = re.compile(r"(?:model\.)?last_linear\.(weight|bias)")
#: Their network registers its four stages a second time, in a list of this name.
_SECOND_COPY: Final = re.compile(r"layer_blocks\.(\d)\.(.+)")


def read_released(path: Path, architecture: str, **changes: Any) -> Embedder:
    """Return the embedder in a checkpoint of the authors.

    Head "linear" with D as found; pooled "grid_mean" for the `_diml` networks, "backbone" for the others.

    Args:
        path: their file.
        architecture: its backbone: "resnet50", or "bninception" or "googlenet" of their base code.
        changes: fields of `EmbedderConfig` that differ from the default.

    Raises:
        ValueError: the file is hostile, damaged or of another origin, or its weights do not fit the architecture.
    """
    backbone = build_backbone(architecture, pretrained=False)
    weights = _weights(path)
    head, pooled = _take_head(weights, backbone.channels, path)
    _drop_second_copy(weights, path)
    prefix = "model."
    stray = [name for name in weights if not name.startswith(prefix)]
    if stray:
        raise ValueError(f"{path}: unexpected {', '.join(stray[:3])}; not a checkpoint of the authors' code")
    load_exactly(backbone.net, {name.removeprefix(prefix): value for name, value in weights.items()}, str(path))
    settings: dict[str, Any] = {"preprocess": default_preprocess(architecture), "pooled": pooled} | changes
    config = EmbedderConfig(backbone=architecture, head="linear", dim=head.dim, **settings)
    return Embedder(backbone, head, config).eval()


def _weights(path: Path) -> dict[str, Tensor]:
    """The network's weights by name, without the prefix `module.` of DataParallel."""
    # Their base code stores its options beside the weights, as a namespace that is harmless to rebuild.
    with torch.serialization.safe_globals([argparse.Namespace]):
        checkpoint = read_state(path)
    found = next((checkpoint[key] for key in _CONTAINERS if isinstance(checkpoint.get(key), dict)), None)
    if found is None:
        keys = ", ".join(map(str, list(checkpoint)[:5])) or "nothing"
        raise ValueError(
            f"{path}: need weights under 'model' or 'state_dict', got {keys}; not a checkpoint of the authors"
        )
    other = [str(name) for name, value in found.items() if not (isinstance(name, str) and isinstance(value, Tensor))]
    if other:
        raise ValueError(f"{path}: need named tensors, got something else as {', '.join(other[:3])}")
    return {re.sub(r"^(module\.)+", "", name): value for name, value in found.items()}


def _take_head(weights: dict[str, Tensor], channels: int, path: Path) -> tuple[LinearHead, str]:
    """Remove the embedding layer from `weights`; return it, and how the pooled vector is computed."""
    parts: dict[str, Tensor] = {}
    for name in list(weights):
        match = _HEAD.fullmatch(name)
        if match:
            parts[match[1]] = weights.pop(name)
    if parts.keys() != {"weight", "bias"}:
        got = ", ".join(sorted(parts)) or "none"
        raise ValueError(f"{path}: need the embedding layer last_linear.weight and .bias, got {got}")
    weight, bias = parts["weight"], parts["bias"]
    convolution = weight.ndim == 4 and weight.shape[2:] == (1, 1)
    if convolution:
        weight = weight.flatten(1)
    if weight.ndim != 2 or weight.shape[1] != channels or bias.shape != weight.shape[:1]:
        raise ValueError(
            f"{path}: need last_linear.weight (D, {channels}) or (D, {channels}, 1, 1) and .bias (D), got "
            f"{tuple(parts['weight'].shape)} and {tuple(bias.shape)}; is it another architecture?"
        )
    head = LinearHead(channels, len(weight))
    load_exactly(head, {"weight": weight, "bias": bias}, str(path))
    return head, "grid_mean" if convolution else "backbone"


def _drop_second_copy(weights: dict[str, Tensor], path: Path) -> None:
    """Remove `layer_blocks.0...`, after checking that it equals `model.layer1...`: both name the same layer."""
    for name in list(weights):
        match = _SECOND_COPY.fullmatch(name.removeprefix("model."))
        if not match:
            continue
        original = f"model.layer{int(match[1]) + 1}.{match[2]}"
        copy = weights.pop(name)
        if original not in weights or not torch.equal(weights[original], copy):
            raise ValueError(
                f"{path}: {name} differs from {original}, of which it should be a copy; the file is damaged"
            )
