"""All measures on pairs of a data set, for one embedder.

Legend: B pairs, R regions.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from diml.data import ImageSet, load_image
from diml.faithfulness import keypoints
from diml.faithfulness.additivity import additivity_errors, ranking_errors
from diml.faithfulness.chunk import Chunk
from diml.faithfulness.collected import Collector, Measurements
from diml.faithfulness.controls import derangement
from diml.faithfulness.correspondence import QUANTITIES, baseline_plans, plan_accuracies
from diml.faithfulness.pairs import other_classes
from diml.faithfulness.part_measures import PART_QUANTITIES, held_shares, part_accuracies, part_stability, row_shares
from diml.faithfulness.removal import attributions_of, measure_removal
from diml.faithfulness.settings import Measures
from diml.faithfulness.stability import PERTURBATIONS, chance, stability
from diml.faithfulness.unfinished import Unfinished
from diml.faithfulness.unmatched import measure_unmatched
from diml.faithfulness.warps import WARPS, true_cells
from diml.matching import Matcher
from diml.models import Embedder
from diml.progress import ShowProgress, progress_bar

Floats = NDArray[np.float64]

#: Pairs that are measured together.
CHUNK = 8

#: Shares of the structural and of the whole score inside all parts.
HELD = ("held", "held whole")


def measure_pairs(
    embedder: Embedder,
    images: ImageSet,
    pairs: Sequence[tuple[int, int]],
    *,
    measures: Measures,
    matcher: Matcher | None = None,
    control: Embedder | None = None,
    unfinished: Path | None = None,
    progress: ShowProgress = False,
    what: str = "measuring",
) -> Measurements:
    """Measure additivity, deletion and insertion, correspondence, stability, parts and unmatched mass.

    Args:
        embedder: turns images into regions on a known grid.
        images: that the pairs are from.
        pairs: (query, gallery) rows of `images`, as of `choose_pairs`.
        measures: what is measured.
        matcher: settings of the method; by default the embedder's own.
        control: the network with random weights: its credit is a further order of deletion ("randomised"), and its
            regions of the gallery side of a warp a further method of the correspondence ("random_gallery").
        unfinished: a file for the values of the pairs that are done; an interrupted measurement continues from it.
        progress: show a progress bar.
        what: title of the progress bar.

    Raises:
        BadImageError: an image cannot be used.
        ValueError: the regions form no known grid, or Grad-CAM is impossible for this network.
    """
    matcher = embedder.matcher if matcher is None else matcher
    others = derangement(len(pairs), np.random.default_rng([measures.seed, 4]))
    collector, done, kept = Collector(), 0, None
    if unfinished is not None:
        networks = [network for network in (embedder, control) if network is not None]
        kept = Unfinished.of_pairs(unfinished, networks, images, pairs, measures, matcher)
        collector, done = kept.load()
    with progress_bar(len(pairs), show=progress, what=what, unit="pairs") as advance:
        advance(done)
        for start in range(done, len(pairs), CHUNK):
            some = list(pairs[start : start + CHUNK])
            other_pairs = [pairs[row] for row in others[start : start + CHUNK]] if len(pairs) > 1 else []
            chunk = Chunk.load(embedder, images, some, start, measures, matcher, collector)
            measure_additivity(chunk, collector)
            measure_correspondence(chunk, control, collector)
            measure_keypoints(chunk, images, some, collector)
            measure_stability(chunk, collector)
            if measures.of_parts:
                measure_rows(chunk, collector)
            if measures.occlusions:
                measure_occlusions(chunk, images, some, collector)
            compared = measures.controls and other_pairs
            claims = attributions_of(chunk, images, other_pairs, collector) if compared else {}
            measure_removal(chunk, control, claims, collector, advance)
            if kept is not None:
                kept.save(collector, start + len(some))
    return collector.measurements()


def measure_additivity(chunk: Chunk, collector: Collector) -> None:
    """Whether the ledger sums to the score."""
    collector.count_unconverged(chunk.match)
    collector.add(("additivity", "", "ledger", "error"), additivity_errors(chunk.match))
    ranked = ranking_errors(chunk.match, chunk.query, chunk.gallery)
    collector.add(("additivity", "", "ranking", "error"), ranked)


def measure_correspondence(chunk: Chunk, control: Embedder | None, collector: Collector) -> None:
    """Accuracies under all warps; "random_gallery" is the exact plan when the control embeds the gallery side."""
    size = chunk.embedder.preprocess.size
    for number, kind in enumerate(chunk.measures.warps):
        warps = [WARPS[kind](chunk.generator(pair, 10 + number)) for pair in range(len(chunk.photos))]
        sides = [warp.sides(photo, size) for warp, photo in zip(warps, chunk.photos, strict=True)]
        query, gallery = (collector.embed(chunk.embedder, [pair[side] for pair in sides]) for side in (0, 1))
        found, exact = chunk.compare(query, gallery), chunk.compare_exactly(query, gallery)
        collector.count_unconverged(found)
        truths = [true_cells(warp, chunk.grid, chunk.grid) for warp in warps]
        accuracies = plan_accuracies(found, exact, truths)
        if control is not None:
            other = chunk.compare_exactly(query, collector.embed(control, [pair[1] for pair in sides]))
            accuracies["random_gallery"] = plan_accuracies(other, other, truths)["exact"]
        for method, numbers in accuracies.items():
            for column, quantity in enumerate(QUANTITIES):
                collector.add(("correspondence", kind, method, quantity), numbers[:, column])
        if chunk.measures.of_parts:
            for method, numbers in part_accuracies(exact, warps).items():
                for column, quantity in enumerate(PART_QUANTITIES):
                    collector.add(("parts", kind, method, quantity), numbers[:, column])


def measure_keypoints(chunk: Chunk, images: ImageSet, pairs: Sequence[tuple[int, int]], collector: Collector) -> None:
    """Correspondence of named keypoints, if the data set has them."""
    first = images.images[0]
    folder = keypoints.keypoint_folder(first) if isinstance(first, Path) else None
    if folder is None:
        return
    known = keypoints.read_keypoints(folder)
    exact = chunk.compare_exactly(chunk.query, chunk.gallery)
    for pair, rows in enumerate(pairs):
        sides = [
            keypoints.keypoints_in_view(known, images.paths[row], folder, chunk.embedder.preprocess) for row in rows
        ]
        plans = {"plan": chunk.match.plan[pair], "exact": exact.plan[pair], **baseline_plans(chunk.match.cosine[pair])}
        for method, plan in plans.items():
            accuracy = keypoints.keypoint_accuracy(plan, chunk.match, pair, sides[0], sides[1])
            for quantity in QUANTITIES if accuracy is not None else ():
                collector.add(("correspondence", "keypoints", method, quantity), [getattr(accuracy, quantity)])


def measure_stability(chunk: Chunk, collector: Collector) -> None:
    """Whether the largest contributions of the plan that is shown stay the largest when the query is perturbed."""
    for number, (name, perturb) in enumerate(PERTURBATIONS.items()):
        views = [perturb(view, chunk.generator(pair, 30 + number)) for pair, view in enumerate(chunk.views_q)]
        query = collector.embed(chunk.embedder, views)
        after = chunk.compare_as_shown(query, chunk.gallery)
        for method, shares in stability(chunk.shown, after, chunk.measures.top).items():
            collector.add(("stability", name, method, "unchanged"), shares)
        expected = chance(chunk.shown, chunk.measures.top)
        collector.add(("stability", name, "chance", "unchanged"), [expected] * len(views))
        for method, agreement in part_stability(chunk.shown, after).items() if chunk.measures.of_parts else ():
            collector.add(("parts", name, method, "stability"), agreement)


def measure_rows(chunk: Chunk, collector: Collector) -> None:
    """Which share of the score is on few rows, of parts and of single pairs of regions, and inside parts."""
    for (method, quantity), shares in row_shares(chunk.shown).items():
        collector.add(("parts", "", method, quantity), shares)
    for method, numbers in held_shares(chunk.shown).items():
        for column, quantity in enumerate(HELD):
            collector.add(("parts", "", method, quantity), numbers[:, column])


def measure_occlusions(chunk: Chunk, images: ImageSet, pairs: Sequence[tuple[int, int]], collector: Collector) -> None:
    """Whether the mass of occluded regions of the query stays unmatched."""
    rows, preprocess = other_classes(images, pairs, chunk.measures.seed), chunk.embedder.preprocess
    found = measure_unmatched(
        lambda views: collector.embed(chunk.embedder, views),
        preprocess,
        chunk.images_q,
        chunk.gallery,
        chunk.match.matcher,
        chunk.measures.occlusions,
        [chunk.generator(pair, 50) for pair in range(len(pairs))],
        [load_image(images.images[row], name=images.image_name(row), at_least=preprocess.at_least) for row in rows],
    )
    for (kind, method), areas in found.items():
        collector.add(("unmatched", kind, method, "auc"), areas)
