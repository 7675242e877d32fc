"""Reading images of any kind as upright 8-bit RGB.

An image that cannot be read is reported with the reason, never dropped silently.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from PIL import ExifTags, Image

from diml.data.image_files import (
    IMAGE_ENDINGS,
    IMAGE_FORMATS,
    MAX_BYTES,
    MAX_PIXELS,
    BadImageError,
    check_pixels,
    decoding_errors,
    opened_file,
    opened_image,
    printable,
    read_file,
)
from diml.data.pixel_depth import (
    collected_notices,
    colour_to_rgb,
    flatten,
    grey_to_rgb,
    is_wide_grey,
    needs_lower_bytes,
    say,
    unpack_lower_bytes,
    unpacking,
)

__all__ = [
    "IMAGE_ENDINGS",
    "IMAGE_FORMATS",
    "MAX_BYTES",
    "MAX_PIXELS",
    "BadImage",
    "BadImageError",
    "ImageLike",
    "image_name",
    "is_image",
    "load_image",
    "opened_file",
    "opened_image",
    "printable",
    "read_file",
]

ImageFile = str | os.PathLike[str] | bytes
"""A path, or the bytes of an image file."""

ImageLike = ImageFile | Image.Image | torch.Tensor | np.ndarray[Any, Any]
"""A path, the bytes of an image file, a PIL image, a tensor `(3, H, W)` or `(1, H, W)`, or an array `(H, W)` or
`(H, W, 1|3|4)`; tensors and arrays are uint8 in [0, 255] or float in [0, 1]."""

_TURNS: Final = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""EXIF orientation -> how to turn the image upright."""

_SCALING: Final = "scale them, or pass uint8 in [0, 255], and leave the normalisation to `Preprocess`"


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


def load_image(
    image: ImageLike,
    *,
    name: str | None = None,
    max_pixels: int = MAX_PIXELS,
    max_bytes: int = MAX_BYTES,
    at_least: int | None = None,
) -> Image.Image:
    """Return an image as upright 8-bit RGB, without metadata.

    EXIF orientation is applied; transparent parts are composed onto white; the first frame of an animation is used;
    grey, palette, CMYK and other modes are converted; values of more than 8 bits are scaled by the rules of
    docs/images.md, which also states the memory that an image needs.

    Args:
        image: An `ImageLike`: path, bytes of a file, PIL image, tensor or array (see there for shapes and ranges).
        name: Name for messages; default its path, or `<image>`.
        max_pixels: Images with more pixels are rejected before any pixel is decoded. Pillow's own limit also applies.
        max_bytes: Files with more bytes are rejected.
        at_least: JPEG files may be decoded at a half, a quarter or an eighth of their size, with at least this many
            pixels on both sides: faster, with less memory, but other values than those of a full image that is resized.
            Images that are compared need the same number, that of `Preprocess.at_least`.

    Returns:
        A PIL image of mode RGB; always a new object.

    Raises:
        BadImageError: The image is unreadable, truncated, too large, empty, or not an image of an allowed format.
        FileNotFoundError: The file does not exist.
        TypeError: `image` is of none of the types above.

    Warns:
        PixelDepthWarning: How many bits are used had to be taken from the values; once for each rule.

    Example:
        >>> load_image(torch.zeros(3, 2, 4)).size
        (4, 2)
    """
    name = image_name(image) if name is None else name
    with collected_notices() as notices:
        rgb = _loaded(image, name, max_pixels, max_bytes, at_least)
    for notice in notices:  # not while decoding, where a warning that is an error would be taken for one of the decoder
        say(notice)
    return rgb


def _loaded(image: ImageLike, name: str, max_pixels: int, max_bytes: int, at_least: int | None) -> Image.Image:
    if isinstance(image, str | os.PathLike | bytes):
        with opened_image(image, name=name, max_pixels=max_pixels, max_bytes=max_bytes) as opened:
            if at_least is not None:
                opened.draft(None, (at_least, at_least))  # None: the mode of the file
            return _finish(opened, image, unpacking(opened), name, max_pixels)
    if isinstance(image, torch.Tensor):
        image = _from_tensor(image, name)
    elif isinstance(image, np.ndarray):
        image = _from_array(image, name)
    elif not is_image(image):
        raise TypeError(f"image {name}: expected a path, bytes, PIL image, tensor or array, got {type(image).__name__}")
    with decoding_errors(name):
        return _finish(image, None, None, name, max_pixels)


def _finish(image: Image.Image, source: ImageFile | None, way: str | None, name: str, max_pixels: int) -> Image.Image:
    """Decode an image and convert it.

    Args:
        image: opened by us from `source`, or given by the caller, whose image is left as it is.
        source: path or bytes of the file, to read it again.
        way: `unpacking` of the image.
        name, max_pixels: as `load_image`.
    """
    check_pixels(image.size, name, max_pixels)
    image.load()
    turn = _turn(image)
    rgb = _to_rgb(image, source, way, name)
    if rgb is image:  # an image of ours gives its pixels away, as a copy needs as much memory again
        rgb = image.copy() if source is None else image._new(image.im)
    rgb.info = {}  # the metadata are those of the file: its orientation, for one, is not that of the result
    return rgb if turn is None else rgb.transpose(turn)


def _turn(image: Image.Image) -> Image.Transpose | None:
    try:
        return _TURNS.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # the pixels are intact despite damaged metadata
        return None


def _to_rgb(image: Image.Image, source: ImageFile | None, way: str | None, name: str) -> Image.Image:
    if is_wide_grey(image):
        return grey_to_rgb(image, name)
    if source is not None and needs_lower_bytes(image, way):
        with opened_image(source, name=name) as lower:
            unpack_lower_bytes(lower, way)
            lower.load()
            if lower.size != image.size:
                raise BadImageError(name, "was changed while it was read")
            return colour_to_rgb(image, lower, way, name)
    if image.has_transparency_data or image.mode == "RGBa":
        return flatten(image)
    return image if image.mode == "RGB" else image.convert("RGB")


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
