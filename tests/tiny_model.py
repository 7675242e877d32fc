"""A tiny embedder in a folder, for what loads embedders by path: indexes, commands."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from diml.data import Preprocess
from diml.models import load_embedder


def save_tiny_model(folder: Path, **options: Any) -> Path:
    """Save an embedder with some thousand weights, the same every time, and return the folder.

    `options` are those of `load_embedder`, such as `matcher`.
    """
    with torch.random.fork_rng():
        torch.manual_seed(0)
        size = Preprocess(size=64, resize=72)
        load_embedder("test_resnet", pretrained=False, preprocess=size, **options).save(folder)
    return folder
