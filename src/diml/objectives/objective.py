"""`Objective`, what training minimises: a loss, its miner and its learning rates as one module; `build_objective`.

An objective is built of loss and miner objects of pytorch-metric-learning (PML), or by a name of `OBJECTIVES`. A
named objective has a recipe: a function of `RecipeInputs` (what data and model determine) and keyword options, whose
defaults are those of the authors' runs. It returns a `Recipe`.

With similarity "structural", a loss between images gets a structural distance. A loss with proxies gets proxies that
are region maps, R x D numbers each, compared by the same matching; their pooled vector is the mean of the regions. This
is our own interpretation: the ProxyAnchor + DIML that the paper reports was not released.

Legend: N images, C classes, R regions, D channels, X = (R + 1) * D numbers of a packed image.
"""

from __future__ import annotations

import difflib
import enum
import functools
import inspect
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, Final, Literal, get_args, get_type_hints

import torch
import torch.nn.functional as F
from pytorch_metric_learning import losses
from pytorch_metric_learning.distances import BaseDistance, CosineSimilarity, DotProductSimilarity, LpDistance
from pytorch_metric_learning.miners import BaseMiner
from pytorch_metric_learning.reducers import AvgNonZeroReducer, BaseReducer, MeanReducer, MultipleReducers
from pytorch_metric_learning.regularizers import BaseRegularizer, LpRegularizer, ZeroMeanRegularizer
from torch import Tensor, nn

from diml.extending import need_registered, registered_names
from diml.matching import Matcher, Regions
from diml.objectives import miners
from diml.objectives.distances import SignalToNoiseDistance, StructuralDistance, StructuralSimilarity, pack_regions
from diml.objectives.losses import (
    PARTS,
    AdversarialSeparation,
    AngularLoss,
    CenterDiversity,
    HistogramLoss,
    QuadrupletLoss,
)

Similarity = Literal["pooled", "structural"]
Mining = Literal["pooled", "structural"]

#: What a loss or a miner is called with: packed regions, unit vectors, or vectors as they were given to the objective.
Sees = Literal["regions", "unit", "given"]

_DEFAULT: Final = Matcher()


@dataclass(frozen=True)
class Rate:
    """Parameters `name` (of the loss module; "" for all of them) and their learning rate.

    The learning rate is fixed, or a multiple of the model's.
    """

    name: str
    lr: float | None = None
    multiple: float = 1.0


@dataclass(frozen=True)
class Recipe:
    """A built loss and how to use it.

    Args:
        loss: called with embeddings, labels and mined indices, if there are any.
        rates: learning rates of its parameters.
        unnormalized: whether it is made for embeddings that are not of unit length.
        reads_mined_only: whether it reads no pairs other than (a, p) and (a, n) of mined triplets.
        mines_itself: whether it calls the miner itself.
        resolved: options whose default depends on others.
    """

    loss: nn.Module
    rates: tuple[Rate, ...] = ()
    unnormalized: bool = False
    reads_mined_only: bool = False
    mines_itself: bool = False
    resolved: dict[str, Any] = field(default_factory=dict)


