"""The configuration of a training: one frozen dataclass, built from flags, a preset or a YAML file."""

from __future__ import annotations

import dataclasses
import math
import re
import types
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, Union, get_args, get_origin, get_type_hints

import yaml

from diml.documents import read_yaml
from diml.evaluation.metrics import METRICS
from diml.files import write_text
from diml.matching import Matcher
from diml.spelling import did_you_mean, shown
from diml.training.presets import FROZEN_BACKBONE


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Settings of one training; saved with the run as `config.yaml`.

    Raises ValueError where a value is out of range or two values are incompatible.

    Example:
        >>> TrainConfig(dataset="orl", objective="margin_diml", matcher=Matcher(epsilon=0.02)).folder
        PosixPath('runs/orl-margin_diml-0')
    """

    dataset: str
    """Name of the data set; `diml datasets` lists them."""

    data: Path = Path("data")
    """Folder that contains the data set; for `folder` and `csv`, that folder or file itself."""

    protocol: str | None = None
    """Protocol of the data set; by default `class_disjoint` if the data set has it, else its first one."""

    output: Path | None = None
    """Folder of the run; default runs/DATASET-OBJECTIVE-SEED."""

    objective: str = "margin"
    """Training objective: margin, multisimilarity, triplet, contrastive, quadruplet, npair, lifted, angular,
    histogram, snr, proxynca, proxyanchor, softtriple, arcface, softmax, adversarial_separation, margin_diml or
    multisimilarity_diml."""

    similarity: Literal["pooled", "structural"] | None = None
    """Similarity used by the objective: cosine of pooled vectors, or structural matching of regions. Default:
    `structural` for margin_diml and multisimilarity_diml, else `pooled`."""

    matcher: Matcher = Matcher()
    """Matching settings of structural objectives, validation and test; saved with the embedder."""

    miner: str | None = None
    """Selection of pairs or triplets: distance, semihard, softhard, random, intra_random, random_distance,
    rho_distance, parametric, multisimilarity, or none, which uses all. The default depends on the objective."""

    objective_options: tuple[str, ...] = ()
    """Hyperparameters of the objective and, with the prefix miner_, of its miner, as NAME=VALUE, for instance
    beta=0.6; lists are separated by commas, parts=discriminative,shared."""

    sampler: str = "class_balanced"
    """Batch sampler: class_balanced, random, or, based on stored embeddings, d2_coreset, greedy_coreset, disthist,
    fid."""

    sampler_options: tuple[str, ...] = ()
    """Settings of the sampler as NAME=VALUE, for instance batches_per_epoch=100."""

    batch_size: int = 112
    """Images per batch, over all processes; with --frozen-backbone at most as many as the classes can fill."""

    per_class: int = 2
    """Images per class in a batch."""

    model: str = "mobilenetv2_100"
    """Initial network: name of a timm backbone, or the folder of a saved embedder."""

    pretrained: bool = True
    """Initialize the backbone with ImageNet weights."""

    weights_file: Path | None = None
    """For a timm name: file of its initial weights, .safetensors or .pth (in which nothing is executed), instead of the
    pretrained ones, so that no hub is needed."""

    weights_sha256: str | None = None
    """The sha256 that --weights-file must have; by default that which it has, which is recorded with the run."""

    frozen_backbone: bool = False
    """Train the head alone, on backbone features that are computed once: seconds on a CPU. Other settings then have the
    defaults of this recipe (`diml.training.presets.FROZEN_BACKBONE`): a linear layer that begins as the whitening,
    multisimilarity on batches of 16 classes x 4 images, and early stopping."""

    views: int = 1
    """With --frozen-backbone, random crops of each training image, whose features are used beside its own."""

    cache: bool = True
    """With --frozen-backbone, keep features in the cache folder, so that the next run on the same images begins at
    once."""

    region_dropout: float = 0.15
    """With --frozen-backbone, the fraction of the regions of an image that is left out, another choice each epoch."""

    head: Literal["linear", "identity", "whiten"] = "linear"
    """Layer that maps backbone features to embeddings: `linear`; `whiten`, a linear layer that begins as the whitening
    of the training images; or `identity`, none."""

    dim: int = 128
    """Embedding dimension D of a `linear` or `whiten` head; of the latter at most the channels of the backbone."""

    grid: int = 4
    """Regions per side: G x G."""

    pooled: Literal["backbone", "grid_mean"] | None = None
    """Pooled vector: the head applied to the backbone's pooled features, or the mean of the regions. Default:
    `grid_mean` with structural similarity, else `backbone`."""

    size: int | None = None
    """Side of the network input in pixels; default that of the model."""

    crop_scale: tuple[float, float] = (0.08, 1.0)
    """Range of the area fraction of random crops."""

    flip: float = 0.5
    """Probability of a horizontal flip."""

    jitter: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)
    """Maximum random change of brightness, contrast, saturation (fractions) and hue (turns)."""

    grayscale: float = 0.0
    """Probability of conversion to grayscale."""

    epochs: int = 150
    """Training epochs."""

    optimizer: Literal["adam", "adamw", "sgd"] = "adam"
    """Optimizer; `sgd` uses momentum 0.9."""

    lr: float = 1e-5
    """Learning rate of the backbone."""

    head_lr: float | None = None
    """Learning rate of the head; default that of the backbone."""

    loss_lr: float | None = None
    """Learning rate of the objective's parameters, such as proxies; the default depends on the objective."""

    weight_decay: float = 4e-4
    """Weight decay of the network; the objective's parameters have none."""

    schedule: Literal["constant", "step", "cosine"] = "constant"
    """Learning rate schedule: constant, multiplied by --gamma at each of --milestones, or cosine decay to 0."""

    milestones: tuple[int, ...] = ()
    """Epochs after which the `step` schedule reduces the learning rates."""

    gamma: float = 0.3
    """Factor of the `step` schedule."""

    warmup_steps: int = 0
    """Steps of linear warm-up."""

    clip_norm: float | None = None
    """Maximum norm of the gradient over all parameters; no clipping by default."""

    freeze_batch_norm: bool = True
    """Keep the running statistics of batch norm fixed, as in the authors' code; its weight and bias are trained."""

    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Precision of the network in training; `auto` is float32 on the CPU. Objectives are computed in float32."""

    skip_non_finite: bool = False
    """Skip and count steps whose embeddings, loss or gradient are not finite, instead of stopping."""

    select_on: Literal["validation", "test"] = "validation"
    """Images on which the best epoch is selected. `test` reproduces the authors' protocol; its results are biased
    upwards."""

    validation_fraction: float = 0.2
    """Fraction of the training classes held out to select the best epoch; 0 keeps the last epoch."""

    validate_every: int = 1
    """Epochs between validations; the last epoch is always validated."""

    patience: int | None = None
    """Stop after so many validations without a better one; by default all epochs are trained."""

    frozen_baseline: bool = True
    """Evaluate the network before training too, on the validation images (epoch 0) and on the test images, where the
    result is compared with it query by query."""

    metric: str = "map@r"
    """Metric that selects the best epoch: recall@1, recall@2, recall@4, recall@8, r_precision or map@r; the last two
    also with the suffix _self_counted, as computed in the authors' code."""

    rerank_at: int = 100
    """K of the structural re-ranking in the final test, in addition to the plain ranking."""

    validation_rerank_at: int | None = None
    """K of the re-ranking in validation, which then selects the best epoch; default --rerank-at with structural
    similarity, else 0, the plain ranking."""

    checkpoint_every: int = 500
    """Steps between checkpoints; another one is written after each epoch."""

    evaluation_batch_size: int = 64
    """Batch size in validation and test."""

    loggers: tuple[str, ...] | None = None
    """Where the numbers of metrics.jsonl also go: any of tensorboard, wandb (Weights & Biases) and mlflow; by default
    tensorboard where it is installed."""

    on_bad_image: Literal["fail", "skip"] = "fail"
    """Unreadable images: stop and name the first one, or skip and list them."""

    workers: int = 0
    """Data loader processes; 0 decodes in the training process."""

    device: str = "auto"
    """Device, for instance cuda; `auto` uses an accelerator if there is one."""

    seed: int = 0
    """Random seed of initial weights, batches, augmentation, mining and the validation split."""

    def __post_init__(self) -> None:
        for name, low in _AT_LEAST.items():
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value >= low):
                raise ValueError(f"{name}: need a number of at least {low}, got {shown(value)}")
        for name in ("lr", "head_lr", "loss_lr", "clip_norm", "gamma"):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value > 0):
                raise ValueError(f"{name}: need a number above 0, got {value}")
        for name, high in _AT_MOST.items():
            value = getattr(self, name)
            if value is not None and value > high:
                raise ValueError(f"{name}: need a number of at most {high:g}, got {shown(value)}")
        if not 0 <= self.validation_fraction < 1:
            raise ValueError(f"validation_fraction: need a fraction in [0, 1), got {self.validation_fraction}")
        if self.metric not in METRICS:
            raise ValueError(f"metric: no {shown(self.metric)}; {did_you_mean(self.metric, METRICS)}")
        if any(milestone < 1 for milestone in self.milestones):
            raise ValueError(f"milestones: need epochs of 1 or more, got {self.milestones}")
        if self.schedule == "step" and not self.milestones:
            raise ValueError("milestones: schedule 'step' needs at least one epoch, got none; use --milestones 60 120")
        if self.weights_sha256 is not None:
            if self.weights_file is None:
                raise ValueError("weights_sha256: is that of --weights-file, got none; give the file, or omit this")
            if not re.fullmatch(r"[0-9a-f]{64}", self.weights_sha256):
                raise ValueError(f"weights_sha256: need 64 hexadecimal digits, got {shown(self.weights_sha256)}")
        if not 0 <= self.region_dropout < 1:
            raise ValueError(f"region_dropout: need a fraction in [0, 1), got {self.region_dropout}")
        if self.frozen_backbone and self.head == "identity":
            raise ValueError("head: 'identity' leaves nothing to train of a frozen backbone; use 'whiten' or 'linear'")
        if self.patience is not None and self.select_on == "validation" and self.validation_fraction == 0:
            raise ValueError("patience: needs validation, and validation_fraction 0 disables it; omit one of them")
        if not isinstance(self.matcher, Matcher):
            got = type(self.matcher).__name__
            raise TypeError(f"matcher: need a Matcher, got {got}; TrainConfig.from_dict takes plain values")
        for name in _OPTIONS:  # normalized, so that equal options compare equal
            options = parse_options(getattr(self, name), name)
            object.__setattr__(self, name, _written(options))

    @property
    def structural(self) -> bool:
        """Whether the objective matches regions."""
        return self.similarity == "structural" or self.objective.endswith("_diml")

    @property
    def regions_in_step(self) -> int:
        """Regions of an image that a training step sees: all, or with a frozen backbone those that are not left out."""
        whole = self.grid**2
        return max(1, whole - round(self.region_dropout * whole)) if self.frozen_backbone else whole

    @property
    def folder(self) -> Path:
        """Folder of the run."""
        if self.output is not None:
            return self.output
        return (
            Path("runs")
            / f"{self.dataset}-{self.objective.removesuffix('_diml')}{'_diml' * self.structural}-{self.seed}"
        )

    @property
    def select_rerank_at(self) -> int:
        """K of the ranking that selects the best epoch; 0 is the plain ranking."""
        if self.validation_rerank_at is not None:
            return self.validation_rerank_at
        return self.rerank_at if self.structural else 0

    def to_dict(self) -> dict[str, Any]:
        """Plain values for YAML and JSON, the matcher as a nested mapping; `from_dict` reads them."""
        values = {name: _plain(getattr(self, name)) for name in FIELDS}
        return values | {name: parse_options(getattr(self, name), name) for name in _OPTIONS}

    @classmethod
    def from_dict(cls, *settings: Mapping[str, Any]) -> TrainConfig:
        """Build from plain values; what is missing has its default.

        Args:
            settings: one or more mappings; later ones override earlier ones, under `matcher` key by key. With
                `frozen_backbone` they override the recipe for it.

        Raises:
            ValueError: an unknown key (the nearest known one is named), or a value of another type or out of range.

        Example:
            >>> TrainConfig.from_dict({"dataset": "orl"}, {"matcher": {"epsilon": 0.02}}).matcher.epsilon
            0.02
        """
        return cls(**field_values(merge_recipe(*(checked_settings(values) for values in settings))))


