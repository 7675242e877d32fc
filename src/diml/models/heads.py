"""From backbone features to embeddings: unchanged, through a trained linear layer, or through a fitted projection.

Every head is affine and acts on the last axis, so that the same head embeds the pooled vector and every cell.

Legend: N vectors, C channels of the backbone, D channels of the embedding.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from typing import Final, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

HeadName = Literal["identity", "linear", "whiten"]
HEADS: Final = get_args(HeadName)

#: Squared singular values are accurate to about 1e-16 of the largest; below this fraction of it they are noise.
_NOISE: Final = 1e-12


class IdentityHead(nn.Module):
    """Features unchanged: (..., C) -> (..., C)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.dim = channels

    def forward(self, features: Tensor) -> Tensor:
        """Return `features`."""
        return features


class LinearHead(nn.Linear):
    """One trained linear layer with bias, (..., C) -> (..., D), as in the paper; a 1 x 1 convolution is the same."""

    def __init__(self, channels: int, dim: int) -> None:
        super().__init__(channels, dim)
        self.dim = dim


class WhitenHead(nn.Module):
    """Half-whitening PCA, (..., C) -> (..., D): a head that is fitted on the cells of some images, without labels.

    Cells of unit length, stacked to X = U S V', are projected onto their D principal directions, each divided by the
    square root of its singular value: U S^(1/2). Halfway between PCA (S) and full whitening (S^0), it attenuates the
    few directions that all images share. The mean is not subtracted: on product photos the difference was not
    significant, and without it a blank cell remains the zero vector.

    Args:
        channels: C.
        dim: D requested; fitting on few cells can reduce it.
    """

    weight: Tensor

    def __init__(self, channels: int, dim: int) -> None:
        super().__init__()
        self.dim = dim
        self.register_buffer("weight", torch.full((dim, channels), torch.nan))

    @property
    def fitted(self) -> bool:
        """Whether `fit` was called or fitted values were loaded."""
        return bool(self.weight.isfinite().all())

    def forward(self, features: Tensor) -> Tensor:
        """Project (..., C) to (..., D); ValueError before `fit`."""
        if not self.fitted:
            raise ValueError(
                "head 'whiten' is not fitted: call embedder.fit_head(images) with images like those to be "
                "compared (a few hundred or more; no labels needed), then save the embedder"
            )
        return F.linear(features, self.weight)

    @torch.no_grad()
    def fit(self, cells: Iterable[Tensor]) -> None:
        """Fit on vectors given in blocks (n, C) of any float type; needs memory for one block and C x C numbers.

        D becomes min(dim, number of directions with any variance), with a warning when that is less than requested.

        Raises:
            ValueError: a block of another shape, values that are not finite, or only zero vectors.
        """
        channels = self.weight.shape[1]
        gram = torch.zeros(channels, channels, dtype=torch.float64)
        for block in cells:
            if block.ndim != 2 or block.shape[1] != channels:
                raise ValueError(f"cells: need blocks of shape (n, {channels}), got {tuple(block.shape)}")
            exact = F.normalize(block.detach().double().cpu(), dim=1)
            gram += exact.T @ exact
        if not torch.isfinite(gram).all():
            raise ValueError("cells: need finite values, got NaN or infinity; check the backbone's weights")
        singular, directions = _principal(gram)
        dim = min(self.dim, len(singular))
        if dim == 0:
            raise ValueError("cells: need vectors other than zero to fit head 'whiten' on; pass more images")
        if dim < self.dim:
            warnings.warn(
                f"head 'whiten': these images span {dim} directions, fewer than dim={self.dim}; the embedding gets "
                f"{dim} channels. Fit on more images, or ask for dim={dim}",
                stacklevel=3,
            )
        self.weight = (directions[:dim] / singular[:dim, None].sqrt()).to(self.weight)
        self.dim = dim


Head = IdentityHead | LinearHead | WhitenHead


def build_head(name: HeadName, channels: int, dim: int) -> Head:
    """Return a new head.

    Args:
        name: "identity", "linear" or "whiten".
        channels: C of the backbone.
        dim: D requested, at least 1; "identity" ignores it and keeps C.

    Raises:
        ValueError: no head has that name; `dim` below 1, or above C for "whiten".
    """
    if name not in HEADS:
        raise ValueError(f"head: need one of {', '.join(HEADS)}, got {name!r}")
    if name == "identity":
        return IdentityHead(channels)
    if isinstance(dim, bool) or not isinstance(dim, int) or dim < 1:
        raise ValueError(f"dim: need an integer of at least 1, got {dim!r}")
    if name == "linear":
        return LinearHead(channels, dim)
    if dim > channels:
        raise ValueError(f"dim: head 'whiten' has at most the {channels} channels of the backbone, got {dim}")
    return WhitenHead(channels, dim)


def _principal(gram: Tensor) -> tuple[Tensor, Tensor]:
    """Singular values (r,), largest first, and directions (r, C) of vectors with this Gram matrix (C, C).

    The sign of a direction is arbitrary; its largest entry is made positive, so that all machines agree on it.
    """
    squares, vectors = torch.linalg.eigh(gram)
    squares, directions = squares.flip(0), vectors.T.flip(0)
    real = (squares > _NOISE * squares[0]) & (squares > 0)
    squares, directions = squares[real], directions[real]
    largest = directions.gather(1, directions.abs().argmax(dim=1, keepdim=True))
    return squares.sqrt(), directions * largest.sign()
