"""A few real photos that come with the package, so that every example runs without a data set."""

from __future__ import annotations

from pathlib import Path
from typing import Final

_FOLDER: Final = Path(__file__).parent / "sample_images"


def sample_images() -> list[Path]:
    """Twelve photos from grocery shops: six products, two photos of each, one after the other.

    The files lie in a folder for each product, `sample_images()[0].parents[1]`, which `diml evaluate folder`,
    `diml index build` and others take like any folder of images.

    Returns:
        Paths of JPEG files of 256 pixels on the short side, sorted by product.

    Source: Grocery Store Dataset (Klasson, Zhang, Kjellstroem, WACV 2019), MIT licence, scaled down.

    Example:
        >>> query, same, other = sample_images()[:3]
        >>> print(diml.match(query, same).score > diml.match(query, other).score)
        True
    """
    return sorted(_FOLDER.glob("*/*.jpg"))
