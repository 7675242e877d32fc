"""Misspelt words in arguments: the nearest known word for the error message."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return the end of an error message: the nearest known word, if any is near, and all known words.

    Case is ignored in the comparison.

    Example:
        >>> did_you_mean("Curb", ["cub", "cars"])
        "did you mean 'cub'? Known: cub, cars"
    """
    known = list(known)
    lower = {candidate.lower(): candidate for candidate in known}
    near = difflib.get_close_matches(word.lower(), lower, n=1, cutoff=0.5)
    hint = f"did you mean {lower[near[0]]!r}? " if near else ""
    return f"{hint}Known: {', '.join(known)}"
