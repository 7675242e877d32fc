r"""Unmatched mass under drawn occlusions: does it find the occluded regions, and how do partial plans rank?

    python benchmarks/unmatched.py --datasets orl grocery --data ../shared/datasets --json runs/unmatched.json
    python benchmarks/unmatched.py --datasets grocery --data ../shared/datasets --protocol class_disjoint \
        --models identity runs/mine --rankings none

Models: frozen MobileNetV2 with the head identity or whiten, or folders of trained embedders. Occlusions are drawn into
the query alone. ORL: sunglasses, masks, black and noise borders (leave-one-out); grocery: clutter, a rectangle over 20
to 40 % of the image cut from one of another class (random queries against the gallery).

Regions: of each pair, the occluded query and a random image of its class, or the mirror image of the clean query
itself, in which all that is not occluded has a counterpart. Area under the ROC curve of regions of which more than half
is occluded against those of which less than a tenth is, within each pair (mean) and over all regions; how many of
either kind have more than half of their mass unmatched. "price": the dual potential of the exact plan that transports
all mass.

Rankings: the best K by pooled cosine are re-ranked; differences are from share 1 of the same epsilon, by query. 95 %
bootstrap intervals. Feature maps are kept in --cache, so that an interrupted run goes on.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps

import measure
from diml.cli.options import DataOptions
from diml.data import DataSet, ImageSet, Preprocess, load_image
from diml.data.region_coverage import region_coverage, view_box
from diml.evaluation.intervals import bootstrap_means, interval
from diml.evaluation.metrics import query_metrics
from diml.evaluation.split import QueryGallerySplit
from diml.faithfulness.occlusion import occlude
from diml.faithfulness.pairs import BATCH_CPU, other_classes, to_input
from diml.faithfulness.unmatched import (
    FREE,
    OCCLUDED,
    area_under_roc,
    occlusion_areas,
    region_scores,
    unmatched_fraction,
)
from diml.matching import Matcher, Ranking, Regions, nearest
from diml.matching.partial import Share
from diml.models import Embedder, load_embedder
from diml.models.backbones import inference
from diml.models.grids import resize_grid
from diml.progress import progress_bar

Floats = NDArray[np.float64]

HEADS = ("identity", "whiten")
KINDS = {"orl": ("sunglasses", "mask", "border", "noise"), "grocery": ("clutter",)}
#: Kinds of partners, and under which name their images are kept.
PARTNERS = {"class": "partners", "mirror": "mirrored"}
RESAMPLES, FITTED_ON, AT_ONCE = 1000, 600, 200
METRICS = ("recall@1", "map@r")


def main() -> None:
    made = measure.parser(__doc__, runs=None)
    made.add_argument("--datasets", nargs="+", choices=KINDS, default=list(KINDS), help="default: %(default)s")
    made.add_argument("--data", type=Path, help="folder with the data sets")
    made.add_argument("--resize", choices=("crop", "square"), help="default: that of each model")
    made.add_argument("--protocol", help="of the data sets; default: that of each")
    made.add_argument(
        "--models", nargs="+", default=list(HEADS), help="heads of the frozen network, or folders of trained ones"
    )
    made.add_argument("--grids", type=int, nargs="+", default=[4, 7], help="regions per side; default: %(default)s")
    made.add_argument("--queries", type=int, default=700, help="at most, drawn at random; default: %(default)s")
    made.add_argument("--partners", nargs="+", choices=PARTNERS, default=list(PARTNERS))
    made.add_argument("--shares", type=share_of, nargs="+", default=["auto", 0.7], help="of regions; default: auto 0.7")
    made.add_argument(
        "--ranked", type=share_of, nargs="+", default=["auto", 0.9, 0.8, 0.7, 0.6, 0.5], help="shares that rank"
    )
    made.add_argument("--epsilon", type=float, nargs="+", default=[0.05, 0.0], help="default: %(default)s")
    made.add_argument("--structural-weights", type=float, nargs="+", default=[1.0, 4.0], help="default: %(default)s")
    made.add_argument("--rerank-at", type=int, default=100, help="K; default: %(default)s")
    made.add_argument("--rankings", choices=("all", "none"), default="all", help="whether to rank; default: all")
    made.add_argument("--cache", type=Path, default=Path("runs/unmatched-maps"), help="default: %(default)s")
    options = measure.read(made)
    results = [found for name in options.datasets for found in of_dataset(name, options)]
    tables = [regions_table(results)] + ([rankings_table(results)] if options.rankings == "all" else [])
    measure.finish("unmatched", options, results, *tables)


def share_of(text: str) -> Share:
    """A share of the command line."""
    return "auto" if text == "auto" else float(text)


# ---- Images and regions ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Images:
    """The queries, their gallery and the rows of their pairs.

    Args:
        images: of the data set.
        queries, gallery: rows of `images`.
        partners: for each query, the place in the gallery of a random image of its class.
    """

    images: ImageSet
    queries: NDArray[np.int64]
    gallery: NDArray[np.int64]
    partners: NDArray[np.int64]

    @classmethod
    def of(cls, images: ImageSet, count: int, seed: int) -> Images:
        """At most `count` of the queries, drawn at random, and a partner for each."""
        generator = np.random.default_rng(seed)
        everything = np.arange(len(images))
        gallery = everything if images.gallery is None else images.gallery
        queries = everything if images.queries is None else images.queries
        if count < len(queries):
            queries = np.sort(generator.permutation(queries)[:count])
        same = [np.flatnonzero((images.labels[gallery] == images.labels[row]) & (gallery != row)) for row in queries]
        queries, same = queries[[len(rows) > 0 for rows in same]], [rows for rows in same if len(rows)]
        return cls(images, queries, gallery, np.array([int(generator.choice(rows)) for rows in same]))

    def load(self, row: int) -> Image.Image:
        """The upright image of a row."""
        return load_image(self.images.images[row], name=self.images.image_name(row))

    def clean(self) -> Iterator[tuple[Image.Image, None]]:
        """The queries."""
        return ((self.load(row), None) for row in self.queries)

    def in_gallery(self) -> Iterator[tuple[Image.Image, None]]:
        """The gallery."""
        return ((self.load(row), None) for row in self.gallery)

    def matched(self) -> Iterator[tuple[Image.Image, None]]:
        """The partners of the queries."""
        return ((self.load(self.gallery[place]), None) for place in self.partners)

    def mirrored(self) -> Iterator[tuple[Image.Image, None]]:
        """The queries, left and right exchanged."""
        return ((ImageOps.mirror(self.load(row)), None) for row in self.queries)

    def occluded(self, kind: str, number: int, seed: int) -> Iterator[tuple[Image.Image, Any]]:
        """Images with the places that are drawn over."""
        others = other_classes(self.images, [(int(row), 0) for row in self.queries], seed)
        for row, other in zip(self.queries, others, strict=True):
            clutter = [self.load(other)] if kind == "clutter" else []
            found = occlude(kind, self.load(row), np.random.default_rng([seed, number, int(row)]), clutter)
            yield found.image, found


class Maps:
    """Feature maps of images under a name, computed once for all heads and grids and kept in a folder."""

    def __init__(self, embedder: Embedder, folder: Path) -> None:
        self.embedder, self.folder = embedder, folder

    def has(self, name: str) -> bool:
        """Whether they are in the folder."""
        return (self.folder / f"{name}.pt").exists()

    def get(self, name: str, count: int, made: Callable[[], Iterator[tuple[Image.Image, Any]]]) -> dict[str, Any]:
        """`maps` (N, C, H, W) float16, `pooled` (N, C), `covered` N times (H, W) bool or None.

        `made` is called if they are not in the folder.
        """
        file = self.folder / f"{name}.pt"
        if not self.has(name):
            file.parent.mkdir(parents=True, exist_ok=True)
            found = self._compute(name, count, made())
            partial_file = file.with_suffix(".partial")
            torch.save(found, partial_file)
            partial_file.replace(file)
        kept: dict[str, Any] = torch.load(file, weights_only=False)
        return kept

    def _compute(self, name: str, count: int, images: Iterator[tuple[Image.Image, Any]]) -> dict[str, Any]:
        preprocess, maps, pooled = self.embedder.preprocess, [], []
        every_drawn: list[Any] = []
        with progress_bar(count, show=True, what=name, unit="images") as advance:
            while some := list(islice(images, BATCH_CPU)):
                views = [preprocess.view(image) for image, _ in some]
                with inference(self.embedder, self.embedder.device, None):
                    found = self.embedder.backbone(to_input(self.embedder, views))
                maps.append(found.maps.half())
                pooled.append(found.pooled)
                every_drawn += [None if drawn is None else drawn.covered for _, drawn in some]
                advance(len(some))
        return {"maps": torch.cat(maps), "pooled": torch.cat(pooled), "covered": every_drawn}


def regions_of(found: dict[str, Any], head: torch.nn.Module, grid: int) -> Regions:
    """As `Embedder.forward` makes them."""
    parts = []
    for maps, pooled in zip(found["maps"].split(AT_ONCE), found["pooled"].split(AT_ONCE), strict=True):
        cells = resize_grid(head(maps.float().permute(0, 2, 3, 1)).permute(0, 3, 1, 2), grid)
        parts.append(Regions.normalized(cells.flatten(2).transpose(1, 2), head(pooled), (grid, grid)))
    return Regions.cat(parts)


def coverage(covered: Sequence[NDArray[np.bool_]], preprocess: Preprocess, grid: int) -> Floats:
    """(N, R) fraction of each region that is drawn over."""
    boxes = [view_box(preprocess, plane.shape[::-1]) for plane in covered]
    planes = (plane.astype(np.float32) for plane in covered)
    return np.stack([region_coverage(plane, box, (grid, grid)) for plane, box in zip(planes, boxes, strict=True)])


def of_dataset(name: str, options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """The results of one data set for all models and grids."""
    dataset = DataOptions(data=options.data, protocol=options.protocol).open(name)
    images = Images.of(dataset.test, options.queries, options.seed)
    for model in options.models:
        embedder = opened(dataset, model, options)
        if options.resize:
            embedder = embedder.with_settings(preprocess=replace(embedder.preprocess, mode=options.resize))
        found = maps_of(embedder, name, images, options)
        for grid in options.grids:
            regions = {kind: regions_of(maps, embedder.head, grid) for kind, maps in found.items()}
            covered = {kind: coverage(found[kind]["covered"], embedder.preprocess, grid) for kind in KINDS[name]}
            queries = {kind: regions[kind] for kind in ("clean", *KINDS[name])}
            if "class" in options.partners and "gallery" in regions:
                regions["partners"] = regions["gallery"][torch.from_numpy(images.partners)]
            partners = {which: regions[PARTNERS[which]] for which in options.partners}
            result = {"dataset": name, "model": model, "grid": grid, "queries": len(images.queries)}
            result["regions"] = region_results(queries, partners, covered, options)
            if options.rankings == "all":
                result["rankings"] = ranking_results(queries, regions["gallery"], images, options)
            yield result


def maps_of(embedder: Embedder, name: str, images: Images, options: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Feature maps of the queries, clean, occluded and mirrored, and of the gallery; from --cache where they are."""
    bare = Embedder(embedder.backbone, config=replace(embedder.config, head="identity")).eval()
    settings = f"{name}-{options.protocol or 'default'}-{len(images.queries)}-{options.seed}"
    maps = Maps(bare, options.cache / f"{settings}-{bare.fingerprint()[:12]}")
    count = len(images.queries)
    found = {
        kind: maps.get(kind, count, partial(images.occluded, kind, number, options.seed))
        for number, kind in enumerate(KINDS[name])
    }
    found["clean"] = maps.get("clean", count, images.clean)
    if "mirror" in options.partners:
        found["mirrored"] = maps.get("mirrored", count, images.mirrored)
    if options.rankings == "all" or maps.has("gallery"):
        found["gallery"] = maps.get("gallery", len(images.gallery), images.in_gallery)
    elif "class" in options.partners:
        found["partners"] = maps.get("partners", count, images.matched)
    return found


