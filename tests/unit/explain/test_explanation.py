"""Two images or regions compared: one type of result, its figure, its numbers, and the settings of the comparison."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.text import Text
from PIL import Image

import diml
from diml.explain import Explanation
from diml.explain.description import describe_match
from diml.explain.explanation import match_pair, match_query
from diml.explain.formatting import TIMES
from diml.explain.shown_plan import shown_plan
from diml.matching import Match, Matcher, Regions, match
from drawn_pair import drawn_pair

MakeMatch = Callable[..., Match]


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    paths = (tmp_path / "a.png", tmp_path / "b.png")
    for image, path in zip(drawn_pair(96), paths, strict=True):
        image.save(path)
    return paths


def test_paths_are_matched_as_their_regions_are(files: tuple[Path, Path], embedder: Any) -> None:
    found = match_pair(*files, embedder=embedder, matcher=Matcher(epsilon=0.1))
    regions = embedder.embed(drawn_pair(96))
    assert torch.equal(found.plan, match(regions[0], regions[1], epsilon=0.1).plan)
    assert found.names == (str(files[0]), str(files[1]))
    assert found.grid_q == (4, 4)


def test_the_images_kept_are_what_the_model_saw(files: tuple[Path, Path], embedder: Any) -> None:
    found = match_pair(*files, embedder=embedder)
    for kept, drawn in zip(found.images, drawn_pair(96), strict=True):
        assert kept.size == (112, 112)
        assert kept.mode == "RGB"
        assert kept.tobytes() == embedder.preprocess.view(drawn, 2).tobytes()


def test_pil_images_and_tensors_are_taken_too(files: tuple[Path, Path], embedder: Any) -> None:
    plain = match_pair(*files, embedder=embedder)
    with Image.open(files[0]) as opened:
        tensor = torch.frombuffer(bytearray(drawn_pair(96)[1].tobytes()), dtype=torch.uint8)
        mixed = match_pair(opened, tensor.reshape(96, 96, 3).permute(2, 0, 1), embedder=embedder)
    assert torch.equal(mixed.plan, plain.plan)
    assert mixed.names == (str(files[0]), "gallery")


def test_regions_on_one_side_only_are_refused(embedder: Any) -> None:
    regions = Regions.normalized(torch.rand(1, 4, 8), torch.rand(1, 8))
    with pytest.raises(TypeError, match="query, gallery: need images or Regions on both sides"):
        match_pair(drawn_pair(64)[0], regions, embedder=embedder)
    with pytest.raises(TypeError, match="embedder: need none for Regions"):
        match_pair(regions, regions, embedder=embedder)


def test_a_missing_image_is_named_before_anything_is_embedded(embedder: Any) -> None:
    with pytest.raises(FileNotFoundError, match=r"nowhere\.jpg"):
        match_pair(drawn_pair(64)[0], "nowhere.jpg", embedder=embedder)
    assert embedder.seen == []


def test_the_same_image_matches_itself_best(embedder: Any) -> None:
    a, b = drawn_pair(96)
    assert float(match_pair(a, a, embedder=embedder).score) > float(match_pair(a, b, embedder=embedder).score)


def test_draw_gives_the_figure_with_the_names(files: tuple[Path, Path], embedder: Any) -> None:
    figure = match_pair(*files, embedder=embedder).draw(view="regions", top=3)
    assert any(text.get_text().endswith("a.png") for text in figure.findobj(Text))
    assert len([artist for artist in figure.findobj() if (artist.get_gid() or "").startswith("flow-")]) == 3


@pytest.mark.parametrize("pair", [0, 2, -1])
def test_one_pair_is_taken_out_of_many(pair: int, random_match: MakeMatch) -> None:
    many = random_match((2, 3), (4, 4), pairs=3)
    one = Explanation.of(many, drawn_pair(32), ("a", "b"), pair=pair)
    assert len(one) == 1
    assert one.ledger().to_json() == many.ledger(pair).to_json()
    assert (one.grid_q, one.grid_g) == ((2, 3), (4, 4))
    assert torch.equal(one.weight_g[0], many.weight_g[pair])


def test_an_explanation_has_one_pair_of_images_and_two_names(random_match: MakeMatch) -> None:
    many = random_match((2, 2), (2, 2), pairs=3)
    with pytest.raises(IndexError, match=r"pair: need -3\.\.2, got 3"):
        Explanation.of(many, drawn_pair(32), ("a", "b"), pair=3)
    with pytest.raises(ValueError, match="images: need one pair, got 3"):
        Explanation(**vars(many), images=drawn_pair(32), names=("a", "b"))
    with pytest.raises(ValueError, match="names: need two"):
        Explanation.of(many, drawn_pair(32), ("a",))  # type: ignore[arg-type]


def test_the_description_is_plain_json_that_adds_up(random_match: MakeMatch) -> None:
    found = random_match((2, 3), (4, 4), pairs=2)
    told = json.loads(json.dumps(describe_match(found, 1, top=96, names=("a", "b"), settings={"epsilon": 0.05})))
    assert told["names"] == {"query": "a", "gallery": "b"}
    assert told["settings"] == {"epsilon": 0.05}
    assert sum(flow["contribution"] for flow in told["top"]) == pytest.approx(told["structural"], abs=1e-6)
    assert told["pooled"] + told["structural"] == pytest.approx(told["score"])
    assert told["score"] == pytest.approx(float(found.score[1]), abs=1e-6)
    for side, weights in (("q", found.weight_q), ("g", found.weight_g)):
        assert told[f"weight_{side}"] == pytest.approx(weights[1].tolist())
        assert sum(told[f"weight_{side}"]) == pytest.approx(1)
        assert sum(told[f"total_{side}"]) == pytest.approx(told["structural"])
    assert (told["grid_q"], told["grid_g"]) == ([2, 3], [4, 4])
    assert told["convergence"]["converged"] is True
    assert 0 <= told["convergence"]["marginal_error"] <= 1e-4
    assert torch.tensor(told["plan"]).shape == torch.tensor(told["cosine"]).shape == (6, 16)


def test_flows_are_described_with_their_cells(random_match: MakeMatch) -> None:
    for flow in describe_match(random_match((2, 3), (4, 4)), top=5)["top"]:
        row, column = flow["cell_g"]
        assert row * 4 + column == flow["region_g"]
        assert flow["name_g"] == f"{'ABCD'[column]}{row + 1}"
    told = describe_match(random_match(5, (4, 4)), top=1)
    assert told["grid_q"] is None
    assert told["top"][0]["cell_q"] is None
    assert told["top"][0]["name_q"] == f"#{told['top'][0]['region_q']}"
    assert told["names"] is None


@pytest.fixture
def many(random_match: MakeMatch) -> Explanation:
    """Three pairs of regions, without images."""
    return Explanation(**vars(random_match((2, 3), (4, 4), pairs=3)))


def test_diml_match_returns_one_type_for_images_and_regions(files: tuple[Path, Path], embedder: Any) -> None:
    images = diml.match(*files, embedder=embedder)
    regions = embedder.embed(drawn_pair(96))
    without = diml.match(regions[0], regions[1])
    assert type(images) is type(without) is Explanation
    assert torch.equal(images.plan, without.plan)
    assert without.images is None
    several = diml.match(regions, regions)
    assert len(several) == 2
    assert several.score.tolist() == pytest.approx([2, 2], abs=0.2)


def test_settings_are_keywords_or_a_matcher_and_by_default_the_embedders_own(
    files: tuple[Path, Path], embedder: Any
) -> None:
    embedder.matcher = Matcher(epsilon=0.1, structural_weight=4)
    regions = embedder.embed(drawn_pair(96))
    assert diml.match(*files, embedder=embedder).matcher == embedder.matcher
    single = diml.match(*files, embedder=embedder, epsilon=0.02)
    assert single.matcher == Matcher(epsilon=0.02, structural_weight=4)
    assert torch.equal(single.plan, Matcher(epsilon=0.02).match(regions[0], regions[1]).plan)
    given = Matcher(weights="uniform")
    assert diml.match(*files, embedder=embedder, matcher=given).matcher == given
    assert diml.match(regions[0], regions[1], weights="uniform").matcher == given
    with pytest.raises(TypeError, match=r"matcher: need either a matcher or single settings, got both \(epsilon\)"):
        diml.match(*files, embedder=embedder, matcher=given, epsilon=0.02)
    with pytest.raises(TypeError, match="epsilo"):
        diml.match(*files, embedder=embedder, epsilo=0.02)
    with pytest.raises(ValueError, match="epsilon"):
        diml.match(*files, embedder=embedder, epsilon=-1)


def test_images_are_given_when_they_are_drawn_where_they_are_unknown(
    many: Explanation, files: tuple[Path, Path]
) -> None:
    def images_in(figure: Any) -> int:
        return sum(len(axes.images) for axes in figure.axes)

    without, figure = many.draw(pair=2), many.draw(pair=2, images=files, names=("left", "right"))
    assert images_in(figure) > images_in(without)
    texts = {text.get_text() for text in figure.findobj(Text)}
    assert f"Similarity {float(many.score[2]):.2f}" in texts
    assert {"left", "right"} <= texts
    with pytest.raises(IndexError, match="pair: need"):
        many.draw(pair=3)
    with pytest.raises(ValueError, match="images: need two"):
        many.draw(images=files[:1])  # type: ignore[arg-type]


def test_one_pair_of_an_explanation_gets_its_images(many: Explanation) -> None:
    one = Explanation.of(many, drawn_pair(32), pair=1)
    assert (len(one), one.names) == (1, ("query", "gallery"))
    assert one.ledger().to_json() == many.ledger(1).to_json()
    assert Explanation.of(one).images == one.images


def test_reprs_are_short_and_notebooks_show_the_figure(
    many: Explanation, files: tuple[Path, Path], embedder: Any
) -> None:
    one = match_pair(*files, embedder=embedder)
    score = f"score {float(one.score):.3f} = pooled {float(one.pooled):.3f} + structural {float(one.structural):.3f}"
    assert repr(one).endswith(f"b.png: {score})")
    assert len(repr(one)) < 200
    assert f"P(same product) 0.91, {score})" in repr(dataclasses.replace(one, probability=0.91, kind="product"))
    assert one._repr_html_().startswith('<img src="data:image/png;base64,')
    assert f'alt="{one.summary()}"' in one._repr_html_()
    assert repr(many) == "Explanation(3 pairs of 6 x 16 regions)"
    assert many._repr_html_().count("score ") == 3


def test_the_weight_of_the_structural_score_is_described(random_match: MakeMatch) -> None:
    found = random_match((2, 3), (4, 4), structural_weight=4)
    told = json.loads(json.dumps(describe_match(found), allow_nan=False))
    assert told["structural_weight"] == told["matcher"]["structural_weight"] == 4
    assert told["score"] == pytest.approx(told["pooled"] + 4 * told["structural"])
    assert sum(told["total_q"]) == pytest.approx(told["structural"])
    assert repr(Explanation(**vars(found))).endswith(f"+ 4 {TIMES} structural {told['structural']:.3f})")
    alone = json.loads(json.dumps(describe_match(random_match((2, 3), (4, 4), structural_weight=float("inf")))))
    assert (alone["structural_weight"], alone["score"]) == ("inf", alone["structural"])


def test_the_whole_score_is_divided_and_described(files: tuple[Path, Path], embedder: Any) -> None:
    found = shown_plan(match_pair(*files, embedder=embedder))
    told = json.loads(json.dumps(describe_match(found, parts=3, names=found.names), allow_nan=False))
    assert told["plan_shown"] == told["summary"]["plan"] == "exact"
    assert told["ranked_by"] == pytest.approx(found.ranked_by())
    assert told["note"] == found.note()
    for side in ("total_q", "total_g"):
        assert sum(told["whole"][side]) == pytest.approx(told["score"], abs=1e-6)
        assert sum(told["pooled_parts"][side]) == pytest.approx(told["pooled"], abs=1e-6)
    assert told["undivided"] == ""
    assert told["unmatched"] is None
    rows = told["parts"]["parts"]
    assert sum(row["value"] for row in rows) + told["parts"]["between"] == pytest.approx(told["score"])
    assert [row["value"] for row in told["summary"]["parts"]] == [row["value"] for row in rows]
    reduced = 1 - torch.tensor(told["cosine"], dtype=torch.float64)
    reduced -= torch.tensor(told["potentials"]["query"])[:, None] + torch.tensor(told["potentials"]["gallery"])[None]
    assert float(reduced.min()) > -1e-6
    assert found.to_dict() == describe_match(found, names=found.names)
    assert match_pair(*files, embedder=embedder).to_dict()["score"] == pytest.approx(told["score"])


def test_what_is_not_divided_or_transported_is_described(random_match: MakeMatch) -> None:
    told = json.loads(json.dumps(describe_match(random_match((2, 3), (4, 4), share=0.75)), allow_nan=False))
    assert told["pooled_parts"] is told["whole"] is told["potentials"] is None
    assert told["undivided"]
    assert told["plan_shown"] == "entropic, epsilon 0.05"
    for side, weights in (("query", "weight_q"), ("gallery", "weight_g")):
        assert sum(told["unmatched"][side]) == pytest.approx(0.25, abs=1e-4)
        assert len(told["unmatched"][side]) == len(told[weights])


def test_foregrounds_belong_to_one_pair_and_its_regions(files: tuple[Path, Path], embedder: Any) -> None:
    inside = np.linspace(0, 1, 16)
    one = diml.match(*files, embedder=embedder, foregrounds=(inside, None))
    assert one.foregrounds is not None
    assert Explanation.of(one).foregrounds is one.foregrounds
    for wrong, message in (
        ((inside[:5], None), r"foregrounds: need \(16,\) fractions in 0\.\.1"),
        ((inside * 2, None), r"got \(16,\), 0 to 2"),
        ((inside * np.nan, None), "foregrounds: need"),
        ((inside,), "foregrounds: need two"),
    ):
        with pytest.raises(ValueError, match=message):
            dataclasses.replace(one, foregrounds=wrong)
    regions = embedder.embed(drawn_pair(96))
    for given in ({"foregrounds": (inside, inside)}, {"probability": 0.5}):
        with pytest.raises(ValueError, match=f"{next(iter(given))}: need one pair, got 2"):
            dataclasses.replace(match_pair(regions, regions), **given)
    with pytest.raises(ValueError, match="foregrounds: need one for each of 1 gallery images, got 2"):
        match_query(files[0], files[1:], embedder=embedder, foregrounds=(inside, [inside, inside]))
    several = match_query(files[0], files, embedder=embedder, foregrounds=(inside, [None, inside]))
    assert [one.foregrounds[1] is None for one in several if one.foregrounds] == [True, False]
