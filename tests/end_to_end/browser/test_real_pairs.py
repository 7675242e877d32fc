"""Pages of photos of groceries and of faces: they show their numbers, and all fits on wide and on narrow screens."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from diml.data import load_dataset
from diml.explain import explanation_page
from diml.explain.explanation import match_pair
from diml.explain.shown_plan import shown_plan
from diml.explain.summary import summarise
from diml.files import write_text
from diml.matching import Matcher
from diml.models import Embedder, load_embedder
from end_to_end.browser.conftest import text_faults

OpenPage = Callable[..., Any]

#: Kinds of groceries: the query, and the gallery image of the same or another kind.
GROCERIES = (
    ("Arla-Standard-Milk", "Arla-Standard-Milk"),
    ("Golden-Delicious", "Granny-Smith"),
    ("Banana", "Banana"),
    ("Kiwi", "Zucchini"),
    ("Alpro-Fresh-Soy-Milk", "Oatly-Oat-Milk"),
)
FACES = ((0, 3), (10, 11), (25, 200), (77, 79), (140, 305))
SETTINGS = (
    Matcher(),
    Matcher(epsilon=0),
    Matcher(share=0.7),
    Matcher(structural_weight=float("inf")),
    Matcher(structural_weight=4, weights="uniform"),
)


@pytest.fixture(scope="module")
def embedders() -> dict[int, Embedder]:
    return {grid: load_embedder("mobilenetv2_100", grid=grid) for grid in (4, 7)}


def looked_at(open_page: OpenPage, path: Path, told: dict[str, Any]) -> None:
    """One page in both sizes and views."""
    for size in ("1400", "390"):
        page = open_page(path, size)
        frames = [page.locator(f".side.{role} .frame").bounding_box() for role in ("query", "gallery")]
        assert frames[0]["y"] == pytest.approx(frames[1]["y"], abs=1)
        if size == "1400":
            assert frames[0]["y"] + frames[0]["height"] < 900
        assert page.locator(".headline").inner_text() == told["headline"]
        assert page.locator(".part-row").count() == len(told["parts"])
        assert page.locator(".part").count() == 2 * len(told["parts"])
        assert text_faults(page) == []
        page.keyboard.press("e")
        assert page.locator(".ledger tbody tr").count() == 20
        assert text_faults(page) == []


@pytest.mark.parametrize("case", range(len(GROCERIES)))
def test_groceries(
    open_page: OpenPage, grocery_root: Path, embedders: dict[int, Embedder], tmp_path: Path, case: int
) -> None:
    query, gallery = (sorted(grocery_root.glob(f"test/**/{kind}/*.jpg")) for kind in GROCERIES[case])
    found = match_pair(query[0], gallery[2], embedder=embedders[7 if case % 2 else 4], matcher=SETTINGS[case])
    page = explanation_page(found)
    assert len(page.encode()) < 1_000_000
    looked_at(
        open_page,
        write_text(tmp_path / "why.html", page),
        json.loads(json.dumps(summarise(shown_plan(found)).to_dict())),
    )


@pytest.mark.parametrize("case", range(len(FACES)))
def test_faces(open_page: OpenPage, embedders: dict[int, Embedder], tmp_path: Path, case: int) -> None:
    faces = load_dataset("orl").test.images
    query, gallery = (faces[row] for row in FACES[case])
    found = match_pair(query, gallery, embedder=embedders[4 if case % 2 else 7], matcher=SETTINGS[case])
    page = explanation_page(found)
    looked_at(
        open_page,
        write_text(tmp_path / "why.html", page),
        json.loads(json.dumps(summarise(shown_plan(found)).to_dict())),
    )
