"""An index of a vision transformer keeps the masses of its regions, and searches with weights='rollout' use them."""

from __future__ import annotations

import dataclasses

import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from tests.unit.search.contract import CONFIG

from diml.data.transforms import Preprocess
from diml.matching import Matcher, Regions
from diml.models import load_embedder
from diml.search import Searcher, build_index
from diml.search.index import open_store
from diml.search.labelled import labelled_images
from diml.search.store import IndexConfig, Rows, decode_regions, encode_regions

SMALL = Preprocess(size=64, resize=64)


def made(count: int = 5) -> Regions:
    generator = torch.Generator().manual_seed(0)
    dense, pooled = torch.randn(count, 4, 8, generator=generator), torch.randn(count, 8, generator=generator)
    return Regions.normalized(dense, pooled, masses=torch.rand(count, 4, generator=generator))


@pytest.mark.parametrize("storage", ["float16", "int8"])
def test_masses_are_stored_exactly(storage):
    config = dataclasses.replace(CONFIG, storage=storage, masses=True)
    assert IndexConfig.from_json(config.to_json()) == config
    regions = made()
    coded = encode_regions(regions, config)
    assert coded.shape == (5, config.row_bytes)
    rows = Rows(tuple("abcde"), regions.pooled.numpy(), coded, ({},) * 5)
    decoded = decode_regions(rows, config)
    assert torch.equal(decoded.masses, regions.masses)
    plain = dataclasses.replace(config, masses=False)
    other = decode_regions(dataclasses.replace(rows, coded=encode_regions(regions, plain)), plain)
    vectors = "dense" if storage == "float16" else "codes"
    assert torch.equal(getattr(other, vectors), getattr(decoded, vectors))
    assert other.masses is None
    assert other.massless == "the index was built without masses"
    with pytest.raises(ValueError, match="an image of the index has none"):
        encode_regions(Regions(regions.dense, regions.pooled), config)


@pytest.fixture
def photos(tmp_path):
    generator = torch.Generator().manual_seed(3)
    for name in "abcdef":
        folder = tmp_path / "photos" / f"class {'123'['abcdef'.index(name) // 2]}"
        folder.mkdir(parents=True, exist_ok=True)
        noise = torch.randint(0, 256, (8, 8, 3), generator=generator, dtype=torch.uint8)
        Image.fromarray(noise.numpy()).resize((64, 64)).save(folder / f"{name}.png")
    return tmp_path / "photos"


def transformer(tmp_path):
    """The options to load a small transformer whose attention is not uniform, from a file of weights."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = timm.create_model("test_vit", img_size=64)
        for parameter in net.parameters():
            parameter.data.add_(torch.randn(parameter.shape) * 0.2)
    save_file(net.state_dict(), tmp_path / "weights.safetensors")
    return {"weights_file": tmp_path / "weights.safetensors", "preprocess": SMALL, "factory_options": {"img_size": 64}}


@pytest.mark.parametrize("storage", ["float16", "int8"])
def test_a_search_ranks_as_the_matcher_does(storage, photos, tmp_path):
    options = transformer(tmp_path)
    embedder = load_embedder("test_vit", rollout_blocks=2, **options)
    matcher = Matcher(weights="rollout", structural_weight=4, epsilon=0.2)
    place = {"model": "test_vit", "weights_file": options["weights_file"]}
    build_index(photos, tmp_path / "index", embedder, matcher=matcher, storage=storage, **place)
    files = sorted(photos.rglob("*.png"))
    regions = embedder.embed(files)
    with Searcher.open(tmp_path / "index") as searcher:  # loads the embedder again, from the file of weights
        assert searcher.embedder.config.rollout_blocks == 2
        assert searcher.store.config.masses
        found = searcher.search(files[2], k=6)
    expected = matcher.score(regions[2], regions, torch.arange(6).unsqueeze(0))[0]
    by_name = {str(hit.metadata["path"]).rpartition("/")[2]: hit.score for hit in found.hits}
    scores = torch.tensor([by_name[file.name] for file in files])
    torch.testing.assert_close(scores, expected, atol=0.02 if storage == "int8" else 2e-3, rtol=0)
    match = found.match
    torch.testing.assert_close(match.weight_q[0], regions.masses[2])


def test_labelled_images_keep_their_masses(photos, tmp_path):
    options = transformer(tmp_path)
    embedder = load_embedder("test_vit", **options)
    for storage in ("float16", "int8"):
        uri = tmp_path / storage
        build_index(photos, uri, embedder, storage=storage, model="test_vit", weights_file=options["weights_file"])
        store = open_store(uri)
        assert store.config.masses
        _, regions = labelled_images(store, "source", name="photos")
        expected = embedder.embed(sorted(photos.rglob("*.png"))).masses
        for row in regions.masses:  # in the order of names, which are hashes
            assert (row - expected).abs().amax(dim=1).min() < 1e-6
        store.close()


def test_an_index_of_another_network_keeps_none_and_says_so(photos, tmp_path):
    embedder = load_embedder("test_resnet", pretrained=False, preprocess=SMALL)
    embedder.save(tmp_path / "saved")
    with pytest.raises(ValueError, match=r"'rollout' needs the masses.*test_resnet gives none: .*no plain vision"):
        build_index(
            photos, tmp_path / "index", embedder, model=str(tmp_path / "saved"), matcher=Matcher(weights="rollout")
        )
    build_index(photos, tmp_path / "index", embedder, model=str(tmp_path / "saved"))
    with Searcher.open(tmp_path / "index") as searcher:
        assert not searcher.store.config.masses
        with pytest.raises(
            ValueError, match="'rollout' needs the masses of the regions, which this index was built without"
        ):
            searcher.search(next(photos.rglob("*.png")), matcher=Matcher(weights="rollout"))
