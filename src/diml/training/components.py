"""Everything that a configuration names, built: network, objective, optimizer, batch sampler.

Options are given as text; they are converted to their types here, so that an error can name the option.
"""

from __future__ import annotations

import dataclasses
import platform
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any, Final

import torch
from numpy.typing import ArrayLike
from torch import Tensor
from torch.optim import Optimizer

from diml.data import ImageSet, Preprocess
from diml.data.augment import Augment
from diml.data.class_groups import fitting_batch
from diml.data.samplers import BatchSampler, build_sampler, check_sampler_options, sampler_option_types
from diml.distributed import ProcessGroup
from diml.matching import Matcher
from diml.models import Embedder, load_embedder
from diml.models.heads import WhitenHead
from diml.models.zoo import default_preprocess, is_backbone
from diml.objectives import Objective, build_objective
from diml.objectives.objective import option_types
from diml.training.checkpoints import LAST, restoring
from diml.training.config import TrainConfig, converted, parse_options
from diml.training.head_training import FrozenImages, HeadStepper, with_trained_whitening
from diml.training.optim import Schedule, build_optimizer
from diml.training.split import TrainingSplit, fingerprint
from diml.training.steps import Stepper

#: Arguments of `build_objective` that are settings of their own, and which.
_SETTINGS: Final[Mapping[str, str]] = {
    "loss": "--objective",
    "similarity": "--similarity",
    "miner": "--miner",
    "num_regions": "--grid",
    "embedding_dim": "--dim",
    "num_classes": "the classes of the data set",
    "generator": "--seed",
    "matcher": "--epsilon, --weights and the other matching settings",
}

_MATCHING: Final = tuple(field.name for field in dataclasses.fields(Matcher))

#: Embedding dimension for checks before it is known: divisible by 2 and 3, as slices of an embedding require.
_ANY_DIM: Final = 48

_PACKAGES: Final = ("diml", "torch", "timm", "pytorch-metric-learning")


@dataclass(frozen=True, eq=False)
class Components:
    """The components of one run, the same in every process.

    Attributes:
        train: the training images.
        labels: (N,) int64, their classes.
        augment: from a training image to a network input.
        embedder: the network.
        objective: the loss, with its parameters and its miner.
        optimizer: of the parameters of both.
        schedule: of the learning rates.
        sampler: of the batches.
        stepper: takes the training steps.
        frozen: the features of all images, where the backbone is frozen.
        data_fingerprint: identifies the training images in checkpoints.
    """

    train: ImageSet
    labels: Tensor
    augment: Augment
    embedder: Embedder
    objective: Objective
    optimizer: Optimizer
    schedule: Schedule
    sampler: BatchSampler
    stepper: Stepper
    frozen: FrozenImages | None
    data_fingerprint: str

    def facts(self, processes: ProcessGroup) -> dict[str, Any]:
        """The start record of the log."""
        return {
            "images": len(self.train),
            "classes": self.train.num_classes,
            "processes": processes.size,
            "device": str(processes.device),
            "objective": dict(self.objective.options),
            "versions": {name: version(name) for name in _PACKAGES} | {"python": platform.python_version()},
        }


def build_components(
    config: TrainConfig,
    split: TrainingSplit,
    processes: ProcessGroup,
    state: Mapping[str, Any] | None,
    *,
    progress: bool = False,
) -> Components:
    """Build the components of a run.

    Args:
        config: the settings.
        split: the images.
        processes: the processes that share the work.
        state: of the checkpoint to continue from; None initializes weights from the global random streams.
        progress: show progress bars.

    Raises:
        ValueError: unknown names or options; too few classes for a batch; fewer images in a batch than processes.
    """
    if config.batch_size < processes.size:
        raise ValueError(
            f"batch_size: need at least one image for each of {processes.size} processes, got {config.batch_size}"
        )
    train = split.train
    sampler = configured_sampler(config, train.labels)
    with processes.first_goes_ahead():  # it downloads pretrained weights
        embedder = load_embedder(config.folder / LAST) if state is not None else configured_embedder(config)
    embedder = embedder.to(processes.device)
    augment = Augment(
        preprocess=embedder.preprocess,
        scale=config.crop_scale,
        flip=config.flip,
        jitter=config.jitter,
        grayscale=config.grayscale,
    )
    frozen = None
    if config.frozen_backbone:
        embedder.backbone.requires_grad_(requires_grad=False)
        frozen = FrozenImages(config, split, embedder, augment, processes, progress=progress)
    if embedder.config.head == "whiten":
        embedder = _begun_as_whitening(config, embedder, train, frozen, progress=progress)
    objective = configured_objective(config, num_classes=train.num_classes, dim=embedder.dim).to(processes.device)
    if state is not None:
        with restoring(config.folder / LAST):
            objective.load_state_dict(state["objective"])
    processes.copy_from_first(embedder)
    processes.copy_from_first(objective)
    optimizer = build_optimizer(config, embedder, objective)
    stepper = Stepper if frozen is None else HeadStepper
    return Components(
        train=train,
        labels=torch.from_numpy(train.labels.copy()),
        augment=augment,
        embedder=embedder,
        objective=objective,
        optimizer=optimizer,
        schedule=Schedule(config, len(sampler)),
        sampler=sampler,
        stepper=stepper(config, embedder, objective, optimizer, processes),
        frozen=frozen,
        data_fingerprint=fingerprint(train),
    )


