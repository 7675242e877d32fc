"""Hits are those of `match` on all images; each has its ledger; wrong embedders and settings are refused."""

from __future__ import annotations

import os
import weakref

import numpy as np
import pytest
import torch

from diml.data import images
from diml.matching import Matcher, Regions
from diml.models import load_embedder
from diml.search import Searcher, build_index, open_store
from diml.search.index import create_store
from diml.search.store import Rows, encode_regions
from unit.search.conftest import draw
from unit.search.contract import CONFIG, make_regions, make_rows


@pytest.fixture(params=["float16", "int8"])
def searcher(request, photos, tmp_path, embedder, model):
    place = tmp_path / "index"
    build_index(photos, place, embedder, model=str(model), storage=request.param)
    with Searcher.open(place) as opened:
        yield opened


def expected(photos, embedder, query, matcher=None):
    """path -> (score, pooled) of every image, from float32."""
    files = sorted(photos.rglob("*.png"))
    found = (matcher or Matcher()).match(embedder.embed([query]), embedder.embed(files))
    return {file: (float(found.score[row]), float(found.pooled[row])) for row, file in enumerate(files)}


def test_hits_are_those_of_matching_all(searcher, photos, embedder):
    query = draw(3).rotate(20)
    scores = expected(photos, embedder, query)
    found = searcher.search(query, k=5)
    best = sorted(scores, key=lambda file: -scores[file][0])[:5]
    assert [hit.file for hit in found.hits] == best
    pooled_order = sorted(scores, key=lambda file: -scores[file][1])
    for hit in found.hits:
        assert hit.score == pytest.approx(scores[hit.file][0], abs=5e-3)
        assert hit.pooled_rank == pooled_order.index(hit.file) + 1


def test_the_ledger_of_a_hit_sums_to_its_score(searcher, photos):
    found = searcher.search(photos / "class 1" / "4.png", k=3)
    assert found.hits[0].file == photos / "class 1" / "4.png"
    for place, hit in enumerate(found.hits):
        ledger = found.ledger(place)
        assert float(ledger.contributions.sum()) == pytest.approx(hit.structural, abs=2e-5)
        assert ledger.score == pytest.approx(hit.score, abs=2e-5)
    told = found.to_dict(top=2)
    assert [entry["rank"] for entry in told["hits"]] == [1, 2, 3]
    assert len(told["hits"][0]["ledger"]["top"]) == 2


def test_without_re_ranking_the_order_is_that_of_pooled_vectors(searcher, photos, embedder):
    query = draw(3).rotate(20)
    scores = expected(photos, embedder, query)
    found = searcher.search(query, k=4, rerank_at=0)
    assert [hit.file for hit in found.hits] == sorted(scores, key=lambda file: -scores[file][1])[:4]
    assert [(hit.structural, hit.pooled_rank) for hit in found.hits] == [(None, rank) for rank in (1, 2, 3, 4)]


def test_only_k_candidates_are_re_ranked_when_fewer_are_asked_for(searcher, photos, embedder):
    """K = 2: the two nearest by pooled cosine, in the order of scores, whatever else there is."""
    query = draw(5).rotate(45)
    scores = expected(photos, embedder, query)
    two = sorted(scores, key=lambda file: -scores[file][1])[:2]
    found = searcher.search(query, k=2, rerank_at=2)
    assert [hit.file for hit in found.hits] == sorted(two, key=lambda file: -scores[file][0])


def test_conditions_choose_before_ranking(searcher):
    found = searcher.search(draw(3), k=12, where="label = 'class 1'")
    assert len(found) == 4
    assert {hit.metadata["label"] for hit in found.hits} == {"class 1"}
    empty = searcher.search(draw(3), where="label = 'nothing'")
    assert empty.hits == ()
    assert empty.to_dict()["hits"] == []
    with pytest.raises(ValueError, match="no hits"):
        empty.ledger(0)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"k": 0}, "k: need at least 1"),
        ({"rerank_at": -1}, "rerank_at: need 0 or more"),
        ({"where": "colour = 'red'"}, "no column 'colour'"),
    ],
)
def test_settings_out_of_range_are_refused(searcher, options, told):
    with pytest.raises(ValueError, match=told):
        searcher.search(draw(3), **options)


def test_another_embedder_is_refused(searcher, model):
    with pytest.raises(ValueError, match="another embedder"):
        Searcher(searcher.store, load_embedder(model, grid=2))


def test_an_embedder_that_has_moved_is_named_anew(photos, tmp_path, model, embedder):
    first, second = tmp_path / "first", tmp_path / "second"
    embedder.save(first)
    build_index(photos, tmp_path / "index", embedder, model=str(first))
    first.rename(second)
    with pytest.raises(FileNotFoundError, match="which is missing"):
        Searcher.open(tmp_path / "index")
    opened = Searcher.open(tmp_path / "index", model=str(second))
    assert len(opened.search(draw(0), k=3)) == 3


def test_changed_settings_of_a_model_by_its_name_are_remembered(photos, tmp_path):
    """Grid, resizing and so on are no part of the name, but of the vectors."""
    from diml.data import Preprocess

    made = load_embedder("mobilenetv2_100", grid=2, preprocess=Preprocess(size=64, resize=None, mode="square"))
    build_index(photos, tmp_path / "index", made, model="mobilenetv2_100", storage="int8")
    opened = Searcher.open(tmp_path / "index")
    assert opened.embedder.config == made.config
    assert opened.search(photos / "class 0" / "0.png", k=1).hits[0].metadata["path"] == "class 0/0.png"


