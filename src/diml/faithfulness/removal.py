"""Deletion and insertion for a chunk of pairs: by every ledger, its controls and the baselines.

In the query alone, and in both images together; an image that occurs in several curves is embedded once.

Legend: B pairs, R regions, F points of a curve.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from diml.data import ImageSet
from diml.faithfulness import deletion
from diml.faithfulness.chunk import Chunk
from diml.faithfulness.collected import Collector
from diml.faithfulness.controls import controls_of
from diml.faithfulness.gradcam import grad_cam_credit
from diml.faithfulness.interaction import JointCurve, JointOrders, ScoredPairs, joint_orders
from diml.faithfulness.ledgers import LEDGERS, Attribution, parts_changed
from diml.faithfulness.pairs import to_input
from diml.matching import Match
from diml.models import Embedder

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

#: Kind of ledger -> what it claims about each pair.
Attributions = Mapping[str, Sequence[Attribution]]


def measure_removal(
    chunk: Chunk,
    control: Embedder | None,
    others: Attributions,
    collector: Collector,
    advance: Callable[[int], None],
) -> None:
    """Deletion and insertion in the query alone, and in both images together.

    Args:
        chunk: the pairs.
        control: the network with random weights, whose credit is a further order; or None.
        others: what the ledgers claim about another pair for each pair, as a control; may be empty.
        collector: of the values.
        advance: called with 1 after each pair.
    """
    counts = deletion.steps_of(chunk.query.num_regions, chunk.measures.steps)
    collector.shares = np.array(counts) / counts[-1]
    own = attributions(chunk)
    credit_of = _credits(chunk, own, control, collector)
    for pair, view in enumerate(chunk.views_q):
        generator = chunk.generator(pair, 1)
        orders = {name: deletion.order_by(credit[pair], generator) for name, credit in credit_of.items()}
        changed = _changed(chunk, pair, own, others, orders)
        joint = _joint_orders(chunk, pair, own, orders["random"])
        images_q, images_g = deletion.ComposedImages(view, chunk.grid), _gallery_images(chunk, pair)
        curves = deletion.curve_rows(images_q, changed)
        scored = ScoredPairs()
        joint_curves: dict[tuple[str, str], JointCurve] = {}
        for name, order in joint.items():
            joint_curves |= _joint_curves(name, order, (images_q, images_g), scored)
        made = collector.embed(chunk.embedder, images_q.images + (images_g.images if joint else []))
        query, gallery = made[: len(images_q.images)], made[len(images_q.images) :]
        scores = _scores(chunk.compare(query, chunk.gallery[pair]), collector)
        for key, rows in curves.items():
            _collect(key, scores[rows], changed[key[1]], collector)
        if joint:
            rows_q, rows_g = scored.sides
            scores = _scores(chunk.compare(query[rows_q], gallery[rows_g]), collector)
            for key, curve in joint_curves.items():
                _collect_joint(key, curve, scores, joint[key[1].partition("/")[0]], collector)
        advance(1)


def attributions(chunk: Chunk) -> dict[str, list[Attribution]]:
    """What each ledger claims about each pair, by the plan that is shown."""
    return {
        name: [LEDGERS[name].read(chunk.shown, pair) for pair in range(len(chunk.shown))]
        for name in chunk.measures.ledgers
    }


def attributions_of(
    chunk: Chunk, images: ImageSet, pairs: Sequence[tuple[int, int]], collector: Collector
) -> dict[str, list[Attribution]]:
    """The same for other pairs of rows of `images`."""
    matcher = chunk.match.matcher
    return attributions(Chunk.load(chunk.embedder, images, pairs, 0, chunk.measures, matcher, collector))


def _scores(found: Match, collector: Collector) -> Floats:
    collector.count_unconverged(found)
    scores: Floats = found.score.double().cpu().numpy()
    return scores


def _credits(
    chunk: Chunk, own: Attributions, control: Embedder | None, collector: Collector
) -> dict[str, Sequence[Floats]]:
    """Method -> credit (R,) of the query's regions of every pair, for the methods that are orders of regions."""
    first, *further = [name for name in own if not LEDGERS[name].of_parts] or [""]
    credit_of: dict[str, Sequence[Floats]] = {first: [found.credit for found in own[first]]} if first else {}
    baselines = [deletion.baseline_credit(chunk.shown, pair) for pair in range(len(chunk.views_q))]
    credit_of |= {name: [credit[name].cpu().numpy() for credit in baselines] for name in baselines[0]}
    credit_of["random"] = [np.zeros(chunk.query.num_regions) for _ in baselines]
    if chunk.measures.grad_cam:
        images = to_input(chunk.embedder, chunk.views_q)
        credit_of["grad-cam"] = list(grad_cam_credit(chunk.embedder, images, chunk.gallery, chunk.grid))
    if control is not None:
        other = chunk.compare(collector.embed(control, chunk.views_q), collector.embed(control, chunk.views_g))
        credit_of["randomised"] = [other.ledger(pair).total_q.cpu().numpy() for pair in range(len(baselines))]
    return credit_of | {name: [found.credit for found in own[name]] for name in further}


