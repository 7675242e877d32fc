"""Images per second of an embedder from files to regions, as most users wait for them, and where the time goes.

    python benchmarks/embedding_files.py --data ../shared/datasets/grocery/train --images 256
    python benchmarks/embedding_files.py --data PHOTOS --images 128 --side 1536 --models mobilenetv2_100

Each run embeds the same files several times, alternating: with and without threads that decode ahead, with and without
normalisations and activations folded into convolutions (`diml.models.folding`); and, with both, in ways that change the
numbers: "reducing_gap" is `Preprocess(reducing_gap=2)`, which shrinks images in two steps and decodes JPEG files at a
half, a quarter or an eighth of their size; "bfloat16", with --bfloat16, is that precision of the embedder (much slower
on processors without its instructions). `--side` enlarges the photos to that short side first, as JPEG files of quality
90, to the size that cameras give. The second table has the CPU time of each step on one thread, without the others; the
third what each way makes of MAP@R (plain ranking and DIML, every image a query against all others, classes by folder).

Networks have random weights, but for `mobilenetv2_100`: their speed does not depend on them.
"""

from __future__ import annotations

import argparse
import contextlib
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import torch

import measure
from diml.allocator import keep_freed_memory
from diml.data import load_dataset
from diml.data.images import load_image
from diml.evaluation import evaluate_regions
from diml.matching import Regions
from diml.models import Embedder, load_embedder
from diml.models.folding import WORTH_FOLDING, folded

NEITHER = "neither"
#: With threads, folded, with a reducing gap, in bfloat16.
Way = tuple[bool, bool, bool, bool]
WAYS: dict[str, Way] = {
    NEITHER: (False, False, False, False),
    "threads": (True, False, False, False),
    "folded": (False, True, False, False),
    "both": (True, True, False, False),
    "reducing_gap": (True, True, True, False),
    "bfloat16": (True, True, False, True),
}
RANKED = ("plain", "DIML", "least cosine")
OTHER_NUMBERS = ("reducing_gap", "bfloat16")
GAP = 2.0
NEVER = 2**62
STEPS = (
    "decode",
    "decode, reducing_gap",
    "resize and crop",
    "resize, reducing_gap",
    "normalise",
    "network",
    "network, folded",
)


