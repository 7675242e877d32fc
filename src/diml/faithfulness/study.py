"""All measures on the pairs of a data set, for one embedder.

Legend: B pairs, R regions, F points of a curve.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from diml.data import ImageSet, load_image
from diml.explain.sharpening import check_sharpening, sharpened
from diml.faithfulness import deletion, parts
from diml.faithfulness.additivity import additivity_errors, ranking_errors
from diml.faithfulness.correspondence import LANDING, landings, rival_plans
from diml.faithfulness.gradcam import check_grad_cam, grad_cam_credit
from diml.faithfulness.pairs import embed_views, to_input
from diml.faithfulness.stability import DISTURBANCES, chance, stability
from diml.faithfulness.warps import WARPS, true_cells
from diml.matching import Match, MatchSettings, Regions, match
from diml.models import Embedder
from diml.progress import image_progress

Floats = NDArray[np.float64]
Key = tuple[str, str, str, str]

#: Pairs that are worked on together.
CHUNK = 16


@dataclass(frozen=True, kw_only=True)
class Measures:
    """What is measured, and how finely.

    Args:
        warps: kinds of warps for the correspondence, of `WARPS`.
        steps: of the curves of deletion and insertion.
        top: largest entries that the stability compares.
        sharpen: factor of the sharper plan that the correspondence is measured of too, see `diml.explain.sharpened`.
        grad_cam: measure the order of Grad-CAM as well.
        seed: of warps, noise and random orders.

    Raises:
        ValueError: a number is out of range, or a warp is not known.
    """

    warps: tuple[str, ...] = tuple(WARPS)
    steps: int = 6
    top: int = 8
    sharpen: float = 10.0
    grad_cam: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("steps", "top"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: need at least 1, got {getattr(self, name)}")
        unknown = sorted(set(self.warps) - set(WARPS))
        if unknown:
            raise ValueError(f"warps: need some of {', '.join(WARPS)}, got {', '.join(unknown)}")
        check_sharpening(self.sharpen)
        if self.grad_cam:
            check_grad_cam()


@dataclass(frozen=True, eq=False)
class Study:
    """What was measured of each pair.

    Args:
        values: (measure, case, method, quantity) -> (B',) numbers, one a pair that has one.
        curves: (deletion or insertion, method) -> (B, F) scores of pairs.
        shares: (F,) share of the regions that are gone, or put back.
        unfinished: plans that stopped at the cap of iterations.
    """

    values: Mapping[Key, Floats]
    curves: Mapping[tuple[str, str], Floats]
    shares: Floats
    unfinished: int


@dataclass(eq=False)
class _Notes:
    """Numbers as they come in."""

    values: dict[Key, list[float]] = field(default_factory=dict)
    curves: dict[tuple[str, str], list[list[float]]] = field(default_factory=dict)
    shares: list[float] = field(default_factory=list)
    unfinished: int = 0

    def add(self, key: Key, numbers: Sequence[float] | Floats) -> None:
        """Take down the numbers of some pairs; what a pair does not have is NaN and left out."""
        there = [float(number) for number in numbers if not np.isnan(number)]
        if there:
            self.values.setdefault(key, []).extend(there)


def run_study(
    embedder: Embedder,
    images: ImageSet,
    pairs: Sequence[tuple[int, int]],
    *,
    measures: Measures,
    settings: MatchSettings,
    doubtful: Embedder | None = None,
    progress: bool = False,
    what: str = "measuring",
) -> Study:
    """Measure additivity, deletion and insertion, correspondence and stability of an embedder's explanations.

    Args:
        embedder: turns images into regions on a known grid.
        images: where the pairs are from.
        pairs: (query, gallery) rows of `images`, as of `choose_pairs`.
        measures: what is measured.
        settings: marginals, epsilon, tolerance, max_iterations as of `diml.matching.match`.
        doubtful: the network with other, random weights: its credit is a further order of deletion, "randomised", and
            what it sees of the gallery side of a warp a further method of the correspondence, "strangers".
        progress: show a bar.
        what: to call it on the bar.

    Raises:
        BadImageError: a image cannot be used.
        ValueError: the regions form no known grid, or Grad-CAM cannot be had for this network.
    """
    notes = _Notes()
    with image_progress(len(pairs), show=progress, what=what) as advance:
        for start in range(0, len(pairs), CHUNK):
            some = list(pairs[start : start + CHUNK])
            chunk = _Chunk.load(embedder, images, some, start, measures, settings)
            _additivity(chunk, notes)
            _correspondence(chunk, doubtful, notes)
            _parts(chunk, images, some, notes)
            _stability(chunk, notes)
            _deletion(chunk, doubtful, notes, advance)
    return Study(
        values={key: np.array(numbers) for key, numbers in notes.values.items()},
        curves={key: np.array(rows) for key, rows in notes.curves.items()},
        shares=np.array(notes.shares),
        unfinished=notes.unfinished,
    )


@dataclass(frozen=True, eq=False)
class _Chunk:
    """Some pairs with their images, regions and match."""

    embedder: Embedder
    measures: Measures
    settings: MatchSettings
    first: int
    photos: list[Image.Image]
    views: list[Image.Image]
    seen: list[Image.Image]
    query: Regions
    gallery: Regions
    match: Match
    grid: tuple[int, int]

    @classmethod
    def load(
        cls,
        embedder: Embedder,
        images: ImageSet,
        pairs: Sequence[tuple[int, int]],
        first: int,
        measures: Measures,
        settings: MatchSettings,
    ) -> _Chunk:
        loaded = [[load_image(images.paths[row]) for row in pair] for pair in pairs]
        views, seen = ([embedder.preprocess.view(pair[side]) for pair in loaded] for side in (0, 1))
        photos = [embedder.preprocess.view(pair[0], 2) for pair in loaded]
        query, gallery = embed_views(embedder, views), embed_views(embedder, seen)
        if query.grid is None:
            raise ValueError("grid: need regions on a known grid, got none; give the embedder one with --grid")
        found = match(query, gallery, **settings)
        return cls(embedder, measures, settings, first, photos, views, seen, query, gallery, found, query.grid)

    def generator(self, pair: int, purpose: int) -> np.random.Generator:
        """Chance of one pair for one purpose, whatever else is measured."""
        return np.random.default_rng([self.measures.seed, purpose, self.first + pair])


def _additivity(chunk: _Chunk, notes: _Notes) -> None:
    notes.unfinished += int((~chunk.match.converged).sum())
    notes.add(("additivity", "", "ledger", "error"), additivity_errors(chunk.match))
    ranked = ranking_errors(chunk.match, chunk.query, chunk.gallery, **chunk.settings)
    notes.add(("additivity", "", "ranking", "error"), ranked)


def _correspondence(chunk: _Chunk, doubtful: Embedder | None, notes: _Notes) -> None:
    """Landings of all warps; "strangers" is the plan when the gallery side comes from the doubtful network."""
    size = chunk.embedder.preprocess.size
    for number, kind in enumerate(chunk.measures.warps):
        warps = [WARPS[kind](chunk.generator(pair, 10 + number)) for pair in range(len(chunk.photos))]
        sides = [warp.sides(photo, size) for warp, photo in zip(warps, chunk.photos, strict=True)]
        query, gallery = (embed_views(chunk.embedder, [pair[side] for pair in sides]) for side in (0, 1))
        found = match(query, gallery, **chunk.settings)
        notes.unfinished += int((~found.converged).sum())
        truths = [true_cells(warp, chunk.grid, chunk.grid) for warp in warps]
        landed = landings(found, truths, chunk.measures.sharpen)
        if doubtful is not None:
            strange = match(query, embed_views(doubtful, [pair[1] for pair in sides]), **chunk.settings)
            landed["strangers"] = landings(strange, truths)["plan"]
        for method, numbers in landed.items():
            for column, quantity in enumerate(LANDING):
                notes.add(("correspondence", kind, method, quantity), numbers[:, column])


def _parts(chunk: _Chunk, images: ImageSet, pairs: Sequence[tuple[int, int]], notes: _Notes) -> None:
    """Named parts, where the data set has them."""
    folder = parts.part_folder(images.paths[0])
    if folder is None:
        return
    known = parts.read_parts(folder)
    shown = sharpened(chunk.match, chunk.measures.sharpen).plan
    for pair, rows in enumerate(pairs):
        sides = [parts.parts_in_view(known, images.paths[row], folder, chunk.embedder.preprocess) for row in rows]
        plans = {"plan": chunk.match.plan[pair], "sharpened": shown[pair], **rival_plans(chunk.match.cosine[pair])}
        for method, plan in plans.items():
            landed = parts.part_landing(plan, chunk.match, pair, sides[0], sides[1])
            for quantity in LANDING if landed is not None else ():
                notes.add(("correspondence", "parts", method, quantity), [getattr(landed, quantity)])


def _stability(chunk: _Chunk, notes: _Notes) -> None:
    for number, (name, disturb) in enumerate(DISTURBANCES.items()):
        views = [disturb(view, chunk.generator(pair, 30 + number)) for pair, view in enumerate(chunk.views)]
        after = match(embed_views(chunk.embedder, views), chunk.gallery, **chunk.settings)
        for method, shares in stability(chunk.match, after, chunk.measures.top).items():
            notes.add(("stability", name, method, "unchanged"), shares)
        by_chance = chance(chunk.match, chunk.measures.top)
        notes.add(("stability", name, "chance", "unchanged"), [by_chance] * len(views))


def _deletion(chunk: _Chunk, doubtful: Embedder | None, notes: _Notes, advance: Callable[[int], None]) -> None:
    counts = deletion.steps_of(chunk.query.num_regions, chunk.measures.steps)
    notes.shares = [count / counts[-1] for count in counts]
    credit_of = _credits(chunk, doubtful)
    for pair, view in enumerate(chunk.views):
        generator = chunk.generator(pair, 1)
        orders = {name: deletion.order_by(credit[pair], generator) for name, credit in credit_of.items()}
        made = deletion.curve_images(view, orders, chunk.grid, counts)
        scores = match(embed_views(chunk.embedder, made.images), chunk.gallery[pair], **chunk.settings)
        notes.unfinished += int((~scores.converged).sum())
        heights = scores.score.double().cpu().numpy()
        for (kind, method), at in made.curves.items():
            curve = heights[at]
            notes.curves.setdefault((kind, method), []).append(curve.tolist())
            notes.add((kind, "", method, "area"), [deletion.area(curve, counts)])
        advance(1)


def _credits(chunk: _Chunk, doubtful: Embedder | None) -> dict[str, Sequence[Floats]]:
    """Method -> credit (R,) of the query's regions of every pair."""
    own = [deletion.region_credit(chunk.match, pair) for pair in range(len(chunk.views))]
    credit_of: dict[str, Sequence[Floats]] = {name: [credit[name].cpu().numpy() for credit in own] for name in own[0]}
    regions = chunk.query.num_regions
    credit_of["random"] = [np.zeros(regions) for _ in own]
    if chunk.measures.grad_cam:
        images = to_input(chunk.embedder, chunk.views)
        credit_of["grad-cam"] = list(grad_cam_credit(chunk.embedder, images, chunk.gallery, chunk.grid))
    if doubtful is not None:
        sides = (embed_views(doubtful, views) for views in (chunk.views, chunk.seen))
        other = match(*sides, **chunk.settings)
        credit_of["randomised"] = [other.ledger(pair).total_q.cpu().numpy() for pair in range(len(own))]
    return credit_of
