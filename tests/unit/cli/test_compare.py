"""Matchers as they are written on the command line of `diml compare`."""

from __future__ import annotations

import pytest

from diml.cli.compare import matcher_of, named_settings
from diml.matching import Matcher


@pytest.mark.parametrize(
    ("word", "name", "matcher"),
    [
        ("paper", "paper", Matcher()),
        ("own", "own", Matcher(epsilon=0.1)),
        ("epsilon=0", "epsilon=0", Matcher(epsilon=0)),
        ("structural_weight=4", "structural_weight=4", Matcher(epsilon=0.1, structural_weight=4)),
        ("a, b:epsilon=0.02,weights=uniform", "a, b", Matcher(epsilon=0.02, weights="uniform")),
        ("the paper's:paper", "the paper's", Matcher()),
    ],
)
def test_settings_replace_those_of_the_model(word: str, name: str, matcher: Matcher) -> None:
    found, settings = named_settings(word)
    assert (found, matcher_of(settings, Matcher(epsilon=0.1))) == (name, matcher)


@pytest.mark.parametrize("word", ["epsilon", "epsilon=", "=3", "epsilon=1,epsilon=2", ":epsilon=1", ""])
def test_what_cannot_be_read_is_refused(word: str) -> None:
    with pytest.raises(ValueError, match="matchers: need"):
        named_settings(word)


def test_an_unknown_setting_names_the_nearest() -> None:
    with pytest.raises(ValueError, match="did you mean epsilon"):
        matcher_of(named_settings("epsilom=1")[1], Matcher())
