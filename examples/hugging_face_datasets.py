"""Retrieval in a data set of Hugging Face: embed it as it is, evaluate both rankings, keep the vectors as a column.

    pip install diml datasets
    python hugging_face_datasets.py [FOLDER]

FOLDER has one sub-folder of photos for each class; without it, the photos that come with diml are used. A data set of
the hub is used in the same way: `load_dataset("OWNER/NAME", split="test")`, with its columns `image` and `label`.
"""

import sys

import numpy as np
from datasets import load_dataset

import diml


def main(folder=None):
    folder = folder or diml.sample_images()[0].parents[1]
    photos = load_dataset("imagefolder", data_dir=str(folder), split="train")
    print(photos)

    embedder = diml.load_embedder("mobilenetv2_100", size=128)
    regions = embedder.embed(photos["image"])
    print(diml.evaluate_regions(regions, photos["label"], rerank_at=(0, 5)))

    query, best = 0, diml.nearest(regions, regions, 5, exclude=np.arange(len(photos)))
    hits = diml.rerank(regions, regions, best.order).order[query].tolist()
    named = photos.features["label"].int2str
    print(named(photos[query]["label"]), "->", [named(photos[hit]["label"]) for hit in hits])
    print(diml.match(photos[query]["image"], photos[hits[0]]["image"]).summary().sentence)

    photos = photos.add_column("pooled", list(regions.pooled.numpy()))
    photos.remove_columns("image").to_parquet("photos.parquet")


if __name__ == "__main__":
    main(*sys.argv[1:])
