"""The curves of a run: the loss of every step, and the validation of every epoch."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from diml.files import atomic_file

_LOSS: Final = "#b9c6d6"
_MEAN: Final = "#1f4e79"
_LINES: Final = ("#1f4e79", "#c0562f", "#4a7c59")


def draw_curves(records: Sequence[dict[str, Any]], *, metric: str = "map@r", best_epoch: int | None = None) -> Figure:
    """Draw loss and validation over epochs.

    Args:
        records: records of `metrics.jsonl`, see `read_records`.
        metric: the validation metric to draw.
        best_epoch: from 1; marked by a dotted line.

    Returns:
        A matplotlib figure, 9 x 4 inches.

    Example:
        >>> draw_curves(read_records("runs/mine/metrics.jsonl")).savefig("curves.png")  # doctest: +SKIP
    """
    figure = Figure(figsize=(9, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    _draw_loss(left, [record for record in records if record["kind"] == "train"])
    validations = [record for record in records if record["kind"] == "validation"]
    for colour, rerank_at in zip(_LINES, dict.fromkeys(r["rerank_at"] for r in validations), strict=False):
        points = [(record["epoch"], 100 * record[metric]) for record in validations if record["rerank_at"] == rerank_at]
        name = f"re-ranked, K = {rerank_at}" if rerank_at else "plain, K = 0"
        right.plot(*zip(*points, strict=True), color=colour, marker=".", label=name)
    right.set(title=f"Validation, {metric} in percent", xlabel="epoch")
    if validations:
        right.legend(frameon=False)
    if best_epoch is not None:
        right.axvline(best_epoch, color="0.6", linestyle=":", zorder=0)
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    return figure


def write_curves(
    path: str | os.PathLike[str],
    records: Sequence[dict[str, Any]],
    *,
    metric: str = "map@r",
    best_epoch: int | None = None,
) -> Path:
    """Write `draw_curves` as a PNG, atomically; returns the path."""
    with atomic_file(path) as temporary:
        draw_curves(records, metric=metric, best_epoch=best_epoch).savefig(temporary, format="png", dpi=120)
    return Path(path)


def _draw_loss(axes: Axes, steps: list[dict[str, Any]]) -> None:
    """The loss of every step, and the mean of each epoch; the axis counts epochs."""
    axes.set(title="Loss", xlabel="epoch")
    taken = [record for record in steps if record["loss"] is not None]
    if not taken:
        return
    per_epoch = max(1, max(record["step"] for record in steps) / max(record["epoch"] for record in steps))
    axes.plot([r["step"] / per_epoch for r in taken], [r["loss"] for r in taken], color=_LOSS, label="each step")
    by_epoch: dict[int, list[float]] = {}
    for record in taken:
        by_epoch.setdefault(record["epoch"], []).append(record["loss"])
    means = [sum(losses) / len(losses) for losses in by_epoch.values()]
    axes.plot(list(by_epoch), means, color=_MEAN, marker=".", label="mean of the epoch")
    axes.legend(frameon=False)
