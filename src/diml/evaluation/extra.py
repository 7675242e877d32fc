"""Further metrics of the authors' base code: clustering, mean average precision, distances, spectrum.

They use pooled vectors only and describe an embedding; retrieval is evaluated by `evaluate_regions`.

Legend: N images, C classes, Q queries, G gallery images, R relevant images of a query, D channels.
"""

from __future__ import annotations

import warnings
from typing import Final

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from diml.evaluation.split import QueryGallerySplit, Sides
from diml.matching import Regions
from diml.matching.retrieval import NOTHING, SCORE_BYTES

#: Lloyd iterations of k-means, as in the base code.
KMEANS_ITERATIONS: Final = 20

#: Depth of `map@lim`: the most neighbours that the base code's search library gave on a GPU.
LIMIT: Final = 1023

#: Singular values that stand before the first counted one in `rho@1`, `rho@2` and `rho@10`, plus one.
RHO_FROM: Final = (1, 2, 10)

#: Names of `extra_metrics`, in the order of tables.
EXTRA_METRICS: Final = (
    "nmi",
    "f1",
    "map@c",
    "map@1000",
    "map@lim",
    "map",
    "map@c_self_counted",
    "map@1000_self_counted",
    "map@lim_self_counted",
    "map_self_counted",
    "intra_distance",
    "inter_distance",
    "intra_over_inter",
    *(f"rho@{first}" for first in RHO_FROM),
    "rho@-1",
)

Labels = NDArray[np.int64]


@torch.no_grad()
def extra_metrics(
    regions: Regions,
    labels: ArrayLike | Tensor,
    *,
    queries: ArrayLike | Tensor | None = None,
    gallery: ArrayLike | Tensor | None = None,
    cameras: ArrayLike | Tensor | None = None,
    seed: int = 0,
) -> dict[str, float]:
    """Compute the base code's further metrics on pooled vectors.

    `map...` are means over the queries that have a relevant gallery image. All others describe the images of both sides
    together.

    Args:
        regions: N images.
        labels: (N,) integer class of each.
        queries: (Q,) image rows that query, or all. Without `queries` and `gallery` this is leave-one-out.
        gallery: (G,) image rows that are searched, or all. An image never retrieves itself.
        cameras: (N,) as of `evaluate_regions`; for `map...` only.
        seed: Of the first centres of k-means.

    Returns:
        name -> value, in the order of `EXTRA_METRICS`; fractions but for the distances and rho:

        - nmi, f1: how well k-means with k = C finds the classes, see `clustering_metrics`;
        - map@c, map@1000, map@lim, map: mean average precision in the first R, 1000, 1023 and all places; map@c is the
        map@r of `evaluate_regions`. ..._self_counted divides as the base code does, see `average_precisions`;
        - intra_distance, inter_distance, intra_over_inter: cosine distances, see `class_distances`;
        - rho@1, rho@2, rho@10, rho@-1: spectral decay, see `spectral_decay`; rho@1 is the paper's.

    Raises:
        ValueError: labels, queries or gallery do not fit (as `evaluate_regions`), there is one class only, no query has
            a relevant image, or no class has two images.

    Source: Roth et al., "Revisiting Training Strategies and Generalization Performance in Deep Metric Learning", ICML
    2020, and its released code.

    Example:
        >>> extra_metrics(embedder.embed(paths), labels)["nmi"]  # doctest: +SKIP
    """
    split = QueryGallerySplit.of_regions(
        regions, labels, Sides(queries=queries, gallery=gallery, cameras=cameras, judgements=None)
    )
    if not (split.relevant_count > 0).any():
        raise ValueError("labels: no query has a relevant image in the gallery; check labels, queries and gallery")
    rows, first = np.unique(torch.cat([split.queries, split.gallery]).cpu().numpy(), return_index=True)
    classes = torch.cat([split.query_labels, split.gallery_labels]).cpu().numpy()[first]
    pooled = regions.pooled[torch.from_numpy(rows).to(regions.pooled.device)].double().cpu()
    if len(np.unique(classes)) < 2:
        raise ValueError("labels: need at least two classes, got one; distances between classes would be undefined")
    found = clustering_metrics(pooled.numpy(), classes, seed)
    found |= _mean_average_precisions(regions.pooled, split)
    found |= class_distances(pooled, classes)
    found |= {f"rho@{first}": spectral_decay(pooled, first=first) for first in RHO_FROM}
    found["rho@-1"] = spectral_decay(pooled, reverse=True)
    return {name: found[name] for name in EXTRA_METRICS}


