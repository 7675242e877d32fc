"""A tiny embedder, saved, as indices remember theirs by name; a folder of small images; a collection."""

from __future__ import annotations

import uuid

import pytest
import torch
from PIL import Image

from diml.models import load_embedder
from tiny_model import save_tiny_model


@pytest.fixture(scope="session")
def model(tmp_path_factory):
    """Folder of a saved embedder with some thousand weights."""
    return save_tiny_model(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="session")
def embedder(model):
    return load_embedder(model)


def draw(seed: int, side: int = 80) -> Image.Image:
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randint(0, 256, (6, 6, 3), generator=generator, dtype=torch.uint8)
    return Image.fromarray(noise.numpy()).resize((side, side))


@pytest.fixture
def photos(tmp_path):
    """Twelve images in three folders."""
    folder = tmp_path / "photos"
    for number in range(12):
        label = folder / f"class {number % 3}"
        label.mkdir(parents=True, exist_ok=True)
        draw(number).save(label / f"{number}.png")
    return folder


@pytest.fixture
def collection(milvus_server):
    """Place of a collection that does not exist yet, and is dropped afterwards."""
    from diml.search.backends.milvus import Connection, read_place

    uri = f"{milvus_server}/test_{uuid.uuid4().hex}"
    yield uri
    place = read_place(uri)
    connection = Connection(place)
    connection.call("drop_collection", place.collection)
    connection.close()
