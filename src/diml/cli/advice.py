"""The next command to try where re-ranking does not help, as the last line of an evaluation."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from diml.evaluation import Report
    from diml.evaluation.report import Comparison


def shortfall(report: Report) -> Comparison | None:
    """The comparison of the largest K with the smallest, by the main metric, where it shows no gain; else None.

    None, too, where the plain ranking is perfect, or only one K was evaluated.
    """
    from diml.evaluation.metrics import main_metric

    metric, most, least = main_metric(report.intervals[0]), max(report.per_query), min(report.per_query)
    if report.row(least)[metric] == 1:
        return None
    found = [c for c in report.comparisons if (c.rerank_at, c.metric) == (most, metric)]
    return next((c for c in found if c.low <= 0), None)


def shortfall_line(method: str, lacking: Comparison) -> str:
    """What the interval says, for people."""
    from diml.evaluation.tables import metric_name

    low, high = 100 * lacking.low, 100 * lacking.high
    says = "lowers" if lacking.high < 0 else "shows no gain of"
    return (
        f"{method}: re-ranking {says} {metric_name(lacking.metric)} ({100 * lacking.difference:+.2f} percentage "
        f"points, {low:+.2f}..{high:+.2f})."
    )


def next_command(
    dataset: str,
    data_flags: Sequence[str],
    model_flags: Sequence[str],
    head_flags: Sequence[str],
    model: str,
    *,
    bare: bool,
    paper: bool,
    trainable: bool,
) -> str:
    """The command that is most likely to help.

    Args:
        dataset: name of the data set, or folder of a run.
        data_flags: flags that say where the data are.
        model_flags: flags that say how the model is opened, without `--model`.
        head_flags: flags about its head.
        model: name or folder; empty where the data set is a run, which has both.
        bare: whether a whitening was left out that there are enough images for.
        paper: whether the regions were compared as in the paper, rather than by settings chosen for such images.
        trainable: whether there are training images.
    """
    named = ["--model", model] if model else []
    flags = [*data_flags, *named, *model_flags]
    if bare:
        words = ["evaluate", dataset, *flags, "--head", "whiten"]
    elif paper or not model:
        words = ["tune" if trainable else "compare", dataset, *flags, *head_flags]
    else:
        words = ["train", dataset, *data_flags, *named, "--frozen-backbone"]
    return shlex.join(["diml", *words])


def given_flags(options: Any) -> list[str]:
    """Flags of a group of options that differ from its defaults, as on the command line."""
    flags: list[str] = []
    for entry in dataclasses.fields(options):
        value, name = getattr(options, entry.name), entry.name.replace("_", "-")
        if value == entry.default:
            continue
        if isinstance(value, bool):
            flags.append(f"--{name}" if value else f"--no-{name}")
        else:
            values = value if isinstance(value, tuple | list) else [value]
            flags += [f"--{name}", *map(str, values)]
    return flags
