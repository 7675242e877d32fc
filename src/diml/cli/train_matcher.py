"""`diml train-matcher`: a scorer of pairs trained on frozen regions, and saved with the model."""

from __future__ import annotations

import json as json_format
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from diml.cli.compare import comparison_table
from diml.cli.options import (
    DataFlags,
    DataOptions,
    HeadFlags,
    HeadOptions,
    LoadingFlags,
    LoadingOptions,
    ModelFlags,
    ModelOptions,
    dataset_or_run,
)
from diml.cli.output import bad_image_line
from diml.cli.parsing import switch_off

if TYPE_CHECKING:
    from diml.cli.whitening import EmbeddedSet
    from diml.data import DataSet
    from diml.evaluation.compare import MatcherComparison
    from diml.matching import LearnedMatcher
    from diml.training.scorer import TrainedScorer, Validation


@dataclass(frozen=True, kw_only=True)
class TrainMatcherCommand:
    """Train a learned matcher on the regions of a frozen model: soft votes with a dustbin for each region, at most
    200,000 parameters, minutes on a CPU. It is saved with the model, and evaluate, compare, index, search, explain and
    serve then use it.

    Whole training classes are held out to choose the number of steps. At the end, the test images are ranked by it and
    by others, with differences paired by query.

    For instance:

    diml train-matcher grocery --data grocery --protocol class_disjoint --head whiten --dim 384 --output models/shop

    diml train-matcher csv --data mine.csv --model runs/mine --output models/mine

    diml compare orl --model models/shop --matchers paper learned:own --baseline paper
    """

    dataset: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="DATASET | RUN")]
    """Name of the data set (`diml datasets` lists them), or the folder of a run."""

    output: Path
    """Folder to save the model with its scorer to, new or of a saved model."""

    data: DataFlags = DataOptions()

    model: ModelFlags = ModelOptions()

    head_options: HeadFlags = HeadOptions()

    channels: int | None = None
    """Channels of the learned map, at most those of the regions; fewer train faster and rank a little worse. By default
    all, or 128 where there are more than 400."""

    max_steps: int = 150
    """Most steps of a training; it stops earlier where held-out classes get no better."""

    validation_fraction: float = 0.25
    """Fraction of the training classes held out."""

    learning_rate: float = 1e-3
    """Of Adam, for the map."""

    rerank_at: int = 100
    """K, candidates of each query, in validation and test."""

    tune: Annotated[
        bool, switch_off("Omit the row of the table with the settings of transport chosen on the training images.")
    ] = True

    loading: LoadingFlags = LoadingOptions()

    seed: int = 0
    """Of the held-out classes, the batches and the bootstrap."""

    json: bool = False
    """Print JSON instead of tables."""

    def run(self) -> int:
        """Embed, train, save, compare, print."""
        from diml.models.folder import require_savable

        if not 0 < self.learning_rate <= 1e6:  # NaN is neither
            raise ValueError(f"learning_rate: need a number above 0, at most 1e6, got {self.learning_rate}")
        require_savable(self.output)  # known before the work, not after
        dataset, model = dataset_or_run(self.dataset, self.data, self.model, "train-matcher")
        if dataset.train is None:
            raise ValueError(
                f"dataset: {dataset.name} has no training images under protocol {dataset.protocol}; use another "
                "--protocol, such as class_disjoint"
            )
        opened = self.head_options.embed(model, dataset, self.model, self.loading, dataset.train)
        for line in ([opened.notice] if opened.notice else []) + [bad_image_line(bad) for bad in opened.embedded.bad]:
            self._say(line)
        trained, seconds = self._train(opened)
        embedder = opened.embedder.with_settings(matcher=trained.matcher)
        embedder.save(self.output)
        self._say(f"Written: {self.output}")
        found = self._compare(opened, dataset, trained.matcher)
        if self.json:
            facts = {"dataset": dataset.name, "protocol": dataset.protocol, "model": str(model), "head": opened.head}
            document: dict[str, Any] = facts | {"seed": self.seed, "seconds": seconds} | trained.to_dict()
            print(json_format.dumps(document | {"test": found.to_dict()}, indent=1))
            return 0
        from rich.console import Console

        console = Console()
        console.print(comparison_table(found, f"{dataset.name}, {dataset.protocol}"))
        for name in found.per_query:
            if name != "learned":
                value, low, high = (100 * part for part in found.difference("learned", "map@r", against=name))
                console.print(f"MAP@R, learned minus {name}: {value:+.2f} ({low:+.2f}..{high:+.2f})", markup=False)
        return 0

    def _train(self, opened: EmbeddedSet) -> tuple[TrainedScorer, float]:
        from diml.training.scorer import train_scorer

        started = time.perf_counter()
        trained = train_scorer(
            opened.embedded.regions,
            opened.images.labels,
            channels=self.channels,
            max_steps=self.max_steps,
            validation_fraction=self.validation_fraction,
            learning_rate=self.learning_rate,
            rerank_at=self.rerank_at,
            seed=self.seed,
            on_validation=self._print_validation,
            progress=not self.json,
        )
        seconds = time.perf_counter() - started
        scorer = trained.matcher.scorer
        assert scorer is not None
        self._say(
            f"{scorer.parameters_used:,} parameters, {seconds:.0f} s; {trained.classes[1]} of {trained.classes[0]} "
            f"classes held out: MAP@R {100 * trained.plain:.2f} plain, {100 * trained.paper:.2f} by the paper's "
            f"setting, {100 * max(entry.map_at_r for entry in trained.history):.2f} learned, after {trained.steps} "
            "steps; then "
            "trained on all classes"
        )
        if trained.gain <= 0:
            self._say(
                "The held-out classes show no gain over the paper's setting: keep that (`diml tune` may improve it), "
                "or train on more classes and images."
            )
        return trained, seconds

    def _compare(self, opened: EmbeddedSet, dataset: DataSet, matcher: LearnedMatcher) -> MatcherComparison:
        """The test images, ranked by the scorer and by others."""
        from diml.evaluation.compare import compare_matchers
        from diml.evaluation.evaluate import embed_images
        from diml.evaluation.split import sides_of
        from diml.evaluation.tune import tune_matcher
        from diml.matching import Matcher

        matchers: dict[str, Matcher] = {"paper": Matcher()}
        if self.tune:
            images = opened.images
            settings: dict[str, Any] = {"epsilons": (0.1, 0.05, 0.02), "rerank_at": (self.rerank_at,)}
            tuned = tune_matcher(
                opened.embedded.regions, images.labels, matchings=("transport",), seed=self.seed, **settings
            )
            matchers["tuned transport"] = tuned.matcher
        matchers |= {"MaxSim": Matcher(matching="maxsim", structural_weight=4.0), "learned": matcher}
        embedded, images = embed_images(
            opened.embedder, dataset.test, progress=not self.json, **self.loading.arguments()
        )
        return compare_matchers(
            embedded.regions,
            images.labels,
            matchers,
            baseline="paper",
            rerank_at=self.rerank_at,
            **sides_of(images),
            seed=self.seed,
        )

    def _print_validation(self, entry: Validation) -> None:
        self._say(f"step {entry.step:4d}  loss {entry.loss:.3f}  held-out MAP@R {100 * entry.map_at_r:.2f}")

    def _say(self, line: str) -> None:
        print(line, file=sys.stderr if self.json else sys.stdout, flush=True)


COMMAND = TrainMatcherCommand
