"""Batch samplers that look at embeddings: each batch is chosen out of a pool, to be spread out or to be like the pool.

Embeddings are stored as they come out of training. The batches of an epoch are planned at its beginning from what is
stored then, and the plan is part of the state: a run that is resumed in the middle of an epoch goes on with it.

Legend: N images, C classes, B images of a batch, P of a pool, D channels.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]
from torch import Tensor

from diml.data.batch_choices import Choice, Pools, at_least_one
from diml.data.class_groups import checked_seed, draw_balanced, epoch_length, generator_of, usable_classes
from diml.data.coresets import Floats, Indices

_NO_EPOCH: Final = -1


class BatchMatching:
    """Plan batches by a choice over stored embeddings.

    Every batch has `per_class` distinct images of each of B / per_class classes. Images that have no embedding yet
    come first: as long as there are some that no batch has held, batches are class-balanced and made of those. Storing
    the embeddings of all images before the first epoch, as the authors' base code does, leaves that stage out. A
    image that never gets an embedding (it cannot be read, say) is in no pool.

    Args:
        labels: (N,) whole numbers, class of each image.
        choice: How a batch is chosen, one of `CHOICES`.
        batch_size: B, a multiple of `per_class`.
        per_class: Images of each class in a batch.
        seed: 0 or more.
        batches_per_epoch: Default N // B.
        pool: P, images of the pool that a batch is chosen from, drawn anew for each; more where P images do not
            have enough classes.
        project_to: Measure in a random projection to this many dimensions; None measures in all.

    Raises:
        ValueError: Sizes do not fit together, or there are too few classes for a batch.

    Warns:
        SmallClassesWarning: Classes were left out.
        UserWarning: Once, where batches are class-balanced as too few images got an embedding.

    Source: Roth et al., ICML 2020, and the samplers of its released code.
    """

    needs_embeddings = True

    def __init__(
        self,
        labels: ArrayLike | Tensor,
        choice: Choice,
        *,
        batch_size: int,
        per_class: int = 2,
        seed: int = 0,
        batches_per_epoch: int | None = None,
        pool: int = 512,
        project_to: int | None = None,
    ) -> None:
        self._groups = usable_classes(labels, batch_size, per_class)
        self._choice = choice
        self._classes, self._per_class = batch_size // per_class, per_class
        self._seed = checked_seed("seed", seed)
        images = len(np.asarray(labels))
        self._length = epoch_length(images, batch_size, batches_per_epoch)
        if batch_size < 2:
            raise ValueError(f"batch_size: need at least 2 images to measure their spread, got {batch_size}")
        if pool < batch_size:
            raise ValueError(f"pool: need at least batch_size ({batch_size}) images, got {pool}")
        if project_to is not None:
            at_least_one("project_to", project_to)
        self._pool, self._project_to = pool, project_to
        self._embeddings = torch.empty(images, 0)
        self._known = torch.zeros(images, dtype=torch.bool)
        self._offered = torch.zeros(images, dtype=torch.bool)
        self._plan = torch.empty(0, batch_size, dtype=torch.int64)
        self._plan_epoch = _NO_EPOCH
        self._warned = False

    def __len__(self) -> int:
        return self._length

    def batches(self, epoch: int) -> Iterator[list[int]]:
        """Return the batches of an epoch; asked again for the epoch planned last, the same ones."""
        if checked_seed("epoch", epoch) != self._plan_epoch:
            # One thread: matrices are small, and sums then come out alike in one process and in one of several.
            with threadpool_limits(limits=1, user_api="blas"):
                self._plan = torch.from_numpy(np.stack(self._planned(generator_of(self._seed, epoch))))
            self._plan_epoch = epoch
        plan: list[list[int]] = self._plan.tolist()
        return iter(plan)

    def update(self, indices: Tensor, embeddings: Tensor) -> None:
        """Store embeddings.

        Args:
            indices: (B,), int64, images; of one that comes twice the last embedding counts.
            embeddings: (B, D), kept as float32 on the CPU, without gradient; rows that are not finite are passed over.

        Raises:
            ValueError: Shapes do not fit each other or what is stored, or a image is out of range.
        """
        rows, values = indices.detach().cpu().long(), embeddings.detach().float().cpu()
        if values.ndim != 2 or rows.shape != (len(values),):
            got = f"{tuple(indices.shape)} and {tuple(embeddings.shape)}"
            raise ValueError(f"indices, embeddings: need shapes (B,) and (B, D), got {got}")
        if len(rows) and not 0 <= int(rows.min()) <= int(rows.max()) < len(self._known):
            got = f"{int(rows.min())}..{int(rows.max())}"
            raise ValueError(f"indices: need images 0..{len(self._known) - 1}, got {got}")
        if not self._embeddings.shape[1]:
            self._embeddings = torch.zeros(len(self._known), values.shape[1])
        if values.shape[1] != self._embeddings.shape[1]:
            raise ValueError(f"embeddings: need {self._embeddings.shape[1]} channels as before, got {values.shape[1]}")
        finite = torch.isfinite(values).all(dim=1)
        for row, value in zip(rows[finite].tolist(), values[finite], strict=True):
            self._embeddings[row] = value
        self._known[rows[finite]] = True

    def state_dict(self) -> dict[str, Any]:
        """Return the stored embeddings and the plan of the current epoch, copied."""
        return {
            "embeddings": self._embeddings.clone(),
            "known": self._known.clone(),
            "offered": self._offered.clone(),
            "plan": self._plan.clone(),
            "plan_epoch": self._plan_epoch,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over a state; it must come from the same images and batch size.

        Raises:
            ValueError: Something is missing or of another size.
        """
        mine = self.state_dict()
        if set(state) != set(mine):
            raise ValueError(f"state: need {', '.join(mine)}, got {', '.join(state)}; was the sampler changed?")
        for key, axis in (("embeddings", 0), ("known", 0), ("offered", 0), ("plan", 1)):
            if state[key].shape[axis] != mine[key].shape[axis]:
                got, need = state[key].shape[axis], mine[key].shape[axis]
                raise ValueError(f"state: {key} is of {got}, here it is {need}; resume with the same data and batches")
        self._embeddings, self._known = state["embeddings"].float().cpu().clone(), state["known"].bool().cpu().clone()
        self._offered, self._plan = state["offered"].bool().cpu().clone(), state["plan"].long().cpu().clone()
        self._plan_epoch = int(state["plan_epoch"])

    def _planned(self, generator: np.random.Generator) -> list[Indices]:
        everyone, known = self._groups, self._known.numpy()
        unseen = _mask(everyone.images, len(known)) & ~known & ~self._offered.numpy()
        first_look = bool(unseen.any())
        plan: list[Indices] = []
        waiting = np.array([unseen[member].sum() for member in everyone.members])
        while len(plan) < self._length and waiting.any():
            plan.append(self._unseen_first(unseen, waiting, generator))
        self._offered[torch.from_numpy(np.concatenate([np.empty(0, np.int64), *plan]))] = True
        pools = self._pools(generator)
        while len(plan) < self._length:
            batch = self._choice.batch(pools, generator)
            if batch is None:
                self._say_balanced(first_look)
                batch = draw_balanced(everyone, self._classes, self._per_class, generator)
            plan.append(batch)
        return plan

    def _pools(self, generator: np.random.Generator) -> Pools:
        stored = self._embeddings.numpy()

        def embed(rows: Indices) -> Floats:
            points = stored[rows].astype(np.float64)
            if self._project_to is None:
                return points
            scale = np.sqrt(self._project_to)
            projected: Floats = points @ (generator.standard_normal((points.shape[1], self._project_to)) / scale)
            return projected

        known = self._groups.among(self._known.numpy())
        return Pools(self._groups, known, embed, self._classes, self._per_class, self._pool)

    def _unseen_first(self, unseen: NDArray[np.bool_], waiting: Indices, generator: np.random.Generator) -> Indices:
        """Draw a class-balanced batch, unseen images first, and strike them off `unseen` and `waiting`."""
        order = generator.permutation(len(self._groups))
        chosen = order[np.argsort(waiting[order] == 0, kind="stable")][: self._classes]
        parts = []
        for number in chosen:
            shuffled = generator.permutation(self._groups.members[number])
            taken = shuffled[np.argsort(~unseen[shuffled], kind="stable")][: self._per_class]
            waiting[number] -= unseen[taken].sum()
            unseen[taken] = False
            parts.append(taken)
        return np.concatenate(parts)

    def _say_balanced(self, first_look: bool) -> None:
        if first_look or self._warned:
            return
        self._warned = True
        warnings.warn(
            f"{type(self._choice).__name__}: only {int(self._known.sum())} of {len(self._known)} images have an "
            "embedding, too few to choose from; batches are class-balanced until update() brings more",
            stacklevel=4,
        )


def _mask(indices: Indices, size: int) -> NDArray[np.bool_]:
    mask = np.zeros(size, dtype=bool)
    mask[indices] = True
    return mask
