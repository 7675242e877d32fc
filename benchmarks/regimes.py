"""Embeddings for the benchmarks, generated in two regimes or real, and the iterations that both solvers need on each.

    python benchmarks/regimes.py
    python benchmarks/regimes.py --embeddings easy hard --images 60502 --classes 11316 --queries 50
    python benchmarks/regimes.py --embeddings orl orl-whitened grocery grocery-whitened --data ../shared/datasets

`easy` has the high cosines of raw ImageNet features: the released stopping rule stops after about five iterations.
`hard` is spread as whitened or trained embeddings are: the released solver runs to its limit of 100 iterations. Real
embeddings are those of a frozen MobileNetV2, unchanged (1,280 channels) or whitened to 128, on the training images or
(orl, and grocery-indexed) on the images themselves, as an index does; they are computed once and cached.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

import measure
import plain
from diml.evaluation.evaluate import stored_as
from diml.matching import Matcher, QuantizedRegions, Regions

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
CODES = ("int16", "int8", "1kb")

#: Images generated at a time, so that generating them needs little more memory than the result.
CHUNK = 2000


@dataclass(frozen=True, kw_only=True)
class Regime:
    """A region is a sum of normal vectors, each times its scale, normalised to unit length.

    Attributes:
        shared: scale of the vector that all regions share, which makes cosines high.
        class_, image: scales of the vectors that a class or an image shares.
        part: scale of one of `parts` vectors, drawn for each region: a beak resembles other beaks.
        noise: scale of the region's own vector.
    """

    shared: float
    class_: float
    image: float
    part: float
    parts: int
    noise: float


REGIMES = {
    "easy": Regime(shared=1.1, class_=0.4, image=0.4, part=0.75, parts=32, noise=0.45),
    "hard": Regime(shared=0.0, class_=0.25, image=0.25, part=0.9, parts=64, noise=0.7),
}
REAL = ("orl", "orl-whitened", "grocery", "grocery-whitened", "grocery-indexed")

#: Protocol and way of resizing of the data sets of real embeddings.
REAL_DATA: dict[str, tuple[str, Literal["crop", "square"] | None]] = {
    "orl": ("all", None),
    "grocery": ("class_disjoint", "square"),
}


@dataclass(frozen=True, eq=False)
class Labelled:
    """Embeddings of N images and their classes (N,), int64, from 0."""

    name: str
    regions: Regions
    labels: Tensor


def add_arguments(
    parser: argparse.ArgumentParser, *, images: int = 6000, classes: int = 100, several: bool = True
) -> None:
    """Flags that choose the embeddings."""
    known, default = (*REGIMES, *REAL), ["easy", "hard"] if several else "easy"
    parser.add_argument(
        "--embeddings", choices=known, default=default, nargs="+" if several else None, help="default: easy hard"
    )
    parser.add_argument("--images", type=int, default=images, help="N; default: %(default)s (real ones: all)")
    parser.add_argument("--classes", type=int, default=classes, help="default: %(default)s")
    parser.add_argument("--regions", type=int, default=16, help="R of generated embeddings; default: %(default)s")
    parser.add_argument("--dim", type=int, default=128, help="D of generated embeddings; default: %(default)s")
    parser.add_argument(
        "--dtype", choices=(*DTYPES, *CODES), default="float32", help="storage of the gallery; default: %(default)s"
    )
    parser.add_argument("--data", type=Path, default=Path("data"), help="folder of real data sets; default: data")


def load(name: str, options: argparse.Namespace) -> Labelled:
    """The embeddings of this name, as the flags of `add_arguments` choose them."""
    if name in REAL:
        found = real(name, options.data)
        return Labelled(name, found.regions.to(DTYPES.get(options.dtype, torch.float32)), found.labels)
    sizes = {size: getattr(options, size) for size in ("images", "classes", "regions", "dim", "seed")}
    with measure.progress.status(f"making {options.images:,} {name} embeddings"):
        return generate(name, **sizes, dtype=DTYPES.get(options.dtype, torch.float32))


def stored(found: Labelled, options: argparse.Namespace) -> Regions | QuantizedRegions:
    """The gallery in the type of `--dtype`; integers are quantized from float32."""
    return stored_as(found.regions, options.dtype)


def generate(
    name: str,
    *,
    images: int,
    classes: int,
    regions: int = 16,
    dim: int = 128,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
) -> Labelled:
    """Generate `images` of `classes` in the regime of this name; the pooled vector is the mean of the regions."""
    regime, generator = REGIMES[name], torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, dim, generator=generator)

    labels = torch.arange(images) % classes
    shared, parts, centres = regime.shared * normal(1, 1), regime.part * normal(regime.parts), normal(classes, 1)
    dense = torch.empty(images, regions, dim, dtype=dtype)
    pooled = torch.empty(images, dim, dtype=dtype)
    for start in range(0, images, CHUNK):
        chunk = slice(start, min(images, start + CHUNK))
        size = chunk.stop - start
        made = parts[torch.randint(regime.parts, (size, regions), generator=generator)]
        made += shared + regime.class_ * centres[labels[chunk]] + regime.image * normal(size, 1)
        made += regime.noise * normal(size, regions)
        unit = Regions.normalized(made, made.mean(dim=1))
        dense[chunk], pooled[chunk] = unit.dense, unit.pooled
    # they have unit length, and checking all of them together would double the memory
    return Labelled(name, Regions._trusted(dense, pooled, unit.grid), labels)


def real(name: str, data: Path) -> Labelled:
    """Photos embedded by a frozen MobileNetV2: all faces, or the grocery classes 40 to 80, for leave-one-out."""
    from diml.cli.options import DEFAULT_MODEL, DataOptions, EmbedderOptions, embedding_cache
    from diml.models.cache import embed_cached
    from diml.models.fitting import projected

    dataset_name, _, whitened = name.partition("-")
    protocol, resize = REAL_DATA[dataset_name]
    dataset = DataOptions(data=data, protocol=protocol).open(dataset_name)
    cached: dict[str, Any] = {"cache_dir": embedding_cache(), "progress": True}
    embedder = EmbedderOptions(resize=resize).load(DEFAULT_MODEL, head="identity")
    regions = embed_cached(embedder, dataset.test.paths, **cached).regions
    if whitened:
        own = dataset.train is None or whitened == "indexed"
        fitted_on = regions if own else embed_cached(embedder, dataset.train.paths, **cached).regions
        embedder = EmbedderOptions(resize=resize).load(DEFAULT_MODEL, head="whiten", dim=128)
        embedder.fit_head(fitted_on)
        regions = projected(regions, embedder.head)
    labels = torch.unique(torch.tensor(dataset.test.labels), return_inverse=True)[1]
    return Labelled(name, regions, labels)


def noisy(found: Labelled, *, images: int, noise: float, seed: int) -> Regions:
    """Generate float32 images of real regions: each of two images of one class, place by place, with normal noise.

    Args:
        found: the real images; each class is drawn as often as it has images.
        images: how many to generate.
        noise: length of the noise of a region, which itself has length 1.
        seed: of the draws.
    """
    generator = torch.Generator().manual_seed(seed)
    order = found.labels.argsort(stable=True)
    count = torch.bincount(found.labels)
    first = count.cumsum(0) - count
    real = found.regions.to(torch.float32)
    shape = (images, real.num_regions, real.dim)
    dense, pooled = torch.empty(shape), torch.empty(images, real.dim)
    for start in range(0, images, CHUNK):
        chunk = slice(start, min(images, start + CHUNK))
        size = chunk.stop - start
        one = torch.randint(len(real), (size,), generator=generator)
        label = found.labels[one]
        other = order[first[label] + (torch.rand(size, generator=generator) * count[label]).long()]
        own = torch.rand(size, shape[1], 1, generator=generator) < 0.5
        made = torch.where(own, real.dense[one], real.dense[other])
        made += noise / shape[2] ** 0.5 * torch.randn(size, *shape[1:], generator=generator)
        unit = Regions.normalized(made, made.mean(dim=1))
        dense[chunk], pooled[chunk] = unit.dense, unit.pooled
    return Regions._trusted(dense, pooled, real.grid)


def drawn_queries(count: int, images: int, seed: int) -> Tensor:
    """`count` image rows, at most all, drawn without replacement."""
    return torch.randperm(images, generator=torch.Generator().manual_seed(seed))[:count]


def candidates(regions: Regions, queries: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k nearest other images (Q, K) of each query by pooled cosine, best first, and those cosines (Q, K)."""
    found = [_nearest(regions, block, k) for block in queries.split(256)]
    order, best = (torch.cat(parts) for parts in zip(*found, strict=True))
    return order, best