class Objective(nn.Module):
    """What training minimises: `objective(regions, labels)` returns a scalar loss. Made by `build_objective`.

    Attributes:
        name: of the objective, or the class of the loss object.
        options: every setting, resolved, as plain values; to be saved with a run.
        matcher: settings of the structural distances; None where none is compared.
        uses_regions: whether the loss or the miner compares regions; otherwise pooled vectors only.
        unnormalized: whether the loss was made for embeddings that are not normalised (n-pair, lifted, angular). Give
            it those as a tensor. With Regions such a loss gets unit vectors.
        loss, miner: the modules that are called; `miner` is None where there is none, or where the loss calls it.
    """

    def __init__(
        self,
        name: str,
        recipe: Recipe,
        miner: nn.Module | None,
        *,
        loss_sees: Sees,
        miner_sees: Sees,
        options: dict[str, Any],
        num_classes: int | None,
        embedding_dim: int | None,
        num_regions: int | None,
    ) -> None:
        super().__init__()
        self.name, self.options, self.unnormalized = name, options, recipe.unnormalized
        self.num_classes, self.embedding_dim = num_classes, embedding_dim
        self.loss, self.miner = recipe.loss, None if recipe.mines_itself else miner
        self.uses_regions = loss_sees == "regions" or (self.miner is not None and miner_sees == "regions")
        self._loss_sees, self._miner_sees = loss_sees, miner_sees
        self._rates, self._reads_mined_only = recipe.rates, recipe.reads_mined_only
        self._counts: dict[str, Tensor | int] = {}
        self._structural = structural_distances(self)
        self._without_regions = [distance for distance in self._structural if distance.regions is None]
        self.num_regions = _one_count(num_regions, self._structural)
        self.matcher = self._structural[0].matcher if self._structural else None

    def forward(self, regions: Regions | Tensor, labels: Tensor) -> Tensor:
        """Scalar loss of a batch, differentiable, in float32 (float64 for float64 input), also under autocast.

        Args:
            regions: N images. Objectives on pooled vectors also take embeddings (N, D) as a tensor, which a named
                objective normalises unless it is `unnormalized`, and which loss and miner objects get unchanged.
            labels: (N,) integers, from 0 to num_classes - 1 where `num_classes` is known.

        Raises:
            TypeError, ValueError: regions or labels of another kind, shape, D, R or range.
        """
        seen = self._vectors(regions)
        embeddings = seen[self._loss_sees]
        labels = self._check_labels(labels, embeddings)
        self._counts = {}
        with torch.autocast(embeddings.device.type, enabled=False), self._observed():
            chosen = None if self.miner is None else self.miner(seen[self._miner_sees], labels)
            if chosen is None:
                loss = self.loss(embeddings, labels)
            else:
                self._count_mined(chosen)
                if self._reads_mined_only and len(chosen) == 3:
                    a, p, n = chosen
                    for distance in self._structural:
                        distance.only(torch.stack([torch.cat([a, a]), torch.cat([p, n])]))
                loss = self.loss(embeddings, labels, chosen)
        if not isinstance(loss, Tensor) or loss.numel() != 1:
            got = tuple(loss.shape) if isinstance(loss, Tensor) else type(loss).__name__
            raise TypeError(f"loss: {self.name} needs to return a scalar, got {got}; choose a reducer that averages")
        return loss.reshape(())

    @property
    def statistics(self) -> dict[str, int]:
        """Counts of the last call, for logs.

        `triplets`, or `positive_pairs` and `negative_pairs`, as mined; `active`, terms above zero; `unconverged_pairs`,
        pairs whose transport plan stopped at `max_iterations`.
        """
        return {name: int(value) for name, value in self._counts.items()}

    def parameter_groups(self, lr: float | None = None, weight_decay: float = 0.0) -> list[dict[str, Any]]:
        """Parameters of the loss (beta, proxies, class weights) for an optimiser, each with its learning rate.

        Args:
            lr: the model's learning rate, for rates that are a multiple of it; without it those groups have no `lr` and
                get the optimiser's own.
            weight_decay: of all groups; 0 as in the authors' runs.

        Returns:
            Dictionaries with `params`, `name`, `weight_decay` and usually `lr`; none for a loss without parameters.

        Example:
            >>> torch.optim.Adam([{"params": model.parameters()}, *objective.parameter_groups(lr=1e-5)], lr=1e-5)
        """
        groups = []
        for rate in self._rates:
            held = getattr(self.loss, rate.name) if rate.name else self.loss
            params = [held] if isinstance(held, nn.Parameter) else list(held.parameters())
            if not params:
                continue
            group = {"params": params, "name": rate.name or "loss", "weight_decay": weight_decay}
            own = rate.lr if rate.lr is not None or lr is None else rate.multiple * lr
            groups.append(group if own is None else group | {"lr": own})
        return groups

    def extra_repr(self) -> str:
        """Shown by print."""
        return f"name={self.name!r}, uses_regions={self.uses_regions}"

    def _vectors(self, regions: Regions | Tensor) -> dict[Sees, Tensor]:
        """What losses and miners can be called with, in float32 or better: (N, X) and (N, D)."""
        if isinstance(regions, Tensor):
            return self._given(regions)
        if not isinstance(regions, Regions):
            raise TypeError(f"regions: need Regions, got {type(regions).__name__}; embed images first")
        if self.embedding_dim not in (None, regions.dim):
            raise ValueError(f"regions: need embedding_dim = {self.embedding_dim} channels, got {regions.dim}")
        pooled = regions.pooled.to(torch.promote_types(regions.pooled.dtype, torch.float32))
        seen: dict[Sees, Tensor] = {"unit": pooled, "given": pooled}
        if not self.uses_regions:
            return seen
        if self.num_regions not in (None, regions.num_regions):
            raise ValueError(f"regions: need num_regions = {self.num_regions} an image, got {regions.num_regions}")
        for distance in self._without_regions:
            distance.regions = regions.num_regions
        return seen | {"regions": pack_regions(regions)}

    def _given(self, embeddings: Tensor) -> dict[Sees, Tensor]:
        if self.uses_regions:
            raise TypeError(f"regions: {self.name!r} compares regions; need Regions, got a tensor")
        dim = self.embedding_dim
        if embeddings.ndim != 2 or dim not in (None, embeddings.shape[1]) or not embeddings.is_floating_point():
            got = f"{tuple(embeddings.shape)} {embeddings.dtype}"
            raise ValueError(f"regions: need Regions or float embeddings (N, {dim or 'D'}), got {got}")
        embeddings = embeddings.to(torch.promote_types(embeddings.dtype, torch.float32))
        return {"given": embeddings, "unit": F.normalize(embeddings, dim=1)}

    def _check_labels(self, labels: Tensor, embeddings: Tensor) -> Tensor:
        if not isinstance(labels, Tensor) or labels.is_floating_point() or labels.dtype == torch.bool:
            got = labels.dtype if isinstance(labels, Tensor) else type(labels).__name__
            raise TypeError(f"labels: need an integer tensor (N,), got {got}")
        if labels.shape != embeddings.shape[:1] or len(labels) == 0:
            raise ValueError(f"labels: need shape ({len(embeddings)},), N >= 1, got {tuple(labels.shape)}")
        low, high = int(labels.min()), int(labels.max())
        if self.num_classes is not None and (low < 0 or high >= self.num_classes):
            raise ValueError(f"labels: need 0 to num_classes - 1 = {self.num_classes - 1}, got {low} to {high}")
        return labels.to(embeddings.device, torch.int64)

    @contextmanager
    def _observed(self) -> Iterator[None]:
        """Within this block structural matrices are shared and active terms are counted."""
        penalties = {
            part for module in self.modules() if isinstance(module, BaseRegularizer) for part in module.modules()
        }
        with ExitStack() as stack:
            for distance in self._structural:
                stack.enter_context(distance.sharing())
            for module in set(self.modules()) - penalties:
                if isinstance(module, BaseReducer) and not isinstance(module, MultipleReducers):
                    stack.callback(module.register_forward_pre_hook(self._count_active).remove)
            yield
        if self._structural:
            self._counts["unconverged_pairs"] = sum(distance.unconverged_pairs for distance in self._structural)

    def _count_mined(self, chosen: tuple[Tensor, ...]) -> None:
        if len(chosen) == 3:
            self._counts["triplets"] = len(chosen[0])
        else:
            self._counts |= {"positive_pairs": len(chosen[0]), "negative_pairs": len(chosen[2])}

    def _count_active(self, module: nn.Module, arguments: tuple[Any, ...]) -> None:
        """Before a reducer of PML averages: count its terms above zero."""
        for part in arguments[0].values():
            if isinstance(part["losses"], Tensor) and part["reduction_type"] != "already_reduced":
                self._counts["active"] = self._counts.get("active", 0) + (part["losses"].detach() > 0).sum()


