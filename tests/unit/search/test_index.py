"""An index follows its images: what is new, changed, moved, gone or unreadable, and nothing else, is worked on."""

from __future__ import annotations

import dataclasses
import os

import numpy as np
import pytest

from diml.distributed import ProcessGroup
from diml.matching.codebooks import group_count
from diml.search import Searcher, build_index, open_store
from diml.search.filters import parse_where
from diml.search.index import verify_index
from diml.search.sources import list_source
from diml.search.store import DamagedIndexError, IndexNotFoundError, decode_regions, encode_regions
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


@pytest.fixture
def many_photos(photos):
    """64 images, whose regions are just enough to fit codes."""
    for number in range(12, 64):
        draw(number, side=40).save(photos / f"class {number % 3}" / f"{number}.png")


def by_path(store):
    """path -> (id, metadata) of all rows."""
    listed = [entry for part in store.listing() for entry in zip(part.ids, part.metadata, strict=True)]
    return {metadata["path"]: (name, metadata) for name, metadata in listed}


def test_rows_are_what_the_embedder_makes_of_the_files(build, store, photos, embedder):
    assert counts(build(storage="float16")) == (12, 0, 0, 0, 12)
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
    report = build()
    assert (counts(report), report.moved) == ((0, 0, 11, 0, 12), 1)
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


def test_another_embedder_or_storage_is_refused_and_nothing_is_changed(build, store, photos, embedder, model):
    build()
    other = type(embedder)(embedder.backbone, embedder.head, dataclasses.replace(embedder.config, grid=2))
    with pytest.raises(ValueError, match="another embedder"):
        build_index(list_source(photos), store().info().uri, other, model=str(model))
    with pytest.raises(ValueError, match="storage int8, got float16"):
        build(storage="float16")
    assert store().count() == 12


def test_numbers_out_of_range_are_refused(build):
    with pytest.raises(ValueError, match="at least 1"):
        build(commit_every=0)


@pytest.mark.parametrize("size", [1, 2, 5, 20])
def test_processes_share_the_images(size):
    rows = [row for rank in range(size) for row in ProcessGroup(rank, size).strided(12)]
    assert sorted(rows) == list(range(12))


def listed(folder, rows):
    """A CSV file of rows (path, price, code), with a label."""
    lines = [f"{path},l,{price},{code}" for path, price, code in rows]
    (folder / "shop.csv").write_text("path,label,price,code\n" + "\n".join(lines) + "\n")
    return folder / "shop.csv"


PATHS = [f"class {number % 3}/{number}.png" for number in range(12)]


def test_types_are_those_of_the_index_and_become_wider_by_themselves(build, store, photos):
    def rows(prices, codes=("a",) * 12):
        return listed(photos, zip(PATHS, prices, codes, strict=True))

    build(rows(["3.5", *["3"] * 11]))
    assert store().config.columns["price"] == "number"
    report = build(rows(["4", *["3"] * 11]))  # without the only fraction it would be a column of integers
    assert counts(report) == (0, 1, 11, 0, 12)
    assert report.notices == ()
    build(rows(["4", *["n/a"] * 11], ["7", *["8"] * 11]))
    assert store().config.columns["price"] == "text"
    assert store().count(parse_where("price = '4'", store().config.columns)) == 1
    assert verify_index(store()).ok


def test_an_integer_column_becomes_number_then_text_and_says_why(build, store, photos):
    build(listed(photos, [(path, "1", "") for path in PATHS]))
    assert "code" not in store().config.columns  # a column without a value has no type yet
    report = build(listed(photos, [(path, "1" if row else "1.5", "2") for row, path in enumerate(PATHS)]))
    assert (counts(report)[0], store().config.columns["price"]) == (0, "number")
    assert any(
        "price: integer before, now number, because of '1.5'" in line and "line 2" in line for line in report.notices
    )
    assert store().config.columns["code"] == "integer"
    report = build(listed(photos, [(path, "007", "2") for path in PATHS]))
    assert store().config.columns["price"] == "text"
    assert {entry["price"] for _, entry in by_path(store()).values()} == {"007"}
    assert verify_index(store()).ok


def test_whole_numbers_that_no_float_holds_become_text_not_other_numbers(build, store, photos):
    build(listed(photos, [(path, str(2**53 + 1), "") for path in PATHS]))
    build(listed(photos, [(path, str(2**53 + 1) if row else "0.5", "") for row, path in enumerate(PATHS)]))
    assert store().config.columns["price"] == "text"
    assert sorted({entry["price"] for _, entry in by_path(store()).values()}) == ["0.5", "9007199254740993"]