def _nearest(regions: Regions, block: Tensor, k: int) -> tuple[Tensor, Tensor]:
    scores = regions.pooled[block].float() @ regions.pooled.float().T
    scores[torch.arange(len(block)), block] = -torch.inf
    best, order = scores.topk(min(k, len(regions) - 1))
    return order, best


def effort(found: Labelled, queries: Tensor, k: int) -> dict[str, Any]:
    """Iterations of both solvers on the candidates of these queries, and the range of their cosines."""
    regions = found.regions.to(torch.float32)
    released, ours, cosines = [], [], []
    for query, row, pooled in zip(queries.tolist(), *candidates(regions, queries, k), strict=True):
        released.append(plain.rerank(regions, query, row, pooled)[1])
        compared = Matcher(max_iterations=10_000).match(regions[query], regions[row])
        ours.append(compared.iterations)
        cosines.append(compared.cosine.flatten())
    levels = torch.tensor([0.05, 0.5, 0.95])
    cosine = torch.cat(cosines)
    return {
        "embeddings": found.name,
        "images": len(regions),
        "regions": regions.num_regions,
        "dim": regions.dim,
        "cosine": [float(torch.quantile(cosine[:: 1 + len(cosine) // 10**6], level)) for level in levels],
        "plain_iterations": about(torch.tensor(released)),
        "diml_iterations": about(torch.cat(ours)),
    }


def about(counts: Tensor) -> dict[str, float]:
    """Mean and extremes of iteration counts."""
    return {"mean": float(counts.double().mean()), "low": int(counts.min()), "high": int(counts.max())}


def main() -> None:
    made = measure.parser(__doc__, runs=None)
    add_arguments(made)
    made.add_argument("--queries", type=int, default=50, help="drawn queries; default: %(default)s")
    made.add_argument("--rerank-at", type=int, default=100, help="K; default: %(default)s")
    options = measure.read(made)
    results = []
    for name in options.embeddings:
        found = load(name, options)
        with measure.progress.status(f"solving {name}"):
            queries = drawn_queries(options.queries, len(found.regions), options.seed)
            results.append(effort(found, queries, options.rerank_at))
    columns = ("embeddings", "N", "R", "D", "cosine", "plain iterations", "diml iterations")
    rows = []
    for result in results:
        sizes = [f"{result[size]:,}" for size in ("images", "regions", "dim")]
        counts = [result[f"{side}_iterations"] for side in ("plain", "diml")]
        cosine = "{:.2f}\n{:.2f}..{:.2f}".format(*(result["cosine"][i] for i in (1, 0, 2)))
        ranges = [f"{count['mean']:.1f}\n{count['low']}..{count['high']}" for count in counts]
        rows.append([result["embeddings"], *sizes, cosine, *ranges])
    caption = (
        "cosine: of two regions, median and 5 to 95 %. plain stops all candidates of a query together, by the released "
        "rule; diml stops each pair at a marginal error of 4e-6."
    )
    table = measure.table("Iterations of both solvers: mean, min..max", columns, rows, caption)
    measure.finish("regimes", options, results, table)


if __name__ == "__main__":
    main()
