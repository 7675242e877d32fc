"""The API: its numbers are those of the library, and its errors say what to do."""

from __future__ import annotations

import base64
import io
import re
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient
from PIL import Image

from calibrated import made_up_calibrator
from diml.calibration.finding import FoundCalibration
from diml.explain import rank_hits
from diml.explain.description import describe_match
from diml.explain.explanation import match_query
from diml.explain.shown_plan import shown_plan
from diml.models import Embedder
from diml.web import Engine, create_app
from diml.web.engine import _ShareCache
from diml.web.folder import FolderGallery
from diml.web.limits import Limits
from served import MATCHER, content_of, drawn, write_shop

Client = Callable[..., Any]
A, B = content_of(drawn(0)), content_of(drawn(1))


def refused(answer: Any, status: int, code: str) -> dict[str, str]:
    assert answer.status_code == status, answer.text
    error: dict[str, str] = answer.json()["error"]
    assert error["code"] == code
    assert error["remedy"]
    return error


def same_numbers(pair: dict[str, Any], expected: dict[str, Any]) -> None:
    """A pair of an answer has the numbers of `describe_match`, matrices to five digits."""
    for name in ("score", "pooled", "structural", "weight_q", "weight_g", "total_q", "total_g"):
        assert np.asarray(pair[name]) == pytest.approx(np.asarray(expected[name]), abs=2e-5), name
    for name in ("plan", "cosine"):
        assert np.asarray(pair[name]) == pytest.approx(np.asarray(expected[name]), abs=2e-5), name
    assert (pair["grid_q"], pair["grid_g"]) == (expected["grid_q"], expected["grid_g"])
    assert pair["convergence"]["converged"] == expected["convergence"]["converged"]
    assert pair["structural"] == pytest.approx(sum(pair["total_q"]), abs=1e-5)
    assert pair["score"] == pytest.approx(pair["pooled"] + pair["structural"], abs=1e-6)


def assert_divides(summary: dict[str, Any]) -> None:
    """The parts of a summary sum to the whole score, the pooled cosine included."""
    assert (summary["whole"], summary["undivided"], summary["pooled"]) == (True, "", None)
    total = sum(part["value"] for part in summary["parts"]) + summary["between"]["value"]
    assert total == pytest.approx(summary["score"], abs=2e-5)


def test_match_answers_with_the_numbers_of_the_library(client: Client, embedder: Embedder) -> None:
    answer = client().post("/api/match", files={"query": ("shop/a.png", A), "gallery": ("b.png", B)})
    assert answer.status_code == 200
    (expected,) = match_query(A, [B], embedder=embedder, matcher=MATCHER)
    told = answer.json()
    (pair,) = told["pairs"]
    same_numbers(pair, describe_match(shown_plan(expected)))
    assert pair["ranked_by"] == pytest.approx(expected.ledger().score, abs=2e-5)
    assert pair["summary"]["plan"] == "exact"
    assert_divides(pair["summary"])
    assert pair["names"] == {"query": "a.png", "gallery": "b.png"}
    assert pair["hit"] is None
    assert told["settings"] == MATCHER.to_dict()
    assert told["seconds"] >= 0
    for side, view in zip(("query", "gallery"), expected.images, strict=True):
        image = told["images"][pair["images"][side]]
        kind, _, data = image["src"].partition(",")
        assert kind == "data:image/jpeg;base64"
        shown = Image.open(io.BytesIO(base64.b64decode(data)))
        assert shown.size == view.size == (image["width"], image["height"])
        assert np.abs(np.asarray(shown, dtype=float) - np.asarray(view, dtype=float)).mean() < 8


