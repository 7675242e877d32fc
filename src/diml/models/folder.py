"""An embedder as a folder: `embedder.json` (settings) and `model.safetensors` (weights)."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, Final

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from diml.files import whole_folder
from diml.models.config import EmbedderConfig
from diml.models.embedder import Embedder
from diml.models.heads import build_head
from diml.models.pretrained import load_exactly
from diml.models.zoo import build_backbone

SETTINGS_FILE: Final = "embedder.json"
WEIGHTS_FILE: Final = "model.safetensors"
_FORMAT: Final = 1
_KEYS: Final = {"format", "config", "weights_sha256"}


def is_embedder_folder(folder: Path) -> bool:
    """Whether an embedder was saved there."""
    return (folder / SETTINGS_FILE).is_file()


def save_embedder(embedder: Embedder, folder: Path) -> None:
    """Write an embedder into a folder of its own; see `Embedder.save`."""
    if folder.exists() and not (is_embedder_folder(folder) or (folder.is_dir() and not any(folder.iterdir()))):
        raise FileExistsError(f"folder: {folder} exists and holds no embedder; name a new or empty folder")
    with whole_folder(folder) as scratch:
        state = {name: value.detach().cpu().contiguous() for name, value in embedder.state_dict().items()}
        save_file(state, scratch / WEIGHTS_FILE)
        settings = {
            "format": _FORMAT,
            "config": embedder.config.to_dict(),
            "weights_sha256": _sha256(scratch / WEIGHTS_FILE),
        }
        (scratch / SETTINGS_FILE).write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


def read_embedder(folder: Path) -> Embedder:
    """Return the embedder of a folder, its outputs equal to the bit to those of the saved one.

    Raises:
        FileNotFoundError: the folder, or one of its two files, is missing.
        ValueError: settings or weights are damaged, unknown, or do not fit each other.
    """
    config = _read_settings(folder)
    backbone = build_backbone(
        config.backbone,
        pretrained=False,
        image_size=config.preprocess.size,
        token_pooling=config.token_pooling,
    )
    embedder = Embedder(backbone, build_head(config.head, backbone.channels, config.dim), config)
    if embedder.dim != config.dim:
        raise ValueError(f"{folder / SETTINGS_FILE}: need dim {embedder.dim} for this backbone, got {config.dim}")
    load_exactly(embedder, _read_weights(folder), str(folder / WEIGHTS_FILE))
    return embedder.eval()


def _read_settings(folder: Path) -> EmbedderConfig:
    path = folder / SETTINGS_FILE
    text = _require(path).read_bytes()
    try:
        settings: Any = json.loads(text)
        _check_settings(settings)
        config = EmbedderConfig.from_dict(settings["config"])
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"{path}: not the settings of an embedder: {error}") from error
    found = _sha256(_require(folder / WEIGHTS_FILE))
    if found != settings["weights_sha256"]:
        raise ValueError(
            f"{folder / WEIGHTS_FILE}: damaged, or not the weights that were saved with {SETTINGS_FILE} (sha256 "
            f"{found[:12]}..., expected {str(settings['weights_sha256'])[:12]}...); copy or save the folder again"
        )
    return config


def _check_settings(settings: Any) -> None:
    if not isinstance(settings, dict) or settings.keys() != _KEYS:
        got = ", ".join(settings) if isinstance(settings, dict) else type(settings).__name__
        raise ValueError(f"need the keys {', '.join(sorted(_KEYS))}, got {got}")
    if settings["format"] != _FORMAT:
        raise ValueError(f"need format {_FORMAT}, got {settings['format']!r}; a newer diml wrote it? Update diml")


def _read_weights(folder: Path) -> dict[str, Tensor]:
    try:
        return load_file(folder / WEIGHTS_FILE)
    except SafetensorError as error:
        raise ValueError(f"{folder / WEIGHTS_FILE}: damaged ({error}); copy or save the folder again") from error


def _require(path: Path) -> Path:
    if path.is_file():
        return path
    inside = "the folder does not exist" if not path.parent.exists() else f"it has no {path.name}"
    raise FileNotFoundError(f"{path.parent}: not a saved embedder, {inside}; name a folder written by embedder.save()")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
