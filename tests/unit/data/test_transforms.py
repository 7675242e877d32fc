"""Preprocessing is bit-identical to torchvision's, and the view is what the network sees."""

import io
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision import transforms
from torchvision.transforms import InterpolationMode, v2

from diml.data import Preprocess, load_image
from diml.data.samples import sample_images


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    values = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(values)


def torchvision_geometry(preprocess: Preprocess) -> list:
    kind = InterpolationMode(preprocess.interpolation)
    if preprocess.mode == "square":
        return [v2.Resize((preprocess.size, preprocess.size), kind)]
    return [v2.Resize(preprocess.resize or preprocess.size, kind), v2.CenterCrop(preprocess.size)]


def torchvision_twin(preprocess: Preprocess) -> transforms.Compose:
    # ToTensor divides by 255; v2.ToDtype multiplies by 1/255, which differs in the last bit.
    to_values = [transforms.ToTensor(), transforms.Normalize(preprocess.mean, preprocess.std)]
    return transforms.Compose([*torchvision_geometry(preprocess), *to_values])


@settings(deadline=None, max_examples=60)
@given(
    width=st.integers(1, 400),
    height=st.integers(1, 400),
    mode=st.sampled_from(["crop", "square"]),
    interpolation=st.sampled_from(["bilinear", "bicubic"]),
    resize=st.sampled_from([None, 32, 37, 48]),
)
def test_bit_identical_to_torchvision(width, height, mode, interpolation, resize) -> None:
    preprocess = Preprocess(size=32, resize=resize, mode=mode, interpolation=interpolation)
    image = noise(width, height)
    assert torch.equal(preprocess(image), torchvision_twin(preprocess)(image))


def test_the_usual_numbers_on_a_photo_sized_image() -> None:
    image = noise(500, 375)
    values = Preprocess()(image)
    assert values.shape == (3, 224, 224)
    assert values.dtype == torch.float32
    assert torch.equal(values, torchvision_twin(Preprocess())(image))


@pytest.mark.parametrize("mode", ["crop", "square"])
def test_view_then_normalize_is_the_call(mode) -> None:
    preprocess = Preprocess(size=48, resize=56, mode=mode)
    image = noise(90, 61)
    assert preprocess.view(image).size == (48, 48)
    assert torch.equal(preprocess.normalize(preprocess.view(image)), preprocess(image))


@pytest.mark.parametrize("mode", ["crop", "square"])
def test_a_larger_view_shows_the_same_part(mode) -> None:
    ramp_x = np.broadcast_to(np.linspace(0, 255, 400), (300, 400))
    ramp_y = np.broadcast_to(np.linspace(0, 255, 300)[:, None], (300, 400))
    image = Image.fromarray(np.stack([ramp_x, ramp_y, ramp_x], axis=2).astype(np.uint8))
    preprocess = Preprocess(size=64, resize=80, mode=mode)
    small = np.asarray(preprocess.view(image), dtype=float)
    large = preprocess.view(image, scale=3)
    assert large.size == (192, 192)
    back = np.asarray(large.resize((64, 64), Image.Resampling.BOX), dtype=float)
    assert np.abs(back - small)[4:-4, 4:-4].max() <= 4


