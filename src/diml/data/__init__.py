"""Pictures, how they are prepared and batched, and the data sets known by name."""

from diml.data.datasets import DataSetCheck, check_dataset, load_dataset, locate_dataset
from diml.data.inventory import IncompleteDataSetWarning
from diml.data.loading import LoadedBatch, iterate_batches
from diml.data.picture_set import DataSet, PictureSet
from diml.data.pictures import BadPicture, BadPictureError, Picture, load_picture
from diml.data.registry import DataSetInfo, dataset_info, dataset_names
from diml.data.transforms import Preprocess

__all__ = [
    "BadPicture",
    "BadPictureError",
    "DataSet",
    "DataSetCheck",
    "DataSetInfo",
    "IncompleteDataSetWarning",
    "LoadedBatch",
    "Picture",
    "PictureSet",
    "Preprocess",
    "check_dataset",
    "dataset_info",
    "dataset_names",
    "iterate_batches",
    "load_dataset",
    "load_picture",
    "locate_dataset",
]
