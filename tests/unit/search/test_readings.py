"""An index built with a learned scorer keeps what that reads off images, so that a search maps the query only."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from tests.unit.search.contract import CONFIG

from diml.data.transforms import Preprocess
from diml.matching import LearnedMatcher, Matcher, Regions
from diml.matching.learned import VoteScorer
from diml.matching.readings import kept_readings
from diml.models import load_embedder
from diml.search import Searcher, build_index
from diml.search.index import open_store
from diml.search.store import IndexConfig, Rows, decode_regions, encode_regions


def some_matcher(dim: int = 8) -> LearnedMatcher:
    generator = torch.Generator().manual_seed(0)
    scorer = VoteScorer(dim)
    with torch.no_grad():
        for name, part in scorer.named_parameters():
            if not name.startswith("log"):
                part.add_(0.2 * torch.randn(part.shape, generator=generator))
    return LearnedMatcher.of(scorer)


def made(count: int = 5, seed: int = 0) -> Regions:
    generator = torch.Generator().manual_seed(seed)
    dense = torch.randn(count, 4, 8, generator=generator)
    return Regions.normalized(dense, dense.mean(dim=1), masses=torch.rand(count, 4, generator=generator))


def rows_of(regions: Regions, coded) -> Rows:
    return Rows(tuple("abcdefgh"[: len(regions)]), regions.pooled.numpy(), coded, ({},) * len(regions))


@pytest.mark.parametrize("masses", [False, True])
@pytest.mark.parametrize("storage", ["float16", "int8"])
def test_readings_are_those_of_the_regions_as_they_are_stored(storage, masses):
    matcher, regions, query = some_matcher(), made(), made(1, seed=1)
    plain = dataclasses.replace(CONFIG, storage=storage, masses=masses)
    config = dataclasses.replace(plain, scorer=matcher.scorer_id)
    assert IndexConfig.from_json(config.to_json()) == config
    coded = encode_regions(regions, config, matcher)
    assert coded.shape == (5, config.row_bytes)
    assert config.row_bytes == plain.row_bytes + 4 * 9
    found, other = (
        decode_regions(rows_of(regions, part), at) for part, at in ((coded, config), (coded[:, :-36], plain))
    )
    assert kept_readings(found, matcher.scorer_id).known.all()
    assert (found.masses is None) != masses
    order = torch.arange(5).unsqueeze(0)
    scores = matcher.score(query, other, order)
    torch.testing.assert_close(matcher.score(query, found, order), scores, rtol=0, atol=1e-6)
    for absent in (None, Matcher(), some_matcher(9), dataclasses.replace(matcher, scorer=None)):
        unread = decode_regions(rows_of(regions, encode_regions(regions, config, absent)), config)
        assert not kept_readings(unread, matcher.scorer_id).known.any()
        torch.testing.assert_close(matcher.score(query, unread, order), scores, rtol=0, atol=1e-6)
    assert dataclasses.replace(config, storage="none", num_regions=0).row_bytes == 0
    with pytest.raises(ValueError, match="scorer: need a str"):
        dataclasses.replace(config, scorer=None)


@pytest.mark.parametrize("storage", ["float16", "int8"])
def test_an_index_of_a_model_with_a_scorer_keeps_readings(tmp_path, storage):
    generator = torch.Generator().manual_seed(3)
    for name in "abcdef":
        folder = tmp_path / "photos" / f"class {'123'['abcdef'.index(name) // 2]}"
        folder.mkdir(parents=True, exist_ok=True)
        noise = torch.randint(0, 256, (8, 8, 3), generator=generator, dtype=torch.uint8)
        Image.fromarray(noise.numpy()).resize((64, 64)).save(folder / f"{name}.png")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = timm.create_model("test_vit", img_size=64)
    save_file(net.state_dict(), tmp_path / "weights.safetensors")
    options = {"preprocess": Preprocess(size=64, resize=64), "factory_options": {"img_size": 64}}
    embedder = load_embedder("test_vit", weights_file=tmp_path / "weights.safetensors", **options)
    dim = embedder.embed(Image.new("RGB", (64, 64))).dim
    embedder.with_settings(matcher=some_matcher(dim)).save(tmp_path / "shop")
    embedder = load_embedder(tmp_path / "shop")
    build_index(tmp_path / "photos", tmp_path / "index", embedder, model=str(tmp_path / "shop"), storage=storage)
    store = open_store(tmp_path / "index")
    assert store.config.scorer == embedder.matcher.scorer_id
    rows = store.regions([name for part in store.listing() for name in part.ids])
    assert np.isfinite(rows.coded[:, -store.config.reading_bytes :].copy().view("<f4")).all()
    store.close()
    with Searcher.open(tmp_path / "index") as searcher:
        result = searcher.search(tmp_path / "photos" / "class 1" / "a.png", k=6)
        for place, hit in enumerate(result.hits):
            assert hit.structural == pytest.approx(result.ledger(place).structural, abs=2e-6)