def build_objective(
    loss: str | nn.Module,
    *,
    num_classes: int | None = None,
    embedding_dim: int | None = None,
    similarity: Similarity | None = None,
    miner: str | nn.Module | None = None,
    mining: Mining | None = None,
    num_regions: int | None = None,
    matcher: Matcher | Mapping[str, Any] = _DEFAULT,
    generator: torch.Generator | None = None,
    **options: Any,
) -> Objective:
    """Build what training minimises, from objects of PML or by name.

    Args:
        loss: a loss object that is called with (embeddings, labels, indices_tuple), as those of PML are; or one of
            `objective_names()`. "margin_diml" and "multisimilarity_diml" are "margin" and "multisimilarity" with
            similarity "structural".
        num_classes: C, 1 or more; labels run from 0 to C - 1. Needed with a name.
        embedding_dim: D of pooled and region vectors. Needed with a name.
        similarity: "pooled" compares pooled vectors; "structural" compares regions. The default of a name is "pooled";
            a loss object gets packed regions where it holds a StructuralDistance or StructuralSimilarity.
        miner: a miner object that is called with (embeddings, labels); or a name, see `docs/objectives.md`; "none" for
            all tuples, the default of a loss object.
        mining: what the miner sees, "pooled" vectors or "structural" distances. Structural objectives mine on pooled
            vectors by default, except with miner "multisimilarity", which is part of its loss. A miner object gets
            packed regions where it holds a structural distance.
        num_regions: R; needed for region proxies; otherwise taken from the first batch when omitted.
        matcher: settings of the structural distances that are built here, or a dictionary of them. Objects have their
            own.
        generator: CPU generator for our miners and for quadruplets; the global one when omitted.
        options: of the objective (see `docs/objectives.md`); of its named miner, with prefix `miner_`; of a loss
            object, `loss_lr`, the learning rate of its parameters (the model's when omitted).

    Returns:
        Objective, a module with its own parameters where the loss has any.

    Raises:
        ValueError: an unknown name or option, or a combination that cannot work; the message lists the allowed ones.
        TypeError: a loss or miner that is neither a name nor a module.

    Example:
        >>> distance = StructuralDistance(regions=16, matcher=Matcher())
        >>> objective = build_objective(losses.MarginLoss(distance=distance), miner=miners.TripletMarginMiner(0.2))
        >>> objective = build_objective("margin_diml", num_classes=100, embedding_dim=128, beta=1.2)
        >>> loss = objective(Regions.from_maps(model(images)), labels)
    """
    for argument, module in (("loss", loss), ("miner", miner)):
        if not isinstance(module, str | nn.Module) and not (module is None and argument == "miner"):
            raise TypeError(f"{argument}: need a name or a module in the form of PML, got {type(module).__name__}")
    for argument, value in (("num_classes", num_classes), ("embedding_dim", embedding_dim)):
        if not (isinstance(value, int) and value >= 1) and not (value is None and isinstance(loss, nn.Module)):
            raise ValueError(f"{argument}: need an integer of 1 or more, got {value!r}")
    order = _Order(
        num_classes=num_classes,
        embedding_dim=embedding_dim,
        similarity=similarity,
        miner=miner,
        mining=mining,
        num_regions=num_regions,
        matcher=matcher if isinstance(matcher, Matcher) else Matcher.from_dict(matcher),
        generator=generator,
    )
    return _of_module(loss, order, options) if isinstance(loss, nn.Module) else _of_name(loss, order, options)


@dataclass(frozen=True, kw_only=True)
class _Order:
    """Arguments of `build_objective`."""

    num_classes: int | None
    embedding_dim: int | None
    similarity: Similarity | None
    miner: str | nn.Module | None
    mining: Mining | None
    num_regions: int | None
    matcher: Matcher
    generator: torch.Generator | None

    @property
    def sizes(self) -> dict[str, Any]:
        """Sizes of the data, as saved with the options."""
        return {
            "num_classes": self.num_classes,
            "embedding_dim": self.embedding_dim,
            "num_regions": self.num_regions,
        }


