"""From a image to what the network sees: resize, crop, scale, and nothing random."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
import torch
from PIL import Image

IMAGENET_MEAN: Final = (0.485, 0.456, 0.406)
IMAGENET_STD: Final = (0.229, 0.224, 0.225)

_RESAMPLING: Final = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
# A strip of 1 x 100,000 pixels, resized by its short side, would fill the memory: beyond this, only the part that the
# crop keeps is resized (equal but for rounding).
_MAX_RESIZED_PIXELS: Final = 1 << 25


@dataclass(frozen=True, kw_only=True)
class Preprocess:
    """How a image becomes a network input; equal to the bit to torchvision's Resize, CenterCrop, ToTensor, Normalize.

    Attributes:
        size: Side of the square input, pixels.
        resize: Mode `crop`: the short side is resized to this before the centre is cut out, pixels, at least `size`;
            None means `size`. Mode `square` has no use for it.
        mode: `crop` keeps the proportions and drops the border; `square` squeezes the whole image in.
        mean: Per channel (R, G, B), subtracted from values in [0, 1].
        std: Per channel, divides after that.
        interpolation: `bilinear` or `bicubic`, always antialiased.

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

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ValueError(f"size: expected at least 1 pixel, got {self.size}")
        if self.mode not in ("crop", "square"):
            raise ValueError(f"mode: expected 'crop' or 'square', got {self.mode!r}")
        if self.mode == "crop" and self.resize is not None and self.resize < self.size:
            raise ValueError(f"resize: expected at least size ({self.size}), got {self.resize}; or leave it None")
        if self.interpolation not in _RESAMPLING:
            raise ValueError(f"interpolation: expected 'bilinear' or 'bicubic', got {self.interpolation!r}")
        for field in ("mean", "std"):
            values = tuple(float(value) for value in getattr(self, field))
            if len(values) != 3 or not np.isfinite(values).all():
                raise ValueError(f"{field}: expected three finite numbers (R, G, B), got {values}")
            object.__setattr__(self, field, values)
        if min(self.std) <= 0:
            raise ValueError(f"std: expected positive numbers, got {self.std}")

    def __call__(self, image: Image.Image) -> torch.Tensor:
        """Return the network input of an RGB image: (3, size, size), float32, normalised."""
        return self.normalize(self.view(image))

    def view(self, image: Image.Image, scale: int = 1) -> Image.Image:
        """Return just what the network sees, as a image.

        Args:
            image: PIL image of mode RGB (see `load_image`).
            scale: 1 gives the network's own pixels; 2 the same field of view at twice the resolution, and so on.

        Returns:
            RGB image of size * scale by size * scale.
        """
        if scale < 1:
            raise ValueError(f"scale: expected at least 1, got {scale}")
        side, resample = self.size * scale, _RESAMPLING[self.interpolation]
        if self.mode == "square":
            return image.resize((side, side), resample)
        short = (self.size if self.resize is None else self.resize) * scale
        width, height = _short_side_to(image.size, short)
        left, top = round((width - side) / 2), round((height - side) / 2)
        if width * height > _MAX_RESIZED_PIXELS:
            x, y = image.width / width, image.height / height
            box = (left * x, top * y, (left + side) * x, (top + side) * y)
            return image.resize((side, side), resample, box=box)
        if (width, height) != image.size:
            image = image.resize((width, height), resample)
        return image.crop((left, top, left + side, top + side))

    def normalize(self, view: Image.Image) -> torch.Tensor:
        """Turn an RGB image (H, W) into a float32 tensor (3, H, W), scaled to [0, 1] and normalised."""
        values = torch.from_numpy(np.array(view.convert("RGB"))).permute(2, 0, 1).contiguous()
        mean, std = (torch.tensor(numbers, dtype=torch.float32)[:, None, None] for numbers in (self.mean, self.std))
        return values.float().div_(255).sub_(mean).div_(std)

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as plain values, for JSON or YAML."""
        return {name: list(v) if isinstance(v, tuple) else v for name, v in dataclasses.asdict(self).items()}

    @classmethod
    def from_dict(cls, settings: Mapping[str, Any]) -> Preprocess:
        """Build from plain values; missing ones take their defaults.

        Raises:
            ValueError: An unknown key (the nearest known one is named) or a value out of its range.
        """
        known = [field.name for field in dataclasses.fields(cls)]
        for key in settings:
            if key not in known:
                near = difflib.get_close_matches(str(key), known, n=1, cutoff=0.4)
                hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}"
                raise ValueError(f"preprocess: unknown key {key!r}; {hint}")
        return cls(**settings)


def _short_side_to(size: tuple[int, int], short: int) -> tuple[int, int]:
    """Return (width, height) scaled so that the shorter is `short`; the longer is cut off, not rounded."""
    width, height = size
    if width <= height:
        return short, int(short * height / width)
    return int(short * width / height), short
