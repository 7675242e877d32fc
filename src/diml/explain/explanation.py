"""Two images compared in one call, and the result as a image or as plain numbers.

Legend: B pairs, Rq and Rg regions of the two sides.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cache
from typing import TYPE_CHECKING, Any, Final, Unpack

from PIL import Image

from diml.data.images import ImageLike, image_name, load_image
from diml.explain.cells import cell_name, cell_of
from diml.explain.figure import draw_match
from diml.matching import Flow, Match, MatchSettings, Regions, match

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from diml.models import Embedder

DEFAULT_MODEL: Final = "mobilenetv2_100"
_VIEW_SCALE: Final = 2  # images are kept at twice the network's resolution: sharp when drawn


@dataclass(frozen=True, eq=False)
class Explanation(Match):
    """A match of one pair (B = 1) that remembers its images.

    Args:
        images: RGB images of the query and the gallery image: exactly the field of view that the model saw.
        names: what to call them, mostly their paths.
        scored: the structural score of the pair where the plan is a sharper one for showing (see `sharpened`), else
            None: then the plan here is the one that scored.
        sharpen: the factor of that sharper plan.
    """

    images: tuple[Image.Image, Image.Image] = field(kw_only=True)
    names: tuple[str, str] = field(kw_only=True)
    scored: float | None = field(default=None, kw_only=True)
    sharpen: float = field(default=1.0, kw_only=True)

    def __post_init__(self) -> None:
        for what, given in (("images", self.images), ("names", self.names)):
            if len(given) != 2:
                raise ValueError(f"{what}: need two, of the query and of the gallery image; got {len(given)}")
        if len(self) != 1:
            raise ValueError(f"plan: need one pair, got {len(self)}; choose one with Explanation.of(match, pair=...)")

    @classmethod
    def of(
        cls, match: Match, images: tuple[Image.Image, Image.Image], names: tuple[str, str], pair: int = 0
    ) -> Explanation:
        """One pair of a match of B pairs, together with its images.

        Args:
            match: of B pairs.
            images, names: as of `Explanation`; `embedder.preprocess.view(load_image(path), 2)` gives the view.
            pair: which pair, -B..B-1.

        Raises:
            IndexError: there is no such pair.
        """
        if not -len(match) <= pair < len(match):
            raise IndexError(f"pair: need -{len(match)}..{len(match) - 1}, got {pair}")
        chosen = slice(pair, pair + 1 or None)
        values = {entry.name: getattr(match, entry.name) for entry in fields(Match)}
        values = {name: value if name.startswith("grid_") else value[chosen] for name, value in values.items()}
        return cls(**values, images=images, names=names)

    def draw(self, top: int = 8) -> Figure:
        """The explanation image, 1200 px wide: see `draw_match`."""
        return draw_match(self, images=self.images, names=self.names, top=top, note=self.note)

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


def match_images(
    a: ImageLike, b: ImageLike, *, embedder: Embedder | None = None, **settings: Unpack[MatchSettings]
) -> Explanation:
    """Compare two images part by part.

    Args:
        a: the query: a path, PIL image, tensor or array (see `diml.data.ImageLike`).
        b: the gallery image, likewise.
        embedder: turns images into regions; by default `load_embedder("mobilenetv2_100")`, loaded once a process.
        settings: marginals, epsilon, tolerance, max_iterations with the meaning and defaults of `diml.matching.match`.

    Returns:
        Explanation; its `draw()` is the explanation image.

    Raises:
        TypeError: Regions were given instead of a image, or something that is no image.
        BadImageError, FileNotFoundError: a image cannot be used.
        ValueError: a setting is out of range.

    Example:
        >>> found = match_images("a.jpg", "b.jpg")
        >>> found.draw().savefig("why.png")
    """
    for side, image in (("a", a), ("b", b)):
        if isinstance(image, Regions):
            raise TypeError(
                f"{side}: need a image, got Regions; compare Regions with Regions by diml.matching.match, "
                "or give both images"
            )
    return match_query(a, [b], embedder=embedder, **settings)[0]


def match_query(
    query: ImageLike,
    gallery: Sequence[ImageLike],
    *,
    embedder: Embedder | None = None,
    **settings: Unpack[MatchSettings],
) -> list[Explanation]:
    """Compare one image with several, part by part; the query is embedded once.

    Args:
        query: as `a` of `match_images`.
        gallery: at least one image, likewise.
        embedder, settings: as of `match_images`.

    Returns:
        A match for each gallery image, in their order.

    Raises:
        BadImageError, FileNotFoundError: a image cannot be used.
        ValueError: the gallery is empty, or a setting is out of range.
    """
    if not gallery:
        raise ValueError("gallery: need at least one image, got none")
    images = [query, *gallery]
    names = [_name(image, index) for index, image in enumerate(images)]
    loaded = [load_image(image, name=name) for image, name in zip(images, names, strict=True)]
    embedder = _default_embedder() if embedder is None else embedder
    regions = embedder.embed(loaded)
    views = [embedder.preprocess.view(image, _VIEW_SCALE) for image in loaded]
    found = match(regions[0], regions[1:], **settings)
    return [
        Explanation.of(found, (views[0], view), (names[0], name), pair)
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
        names: of the two images.
        settings: how the match was made; handed through.

    Returns:
        names {query, gallery}, settings, note (of a plan that is not the one that scored), score, pooled, structural,
        convergence {converged, marginal_error, iterations}, grid_q and grid_g ([rows, columns] or None), weight_q (Rq)
        and weight_g (Rg), top (a list of flows, each with region_q, region_g, mass, cosine, contribution, cell_q and
        cell_g as [row, column] from 0, name_q and name_g as on the image), total_q (Rq), total_g (Rg), plan and
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


def _name(image: ImageLike, index: int) -> str:
    """A image's path, also of a PIL image that was opened from a file, else `<image 0>` or `<image 1>`."""
    opened_from = getattr(image, "filename", "") if isinstance(image, Image.Image) else ""
    return str(opened_from) or image_name(image, index)


@cache
def _default_embedder() -> Embedder:
    from diml.models import load_embedder

    return load_embedder(DEFAULT_MODEL)
