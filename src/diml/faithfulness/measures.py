"""All measures on pairs of a data set, for one embedder.

Legend: B pairs, R regions, F points of a curve.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from diml.data import ImageSet, load_image
from diml.explain.sharpening import check_sharpening, sharpened
from diml.faithfulness import deletion, parts
from diml.faithfulness.additivity import additivity_errors, ranking_errors
from diml.faithfulness.controls import MOVED, derangement
from diml.faithfulness.correspondence import QUANTITIES, baseline_plans, plan_accuracies
from diml.faithfulness.gradcam import check_grad_cam, grad_cam_credit
from diml.faithfulness.interaction import JointCurve, JointOrders, ScoredPairs, joint_orders
from diml.faithfulness.ledgers import LEDGERS, Attribution
from diml.faithfulness.pairs import embed_views, to_input
from diml.faithfulness.stability import PERTURBATIONS, chance, stability
from diml.faithfulness.warps import WARPS, true_cells
from diml.matching import Match, Matcher, Regions
from diml.models import Embedder
from diml.progress import ShowProgress, progress_bar

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

#: (measure, case, method, quantity), such as ("correspondence", "flip", "plan", "mass").
Key = tuple[str, str, str, str]

#: How regions of the gallery image are removed.
Removal = Literal["blur", "shuffle"]

#: Pairs that are measured together.
CHUNK = 16


@dataclass(frozen=True, kw_only=True)
class Measures:
    """What is measured, and how finely.

    Args:
        warps: kinds of warps for the correspondence, of `diml.faithfulness.warps.WARPS`.
        steps: of the curves of deletion and insertion.
        top: number of largest entries compared by the stability.
        sharpen: factor of the sharpened plan whose correspondence is measured as well (see `diml.explain.sharpened`).
        grad_cam: whether to delete in the order of Grad-CAM as well.
        ledgers: kinds of ledgers that deletion and insertion test, of `diml.faithfulness.ledgers.LEDGERS`.
        controls: whether to delete and insert by orders of the same spatial structure as well (see `controls`).
        interaction: whether to delete and insert matched regions of both images together (see `interaction`).
        gallery_removal: how these are removed from the gallery image: "blur", or "shuffle" its pixels. Blurred regions
            of two images resemble each other; shuffled ones resemble nothing in the blurred query.
        seed: of warps, noise, random orders and controls.

    Raises:
        ValueError: a number is out of range, a warp or ledger is unknown, or the library for Grad-CAM is missing.
    """

    warps: tuple[str, ...] = tuple(WARPS)
    steps: int = 6
    top: int = 8
    sharpen: float = 10.0
    grad_cam: bool = True
    ledgers: tuple[str, ...] = ("credit",)
    controls: bool = True
    interaction: bool = True
    gallery_removal: Removal = "blur"
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("steps", "top"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: need at least 1, got {getattr(self, name)}")
        for name, known in (("warps", WARPS), ("ledgers", LEDGERS)):
            unknown = sorted(set(getattr(self, name)) - set(known))
            if unknown:
                raise ValueError(f"{name}: need some of {', '.join(known)}, got {', '.join(unknown)}")
        if self.gallery_removal not in get_args(Removal):
            raise ValueError(f"gallery_removal: need one of {get_args(Removal)}, got {self.gallery_removal!r}")
        if not self.ledgers:
            raise ValueError(f"ledgers: need at least one of {', '.join(LEDGERS)}, got none")
        check_sharpening(self.sharpen)
        if self.grad_cam:
            check_grad_cam()


@dataclass(frozen=True, eq=False, repr=False)
class Measurements:
    """The values of every pair for one network.

    Args:
        values: key -> (B',) values, of the pairs that have one.
        curves: ("deletion", "insertion", "interaction_deletion" or "interaction_insertion", method) -> (B, F) scores.
        shares: (F,) fraction of the regions that are blurred, or restored.
        unconverged_plans: number of plans that stopped at max_iterations.
        embeddings: number of images that were embedded, by the network and by its control.
    """

    values: Mapping[Key, Floats]
    curves: Mapping[tuple[str, str], Floats]
    shares: Floats
    unconverged_plans: int
    embeddings: int = 0

    def __repr__(self) -> str:
        return f"Measurements({len(self.values)} quantities, {len(self.curves)} curves)"


@dataclass(eq=False)
class _Collector:
    """Values collected chunk by chunk."""

    values: dict[Key, list[float]] = field(default_factory=dict)
    curves: dict[tuple[str, str], list[list[float]]] = field(default_factory=dict)
    shares: list[float] = field(default_factory=list)
    unconverged_plans: int = 0
    embeddings: int = 0

    def embed(self, embedder: Embedder, views: Sequence[Image.Image], *, shares: bool = False) -> Regions:
        """Embed views and count them."""
        self.embeddings += len(views)
        return embed_views(embedder, views, shares=shares)

    def add_curve(self, key: tuple[str, str], scores: Floats, counts: Sequence[int]) -> None:
        """Add the curve of a pair and the area under it."""
        self.curves.setdefault(key, []).append(scores.tolist())
        self.add((key[0], "", key[1], "area"), [deletion.area(scores, counts)])

    def add(self, key: Key, numbers: Sequence[float] | Floats) -> None:
        """Add the values of some pairs, leaving out NaN, which stands for pairs without a value."""
        present = [float(number) for number in numbers if not np.isnan(number)]
        if present:
            self.values.setdefault(key, []).extend(present)

    def count_unconverged(self, match: Match) -> None:
        """Add the plans of a match that have not converged."""
        self.unconverged_plans += int((~match.converged).sum())


def measure_pairs(
    embedder: Embedder,
    images: ImageSet,
    pairs: Sequence[tuple[int, int]],
    *,
    measures: Measures,
    matcher: Matcher | None = None,
    control: Embedder | None = None,
    progress: ShowProgress = False,
    what: str = "measuring",
) -> Measurements:
    """Measure additivity, deletion and insertion, correspondence and stability of an embedder's explanations.

    Args:
        embedder: turns images into regions on a known grid.
        images: that the pairs are from.
        pairs: (query, gallery) rows of `images`, as of `choose_pairs`.
        measures: what is measured.
        matcher: settings of the method; by default the embedder's own.
        control: the network with random weights: its credit is a further order of deletion ("randomised"), and its
            regions of the gallery side of a warp a further method of the correspondence ("random_gallery").
        progress: show a progress bar.
        what: title of the progress bar.

    Raises:
        BadImageError: an image cannot be used.
        ValueError: the regions form no known grid, or Grad-CAM is impossible for this network.
    """
    matcher = embedder.matcher if matcher is None else matcher
    collector = _Collector()
    others = derangement(len(pairs), np.random.default_rng([measures.seed, 4]))
    with progress_bar(len(pairs), show=progress, what=what, unit="pairs") as advance:
        for start in range(0, len(pairs), CHUNK):
            some = list(pairs[start : start + CHUNK])
            chunk = _Chunk.load(embedder, images, some, start, measures, matcher, collector)
            _measure_additivity(chunk, collector)
            _measure_correspondence(chunk, control, collector)
            _measure_parts(chunk, images, some, collector)
            _measure_stability(chunk, collector)
            other_credit: dict[str, list[Floats]] = {}
            if measures.controls and len(pairs) > 1:
                other_credit = _credit_of_pairs(
                    chunk, images, [pairs[row] for row in others[start : start + CHUNK]], collector
                )
            _measure_deletion(chunk, control, other_credit, collector, advance)
    return Measurements(
        values={key: np.array(numbers) for key, numbers in collector.values.items()},
        curves={key: np.array(rows) for key, rows in collector.curves.items()},
        shares=np.array(collector.shares),
        unconverged_plans=collector.unconverged_plans,
        embeddings=collector.embeddings,
    )


@dataclass(frozen=True, eq=False)
class _Chunk:
    """Some pairs with their images, regions and match; `photos` are the queries at twice the resolution."""

    embedder: Embedder
    measures: Measures
    first: int
    photos: list[Image.Image]
    views_q: list[Image.Image]
    views_g: list[Image.Image]
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
        matcher: Matcher,
        collector: _Collector,
    ) -> _Chunk:
        loaded = [[load_image(images.images[row], name=images.image_name(row)) for row in pair] for pair in pairs]
        views_q, views_g = ([embedder.preprocess.view(pair[side]) for pair in loaded] for side in (0, 1))
        photos = [embedder.preprocess.view(pair[0], 2) for pair in loaded]
        shares = any(LEDGERS[name].needs_shares for name in measures.ledgers)
        query, gallery = (collector.embed(embedder, views, shares=shares) for views in (views_q, views_g))
        if query.grid is None:
            raise ValueError("grid: need regions on a known grid, got none; give the embedder one with --grid")
        found = matcher.match(query, gallery)
        return cls(embedder, measures, first, photos, views_q, views_g, query, gallery, found, query.grid)

    def compare(self, query: Regions, gallery: Regions) -> Match:
        """A match with the same matcher."""
        return self.match.matcher.match(query, gallery)

    def generator(self, pair: int, purpose: int) -> np.random.Generator:
        """Random numbers of one pair for one purpose, independent of everything else that is measured."""
        return np.random.default_rng([self.measures.seed, purpose, self.first + pair])


def _measure_additivity(chunk: _Chunk, collector: _Collector) -> None:
    collector.count_unconverged(chunk.match)
    collector.add(("additivity", "", "ledger", "error"), additivity_errors(chunk.match))
    ranked = ranking_errors(chunk.match, chunk.query, chunk.gallery)
    collector.add(("additivity", "", "ranking", "error"), ranked)


def _measure_correspondence(chunk: _Chunk, control: Embedder | None, collector: _Collector) -> None:
    """Accuracies under all warps; "random_gallery" is the plan when the control embeds the gallery side."""
    size = chunk.embedder.preprocess.size
    for number, kind in enumerate(chunk.measures.warps):
        warps = [WARPS[kind](chunk.generator(pair, 10 + number)) for pair in range(len(chunk.photos))]
        sides = [warp.sides(photo, size) for warp, photo in zip(warps, chunk.photos, strict=True)]
        query, gallery = (collector.embed(chunk.embedder, [pair[side] for pair in sides]) for side in (0, 1))
        found = chunk.compare(query, gallery)
        collector.count_unconverged(found)
        truths = [true_cells(warp, chunk.grid, chunk.grid) for warp in warps]
        accuracies = plan_accuracies(found, truths, chunk.measures.sharpen)
        if control is not None:
            other = chunk.compare(query, collector.embed(control, [pair[1] for pair in sides]))
            accuracies["random_gallery"] = plan_accuracies(other, truths)["plan"]
        for method, numbers in accuracies.items():
            for column, quantity in enumerate(QUANTITIES):
                collector.add(("correspondence", kind, method, quantity), numbers[:, column])


def _measure_parts(chunk: _Chunk, images: ImageSet, pairs: Sequence[tuple[int, int]], collector: _Collector) -> None:
    """Correspondence of named parts, if the data set has them."""
    first = images.images[0]
    folder = parts.part_folder(first) if isinstance(first, Path) else None
    if folder is None:
        return
    known = parts.read_parts(folder)
    sharper = sharpened(chunk.match, chunk.measures.sharpen).plan
    for pair, rows in enumerate(pairs):
        sides = [parts.parts_in_view(known, images.paths[row], folder, chunk.embedder.preprocess) for row in rows]
        plans = {"plan": chunk.match.plan[pair], "sharpened": sharper[pair], **baseline_plans(chunk.match.cosine[pair])}
        for method, plan in plans.items():
            accuracy = parts.part_accuracy(plan, chunk.match, pair, sides[0], sides[1])
            for quantity in QUANTITIES if accuracy is not None else ():
                collector.add(("correspondence", "parts", method, quantity), [getattr(accuracy, quantity)])


def _measure_stability(chunk: _Chunk, collector: _Collector) -> None:
    for number, (name, perturb) in enumerate(PERTURBATIONS.items()):
        views = [perturb(view, chunk.generator(pair, 30 + number)) for pair, view in enumerate(chunk.views_q)]
        after = chunk.compare(collector.embed(chunk.embedder, views), chunk.gallery)
        for method, shares in stability(chunk.match, after, chunk.measures.top).items():
            collector.add(("stability", name, method, "unchanged"), shares)
        expected = chance(chunk.match, chunk.measures.top)
        collector.add(("stability", name, "chance", "unchanged"), [expected] * len(views))


def _measure_deletion(
    chunk: _Chunk,
    control: Embedder | None,
    other_credit: Mapping[str, Sequence[Floats]],
    collector: _Collector,
    advance: Callable[[int], None],
) -> None:
    """Deletion and insertion in the query alone, and in both images together; the images of a pair are embedded once.

    Args:
        other_credit: kind of ledger -> credit of another pair for each pair; may be empty.
    """
    counts = deletion.steps_of(chunk.query.num_regions, chunk.measures.steps)
    collector.shares = [count / counts[-1] for count in counts]
    own = {name: _attributions(chunk.match, name) for name in chunk.measures.ledgers}
    credit_of = _credits(chunk, own, control, collector)
    for pair, view in enumerate(chunk.views_q):
        generator = chunk.generator(pair, 1)
        orders = {name: deletion.order_by(credit[pair], generator) for name, credit in credit_of.items()}
        joint = _joint_orders(chunk, pair, own, orders["random"])
        for name in own if chunk.measures.controls else ():
            other = other_credit[name][pair] if other_credit else None
            orders |= _controls(chunk, pair, name, own[name][pair].credit, other, orders[name])
        images_q = deletion.ComposedImages(view, chunk.grid)
        images_g = _gallery_images(chunk, pair)
        curves = deletion.curve_rows(images_q, orders, counts)
        scored = ScoredPairs()
        joint_curves: dict[tuple[str, str], JointCurve] = {}
        for name, order in joint.items():
            joint_curves |= _joint_curves(name, order, (images_q, images_g), scored)
        made = collector.embed(chunk.embedder, images_q.images + (images_g.images if joint else []))
        query, gallery = made[: len(images_q.images)], made[len(images_q.images) :]
        scores = _scores(chunk.compare(query, chunk.gallery[pair]), collector)
        for key, rows in curves.items():
            collector.add_curve(key, scores[rows], counts)
        if joint:
            rows_q, rows_g = scored.sides
            scores = _scores(chunk.compare(query[rows_q], gallery[rows_g]), collector)
            for key, curve in joint_curves.items():
                _collect_joint(key, curve, scores, joint[key[1].partition("/")[0]], collector)
        advance(1)


def _scores(found: Match, collector: _Collector) -> Floats:
    collector.count_unconverged(found)
    scores: Floats = found.score.double().cpu().numpy()
    return scores


def _attributions(found: Match, ledger: str) -> list[Attribution]:
    return [LEDGERS[ledger].read(found, pair) for pair in range(len(found))]


def _credit_of_pairs(
    chunk: _Chunk, images: ImageSet, pairs: Sequence[tuple[int, int]], collector: _Collector
) -> dict[str, list[Floats]]:
    """Kind of ledger -> credit (R,) of some other pairs."""
    measures = chunk.measures
    other = _Chunk.load(chunk.embedder, images, pairs, 0, measures, chunk.match.matcher, collector)
    return {name: [found.credit for found in _attributions(other.match, name)] for name in measures.ledgers}


def _credits(
    chunk: _Chunk, own: Mapping[str, Sequence[Attribution]], control: Embedder | None, collector: _Collector
) -> dict[str, Sequence[Floats]]:
    """Method -> credit (R,) of the query's regions of every pair."""
    first, *further = own
    credit_of: dict[str, Sequence[Floats]] = {first: [found.credit for found in own[first]]}
    baselines = [deletion.baseline_credit(chunk.match, pair) for pair in range(len(chunk.views_q))]
    credit_of |= {name: [credit[name].cpu().numpy() for credit in baselines] for name in baselines[0]}
    credit_of["random"] = [np.zeros(chunk.query.num_regions) for _ in baselines]
    if chunk.measures.grad_cam:
        images = to_input(chunk.embedder, chunk.views_q)
        credit_of["grad-cam"] = list(grad_cam_credit(chunk.embedder, images, chunk.gallery, chunk.grid))
    if control is not None:
        other = chunk.compare(collector.embed(control, chunk.views_q), collector.embed(control, chunk.views_g))
        credit_of["randomised"] = [other.ledger(pair).total_q.cpu().numpy() for pair in range(len(baselines))]
    return credit_of | {name: [found.credit for found in own[name]] for name in further}


def _controls(
    chunk: _Chunk, pair: int, ledger: str, credit: Floats, other: Floats | None, order: Ints
) -> dict[str, Ints]:
    """Name of a control, LEDGER/CONTROL -> its order; the same random numbers for every kind of ledger."""
    generator = chunk.generator(pair, 2)
    moved = {name: move(credit, chunk.grid, generator) for name, move in MOVED.items()}
    if other is not None:
        moved["other pair"] = other
    orders = {name: deletion.order_by(values, generator) for name, values in moved.items()}
    return {f"{ledger}/{name}": made for name, made in (orders | {"reversed": order[::-1].copy()}).items()}


def _joint_orders(
    chunk: _Chunk, pair: int, own: Mapping[str, Sequence[Attribution]], random: Ints
) -> dict[str, JointOrders]:
    """Kind of ledger -> orders in which regions of both images are changed; none if they are not measured."""
    grids, steps = (chunk.grid, chunk.match.grid_g or chunk.grid), chunk.measures.steps
    return {
        name: joint_orders(found[pair], random, grids, steps, chunk.generator(pair, 3))
        for name, found in (own if chunk.measures.interaction else {}).items()
    }


def _gallery_images(chunk: _Chunk, pair: int) -> deletion.ComposedImages:
    view, shuffle = chunk.views_g[pair], chunk.measures.gallery_removal == "shuffle"
    removed = deletion.shuffled(view, chunk.generator(pair, 5)) if shuffle else None
    return deletion.ComposedImages(view, chunk.match.grid_g or chunk.grid, removed)


def _joint_curves(
    ledger: str,
    joint: JointOrders,
    images: tuple[deletion.ComposedImages, deletion.ComposedImages],
    scored: ScoredPairs,
) -> dict[tuple[str, str], JointCurve]:
    """(measure, method) -> curve; its images and the pairs to be scored are added."""
    curves = {}
    for kind in deletion.KINDS:
        for name, order in joint.orders.items():
            rows = [[images[side].row(kind, order[side][: size[side]]) for size in joint.sizes] for side in (0, 1)]
            method = ledger if name == "matched" else f"{ledger}/{name}"
            curves[f"interaction_{kind}", method] = JointCurve.request(rows[0], rows[1], scored)
    return curves


def _collect_joint(
    key: tuple[str, str], curve: JointCurve, scores: Floats, joint: JointOrders, collector: _Collector
) -> None:
    """Score and interaction of one curve: areas, and the change of the score at each step."""
    measure, method = key
    counts = [size[0] for size in joint.sizes]
    score = curve.score(scores)
    collector.add_curve(key, score, counts)
    collector.add((measure, "", method, "interaction"), [deletion.area(curve.interaction(scores), counts)])
    for step, value in enumerate(score[1:], start=1):
        change = score[0] - value if measure == "interaction_deletion" else value - score[0]
        collector.add((measure, "", method, f"change_{step}"), [float(change)])
