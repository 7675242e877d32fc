"""What the server asks of a collection of images that can be searched, wherever it is kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol, Unpack

from diml.data.images import BadImage
from diml.matching import MatchSettings, Regions


@dataclass(frozen=True)
class GalleryItem:
    """One image of a gallery.

    Attributes:
        id: By which it is asked for; never empty, never a path that is opened as it stands.
        name: What to call it on the page.
        label: Its class, or "" where it has none.
        metadata: What else is known of it: plain values.
    """

    id: str
    name: str
    label: str = ""
    metadata: Mapping[str, str | int | float | bool | None] = field(default_factory=dict)


@dataclass(frozen=True)
class GalleryHit:
    """A image that was found.

    Attributes:
        item: Which.
        rank: Its place from 1: the best K by score, after them the others by pooled cosine.
        pooled_rank: Its place from 1 by pooled cosine alone, before re-ranking.
        pooled: Pooled cosine with the query.
        structural: Structural similarity with the query; None where it was not re-ranked.
    """

    item: GalleryItem
    rank: int
    pooled_rank: int
    pooled: float
    structural: float | None

    @property
    def score(self) -> float:
        """What it was ranked by: pooled + structural, or pooled alone."""
        return self.pooled + (self.structural or 0.0)


@dataclass(frozen=True)
class GalleryState:
    """How far a gallery is.

    Attributes:
        kind: Where it is kept.
        name: What to call it.
        phase: "embedding" until it can be searched; "failed" when it never will, and `trouble` says why.
        done, total: Images embedded so far, and in all; those that cannot be read count as done.
        count: Images that can be searched; 0 until it is ready.
        seconds: Since embedding began, until it ended.
        bad: Images that were left out, each with the reason.
        trouble: Why it failed, with the remedy.
    """

    kind: Literal["folder", "index"]
    name: str
    phase: Literal["embedding", "ready", "failed"]
    done: int
    total: int
    count: int = 0
    seconds: float = 0.0
    bad: tuple[BadImage, ...] = ()
    trouble: str = ""


class GalleryNotReadyError(RuntimeError):
    """The gallery is still being embedded, or failed to be; `state` says which."""

    def __init__(self, state: GalleryState) -> None:
        super().__init__(state.trouble or f"{state.done} of {state.total} images are embedded")
        self.state = state


class Gallery(Protocol):
    """A collection of images, searched in two stages: by pooled vectors, then the best K re-ranked from regions.

    Its methods are called from several threads at a time.
    """

    def state(self) -> GalleryState:
        """How far it is; quick, at any time."""
        ...

    def items(self, offset: int, count: int) -> Sequence[GalleryItem]:
        """Some of its images, in its order; fewer where there are no more."""
        ...

    def item(self, key: str) -> GalleryItem:
        """The image of an id; KeyError where there is none."""
        ...

    def search(
        self, query: Regions, *, hits: int, rerank: int, exclude: str = "", **matching: Unpack[MatchSettings]
    ) -> Sequence[GalleryHit]:
        """The images most alike to a query.

        Args:
            query: regions of one image, of the gallery's own embedder.
            hits: how many to give, at least 1; fewer where there are no more.
            rerank: K, how many of the best by pooled cosine are re-ranked by score; 0 for none of them.
            exclude: id of a image that is left out, such as the query itself.
            matching: as of `diml.matching.match`.

        Raises:
            GalleryNotReadyError: it is not yet, or never will be, ready.
        """
        ...

    def regions(self, keys: Sequence[str]) -> Regions:
        """The stored regions of some images, in the order asked for; KeyError, GalleryNotReadyError."""
        ...

    def image(self, key: str) -> bytes:
        """The file of a image, as it is kept; KeyError, and OSError where it cannot be read any more."""
        ...

    def stop(self) -> None:
        """End what runs in the background, soon."""
        ...
