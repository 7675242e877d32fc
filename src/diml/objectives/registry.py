"""Which objectives and miners there are, and which go together."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Final, Literal, get_args, get_type_hints

import torch
from pytorch_metric_learning.distances import DotProductSimilarity, LpDistance
from pytorch_metric_learning.miners import BaseMiner

from diml.objectives import miners, recipes
from diml.objectives.distances import StructuralDistance, StructuralSimilarity
from diml.objectives.multisimilarity import MultiSimilarityMiner

Similarity = Literal["pooled", "structural"]

#: "works": a structural distance takes the place of the usual one. "proxies": region proxies as well. Otherwise the
#: reason why not.
Structural = str

TRIPLET_MINERS: Final = {
    "distance": miners.DistanceWeightedMiner,
    "semihard": miners.SemihardMiner,
    "softhard": miners.SoftHardMiner,
    "random": miners.RandomMiner,
    "intra_random": miners.IntraRandomMiner,
    "random_distance": miners.RandomDistanceMiner,
    "rho_distance": miners.RhoDistanceMiner,
    "parametric": miners.ParametricMiner,
}
_ALL: Final = (*TRIPLET_MINERS, "multisimilarity", "none")
#: Losses over a matrix of pairs: a pair cannot be positive and negative at once, as it can among triplets of one class.
_MATRIX: Final = tuple(name for name in _ALL if name != "intra_random")
_NONE: Final = ("none",)


@dataclass(frozen=True)
class Entry:
    """One objective: its recipe, the miners it takes (the first is the default) and what "structural" means for it."""

    make: recipes.Maker
    miners: tuple[str, ...]
    structural: Structural = "works"


def _first(name: str, allowed: Iterable[str]) -> tuple[str, ...]:
    return (name, *(other for other in allowed if other != name))


OBJECTIVES: Final[dict[str, Entry]] = {
    "margin": Entry(recipes.margin, _ALL),
    "multisimilarity": Entry(recipes.multisimilarity, _first("multisimilarity", _MATRIX)),
    "triplet": Entry(recipes.triplet, _ALL),
    "contrastive": Entry(recipes.contrastive, _ALL),
    "quadruplet": Entry(recipes.quadruplet, _ALL),
    "npair": Entry(recipes.npair, _NONE),
    "lifted": Entry(recipes.lifted, _first("none", _MATRIX)),
    "angular": Entry(recipes.angular, _NONE, "its angles need points of one Euclidean space"),
    "histogram": Entry(recipes.histogram, _first("none", _ALL)),
    "snr": Entry(recipes.snr, _ALL, "it is defined by its own distance, the ratio of two variances"),
    "proxynca": Entry(recipes.proxynca, _NONE, "proxies"),
    "proxyanchor": Entry(recipes.proxyanchor, _NONE, "proxies"),
    "softtriple": Entry(recipes.softtriple, _NONE, "proxies"),
    "arcface": Entry(recipes.arcface, _NONE, "its margin is an angle between an embedding and a class weight"),
    "softmax": Entry(recipes.softmax, _NONE, "proxies"),
    "adversarial_separation": Entry(
        recipes.adversarial_separation,
        ("distance", "semihard", "softhard", "random", "rho_distance", "parametric"),
        "it cuts one embedding into slices",
    ),
}

#: Names of the paper's two trainings, for an objective with similarity "structural".
DIML_NAMES: Final = {"margin_diml": "margin", "multisimilarity_diml": "multisimilarity"}


def objective_names() -> tuple[str, ...]:
    """Names that `build_objective` knows."""
    return (*OBJECTIVES, *DIML_NAMES)


def miner_names() -> tuple[str, ...]:
    """Names of the miners, "none" among them; see `allowed_miners` for what goes with what."""
    return _ALL


def allowed_miners(name: str, similarity: Similarity | None = None) -> tuple[str, ...]:
    """Miners that go with an objective, the default first.

    Args:
        name: one of `objective_names()`.
        similarity: "pooled" or "structural"; None for the objective's own.

    Raises:
        ValueError: an unknown name, or a similarity the objective does not work with.

    Example:
        >>> allowed_miners("npair")
        ('none',)
    """
    entry, _ = lookup(name, similarity)
    return entry.miners


def option_types(name: str, miner: str | None = None) -> dict[str, Any]:
    """Types of the options that `build_objective` takes as plain values, for who reads them from a text.

    Args:
        name: one of `objective_names()`.
        miner: one of `miner_names()`, whose options have the prefix `miner_`; None for the objective's own.

    Returns:
        Option -> annotation, such as float, `float | None` or `tuple[str, ...]`.

    Raises:
        ValueError: an unknown name.

    Example:
        >>> option_types("margin")["beta"]
        <class 'float'>
    """
    entry, _ = lookup(name, None)
    miner = entry.miners[0] if miner is None else miner
    check_name("miner", miner, _ALL)
    found = _hints(entry.make, defaults(entry.make)) | {"mining": str}
    found |= {"marginals": str, "epsilon": float, "tolerance": float, "max_iterations": int}
    if miner == "multisimilarity":
        return found | {"miner_epsilon": float}
    own: Iterable[str] = miner_defaults(miner) if miner != "none" else ()
    for maker in _initialisers(miner):
        found |= {f"miner_{option}": hint for option, hint in _hints(maker, own).items()}
    return found


def _hints(maker: Callable[..., Any], names: Iterable[str]) -> dict[str, Any]:
    """Annotations of those parameters of a function that are among `names`."""
    hints = get_type_hints(maker)
    return {name: hints[name] for name in names if name in hints}


def lookup(name: str, similarity: Similarity | None) -> tuple[Entry, bool]:
    """The entry of a name, and whether it is to be structural; ValueError for what cannot work, naming what can."""
    check_name("name", name, objective_names())
    if similarity is not None:
        check_name("similarity", similarity, get_args(Similarity))
    entry = OBJECTIVES[DIML_NAMES.get(name, name)]
    if name in DIML_NAMES and similarity == "pooled":
        raise ValueError(f"similarity: {name!r} is structural; for 'pooled' take {DIML_NAMES[name]!r}")
    structural = name in DIML_NAMES or similarity == "structural"
    if structural and entry.structural not in ("works", "proxies"):
        can = [other for other, its in OBJECTIVES.items() if its.structural in ("works", "proxies")]
        raise ValueError(f"similarity: {name!r} does not work with 'structural', {entry.structural}; allowed: {can}")
    return entry, structural


def make_miner(
    name: str,
    options: dict[str, Any],
    *,
    dim: int,
    structural: bool,
    num_regions: int | None,
    matching: dict[str, Any],
    generator: torch.Generator | None,
) -> tuple[BaseMiner | None, dict[str, Any]]:
    """Build a miner on pooled vectors, or on structural distances, and return it with its resolved options."""
    if name == "none":
        known(options, {}, "miner 'none'", prefix="miner_")
        return None, {}
    resolved = miner_defaults(name)
    resolved |= known(options, resolved, f"miner {name!r}", prefix="miner_")
    if name == "multisimilarity":
        similarity = DotProductSimilarity(normalize_embeddings=False)
        distance = StructuralSimilarity(num_regions, **matching) if structural else similarity
        return MultiSimilarityMiner(distance=distance, **resolved), resolved
    maker = TRIPLET_MINERS[name]
    extra = {"dim": dim} if issubclass(maker, miners.DistanceWeightedMiner) else {}
    distance = StructuralDistance(num_regions, **matching) if structural else LpDistance(normalize_embeddings=False)
    return maker(distance=distance, generator=generator, **extra, **resolved), resolved


def miner_defaults(name: str) -> dict[str, Any]:
    """Options of a miner and their defaults, those of its base classes first."""
    if name == "multisimilarity":
        return {"epsilon": 0.1}
    found: dict[str, Any] = {}
    for maker in _initialisers(name):
        found |= defaults(maker)
    return {key: value for key, value in found.items() if key not in ("distance", "generator", "dim")}


def _initialisers(miner: str) -> list[Callable[..., Any]]:
    """What builds a miner of triplets, its base classes' first; nothing for other miners."""
    kinds = reversed(TRIPLET_MINERS[miner].__mro__) if miner in TRIPLET_MINERS else ()
    own = [vars(kind).get("__init__") for kind in kinds if issubclass(kind, miners.TripletMiner)]
    return [maker for maker in own if maker is not None]


def defaults(maker: Callable[..., Any]) -> dict[str, Any]:
    """Keyword-only parameters of a function and their defaults."""
    parameters = inspect.signature(maker).parameters.values()
    return {part.name: part.default for part in parameters if part.kind is part.KEYWORD_ONLY}


def known(options: dict[str, Any], standard: dict[str, Any], owner: str, prefix: str = "") -> dict[str, Any]:
    """The options, when all have a default in `standard`; otherwise ValueError naming the nearest and all there are."""
    for name in options:
        if name not in standard:
            near = difflib.get_close_matches(name, standard, n=1)
            hint = f", did you mean {prefix}{near[0]}?" if near else ""
            names = [prefix + other for other in standard] or "none"
            raise ValueError(f"options: {owner} has no {prefix}{name}{hint}; it has {names}")
    return options


def check_name(argument: str, name: str, allowed: Iterable[str]) -> None:
    """ValueError that names the nearest and all allowed names."""
    allowed = tuple(allowed)
    if name not in allowed:
        near = difflib.get_close_matches(str(name), allowed, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise ValueError(f"{argument}: unknown {name!r}; {hint}allowed: {allowed}")
