"""Facets, look-up, boxes and copies over the API, with an index that has metadata."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("lancedb", reason="lancedb is not installed; it is in the extra `search`")

from diml.data.query_box import QueryBox
from diml.models import Embedder
from diml.search import Searcher, build_index, open_store
from diml.search.store import ListedRows
from diml.web.facets import MOST_VALUES, facets_of
from diml.web.folder import FolderGallery
from diml.web.index import IndexGallery
from served import MATCHER, content_of, drawn, write_shop

COLUMNS = ("label", "brand", "price", "stock", "on sale", "code")


def cells(number: int) -> tuple[str, ...]:
    brand = ("Arla", "", "Åsa 100%")[number % 3]
    return f"c{number % 2}", brand, f"{number / 2}", str(number), str(number < 4).lower(), f"x{number}"


@pytest.fixture(scope="module")
def searcher(tmp_path_factory: pytest.TempPathFactory, embedder: Embedder) -> Iterator[Searcher]:
    folder = tmp_path_factory.mktemp("shop")
    lines = [",".join(["path", *COLUMNS])]
    for number in range(12):
        drawn(number).save(folder / f"{number:02}.png")
        lines.append(",".join([f"{number:02}.png", *cells(number)]))
    (folder / "shop.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    embedder.save(folder / "model")
    build_index(folder / "shop.csv", folder / "shop.index", embedder, model=str(folder / "model"))
    with Searcher(open_store(folder / "shop.index"), embedder) as opened:
        yield opened


@pytest.fixture
def api(client: Callable[..., Any], searcher: Searcher) -> Any:
    return client(gallery=IndexGallery(searcher, "shop.index"))


def names(answer: Any) -> list[str]:
    assert answer.status_code == 200, answer.text
    found = sorted(item["name"] for item in answer.json()["items"])
    assert answer.json()["total"] == len(found)
    return found


def test_facets_count_the_values_of_the_columns(api: Any) -> None:
    found = {column["name"]: column for column in api.get("/api/facets").json()["columns"]}
    assert list(found) == list(COLUMNS)
    brands = {value["value"]: value["count"] for value in found["brand"]["values"]}
    assert (brands, found["brand"]["missing"]) == ({"Arla": 4, "Åsa 100%": 4}, 4)
    assert [found["price"][name] for name in ("kind", "low", "high")] == ["range", 0.0, 5.5]
    assert found["on sale"]["values"] == [{"value": False, "count": 8}, {"value": True, "count": 4}]


def test_facets_are_counted_again_only_when_the_index_has_changed(searcher: Searcher, monkeypatch: Any) -> None:
    gallery, counted = IndexGallery(searcher, "shop.index"), []
    listing, version = type(searcher.store).listing, searcher.store.version()
    monkeypatch.setattr(type(searcher.store), "listing", lambda *a, **k: counted.append(1) or listing(*a, **k))
    first = gallery.facets()
    assert gallery.facets() is first
    assert len(counted) == 1
    monkeypatch.setattr(type(searcher.store), "version", lambda _: f"{version} and more")
    assert gallery.facets() == first
    assert len(counted) == 2


def test_facets_are_counted_outside_the_event_loop(api: Any, monkeypatch: Any) -> None:
    threads, real = [], IndexGallery.facets
    monkeypatch.setattr(
        IndexGallery, "facets", lambda own: (threads.append(threading.current_thread().name), real(own))[1]
    )
    assert api.get("/api/facets").status_code == 200
    assert [name.rpartition("_")[0] for name in threads] == ["diml-work"]


def test_many_texts_are_not_listed_and_memory_is_bounded() -> None:
    parts = (ListedRows((str(row),), ({"code": f"x{row}", "n": row},)) for row in range(MOST_VALUES + 1))
    code, number = facets_of(parts, {"code": "text", "n": "integer"})
    assert (code.kind, code.values) == ("text", ())
    assert (number.low, number.high) == (0, MOST_VALUES)
    assert [facet.kind for facet in facets_of([], {"code": "text", "n": "number"})] == ["values", "range"]


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("ARLA", {0, 3, 6, 9}),
        ("arla c1", {3, 9}),
        ("100%", {2, 5, 8, 11}),
        ("1_", set()),
        ("åsa C0", {2, 8}),
        (" ", range(12)),
    ],
)
def test_images_are_looked_up_by_words(api: Any, text: str, numbers: Any) -> None:
    expected = sorted(f"{number:02}.png" for number in numbers)
    assert names(api.get("/api/gallery", params={"text": text, "count": 50})) == expected


def test_look_up_and_condition_apply_together(api: Any) -> None:
    found = names(api.get("/api/gallery", params={"text": "arla", "where": '"on sale" = true or stock >= 9'}))
    assert found == ["00.png", "03.png", "09.png"]
    page = api.get("/api/gallery", params={"where": "brand is null", "count": 1, "offset": 3}).json()
    assert (page["total"], len(page["items"])) == (4, 1)
    assert names(api.get("/api/gallery", params={"path": "07.png"})) == ["07.png"]


@pytest.mark.parametrize(
    ("method", "address", "status", "code"),
    [
        ("get", "gallery?path=none.png", 404, "no_such_image"),
        ("get", "gallery?where=colour%3D1", 422, "bad_where"),
        ("get", f"gallery?text={'x' * 101}", 422, "bad_request"),
        ("get", "facets?n=1", 422, "unknown_parameter"),
        ("post", "search?id=x&box=1,2", 422, "bad_box"),
        ("post", "search?id=x&share=2", 422, "bad_share"),
        ("post", "search?id=x&share=nan", 422, "bad_share"),
    ],
)
def test_what_is_wrong_is_told(api: Any, method: str, address: str, status: int, code: str) -> None:
    answer = getattr(api, method)(f"/api/{address}")
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert error["code"] == code
    assert error["remedy"]


def test_a_box_searches_for_the_part_alone(api: Any, searcher: Searcher) -> None:
    image = drawn(5).rotate(3)
    box = QueryBox.read("0.1,0.2,0.8,0.9")
    expected = api.post("/api/search?hits=4", files={"query": content_of(box.crop(image))}).json()
    found = api.post(f"/api/search?hits=4&box={box}", files={"query": content_of(image)}).json()
    assert [(pair["hit"]["id"], pair["score"]) for pair in found["pairs"]] == [
        (pair["hit"]["id"], pair["score"]) for pair in expected["pairs"]
    ]
    assert found["settings"]["box"] == str(box)
    direct = searcher.search(image, 4, box=box, matcher=MATCHER)
    assert [hit.id for hit in direct.hits] == [pair["hit"]["id"] for pair in found["pairs"]]
    assert direct.image is not None
    assert direct.image.size == box.crop(image).size
    (item,) = api.get("/api/gallery?path=05.png").json()["items"]
    own = api.post(f"/api/search?hits=12&box={box}&id={item['id']}").json()
    assert item["id"] not in [pair["hit"]["id"] for pair in own["pairs"]]
    assert own["images"][0]["src"].startswith("data:")
    small = api.post("/api/search?box=0,0,0.1,0.1", files={"query": content_of(image)})
    assert (small.status_code, small.json()["error"]["code"]) == (422, "bad_box")


def test_copies_of_the_query_are_left_out_where_that_is_asked(api: Any, searcher: Searcher) -> None:
    content = content_of(drawn(7))
    (item,) = api.get("/api/gallery?path=07.png").json()["items"]
    found = api.post("/api/search?hits=12", files={"query": content}).json()
    assert found["pairs"][0]["hit"]["id"] == item["id"]
    without = api.post("/api/search?hits=12&exclude_self=true", files={"query": content}).json()
    assert [one["id"] for one in without["own"]] == [item["id"]]
    assert item["id"] not in [pair["hit"]["id"] for pair in without["pairs"]]
    assert api.post(f"/api/search?id={item['id']}&exclude_self=true").json()["own"] == []


def test_partial_matching_is_for_one_search(api: Any) -> None:
    whole, partial = (
        api.post(f"/api/search?hits=2{share}", files={"query": content_of(drawn(3).rotate(5))}).json()
        for share in ("", "&share=0.5")
    )
    assert partial["settings"]["share"] == 0.5
    assert whole["settings"]["share"] == 1
    unmatched = partial["pairs"][0]["summary"]["unmatched"]
    assert unmatched["query"]["mass"] == pytest.approx(0.5, abs=1e-3)


def test_a_folder_is_looked_up_by_path_and_has_no_facets(
    client: Callable[..., Any], tmp_path: Path, embedder: Embedder
) -> None:
    folder = write_shop(tmp_path / "shop")
    gallery = FolderGallery(folder, embedder)
    gallery.start()
    assert gallery.wait(60).phase == "ready"
    one = client(gallery=gallery)
    assert one.get("/api/facets").json() == {"columns": []}
    assert names(one.get("/api/gallery?text=LEFT%200")) == [f"left/{number:02}.png" for number in (1, 3, 5, 7, 9)]
    assert names(one.get("/api/gallery?path=left/03.png")) == ["left/03.png"]
    assert one.get("/api/gallery?where=label%3D%27left%27").json()["error"]["code"] == "bad_where"
    content = (folder / "left" / "03.png").read_bytes()
    assert Counter(item.name for item in gallery.copies(content)) == {"left/03.png": 1}
    found = one.post("/api/search?hits=12&exclude_self=true", files={"query": content}).json()
    assert len(found["pairs"]) == 9


@pytest.mark.parametrize(("asked", "used"), [("", 3), ("&rerank_at=0", 0), ("&rerank_at=5", 5)])
def test_a_search_re_ranks_as_deep_as_the_index_is_tuned_unless_told(
    client: Callable[..., Any], searcher: Searcher, monkeypatch: Any, asked: str, used: int
) -> None:
    monkeypatch.setattr(searcher, "rerank_at", 3)
    api = client(gallery=IndexGallery(searcher, "shop.index"))
    found = api.post(f"/api/hits?hits=2{asked}", files={"query": ("q.png", content_of(drawn(0)))}).json()
    assert found["settings"]["rerank_at"] == used
    assert [hit["reranked"] for hit in found["hits"]] == [used > 0] * 2
