"""Tiny networks and small images."""

from __future__ import annotations

import socket
import urllib.request

import pytest
import timm
import torch
from PIL import Image

from diml.data.transforms import Preprocess
from diml.models import Embedder, load_embedder

SMALL = Preprocess(size=64, resize=72)


@pytest.fixture
def tiny():
    """Build an embedder on a network of some thousand weights, the same for the same seed."""

    def build(name: str = "test_resnet", *, seed: int = 0, **options) -> Embedder:
        if isinstance(name, str) and name.startswith("test_") and not timm.is_model(name):
            pytest.skip(f"timm {timm.__version__} has no {name}")
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return load_embedder(name, **({"pretrained": False, "preprocess": SMALL} | options))

    return build


@pytest.fixture
def images():
    """Seven noisy images of different sizes and colours."""
    generator = torch.Generator().manual_seed(7)
    made = []
    for index in range(7):
        noise = torch.randint(0, 256, (10 + index, 12, 3), generator=generator, dtype=torch.uint8)
        made.append(Image.fromarray(noise.numpy()).resize((96, 80 + 8 * index)))
    return made


@pytest.fixture
def paths(images, tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    for index, image in enumerate(images):
        image.save(folder / f"{index}.png")
    return sorted(folder.iterdir())


@pytest.fixture
def no_network(monkeypatch, tmp_path):
    """No host is known, no proxy is set, nothing is cached."""

    def refuse(*args, **kwargs):
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.setattr(urllib.request, "getproxies", dict)
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *args, **kwargs: None)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))


@pytest.fixture(autouse=True)
def _of_this_timm(request):
    """Skip a test whose parameter names one of timm's networks for tests that the installed version does not have."""
    for value in getattr(getattr(request.node, "callspec", None), "params", {}).values():
        if isinstance(value, str) and value.startswith("test_") and not timm.is_model(value):
            pytest.skip(f"timm {timm.__version__} has no {value}")
