"""What a run is made of: images divided, a folder opened, and network, objective, optimizer and sampler built."""

from __future__ import annotations

import dataclasses
import hashlib
import platform
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor
from torch.optim import Optimizer

from diml.data import DataSet, ImageSet, Preprocess, dataset_info, load_dataset, locate_dataset
from diml.data.augment import Augment
from diml.data.samplers import BatchSampler
from diml.models import Embedder, default_preprocess, load_embedder
from diml.models.zoo import is_backbone
from diml.objectives import Objective
from diml.training.checkpoints import BEST, LAST, MODEL_FILES, publish_model, read_checkpoint, settle
from diml.training.config import FIELDS, TrainConfig, read_config, write_config
from diml.training.curves import CURVES
from diml.training.logs import LINES, TABLE
from diml.training.named import named_objective, named_sampler
from diml.training.optim import Schedule, build_optimizer
from diml.training.shared import Team
from diml.training.steps import Stepper

CONFIG: Final = "config.yaml"

#: Settings that a resumed run may change: they do not touch what it learns.
#: `epochs` as well, unless the schedule counts them.
_MAY_CHANGE: Final = {"output", "data", "workers", "device", "checkpoint_every", "rerank", "on_bad_image"}


@dataclass(frozen=True, eq=False)
class Division:
    """Images to train on, to choose the best epoch by (None: the last one is kept), and to test on in the end."""

    train: ImageSet
    validation: ImageSet | None
    test: ImageSet


def open_training_data(config: TrainConfig) -> DataSet:
    """Load the data set of a configuration; without a protocol, that with disjoint classes where there is one."""
    info = dataset_info(config.dataset)
    protocol = config.protocol
    if protocol is None and "class_disjoint" in info.protocols:
        protocol = "class_disjoint"
    fetched = config.dataset == "orl" and locate_dataset("orl", config.data) is None
    return load_dataset(config.dataset, None if fetched else config.data, protocol=protocol)


def divide(data: DataSet, config: TrainConfig, *, warn: bool = True) -> Division:
    """Hold some training classes back for validation, or take the test images for it, as the configuration says.

    Raises:
        ValueError: there are no training images, or too few classes to divide.

    Warns:
        UserWarning: test images choose the best epoch.
    """
    if data.train is None:
        raise ValueError(
            f"dataset: {data.name} has no training images under protocol {data.protocol!r}; take another --protocol, "
            "or list images in a CSV file with the columns path,label,split and type `diml train csv --data FILE`"
        )
    if config.select_on == "test":
        if warn:
            warnings.warn(
                "select_on: test images choose the best epoch, as in the authors' code; results are too good to be "
                "compared with those of select_on 'validation'",
                stacklevel=3,
            )
        return Division(data.train, data.test, data.test)
    if config.validation_fraction == 0:
        return Division(data.train, None, data.test)
    try:
        train, validation = data.train.split_classes(config.validation_fraction, config.seed)
    except ValueError as error:
        raise ValueError(f"validation_{error}; --validation-fraction 0 does without validation") from error
    return Division(train, validation, data.test)


def open_run(config: TrainConfig, division: Division, *, resume: bool, write: bool) -> dict[str, Any] | None:
    """Make the folder of a run, or find the state that it goes on from.

    Args:
        config: of the run; `folder` is where.
        division: the images, for the check that they are still the same.
        resume: go on rather than begin.
        write: whether this process is the one that writes.

    Returns:
        The state of the last checkpoint; None to begin at the beginning.

    Raises:
        FileExistsError: there is a run already, and `resume` is False.
        FileNotFoundError: there is none, and `resume` is True.
        ValueError: the run was begun with other settings or images.
    """
    folder = config.folder
    # A configuration alone is what a run leaves that could not be built: an unknown name, too few classes.
    there = any((folder / name).exists() for name in (LAST, BEST, LINES))
    if write and not resume:
        if there:
            raise FileExistsError(
                f"output: {folder} holds a run already; go on with it by --resume --output {folder}, or take another "
                "--output"
            )
        _remove_leftovers(folder)  # of a process that was killed before there was a run
        write_config(folder / CONFIG, config)
    if not resume:
        return None
    _check_same(config, folder)
    if write:
        _tidy(folder)
        write_config(folder / CONFIG, config)
    if not (folder / LAST).exists():
        return None
    state = read_checkpoint(folder / LAST)
    if state["data"] != fingerprint(division.train):
        raise ValueError(f"data: the training images are not those that {folder} was begun with; start a new run")
    return state


