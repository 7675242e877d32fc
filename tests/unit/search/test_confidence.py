"""A search says how likely each hit is right and whether the query is there, if its calibration fits."""

from __future__ import annotations

import dataclasses

import pytest

from calibrated import made_up_calibrator
from diml.calibration.calibrator import FILE
from diml.calibration.rates import RateTable
from diml.matching import Matcher
from diml.models import load_embedder
from diml.search import Searcher, build_index, open_store
from unit.search.conftest import draw


@pytest.fixture(params=["index", "index.db"])
def place(request, photos, tmp_path, embedder, model):
    """An index of LanceDB, and one of Milvus Lite, which has no folder of its own for files."""
    if request.param == "index.db":
        pytest.importorskip("milvus_lite")
    uri = tmp_path / request.param
    build_index(photos, uri, embedder, model=str(model))
    return uri


def keep(uri, calibrator):
    store = open_store(uri)
    store.write_text(FILE, calibrator.to_json())
    store.close()


def test_the_calibration_of_an_index_is_found_and_used(place, embedder):
    calibrator = made_up_calibrator(embedder)
    keep(place, calibrator)
    with Searcher.open(place) as searcher:
        assert searcher.calibration.calibrator == calibrator
        assert searcher.calibration.place == "the index"
        found = searcher.search(draw(3).rotate(20), k=4)
        assert len(found.scores) == 12
        expected = calibrator.hit_probability(list(found.scores))[:4]
        assert [hit.probability for hit in found.hits] == pytest.approx(expected.tolist())
        assert found.in_gallery is (found.hits[0].score >= 1.0)
        assert found.verdict.threshold == 1.0
        assert found.verdict.promised
        assert found.verdict.gallery_images == 12
        assert found.notices == ()
        with pytest.raises(ValueError, match="false_accept_rate: need a fraction"):
            searcher.search(draw(3), false_accept_rate=5)
    told = found.to_dict(top=1)
    assert told["calibration"] == {
        "model": "tiny",
        "data": "made up",
        "kind": "class",
        "classes": 50,
        "pairs": "candidates",
        "depth": 100,
    }
    assert told["in_gallery"]["likely"] is found.in_gallery
    assert "at most 5 % of the queries whose class is missing from 12 images" in told["in_gallery"]["sentence"]
    assert told["hits"][0]["probability"] == found.hits[0].probability
    assert "%</td>" in found._repr_html_()


def test_a_query_that_is_missing_is_said_to_be(place, embedder):
    rates = RateTable(scores=(1.95, 1.0), rates=(0.002, 0.03), bounds=(0.01, 0.05), count=500)
    keep(place, made_up_calibrator(embedder, kind="product", not_in_gallery=rates))
    with Searcher.open(place) as searcher:
        found = searcher.search(draw(99), k=2, false_accept_rate=0.01)
        assert found.verdict.threshold == 1.95
        assert found.in_gallery is False
        assert str(found.verdict).startswith(
            "Perhaps not in the gallery: the first hit is below 1.950, which at most 1 %"
        )
        assert "whose product is missing" in str(found.verdict)
        itself = searcher.search(draw(3), k=1)  # the image itself is in the index
        assert itself.in_gallery is True
        without = searcher.search(draw(3), k=1, exclude=itself.hits[0].id)
        assert without.hits[0].id != itself.hits[0].id
        assert without.hits[0].pooled_rank >= 1
        assert without.verdict.gallery_images == 11


def test_a_calibration_that_does_not_fit_is_told_in_one_line_and_not_used(place, embedder, tmp_path):
    other = dataclasses.replace(made_up_calibrator(embedder), fingerprint="0" * 64)
    keep(place, other)
    with Searcher.open(place) as searcher:
        found = searcher.search(draw(3), k=2)
    assert (found.calibrator, found.verdict, found.hits[0].probability) == (None, None, None)
    (notice,) = found.notices
    assert notice.startswith(
        "The calibration of the index is not used, so there are no probabilities. calibration: belo"
    )
    assert "\n" not in notice
    assert found.to_dict()["notices"] == [notice]
    other.save(tmp_path / "other")
    with pytest.raises(ValueError, match="belongs to tiny"):
        Searcher.open(place, calibration=tmp_path / "other")
    with pytest.raises(FileNotFoundError, match="diml calibrate"):
        Searcher.open(place, calibration=tmp_path / "nothing")
    made_up_calibrator(embedder).save(tmp_path / "good")
    with Searcher.open(place, calibration=tmp_path / "good") as searcher:
        assert searcher.search(draw(3), k=1).hits[0].probability is not None
        with pytest.raises(ValueError, match=r"another matcher, got epsilon 0\.3"):
            searcher.search(draw(3), matcher=Matcher(epsilon=0.3))


