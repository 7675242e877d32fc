"""The names of timm's models that a person means who types a word: `dinov2`, `clip`, `ViT-B/16`, `resnet-50`.

Source of the words: names and tags in timm's registry.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from typing import Final

from diml.lean_imports import import_timm

#: Sizes in names, the ones to try first at the front.
_SIZES: Final = (
    "small", "base", "tiny", "medium", "little", "large", "pico", "nano", "huge", "giant", "so400m", "gigantic", "7b"
)  # fmt: skip
#: Letters that stand for a size next to "vit" and the like.
_LETTERS: Final = {"t": "tiny", "s": "small", "b": "base", "l": "large", "h": "huge", "g": "giant"}
_TOKENS: Final = re.compile(r"[a-z]+[0-9]*[a-z]*|[0-9]+")


def names_meant(typed: str, others: Iterable[str] = (), *, most: int = 3) -> list[str]:
    """Names of timm's models (and of `others`) nearest to what was typed, the best first.

    Those that contain every word of it come first (also in the tag of their weights): models with pretrained weights
    first, of the sizes most people start with. Otherwise, those spelled most alike.
    """
    timm = import_timm()

    known = timm.list_models()
    found = [name for name in known if _contains(name, _words(typed))]
    if not found:  # in the tags, such as `mae` or `dino`
        tagged = [name for name in timm.list_pretrained() if _contains(name, _words(typed))]
        found = sorted({name.split(".")[0]: name for name in reversed(tagged)}.values())
    if found:
        popular = {name: len(timm.list_pretrained(f"{name.split('.')[0]}.*")) for name in found}
        return sorted(found, key=lambda name: _order(name, popular[name]))[:most]
    return difflib.get_close_matches(typed.lower(), [*known, *others], n=most, cutoff=0.5)


def _words(typed: str) -> list[str]:
    """`ViT-B/16` -> vit, base, 16; of an address such as `facebook/dinov2-small`, the part after the owner."""
    plain = typed.lower().removeprefix("timm/")
    name = plain.partition("/")[2]
    if name and not any(char.isdigit() for char in name[:2]):
        plain = name
    words = [word for word in re.split(r"[^a-z0-9]+", plain) if word]
    if any("vit" in word or "deit" in word for word in words):
        words = [_LETTERS.get(word, word) for word in words]
        words = [part for word in words for part in _letter_and_patch(word)]
    return words


def _letter_and_patch(word: str) -> list[str]:
    """`b16` and `vitb16` -> base, patch16."""
    found = re.fullmatch(r"(vit|deit)?([tsblhg])(\d+)", word)
    if not found:
        return [word]
    family, letter, patch = found.groups()
    return [*([family] if family else []), _LETTERS[letter], f"patch{patch}"]


def _contains(name: str, words: list[str]) -> bool:
    joined = re.sub(r"[^a-z0-9]", "", name.lower())
    return bool(words) and all(word in joined for word in words) and len("".join(words)) > 2


def _order(name: str, popular: int) -> tuple[bool, int, int, int, str]:
    parts = name.split(".")[0].split("_")
    size = next((rank for rank, word in enumerate(_SIZES) if word in parts), len(_SIZES))
    return (popular == 0, size, -popular, len(name), name)