def _begun_as_whitening(
    config: TrainConfig, embedder: Embedder, train: ImageSet, frozen: FrozenImages | None, *, progress: bool
) -> Embedder:
    """The network with a linear head that begins as the whitening of the training images; saved ones keep theirs."""
    assert isinstance(embedder.head, WhitenHead)
    if not embedder.head.fitted and frozen is not None:
        embedder.head.fit(frozen.cells(train))
    elif not embedder.head.fitted:
        loading = {"batch_size": config.evaluation_batch_size, "workers": config.workers}
        embedder.fit_head(train, on_bad_image=config.on_bad_image, progress=progress, **loading)
    return with_trained_whitening(embedder)


def configured_embedder(config: TrainConfig) -> Embedder:
    """The initial network of a training, which carries the matcher of the configuration."""
    pooled = config.pooled or ("grid_mean" if config.structural else "backbone")
    options: dict[str, Any] = {"grid": config.grid, "pooled": pooled, "matcher": config.matcher}
    if not is_backbone(config.model):  # a saved embedder has its own head and preprocessing
        if config.size is not None:
            options["preprocess"] = resized(load_embedder(config.model).preprocess, config.size)
        return load_embedder(config.model, **options)
    options |= {"pretrained": config.pretrained, "weights_file": config.weights_file}
    if config.size is not None:
        options["preprocess"] = resized(default_preprocess(config.model), config.size)
    if config.head != "whiten":
        return load_embedder(config.model, head=config.head, dim=config.dim, **options)
    return load_embedder(config.model, head="identity", **options).with_whitening(config.dim)


def resized(preprocess: Preprocess, size: int) -> Preprocess:
    """Preprocessing for another input size; the short side before the crop is scaled in proportion."""
    return dataclasses.replace(preprocess, size=size, resize=round(size * 256 / 224))


def configured_objective(config: TrainConfig, *, num_classes: int, dim: int) -> Objective:
    """Build the objective of a configuration.

    Raises:
        ValueError: an unknown name or option, an option of another type, or an invalid combination.
    """
    what = "objective_options"
    options = parse_options(config.objective_options, what)
    types = option_types(config.objective, config.miner)
    for key in options:
        if key in _SETTINGS:
            raise ValueError(f"{what}: {key} is not an option; it is set by {_SETTINGS[key]}: omit it here")
        if key in _MATCHING and key not in types:
            flag = key.replace("_", "-")
            raise ValueError(
                f"{what}: {key} is a matching setting, not an option of the objective; use --{flag}, or `matcher: "
                f"{{{key}: ...}}` (matcher.{key}) in a YAML file"
            )
    return build_objective(
        config.objective,
        num_classes=num_classes,
        embedding_dim=dim,
        similarity=config.similarity,
        miner=config.miner,
        num_regions=config.regions_in_step,
        matcher=config.matcher,
        **_typed(options, types, what),
    )


def configured_sampler(config: TrainConfig, labels: ArrayLike) -> BatchSampler:
    """Build the batch sampler of a configuration for images of these classes.

    Raises:
        ValueError: an unknown name or option, an option of another type, or sizes that do not fit the images.
    """
    sizes = {"batch_size": config.batch_size, "per_class": config.per_class}
    try:
        if config.frozen_backbone and config.sampler != "random":
            sizes = _fitting_sizes(labels, **sizes)
        return build_sampler(config.sampler, labels, **sizes, seed=config.seed, **_sampler_options(config))
    except ValueError as error:
        if config.select_on == "validation" and config.validation_fraction and "classes" in str(error):
            held_out = f"{config.validation_fraction:.0%} of the classes are held out for validation"
            raise ValueError(f"{error} ({held_out}: --validation-fraction)") from error
        raise


def _fitting_sizes(labels: ArrayLike, *, batch_size: int, per_class: int) -> dict[str, int]:
    """The sizes of a batch of a head in seconds, which also trains on the few classes that somebody begins with."""
    if batch_size % per_class == 0:
        batch, each = fitting_batch(labels, batch_size, per_class)
        if (batch, each) != (batch_size, per_class):
            warnings.warn(
                f"batch_size: batches of {batch} images, {each} of each of {batch // each} classes, instead of "
                f"{batch_size} with {per_class} of each: there are no more training images",
                stacklevel=3,
            )
        batch_size, per_class = batch, each
    return {"batch_size": batch_size, "per_class": per_class}


def check_names(config: TrainConfig) -> None:
    """Check objective, miner, sampler and their options as far as possible without images and network.

    Draws from the global random streams of torch.

    Raises:
        ValueError: as `configured_objective` and `configured_sampler`.
    """
    named = is_backbone(config.model)
    if config.weights_file is not None and not named:
        raise ValueError(
            f"weights_file: is for a network by name, and {config.model} has weights of its own; omit --weights-file"
        )
    own_head = config.head != "identity" and named
    configured_objective(config, num_classes=8, dim=config.dim if own_head else _ANY_DIM)
    check_sampler_options(config.sampler, _sampler_options(config))


def _sampler_options(config: TrainConfig) -> dict[str, Any]:
    what = "sampler_options"
    return _typed(parse_options(config.sampler_options, what), sampler_option_types(config.sampler), what)


def _typed(options: Mapping[str, Any], types: Mapping[str, Any], what: str) -> dict[str, Any]:
    """Convert options to their types; unknown ones are left to the builder, which names the nearest."""
    return {
        key: converted(value, types[key], f"{what}: {key}") if key in types else value for key, value in options.items()
    }
