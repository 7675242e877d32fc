"""What a training is told: one frozen dataclass, from flags, a preset or a YAML file, and back to YAML."""

from __future__ import annotations

import dataclasses
import math
import types
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, Union, get_args, get_origin, get_type_hints

import yaml

from diml.data.registry import nearest
from diml.evaluation import METRICS
from diml.files import write_text


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How one training is done; saved with the run as `config.yaml`.

    Raises ValueError where a value is out of its range or two do not fit together.
    """

    dataset: str
    """Name of the data set; `diml datasets` lists them."""

    data: Path = Path("data")
    """Folder that has the data set inside; for `folder` and `csv`, that folder or file itself."""

    protocol: str | None = None
    """Which of the data set's protocols; `class_disjoint` where it has one, else its first one."""

    output: Path | None = None
    """Folder of the run; runs/DATASET-OBJECTIVE-SEED when omitted."""

    objective: str = "margin"
    """What to minimise: margin, multisimilarity, triplet, contrastive, quadruplet, npair, lifted, angular, histogram,
    snr, proxynca, proxyanchor, softtriple, arcface, softmax, adversarial_separation, margin_diml or
    multisimilarity_diml."""

    similarity: Literal["pooled", "structural"] | None = None
    """What the objective compares: whole images, or images part by part. The objective's own choice when omitted:
    `structural` for margin_diml and multisimilarity_diml, else `pooled`."""

    miner: str | None = None
    """Which pairs or triplets count: distance, semihard, softhard, random, intra_random, random_distance,
    rho_distance, parametric, multisimilarity, or none, which takes all. The objective's own choice when omitted."""

    objective_options: tuple[str, ...] = ()
    """Settings of the objective and, with the prefix miner_, of its miner: NAME=VALUE, for instance beta=0.6; a list
    has commas, parts=discriminative,shared."""

    sampler: str = "class_balanced"
    """How batches are drawn: class_balanced, random, or by stored embeddings d2_coreset, greedy_coreset, disthist,
    fid."""

    sampler_options: tuple[str, ...] = ()
    """Settings of the sampler, NAME=VALUE, for instance batches_per_epoch=100."""

    batch_size: int = 112
    """Images in one batch, all processes together."""

    per_class: int = 2
    """Images of each class in a batch."""

    model: str = "mobilenetv2_100"
    """Backbone to start from: a timm name, or the folder of a saved embedder."""

    pretrained: bool = True
    """Start from ImageNet weights."""

    head: Literal["linear", "identity"] = "linear"
    """What turns backbone features into embeddings."""

    dim: int = 128
    """D, the length of the embedding of a `linear` head."""

    grid: int = 4
    """Regions a side: G x G."""

    pooled: Literal["backbone", "grid_mean"] | None = None
    """Vector of the whole image: the head of the backbone's pooled features, or the mean of the regions. `grid_mean`
    when omitted and the similarity is structural, else `backbone`."""

    size: int | None = None
    """Side of the network's input, pixels; the model's own when omitted."""

    crop_scale: tuple[float, float] = (0.08, 1.0)
    """Least and greatest share of a training image that is cut out by chance."""

    flip: float = 0.5
    """Probability to mirror a training image."""

    jitter: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)
    """Greatest chance change of brightness, contrast, saturation (shares) and hue (turns)."""

    grayscale: float = 0.0
    """Probability to take the colours of a training image away."""

    epochs: int = 150
    """Passes over the training images."""

    optimizer: Literal["adam", "adamw", "sgd"] = "adam"
    """Optimizer; `sgd` has momentum 0.9."""

    lr: float = 1e-5
    """Learning rate of the backbone."""

    head_lr: float | None = None
    """Learning rate of the head; that of the backbone when omitted."""

    loss_lr: float | None = None
    """Learning rate of the objective's parameters, such as proxies; the objective's own choice when omitted."""

    weight_decay: float = 4e-4
    """Weight decay of the network; the objective's parameters have none unless the objective says so."""

    schedule: Literal["constant", "step", "cosine"] = "constant"
    """How learning rates change: not, times --gamma at --milestones, or down to 0 along a cosine."""

    milestones: tuple[int, ...] = ()
    """Epochs after which the schedule `step` lowers the learning rates."""

    gamma: float = 0.3
    """By what the schedule `step` multiplies them."""

    warmup_steps: int = 0
    """Steps over which learning rates rise from near 0."""

    clip_norm: float | None = None
    """Longest gradient of all parameters together; longer ones are scaled down."""

    freeze_batch_norm: bool = True
    """Batch norm keeps its statistics, as the authors train; its weight and bias are trained all the same."""

    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Of the network in training; `auto` is float32 on the CPU. Objectives compute in float32 always."""

    skip_non_finite: bool = False
    """Leave out steps whose loss or gradient is not finite, and count them, rather than stop."""

    select_on: Literal["validation", "test"] = "validation"
    """Images that choose the best epoch. `test` is the authors' way: its results are too good."""

    validation_fraction: float = 0.2
    """Share of the training classes held out to choose the best epoch; 0 keeps the last epoch."""

    validate_every: int = 1
    """Epochs between validations; the last epoch always has one."""

    metric: str = "map@r"
    """Metric that chooses the best epoch: recall@1, recall@2, recall@4, recall@8, r_precision or map@r; the last two
    also with _self_counted, as the authors count."""

    rerank: int = 100
    """K of the structural re-ranking in the test at the end, beside the plain ranking."""

    validation_rerank: int | None = None
    """K of the re-ranking in validation, which then chooses the best epoch; when omitted that of --rerank for
    structural similarity, else 0: the plain ranking alone."""

    checkpoint_every: int = 500
    """Steps between checkpoints; there is one after each epoch besides."""

    evaluation_batch_size: int = 64
    """Images embedded at a time in validation and test."""

    on_bad_image: Literal["fail", "skip"] = "fail"
    """Unreadable images: stop and name the first, or leave them out and name them all."""

    workers: int = 0
    """Loader processes; 0 decodes in the training process."""

    device: str = "auto"
    """Where to compute, for instance cuda; `auto` takes an accelerator where there is one."""

    seed: int = 0
    """Of everything random: first weights, batches, augmentation, mining, division of classes."""

    def __post_init__(self) -> None:
        for name, low in _AT_LEAST.items():
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value >= low):
                raise ValueError(f"{name}: need a number of at least {low}, got {value}")
        for name in ("lr", "head_lr", "loss_lr", "clip_norm", "gamma"):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value > 0):
                raise ValueError(f"{name}: need a number above 0, got {value}")
        if not 0 <= self.validation_fraction < 1:
            raise ValueError(f"validation_fraction: need a share in [0, 1), got {self.validation_fraction}")
        if self.metric not in METRICS:
            raise ValueError(f"metric: no {self.metric!r}; {nearest(self.metric, METRICS)}")
        if self.schedule == "step" and not self.milestones:
            raise ValueError("milestones: schedule 'step' needs at least one epoch, got none; say --milestones 60 120")
        for name in _OPTIONS:  # in one spelling
            options = parse_options(getattr(self, name), name)
            object.__setattr__(self, name, _written(options))

    @property
    def structural(self) -> bool:
        """Whether the objective compares images part by part."""
        return self.similarity == "structural" or self.objective.endswith("_diml")

    @property
    def folder(self) -> Path:
        """Where the run is written."""
        if self.output is not None:
            return self.output
        return (
            Path("runs")
            / f"{self.dataset}-{self.objective.removesuffix('_diml')}{'_diml' * self.structural}-{self.seed}"
        )

    @property
    def select_rerank(self) -> int:
        """K of the ranking that chooses the best epoch."""
        if self.validation_rerank is not None:
            return self.validation_rerank
        return self.rerank if self.structural else 0

    def to_dict(self) -> dict[str, Any]:
        """Plain values for YAML and JSON; `from_dict` takes them back."""
        values = {name: _plain(getattr(self, name)) for name in FIELDS}
        return values | {name: parse_options(getattr(self, name), name) for name in _OPTIONS}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> TrainConfig:
        """Build from plain values; missing ones take their defaults.

        Raises:
            ValueError: an unknown key (the nearest known one is named), a value of another type or out of its range.
        """
        return cls(**checked_values(values))


