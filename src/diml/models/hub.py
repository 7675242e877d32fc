"""Models on the Hugging Face hub (`hf-hub:OWNER/NAME`), or in a folder with the same files (`local-dir:FOLDER`).

Those of timm are a `config.json`, with the name of a timm architecture and its arguments, and a file of weights. The
config is translated into a plain name and options, so that an embedder that is saved does not need the hub again.
Saved embedders are in `published`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from diml.documents import read_json
from diml.lean_imports import import_timm
from diml.models.pretrained import WeightsError, no_weights, unreachable

HUB: Final = "hf-hub:"
FOLDER: Final = "local-dir:"
#: Names of the file of weights, the preferred one first.
_WEIGHTS: Final = ("model.safetensors", "pytorch_model.bin")
#: What an answer of the hub means; REPOSITORY stands for the name.
_ANSWERS: Final = {
    400: "the hub refused what was sent",
    401: "the hub does not know this token, or there is no REPOSITORY that it may see; check the name, and set "
    "HF_TOKEN to a valid token",
    403: "the token has no permission for REPOSITORY; use one with write access, and an owner that is you or an "
    "organisation of yours",
    404: "the hub has no REPOSITORY that you may see; check the name and the revision, and set HF_TOKEN where it is "
    "private",
    409: "another change of REPOSITORY came between; try again",
    429: "too many requests; try again later",
}


class HubError(OSError):
    """The Hugging Face hub cannot be reached, or has refused; the message says what to do."""


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
    """Whether a name is that of a model on the hub or of a folder with the same files."""
    return plain_source(name).startswith((HUB, FOLDER))


def plain_source(name: str) -> str:
    """The name in the one spelling that is used here: timm also knows `hf_hub:`."""
    return name.replace("hf_hub:", HUB)


def source_model(name: str) -> SourceModel:
    """Read the `config.json` of a model on the hub, or in a folder.

    Raises:
        WeightsError: it is neither cached nor reachable.
        ValueError: it is not the config of a timm model that is known here.
    """
    timm = import_timm()

    name = plain_source(name)
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
    return source_file(plain_source(name), _WEIGHTS)


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

    repository, revision = repository_of(name)
    for candidate in candidates:
        cached = huggingface_hub.try_to_load_from_cache(repository, candidate, revision=revision)
        if isinstance(cached, str):
            return Path(cached)
    reason = why_offline()
    if reason:
        files = f"{huggingface_hub.constants.ENDPOINT}/{repository}/tree/{revision or 'main'}"
        raise WeightsError(
            f"backbone {name!r}: {' or '.join(candidates)} is not cached, and {reason}. On a machine with a network, "
            f"download config.json and the weights (of a saved embedder, all files) from {files} into one folder, copy "
            f"it here and load '{FOLDER}PATH/OF/THE/FOLDER'"
        )
    for candidate in candidates:
        try:
            return Path(hub_api().hf_hub_download(repository, candidate, revision=revision))
        except huggingface_hub.utils.EntryNotFoundError:  # type: ignore[attr-defined]
            continue
        except Exception as error:  # the hub's client raises nearly every type
            raise hub_error("model", repository, error) from error
    raise no_weights(name, f"the hub has no {' or '.join(candidates)} there")


def repository_of(name: str) -> tuple[str, str | None]:
    """OWNER/NAME and the revision of `hf-hub:OWNER/NAME@REVISION`."""
    repository, _, revision = plain_source(name).removeprefix(HUB).partition("@")
    return repository, revision or None


def hub_api(token: str | None = None) -> Any:
    """The hub's client, with the token that is given, else the one that is stored on this machine."""
    import huggingface_hub

    return huggingface_hub.HfApi(endpoint=huggingface_hub.constants.ENDPOINT, token=token)


def why_offline() -> str | None:
    """Why the hub cannot be used now; None when it can, or when a proxy may reach it."""
    import huggingface_hub

    if huggingface_hub.constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set"
    return unreachable(huggingface_hub.constants.ENDPOINT)


def hub_error(what: str, repository: str, error: Exception) -> HubError:
    """What an error of the hub's client means, with the remedy.

    Args:
        what: the argument that named the model.
        repository: OWNER/NAME.
        error: of any type.
    """
    status = getattr(getattr(error, "response", None), "status_code", None)
    told = _ANSWERS.get(
        status or 0, "the hub failed; try again later" if status else "the connection to the hub failed"
    )
    detail = getattr(error, "server_message", None) or next(iter(str(error).splitlines()), "")
    return HubError(f"{what}: {told.replace('REPOSITORY', repository)} ({type(error).__name__}: {detail})")
