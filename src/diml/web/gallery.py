"""What the server requires of a gallery, wherever it is kept."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal, Protocol

from diml.data.images import BadImage
from diml.matching import Matcher, Regions
from diml.web.facets import Facet


@dataclass(frozen=True)
class GalleryItem:
    """One image of a gallery.

    Args:
        id: identifier in the API; not empty, and never used as a path.
        name: name on the page.
        label: its class, or "" where it has none.
        metadata: further plain values.
    """

    id: str
    name: str
    label: str = ""
    metadata: Mapping[str, str | int | float | bool | None] = field(default_factory=dict)


@dataclass(frozen=True)
class GalleryHit:
    """A gallery image found by a search.

    Args:
        item: the image.
        rank: from 1: the best K by score, after them the others by pooled cosine.
        pooled_rank: from 1 by pooled cosine alone, before re-ranking.
        pooled: pooled cosine with the query.
        structural: structural score with the query; None where the image was not re-ranked.
        score: what it was ranked by: that of the matcher, or the pooled cosine where it was not re-ranked.
    """

    item: GalleryItem
    rank: int
    pooled_rank: int
    pooled: float
    structural: float | None
    score: float


@dataclass(frozen=True)
class GalleryAnswer:
    """What a search of a gallery finds.

    Args:
        hits: best first.
        scores: of all re-ranked images, best first; empty where nothing was re-ranked.
        searched: number of images that the query was compared with.
    """

    hits: tuple[GalleryHit, ...]
    scores: tuple[float, ...]
    searched: int


@dataclass(frozen=True)
class GalleryState:
    """Progress of a gallery.

    Args:
        kind: where it is kept.
        name: name on the page.
        phase: "embedding" until it can be searched; "failed" when embedding failed, for the reason in `error`.
        done, total: images embedded so far, and in total; unreadable ones count as done.
        count: number of images that can be searched; 0 until it is ready.
        seconds: since embedding started, until it ended.
        bad: images left out, each with the reason.
        error: why embedding failed, with the remedy.
    """

    kind: Literal["folder", "index"]
    name: str
    phase: Literal["embedding", "ready", "failed"]
    done: int
    total: int
    count: int = 0
    seconds: float = 0.0
    bad: tuple[BadImage, ...] = field(default=(), repr=False)
    error: str = ""


class GalleryNotReadyError(RuntimeError):
    """The gallery is still being embedded, or embedding failed; `state` says which."""

    def __init__(self, state: GalleryState) -> None:
        super().__init__(state.error or f"{state.done} of {state.total} images are embedded")
        self.state = state


class WhereError(ValueError):
    """A condition on metadata that this gallery cannot apply."""


#: Characters and words of a text that images are looked up by.
LONGEST_TEXT: Final = 100
MOST_WORDS: Final = 8


class Gallery(Protocol):
    """A collection of images, searched in two stages: by pooled vectors, then the best K re-ranked from regions.

    Its methods are called from several threads at a time.
    """

    @property
    def matcher(self) -> Matcher:
        """How a query is compared with its images unless a search says otherwise."""
        ...

    @property
    def rerank_at(self) -> int:
        """K, how many of the best by pooled cosine are re-ranked unless a search says otherwise."""
        ...

    def state(self) -> GalleryState:
        """Return its progress; fast, at any time."""
        ...

    def items(self, offset: int, count: int, *, text: str = "", where: str | None = None) -> Sequence[GalleryItem]:
        """Return some of its images, in its order; fewer where there are no more.

        Args:
            offset: how many are passed over.
            count: how many are returned at most.
            text: only images whose name or texts contain each word of this, in any letter case.
            where: only images whose metadata satisfy this condition.

        Raises:
            WhereError: the condition is invalid, or the gallery has no metadata.
        """
        ...

    def count(self, *, text: str = "", where: str | None = None) -> int:
        """Return the number of images that `items` goes through."""
        ...

    def facets(self) -> tuple[Facet, ...]:
        """Return the values of the columns of its metadata; none for a folder."""
        ...

    def named(self, name: str) -> GalleryItem:
        """Return the image of a name (path); KeyError where there is none."""
        ...

    def copies(self, content: bytes) -> Sequence[GalleryItem]:
        """Return the images whose file has this content."""
        ...

    def item(self, key: str) -> GalleryItem:
        """Return the image of an id; KeyError where there is none."""
        ...

    def search(
        self,
        query: Regions,
        *,
        hits: int,
        rerank_at: int,
        exclude: Collection[str] = (),
        matcher: Matcher | None = None,
        where: str | None = None,
    ) -> GalleryAnswer:
        """Return the images most similar to a query.

        Args:
            query: regions of one image, by the gallery's own embedder.
            hits: number of hits, at least 1; fewer where there are no more images.
            rerank_at: K, how many of the best by pooled cosine are re-ranked by score; 0 for none.
            exclude: ids of images that are left out, such as the query itself.
            matcher: in place of the gallery's own.
            where: a condition on metadata that the hits satisfy.

        Raises:
            WhereError: the condition is invalid, or the gallery has no metadata.
            GalleryNotReadyError: the gallery is still being embedded, or embedding failed.
        """
        ...

    def regions(self, keys: Sequence[str]) -> Regions:
        """Return the stored regions of some images, in the given order; KeyError, GalleryNotReadyError."""
        ...

    def image(self, key: str) -> bytes:
        """Return the file of an image, as it is stored; KeyError, and OSError where it cannot be read any more."""
        ...

    def stop(self) -> None:
        """Stop background work soon."""
        ...
