"""Batch samplers: which images make each batch of an epoch.

A sampler plans whole batches over all processes; the plan of an epoch follows from (seed, epoch) and, for the samplers
that look at embeddings, from the embeddings stored before the epoch. So an interrupted run goes on where it was by
skipping the batches it has done.

Legend: N images, B images of a batch, D channels.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import MappingProxyType
from typing import Any, Final, Protocol, get_type_hints

import numpy as np
from numpy.typing import ArrayLike
from torch import Tensor

from diml.data.batch_choices import CHOICES
from diml.data.batch_selection import BatchMatching
from diml.data.class_groups import (
    ClassGroups,
    checked_seed,
    draw_balanced,
    epoch_length,
    generator_of,
    usable_classes,
)
from diml.data.registry import nearest


class BatchSampler(Protocol):
    """What the training loop needs of a sampler.

    Attributes:
        needs_embeddings: Whether `update` matters. The loop then stores the embeddings of all training images before
            the first epoch, if it can, and those of every batch after its step.
    """

    needs_embeddings: bool

    def __len__(self) -> int:
        """Return the number of batches of an epoch."""
        ...

    def batches(self, epoch: int) -> Iterator[list[int]]:
        """Return the batches of an epoch, each B distinct image indices; planned when called, not while iterated."""
        ...

    def update(self, indices: Tensor, embeddings: Tensor) -> None:
        """Store embeddings (B, D) of the images `indices` (B,), of all processes; nothing where not needed."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Return tensors and plain numbers, from which `load_state_dict` makes an equal sampler."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over the state of a sampler of the same kind and data."""
        ...


class _Stateless:
    """The part of a sampler that does not look at embeddings."""

    needs_embeddings = False

    def update(self, indices: Tensor, embeddings: Tensor) -> None:
        """Do nothing."""

    def state_dict(self) -> dict[str, Any]:
        """Return nothing: (seed, epoch) tell it all."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over nothing; a state with something in it belongs to another sampler."""
        if state:
            raise ValueError(f"state: {type(self).__name__} has none, got {', '.join(state)}; was the sampler changed?")


class ClassBalanced(_Stateless):
    """Batches of B / per_class classes with `per_class` distinct images each, all by chance.

    A class with fewer images than `per_class` is left out, with one warning that says how many are; no image is
    ever paired with itself. A class, and a image, may come in several batches of an epoch, or in none.

    Args:
        labels: (N,) whole numbers, class of each image.
        batch_size: B, a multiple of `per_class`.
        per_class: Images of each class in a batch.
        seed: 0 or more.
        batches_per_epoch: Default N // B, as in the authors' runs; at least 1.

    Raises:
        ValueError: Sizes do not fit together, or there are too few classes for a batch.

    Warns:
        SmallClassesWarning: Classes were left out.
    """

    def __init__(
        self,
        labels: ArrayLike | Tensor,
        *,
        batch_size: int,
        per_class: int = 2,
        seed: int = 0,
        batches_per_epoch: int | None = None,
    ) -> None:
        self._groups = usable_classes(labels, batch_size, per_class)
        self._classes, self._per_class = batch_size // per_class, per_class
        self._seed = checked_seed("seed", seed)
        self._length = epoch_length(len(np.asarray(labels)), batch_size, batches_per_epoch)

    def __len__(self) -> int:
        return self._length

    def batches(self, epoch: int) -> Iterator[list[int]]:
        """Return the batches of an epoch; the images of a class stand together."""
        generator = generator_of(self._seed, checked_seed("epoch", epoch))
        draws = (draw_balanced(self._groups, self._classes, self._per_class, generator) for _ in range(self._length))
        return (batch.tolist() for batch in draws)


