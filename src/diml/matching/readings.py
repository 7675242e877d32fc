"""What a learned scorer reads off images once, so that their regions need not be mapped for every comparison.

Under a linear map A the cosine of two regions is <A q, A g> / (|A q| |A g|) = <A'A q / |A q|, g> / |A g|. So only the
query is mapped, by the metric A'A. A region of the gallery stays as it is stored, and all that is needed of it are its
length under the map and the height of its dustbin: two numbers. They are kept as long as the images are, and an index
stores them.

With A = Q U, Q orthonormal and U upper triangular, lengths are |U g| and the metric is U'U: half of the products.

Legend: N images, R regions, D channels of the embedder, d channels of the map, h hidden units of the scorer's reader, M
vectors.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NamedTuple
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor

from diml.matching import native
from diml.matching.regions import QuantizedRegions, Regions

if TYPE_CHECKING:
    from diml.matching.learned import VoteScorer

Images = Regions | QuantizedRegions

#: Vectors shorter than this under the map count as zero, as in `torch.nn.functional.normalize`.
SHORTEST: Final = 1e-12

#: Regions that torch reads together.
READ_AT_ONCE: Final = 4096


class Readings(NamedTuple):
    """Of N images: lengths (N, R + 1) of their regions and, last, pooled vector under the map; dustbins (N, R)."""

    length: Tensor
    dustbin: Tensor


@dataclass(frozen=True, eq=False)
class Folded:
    """The weights of a scorer as scoring needs them, in one type on one device.

    Args:
        temperature: of the softmax.
        weights: of the map and of the reader of dustbins; the kernel takes those in float32.
    """

    temperature: float
    weights: native.ScorerWeights

    @classmethod
    def of(cls, scorer: VoteScorer, like: Tensor, spread: float) -> Folded:
        """The weights in the type and on the device of `like`; products of weights are made in float64."""
        weights = {name: part.detach().double().cpu() for name, part in scorer.state_dict().items()}
        plain = weights["map.weight"]

        def ready(part: Tensor) -> Tensor:
            return part.contiguous().to(like)

        read = native.ScorerWeights(
            upper=ready(torch.linalg.qr(plain, mode="r").R),
            inward=ready(math.sqrt(len(plain)) * weights["reader.0.weight"] @ plain),
            inward_bias=ready(weights["reader.0.bias"]),
            outward=ready(weights["reader.2.weight"][0]),
            outward_bias=float(weights["reader.2.bias"]),
            height=float(weights["height"]),
            spread=spread,
        )
        return cls(float(scorer.temperature), read)

    def by_metric(self, vectors: Tensor) -> Tensor:
        """Vectors (..., D) multiplied by A'A."""
        return (vectors @ self.weights.upper.T) @ self.weights.upper

    def read(self, packed: Tensor) -> Readings:
        """Readings of images packed as R + 1 vectors, the pooled one last, (n, R + 1, D)."""
        use = self.weights
        length = torch.linalg.vector_norm(packed @ use.upper.T, dim=2)
        dense, own = packed[:, :-1], length[:, :-1].clamp_min(SHORTEST).unsqueeze(2)
        hidden = F.gelu((dense @ use.inward.T) / own + use.inward_bias)
        return Readings(length, use.height + use.spread * torch.tanh(hidden @ use.outward + use.outward_bias))

    def packed(self, images: Images, rows: Tensor) -> Tensor:
        """(n, R + 1, D) images at `rows` (n,), the pooled vector last, in the type of the weights."""
        dense, pooled = images.gather(rows)
        return torch.cat([dense, pooled.unsqueeze(1)], dim=1).to(self.weights.upper.dtype)


@dataclass(frozen=True, eq=False)
class KnownReadings:
    """Readings of N images as far as they are known.

    Args:
        scorer_id: which scorer read them.
        over_length: (N, R + 1) 1 / length.
        dustbin: (N, R).
        known: (N,) which rows are valid; memory is allocated for all, and taken by the system where it is written.
    """

    scorer_id: str
    over_length: Tensor
    dustbin: Tensor
    known: Tensor

    @classmethod
    def none(cls, images: Images, scorer_id: str) -> KnownReadings:
        """Nothing is known of these images."""
        count, regions = len(images), images.num_regions
        made: dict[str, Any] = {"dtype": exact_type(images), "device": images.pooled.device}
        with torch.inference_mode(False):  # they may be written to in another mode than they are made in
            over_length, dustbin = torch.empty(count, regions + 1, **made), torch.empty(count, regions, **made)
            return cls(scorer_id, over_length, dustbin, torch.zeros(count, dtype=torch.bool, device=made["device"]))

    def complete(self, images: Images, rows: Tensor, folded: Folded) -> None:
        """Read the images at `rows` (n,) that are not known."""
        missing = rows[~self.known[rows]]
        if not len(missing):
            return
        missing = torch.unique(missing)
        values, scale, centroids = images.stored
        if values.dtype in native.STORED and native.suits(values, images.pooled, self.dustbin, folded.weights.upper):
            stored = native.StoredRegions(values, images.pooled, scale, centroids)
            native.read(stored, missing, folded.weights, over_length=self.over_length, dustbin=self.dustbin)
        else:
            for some in torch.split(missing, max(1, READ_AT_ONCE // images.num_regions)):
                found = folded.read(folded.packed(images, some))
                self.over_length[some] = (1 / found.length.clamp_min(SHORTEST)).to(self.over_length)
                self.dustbin[some] = found.dustbin.to(self.dustbin)
        self.known[missing] = True


#: Readings of images that are still in use, so that a gallery is read once for many queries.
_KEPT: WeakKeyDictionary[Images, KnownReadings] = WeakKeyDictionary()


def kept_readings(images: Images, scorer_id: str) -> KnownReadings:
    """What is known of these images, to be completed; it stays as long as they do, or until another scorer reads."""
    kept = _KEPT.get(images)
    if kept is None or kept.scorer_id != scorer_id:
        kept = _KEPT[images] = KnownReadings.none(images, scorer_id)
    return kept


def keep_readings(images: Images, scorer_id: str, found: Readings) -> None:
    """Have readings at hand for these images, as an index stores them; NaN where they were not computed."""
    with torch.inference_mode(False):
        length, dustbin = (part.to(images.pooled.device, exact_type(images)) for part in found)
        over_length, dustbin = 1 / length.clamp_min(SHORTEST), dustbin.clone(memory_format=torch.contiguous_format)
        _KEPT[images] = KnownReadings(scorer_id, over_length, dustbin, torch.isfinite(length[:, -1]))


def exact_type(images: Images) -> torch.dtype:
    """The type that images are computed with: float32, or float64 where they have it."""
    stored = images.dense.dtype if isinstance(images, Regions) else images.pooled.dtype
    return torch.promote_types(torch.promote_types(stored, images.pooled.dtype), torch.float32)
