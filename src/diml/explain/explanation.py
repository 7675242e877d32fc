"""Two images compared, with everything needed to draw the result or to write it as plain numbers.

Legend: B pairs, Rq and Rg regions of the two sides.
"""

from __future__ import annotations

import base64
import html
import io
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cache
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from diml.data.images import ImageLike, load_image
from diml.explain.formatting import score_text, short_path, signed
from diml.matching import Match, Matcher, Regions

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from diml.calibration import Calibrator
    from diml.explain.summary import Summary
    from diml.models import Embedder

#: Fraction of each region of an image that is object, (R,), where it is known; and of both images of a pair.
Foreground = NDArray[np.float64] | None
Foregrounds = tuple[Foreground, Foreground]
#: The plan to show: the exact one, or that of the matcher, by which pairs are ranked.
Plan = Literal["exact", "scored"]
#: For everybody, or for experts.
View = Literal["parts", "regions"]

DEFAULT_MODEL: Final = "mobilenetv2_100"
#: Scores that differ by less are written as one.
SAME_SCORE: Final = 5e-4
_VIEW_SCALE: Final = 2  # images are kept at twice the network's resolution, so that they are sharp in figures
_TABLE_ROWS: Final = 20  # of the table that a notebook shows of several pairs


@dataclass(frozen=True, eq=False, repr=False)
class Explanation(Match):
    """A match that can be drawn: the plan and scores of B pairs, and of a single pair its images where they are known.

    Args:
        images: RGB images of query and gallery image, showing exactly what the model saw; for a single pair (B = 1).
        names: of query and gallery image, usually their paths.
        scored: (B,) structural scores that the pairs are ranked by, where the plan is the exact one in place of that
            of the matcher (see `shown_plan`); None where the plan is the one that ranks. `converged`, `marginal_error`
            and `iterations` are those of the plan that ranks.
        calibrator: what the scores of this model and matcher mean, where it is known.
        probability: that both images are of one class, where more is known than the score of the pair, as of the hits
            of a search; by default that of the calibrator. For a single pair.
        kind: what images of one class have in common, one noun: "product" gives "likely the same product"; that of the
            calibrator when omitted, else "class".
        foregrounds: fraction of each region that is object, (Rq,) and (Rg,) in 0..1, or None for an image without;
            for a single pair.

    Raises:
        ValueError: there are not two images, names or foregrounds, images of more than one pair, or foregrounds that
            do not fit the regions.

    Example:
        >>> diml.match("a.jpg", "b.jpg").draw().savefig("why.png")
    """

    images: tuple[Image.Image, Image.Image] | None = field(default=None, kw_only=True)
    names: tuple[str, str] = field(default=("query", "gallery"), kw_only=True)
    scored: Tensor | None = field(default=None, kw_only=True)
    calibrator: Calibrator | None = field(default=None, kw_only=True)
    probability: float | None = field(default=None, kw_only=True)
    kind: str = field(default="", kw_only=True)
    foregrounds: Foregrounds | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        _check_two(self.images, self.names)
        for what in ("images", "foregrounds", "probability"):
            if getattr(self, what) is not None and len(self) != 1:
                raise ValueError(
                    f"{what}: need one pair, got {len(self)}; select one with Explanation.of(match, images, pair=...)"
                )
        if self.foregrounds is not None:
            _check_foregrounds(self.foregrounds, self.plan)

    @classmethod
    def of(
        cls,
        match: Match,
        images: tuple[Image.Image, Image.Image] | None = None,
        names: tuple[str, str] | None = None,
        pair: int = 0,
        *,
        calibrator: Calibrator | None = None,
        foregrounds: Foregrounds | None = None,
    ) -> Explanation:
        """One pair of a match of B pairs, with its images.

        Args:
            match: B pairs.
            images, names, calibrator, foregrounds: as of `Explanation`; those of `match` where omitted;
                `embedder.preprocess.view(load_image(path), 2)` gives the view of an image.
            pair: which pair, -B..B-1.

        Raises:
            IndexError: there is no such pair.
        """
        chosen = slice(checked_pair(match, pair), pair + 1 or None)
        kinds = fields(match) if isinstance(match, Explanation) else fields(Match)
        values = {entry.name: getattr(match, entry.name) for entry in kinds}
        values = {name: value[chosen] if isinstance(value, Tensor) else value for name, value in values.items()}
        given = {"images": images, "names": names, "calibrator": calibrator, "foregrounds": foregrounds}
        return cls(**values | {name: value for name, value in given.items() if value is not None})

    @property
    def noun(self) -> str:
        """What images of one class have in common: `kind`, else that of the calibrator, else "class"."""
        return self.kind or ("class" if self.calibrator is None else self.calibrator.kind)

    @property
    def plan_kind(self) -> Literal["exact", "entropic", "MaxSim", "votes"]:
        """Which plan this is."""
        if self.matcher.learned:
            return "votes"
        if self.matcher.matching != "transport":
            return "MaxSim"
        return "exact" if self.scored is not None or self.matcher.epsilon == 0 else "entropic"

    @property
    def plan_shown(self) -> str:
        """Which plan this is, in words: "exact", "entropic, epsilon 0.05", "MaxSim" or "one-sided MaxSim"; "votes" of a
        learned matcher."""
        if self.plan_kind == "entropic":
            return f"entropic, epsilon {self.matcher.epsilon:g}"
        one_sided = self.matcher.matching == "maxsim_query"
        return f"one-sided {self.plan_kind}" if one_sided else self.plan_kind

    def ranked_by(self, pair: int = 0) -> float:
        """The score by which a pair is ranked: that of the matcher's own plan, whichever plan this is."""
        structural = self.structural if self.scored is None else self.scored
        return float(self.matcher.combine(self.pooled[pair], structural[pair]))

    def probability_of(self, pair: int = 0) -> float | None:
        """That both images of a pair are of one class: `probability`, else that of the calibrator for its score."""
        if self.probability is not None or self.calibrator is None:
            return self.probability
        return self.calibrator.probability(self.ranked_by(pair))

    def summary(self, pair: int = 0, *, parts: int | None = None, plan: Plan = "exact") -> Summary:
        """What there is to say about one pair to somebody who does not know the method: see `summarise`.

        Args:
            pair: which pair, -B..B-1.
            parts: number of parts; chosen by itself when omitted.
            plan: that the parts are read from: "exact", or "scored" for that of the matcher.
        """
        from diml.explain.shown_plan import shown_plan
        from diml.explain.summary import summarise

        return summarise(shown_plan(self, pair, plan), parts=parts)

    def draw(
        self,
        *,
        pair: int = 0,
        view: View = "parts",
        plan: Plan = "exact",
        overlay: bool | None = None,
        parts: int | None = None,
        top: int = 8,
        flows: Sequence[tuple[int, int]] | None = None,
        colours: Sequence[str] | None = None,
        width: float | None = None,
        panels: Sequence[str] | None = None,
        images: tuple[ImageLike, ImageLike] | None = None,
        names: tuple[str, str] | None = None,
    ) -> Figure:
        """The figure of one pair: parts that match, for everybody; or regions, plan, cosines and ledger, for experts.

        Args:
            pair: which pair, -B..B-1.
            view: "parts" (see `draw_parts`) or "regions" (see `draw_match`).
            plan: that is shown, as of `shown_plan`: "exact", or "scored" for that of the matcher.
            overlay: tint the parts, or draw the weights over the images; where omitted, weights are drawn and parts
                are not tinted.
            parts: largest number of parts; 3 to 6 where omitted. Of the view "parts".
            top: number of lines, 0 to 20: the largest positive contributions. Of the view "regions", as are `flows`.
            flows: pairs of regions (query, gallery) to draw instead of the largest.
            colours: `#rrggbb` of parts or lines, which repeat.
            width: in inches, 2.5 to 24; 3.3 and 6.9 are the columns of papers.
            panels: what to draw, in the order of the figure; everything where omitted. "headline", "images" and
                "scale"; "parts" and "background"; "plan", "cosine", "reduced" and "ledger".
            images: query and gallery image, showing exactly what the regions cover, where they are not known yet.
            names: of the two images, if other than those that are known.

        Raises:
            IndexError: there is no such pair.
            ValueError: a setting is out of range, or there are not two images or names.
            ModuleNotFoundError: matplotlib is missing.
        """
        from diml.explain.pair_figure import draw_pair

        _check_two(images, names)
        loaded = self.images if images is None else (load_image(images[0]), load_image(images[1]))
        shown = Explanation.of(self, loaded, names, pair)
        return draw_pair(
            shown, view=view, plan=plan, overlay=overlay, parts=parts, top=top, flows=flows, colours=colours,
            width=width, panels=panels,
        )  # fmt: skip

    def note(self, pair: int = 0) -> str:
        """One line where the contributions shown sum to another score than the one that ranks; else empty."""
        shown, ranked = float(self.score[pair]), self.ranked_by(pair)
        if abs(shown - ranked) <= SAME_SCORE:
            return ""
        return (
            f"Contributions of the exact plan, which sum to {signed(shown)}; the pair is ranked by {signed(ranked)}, "
            f"from the entropic plan (epsilon {self.matcher.epsilon:g})."
        )

    def to_dict(self, top: int = 10, pair: int = 0, *, plan: Plan = "exact") -> dict[str, Any]:
        """One pair as plain numbers and lists, with the names: see `describe_match`; `plan` as of `shown_plan`."""
        from diml.explain.description import describe_match
        from diml.explain.shown_plan import shown_plan

        return describe_match(shown_plan(self, pair, plan), top=top, names=self.names)

    def __repr__(self) -> str:
        names = " and ".join(short_path(name) for name in self.names)
        if len(self) == 1:
            chance = self.probability_of()
            sure = "" if chance is None else f"P(same {self.noun}) {chance:.2f}, "
            return f"Explanation({names}: {sure}{self._score_text(0)})"
        return f"Explanation({len(self)} pairs of {self.plan.shape[1]} x {self.plan.shape[2]} regions)"

    def _repr_html_(self) -> str:
        """The figure of a single pair, the scores of several."""
        if len(self) == 1:
            stream = io.BytesIO()
            self.draw().savefig(stream, format="png")
            source = base64.b64encode(stream.getvalue()).decode("ascii")
            alt = html.escape(str(self.summary()))
            return f'<img src="data:image/png;base64,{source}" alt="{alt}" style="max-width:100%">'
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
    calibrator: Calibrator | None = None,
    foregrounds: Foregrounds | None = None,
) -> Explanation:
    """Compare two images region by region, or row i of some `Regions` with row i of others.

    Args:
        query, gallery: path, PIL image, tensor or array each (see `diml.data.images.ImageLike`); or Regions both.
        embedder: turns images into regions; by default `load_embedder("mobilenetv2_100")`, loaded once a process.
        matcher: settings of the method; by default the embedder's own, for Regions `Matcher()`.
        calibrator, foregrounds: as of `Explanation`.

    Returns:
        Explanation: one pair with its images; of Regions B pairs without images.

    Raises:
        TypeError: one side is Regions and the other an image, Regions came with an embedder, or a value is no image.
        BadImageError, FileNotFoundError: an image cannot be used.
        ValueError: Regions that do not fit each other.
    """
    if not isinstance(query, Regions) and not isinstance(gallery, Regions):
        given = None if foregrounds is None else (foregrounds[0], [foregrounds[1]])
        return match_query(
            query, [gallery], embedder=embedder, matcher=matcher, calibrator=calibrator, foregrounds=given
        )[0]
    if not (isinstance(query, Regions) and isinstance(gallery, Regions)):
        raise TypeError("query, gallery: need images or Regions on both sides, got Regions on one only")
    if embedder is not None:
        raise TypeError("embedder: need none for Regions, which are embedded already; omit it, or give images")
    found = (matcher or Matcher()).match(query, gallery)
    return Explanation(**vars(found), calibrator=calibrator, foregrounds=foregrounds)


