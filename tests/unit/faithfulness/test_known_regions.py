"""Networks whose score depends on known regions only: credit must beat every control; and on none: no difference."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from diml.data import ImageSet, Preprocess
from diml.faithfulness import FaithfulnessReport, Measures, faithfulness
from diml.faithfulness.plots import write_plots
from diml.faithfulness.tables import tables
from diml.matching import Matcher
from diml.models import Embedder, load_embedder

CELL, SIDE = 12, 4
SHARP = 0.15  # standard deviation of a cell above which it is a texture
CONTROLS = ("shifted", "mirrored", "rotated", "connected", "reversed", "other pair")
UNMATCHED = ("permuted", "shifted", "same place", "random")


class Textures(nn.Module):
    """A map of SIDE x SIDE cells: a direction for each colour of texture, another for cells without texture.

    A texture is black and one colour (levels of red and green), so that the blurred cell keeps its mean but not its
    texture. The blue channel says whether an image is a query or a gallery image, whose empty cells share nothing.
    """

    def forward(self, images: Tensor) -> Tensor:
        mean, std = (torch.tensor(values).view(3, 1, 1) for values in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
        cells = F.unfold(images * std + mean, CELL, stride=CELL).unflatten(1, (3, CELL * CELL))  # (B, 3, P, R)
        level, sharp = cells.mean(dim=2), cells[:, :2].std(dim=2).amax(dim=1) > SHARP
        colour = (4 * (8 * level[:, 0]).round() + (8 * level[:, 1]).round()).long().clamp(0, 19)
        place = torch.where(sharp, colour, 20 + (level[:, 2] > 0.5).long())
        return F.one_hot(place, 22).float().transpose(1, 2).unflatten(2, (SIDE, SIDE))


class Constant(nn.Module):
    """The same map for every image."""

    def forward(self, images: Tensor) -> Tensor:
        made = torch.linspace(0.1, 1, 5 * SIDE * SIDE).view(1, 5, SIDE, SIDE)
        return made.expand(len(images), -1, -1, -1)


def drawn(textured: dict[int, int], blue: int) -> Image.Image:
    """Cells (row-major) with a texture of a colour 0 to 15, all others flat grey."""
    pixels = np.zeros((SIDE * CELL, SIDE * CELL, 3), dtype=np.uint8)
    pixels[:, :, :2] = 64
    pixels[:, :, 2] = blue
    checks = (np.add.outer(np.arange(CELL), np.arange(CELL)) % 2).astype(bool)
    for cell, colour in textured.items():
        top, left = (CELL * at for at in divmod(cell, SIDE))
        levels = [255 * (1 + part) // 4 for part in divmod(colour, 4)]
        pixels[top : top + CELL, left : left + CELL, :2] = np.where(checks[:, :, None], levels, 0)
    return Image.fromarray(pixels)


def image_set(folder: Path, queries: list[dict[int, int]], galleries: list[dict[int, int]]) -> ImageSet:
    """One class for each query and its gallery image."""
    paths = []
    for number, sides in enumerate(zip(queries, galleries, strict=True)):
        for name, textured, blue in zip("qg", sides, (0, 255), strict=True):
            paths.append(folder / f"{number}{name}.png")
            drawn(textured, blue).save(paths[-1])
    pairs = len(queries)
    everything = np.arange(2 * pairs)
    return ImageSet(
        paths,
        np.repeat(np.arange(pairs), 2),
        class_names=tuple(map(str, range(pairs))),
        name="drawn",
        queries=everything[::2],
        gallery=everything[1::2],
    )


def measured(net: nn.Module, images: ImageSet, **settings: object) -> FaithfulnessReport:
    embedder: Embedder = load_embedder(net, grid=SIDE, preprocess=Preprocess(size=SIDE * CELL, resize=SIDE * CELL))
    measures = Measures(warps=(), steps=8, top=4, grad_cam=False, occlusions=(), **settings)
    matcher = Matcher(weights="uniform")
    return faithfulness(embedder, images, matcher=matcher, pairs=6, measures=measures, sanity=False)


def test_credit_beats_every_control_where_the_score_depends_on_known_regions(tmp_path):
    """Each pair shares five textures at random places; nothing else is alike."""
    generator = np.random.default_rng(0)
    sides: list[list[dict[int, int]]] = [[], []]
    for _ in range(6):
        for side in sides:
            side.append(dict(zip(generator.permutation(16)[:5].tolist(), range(5), strict=True)))
    report = measured(Textures(), image_set(tmp_path, *sides))
    for control in CONTROLS:
        assert report.find("deletion", "", "credit", f"area_less_{control}").high < 0, control
        assert report.find("insertion", "", "credit", f"area_less_{control}").low > 0, control
    for control in UNMATCHED:
        assert report.find("interaction_insertion", "", "credit", f"area_less_{control}").low > 0, control
        for measure in ("interaction_deletion", "interaction_insertion"):
            assert report.find(measure, "", "credit", f"interaction_less_{control}").low > 0, control


def test_the_largest_part_beats_other_regions_where_it_is_known(tmp_path):
    """Each pair shares six textures in a connected block of 2 x 3 cells, at other places; nothing else is alike."""
    generator = np.random.default_rng(2)
    sides: list[list[dict[int, int]]] = [[], []]
    for _ in range(6):
        for side in sides:
            top, left = int(generator.integers(3)), int(generator.integers(2))
            side.append({(top + at // 3) * SIDE + left + at % 3: at for at in range(6)})
    report = measured(Textures(), image_set(tmp_path, *sides), ledgers=("parts",))
    for control in (*CONTROLS[:4], "random"):
        assert report.find("deletion", "", "parts", f"area_less_{control}").value < 0, control
        assert report.find("insertion", "", "parts", f"area_less_{control}").value > 0, control
        for measure in ("deletion", "insertion"):
            assert report.find(measure, "", "parts", f"change_1_less_{control}").value > 0, (measure, control)
    for control in UNMATCHED:
        assert report.find("interaction_insertion", "", "parts", f"area_less_{control}").value > 0, control
    titles = [str(table.title) for table in tables(report)]
    assert "The largest part against as many other regions, parts (ledger), model" in titles


def test_removing_unmatched_regions_breaks_up_to_twice_as_many_matches(tmp_path):
    """All cells have a texture and one partner: no region matters more than another, only what they are matched to."""
    generator = np.random.default_rng(1)
    sides = [
        [dict(zip(generator.permutation(16).tolist(), range(16), strict=True)) for _ in range(6)] for _ in range(2)
    ]
    report = measured(Textures(), image_set(tmp_path, *sides))
    for control in UNMATCHED:
        assert report.find("interaction_deletion", "", "credit", f"area_less_{control}").low > 0, control
        assert report.find("interaction_insertion", "", "credit", f"area_less_{control}").low > 0, control
        for measure in ("interaction_deletion", "interaction_insertion"):
            assert report.find(measure, "", "credit", f"interaction_less_{control}").low > 0, control
    dropped = [report.find("interaction_deletion", "", "credit", f"change_{step}").value for step in range(1, 9)]
    assert dropped == sorted(dropped)
    assert report.find("interaction_deletion", "", "credit", "change_8_less_random").value == pytest.approx(0, abs=1e-6)


def test_no_order_differs_where_the_score_is_constant(tmp_path):
    sides = [[{cell: cell for cell in range(number, number + 4)} for number in range(4)] for _ in range(2)]
    report = measured(Constant(), image_set(tmp_path, *sides))
    compared = [found for found in report.estimates["model"] if "_less_" in found.quantity]
    names = {found.quantity.partition("_less_")[2] for found in compared}
    assert names == {*CONTROLS, *UNMATCHED}
    for found in compared:
        assert (found.value, found.low, found.high) == pytest.approx((0, 0, 0), abs=1e-6), found


def test_the_whole_score_is_a_ledger_of_its_own(tmp_path):
    sides = [[{cell: cell for cell in range(number, number + 4)} for number in range(4)] for _ in range(2)]
    images = image_set(tmp_path, *sides)
    both = measured(Textures(), images, ledgers=("credit", "whole"))
    alone = measured(Textures(), images, ledgers=("credit",))
    methods = {found.method.partition("/")[0] for found in both.estimates["model"] if found.measure == "deletion"}
    assert methods == {"credit", "whole", "weights", "argmax", "random"}
    assert both.find("interaction_insertion", "", "whole", "interaction_less_permuted").pairs == 4
    for control in CONTROLS:  # a further ledger changes nothing for the others
        name = ("deletion", "", "credit", f"area_less_{control}")
        assert both.find(*name).value == pytest.approx(alone.find(*name).value, abs=1e-6)
    titles = [str(table.title) for table in tables(both)]
    for ledger in ("credit (ledger)", "credit (whole score)"):
        assert f"Controls of the same spatial structure, {ledger}, model" in titles
        assert f"Interaction deletion and insertion, {ledger}, model" in titles
    names = {path.name for path in write_plots(both, tmp_path / "plots")}
    assert {"controls.png", "controls-whole.png", "interaction.png", "interaction-whole.png"} < names
    assert "correspondence.png" not in names  # no warps were measured
    with_controls = alone.measurements["model"].embeddings
    plain = measured(Textures(), images, ledgers=("credit",), controls=False, interaction=False)
    assert plain.measurements["model"].embeddings < with_controls
    assert {found.measure for found in plain.estimates["model"]} == {"additivity", "deletion", "insertion", "stability"}
