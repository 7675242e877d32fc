"""What an embedder is made of, apart from its weights."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal, get_args

from diml.data.transforms import Preprocess
from diml.models.backbones import TOKEN_POOLINGS, TokenPooling
from diml.models.grids import check_grid
from diml.models.heads import HEADS, HeadName

PooledFrom = Literal["backbone", "grid_mean"]
Precision = Literal["auto", "float32", "bfloat16", "float16"]

_CHOICES: Final = {
    "head": HEADS,
    "pooled": get_args(PooledFrom),
    "precision": get_args(Precision),
    "token_pooling": (None, *TOKEN_POOLINGS),
}


@dataclass(frozen=True, kw_only=True)
class EmbedderConfig:
    """How images become `Regions`; saved with the weights.

    Attributes:
        backbone: name of the network.
        preprocess: from image to network input.
        head: "identity", "linear" or "whiten".
        dim: D, length of the vectors; of head "identity", the backbone's C.
        grid: G for G x G regions, 1 to 14; None keeps the backbone's own cells.
        pooled: "backbone": the head of the backbone's own pooled features; "grid_mean": the mean of the embedded grid
            cells, as in the authors' `_diml` networks and in training with their objectives.
        token_pooling: of plain transformers, "class" or "mean"; None follows the model's own head.
        precision: in `Embedder.embed`: "float32", or autocast to "bfloat16" or "float16"; "auto" is float32 on the
            CPU and float16 on accelerators. Regions come out in float32 all the same.
    """

    backbone: str
    preprocess: Preprocess
    head: HeadName = "identity"
    dim: int
    grid: int | None = 4
    pooled: PooledFrom = "backbone"
    token_pooling: TokenPooling | None = None
    precision: Precision = "auto"

    def __post_init__(self) -> None:
        for name, allowed in _CHOICES.items():
            value = getattr(self, name)
            if value not in allowed:
                known = ", ".join(str(choice) for choice in allowed)
                raise ValueError(f"{name}: need one of {known}, got {value!r}")
        if self.grid is not None:
            check_grid(self.grid)

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as plain values, for JSON."""
        return {field: getattr(self, field) for field in _FIELDS} | {"preprocess": self.preprocess.to_dict()}

    @classmethod
    def from_dict(cls, settings: Mapping[str, Any]) -> EmbedderConfig:
        """Build from plain values.

        Raises:
            ValueError: an unknown key (the nearest known one is named), a missing one, or a value out of its range.
        """
        for key in settings:
            if key not in _FIELDS:
                near = difflib.get_close_matches(str(key), _FIELDS, n=1, cutoff=0.4)
                hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(_FIELDS)}"
                raise ValueError(f"config: unknown key {key!r}; {hint}")
        missing = [field for field in _REQUIRED if field not in settings]
        if missing:
            raise ValueError(f"config: missing {', '.join(missing)}")
        return cls(**{**settings, "preprocess": Preprocess.from_dict(settings["preprocess"])})


_FIELDS: Final = tuple(field.name for field in dataclasses.fields(EmbedderConfig))
_REQUIRED: Final = tuple(f.name for f in dataclasses.fields(EmbedderConfig) if f.default is dataclasses.MISSING)