@pytest.mark.parametrize("rerank_at", [0, 3, 100])
def test_search_answers_with_the_gallery_and_the_numbers_of_the_library(
    client: Client, embedder: Embedder, gallery: FolderGallery, shop: Path, rerank_at: int
) -> None:
    answer = client().post(f"/api/search?hits=5&rerank_at={rerank_at}", files={"query": ("q.png", B)})
    assert answer.status_code == 200
    told = answer.json()
    assert told["settings"] == MATCHER.to_dict() | {"rerank_at": rerank_at}
    found = gallery.search(embedder.embed([B]), hits=5, rerank_at=rerank_at, matcher=MATCHER).hits
    matches = match_query(B, [shop / hit.item.name for hit in found], embedder=embedder, matcher=MATCHER)
    lifts = dict(zip((match.names[1] for match in rank_hits(matches).matches), rank_hits(matches).lift, strict=True))
    assert len(told["pairs"]) == 5
    for pair, hit, expected in zip(told["pairs"], found, matches, strict=True):
        same_numbers(pair, describe_match(expected))
        assert_divides(pair["summary"])
        facts = pair["hit"]
        assert pair["names"] == {"query": "q.png", "gallery": hit.item.name}
        assert (facts["id"], facts["label"]) == (hit.item.id, hit.item.label)
        assert facts["metadata"] == {"bytes": (shop / hit.item.name).stat().st_size}
        assert (facts["rank"], facts["pooled_rank"]) == (hit.rank, hit.pooled_rank)
        assert facts["reranked"] == (hit.pooled_rank <= rerank_at)
        assert facts["lift"] == pytest.approx(lifts[expected.names[1]].tolist(), abs=2e-5)
        assert told["images"][pair["images"]["gallery"]]["name"] == hit.item.name
        assert told["images"][pair["images"]["query"]]["name"] == "q.png"


@pytest.mark.parametrize("rerank_at", [0, 3, 100])
@pytest.mark.parametrize("by_id", [False, True])
def test_hits_without_explanations_are_those_of_a_search(client: Client, rerank_at: int, by_id: bool) -> None:
    one = client()
    words = {"params": {"rerank_at": rerank_at, "hits": 5}} if not by_id else {}
    if by_id:
        key = one.get("/api/gallery").json()["items"][2]["id"]
        words = {"params": {"rerank_at": rerank_at, "hits": 5, "id": key}}
    files = None if by_id else {"query": ("q.png", B)}
    told, explained = (one.post(f"/api/{name}", files=files, **words).json() for name in ("hits", "search"))
    assert len(told["hits"]) == len(explained["pairs"]) == 5
    for hit, pair in zip(told["hits"], explained["pairs"], strict=True):
        for name in ("id", "label", "metadata", "rank", "pooled_rank", "reranked", "probability"):
            assert hit[name] == pair["hit"][name]
        assert hit["name"] == pair["names"]["gallery"]
        assert hit["pooled"] == pytest.approx(pair["pooled"], abs=2e-5)
        assert (hit["structural"] is None) == (not hit["reranked"])
        assert hit["score"] == pytest.approx(pair["ranked_by"] if hit["reranked"] else hit["pooled"], abs=2e-5)
    assert told["settings"] == explained["settings"]
    assert len(one.post("/api/hits?hits=1000", files={"query": B}).json()["hits"]) == 10
    refused(one.post("/api/hits?hits=1001", files={"query": B}), 422, "bad_request")
    refused(one.post("/api/hits?hist=1", files={"query": B}), 422, "unknown_parameter")


@pytest.mark.parametrize("offset", [10, 11, 2**31, 2**63 - 1, 2**63, 10**30])
def test_beyond_the_last_image_there_is_an_empty_page(client: Client, offset: int) -> None:
    answer = client().get(f"/api/gallery?offset={offset}&count=200")
    assert (answer.status_code, answer.json()["items"]) == (200, [])


@pytest.mark.parametrize(
    "words", ["offset=-1", "offset=x", "offset=1e400", "count=0", "count=201", f"offset={'9' * 5000}"]
)
def test_numbers_out_of_range_are_refused(client: Client, words: str) -> None:
    assert client().get(f"/api/gallery?{words}").json()["error"]["code"] == "bad_request"


