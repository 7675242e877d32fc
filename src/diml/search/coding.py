"""Regions as bytes and back: float16, or int8 with one scale a region.

Legend: N images, R regions, D channels, B bytes a image.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from diml.matching import QuantizedRegions, Regions
from diml.search.store import IndexConfig, Rows


def encode_regions(regions: Regions, config: IndexConfig) -> NDArray[np.uint8]:
    """The regions of N images as (N, B) bytes, little-endian.

    float16: R * D values, region by region. int8: R * D codes, then R scales in float32.

    Raises:
        ValueError: the regions are of another R or D than the index.
    """
    if config.storage == "none":
        return np.empty((len(regions), 0), dtype=np.uint8)
    if (regions.num_regions, regions.dim) != (config.num_regions, config.dim):
        need, got = f"R {config.num_regions}, D {config.dim}", f"R {regions.num_regions}, D {regions.dim}"
        raise ValueError(f"regions: the index has {need}, got {got}; embed with the model of the index")
    if config.storage == "float16":
        halves = np.ascontiguousarray(regions.dense.detach().cpu().to(torch.float16).numpy().astype("<f2"))
        return halves.view(np.uint8).reshape(len(regions), config.row_bytes)
    packed = regions.quantized()
    codes = packed.codes.cpu().numpy().view(np.uint8).reshape(len(regions), config.num_regions * config.dim)
    scales = np.ascontiguousarray(packed.scale.cpu().numpy().astype("<f4")).view(np.uint8)
    return np.concatenate([codes, scales.reshape(len(regions), config.num_regions * 4)], axis=1)


def decode_regions(rows: Rows, config: IndexConfig) -> Regions | QuantizedRegions:
    """The regions of stored rows, as `diml.matching.rerank` takes them.

    Pooled vectors come in float16 beside float16 regions, in float32 beside int8.

    Raises:
        ValueError: the index has no regions.
    """
    if config.storage == "none":
        raise ValueError("storage: this index has pooled vectors only; search it with rerank 0")
    shape = (len(rows), config.num_regions, config.dim)
    coded, pooled = np.ascontiguousarray(rows.coded), torch.from_numpy(np.array(rows.pooled))
    if config.storage == "float16":
        dense = torch.from_numpy(coded.view("<f2").astype(np.float16).reshape(shape))
        return Regions(dense, pooled.to(torch.float16), config.grid)
    split = config.num_regions * config.dim
    codes = torch.from_numpy(np.array(coded[:, :split]).view(np.int8).reshape(shape))
    scale = torch.from_numpy(np.ascontiguousarray(coded[:, split:]).view("<f4").astype(np.float32).reshape(shape[:2]))
    return QuantizedRegions(codes, scale, pooled, config.grid)
