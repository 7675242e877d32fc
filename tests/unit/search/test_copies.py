"""Which pairs are compared, from which agreement they are copies, and how they are grouped."""

from __future__ import annotations

import csv
import io
import json
import os

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy import stats

from diml.data.alignment import Agreement
from diml.models import load_embedder
from diml.search import build_index, copies, open_store
from diml.search import duplicates as grouping
from diml.search.copies import CopyComparison, GalleryFiles, neighbour_pairs
from diml.search.copy_threshold import (
    DEFAULT_THRESHOLD,
    KINDS,
    Trials,
    _rate,
    choose_threshold,
    expected_false_pairs,
    given_threshold,
    made_copy,
    wilson,
)
from diml.search.duplicates import COLUMNS, find_duplicates
from diml.search.duplicates_page import duplicates_page
from diml.search.index import create_store
from diml.search.sources import list_source
from diml.search.store import Rows, encode_regions
from tiny_model import save_tiny_model
from unit.data.test_alignment import photo
from unit.search.contract import CONFIG, make_regions

# ---- which pairs are compared


def stored(tmp_path, contents):
    """An index of rows with these contents, and its gallery."""
    count = len(contents)
    regions = make_regions(count, seed=3)
    made = create_store(tmp_path / "index", CONFIG.__class__(**{**vars(CONFIG), "columns": {"content": "text"}}))
    ids = tuple(f"{row:02}" for row in range(count))
    pooled = regions.pooled.numpy()
    for row, content in enumerate(contents):
        pooled[row] = pooled[contents.index(content)]
    made.add(Rows(ids, pooled, encode_regions(regions, CONFIG), tuple({"content": value} for value in contents)))
    return made, GalleryFiles.of(made, None), pooled


@pytest.fixture(params=["exact", "by index"])
def way(request, monkeypatch):
    """Both ways to look up neighbours."""
    monkeypatch.setattr(copies, "_EXHAUSTIVE", 100_000 if request.param == "exact" else 0)


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("neighbours", [1, 3, 39])
def test_pairs_are_those_of_the_nearest_by_brute_force(tmp_path, neighbours):
    store, gallery, pooled = stored(tmp_path, [f"{row}" for row in range(40)])
    cosine = pooled @ pooled.T
    np.fill_diagonal(cosine, -2)
    expected = {
        (min(row, int(other)), max(row, int(other)))
        for row in range(40)
        for other in np.argsort(-cosine[row])[:neighbours]
    }
    found = neighbour_pairs(store, gallery, neighbours=neighbours)
    assert {tuple(pair) for pair in found.tolist()} == expected
    assert len(found) == len(expected)
    least = float(np.median(cosine[cosine > -2]))
    close = neighbour_pairs(store, gallery, neighbours=neighbours, least=least)
    assert {tuple(pair) for pair in close.tolist()} == {pair for pair in expected if cosine[pair] >= least}


@pytest.mark.usefixtures("way")
def test_exact_copies_take_no_places_among_the_neighbours(tmp_path):
    contents = ["same"] * 6 + [f"{row}" for row in range(6, 20)]
    store, gallery, pooled = stored(tmp_path, contents)
    assert gallery.exact() == [[0, 1, 2, 3, 4, 5]]
    assert (gallery.same(3), gallery.same(7)) == ([0, 1, 2, 3, 4, 5], [7])
    found = neighbour_pairs(store, gallery, neighbours=2)
    assert not {1, 2, 3, 4, 5} & set(found.ravel().tolist())  # the first stands for all
    nearest = 6 + np.argsort(-(pooled[6:] @ pooled[0]))[:2]
    assert {(0, int(row)) for row in nearest} <= {tuple(pair) for pair in found.tolist()}


# ---- the threshold


@given(st.floats(0, 1), st.integers(1, 500))
def test_intervals_of_shares_are_those_of_scipy(share, count):
    hits = round(share * count)
    found = wilson(hits / count, count)
    expected = stats.binomtest(hits, count).proportion_ci(method="wilson")
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=1e-6)