#: Names of the settings, in order.
FIELDS: Final = tuple(field.name for field in dataclasses.fields(TrainConfig))
_HINTS: Final = get_type_hints(TrainConfig)
_MATCHER_HINTS: Final = get_type_hints(Matcher)
_OPTIONS: Final = ("objective_options", "sampler_options")
_AT_LEAST: Final = {
    "epochs": 1,
    "batch_size": 2,
    "per_class": 1,
    "dim": 1,
    "grid": 1,
    "size": 1,
    "views": 0,
    "patience": 1,
    "weight_decay": 0,
    "warmup_steps": 0,
    "rerank_at": 0,
    "validation_rerank_at": 0,
    "validate_every": 1,
    "checkpoint_every": 1,
    "evaluation_batch_size": 1,
    "workers": 0,
    "seed": 0,
}
#: Beyond these lies a mistake, which would end in an error of torch after the data were read.
_AT_MOST: Final = {
    "dim": 65_536,
    "size": 16_384,
    "seed": 2**32 - 1,
    "lr": 1e6,
    "head_lr": 1e6,
    "loss_lr": 1e6,
    "weight_decay": 1e6,
}


def checked_settings(values: Mapping[str, Any], source: str = "config") -> dict[str, Any]:
    """Convert some or all settings to their types; `matcher` stays a mapping, for it may hold only some of its keys.

    Args:
        values: plain values, as in YAML or a preset.
        source: name of their origin in errors.

    Raises:
        ValueError: an unknown key (the nearest known one is named), or a value of another type.
    """
    for key in values:
        if key not in FIELDS:
            raise ValueError(f"{source}: unknown key {shown(key)}; {did_you_mean(str(key), FIELDS)}")
    return {key: converted(value, _HINTS[key], f"{source}: {key}") for key, value in values.items()}