#: Names of the settings, in order.
FIELDS: Final = tuple(field.name for field in dataclasses.fields(TrainConfig))
_HINTS: Final = get_type_hints(TrainConfig)
_OPTIONS: Final = ("objective_options", "sampler_options")
_AT_LEAST: Final = {
    "epochs": 1,
    "batch_size": 2,
    "per_class": 1,
    "dim": 1,
    "grid": 1,
    "size": 1,
    "weight_decay": 0,
    "warmup_steps": 0,
    "rerank": 0,
    "validation_rerank": 0,
    "validate_every": 1,
    "checkpoint_every": 1,
    "evaluation_batch_size": 1,
    "workers": 0,
    "seed": 0,
}


def checked_values(values: Mapping[str, Any], source: str = "config") -> dict[str, Any]:
    """Settings, perhaps not all of them, each brought to its own type.

    Args:
        values: plain values, as YAML or a preset gives them.
        source: what errors call them.

    Raises:
        ValueError: an unknown key (the nearest known one is named), or a value of another type.
    """
    for key in values:
        if key not in FIELDS:
            raise ValueError(f"{source}: unknown key {key!r}; {nearest(str(key), FIELDS)}")
    return {key: converted(value, _HINTS[key], f"{source}: {key}") for key, value in values.items()}


