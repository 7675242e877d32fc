"""A folder as a gallery: it finds what a naive search finds, and never serves a file outside the folder."""

from __future__ import annotations

import os
import shutil
import threading
import warnings
from pathlib import Path

import numpy as np
import pytest

from diml.data import BadImageError
from diml.matching import Matcher, Regions
from diml.models import Embedder
from diml.web.folder import FolderGallery
from diml.web.gallery import GalleryNotReadyError
from served import MATCHER, drawn, write_shop


def slow_search(
    query: Regions, gallery: Regions, rerank_at: int, matcher: Matcher
) -> tuple[list[int], list[int], np.ndarray, np.ndarray]:
    """Rows by the two stages, rows by pooled cosine, pooled and structural of each row."""
    found = matcher.match(query, gallery)
    pooled, score = found.pooled.numpy(), found.score.numpy()
    by_pooled = sorted(range(len(pooled)), key=lambda row: -pooled[row])
    best = sorted(by_pooled[:rerank_at], key=lambda row: -score[row])
    return best + by_pooled[rerank_at:], by_pooled, pooled, found.structural.numpy()


@pytest.mark.parametrize("matcher", [MATCHER, Matcher(structural_weight=3, weights="uniform")])
@pytest.mark.parametrize("rerank_at", [0, 1, 4, 10, 100])
@pytest.mark.parametrize("hits", [1, 6, 50])
def test_hits_are_those_of_a_slow_search(
    gallery: FolderGallery, embedder: Embedder, shop: Path, rerank_at: int, hits: int, matcher: Matcher
) -> None:
    query = embedder.embed([drawn(3).rotate(9)])
    paths = sorted(shop.rglob("*.png"))
    order, by_pooled, pooled, structural = slow_search(query, embedder.embed(paths), rerank_at, matcher)
    answer = gallery.search(query, hits=hits, rerank_at=rerank_at, matcher=matcher)
    found = answer.hits
    assert len(answer.scores) == min(rerank_at, 10)
    assert answer.scores == tuple(sorted(answer.scores, reverse=True))
    shown = min(rerank_at, hits, 10)
    assert [hit.score for hit in found[:shown]] == list(answer.scores[:shown])
    assert answer.searched == 10
    assert [hit.item.name for hit in found] == [paths[row].relative_to(shop).as_posix() for row in order[:hits]]
    assert [hit.rank for hit in found] == list(range(1, min(hits, 10) + 1))
    for hit, row in zip(found, order, strict=False):
        assert hit.pooled_rank == by_pooled.index(row) + 1
        assert hit.pooled == pytest.approx(pooled[row], abs=1e-5)
        if by_pooled.index(row) < rerank_at:
            assert hit.structural == pytest.approx(structural[row], abs=2e-5)
            assert hit.score == pytest.approx(pooled[row] + matcher.structural_weight * structural[row], abs=8e-5)
        else:
            assert hit.structural is None
            assert hit.score == hit.pooled


def test_an_image_of_the_gallery_is_no_hit_of_itself(gallery: FolderGallery) -> None:
    item = gallery.items(4, 1)[0]
    query = gallery.regions([item.id])
    assert gallery.search(query, hits=3, rerank_at=5).hits[0].item == item
    answer = gallery.search(query, hits=50, rerank_at=5, exclude=[item.id])
    found = answer.hits
    assert answer.searched == 9
    assert len(found) == 9
    assert item not in [hit.item for hit in found]
    assert sorted(hit.pooled_rank for hit in found) == list(range(1, 10))


def test_items_have_names_labels_and_their_own_files(gallery: FolderGallery, shop: Path) -> None:
    items = gallery.items(0, 100)
    assert [item.name for item in items] == sorted(path.relative_to(shop).as_posix() for path in shop.rglob("*.png"))
    assert {item.label for item in items} == {"left", "right hand"}
    assert len({item.id for item in items}) == 10
    for item in items:
        assert gallery.image(item.id) == (shop / item.name).read_bytes()
        assert gallery.item(item.id) is item
    assert gallery.items(8, 5) == items[8:]
    assert gallery.items(50, 5) == []


@pytest.mark.parametrize("key", ["", "..", "../secret.png", "/etc/passwd", "left/01.png", "0"])
def test_only_ids_are_answered(gallery: FolderGallery, key: str) -> None:
    for ask in (gallery.item, gallery.image, lambda key: gallery.regions([key])):
        with pytest.raises(KeyError):
            ask(key)


def test_links_are_followed_and_broken_images_are_left_out_by_name(tmp_path: Path, embedder: Embedder) -> None:
    shop = write_shop(tmp_path / "shop", 3)
    outside = write_shop(tmp_path / "outside", 2)
    (shop / "out.png").symlink_to(outside / "left" / "01.png")
    (shop / "nowhere.png").symlink_to(tmp_path / "missing.png")
    (shop / "inside.png").symlink_to(shop / "left" / "01.png")
    (shop / "folder").symlink_to(outside)
    (shop / "torn.png").write_bytes((shop / "left" / "01.png").read_bytes()[:300])
    (shop / ".hidden.png").write_bytes(b"")
    gallery = FolderGallery(shop, embedder, batch_size=2)
    gallery.start()
    state = gallery.wait(60)
    assert state.phase == "ready"
    assert {bad.path: bad.reason.split(" (")[0] for bad in state.bad} == {"torn.png": "cannot be decoded"}
    assert "1 broken links" in gallery.left_out
    assert (state.done, state.total, state.count) == (6, 6, 5)
    names = [item.name for item in gallery.items(0, 9)]
    assert names == [
        "folder/left/01.png",
        "folder/right hand/00.png",
        "left/01.png",
        "right hand/00.png",
        "right hand/02.png",
    ]
    found = gallery.search(embedder.embed([drawn(2)]), hits=9, rerank_at=9).hits
    assert sorted(hit.item.name for hit in found) == names
    assert found[0].item.name == "right hand/02.png"