def merge_settings(*settings: Mapping[str, Any]) -> dict[str, Any]:
    """Combine settings; later ones override earlier ones, under `matcher` key by key."""
    merged: dict[str, Any] = {}
    for values in settings:
        matcher = merged.get("matcher", {}) | values.get("matcher", {})
        merged |= values
        if matcher:
            merged["matcher"] = matcher
    return merged


def merge_recipe(*settings: Mapping[str, Any]) -> dict[str, Any]:
    """`merge_settings`, on the recipe for frozen backbones where they ask for one."""
    merged = merge_settings(*settings)
    recipe = checked_settings(FROZEN_BACKBONE) if merged.get("frozen_backbone") else {}
    return merge_settings(recipe, merged)


def field_values(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of `TrainConfig` for checked settings: the mapping under `matcher` becomes a Matcher."""
    if "matcher" not in settings:
        return dict(settings)
    return {**settings, "matcher": Matcher.from_dict(settings["matcher"])}


def read_config(path: str | Path) -> dict[str, Any]:
    """Read some or all settings from a YAML file.

    Returns:
        Settings for `TrainConfig.from_dict`, which may be combined with others.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: no YAML, no mapping, an unknown key (the nearest known one is named), or a value of another type.

    Example:
        >>> TrainConfig.from_dict(read_config("mine.yaml"), {"dataset": "orl"})  # doctest: +SKIP
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"config: no file {path}")
    values = read_yaml(path)
    if not isinstance(values, dict):
        kind = type(values).__name__
        raise ValueError(f"config: need lines `name: value` in {path}, got {kind}")  # noqa: TRY004
    return checked_settings(values, str(path))