def test_named_types_are_kept_and_what_does_not_fit_is_named_by_row(build, store, photos):
    types = {"price": "number", "code": "boolean"}
    file = listed(photos, [(path, "1.50", "yes") for path in PATHS])
    build_index(list_source(file, types), store_place(photos), **embedding(build))
    assert store().config.named_types == ("code", "price")
    build(file)  # the types are those of the index
    assert store().count(parse_where("price = 1.5 and code = true", store().config.columns)) == 12
    before = by_path(store())
    for wrong, told in (
        [(PATHS[0], "cheap", "yes"), r"line 2 \(class 0/0.png\): price needs number, got 'cheap'"],
        [(PATHS[0], "1.5", "perhaps"), "code needs boolean, got 'perhaps'"],
    ):
        with pytest.raises(ValueError, match=told):
            build(listed(photos, [wrong, *((path, "1.50", "no") for path in PATHS[1:])]))
    with pytest.raises(ValueError, match="price is number in this index and can become text, got integer"):
        build_index(list_source(file, {"price": "integer"}), store_place(photos), **embedding(build))
    assert by_path(store()) == before


def store_place(photos):
    return photos.parent / "index"


def embedding(build):
    """The embedder and model of `build`."""
    cells = {name: cell.cell_contents for name, cell in zip(build.__code__.co_freevars, build.__closure__, strict=True)}
    return {"embedder": cells["embedder"], "model": str(cells["model"])}


def test_columns_of_numbers_that_are_kept_as_text_are_told_once(build, photos):
    file = listed(photos, [(path, "1.50", "007") for path in PATHS])
    assert [line.split(":")[0] for line in build(file).notices] == ["price", "code"]
    assert build(file).notices == ()


@pytest.mark.parametrize(
    ("lose", "told"),
    [
        (lambda photos: [(photos / path).unlink() for path in PATHS[:11]], "would remove 11 of 12 images: 11 whose"),
        (lambda photos: [(photos / path).unlink() for path in PATHS[::3]], "4 whose file is missing; all images of"),
        (lambda photos: (photos / "class 1").rename(photos.parent / "away"), "4 whose folder is missing; all images"),
    ],
)
def test_an_index_never_shrinks_by_accident(build, store, photos, lose, told):
    build()
    before = by_path(store())
    lose(photos)
    with pytest.raises(ValueError, match=told) as stopped:
        build()
    assert "--allow-removals" in str(stopped.value)
    assert by_path(store()) == before
    assert counts(build(keep_missing=True))[3:] == (0, 12)
    report = build(allow_removals=True)
    assert report.total == 12 - report.removed < 12
    assert verify_index(store()).ok


def test_a_list_that_was_cut_off_removes_nothing(build, store, photos):
    build(listed(photos, [(path, "1", "") for path in PATHS]))
    with pytest.raises(ValueError, match="11 whose file is there but not listed any more"):
        build(listed(photos, [(PATHS[0], "1", "")]))
    assert store().count() == 12


def test_few_removals_from_folders_that_keep_images_go_through(build, photos):
    build()
    for path in PATHS[:3]:
        (photos / path).unlink()
    assert counts(build()) == (0, 0, 9, 3, 9)


def test_a_class_behind_a_link_stays(build, store, photos, tmp_path):
    build()
    (photos / "class 1").rename(tmp_path / "elsewhere")
    (photos / "class 1").symlink_to(tmp_path / "elsewhere")
    assert counts(build()) == (0, 0, 12, 0, 12)


def test_a_renamed_folder_and_a_moved_source_are_recognised(build, store, photos, tmp_path):
    build()
    (photos / "class 1").rename(photos / "class one")
    report = build()
    assert (counts(report), report.moved) == ((0, 0, 8, 0, 12), 4)
    photos.rename(tmp_path / "moved")
    report = build(tmp_path / "moved")
    assert (counts(report), report.moved) == ((0, 0, 0, 0, 12), 12)
    assert any(str(photos) in line and str(tmp_path / "moved") in line for line in report.notices)
    assert {metadata["source"] for _, metadata in by_path(store()).values()} == {str(tmp_path / "moved")}
    assert verify_index(store()).ok


