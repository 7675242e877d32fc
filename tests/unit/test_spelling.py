"""The nearest known word for a misspelt one."""

from __future__ import annotations

import pytest

from diml.spelling import did_you_mean, typing_errors

KNOWN = ("dpn92", "vit_small_dinov2", "vit_dinov2", "dinov2_old", "cub", "cars", "learning_rate")


@pytest.mark.parametrize(
    ("word", "meant"),
    [
        ("dino", "dinov2_old"),  # begins with it, before shorter ones that contain it
        ("nov2", "vit_dinov2"),  # contains it, the shortest first
        ("small_dino", "vit_small_dinov2"),  # not dpn92, spelt more alike as a whole
        ("RATE", "learning_rate"),
        ("Curb", "cub"),  # in none: spelt most alike
        ("lerning_rate", "learning_rate"),
    ],
)
def test_words_that_contain_what_was_typed_come_before_those_spelt_alike(word, meant):
    assert did_you_mean(word, KNOWN) == f"did you mean {meant!r}? Known: {', '.join(KNOWN)}"


@pytest.mark.parametrize("word", ["ar", "", "zzzz"])
def test_one_or_two_letters_say_nothing(word):
    """`ar` stands in cars and learning_rate, as in half of all words."""
    assert did_you_mean(word, ("gearing_rate", "bars_of_gold")) == "Known: gearing_rate, bars_of_gold"


@pytest.mark.parametrize(
    ("typed", "meant", "errors"),
    [
        *[("", "", 0), ("a", "", 1), ("", "abc", 3), ("dinvo2", "dinov2", 1), ("resnt", "resnet", 1)],
        *[("vitt", "vit", 1), ("swim", "swin", 1), ("vti", "vit", 1), ("kitten", "sitting", 3), ("ca", "abc", 3)],
    ],
)
def test_typing_errors_are_counted(typed, meant, errors):
    assert typing_errors(typed, meant) == typing_errors(meant, typed) == errors
