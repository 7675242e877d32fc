"""`build_objective`: a loss, its miner and its learning rates as one module, called with regions and labels."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Final, Literal, get_args

import torch
import torch.nn.functional as F
from pytorch_metric_learning.miners import BaseMiner
from pytorch_metric_learning.reducers import BaseReducer, MultipleReducers
from pytorch_metric_learning.regularizers import BaseRegularizer
from torch import Tensor, nn

from diml.matching import Regions
from diml.objectives.distances import StructuralDistance, StructuralSimilarity, pack_regions
from diml.objectives.recipes import Rate, Setting
from diml.objectives.registry import Similarity, check_name, defaults, known, lookup, make_miner

Mining = Literal["pooled", "structural"]

#: Options of every structural objective, with the meaning and defaults of `diml.matching.match`.
MATCHING: Final = {"marginals": "cross_correlation", "epsilon": 0.05, "tolerance": 4e-6, "max_iterations": 1000}


class Objective(nn.Module):
    """What training minimises: `objective(regions, labels)` gives a scalar loss. Made by `build_objective`.

    Attributes:
        name: as given to `build_objective`.
        options: every setting, resolved, as plain values; to be saved with a run.
        uses_regions: whether region vectors matter, or only pooled ones.
        unnormalized: whether the loss was made for embeddings that are not normalised (n-pair, lifted, angular); hand
            those over as a tensor. With Regions such a loss gets unit vectors.
    """

    def __init__(
        self,
        name: str,
        loss: nn.Module,
        miner: BaseMiner | None,
        *,
        options: dict[str, Any],
        rates: tuple[Rate, ...],
        num_classes: int,
        embedding_dim: int,
        num_regions: int | None,
        uses_regions: bool,
        mines_structurally: bool,
        unnormalized: bool,
        reads_mined_only: bool,
    ) -> None:
        super().__init__()
        self.name, self.options, self.unnormalized = name, options, unnormalized
        self.uses_regions, self.mines_structurally = uses_regions, mines_structurally
        self.num_classes, self.embedding_dim, self.num_regions = num_classes, embedding_dim, num_regions
        self.loss, self.miner = loss, miner
        self._rates, self._reads_mined_only = rates, reads_mined_only
        self._counts: dict[str, Tensor | int] = {}
        self._structural = [m for m in self.modules() if isinstance(m, StructuralSimilarity | StructuralDistance)]
        penalties = {
            part for module in self.modules() if isinstance(module, BaseRegularizer) for part in module.modules()
        }
        for module in set(self.modules()) - penalties:
            if isinstance(module, BaseReducer) and not isinstance(module, MultipleReducers):
                module.register_forward_pre_hook(self._count_active)

    def forward(self, regions: Regions | Tensor, labels: Tensor) -> Tensor:
        """Scalar loss of a batch, differentiable, in float32 (float64 for float64 input), also under autocast.

        Args:
            regions: N images; objectives on pooled vectors also take their embeddings (N, D) as a tensor, which is
                brought to unit length unless the objective is `unnormalized`.
            labels: (N,) integers from 0 to num_classes - 1.

        Raises:
            TypeError, ValueError: regions or labels of another kind, shape, D, R or range.
        """
        embeddings, pooled = self._vectors(regions)
        labels = self._check_labels(labels, embeddings)
        self._counts = {}
        with torch.autocast(embeddings.device.type, enabled=False), self._shared_matrices():
            chosen = None
            if self.miner is not None:
                chosen = self.miner(embeddings if self.mines_structurally else pooled, labels)
                self._count_mined(chosen)
                if self._reads_mined_only and len(chosen) == 3:
                    a, p, n = chosen
                    for distance in self._structural:
                        distance.only(torch.stack([torch.cat([a, a]), torch.cat([p, n])]))
            loss: Tensor = self.loss(embeddings, labels, chosen)
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
            lr: the model's learning rate, for rates that are a multiple of it; without it those groups carry no `lr`
                and get the optimiser's own.
            weight_decay: of all groups; 0 as in the authors' runs.

        Returns:
            Dictionaries with `params`, `name`, `weight_decay` and mostly `lr`; none for a loss without parameters.

        Example:
            >>> torch.optim.Adam([{"params": model.parameters()}, *objective.parameter_groups(lr=1e-5)], lr=1e-5)
        """
        groups = []
        for rate in self._rates:
            held = getattr(self.loss, rate.name)
            params = [held] if isinstance(held, nn.Parameter) else list(held.parameters())
            group = {"params": params, "name": rate.name, "weight_decay": weight_decay}
            own = rate.lr if rate.lr is not None or lr is None else rate.multiple * lr
            groups.append(group if own is None else group | {"lr": own})
        return groups

    def extra_repr(self) -> str:
        """Shown by print."""
        return f"name={self.name!r}, uses_regions={self.uses_regions}"

    def _vectors(self, regions: Regions | Tensor) -> tuple[Tensor, Tensor]:
        """What the loss gets, flat (N, X), and the pooled unit vectors (N, D), float32 or better."""
        if isinstance(regions, Tensor):
            return self._given(regions)
        if not isinstance(regions, Regions):
            raise TypeError(f"regions: need Regions, got {type(regions).__name__}; embed images first")
        if regions.dim != self.embedding_dim:
            raise ValueError(f"regions: need embedding_dim = {self.embedding_dim} channels, got {regions.dim}")
        pooled = regions.pooled.to(torch.promote_types(regions.pooled.dtype, torch.float32))
        if not self.uses_regions:
            return pooled, pooled
        if self.num_regions not in (None, regions.num_regions):
            raise ValueError(f"regions: need num_regions = {self.num_regions} an image, got {regions.num_regions}")
        for distance in self._structural:
            distance.num_regions = regions.num_regions
        return pack_regions(regions), pooled

    def _given(self, embeddings: Tensor) -> tuple[Tensor, Tensor]:
        if self.uses_regions:
            raise TypeError(f"regions: {self.name!r} compares regions; need Regions, got a tensor")
        if embeddings.ndim != 2 or embeddings.shape[1] != self.embedding_dim or not embeddings.is_floating_point():
            got = f"{tuple(embeddings.shape)} {embeddings.dtype}"
            raise ValueError(f"regions: need Regions or float embeddings (N, {self.embedding_dim}), got {got}")
        embeddings = embeddings.to(torch.promote_types(embeddings.dtype, torch.float32))
        unit = F.normalize(embeddings, dim=1)
        return (embeddings if self.unnormalized else unit), unit

    def _check_labels(self, labels: Tensor, embeddings: Tensor) -> Tensor:
        if not isinstance(labels, Tensor) or labels.is_floating_point() or labels.dtype == torch.bool:
            got = labels.dtype if isinstance(labels, Tensor) else type(labels).__name__
            raise TypeError(f"labels: need an integer tensor (N,), got {got}")
        if labels.shape != embeddings.shape[:1] or len(labels) == 0:
            raise ValueError(f"labels: need shape ({len(embeddings)},), N >= 1, got {tuple(labels.shape)}")
        low, high = int(labels.min()), int(labels.max())
        if low < 0 or high >= self.num_classes:
            raise ValueError(f"labels: need 0 to num_classes - 1 = {self.num_classes - 1}, got {low} to {high}")
        return labels.to(embeddings.device, torch.int64)

    @contextmanager
    def _shared_matrices(self) -> Iterator[None]:
        with ExitStack() as stack:
            for distance in self._structural:
                stack.enter_context(distance.sharing())
            yield
        if self._structural:
            self._counts["unconverged_pairs"] = sum(distance.unconverged_pairs for distance in self._structural)

    def _count_mined(self, chosen: tuple[Tensor, ...]) -> None:
        if len(chosen) == 3:
            self._counts["triplets"] = len(chosen[0])
        else:
            self._counts |= {"positive_pairs": len(chosen[0]), "negative_pairs": len(chosen[2])}

    def _count_active(self, module: nn.Module, arguments: tuple[Any, ...]) -> None:
        """Before a reducer of the library averages: how many of its terms are above zero."""
        for part in arguments[0].values():
            if isinstance(part["losses"], Tensor) and part["reduction_type"] != "already_reduced":
                self._counts["active"] = self._counts.get("active", 0) + (part["losses"].detach() > 0).sum()


