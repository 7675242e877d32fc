"""The names of timm's models that a person means who types a word: `dinov2`, `clip`, `ViT-B/16`, `resnet-50`.

Source of the words: names and tags in timm's registry.
"""

from __future__ import annotations

import difflib
import functools
import itertools
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Final

from diml.lean_imports import import_timm
from diml.spelling import typing_errors

#: Sizes in names, the ones to try first at the front.
_SIZES: Final = (
    "small", "base", "tiny", "medium", "little", "large", "pico", "nano", "huge", "giant", "so400m", "gigantic", "7b"
)  # fmt: skip
#: Beginnings of words next to which a letter is a size, and a letter with a number is a size and a patch.
_SIZED: Final = ("vit", "deit", "dinov")
#: Letters that stand for a size there.
_LETTERS: Final = {"t": "tiny", "s": "small", "b": "base", "l": "large", "h": "huge", "g": "giant"}
#: Letters of the shortest words that are corrected.
_SHORTEST: Final = 3


def names_meant(typed: str, others: Iterable[str] = (), *, most: int = 3) -> list[str]:
    """Names of timm's models (and of `others`) nearest to what was typed, the best first.

    Those that contain every word of it come first (also in the tag of their weights): models with pretrained weights
    first, of the sizes most people start with. Otherwise, those that do once its typing errors are corrected;
    otherwise, those spelled most alike as a whole.
    """
    timm = import_timm()

    known, others = timm.list_models(), list(others)
    words = _words(typed)
    found = _found(known, words)
    if not found:
        corrected = _corrected(words, [*known, *timm.list_pretrained(), *others])
        found = [name for name in others if _contains(name, corrected)] + _found(known, corrected)
    if found:
        popular = Counter(name.split(".")[0] for name in timm.list_pretrained() if "." in name)
        popular.update(others)
        return sorted(found, key=lambda name: _order(name, popular[name.split(".")[0]]))[:most]
    return difflib.get_close_matches(typed.lower(), [*known, *others], n=most, cutoff=0.5)


def _found(known: Iterable[str], words: list[str]) -> list[str]:
    """The models whose names contain all words, or else those with such tags, as `mae` and `dino` are."""
    found = [name for name in known if _contains(name, words)]
    if found:
        return found
    tagged = [name for name in import_timm().list_pretrained() if _contains(name, words)]
    return sorted({name.split(".")[0]: name for name in reversed(tagged)}.values())


def _corrected(words: list[str], known: Iterable[str]) -> list[str]:
    """The words with those that stand in no name replaced by the part of a name that they are a misspelling of."""
    joined, parts = _parts(tuple(known))
    return [word if any(word in name for name in joined) else _nearest(word, parts) for word in words]


@functools.lru_cache(maxsize=1)
def _parts(known: tuple[str, ...]) -> tuple[list[str], Counter[str]]:
    """Names without separators, and in how many names each part stands that people may type."""
    parts: Counter[str] = Counter()
    joined = []
    for name in known:
        pieces = re.split(r"[^a-z0-9]+", name.lower())
        joined.append("".join(pieces))
        pairs = [one + other for one, other in itertools.pairwise(pieces)]  # inception_v3, as people write it
        families = [piece.rstrip("0123456789") for piece in pieces]
        parts.update({part for part in (*pieces, *pairs, *families) if len(part) >= _SHORTEST})
    return joined, parts


def _nearest(word: str, parts: Mapping[str, int]) -> str:
    """The part of most names among those with fewest typing errors, swapped letters first; the word where none is near.

    One error is allowed in five letters, two in more; in three letters, which are near to many, only swapped ones.
    """
    most = 1 if len(word) <= 5 else 2
    swapped, letters = sorted(word), set(word)
    ranked = []
    for part, count in parts.items():
        if abs(len(part) - len(word)) > most or (len(word) <= _SHORTEST and sorted(part) != swapped):
            continue
        if len(letters.symmetric_difference(part)) > 2 * most:  # an error adds or loses two at the most
            continue
        errors = typing_errors(word, part)
        if errors <= most:
            ranked.append((errors, sorted(part) != swapped, part[0] != word[0], -count, part))
    return min(ranked)[-1] if ranked and len(word) >= _SHORTEST else word


def _words(typed: str) -> list[str]:
    """`ViT-B/16` -> vit, base, 16; of an address such as `facebook/dinov2-small`, the part after the owner."""
    plain = typed.lower().removeprefix("timm/")
    name = plain.partition("/")[2]
    if name and not any(char.isdigit() for char in name[:2]):
        plain = name
    words = [_unswapped(word) for word in re.split(r"[^a-z0-9]+", plain) if word]
    if any(family in word for family in _SIZED for word in words):
        words = [_LETTERS.get(word, word) for word in words]
        words = [part for word in words for part in _letter_and_patch(word)]
    return words


def _unswapped(word: str) -> str:
    """`vti`, `vtib16` -> vit, vitb16: such families are needed before the words next to them can be understood."""
    for family in _SIZED:
        start, end = word[: len(family)], word[len(family) :]
        if start != family and sorted(start) == sorted(family) and typing_errors(start, family) == 1:
            return family + end
    return word


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
