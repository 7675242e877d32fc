"""Measurements that were interrupted: what was collected so far, in a file."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from diml.checksums import sealed, unsealed
from diml.data import ImageSet
from diml.documents import read_json
from diml.faithfulness.collected import Collector
from diml.faithfulness.settings import Measures
from diml.files import write_text
from diml.matching import Matcher
from diml.models import Embedder


@dataclass(frozen=True)
class Unfinished:
    """A file with the values of the first pairs of a measurement, rewritten after each chunk.

    Args:
        path: of the file.
        of: digest of everything that the values depend on.
    """

    path: Path
    of: str

    @classmethod
    def of_pairs(
        cls,
        path: Path,
        embedders: Sequence[Embedder],
        images: ImageSet,
        pairs: Sequence[tuple[int, int]],
        measures: Measures,
        matcher: Matcher,
    ) -> Unfinished:
        """That of `measure_pairs` with these arguments."""
        names = [[images.image_name(row) for row in pair] for pair in pairs]
        settings = [asdict(measures), matcher.to_dict(), [embedder.fingerprint() for embedder in embedders]]
        return cls(path, hashlib.sha256(json.dumps([names, settings]).encode()).hexdigest())

    def load(self) -> tuple[Collector, int]:
        """What was collected, and from how many pairs: none where the file is of another measurement, or missing."""
        if not self.path.is_file():
            return Collector(), 0
        try:
            return self._read()
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            warnings.warn(f"{self.path} is damaged ({error}); the measurement starts anew", stacklevel=2)
            return Collector(), 0

    def _read(self) -> tuple[Collector, int]:
        kept = unsealed(read_json(self.path), str(self.path), "remove it to begin anew")
        if kept.pop("of") != self.of:
            return Collector(), 0
        pairs, shares = int(kept.pop("pairs")), np.array(kept.pop("shares"))
        values, curves = kept.pop("values"), kept.pop("curves")
        made = Collector(
            shares=shares,
            values={(a, b, c, d): numbers for (a, b, c, d), numbers in values},
            curves={(kind, method): rows for (kind, method), rows in curves},
            **kept,
        )
        return made, pairs

    def save(self, collector: Collector, pairs: int) -> None:
        """Write what was collected from the first `pairs` pairs."""
        kept = {
            "of": self.of,
            "pairs": pairs,
            "shares": collector.shares.tolist(),
            "values": list(collector.values.items()),
            "curves": list(collector.curves.items()),
            "unconverged_plans": collector.unconverged_plans,
            "embeddings": collector.embeddings,
        }
        write_text(self.path, json.dumps(sealed(kept)))