def _of_name(name: str, order: _Order, options: dict[str, Any]) -> Objective:
    """A named objective."""
    entry, structural = lookup(name, order.similarity)
    chosen = entry.miners[0] if order.miner is None else order.miner
    own_miner = isinstance(chosen, nn.Module) or chosen in registered_names("miners")
    if entry.miners == _NONE if own_miner else chosen not in entry.miners:
        raise ValueError(f"miner: {name!r} does not work with {_label(chosen)!r}; allowed: {entry.miners}")
    if structural and entry.structural is StructuralSupport.PROXIES and order.num_regions is None:
        raise ValueError(f"num_regions: {name!r} with 'structural' has proxies of R regions; give R, e.g. 16")
    assert order.num_classes is not None
    assert order.embedding_dim is not None
    own, of_miner = _split(options, defaults(entry.make), f"objective {name!r}")
    miner = _miner(chosen, order, of_miner, structural=structural)
    recipe = entry.make(
        RecipeInputs(
            num_classes=order.num_classes,
            dim=order.embedding_dim,
            structural=structural,
            num_regions=order.num_regions,
            matcher=order.matcher,
            miner_name=_label(chosen),
            miner=miner.module,
            generator=order.generator,
        ),
        **own,
    )
    saved = {"loss": name, **order.sizes, "similarity": "structural" if structural else "pooled"}
    saved |= miner.saved | own | recipe.resolved
    loss_sees: Sees = "regions" if structural else "given" if recipe.unnormalized else "unit"
    return _built(name, recipe, miner, loss_sees, saved, order)


def _of_module(loss: nn.Module, order: _Order, options: dict[str, Any]) -> Objective:
    """The objective of a loss object."""
    structural = _compares_regions(loss, "similarity", order.similarity)
    own, of_miner = _split(options, {"loss_lr": None}, f"the loss object {_label(loss)}")
    miner = _miner("none" if order.miner is None else order.miner, order, of_miner, structural=structural)
    recipe = Recipe(loss, (Rate("", lr=own["loss_lr"]),))
    saved = {"loss": _label(loss), **order.sizes, "similarity": "structural" if structural else "pooled"}
    return _built(_label(loss), recipe, miner, "regions" if structural else "given", saved | miner.saved | own, order)


def _built(
    name: str, recipe: Recipe, miner: _Miner, loss_sees: Sees, saved: dict[str, Any], order: _Order
) -> Objective:
    """The objective, its options with the matcher where one is used."""
    sizes = order.sizes
    objective = Objective(
        name, recipe, miner.module, loss_sees=loss_sees, miner_sees=miner.sees, options=saved, **sizes
    )
    if objective.matcher is not None:
        objective.options |= {"matcher": objective.matcher.to_dict()}
    return objective


def _label(part: str | nn.Module) -> str:
    """The name of a loss or miner, or the class of an object."""
    return part if isinstance(part, str) else type(part).__name__


def structural_distances(module: nn.Module) -> list[StructuralSimilarity | StructuralDistance]:
    """Structural similarities and distances that a loss or a miner holds, each once."""
    return [part for part in module.modules() if isinstance(part, StructuralSimilarity | StructuralDistance)]


def _compares_regions(module: nn.Module, argument: str, wanted: str | None) -> bool:
    """Whether an object is to be called with packed regions; ValueError where that contradicts `wanted`."""
    if wanted is not None:
        check_name(argument, wanted, get_args(Similarity))
    if wanted == "pooled" and structural_distances(module):
        raise ValueError(f"{argument}: {_label(module)} holds a structural distance; need 'structural', got 'pooled'")
    return wanted == "structural" or bool(structural_distances(module))


def _one_count(num_regions: int | None, distances: Iterable[StructuralSimilarity | StructuralDistance]) -> int | None:
    """R as given and as the distances have it; ValueError where they disagree."""
    every = (num_regions, *(distance.regions for distance in distances))
    counts = {count for count in every if count is not None}
    if len(counts) > 1:
        raise ValueError(f"num_regions: need one number of regions for loss and miner, got {sorted(counts)}")
    return next(iter(counts), None)


