"""The JSON of the API, as OpenAPI tells it. All numbers are fractions; `Explanation` is what the viewer takes."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, Field

Plain = str | int | float | bool | None
Grid = tuple[int, int] | None


class Names(BaseModel):
    """What the two images are called."""

    query: str
    gallery: str


class Places(BaseModel):
    """Rows of `images`."""

    query: int
    gallery: int


class Convergence(BaseModel):
    """Whether the plan is done."""

    converged: bool
    marginal_error: float
    iterations: int


class HitFacts(BaseModel):
    """A hit and its place among the others."""

    id: str
    label: str = Field(description="its class, or empty")
    metadata: dict[str, Plain]
    rank: int = Field(description="from 1, after re-ranking")
    pooled_rank: int = Field(description="from 1 in the whole gallery, by the pooled cosine alone")
    reranked: bool = Field(description="whether it was among the best K, which are ranked by score")
    lift: list[float] = Field(description="(Rq) what each query region contributes, less the mean over the hits")
    correct: bool | None
    note: str


class Pair(BaseModel):
    """Two images compared; `cells` are row-major, Rq and Rg of them."""

    names: Names
    score: float = Field(description="pooled + structural")
    pooled: float = Field(description="cosine of the images as wholes")
    structural: float = Field(description="sum over all pairs of regions of plan * cosine")
    convergence: Convergence
    grid_q: Grid
    grid_g: Grid
    weight_q: list[float] = Field(description="(Rq) share of the mass that each region sends")
    weight_g: list[float] = Field(description="(Rg) share of the mass that each region receives")
    total_q: list[float] = Field(description="(Rq) what each region contributes in all")
    total_g: list[float]
    plan: list[list[float]] = Field(description="(Rq, Rg) mass, to five digits")
    cosine: list[list[float]] = Field(description="(Rq, Rg) to five digits")
    images: Places
    hit: HitFacts | None = None


class Image(BaseModel):
    """What the model saw of a image: its address here, or the image itself as a data URL."""

    src: str
    name: str
    width: int
    height: int


class Explanation(BaseModel):
    """One pair, or the hits of a query, best first."""

    images: list[Image]
    pairs: list[Pair]
    settings: dict[str, Plain] = Field(description="what the numbers depend on")
    seconds: float = Field(description="that the work took")


class Item(BaseModel):
    """A image of the gallery."""

    id: str
    name: str
    label: str
    metadata: dict[str, Plain]


class Items(BaseModel):
    """Some images of the gallery."""

    items: list[Item]
    offset: int


class LeftOut(BaseModel):
    """A image that cannot be used."""

    path: str
    reason: str


class GalleryStatus(BaseModel):
    """How far the gallery is."""

    kind: Literal["folder", "index"]
    name: str
    phase: Literal["embedding", "ready", "failed"]
    done: int
    total: int
    count: int = Field(description="images that can be searched; 0 until it is ready")
    seconds: float = Field(description="since embedding began, until it ended")
    bad_count: int
    bad: list[LeftOut] = Field(description="the first 50 that were left out")
    trouble: str


class LimitsStatus(BaseModel):
    """What one request may ask for."""

    body_bytes: int
    pixels: int
    requests: int
    hits: int
    rerank: int


class Status(BaseModel):
    """What is served."""

    version: str
    model: str
    keeps_uploads: bool
    limits: LimitsStatus
    gallery: GalleryStatus | None


class ErrorBody(BaseModel):
    """What is wrong, and what to do about it."""

    code: str
    message: str
    remedy: str


class Refusal(BaseModel):
    """Every answer that is no success."""

    error: ErrorBody
