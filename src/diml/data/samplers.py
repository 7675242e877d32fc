"""Batch samplers: which images make each batch of an epoch.

A sampler plans whole batches over all processes. The plan of an epoch is determined by (seed, epoch) and, for the
samplers that use embeddings, by the embeddings stored before the epoch. An interrupted run therefore resumes by
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

from diml.data.batch_selection import SELECTION_RULES, BatchSelection
from diml.data.class_groups import (
    ClassGroups,
    checked_seed,
    draw_balanced,
    epoch_length,
    generator_of,
    usable_classes,
)
from diml.spelling import did_you_mean


class BatchSampler(Protocol):
    """The interface of a sampler to the training loop.

    Attributes:
        needs_embeddings: Whether `update` has an effect. The loop then stores the embeddings of all training images
            before the first epoch, if it can, and those of every batch after its step.
    """

    needs_embeddings: bool

    def __len__(self) -> int:
        """Return the number of batches of an epoch."""
        ...

    def batches(self, epoch: int) -> Iterator[list[int]]:
        """Return the batches of an epoch, each B distinct image indices; planned when called, not during iteration."""
        ...

    def update(self, indices: Tensor, embeddings: Tensor) -> None:
        """Store embeddings (B, D) of the images `indices` (B,) of all processes; ignored where not needed."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Return tensors and plain numbers, from which `load_state_dict` restores an equal sampler."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the state of a sampler of the same kind and data."""
        ...


class _Stateless:
    """The state methods of a sampler that does not use embeddings."""

    needs_embeddings = False

    def update(self, indices: Tensor, embeddings: Tensor) -> None:
        """Do nothing."""

    def state_dict(self) -> dict[str, Any]:
        """Return an empty state: (seed, epoch) determine the plan."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Accept an empty state; any other belongs to another sampler."""
        if state:
            raise ValueError(f"state: {type(self).__name__} has none, got {', '.join(state)}; was the sampler changed?")


class ClassBalancedSampler(_Stateless):
    """Batches of B / per_class classes with `per_class` distinct images each, drawn uniformly.

    A class with fewer images than `per_class` is omitted, with one warning that gives their number; no image is
    ever paired with itself. A class, and an image, may occur in several batches of an epoch, or in none.

    Args:
        labels: (N,) whole numbers, class of each image.
        batch_size: B, a multiple of `per_class`.
        per_class: Images of each class in a batch.
        seed: 0 or more.
        batches_per_epoch: Default N // B, as in the authors' runs; at least 1.

    Raises:
        ValueError: Sizes do not fit together, or there are too few classes for a batch.

    Warns:
        SmallClassesWarning: Classes were omitted.
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
        """Return the batches of an epoch; the images of a class are adjacent."""
        generator = generator_of(self._seed, checked_seed("epoch", epoch))
        draws = (draw_balanced(self._groups, self._classes, self._per_class, generator) for _ in range(self._length))
        return (batch.tolist() for batch in draws)


class RandomSampler(_Stateless):
    """Every image at most once per epoch, shuffled; an incomplete last batch is dropped.

    Args:
        labels: (N,) whole numbers; only N is used.
        batch_size: B, at most N.
        seed: 0 or more.
        batches_per_epoch: Default and maximum N // B.

    Raises:
        ValueError: There are fewer than B images, or not enough for `batches_per_epoch` batches.
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
            filled = self._images // batch_size
            raise ValueError(f"batches_per_epoch: {self._images} images fill {filled} batches, got {self._length}")

    def __len__(self) -> int:
        return self._length

    def batches(self, epoch: int) -> Iterator[list[int]]:
        """Return the batches of an epoch; no image is in two."""
        order = generator_of(self._seed, checked_seed("epoch", epoch)).permutation(self._images)
        used = order[: self._length * self._batch_size].reshape(self._length, self._batch_size)
        return (batch.tolist() for batch in used)


_RANDOM_SAMPLERS: Final[Mapping[str, Callable[..., BatchSampler]]] = MappingProxyType(
    {"class_balanced": ClassBalancedSampler, "random": RandomSampler}
)
#: Parameters of samplers that are not options: `build_sampler` has them for all.
_NO_OPTIONS: Final = ("labels", "rule", "batch_size", "per_class", "seed", "return")


def sampler_names() -> tuple[str, ...]:
    """Return the names that `build_sampler` knows, the default first."""
    return (*_RANDOM_SAMPLERS, *SELECTION_RULES)


def sampler_option_types(name: str) -> dict[str, Any]:
    """Return the types of the options of a sampler, option -> annotation, for parsing them from text.

    Raises:
        ValueError: Unknown name (the nearest known one is named).

    Example:
        >>> sampler_option_types("random")
        {'batches_per_epoch': int | None}
    """
    if name not in sampler_names():
        raise ValueError(f"sampler: no sampler {name!r}; {did_you_mean(name, sampler_names())}")
    own = get_type_hints(SELECTION_RULES[name]) if name in SELECTION_RULES else {}
    build = BatchSelection if name in SELECTION_RULES else _RANDOM_SAMPLERS[name]
    shared = get_type_hints(vars(build)["__init__"])
    return own | {key: hint for key, hint in shared.items() if key not in _NO_OPTIONS}


def check_sampler_options(name: str, options: Iterable[str]) -> None:
    """Raise ValueError, naming the nearest, for a sampler or an option of it that does not exist."""
    known = tuple(sampler_option_types(name))
    for option in options:
        if option not in known:
            raise ValueError(f"sampler {name}: no option {option!r}; {did_you_mean(option, known)}")


def build_sampler(
    name: str, labels: ArrayLike | Tensor, *, batch_size: int, per_class: int = 2, seed: int = 0, **options: Any
) -> BatchSampler:
    """Build a batch sampler by name.

    Args:
        name: One of `sampler_names()`.
        labels: (N,) whole numbers, class of each training image.
        batch_size: B, images of a batch over all processes.
        per_class: Images of each class in a batch; ignored by `random`.
        seed: 0 or more.
        options: `batches_per_epoch` for all; for those that use embeddings also `pool` and `project_to` and the fields
            of the rule (`power`, `softened`, `comparisons`, `histogram_weight`); see the classes.

    Raises:
        ValueError: Unknown name or option (the nearest known one is named), or sizes that do not fit together.

    Warns:
        SmallClassesWarning: Classes with fewer than `per_class` images were omitted.

    Example:
        >>> sampler = build_sampler("class_balanced", [0, 0, 0, 1, 1, 2, 2], batch_size=4)
        >>> [sorted(batch) for batch in sampler.batches(epoch=0)]
        [[3, 4, 5, 6]]
    """
    check_sampler_options(name, options)
    if name in SELECTION_RULES:
        own = [field.name for field in dataclasses.fields(SELECTION_RULES[name])]
        rule = SELECTION_RULES[name](**{key: options.pop(key) for key in own if key in options})
        build: Callable[..., BatchSampler] = functools.partial(BatchSelection, rule=rule)
    else:
        build = _RANDOM_SAMPLERS[name]
    taken = inspect.signature(build).parameters
    given = {"batch_size": batch_size, "per_class": per_class, "seed": seed} | options
    return build(labels, **{key: value for key, value in given.items() if key in taken})
