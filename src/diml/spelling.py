"""Words and values in error messages: the nearest known word for a misspelt one; values of any size, cut."""

from __future__ import annotations

import difflib
import reprlib
from collections.abc import Iterable
from typing import Final

#: Characters of a misspelt word that are compared; the comparison is quadratic.
_COMPARED: Final = 200

#: Letters from which on a part of a known word counts as meaning it.
_SHORTEST: Final = 3


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return the end of an error message: the nearest known word, if any is near, and all known words.

    Known words that begin with the misspelt one come first, then those that contain it (the shortest of them), then
    those that are spelt most alike. Case is ignored in the comparison.

    Example:
        >>> did_you_mean("Curb", ["cub", "cars"])
        "did you mean 'cub'? Known: cub, cars"
        >>> did_you_mean("dino", ["dpn92", "vit_small_dinov2"])
        "did you mean 'vit_small_dinov2'? Known: dpn92, vit_small_dinov2"
    """
    known = list(known)
    lower = {candidate.lower(): candidate for candidate in known}
    near = _containing(word.lower(), lower) or difflib.get_close_matches(
        word[:_COMPARED].lower(), lower, n=1, cutoff=0.5
    )
    hint = f"did you mean {lower[near[0]]!r}? " if near else ""
    return f"{hint}Known: {', '.join(known)}"


def _containing(part: str, known: Iterable[str]) -> list[str]:
    """The known words that contain a part of at least `_SHORTEST` letters, best first."""
    found = [candidate for candidate in known if part in candidate] if len(part) >= _SHORTEST else []
    return sorted(found, key=lambda candidate: (not candidate.startswith(part), len(candidate)))


def typing_errors(typed: str, meant: str) -> int:
    """How many typing errors lead from one word to another: letters left out, added, replaced, or two swapped.

    Source: the restricted Damerau-Levenshtein distance.

    Example:
        >>> typing_errors("dinvo2", "dinov2"), typing_errors("resnt", "resnet")
        (1, 1)
    """
    before: list[int] = []
    row = list(range(len(meant) + 1))
    for i, letter in enumerate(typed, start=1):
        before, last, row = row, before, [i]
        for j, other in enumerate(meant, start=1):
            least = min(before[j] + 1, row[j - 1] + 1, before[j - 1] + (letter != other))
            if i > 1 and j > 1 and letter == meant[j - 2] and typed[i - 2] == other:
                least = min(least, last[j - 2] + 1)
            row.append(least)
    return row[-1]


def shown(value: object, length: int = 100) -> str:
    """A value as it stands in an error message: its `repr`, cut in the middle where it is long.

    Collections are cut before they are written out, so that a value whose full text would fill the memory costs
    nothing.

    Args:
        value: any object.
        length: characters of a text or number that are shown; lists and mappings show a few entries of each level.

    Example:
        >>> shown("a" * 1000, 20)
        "'aaaaaaa...aaaaaaaa'"
    """
    brief = reprlib.Repr()
    brief.maxstring = brief.maxother = brief.maxlong = length
    brief.maxlevel, brief.maxdict = 3, 6
    brief.maxlist = brief.maxtuple = brief.maxset = brief.maxfrozenset = 8
    try:
        text = brief.repr(value)
    except ValueError:  # an integer of more digits than Python writes
        return f"a value of type {type(value).__name__} that is too long to show"
    return text if len(text) <= 4 * length else f"{text[: 2 * length]}...{text[-2 * length :]}"