@given(st.floats(0.2, 20), st.floats(0.5, 3))
def test_rate_of_a_truncated_exponential(rate, length):
    expected = stats.truncexpon.mean(b=rate * length, scale=1 / rate)
    assert _rate(np.array([expected]), length)[0] == pytest.approx(rate, rel=1e-3)


def test_false_pairs_are_extrapolated_and_copies_do_not_count():
    """The number above the threshold is foretold from those below."""
    generator = np.random.default_rng(0)
    agreement = 1 - 0.1 * np.exp(-generator.exponential(0.5, 4000))
    true = (agreement >= 0.995).sum()
    below = agreement[agreement < 0.99]
    found = expected_false_pairs(below, 0.99, 0.995)
    assert found.low <= 4000 * 0.05**2 <= found.high
    assert found.value == pytest.approx(true, abs=3 * true**0.5)
    assert expected_false_pairs(below[:5], 0.99, 0.995) is None


def trials(agreement, reached=True):
    count = len(agreement)
    kinds = tuple(KINDS[row % len(KINDS)] for row in range(count))
    agreement = np.asarray(agreement, dtype=float)
    return Trials(kinds, np.full(count, 0.9, dtype=np.float32), np.full(count, reached), agreement, count // len(KINDS))


def test_the_threshold_is_the_smallest_of_the_precision_wanted():
    generator = np.random.default_rng(1)
    copies = trials(1 - 0.012 * generator.random(200))
    similar = 1 - 0.1 * np.exp(-generator.exponential(0.6, 100))
    similar = similar[similar < 0.998]
    gallery = np.r_[similar, np.full(10, 0.9995), np.zeros(50)]
    strict, loose = (choose_threshold(copies, gallery, wanted) for wanted in (0.85, 0.1))
    assert strict.value > loose.value
    assert strict.precision.value >= 0.85
    assert strict.source == "calibration"
    assert strict.recall["all"].value <= loose.recall["all"].value
    assert loose.value <= np.quantile(copies.agreement, 0.2)
    shown = "\n".join(strict.lines())
    assert "Precision: " in shown
    assert "false pairs" in shown
    json.dumps(strict.to_dict(), allow_nan=False)


def test_without_similar_pairs_the_threshold_finds_nearly_all_copies():
    agreement = np.linspace(0.99, 1, 100)
    found = choose_threshold(trials(agreement), np.zeros(20), 0.95)
    assert found.recall["all"].value >= 0.99
    assert (found.precision, found.expected_false) == (None, None)
    assert "unknown" in found.lines()[-1]


def test_without_copies_the_default_is_used():
    assert choose_threshold(trials([0.0] * 20), np.zeros(3), 0.9).value == DEFAULT_THRESHOLD
    default, given = given_threshold(None, np.zeros(3), None), given_threshold(trials([1.0] * 20), np.zeros(3), 0.5)
    assert (default.value, default.source, default.recall) == (DEFAULT_THRESHOLD, "default", {})
    assert (given.value, given.source, given.recall["all"].value) == (0.5, "given", 1.0)


def test_a_copy_whose_original_is_no_neighbour_is_not_found():
    assert given_threshold(trials([1.0] * 20, reached=False), np.zeros(3), 0.9).recall["all"].value == 0


def test_kinds_of_copies():
    generator = np.random.default_rng(0)
    sizes = {kind: made_copy(photo(1), kind, generator).size for kind in KINDS}
    assert sizes == {**dict.fromkeys(KINDS, (200, 160)), "crop": (180, 144), "half": (100, 80)}
    with pytest.raises(ValueError, match="kind: need one of"):
        made_copy(photo(1), "rotated", generator)


# ---- groups


def gallery_of(contents):
    ids = tuple(f"i{row}" for row in range(len(contents)))
    return GalleryFiles(ids, tuple({"content": content} for content in contents))


def grouped(contents, links, more=()):
    """Ids of the groups, where only the pairs of `links` and `more` agree; `links` were compared before."""
    known = {pair: Agreement(0.999, 1.0, False) for pair in links}
    asked = []

    def measure(pairs):
        asked.extend(tuple(pair) for pair in pairs.tolist())
        return [Agreement(0.995 if tuple(pair) in more else 0.5, 0.9, True) for pair in pairs.tolist()]

    found = grouping._groups(gallery_of(contents), list(links), known, measure, 0.99)
    return [[(image.id, image.relation) for image in group.images] for group in found], asked


def test_a_chain_is_no_group():
    """0 - 1 - 2 - 3: 0 is kept with 1; 2 and 3 were never like 0 and are a group of their own."""
    groups, asked = grouped("abcd", [(0, 1), (1, 2), (2, 3)])
    assert groups == [[("i0", "kept"), ("i1", "copy")], [("i2", "kept"), ("i3", "copy")]]
    assert asked == [(0, 2), (0, 3)]


def test_pairs_that_were_no_neighbours_are_compared_before_they_are_grouped():
    groups, asked = grouped("abc", [(0, 1), (1, 2)], more={(0, 2)})
    assert groups == [[("i0", "kept"), ("i1", "copy"), ("i2", "mirrored")]]
    assert asked == [(0, 2)]


def test_exact_copies_come_first_and_need_no_comparison():
    groups, asked = grouped(["x", "y", "z", "z", "z"], [(0, 1)])
    assert groups == [[("i2", "kept"), ("i3", "exact"), ("i4", "exact")], [("i0", "kept"), ("i1", "copy")]]
    assert asked == []


def test_a_copy_of_an_exact_copy_is_in_its_group():
    groups, asked = grouped(["z", "z", "a"], [(0, 2)])
    assert groups == [[("i0", "kept"), ("i1", "exact"), ("i2", "copy")]]
    assert asked == []


@settings(max_examples=60)
@given(st.sets(st.tuples(st.integers(0, 9), st.integers(0, 9)).filter(lambda pair: pair[0] < pair[1]), max_size=20))
def test_every_member_agrees_with_the_image_that_is_kept(links):
    groups, _ = grouped("abcdefghij", sorted(links))
    seen = [name for group in groups for name, _ in group]
    assert len(seen) == len(set(seen))
    for group in groups:
        kept, *others = (int(name[1:]) for name, _ in group)
        assert all((min(kept, other), max(kept, other)) in links for other in others)
    if links:
        assert groups


# ---- from files to groups


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    """Eight photographs, and of four of them a copy: the same file, mirrored, cropped, larger."""
    folder = tmp_path_factory.mktemp("shop")
    (folder / "a").mkdir()
    (folder / "b").mkdir()
    for seed in range(8):
        photo(seed).save(folder / "a" / f"{seed}.png")
    (folder / "b" / "same.png").write_bytes((folder / "a" / "0.png").read_bytes())
    made_copy(photo(1), "mirror", np.random.default_rng(0)).save(folder / "b" / "mirror.png")
    photo(2).crop((0, 0, 180, 144)).save(folder / "b" / "crop.png")
    photo(3).resize((400, 320), Image.Resampling.BICUBIC).save(folder / "b" / "<script>large.png")
    embedder = load_embedder(save_tiny_model(tmp_path_factory.mktemp("model") / "tiny"))
    for number, file in enumerate(sorted(folder.rglob("*.png"))):  # those of a are older
        os.utime(file, (1e9 + 100 * number, 1e9 + 100 * number))
    index = str(tmp_path_factory.mktemp("index") / "shop.index")
    build_index(list_source(folder), index, embedder, model="tiny", workers=0)
    return folder, index, embedder


def relations(found):
    return {
        group.images[0].file.name: {image.file.name: image.relation for image in group.images[1:]}
        for group in found.groups
    }


EXPECTED = {
    "0.png": {"same.png": "exact"},
    "1.png": {"mirror.png": "mirrored"},
    "2.png": {"crop.png": "cropped"},
    "<script>large.png": {"3.png": "copy"},  # the larger one is kept
}


def test_copies_are_found_among_files(shop):
    _, index, embedder = shop
    advanced = []
    found = find_duplicates(open_store(index), embedder, sample=4, precision=0.9, progress=advanced.append)
    assert relations(found) == EXPECTED
    assert (found.images, found.removed, found.bad) == (12, 4, ())
    assert found.groups[0].exact
    assert found.threshold.images == 4
    assert set(found.threshold.recall) == {*KINDS, "all"}
    assert sum(advanced) > 12
    json.dumps(found.to_dict(), allow_nan=False)


def test_conditions_and_labels(shop):
    _, index, _ = shop
    store = open_store(index)
    assert relations(find_duplicates(store, differ="label", threshold=0.97)) == EXPECTED
    assert not find_duplicates(store, where="label = 'b'", threshold=0.97).groups
    assert not find_duplicates(store, differ="content", where="path like '%same%' or path like '%0.png'").groups


def test_the_csv_has_every_image_of_every_group(shop):
    _, index, _ = shop
    found = find_duplicates(open_store(index), threshold=0.97)
    lines = list(csv.DictReader(io.StringIO(found.to_csv())))
    assert tuple(lines[0]) == COLUMNS
    assert [line["action"] for line in lines] == ["keep", "remove"] * 4
    large = next(line for line in lines if "large" in line["path"])
    assert (large["width"], large["height"], large["action"]) == ("400", "320", "keep")
    assert all(line["kept"] == kept["path"] for line, kept in zip(lines[1::2], lines[::2], strict=True))


def test_images_that_cannot_be_read_are_named_and_exact_copies_of_them_found(shop, tmp_path):
    folder, index, _ = shop
    hidden = [folder / "a" / "0.png", folder / "b" / "same.png", folder / "b" / "mirror.png"]
    for number, file in enumerate(hidden):
        file.rename(tmp_path / f"{number}")
    try:
        found = find_duplicates(open_store(index), threshold=0.97)
        page = duplicates_page(found, title="shop")
    finally:
        for number, file in enumerate(hidden):
            (tmp_path / f"{number}").rename(file)
    assert {name: EXPECTED[name] for name in EXPECTED if name != "1.png"} == relations(found)
    assert str(hidden[2]) in {image.path for image in found.bad}
    assert {str(file) for file in hidden[:2]} & {image.path for image in found.bad}
    assert '"thumbnail":-1' in page


def test_the_page_holds_names_as_data_only(shop):
    _, index, _ = shop
    found = find_duplicates(open_store(index), threshold=0.97)
    page = duplicates_page(found, title="<b>shop</b>", groups=3)
    assert page.count("<script") == 2
    assert "<b>shop" not in page
    assert "\\u003cscript>large.png" in page or "large.png" not in page
    assert "the first 3 are shown" in page
    with pytest.raises(ValueError, match="groups: need at least 1"):
        duplicates_page(found, title="shop", groups=0)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"threshold": 0.0}, "threshold: need an agreement"),
        ({"threshold": float("nan")}, "threshold: need an agreement"),
        ({"precision": 1.0}, "precision: need a fraction"),
        ({"sample": -1}, "sample: need a number"),
        ({"neighbours": 0}, "neighbours: need at least 1"),
        ({"differ": "colour"}, "differ: no column 'colour'"),
        ({"where": "colour = 'red'"}, "no column 'colour'"),
    ],
)
def test_wrong_arguments(shop, options, told):
    with pytest.raises(ValueError, match=told):
        find_duplicates(open_store(shop[1]), **options)


def test_a_comparison_leaves_no_file(shop):
    _, index, _ = shop
    with CopyComparison(GalleryFiles.of(open_store(index), None)) as compared:
        assert compared.of(np.zeros((0, 2), dtype=np.int64)) == []
        file = compared._file
    assert file.closed


def test_an_empty_choice_has_no_groups(shop):
    _, index, embedder = shop
    found = find_duplicates(open_store(index), embedder, where="label = 'none'")
    assert (found.images, found.groups, found.pairs) == (0, (), 0)
    assert "No copies were found" in duplicates_page(found, title="shop")
