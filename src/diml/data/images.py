"""Reading images of any kind as upright 8-bit RGB.

An image that cannot be read is reported with the reason, never dropped silently.
"""

from __future__ import annotations

import io
import os
import stat
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Final

import numpy as np
import torch
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

ImageLike = str | os.PathLike[str] | bytes | Image.Image | torch.Tensor | np.ndarray[Any, Any]
"""A path, the bytes of an image file, a PIL image, a tensor `(3, H, W)` or `(1, H, W)`, or an array `(H, W)` or
`(H, W, 1|3|4)`; tensors and arrays are uint8 in [0, 255] or float in [0, 1]."""

MAX_PIXELS: Final = 178_956_970  # Pillow's own limit above which it raises an error

_SCALING: Final = "scale them, or pass uint8 in [0, 255], and leave the normalisation to `Preprocess`"


class BadImageError(ValueError):
    """An image cannot be used: `path` is its path, or a name such as `<image 3>`, and `reason` the cause."""

    def __init__(self, path: str, reason: str) -> None:
        # The base class gets both arguments so that the error can be unpickled from a worker process.
        super().__init__(path, reason)
        self.path = path
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


@dataclass(frozen=True)
class BadImage:
    """An image that was skipped: its path (or a name such as `<image 3>`) and the reason."""

    path: str
    reason: str


def is_image(value: object) -> bool:
    """Return whether a value is of one of the types of `ImageLike`."""
    return isinstance(value, str | os.PathLike | bytes | Image.Image | torch.Tensor | np.ndarray)


def image_name(image: ImageLike, index: int | None = None) -> str:
    """Return the name of an image for messages: its path, or `<image INDEX>`."""
    if isinstance(image, str | os.PathLike):
        return os.fspath(image)
    return "<image>" if index is None else f"<image {index}>"


