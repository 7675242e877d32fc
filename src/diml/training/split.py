"""The images of a training: the data set of a configuration, split into training, validation and test."""

from __future__ import annotations

import hashlib
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from diml.data.datasets import load_dataset, place_or_fetch
from diml.data.image_sets import DataSet, ImageSet
from diml.data.registry import dataset_info
from diml.training.config import TrainConfig


@dataclass(frozen=True, eq=False)
class TrainingSplit:
    """Images to train on, to select the best epoch on (None: the last one is kept), and for the final test.

    Attributes:
        train, validation, test: the images.
        pool: all training images of the data set, those held out included.
        train_rows: (N,) int64, rows of `train` in `pool`.
        validation_rows: of `validation`, where it is part of `pool`; else None.
    """

    train: ImageSet
    validation: ImageSet | None
    test: ImageSet
    pool: ImageSet
    train_rows: NDArray[np.int64]
    validation_rows: NDArray[np.int64] | None = None


def load_training_data(config: TrainConfig) -> DataSet:
    """Load the data set of a configuration; the default protocol is the class-disjoint one if there is one."""
    info = dataset_info(config.dataset)
    protocol = config.protocol
    if protocol is None and "class_disjoint" in info.protocols:
        protocol = "class_disjoint"
    return load_dataset(config.dataset, place_or_fetch(config.dataset, config.data), protocol=protocol)


def split_for_training(data: DataSet, config: TrainConfig, *, warn: bool = True) -> TrainingSplit:
    """Validate on the data set's own validation images, on held-out training classes, or on the test images.

    Validation images of the data set are used where there are any and validation is not disabled; no class is then held
    out.

    Args:
        data: the data set.
        config: `select_on`, `validation_fraction`, `seed`.
        warn: whether to warn where test images select the best epoch.

    Raises:
        ValueError: there are no training images, or too few classes to split.

    Warns:
        UserWarning: test images select the best epoch.
    """
    if data.train is None:
        raise ValueError(
            f"dataset: {data.name} has no training images under protocol {data.protocol!r}; use another --protocol, "
            "or list your images in a CSV file with columns path,label,split and run: diml train csv --data FILE"
        )
    if config.select_on == "test":
        if warn:
            warnings.warn(
                "select_on: test images select the best epoch, as in the authors' code; the results are biased "
                "upwards and not comparable with those of select_on 'validation'",
                stacklevel=3,
            )
        return _undivided(data.train, data.test, data.test)
    if config.validation_fraction == 0:
        return _undivided(data.train, None, data.test)
    if data.validation is not None:
        return _undivided(data.train, data.validation, data.test)
    try:
        train, validation = data.train.split_classes(config.validation_fraction, config.seed)
    except ValueError as error:
        raise ValueError(f"validation_{error}; --validation-fraction 0 disables validation") from error
    rows = [_rows_of_classes(part, data.train) for part in (train, validation)]
    return TrainingSplit(train, validation, data.test, data.train, *rows)


def _undivided(train: ImageSet, validation: ImageSet | None, test: ImageSet) -> TrainingSplit:
    return TrainingSplit(train, validation, test, train, np.arange(len(train)))


def _rows_of_classes(part: ImageSet, whole: ImageSet) -> NDArray[np.int64]:
    """Rows of `whole` whose classes are those of `part`, which holds all images of its classes, in their order."""
    place = {name: number for number, name in enumerate(whole.class_names)}
    return np.flatnonzero(np.isin(whole.labels, [place[name] for name in part.class_names]))


def fingerprint(images: ImageSet) -> str:
    """Identify images by their classes and the names of their files and folders, wherever the folders are.

    Images that are not files are identified by their position.
    """
    digest = hashlib.sha256()
    for index, label in enumerate(images.labels.tolist()):
        path = Path(images.image_name(index))
        digest.update(f"{path.parent.name}/{path.name} {label}\n".encode("utf-8", "backslashreplace"))
    return digest.hexdigest()
