"""`diml index tune`: settings of the matcher of an index, chosen by the labels in its metadata."""

from __future__ import annotations

import json as json_format
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from diml.cli.tune import TriedFlags, TriedOptions, print_tuning

if TYPE_CHECKING:
    from diml.data import ImageSet
    from diml.evaluation.tune import Tuning
    from diml.search.store import Store


@dataclass(frozen=True, kw_only=True)
class TuneIndexCommand:
    """Choose transport or MaxSim, epsilon, the structural weight and K by the labels in a column of an index, and keep
    them with the index: searches, near-duplicates and calibrations use them from then on. Every labelled image is a
    query against all others. The gain to expect on other classes is cross-validated: the settings are chosen on four
    fifths of the classes and measured on the rest, in turn. Where its interval contains 0, nothing is kept.

    For instance:

    diml index tune shop.index --label label --dry-run

    diml index tune shop.index --label brand --where "stock > 0"
    """

    index: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="INDEX")]
    """The index."""

    label: str = "label"
    """Column with the class of each image; images without a value are left out."""

    where: str | None = None
    """Only images that satisfy this condition on metadata."""

    dry_run: bool = False
    """Print the settings and the gain to expect, and keep nothing."""

    tried: TriedFlags = TriedOptions()

    most: int = 5_000
    """Number of images at most; where there are more, whole classes are drawn."""

    seed: int = 0
    """Of the draw, the folds and the bootstrap."""

    json: bool = False
    """Print JSON instead of tables."""

    def run(self) -> int:
        """Tune, print, keep."""
        from contextlib import closing

        from diml.search import open_store

        with closing(open_store(self.index)) as store:
            images, found = self._tuned(store)
            kept = self._kept(store, images, found)
        if self.json:
            about = {"index": self.index, "label": self.label, "images": len(images), "kept": kept}
            print(json_format.dumps(about | found.to_dict(), indent=1))
            return 0
        from rich.console import Console

        console = Console()
        print_tuning(console, found, f"{self.index}, {len(images):,} images with a {self.label}")
        console.print(self._said(kept, found), markup=False, soft_wrap=True)
        return 0

    def _tuned(self, store: Store) -> tuple[ImageSet, Tuning]:
        """The labelled images, and the best settings on them, against those that the index has now."""
        import torch

        from diml.evaluation.tune import tune_matcher
        from diml.search.labelled import labelled_images
        from diml.search.tuned import index_matcher

        now = index_matcher(store)
        if now.matcher.learned:
            raise ValueError(
                "matcher: a learned scorer has no settings to be tuned; train it on labelled images with "
                "`diml train-matcher`, or build the index with another matcher"
            )
        images, regions = labelled_images(
            store, self.label, name=self.index, where=self.where, most=self.most, seed=self.seed, copies=False
        )
        found = tune_matcher(
            regions[torch.arange(len(regions))].to(torch.float32),
            images.labels,
            base=now.matcher,
            baseline_rerank_at=now.rerank_at,
            **self.tried.arguments(),
            seed=self.seed,
            progress=True,
        )
        return images, found

    def _kept(self, store: Store, images: ImageSet, found: Tuning) -> bool:
        """Keep settings that are better; whether they were."""
        from diml.search.tuned import IndexMatcher, keep_matcher

        if self.dry_run or not found.is_better:
            return False
        about: dict[str, Any] = {"label": self.label, "where": self.where, "images": len(images)}
        about |= {"queries": found.queries, "classes": found.classes, "metric": found.metric}
        about |= {"gain": found.gain._asdict(), "seed": self.seed}
        keep_matcher(store, IndexMatcher(found.matcher, found.rerank_at, about))
        return True

    def _said(self, kept: bool, found: Tuning) -> str:
        if kept:
            return (
                f"{self.index}: kept; searches use it from now on. A calibration of other settings does not apply any "
                "more: run `diml calibrate` again"
            )
        return f"{self.index}: nothing was changed" + ("" if found.is_better else ", as no gain is shown")
