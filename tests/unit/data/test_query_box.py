"""A box on a query: fractions and pixels are the same part of the upright image, and wrong boxes are refused."""

from __future__ import annotations

import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from diml.data import load_image
from diml.data.query_box import LEAST_SIDE, BoxError, QueryBox


def test_fractions_and_pixels_cut_the_same_part() -> None:
    pixels = np.arange(80 * 60 * 3, dtype=np.uint8).reshape(60, 80, 3)
    image = Image.fromarray(pixels)
    part = np.asarray(QueryBox.read("0.25,0.5,0.75,1").crop(image))
    assert np.array_equal(part, pixels[30:60, 20:60])
    assert np.array_equal(np.asarray(QueryBox.read(" 20, 30, 60, 60 ").crop(image)), part)
    assert QueryBox.read("0,0,1,1").crop(image).tobytes() == image.tobytes()


def test_edges_are_those_of_the_image_as_displayed() -> None:
    image, stream = Image.new("RGB", (40, 20), "white"), io.BytesIO()
    image.paste("black", (0, 0, 20, 20))
    turned = Image.Exif()
    turned[274] = 6  # to be turned by 90 degrees: what is on the left is displayed at the top
    image.save(stream, "PNG", exif=turned)
    upright = load_image(stream.getvalue())
    assert upright.size == (20, 40)
    assert QueryBox.read("0,0,1,0.5").crop(upright).getcolors() == [(400, (0, 0, 0))]


EDGES = st.tuples(*[st.floats(0, 1)] * 4)


@given(EDGES, st.integers(1, 5000), st.integers(1, 5000))
def test_a_box_that_is_accepted_lies_in_the_image_and_is_not_too_small(
    edges: tuple[float, float, float, float], width: int, height: int
) -> None:
    (left, right), (upper, lower) = sorted(edges[::2]), sorted(edges[1::2])
    try:
        found = QueryBox(left, upper, right, lower).pixels((width, height))
    except BoxError:
        assert min(width * (right - left), height * (lower - upper)) < LEAST_SIDE + 1
        return
    assert 0 <= found[0] <= found[2] - LEAST_SIDE <= width - LEAST_SIDE
    assert 0 <= found[1] <= found[3] - LEAST_SIDE <= height - LEAST_SIDE


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "need x0,y0,x1,y1"),
        ("0.1,0.2,0.3", "need x0,y0,x1,y1"),
        ("a,b,c,d", "got 'a,b,c,d'"),
        ("0.1,0.2,0.3,0.4,0.5", "need x0,y0,x1,y1"),
        ("0,0,1,1" + " " * 300, "need x0,y0,x1,y1"),
        ("-0.1,0,1,1", "need edges of 0 or more"),
        ("0,0,nan,1", "need edges of 0 or more"),
        ("0,0,inf,1", "need edges of 0 or more"),
        ("0.5,0,0.5,1", "need x0 < x1 and y0 < y1"),
        ("0,0.9,1,0.1", "need x0 < x1 and y0 < y1"),
    ],
)
def test_what_is_no_box_is_refused_with_a_remedy(text: str, told: str) -> None:
    with pytest.raises(BoxError, match=told) as caught:
        QueryBox.read(text)
    assert str(caught.value).endswith("0.25,0.1,0.75,0.9")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("0,0,101,50", "need edges inside the image of 100 x 100 pixels, got 0,0,101,50"),
        ("0,0,1.1,1", "need 16 x 16 pixels or more, got 1 x 1"),
        ("0.1,0.1,0.2,0.9", "need 16 x 16 pixels or more, got 10 x 80"),
    ],
)
def test_a_box_without_a_place_in_its_image_is_refused(text: str, told: str) -> None:
    with pytest.raises(BoxError, match=told):
        QueryBox.read(text).crop(Image.new("RGB", (100, 100)))
