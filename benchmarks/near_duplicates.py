"""Copies that were planted among the images of an index, and the time that looking for them takes.

    python benchmarks/near_duplicates.py --index shop.index --seeds 1 2 3 4 5 --output found.json
    python benchmarks/near_duplicates.py --index shop.index --kinds half all --seeds 1 2 3 4 5
    python benchmarks/near_duplicates.py --index shop.index --generated 100000

For each seed 20 images of the index are drawn, a copy of each is written as a file and embedded into a copy of the
index: JPEG of quality 50, brightness times 0.7 or 1.3, mirror, crop to 90 % of both sides (the last three saved as JPEG
of quality 90), five each; `half`: scaled to half the size, `all`: brightness, mirror, crop and JPEG of quality 50 in
one. Found: a copy is in a group with its original. Other pairs: linked images neither of which is planted; they are
listed in the output, to be looked at. With --generated, an index is made of N rows, each the vectors of a drawn image
with noise; the files are those of the drawn images, so that reading and comparing take the time that they would take
with N files (which the system's cache of files holds, unlike those of a shop); with these files every image has about
N / M copies, of which the nearest are compared.
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageEnhance, ImageOps

from diml.search import Searcher, build_index, open_store
from diml.search.copies import Comparison, Gallery, neighbour_pairs
from diml.search.duplicates import Duplicates, find_duplicates
from diml.search.index import create_store
from diml.search.sources import image_file, list_source
from diml.search.store import Rows

KINDS = ("jpeg", "brightness", "mirror", "crop")
PLANTED = 20


def main() -> None:
    """Print one line for each seed, and the sums; or the time of each stage."""
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--index", type=Path, required=True, help="of LanceDB, with its image files")
    made.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3, 4, 5], help="default: %(default)s")
    made.add_argument("--kinds", nargs="+", default=KINDS, choices=(*KINDS, "half", "all"), help="default: %(default)s")
    made.add_argument("--generated", type=int, help="rows of a generated index whose time is measured")
    made.add_argument("--sample", type=int, default=50, help="images of the calibration; default: %(default)s")
    made.add_argument("--threads", type=int, default=1, help="of torch; default: %(default)s")
    made.add_argument("--output", type=Path, help="JSON file, also with the pairs that were not planted")
    options = made.parse_args()
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as folder:
        if options.generated:
            told = timed(options.index, options.generated, Path(folder))
        else:
            told = planted(options, Path(folder))
    if options.output is not None:
        options.output.write_text(json.dumps(told, indent=1))


def planted(options: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    """Plant, look for the copies, print; returns what was found for each seed."""
    embedder = Searcher.open(options.index).embedder
    model = open_store(options.index).config.model["name_or_path"]
    told = []
    for seed in options.seeds:
        index, copies = folder / f"{seed}.index", folder / f"copies{seed}"
        shutil.copytree(options.index, index)
        originals = plant(index, copies, options.kinds, seed)
        build_index(list_source(copies), index, embedder, model=model)
        begun = time.perf_counter()
        found = find_duplicates(open_store(index), embedder, sample=options.sample, seed=seed)
        told.append(counted(found, originals, seed) | {"seconds": time.perf_counter() - begun})
        print({name: value for name, value in told[-1].items() if name != "others"}, flush=True)
        shutil.rmtree(index)
    hits = sum(sum(one["found"].values()) for one in told)
    others = len({tuple(pair) for one in told for pair in one["others"]})
    print(f"found {hits} of {PLANTED * len(told)}; {others} different pairs that were not planted")
    return told


def plant(index: Path, folder: Path, kinds: list[str], seed: int) -> dict[str, str]:
    """Write copies of drawn images; returns copy -> original."""
    folder.mkdir()
    generator = np.random.default_rng(seed)
    files = [str(image_file(entry)) for part in open_store(index).listing() for entry in part.metadata]
    drawn = [files[row] for row in generator.choice(len(files), PLANTED, replace=False)]
    originals = {}
    for number, name in enumerate(drawn):
        kind = kinds[number % len(kinds)]
        place = folder / f"{kind}_{number}.jpg"
        with Image.open(name) as opened:
            copied(ImageOps.exif_transpose(opened).convert("RGB"), kind, generator).save(
                place, quality=50 if kind in ("jpeg", "all") else 90
            )
        originals[str(place)] = name
    return originals


def copied(image: Image.Image, kind: str, generator: np.random.Generator) -> Image.Image:
    """An image changed in one way, or in all."""
    if kind in ("brightness", "all"):
        image = ImageEnhance.Brightness(image).enhance(float(generator.choice([0.7, 1.3])))
    if kind in ("mirror", "all"):
        image = ImageOps.mirror(image)
    if kind in ("crop", "all"):
        width, height = round(0.9 * image.width), round(0.9 * image.height)
        x, y = (int(generator.integers(left + 1)) for left in (image.width - width, image.height - height))
        image = image.crop((x, y, x + width, y + height))
    if kind == "half":
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.LANCZOS)
    return image


def counted(found: Duplicates, originals: dict[str, str], seed: int) -> dict[str, Any]:
    """Copies found by kind, pairs that were not planted, and what the calibration says."""
    hits: dict[str, int] = dict.fromkeys(sorted({Path(copy).name.split("_")[0] for copy in originals}), 0)
    missed, others = [], []
    groups = [[image.name for image in group.images] for group in found.groups]
    for copy, original in originals.items():
        if any(copy in group and original in group for group in groups):
            hits[Path(copy).name.split("_")[0]] += 1
        else:
            missed.append([Path(copy).name, original])
    for group in groups:
        own = {originals.get(name, name) for name in group}
        others += [sorted(own)] if len(own) > 1 else []
    threshold = found.threshold.to_dict()
    return {"seed": seed, "found": hits, "missed": missed, "others": others, "pairs": found.pairs, **threshold}


def timed(index: Path, count: int, folder: Path) -> list[dict[str, Any]]:
    """Seconds, pairs a second and memory of each stage on a generated index."""
    source, generator = open_store(index), np.random.default_rng(0)
    ids = [name for part in source.listing(columns=[]) for name in part.ids]
    made = create_store(folder / "generated.index", source.config)
    for start in range(0, count, 2000):
        drawn = [ids[row] for row in generator.integers(len(ids), size=min(2000, count - start))]
        rows = source.regions(sorted(set(drawn)), check=False)
        place = {name: row for row, name in enumerate(rows.ids)}
        at = [place[name] for name in drawn]
        noisy = rows.pooled[at] + generator.normal(
            0, 0.3 / rows.pooled.shape[1] ** 0.5, (len(at), rows.pooled.shape[1])
        )
        noisy = (noisy / np.linalg.norm(noisy, axis=1, keepdims=True)).astype(np.float32)
        names = tuple(f"{start + row}" for row in range(len(at)))
        entries = tuple({**rows.metadata[row], "content": name} for row, name in zip(at, names, strict=True))
        made.add(Rows(names, noisy, rows.coded[at], entries))
    made.optimize()
    told = []
    begun = time.perf_counter()

    def stage(name: str, number: int, unit: str) -> None:
        nonlocal begun
        took = time.perf_counter() - begun
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        told.append({"stage": name, "seconds": took, unit: number, "per_second": number / took, "peak_mb": memory})
        print(told[-1], flush=True)
        begun = time.perf_counter()

    begun = time.perf_counter()
    gallery = Gallery.of(made, None)
    stage("list", len(gallery), "images")
    pairs = neighbour_pairs(made, gallery, neighbours=10)
    stage("neighbours", len(gallery), "images")
    with Comparison(gallery) as compared:
        compared.read(range(len(gallery)))
        stage("read", len(gallery), "images")
        found = compared.of(pairs)
    stage("compare", len(pairs), "pairs")
    print("copies", sum(one.value >= 0.992 for one in found))
    return told


if __name__ == "__main__":
    main()
