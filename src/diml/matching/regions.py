"""The representation of images that the method compares: a pooled vector and the vectors of the regions.

Legend: N images, R regions, D channels, H x W cells of a feature map.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils._pytree import GetAttrKey, register_pytree_node

from diml.matching.codebooks import Codebooks, group_count
from diml.matching.weights import normalize_mass

#: Steps of a 16-bit code per unit; the longest vector of such codes whose products sum to less than 2^31.
SHORTS_PER_UNIT, LONGEST_CODE = 32000, 46340

#: Images that are quantised together, so that copies in float32 stay small.
AT_ONCE = 1024

#: Why regions have no shares of the pooled vector, unless something else is the reason.
NOT_COMPUTED = "shares of the pooled vector were not computed; use embedder.embed(images, shares=True)"

#: Why regions have no masses of their own, unless something else is the reason.
NO_MASSES = "these regions were made without them; embedder.embed computes them for a plain vision transformer of timm"

#: How far from 1 the masses of an image may sum, in float32.
MASS_TOLERANCE = 1e-3

#: How far from 1 the length of a stored vector may be: what rounding to the storage type can do, with a margin.
UNIT_TOLERANCE = {torch.bfloat16: 2e-2, torch.float16: 5e-3, torch.float32: 1e-3, torch.float64: 1e-3}


@dataclass(frozen=True, eq=False, repr=False)
class Regions:
    """Embeddings of N images: unit vectors of each whole image and of its regions.

    A region whose features are all zero (a blank cell under a ReLU) keeps the zero vector, whose cosine with
    everything is 0. Vectors of another length than 0 or 1 raise; `normalized` and `from_maps` take raw features.

    Args:
        dense: (N, R, D) float16, bfloat16, float32 or float64; one unit vector a region, row-major over the grid.
        pooled: (N, D), one unit vector an image; same dtype and device as `dense`.
        grid: (rows, columns) of the regions, rows * columns = R; inferred when omitted and R is a square.
        shares: (N, R, D), like `dense`: the part of the pooled vector that comes from each region; they sum to `pooled`
            over the regions. None where they were not computed or the pooled vector is no such sum. Explanations need
            them to divide the pooled cosine among pairs of regions; scores and rankings do not.
        undivided: why there are no shares.
        masses: (N, R) float32, the mass of each region as the network itself weighs it (attention rollout), at least 0,
            rows summing to 1; they depend on the image alone. `Matcher(weights="rollout")` needs them.
        massless: why there are no masses.

    Raises:
        TypeError, ValueError: no float tensor; a wrong shape, dtype, value or length.
    """

    dense: Tensor
    pooled: Tensor
    grid: tuple[int, int] | None = None
    shares: Tensor | None = None
    undivided: str = NOT_COMPUTED
    masses: Tensor | None = None
    massless: str = NO_MASSES

    def __post_init__(self) -> None:
        object.__setattr__(self, "grid", _check(self.dense, self.pooled, self.grid))
        if self.shares is not None:
            _check_shares(self.shares, self.dense, self.pooled)
        if self.masses is not None:
            check_masses(self.masses, self.dense)
        for name, vectors in (("dense", self.dense), ("pooled", self.pooled)):
            length = torch.linalg.vector_norm(vectors.to(torch.promote_types(vectors.dtype, torch.float32)), dim=-1)
            wrong = ((length - 1).abs() > UNIT_TOLERANCE[vectors.dtype]) & (length > 0)
            if wrong.any():
                raise ValueError(
                    f"{name}: need unit (or zero) vectors, got length {length[wrong][0].item():.4g} in "
                    f"{_first_images(wrong)}; use Regions.normalized(dense, pooled)"
                )

    @classmethod
    def normalized(
        cls,
        dense: Tensor,
        pooled: Tensor,
        grid: tuple[int, int] | None = None,
        *,
        shares: Tensor | None = None,
        undivided: str = NOT_COMPUTED,
        masses: Tensor | None = None,
        massless: str = NO_MASSES,
    ) -> Regions:
        """Bring raw features (N, R, D) and (N, D) to unit length, once differentiable; zero vectors stay zero.

        `shares` (N, R, D), which sum to the raw pooled vectors, are scaled with these, and `masses` (N, R) to sum to 1,
        without gradient.
        """
        grid = _check(dense, pooled, grid)
        unit = _unit(pooled)
        if shares is not None:
            _check_shape(shares, dense)
            shares = _over_length_of(pooled.detach(), shares.detach())
            _check_shares(shares, dense, unit.detach())
        if masses is not None:
            masses = _scaled_masses(masses, dense)
        return cls._trusted(_unit(dense), unit, grid, shares, undivided, masses, massless)

    @classmethod
    def from_maps(cls, maps: Any, *, shares: bool = False, masses: Any = None, massless: str = NO_MASSES) -> Regions:
        """Regions of feature maps: every cell is a region, the pooled vector is the mean of the cells.

        Args:
            maps: (N, D, H, W) float tensor or numpy array; a tensor's gradient is kept.
            shares: also keep the share of the pooled vector of each cell, which doubles the memory.
            masses: (N, H, W) tensor or array, the mass of each cell, at least 0 and of any scale: attention of your own
                network, for instance. For `Matcher(weights="rollout")`.
            massless: why there are no masses.

        Returns:
            Regions with grid (H, W), all vectors at unit length.

        Example:
            >>> Regions.from_maps(numpy.load("maps.npy"))
        """
        maps = maps if isinstance(maps, Tensor) else torch.as_tensor(maps)
        if maps.ndim != 4:
            raise ValueError(f"maps: need shape (N, D, H, W), got {tuple(maps.shape)}; one image needs a batch axis")
        dense = maps.flatten(2).transpose(1, 2)
        parts = dense.detach() / dense.shape[1] if shares else None
        if masses is not None:
            masses = masses if isinstance(masses, Tensor) else torch.as_tensor(masses)
            if masses.shape != (len(maps), *maps.shape[2:]):
                needed = f"(N, H, W) of the maps, {(len(maps), *maps.shape[2:])}"
                raise ValueError(f"masses: need shape {needed}, got {tuple(masses.shape)}")
            masses = masses.flatten(1).to(dense.device)
        given: dict[str, Any] = {"shares": parts, "masses": masses, "massless": massless}
        return cls.normalized(dense, dense.mean(dim=1), grid=(maps.shape[2], maps.shape[3]), **given)

    @classmethod
    def cat(cls, parts: Sequence[Regions]) -> Regions:
        """Concatenate several Regions; ValueError where they differ in grid, R or D.

        Shares and masses are kept where all parts have them.
        """
        kinds = {f"grid {part.grid}, R {part.num_regions}, D {part.dim}" for part in parts}
        if len(kinds) != 1:
            raise ValueError(
                f"parts: need Regions with one grid, R and D, got {sorted(kinds) or 'none'}; embed all with one model"
            )
        pooled = torch.cat([part.pooled for part in parts])
        found = [part.shares for part in parts if part.shares is not None]
        shares = torch.cat(found) if len(found) == len(parts) else None
        undivided = next((part.undivided for part in parts if part.shares is None), parts[0].undivided)
        dense = torch.cat([part.dense for part in parts])
        weighed = [part.masses for part in parts if part.masses is not None]
        masses = torch.cat(weighed) if len(weighed) == len(parts) else None
        massless = next((part.massless for part in parts if part.masses is None), parts[0].massless)
        return cls._trusted(dense, pooled, parts[0].grid, shares, undivided, masses, massless)

    @classmethod
    def _trusted(
        cls,
        dense: Tensor,
        pooled: Tensor,
        grid: tuple[int, int] | None,
        shares: Tensor | None = None,
        undivided: str = NOT_COMPUTED,
        masses: Tensor | None = None,
        massless: str = NO_MASSES,
    ) -> Regions:
        """Build without checks, from tensors known to be valid."""
        regions = object.__new__(cls)
        given = {"shares": shares, "undivided": undivided, "masses": masses, "massless": massless}
        vars(regions).update(dense=dense, pooled=pooled, grid=grid, **given)
        return regions

    @property
    def num_regions(self) -> int:
        """R, the number of regions of each image."""
        return self.dense.shape[1]

    @property
    def dim(self) -> int:
        """D, the length of each vector."""
        return self.dense.shape[2]

    def __len__(self) -> int:
        return self.dense.shape[0]

    def __getitem__(self, index: Any) -> Regions:
        """Images by integer (then N = 1), slice, list or tensor of indices, or boolean mask."""
        rows = torch.arange(len(self))[index.cpu() if isinstance(index, Tensor) else index]
        if rows.ndim > 1:
            raise IndexError(f"index: need images by integer, slice, list or 1-D tensor, got {type(index).__name__}")
        index = index if isinstance(index, slice) else rows.reshape(-1)
        shares, masses = (None if part is None else part[index] for part in (self.shares, self.masses))
        dense, pooled = self.dense[index], self.pooled[index]
        return self._trusted(dense, pooled, self.grid, shares, self.undivided, masses, self.massless)

    def to(self, *args: Any, **kwargs: Any) -> Regions:
        """Move or convert like `Tensor.to`; `regions.to(torch.float16)` halves the storage. Masses stay float32."""
        shares = None if self.shares is None else self.shares.to(*args, **kwargs)
        dense, pooled = self.dense.to(*args, **kwargs), self.pooled.to(*args, **kwargs)
        masses = None if self.masses is None else self.masses.to(dense.device)
        return self._trusted(dense, pooled, self.grid, shares, self.undivided, masses, self.massless)

    def quantized(
        self, dtype: torch.dtype | Literal["1kb"] = torch.int8, *, codebooks: Codebooks | None = None
    ) -> QuantizedRegions:
        """Codes of the regions; see `QuantizedRegions`.

        Args:
            dtype: int8, a quarter of float32; int16, a half and the fastest; or "1kb", 32 bytes a region at most, which
                with 16 regions and 128 channels makes a kilobyte of an image, pooled vector included.
            codebooks: with "1kb", of the gallery that these images join; fitted on them when omitted, for which they
                have to have 1,024 regions at least.

        Raises:
            TypeError, ValueError: another dtype, too few regions to fit codes, or codebooks of another D.
        """
        if dtype == "1kb":
            return self._coded(Codebooks.fit(self.dense) if codebooks is None else codebooks)
        if dtype not in (torch.int8, torch.int16):
            need = "torch.int8, torch.int16 or '1kb'"
            raise TypeError(f"dtype: need {need}, got {dtype}; .to() converts to float types")
        if codebooks is not None:
            raise ValueError(f"codebooks: need dtype '1kb' with them, got {dtype}; omit them")
        codes = torch.empty(self.dense.shape, dtype=dtype, device=self.dense.device)
        scale = codes.new_full(codes.shape[:2], 1 / SHORTS_PER_UNIT, dtype=torch.float32)
        for start in range(0, len(self), AT_ONCE):
            some = slice(start, start + AT_ONCE)
            dense = self.dense[some].to(torch.promote_types(self.dense.dtype, torch.float32))
            if dtype == torch.int16:
                codes[some] = (dense * SHORTS_PER_UNIT).round_()
            else:
                largest = dense.abs().amax(dim=2, keepdim=True)
                rounded = (dense * (127 / torch.where(largest > 0, largest, 1))).round_()
                length = torch.linalg.vector_norm(rounded, dim=2)
                codes[some], scale[some] = rounded, torch.where(length > 0, 1 / length, 0)
        regions = object.__new__(QuantizedRegions)  # without its checks
        masses = {"masses": self.masses, "massless": self.massless}
        vars(regions).update(codes=codes, scale=scale, pooled=self.pooled, grid=self.grid, codebooks=None, **masses)
        return regions

    def _coded(self, codebooks: Codebooks) -> QuantizedRegions:
        codes = codebooks.encode(self.dense)
        return QuantizedRegions(codes, None, self.pooled, self.grid, self.masses, self.massless, codebooks)

    @property
    def stored(self) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """The vectors of the regions as they are stored; their scale and centroids, which floats do not have."""
        return self.dense, None, None

    def gather(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Regions (..., R, D) and pooled vectors (..., D) of images at `rows` (...), int64."""
        return self.dense[rows], self.pooled[rows]

    def __repr__(self) -> str:
        return _described(self, self.dense)


