"""`diml index tune`: settings that are better on the labels of an index are kept with it, others are not."""

from __future__ import annotations

import json

import pytest
import torch

from diml.cli import main
from diml.matching import Matcher, Regions
from diml.search import Searcher, alike_pairs, open_store
from diml.search.index import create_store, verify_index
from diml.search.store import IndexConfig, Rows, encode_regions
from diml.search.tuned import MATCHER_FILE, IndexMatcher, index_matcher, keep_matcher

QUICK = ("--epsilons", "0.05", "--matchings", "transport", "--rerank-at", "20", "50", "--folds", "3")


def filled(place, *, told_by_regions: bool, copies: int = 0):
    """Six images of each of twelve classes, told apart by their regions, or by their pooled vectors alone."""
    generator = torch.Generator().manual_seed(0)
    count, labels = 72, [row // 6 for row in range(72)]
    telling = torch.randn(12, 1, 8, generator=generator)[labels] + 0.1 * torch.randn(count, 4, 8, generator=generator)
    noise = torch.randn(count, 4, 8, generator=generator)
    dense, pooled = (telling, noise.mean(1)) if told_by_regions else (noise, telling.mean(1))
    regions = Regions.normalized(dense, pooled, (2, 2))
    config = IndexConfig(
        dim=8, num_regions=4, grid=(2, 2), columns={"label": "text", "content": "text"}, matcher=Matcher(epsilon=0.02)
    )
    store = create_store(place, config)
    rows = [*range(count), *range(copies)]
    metadata = tuple({"label": f"class {labels[row]}", "content": f"file {row}"} for row in rows)
    ids = tuple(f"{number:03d}" for number in range(len(rows)))
    chosen = regions[rows]
    store.add(Rows(ids, chosen.pooled.numpy(), encode_regions(chosen, config), metadata))
    return store


def test_better_settings_are_kept_and_used(tmp_path, capsys):
    store = filled(tmp_path / "index", told_by_regions=True)
    assert index_matcher(store) == IndexMatcher(Matcher(epsilon=0.02))
    assert main(["index", "tune", str(tmp_path / "index"), *QUICK, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["kept"]
    assert told["gain"]["low"] > 0
    assert (told["images"], told["classes"]) == (72, 12)
    kept = index_matcher(open_store(tmp_path / "index"))
    assert kept.matcher.to_dict() == told["matcher"]
    assert kept.rerank_at == told["rerank_at"]
    assert kept.tuned is not None
    assert kept.tuned["gain"] == told["gain"]
    searcher = Searcher(store)
    assert (searcher.matcher, searcher.rerank_at) == (kept.matcher, kept.rerank_at)
    assert main(["index", "info", str(tmp_path / "index"), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["matcher"], facts["rerank_at"], facts["tuned"]["label"]) == (
        told["matcher"],
        told["rerank_at"],
        "label",
    )
    assert list(alike_pairs(store, 1.5, neighbours=3)) == list(
        alike_pairs(store, 1.5, neighbours=3, matcher=kept.matcher)
    )


def test_a_dry_run_keeps_nothing(tmp_path, capsys):
    store = filled(tmp_path / "index", told_by_regions=True)
    assert main(["index", "tune", str(tmp_path / "index"), *QUICK, "--dry-run"]) == 0
    assert "nothing was changed" in capsys.readouterr().out
    assert store.read_text(MATCHER_FILE) is None


def test_where_there_is_no_gain_nothing_is_kept(tmp_path, capsys):
    store = filled(tmp_path / "index", told_by_regions=False)
    keep_matcher(store, IndexMatcher(Matcher(structural_weight=0.0), 20))
    assert main(["index", "tune", str(tmp_path / "index"), *QUICK]) == 0
    assert "nothing was changed, as no gain is shown" in capsys.readouterr().out.replace("\n", " ")
    assert index_matcher(store).matcher == Matcher(structural_weight=0.0)


def test_copies_of_an_image_do_not_count(tmp_path, capsys):
    filled(tmp_path / "index", told_by_regions=True, copies=5)
    assert main(["index", "tune", str(tmp_path / "index"), *QUICK, "--json", "--dry-run"]) == 0
    assert json.loads(capsys.readouterr().out)["images"] == 72


def test_an_unknown_column_is_named(tmp_path, capsys):
    filled(tmp_path / "index", told_by_regions=True)
    assert main(["index", "tune", str(tmp_path / "index"), "--label", "brand"]) == 2
    assert "label: need a column of the index, got 'brand'; it has label, content" in capsys.readouterr().err


@pytest.mark.parametrize(
    "text",
    ["", "{}", "[]", '{"format": 1}'],
)
def test_damaged_settings_are_an_error(tmp_path, text):
    store = filled(tmp_path / "index", told_by_regions=True)
    store.write_text(MATCHER_FILE, text)
    with pytest.raises(ValueError, match=r"matcher\.json"):
        Searcher(store)
    assert "matcher.json" in "".join(verify_index(store, images=False).faults)


def test_the_text_holds_the_settings_and_its_checksum(tmp_path):
    store = filled(tmp_path / "index", told_by_regions=True)
    kept = IndexMatcher(Matcher(epsilon=0.01, structural_weight=4.0), 200, {"label": "label"})
    keep_matcher(store, kept)
    assert index_matcher(store) == kept
    text = store.read_text(MATCHER_FILE)
    assert text is not None
    store.write_text(MATCHER_FILE, text.replace("200", "201"))
    with pytest.raises(ValueError, match="damaged or changed"):
        index_matcher(store)
