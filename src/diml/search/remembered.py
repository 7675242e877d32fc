"""The embedder of an index: how to load it again, and that it is the same."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from diml.models import EmbedderConfig, load_embedder
from diml.models.zoo import is_backbone
from diml.search.store import ColumnType, IndexConfig, Storage

if TYPE_CHECKING:
    from diml.models import Embedder


def config_of(
    embedder: Embedder,
    name_or_path: str,
    *,
    storage: Storage = "float16",
    columns: Mapping[str, ColumnType],
    architecture: str | None = None,
) -> IndexConfig:
    """The settings of an index of this embedder, which was loaded by that name or path."""
    regions = embedder.embed(Image.new("RGB", (64, 64)))  # what is known only when it is done: R of the own cells
    by_name = is_backbone(name_or_path)
    name = name_or_path if by_name else str(Path(name_or_path).expanduser().resolve())
    return IndexConfig(
        dim=regions.dim,
        num_regions=0 if storage == "none" else regions.num_regions,
        grid=regions.grid,
        storage=storage,
        columns=columns,
        embedder=embedder.fingerprint(),
        model={"name_or_path": name, "architecture": architecture, "config": embedder.config.to_dict()},
    )


def load_remembered(config: IndexConfig, model: str | None = None) -> Embedder:
    """Load the embedder of an index.

    Args:
        config: of the index.
        model: name or path in place of the remembered one, where that has moved; it must be the same embedder.

    Raises:
        ValueError, FileNotFoundError: it is not there any more, or is another one than the index was made with.
    """
    settings: dict[str, Any] = dict(config.model)
    word = settings["name_or_path"] if model is None else model
    wanted = EmbedderConfig.from_dict(settings["config"])
    changes: dict[str, Any] = {name: getattr(wanted, name) for name in ("grid", "preprocess", "pooled", "precision")}
    if is_backbone(word):
        changes |= {"head": wanted.head, "dim": wanted.dim, "token_pooling": wanted.token_pooling}
    try:
        embedder = load_embedder(word, architecture=settings["architecture"], **changes)
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"model: the index was made with {word}, which is gone ({error}); name it anew"
        ) from error
    require_embedder(embedder, config)
    return embedder


def require_embedder(embedder: Embedder, config: IndexConfig) -> None:
    """Refuse another embedder than the index was made with: its vectors would mean nothing there."""
    found = embedder.fingerprint()
    if found != config.embedder:
        made = config.model.get("name_or_path")
        raise ValueError(
            f"model: the index was made with another embedder ({made}, fingerprint {config.embedder[:12]}..., got "
            f"{found[:12]}...); its settings or weights differ; use that one, or build a new index"
        )
