"""Some pairs that are measured together: their images, regions and plans.

Legend: B pairs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image

from diml.data import ImageSet, load_image
from diml.faithfulness.collected import Collector
from diml.faithfulness.ledgers import LEDGERS
from diml.faithfulness.settings import Measures
from diml.matching import Match, Matcher, Regions
from diml.models import Embedder


@dataclass(frozen=True, eq=False)
class Chunk:
    """Some pairs with their images, regions and match.

    Args:
        first: number of the first pair among all that are measured.
        images_q: the queries as loaded.
        photos: the queries at twice the resolution.
        views_q, views_g: both sides as the network sees them.
        match: with the plan that scores.
        shown: with the plan of the ledgers that are tested, by default the exact one.
        grid: of the regions.
    """

    embedder: Embedder
    measures: Measures
    first: int
    images_q: list[Image.Image]
    photos: list[Image.Image]
    views_q: list[Image.Image]
    views_g: list[Image.Image]
    query: Regions
    gallery: Regions
    match: Match
    shown: Match
    grid: tuple[int, int]

    @classmethod
    def load(
        cls,
        embedder: Embedder,
        images: ImageSet,
        pairs: Sequence[tuple[int, int]],
        first: int,
        measures: Measures,
        matcher: Matcher,
        collector: Collector,
    ) -> Chunk:
        """Load and embed pairs (query, gallery) of rows of `images`."""
        least = embedder.preprocess.at_least
        loaded = [
            [load_image(images.images[row], name=images.image_name(row), at_least=least) for row in pair]
            for pair in pairs
        ]
        views_q, views_g = ([embedder.preprocess.view(pair[side]) for pair in loaded] for side in (0, 1))
        photos = [embedder.preprocess.view(pair[0], 2) for pair in loaded]
        shares = any(LEDGERS[name].needs_shares for name in measures.ledgers)
        query, gallery = (collector.embed(embedder, views, shares=shares) for views in (views_q, views_g))
        if query.grid is None:
            raise ValueError("grid: need regions on a known grid, got none; give the embedder one with --grid")
        scored = matcher.match(query, gallery)
        shown = exactly(matcher).match(query, gallery) if measures.plan == "exact" else scored
        views = ([pair[0] for pair in loaded], photos, views_q, views_g)
        return cls(embedder, measures, first, *views, query, gallery, scored, shown, query.grid)

    def compare(self, query: Regions, gallery: Regions) -> Match:
        """A match with the matcher that scores."""
        return self.match.matcher.match(query, gallery)

    def compare_exactly(self, query: Regions, gallery: Regions) -> Match:
        """A match with the same cosines and weights and the exact plan."""
        return exactly(self.match.matcher).match(query, gallery)

    def compare_as_shown(self, query: Regions, gallery: Regions) -> Match:
        """A match with the plan of the ledgers that are tested."""
        return self.compare_exactly(query, gallery) if self.measures.plan == "exact" else self.compare(query, gallery)

    def generator(self, pair: int, purpose: int) -> np.random.Generator:
        """Random numbers of one pair for one purpose, independent of everything else that is measured."""
        return np.random.default_rng([self.measures.seed, purpose, self.first + pair])


def exactly(matcher: Matcher) -> Matcher:
    """The same matcher with the exact plan. MaxSim has a single plan, which stays."""
    return replace(matcher, epsilon=0.0)