@pytest.fixture
def index(photos, tmp_path, model):
    """An index whose model keeps the calibration."""
    trained = load_embedder(model)
    trained.save(tmp_path / "trained")
    made_up_calibrator(trained).save(tmp_path / "trained")
    build_index(photos, tmp_path / "index", trained, model=str(tmp_path / "trained"))
    return tmp_path / "index"


def test_that_of_the_model_is_used_where_the_index_has_none(index, tmp_path):
    with Searcher.open(index) as searcher:
        assert searcher.calibration.place == str(tmp_path / "trained")
        assert searcher.search(draw(3), k=1).hits[0].probability is not None
        another = searcher.search(draw(3), k=1, matcher=Matcher(epsilon=0.3))
    assert another.hits[0].probability is None
    assert "another matcher, got epsilon 0.3" in another.notices[0]


def test_another_depth_and_no_re_ranking_are_told(index):
    with Searcher.open(index) as searcher:
        few = searcher.search(draw(3), k=2, rerank_at=5)
        none = searcher.search(draw(3), k=2, rerank_at=0)
        empty = searcher.search(draw(3), k=2, where="label = 'nothing'")
        many = searcher.search(draw(3), k=2, false_accept_rate=1e-4)
    assert [hit.probability for hit in few.hits] == pytest.approx(
        [few.calibrator.probability(hit.score) for hit in few.hits]
    )
    assert few.notices[0].startswith("Calibrated on the 12 nearest images of each query, got 5")
    assert none.hits[0].probability is None
    assert none.in_gallery is None
    assert none.notices[0].startswith("Ranked by the pooled cosine alone")
    assert (empty.in_gallery, empty.notices) == (None, ())
    assert many.verdict is None
    assert many.notices[0].startswith("Whether the query is in the gallery cannot be said")


def test_explanations_of_hits_divide_the_whole_score_and_keep_the_score_of_the_ranking(index, photos):
    with Searcher.open(index) as searcher:
        found = searcher.search(photos / "class 0" / "3.png", k=4)
        explained = searcher.explain(found, 3)
        assert len(explained) == 3
        for hit, one in zip(found.hits, explained, strict=False):
            ledger = one.ledger()
            assert ledger.has_whole
            assert float(ledger.whole.sum()) == pytest.approx(hit.score, abs=2e-5)
            assert one.probability == hit.probability
            assert one.calibrator is found.calibrator
            assert one.images is not None
            assert one.names == (str(photos / "class 0" / "3.png"), str(hit.file))
        told = found.to_dict(2, explained)
        assert told["hits"][0]["summary"]["probability"] == found.hits[0].probability
        assert told["hits"][0]["ledger"]["pooled_parts"]["total_q"]
        assert told["hits"][3]["summary"] is None
        file = found.hits[1].file
        draw(77).save(file)
        found.hits[2].file.unlink()
        explained = searcher.explain(found, 3)
    assert explained[0].undivided == ""
    assert explained[1].undivided == (
        f"the index keeps no shares of the pooled vectors, and the file {file} has changed since it was indexed"
    )
    assert explained[2].undivided.endswith("is missing")
    assert explained[1].images is None
    assert not explained[1].ledger().has_whole
    assert explained[1].ledger().score == pytest.approx(found.hits[1].score, abs=2e-5)


def test_regions_given_as_the_query_have_no_shares(index, embedder):
    with Searcher.open(index) as searcher:
        found = searcher.search(embedder.embed(draw(3)), k=2)
        explained = searcher.explain(found)
        assert [one.images for one in explained] == [None, None]
        assert "shares=True" in explained[0].undivided
        with pytest.raises(ValueError, match="no hits"):
            searcher.explain(searcher.search(draw(3), where="label = 'nothing'"))
