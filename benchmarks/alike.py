"""How alike regions are to trained and to random networks: the figures of docs/experiments/alike.md.

    python benchmarks/alike.py --grocery GROCERY
    python benchmarks/alike.py --grocery GROCERY --models mobilenetv2_100 RUN random:resnet18:0

For each model, data set and grid: mean cosine of all pairs of regions of a pair of images, by the product of their
weights; span of the cosines (quantiles 5 to 95 %); score; and the pairs that the warning of `diml explain` names.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from diml.data import ImageSet, load_dataset
from diml.explain.wording import ALIKE
from diml.matching import Match, Matcher
from diml.models import Embedder, load_embedder

QUERIES, GRIDS = 60, (4, 7)
MODELS = ("mobilenetv2_100", *(f"random:resnet18:{seed}" for seed in range(3)), "random:mobilenetv2_100:0")


def main() -> None:
    """Print a row of the table for each model, data set, grid and kind of pair."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--grocery", type=Path, help="folder of the data set grocery; without it ORL only")
    parser.add_argument("--models", nargs="+", default=MODELS, help="timm name, folder, or random:NAME:SEED")
    options = parser.parse_args()
    sets = [load_dataset("orl").test]
    if options.grocery is not None:
        sets.insert(0, load_dataset("grocery", options.grocery).test)
    print("| model, data, regions | pairs | mean cosine | span | score | warned |\n|---|---|---|---|---|---|")
    for name in options.models:
        embedder = opened(name)
        for images in sets:
            for line in rows_of(name, embedder, images):
                print(line, flush=True)


def opened(name: str) -> Embedder:
    """The model of a name; `random:NAME:SEED` has random weights."""
    if not name.startswith("random:"):
        return load_embedder(name)
    _, network, seed = name.split(":")
    torch.manual_seed(int(seed))
    return load_embedder(network, pretrained=False).eval()


def rows_of(name: str, embedder: Embedder, images: ImageSet, seed: int = 0) -> list[str]:
    """The rows of one model and data set."""
    labels, generator = np.asarray(images.labels), np.random.default_rng(seed)
    queries = generator.choice(len(labels), QUERIES, replace=False)
    sides = {
        "same class": [chosen(generator, np.setdiff1d(np.flatnonzero(labels == labels[i]), [i])) for i in queries],
        "different classes": [chosen(generator, np.flatnonzero(labels != labels[i])) for i in queries],
    }
    used = np.unique(np.concatenate([queries, *sides.values()]))
    place = {int(row): at for at, row in enumerate(used)}
    lines = []
    for grid in GRIDS:
        regions = embedder.with_settings(grid=grid).embed(images.subset(used))
        for kind, others in sides.items():
            found = Matcher(epsilon=0).match(
                *(regions[[place[int(row)] for row in side]] for side in (queries, others))
            )
            lines.append(f"| {name}, {images.name}, {grid} x {grid} | {kind} | {numbers(found)} |")
    return lines


def chosen(generator: np.random.Generator, rows: NDArray[np.int64]) -> int:
    """One of the rows."""
    return int(generator.choice(rows))


def numbers(found: Match) -> str:
    """Smallest, median and largest mean cosine and span, the median score, and the pairs that are warned of."""
    mean = torch.einsum("bqg,bq,bg->b", found.cosine, found.weight_q, found.weight_g).numpy()
    low, high = torch.quantile(found.cosine.flatten(1), torch.tensor([0.05, 0.95]), dim=1).numpy()
    spread = (" ".join(f"{np.quantile(values, q):.3f}" for q in (0, 0.5, 1)) for values in (mean, high - low))
    return " | ".join([*spread, f"{float(found.score.median()):.2f}", f"{int((mean > ALIKE).sum())} of {len(mean)}"])


if __name__ == "__main__":
    main()
