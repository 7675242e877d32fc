"""With a reducing gap a file gives the same regions by every command, and an index, a model and a cache remember it."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import diml
from diml.cli import main
from diml.data import ImageSet, load_image
from diml.data.query_box import QueryBox
from diml.evaluation.evaluate import evaluate_dataset
from diml.explain.report import _Views
from diml.faithfulness.chunk import Chunk
from diml.faithfulness.collected import Collector
from diml.faithfulness.settings import Measures
from diml.matching import Matcher, Regions
from diml.models import Embedder, EmbedderConfig, load_embedder
from diml.models.cache import embed_cached
from diml.search import Searcher, build_index, open_store
from diml.search.index_model import load_index_embedder
from tiny_model import save_tiny_model

GAP = 2.0
#: Vectors of the same pixels in batches of other sizes differ by no more than this.
ROUNDING = 1e-5
#: Width, height and EXIF orientation of the photos, whose short sides are resized to 72 pixels: decoded at a half; at
#: an eighth, and then reduced; at a quarter of sides that 4 does not divide; turned; at full size, as it is small.
PHOTOS = ((480, 360, 1), (2600, 2400, 1), (605, 791, 1), (480, 400, 6), (200, 150, 1))


def photo(number: int, width: int, height: int) -> Image.Image:
    """Coarse shapes under fine noise, of which each way of shrinking keeps something else."""
    random = np.random.default_rng(number)
    coarse = Image.fromarray(random.integers(0, 256, (5, 5, 3), dtype=np.uint8)).resize((width, height))
    fine = random.integers(-90, 91, (height, width, 1))
    return Image.fromarray((np.asarray(coarse, dtype=int) + fine).clip(0, 255).astype(np.uint8))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`photos`: JPEG files in two classes and a PNG file; `model`: an embedder without a gap."""
    made = tmp_path_factory.mktemp("gap")
    for number, (width, height, orientation) in enumerate(PHOTOS):
        file = made / "photos" / "ab"[number % 2] / f"{number}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        exif = Image.Exif()
        exif[0x0112] = orientation
        photo(number, width, height).save(file, quality=90, exif=exif)
    photo(9, 640, 512).save(made / "photos" / "b" / "9.png")
    save_tiny_model(made / "model")
    return made


@pytest.fixture(scope="module")
def whole(folder: Path) -> Embedder:
    return load_embedder(folder / "model")


@pytest.fixture(scope="module")
def embedder(whole: Embedder) -> Embedder:
    return whole.with_settings(preprocess=replace(whole.preprocess, reducing_gap=GAP))


@pytest.fixture(scope="module")
def files(folder: Path) -> list[Path]:
    return sorted((folder / "photos").rglob("*.*"))


@pytest.fixture(scope="module")
def images(files: list[Path]) -> ImageSet:
    return ImageSet(files, [int(file.parent.name == "b") for file in files], class_names=("a", "b"), name="photos")


@pytest.fixture(scope="module")
def regions(embedder: Embedder, files: list[Path]) -> Regions:
    return embedder.embed(files)


@pytest.fixture(scope="module")
def built(folder: Path, embedder: Embedder) -> Path:
    pytest.importorskip("lancedb", reason="lancedb is not installed; it is in the extra `search`")
    build_index(folder / "photos", folder / "built", embedder, model=str(folder / "model"), storage="float16")
    return folder / "built"


def same(found: Regions, wanted: Regions) -> bool:
    return all(
        getattr(found, part).cpu().allclose(getattr(wanted, part), rtol=0, atol=ROUNDING)
        for part in ("dense", "pooled")
    )


def test_only_large_photos_are_embedded_otherwise(
    whole: Embedder, embedder: Embedder, files: list[Path], regions: Regions
) -> None:
    """The difference is far beyond the rounding that the other tests allow, and that of an image in memory."""
    plain = whole.embed(files)
    in_memory = embedder.embed([load_image(file) for file in files])
    for row, file in enumerate(files):
        large = not file.name.startswith("4")
        assert same(regions[[row]], plain[[row]]) is not large
        decoded_smaller = large and file.suffix == ".jpg"
        assert same(regions[[row]], in_memory[[row]]) is not decoded_smaller


