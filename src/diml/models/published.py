"""Saved embedders on the Hugging Face hub: their files fetched, and pushed with a model card.

What is on the hub is the folder of `Embedder.save`, its calibration where there is one, and `README.md`, the card.
"""

from __future__ import annotations

import re
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import torch

from diml.files import atomic_folder
from diml.models.card import CARD_FILE, model_card, read_results
from diml.models.folder import CALIBRATION_FILE, SCORER_FILE, SETTINGS_FILE, WEIGHTS_FILE, read_settings, read_weights
from diml.models.hub import (
    FOLDER,
    HubError,
    hub_api,
    hub_error,
    is_source,
    plain_source,
    repository_of,
    source_file,
    why_offline,
)

if TYPE_CHECKING:
    from diml.models.embedder import Embedder

#: What is fetched of a model on the hub.
_FETCHED: Final = (SETTINGS_FILE, WEIGHTS_FILE, SCORER_FILE, CALIBRATION_FILE)
#: What another version of a model may have left on the hub.
_LEFT: Final = {SCORER_FILE, CALIBRATION_FILE}
_REPOSITORY: Final = re.compile(r"[\w.-]+/[\w.-]+", re.ASCII)


def published_folder(name: str) -> Path | None:
    """The folder of the saved embedder that a name of `diml.models.hub` stands for; None for a model of timm's kind.

    Files are taken from the hub in their present version, or from its cache where it cannot be reached.

    Args:
        name: any name of a model; those that do not begin with `hf-hub:` or `local-dir:` are None at once.

    Raises:
        WeightsError: it is neither cached nor reachable.
        HubError: the hub does not have it, or not for this token.
        FileNotFoundError: the local folder has neither kind of files.
    """
    found = _settings_file(name)
    if found is None or plain_source(name).startswith(FOLDER):
        return found and found.parent
    repository, revision = repository_of(name)
    wanted: dict[str, Any] = {"revision": revision, "allow_patterns": list(_FETCHED)}
    try:
        folder = hub_api().snapshot_download(repository, local_files_only=why_offline() is not None, **wanted)
    except Exception as error:  # the hub's client raises nearly every type
        raise hub_error("model", repository, error) from error
    return Path(folder)


def is_published(name: str) -> bool:
    """Whether a name stands for a saved embedder on the hub, or in a local copy of its files; raises as
    `published_folder`."""
    return _settings_file(name) is not None


def _settings_file(name: str) -> Path | None:
    """The settings of a saved embedder, in whatever version is cached; None for a model of timm's kind."""
    if not is_source(name):
        return None
    file = source_file(plain_source(name), (SETTINGS_FILE, "config.json"))
    return file if file.name == SETTINGS_FILE else None


def is_repository(name: str) -> bool:
    """Whether a name has the form OWNER/NAME."""
    return _REPOSITORY.fullmatch(name) is not None


def write_publication(
    folder: Path, embedder: Embedder, repo_id: str, *, source: Path | None = None, licence: str | None = None
) -> None:
    """Write the folder that is pushed: the embedder, its calibration, its card.

    Args:
        folder: new or empty.
        embedder: the model.
        repo_id: OWNER/NAME, for the card.
        source: folder that the embedder was saved in, such as that of a run: its results are in the card, its
            calibration is copied, and where it has a README.md, that is the card.
        licence: for the card.

    Raises:
        FileExistsError: the folder has something in it.
        ValueError: `repo_id` or `licence` has another form, `source` is of another embedder, or a module of your own
            cannot be built again.
    """
    check_repository(repo_id)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(f"folder: {folder} exists and is not empty; name a new or empty folder")
    if source is not None:
        _check_same(embedder, source)
    own = None if source is None else source / CARD_FILE
    if own is not None and own.is_file():
        card = own.read_text(encoding="utf-8")
    else:
        results = None if source is None else read_results(source)
        card = model_card(embedder, repo_id, results=results, licence=licence)
    with atomic_folder(folder) as scratch:
        embedder.save(scratch)
        (scratch / CARD_FILE).write_text(card, encoding="utf-8")
        if source is not None and (source / CALIBRATION_FILE).is_file():
            shutil.copyfile(source / CALIBRATION_FILE, scratch / CALIBRATION_FILE)


def push(
    embedder: Embedder,
    repo_id: str,
    *,
    source: Path | None = None,
    private: bool = False,
    licence: str | None = None,
    token: str | None = None,
) -> str:
    """Push an embedder as `Embedder.push_to_hub` does; arguments as there, and `source` as of `write_publication`."""
    import huggingface_hub

    check_repository(repo_id)
    offline = why_offline()
    if offline is not None:
        raise HubError(f"repo_id: {repo_id} cannot be written, {offline}; try again on a machine with a network")
    if token is None and huggingface_hub.get_token() is None:
        raise HubError(
            "token: need one with write access to push, got none; make one in the settings of your account on the hub, "
            "and set HF_TOKEN to it"
        )
    api = hub_api(token)
    with tempfile.TemporaryDirectory(prefix="diml-") as scratch:
        folder = Path(scratch) / "model"
        write_publication(folder, embedder, repo_id, source=source, licence=licence)
        try:
            api.create_repo(repo_id, private=private, exist_ok=True)
            public = private and not api.model_info(repo_id).private
            there = set(api.list_repo_files(repo_id))
            operations = _operations(folder, there)
            commit = None if public else api.create_commit(repo_id, operations, commit_message="Push by diml")
        except Exception as error:  # the hub's client raises nearly every type
            raise hub_error("repo_id", repo_id, error) from error
    if commit is None:
        raise HubError(f"private: {repo_id} is public already, and nothing was pushed; make it private on the hub")
    return str(commit.commit_url)


def check_repository(repo_id: str) -> None:
    """Raise ValueError unless a text has the form OWNER/NAME."""
    if not is_repository(repo_id):
        raise ValueError(f"repo_id: need OWNER/NAME, of letters, digits, '-', '_' and '.', got {repo_id!r}")


def require_saved(folder: Path) -> None:
    """Raise FileNotFoundError unless a folder has a saved embedder."""
    if not (folder / SETTINGS_FILE).is_file():
        raise FileNotFoundError(
            f"model: {folder} is no folder of a run or of a saved embedder; `diml train` and `diml evaluate --save "
            "FOLDER` write one"
        )


def _operations(folder: Path, there: set[str]) -> list[Any]:
    """One commit: the files of a folder, without what another version has left."""
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete

    files = {path.name: path for path in sorted(folder.iterdir())}
    added = [CommitOperationAdd(path_in_repo=name, path_or_fileobj=path) for name, path in files.items()]
    removed = [CommitOperationDelete(path_in_repo=name) for name in sorted((_LEFT & there) - files.keys())]
    return [*added, *removed]


def _check_same(embedder: Embedder, source: Path) -> None:
    """Raise ValueError unless a folder holds the embedder that is published with its results."""
    settings, weights = read_settings(source).to_dict(), read_weights(source)
    own, state = embedder.config.to_dict(), embedder.state_dict()
    changed = [name for name in settings.keys() | own.keys() if settings.get(name) != own.get(name)]
    same = weights.keys() == state.keys() and all(torch.equal(weights[name], state[name].cpu()) for name in state)
    if not same or set(changed) - {"matcher"}:
        differs = "weights" if not same else ", ".join(sorted(changed))
        raise ValueError(
            f"folder: {source} holds another embedder than the one to be pushed ({differs}), so that its results would "
            "be wrong; load that one, or omit the folder"
        )