def clustering_metrics(vectors: NDArray[np.float64], labels: Labels, seed: int) -> dict[str, float]:
    """NMI and F1 of k-means clusters against classes, k = number of classes.

    k-means starts from k-means++ centres and stops after 20 iterations at the latest (the base code: random
    centres, 20 iterations). NMI: mutual information over the arithmetic mean of the two entropies. F1: harmonic mean of
    precision and recall over pairs of images, a pair in one cluster being retrieved and one of one class relevant.

    Args:
        vectors: (N, D).
        labels: (N,).
        seed: Of the first centres.

    Source: Manning et al., "Introduction to Information Retrieval", 2008, section 16.3.
    """
    from sklearn.cluster import KMeans  # type: ignore[import-untyped]
    from sklearn.exceptions import ConvergenceWarning  # type: ignore[import-untyped]
    from sklearn.metrics import normalized_mutual_info_score  # type: ignore[import-untyped]

    kmeans = KMeans(len(np.unique(labels)), n_init=1, max_iter=KMEANS_ITERATIONS, random_state=seed)
    with warnings.catch_warnings():
        # with fewer distinct vectors than classes, the clusters found are evaluated nevertheless
        warnings.simplefilter("ignore", ConvergenceWarning)
        clusters = kmeans.fit_predict(vectors)
    return {"nmi": float(normalized_mutual_info_score(labels, clusters)), "f1": pair_f1(labels, clusters)}


def pair_f1(labels: Labels, clusters: Labels) -> float:
    """F1 over pairs of images (N,); 0 where no pair is both of one class and in one cluster."""
    from sklearn.metrics.cluster import pair_confusion_matrix  # type: ignore[import-untyped]

    (_, wrong), (missed, right) = pair_confusion_matrix(labels, clusters).tolist()
    return 2 * right / (2 * right + wrong + missed) if right else 0.0


def average_precisions(relevant: Tensor, relevant_count: Tensor, in_gallery: Tensor) -> dict[str, Tensor]:
    """Average precision of each query at several depths.

    AP in the first L places = sum over relevant places i <= L of precision at i, over min(R, L). The self-counted
    columns are the base code's: over R + 1 for a query of the gallery, whatever L, and L = R + 1 for map@c; a perfect
    ranking scores R / (R + 1) there.

    Args:
        relevant: (Q, G) bool, whether the image at each place of the whole ranking has the query's class.
        relevant_count: (Q,) int64, R >= 1.
        in_gallery: (Q,) bool, whether the query itself was taken out of its gallery.

    Returns:
        name -> (Q,) float64.

    Source: Manning et al., 2008, section 8.4.
    """
    place = torch.arange(1, relevant.shape[1] + 1, device=relevant.device)
    gained = (relevant.cumsum(dim=1).double() / place * relevant).cumsum(dim=1)
    everything = torch.full_like(relevant_count, relevant.shape[1])
    self_counted = relevant_count + in_gallery.to(relevant_count.dtype)
    found = {}
    for suffix, count in (("", relevant_count), ("_self_counted", self_counted)):
        depths = {"map@c": count, "map@1000": everything.clamp_max(1000), "map@lim": everything.clamp_max(LIMIT)}
        for name, depth in (depths | {"map": everything}).items():
            last = depth.clamp_max(relevant.shape[1]) - 1
            divisor = count if suffix else torch.minimum(count, depth)
            found[name + suffix] = gained.gather(1, last.unsqueeze(1)).squeeze(1) / divisor
    return found


