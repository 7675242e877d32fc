"""Copies that were planted among the images of an index, and the time that looking for them takes.

    python benchmarks/near_duplicates.py --index shop.index --seeds 11 12 13 14 15 --output found.json
    python benchmarks/near_duplicates.py --index shop.index --kinds half all --seeds 21 22 --output found.json
    python benchmarks/near_duplicates.py --index shop.index --generated 100000 --output time.json

For each seed 20 images of the index are drawn, and a copy of each is written as a file: JPEG of quality 50, brightness
times 0.7 or 1.3, mirror, crop to 90 % of both sides (the last three saved as JPEG of quality 90), five each; `half`:
half the size, `all`: brightness, mirror, crop and JPEG of quality 50 in one. The copies of all seeds are embedded into
one copy of the index, and each seed is judged without those of the others: threshold by `choose_threshold`, found: a
copy and its original are a pair of at least the threshold. Other pairs: neither image is planted, or they are of two
originals; they are listed in the output with their agreement from 0.96 on, to be looked at.

With --generated, an index of N rows is made: pooled vectors and regions of drawn images, projected to 128 channels,
with noise, and a file drawn for each row, whatever its vector. So N files are read (which the system's cache of files
holds, unlike those of a shop, so that a disk would take longer), and neighbours show different photographs, as in a
shop without copies. One row in a hundred is a copy of another: nearly its vector, and its file. Found: copies that are
a pair of at least the default threshold.
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageEnhance, ImageOps

from diml.matching import Regions
from diml.search import Searcher, build_index, open_store
from diml.search.copies import CopyComparison, GalleryFiles, neighbour_pairs
from diml.search.copy_threshold import DEFAULT_THRESHOLD, Trials, choose_threshold, copy_trials
from diml.search.index import create_store
from diml.search.sources import image_file, list_source
from diml.search.store import Rows, Store, decode_regions, encode_regions

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
    index, copies = folder / "planted.index", folder / "copies"
    shutil.copytree(options.index, index)
    originals = [plant(options.index, copies / str(seed), options.kinds, seed) for seed in options.seeds]
    build_index(list_source(copies), index, embedder, model=model)
    store, begun = open_store(index), time.perf_counter()
    gallery = GalleryFiles.of(store, None)
    with CopyComparison(gallery) as compared:
        trials = copy_trials(store, embedder, compared, images=options.sample, neighbours=10, progress=True)
        pairs = neighbour_pairs(store, gallery, neighbours=10, least=trials.least_cosine(), progress=True)
        agreements = np.array([one.value for one in compared.of(pairs, progress=True)])
    print(f"{len(gallery)} images, {len(pairs)} pairs, {time.perf_counter() - begun:.0f} s", flush=True)
    told = []
    for seed, own in zip(options.seeds, originals, strict=True):
        foreign = {copy for other in originals if other is not own for copy in other}
        apart = np.array([gallery.name(row) in foreign for row in range(len(gallery))])
        used = ~apart[pairs].any(axis=1)
        told.append(counted(gallery, pairs[used], agreements[used], trials, own) | {"seed": seed})
        print({name: value for name, value in told[-1].items() if name != "others"}, flush=True)
    hits = sum(sum(one["found"].values()) for one in told)
    others = {tuple(pair[1:]) for one in told for pair in one["others"] if pair[0] >= one["value"]}
    print(f"found {hits} of {PLANTED * len(told)}; {len(others)} different pairs that were not planted")
    return told


def plant(index: Path, folder: Path, kinds: list[str], seed: int) -> dict[str, str]:
    """Write copies of drawn images; returns copy -> original."""
    folder.mkdir(parents=True)
    generator = np.random.default_rng(seed)
    files = [str(image_file(entry)) for part in open_store(index).listing() for entry in part.metadata]
    drawn = [files[row] for row in generator.choice(len(files), PLANTED, replace=False)]
    originals = {}
    for number, name in enumerate(drawn):
        kind = kinds[number % len(kinds)]
        place = folder / f"{kind}_{number}.jpg"
        with Image.open(name) as opened:
            image = copied(ImageOps.exif_transpose(opened).convert("RGB"), kind, generator)
        # two seeds may draw the same image: with a comment their copies are no exact copies of each other
        image.save(place, quality=50 if kind in ("jpeg", "all") else 90, comment=f"seed {seed}")
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


def counted(
    gallery: GalleryFiles,
    pairs: NDArray[np.int64],
    agreements: NDArray[np.float64],
    trials: Trials,
    originals: dict[str, str],
) -> dict[str, Any]:
    """Copies found by kind, pairs that were not planted, and what the calibration says."""
    threshold = choose_threshold(trials, agreements, 0.95)
    hits: dict[str, int] = dict.fromkeys(sorted({kind_of(copy) for copy in originals}), 0)
    linked, others = {}, []
    for (a, b), agreement in zip(pairs.tolist(), agreements.tolist(), strict=True):
        names = sorted((gallery.name(a), gallery.name(b)))
        own = {originals.get(name, name) for name in names}
        if len(own) == 1:
            linked[next(name for name in names if name in originals)] = agreement
        elif agreement >= 0.96:
            others.append([agreement, *names])
    for copy in originals:
        hits[kind_of(copy)] += linked.get(copy, -1.0) >= threshold.value
    missed = [[Path(copy).name, linked.get(copy)] for copy in originals if linked.get(copy, -1.0) < threshold.value]
    return {"found": hits, "missed": missed, "others": sorted(others, reverse=True), **threshold.to_dict()}


def kind_of(copy: str) -> str:
    """The kind of a planted copy, by the name of its file."""
    return Path(copy).name.split("_")[0]


def timed(index: Path, count: int, folder: Path) -> list[dict[str, Any]]:
    """Seconds, pairs a second and memory of each stage on a generated index."""
    store, originals = generated(open_store(index), count, folder / "generated.index")
    print(f"index: {sum(file.stat().st_size for file in folder.rglob('*') if file.is_file()) / 1e6:.0f} MB", flush=True)
    told: list[dict[str, Any]] = []
    begun = time.perf_counter()

    def stage(name: str, number: int, unit: str) -> None:
        nonlocal begun
        took, spent = time.perf_counter() - begun, time.process_time()
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        spent -= sum(one["cpu_seconds"] for one in told)
        told.append({"stage": name, unit: number, "seconds": took, "cpu_seconds": spent, "peak_mb": memory})
        print(told[-1], flush=True)
        begun = time.perf_counter()

    stage("before", count, "images")
    gallery = GalleryFiles.of(store, None)
    stage("list", len(gallery), "images")
    pairs = neighbour_pairs(store, gallery, neighbours=10, progress=True)
    stage("neighbours", len(gallery), "images")
    with CopyComparison(gallery) as compared:
        compared.read(np.unique(pairs).tolist(), progress=True)
        stage("read", len(gallery), "images")
        found = compared.of(pairs, progress=True)
    stage("compare", len(pairs), "pairs")
    same = {
        (gallery.ids[a], gallery.ids[b])
        for (a, b), one in zip(pairs.tolist(), found, strict=True)
        if one.value >= DEFAULT_THRESHOLD
    }
    hits = sum((copy, own) in same or (own, copy) in same for copy, own in originals.items())
    told.append({"copies": len(originals), "found": hits, "pairs found": len(same)})
    print(told[-1])
    return told


def generated(source: Store, count: int, place: Path) -> tuple[Store, dict[str, str]]:
    """An index of rows made from those of another; and copy -> original."""
    generator = np.random.default_rng(0)
    ids = [name for part in source.listing(columns=[]) for name in part.ids]
    pooled = np.concatenate([source.regions(ids[at : at + 256], check=False).pooled for at in range(0, len(ids), 256)])
    basis = np.linalg.svd(pooled - pooled.mean(axis=0), full_matrices=False)[2][:128].T.astype(np.float32)
    small = (pooled - pooled.mean(axis=0)) @ basis
    columns = {"content": "text", "path": "text", "source": "text"}
    made = create_store(place, replace(source.config, dim=basis.shape[1], columns=columns, named_types=()))
    originals: dict[str, str] = {}
    known: dict[int, Any] = {}
    for start in range(0, count, 1000):
        size = min(1000, count - start)
        drawn, files = generator.integers(len(ids), size=(2, size))
        vectors = small[drawn] + generator.normal(0, 0.7 * small.std(), (size, small.shape[1]))
        names = [f"{start + row}" for row in range(size)]
        for row in range(99, size, 100):
            vectors[row] = vectors[row - 1] + generator.normal(0, 0.2 * small.std(), small.shape[1])
            files[row] = files[row - 1]
            originals[names[row]] = names[row - 1]
        vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
        rows = source.regions(sorted({ids[row] for row in drawn}), check=False)
        at = {name: row for row, name in enumerate(rows.ids)}
        chosen = torch.tensor([at[ids[row]] for row in drawn])
        dense = decode_regions(rows, source.config)
        dense = dense.dense if isinstance(dense, Regions) else dense[torch.arange(len(dense))].dense
        dense = dense.float()[chosen] @ torch.from_numpy(basis)
        noisy = dense + 0.3 * dense.std() * torch.randn(dense.shape)
        regions = Regions.normalized(noisy, torch.from_numpy(vectors), source.config.grid)
        entries = []
        for name, row in zip(names, files, strict=True):
            at_file = source.listed([ids[row]]).metadata[0] if row not in known else known[row]
            known[row] = at_file
            entries.append({"source": at_file["source"], "path": at_file["path"], "content": name})
        made.add(Rows(tuple(names), regions.pooled.numpy(), encode_regions(regions, made.config), tuple(entries)))
    made.optimize()
    return made, originals


if __name__ == "__main__":
    main()
