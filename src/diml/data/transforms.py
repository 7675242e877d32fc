"""Deterministic preprocessing: resize, crop, scale and normalise an image for the network."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
import torch
from PIL import Image

from diml.spelling import did_you_mean, shown

IMAGENET_MEAN: Final = (0.485, 0.456, 0.406)
IMAGENET_STD: Final = (0.229, 0.224, 0.225)

#: Pixels of the side of a network input; more would be a mistake that fills the memory. No reducing gap is larger.
_LARGEST_SIDE: Final = 16_384
RESAMPLING: Final = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
# An image of 1 x 100,000 pixels, resized by its short side, would exhaust the memory: above this limit only the part
# inside the crop is resized (equal up to rounding).
_MAX_RESIZED_PIXELS: Final = 1 << 25


@dataclass(frozen=True, kw_only=True)
class Preprocess:
    """Preprocessing for inference; bit-identical to torchvision's Resize, CenterCrop, ToTensor and Normalize.

    Attributes:
        size: Side of the square input, pixels.
        resize: Mode `crop`: the short side is resized to this before the centre is cut out, pixels, at least `size`;
            None means `size`. Ignored in mode `square`.
        mode: `crop` keeps the aspect ratio and discards the border; `square` resizes the whole image to a square.
        mean: Per-channel mean (R, G, B), subtracted from values in [0, 1].
        std: Per-channel standard deviation (R, G, B), greater than 0.
        interpolation: `bilinear` or `bicubic`, always antialiased.
        reducing_gap: None resizes in one step. A number of at least 1 is faster for large images, with slightly other
            values: they are first shrunk by a whole factor, to no less than this many times what they are resized to
            (the argument of Pillow's `resize`), and JPEG files are decoded at a half, a quarter or an eighth of their
            size where that leaves as much (`at_least`). With 2, the usual number, nothing changes for images that are
            smaller than four times what they are resized to.

    Raises:
        ValueError: A setting is out of its range.

    Example:
        >>> Preprocess(size=32, resize=40)(Image.new("RGB", (64, 48))).shape
        torch.Size([3, 32, 32])
    """

    size: int = 224
    resize: int | None = 256
    mode: Literal["crop", "square"] = "crop"
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"
    reducing_gap: float | None = None

    def __post_init__(self) -> None:
        for field in ("size", "resize"):
            side = getattr(self, field)
            if side is not None and not (type(side) is int and 1 <= side <= _LARGEST_SIDE):
                raise ValueError(f"{field}: expected 1 to {_LARGEST_SIDE} pixels, a whole number, got {shown(side)}")
        if self.mode not in ("crop", "square"):
            raise ValueError(f"mode: expected 'crop' or 'square', got {self.mode!r}")
        if self.mode == "crop" and self.resize is not None and self.resize < self.size:
            raise ValueError(f"resize: expected at least size ({self.size}), got {self.resize}; None means size")
        if self.interpolation not in RESAMPLING:
            raise ValueError(f"interpolation: expected 'bilinear' or 'bicubic', got {self.interpolation!r}")
        gap = self.reducing_gap
        if gap is not None:
            number = isinstance(gap, int | float) and not isinstance(gap, bool)
            if not (number and 1 <= gap <= _LARGEST_SIDE):
                raise ValueError(
                    f"reducing_gap: expected a number from 1 to {_LARGEST_SIDE}, or None to resize in one step, got "
                    f"{shown(gap)}; 2 is usual"
                )
            object.__setattr__(self, "reducing_gap", float(gap))
        for field in ("mean", "std"):
            values = tuple(float(value) for value in getattr(self, field))
            if len(values) != 3 or not np.isfinite(values).all():
                raise ValueError(f"{field}: expected three finite numbers (R, G, B), got {values}")
            object.__setattr__(self, field, values)
        if min(self.std) <= 0:
            raise ValueError(f"std: expected positive numbers, got {self.std}")

    @property
    def short_side(self) -> int:
        """What the short side of an image is resized to in mode `crop`, pixels."""
        return self.size if self.resize is None else self.resize

    @property
    def at_least(self) -> int | None:
        """How many pixels a JPEG file must be decoded to on both sides, for `load_image`; None: at its full size.

        The same file gives the same network input wherever it is loaded with this number.

        Example:
            >>> preprocess = Preprocess(reducing_gap=2)
            >>> preprocess.at_least
            512
            >>> preprocess(load_image("a.jpg", at_least=preprocess.at_least))  # doctest: +SKIP
        """
        if self.reducing_gap is None:
            return None
        return math.ceil(self.reducing_gap * (self.short_side if self.mode == "crop" else self.size))

    def __call__(self, image: Image.Image) -> torch.Tensor:
        """Return the network input of an RGB image: (3, size, size), float32, normalised."""
        return self.normalize(self.view(image))

    def view(self, image: Image.Image, scale: int = 1) -> Image.Image:
        """Return the part of an image that the network sees, before normalisation.

        Args:
            image: PIL image of mode RGB (see `load_image`).
            scale: Magnification, at least 1: 1 gives the pixels of the network input, 2 the same field of view at twice
                the resolution. Of a JPEG file that was decoded with `at_least` it is sharper only as far as the
                reducing gap goes beyond 1.

        Returns:
            RGB image of size * scale by size * scale pixels.
        """
        if scale < 1:
            raise ValueError(f"scale: expected at least 1, got {scale}")
        side, resample, gap = self.size * scale, RESAMPLING[self.interpolation], self.reducing_gap
        if self.mode == "square":
            return image.resize((side, side), resample, reducing_gap=gap)
        short = self.short_side * scale
        width, height = _short_side_to(image.size, short)
        left, top = round((width - side) / 2), round((height - side) / 2)
        if width * height > _MAX_RESIZED_PIXELS:
            x, y = image.width / width, image.height / height
            box = (left * x, top * y, (left + side) * x, (top + side) * y)
            return image.resize((side, side), resample, box, gap)
        if (width, height) != image.size:
            image = image.resize((width, height), resample, reducing_gap=gap)
        return image.crop((left, top, left + side, top + side))

    def normalize(self, view: Image.Image) -> torch.Tensor:
        """Convert an RGB image of H x W pixels to a normalised float32 tensor (3, H, W)."""
        # By numpy, which stays on this thread: several threads decode, and torch would start more in each of them.
        values = np.asarray(view.convert("RGB")).transpose(2, 0, 1).astype(np.float32, order="C")
        mean, std = (np.array(numbers, dtype=np.float32)[:, None, None] for numbers in (self.mean, self.std))
        values /= np.float32(255)
        values -= mean
        values /= std
        return torch.from_numpy(values)

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as plain values, for JSON or YAML; the reducing gap only where there is one."""
        plain = plain_settings(self)
        if self.reducing_gap is None:  # models and indexes keep the identity that they had before this setting
            del plain["reducing_gap"]
        return plain

    def resizing(self) -> dict[str, Any]:
        """How images are resized, as results record it: the mode as `resize`, and a `reducing_gap` if there is one."""
        return {"resize": self.mode} | ({} if self.reducing_gap is None else {"reducing_gap": self.reducing_gap})

    @classmethod
    def from_dict(cls, settings: Mapping[str, Any]) -> Preprocess:
        """Build from plain values; missing ones take their defaults.

        Raises:
            ValueError: An unknown key (the nearest known one is named) or a value out of its range.
        """
        check_keys(cls, settings, "preprocess")
        return cls(**settings)


def plain_settings(settings: Any) -> dict[str, Any]:
    """Return the fields of a settings dataclass as plain values: tuples as lists, nested settings as dicts."""
    plain: dict[str, Any] = {}
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        if isinstance(value, Preprocess):
            value = value.to_dict()
        plain[field.name] = list(value) if isinstance(value, tuple) else value
    return plain


def check_keys(cls: type[Any], settings: Mapping[str, Any], what: str) -> None:
    """Raise ValueError, naming the nearest field, for a key that is no field of the settings dataclass `cls`."""
    known = [field.name for field in dataclasses.fields(cls)]
    for key in settings:
        if key not in known:
            raise ValueError(f"{what}: unknown key {key!r}; {did_you_mean(str(key), known)}")


def _short_side_to(size: tuple[int, int], short: int) -> tuple[int, int]:
    """Return (width, height) scaled so that the shorter is `short`; the longer side is truncated, not rounded."""
    width, height = size
    if width <= height:
        return short, int(short * height / width)
    return int(short * width / height), short