def build_objective(
    name: str,
    *,
    num_classes: int,
    embedding_dim: int,
    similarity: Similarity | None = None,
    miner: str | None = None,
    mining: Mining | None = None,
    num_regions: int | None = None,
    generator: torch.Generator | None = None,
    **options: Any,
) -> Objective:
    """Build what training minimises.

    Args:
        name: one of `objective_names()`; "margin_diml" and "multisimilarity_diml" are "margin" and "multisimilarity"
            with similarity "structural".
        num_classes: C, 1 or more; labels run from 0 to C - 1.
        embedding_dim: D of pooled and region vectors.
        similarity: "pooled" (default) compares pooled vectors; "structural" matches regions.
        miner: one of `allowed_miners(name, similarity)`, the first of which is the default; "none" for all tuples.
        mining: what the miner sees, "pooled" vectors or "structural" distances. Structural objectives mine on pooled
            vectors by default, except with miner "multisimilarity", which is part of its loss.
        num_regions: R; needed for region proxies, otherwise read off the first batch when omitted.
        generator: CPU generator for our miners and for quadruplets; the global one when omitted.
        options: of the objective (see `docs/objectives.md` or the functions of `recipes`); of its miner, with prefix
            `miner_`; and, when structural, marginals, epsilon, tolerance, max_iterations as in `diml.matching.match`.

    Returns:
        Objective, a module with its own parameters where the loss has any.

    Raises:
        ValueError: an unknown name or option, or a combination that cannot work; the message names the allowed ones.

    Example:
        >>> objective = build_objective("margin_diml", num_classes=100, embedding_dim=128, beta=1.2)
        >>> loss = objective(Regions.from_maps(model(images)), labels)
    """
    entry, structural = lookup(name, similarity)
    miner = entry.miners[0] if miner is None else miner
    if miner not in entry.miners:
        raise ValueError(f"miner: {name!r} does not work with {miner!r}; allowed: {entry.miners}")
    for argument, value in (("num_classes", num_classes), ("embedding_dim", embedding_dim)):
        if not isinstance(value, int) or value < 1:
            raise ValueError(f"{argument}: need an integer of 1 or more, got {value!r}")
    if structural and entry.structural == "proxies" and num_regions is None:
        raise ValueError(f"num_regions: {name!r} with 'structural' has proxies of R regions; say how many, e.g. 16")
    mines_structurally = _mining(mining, structural, miner)
    own, of_miner, matching = _sort(options, defaults(entry.make), structural, name)
    shared: dict[str, Any] = {"num_regions": num_regions, "matching": matching, "generator": generator}
    built_miner, miner_options = make_miner(miner, of_miner, dim=embedding_dim, structural=mines_structurally, **shared)
    setting = Setting(
        num_classes=num_classes, dim=embedding_dim, structural=structural, miner_name=miner, miner=built_miner, **shared
    )
    recipe = entry.make(setting, **own)
    kind = "structural" if structural else "pooled"
    saved = {"name": name, "num_classes": num_classes, "embedding_dim": embedding_dim, "similarity": kind}
    saved |= {"miner": miner, "mining": "structural" if mines_structurally else "pooled", "num_regions": num_regions}
    saved |= own | recipe.resolved | matching
    saved |= {f"miner_{key}": value for key, value in miner_options.items()}
    return Objective(
        name,
        recipe.loss,
        None if recipe.mines_itself else built_miner,
        options=saved,
        rates=recipe.rates,
        num_classes=num_classes,
        embedding_dim=embedding_dim,
        num_regions=num_regions,
        uses_regions=structural,
        mines_structurally=mines_structurally,
        unnormalized=recipe.unnormalized,
        reads_mined_only=recipe.reads_mined_only,
    )


def _mining(mining: Mining | None, structural: bool, miner: str) -> bool:
    """Whether the miner sees structural distances."""
    if mining is None:
        return structural and miner == "multisimilarity"
    check_name("mining", mining, get_args(Mining))
    if mining == "structural" and not structural:
        raise ValueError("mining: 'structural' needs similarity 'structural'; allowed: ('pooled',)")
    return mining == "structural" and miner != "none"


def _sort(
    options: dict[str, Any], own: dict[str, Any], structural: bool, name: str
) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """Split options into those of the objective (resolved), of the miner (as given) and of the matching (resolved)."""
    of_miner = {key.removeprefix("miner_"): value for key, value in options.items() if key.startswith("miner_")}
    rest = {key: value for key, value in options.items() if not key.startswith("miner_")}
    matching = MATCHING if structural else {}
    known(rest, own | matching, f"objective {name!r}" + ("" if structural else " (pooled)"))
    own = own | {key: value for key, value in rest.items() if key in own}
    return own, of_miner, {key: rest.get(key, value) for key, value in matching.items()}
