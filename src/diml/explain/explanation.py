"""Two images compared, with everything needed to draw the result or to write it as plain numbers.

Legend: B pairs, Rq and Rg regions of the two sides.
"""

from __future__ import annotations

import base64
import dataclasses
import html
import io
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cache
from typing import TYPE_CHECKING, Any, Final

from PIL import Image
from torch import Tensor

from diml.data.images import ImageLike, load_image
from diml.explain.formatting import cell_name, cell_of, score_text, short_path, signed
from diml.matching import Match, Matcher, Regions
from diml.matching.ledger import Flow

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from diml.models import Embedder

DEFAULT_MODEL: Final = "mobilenetv2_100"
_VIEW_SCALE: Final = 2  # images are kept at twice the network's resolution, so that they are sharp in figures
_TABLE_ROWS: Final = 20  # of the table that a notebook shows of several pairs


@dataclass(frozen=True, eq=False, repr=False)
class Explanation(Match):
    """A match that can be drawn: the plan and scores of B pairs, and of a single pair its images where they are known.

    Args:
        images: RGB images of query and gallery image, showing exactly what the model saw; for a single pair (B = 1).
        names: of query and gallery image, usually their paths.
        scored: (B,) structural scores that the pairs were ranked by, where the plan is a sharpened one for display
            (see `sharpened`); None where the plan is the one that scored.
        sharpen: factor of the sharpened plan.

    Raises:
        ValueError: there are not two images and two names, or images of more than one pair.

    Example:
        >>> diml.match("a.jpg", "b.jpg").draw().savefig("why.png")
    """

    images: tuple[Image.Image, Image.Image] | None = field(default=None, kw_only=True)
    names: tuple[str, str] = field(default=("query", "gallery"), kw_only=True)
    scored: Tensor | None = field(default=None, kw_only=True)
    sharpen: float = field(default=1.0, kw_only=True)

    def __post_init__(self) -> None:
        _check_two(self.images, self.names)
        if self.images is not None and len(self) != 1:
            raise ValueError(
                f"images: need one pair, got {len(self)}; select one with Explanation.of(match, images, pair=...)"
            )

    @classmethod
    def of(
        cls,
        match: Match,
        images: tuple[Image.Image, Image.Image] | None = None,
        names: tuple[str, str] | None = None,
        pair: int = 0,
    ) -> Explanation:
        """One pair of a match of B pairs, with its images.

        Args:
            match: B pairs.
            images, names: as of `Explanation`; `embedder.preprocess.view(load_image(path), 2)` gives the view.
            pair: which pair, -B..B-1.

        Raises:
            IndexError: there is no such pair.
        """
        chosen = slice(_checked_pair(match, pair), pair + 1 or None)
        values = {entry.name: getattr(match, entry.name) for entry in fields(Match)}
        values = {name: value[chosen] if isinstance(value, Tensor) else value for name, value in values.items()}
        if isinstance(match, Explanation):
            scored = None if match.scored is None else match.scored[chosen]
            values |= {"images": match.images, "names": match.names, "scored": scored, "sharpen": match.sharpen}
        given = {"images": images, "names": names}
        return cls(**values | {name: value for name, value in given.items() if value is not None})

    def draw(
        self,
        *,
        pair: int = 0,
        images: tuple[ImageLike, ImageLike] | None = None,
        names: tuple[str, str] | None = None,
        top: int = 8,
    ) -> Figure:
        """The figure of one pair, 1200 px wide: images, lines, plan, cosines and the ledger.

        Args:
            pair: which pair, -B..B-1.
            images: query and gallery image, showing exactly what the regions cover, where they are not known yet.
            names: of the two images, if other than those that are known.
            top: number of lines, 0 to 20: the largest positive contributions.

        Raises:
            IndexError: there is no such pair.
            ValueError: `top` is out of range, or there are not two images or names.
            ModuleNotFoundError: matplotlib is missing.
        """
        from diml.explain import draw_match

        _check_two(images, names)
        shown = self.images if images is None else (load_image(images[0]), load_image(images[1]))
        return draw_match(self, pair, images=shown, names=names or self.names, top=top, note=self.note(pair))

    def note(self, pair: int = 0) -> str:
        """What must be said of a plan that is not the one that scored; empty where it is."""
        if self.scored is None:
            return ""
        pooled, structural, shown = (float(part[pair]) for part in (self.pooled, self.scored, self.structural))
        score = self.matcher.combine(pooled, structural)
        scored = score_text(score, pooled, structural, self.matcher.structural_weight)
        return (
            f"Sharpened plan (factor {self.sharpen:g}), for display only: {scored}; "
            f"the contributions shown sum to {signed(shown)}."
        )

    def to_dict(self, top: int = 10, pair: int = 0) -> dict[str, Any]:
        """One pair as plain numbers and lists, with the names: see `describe_match`."""
        return describe_match(self, pair, top=top, names=self.names)

    def __repr__(self) -> str:
        names = " and ".join(short_path(name) for name in self.names)
        if len(self) == 1:
            return f"Explanation({names}: {self._score_text(0)})"
        return f"Explanation({len(self)} pairs of {self.plan.shape[1]} x {self.plan.shape[2]} regions)"

    def _repr_html_(self) -> str:
        """The figure of a single pair, the scores of several."""
        if len(self) == 1:
            stream = io.BytesIO()
            self.draw().savefig(stream, format="png")
            source = base64.b64encode(stream.getvalue()).decode("ascii")
            return f'<img src="data:image/png;base64,{source}" alt="{html.escape(repr(self))}" style="max-width:100%">'
        rows = [f"<tr><td>{pair}</td><td>{self._score_text(pair)}</td></tr>" for pair in range(len(self))[:_TABLE_ROWS]]
        left_out = len(self) - len(rows)
        more = [f"<tr><td></td><td>{left_out} more</td></tr>"] if left_out else []
        return f"<table><tr><th>pair</th><th>score</th></tr>{''.join([*rows, *more])}</table>"

    def _score_text(self, pair: int) -> str:
        score, pooled, structural = (float(part[pair]) for part in (self.score, self.pooled, self.structural))
        return score_text(score, pooled, structural, self.matcher.structural_weight)