def opened(dataset: DataSet, model: str, options: argparse.Namespace) -> Embedder:
    """The frozen network with a head, which is fitted on a sample of the training images, or of all; or a saved one."""
    if model not in HEADS:
        return load_embedder(model)
    embedder = load_embedder("mobilenetv2_100", head=model, dim=128)  # type: ignore[arg-type]
    if model == "whiten":
        images = dataset.test if dataset.train is None else dataset.train
        order = np.random.default_rng(options.seed).permutation(len(images))[:FITTED_ON]
        embedder.fit_head([images.images[row] for row in sorted(order.tolist())])
    return embedder


# ---- Which regions stay unmatched ------------------------------------------------------------------------------------


def region_results(
    queries: dict[str, Regions], partners: dict[str, Regions], covered: dict[str, Floats], options: argparse.Namespace
) -> list[dict[str, Any]]:
    """A row for each kind of partner, share, occlusion and method, and one for each plan of the clean queries."""
    rows = []
    for which, gallery in partners.items():
        for share in options.shares:
            for kind, query in queries.items():
                with measure.progress.status(f"regions: {which}, share {share}, {kind}"):
                    label = {"partner": which, "share": share, "occlusion": kind}
                    plans = {
                        epsilon: Matcher(share=share, epsilon=epsilon).match(query, gallery) for epsilon in (0.05, 0.0)
                    }
                    if kind == "clean":
                        names = {0.05: "unmatched", 0.0: "exact"}
                        rows += [label | {"method": names[at]} | mass_of(found, options) for at, found in plans.items()]
                        continue
                    scores = region_scores(plans[0.05], plans[0.0])
                    prices = Matcher(epsilon=0).match(query, gallery).potential_q
                    assert prices is not None
                    scores["price"] = prices.double().numpy()
                    for method, values in scores.items():
                        rows.append(label | {"method": method} | areas_of(values, covered[kind], options.seed))
                        if method in ("unmatched", "exact"):
                            rows[-1] |= flagged(values, covered[kind], options.seed)
    return rows


