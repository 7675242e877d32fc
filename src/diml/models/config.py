"""The settings of an embedder: everything that it is made of but its weights."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal, get_args

from diml.data.transforms import Preprocess
from diml.matching import Matcher
from diml.models.backbones import TOKEN_POOLINGS, Precision, TokenPooling
from diml.models.grids import check_grid
from diml.models.heads import HEADS, HeadName
from diml.models.modules import LAYOUTS, Layout, is_import_path, plain_options
from diml.models.rollout import DEFAULT_BLOCKS
from diml.spelling import did_you_mean, shown

#: Channels of an embedding; more would be a mistake that fills the memory.
LARGEST_DIM: Final = 65_536

PooledFrom = Literal["backbone", "grid_mean"]

_CHOICES: Final = {
    "head": HEADS,
    "pooled": get_args(PooledFrom),
    "precision": get_args(Precision),
    "token_pooling": (None, *TOKEN_POOLINGS),
    "layout": (None, *LAYOUTS),
}
#: Settings that only a user's own module has.
_OF_MODULES: Final = ("layout", "prefix_tokens")
#: Settings that are saved only where they differ from this.
_USUAL: Final = {"layout": None, "prefix_tokens": None, "factory_options": None, "rollout_blocks": DEFAULT_BLOCKS}


@dataclass(frozen=True, kw_only=True)
class EmbedderConfig:
    """How images become `Regions`, and how these are compared; saved with the weights.

    Attributes:
        backbone: name of the network; for a module of your own, the import path `module:name` of its class or of a
            function that builds it.
        preprocess: from image to network input.
        head: "identity", "linear" or "whiten".
        dim: D, length of the vectors; with head "identity", the backbone's C.
        grid: G for G x G regions, 1 to 14; None keeps the backbone's own cells.
        pooled: "backbone": the head applied to the backbone's own pooled feature; "grid_mean": the mean of the embedded
            grid cells, as in the authors' `_diml` networks and in training with their objectives.
        token_pooling: for networks of tokens, "class", "mean" or "attention" (the attention pooling of the model's own
            head, as of SigLIP); None follows the model's own head.
        precision: of the network in `Embedder.embed`: "float32", or autocast to "bfloat16" or "float16"; "auto" is
            float32 on the CPU and float16 on accelerators. Regions are float32 in any case.
        matcher: settings of the comparison that the embedder was trained with, or is meant for.
        layout: of the features of a module of your own: "NCHW", "NHWC" or "NTC" (tokens); None: inferred.
        prefix_tokens: of a module of your own, tokens before those of the cells; None: inferred.
        factory_options: keyword arguments with which `backbone` is called to build a module of your own, or further
            ones of `timm.create_model`.
        rollout_blocks: m, how many of the last blocks of a vision transformer attention is rolled out over for the
            masses of regions (see docs/vits.md); all where it has fewer; 0: masses are not computed.

    Raises:
        TypeError, ValueError: a setting is out of its range.
    """

    backbone: str
    preprocess: Preprocess
    head: HeadName = "identity"
    dim: int
    grid: int | None = 4
    pooled: PooledFrom = "backbone"
    token_pooling: TokenPooling | None = None
    precision: Precision = "auto"
    matcher: Matcher = Matcher()
    layout: Layout | None = None
    prefix_tokens: int | None = None
    factory_options: Mapping[str, Any] | None = None
    rollout_blocks: int = DEFAULT_BLOCKS

    def __post_init__(self) -> None:
        if not isinstance(self.backbone, str) or not self.backbone:
            raise ValueError(f"backbone: need the name of a network, got {shown(self.backbone)}")
        for name, allowed in _CHOICES.items():
            value = getattr(self, name)
            if value not in allowed:
                known = ", ".join(str(choice) for choice in allowed)
                raise ValueError(f"{name}: need one of {known}, got {value!r}")
        if isinstance(self.dim, bool) or not isinstance(self.dim, int) or not 1 <= self.dim <= LARGEST_DIM:
            raise ValueError(f"dim: need an integer from 1 to {LARGEST_DIM}, got {shown(self.dim)}")
        if self.grid is not None:
            check_grid(self.grid)
        prefix = self.prefix_tokens
        if prefix is not None and (isinstance(prefix, bool) or not isinstance(prefix, int) or prefix < 0):
            raise ValueError(f"prefix_tokens: need an integer of at least 0, got {prefix!r}")
        blocks = self.rollout_blocks
        if isinstance(blocks, bool) or not isinstance(blocks, int) or blocks < 0:
            raise ValueError(f"rollout_blocks: need an integer of at least 0, got {blocks!r}")
        given = [name for name in _OF_MODULES if getattr(self, name) is not None]
        if given and not is_import_path(self.backbone):
            raise ValueError(f"{', '.join(given)}: only for a module of your own, got backbone {self.backbone!r}")
        if self.factory_options is not None:
            object.__setattr__(self, "factory_options", plain_options(self.factory_options))

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as plain values, for JSON; rare ones only where they are set."""
        plain = {name: getattr(self, name) for name in _FIELDS}
        plain |= {"preprocess": self.preprocess.to_dict(), "matcher": self.matcher.to_dict()}
        return {name: value for name, value in plain.items() if name not in _USUAL or value != _USUAL[name]}

    @classmethod
    def from_dict(cls, settings: Mapping[str, Any]) -> EmbedderConfig:
        """Build from plain values; missing ones take their defaults.

        Raises:
            ValueError: an unknown key (the nearest known one is named), a required one is missing, or a value is out
                of its range.
        """
        for key in settings:
            if key not in _FIELDS:
                raise ValueError(f"config: unknown key {key!r}; {did_you_mean(str(key), _FIELDS)}")
        missing = [field for field in _REQUIRED if field not in settings]
        if missing:
            raise ValueError(f"config: missing {', '.join(missing)}")
        nested: dict[str, Any] = {"preprocess": Preprocess.from_dict(settings["preprocess"])}
        if "matcher" in settings:
            nested["matcher"] = Matcher.from_dict(settings["matcher"])
        return cls(**{**settings, **nested})


_FIELDS: Final = tuple(field.name for field in dataclasses.fields(EmbedderConfig))
_REQUIRED: Final = tuple(f.name for f in dataclasses.fields(EmbedderConfig) if f.default is dataclasses.MISSING)
