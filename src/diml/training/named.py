"""What a configuration calls by name, objective, miner and sampler, built with its options or refused.

Options come as text: here each is brought to its type, so that a wrong one is told by its name.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from numpy.typing import ArrayLike

from diml.data.samplers import BatchSampler, build_sampler, check_sampler_options, sampler_option_types
from diml.models.zoo import is_backbone
from diml.objectives import Objective, build_objective, option_types
from diml.training.config import TrainConfig, converted, parse_options

#: Arguments of `build_objective` that are settings by themselves, and which.
_SETTINGS: Final[Mapping[str, str]] = {
    "name": "--objective",
    "similarity": "--similarity",
    "miner": "--miner",
    "num_regions": "--grid",
    "embedding_dim": "--dim",
    "num_classes": "the classes of the data set",
    "generator": "--seed",
}

#: D of embeddings where nobody knows yet: divided by 2 and by 3, as slices of an embedding want it.
_ANY_DIM: Final = 48


def named_objective(config: TrainConfig, *, num_classes: int, dim: int) -> Objective:
    """Build the objective of a configuration.

    Raises:
        ValueError: an unknown name or option, an option of another type, or a combination that cannot work.
    """
    what = "objective_options"
    options = parse_options(config.objective_options, what)
    for key in options:
        if key in _SETTINGS:
            raise ValueError(f"{what}: {key} is no option, it is set by {_SETTINGS[key]}; leave it away here")
    return build_objective(
        config.objective,
        num_classes=num_classes,
        embedding_dim=dim,
        similarity=config.similarity,
        miner=config.miner,
        num_regions=config.grid**2,
        **_typed(options, option_types(config.objective, config.miner), what),
    )


def named_sampler(config: TrainConfig, labels: ArrayLike) -> BatchSampler:
    """Build the sampler of a configuration for images of these classes.

    Raises:
        ValueError: an unknown name or option, an option of another type, or sizes that do not fit the images.
    """
    sizes = {"batch_size": config.batch_size, "per_class": config.per_class, "seed": config.seed}
    try:
        return build_sampler(config.sampler, labels, **sizes, **_sampler_options(config))
    except ValueError as error:
        if config.select_on == "validation" and config.validation_fraction and "classes" in str(error):
            held = f"{config.validation_fraction:.0%} of the classes are held out for validation"
            raise ValueError(f"{error} ({held}: --validation-fraction)") from error
        raise


def check_names(config: TrainConfig) -> None:
    """Refuse what `named_objective` and `named_sampler` will, as far as it can be told without images and network.

    Draws from the global random streams of torch.

    Raises:
        ValueError: as they do.
    """
    own_head = config.head == "linear" and is_backbone(config.model)
    named_objective(config, num_classes=8, dim=config.dim if own_head else _ANY_DIM)
    check_sampler_options(config.sampler, _sampler_options(config))


def _sampler_options(config: TrainConfig) -> dict[str, Any]:
    what = "sampler_options"
    return _typed(parse_options(config.sampler_options, what), sampler_option_types(config.sampler), what)


def _typed(options: Mapping[str, Any], types: Mapping[str, Any], what: str) -> dict[str, Any]:
    """Options brought to their types; those that do not exist are left to who names the nearest."""
    return {
        key: converted(value, types[key], f"{what}: {key}") if key in types else value for key, value in options.items()
    }
