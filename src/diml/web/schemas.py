"""The JSON of the API, as documented by OpenAPI. All scores are fractions; the viewer reads `ExplanationResponse`.

Legend: Rq and Rg regions of the query and of the gallery image.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from diml.web.facets import Facet

Plain = str | int | float | bool | None
Grid = tuple[int, int] | None


class OpenBody(BaseModel):
    """A body that may have further fields, which explanations gain between versions; they are passed on."""

    model_config = ConfigDict(extra="allow")


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


class TermBody(BaseModel):
    """A term of a score."""

    value: float
    share: float | None = Field(description="of the score; null where that is close to zero or negative")


class PartBody(OpenBody):
    """A group of regions of both images that match."""

    part: int = Field(description="from 1, the largest first")
    value: float
    share: float | None
    mass: float
    cosine: float
    regions_q: list[int]
    regions_g: list[int]
    connected_q: bool
    connected_g: bool
    place_q: str = Field(description="where in the image, in words")
    place_g: str


class UnmatchedSideBody(BaseModel):
    """What of one image has no counterpart."""

    mass: float
    regions: list[int]


class UnmatchedBody(BaseModel):
    """What of either image has no counterpart."""

    query: UnmatchedSideBody
    gallery: UnmatchedSideBody


class ThresholdBody(OpenBody):
    """The score from which pairs are accepted at a false-accept rate."""

    score: float
    false_accept_rate: float
    above: bool


class MarkBody(OpenBody):
    """A typical score of this model."""

    value: float
    kind: str
    label: str


class BandBody(OpenBody):
    """A range of typical scores of this model."""

    kind: str
    low: float
    high: float


class ScaleBody(OpenBody):
    """A scale common to all pairs of a model."""

    low: float
    high: float
    marks: list[MarkBody]
    bands: list[BandBody]


class SummaryBody(OpenBody):
    """What there is to say about a pair to somebody who does not know the method."""

    headline: str = Field(description="how likely both show the same; the similarity without a calibration")
    sentence: str = Field(description="what the similarity consists of")
    score: float = Field(description="sum of what is shown: parts + between (+ pooled)")
    ranked_by: float | None = Field(description="the score by which pairs are ranked, where it differs")
    plan: str
    whole: bool = Field(description="whether the parts divide the whole score, the pooled cosine included")
    undivided: str = Field(description="if not, why")
    parts: list[PartBody]
    between: TermBody
    overall: bool = Field(description="whether `between` is mainly the overall look, every region with every other")
    pooled: TermBody | None
    unmatched: UnmatchedBody | None
    background: dict[str, float] | None
    probability: float | None
    threshold: ThresholdBody | None
    scale: ScaleBody
    warnings: list[str]
    hints: list[str]


class VerdictBody(BaseModel):
    """Whether the query is in the gallery at all, by the score of the first hit."""

    likely: bool
    threshold: float
    false_accept_rate: float = Field(description="of queries missing from the gallery, how many reach the threshold")
    promised: bool = Field(description="with 95 % confidence; else estimated")
    gallery_images: int
    detected: float | None = Field(description="of queries that are in the gallery, how many reach the threshold")
    kind: str
    sentence: str


class CalibrationBody(BaseModel):
    """Where probabilities come from."""

    place: str
    model: str
    data: str
    kind: str = Field(description="what images of one class have in common, such as 'product'")
    classes: int
    images: int
    pairs: str
    prior: float
    depth: int
    separates: bool = Field(description="whether the scores of this model tell classes apart")


class HitBody(BaseModel):
    """A hit and its rank."""

    id: str
    label: str = Field(description="its class, or empty")
    metadata: dict[str, Plain]
    rank: int = Field(description="from 1, after re-ranking")
    pooled_rank: int = Field(description="from 1 in the whole gallery, by the pooled cosine alone")
    reranked: bool = Field(description="whether it is among the best K, which are ranked by score")
    probability: float | None = Field(
        default=None, description="that it is of the query's class, among the other candidates; null if not re-ranked"
    )
    lift: list[float] = Field(description="(Rq) contribution of each query region minus its mean over the hits")
    correct: bool | None
    note: str


class PairBody(OpenBody):
    """Two images compared; regions are row-major."""

    names: PairNames
    summary: SummaryBody
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


class ItemBody(BaseModel):
    """An image of the gallery."""

    id: str
    name: str
    label: str
    metadata: dict[str, Plain]


class ExplanationResponse(BaseModel):
    """One pair, or the hits of a query, best first."""

    images: list[ImageBody]
    pairs: list[PairBody]
    in_gallery: VerdictBody | None = Field(default=None, description="of a search with a calibration")
    notices: list[str] = Field(default=[], description="what has to be said of the numbers, one line each")
    own: list[ItemBody] = Field(default=[], description="images left out because their file is that of the query")
    settings: dict[str, Plain] = Field(description="what the numbers depend on: model, matcher, rerank_at")
    seconds: float = Field(description="duration of the work")


class ItemsResponse(BaseModel):
    """Some images of the gallery."""

    items: list[ItemBody]
    offset: int
    total: int = Field(description="images that the text and the condition leave")


class FacetValueBody(BaseModel):
    """A value of a column."""

    value: str | bool
    count: int


class FacetBody(BaseModel):
    """A column of the index, and what can be chosen of it."""

    name: str
    type: Literal["text", "integer", "number", "boolean"]
    kind: Literal["values", "range", "text"] = Field(
        description="few values, each with its count; numbers with their range; or too many texts to choose from"
    )
    values: list[FacetValueBody]
    low: int | float | None
    high: int | float | None
    missing: int = Field(description="images without a value")

    @classmethod
    def of(cls, facet: Facet) -> FacetBody:
        """The body of a counted column."""
        values = [FacetValueBody(value=value, count=count) for value, count in facet.values]
        return cls(**{**vars(facet), "values": values})


class FacetsResponse(BaseModel):
    """The columns of the index; none of a folder."""

    columns: list[FacetBody]


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
    calibration: CalibrationBody | None = Field(description="null without one; then there are no probabilities")
    calibration_notice: str = Field(description="why a calibration that is there is not used")
    keeps_uploads: bool
    limits: LimitsBody
    gallery: GalleryBody | None


class ProbeResponse(BaseModel):
    """What a probe asks."""

    status: Literal["ok", "ready"]


class ErrorBody(BaseModel):
    """What is wrong, and how to correct it."""

    code: str
    message: str
    remedy: str


class ErrorResponse(BaseModel):
    """Every unsuccessful response."""

    error: ErrorBody


class WrittenResponse(BaseModel):
    """An image that was put into the index."""

    id: str
    name: str = Field(description="its path")
    metadata: dict[str, Plain]
    created: bool = Field(description="whether there was no image of this path before")


class RemovedResponse(BaseModel):
    """An image that was taken out of the index."""

    id: str
    file_removed: bool = Field(description="whether its file was removed too; files from elsewhere are kept")


class FoundHit(BaseModel):
    """A hit without its explanation."""

    id: str
    name: str
    label: str = Field(description="its class, or empty")
    metadata: dict[str, Plain]
    rank: int = Field(description="from 1, after re-ranking")
    pooled_rank: int = Field(description="from 1 in the whole gallery, by the pooled cosine alone")
    reranked: bool = Field(description="whether it is among the best K, which are ranked by score")
    score: float = Field(description="what it is ranked by; the pooled cosine where it is not re-ranked")
    pooled: float
    structural: float | None
    probability: float | None = Field(description="that it is of the query's class; null without a calibration")


class HitsResponse(BaseModel):
    """The hits of a query, best first, without explanations."""

    hits: list[FoundHit]
    in_gallery: VerdictBody | None
    notices: list[str]
    own: list[ItemBody] = Field(description="images left out because their file is that of the query")
    settings: dict[str, Plain]
    seconds: float = Field(description="duration of the work")