def write_config(path: str | Path, config: TrainConfig) -> Path:
    """Write all settings as YAML, atomically; returns the path."""
    return write_text(path, yaml.safe_dump(config.to_dict(), sort_keys=False, allow_unicode=True))


def _plain(value: Any) -> Any:
    if isinstance(value, Matcher):
        return value.to_dict()
    if isinstance(value, Path):
        return str(value)
    return list(value) if isinstance(value, tuple) else value


def converted(value: Any, wanted: Any, what: str) -> Any:
    """Convert a plain value to the type of its field; ValueError, with `what` in it, if it is of another kind."""
    origin, inner = get_origin(wanted), get_args(wanted)
    if origin in (Union, types.UnionType):
        if value is None:
            return None
        return converted(value, next(kind for kind in inner if kind is not type(None)), what)
    if origin is Literal:
        if value not in inner:
            raise ValueError(f"{what}: no {shown(value)}; {did_you_mean(str(value), inner)}")
        return value
    if origin is tuple:
        if isinstance(value, Mapping) and inner[0] is str:
            value = _written(value)
        if not isinstance(value, list | tuple):
            raise ValueError(f"{what}: need a list, got {shown(value)}")
        return tuple(converted(item, inner[0], what) for item in value)
    if wanted is Matcher:
        return _matcher_settings(value, what)
    if wanted is float and not isinstance(value, bool):
        try:
            return float(value)  # YAML reads 1e-5, without a point, as text
        except (TypeError, ValueError, OverflowError):
            pass
    elif wanted is Path and isinstance(value, str | Path):
        return Path(value)
    elif type(value) is wanted:
        return value
    raise ValueError(f"{what}: need {_KINDS[wanted]}, got {shown(value)}")