def match_pair(
    query: ImageLike | Regions,
    gallery: ImageLike | Regions,
    *,
    embedder: Embedder | None = None,
    matcher: Matcher | None = None,
) -> Explanation:
    """Compare two images region by region, or row i of some `Regions` with row i of others.

    Args:
        query, gallery: path, PIL image, tensor or array each (see `diml.data.images.ImageLike`); or Regions both.
        embedder: turns images into regions; by default `load_embedder("mobilenetv2_100")`, loaded once a process.
        matcher: settings of the method; by default the embedder's own, for Regions `Matcher()`.

    Returns:
        Explanation: one pair with its images; of Regions B pairs without images.

    Raises:
        TypeError: one side is Regions and the other an image, Regions came with an embedder, or a value is no image.
        BadImageError, FileNotFoundError: an image cannot be used.
        ValueError: Regions that do not fit each other.
    """
    if not isinstance(query, Regions) and not isinstance(gallery, Regions):
        return match_query(query, [gallery], embedder=embedder, matcher=matcher)[0]
    if not (isinstance(query, Regions) and isinstance(gallery, Regions)):
        raise TypeError("query, gallery: need images or Regions on both sides, got Regions on one only")
    if embedder is not None:
        raise TypeError("embedder: need none for Regions, which are embedded already; omit it, or give images")
    return Explanation(**vars((matcher or Matcher()).match(query, gallery)))


