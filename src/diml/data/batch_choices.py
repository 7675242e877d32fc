"""How the batch-matching samplers choose one batch: build a pool of images, measure it, pick.

Legend: B images of a batch, P of a pool, D channels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType
from typing import Any, Final, Protocol

import numpy as np

from diml.data.class_groups import ClassGroups, draw_balanced
from diml.data.coresets import Floats, Indices, d2_coreset, frechet_distances, greedy_coreset, histogram_distances


@dataclass(frozen=True, eq=False)
class Pools:
    """What a choice draws from.

    Attributes:
        everyone: The usable classes.
        known: The same classes with only those images whose embedding is stored.
        embed: From image indices (P,) to their embeddings (P, D), float64.
        classes: Classes of a batch.
        per_class: Images of each.
        pool: P.
    """

    everyone: ClassGroups
    known: ClassGroups
    embed: Callable[[Indices], Floats]
    classes: int
    per_class: int
    pool: int

    @cached_property
    def whole_classes(self) -> ClassGroups:
        """The classes with `per_class` known images or more."""
        return self.known.at_least(self.per_class)


class Choice(Protocol):
    """How one batch is chosen."""

    def batch(self, pools: Pools, generator: np.random.Generator) -> Indices | None:
        """Return B image indices, `per_class` of each class, or None where too few embeddings are known."""
        ...


@dataclass(frozen=True, kw_only=True)
class GreedyCoreset:
    """Anchors by farthest-first traversal of the pool, one a class; the rest of each class by chance.

    Attributes:
        softened: Pick anchors by chance among the farthest 3 %.
    """

    softened: bool = False

    def batch(self, pools: Pools, generator: np.random.Generator) -> Indices | None:
        """Return one batch; see `greedy_coreset`."""
        drawn = _scattered_pool(pools, generator)
        if drawn is None:
            return None
        rows, labels = drawn
        picked = greedy_coreset(pools.embed(rows), labels, pools.classes, generator, softened=self.softened)
        return _with_partners(rows[picked], labels[picked], pools, generator)


@dataclass(frozen=True, kw_only=True)
class D2Coreset:
    """Anchors drawn far from each other and where the pool is dense, one a class; the rest of each class by chance.

    Attributes:
        power: Weight of distance against density, 0 or more.
    """

    power: float = 1.0

    def __post_init__(self) -> None:
        if self.power < 0:
            raise ValueError(f"power: need 0 or more, got {self.power}")

    def batch(self, pools: Pools, generator: np.random.Generator) -> Indices | None:
        """Return one batch; see `d2_coreset`."""
        drawn = _scattered_pool(pools, generator)
        if drawn is None:
            return None
        rows, labels = drawn
        picked = d2_coreset(pools.embed(rows), labels, pools.classes, generator, power=self.power)
        return _with_partners(rows[picked], labels[picked], pools, generator)


@dataclass(frozen=True, kw_only=True)
class Frechet:
    """Of some class-balanced batches the one nearest to the pool in Fréchet distance.

    Attributes:
        comparisons: Batches to compare, at least 1.
    """

    comparisons: int = 10

    def __post_init__(self) -> None:
        at_least_one("comparisons", self.comparisons)

    def batch(self, pools: Pools, generator: np.random.Generator) -> Indices | None:
        """Return one batch; see `frechet_distance`."""
        return _likest(pools, self.comparisons, frechet_distances, generator)


@dataclass(frozen=True, kw_only=True)
class DistanceHistogram:
    """Of some class-balanced batches the one whose distances, mean and deviation are most like the pool's.

    Attributes:
        comparisons: Batches to compare, at least 1.
        histogram_weight: Of the histogram of distances against mean and deviation.
    """

    comparisons: int = 10
    histogram_weight: float = 75.0

    def __post_init__(self) -> None:
        at_least_one("comparisons", self.comparisons)

    def batch(self, pools: Pools, generator: np.random.Generator) -> Indices | None:
        """Return one batch; see `histogram_distances`."""

        def costs(points: Floats, candidates: list[Indices]) -> Floats:
            return histogram_distances(points, candidates, weight=self.histogram_weight)

        return _likest(pools, self.comparisons, costs, generator)


#: The choices by the names that `build_sampler` knows.
CHOICES: Final[Mapping[str, type[Any]]] = MappingProxyType(
    {"d2_coreset": D2Coreset, "greedy_coreset": GreedyCoreset, "disthist": DistanceHistogram, "fid": Frechet}
)


def _scattered_pool(pools: Pools, generator: np.random.Generator) -> tuple[Indices, Indices] | None:
    """Known images by chance (P,) and their classes (P,); more than P where needed to have enough classes."""
    rows, numbers = pools.known.numbered
    order = generator.permutation(len(rows))
    rows, numbers = rows[order], numbers[order]
    firsts = np.sort(np.unique(numbers, return_index=True)[1])
    if len(firsts) < pools.classes:
        return None
    size = max(pools.pool, int(firsts[pools.classes - 1]) + 1)
    return rows[:size], numbers[:size]


def _with_partners(anchors: Indices, classes: Indices, pools: Pools, generator: np.random.Generator) -> Indices:
    """Each anchor, followed by per_class - 1 other images of its class by chance."""
    parts = []
    for anchor, number in zip(anchors, classes, strict=True):
        members = pools.everyone.members[number]
        others = generator.choice(members[members != anchor], pools.per_class - 1, replace=False)
        parts.append(np.concatenate([[anchor], others]))
    return np.concatenate(parts).astype(np.int64)


def _balanced_pool(pools: Pools, generator: np.random.Generator) -> list[Indices] | None:
    """Known images of as many classes as possible, P together: round by round `per_class` more of each class."""
    members = pools.whole_classes.members
    if len(members) < pools.classes:
        return None
    wanted = max(pools.pool // pools.per_class, pools.classes)
    order = [generator.permutation(members[number]) for number in generator.permutation(len(members))[:wanted]]
    taken = np.zeros(len(order), dtype=np.int64)
    while wanted > 0:
        room = np.flatnonzero(
            [len(member) - count >= pools.per_class for member, count in zip(order, taken, strict=True)]
        )
        if not len(room):
            break
        taken[room[:wanted]] += pools.per_class
        wanted -= len(room)
    return [member[:count] for member, count in zip(order, taken, strict=True) if count]


def _likest(
    pools: Pools,
    comparisons: int,
    costs: Callable[[Floats, list[Indices]], Floats],
    generator: np.random.Generator,
) -> Indices | None:
    """Of some class-balanced batches of a pool the one of least cost."""
    groups = _balanced_pool(pools, generator)
    if groups is None:
        return None
    rows = np.concatenate(groups)
    within = ClassGroups(tuple(np.split(np.arange(len(rows)), np.cumsum([len(group) for group in groups])[:-1])))
    candidates = [draw_balanced(within, pools.classes, pools.per_class, generator) for _ in range(comparisons)]
    return rows[candidates[int(np.argmin(costs(pools.embed(rows), candidates)))]]


def at_least_one(name: str, value: int) -> None:
    """Refuse a setting below 1."""
    if value < 1:
        raise ValueError(f"{name}: need at least 1, got {value}")