def main() -> None:
    made = measure.parser(__doc__)
    made.add_argument("--data", type=Path, help="a folder of photos, with all folders in it; default: the ORL faces")
    made.add_argument("--images", type=int, default=256, help=f"images, at least {WORTH_FOLDING}; default: %(default)s")
    made.add_argument("--batch-size", type=int, default=64, help="images per batch; default: %(default)s")
    made.add_argument("--side", type=int, help="enlarge photos to this short side, pixels; default: as they are")
    made.add_argument("--models", nargs="+", default=["mobilenetv2_100", "resnet50", "vit_small_patch16_224"])
    made.add_argument("--bfloat16", action="store_true", help="also embed in bfloat16")
    options = measure.read(made)
    ways = {name: way for name, way in WAYS.items() if name != "bfloat16" or options.bfloat16}
    if options.images < WORTH_FOLDING:
        made.error(f"--images: need at least {WORTH_FOLDING}, got {options.images}")
    keep_freed_memory()
    if options.data is None:
        found = [Path(path) for path in load_dataset("orl").test.images]
    else:
        found = sorted(path for path in options.data.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg", ".png"))
    if len(found) < options.images:
        made.error(f"--data: need {options.images} photos, got {len(found)} in {options.data or 'ORL'}")
    generator = torch.Generator().manual_seed(options.seed)
    paths = [found[row] for row in torch.randperm(len(found), generator=generator)[: options.images].tolist()]
    labels = [path.parent.name for path in paths]
    with tempfile.TemporaryDirectory() as folder:
        if options.side:
            paths = enlarged(paths, options.side, Path(folder))
        results = [{"model": name, **measured(name, ways, paths, labels, options)} for name in options.models]
    speeds = [
        [
            result["model"],
            *(measure.shown(result[way]) for way in ways),
            *(measure.shown(result["ratios"][way]) for way in result["ratios"]),
            difference(result),
        ]
        for result in results
    ]
    steps = [[result["model"], *(measure.shown(result[step]) for step in STEPS)] for result in results]
    ranked = [[result["model"], way, *numbers] for result in results for way, numbers in result["ranked"].items()]
    measure.finish(
        "embedding_files",
        options,
        results,
        measure.table("Images/s", ("model", *ways, *results[0]["ratios"], "difference"), speeds),
        measure.table("Milliseconds of CPU time an image, one thread", ("model", *STEPS), steps),
        measure.table(
            "MAP@R, %, and least cosine of a pooled vector to that of both", ("model", "way", *RANKED), ranked
        ),
    )


def measured(
    name: str, ways: dict[str, Way], paths: list[Path], labels: list[str], options: argparse.Namespace
) -> dict[str, Any]:
    """Speeds of all ways, ratios, what the regions differ by, what is ranked with them, and the times of the steps."""
    embedder = load_embedder(name, pretrained=name == "mobilenetv2_100")
    regions: dict[str, Regions] = {}

    def run(way: str) -> Callable[[], None]:
        def embed() -> None:
            threads, folding, reducing, bfloat16 = ways[way]
            used = embedder.with_settings(precision="bfloat16") if bfloat16 else embedder
            if reducing:
                used = used.with_settings(preprocess=replace(used.preprocess, reducing_gap=GAP))
            with chosen(threads, folding):
                regions[way] = used.embed(paths, batch_size=options.batch_size).to(torch.float32)

        return embed

    with measure.progress.status(name):
        seconds = measure.alternate({way: run(way) for way in ways}, options.runs, options.warmup)
        steps = times_of_steps(embedder, paths, options)
    others = [name for name in OTHER_NUMBERS if name in ways]
    return {
        **{way: measure.spread([len(paths) / value for value in values]) for way, values in seconds.items()},
        "ratios": {
            "both / neither": measure.ratios(seconds[NEITHER], seconds["both"]),
            **{f"{way} / both": measure.ratios(seconds["both"], seconds[way]) for way in others},
        },
        "difference": float((regions["both"].dense - regions[NEITHER].dense).abs().max()),
        "ranked": {way: ranked_with(regions[way], regions["both"], labels) for way in ("both", *others)},
        **steps,
    }


def ranked_with(regions: Regions, both: Regions, labels: list[str]) -> list[str]:
    """MAP@R of plain ranking and DIML, and the least cosine of a pooled vector to that of `both`."""
    numbers = {name: number for number, name in enumerate(sorted(set(labels)))}
    found = evaluate_regions(regions, [numbers[label] for label in labels])
    values = [100 * found.per_query[k]["map@r"].mean() for k in (0, 100)]
    cosine = torch.nn.functional.cosine_similarity(regions.pooled, both.pooled)
    return [*(f"{value:.2f}" for value in values), f"{float(cosine.min()):.5f}"]


@contextlib.contextmanager
def chosen(threads: bool, folding: bool) -> Iterator[None]:
    """Embed with or without threads and folding."""
    with contextlib.ExitStack() as stack:
        if not threads:
            stack.enter_context(mock.patch("diml.data.loading._are_files", return_value=False))
        if not folding:
            stack.enter_context(mock.patch("diml.models.embedder.WORTH_FOLDING", NEVER))
        yield


@torch.no_grad()
def times_of_steps(embedder: Embedder, paths: list[Path], options: argparse.Namespace) -> dict[str, Any]:
    """CPU time of each step for a batch of images, on one thread; milliseconds an image."""
    used, threads = paths[: options.batch_size], torch.get_num_threads()
    preprocess = embedder.preprocess
    reducing = replace(preprocess, reducing_gap=GAP)
    photos, smaller = ([load_image(path, at_least=way.at_least) for path in used] for way in (preprocess, reducing))
    views = [preprocess.view(photo) for photo in photos]
    given = torch.stack([preprocess.normalize(view) for view in views]).contiguous(memory_format=torch.channels_last)
    quick = folded(embedder.backbone, preprocess.size)
    work: dict[str, Callable[[], object]] = {
        "decode": lambda: [load_image(path) for path in used],
        "decode, reducing_gap": lambda: [load_image(path, at_least=reducing.at_least) for path in used],
        "resize and crop": lambda: [preprocess.view(photo) for photo in photos],
        "resize, reducing_gap": lambda: [reducing.view(photo) for photo in smaller],
        "normalise": lambda: [preprocess.normalize(view) for view in views],
        "network": lambda: embedder.backbone(given),
        "network, folded": lambda: quick(given),
    }
    torch.set_num_threads(1)
    try:
        found: dict[str, list[float]] = {step: [] for step in work}
        for number in range(options.warmup + options.runs):
            for step, run in work.items():
                started = time.process_time()
                run()
                if number >= options.warmup:
                    found[step].append((time.process_time() - started) / len(used) * 1000)
    finally:
        torch.set_num_threads(threads)
    return {step: measure.spread(values) for step, values in found.items()}


def enlarged(paths: list[Path], side: int, folder: Path) -> list[Path]:
    """The photos as larger JPEG files."""
    made = []
    for number, path in enumerate(paths):
        photo = load_image(path)
        factor = side / min(photo.size)
        made.append(folder / f"{number}.jpg")
        photo.resize((round(photo.width * factor), round(photo.height * factor))).save(made[-1], quality=90)
    return made


def difference(result: dict[str, Any]) -> str:
    return f"{result['difference']:.1e}"


if __name__ == "__main__":
    main()
