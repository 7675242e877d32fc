"""What a training is compared with: the network before its first step."""

from __future__ import annotations

import warnings
from typing import Any, Final

from diml.data import ImageSet
from diml.evaluation import Report
from diml.evaluation.report import SHORT
from diml.models import Embedder
from diml.models.zoo import is_backbone
from diml.training.config import TrainConfig

#: Folder within that of a run: the network before training, an embedder for all commands.
FROZEN: Final = "frozen"


def network_before_training(config: TrainConfig, begun: Embedder) -> Embedder:
    """The network that a user would have without training.

    That is the one with which training begins: the backbone with its whitening (`head="whiten"`), the backbone alone
    (`"identity"`), or the saved embedder that is trained further. A new linear layer is random, and nobody would use
    it: with `head="linear"` it is the backbone alone, as `diml evaluate --head identity` evaluates it.

    Args:
        config: of the run.
        begun: its network before the first step.

    Returns:
        An embedder that shares the weights of `begun`.
    """
    if config.head != "linear" or not is_backbone(config.model):
        return begun
    return begun.without_head()


def reports_of_test(name: str, trained: Report, frozen: Report | None) -> dict[str, Report]:
    """The rows of the table of a run: the network before training, and the trained one by the name of its folder."""
    other = FROZEN if name != FROZEN else f"{FROZEN} (before training)"
    return ({} if frozen is None else {other: frozen}) | {name: trained}


def gains(trained: Report, frozen: Report | None) -> dict[str, Any]:
    """For `evaluation.json`: trained minus frozen for each K, paired by query, as fractions with 95 % intervals."""
    if frozen is None:
        return {}
    rows = []
    for k in trained.per_query:
        for metric, found in trained.minus(frozen, k).items():
            rows.append({"rerank_at": k, "metric": metric, **found._asdict()})
    return {"trained_minus_frozen": rows}


def gain_lines(config: TrainConfig, trained: Report, frozen: Report | None) -> list[str]:
    """Trained minus frozen in words: R@1 and MAP@R in percentage points, with what the interval says."""
    if frozen is None:
        return []
    lines = []
    for k in trained.per_query:
        found = trained.minus(frozen, k)
        shown = [(SHORT[name], found[name]) for name in ("recall@1", "map@r") if name in found]
        numbers = ", ".join(
            f"{short} {100 * value:+.2f} ({100 * low:+.1f} to {100 * high:+.1f})" for short, (value, low, high) in shown
        )
        lines.append(f"Trained minus frozen, {f'K = {k}' if k else 'plain'}, percentage points, paired: {numbers}")
    last = trained.minus(frozen)["map@r"]
    if not last.excludes_zero:
        lines.append("The interval of MAP@R contains 0: this test shows no effect of training.")
    elif last.value < 0:
        lines.append(
            f"Training has lowered MAP@R here: better use {config.folder / FROZEN}, the network before training."
        )
    return lines


def warn_of_saturation(config: TrainConfig, images: ImageSet, epoch: int) -> None:
    """Say that the validation images are all ranked perfectly, so that no later epoch can be better."""
    when = "before training already" if epoch == 0 else f"after epoch {epoch}"
    remedies = ["--metric map@r"] if config.metric != "map@r" else []
    remedies += ["a larger --validation-fraction", "harder validation images (`split` = `val` in a CSV file)"]
    warnings.warn(
        f"validation is saturated: {config.metric} is 100 % {when}, on {images.num_classes} classes with {len(images)} "
        "images. It cannot tell later epochs apart, and the first with 100 % is kept; use "
        f"{', or '.join(remedies)}",
        stacklevel=4,
    )
