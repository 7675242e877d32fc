"""Images of which only a box is used, cropped when they are read."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch.utils.data import Dataset

from diml.data.images import BadImageError, ImageLike, load_image

#: Left, upper, right and lower edge in pixels; fractions are rounded.
Box = tuple[float, float, float, float]


class BoxedImages(Dataset[tuple[ImageLike, int]]):
    """Map-style data set of (image, 0): files, cropped to their boxes where they have one.

    Args:
        paths: N files.
        boxes: N boxes, or None for a whole image. The part of a box outside its image is cut off.
    """

    def __init__(self, paths: Sequence[Path], boxes: Sequence[Box | None]) -> None:
        if len(paths) != len(boxes):
            raise ValueError(f"boxes: need one, or None, for each of {len(paths)} images, got {len(boxes)}")
        #: Named as torchvision's data sets have it, so that messages name the files.
        self.samples = [(path, 0) for path in paths]
        self.boxes = list(boxes)

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[ImageLike, int]:
        """Return a path, or the cropped image.

        Raises:
            BadImageError: The image cannot be read, or the box is empty.
        """
        path, box = self.samples[index][0], self.boxes[index]
        if box is None:
            return path, 0
        image = load_image(path)
        left, upper, right, lower = (round(edge) for edge in box)
        inside = (max(left, 0), max(upper, 0), min(right, image.width), min(lower, image.height))
        if inside[0] >= inside[2] or inside[1] >= inside[3]:
            raise BadImageError(str(path), f"the box {box} has no pixel of the image of {image.width} x {image.height}")
        return image.crop(inside), 0