def test_files_are_the_same_one_by_one_as_bytes_by_workers_and_loaded_likewise(
    embedder: Embedder, files: list[Path], regions: Regions
) -> None:
    least = embedder.preprocess.at_least
    assert same(embedder.embed([file.read_bytes() for file in files]), regions)
    assert same(embedder.embed([load_image(file, at_least=least) for file in files]), regions)
    assert same(embedder.embed(files, workers=1), regions)
    assert same(embedder.embed([str(files[0])]), regions[[0]])


def test_the_cache_keeps_both_apart(
    whole: Embedder, embedder: Embedder, images: ImageSet, regions: Regions, tmp_path: Path
) -> None:
    for _ in range(2):
        assert same(embed_cached(embedder, images, cache_dir=tmp_path).regions, regions)
        assert not same(embed_cached(whole, images, cache_dir=tmp_path).regions, regions)
    assert len(list(tmp_path.iterdir())) == 2


def test_an_evaluation_and_its_report(embedder: Embedder, images: ImageSet, regions: Regions) -> None:
    found = evaluate_dataset(embedder, images, rerank_at=(0,), resamples=10)
    assert same(found.regions, regions)
    assert found.report.settings["input"] == {"size": 64, "resize": "crop", "reducing_gap": GAP}
    views = _Views(found, embedder)
    views.make(range(len(images)))
    for row in range(len(images)):
        divided = views.regions(row)
        assert divided.shares is not None, divided.undivided
        torch.testing.assert_close(divided.shares.sum(dim=1), regions[[row]].pooled, rtol=0, atol=1e-5)


def test_a_comparison_of_two_files(embedder: Embedder, files: list[Path], regions: Regions) -> None:
    for a, b in ((0, 1), (2, 3), (5, 4)):
        found = diml.match(files[a], files[b], embedder=embedder)
        wanted = Matcher().match(regions[[a]], regions[[b]])
        torch.testing.assert_close(found.score, wanted.score, rtol=0, atol=1e-4)
        assert found.images is not None
        assert [image.size for image in found.images] == [(128, 128)] * 2


def test_what_is_measured_of_explanations(embedder: Embedder, images: ImageSet, regions: Regions) -> None:
    pairs = [(0, 1), (2, 3)]
    chunk = Chunk.load(embedder, images, pairs, 0, Measures(grad_cam=False), Matcher(), Collector())
    assert same(chunk.query, regions[[0, 2]])
    assert same(chunk.gallery, regions[[1, 3]])


def test_an_index_is_searched_as_it_was_built(built: Path, files: list[Path], regions: Regions) -> None:
    with Searcher.open(built) as searcher:
        assert searcher.embedder.preprocess.reducing_gap == GAP
        several = list(searcher.search_files(files, 3))
        for row, file in enumerate(files):
            for found in (searcher.search(file, 3), searcher.search(file.read_bytes(), 3), several[row]):
                assert isinstance(found, diml.search.searcher.SearchResult)
                assert same(found.regions, regions[[row]])
                assert found.hits[0].file == file
                assert found.hits[0].pooled == pytest.approx(1, abs=1e-3)
            (why,) = searcher.explain(searcher.search(file, 1))
            assert why.undivided == ""
        box = QueryBox.read("0,0,300,300")
        cut = searcher.search(files[0], 1, box=box)
        assert same(cut.regions, searcher.embedder.embed(box.crop(load_image(files[0]))))


def test_what_was_stored_before_there_was_the_setting_is_read_as_without_it(
    whole: Embedder, embedder: Embedder, built: Path
) -> None:
    plain = whole.config.to_dict()
    assert "reducing_gap" not in json.dumps(plain)
    assert EmbedderConfig.from_dict(plain).preprocess.reducing_gap is None
    assert embedder.config.to_dict()["preprocess"] == plain["preprocess"] | {"reducing_gap": GAP}
    assert embedder.fingerprint() != whole.fingerprint()
    store = open_store(built)
    assert store.config.embedder == embedder.fingerprint()
    del store.config.model["config"]["preprocess"]["reducing_gap"]
    with pytest.raises(ValueError, match="the index was built with another embedder"):
        load_index_embedder(store)


