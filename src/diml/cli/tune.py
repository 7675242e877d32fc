"""`diml tune`: settings of the matcher chosen on training classes, with the gain to expect on others."""

from __future__ import annotations

import json as json_format
import sys
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

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
from diml.evaluation.tune import CANDIDATES, EPSILONS, MATCHINGS, STRUCTURAL_WEIGHTS
from diml.matching.maxsim import Matching

if TYPE_CHECKING:
    from rich.console import Console

    from diml.evaluation.tune import Tuning


@dataclass(frozen=True, kw_only=True)
class TriedOptions:
    """The settings that are tried, and how they are judged."""

    matchings: tuple[Matching, ...] = MATCHINGS
    """How regions are matched: the kinds to try."""

    epsilons: tuple[float, ...] = EPSILONS
    """Values of epsilon to try with transport; 0 is the exact plan."""

    structural_weights: tuple[float, ...] = STRUCTURAL_WEIGHTS
    """Values of the structural weight to try; inf ranks by the structural score alone."""

    rerank_at: tuple[int, ...] = CANDIDATES
    """Values of K to try."""

    metric: str = "map@r"
    """Metric that is maximised: map@r, r_precision, recall@k, map or minp."""

    folds: int = 5
    """Parts of the classes that are left out in turn."""

    def arguments(self) -> dict[str, Any]:
        """Arguments of `tune_matcher`."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


TriedFlags = Annotated[TriedOptions, tyro.conf.OmitArgPrefixes]


@dataclass(frozen=True, kw_only=True)
class TuneCommand:
    """Choose transport or MaxSim, epsilon, the structural weight and K on labelled images that the test does not
    contain, and say which gain to expect: cross-validated over classes, with its interval.

    By default the training images of the data set are used, never the test images.

    For instance:

    diml tune orl --protocol class_disjoint

    diml tune grocery --data shop/grocery --protocol class_disjoint --head whiten --save models/grocery

    diml tune runs/mine --save models/mine-tuned
    """

    dataset: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="DATASET | RUN")]
    """Name of the data set (`diml datasets` lists them), or the folder of a run."""

    data: DataFlags = DataOptions()

    model: ModelFlags = ModelOptions()

    head_options: HeadFlags = HeadOptions()

    tried: TriedFlags = TriedOptions()

    loading: LoadingFlags = LoadingOptions()

    seed: int = 0
    """Of the folds and of the bootstrap."""

    save: Path | None = None
    """Folder to save the embedder with the chosen settings to; evaluation, index, search, explanation and server then
    use them."""

    json: bool = False
    """Print JSON instead of tables."""

    def run(self) -> int:
        """Embed, try, print, save."""
        from diml.evaluation.split import sides_of
        from diml.evaluation.tune import tune_matcher
        from diml.models.folder import require_savable

        if self.save is not None:  # known before the work, not after
            require_savable(self.save)
        dataset, model = dataset_or_run(self.dataset, self.data, self.model, "tune")
        images = dataset.validation or dataset.train
        if images is None:
            raise ValueError(
                f"dataset: {dataset.name} has no training images under protocol {dataset.protocol}, and the settings "
                "must not be chosen on test images; use another --protocol, such as class_disjoint"
            )
        opened = self.head_options.embed(model, dataset, self.model, self.loading, images)
        images = opened.images
        if opened.notice is not None:
            print(f"{model}: {opened.notice}", file=sys.stderr if self.json else sys.stdout)
        for bad in opened.embedded.bad:
            print(bad_image_line(bad), file=sys.stderr if self.json else sys.stdout)
        found = tune_matcher(
            opened.embedded.regions,
            images.labels,
            **self.tried.arguments(),
            **sides_of(images),
            seed=self.seed,
            progress=True,
        )
        document = {"dataset": dataset.name, "protocol": dataset.protocol, "model": str(model), "head": opened.head}
        document |= found.to_dict()
        if self.json:
            print(json_format.dumps(document, indent=1))
        else:
            from rich.console import Console

            print_tuning(Console(), found, f"{images.name}, {model}, input {opened.embedder.preprocess.size} pixels")
        if self.save is not None:
            opened.embedder.with_settings(matcher=found.matcher).save(self.save)
            if not self.json:
                print(f"Written: {self.save}")
        return 0


COMMAND = TuneCommand


def print_tuning(console: Console, found: Tuning, title: str) -> None:
    """The best settings as a table, and what to expect of the first."""
    from rich.table import Table

    from diml.evaluation.tune import setting_text

    table = Table(
        title=f"{title}: {found.queries} queries, {found.classes} classes, {len(found.tried)} settings",
        title_justify="left",
        caption="The five best settings on these images, and the baseline.",
        caption_justify="left",
    )
    table.add_column("matching")
    table.add_column("epsilon", justify="right")
    for column in ("structural weight", "K", f"{found.metric}, percent"):
        table.add_column(column, justify="right")
    baseline = [row for row in found.tried if row[:2] == (found.baseline, found.baseline_rerank_at)]
    for matcher, k, value in [*found.tried[:5], *baseline]:
        epsilon = f"{matcher.epsilon:g}" if matcher.matching == "transport" else ""
        table.add_row(matcher.matching, epsilon, f"{matcher.structural_weight:g}", str(k), f"{100 * value:.2f}")
    console.print(table)
    value, low, high = (100 * part for part in found.gain)
    console.print(f"Chosen: {setting_text(found.matcher, found.baseline, found.rerank_at)}", markup=False)
    console.print(
        f"Expected gain of {found.metric} on other classes: {value:+.2f} percentage points ({low:+.2f}..{high:+.2f}), "
        f"cross-validated over classes; on these images {100 * found.gain_of_choice.value:+.2f}.",
        markup=False,
    )
    if not found.is_better:
        console.print("The interval contains 0: tuning shows no gain here; keep the default settings.", markup=False)
