"""Images, how they are prepared and batched, and the data sets known by name."""

from diml.data.datasets import DataSetCheck, check_dataset, load_dataset, locate_dataset
from diml.data.image_sets import DataSet, ImageSet
from diml.data.images import BadImage, BadImageError, ImageLike, load_image
from diml.data.inventory import IncompleteDataSetWarning
from diml.data.loading import LoadedBatch, iterate_batches
from diml.data.registry import DataSetInfo, dataset_info, dataset_names
from diml.data.transforms import Preprocess

__all__ = [
    "BadImage",
    "BadImageError",
    "DataSet",
    "DataSetCheck",
    "DataSetInfo",
    "ImageLike",
    "ImageSet",
    "IncompleteDataSetWarning",
    "LoadedBatch",
    "Preprocess",
    "check_dataset",
    "dataset_info",
    "dataset_names",
    "iterate_batches",
    "load_dataset",
    "load_image",
    "locate_dataset",
]
