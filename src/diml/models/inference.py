"""How a network is run over images: in which mode and precision, and on what list."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from diml.data.images import ImageLike
from diml.models.config import Precision

_TYPES: Final = {"float32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}


def autocast_type(precision: Precision, device: torch.device) -> torch.dtype | None:
    """The type to autocast to on a device; None for float32 throughout.

    "auto" prefers float16 to bfloat16 on accelerators: with MobileNetV2 on photos, cosines between images moved by at
    most 0.002 in float16 and by 0.027 in bfloat16, which reorders neighbours.
    """
    if precision != "auto":
        return _TYPES[precision]
    return None if device.type == "cpu" else torch.float16


@contextlib.contextmanager
def inference(module: nn.Module, device: torch.device, low: torch.dtype | None) -> Iterator[None]:
    """Evaluation mode, no gradient, autocast; afterwards each part is as it was (batch norm may be frozen alone)."""
    training = {part: part.training for part in module.modules()}
    module.eval()
    try:
        with torch.no_grad(), torch.autocast(device.type, dtype=low, enabled=low is not None):
            yield
    finally:
        for part, flag in training.items():
            part.training = flag


def as_list(images: Iterable[ImageLike] | ImageLike) -> Sequence[ImageLike]:
    """A list of images from one or many; ValueError when there are none."""
    given: Any = images
    lone = isinstance(given, str | bytes | os.PathLike | Image.Image)
    if lone or (isinstance(given, Tensor | np.ndarray) and given.ndim < 4):
        return [given]
    listed: Sequence[ImageLike] = given if isinstance(given, list | tuple) else list(given)
    if not listed:
        raise ValueError("images: need at least one image, got an empty list")
    return listed
