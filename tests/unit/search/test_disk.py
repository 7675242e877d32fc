"""What an index takes on disk is what the documents say: sizes of real folders against the numbers in docs/."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch

from diml.matching import Regions
from diml.matching.codebooks import CENTROIDS, Codebooks
from diml.search.index import create_store
from diml.search.store import IndexConfig, Rows, codebooks_text, encode_regions

DOCS = Path(__file__).parents[3] / "docs"
IMAGES, REGIONS, DIM = 2_000, 16, 128
#: Databases compress and fill blocks as they like.
TOLERANCE = 0.1


def blocks(folder: Path) -> int:
    """Bytes of a folder as `du` counts them."""
    return 512 * sum(file.stat().st_blocks for file in (folder, *folder.rglob("*")))


def drawn_codebooks(generator: torch.Generator) -> str:
    """Codebooks that were not fitted, as quickly as that; codes of generated regions take all values under them."""
    centroids = torch.randn(32, CENTROIDS, 4, generator=generator).mul_(40).clamp_(-127, 127).to(torch.int8)
    centroids[:, 0] = 0
    return codebooks_text(Codebooks(centroids, 1 / 500, DIM))


def filled(place: Path, storage: str) -> Path:
    """An index of generated vectors with the metadata of `diml index build`, written in batches as it writes them."""
    generator = torch.Generator().manual_seed(0)
    columns = {"source": "text", "path": "text", "content": "text", "label": "text"}
    config = IndexConfig(
        dim=DIM,
        num_regions=0 if storage == "none" else REGIONS,
        grid=(4, 4),
        storage=storage,
        codebooks=drawn_codebooks(generator) if storage == "1kb" else "",
        columns=columns,
    )
    store = create_store(place, config)
    for start in range(0, IMAGES, 500):
        dense = torch.randn(500, REGIONS, DIM, generator=generator)
        regions = Regions.normalized(dense, dense.mean(1), (4, 4))
        names = [f"{number:064x}" for number in np.random.default_rng(start).integers(0, 2**62, 500)]
        metadata = tuple(
            {"source": "/shop/photos", "path": f"Packages/Milk/{name[-20:]}.jpg", "content": name, "label": "Milk"}
            for name in names
        )
        store.add(
            Rows(tuple(name[-32:] for name in names), regions.pooled.numpy(), encode_regions(regions, config), metadata)
        )
    store.optimize(new=True)
    store.close()
    return place


@pytest.mark.parametrize("storage", ["float16", "int8", "1kb", "none"])
@pytest.mark.parametrize("kind", ["LanceDB", "Milvus Lite"])
def test_the_documents_say_what_an_image_takes(tmp_path, kind, storage):
    pytest.importorskip("lancedb" if kind == "LanceDB" else "milvus_lite")
    place = filled(tmp_path / ("shop.index" if kind == "LanceDB" else "shop.db"), storage)
    found = blocks(place) / IMAGES
    text = (DOCS / "scale.md").read_text(encoding="utf-8")
    row = re.search(rf"^\| `{storage}` \|.*$", text, re.MULTILINE)
    assert row is not None, "docs/scale.md: need a row for each storage"
    said = [int(cell.replace(",", "")) for cell in re.findall(r"\*\*([\d,]+)\*\*", row[0])]
    expected = said[("LanceDB", "Milvus Lite").index(kind)]
    assert abs(found - expected) <= TOLERANCE * expected, (found, expected)
