"""The control of every measure: the same network with random weights, whose explanations should be worthless."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn

from diml.models import Embedder

#: Standard deviation of weights outside layers that can initialise themselves (tokens of transformers).
_TOKEN_STD = 0.02


def randomised(embedder: Embedder, seed: int) -> Embedder:
    """A copy of an embedder with new random weights in every layer, and batch norm as initialised.

    Args:
        embedder: stays unchanged.
        seed: of the weights; the state of the global generator is kept.

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
                    nn.init.normal_(weight, std=_TOKEN_STD)
            fitted = getattr(layer, "weight", None)  # of head "whiten": a buffer
            if isinstance(fitted, torch.Tensor) and not isinstance(fitted, nn.Parameter):
                nn.init.normal_(fitted, std=fitted.shape[-1] ** -0.5)
    return made.eval()