def read_config(path: str | Path) -> dict[str, Any]:
    """Read settings, perhaps not all of them, from a YAML file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: no YAML, no mapping, an unknown key (the nearest known one is named), or a value of another type.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"config: no file {path}")
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"config: {path} is not YAML ({error})") from error
    if not isinstance(values, dict):
        kind = type(values).__name__
        raise ValueError(f"config: need lines `name: value` in {path}, got {kind}")  # noqa: TRY004
    return checked_values(values, str(path))


def write_config(path: str | Path, config: TrainConfig) -> Path:
    """Write all settings as YAML, whole or not at all; returns the path."""
    return write_text(path, yaml.safe_dump(config.to_dict(), sort_keys=False, allow_unicode=True))


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    return list(value) if isinstance(value, tuple) else value


def converted(value: Any, wanted: Any, what: str) -> Any:
    """Bring a plain value to the type of its field; ValueError when it is of another kind."""
    origin, inner = get_origin(wanted), get_args(wanted)
    if origin in (Union, types.UnionType):
        if value is None:
            return None
        return converted(value, next(kind for kind in inner if kind is not type(None)), what)
    if origin is Literal:
        if value not in inner:
            raise ValueError(f"{what}: no {value!r}; {nearest(str(value), inner)}")
        return value
    if origin is tuple:
        if isinstance(value, Mapping) and inner[0] is str:
            value = _written(value)
        if not isinstance(value, list | tuple):
            raise ValueError(f"{what}: need a list, got {value!r}")
        return tuple(converted(item, inner[0], what) for item in value)
    if wanted is float and not isinstance(value, bool):
        try:
            return float(value)  # YAML takes 1e-5, without a point, for text
        except (TypeError, ValueError):
            pass
    elif wanted is Path and isinstance(value, str | Path):
        return Path(value)
    elif type(value) is wanted:
        return value
    raise ValueError(f"{what}: need {_KINDS[wanted]}, got {value!r}")


_KINDS: Final = {float: "a number", int: "a whole number", bool: "true or false", str: "a text", Path: "a path"}


def _written(options: Mapping[str, Any]) -> tuple[str, ...]:
    """Options as NAME=VALUE, which `parse_options` reads back."""
    return tuple(f"{name}={_text(value)}" for name, value in options.items())


def _text(value: Any) -> str:
    if isinstance(value, list | tuple):  # the last comma tells a list of one from its item
        return ",".join(_text(item) for item in value) + "," * (len(value) < 2)
    words = {True: "true", False: "false", None: "none"}
    return words[value] if isinstance(value, bool) or value is None else str(value)


def parse_options(pairs: Iterable[str], what: str) -> dict[str, Any]:
    """Read NAME=VALUE pairs into a dict of numbers, truth values, None, texts, and lists of these, with commas.

    `what` is their name in errors.
    """
    options: dict[str, Any] = {}
    for pair in pairs:
        name, sign, text = pair.partition("=")
        if not sign or not name.isidentifier():
            raise ValueError(f"{what}: need NAME=VALUE, for instance beta=0.6, got {pair!r}")
        options[name] = _value(text)
    return options


def _value(text: str) -> Any:
    if "," in text:
        return [_value(item) for item in text.removesuffix(",").split(",") if text != ","]
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    words: dict[str, bool | None] = {"true": True, "false": False, "none": None, "null": None}
    return words.get(text.lower(), text)