def test_a_very_long_strip_is_cut_before_it_is_resized() -> None:
    """Resizing 4 x 20,000 by the short side would make 1.3 million columns; the middle is the same."""
    strip = Image.fromarray(np.tile(np.arange(20_000) // 100 % 256, (4, 1)).astype(np.uint8)).convert("RGB")
    preprocess = Preprocess(size=224, resize=256)
    assert 256 * 20_000 * 64 > 1 << 25
    view = np.asarray(preprocess.view(strip))
    middle = strip.crop((9990, 0, 10_010, 4)).resize((1280, 256), Image.Resampling.BILINEAR)
    left, top = (1280 - 224) // 2, 16
    wanted = np.asarray(middle.crop((left, top, left + 224, top + 224)))
    assert np.abs(view.astype(int) - wanted).max() <= 1


def jpeg(image: Image.Image, orientation: int = 1) -> bytes:
    stream, exif = io.BytesIO(), Image.Exif()
    exif[0x0112] = orientation
    image.save(stream, "JPEG", quality=90, exif=exif)
    return stream.getvalue()


def photo(short: int, which: int = 0) -> Image.Image:
    """A photo, enlarged to a short side."""
    image = load_image(sample_images()[which])
    factor = short / min(image.size)
    return image.resize((round(image.width * factor), round(image.height * factor)))


def mean_difference(first: Image.Image, second: Image.Image) -> float:
    assert first.size == second.size
    return float(np.abs(np.asarray(first, dtype=float) - np.asarray(second, dtype=float)).mean())


@pytest.mark.parametrize("mode", ["crop", "square"])
@pytest.mark.parametrize(("short", "most"), [(1536, 0.5), (4096, 0.8), (1531, 1.5), (2047, 1.5)])
def test_with_a_gap_photos_look_as_without_one(mode, short, most) -> None:
    """Of sides that the factor of the decoder does not divide, the last pixel is partly beyond the image."""
    whole = Preprocess(mode=mode, size=160, resize=180)
    gap = replace(whole, reducing_gap=2)
    for which in (0, 3):
        content = jpeg(photo(short, which))
        full = load_image(content)
        decoded = load_image(content, at_least=gap.at_least)
        assert min(decoded.size) >= gap.at_least > min(decoded.size) / 4
        assert min(decoded.size) < short
        assert 0 < mean_difference(gap.view(full), whole.view(full)) < 0.7
        assert 0 < mean_difference(gap.view(decoded), whole.view(full)) < most


@settings(deadline=None, max_examples=40)
@given(
    short=st.floats(1, 3.99),
    long=st.floats(1, 3),
    mode=st.sampled_from(["crop", "square"]),
    gap=st.sampled_from([1, 1.25, 2, 3.5]),
)
def test_images_of_less_than_twice_the_gap_are_bit_identical_to_those_without_one(short, long, mode, gap) -> None:
    whole = Preprocess(mode=mode, size=24, resize=32)
    reducing = replace(whole, reducing_gap=gap)
    side = whole.short_side if mode == "crop" else whole.size
    width = max(1, min(int(short * side), math.ceil(2 * gap * side) - 1))
    height = int(width * long) if mode == "crop" else width
    content = jpeg(noise(width, height))
    decoded = load_image(content, at_least=reducing.at_least)
    assert decoded.size == (width, height)
    assert torch.equal(reducing(decoded), whole(load_image(content)))


def test_the_decoded_image_leaves_the_gap() -> None:
    assert Preprocess().at_least is None
    assert Preprocess(reducing_gap=2).at_least == 512
    assert Preprocess(reducing_gap=1.001).at_least == 257
    assert Preprocess(resize=None, reducing_gap=2).at_least == 448
    assert Preprocess(mode="square", reducing_gap=2).at_least == 448
    assert Preprocess(reducing_gap=2).reducing_gap == Preprocess(reducing_gap=2.0).reducing_gap
    assert isinstance(Preprocess(reducing_gap=2).reducing_gap, float)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_an_image_that_exif_turns_has_the_gap_in_both_directions(orientation) -> None:
    preprocess = Preprocess(size=64, resize=80, reducing_gap=2)
    content = jpeg(photo(704), orientation)
    decoded = load_image(content, at_least=preprocess.at_least)
    assert min(decoded.size) == 176  # a quarter; an eighth is less than 160
    whole = replace(preprocess, reducing_gap=None)
    assert mean_difference(preprocess.view(decoded), whole.view(load_image(content))) < 1


@pytest.mark.parametrize("mode", ["crop", "square"])
def test_a_larger_view_of_what_was_decoded_shows_the_same_part(mode) -> None:
    preprocess = Preprocess(size=160, resize=180, mode=mode, reducing_gap=2)
    content = jpeg(photo(1536))
    sharp = replace(preprocess, reducing_gap=None).view(load_image(content), 2)
    assert mean_difference(preprocess.view(load_image(content, at_least=preprocess.at_least), 2), sharp) < 1


def test_what_is_cut_before_it_is_resized_is_reduced_as_well(monkeypatch) -> None:
    monkeypatch.setattr("diml.data.transforms._MAX_RESIZED_PIXELS", 1)
    whole = Preprocess(size=160, resize=180)
    full = photo(1536)
    difference = mean_difference(replace(whole, reducing_gap=2).view(full), whole.view(full))
    assert 0 < difference < 0.7


def test_settings_go_to_plain_values_and_back() -> None:
    preprocess = Preprocess(size=192, resize=None, mode="square", mean=(0.5, 0.5, 0.5), interpolation="bicubic")
    plain = preprocess.to_dict()
    assert plain["mean"] == [0.5, 0.5, 0.5]
    assert Preprocess.from_dict(plain) == preprocess
    assert Preprocess.from_dict({}) == Preprocess()


def test_a_gap_is_among_the_plain_values_only_where_there_is_one() -> None:
    """What was saved before there was this setting keeps its identity, and is read as without a gap."""
    assert "reducing_gap" not in Preprocess().to_dict()
    assert "reducing_gap" not in Preprocess().resizing()
    gap = Preprocess(reducing_gap=2)
    assert gap.to_dict() == Preprocess().to_dict() | {"reducing_gap": 2.0}
    assert gap.resizing() == {"resize": "crop", "reducing_gap": 2.0}
    assert Preprocess.from_dict(gap.to_dict()) == gap != Preprocess()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sise": 3}, "did you mean 'size'"),
        ({"zzzz": 3}, "Known: size"),
        ({"size": 0}, "size: expected 1 to 16384 pixels"),
        ({"size": 300}, "resize: expected at least size"),
        ({"mode": "circle"}, "mode: expected"),
        ({"interpolation": "nearest"}, "interpolation: expected"),
        *[
            (
                {"reducing_gap": gap},
                "reducing_gap: expected a number from 1 to 16384, or None to resize in one step, got",
            )
            for gap in (0.99, 0, -2, math.inf, math.nan, 1e308, True, "2", [2])
        ],
        ({"mean": [0.5]}, "mean: expected three"),
        ({"std": [0, 1, 1]}, "std: expected positive"),
    ],
)
def test_wrong_settings_are_named(settings, message) -> None:
    with pytest.raises(ValueError, match=message):
        Preprocess.from_dict(settings)


def test_scale_below_one_is_rejected() -> None:
    with pytest.raises(ValueError, match="scale"):
        Preprocess().view(noise(4, 4), scale=0)
