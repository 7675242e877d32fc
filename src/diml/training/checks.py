"""What can be known before the first step: that the run can be written, validated and tested."""

from __future__ import annotations

import dataclasses
import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Final

import numpy as np
import torch
from torch import Tensor, nn

from diml.checksums import check_file, file_sha256
from diml.data import ImageSet
from diml.evaluation.evaluate import counted_queries
from diml.evaluation.split import QueryGallerySplit, draws_of
from diml.training.config import TrainConfig
from diml.training.optim import parameters_of
from diml.training.split import TrainingSplit

#: Objectives that compare images with proxies or classes; the others need two images of a class in a batch.
_WITHOUT_PAIRS: Final = frozenset({"proxynca", "proxyanchor", "softtriple", "arcface", "softmax"})


def check_output(folder: Path) -> None:
    """Check that the folder of a run can be written, before images are listed and weights are loaded.

    Raises:
        FileExistsError: a file is in its place.
        PermissionError: it, or the folder in which it would be created, is not writable.
    """
    place = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not place.is_dir():
        raise FileExistsError(
            f"output: {place} is a file, so that there can be no folder {folder}; use another --output"
        )
    if not os.access(place, os.W_OK | os.X_OK):
        raise PermissionError(f"output: {place} is not writable; use another --output, or change its permissions")


def with_weights_recorded(config: TrainConfig, *, needed: bool = True) -> TrainConfig:
    """The configuration with the sha256 of its file of initial weights.

    Args:
        config: of a run; unchanged where it has no such file.
        needed: whether the file will be read; a resumed run has its weights in its checkpoint, so that the file may be
            gone.

    Raises:
        FileNotFoundError: the file is missing, and it is needed.
        DamagedError: it is not the one whose sha256 the configuration has.
    """
    if config.weights_file is None:
        return config
    path = config.weights_file.expanduser()
    if not path.is_file():
        if not needed and config.weights_sha256 is not None:
            return config
        raise FileNotFoundError(
            f"weights_file: {path} does not exist, or is a folder; give a .safetensors or .pth file"
        )
    if config.weights_sha256 is not None:
        check_file(
            path, config.weights_sha256, "give the file that weights_sha256 is of, or start a new run without it"
        )
        return config
    return dataclasses.replace(config, weights_sha256=file_sha256(path))


def check_images(config: TrainConfig, split: TrainingSplit) -> None:
    """Check that training images have pairs, and that validation and test images have something to find.

    Raises:
        ValueError: they have not; the message names the remedy.
    """
    sizes = np.unique(split.train.labels, return_counts=True)[1]
    if sizes.max() < 2 and config.objective not in _WITHOUT_PAIRS:
        raise ValueError(
            f"dataset: each of the {len(sizes)} training classes has one image, and objective {config.objective!r} "
            "needs two of a class; add images, or use --objective proxyanchor"
        )
    if split.validation is not None and not _has_queries(split.validation):
        own = split.validation_rows is None
        remedy = (
            "add images to its classes" if own else "hold out more classes (--validation-fraction) or others (--seed)"
        )
        raise ValueError(
            f"validation: {_nothing_to_find(split.validation)}, so that no epoch can be selected; {remedy}, or keep "
            "the last epoch (--validation-fraction 0)"
        )
    if not _has_queries(split.test):
        raise ValueError(
            f"test: {_nothing_to_find(split.test)}, so that the run could not be tested; add images to the test "
            "classes, or give other test images"
        )


def check_space(folder: Path, network: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Check that the disk has enough space for the checkpoints of a run.

    Raises:
        OSError: it has not.
    """
    weights = _bytes(network.state_dict().values())
    checkpoint = weights + 2 * _bytes(parameters_of(optimizer))  # Adam has two moments
    # The last and the best checkpoint, the next one beside them, and the embedder of the run before and after training.
    needed = 3 * checkpoint + 3 * weights
    there = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    free = shutil.disk_usage(folder).free
    if free + there < needed:
        raise OSError(
            f"output: the checkpoints need about {needed / 1e6:,.0f} MB in {folder}, and {free / 1e6:,.0f} MB are "
            "free; free some space, or use an --output on another disk"
        )


def _has_queries(images: ImageSet) -> bool:
    """Whether every draw of queries and gallery has a query with something to find."""
    for sides in draws_of(images):
        split = QueryGallerySplit.from_labels(images.labels, **sides)
        try:
            counted_queries(split, "exclude")
        except ValueError:
            return False
    return True


def _nothing_to_find(images: ImageSet) -> str:
    where = "" if images.queries is None else " in the gallery"
    camera = "" if images.cameras is None else " from another camera"
    return f"none of its {len(images)} images ({images.num_classes} classes) has another of its class{where}{camera}"


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
