"""The next command to try where re-ranking does not help, as the last line of an evaluation."""

from __future__ import annotations

import dataclasses
import itertools
import shlex
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diml.training.config import FIELDS, TrainConfig

if TYPE_CHECKING:
    from diml.cli.options import DataOptions, EmbedderOptions, LoadingOptions
    from diml.data import DataSet
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
    flags: Sequence[str],
    head_flags: Sequence[str],
    *,
    bare: bool,
    paper: bool,
    tunable: bool,
    training: Sequence[str] | None,
) -> str:
    """The command that is most likely to help.

    Args:
        dataset: name of the data set, or folder of a run.
        flags: flags that say where the data are, which model it is, and how model and images are read.
        head_flags: flags about the head.
        bare: whether a whitening was left out that there are enough images for.
        paper: whether the regions were compared as in the paper, rather than by settings chosen for such images.
        tunable: whether there are training images to choose settings on.
        training: words of the training of a head, see `training_words`; None where that is not possible.
    """
    if bare:
        words = ["evaluate", dataset, *flags, "--head", "whiten"]
    elif not paper and training is not None:
        words = list(training)
    else:
        words = ["tune" if tunable else "compare", dataset, *flags, *head_flags]
    return shlex.join(["diml", *words])


def training_words(
    dataset: str, data: DataOptions, model: str, embedder: EmbedderOptions, loading: LoadingOptions, *, head: str
) -> list[str] | None:
    """The words of a training of the head alone, after all checks of it that need no image; None where one fails.

    Args:
        dataset: name of the data set.
        data, embedder, loading: as given to the evaluation; training has the most of these flags, too.
        model: name of the network, or folder of a saved embedder.
        head: name of the embedder's head.
    """
    from diml.models.zoo import is_backbone

    if embedder.architecture is not None or (head == "identity" and not is_backbone(model)):
        return None  # a checkpoint of the released code; a saved embedder in which there is nothing to train
    given = {name: value for name, value in (vars(data) | vars(embedder)).items() if value is not None}
    settings = {name: value for name, value in given.items() if name in FIELDS and (name, value) != ("device", "cpu")}
    settings |= {"on_bad_image": loading.on_bad_image, "cache": loading.cache}
    output = next(path for path in _folders(dataset) if not path.exists())
    settings |= {"dataset": dataset, "model": model, "frozen_backbone": True, "output": output}
    try:
        config = TrainConfig.from_dict(settings)
        _check_training(config)
    except (ValueError, OSError, ImportError):
        return None
    usual = TrainConfig(dataset=dataset)
    flags: list[str] = []
    for name in FIELDS:
        value = settings.get(name)
        if name != "dataset" and name in settings and (value != getattr(usual, name) or name == "model"):
            flag = name.replace("_", "-")
            flags += (
                [f"--{flag}"] if value is True else [f"--no-{flag}"] if value is False else [f"--{flag}", str(value)]
            )
    return ["train", dataset, *flags]


def _folders(dataset: str) -> Iterator[Path]:
    """Folders for a run, in the order of preference."""
    for number in itertools.count(1):
        yield Path("runs") / (f"{dataset}-head" if number == 1 else f"{dataset}-head-{number}")


def _check_training(config: TrainConfig) -> None:
    """Raise where a training would stop before its first step."""
    import torch

    from diml.training.checks import check_images, check_output, with_weights_recorded
    from diml.training.components import check_names, configured_sampler
    from diml.training.split import load_training_data, split_for_training

    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # training itself will say it
        check_output(config.folder)
        check_names(with_weights_recorded(config))
        split = split_for_training(load_training_data(config), config, warn=False)
        check_images(config, split)
        configured_sampler(config, split.train.labels)


def is_tunable(dataset: DataSet) -> bool:
    """Whether `diml tune` has images to choose settings on: two classes with something to find."""
    from diml.evaluation.evaluate import counted_queries
    from diml.evaluation.split import QueryGallerySplit, sides_of
    from diml.evaluation.tune import groups_of

    images = dataset.validation or dataset.train
    if images is None:
        return False
    split = QueryGallerySplit.from_labels(images.labels, **sides_of(images))
    try:
        return len(set(groups_of(split.subset(counted_queries(split, "exclude"))))) > 1
    except ValueError:
        return False


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