@dataclass(frozen=True, eq=False, repr=False)
class QuantizedRegions:
    """A gallery of N images whose regions are stored as integers, made by `Regions.quantized`, for re-ranking.

    A region is codes * scale, of unit length up to rounding; indexing gives float32 `Regions` again. With int8 each
    region has its own scale. With int16 all have 1 / SHORTS_PER_UNIT; regions of the query, and pooled vectors where
    they weigh regions, are rounded to such steps too, which changes cosines by about 1e-5: products of 16-bit integers
    are the fastest on a CPU. With "1kb" a region is S numbers of centroids, which `codebooks` decode to integers over
    their length; queries are rounded as with int16.

    Args:
        codes: (N, R, D) int8 or int16, or (N, R, S) uint8 with `codebooks`.
        scale: (N, R) float32; None with `codebooks`.
        pooled: (N, D) unit vectors, float16 to float64.
        grid: (rows, columns) of the regions, or None.
        masses: (N, R) float32, as of `Regions`; they are not rounded.
        massless: why there are no masses.
        codebooks: of "1kb", else None.

    Raises:
        TypeError, ValueError: a wrong dtype or shape.
    """

    codes: Tensor
    scale: Tensor | None
    pooled: Tensor
    grid: tuple[int, int] | None = None
    masses: Tensor | None = None
    massless: str = NO_MASSES
    codebooks: Codebooks | None = None

    def __post_init__(self) -> None:
        if self.codebooks is None:
            self._check_scaled()
        else:
            self._check_coded(self.codebooks)
        for codes in torch.split(self.codes, AT_ONCE) if self.codes.dtype == torch.int16 else ():
            if (torch.linalg.vector_norm(codes.float(), dim=2) > LONGEST_CODE).any():
                raise ValueError(f"codes: need int16 vectors of length {LONGEST_CODE} at most; use Regions.quantized")
        if self.masses is not None:
            check_masses(self.masses, self.codes)

    def _check_scaled(self) -> None:
        kinds = (self.codes.dtype, None if self.scale is None else self.scale.dtype)
        fits = kinds[0] in (torch.int8, torch.int16) and kinds[1] == torch.float32
        if not fits or self.pooled.dtype not in UNIT_TOLERANCE:
            got = f"{kinds[0]}, {kinds[1]} and {self.pooled.dtype}"
            raise TypeError(f"codes, scale, pooled: need int8 or int16, float32 and a float type, got {got}")
        assert self.scale is not None
        shape = tuple(self.codes.shape)
        if len(shape) != 3 or self.scale.shape != shape[:2] or self.pooled.shape != (shape[0], shape[2]):
            got = f"{shape}, {tuple(self.scale.shape)} and {tuple(self.pooled.shape)}"
            raise ValueError(f"codes, scale, pooled: need (N, R, D), (N, R) and (N, D), got {got}")

    def _check_coded(self, codebooks: Codebooks) -> None:
        if self.codes.dtype != torch.uint8 or self.scale is not None or self.pooled.dtype not in UNIT_TOLERANCE:
            got = f"{self.codes.dtype}, {'no' if self.scale is None else 'a'} scale and {self.pooled.dtype}"
            raise TypeError(f"codes, scale, pooled: need uint8, no scale and a float type with codebooks, got {got}")
        shape, groups = tuple(self.codes.shape), group_count(codebooks.dim)
        if len(shape) != 3 or shape[2] != groups or self.pooled.shape != (shape[0], codebooks.dim):
            need, got = f"(N, R, {groups}) and (N, {codebooks.dim})", f"{shape} and {tuple(self.pooled.shape)}"
            raise ValueError(f"codes, pooled: need {need} as the codebooks, got {got}")

    @property
    def num_regions(self) -> int:
        """R, the number of regions of each image."""
        return self.codes.shape[1]

    @property
    def dim(self) -> int:
        """D, the length of each vector."""
        return self.codes.shape[2] if self.codebooks is None else self.codebooks.dim

    def __len__(self) -> int:
        return self.codes.shape[0]

    def __getitem__(self, index: Any) -> Regions:
        """Images as float32 `Regions`, indexed like those."""
        rows = torch.arange(len(self), device=self.codes.device)[index].reshape(-1)
        masses = None if self.masses is None else self.masses[rows]
        return Regions._trusted(*self.gather(rows), self.grid, masses=masses, massless=self.massless)

    @property
    def rounds_queries(self) -> bool:
        """Whether what is compared with these is rounded to steps of 16-bit codes."""
        return self.codes.dtype == torch.int16 or self.codebooks is not None

    @property
    def stored(self) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """The codes of the regions; their scale, or the centroids that they stand for (S, 256, w)."""
        return self.codes, self.scale, None if self.codebooks is None else self.codebooks.centroids

    def gather(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Regions (..., R, D) and pooled vectors (..., D) in float32 of images at `rows` (...), int64."""
        if self.codebooks is not None:
            return self.codebooks.decode(self.codes[rows]), self.pooled[rows].float()
        assert self.scale is not None
        return self.codes[rows] * self.scale[rows].unsqueeze(-1), self.pooled[rows].float()

    def __repr__(self) -> str:
        return _described(self, self.codes)


def _described(regions: Regions | QuantizedRegions, stored: Tensor) -> str:
    """One line: images, regions, channels, type of storage, device."""
    grid = f"{regions.grid[0]} x {regions.grid[1]}" if regions.grid else str(regions.num_regions)
    kind = "1kb" if stored.dtype == torch.uint8 else str(stored.dtype).removeprefix("torch.")
    return f"{type(regions).__name__}({len(regions)} images, {grid} regions, D {regions.dim}, {kind}, {stored.device})"


def _unit(vectors: Tensor) -> Tensor:
    """Unit length in float32 or better; where squares may be out of range, the largest entry is divided out first."""
    exact = vectors.to(torch.promote_types(vectors.dtype, torch.float32))
    length, shortest = torch.linalg.vector_norm(exact.detach(), dim=-1, keepdim=True), 1e-15
    # While a graph is recorded, lengths are not known: the way that always holds is taken.
    if torch.compiler.is_compiling() or not ((length > shortest) & (length < 1 / shortest)).all():
        largest = exact.detach().abs().amax(dim=-1, keepdim=True)
        exact, shortest = exact / torch.where(largest > 0, largest, 1), 0.5
        length = torch.linalg.vector_norm(exact.detach(), dim=-1, keepdim=True)
    unit: Tensor = _OverLength.apply(exact, length.clamp_min(shortest))
    return unit.to(vectors.dtype)


class _OverLength(torch.autograd.Function):
    """Vectors (..., D) divided by their lengths (..., 1); backward takes a third of autograd's passes over memory."""

    @staticmethod
    def forward(ctx: Any, vectors: Tensor, length: Tensor) -> Tensor:
        unit = vectors / length
        ctx.save_for_backward(unit, length)
        return unit

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        unit, length = ctx.saved_tensors
        along = torch.linalg.vecdot(unit, gradients[0]).unsqueeze(-1)
        return torch.addcmul(gradients[0], unit, along, value=-1).div_(length), None


def _check(dense: Tensor, pooled: Tensor, grid: tuple[int, int] | None) -> tuple[int, int] | None:
    """Check all but the lengths; return the grid, recognised when it is None and R a square."""
    for name, tensor, axes in (("dense", dense, "(N, R, D)"), ("pooled", pooled, "(N, D)")):
        if not isinstance(tensor, Tensor) or tensor.dtype not in UNIT_TOLERANCE:
            got = str(tensor.dtype) if isinstance(tensor, Tensor) else type(tensor).__name__
            raise TypeError(f"{name}: need a floating-point tensor {axes}, got {got}; convert with .float()")
        if tensor.ndim != axes.count(",") + 1 or 0 in tensor.shape[1:]:
            raise ValueError(f"{name}: need shape {axes} with R, D >= 1, got {tuple(tensor.shape)}")
        if torch.compiler.is_compiling():  # values are not known while a graph is recorded
            continue
        if not tensor.detach().sum(dtype=torch.float64).isfinite():  # one pass, where all is well
            wrong = ~torch.isfinite(tensor)
            if wrong.any():
                raise ValueError(f"{name}: need finite values, got NaN or infinity in {_first_images(wrong)}")
    first, second = ((side.shape[0], side.shape[-1], side.dtype, str(side.device)) for side in (dense, pooled))
    if first != second:
        raise ValueError(f"dense, pooled: need the same (N, D, dtype, device), got {first} and {second}")
    regions, side = dense.shape[1], math.isqrt(dense.shape[1])
    if grid is None:
        return (side, side) if side * side == regions else None
    if len(grid) != 2 or min(grid) < 1 or grid[0] * grid[1] != regions:
        raise ValueError(f"grid: need (rows, columns) with rows * columns = {regions} regions, got {grid}")
    return (int(grid[0]), int(grid[1]))


def _check_shape(shares: Tensor, dense: Tensor) -> None:
    kinds = [(tuple(side.shape), side.dtype, str(side.device)) for side in (shares, dense)]
    if kinds[0] != kinds[1]:
        raise ValueError(f"shares: need shape, dtype and device of dense, {kinds[1]}, got {kinds[0]}")


def _check_shares(shares: Tensor, dense: Tensor, pooled: Tensor) -> None:
    """Raise ValueError where shares do not fit, or do not sum to the unit vectors `pooled` up to rounding."""
    _check_shape(shares, dense)
    exact = shares.to(torch.promote_types(shares.dtype, torch.float32))
    error = torch.linalg.vector_norm(exact.sum(dim=1) - pooled, dim=-1)
    size = torch.linalg.vector_norm(exact, dim=-1).sum(dim=1)  # above 1 where regions cancel each other
    wrong = ~(error <= UNIT_TOLERANCE[shares.dtype] * size.clamp_min(1))
    if wrong.any():
        raise ValueError(
            f"shares: need vectors that sum to the pooled vector over the regions, got a difference of length "
            f"{error[wrong][0].item():.4g} in {_first_images(wrong)}"
        )


def _scaled_masses(masses: Tensor, dense: Tensor) -> Tensor:
    """Masses (N, R) of any scale as float32 rows that sum to 1, without gradient; ValueError where there are none."""
    given = masses.detach().float()
    if not torch.compiler.is_compiling():
        wrong = ~(torch.isfinite(given) & (given >= 0))
        if wrong.any():
            raise ValueError(f"masses: need finite values of at least 0, got others in {_first_images(wrong)}")
    scaled = normalize_mass(given)
    check_masses(scaled, dense)
    return scaled


def check_masses(masses: Tensor, regions: Tensor) -> None:
    """Raise TypeError or ValueError where masses do not fit the vectors (N, R, D) of the regions."""
    if not isinstance(masses, Tensor) or masses.dtype != torch.float32:
        kind = str(masses.dtype) if isinstance(masses, Tensor) else type(masses).__name__
        raise TypeError(f"masses: need a float32 tensor (N, R), got {kind}; convert with .float()")
    needed, got = (tuple(regions.shape[:2]), str(regions.device)), (tuple(masses.shape), str(masses.device))
    if got != needed:
        raise ValueError(f"masses: need shape (N, R) and device of the regions, {needed}, got {got}")
    if torch.compiler.is_compiling():  # values are not known while a graph is recorded
        return
    wrong = ~((masses >= 0).all(dim=1) & ((masses.sum(dim=1) - 1).abs() <= MASS_TOLERANCE))
    if wrong.any():
        raise ValueError(
            f"masses: need masses of at least 0 that sum to 1 an image, got {masses[wrong][0].sum().item():.4g} in "
            f"{_first_images(wrong)}; Regions.normalized scales them"
        )


def _over_length_of(pooled: Tensor, shares: Tensor) -> Tensor:
    """Shares (N, R, D) of raw pooled vectors (N, D) divided by the lengths of these; zero for zero vectors."""
    largest = pooled.abs().amax(dim=-1, keepdim=True)
    divisor = torch.where(largest > 0, largest, 1)
    exact = torch.promote_types(shares.dtype, torch.float32)
    length = torch.linalg.vector_norm(pooled.to(exact) / divisor, dim=-1, keepdim=True).clamp_min(0.5)
    scaled = shares.to(exact) / divisor.unsqueeze(1) / length.unsqueeze(1)
    return torch.where(largest.unsqueeze(1) > 0, scaled, 0).to(shares.dtype)


def _first_images(wrong: Tensor) -> str:
    bad = wrong.reshape(len(wrong), -1).any(dim=1)
    return f"{int(bad.sum())} of {len(bad)} images, the first {int(bad.int().argmax())}"


def _children(regions: Regions) -> tuple[list[Tensor | None], tuple[Any, ...]]:
    tensors = [regions.dense, regions.pooled, regions.shares, regions.masses]
    return tensors, (regions.grid, regions.undivided, regions.massless)


def _from_children(tensors: Any, told: tuple[Any, ...]) -> Regions:
    (dense, pooled, shares, masses), (grid, undivided, massless) = tensors, told
    return Regions._trusted(dense, pooled, None if grid is None else tuple(grid), shares, undivided, masses, massless)


# With this `torch.export` and `torch.compile` know what an embedder returns. torch has no public name for it that all
# versions since 2.4 share.
register_pytree_node(
    Regions,
    _children,
    _from_children,
    serialized_type_name="diml.Regions",
    to_dumpable_context=list,
    from_dumpable_context=tuple,
    flatten_with_keys_fn=lambda regions: (
        [(GetAttrKey(name), getattr(regions, name)) for name in ("dense", "pooled", "shares", "masses")],
        _children(regions)[1],
    ),
)
