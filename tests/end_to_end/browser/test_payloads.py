"""Names are text in every view: scripts in the names of images, classes and settings do not run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from diml.explain import Explanation, explanation_page, rank_hits
from diml.files import write_text
from diml.matching import Regions, match
from drawn_pair import drawn_pair

OpenPage = Callable[..., Any]
RUN = "window.ran=1"

PAYLOADS = (
    f"<script>{RUN}</script>",
    f"</script><script>{RUN}</script>",
    f"</script ><script>{RUN}//",
    f"<!--<script>{RUN}</script>-->",
    f"<img src=x onerror={RUN}>",
    f"<svg onload={RUN}>",
    f"<svg><script>{RUN}</script></svg>",
    f"<iframe srcdoc='<script>parent.{RUN}</script>'>",
    f"<details open ontoggle={RUN}>",
    f"<body onload={RUN}>",
    f'" onmouseover={RUN} autofocus onfocus={RUN} x="',
    f"' onmouseover='{RUN}' x='",
    f"javascript:{RUN}",
    "${" + RUN + "}",
    f"&lt;img src=x onerror={RUN}&gt;",
    "\u2028" + RUN + "\u2029",
)


def explanations(names: tuple[str, ...]) -> list[Explanation]:
    """A query and a hit for each name."""
    generator = torch.Generator().manual_seed(7)
    query, gallery = (torch.randn(count, 4, 8, generator=generator).relu() + 0.01 for count in (1, len(names)))
    found = match(*(Regions.normalized(side, side.mean(dim=1)) for side in (query, gallery)))
    a, b = drawn_pair(64)
    return [Explanation.of(found, (a, b), (names[0], name), number) for number, name in enumerate(names)]


@pytest.mark.parametrize("view", ["", "#experts", "#experts&overlay"])
@pytest.mark.parametrize("kind", ["pair", "hits", "settings"])
def test_no_payload_runs(open_page: OpenPage, tmp_path: Path, kind: str, view: str) -> None:
    many = explanations(PAYLOADS)
    if kind == "pair":
        pages = [explanation_page(one, settings={"model": one.names[1]}) for one in many[1:2]]
    elif kind == "hits":
        pages = [explanation_page(rank_hits(many))]
    else:
        pages = [explanation_page(many[0], settings={name: name for name in PAYLOADS})]
    for number, text in enumerate(pages):
        path = write_text(tmp_path / f"{number}.html", text)
        page = open_page(path, view=view)
        page.on("dialog", lambda dialog: dialog.dismiss())
        for button in page.locator("button:visible").all()[:6]:
            button.hover()
        assert page.evaluate("window.ran") is None
        assert page.locator("iframe, body svg script, [onerror], [onload], [onmouseover], [ontoggle]").count() == 0
        assert RUN in page.locator("body").inner_text()
