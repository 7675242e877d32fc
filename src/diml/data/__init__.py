"""Images: reading and preprocessing them, sets of labelled images, and the data sets known by name."""

from diml.data.datasets import load_dataset
from diml.data.image_sets import DataSet, ImageSet
from diml.data.images import BadImageError, ImageLike, load_image
from diml.data.registry import dataset_names
from diml.data.transforms import Preprocess

__all__ = [
    "BadImageError",
    "DataSet",
    "ImageLike",
    "ImageSet",
    "Preprocess",
    "dataset_names",
    "load_dataset",
    "load_image",
]
