"""An index as a gallery: it finds what the searcher finds, and serves no file but the indexed images."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("lancedb", reason="lancedb is not installed; it is in the extra `search`")

from diml.models import Embedder
from diml.search import Searcher, build_index, open_store
from diml.web.index import IndexGallery
from served import MATCHER, drawn, write_shop


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shop(tmp_path_factory.mktemp("indexed") / "shop")


@pytest.fixture(scope="module")
def searcher(images: Path, embedder: Embedder) -> Iterator[Searcher]:
    saved, place = images.parent / "model", images.parent / "shop.index"
    embedder.save(saved)
    build_index(images, place, embedder, model=str(saved))
    with Searcher(open_store(place), embedder) as opened:
        yield opened


@pytest.fixture
def index_gallery(searcher: Searcher) -> IndexGallery:
    return IndexGallery(searcher, "shop.index")


@pytest.mark.parametrize("rerank_at", [0, 4, 100])
def test_it_finds_what_the_searcher_finds(
    index_gallery: IndexGallery, searcher: Searcher, embedder: Embedder, rerank_at: int
) -> None:
    query = drawn(3).rotate(9)
    expected = searcher.search(query, 4, rerank_at=rerank_at, matcher=MATCHER).hits
    answer = index_gallery.search(embedder.embed(query), hits=4, rerank_at=rerank_at, matcher=MATCHER)
    found = answer.hits
    assert len(answer.scores) == min(rerank_at, 10)
    assert answer.searched == 10
    assert [(hit.item.id, hit.pooled_rank) for hit in found] == [(hit.id, hit.pooled_rank) for hit in expected]
    assert [hit.rank for hit in found] == [1, 2, 3, 4]
    assert [hit.score for hit in found] == pytest.approx([hit.score for hit in expected])


def test_an_image_of_the_index_is_no_hit_of_itself(index_gallery: IndexGallery) -> None:
    item = index_gallery.items(4, 1)[0]
    query = index_gallery.regions([item.id])
    assert index_gallery.search(query, hits=3, rerank_at=5).hits[0].item == item
    found = index_gallery.search(query, hits=50, rerank_at=50, exclude=[item.id]).hits
    assert item.id not in [hit.item.id for hit in found]
    assert sorted(hit.pooled_rank for hit in found) == list(range(1, index_gallery.state().total))


def test_items_are_told_once_each_and_an_unknown_id_is_none(index_gallery: IndexGallery, images: Path) -> None:
    total = index_gallery.state().total
    items = [item for offset in range(0, total, 4) for item in index_gallery.items(offset, 4)]
    assert all(index_gallery.items(offset, 200) == [] for offset in (total, 2**63 - 1, 10**30))
    assert sorted(item.name for item in items) == sorted(
        path.relative_to(images).as_posix() for path in images.rglob("*.png")
    )
    assert index_gallery.item(items[2].id) == items[2]
    assert index_gallery.image(items[2].id) == (images / items[2].name).read_bytes()
    for ask in (index_gallery.item, index_gallery.image, lambda key: index_gallery.regions([items[0].id, key])):
        with pytest.raises(KeyError, match=r"\.\./secret"):
            ask("../secret")


def test_a_file_that_is_another_one_by_now_is_not_given_away(index_gallery: IndexGallery, images: Path) -> None:
    item = index_gallery.items(0, 1)[0]
    place, secret = images / item.name, images.parent / "secret.txt"
    secret.write_text("secret")
    kept = place.read_bytes()
    place.unlink()
    try:
        place.symlink_to(secret)
        with pytest.raises(FileNotFoundError, match="has changed since it was indexed"):
            index_gallery.image(item.id)
    finally:
        place.unlink()
        place.write_bytes(kept)


def test_the_server_searches_it(client: Callable[..., Any], index_gallery: IndexGallery, tmp_path: Path) -> None:
    drawn(3).save(tmp_path / "query.png")
    one = client(gallery=index_gallery)
    status = one.get("/api/status").json()["gallery"]
    assert (status["kind"], status["phase"]) == ("index", "ready")
    assert status["count"] == status["total"] == index_gallery.state().count == 10  # the page shows this number
    answer = one.post("/api/search?hits=2", files={"query": (tmp_path / "query.png").read_bytes()}).json()
    assert [pair["hit"]["rank"] for pair in answer["pairs"]] == [1, 2]
    image = one.get(answer["images"][1]["src"])
    assert image.headers["content-type"] == "image/jpeg"


def test_an_index_without_regions_or_images_is_refused(images: Path, embedder: Embedder, tmp_path: Path) -> None:
    embedder.save(tmp_path / "model")
    build_index(images, tmp_path / "bare.index", embedder, model=str(tmp_path / "model"), storage="none")
    with pytest.raises(ValueError, match="need regions"):
        IndexGallery(Searcher(open_store(tmp_path / "bare.index"), embedder), "bare.index")
    few = tmp_path / "few"
    shutil.copytree(images, few)
    build_index(few, tmp_path / "few.index", embedder, model=str(tmp_path / "model"))
    store = open_store(tmp_path / "few.index")
    store.remove([name for part in store.listing() for name in part.ids])
    with pytest.raises(ValueError, match="need at least one image"):
        IndexGallery(Searcher(store, embedder), "few.index")
