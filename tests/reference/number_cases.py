"""Inputs and cases whose numbers are recorded, and what the numbers look like as JSON. Knows nothing of diml.

`recorded_numbers.json` holds what the code gave before its refactoring; `number_runs` runs all cases through functions
that use one API, such as those of `record_numbers_old.py`. Cases are plain arguments of such a function, by group.

Legend: N images, Q queries, K candidates, B pairs, R regions, D channels, C classes.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.random import RandomState
from torch import Tensor

Array = np.ndarray
Case = dict[str, Any]

DIM, CLASSES, GRID = 32, 20, (4, 4)
STORAGES = ("float32", "float16", "int16", "int8", "float64")
METRICS = (
    "recall@1",
    "recall@2",
    "recall@4",
    "recall@8",
    "r_precision",
    "map@r",
    "r_precision_self_counted",
    "map@r_self_counted",
)

# ----------------------------------------------------------------------------------------------------------- inputs


@dataclass(frozen=True, eq=False)
class Images:
    """N labelled images as raw features, not of unit length: dense (N, R, D), pooled (N, D) float32, labels (N,)."""

    dense: Tensor
    pooled: Tensor
    labels: Array
    grid: tuple[int, int] | None

    def __getitem__(self, rows: Any) -> Images:
        """Some of them, by slice or list."""
        return Images(self.dense[rows], self.pooled[rows], self.labels[rows], self.grid)

    @property
    def maps(self) -> Tensor:
        """(N, D, H, W) feature maps of the regions."""
        assert self.grid is not None
        return self.dense.transpose(1, 2).reshape(len(self.dense), -1, *self.grid).contiguous()


def bell(random: RandomState, *shape: int) -> Array:
    """Bell-shaped noise: sums of whole numbers over 128, which are exact, and so the same on every machine."""
    return random.randint(-100, 101, size=(4, *shape)).sum(axis=0) / 128


def clustered(seed: int, labels: Array, grid: tuple[int, int] | None = GRID, regions: int = 16) -> Images:
    """Images of classes: a class has a centre, and parts that stand in each image at another place, with noise.

    Both are those of `RandomState(0)` whatever the seed, so that image sets of different seeds have the same classes.
    """
    same, random, count = RandomState(0), RandomState(seed), len(labels)
    parts, centres = bell(same, CLASSES + 2, 16, DIM), bell(same, CLASSES + 2, 1, DIM)
    dense = (parts[:, :regions] + 0.375 * centres + 0.5 * bell(same, DIM))[labels]
    places = random.randint(0, 3, size=count)
    dense = np.stack([np.roll(image, by, axis=0) for image, by in zip(dense, places, strict=True)])
    dense += 2.0 * bell(random, count, regions, DIM) + 0.5 * bell(random, count, 1, DIM)
    pooled = dense.mean(axis=1) + 0.25 * bell(random, count, DIM)
    return Images(torch.tensor(dense.astype(np.float32)), torch.tensor(pooled.astype(np.float32)), labels, grid)


def blank_and_copied(seed: int) -> Images:
    """40 images: copies, blank images, blank regions, and images whose regions agree with no other image at all."""
    images = clustered(seed, np.arange(40) % 8)
    dense, pooled = images.dense.clone(), images.pooled.clone()
    dense[8:12], pooled[8:12] = dense[0:4], pooled[0:4]
    dense[20], pooled[20] = 0, 0
    dense[21] = 0
    dense[22:26, ::2] = 0
    dense[26:28] *= -1
    return Images(dense, pooled, images.labels, images.grid)


#: 200 images: 198 of 20 classes, and two that are alone in theirs.
MANY = clustered(1, np.append(RandomState(1).randint(0, CLASSES, size=198), [CLASSES, CLASSES + 1]))
#: 40 images of the same classes with 9 regions, and 10 with 7 that form no grid.
COARSE = clustered(2, np.arange(40) % CLASSES, (3, 3), 9)
ODD = clustered(3, np.arange(10), None, 7)
BLANK = blank_and_copied(4)
#: A batch of 8 classes with 4 images each.
BATCH = clustered(5, np.arange(32) // 4)
IMAGES = {"many": MANY, "coarse": COARSE, "odd": ODD, "blank": BLANK, "batch": BATCH}

#: Every fifth image asks; none of class 3 answers, nor of those alone in their class; ten answer and ask.
QUERIES = np.arange(4, 200, 5)
GALLERY = np.array([row for row in range(198) if MANY.labels[row] != 3 and (row % 5 != 4 or row < 50)])


def given_weights(seed: int, rows: int, regions: int = 16) -> Tensor:
    """(rows, R) non-negative weights, a few of them zero, not scaled to any sum."""
    return torch.tensor(RandomState(seed).randint(0, 9, size=(rows, regions)) / 8, dtype=torch.float32)


def inputs_hashes() -> dict[str, str]:
    """A hash of each set of images."""
    return {name: _hash(torch.cat([part.dense.flatten(), part.pooled.flatten()])) for name, part in IMAGES.items()}


# ------------------------------------------------------------------------------------------------------------ cases


def vectors_cases() -> dict[str, Case]:
    """Arguments of `vectors`: images and the type of storage that they are brought to, after unit length."""
    sets = {"many": MANY, "blank and copied": BLANK, "coarse": COARSE}
    return {
        f"{storage}, {name}": {"images": images, "storage": storage}
        for storage in (*STORAGES, "bfloat16")
        for name, images in sets.items()
    }


def evaluation_cases() -> dict[str, Case]:
    """Arguments of `evaluate`: images, storage, score, queries, gallery, ..., and settings of the matching."""
    base: Case = {"images": MANY, "storage": "float32", "rerank": (0, 5, 30), "queries": None, "gallery": None}
    base |= {"score": "both", "without_relevant": "exclude", "resamples": 50, "seed": 0, "settings": {}}
    split = {"queries": QUERIES, "gallery": GALLERY}
    cases = {}
    for storage in STORAGES:
        own = base | {"storage": storage}
        for marginals in ("cross_correlation", "uniform"):
            for epsilon in (0.05, 0.02):
                settings = {"marginals": marginals, "epsilon": epsilon}
                cases[f"{storage}, {marginals}, epsilon {epsilon}"] = own | {"settings": settings}
        cases[f"{storage}, structural"] = own | {"score": "structural"}
        cases[f"{storage}, split"] = own | split
        cases[f"{storage}, split, miss"] = own | split | {"without_relevant": "miss"}
        cases[f"{storage}, blank and copied"] = own | {"images": BLANK}
    cases["float32, pooled"] = base | {"score": "pooled"}
    uniform = {"score": "structural", "settings": {"marginals": "uniform"}}
    cases["float32, split, structural, uniform"] = base | split | uniform
    cases["float32, 3 iterations"] = base | {"settings": {"max_iterations": 3}}
    cases["float32, epsilon 0.001"] = base | {"images": BATCH, "settings": {"epsilon": 1e-3}}
    cases["float32, K beyond the gallery"] = base | {"images": BLANK, "rerank": (1000, 0)}
    cases["int8, K beyond the gallery"] = base | {"images": BLANK, "rerank": (1000, 0), "storage": "int8"}
    return cases


def team_cases() -> dict[str, Case]:
    """Those of `evaluation_cases` that several processes can share: with the usual score and settings."""
    usual = ({}, {"marginals": "cross_correlation", "epsilon": 0.05})
    return {
        name: case | {"settings": {}}
        for name, case in evaluation_cases().items()
        if (case["score"], case["without_relevant"]) == ("both", "exclude") and case["settings"] in usual
    }


def rerank_cases() -> dict[str, Case]:
    """Arguments of `rerank`: 6 queries as given or as stored, 40 images of a gallery, candidates (6, 20), settings."""
    candidates = torch.tensor(np.stack([RandomState(8 + query).permutation(40)[:20] for query in range(6)]))
    base: Case = {"query": MANY[:6], "gallery": MANY[100:140], "storage": "float32", "query_storage": "float32"}
    base |= {"candidates": candidates, "score": "both", "settings": {}}
    cases = {}
    for storage in (*STORAGES, "bfloat16"):
        own = base | {"storage": storage}
        cases[storage] = own
        cases[f"{storage}, structural"] = own | {"score": "structural"}
        cases[f"{storage}, pooled"] = own | {"score": "pooled"}
        cases[f"{storage}, uniform"] = own | {"settings": {"marginals": "uniform"}}
        cases[f"{storage}, epsilon 0.02"] = own | {"settings": {"epsilon": 0.02}}
        cases[f"{storage}, epsilon 0.001"] = own | {"settings": {"epsilon": 1e-3}}
        cases[f"{storage}, 3 iterations"] = own | {"settings": {"max_iterations": 3}}
        cases[f"{storage}, 9 regions against 16"] = own | {"query": COARSE[:6]}
        cases[f"{storage}, 16 regions against 9"] = own | {"gallery": COARSE}
        cases[f"{storage}, blank and copied"] = own | {"query": BLANK[20:26], "gallery": BLANK}
        if storage not in ("int16", "int8"):
            cases[f"{storage}, query in it as well"] = own | {"query_storage": storage}
    weights = {"marginals": (given_weights(6, 1), given_weights(7, 1))}
    cases["float32, given weights"] = base | {"settings": weights}
    cases["int8, given weights"] = base | {"settings": weights, "storage": "int8"}
    return cases


def match_cases() -> dict[str, Case]:
    """Arguments of `match` (query, gallery, storage, settings), 6 pairs each."""
    base: Case = {"query": MANY[:6], "gallery": MANY[50:56], "storage": "float32", "settings": {}}
    return {
        "float32": base,
        "float32, uniform": base | {"settings": {"marginals": "uniform"}},
        "float32, epsilon 0.02": base | {"settings": {"epsilon": 0.02}},
        "float32, epsilon 0.001": base | {"settings": {"epsilon": 1e-3}},
        "float32, 3 iterations": base | {"settings": {"max_iterations": 3}},
        "float32, tolerance 0.01": base | {"settings": {"tolerance": 1e-2}},
        "float32, one against 6": base | {"query": MANY[:1]},
        "float32, 6 against one": base | {"gallery": MANY[50:51]},
        "float32, with itself": base | {"gallery": MANY[:6]},
        "float32, 16 regions against 9": base | {"gallery": COARSE[:6]},
        "float32, 7 regions against 16": base | {"query": ODD[:6]},
        "float32, blank against others": base | {"query": BLANK[20:26], "gallery": BLANK[30:36]},
        "float32, blank against blank": base | {"query": BLANK[20:26], "gallery": BLANK[22:28]},
        "float32, given weights": base | {"settings": {"marginals": (given_weights(10, 6), given_weights(11, 6))}},
        "float32, one row of weights": base | {"settings": {"marginals": (given_weights(12, 1), given_weights(13, 1))}},
        "float64": base | {"storage": "float64"},
        "float64, uniform, epsilon 0.02": base
        | {"storage": "float64", "settings": {"marginals": "uniform", "epsilon": 0.02}},
        "float64, epsilon 0.001": base | {"storage": "float64", "settings": {"epsilon": 1e-3}},
        "float16": base | {"storage": "float16"},
        "bfloat16": base | {"storage": "bfloat16"},
    }


def sinkhorn_cases() -> dict[str, Case]:
    """Arguments of `sinkhorn` (cost (5, Rq, Rg), weight_q, weight_g, settings)."""
    random = RandomState(14)
    square, wide = (torch.tensor(random.randint(0, 1025, size=(5, 12, n)) / 512).float() for n in (12, 20))
    weights = [given_weights(seed, 5, regions) + 0.125 for seed, regions in ((15, 12), (16, 12), (17, 20))]
    left, right, far = (weight / weight.sum(dim=1, keepdim=True) for weight in weights)
    some = torch.where(right < 0.05, 0, right)
    some = some / some.sum(dim=1, keepdim=True)
    base: Case = {"cost": square, "weight_q": left, "weight_g": right, "settings": {}}
    double = {name: part.double() for name, part in (("cost", square), ("weight_q", left), ("weight_g", right))}
    return {
        "float32": base,
        "float32, epsilon 0.02": base | {"settings": {"epsilon": 0.02}},
        "float32, epsilon 0.001": base | {"settings": {"epsilon": 1e-3}},
        "float32, epsilon 1": base | {"settings": {"epsilon": 1.0}},
        "float32, 5 iterations": base | {"settings": {"max_iterations": 5}},
        "float32, 12 by 20": base | {"cost": wide, "weight_g": far},
        "float32, some without weight": base | {"weight_g": some},
        "float64": base | double,
        "float64, epsilon 0.001": base | double | {"settings": {"epsilon": 1e-3}},
    }


#: Names of objectives on pooled vectors, and of those that work with regions.
POOLED_OBJECTIVES = (
    *("margin", "multisimilarity", "triplet", "contrastive", "quadruplet", "npair", "lifted", "angular", "histogram"),
    *("snr", "proxynca", "proxyanchor", "softtriple", "arcface", "softmax", "adversarial_separation"),
)
STRUCTURAL_OBJECTIVES = (
    *("margin", "multisimilarity", "triplet", "contrastive", "quadruplet", "npair", "lifted", "histogram"),
    *("proxynca", "proxyanchor", "softtriple", "softmax", "margin_diml", "multisimilarity_diml"),
)
MINERS = (
    *("distance", "semihard", "softhard", "random", "intra_random", "random_distance", "rho_distance", "parametric"),
    *("multisimilarity", "none"),
)


def objective_cases() -> dict[str, Case]:
    """Arguments of `objective`: maps, labels, name, similarity, options; `given` says what the objective is handed."""
    base: Case = {"maps": BATCH.maps, "labels": torch.tensor(BATCH.labels), "given": "regions", "options": {}}
    cases = {}
    for similarity, names in (("pooled", POOLED_OBJECTIVES), ("structural", STRUCTURAL_OBJECTIVES)):
        for name in names:
            cases[f"{name}, {similarity}"] = base | {"name": name, "similarity": similarity}
    for name in ("npair", "lifted", "angular", "margin"):
        cases[f"{name}, pooled, of a tensor"] = base | {"name": name, "similarity": "pooled", "given": "tensor"}
    for miner in MINERS:
        own = base | {"name": "margin", "similarity": "pooled", "options": {"miner": miner}}
        cases[f"margin, pooled, miner {miner}"] = own
        cases[f"margin, structural, miner {miner}"] = own | {"similarity": "structural"}
        if miner != "none":
            on_regions = {"similarity": "structural", "options": {"miner": miner, "mining": "structural"}}
            cases[f"margin, structural, miner {miner} on regions"] = own | on_regions
    for name in ("margin_diml", "multisimilarity_diml"):
        own = base | {"name": name, "similarity": "structural"}
        cases[f"{name}, uniform"] = own | {"options": {"marginals": "uniform"}}
        cases[f"{name}, epsilon 0.02"] = own | {"options": {"epsilon": 0.02}}
        cases[f"{name}, 3 iterations"] = own | {"options": {"max_iterations": 3}}
        cases[f"{name}, float64"] = own | {"maps": BATCH.maps.double()}
    return cases


def distance_cases() -> dict[str, Case]:
    """Arguments of `distance`: kind, left, right (None: left with itself), form, storage, options, weight.

    `form`: "matrix" of two sides; "rows", row by row; "map", a matrix whose right side are region maps (proxies). Half
    the sum of weight * values is differentiated.
    """
    base: Case = {"left": BATCH[:12], "right": None, "form": "matrix", "storage": "float32", "options": {}}
    cases = {}
    for kind in ("similarity", "distance"):
        own = base | {"kind": kind}
        two = own | {"right": MANY[:8]}
        cases |= {
            f"{kind}": own,
            f"{kind}, uniform": own | {"options": {"marginals": "uniform"}},
            f"{kind}, epsilon 0.02": own | {"options": {"epsilon": 0.02}},
            f"{kind}, epsilon 0.001": own | {"options": {"epsilon": 1e-3}},
            f"{kind}, 3 iterations": own | {"options": {"max_iterations": 3}},
            f"{kind}, power 2": own | {"options": {"power": 2}},
            f"{kind}, float64": own | {"storage": "float64"},
            f"{kind}, blank and copied": own | {"left": BLANK[6:30]},
            f"{kind}, two sides": two,
            f"{kind}, two sides, float64": two | {"storage": "float64"},
            f"{kind}, against maps": two | {"form": "map"},
            f"{kind}, row by row": own | {"right": MANY[:12], "form": "rows"},
        }
    for case in cases.values():
        rows, columns = len(case["left"].labels), len((case["right"] or case["left"]).labels)
        shape = (rows,) if case["form"] == "rows" else (rows, columns)
        case["weight"] = torch.tensor(bell(RandomState(18), *shape), dtype=torch.float32)
        if case["right"] is None:
            case["weight"].fill_diagonal_(0)  # the slope of a root at almost nothing hangs on the last bit
    return cases


def explanation_cases() -> dict[str, Case]:
    """Arguments of `explanation`: one query, two gallery images, storage, settings, top (flows to list)."""
    base: Case = {"query": MANY[:1], "gallery": MANY[50:51], "other": MANY[60:61], "top": 3}
    base |= {"storage": "float32", "settings": {}}
    return {
        "float32": base,
        "float32, uniform, epsilon 0.02": base | {"settings": {"marginals": "uniform", "epsilon": 0.02}},
        "float32, 16 regions against 9": base | {"gallery": COARSE[:1], "other": COARSE[5:6]},
        "float32, blank regions": base | {"query": BLANK[22:23], "gallery": BLANK[24:25], "other": BLANK[20:21]},
        "float16": base | {"storage": "float16"},
        "float64": base | {"storage": "float64"},
    }


def extra_metrics_cases() -> dict[str, Case]:
    """Arguments of `extra_metrics`: images, storage, queries, gallery, seed."""
    base: Case = {"images": MANY, "storage": "float32", "queries": None, "gallery": None, "seed": 0}
    return {
        "float32": base,
        "float32, seed 1": base | {"seed": 1},
        "float32, split": base | {"queries": QUERIES, "gallery": GALLERY},
        "float16": base | {"storage": "float16"},
        "float64": base | {"storage": "float64"},
        "float32, blank and copied": base | {"images": BLANK},
    }


#: Group -> its cases. Each group is also the name of the function (of an API) that takes a case and gives its numbers.
CASES = {
    "vectors": vectors_cases,
    "evaluate": evaluation_cases,
    "rerank": rerank_cases,
    "match": match_cases,
    "sinkhorn": sinkhorn_cases,
    "objective": objective_cases,
    "distance": distance_cases,
    "explanation": explanation_cases,
    "extra_metrics": extra_metrics_cases,
}

# --------------------------------------------------------------------------------------------------- results as JSON

#: Arrays of up to so many values are kept whole, of longer ones the hash, the length and the first few.
WHOLE, FIRST = 8, 5


def numbers(value: Any) -> Any:
    """Anything made of tensors, arrays, numbers, lists and mappings as JSON that keeps every bit of a float.

    Python writes a float with as many digits as it takes to read the same float. Names that are numbers become text.
    """
    if isinstance(value, Mapping):
        return {str(name): numbers(part) for name, part in value.items()}
    if isinstance(value, Tensor):
        value = (value.float() if value.dtype == torch.bfloat16 else value).detach().cpu().numpy()
    if isinstance(value, np.generic) or (isinstance(value, Array) and value.ndim == 0):
        return value.item()
    if isinstance(value, list | tuple):
        as_array = np.array(value) if _is_numeric(value) else None
        if as_array is None or as_array.size <= WHOLE:
            return [numbers(part) for part in value]
        value = as_array
    if isinstance(value, Array):
        return value.tolist() if value.size <= WHOLE and value.ndim == 1 else _summary(value)
    return value


def _is_numeric(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return all(_is_numeric(part) for part in value)
    return isinstance(value, int | float)


def _summary(array: Array) -> dict[str, Any]:
    """Type, shape and hash; of floats also the Euclidean length and the first values."""
    found = {"of": f"{array.dtype} {list(array.shape)}", "sha256": _hash(array)}
    if array.dtype.kind != "f":
        return found
    values = array.astype(np.float64).ravel().tolist()
    length = math.sqrt(math.fsum(x * x for x in values))
    return found | {"length": length, "first": values[:FIRST]}


def _hash(array: Array | Tensor) -> str:
    """The first half of the SHA-256 of the bytes."""
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()[:32]


def of_report(
    *,
    rows: Sequence[Mapping[str, float]],
    intervals: Sequence[Mapping[str, tuple[float, float]]],
    comparisons: Sequence[tuple[int, int, str, float, float, float]],
    per_query: Mapping[int, Mapping[str, Array]],
    queries: Array,
    without_relevant: Array,
    hits: Mapping[int, Array],
    gallery_size: int,
    unfinished_pairs: int,
) -> dict[str, Any]:
    """What an evaluation found, each part an array, in the order of rows and, within, of `METRICS`.

    Args:
        rows, intervals: one an evaluated K; a row has `rerank` and the metrics.
        comparisons: (rerank, against, metric, difference, low, high).
        per_query: K -> metric -> (Q,).
        queries, without_relevant, hits, gallery_size, unfinished_pairs: as the report has them.
    """
    rerank = [int(row["rerank"]) for row in rows]
    compared = {(k, metric): (against, *found) for k, against, metric, *found in comparisons}
    return {
        "rows": {wanted: [row[metric] for metric in METRICS] for wanted, row in zip(rerank, rows, strict=True)},
        "intervals": np.array([[bounds[metric] for metric in METRICS] for bounds in intervals]),
        "comparisons": np.array([compared[k, name] for k in rerank for name in METRICS if (k, name) in compared]),
        "per_query": np.stack([np.stack([per_query[k][metric] for metric in METRICS]) for k in rerank]),
        "hits": np.stack([hits[k] for k in rerank]),
        "queries": np.asarray(queries),
        "without_relevant": np.asarray(without_relevant),
        "gallery_size": gallery_size,
        "unfinished_pairs": unfinished_pairs,
    }


# --------------------------------------------------------------------------------------------------------- comparing

#: How far floats may be off where the machine is another one, times their size where that is above 1.
CLOSE = 2e-5
#: The same by name of the part: in metrics, two images whose scores are nearly equal can change places, and in k-means
#: cluster; distances of images to themselves are roots of almost nothing.
METRICS_PARTS = ("rows", "intervals", "comparisons", "per_query")
CLOSE_OF = dict.fromkeys(METRICS_PARTS, 5e-3) | {"nmi": 0.1, "f1": 0.1, "values": 1e-4}
#: What is only the same bit by bit: hashes, and counts that hang on the last bit of a number; and the ends of names of
#: cases that stop before they converge, or take gradients of distances of copies.
EXACT_ONLY = ("sha256", "iterations", "unfinished_pairs", "unconverged_pairs", "statistics")
EXACT_ONLY_CASES = ("3 iterations", "5 iterations", "tolerance 0.01", "distance: distance, blank and copied")


def compare(recorded: Any, now: Any, exact: bool, *, where: str = "", close: float = CLOSE) -> list[str]:
    """Differences of two results of `numbers`, in words; none where they agree.

    Args:
        recorded, now: what was recorded and what is found now; any part of it.
        exact: bit by bit; otherwise floats within `CLOSE` or `CLOSE_OF` their part, without what is `EXACT_ONLY`.
        where: name of the part, for the words.
        close: for floats of this part.
    """
    if isinstance(recorded, dict) and isinstance(now, dict):
        found = [f"{where}: {name!r} is missing" for name in recorded.keys() - now.keys()]
        found += [f"{where}: {name!r} was not recorded" for name in now.keys() - recorded.keys()]
        for name in recorded:
            if name in now and (exact or not (name in EXACT_ONLY or name.endswith(EXACT_ONLY_CASES))):
                bound = CLOSE_OF.get(name, close)
                found += compare(recorded[name], now[name], exact, where=f"{where}/{name}", close=bound)
        return found
    if isinstance(recorded, list) and isinstance(now, list) and len(recorded) == len(now):
        pairs = enumerate(zip(recorded, now, strict=True))
        return [one for i, (a, b) in pairs for one in compare(a, b, exact, where=f"{where}[{i}]", close=close)]
    return [] if _same(recorded, now, exact, close) else [f"{where}: {recorded!r} was recorded, now {now!r}"]


def _same(recorded: Any, now: Any, exact: bool, close: float) -> bool:
    if not isinstance(recorded, float) or not isinstance(now, float):
        return type(recorded) is type(now) and recorded == now
    if exact or not math.isfinite(recorded):
        return recorded.hex() == now.hex()
    return abs(recorded - now) <= close * max(1.0, abs(recorded))