def test_the_gallery_is_read_outside_the_event_loop(client: Client, gallery: FolderGallery, monkeypatch: Any) -> None:
    threads = set()
    for name in ("items", "count", "state"):
        real = getattr(gallery, name)

        def noted(*words: Any, real: Any = real, **named: Any) -> Any:
            threads.add(threading.current_thread().name)
            return real(*words, **named)

        monkeypatch.setattr(gallery, name, noted)
    assert client().get("/api/gallery").status_code == client().get("/api/status").status_code == 200
    assert client().post(f"/api/search?id={gallery.items(0, 1)[0].id}").status_code == 200
    assert {name.rpartition("_")[0] for name in threads - {threading.current_thread().name}} == {"diml-images"}


def test_an_image_of_the_gallery_can_be_searched_for_and_seen(
    client: Client, gallery: FolderGallery, embedder: Embedder, shop: Path
) -> None:
    one = client()
    item = one.get("/api/gallery?offset=2&count=1").json()["items"][0]
    told = one.post(f"/api/search?id={item['id']}&hits=20").json()
    assert {pair["names"]["query"] for pair in told["pairs"]} == {item["name"]}
    assert len(told["pairs"]) == 9
    assert item["id"] not in [pair["hit"]["id"] for pair in told["pairs"]]
    address = told["images"][0]["src"]
    shown = one.get(address)
    assert shown.headers["content-type"] == "image/jpeg"
    image = Image.open(io.BytesIO(shown.content))
    assert image.size == (told["images"][0]["width"], told["images"][0]["height"])
    view = embedder.preprocess.view(Image.open(shop / item["name"]).convert("RGB"), 2)
    assert np.abs(np.asarray(image, dtype=float) - np.asarray(view, dtype=float)).mean() < 8
    whole = Image.open(io.BytesIO(one.get(address + "&kind=whole").content))
    assert whole.size == (96, 96)


def test_a_served_image_has_no_metadata(tmp_path: Path, embedder: Embedder, client: Client) -> None:
    exif = Image.Exif()
    exif[0x010E] = "where I live"
    exif[0x0112] = 6
    drawn(1).crop((0, 0, 96, 80)).save(tmp_path / "a.jpg", exif=exif)
    gallery = FolderGallery(tmp_path, embedder)
    gallery.start()
    gallery.wait(60)
    one = client(gallery=gallery)
    key = one.get("/api/gallery").json()["items"][0]["id"]
    shown = one.get(f"/api/gallery/image?id={key}&kind=whole").content
    assert b"where I live" in (tmp_path / "a.jpg").read_bytes()
    assert b"where I live" not in shown
    assert Image.open(io.BytesIO(shown)).size == (80, 96)  # upright
    (tmp_path / "a.jpg").unlink()
    refused(one.get(f"/api/gallery/image?id={key}"), 410, "image_gone")


def test_status_tells_the_gallery_and_the_limits(client: Client, tmp_path: Path) -> None:
    told = client(Limits(body_bytes=5_000_000, pixels=7), keep=tmp_path).get("/api/status").json()
    assert told["keeps_uploads"] is True
    assert told["model"] == "test_resnet"
    assert told["matcher"] == MATCHER.to_dict()
    assert told["limits"] == {"body_bytes": 5_000_000, "pixels": 7, "requests": 4, "hits": 24, "rerank_at": 1000}
    gallery = told["gallery"]
    assert (gallery["phase"], gallery["done"], gallery["total"], gallery["name"]) == ("ready", 10, 10, "shop")
    assert client(gallery=None).get("/api/status").json()["gallery"] is None


