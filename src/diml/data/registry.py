"""The data sets known by name: description, protocols, layout on disk, how to get them, known size."""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from diml.spelling import did_you_mean


@dataclass(frozen=True, kw_only=True)
class DataSetInfo:
    """What is known of a data set independently of the files on disk.

    Attributes:
        name: Its name in `load_dataset`.
        description: One sentence.
        protocols: How it can be divided; the first is the default.
        folders: Possible names of its folder inside a root folder, the usual name first.
        layout: Expected files below that folder.
        how_to_get: What to do when it is missing.
        images: Known number of images, all parts together; None for a user's own images.
        classes: Known number of classes.
        credit: Whom to credit where it is used.
    """

    name: str
    description: str
    protocols: tuple[str, ...]
    folders: tuple[str, ...] = ()
    layout: str
    how_to_get: str
    images: int | None = None
    classes: int | None = None
    credit: str | None = None


_ALL: Final = (
    DataSetInfo(
        name="cub200",
        description="Birds, 200 species: the first 100 classes for training, the others for testing, leave-one-out",
        protocols=("class_disjoint",),
        folders=("cub200", "CUB_200_2011"),
        layout="ROOT/cub200/images/001.Black_footed_Albatross/*.jpg, one folder per class",
        how_to_get=(
            "download the archive CUB_200_2011.tgz from the data set's page at Caltech "
            "(Caltech-UCSD Birds-200-2011) and move its folder `images` to ROOT/cub200/images"
        ),
        images=11_788,
        classes=200,
        credit="Caltech-UCSD Birds-200-2011 (Wah et al., 2011)",
    ),
    DataSetInfo(
        name="cars196",
        description="Cars, 196 models: the first 98 classes for training, the others for testing, leave-one-out",
        protocols=("class_disjoint",),
        folders=("cars196",),
        layout="ROOT/cars196/images/<class>/*.jpg, one folder per class",
        how_to_get=(
            "download Stanford Cars (car_ims.tgz and cars_annos.mat) and sort all its images, training and test "
            "together, into one folder per class below ROOT/cars196/images"
        ),
        images=16_185,
        classes=196,
        credit="Stanford Cars (Krause et al., 2013)",
    ),
    DataSetInfo(
        name="online_products",
        description="Products of online shops: 11,318 classes for training, 11,316 for testing, leave-one-out",
        protocols=("class_disjoint",),
        folders=("online_products", "Stanford_Online_Products"),
        layout=(
            "ROOT/online_products/Info_Files/{Ebay_train.txt,Ebay_test.txt} and "
            "ROOT/online_products/images/bicycle_final/*.JPG and so on (or the unpacked archive unchanged)"
        ),
        how_to_get=(
            "download Stanford_Online_Products.zip from the data set's page (Stanford Online Products), move its "
            "text files to ROOT/online_products/Info_Files and its folders `*_final` to ROOT/online_products/images"
        ),
        images=120_053,
        classes=22_634,
        credit="Stanford Online Products (Song et al., CVPR 2016)",
    ),
    DataSetInfo(
        name="grocery",
        description="Photos of groceries, 81 fine classes: test photos are queries, all others the gallery",
        protocols=("query_gallery", "class_disjoint"),
        folders=("grocery", "GroceryStoreDataset"),
        layout=(
            "ROOT/grocery/{train,val,test}.txt (lines `path, fine class, coarse class`) with the photos at the listed "
            "paths, or both inside ROOT/grocery/dataset as in the public repository"
        ),
        how_to_get="clone the public repository GroceryStoreDataset of marcusklasson to ROOT/grocery",
        images=5_421,
        classes=81,
        credit="Grocery Store Dataset (Klasson, Zhang and Kjellström, WACV 2019), MIT licence",
    ),
    DataSetInfo(
        name="orl",
        description="Faces of 40 people, 10 grey images each, leave-one-out; fetched on first use",
        protocols=("all", "class_disjoint"),
        folders=("orl", "ORL_faces", "orl_faces"),
        layout="ROOT/orl/s1/1.pgm to ROOT/orl/s40/10.pgm, one folder per person",
        how_to_get="omit the root: it is fetched by pip and kept in the cache",
        images=400,
        classes=40,
        credit="ORL Database of Faces, AT&T Laboratories Cambridge (Samaria and Harter, 1994)",
    ),
    DataSetInfo(
        name="folder",
        description="Any folder with one sub-folder per class, leave-one-out",
        protocols=("all", "class_disjoint"),
        layout="ROOT/<class>/ with images, nested sub-folders included",
        how_to_get="pass the folder as the root; it needs one sub-folder per class",
    ),
    DataSetInfo(
        name="csv",
        description="Any images listed in a CSV file",
        protocols=("test", "validation"),
        layout="a file with the columns path,label,split and optionally is_query,is_gallery",
        how_to_get="pass the CSV file as the root; its paths are relative to the file",
    ),
)

DATASETS: Final = MappingProxyType({info.name: info for info in _ALL})


def dataset_names() -> tuple[str, ...]:
    """Return the names of the data sets that `load_dataset` can load."""
    return tuple(DATASETS)


def dataset_info(name: str) -> DataSetInfo:
    """Return what is known of a data set.

    Raises:
        ValueError: No data set has this name; the message suggests the nearest one.
    """
    if name not in DATASETS:
        raise ValueError(f"name: no data set {name!r}; {did_you_mean(name, DATASETS)}")
    return DATASETS[name]