def _split(options: dict[str, Any], own: dict[str, Any], owner: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Options of the objective, resolved, and those of the miner, as given."""
    of_miner = {key.removeprefix("miner_"): value for key, value in options.items() if key.startswith("miner_")}
    rest = {key: value for key, value in options.items() if not key.startswith("miner_")}
    for key in rest.keys() & _DEFAULT.to_dict().keys() - own.keys():
        raise ValueError(f"options: {key} is a setting of the matcher; give matcher=Matcher({key}={rest[key]!r})")
    return own | known(rest, own, owner), of_miner


# ---- Miners ----------------------------------------------------------------------------------------------------------

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

#: Names of the miners; "none" takes all tuples.
MINERS: Final = (*TRIPLET_MINERS, "multisimilarity", "none")
_NONE: Final = ("none",)


@dataclass(frozen=True)
class _Miner:
    """A built miner, what it is called with, and its options as saved."""

    module: nn.Module | None
    sees: Sees
    saved: dict[str, Any]


def _miner(miner: str | nn.Module, order: _Order, options: dict[str, Any], *, structural: bool) -> _Miner:
    """Build a named miner, or take an object; `structural` says whether the loss compares regions."""
    if isinstance(miner, nn.Module):
        known(options, {}, f"the miner object {_label(miner)}", prefix="miner_")
        sees: Sees = "regions" if _compares_regions(miner, "mining", order.mining) else "given"
        mining = "structural" if sees == "regions" else "pooled"
        return _Miner(miner, sees, {"miner": _label(miner), "mining": mining})
    check_name("miner", miner, miner_names())
    on_regions = _mines_structurally(order.mining, structural, miner)
    saved = {"miner": miner, "mining": "structural" if on_regions else "pooled"}
    resolved = miner_defaults(miner)
    resolved |= known(options, resolved, f"miner {miner!r}", prefix="miner_")
    saved |= {f"miner_{key}": value for key, value in resolved.items()}
    if miner == "none":
        return _Miner(None, "unit", saved)
    distance = _miner_distance(miner, order, on_regions)
    if miner == "multisimilarity":
        return _Miner(miners.MultiSimilarityMiner(distance=distance, **resolved), _seen(on_regions), saved)
    if miner not in TRIPLET_MINERS:
        return _Miner(need_registered("miners", miner)(distance, **resolved), _seen(on_regions), saved)
    maker, extra = TRIPLET_MINERS[miner], {}
    if issubclass(maker, miners.DistanceWeightedMiner):
        if order.embedding_dim is None and on_regions:
            raise ValueError(
                f"embedding_dim: miner {miner!r} on regions needs D to weigh distances; give embedding_dim"
            )
        extra = {"dim": order.embedding_dim}
    return _Miner(maker(distance=distance, generator=order.generator, **extra, **resolved), _seen(on_regions), saved)


def _seen(on_regions: bool) -> Sees:
    return "regions" if on_regions else "unit"


def _miner_distance(miner: str, order: _Order, on_regions: bool) -> BaseDistance:
    """Similarity or distance that a named miner compares with."""
    if miner == "multisimilarity":
        if on_regions:
            return StructuralSimilarity(order.num_regions, order.matcher)
        return DotProductSimilarity(normalize_embeddings=False)
    return (
        StructuralDistance(order.num_regions, order.matcher) if on_regions else LpDistance(normalize_embeddings=False)
    )


def _mines_structurally(mining: Mining | None, structural: bool, miner: str) -> bool:
    """Whether a named miner sees structural distances."""
    if mining is None:
        return structural and miner == "multisimilarity"
    check_name("mining", mining, get_args(Mining))
    if mining == "structural" and not structural:
        raise ValueError("mining: 'structural' needs similarity 'structural'; allowed: ('pooled',)")
    return mining == "structural" and miner != "none"


def miner_names() -> tuple[str, ...]:
    """Names of the miners, those of your own included."""
    return (*MINERS, *registered_names("miners"))


def miner_defaults(name: str) -> dict[str, Any]:
    """Options of a named miner and their defaults, those of its base classes first."""
    if name == "multisimilarity":
        return {"epsilon": 0.1}
    if name not in MINERS:
        return defaults(need_registered("miners", name))
    found: dict[str, Any] = {}
    for maker in _initialisers(name):
        found |= defaults(maker)
    return {key: value for key, value in found.items() if key not in ("distance", "generator", "dim")}


def _initialisers(miner: str) -> list[Callable[..., Any]]:
    """Initialisers of a triplet miner, its base classes' first; none for other miners."""
    kinds = reversed(TRIPLET_MINERS[miner].__mro__) if miner in TRIPLET_MINERS else ()
    own = [vars(kind).get("__init__") for kind in kinds if issubclass(kind, miners.TripletMiner)]
    return [maker for maker in own if maker is not None]


# ---- Recipes ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class RecipeInputs:
    """What a recipe builds for: C classes, D channels, the kind of similarity, and a generator for random draws."""

    num_classes: int
    dim: int
    structural: bool
    num_regions: int | None
    matcher: Matcher
    miner_name: str
    miner: nn.Module | None
    generator: torch.Generator | None

    def similarity(self) -> BaseDistance:
        """Cosine of unit vectors, or the structural similarity."""
        if self.structural:
            return self._shared(StructuralSimilarity(self.num_regions, self.matcher))
        return DotProductSimilarity(normalize_embeddings=False)

    def distance(self, power: float = 1) -> BaseDistance:
        """Euclidean distance of the vectors without normalisation, or the structural distance."""
        if self.structural:
            return self._shared(StructuralDistance(self.num_regions, self.matcher, power=power))
        return LpDistance(normalize_embeddings=False, power=power)

    def _shared(self, distance: StructuralSimilarity | StructuralDistance) -> BaseDistance:
        """The miner's distance where it is the same one, so that its matrix is computed once."""
        own = getattr(self.miner, "distance", None)
        if type(own) is not type(distance) or (own.power, own.matcher) != (distance.power, distance.matcher):
            return distance
        return own

    @property
    def proxy_size(self) -> int:
        """Numbers in one proxy: D, or R * D for a region map."""
        return self.dim * (self.num_regions or 1) if self.structural else self.dim


def _margin(
    given: RecipeInputs,
    *,
    margin: float = 0.2,
    beta: float = 1.2,
    learn_beta: bool = True,
    per_class: bool = True,
    nu: float = 0.0,
    beta_lr: float = 5e-4,
) -> Recipe:
    """Margin loss around a boundary beta (0.6 or 1.2), learnt for each class. Wu et al., ICCV 2017."""
    classes = given.num_classes if per_class else None
    loss = losses.MarginLoss(
        margin, nu=nu, beta=beta, learn_beta=learn_beta, num_classes=classes, distance=given.distance()
    )
    return Recipe(loss, (Rate("beta", lr=beta_lr),) if learn_beta else (), reads_mined_only=True)


def _multisimilarity(
    given: RecipeInputs, *, alpha: float = 2.0, beta: float = 40.0, base: float = 0.5, active_only: bool = True
) -> Recipe:
    """Multi-similarity. Wang et al., CVPR 2019.

    `active_only` averages over the anchors with a mined pair, as the authors do, not over all.
    """
    reducer = AvgNonZeroReducer() if active_only else MeanReducer()
    return Recipe(losses.MultiSimilarityLoss(alpha, beta, base, distance=given.similarity(), reducer=reducer))


def _triplet(given: RecipeInputs, *, margin: float = 0.2, squared: bool = True, active_only: bool = False) -> Recipe:
    """Triplet loss on squared distances. Schroff et al., CVPR 2015."""
    reducer = AvgNonZeroReducer() if active_only else MeanReducer()
    loss = losses.TripletMarginLoss(margin, distance=given.distance(2 if squared else 1), reducer=reducer)
    return Recipe(loss, reads_mined_only=True)


def _contrastive(
    given: RecipeInputs, *, pos_margin: float = 0.0, neg_margin: float = 1.0, active_only: bool = False
) -> Recipe:
    """Contrastive loss. Hadsell, Chopra, LeCun, CVPR 2006 (distances not squared, as in the authors' code)."""
    reducer = AvgNonZeroReducer() if active_only else MeanReducer()
    loss = losses.ContrastiveLoss(pos_margin, neg_margin, distance=given.distance(), reducer=reducer)
    return Recipe(loss, reads_mined_only=True)


def _quadruplet(given: RecipeInputs, *, margin: float = 0.2, margin_others: float = 0.2) -> Recipe:
    """Quadruplet loss, ours. Chen et al., CVPR 2017."""
    return Recipe(QuadrupletLoss(margin, margin_others, given.generator, distance=given.distance()))


def _npair(given: RecipeInputs, *, l2_weight: float = 0.005) -> Recipe:
    """N-pair (multi-class): one pair a class, negatives are the positives of other classes. Sohn, NIPS 2016."""
    return Recipe(
        losses.NPairsLoss(distance=given.similarity(), **_l2(given, l2_weight)), unnormalized=not given.structural
    )


def _lifted(
    given: RecipeInputs, *, neg_margin: float = 1.0, pos_margin: float = 0.0, l2_weight: float = 0.005
) -> Recipe:
    """Generalised lifted structure. Hermans, Beyer, Leibe, 2017, page 4."""
    loss = losses.GeneralizedLiftedStructureLoss(
        neg_margin, pos_margin, distance=given.distance(), **_l2(given, l2_weight)
    )
    return Recipe(loss, unnormalized=not given.structural)


def _angular(
    given: RecipeInputs,
    *,
    alpha: float = 45.0,
    angular_weight: float = 1.0,
    npair_weight: float = 0.0,
    l2_weight: float = 0.0,
) -> Recipe:
    """Angular loss, alpha in degrees, by itself or with n-pair. Wang et al., ICCV 2017.

    The authors' runs have angular_weight 2, npair_weight 1, l2_weight 0.005.
    """
    if angular_weight <= 0:
        raise ValueError(f"angular_weight: need more than 0, got {angular_weight}; for none of it take 'npair'")
    parts: list[nn.Module] = [AngularLoss(alpha, **_l2(given, l2_weight / angular_weight))]
    weights = [angular_weight]
    if npair_weight:
        parts.append(losses.NPairsLoss(distance=DotProductSimilarity(normalize_embeddings=False)))
        weights.append(npair_weight)
    return Recipe(losses.MultipleLosses(parts, weights=weights), unnormalized=True)


def _histogram(given: RecipeInputs, *, nodes: int = 65) -> Recipe:
    """Histogram loss with that many nodes on [-1, 1] (the authors: 65; 11 for SOP). Ustinova & Lempitsky, NIPS 2016."""
    if nodes < 2:
        raise ValueError(f"nodes: need 2 or more, got {nodes}")
    return Recipe(HistogramLoss(n_bins=nodes - 1, distance=given.similarity()))


def _snr(given: RecipeInputs, *, margin: float = 0.2, zero_mean_weight: float | None = None) -> Recipe:
    """Signal-to-noise triplet loss over violated triplets. Yuan et al., CVPR 2019.

    `zero_mean_weight` defaults to 0.005, and to 0 with distance mining, as in the base code.
    """
    weight = (0.0 if given.miner_name == "distance" else 0.005) if zero_mean_weight is None else zero_mean_weight
    extra = {"embedding_regularizer": ZeroMeanRegularizer(), "embedding_reg_weight": weight} if weight else {}
    distance = SignalToNoiseDistance(normalize_embeddings=False)
    loss = losses.TripletMarginLoss(margin, distance=distance, reducer=AvgNonZeroReducer(), **extra)
    return Recipe(loss, resolved={"zero_mean_weight": weight})


def _proxynca(given: RecipeInputs, *, scale: float = 9.0, proxy_lr_multiple: float = 50.0) -> Recipe:
    """Proxy NCA on squared distances. Movshovitz-Attias et al., ICCV 2017; the library sums over *all* proxies.

    `scale` 9 is the authors' length 3 of embeddings and proxies, squared.
    """
    distance = given.distance(2) if given.structural else LpDistance(power=2)
    loss = losses.ProxyNCALoss(given.num_classes, given.proxy_size, softmax_scale=scale, distance=distance)
    return Recipe(loss, (Rate("proxies", multiple=proxy_lr_multiple),))


def _proxyanchor(
    given: RecipeInputs, *, margin: float = 0.1, alpha: float = 32.0, proxy_lr_multiple: float = 100.0
) -> Recipe:
    """Proxy anchor. Kim et al., CVPR 2020, whose proxies learn 100 times as fast as the model."""
    distance = given.similarity() if given.structural else CosineSimilarity()
    loss = losses.ProxyAnchorLoss(given.num_classes, given.proxy_size, margin, alpha, distance=distance)
    return Recipe(loss, (Rate("proxies", multiple=proxy_lr_multiple),))


def _softtriple(
    given: RecipeInputs,
    *,
    centers: int = 2,
    scale: float = 8.0,
    gamma: float = 0.1,
    margin: float = 0.01,
    diversity_weight: float = 0.2,
    center_lr_multiple: float = 1.0,
) -> Recipe:
    """SoftTriple with several centres a class; `gamma` as in the paper (the softmax is over cosine / gamma).

    Qian et al., ICCV 2019, whose own settings are 10 centres, scale 20.
    """
    if centers < 1:
        raise ValueError(f"centers: need 1 or more, got {centers}")
    diverse = centers > 1 and diversity_weight > 0
    extra = {"weight_regularizer": CenterDiversity(centers), "weight_reg_weight": diversity_weight} if diverse else {}
    distance = given.similarity() if given.structural else CosineSimilarity()
    sizes = (given.num_classes, given.proxy_size, centers)
    loss = losses.SoftTripleLoss(*sizes, la=scale, gamma=gamma, margin=margin, distance=distance, **extra)
    return Recipe(loss, (Rate("fc", multiple=center_lr_multiple),))


def _arcface(given: RecipeInputs, *, margin: float = 0.5, scale: float = 16.0, weight_lr: float = 5e-4) -> Recipe:
    """ArcFace, margin in radians. Deng et al., CVPR 2019."""
    loss = losses.ArcFaceLoss(given.num_classes, given.dim, margin=math.degrees(margin), scale=scale)
    return Recipe(loss, (Rate("W", lr=weight_lr),))


def _softmax(given: RecipeInputs, *, temperature: float = 0.05, weight_lr: float = 1e-5) -> Recipe:
    """Normalised softmax. Zhai & Wu, BMVC 2019."""
    loss = losses.NormalizedSoftmaxLoss(
        given.num_classes, given.proxy_size, temperature=temperature, distance=given.similarity()
    )
    return Recipe(loss, (Rate("W", lr=weight_lr),))


def _adversarial_separation(
    given: RecipeInputs,
    *,
    parts: tuple[str, ...] = ("discriminative", "shared"),
    margin: float = 0.2,
    beta: float = 1.2,
    part_weight: float = 0.3,
    separation_weight: float = 150.0,
    hidden: int = 512,
    beta_lr: float = 5e-4,
    predictor_lr: float = 1e-5,
) -> Recipe:
    """Slices of the embedding that learn different things, kept apart, in the manner of DiVA; see the loss."""
    parts = tuple(parts)
    if parts[:1] != PARTS[:1] or len(parts) < 2 or len(set(parts)) < len(parts) or not set(parts) <= set(PARTS):
        raise ValueError(f"parts: need 'discriminative' and then some of {PARTS[1:]}, each once, got {parts}")
    assert given.miner is not None
    makers: dict[str, Callable[[], BaseMiner]] = {
        "shared": lambda: miners.RandomDistanceMiner(generator=given.generator),
        "intra": lambda: miners.IntraRandomMiner(generator=given.generator),
    }
    loss = AdversarialSeparation(
        num_classes=given.num_classes,
        dim=given.dim,
        miner=given.miner,
        other_miners=[makers[part]() for part in parts[1:]],
        margin=margin,
        beta=beta,
        part_weight=part_weight,
        separation_weight=separation_weight,
        hidden=hidden,
    )
    return Recipe(loss, (Rate("losses", lr=beta_lr), Rate("predictors", lr=predictor_lr)), mines_itself=True)


def _l2(given: RecipeInputs, weight: float) -> dict[str, Any]:
    """A penalty on the length of embeddings that are not normalised; none for region vectors, which are."""
    if given.structural or not weight:
        return {}
    return {"embedding_regularizer": LpRegularizer(), "embedding_reg_weight": weight}


# ---- The table of named objectives -----------------------------------------------------------------------------------


class StructuralSupport(enum.Enum):
    """How a named objective works with similarity "structural"."""

    PAIRS = "a structural distance replaces the usual one"
    PROXIES = "a structural distance replaces the usual one, and proxies are region maps"
    NONE = "not supported"


@dataclass(frozen=True)
class NamedObjective:
    """One named objective.

    Args:
        make: its recipe.
        miners: names of the miners that it works with, the default first.
        structural: how it works with similarity "structural".
        reason: why it does not, where it does not.
    """

    make: Callable[..., Recipe]
    miners: tuple[str, ...]
    structural: StructuralSupport = StructuralSupport.PAIRS
    reason: str = ""


#: For losses over a matrix of pairs: a pair cannot be positive and negative, as it can be in `intra_random` triplets.
_MATRIX_MINERS: Final = tuple(name for name in MINERS if name != "intra_random")


def _first(name: str, allowed: Iterable[str]) -> tuple[str, ...]:
    return (name, *(other for other in allowed if other != name))


OBJECTIVES: Final[dict[str, NamedObjective]] = {
    "margin": NamedObjective(_margin, MINERS),
    "multisimilarity": NamedObjective(_multisimilarity, _first("multisimilarity", _MATRIX_MINERS)),
    "triplet": NamedObjective(_triplet, MINERS),
    "contrastive": NamedObjective(_contrastive, MINERS),
    "quadruplet": NamedObjective(_quadruplet, MINERS),
    "npair": NamedObjective(_npair, _NONE),
    "lifted": NamedObjective(_lifted, _first("none", _MATRIX_MINERS)),
    "angular": NamedObjective(_angular, _NONE, StructuralSupport.NONE, "its angles need points of one Euclidean space"),
    "histogram": NamedObjective(_histogram, _first("none", MINERS)),
    "snr": NamedObjective(
        _snr, MINERS, StructuralSupport.NONE, "it is defined by its own distance, the ratio of two variances"
    ),
    "proxynca": NamedObjective(_proxynca, _NONE, StructuralSupport.PROXIES),
    "proxyanchor": NamedObjective(_proxyanchor, _NONE, StructuralSupport.PROXIES),
    "softtriple": NamedObjective(_softtriple, _NONE, StructuralSupport.PROXIES),
    "arcface": NamedObjective(
        _arcface, _NONE, StructuralSupport.NONE, "its margin is an angle between an embedding and a class weight"
    ),
    "softmax": NamedObjective(_softmax, _NONE, StructuralSupport.PROXIES),
    "adversarial_separation": NamedObjective(
        _adversarial_separation,
        ("distance", "semihard", "softhard", "random", "rho_distance", "parametric"),
        StructuralSupport.NONE,
        "it divides one embedding into slices",
    ),
}

#: Names of the paper's two trainings, for an objective with similarity "structural".
DIML_NAMES: Final = {"margin_diml": "margin", "multisimilarity_diml": "multisimilarity"}


def objective_names() -> tuple[str, ...]:
    """Names that `build_objective` knows.

    Example:
        >>> "margin_diml" in objective_names()
        True
    """
    return (*OBJECTIVES, *DIML_NAMES, *registered_names("losses"))


def _entry(name: str) -> NamedObjective:
    """The entry of a known name; of a loss of your own, one that works with all miners."""
    if name in OBJECTIVES or name in DIML_NAMES:
        return OBJECTIVES[DIML_NAMES.get(name, name)]
    return NamedObjective(_as_recipe(name, need_registered("losses", name)), _first("none", MINERS))


def _as_recipe(name: str, make: Callable[..., nn.Module | Recipe]) -> Callable[..., Recipe]:
    """The recipe of a registered loss, with the options of `make`; parameters get the model's learning rate."""

    @functools.wraps(make)
    def recipe(given: RecipeInputs, **options: Any) -> Recipe:
        made = make(given, **options)
        if isinstance(made, Recipe):
            return made
        if not isinstance(made, nn.Module):
            raise TypeError(f"loss: need a module or a Recipe from {name!r}, got {type(made).__name__}")
        return Recipe(made, (Rate(""),))

    return recipe


def allowed_miners(name: str, similarity: Similarity | None = None) -> tuple[str, ...]:
    """Names of the miners that a named objective works with, the default first; ValueError for an unknown name."""
    entry, _ = lookup(name, similarity)
    return entry.miners


def option_types(name: str, miner: str | None = None) -> dict[str, Any]:
    """Types of the options that `build_objective` takes as plain values, for options that are given as text.

    Args:
        name: one of `objective_names()`.
        miner: one of `miner_names()`, whose options have the prefix `miner_`; None for the objective's default.

    Returns:
        Option -> annotation, such as float, `float | None` or `tuple[str, ...]`.

    Raises:
        ValueError: an unknown name.
    """
    entry, _ = lookup(name, None)
    miner = entry.miners[0] if miner is None else miner
    check_name("miner", miner, miner_names())
    found = _hints(entry.make, defaults(entry.make)) | {"mining": str}
    if miner == "multisimilarity":
        return found | {"miner_epsilon": float}
    own = miner_defaults(miner)
    if miner not in MINERS:
        found |= {f"miner_{option}": hint for option, hint in _hints(need_registered("miners", miner), own).items()}
    for maker in _initialisers(miner):
        found |= {f"miner_{option}": hint for option, hint in _hints(maker, own).items()}
    return found


def _hints(maker: Callable[..., Any], names: Iterable[str]) -> dict[str, Any]:
    """Annotations of those parameters of a function that are among `names`."""
    hints = get_type_hints(maker.__init__ if inspect.isclass(maker) else maker)
    return {name: hints[name] for name in names if name in hints}


def lookup(name: str, similarity: Similarity | None) -> tuple[NamedObjective, bool]:
    """The entry of a name, and whether it is to be structural; ValueError for combinations that cannot work."""
    check_name("loss", name, objective_names())
    if similarity is not None:
        check_name("similarity", similarity, get_args(Similarity))
    entry = _entry(name)
    if name in DIML_NAMES and similarity == "pooled":
        raise ValueError(f"similarity: {name!r} is structural; for 'pooled' choose {DIML_NAMES[name]!r}")
    structural = name in DIML_NAMES or similarity == "structural"
    if structural and entry.structural is StructuralSupport.NONE:
        can = [other for other, its in OBJECTIVES.items() if its.structural is not StructuralSupport.NONE]
        raise ValueError(f"similarity: {name!r} does not work with 'structural', {entry.reason}; allowed: {can}")
    return entry, structural


def defaults(maker: Callable[..., Any]) -> dict[str, Any]:
    """Keyword-only parameters of a function and their defaults."""
    parameters = inspect.signature(maker).parameters.values()
    return {part.name: part.default for part in parameters if part.kind is part.KEYWORD_ONLY}


def known(options: dict[str, Any], standard: dict[str, Any], owner: str, prefix: str = "") -> dict[str, Any]:
    """The options, if all have a default in `standard`; otherwise ValueError with the nearest and all known ones."""
    for name in options:
        if name not in standard:
            near = difflib.get_close_matches(name, standard, n=1)
            hint = f", did you mean {prefix}{near[0]}?" if near else ""
            names = [prefix + other for other in standard] or "none"
            raise ValueError(f"options: {owner} has no {prefix}{name}{hint}; it has {names}")
    return options


def check_name(argument: str, name: str, allowed: Iterable[str]) -> None:
    """ValueError with the nearest and all allowed names."""
    allowed = tuple(allowed)
    if name not in allowed:
        near = difflib.get_close_matches(str(name), allowed, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise ValueError(f"{argument}: unknown {name!r}; {hint}allowed: {allowed}")
