"""Every objective x similarity x miner, and every loss of the library, do as `docs/objectives.md` says."""

from __future__ import annotations

import inspect
import re
import warnings
from pathlib import Path

import pytest
import torch
from pytorch_metric_learning import losses, miners

from diml.matching import Regions
from diml.objectives import (
    StructuralDistance,
    StructuralSimilarity,
    allowed_miners,
    build_objective,
    miner_names,
    objective_names,
    pack_regions,
)
from diml.objectives.build import MATCHING
from diml.objectives.registry import DIML_NAMES, OBJECTIVES, defaults, miner_defaults

GUIDE = (Path(__file__).parents[3] / "docs" / "objectives.md").read_text()
WRAPPERS = {"BaseLossWrapper", "CrossBatchMemory", "MultipleLosses", "SelfSupervisedLoss"}
ABSTRACT = {"BaseMetricLossFunction", "GenericPairLoss", "EmbeddingRegularizerMixin", "WeightRegularizerMixin"}


def _table(heading: str) -> dict[str, list[str]]:
    """Rows of the table under a heading of the guide, by first cell."""
    section = GUIDE.split(f" {heading}\n", 1)[1].split("\n#")[0]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in section.splitlines() if line[:1] == "|"]
    return {row[0].split(" ")[0].strip("`"): row[1:] for row in rows[2:]}


OBJECTIVE_ROWS = _table("Objectives, similarities, miners")
LOSS_ROWS = _table("Losses of the library")


def _works(name: str, similarity: str) -> bool:
    if name in DIML_NAMES:
        return similarity == "structural"
    return OBJECTIVE_ROWS[name][0 if similarity == "pooled" else 1] != "refused"


def test_the_guide_names_every_objective_and_its_miners():
    assert set(OBJECTIVE_ROWS) == set(OBJECTIVES)
    assert set(OBJECTIVE_ROWS) | set(DIML_NAMES) == set(objective_names())
    for name, (pooled, structural, chosen, _) in OBJECTIVE_ROWS.items():
        assert pooled == "works"
        kind = OBJECTIVES[name].structural
        assert structural == {"works": "works", "proxies": "region proxies"}.get(kind, "refused")
        listed = re.findall(r"`(\w+)`", chosen)
        allowed = allowed_miners(name)
        assert allowed[0] == listed[0]
        if "all others" in chosen:
            assert set(allowed) == set(miner_names()) - set(listed[1:])
        else:
            assert list(allowed) == listed


def test_the_guide_names_every_option():
    options, of_miners = _table("Options and their defaults"), _table("Miners")
    for name, entry in OBJECTIVES.items():
        assert set(re.findall(r"`([a-z0-9_]+)`", options[name][0])) - {"distance"} == set(defaults(entry.make)), name
    assert set(of_miners) == set(miner_names())
    inherited = {"cutoff", "upper_cutoff"}
    for name in set(miner_names()) - {"none"}:
        listed = set(re.findall(r"`([a-z0-9_]+)`", of_miners[name][1])) - {"distance"}
        assert listed in (set(miner_defaults(name)), set(miner_defaults(name)) - inherited), name
    assert set(re.findall(r"`([a-z_]+)`", options["every"][0])) == set(MATCHING)


@pytest.mark.parametrize("miner", miner_names())
@pytest.mark.parametrize("similarity", ["pooled", "structural"])
@pytest.mark.parametrize("name", objective_names())
def test_every_combination_learns_or_is_refused(name, similarity, miner, make_maps):
    sizes = {"num_classes": 5, "embedding_dim": 16, "num_regions": 4}
    generator = torch.Generator().manual_seed(0)
    if not _works(name, similarity) or miner not in allowed_miners(name, similarity):
        with pytest.raises(ValueError, match=r"allowed|take"):
            build_objective(name, similarity=similarity, miner=miner, **sizes)
        return
    torch.manual_seed(0)
    objective = build_objective(name, similarity=similarity, miner=miner, generator=generator, **sizes)
    maps, labels = make_maps(noise=3.0)
    loss = objective(Regions.from_maps(maps), labels)
    assert loss.shape == ()
    assert loss.isfinite()
    loss.backward()
    assert maps.grad.isfinite().all()
    assert maps.grad.abs().max() > 0
    assert all(p.grad is not None and p.grad.isfinite().all() for p in objective.parameters())
    if miner != "none" and "separation" not in name:
        assert {"triplets", "positive_pairs"} & set(objective.statistics)