class Random(_Stateless):
    """Every image once an epoch, shuffled; what is left over after the last whole batch is dropped.

    Args:
        labels: (N,) whole numbers; only their number matters.
        batch_size: B, at most N.
        seed: 0 or more.
        batches_per_epoch: Default N // B, which is also the most.

    Raises:
        ValueError: There are fewer than B images, or more batches are wanted than the images fill.
    """

    def __init__(
        self, labels: ArrayLike | Tensor, *, batch_size: int, seed: int = 0, batches_per_epoch: int | None = None
    ) -> None:
        self._images = len(ClassGroups.of(labels).images)
        if not 1 <= batch_size <= self._images:
            raise ValueError(f"batch_size: need 1 to {self._images}, the number of images, got {batch_size}")
        self._batch_size = batch_size
        self._seed = checked_seed("seed", seed)
        self._length = epoch_length(self._images, batch_size, batches_per_epoch)
        if self._length * batch_size > self._images:
            most = self._images // batch_size
            raise ValueError(f"batches_per_epoch: {self._images} images fill {most} batches, got {self._length}")

    def __len__(self) -> int:
        return self._length

    def batches(self, epoch: int) -> Iterator[list[int]]:
        """Return the batches of an epoch; no image is in two."""
        order = generator_of(self._seed, checked_seed("epoch", epoch)).permutation(self._images)
        used = order[: self._length * self._batch_size].reshape(self._length, self._batch_size)
        return (batch.tolist() for batch in used)


_BY_CHANCE: Final[Mapping[str, Callable[..., BatchSampler]]] = MappingProxyType(
    {"class_balanced": ClassBalanced, "random": Random}
)
#: Parameters of samplers that are no options: `build_sampler` has them for all.
_NO_OPTIONS: Final = ("labels", "choice", "batch_size", "per_class", "seed", "return")


def sampler_names() -> tuple[str, ...]:
    """Return the names that `build_sampler` knows, the default first."""
    return (*_BY_CHANCE, *CHOICES)


def sampler_option_types(name: str) -> dict[str, Any]:
    """Types of the options that `build_sampler` takes, option -> annotation, for who reads them from a text.

    Raises:
        ValueError: Unknown name (the nearest known one is named).

    Example:
        >>> sampler_option_types("random")
        {'batches_per_epoch': int | None}
    """
    if name not in sampler_names():
        raise ValueError(f"sampler: no sampler {name!r}; {nearest(name, sampler_names())}")
    own = get_type_hints(CHOICES[name]) if name in CHOICES else {}
    build = BatchMatching if name in CHOICES else _BY_CHANCE[name]
    shared = get_type_hints(vars(build)["__init__"])
    return own | {key: hint for key, hint in shared.items() if key not in _NO_OPTIONS}


def check_sampler_options(name: str, options: Iterable[str]) -> None:
    """ValueError, naming the nearest, for a sampler or an option of it that does not exist."""
    known = tuple(sampler_option_types(name))
    for option in options:
        if option not in known:
            raise ValueError(f"sampler {name}: no option {option!r}; {nearest(option, known)}")


def build_sampler(
    name: str, labels: ArrayLike | Tensor, *, batch_size: int, per_class: int = 2, seed: int = 0, **options: Any
) -> BatchSampler:
    """Build a batch sampler by name.

    Args:
        name: One of `sampler_names()`.
        labels: (N,) whole numbers, class of each training image.
        batch_size: B, images of a batch over all processes.
        per_class: Images of each class in a batch; `random` pays no heed to it.
        seed: 0 or more.
        options: `batches_per_epoch` for all; for those that look at embeddings `pool` and `project_to`; see the class
            of each for its own (`power`, `softened`, `comparisons`, `histogram_weight`).

    Raises:
        ValueError: Unknown name or option (the nearest known one is named), or sizes that do not fit together.

    Warns:
        SmallClassesWarning: Classes with fewer than `per_class` images were left out.

    Example:
        >>> sampler = build_sampler("class_balanced", [0, 0, 0, 1, 1, 2, 2], batch_size=4)
        >>> [sorted(batch) for batch in sampler.batches(epoch=0)]
        [[3, 4, 5, 6]]
    """
    check_sampler_options(name, options)
    if name in CHOICES:
        own = [field.name for field in dataclasses.fields(CHOICES[name])]
        choice = CHOICES[name](**{key: options.pop(key) for key in own if key in options})
        build: Callable[..., BatchSampler] = functools.partial(BatchMatching, choice=choice)
    else:
        build = _BY_CHANCE[name]
    taken = inspect.signature(build).parameters
    given = {"batch_size": batch_size, "per_class": per_class, "seed": seed} | options
    return build(labels, **{key: value for key, value in given.items() if key in taken})