def test_while_the_folder_is_embedded_pairs_are_compared_and_searches_wait(
    tmp_path: Path, embedder: Embedder, client: Client
) -> None:
    gallery = FolderGallery(write_shop(tmp_path, 2), embedder)  # never started
    one = client(gallery=gallery)
    answer = one.post("/api/search", files={"query": ("q.png", A)})
    assert "0 of 2 images" in refused(answer, 503, "gallery_embedding")["message"]
    assert answer.headers["retry-after"] == "2"
    assert one.post("/api/match", files={"query": ("a.png", A), "gallery": ("b.png", B)}).status_code == 200
    (tmp_path / "torn.png").write_bytes(b"torn")
    for path in tmp_path.rglob("0*.png"):
        path.write_bytes(b"torn")
    gallery.start()
    gallery.wait(60)
    assert "none of the 2" in refused(one.post("/api/search"), 503, "gallery_failed")["message"]


@pytest.mark.parametrize(
    ("method", "address", "files", "status", "code"),
    [
        ("POST", "/api/match", {"query": ("a.png", A)}, 422, "missing_image"),
        ("POST", "/api/match", {"query": ("a.txt", b"words"), "gallery": ("b.png", B)}, 422, "bad_image"),
        ("POST", "/api/search", None, 422, "missing_image"),
        ("POST", "/api/search?id=123", {"query": ("a.png", A)}, 422, "missing_image"),
        ("POST", "/api/search?id=../../etc/passwd", None, 404, "no_such_image"),
        ("POST", "/api/search?hits=0", {"query": ("a.png", A)}, 422, "bad_request"),
        ("POST", "/api/search?hits=many", {"query": ("a.png", A)}, 422, "bad_request"),
        ("POST", "/api/search?rerank_at=-1", {"query": ("a.png", A)}, 422, "bad_request"),
        ("GET", "/api/gallery/image?id=..%2F..%2Fetc%2Fpasswd", None, 404, "no_such_image"),
        ("GET", "/api/gallery/image?id=", None, 404, "no_such_image"),
        ("GET", "/api/gallery/image?id=left/01.png", None, 404, "no_such_image"),
        ("GET", "/api/gallery/image", None, 422, "bad_request"),
        ("GET", "/api/gallery?count=100000", None, 422, "bad_request"),
        ("GET", "/api/match", None, 405, "method_not_allowed"),
        ("GET", "/api/nothing", None, 404, "not_found"),
        ("GET", "/page/../app.py", None, 404, "not_found"),
        ("GET", "/page/..%2Fapp.py", None, 404, "not_found"),
        ("GET", "/page/%2e%2e/%2e%2e/app.py", None, 404, "not_found"),
        ("GET", "/page//etc/passwd", None, 404, "not_found"),
        ("GET", "/docs", None, 404, "not_found"),
    ],
)
def test_errors_are_json_with_a_remedy(
    client: Client, method: str, address: str, files: Any, status: int, code: str
) -> None:
    refused(client().request(method, address, files=files), status, code)


def test_without_a_folder_there_is_nothing_to_search(client: Client) -> None:
    one = client(gallery=None)
    for answer in (one.post("/api/search"), one.get("/api/gallery"), one.get("/api/gallery/image?id=1")):
        assert "--folder" in refused(answer, 409, "no_gallery")["remedy"]


def test_uploads_are_kept_when_asked(client: Client, tmp_path: Path) -> None:
    files = {"query": ("a.png", A), "gallery": ("b.png", B)}
    assert client(keep=tmp_path / "kept").post("/api/match", files=files).status_code == 200
    assert sorted(path.read_bytes() for path in (tmp_path / "kept").iterdir()) == sorted([A, B])


def test_the_page_loads_nothing_from_elsewhere_and_all_of_its_modules_are_there(client: Client) -> None:
    one = client()
    page = one.get("/").text
    assert "<script>" not in page
    assert "style=" not in page
    todo = ["/" + address for address in re.findall(r'(?:src|href)="([^":]+)"', page)]  # relative to any prefix
    seen = set()
    while todo:
        address = todo.pop()
        answer = one.get(address)
        assert answer.status_code == 200, address
        kind = "text/javascript" if address.endswith(".js") else "text/css"
        assert answer.headers["content-type"] == f"{kind}; charset=utf-8"
        assert not re.search(r"https?://(?!www\.w3\.org)", answer.text), address
        seen.add(address)
        found = re.findall(r'^import .* from "\./([a-z]+\.js)";$', answer.text, re.MULTILINE)
        todo += [f"/page/{name}" for name in found if f"/page/{name}" not in seen]
    assert {"/page/app.js", "/page/viewer.js", "/page/app.css", "/page/viewer.css"} <= seen