def mass_of(found: Any, options: argparse.Namespace) -> dict[str, Any]:
    """Of clean queries: mass that stays unmatched, and regions with more than half of theirs."""
    part = unmatched_fraction(found.unmatched_q, found.weight_q).double().numpy()
    mass = found.unmatched_q.double().sum(dim=1).numpy()
    return {"mass": mean_of(mass, options.seed), "regions": mean_of((part > 0.5).mean(axis=1), options.seed)}


def areas_of(scores: Floats, covered: Floats, seed: int) -> dict[str, Any]:
    """Area under the ROC curve within pairs and over all regions."""
    within = occlusion_areas(scores, covered)
    return {"within": mean_of(within[~np.isnan(within)], seed), "over_all": area_over_all(scores, covered, seed)}


def area_over_all(scores: Floats, covered: Floats, seed: int) -> dict[str, Any]:
    """The area over the regions of all pairs, with an interval over pairs."""
    clear = (covered > OCCLUDED) | (covered < FREE)
    positive, pair = covered[clear] > OCCLUDED, np.nonzero(clear)[0]
    value = area_under_roc(scores[clear], positive)
    order, place = np.unique(scores[clear], return_inverse=True)
    generator, drawn = np.random.default_rng(seed), []
    for _ in range(RESAMPLES // 5):
        weight = np.bincount(generator.integers(0, len(scores), len(scores)), minlength=len(scores))[pair]
        positives = np.bincount(place, weights=weight * positive, minlength=len(order))
        negatives = np.bincount(place, weights=weight * ~positive, minlength=len(order))
        below = np.cumsum(negatives) - negatives / 2
        drawn.append(positives @ below / (positives.sum() * negatives.sum()))
    low, high = interval(np.array(drawn))
    return {"value": value, "low": low, "high": high, "pairs": len(scores)}


def flagged(part: Floats, covered: Floats, seed: int) -> dict[str, Any]:
    """Share of the occluded and of the other regions of which more than half of the mass is unmatched."""
    found = {}
    for name, chosen in (("found", covered > OCCLUDED), ("false", covered < FREE)):
        any_of = chosen.any(axis=1)
        rates = [float((row[use] > 0.5).mean()) for row, use in zip(part[any_of], chosen[any_of], strict=True)]
        found[name] = mean_of(np.array(rates), seed)
    return found


def mean_of(values: Floats, seed: int) -> dict[str, Any]:
    low, high = interval(bootstrap_means(values[:, None], RESAMPLES, seed)[:, 0])
    return {"value": float(values.mean()), "low": low, "high": high, "pairs": len(values)}


# ---- How partial plans rank ------------------------------------------------------------------------------------------


def ranking_results(
    queries: dict[str, Regions], gallery: Regions, images: Images, options: argparse.Namespace
) -> list[dict[str, Any]]:
    """A row for each occlusion, epsilon, share and structural weight: metrics, and differences from share 1."""
    split = QueryGallerySplit.from_labels(images.images.labels, queries=images.queries, gallery=images.gallery)
    rows = []
    for kind, query in queries.items():
        depth = max(options.rerank_at, int(split.relevant_count.max()))
        plain = nearest(query, gallery, depth, exclude=split.own_row)
        best = plain.order[:, : options.rerank_at]
        pooled = torch.einsum("qd,qkd->qk", query.pooled, gallery.pooled[best])
        baseline = measured(plain, split)
        rows.append({"occlusion": kind, "share": "pooled", "values": values_of(baseline, None, options.seed)})
        for epsilon in options.epsilon:
            whole: dict[float, Floats] = {}
            for share in (1.0, *options.ranked):
                matcher = Matcher(share=share, epsilon=epsilon, structural_weight=float("inf"))
                with measure.progress.status(f"rankings: {kind}, epsilon {epsilon}, share {share}"):
                    structural = matcher.score(query, gallery, best)
                for weight in options.structural_weights:
                    found = measured(plain.reranked(pooled + weight * structural), split)
                    whole.setdefault(weight, found)
                    label = {"occlusion": kind, "epsilon": epsilon, "share": share, "structural_weight": weight}
                    rows.append(label | {"values": values_of(found, whole[weight], options.seed)})
    return rows


def measured(ranking: Ranking, split: QueryGallerySplit) -> Floats:
    """(Q, M) the metrics of each query."""
    found = query_metrics(split.relevant(ranking.order), split.relevant_count, split.own_row >= 0, METRICS)
    return torch.stack([found[name] for name in METRICS], dim=1).numpy()


def values_of(found: Floats, whole: Floats | None, seed: int) -> dict[str, Any]:
    """Metric -> mean with interval, and the difference from share 1."""
    values: dict[str, Any] = {}
    for column, name in enumerate(METRICS):
        values[name] = mean_of(found[:, column], seed)
        if whole is not None and whole is not found:
            values[f"{name}_less_whole"] = mean_of(found[:, column] - whole[:, column], seed)
    return values


# ---- Tables ----------------------------------------------------------------------------------------------------------


def regions_table(results: Sequence[dict[str, Any]]) -> Any:
    columns = (
        "data, model, grid",
        "partner",
        "occlusion",
        "share",
        "by",
        "AUC within pairs",
        "AUC over all",
        "found",
        "false",
    )
    rows = []
    for result in results:
        for row in result["regions"]:
            head = (f"{result['dataset']} {result['model']} {result['grid']}", row["partner"], row["occlusion"])
            if row["occlusion"] == "clean":
                cells = (f"mass {percent(row['mass'])}", f"regions {percent(row['regions'])}", "", "")
            else:
                cells = tuple(percent(row.get(name)) for name in ("within", "over_all", "found", "false"))
            rows.append((*head, str(row["share"]), row["method"], *cells))
    return measure.table("Unmatched mass of occluded regions, percent", columns, rows)


def rankings_table(results: Sequence[dict[str, Any]]) -> Any:
    columns = (
        "data, model, grid",
        "queries",
        "epsilon",
        "weight",
        "share",
        "R@1",
        "less share 1",
        "MAP@R",
        "less share 1",
    )
    rows = []
    for result in results:
        for row in result["rankings"]:
            values = row["values"]
            head = (f"{result['dataset']} {result['model']} {result['grid']}", row["occlusion"])
            how = tuple(str(row.get(name, "")) for name in ("epsilon", "structural_weight", "share"))
            cells = []
            for name in METRICS:
                cells += [f"{100 * values[name]['value']:.2f}", percent(values.get(f"{name}_less_whole"), "+.2f")]
            rows.append((*head, *how, *cells))
    return measure.table("Rankings by partial plans, percent", columns, rows)


def percent(found: dict[str, Any] | None, style: str = ".1f") -> str:
    """A mean with its interval."""
    if found is None:
        return ""
    value, low, high = (format(100 * found[name], style) for name in ("value", "low", "high"))
    return f"{value} ({low}..{high})"


if __name__ == "__main__":
    main()
