"""Unknown parameters are errors, conditions filter, and requests are counted."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi", reason="fastapi is not installed; it is in the extra `web`")
from prometheus_client.parser import text_string_to_metric_families

from diml.models import Embedder
from diml.search import Searcher, build_index, open_store
from diml.web.index import IndexGallery
from served import content_of, drawn, write_shop

Client = Callable[..., Any]
QUERY = {"query": ("a.png", content_of(drawn(0)))}


@pytest.mark.parametrize(
    ("method", "address", "told"),
    [
        ("post", "/api/search?hit=3", "did you mean 'hits'? Known: hits, rerank_at, id, where"),
        ("post", "/api/search?rerank-at=3", "did you mean 'rerank_at'?"),
        ("post", "/api/match?epsilon=1", "no query parameters"),
        ("get", "/api/gallery?ofset=3", "did you mean 'offset'?"),
        ("get", "/api/gallery/image?id=1&kin=view", "did you mean 'kind'?"),
        ("get", "/api/status?verbose", ""),
        ("get", "/api/status?verbose=1", "no query parameters"),
    ],
)
def test_unknown_parameters_are_errors(client: Client, method: str, address: str, told: str) -> None:
    answer = getattr(client(), method)(address)
    assert answer.status_code == 422
    assert answer.json()["error"]["code"] == "unknown_parameter"
    assert told in answer.json()["error"]["message"]


def test_a_parameter_given_twice_or_in_the_form_is_an_error(client: Client) -> None:
    answer = client().post("/api/search?hits=3&hits=4", files=QUERY)
    assert (answer.status_code, answer.json()["error"]["code"]) == (422, "repeated_parameter")
    answer = client().post("/api/search", files=QUERY, data={"hits": "3"})
    assert answer.status_code == 422
    assert answer.json()["error"]["remedy"] == "Put it into the address: /api/search?hits=..."


def test_a_folder_has_no_metadata_to_filter_by(client: Client) -> None:
    answer = client().post("/api/search", params={"where": "label = 'x'"}, files=QUERY)
    assert (answer.status_code, answer.json()["error"]["code"]) == (422, "bad_where")
    assert "need an index" in answer.json()["error"]["message"]


def test_a_condition_filters_an_index(client: Client, embedder: Embedder, tmp_path: Path) -> None:
    pytest.importorskip("lancedb", reason="lancedb is not installed; it is in the extra `search`")
    shop, place = write_shop(tmp_path / "shop"), tmp_path / "shop.index"
    embedder.save(tmp_path / "model")
    build_index(shop, place, embedder, model=str(tmp_path / "model"))
    with Searcher(open_store(place), embedder) as searcher:
        one = client(gallery=IndexGallery(searcher, "shop"))
        plain = one.post("/api/search?hits=20", files=QUERY).json()
        assert "where" not in plain["settings"]
        labels = [pair["hit"]["label"] for pair in plain["pairs"]]
        wanted = labels[-1]
        condition = f"label = '{wanted}'"
        found = one.post("/api/search", params={"hits": 20, "where": condition}, files=QUERY).json()
        assert found["settings"]["where"] == condition
        assert [pair["hit"]["label"] for pair in found["pairs"]] == [wanted] * labels.count(wanted)
        expected = [pair["hit"]["id"] for pair in plain["pairs"] if pair["hit"]["label"] == wanted]
        assert [pair["hit"]["id"] for pair in found["pairs"]] == expected
        for broken in ("brand = 'x'", "label =", "label = 3"):
            answer = one.post("/api/search", params={"where": broken}, files=QUERY)
            assert (answer.status_code, answer.json()["error"]["code"]) == (422, "bad_where")
        nothing = one.post("/api/search", params={"where": "label = 'none such'"}, files=QUERY)
        assert (nothing.status_code, nothing.json()["pairs"]) == (200, [])


def test_metrics_count_requests_by_route_and_status(client: Client) -> None:
    one = client()
    one.post("/api/search?hits=1", files=QUERY)
    one.post("/api/search?hit=1", files=QUERY)
    for path in ("/nothing", "/other", "/api/status"):
        one.get(path)
    one.get("/api/status", headers={"host": "evil.example"})
    answer = one.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    samples = {
        (sample.name, *(sample.labels[key] for key in ("route", "code") if key in sample.labels)): sample.value
        for family in text_string_to_metric_families(answer.text)
        for sample in family.samples
    }
    assert samples["diml_requests_total", "/api/search", "200"] == 1
    assert samples["diml_requests_total", "/api/search", "422"] == 1
    assert samples["diml_requests_total", "/api/status", "200"] == 1
    assert samples["diml_requests_total", "other", "404"] == 2
    assert samples["diml_requests_total", "other", "421"] == 1
    assert samples["diml_request_seconds_count", "/api/search"] == 2
    assert samples["diml_request_seconds_sum", "/api/search"] > 0
    assert samples["diml_computing",] == samples["diml_waiting",] == 0
    assert samples["diml_gallery_images",] == one.get("/api/status").json()["gallery"]["count"]
