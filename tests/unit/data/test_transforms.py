"""Preprocessing is bit-identical to torchvision's, and the view is what the network sees."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision import transforms
from torchvision.transforms import InterpolationMode, v2

from diml.data import Preprocess


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


def test_settings_go_to_plain_values_and_back() -> None:
    preprocess = Preprocess(size=192, resize=None, mode="square", mean=(0.5, 0.5, 0.5), interpolation="bicubic")
    plain = preprocess.to_dict()
    assert plain["mean"] == [0.5, 0.5, 0.5]
    assert Preprocess.from_dict(plain) == preprocess
    assert Preprocess.from_dict({}) == Preprocess()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sise": 3}, "did you mean 'size'"),
        ({"zzzz": 3}, "Known: size"),
        ({"size": 0}, "size: expected 1 to 16384 pixels"),
        ({"size": 300}, "resize: expected at least size"),
        ({"mode": "circle"}, "mode: expected"),
        ({"interpolation": "nearest"}, "interpolation: expected"),
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
