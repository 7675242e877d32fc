"""Every objective x similarity x miner, and every loss and miner of PML, behaves as `docs/objectives.md` says."""

from __future__ import annotations

import inspect
import re
import warnings
from pathlib import Path

import pytest
import torch
from pytorch_metric_learning import losses, miners

from diml.matching import Regions
from diml.objectives import StructuralDistance, StructuralSimilarity, build_objective, objective_names, pack_regions
from diml.objectives.objective import (
    DIML_NAMES,
    MINERS,
    OBJECTIVES,
    StructuralSupport,
    allowed_miners,
    defaults,
    miner_defaults,
)

GUIDE = (Path(__file__).parents[3] / "docs" / "objectives.md").read_text()
WRAPPERS = {"BaseLossWrapper", "CrossBatchMemory", "MultipleLosses", "SelfSupervisedLoss"}
SUPPORT = {
    StructuralSupport.PAIRS: "works",
    StructuralSupport.PROXIES: "region proxies",
    StructuralSupport.NONE: "refused",
}
ABSTRACT = {"BaseMetricLossFunction", "GenericPairLoss", "EmbeddingRegularizerMixin", "WeightRegularizerMixin"}


def _rows(heading: str) -> list[tuple[str, list[str]]]:
    """Rows of the table under a heading of the guide: the first cell, and the others."""
    section = GUIDE.split(f" {heading}\n", 1)[1].split("\n#")[0]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in section.splitlines() if line[:1] == "|"]
    return [(row[0], row[1:]) for row in rows[2:]]


def _table(heading: str) -> dict[str, list[str]]:
    """The same by the first word of the first cell."""
    return {first.split(" ")[0].strip("`"): others for first, others in _rows(heading)}


OBJECTIVE_ROWS = _table("Objectives, similarities, miners")
LOSS_ROWS = _table("Losses of PML")
MINER_ROWS = {
    miner: works for parts, (works, _) in _rows("Other parts of PML") for miner in re.findall(r"`(\w+Miner)`", parts)
}


def _works(name: str, similarity: str) -> bool:
    if name in DIML_NAMES:
        return similarity == "structural"
    return OBJECTIVE_ROWS[name][0 if similarity == "pooled" else 1] != "refused"


def test_the_guide_names_every_objective_and_its_miners():
    assert set(OBJECTIVE_ROWS) == set(OBJECTIVES)
    assert set(OBJECTIVE_ROWS) | set(DIML_NAMES) == set(objective_names())
    for name, (pooled, structural, chosen, _) in OBJECTIVE_ROWS.items():
        assert pooled == "works"
        entry = OBJECTIVES[name]
        assert structural == SUPPORT[entry.structural]
        assert bool(entry.reason) == (entry.structural is StructuralSupport.NONE)
        listed = re.findall(r"`(\w+)`", chosen)
        allowed = allowed_miners(name)
        assert allowed[0] == listed[0]
        if "all others" in chosen:
            assert set(allowed) == set(MINERS) - set(listed[1:])
        else:
            assert list(allowed) == listed


def test_the_guide_names_every_option():
    options, of_miners = _table("Options and their defaults"), _table("Miners")
    for name, entry in OBJECTIVES.items():
        assert set(re.findall(r"`([a-z0-9_]+)`", options[name][0])) - {"distance"} == set(defaults(entry.make)), name
    assert set(of_miners) == set(MINERS)
    inherited = {"cutoff", "upper_cutoff"}
    for name in set(MINERS) - {"none"}:
        listed = set(re.findall(r"`([a-z0-9_]+)`", of_miners[name][1])) - {"distance"}
        assert listed in (set(miner_defaults(name)), set(miner_defaults(name)) - inherited), name


@pytest.mark.parametrize("miner", MINERS)
@pytest.mark.parametrize("similarity", ["pooled", "structural"])
@pytest.mark.parametrize("name", objective_names())
def test_every_combination_learns_or_is_refused(name, similarity, miner, make_maps):
    sizes = {"num_classes": 5, "embedding_dim": 16, "num_regions": 4}
    generator = torch.Generator().manual_seed(0)
    if not _works(name, similarity) or miner not in allowed_miners(name, similarity):
        with pytest.raises(ValueError, match=r"allowed|choose"):
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
@pytest.mark.parametrize("miner", [name for name in MINERS if name != "none"])
def test_structural_objectives_mine_either_way(miner, mining, make_maps):
    sizes = {"num_classes": 5, "embedding_dim": 16, "generator": torch.Generator().manual_seed(0)}
    maps, labels = make_maps(noise=3.0)
    objective = build_objective("margin_diml", miner=miner, mining=mining, **sizes)
    objective(Regions.from_maps(maps), labels).backward()
    assert maps.grad.abs().max() > 0
    assert objective.options["mining"] == mining


# ---- Losses and miners of PML ----------------------------------------------------------------------------------------


def test_the_guide_names_every_loss_of_pml():
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
def test_losses_of_pml_do_as_the_guide_says(name, kind, make_maps):
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
@pytest.mark.parametrize("name", MINER_ROWS)
def test_miners_of_pml_do_as_the_guide_says(name, kind, make_maps):
    maps, labels = make_maps(dim=8)
    special = {
        "UniformHistogramMiner": {"num_bins": 10, "pos_per_bin": 5, "neg_per_bin": 5},
        "PairMarginMiner": {"pos_margin": 0.5, "neg_margin": 1.0},
    }
    make = getattr(miners, name)
    if MINER_ROWS[name] == "no":
        with pytest.raises(AssertionError):
            make(distance=kind(4))
        return
    found = make(distance=kind(4), **special.get(name, {}))(pack_regions(Regions.from_maps(maps)), labels)
    assert max(len(part) for part in found) > 0


@pytest.mark.parametrize("block", re.findall(r"```python\n(.*?)```", GUIDE, flags=re.DOTALL))
def test_examples_of_the_guide_run(block, capsys):
    exec(compile(block, "docs/objectives.md", "exec"), {})
    assert capsys.readouterr().out
