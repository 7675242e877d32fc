"""Two pictures compared in one call, and the result as a picture or as plain numbers.

Legend: B pairs, Rq and Rg regions of the two sides.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cache
from typing import TYPE_CHECKING, Any, Final, Unpack

from PIL import Image

from diml.data.pictures import Picture, load_picture, picture_name
from diml.explain.cells import cell_name, cell_of
from diml.explain.figure import draw_match
from diml.matching import Flow, Match, MatchSettings, Regions, match

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from diml.models import Embedder

DEFAULT_MODEL: Final = "mobilenetv2_100"
_VIEW_SCALE: Final = 2  # pictures are kept at twice the network's resolution: sharp when drawn


@dataclass(frozen=True, eq=False)
class PictureMatch(Match):
    """A match of one pair (B = 1) that remembers its pictures.

    Args:
        pictures: RGB pictures of the query and the gallery image: exactly the field of view that the model saw.
        names: what to call them, mostly their paths.
        scored: the structural score of the pair where the plan is a sharper one for showing (see `sharpened`), else
            None: then the plan here is the one that scored.
        sharpen: the factor of that sharper plan.
    """

    pictures: tuple[Image.Image, Image.Image] = field(kw_only=True)
    names: tuple[str, str] = field(kw_only=True)
    scored: float | None = field(default=None, kw_only=True)
    sharpen: float = field(default=1.0, kw_only=True)

    def __post_init__(self) -> None:
        for what, given in (("pictures", self.pictures), ("names", self.names)):
            if len(given) != 2:
                raise ValueError(f"{what}: need two, of the query and of the gallery image; got {len(given)}")
        if len(self) != 1:
            raise ValueError(f"plan: need one pair, got {len(self)}; choose one with PictureMatch.of(match, pair=...)")

    @classmethod
    def of(
        cls, match: Match, pictures: tuple[Image.Image, Image.Image], names: tuple[str, str], pair: int = 0
    ) -> PictureMatch:
        """One pair of a match of B pairs, together with its pictures.

        Args:
            match: of B pairs.
            pictures, names: as of `PictureMatch`; `embedder.preprocess.view(load_picture(path), 2)` gives the view.
            pair: which pair, -B..B-1.

        Raises:
            IndexError: there is no such pair.
        """
        if not -len(match) <= pair < len(match):
            raise IndexError(f"pair: need -{len(match)}..{len(match) - 1}, got {pair}")
        chosen = slice(pair, pair + 1 or None)
        values = {entry.name: getattr(match, entry.name) for entry in fields(Match)}
        values = {name: value if name.startswith("grid_") else value[chosen] for name, value in values.items()}
        return cls(**values, pictures=pictures, names=names)

    def draw(self, top: int = 8) -> Figure:
        """The explanation picture, 1200 px wide: see `draw_match`."""
        return draw_match(self, pictures=self.pictures, names=self.names, top=top, note=self.note)

    @property
    def note(self) -> str:
        """What must be said of a plan that is not the one that scored; empty where it is."""
        if self.scored is None:
            return ""
        pooled, shown = float(self.pooled[0]), float(self.structural[0])
        return (
            f"The plan shown is sharper ({self.sharpen:g} times) than the one that scored: the score is "
            f"{pooled + self.scored:.3f} = pooled {pooled:.3f} + structural {self.scored:.3f}; the contributions shown "
            f"sum to {shown:.3f}."
        )

    def to_dict(self, top: int = 10) -> dict[str, Any]:
        """The explanation as plain numbers and lists, with the names: see `describe_match`."""
        return describe_match(self, top=top, names=self.names)


def match_pictures(
    a: Picture, b: Picture, *, embedder: Embedder | None = None, **settings: Unpack[MatchSettings]
) -> PictureMatch:
    """Compare two pictures part by part.

    Args:
        a: the query: a path, PIL picture, tensor or array (see `diml.data.Picture`).
        b: the gallery image, likewise.
        embedder: turns pictures into regions; by default `load_embedder("mobilenetv2_100")`, loaded once a process.
        settings: marginals, epsilon, tolerance, max_iterations with the meaning and defaults of `diml.matching.match`.

    Returns:
        PictureMatch; its `draw()` is the explanation picture.

    Raises:
        TypeError: Regions were given instead of a picture, or something that is no picture.
        BadPictureError, FileNotFoundError: a picture cannot be used.
        ValueError: a setting is out of range.

    Example:
        >>> found = match_pictures("a.jpg", "b.jpg")
        >>> found.draw().savefig("why.png")
    """
    for side, picture in (("a", a), ("b", b)):
        if isinstance(picture, Regions):
            raise TypeError(
                f"{side}: need a picture, got Regions; compare Regions with Regions by diml.matching.match, "
                "or give both pictures"
            )
    return match_query(a, [b], embedder=embedder, **settings)[0]


def match_query(
    query: Picture, gallery: Sequence[Picture], *, embedder: Embedder | None = None, **settings: Unpack[MatchSettings]
) -> list[PictureMatch]:
    """Compare one picture with several, part by part; the query is embedded once.

    Args:
        query: as `a` of `match_pictures`.
        gallery: at least one picture, likewise.
        embedder, settings: as of `match_pictures`.

    Returns:
        A match for each gallery picture, in their order.

    Raises:
        BadPictureError, FileNotFoundError: a picture cannot be used.
        ValueError: the gallery is empty, or a setting is out of range.
    """
    if not gallery:
        raise ValueError("gallery: need at least one picture, got none")
    pictures = [query, *gallery]
    names = [_name(picture, index) for index, picture in enumerate(pictures)]
    loaded = [load_picture(picture, name=name) for picture, name in zip(pictures, names, strict=True)]
    embedder = _default_embedder() if embedder is None else embedder
    regions = embedder.embed(loaded)
    views = [embedder.preprocess.view(picture, _VIEW_SCALE) for picture in loaded]
    found = match(regions[0], regions[1:], **settings)
    return [
        PictureMatch.of(found, (views[0], view), (names[0], name), pair)
        for pair, (view, name) in enumerate(zip(views[1:], names[1:], strict=True))
    ]


def describe_match(
    match: Match,
    pair: int = 0,
    *,
    top: int = 10,
    names: tuple[str, str] | None = None,
    settings: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """One pair of a match as plain numbers and lists: all that an explanation shows, fractions throughout.

    Args:
        match: of B pairs.
        pair: which of them.
        top: how many of the largest contributions to list.
        names: of the two pictures.
        settings: how the match was made; handed through.

    Returns:
        names {query, gallery}, settings, note (of a plan that is not the one that scored), score, pooled, structural,
        convergence {converged, marginal_error, iterations}, grid_q and grid_g ([rows, columns] or None), weight_q (Rq)
        and weight_g (Rg), top (a list of flows, each with region_q, region_g, mass, cosine, contribution, cell_q and
        cell_g as [row, column] from 0, name_q and name_g as on the picture), total_q (Rq), total_g (Rg), plan and
        cosine (Rq x Rg).

    Raises:
        IndexError: there is no such pair.
        ValueError: `top` is negative.
    """
    if not -len(match) <= pair < len(match):
        raise IndexError(f"pair: need -{len(match)}..{len(match) - 1}, got {pair}")
    ledger = match.ledger(pair)
    numbers = ledger.to_dict(top)
    return {
        "names": None if names is None else {"query": names[0], "gallery": names[1]},
        "settings": dict(settings or {}),
        "note": getattr(match, "note", ""),
        **{name: numbers[name] for name in ("score", "pooled", "structural")},
        "convergence": {
            "converged": bool(match.converged[pair]),
            "marginal_error": float(match.marginal_error[pair]),
            "iterations": int(match.iterations[pair]),
        },
        "grid_q": match.grid_q and list(match.grid_q),
        "grid_g": match.grid_g and list(match.grid_g),
        "weight_q": match.weight_q[pair].tolist(),
        "weight_g": match.weight_g[pair].tolist(),
        "top": [_describe_flow(flow, match) for flow in ledger.top(top)],
        **{name: numbers[name] for name in ("total_q", "total_g", "plan", "cosine")},
    }


def _describe_flow(flow: Flow, match: Match) -> dict[str, Any]:
    sides = (("q", flow.region_q, match.grid_q), ("g", flow.region_g, match.grid_g))
    described: dict[str, Any] = {}
    for side, region, grid in sides:
        cell = cell_of(region, grid)
        described[f"region_{side}"] = region
        described[f"cell_{side}"] = cell and list(cell)
        described[f"name_{side}"] = cell_name(region, grid)
    return {**described, "mass": flow.mass, "cosine": flow.cosine, "contribution": flow.contribution}


def _name(picture: Picture, index: int) -> str:
    """A picture's path, also of a PIL picture that was opened from a file, else `<picture 0>` or `<picture 1>`."""
    opened_from = getattr(picture, "filename", "") if isinstance(picture, Image.Image) else ""
    return str(opened_from) or picture_name(picture, index)


@cache
def _default_embedder() -> Embedder:
    from diml.models import load_embedder

    return load_embedder(DEFAULT_MODEL)
