"""An index follows its images: what is new, changed, moved, gone or unreadable, and nothing else, is worked on."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from diml.distributed import ProcessGroup
from diml.search import build_index, open_store
from diml.search.filters import parse_where
from diml.search.index import verify_index
from diml.search.sources import list_source
from diml.search.store import encode_regions
from unit.search.conftest import draw


@pytest.fixture
def build(photos, tmp_path, embedder, model):
    def run(place=photos, **options):
        settings = {"model": str(model), "batch_size": 4, "commit_every": 5} | options
        return build_index(list_source(place), tmp_path / "index", embedder, **settings)

    return run


@pytest.fixture
def store(tmp_path):
    return lambda: open_store(tmp_path / "index")


def counts(report):
    names = ("embedded", "copied", "unchanged", "removed", "total")
    return tuple(getattr(report, name) for name in names)


def by_path(store):
    """path -> (id, metadata) of all rows."""
    listed = [entry for part in store.listing() for entry in zip(part.ids, part.metadata, strict=True)]
    return {metadata["path"]: (name, metadata) for name, metadata in listed}


def test_rows_are_what_the_embedder_makes_of_the_files(build, store, photos, embedder):
    assert counts(build()) == (12, 0, 0, 0, 12)
    rows = by_path(store())
    for path, (name, metadata) in rows.items():
        found = store().regions([name])
        regions = embedder.embed([photos / path])
        np.testing.assert_allclose(found.pooled, regions.pooled.numpy(), atol=1e-6)
        halves, expected = (
            coded.view("<f2").astype(np.float32) for coded in (found.coded, encode_regions(regions, store().config))
        )
        np.testing.assert_allclose(halves, expected, atol=1e-3)
        assert metadata["label"] == path.split("/")[0]
        assert metadata["source"] == str(photos)
    assert verify_index(store()).ok


def test_a_second_run_embeds_nothing(build, embedder, monkeypatch):
    build()
    asked, embed_batches = [], type(embedder).embed_batches

    def watched(self, images, *options):
        asked.extend(images)
        return embed_batches(self, images, *options)

    monkeypatch.setattr(type(embedder), "embed_batches", watched)
    assert counts(build()) == (0, 0, 12, 0, 12)
    assert not [image for image in asked if isinstance(image, str)]  # one blank image tells the shapes


def test_new_changed_and_removed_images(build, store, photos):
    build()
    before = by_path(store())
    draw(100).save(photos / "class 0" / "new.png")
    draw(101).save(photos / "class 1" / "1.png")
    (photos / "class 2" / "2.png").unlink()
    stale = verify_index(store()).stale
    assert sorted(line.rsplit(": ", 1)[1] for line in stale) == ["changed since it was indexed", "missing"]
    assert counts(build()) == (2, 0, 10, 1, 12)
    after = by_path(store())
    assert after.keys() == (before.keys() | {"class 0/new.png"}) - {"class 2/2.png"}
    assert after["class 1/1.png"][0] == before["class 1/1.png"][0]
    assert after["class 1/1.png"][1]["content"] != before["class 1/1.png"][1]["content"]
    assert verify_index(store()).ok


def test_a_moved_image_is_copied_not_embedded(build, store, photos):
    build()
    before = by_path(store())
    vectors = store().regions([before["class 0/3.png"][0]])
    (photos / "class 0" / "3.png").rename(photos / "class 2" / "moved.png")
    assert counts(build()) == (0, 1, 11, 1, 12)
    after = by_path(store())
    assert "class 0/3.png" not in after
    assert after["class 2/moved.png"][1]["label"] == "class 2"
    found = store().regions([after["class 2/moved.png"][0]])
    np.testing.assert_array_equal(found.coded, vectors.coded)


def test_new_metadata_alone_embeds_nothing(build, store, photos):
    file = photos / "shop.csv"
    paths = list_source(photos).paths
    file.write_text("path,price\n" + "".join(f"{path},{row}\n" for row, path in enumerate(paths)))
    assert counts(build(file)) == (12, 0, 0, 0, 12)
    file.write_text("path,price\n" + "".join(f"{path},{row + (row == 4)}\n" for row, path in enumerate(paths)))
    assert counts(build(file)) == (0, 1, 11, 0, 12)
    assert store().count(parse_where("price = 5", store().config.columns)) == 2


def test_images_of_another_source_stay(build, store, photos, tmp_path):
    build()
    other = tmp_path / "other"
    other.mkdir()
    draw(200).save(other / "200.png")
    draw(0).save(other / "same as class 0, 0.png")
    assert counts(build(other)) == (1, 1, 0, 0, 14)
    (photos / "class 0" / "0.png").unlink()
    assert counts(build()) == (0, 0, 11, 1, 13)


def test_missing_images_can_be_kept(build, photos):
    build()
    (photos / "class 0" / "0.png").unlink()
    assert counts(build(keep_missing=True)) == (0, 0, 11, 0, 12)


def test_bad_images_are_told_and_what_was_there_of_them_stays(build, store, photos):
    (photos / "torn.png").write_bytes((photos / "class 0" / "0.png").read_bytes()[:60])
    report = build()
    assert counts(report) == (12, 0, 0, 0, 12)
    assert [(bad.path, bool(bad.reason)) for bad in report.bad] == [(str(photos / "torn.png"), True)]
    (photos / "class 1" / "4.png").write_bytes(b"no image any more")
    report = build()
    assert counts(report) == (0, 0, 11, 0, 12)
    assert [bad.path for bad in report.bad] == [str(photos / "class 1" / "4.png"), str(photos / "torn.png")]
    assert "class 1/4.png" in by_path(store())


def test_a_listed_image_that_is_missing_is_bad(build, photos):
    (photos / "shop.csv").write_text("path,label\nclass 0/0.png,a\nnowhere.png,b\n")
    report = build(photos / "shop.csv")
    assert counts(report) == (1, 0, 0, 0, 1)
    assert [(bad.path, bad.reason) for bad in report.bad] == [(str(photos / "nowhere.png"), "no such file")]


def test_only_bad_images_make_an_empty_index(build, photos):
    for file in photos.rglob("*.png"):
        file.write_bytes(b"")
    report = build()
    assert (counts(report), len(report.bad)) == ((0, 0, 0, 0, 0), 12)


def test_another_embedder_storage_or_column_is_refused_and_nothing_is_changed(build, store, photos, embedder, model):
    build()
    other = type(embedder)(embedder.backbone, embedder.head, dataclasses.replace(embedder.config, grid=2))
    with pytest.raises(ValueError, match="another embedder"):
        build_index(list_source(photos), store().info().uri, other, model=str(model))
    with pytest.raises(ValueError, match="storage float16, got int8"):
        build(storage="int8")
    (photos / "shop.csv").write_text("path,price\nclass 0/0.png,3\n")
    with pytest.raises(ValueError, match=r"no column price \(integer\)"):
        build(photos / "shop.csv")
    assert store().count() == 12


def test_numbers_out_of_range_are_refused(build):
    with pytest.raises(ValueError, match="at least 1"):
        build(commit_every=0)


@pytest.mark.parametrize("size", [1, 2, 5, 20])
def test_processes_share_the_images(size):
    rows = [row for rank in range(size) for row in ProcessGroup(rank, size).strided(12)]
    assert sorted(rows) == list(range(12))