def test_pooled_vectors_alone(tmp_path):
    from dataclasses import replace

    config = replace(CONFIG, storage="none", num_regions=0)
    store = create_store(tmp_path / "index", config)
    rows = make_rows(6)
    store.add(replace(rows, coded=rows.coded[:, :0]))
    opened = Searcher(open_store(tmp_path / "index"))
    found = opened.search(make_regions(6)[2], k=2, rerank_at=0)
    assert found.hits[0].id == rows.ids[2]
    with pytest.raises(ValueError, match="storage 'none'"):
        found.ledger(0)
    with pytest.raises(ValueError, match="pooled vectors only"):
        opened.search(make_regions(1))
    with pytest.raises(ValueError, match="Regions of one image, got 2"):
        opened.search(make_regions(2), rerank_at=0)


def test_blank_images_find_and_are_found(tmp_path):
    """All vectors zero: every cosine is 0, nothing is NaN."""
    store = create_store(tmp_path / "index", CONFIG)
    blank = Regions(torch.zeros(1, 4, 8), torch.zeros(1, 8), (2, 2))
    store.add(Rows(("blank",), blank.pooled.numpy(), encode_regions(blank, CONFIG), ({},)))
    store.add(make_rows(3))
    found = Searcher(store).search(blank, k=4)
    assert len(found) == 4
    assert [hit.score for hit in found.hits] == [0.0] * 4
    assert torch.isfinite(found.match.score).all()


SHARP, OTHER = Matcher(epsilon=0.02), Matcher(epsilon=0.5, weights="uniform", structural_weight=2.0)


@pytest.fixture(params=["index", "index.db"])
def sharp(request, photos, tmp_path, model):
    """Place of an index of an embedder that compares with epsilon 0.02."""
    if request.param == "index.db":
        pytest.importorskip("milvus_lite")
    trained = load_embedder(model, matcher=SHARP)
    trained.save(tmp_path / "trained")
    place = tmp_path / request.param
    build_index(photos, place, trained, model=str(tmp_path / "trained"))
    return place


def test_an_index_is_searched_with_the_matcher_of_its_embedder_unless_told_otherwise(sharp, photos, embedder):
    query = draw(3).rotate(20)
    with Searcher.open(sharp) as searcher:
        assert searcher.matcher == searcher.store.config.matcher == SHARP
        found = searcher.search(query, k=12)
        told = searcher.search(query, k=12, matcher=OTHER)
    for result, matcher in ((found, SHARP), (told, OTHER)):
        scores = expected(photos, embedder, query, matcher)
        assert result.matcher == matcher
        assert result.to_dict()["matcher"] == matcher.to_dict()
        assert [hit.file for hit in result.hits] == sorted(scores, key=lambda file: -scores[file][0])
        for place, hit in enumerate(result.hits):
            assert hit.score == pytest.approx(scores[hit.file][0], abs=1e-2)
            assert hit.score == pytest.approx(matcher.combine(hit.pooled, hit.structural), abs=1e-6)
            assert result.ledger(place).score == pytest.approx(hit.score, abs=5e-5)
    with Searcher.open(sharp, matcher=OTHER) as searcher:
        assert [hit.score for hit in searcher.search(query, k=12).hits] == [hit.score for hit in told.hits]


def test_the_matcher_of_an_index_is_chosen_when_it_is_built(photos, tmp_path, embedder, model):
    place = tmp_path / "index"
    build_index(photos, place, embedder, model=str(model), matcher=OTHER)
    again = build_index(photos, place, embedder, model=str(model))
    assert again.unchanged == 12
    assert open_store(place).config.matcher == OTHER
    with pytest.raises(ValueError, match=r"matcher: .* has Matcher.*omit it and set it when searching"):
        build_index(photos, place, embedder, model=str(model), matcher=SHARP)


def test_an_embedder_with_another_matcher_is_still_that_of_the_index(searcher, model):
    """Vectors do not depend on how they are compared."""
    opened = Searcher(searcher.store, load_embedder(model, matcher=OTHER))
    assert opened.matcher == searcher.matcher == Matcher()


def test_results_have_short_reprs_and_a_table(searcher):
    found = searcher.search(draw(3), k=12)
    assert len(repr(found)) < 200
    assert found._repr_html_().count("<tr>") == 13


def test_explaining_holds_one_large_image_at_a_time(tmp_path, embedder, model, monkeypatch):
    """Each thread decodes one hit at a time, and what is kept of them has the size of a figure."""
    (tmp_path / "large").mkdir()
    for number in range(5):
        draw(number).resize((1200, 900)).save(tmp_path / "large" / f"{number}.jpg", quality=95)
    build_index(tmp_path / "large", tmp_path / "index", embedder, model=str(model), workers=0)
    made_so_far, most, finish = [], 0, images._finish

    def counted(*arguments):
        nonlocal most
        made = finish(*arguments)
        if made.width > 600:
            made_so_far.append(weakref.ref(made))
            most = max(most, sum(image() is not None for image in made_so_far))
        return made

    monkeypatch.setattr(images, "_finish", counted)
    with Searcher.open(tmp_path / "index") as searcher:
        found = searcher.search(tmp_path / "large" / "0.jpg", k=5)
        explained = searcher.explain(found)
    assert 2 <= most <= 1 + min(8, os.cpu_count() or 1)  # the query, which the result keeps, and hits being decoded
    side = 2 * embedder.preprocess.size
    for hit, explanation in zip(found.hits, explained, strict=True):
        assert explanation.images is not None
        view = explanation.images[1]
        assert view.size == (side, side)
        whole = embedder.preprocess.view(images.load_image(hit.file), 2)
        difference = np.asarray(view, dtype=float) - np.asarray(whole, dtype=float)
        assert np.abs(difference).mean() < 4  # of 255: decoded at a fraction of its size
        assert explanation.undivided == ""
