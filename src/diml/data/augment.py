"""Augmentation of training images: random crop, flip and colour changes, reproducible from one seed per image.

The seed of an image is derived from (seed of the run, epoch, index of the image), see `diml.data.loading`. Neither
the number of worker processes nor an interruption therefore changes the images of a run.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import torch
from PIL import Image
from torchvision.transforms.v2 import functional as F

from diml.data.transforms import RESAMPLING, Preprocess, check_keys, plain_settings

_ATTEMPTS: Final = 10


@dataclass(frozen=True, kw_only=True)
class Augment:
    """Augmentation for training: RandomResizedCrop, horizontal flip and optional colour jitter and greyscale.

    Bit-identical to torchvision's (v2) RandomResizedCrop, RandomHorizontalFlip, ColorJitter and RandomGrayscale in
    this order, with the global generator of torch set to the same seed, unless `preprocess` has a reducing gap.

    Attributes:
        preprocess: Provides `size`, `mean`, `std`, `interpolation` and `reducing_gap`.
        scale: Minimum and maximum fraction of the area that is cropped, in (0, 1].
        ratio: Minimum and maximum aspect ratio (width / height) of the crop.
        flip: Probability of a horizontal flip, in [0, 1].
        jitter: Maximum change of brightness, contrast and saturation (relative, 0 or more) and of hue (0 to 0.5, in
            turns of the colour wheel); all 0 disables it. The authors' base code uses 0.2 each in its `adv` variant.
        grayscale: Probability of conversion to greyscale, in [0, 1]; 0.2 in that variant.

    Raises:
        ValueError: A setting is out of its range.

    Example:
        >>> Augment(preprocess=Preprocess(size=32, resize=40))(Image.new("RGB", (64, 48)), seed=7).shape
        torch.Size([3, 32, 32])
    """

    preprocess: Preprocess = field(default_factory=Preprocess)
    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: float = 0.5
    jitter: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)
    grayscale: float = 0.0

    def __post_init__(self) -> None:
        for name, length in (("scale", 2), ("ratio", 2), ("jitter", 4)):
            values = tuple(float(value) for value in getattr(self, name))
            if len(values) != length:
                raise ValueError(f"{name}: need {length} numbers, got {values}")
            object.__setattr__(self, name, values)
        for name, most in (("scale", 1.0), ("ratio", math.inf)):
            low, high = getattr(self, name)
            if not 0 < low <= high <= most or math.isinf(high):
                raise ValueError(f"{name}: need 0 < minimum <= maximum{' <= 1' * (most == 1)}, got {(low, high)}")
        for name in ("flip", "grayscale"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}: need a probability in [0, 1], got {getattr(self, name)}")
        if not all(0 <= value < math.inf for value in self.jitter) or self.jitter[3] > 0.5:
            raise ValueError(f"jitter: need numbers of at least 0, and at most 0.5 for hue, got {self.jitter}")

    @property
    def at_least(self) -> int | None:
        """As `Preprocess.at_least`, such that the smallest crop of a square image still has the reducing gap."""
        gap = self.preprocess.reducing_gap
        if gap is None:
            return None
        smallest = math.sqrt(self.scale[0] * min(self.ratio[0], 1 / self.ratio[1], 1))
        return math.ceil(gap * self.preprocess.size / smallest)

    def __call__(self, image: Image.Image, seed: int) -> torch.Tensor:
        """Return the network input of an RGB image: (3, size, size), float32, normalised.

        Args:
            image: PIL image of mode RGB.
            seed: 0 to 2^64 - 1; the same seed gives the same input. See `item_seed`.
        """
        return self.preprocess.normalize(self.view(image, seed))

    def view(self, image: Image.Image, seed: int) -> Image.Image:
        """Return the augmented RGB image of size x size pixels for this seed, before normalisation."""
        generator = torch.Generator().manual_seed(seed)
        top, left, height, width = self._crop(image, generator)
        side, resample = self.preprocess.size, RESAMPLING[self.preprocess.interpolation]
        view = image.crop((left, top, left + width, top + height))
        view = view.resize((side, side), resample, reducing_gap=self.preprocess.reducing_gap)
        if torch.rand(1, generator=generator).item() < self.flip:
            view = F.horizontal_flip(view)
        if any(self.jitter):
            view = self._jittered(view, generator)
        if self.grayscale and torch.rand(1, generator=generator).item() < self.grayscale:
            view = F.rgb_to_grayscale(view, num_output_channels=3)
        return view

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as plain values, for JSON or YAML."""
        return plain_settings(self)

    @classmethod
    def from_dict(cls, settings: Mapping[str, Any]) -> Augment:
        """Build from plain values; missing ones take their defaults.

        Raises:
            ValueError: An unknown key (the nearest known one is named) or a value out of its range.
        """
        check_keys(cls, settings, "augment")
        inner = settings.get("preprocess", {})
        preprocess = inner if isinstance(inner, Preprocess) else Preprocess.from_dict(inner)
        return cls(**{**settings, "preprocess": preprocess})

    def _crop(self, image: Image.Image, generator: torch.Generator) -> tuple[int, int, int, int]:
        """Return top, left, height and width of the crop; the centre where no attempt fits into the image."""
        width, height = image.size
        logarithms = torch.log(torch.tensor(self.ratio))
        for _ in range(_ATTEMPTS):
            area = width * height * _uniform(*self.scale, generator)
            aspect = torch.exp(torch.empty(1).uniform_(*logarithms.tolist(), generator=generator)).item()
            w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if 0 < w <= width and 0 < h <= height:
                top = int(torch.randint(0, height - h + 1, (1,), generator=generator).item())
                left = int(torch.randint(0, width - w + 1, (1,), generator=generator).item())
                return top, left, h, w
        low, high = self.ratio
        w = min(width, max(1, round(height * high)))
        h = min(height, max(1, round(width / low)))
        return (height - h) // 2, (width - w) // 2, h, w

    def _jittered(self, view: Image.Image, generator: torch.Generator) -> Image.Image:
        """Apply the colour changes in random order."""
        order = torch.randperm(4, generator=generator).tolist()
        changes = (F.adjust_brightness, F.adjust_contrast, F.adjust_saturation, F.adjust_hue)
        factors = []
        for number, amount in enumerate(self.jitter):
            centre = 0.0 if number == 3 else 1.0
            low = centre - amount if number == 3 else max(0.0, centre - amount)
            factors.append(_uniform(low, centre + amount, generator) if amount else None)
        for number in order:
            factor = factors[number]
            if factor is not None:
                view = changes[number](view, factor)
        return view


def _uniform(low: float, high: float, generator: torch.Generator) -> float:
    return torch.empty(1).uniform_(low, high, generator=generator).item()