def match_query(
    query: ImageLike,
    gallery: Sequence[ImageLike],
    *,
    embedder: Embedder | None = None,
    matcher: Matcher | None = None,
) -> list[Explanation]:
    """Compare one image with several, region by region; the query is embedded once.

    Args:
        query: path, PIL image, tensor or array (see `diml.data.images.ImageLike`).
        gallery: at least one image, likewise.
        embedder: turns images into regions; by default `load_embedder("mobilenetv2_100")`, loaded once a process.
        matcher: settings of the method; by default the embedder's own.

    Returns:
        An explanation for each gallery image, in their order; `rank_hits` sorts them.

    Raises:
        BadImageError, FileNotFoundError: an image cannot be used.
        ValueError: the gallery is empty.
    """
    if not gallery:
        raise ValueError("gallery: need at least one image, got none")
    images = [query, *gallery]
    unnamed = ["query"] + (["gallery"] if len(gallery) == 1 else [f"gallery {row}" for row in range(len(gallery))])
    names = [_name(image, otherwise) for image, otherwise in zip(images, unnamed, strict=True)]
    loaded = [load_image(image, name=name) for image, name in zip(images, names, strict=True)]
    embedder = _default_embedder() if embedder is None else embedder
    regions = embedder.embed(loaded)
    views = [embedder.preprocess.view(image, _VIEW_SCALE) for image in loaded]
    found = (embedder.matcher if matcher is None else matcher).match(regions[0], regions[1:])
    return [
        Explanation.of(found, (views[0], view), (names[0], name), pair)
        for pair, (view, name) in enumerate(zip(views[1:], names[1:], strict=True))
    ]


def configured_matcher(
    embedder: Embedder | None, matcher: Matcher | None, settings: Mapping[str, Any]
) -> Matcher | None:
    """The matcher that single settings ask for: that of the embedder (or the default one) with these replaced.

    Returns:
        `matcher` where there are no settings.

    Raises:
        TypeError: both are given, or a setting is unknown.
    """
    if not settings:
        return matcher
    if matcher is not None:
        raise TypeError(f"matcher: need either a matcher or single settings, got both ({', '.join(settings)})")
    return dataclasses.replace(Matcher() if embedder is None else embedder.matcher, **settings)


def describe_match(
    match: Match,
    pair: int = 0,
    *,
    top: int = 10,
    names: tuple[str, str] | None = None,
    settings: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """One pair of a match as plain numbers and lists; all fractions, no percentages.

    Args:
        match: B pairs.
        pair: which of them, -B..B-1.
        top: number of largest contributions to list.
        names: of the two images.
        settings: how the images became regions; passed through.

    Returns:
        names {query, gallery}, settings, matcher (its settings), note (of a plan that is not the one that scored),
        score, pooled, structural, structural_weight, convergence {converged, marginal_error, iterations}, grid_q and
        grid_g ([rows, columns] or None), weight_q (Rq) and weight_g (Rg), top (a list of flows, each with region_q,
        region_g, mass, cosine, contribution, cell_q and cell_g as [row, column] from 0, name_q and name_g as in the
        figure), total_q (Rq), total_g (Rg), plan and cosine (Rq x Rg).

    Raises:
        IndexError: there is no such pair.
        ValueError: `top` is negative.
    """
    ledger = match.ledger(_checked_pair(match, pair))
    numbers = ledger.to_dict(top)
    return {
        "names": None if names is None else {"query": names[0], "gallery": names[1]},
        "settings": dict(settings or {}),
        "matcher": match.matcher.to_dict(),
        "note": match.note(pair) if isinstance(match, Explanation) else "",
        **{name: numbers[name] for name in ("score", "pooled", "structural", "structural_weight")},
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


def _check_two(images: Sequence[Any] | None, names: Sequence[str] | None) -> None:
    for what, given in (("images", images), ("names", names)):
        if given is not None and len(given) != 2:
            raise ValueError(f"{what}: need two, of the query and of the gallery image; got {len(given)}")


def _checked_pair(match: Match, pair: int) -> int:
    if not -len(match) <= pair < len(match):
        raise IndexError(f"pair: need -{len(match)}..{len(match) - 1}, got {pair}")
    return pair


def _name(image: ImageLike, otherwise: str) -> str:
    """The path of an image, also of a PIL image that was opened from a file; else the given name."""
    if isinstance(image, str | os.PathLike):
        return os.fspath(image)
    opened_from = getattr(image, "filename", "") if isinstance(image, Image.Image) else ""
    return str(opened_from) or otherwise


@cache
def _default_embedder() -> Embedder:
    from diml.models import load_embedder

    return load_embedder(DEFAULT_MODEL)