def test_a_file_that_later_becomes_a_link_is_not_read(tmp_path: Path, embedder: Embedder) -> None:
    shop = write_shop(tmp_path / "shop", 2)
    secret = tmp_path / "secret.png"
    shutil.copy(shop / "left" / "01.png", secret)
    gallery = FolderGallery(shop, embedder)
    item = gallery.items(0, 1)[0]
    (shop / item.name).unlink()
    (shop / item.name).symlink_to(secret)
    with pytest.raises(FileNotFoundError, match="leads to another file"):
        gallery.image(item.id)


def test_what_is_no_folder_of_images_is_told(tmp_path: Path, embedder: Embedder) -> None:
    (tmp_path / "empty" / "deep").mkdir(parents=True)
    (tmp_path / "empty" / "notes.txt").write_text("no image")
    for folder, kind, told in (
        (tmp_path / "missing", FileNotFoundError, "no such folder"),
        (tmp_path / "empty" / "notes.txt", NotADirectoryError, "need a folder, got a file"),
        (tmp_path / "empty", ValueError, "need at least one image in it, got none"),
    ):
        with pytest.raises(kind, match=told):
            FolderGallery(folder, embedder)


def test_a_folder_of_broken_images_fails_and_says_why(tmp_path: Path, embedder: Embedder) -> None:
    (tmp_path / "torn.png").write_bytes(b"torn")
    gallery = FolderGallery(tmp_path, embedder)
    gallery.start()
    state = gallery.wait(60)
    assert state.phase == "failed"
    assert "none of the 1 can be read" in state.error
    with pytest.raises(GalleryNotReadyError, match="none of the 1"):
        gallery.search(embedder.embed([drawn(0)]), hits=1, rerank_at=0)


def test_progress_is_told_and_stopping_ends_it_soon(
    tmp_path: Path, embedder: Embedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    gallery = FolderGallery(write_shop(tmp_path / "shop", 6), embedder, batch_size=2)
    reached, go_on = threading.Event(), threading.Event()
    advance = gallery._advance

    def held(images: int) -> None:
        advance(images)
        reached.set()
        assert go_on.wait(60)

    monkeypatch.setattr(gallery, "_advance", held)
    gallery.start()
    assert reached.wait(60)
    state = gallery.state()
    assert (state.phase, state.done, state.total, state.count) == ("embedding", 2, 6, 0)
    with pytest.raises(GalleryNotReadyError, match="2 of 6 images"):
        gallery.regions([gallery.items(0, 1)[0].id])
    gallery._stopping.set()
    go_on.set()
    assert gallery.wait(60).phase == "failed"
    assert gallery.state().done == 4
    gallery.stop()


def test_the_cache_spares_a_second_embedding(
    tmp_path: Path, embedder: Embedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    shop = write_shop(tmp_path / "shop", 3)
    query, found = embedder.embed([drawn(1)]), []
    for _ in range(2):
        gallery = FolderGallery(shop, embedder, cache=tmp_path / "cache")
        gallery.start()
        state = gallery.wait(60)
        assert (state.phase, state.done, state.total) == ("ready", 3, 3)
        found.append(gallery.search(query, hits=3, rerank_at=3).hits)
        monkeypatch.setattr(Embedder, "embed_checked", None)  # whoever calls it now fails
    assert found[0] == found[1]
    assert len(list((tmp_path / "cache").iterdir())) == 1


def test_names_that_are_not_utf_8_are_served_and_written_by_their_bytes(tmp_path: Path, embedder: Embedder) -> None:
    shop = write_shop(tmp_path / "shop", 2)
    strange = shop / os.fsdecode(b"gr\xfcn") / os.fsdecode(b"caf\xe9.png")
    try:
        strange.parent.mkdir()
    except OSError:
        pytest.skip("this file system takes UTF-8 only")
    drawn(3).save(strange)
    (strange.parent / os.fsdecode(b"torn\xe9.png")).write_bytes(b"torn")
    gallery = FolderGallery(shop, embedder)
    gallery.start()
    state = gallery.wait(60)
    assert [bad.path for bad in state.bad] == ["gr\\xfcn/torn\\xe9.png"]
    (item,) = (item for item in gallery.items(0, 9) if "caf" in item.name)
    assert (item.name, item.label) == ("gr\\xfcn/caf\\xe9.png", "gr\\xfcn")
    assert gallery.image(item.id) == strange.read_bytes()


def test_a_file_that_becomes_a_pipe_is_not_waited_for(tmp_path: Path, embedder: Embedder) -> None:
    shop = write_shop(tmp_path / "shop", 2)
    gallery = FolderGallery(shop, embedder)
    item = gallery.items(0, 1)[0]
    (shop / item.name).unlink()
    os.mkfifo(shop / item.name)
    with pytest.raises(BadImageError, match="is not a regular file"):
        gallery.image(item.id)


def test_a_cache_that_cannot_be_written_is_gone_on_without(tmp_path: Path, embedder: Embedder) -> None:
    (tmp_path / "cache").write_text("a file where the folder should be")
    gallery = FolderGallery(write_shop(tmp_path / "shop", 3), embedder, cache=tmp_path / "cache" / "below")
    with warnings.catch_warnings():  # of a thread, which pytest.warns does not see
        warnings.simplefilter("ignore")
        gallery.start()
        state = gallery.wait(60)
    assert (state.phase, state.count) == ("ready", 3)