def _check_same(config: TrainConfig, folder: Path) -> None:
    if not (folder / CONFIG).is_file():
        raise FileNotFoundError(f"output: no run to resume in {folder} (no {CONFIG}); leave --resume away to begin one")
    saved = TrainConfig.from_dict(read_config(folder / CONFIG))
    free = _MAY_CHANGE | ({"epochs"} if config.schedule != "cosine" else set())
    old, new = saved.to_dict(), config.to_dict()
    changed = [name for name in FIELDS if name not in free and old[name] != new[name]]
    if changed:
        listed = ", ".join(f"{name} ({old[name]} to {new[name]})" for name in changed)
        raise ValueError(
            f"resume: settings differ from those that {folder} was begun with: {listed}; leave them away, or take "
            "another --output"
        )


def _tidy(folder: Path) -> None:
    """Put right what a killed process left half done."""
    settle(folder / LAST)
    if settle(folder / BEST) and not all((folder / name).is_file() for name in MODEL_FILES):
        publish_model(folder / BEST, folder)
    _remove_leftovers(folder)


def _remove_leftovers(folder: Path) -> None:
    """Remove the temporary files of `diml.files.whole_file`, for every file of a run."""
    for name in (*MODEL_FILES, CONFIG, LINES, TABLE, CURVES, "evaluation.csv", "evaluation.json"):
        for leftover in folder.glob(f".{Path(name).stem}-????????{Path(name).suffix}"):
            leftover.unlink()


@dataclass(frozen=True, eq=False)
class Parts:
    """What is trained, on what, and how."""

    train: ImageSet
    labels: Tensor
    augment: Augment
    embedder: Embedder
    objective: Objective
    optimizer: Optimizer
    schedule: Schedule
    sampler: BatchSampler
    stepper: Stepper
    data_fingerprint: str

    def facts(self, team: Team) -> dict[str, Any]:
        """What the log says at the start."""
        packages = ("diml", "torch", "timm", "pytorch-metric-learning")
        return {
            "images": len(self.train),
            "classes": self.train.num_classes,
            "processes": team.size,
            "device": str(team.device),
            "objective": dict(self.objective.options),
            "versions": {name: version(name) for name in packages} | {"python": platform.python_version()},
        }


def build_parts(config: TrainConfig, train: ImageSet, team: Team, state: Mapping[str, Any] | None) -> Parts:
    """Build everything, with the weights of `state`, or new ones by the global random streams.

    Raises:
        ValueError: unknown names or options; too few classes for a batch; a batch smaller than the processes.
    """
    if config.batch_size < team.size:
        raise ValueError(f"batch_size: need a image for each of {team.size} processes, got {config.batch_size}")
    sampler = named_sampler(config, train.labels)
    with team.first_goes_ahead():  # who fetches weights
        embedder = load_embedder(config.folder / LAST) if state is not None else new_embedder(config)
    embedder = embedder.to(team.device)
    objective = named_objective(config, num_classes=train.num_classes, dim=embedder.dim).to(team.device)
    if state is not None:
        objective.load_state_dict(state["objective"])
    team.copy_from_first(embedder)
    team.copy_from_first(objective)
    optimizer = build_optimizer(config, embedder, objective)
    return Parts(
        train=train,
        labels=torch.from_numpy(train.labels.copy()),
        augment=Augment(
            preprocess=embedder.preprocess,
            scale=config.crop_scale,
            flip=config.flip,
            jitter=config.jitter,
            grayscale=config.grayscale,
        ),
        embedder=embedder,
        objective=objective,
        optimizer=optimizer,
        schedule=Schedule(config, len(sampler)),
        sampler=sampler,
        stepper=Stepper(config, embedder, objective, optimizer, team),
        data_fingerprint=fingerprint(train),
    )


def new_embedder(config: TrainConfig) -> Embedder:
    """The network that a training starts from."""
    pooled = config.pooled or ("grid_mean" if config.structural else "backbone")
    options: dict[str, Any] = {"grid": config.grid, "pooled": pooled}
    if not is_backbone(config.model):  # a saved embedder has its own head and preprocessing
        if config.size is not None:
            options["preprocess"] = resized(load_embedder(config.model).preprocess, config.size)
        return load_embedder(config.model, **options)
    if config.size is not None:
        options["preprocess"] = resized(default_preprocess(config.model), config.size)
    return load_embedder(config.model, head=config.head, dim=config.dim, pretrained=config.pretrained, **options)


def fingerprint(images: ImageSet) -> str:
    """Name images by their files' and folders' names and their classes, wherever they lie."""
    digest = hashlib.sha256()
    for path, label in zip(images.paths, images.labels.tolist(), strict=True):
        digest.update(f"{path.parent.name}/{path.name} {label}\n".encode())
    return digest.hexdigest()


def resized(preprocess: Preprocess, size: int) -> Preprocess:
    """Preprocessing for another input size, short sides being scaled in proportion."""
    return dataclasses.replace(preprocess, size=size, resize=round(size * 256 / 224))
