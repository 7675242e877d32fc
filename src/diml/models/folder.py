"""The folder of a saved embedder: `embedder.json` (settings) and `model.safetensors` (weights).

Where its matcher is learned, `scorer.safetensors` has the weights of the scorer, which the settings identify.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from diml.checksums import check_file, file_sha256, sealed, unsealed
from diml.documents import parse_json
from diml.files import atomic_folder, require_writable
from diml.matching.learned import LearnedMatcher, VoteScorer
from diml.models.config import EmbedderConfig

SETTINGS_FILE: Final = "embedder.json"
WEIGHTS_FILE: Final = "model.safetensors"
SCORER_FILE: Final = "scorer.safetensors"
#: Written by `diml.calibration`; it belongs to the embedder that is beside it.
CALIBRATION_FILE: Final = "calibration.json"
#: What is replaced when an embedder is saved again: its files, and the calibration of the one that was there.
_REPLACED: Final = {SETTINGS_FILE, WEIGHTS_FILE, SCORER_FILE, CALIBRATION_FILE}
_FORMAT: Final = 1
_KEYS: Final = {"format", "config", "weights_sha256", "sha256"}
_REMEDY: Final = "copy or save the folder again; `load_embedder` takes other settings as arguments"


def write_folder(folder: Path, config: EmbedderConfig, state: Mapping[str, Tensor]) -> None:
    """Write settings and weights atomically into a folder of their own; a saved embedder is replaced.

    Raises:
        FileExistsError: the folder exists and contains something else.
    """
    check_folder(folder)
    with atomic_folder(folder) as scratch:
        save_file(_separate(state), scratch / WEIGHTS_FILE)
        if isinstance(config.matcher, LearnedMatcher):
            save_file(_separate(scorer_of(config.matcher).float().state_dict()), scratch / SCORER_FILE)
        settings = {
            "format": _FORMAT,
            "config": config.to_dict(),
            "weights_sha256": file_sha256(scratch / WEIGHTS_FILE),
        }
        text = json.dumps(sealed(settings), indent=2)
        (scratch / SETTINGS_FILE).write_text(text + "\n", encoding="utf-8")


def require_savable(folder: Path) -> None:
    """Find out before a long task whether an embedder can be saved to a folder; creates the folder above it.

    Raises:
        OSError: as `write_folder`, or it cannot be written to.
    """
    check_folder(folder)
    require_writable(folder.absolute().parent)


def check_folder(folder: Path) -> None:
    """Raise FileExistsError where a folder has something that would be lost if an embedder were saved to it."""
    if not folder.exists():
        return
    inside = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    if not folder.is_dir() or (inside and SETTINGS_FILE not in inside):
        raise FileExistsError(f"folder: {folder} exists and holds no embedder; name a new or empty folder")
    lost = sorted(name for name in inside - _REPLACED if not name.startswith("."))
    if lost:
        raise FileExistsError(
            f"folder: {folder} holds more than an embedder ({', '.join(lost[:3])}{', ...' * (len(lost) > 3)}), which "
            "would be lost; name a new or empty folder"
        )


def read_settings(folder: Path) -> EmbedderConfig:
    """Return the settings in a folder, after checking that its weights are those that were saved with them.

    Raises:
        FileNotFoundError: the folder, or one of its two files, is missing.
        ValueError: settings or weights are damaged or unknown.
    """
    path = folder / SETTINGS_FILE
    text = _require(path).read_bytes()
    try:
        settings: Any = parse_json(text, SETTINGS_FILE)
        _check_settings(settings)
        config = EmbedderConfig.from_dict(settings["config"])
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"{path}: not the settings of an embedder: {error}") from error
    unsealed(settings, str(path), _REMEDY)
    check_file(_require(folder / WEIGHTS_FILE), settings["weights_sha256"], "copy or save the folder again")
    return config


def read_weights(folder: Path) -> dict[str, Tensor]:
    """Return the weights in a folder; ValueError where the file is damaged."""
    try:
        return load_file(folder / WEIGHTS_FILE)
    except SafetensorError as error:
        raise ValueError(f"{folder / WEIGHTS_FILE}: damaged ({error}); copy or save the folder again") from error


def scorer_of(matcher: LearnedMatcher) -> VoteScorer:
    """The network of a learned matcher; ValueError where only its identity is known."""
    if matcher.scorer is None:
        raise ValueError(f"matcher: need the learned scorer {matcher.scorer_id[:12]}... to save it, got its name only")
    return matcher.scorer


def with_scorer(folder: Path, config: EmbedderConfig) -> EmbedderConfig:
    """The settings with the scorer in the folder, where the matcher is learned.

    Raises:
        FileNotFoundError: it is missing.
        ValueError: it is damaged, or another one.
    """
    if not isinstance(config.matcher, LearnedMatcher):
        return config
    path = _require(folder / SCORER_FILE)
    try:
        matcher = config.matcher.with_scorer(VoteScorer.of_state(load_file(path)))
    except (SafetensorError, ValueError) as error:
        raise ValueError(f"{path}: damaged, or of another model ({error}); copy or save the folder again") from error
    return dataclasses.replace(config, matcher=matcher)


def _separate(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights on the CPU, each with memory of its own, as safetensors needs: tied ones are copied."""
    separate: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, value in state.items():
        plain = value.detach().cpu().contiguous()
        place = plain.untyped_storage().data_ptr()
        separate[name] = plain.clone() if place in seen else plain
        seen.add(place)
    return separate


def _check_settings(settings: Any) -> None:
    if not isinstance(settings, dict) or settings.keys() != _KEYS:
        got = ", ".join(settings) if isinstance(settings, dict) else type(settings).__name__
        raise ValueError(f"need the keys {', '.join(sorted(_KEYS))}, got {got}")
    if settings["format"] != _FORMAT:
        raise ValueError(f"need format {_FORMAT}, got {settings['format']!r}; written by a newer diml? Update diml")


def _require(path: Path) -> Path:
    if path.is_file():
        return path
    inside = "the folder does not exist" if not path.parent.exists() else f"it has no {path.name}"
    raise FileNotFoundError(f"{path.parent}: not a saved embedder, {inside}; name a folder written by embedder.save()")