def test_openapi_tells_the_forms_and_the_errors(client: Client) -> None:
    told = client().get("/api/openapi.json").json()
    assert set(told["paths"]) == {
        "/api/status", "/api/match", "/api/search", "/api/hits", "/api/gallery", "/api/gallery/image", "/api/facets",
        "/healthz", "/readyz", "/metrics",
    }  # fmt: skip
    form = told["paths"]["/api/match"]["post"]["requestBody"]["content"]["multipart/form-data"]["schema"]
    assert form["required"] == ["query", "gallery"]
    assert told["paths"]["/api/search"]["post"]["requestBody"]["required"] is False
    assert {"ExplanationResponse", "PairBody", "HitBody", "ErrorResponse", "StatusResponse"} <= set(
        told["components"]["schemas"]
    )
    for name, path in told["paths"].items():
        for method in path.values() if name.startswith("/api") else ():
            assert "4XX" in method["responses"]


def calibrated(embedder: Embedder, gallery: Any, **changes: Any) -> TestClient:
    found = FoundCalibration(
        made_up_calibrator(embedder, MATCHER, kind="product", gallery_images=10.0, **changes), "shop/embedder"
    )
    engine = Engine(embedder, matcher=MATCHER, gallery=gallery, calibration=found, false_accept_rate=0.02)
    return TestClient(create_app(engine), base_url="http://127.0.0.1:8765", raise_server_exceptions=True)


def test_a_calibration_gives_probabilities_and_says_whether_the_query_is_there(
    embedder: Embedder, gallery: FolderGallery
) -> None:
    one = calibrated(embedder, gallery)
    told = one.post("/api/search?hits=4", files={"query": ("q.png", B)}).json()
    calibrator = made_up_calibrator(embedder, MATCHER, kind="product", gallery_images=10.0)
    scores = gallery.search(embedder.embed([B]), hits=4, rerank_at=100, matcher=MATCHER).scores
    expected = calibrator.hit_probability(np.array(scores))[:4]
    chances = [pair["hit"]["probability"] for pair in told["pairs"]]
    assert chances == pytest.approx(expected.tolist(), abs=1e-5)
    for pair, chance in zip(told["pairs"], chances, strict=True):
        assert pair["summary"]["probability"] == chance
        assert "the same product" in pair["summary"]["headline"]
        assert pair["summary"]["scale"]["marks"]
    verdict = told["in_gallery"]
    assert (verdict["false_accept_rate"], verdict["threshold"], verdict["gallery_images"]) == (0.02, 1.5, 10)
    assert verdict["likely"] is (scores[0] >= 1.5)
    assert "whose product is missing from 10 images" in verdict["sentence"]
    assert told["notices"] == []
    plain = one.post("/api/search?hits=4&rerank_at=0", files={"query": ("q.png", B)}).json()
    assert [pair["hit"]["probability"] for pair in plain["pairs"]] == [None] * 4
    assert plain["in_gallery"] is None
    assert plain["notices"][0].startswith("Ranked by the pooled cosine alone")
    some = one.post("/api/search?hits=4&rerank_at=2", files={"query": ("q.png", B)}).json()
    assert [pair["hit"]["probability"] is None for pair in some["pairs"]] == [False, False, True, True]
    assert some["notices"][0].startswith("Calibrated on the")
    pair = one.post("/api/match", files={"query": ("a.png", A), "gallery": ("b.png", B)}).json()["pairs"][0]
    assert pair["summary"]["probability"] == pytest.approx(calibrator.probability(pair["ranked_by"]))


