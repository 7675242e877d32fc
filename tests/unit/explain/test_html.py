"""The page in one file: it contains the numbers of the ledger, loads nothing, and stays small."""

from __future__ import annotations

import base64
import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from diml.explain import Explanation, explanation_page
from diml.explain.description import describe_match
from diml.explain.html import REPORT_MODULES, ImageShelf, check_page_name, page_asset
from diml.explain.shown_plan import shown_plan
from diml.matching import Match
from drawn_pair import drawn_pair

MakeMatch = Callable[..., Match]


def data_of(page: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(re.findall(r'<script type="application/json" id="data">(.*?)</script>', page)[0])
    return found


@pytest.fixture
def found(random_match: MakeMatch) -> Explanation:
    return Explanation.of(random_match((3, 4), (5, 2)), drawn_pair(64), ("shop/a.png", "shop/b.png"))


def test_the_page_holds_the_numbers_of_the_description(found: Explanation) -> None:
    data = data_of(explanation_page(found, settings={"model": "mine", "grid": None}))
    (pair,) = data["pairs"]
    told = json.loads(json.dumps(describe_match(shown_plan(found), names=found.names)))
    for name in (
        "score",
        "pooled",
        "structural",
        "structural_weight",
        "convergence",
        "grid_q",
        "weight_q",
        "total_g",
        "names",
        "summary",
        "potentials",
    ):
        assert pair[name] == told[name]
    for name in ("plan", "cosine"):
        assert np.asarray(pair[name]) == pytest.approx(np.asarray(told[name]), rel=5e-5)
    assert float((np.asarray(pair["plan"]) * pair["cosine"]).sum()) == pytest.approx(pair["structural"], abs=1e-5)
    assert data["settings"] == {"model": "mine", "grid": None, **found.matcher.to_dict()}
    for role, image in zip(("query", "gallery"), found.images, strict=True):
        kept = data["images"][pair["images"][role]]
        assert kept["src"].startswith("data:image/jpeg;base64,")
        with Image.open(io.BytesIO(base64.b64decode(kept["src"].split(",")[1]))) as opened:
            shown = np.asarray(opened.convert("RGB"), dtype=float)
        assert shown.shape[:2] == (kept["height"], kept["width"]) == image.size[::-1]
        assert np.abs(shown - np.asarray(image, dtype=float)).mean() < 8


def test_names_cannot_end_a_script_or_become_markup(random_match: MakeMatch) -> None:
    names = ("</script><script>alert(1)<script>.png", "<!--<script>&$title.png")
    page = explanation_page(Explanation.of(random_match((2, 2), (2, 2)), drawn_pair(64), names))
    assert page.count("<script") == 2
    assert page.count("</script>") == 2
    assert "<!--" not in page
    assert data_of(page)["pairs"][0]["names"] == {"query": names[0], "gallery": names[1]}
    assert re.findall("<title>(.*)</title>", page) == [
        "&lt;/script&gt;&lt;script&gt;alert(1)&lt;script&gt;.png and &lt;!--&lt;script&gt;&amp;$title.png"
    ]


def test_nothing_is_loaded_from_anywhere(found: Explanation) -> None:
    page = explanation_page(found)
    assert "default-src 'none'" in page
    addresses = set(re.findall(r"\b(?:https?|wss?|ftp):[^\s\"'`]*", page))
    assert addresses == {"http://www.w3.org/2000/svg"}  # a name, which is never fetched
    assert not re.search(r"^import\b|\bfetch\(|XMLHttpRequest|@import|url\((?!#)", page, re.MULTILINE)


def test_two_images_of_512_pixels_at_the_finest_grid_stay_below_a_megabyte(random_match: MakeMatch) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), dtype=np.uint8)
    images = tuple(Image.fromarray(one).resize((512, 512), Image.Resampling.BICUBIC) for one in noise)
    page = explanation_page(Explanation.of(random_match((14, 14), (14, 14)), images, ("a", "b")))
    assert len(page.encode()) < 1_000_000


def test_an_image_is_stored_once_and_scaled_down() -> None:
    shelf = ImageShelf(side=100)
    wide = drawn_pair(256)[0].resize((400, 200))
    assert [shelf.place(wide, "a"), shelf.place(wide.copy(), "a"), shelf.place(wide, "b")] == [0, 0, 1]
    assert [(kept["width"], kept["height"]) for kept in shelf.images] == [(100, 50), (100, 50)]
    with pytest.raises(ValueError, match="side: need at least 16 pixels, got 15"):
        ImageShelf(side=15)


def test_modules_follow_their_imports_and_share_no_name() -> None:
    seen: dict[str, str] = {}
    for place, module in enumerate(REPORT_MODULES):
        text = page_asset(module)
        imported = re.findall(r'^import .* from "\./(.*)";', text, re.MULTILINE)
        assert set(imported) <= set(REPORT_MODULES[:place]), module
        for name in re.findall(r"^(?:export )?(?:const|let|function|class) (\w+)", text, re.MULTILINE):
            assert seen.setdefault(name, module) == module, f"{name} is in {seen[name]} and {module}"
        assert "</" not in text
    folder = Path(__file__).parents[3] / "src" / "diml" / "explain" / "page"
    assert {file.name for file in folder.glob("*.js")} == set(REPORT_MODULES)


@pytest.mark.parametrize("name", ["why", "why.png", "html"])
def test_a_page_has_the_ending_of_one(name: str) -> None:
    with pytest.raises(ValueError, match=rf"html: need a file name ending in \.html or \.htm, got '{name}'"):
        check_page_name(name)
    check_page_name(Path("deep") / "WHY.HTML")


def test_an_infinite_weight_is_plain_json(random_match: MakeMatch) -> None:
    found = random_match((2, 2), (2, 2), structural_weight=float("inf"))
    (pair,) = data_of(explanation_page(Explanation.of(found, drawn_pair(32))))["pairs"]
    assert (pair["structural_weight"], pair["score"]) == ("inf", pair["structural"])


def test_a_page_needs_images_of_one_pair(random_match: MakeMatch) -> None:
    for pairs in (1, 2):
        with pytest.raises(ValueError, match=r"found: need one pair with its images, got Explanation.*Explanation\.of"):
            explanation_page(Explanation(**vars(random_match((2, 2), (2, 2), pairs=pairs))))
