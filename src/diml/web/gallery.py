"""What the server asks of a collection of pictures that can be searched, wherever it is kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol, Unpack

from diml.data.pictures import BadPicture
from diml.matching import MatchSettings, Regions


@dataclass(frozen=True)
class GalleryItem:
    """One picture of a gallery.

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
    """A picture that was found.

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
        done, total: Pictures embedded so far, and in all; those left out count as done.
        seconds: Since embedding began, until it ended.
        bad: Pictures that were left out, each with the reason.
        trouble: Why it failed, with the remedy.
    """

    kind: Literal["folder", "index"]
    name: str
    phase: Literal["embedding", "ready", "failed"]
    done: int
    total: int
    seconds: float = 0.0
    bad: tuple[BadPicture, ...] = ()
    trouble: str = ""


class GalleryNotReadyError(RuntimeError):
    """The gallery is still being embedded, or failed to be; `state` says which."""

    def __init__(self, state: GalleryState) -> None:
        super().__init__(state.trouble or f"{state.done} of {state.total} pictures are embedded")
        self.state = state


class Gallery(Protocol):
    """A collection of pictures, searched in two stages: by pooled vectors, then the best K re-ranked from regions.

    Its methods are called from several threads at a time.
    """

    def state(self) -> GalleryState:
        """How far it is; quick, at any time."""
        ...

    def items(self, offset: int, count: int) -> Sequence[GalleryItem]:
        """Some of its pictures, in its order; fewer where there are no more."""
        ...

    def item(self, key: str) -> GalleryItem:
        """The picture of an id; KeyError where there is none."""
        ...

    def search(
        self, query: Regions, *, hits: int, rerank: int, exclude: str = "", **matching: Unpack[MatchSettings]
    ) -> Sequence[GalleryHit]:
        """The pictures most alike to a query.

        Args:
            query: regions of one picture, of the gallery's own embedder.
            hits: how many to give, at least 1; fewer where there are no more.
            rerank: K, how many of the best by pooled cosine are re-ranked by score; 0 for none of them.
            exclude: id of a picture that is left out, such as the query itself.
            matching: as of `diml.matching.match`.

        Raises:
            GalleryNotReadyError: it is not yet, or never will be, ready.
        """
        ...

    def regions(self, keys: Sequence[str]) -> Regions:
        """The stored regions of some pictures, in the order asked for; KeyError, GalleryNotReadyError."""
        ...

    def picture(self, key: str) -> bytes:
        """The file of a picture, as it is kept; KeyError, and OSError where it cannot be read any more."""
        ...

    def stop(self) -> None:
        """End what runs in the background, soon."""
        ...