def _changed(
    chunk: Chunk, pair: int, own: Attributions, others: Attributions, orders: Mapping[str, Ints]
) -> dict[str, list[Ints]]:
    """Method, or LEDGER/CONTROL -> F sets of regions of the query, from none to all.

    The controls of every ledger have the same random numbers.
    """
    regions = chunk.query.num_regions
    counts = deletion.steps_of(regions, chunk.measures.steps)
    changed = {name: deletion.cut(order, counts) for name, order in orders.items()}
    for name, found in own.items():
        of_parts, generator = LEDGERS[name].of_parts, chunk.generator(pair, 2)
        if of_parts:
            changed[name] = parts_changed(found[pair].matched, regions)
            sizes = [len(region_set) for region_set in changed[name]]
            changed[f"{name}/random"] = deletion.cut(orders["random"], sizes)
        controls = controls_of(changed[name], chunk.grid, generator) if chunk.measures.controls else {}
        if name in others:
            other = others[name][pair]
            ordered = deletion.order_by(other.credit, generator)
            controls["other pair"] = (
                parts_changed(other.matched, regions) if of_parts else deletion.cut(ordered, counts)
            )
        changed |= {f"{name}/{control}": sets for control, sets in controls.items()}
    return changed


def _collect(key: tuple[str, str], scores: Floats, changed: Sequence[Ints], collector: Collector) -> None:
    """The curve and its area; for parts also the change of the score by the first part alone."""
    measure, method = key
    collector.add_curve(key, scores, [len(regions) for regions in changed])
    if LEDGERS.get(method.partition("/")[0], LEDGERS["credit"]).of_parts:
        collector.add((measure, "", method, "change_1"), [_change(measure, scores, 1)])


def _change(measure: str, scores: Floats, step: int) -> float:
    """By how much a deletion has lowered the score after a step, or an insertion has raised it."""
    return float(scores[0] - scores[step] if measure.endswith("deletion") else scores[step] - scores[0])


def _joint_orders(chunk: Chunk, pair: int, own: Attributions, random: Ints) -> dict[str, JointOrders]:
    """Kind of ledger -> orders in which regions of both images are changed; none if they are not measured."""
    grids, steps = (chunk.grid, chunk.match.grid_g or chunk.grid), chunk.measures.steps
    return {
        name: joint_orders(found[pair], random, grids, steps, chunk.generator(pair, 3))
        for name, found in (own if chunk.measures.interaction else {}).items()
        if found[pair].matched
    }


def _gallery_images(chunk: Chunk, pair: int) -> deletion.ComposedImages:
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
    key: tuple[str, str], curve: JointCurve, scores: Floats, joint: JointOrders, collector: Collector
) -> None:
    """Score and interaction of one curve: areas, and the change of the score at each step."""
    measure, method = key
    counts = [size[0] for size in joint.sizes]
    score = curve.score(scores)
    collector.add_curve(key, score, counts)
    collector.add((measure, "", method, "interaction"), [deletion.area(curve.interaction(scores), counts)])
    for step in range(1, len(score)):
        collector.add((measure, "", method, f"change_{step}"), [_change(measure, score, step)])