def _mean_average_precisions(pooled: Tensor, split: QueryGallerySplit) -> dict[str, float]:
    exact = pooled.to(torch.promote_types(pooled.dtype, torch.float32))
    counted = (split.relevant_count > 0).nonzero().flatten()
    gallery = exact[split.gallery].T
    sums: dict[str, float] = {}
    size = max(1, SCORE_BYTES // (8 * len(split.gallery)))
    for start in range(0, len(counted), size):
        block = counted[start : start + size]
        own_row = split.own_row[block]
        scores = exact[split.queries[block]] @ gallery
        itself = (own_row != NOTHING).nonzero().flatten()
        scores[itself, own_row[itself]] = -torch.inf
        # the whole gallery is needed: one stable sort, which leaves equal scores in gallery order and the query last
        order = scores.sort(dim=1, descending=True, stable=True).indices
        relevant = split.gallery_labels[order] == split.query_labels[block].unsqueeze(1)
        if split.ignored_count is not None:
            some = split.subset(block)
            relevant = some.relevant(some.without_ignored(order, order.shape[1])[0])
        else:
            relevant &= order != own_row.unsqueeze(1)
        for name, values in average_precisions(relevant, split.relevant_count[block], own_row != NOTHING).items():
            sums[name] = sums.get(name, 0.0) + float(values.sum())
    return {name: total / len(counted) for name, total in sums.items()}


def class_distances(vectors: Tensor, labels: Labels) -> dict[str, float]:
    """Cosine distances (1 - cosine) within and between classes.

    intra_distance: mean over classes of the mean distance of two of its images; a class with one image is left out.
    inter_distance: mean distance of two class centres, a centre being the mean of the class brought to unit length.
    intra_over_inter: their ratio, the second taken as 1e-8 at least.

    Args:
        vectors: (N, D) float64, unit (or zero) vectors.
        labels: (N,), at least two classes.

    Raises:
        ValueError: No class has two images.
    """
    number = torch.from_numpy(np.unique(labels, return_inverse=True)[1])
    sizes = torch.bincount(number).to(vectors.dtype)
    sums = vectors.new_zeros(len(sizes), vectors.shape[1]).index_add_(0, number, vectors)
    own = vectors.new_zeros(len(sizes)).index_add_(0, number, vectors.square().sum(dim=1))
    pairs = sizes * (sizes - 1)
    if not (pairs > 0).any():
        raise ValueError("labels: no class has two images, so there are no distances within classes")
    # the cosines of all pairs of a class sum to |sum of its vectors|^2 less those of each image with itself
    within = 1 - (sums.square().sum(dim=1) - own)[pairs > 0] / pairs[pairs > 0]
    centres = torch.nn.functional.normalize(sums, dim=1)
    among = centres.sum(dim=0).square().sum() - centres.square().sum()
    intra = float(within.mean().clamp_min(0))
    inter = float((1 - among / (len(sizes) * (len(sizes) - 1))).clamp_min(0))
    return {"intra_distance": intra, "inter_distance": inter, "intra_over_inter": intra / max(inter, 1e-8)}


def spectral_decay(vectors: Tensor, *, first: int = 1, reverse: bool = False) -> float:
    """Rho: how far the singular values of the embeddings are from all being equal.

    With s_1 >= s_2 >= ... the singular values of the (N, D) matrix of vectors (not centred), p = s / sum(s) from the
    `first` on and n their number, rho = KL(uniform || p) = -(1/n) sum log(n p_i), in nats; 0 is an even spectrum, and
    the more the vectors lie in few directions, the greater it is.

    Args:
        vectors: (N, D).
        first: Count the singular values from this one on, from 1.
        reverse: KL(p || uniform) in place of it, the base code's rho of negative mode.

    Returns:
        At least 0; 0 where fewer than two singular values are counted. Values below machine precision of the greatest
        are taken as that, so that the result is finite.

    Source: Roth et al., ICML 2020, section on embedding space density (their equation for rho, U || S); the dropping of
    the leading values and the reverse are in its released code only.
    """
    values = torch.linalg.svdvals(vectors.double())
    floor = torch.finfo(values.dtype).eps * values[:1].clamp_min(torch.finfo(values.dtype).tiny)
    values = values.clamp_min(floor)[first - 1 :]
    if len(values) < 2:
        return 0.0
    scaled = values / values.mean()  # n p
    divergence = (scaled * scaled.log()).mean() if reverse else -scaled.log().mean()
    return max(0.0, float(divergence))
