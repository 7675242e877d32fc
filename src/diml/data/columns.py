"""Data sets whose items are dicts, such as those of the Hugging Face library `datasets`: which columns are read.

The library is not imported: columns are told by the names of their feature types.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from diml.spelling import did_you_mean

_IMAGE_NAMES: Final = ("image", "img")
_LABEL_NAMES: Final = ("label", "labels", "target", "fine_label")


@dataclass(frozen=True)
class Columns:
    """The columns of a data set of dicts.

    Args:
        image: Column of the images.
        label: Column of the labels; None where there is none.
        class_names: Names of the classes where the label column has them, else empty.
    """

    image: str
    label: str | None
    class_names: tuple[str, ...] = ()


def find_columns(dataset: Any, image: str | None, label: str | None) -> Columns | None:
    """The columns of a data set whose items are dicts; None where its items are something else.

    Args:
        dataset: Map-style, not empty. Its `features` tell the types; without them its first item is read.
        image, label: Columns that the user named; those of the types Image and ClassLabel when omitted, else columns of
            the usual names.

    Raises:
        ValueError: A named column is missing, or the choice is not clear.
    """
    features = getattr(dataset, "features", None)
    if not isinstance(features, Mapping):
        first = dataset[0]
        if not isinstance(first, Mapping):
            if image is not None or label is not None:
                raise ValueError(f"image, label: name columns of items that are dicts, got {type(first).__name__}")
            return None
        features = dict.fromkeys(first)
    chosen_image = image_column(features, image)
    chosen_label = _column(features, "label", label, "ClassLabel", _LABEL_NAMES)
    names = getattr(features.get(chosen_label), "names", None)
    words = isinstance(names, Sequence) and all(isinstance(name, str) for name in names)
    return Columns(chosen_image, chosen_label, tuple(names) if words and names is not None else ())


def image_column(features: Mapping[Any, Any], named: str | None = None) -> str:
    """The column of the images, of the features of a data set or of one of its items.

    Raises:
        ValueError: There is none of the usual names, or none of the name that was given.
    """
    found = _column(features, "image", named, "Image", _IMAGE_NAMES)
    if found is None:
        raise ValueError(f"image: which column has the images? There are {', '.join(map(str, features))}")
    return found


def plain_image(value: Any) -> Any:
    """The image of a cell: as it is, or the bytes or path of an image that is not decoded."""
    if isinstance(value, Mapping) and set(value) <= {"bytes", "path"}:
        return value.get("bytes") or value.get("path")
    return value


def column_labels(dataset: Any, column: str) -> list[Any]:
    """The labels of a column, read without its images where the data set can do that."""
    if hasattr(dataset, "column_names"):
        return list(dataset[column])
    return [dataset[row][column] for row in range(len(dataset))]


def _column(
    features: Mapping[Any, Any], what: str, named: str | None, feature: str, usual: tuple[str, ...]
) -> str | None:
    if named is not None:
        if named not in features:
            raise ValueError(f"{what}: no column {named!r}; {did_you_mean(named, list(map(str, features)))}")
        return named
    typed = [str(name) for name, kind in features.items() if type(kind).__name__ == feature]
    fitting = typed or [name for name in usual if name in features]
    if len(typed) > 1 and not (fitting := [name for name in usual if name in typed][:1]):
        raise ValueError(f"{what}: the columns {', '.join(typed)} are all of the type {feature}; name one of them")
    return fitting[0] if fitting else None