def match_query(
    query: ImageLike,
    gallery: Sequence[ImageLike],
    *,
    embedder: Embedder | None = None,
    matcher: Matcher | None = None,
    calibrator: Calibrator | None = None,
    foregrounds: tuple[Foreground, Sequence[Foreground]] | None = None,
) -> list[Explanation]:
    """Compare one image with several, region by region; the query is embedded once.

    Args:
        query: path, PIL image, tensor or array (see `diml.data.images.ImageLike`).
        gallery: at least one image, likewise.
        embedder: turns images into regions; by default `load_embedder("mobilenetv2_100")`, loaded once a process.
        matcher: settings of the method; by default the embedder's own.
        calibrator: what the scores of this embedder and matcher mean.
        foregrounds: fraction of each region that is object, of the query, and of each gallery image.

    Returns:
        An explanation for each gallery image, in their order, with the shares of the pooled vectors, so that the whole
        score is divided among pairs of regions; `rank_hits` sorts them.

    Raises:
        BadImageError, FileNotFoundError: an image cannot be used.
        ValueError: the gallery is empty; foregrounds do not fit.
    """
    if not gallery:
        raise ValueError("gallery: need at least one image, got none")
    embedder = _default_embedder() if embedder is None else embedder
    matcher = embedder.matcher if matcher is None else matcher
    embedder.check_matcher(matcher)
    images = [query, *gallery]
    unnamed = ["query"] + (["gallery"] if len(gallery) == 1 else [f"gallery {row}" for row in range(len(gallery))])
    names = [_name(image, otherwise) for image, otherwise in zip(images, unnamed, strict=True)]
    least = embedder.preprocess.at_least
    loaded = [load_image(image, name=name, at_least=least) for image, name in zip(images, names, strict=True)]
    regions = embedder.embed(loaded, shares=True)
    views = [embedder.preprocess.view(image, _VIEW_SCALE) for image in loaded]
    found = matcher.match(regions[0], regions[1:])
    covered: Sequence[Foreground] = [None] * len(gallery) if foregrounds is None else foregrounds[1]
    if len(covered) != len(gallery):
        raise ValueError(f"foregrounds: need one for each of {len(gallery)} gallery images, got {len(covered)}")
    return [
        Explanation.of(
            found,
            (views[0], view),
            (names[0], name),
            pair,
            calibrator=calibrator,
            foregrounds=None if foregrounds is None else (foregrounds[0], inside),
        )
        for pair, (view, name, inside) in enumerate(zip(views[1:], names[1:], covered, strict=True))
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
    return (Matcher() if embedder is None else embedder.matcher).changed(**settings)


def _check_two(images: Sequence[Any] | None, names: Sequence[str] | None) -> None:
    for what, given in (("images", images), ("names", names)):
        if given is not None and len(given) != 2:
            raise ValueError(f"{what}: need two, of the query and of the gallery image; got {len(given)}")


def _check_foregrounds(foregrounds: Foregrounds, plan: Tensor) -> None:
    if len(foregrounds) != 2:
        raise ValueError(f"foregrounds: need two, of the query and of the gallery image; got {len(foregrounds)}")
    for given, regions in zip(foregrounds, plan.shape[1:], strict=True):
        if given is None:
            continue
        if given.shape != (regions,) or not (given.min() >= 0 and given.max() <= 1):
            got = f"{given.shape}, {given.min():g} to {given.max():g}" if given.size else str(given.shape)
            raise ValueError(f"foregrounds: need ({regions},) fractions in 0..1, one for each region, got {got}")


def checked_pair(match: Match, pair: int) -> int:
    """The number of a pair; IndexError where there is none."""
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