def test_uploads(embedder: Embedder, files: list[Path], built: Path, tmp_path: Path) -> None:
    pytest.importorskip("fastapi", reason="fastapi is not installed; it is in the extra `web`")
    from diml.web import Engine
    from diml.web.app import _opened
    from diml.web.index import IndexGallery
    from diml.web.limits import Limits
    from diml.web.uploads import UploadedFile

    with Searcher.open(built) as searcher:
        engine = Engine(searcher.embedder, gallery=IndexGallery(searcher, "photos"))
        preprocess, box = embedder.preprocess, QueryBox.read("0,0,300,300")
        for file in files:
            sent = UploadedFile("query", file.name, file.read_bytes())
            upload = _opened(engine, Limits(), None, sent)
            assert torch.equal(upload.input, preprocess(load_image(file, at_least=preprocess.at_least)))
            assert upload.view.size == (128, 128)
            hit = engine.search(upload, hits=1)["pairs"][0]["hit"]
            assert hit["name"] == f"{file.parent.name}/{file.name}"
            assert hit["pooled"] == pytest.approx(1, abs=1e-3)
        part = _opened(engine, Limits(), None, UploadedFile("query", "a.jpg", files[0].read_bytes()), box)
        assert torch.equal(part.input, preprocess(box.crop(load_image(files[0]))))
        assert engine.image(hit["id"], "view")


def test_a_saved_embedder_keeps_it(embedder: Embedder, files: list[Path], regions: Regions, tmp_path: Path) -> None:
    embedder.save(tmp_path / "saved")
    saved = load_embedder(tmp_path / "saved")
    assert saved.preprocess == embedder.preprocess
    assert saved.fingerprint() == embedder.fingerprint()
    assert same(saved.embed(files), regions)
    assert load_embedder(tmp_path / "saved", size=96).preprocess.reducing_gap == GAP


def test_on_the_command_line(
    folder: Path, files: list[Path], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pytest.importorskip("lancedb", reason="lancedb is not installed; it is in the extra `search`")
    monkeypatch.setenv("DIML_CACHE", str(tmp_path / "cache"))
    index, photos = str(tmp_path / "photos.index"), str(folder / "photos")
    model = ["--model", str(folder / "model")]
    gap = ["--reducing-gap", "2"]

    def told(*words: str) -> Any:
        assert main([*words, "--json"]) == 0
        return json.loads(capsys.readouterr().out)

    told("index", "build", photos, "--index", index, *model, *gap)
    assert told("index", "build", photos, "--index", index, *model, *gap)["embedded"] == 0
    for file in files:
        hit = told("search", index, str(file), "-k", "1")["hits"][0]
        assert hit["file"] == str(file)
        assert hit["pooled"] == pytest.approx(1, abs=1e-3)

    assert main(["index", "build", photos, "--index", index, *model]) == 2
    assert "with another embedder" in capsys.readouterr().err
    assert main(["calibrate", index, *gap]) == 2
    assert re.search(r"reducing.gap: an index has its own, got 2\.0; omit --reducing-gap", capsys.readouterr().err)
    assert main(["explain", str(files[0]), str(files[1]), *model, "--reducing-gap", "0.5"]) == 2
    assert "--reducing-gap: expected a number from 1 to 16384" in capsys.readouterr().err

    why = {}
    for words in ([], gap):
        assert main(["explain", str(files[0]), str(files[1]), *model, *words, "--json", "-"]) == 0
        why[bool(words)] = json.loads(capsys.readouterr().out)
    assert why[True]["settings"] == why[False]["settings"] | {"reducing_gap": 2.0}
    assert why[True]["score"] != why[False]["score"]
