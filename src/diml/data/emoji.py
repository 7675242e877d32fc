"""The same emoji drawn by four companies: `emoji`. Each emoji is a class with one drawing of each."""

from __future__ import annotations

import re
import unicodedata
from pathlib import Path
from types import MappingProxyType
from typing import Final

import numpy as np

from diml.assets import fetch_asset
from diml.data.class_folders import whole_or_halves
from diml.data.image_sets import DataSet
from diml.data.inventory import Inventory, find_folder, missing_data, require_complete
from diml.data.registry import DataSetInfo

#: Folder of each artist, in the order of a class's images -> asset.
ARTISTS: Final = MappingProxyType(
    {
        "noto": "emoji_noto",
        "twemoji": "emoji_twemoji",
        "emojione": "emoji_emojione",
        "fluent": "emoji_fluent",
    }
)

#: `1f34e.png` or `2708-fe0f.webp`, where `fe0f` only asks for the coloured form.
_DRAWING: Final = re.compile(r"([0-9a-f]+)(-fe0f)?\.(png|webp)")


def locate_emoji(info: DataSetInfo, root: str | Path) -> Path | None:
    """Return the folder of `emoji`, which contains the folders of all artists, or None."""
    folder = find_folder(info, root, list(ARTISTS))
    return folder if folder is not None and all((folder / artist).is_dir() for artist in ARTISTS) else None


def inspect_emoji(info: DataSetInfo, root: str | Path | None) -> Inventory:
    """Find the emoji of one code point that all artists have drawn, below `root` or, if it is None, in the assets.

    Classes are in the order of their code points; the images of a class in that of `ARTISTS`.
    """
    if root is None:
        folders = {artist: fetch_asset(asset) for artist, asset in ARTISTS.items()}
        folder = next(iter(folders.values())).parents[1]
    else:
        located = locate_emoji(info, root)
        if located is None:
            raise missing_data(info, root)
        folder, folders = located, {artist: located / artist for artist in ARTISTS}
    drawn = [_drawings(place) for place in folders.values()]
    common = sorted(set.intersection(*(set(found) for found in drawn)))
    if not common:
        raise missing_data(info, folder)
    return Inventory(
        folder=folder,
        paths=tuple(found[code] for code in common for found in drawn),
        labels=np.repeat(np.arange(len(common), dtype=np.int64), len(drawn)),
        class_names=tuple(_name(code) for code in common),
        class_ids=tuple(common),
        parts=("",) * (len(common) * len(drawn)),
        faults=(),
    )


def load_emoji(info: DataSetInfo, root: str | Path | None, protocol: str) -> DataSet:
    """Load all emoji, or with `class_disjoint` the first half of them for training, the second for testing."""
    inventory = inspect_emoji(info, root)
    require_complete(info, inventory)
    return whole_or_halves(info, inventory, protocol)


def _drawings(folder: Path) -> dict[int, Path]:
    """Code point -> file, of those that are one code point; without `fe0f` where a folder has both."""
    found = [(_DRAWING.fullmatch(path.name), path) for path in folder.iterdir()]
    named = sorted(((match[1], match[2] or "", path) for match, path in found if match), reverse=True)
    return {int(code, 16): path for code, _, path in named}


def _name(code: int) -> str:
    """`red apple`, or the number where Python knows no name."""
    return unicodedata.name(chr(code), f"U+{code:04X}").lower()