def test_a_copied_source_is_another_one(build, photos, tmp_path):
    import shutil

    build()
    shutil.copytree(photos, tmp_path / "copy")
    report = build(tmp_path / "copy")
    assert (counts(report), report.moved) == ((0, 12, 0, 0, 24), 0)


def damage(folder, vectors):
    """Replace bytes of the data of a LanceDB index that hold these vectors, in old versions too."""
    noise, found = np.random.default_rng(0).bytes(vectors.nbytes), 0
    for file in (folder / "images.lance" / "data").glob("*.lance"):
        content = file.read_bytes()
        at = content.find(vectors.tobytes())
        if at >= 0:
            file.write_bytes(content[:at] + noise + content[at + vectors.nbytes :])
            found += 1
    assert found


@pytest.mark.parametrize("storage", ["float16", "int8", "none"])
@pytest.mark.parametrize("kind", ["pooled", "coded"])
def test_damaged_rows_are_found_by_verify_and_by_reading(build, photos, tmp_path, storage, kind):
    if (storage, kind) == ("none", "coded"):
        return
    build(storage=storage)
    index = open_store(tmp_path / "index")
    ids = [name for part in index.listing() for name in part.ids]
    rows = index.regions(ids)
    damage(tmp_path / "index", getattr(rows, kind)[3])
    damaged = open_store(tmp_path / "index")
    found = verify_index(damaged, images=False)
    assert [line.split(":")[0] for line in found.faults] == [ids[3]]
    with pytest.raises(DamagedIndexError, match=f"1 of 12 rows.*{ids[3]}"):
        damaged.regions(ids)
    assert damaged.regions([ids[0]]).ids == (ids[0],)
    (photos / rows.metadata[3]["path"]).rename(photos / "class 0" / "new.png")
    with pytest.raises(DamagedIndexError):  # its vectors would be copied
        build(storage=storage)


def test_images_in_a_folder_that_cannot_be_opened_are_not_missing(build, photos, monkeypatch):
    build()
    scandir = os.scandir

    def refused(path):
        if str(path).endswith("class 1"):
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refused)
    assert counts(build(allow_removals=True)) == (0, 0, 8, 0, 12)


def test_a_wider_column_leaves_the_indexes_over_columns_as_they_were(build, store, photos):
    build(listed(photos, [(path, "1", "") for path in PATHS]))
    assert [index.columns for index in store()._table.list_indices()] == [["id"]]
    build(listed(photos, [(path, "1" if row else "1.5", "") for row, path in enumerate(PATHS)]))
    assert [index.columns for index in store()._table.list_indices()] == [["id"]]


@pytest.mark.usefixtures("many_photos")
def test_an_index_of_codes_keeps_its_codebooks(build, store, photos, embedder):
    build(storage="1kb")
    config = store().config
    assert (config.storage, config.row_bytes) == ("1kb", config.num_regions * group_count(config.dim))
    assert verify_index(store()).ok
    draw(99).save(photos / "class 0" / "new.png")
    assert counts(build()) == (1, 0, 64, 0, 65)
    assert store().config.codebooks == config.codebooks
    name = by_path(store())["class 0/new.png"][0]
    found = decode_regions(store().regions([name]), config)[0]
    given = embedder.embed(photos / "class 0" / "new.png")
    assert (found.dense * given.dense).sum(dim=2).mean() > 0.8
    with pytest.raises(ValueError, match="storage: the index has 1kb, got int8; omit it, or build a new index"):
        build(storage="int8")


@pytest.mark.usefixtures("many_photos")
def test_a_search_compares_the_query_as_it_is_with_codes(build, store, photos, embedder):
    build(storage="1kb")
    with Searcher(store(), embedder) as searcher:
        query = embedder.embed(photos / "class 1" / "4.png")
        result = searcher.search(query, k=12)
        assert result.hits[0].metadata["path"] == "class 1/4.png"
        for place, hit in enumerate(result.hits):
            assert result.ledger(place).score == pytest.approx(hit.score, abs=1e-5)


def test_an_index_of_codes_needs_regions_to_fit_them(build, store):
    with pytest.raises(ValueError, match="storage: '1kb' needs at least 1,024 regions"):
        build(storage="1kb")
    with pytest.raises(IndexNotFoundError):
        store()
    build()
    with pytest.raises(ValueError, match="storage: the index has int8, got 1kb"):
        build(storage="1kb")
