"""An embedder as an ONNX file: normalised images in, pooled vectors and regions out, checked when it is written.

Legend: B images of a batch, R regions, D channels.
"""

from __future__ import annotations

import contextlib
import copy
import json
import logging
import warnings
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch
from torch import Tensor, nn

from diml.extras import require
from diml.files import atomic_file, require_writable_file
from diml.models.backbones import inference

if TYPE_CHECKING:
    from diml.models.embedder import Embedder

#: How far an output of the file may be from that of torch, whose vectors have unit length.
TOLERANCE: Final = 1e-4
#: Sizes of the batches that both compute, none of them that of the export.
_CHECKED: Final = (1, 3)
#: Bytes of a file, which Protocol Buffers limit.
_LARGEST: Final = 2**31 - 1
#: The first torch whose exporter takes a batch axis of any length.
_TORCH: Final = (2, 6)


class _Outputs(nn.Module):
    """An embedder whose outputs are tensors."""

    def __init__(self, embedder: Embedder) -> None:
        super().__init__()
        self.embedder = embedder

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Pooled vectors (B, D) and regions (B, R, D) of normalised images (B, 3, size, size)."""
        regions = self.embedder(images)
        return regions.pooled, regions.dense


def write_onnx(embedder: Embedder, path: Path) -> float:
    """See `Embedder.export_onnx`."""
    require("onnx", "ONNX export")
    if tuple(map(int, torch.__version__.split(".")[:2])) < _TORCH:
        raise ValueError(f"torch: need {'.'.join(map(str, _TORCH))} or newer for ONNX export, got {torch.__version__}")
    if path.suffix != ".onnx":
        raise ValueError(f"{path}: need a file name that ends in .onnx")
    require_writable_file(path)
    network = _Outputs(copy.deepcopy(embedder).cpu().float())
    batches = [_some_images(embedder.preprocess.size, count) for count in (2, *_CHECKED)]
    with inference(network, torch.device("cpu"), None):
        model = _exported(network, batches[0], embedder.config.backbone)
        expected = [[output.numpy() for output in network(images)] for images in batches[1:]]
    if model.ByteSize() > _LARGEST:
        raise ValueError(
            f"{path}: need a network of less than 2 GiB, the limit of ONNX files, got {model.ByteSize():,}"
        )
    for name, value in description(embedder, expected[0][1].shape[1]).items():
        model.metadata_props.add(key=name, value=value)
    with atomic_file(path) as scratch:
        scratch.write_bytes(model.SerializeToString())
        difference = _difference(scratch, batches[1:], expected)
        if not difference <= TOLERANCE:
            raise ValueError(
                f"{path}: the ONNX graph of {embedder.config.backbone} differs from the network by {difference:.1e}, "
                f"need at most {TOLERANCE:.0e}; nothing was written: another version of onnxruntime or torch may do"
            )
    return difference


def _exported(network: nn.Module, images: Tensor, name: str) -> Any:
    """The ONNX model of a network, for batches of any size."""
    with _quiet():
        try:
            program: Any = torch.onnx.export(
                network,
                (images,),
                dynamo=True,
                verbose=False,
                input_names=["images"],
                output_names=["pooled", "dense"],
                dynamic_shapes={"images": {0: torch.export.Dim("batch")}},
            )
        except torch.onnx.errors.OnnxExporterError as error:
            reason = str(error.__cause__ or error).strip().splitlines()[0]
            raise ValueError(f"backbone: {name!r} cannot be exported to ONNX: {reason}") from error
        return program.model_proto


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without what the exporter says of itself on the way: its result is compared with the network's afterwards."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _some_images(size: int, count: int) -> Tensor:
    """Normalised noise with a blank image at the end, the same every time."""
    images = torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(count))
    images[-1] = 0 if count > 1 else images[-1]
    return images


def _difference(file: Path, batches: list[Tensor], expected: list[list[Any]]) -> float:
    """The largest difference between what onnxruntime computes from a file and what torch has computed."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors only
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    differences = []
    for images, outputs in zip(batches, expected, strict=True):
        found = session.run(["pooled", "dense"], {"images": images.numpy()})
        if [one.shape for one in found] != [one.shape for one in outputs]:
            return float("inf")
        differences += [float(np.abs(one - other).max()) for one, other in zip(found, outputs, strict=True)]
    return float(np.max(differences))  # NaN where any is


def description(embedder: Embedder, regions: int) -> dict[str, str]:
    """The metadata of the file of an embedder with R regions: what a program that uses it has to know, as texts."""
    preprocess, config = embedder.preprocess, embedder.config
    steps = (
        f"resize the short side to {preprocess.short_side} pixels, cut out the centre"
        if preprocess.mode == "crop"
        else "resize the whole image to a square"
    )
    if preprocess.reducing_gap is not None:
        steps = (
            f"shrink by the largest whole factor that leaves {preprocess.reducing_gap:g} times the pixels of the next "
            f"step (JPEG files are decoded at a half, a quarter or an eighth of their size before); {steps}"
        )
    facts = {
        "input": f"images: float32 (batch, 3, {preprocess.size}, {preprocess.size}), normalised",
        "outputs": f"pooled: float32 (batch, {embedder.dim}); dense: float32 (batch, {regions}, "
        f"{embedder.dim}); unit vectors, of blank regions zero",
        "preprocessing": f"{steps} ({preprocess.size} x {preprocess.size}, {preprocess.interpolation}, antialiased); "
        "divide by 255; subtract mean; divide by std; channels first",
        "channel_order": "RGB",
        "value_range": "0 to 1 before mean and std",
        **{
            name: value if isinstance(value, str) else json.dumps(value) for name, value in preprocess.to_dict().items()
        },
        "grid": json.dumps(_grid(embedder, regions)),
        "model": json.dumps(config.to_dict()),
        "fingerprint": embedder.fingerprint(),
        "written_by": f"diml {version('diml')}, torch {torch.__version__}",
    }
    return {f"diml.{name}": value for name, value in facts.items()}


def _grid(embedder: Embedder, regions: int) -> list[int]:
    """Rows and columns of the regions of a square input."""
    side = round(regions**0.5) if embedder.grid is None else embedder.grid
    return [side, regions // side]