def test_status_names_the_calibration_or_why_there_is_none(embedder: Embedder, gallery: FolderGallery) -> None:
    told = calibrated(embedder, gallery).get("/api/status").json()
    assert told["calibration"]["place"] == "shop/embedder"
    assert (told["calibration"]["data"], told["calibration"]["kind"]) == ("made up", "product")
    assert told["calibration"]["separates"] is True
    assert told["calibration_notice"] == ""
    engine = Engine(embedder, matcher=MATCHER, calibration=FoundCalibration(notice="It does not fit."))
    one = TestClient(create_app(engine), base_url="http://127.0.0.1:8765")
    told = one.get("/api/status").json()
    assert (told["calibration"], told["calibration_notice"]) == (None, "It does not fit.")
    answer = one.post("/api/match", files={"query": ("a.png", A), "gallery": ("b.png", B)}).json()
    assert answer["notices"] == ["It does not fit."]
    assert answer["pairs"][0]["summary"]["probability"] is None
    with pytest.raises(ValueError, match="another matcher"):
        Engine(embedder, calibration=FoundCalibration(made_up_calibrator(embedder, MATCHER)))
    with pytest.raises(ValueError, match="false_accept_rate"):
        Engine(embedder, false_accept_rate=1)


def test_the_schema_of_a_summary_is_documented(client: Client) -> None:
    schemas = client().get("/api/openapi.json").json()["components"]["schemas"]
    assert {"headline", "sentence", "parts", "between", "probability", "scale"} <= schemas["SummaryBody"][
        "properties"
    ].keys()
    assert schemas["PairBody"]["properties"]["summary"] == {"$ref": "#/components/schemas/SummaryBody"}


def test_a_hit_whose_file_is_gone_keeps_its_pooled_cosine_as_one_term(tmp_path: Path, embedder: Embedder) -> None:
    gallery = FolderGallery(write_shop(tmp_path / "shop", 4), embedder)
    gallery.start()
    gallery.wait(60)
    one = TestClient(create_app(Engine(embedder, matcher=MATCHER, gallery=gallery)), base_url="http://127.0.0.1:8765")
    first = one.post("/api/search?hits=4", files={"query": ("q.png", B)}).json()
    assert all(pair["summary"]["whole"] for pair in first["pairs"])
    again = Engine(embedder, matcher=MATCHER, gallery=gallery)  # it has explained nothing before
    gone = first["pairs"][0]["names"]["gallery"]
    (tmp_path / "shop" / gone).unlink()
    told = TestClient(create_app(again), base_url="http://127.0.0.1:8765").post(
        "/api/search?hits=4", files={"query": ("q.png", B)}
    )
    pairs = {pair["names"]["gallery"]: pair["summary"] for pair in told.json()["pairs"]}
    assert not pairs[gone]["whole"]
    assert pairs[gone]["undivided"].startswith("the gallery keeps no shares of the pooled vectors, and its file cannot")
    assert pairs[gone]["pooled"]["value"] == pytest.approx(first["pairs"][0]["pooled"], abs=1e-5)
    assert sum(not summary["whole"] for summary in pairs.values()) == 1


def test_shares_of_images_are_kept_up_to_a_number_of_bytes(embedder: Embedder) -> None:
    regions = embedder.embed([drawn(number) for number in range(4)], shares=True)
    size = 2 * regions[0].dense.nbytes + regions[0].pooled.nbytes
    cache = _ShareCache(int(2.5 * size))
    for row in range(3):
        cache.put(str(row), regions[row])
    assert cache.get("0", regions[0]) is None
    assert cache.get("1", regions[1]) is not None
    assert cache.get("2", regions[1]) is None  # stored anew since
    cache.put("3", regions[3])
    assert cache.get("2", regions[2]) is None  # used longest ago
    assert cache.get("1", regions[1]) is not None
