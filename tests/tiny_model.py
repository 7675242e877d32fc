"""A tiny embedder in a folder, as indices remember theirs by name."""

from __future__ import annotations

from pathlib import Path

import torch

from diml.data import Preprocess
from diml.models import load_embedder


def save_tiny_model(folder: Path) -> Path:
    """Save an embedder of some thousand weights, the same each time; returns the folder."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        load_embedder("test_resnet", pretrained=False, preprocess=Preprocess(size=64, resize=72)).save(folder)
    return folder
