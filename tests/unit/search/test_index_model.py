"""A head of its own: fitted without labels when an index is created, kept with it, used by all that open it."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
import torch

from diml.models import Embedder, load_embedder
from diml.search import Searcher, build_index, open_store
from diml.search.index import create_store, verify_index
from diml.search.index_model import HEAD_FILE, head_facts, head_text, load_index_embedder, use_head
from diml.search.sources import list_source
from diml.search.store import decode_regions
from unit.search.conftest import draw

NETWORK = "test_resnet"


@pytest.fixture
def network(monkeypatch):
    """A network by name, whose weights are the same whenever it is loaded."""

    def load(name=NETWORK, **options):
        options.pop("weights_file", None)
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return load_embedder(name, pretrained=False, size=64, **{**options, "preprocess": None})

    def again(name, architecture=None, **options):
        return load(name, head=options["head"], dim=options["dim"])

    monkeypatch.setattr("diml.search.index_model.load_embedder", again)
    return load


@pytest.fixture
def build(photos, tmp_path, network):
    def run(dim=24, **options):
        made = network().with_whitening(dim)
        return made, build_index(photos, tmp_path / "index", made, model=NETWORK, batch_size=4, **options)

    return run


def test_it_is_fitted_on_the_images_and_found_again(build, photos, tmp_path):
    made, report = build(storage="float16")
    assert report.embedded == 12
    assert report.notices[0] == "head whiten, 24 channels, fitted without labels on 12 of the images"
    store = open_store(tmp_path / "index")
    assert (store.config.dim, store.config.embedder) == (24, made.fingerprint())
    assert head_facts(store) == {"name": "whiten", "dim": 24, "fitted_on": 12}
    found = load_index_embedder(store)
    assert found.fingerprint() == made.fingerprint()
    with Searcher.open(tmp_path / "index") as searcher:
        for file in sorted(photos.rglob("*.png")):
            hits = searcher.search(file, 3).hits
            assert hits[0].file == file
            assert hits[0].pooled == pytest.approx(1, abs=1e-3)


def test_images_that_it_was_fitted_on_have_the_vectors_that_others_would_have(build, photos, tmp_path):
    made, _ = build(storage="float16")
    store = open_store(tmp_path / "index")
    ids = [name for part in store.listing() for name in part.ids]
    rows = store.regions(ids)
    direct = made.embed([photos / str(entry["path"]) for entry in rows.metadata])
    np.testing.assert_allclose(rows.pooled, direct.pooled.numpy(), atol=1e-5)
    stored = decode_regions(rows, store.config)
    torch.testing.assert_close(stored.dense.float(), direct.dense, atol=1e-3, rtol=0)


def test_a_later_build_uses_the_head_of_the_index(build, photos, network):
    first, _ = build()
    draw(300).save(photos / "class 1" / "new.png")
    again, report = build()
    assert (report.embedded, report.unchanged, report.notices) == (1, 12, ())
    assert again.fingerprint() == first.fingerprint()


def test_only_some_images_are_embedded_for_it_and_none_twice(build, photos, tmp_path, monkeypatch):
    monkeypatch.setattr("diml.search.whitening.FIT_IMAGES", 9)
    asked, embed_batches = [], Embedder.embed_batches

    def watched(self, images, *options):
        asked.extend(str(image) for image in images if isinstance(image, str))
        return embed_batches(self, images, *options)

    monkeypatch.setattr("diml.models.embedder.Embedder.embed_batches", watched)
    _, report = build()
    assert report.notices[0].endswith("on 9 of the images")
    assert (report.embedded, report.total, len(asked), len(set(asked))) == (12, 12, 12, 12)


def test_an_image_that_cannot_be_read_is_left_out(build, photos):
    (photos / "class 0" / "bad.png").write_bytes(b"no image")
    _, report = build()
    assert (report.embedded, len(report.bad)) == (12, 1)
    assert report.notices[0].endswith("on 12 of the images")


def test_a_build_that_was_killed_before_the_first_row_goes_on(build, tmp_path):
    folder = tmp_path / "index"
    folder.mkdir()
    (folder / HEAD_FILE).write_text("half written")
    _, report = build()
    assert report.total == 12
    assert load_index_embedder(open_store(folder)).dim == 24


@pytest.mark.parametrize(
    ("damage", "match"),
    [
        (lambda text: None, "head.json, is missing"),
        (lambda text: text[:-9], "head.json"),
        (lambda text: text.replace('"images": 12', '"images": 13'), "damaged or changed"),
        (lambda text: json.dumps(["no", "head"]), "need a document with the key sha256"),
    ],
)
def test_a_head_that_is_missing_or_damaged_is_an_error(build, tmp_path, damage, match):
    build()
    file = tmp_path / "index" / HEAD_FILE
    damaged = damage(file.read_text())
    file.unlink()
    if damaged is not None:
        file.write_text(damaged)
    with pytest.raises(ValueError, match=match):
        Searcher.open(tmp_path / "index")
    (fault,) = verify_index(open_store(tmp_path / "index")).faults
    assert re.search(match, fault)


def test_another_network_than_that_of_the_head_is_refused(network):
    fitted = network().with_whitening(8)
    fitted.fit_head([draw(number) for number in range(4)])
    text = head_text(fitted, 4)
    narrow = load_embedder("test_vit", pretrained=False)
    with pytest.raises(ValueError, match=f"for a network of {fitted.backbone.channels} channels, got one of"):
        use_head(narrow.with_whitening(8), text)


@pytest.mark.parametrize("dim", [1, 7, 60])
def test_the_text_of_a_head_holds_it_exactly(network, dim):
    fitted = network().with_whitening(dim)
    assert fitted.dim == min(dim, fitted.backbone.channels)
    fitted.fit_head([draw(number) for number in range(30)])
    text = head_text(fitted, 30)
    again = network().with_whitening(dim)
    use_head(again, text)
    assert again.fingerprint() == fitted.fingerprint()
    assert torch.equal(again.head.weight, fitted.head.weight)


def test_texts_are_there_from_the_beginning(tmp_path, build):
    build()
    config = open_store(tmp_path / "index").config
    store = create_store(tmp_path / "other", config, {"some.json": "{}"})
    assert store.read_text("some.json") == "{}"
    again = create_store(tmp_path / "other", config, {"some.json": "[]"})
    assert again.read_text("some.json") == "{}"


def test_an_index_takes_the_storage_that_it_has(build, photos, tmp_path):
    build(storage="float16")
    _, report = build()
    assert report.unchanged == 12
    assert open_store(tmp_path / "index").config.storage == "float16"
    assert len(list_source(photos)) == 12