@pytest.mark.parametrize("mining", ["pooled", "structural"])
@pytest.mark.parametrize("miner", [name for name in miner_names() if name != "none"])
def test_structural_objectives_mine_either_way(miner, mining, make_maps):
    sizes = {"num_classes": 5, "embedding_dim": 16, "generator": torch.Generator().manual_seed(0)}
    maps, labels = make_maps(noise=3.0)
    objective = build_objective("margin_diml", miner=miner, mining=mining, **sizes)
    objective(Regions.from_maps(maps), labels).backward()
    assert maps.grad.abs().max() > 0
    assert objective.options["mining"] == mining


# ---- The library's own losses and miners -----------------------------------------------------------------------------


def test_the_guide_names_every_loss_of_the_library():
    every = {name for name in dir(losses) if inspect.isclass(getattr(losses, name))}
    assert set(LOSS_ROWS) == every - WRAPPERS - ABSTRACT


def _arguments(name: str, width: int, size: int) -> dict[str, object]:
    """What a loss needs to be built: `width` of packed regions, `size` of a region proxy."""
    special = {
        "ManifoldLoss": {"l": width},
        "MarginLoss": {},
        "P2SGradLoss": {"descriptors_dim": width, "num_classes": 4},
        "RankedListLoss": {"margin": 0.4, "Tn": 5},
    }
    if name in special:
        return special[name]
    proxies = (
        "ArcFace",
        "CosFace",
        "LargeMargin",
        "NormalizedSoftmax",
        "Proxy",
        "SoftTriple",
        "SphereFace",
        "SubCenter",
    )
    return {"num_classes": 4, "embedding_size": size} if name.startswith(proxies) else {}


@pytest.mark.parametrize("kind", [StructuralSimilarity, StructuralDistance])
@pytest.mark.parametrize("name", LOSS_ROWS)
def test_losses_of_the_library_do_as_the_guide_says(name, kind, make_maps):
    maps, labels = make_maps(dim=8)
    packed = pack_regions(Regions.from_maps(maps))
    distance = kind(4)
    expected = LOSS_ROWS[name][0 if kind is StructuralSimilarity else 1]
    torch.manual_seed(0)

    def run() -> torch.Tensor:
        with warnings.catch_warnings():  # its histogram loss indexes with lists, which torch warns of
            warnings.filterwarnings("ignore", message="Using a non-tuple sequence")
            arguments = _arguments(name, packed.shape[1], packed.shape[1] - 8)
            return getattr(losses, name)(distance=distance, **arguments)(packed, labels)

    if expected == "refused":
        with pytest.raises((AssertionError, ValueError, RuntimeError)):
            run()
        return
    asked = []
    distance.register_forward_hook(lambda *_: asked.append(True))
    loss = run()
    loss.sum().backward()
    assert bool(asked) == (expected != "ignored")
    assert loss.isfinite().all()
    assert maps.grad.isfinite().all()
    assert maps.grad.abs().max() > 0
    assert expected == "ignored" or (expected == "region proxies") == ("embedding_size" in _arguments(name, 1, 1))


@pytest.mark.parametrize("kind", [StructuralSimilarity, StructuralDistance])
@pytest.mark.parametrize("name", re.findall(r"`(\w+Miner)`", GUIDE.split("Miners: ")[1].split("(our")[0]))
def test_miners_of_the_library_do_as_the_guide_says(name, kind, make_maps):
    maps, labels = make_maps(dim=8)
    special = {
        "UniformHistogramMiner": {"num_bins": 10, "pos_per_bin": 5, "neg_per_bin": 5},
        "PairMarginMiner": {"pos_margin": 0.5, "neg_margin": 1.0},
    }
    make = getattr(miners, name)
    if name in ("AngularMiner", "DistanceWeightedMiner"):
        with pytest.raises(AssertionError):
            make(distance=kind(4))
        return
    found = make(distance=kind(4), **special.get(name, {}))(pack_regions(Regions.from_maps(maps)), labels)
    assert max(len(part) for part in found) > 0


@pytest.mark.parametrize("block", re.findall(r"```python\n(.*?)```", GUIDE, flags=re.DOTALL))
def test_examples_of_the_guide_run(block, capsys):
    exec(compile(block, "docs/objectives.md", "exec"), {})
    assert capsys.readouterr().out
