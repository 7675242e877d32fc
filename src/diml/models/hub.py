"""Models of timm's kind from the Hugging Face hub (`hf-hub:OWNER/NAME`) or from a folder in its layout (`local-dir:`).

Both are a `config.json`, with the name of a timm architecture and its arguments, and a file of weights. The config is
translated into a plain name and options, so that an embedder that is saved does not need the hub again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from diml.documents import read_json
from diml.lean_imports import import_timm
from diml.models.pretrained import WeightsError, download_address, no_weights, unreachable

HUB: Final = "hf-hub:"
FOLDER: Final = "local-dir:"
#: Names of the file of weights, the preferred one first.
_WEIGHTS: Final = ("model.safetensors", "pytorch_model.bin")


@dataclass(frozen=True, kw_only=True)
class SourceModel:
    """What a name stands for.

    Attributes:
        architecture: a name of timm.
        options: further arguments of `timm.create_model`.
        settings: what the weights were trained with: mean, std, input_size, fixed_input_size, where told.
        source: the name as given.
    """

    architecture: str
    options: Mapping[str, Any] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    source: str = ""


def is_source(name: str) -> bool:
    """Whether a name is that of a model on the hub or of a folder in its layout."""
    return name.replace("hf_hub:", HUB).startswith((HUB, FOLDER))


def source_model(name: str) -> SourceModel:
    """Read the `config.json` of a model on the hub, or in a folder.

    Raises:
        WeightsError: it is neither cached nor reachable.
        ValueError: it is not the config of a timm model that is known here.
    """
    timm = import_timm()

    name = name.replace("hf_hub:", HUB)
    file = source_file(name, ("config.json",))
    try:
        config = read_json(file)
        settings = config.get("pretrained_cfg") or {key: value for key, value in config.items() if key != "model_args"}
        architecture, options = str(config["architecture"]), dict(config.get("model_args") or {})
    except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
        raise ValueError(f"backbone: {file} is not the config.json of a timm model ({error!r})") from error
    if not timm.is_model(architecture):
        raise ValueError(f"backbone: {name} needs the architecture {architecture!r}, which this timm does not have")
    own: Any = timm.get_pretrained_cfg(architecture)
    if settings.get("global_pool") not in (None, getattr(own, "global_pool", None)):
        options.setdefault("global_pool", settings["global_pool"])
    size = settings.get("input_size")
    if own is not None and own.fixed_input_size and size and tuple(size) != tuple(own.input_size):
        options.setdefault("img_size", int(size[-1]))
    options.pop("num_classes", None)
    return SourceModel(architecture=architecture, options=options, settings=settings, source=name)


def source_weights(name: str) -> Path:
    """The file of weights of a model on the hub, or in a folder; WeightsError where it cannot be had."""
    return source_file(name.replace("hf_hub:", HUB), _WEIGHTS)


def source_file(name: str, candidates: tuple[str, ...]) -> Path:
    """The first of these files that a model on the hub, or a folder, has.

    Raises:
        WeightsError: none of them is cached, and the hub cannot be reached or has none.
        FileNotFoundError: the folder has none.
    """
    kind, _, place = name.partition(":")
    if kind == FOLDER[:-1]:
        for candidate in candidates:
            if (Path(place).expanduser() / candidate).is_file():
                return Path(place).expanduser() / candidate
        raise FileNotFoundError(
            f"backbone: {place} has no {' or '.join(candidates)}; need a folder in the hub's layout"
        )
    import huggingface_hub

    repository, _, revision = place.partition("@")
    for candidate in candidates:
        cached = huggingface_hub.try_to_load_from_cache(repository, candidate, revision=revision or None)
        if isinstance(cached, str):
            return Path(cached)
    reason = unreachable(huggingface_hub.constants.ENDPOINT)
    if reason:
        where = download_address(name).rpartition("/")[0]
        raise WeightsError(
            f"backbone {name!r}: {' or '.join(candidates)} is not cached, and {reason}. On a machine with a network, "
            f"download {where}/config.json and {where}/{_WEIGHTS[0]} into one folder, copy it here and load "
            f"'{FOLDER}PATH/OF/THE/FOLDER'"
        )
    for candidate in candidates:
        try:
            return Path(huggingface_hub.hf_hub_download(repository, candidate, revision=revision or None))
        except huggingface_hub.utils.EntryNotFoundError:  # type: ignore[attr-defined]
            continue
        except Exception as error:  # the hub's client raises nearly every type
            raise no_weights(name, f"fetching {candidate} failed: {type(error).__name__}: {error}") from error
    raise no_weights(name, f"the hub has no {' or '.join(candidates)} there")
