"""The same network with its weights drawn anew: what an explanation says of it should be worth nothing."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn

from diml.models import Embedder

#: Standard deviation of weights that belong to no layer with a way of its own to draw them (tokens of transformers).
_LOOSE = 0.02


def randomised(embedder: Embedder, seed: int) -> Embedder:
    """A copy of an embedder with fresh random weights in every layer, and batch norm as before any training.

    Args:
        embedder: is left as it is.
        seed: of the weights; the global generator is not moved.

    Source: Adebayo et al., "Sanity Checks for Saliency Maps", NeurIPS 2018 (all layers at once).
    """
    made = copy.deepcopy(embedder)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for layer in made.modules():
            reset: Any = getattr(layer, "reset_parameters", None)
            if callable(reset):
                reset()
            else:
                for weight in layer.parameters(recurse=False):
                    nn.init.normal_(weight, std=_LOOSE)
            fitted = getattr(layer, "weight", None)  # of head "whiten": a buffer
            if isinstance(fitted, torch.Tensor) and not isinstance(fitted, nn.Parameter):
                nn.init.normal_(fitted, std=fitted.shape[-1] ** -0.5)
    return made.eval()