_KINDS: Final = {float: "a number", int: "an integer", bool: "true or false", str: "a string", Path: "a path"}


def _matcher_settings(value: Any, what: str) -> dict[str, Any]:
    """Some or all settings of a Matcher, checked by building one; still a mapping."""
    if isinstance(value, Matcher):
        return value.to_dict()
    if not isinstance(value, Mapping):
        raise ValueError(f"{what}: need a mapping, for instance {{epsilon: 0.02}}, got {shown(value)}")  # noqa: TRY004
    settings = {
        key: converted(item, _MATCHER_HINTS[key], f"{what}: {key}") if key in _MATCHER_HINTS else item
        for key, item in value.items()
    }
    try:
        Matcher.from_dict(settings)
    except ValueError as error:
        raise ValueError(f"{what}: {str(error).removeprefix('matcher: ')}") from error
    return settings


def _written(options: Mapping[str, Any]) -> tuple[str, ...]:
    """Options as NAME=VALUE, which `parse_options` reads back."""
    return tuple(f"{name}={_text(value)}" for name, value in options.items())


def _text(value: Any) -> str:
    if isinstance(value, list | tuple):  # a trailing comma distinguishes a list of one from its item
        return ",".join(_text(item) for item in value) + "," * (len(value) < 2)
    words = {True: "true", False: "false", None: "none"}
    return words[value] if isinstance(value, bool) or value is None else str(value)


def parse_options(pairs: Iterable[str], what: str) -> dict[str, Any]:
    """Parse NAME=VALUE pairs into a dict of numbers, booleans, None, strings, and lists of these.

    Lists are separated by commas. `what` is the name of the pairs in errors.
    """
    options: dict[str, Any] = {}
    for pair in pairs:
        name, sign, text = pair.partition("=")
        if not sign or not name.isidentifier():
            raise ValueError(f"{what}: need NAME=VALUE, for instance beta=0.6, got {shown(pair)}")
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
