"""The JSON of the API, as documented by OpenAPI. All scores are fractions; the viewer reads `ExplanationResponse`.

Legend: Rq and Rg regions of the query and of the gallery image.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, Field

Plain = str | int | float | bool | None
Grid = tuple[int, int] | None


class PairNames(BaseModel):
    """Names of the two images."""

    query: str
    gallery: str


class PairImages(BaseModel):
    """Positions of the two images in `images`."""

    query: int
    gallery: int


class ConvergenceBody(BaseModel):
    """Convergence of the transport plan."""

    converged: bool
    marginal_error: float
    iterations: int


class HitBody(BaseModel):
    """A hit and its rank."""

    id: str
    label: str = Field(description="its class, or empty")
    metadata: dict[str, Plain]
    rank: int = Field(description="from 1, after re-ranking")
    pooled_rank: int = Field(description="from 1 in the whole gallery, by the pooled cosine alone")
    reranked: bool = Field(description="whether it is among the best K, which are ranked by score")
    lift: list[float] = Field(description="(Rq) contribution of each query region minus its mean over the hits")
    correct: bool | None
    note: str


class PairBody(BaseModel):
    """Two images compared; regions are row-major."""

    names: PairNames
    score: float = Field(description="pooled + structural_weight * structural")
    pooled: float = Field(description="cosine of the pooled vectors")
    structural: float = Field(description="sum over all pairs of regions of plan * cosine")
    structural_weight: float | Literal["inf"] = Field(description="'inf': the score is structural alone")
    convergence: ConvergenceBody
    grid_q: Grid
    grid_g: Grid
    weight_q: list[float] = Field(description="(Rq) fraction of the mass that each region sends")
    weight_g: list[float] = Field(description="(Rg) fraction of the mass that each region receives")
    total_q: list[float] = Field(description="(Rq) total contribution of each region")
    total_g: list[float] = Field(description="(Rg) total contribution of each region")
    plan: list[list[float]] = Field(description="(Rq, Rg) mass, to five digits")
    cosine: list[list[float]] = Field(description="(Rq, Rg) to five digits")
    images: PairImages
    hit: HitBody | None = None


class ImageBody(BaseModel):
    """An image as the model saw it: its address on this server, or the image itself as a data URL."""

    src: str
    name: str
    width: int
    height: int


class ExplanationResponse(BaseModel):
    """One pair, or the hits of a query, best first."""

    images: list[ImageBody]
    pairs: list[PairBody]
    settings: dict[str, Plain] = Field(description="what the numbers depend on: model, matcher, rerank_at")
    seconds: float = Field(description="duration of the work")


class ItemBody(BaseModel):
    """An image of the gallery."""

    id: str
    name: str
    label: str
    metadata: dict[str, Plain]


class ItemsResponse(BaseModel):
    """Some images of the gallery."""

    items: list[ItemBody]
    offset: int


class BadImageBody(BaseModel):
    """An image that cannot be used."""

    path: str
    reason: str


class GalleryBody(BaseModel):
    """Progress of the gallery."""

    kind: Literal["folder", "index"]
    name: str
    phase: Literal["embedding", "ready", "failed"]
    done: int
    total: int
    count: int = Field(description="number of images that can be searched; 0 until it is ready")
    seconds: float = Field(description="since embedding started, until it ended")
    bad_count: int
    bad: list[BadImageBody] = Field(description="the first 50 images that were left out")
    error: str


class LimitsBody(BaseModel):
    """Limits of one request."""

    body_bytes: int
    pixels: int
    requests: int
    hits: int
    rerank_at: int


class StatusResponse(BaseModel):
    """What is served."""

    version: str
    model: str
    matcher: dict[str, Plain] = Field(description="settings of the comparison")
    keeps_uploads: bool
    limits: LimitsBody
    gallery: GalleryBody | None


class ErrorBody(BaseModel):
    """What is wrong, and how to correct it."""

    code: str
    message: str
    remedy: str


class ErrorResponse(BaseModel):
    """Every unsuccessful response."""

    error: ErrorBody
