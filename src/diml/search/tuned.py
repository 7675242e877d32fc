"""The matcher of an index: that of its build, or one that was tuned on its labels and is kept with it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from diml.checksums import sealed
from diml.matching import Matcher
from diml.search.store import Store, kept_document

#: Name of the text that is kept with an index whose matcher was tuned.
MATCHER_FILE: Final = "matcher.json"
#: K of searches unless something else is said.
RERANK_AT: Final = 100
_FORMAT: Final = 1
_REMEDY: Final = "tune it again with `diml index tune`"


@dataclass(frozen=True)
class IndexMatcher:
    """How images of an index are compared unless a search says otherwise.

    Args:
        matcher: the settings.
        rerank_at: K.
        tuned: on what they were tuned, and the gain to expect, as plain values; None for those of the build.
    """

    matcher: Matcher
    rerank_at: int = RERANK_AT
    tuned: Mapping[str, Any] | None = None


def index_matcher(store: Store) -> IndexMatcher:
    """How images of an index are compared.

    Raises:
        ValueError: what was kept by `keep_matcher` is damaged, or was written by a newer version.
    """
    text = store.read_text(MATCHER_FILE)
    if text is None:
        return IndexMatcher(store.config.matcher)
    found = kept_document(text, MATCHER_FILE, _FORMAT, _REMEDY)
    try:
        matcher, rerank_at = Matcher.from_dict(found["matcher"]), int(found["rerank_at"])
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"index: {MATCHER_FILE}: not what was written: {error}; {_REMEDY}") from error
    return IndexMatcher(matcher, rerank_at, found.get("tuned"))


def keep_matcher(store: Store, kept: IndexMatcher) -> None:
    """Keep settings with an index, in one step; searches, pairs and calibrations use them from now on."""
    plain = {"format": _FORMAT, "matcher": kept.matcher.to_dict(), "rerank_at": kept.rerank_at, "tuned": kept.tuned}
    store.write_text(MATCHER_FILE, json.dumps(sealed(plain), indent=1))
