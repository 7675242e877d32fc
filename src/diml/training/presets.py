"""The training runs of the authors as plain data, by name: `DATASET/RUN`, such as `cub200/margin_b12_distance`.

Keys are those of `TrainConfig`. Values are from the authors' scripts and the defaults of their options; where these
differ from the publication, the published definition is trained with the authors' numbers (docs/deviations.md, row 9).
The defaults of `TrainConfig` apply to everything that is not part of a recipe: folders, processes, and the selection of
the best epoch (the authors used the test images: `select_on: test`). They also apply to the matcher, whose defaults are
the authors' settings.

Sources: github.com/wl-zhao/DIML, scripts/baselines/{cub,cars,sop}_runs.sh, scripts/diml/train_diml.sh, parameters.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final

from diml.spelling import did_you_mean

#: Settings common to all runs. The authors' ImageNet weights are torchvision's first version, `tv_in1k` in timm.
COMMON: Final[Mapping[str, Any]] = MappingProxyType(
    {
        "model": "resnet50.tv_in1k",
        "head": "linear",
        "dim": 128,
        "grid": 4,
        "pooled": "backbone",
        "size": 224,
        "crop_scale": (0.08, 1.0),
        "flip": 0.5,
        "sampler": "class_balanced",
        "batch_size": 112,
        "per_class": 2,
        "optimizer": "adam",
        "lr": 1e-5,
        "weight_decay": 4e-4,
        "schedule": "constant",
        "freeze_batch_norm": True,
        "seed": 0,
    }
)

#: Epochs of each data set.
EPOCHS: Final[Mapping[str, int]] = MappingProxyType({"cub200": 150, "cars196": 150, "online_products": 100})

#: Defaults of `--frozen-backbone`: only the head is trained, in seconds. An epoch is 25 steps, whatever the size of the
#: data set (docs/training.md has the measurements).
FROZEN_BACKBONE: Final[Mapping[str, Any]] = MappingProxyType(
    {
        "head": "whiten",
        "dim": 512,
        "objective": "multisimilarity",
        "batch_size": 64,
        "per_class": 4,
        "sampler_options": ("batches_per_epoch=25",),
        "crop_scale": (0.3, 1.0),
        "optimizer": "adam",
        "lr": 2e-4,
        "weight_decay": 0.0,
        "epochs": 40,
        "patience": 6,
    }
)

_MARGIN: Final = {"margin": 0.2, "beta_lr": 5e-4}
_MULTISIMILARITY: Final = {"alpha": 2.0, "beta": 40.0, "base": 0.5, "miner_epsilon": 0.1}
_DIML: Final = {"pooled": "grid_mean"}

#: Run -> objective, miner, options of both, and settings that differ from `COMMON`.
_RUNS: Final[Mapping[str, tuple[str, str, Mapping[str, Any], Mapping[str, Any]]]] = MappingProxyType(
    {
        "npair": ("npair", "none", {"l2_weight": 0.005}, {}),
        "lifted": ("lifted", "none", {"neg_margin": 1.0, "l2_weight": 0.005}, {}),
        "proxynca": ("proxynca", "none", {"proxy_lr_multiple": 50.0}, {}),
        "histogram": ("histogram", "none", {"nodes": 65}, {}),
        "contrastive_distance": ("contrastive", "distance", {"pos_margin": 0.0, "neg_margin": 1.0}, {}),
        "softtriple": (
            "softtriple",
            "none",
            {
                "centers": 2,
                "scale": 8.0,
                "gamma": 0.1,
                "margin": 0.01,
                "diversity_weight": 0.2,
                "center_lr_multiple": 1.0,
            },
            {},
        ),
        "angular": (
            "angular",
            "none",
            {"alpha": 45.0, "angular_weight": 2.0, "npair_weight": 1.0, "l2_weight": 0.005},
            {},
        ),
        "arcface": ("arcface", "none", {"margin": 0.5, "scale": 16.0, "weight_lr": 5e-4}, {}),
        "triplet_random": ("triplet", "random", {"margin": 0.2}, {}),
        "triplet_semihard": ("triplet", "semihard", {"margin": 0.2}, {}),
        "triplet_softhard": ("triplet", "softhard", {"margin": 0.2}, {}),
        "triplet_distance": ("triplet", "distance", {"margin": 0.2}, {}),
        "quadruplet_distance": ("quadruplet", "distance", {"margin": 0.2, "margin_others": 0.2}, {}),
        "margin_b06_distance": ("margin", "distance", {"beta": 0.6} | _MARGIN, {}),
        "margin_b12_distance": ("margin", "distance", {"beta": 1.2} | _MARGIN, {}),
        "snr_distance": ("snr", "distance", {"margin": 0.2}, {}),
        "multisimilarity": ("multisimilarity", "multisimilarity", _MULTISIMILARITY, {}),
        "softmax": ("softmax", "none", {"temperature": 0.05, "weight_lr": 1e-5}, {}),
        "margin_diml": ("margin_diml", "distance", {"beta": 1.2} | _MARGIN, _DIML),
        "multisimilarity_diml": ("multisimilarity_diml", "multisimilarity", _MULTISIMILARITY, _DIML),
    }
)

#: Settings that the authors changed for one run on one data set: options of the objective, and others.
_CHANGES: Final[Mapping[str, tuple[Mapping[str, Any], Mapping[str, Any]]]] = MappingProxyType(
    {
        "cars196/multisimilarity": ({}, {"seed": 2}),
        "online_products/histogram": ({"nodes": 11}, {}),
        "online_products/softmax": ({"weight_lr": 2e-3}, {}),
        "online_products/softtriple": (
            {"scale": 20.0, "center_lr_multiple": 10.0},
            {"batch_size": 32, "lr": 0.1},
        ),
    }
)

_SOFTTRIPLE_NOTE: Final = (
    "The authors' code multiplies by gamma where the paper divides; their values (0.1, and 10 for online_products) "
    "correspond to 0.1 in the paper."
)

#: Remarks on single runs, to read before reproducing them.
NOTES: Final[Mapping[str, str]] = MappingProxyType(
    {
        "cub200/softtriple": _SOFTTRIPLE_NOTE,
        "cars196/softtriple": _SOFTTRIPLE_NOTE,
        "online_products/softtriple": (
            f"{_SOFTTRIPLE_NOTE} Scale 20, batches of 32, learning rate 0.1 for the network and 1 for the centers, as "
            "in the authors' script; these rates are far above those of all other runs."
        ),
        "online_products/histogram": "11 nodes in the authors' script, 65 on the other data sets.",
        "cars196/multisimilarity": "Seed 2 in the authors' script; all other runs use seed 0.",
        "online_products/softmax": (
            "Learning rate of the class weights 2e-3 in the authors' script, 1e-5 on the other data sets."
        ),
    }
)


def _built(dataset: str, run: str) -> Mapping[str, Any]:
    objective, miner, options, other = _RUNS[run]
    more_options, more = _CHANGES.get(f"{dataset}/{run}", ({}, {}))
    own: dict[str, Any] = {"dataset": dataset, "objective": objective, "miner": miner}
    own["objective_options"] = MappingProxyType({**options, **more_options})
    return MappingProxyType({**own, "epochs": EPOCHS[dataset], **COMMON, **other, **more})


#: Name -> settings of the run.
PRESETS: Final[Mapping[str, Mapping[str, Any]]] = MappingProxyType(
    {f"{dataset}/{run}": _built(dataset, run) for dataset in EPOCHS for run in _RUNS}
)


def preset_names() -> tuple[str, ...]:
    """Return the names of all presets, grouped by data set."""
    return tuple(PRESETS)


def preset(name: str) -> dict[str, Any]:
    """Return a copy of the settings of one of the authors' runs.

    Args:
        name: one of `preset_names()`.

    Returns:
        Plain values for `TrainConfig.from_dict`.

    Raises:
        ValueError: unknown name; the message has the nearest ones.

    Example:
        >>> preset("cub200/margin_b12_distance")["objective_options"]["beta"]
        1.2
    """
    if name not in PRESETS:
        raise ValueError(f"preset: no preset {name!r}; {_hint(name)}; `diml presets` lists them all")
    return {key: _plain(value) for key, value in PRESETS[name].items()}


def _hint(name: str) -> str:
    """The nearest names: among the runs of the data set if it is known, otherwise among the data sets."""
    dataset, _, run = name.partition("/")
    if dataset in EPOCHS:
        known = [other for other in PRESETS if other.startswith(f"{dataset}/")]
    else:
        known = [other for other in PRESETS if other.endswith(f"/{run or dataset}")] or list(PRESETS)
    return did_you_mean(name, [other for other in known if other.startswith(name)] or known)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(inner) for key, inner in value.items()}
    return list(value) if isinstance(value, tuple) else value