def load_image(image: ImageLike, *, name: str | None = None, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Return an image as upright 8-bit RGB.

    EXIF orientation is applied; transparent parts are composed onto white; the first frame of an animation is used;
    grey, palette, CMYK and other modes are converted; values of more than 8 bits are scaled (16-bit grey by 1/257,
    float grey in [0, 1] by 255, any other range linearly from its minimum to its maximum).

    Args:
        image: An `ImageLike`: path, bytes of a file, PIL image, tensor or array (see there for shapes and ranges).
        name: Name for messages; default its path, or `<image>`.
        max_pixels: Images with more pixels are rejected before any pixel is decoded. Pillow's own limit also applies.

    Returns:
        A PIL image of mode RGB; always a new object.

    Raises:
        BadImageError: The image is unreadable, truncated, too large, empty, or not an image.
        FileNotFoundError: The file does not exist.
        TypeError: `image` is of none of the types above.

    Example:
        >>> load_image(torch.zeros(3, 2, 4)).size
        (4, 2)
    """
    name = image_name(image) if name is None else name
    if isinstance(image, str | os.PathLike):
        return _load_path(Path(image), name, max_pixels)
    if isinstance(image, bytes):
        return _load_stream(io.BytesIO(image), len(image), name, max_pixels)
    if isinstance(image, torch.Tensor):
        image = _from_tensor(image, name)
    elif isinstance(image, np.ndarray):
        image = _from_array(image, name)
    elif not is_image(image):
        raise TypeError(f"image {name}: expected a path, bytes, PIL image, tensor or array, got {type(image).__name__}")
    return _finish(image, name, max_pixels)


def _load_path(path: Path, name: str, max_pixels: int) -> Image.Image:
    try:
        length = _length_of_file(path, name)
        with path.open("rb") as file:
            return _load_stream(file, length, name, max_pixels)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"image {name}: no such file") from error
    except BadImageError:
        raise
    except (OSError, ValueError) as error:  # no permission, a name too long, a zero byte in the name
        raise BadImageError(name, f"cannot be opened ({_message(error)})") from error


def _length_of_file(path: Path, name: str) -> int:
    """Return the size in bytes; anything but a regular file, such as a pipe that would block, is rejected."""
    status = path.stat()
    if stat.S_ISDIR(status.st_mode):
        raise BadImageError(name, "is a folder, not an image")
    if not stat.S_ISREG(status.st_mode):
        raise BadImageError(name, "is not a regular file")
    return status.st_size


def _load_stream(stream: BinaryIO, length: int, name: str, max_pixels: int) -> Image.Image:
    if length == 0:
        raise BadImageError(name, "is empty (0 bytes)")
    try:
        with warnings.catch_warnings():
            # Pillow warns about large images, which `max_pixels` decides on, and about malformed metadata, which is
            # harmless; the caller may have turned warnings into errors.
            warnings.simplefilter("ignore")
            with Image.open(stream) as image:
                return _finish(image, name, max_pixels)
    except BadImageError:
        raise
    except Image.DecompressionBombError as error:
        raise BadImageError(name, f"is too large to be decoded safely ({_message(error)})") from error
    except UnidentifiedImageError as error:
        raise BadImageError(name, "is not an image of a known format") from error
    except Exception as error:  # decoders raise almost any type on damaged files
        raise BadImageError(name, f"cannot be decoded ({_message(error)})") from error


def _finish(image: Image.Image, name: str, max_pixels: int) -> Image.Image:
    width, height = image.size
    if width * height > max_pixels:
        raise BadImageError(name, f"has {width} x {height} pixels, more than the {max_pixels:,} allowed")
    if width * height == 0:
        raise BadImageError(name, f"has no pixels ({width} x {height})")
    try:
        image.load()
        upright = _upright(image)
        rgb = _to_rgb(upright, name)
    except BadImageError:
        raise
    except Exception as error:
        raise BadImageError(name, f"cannot be decoded ({_message(error)})") from error
    return rgb.copy() if rgb is image else rgb


def _upright(image: Image.Image) -> Image.Image:
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # the pixels are intact despite damaged metadata
        return image
    return ImageOps.exif_transpose(image) if orientation in range(2, 9) else image


def _to_rgb(image: Image.Image, name: str) -> Image.Image:
    if image.mode.startswith("I") or image.mode == "F":
        return _from_wide(np.asarray(image), name, float_values=image.mode == "F")
    if image.mode == "La":
        image = image.convert("LA")
    if image.has_transparency_data or image.mode == "RGBa":
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")


def _from_wide(values: np.ndarray[Any, Any], name: str, *, float_values: bool) -> Image.Image:
    """Scale grey values of more than 8 bits (H, W) to 8 bits, by their range."""
    wide = values.astype(np.float64)
    if not np.isfinite(wide).all():
        raise BadImageError(name, "has values that are not finite")
    low, high = float(wide.min()), float(wide.max())
    if float_values and low >= 0 and high <= 1:
        scaled = wide * 255
    elif float_values and low >= 0 and high <= 255:
        scaled = wide
    elif not float_values and low >= 0 and high <= 65535:
        scaled = wide / 257
    else:
        scaled = (wide - low) * (255 / (high - low)) if high > low else np.zeros_like(wide)
    return Image.fromarray(np.rint(scaled).astype(np.uint8)).convert("RGB")


def _from_tensor(image: torch.Tensor, name: str) -> Image.Image:
    if image.ndim != 3 or image.shape[0] not in (1, 3):
        raise BadImageError(name, f"is a tensor of shape {tuple(image.shape)}, expected (3, H, W) or (1, H, W)")
    if image.is_floating_point():
        image = image.float()  # numpy has no bfloat16
    return _from_array(image.detach().cpu().permute(1, 2, 0).numpy(), name)


def _from_array(image: np.ndarray[Any, Any], name: str) -> Image.Image:
    if image.ndim not in (2, 3) or (image.ndim == 3 and image.shape[2] not in (1, 3, 4)):
        shape = tuple(image.shape)
        raise BadImageError(name, f"is an array of shape {shape}, expected (H, W) or (H, W, C) with C of 1, 3 or 4")
    if image.size == 0:
        raise BadImageError(name, f"has no pixels (shape {tuple(image.shape)})")
    if np.issubdtype(image.dtype, np.floating):
        if not (np.isfinite(image).all() and image.min() >= 0 and image.max() <= 1):
            raise BadImageError(name, f"has float values outside [0, 1]; {_SCALING}")
        image = np.rint(image * 255).astype(np.uint8)
    elif image.dtype != np.uint8:
        raise BadImageError(name, f"has type {image.dtype}, expected uint8 in [0, 255] or float in [0, 1]")
    if image.ndim == 3 and image.shape[2] == 1:
        image = image[:, :, 0]
    return Image.fromarray(np.ascontiguousarray(image))


def _message(error: BaseException) -> str:
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return text or type(error).__name__
