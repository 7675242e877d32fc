"""One door to all embedders: by name, from a saved folder, or from the authors' checkpoint."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any, Final, Literal

from diml.data.transforms import Preprocess
from diml.models.backbones import TokenPooling
from diml.models.config import EmbedderConfig, PooledFrom, Precision
from diml.models.embedder import Embedder
from diml.models.heads import HeadName, build_head
from diml.models.zoo import build_backbone, default_preprocess, is_backbone

DEFAULT_DIM: Final = 128


def load_embedder(
    name_or_path: str | os.PathLike[str],
    *,
    grid: int | Literal["default"] | None = "default",
    head: HeadName | None = None,
    dim: int | None = None,
    pretrained: bool = True,
    architecture: str | None = None,
    preprocess: Preprocess | None = None,
    pooled: PooledFrom | None = None,
    token_pooling: TokenPooling | None = None,
    precision: Precision | None = None,
) -> Embedder:
    """Return an embedder, in evaluation mode, on the CPU.

    Args:
        name_or_path: one of
            - a backbone's name: any timm model with spatial features, "googlenet" or "bninception";
              "mobilenetv2_100" and "tf_efficientnet_lite0" need no network but the package index;
            - a folder written by `Embedder.save` (`./resnet50` where the folder is called like a model);
            - a checkpoint file of the authors (`best.pth`), with `architecture`.
        grid: G for G x G regions, 1 to 14; None for the backbone's own cells. "default": 4, or as saved.
        head: "identity", "linear" (random until trained) or "whiten" (to be fitted: `Embedder.fit_head`). Default:
            "identity", or as saved.
        dim: D of the heads "linear" and "whiten"; default 128, or as saved.
        pretrained: with ImageNet weights; False: random ones. Of no meaning for folders and checkpoints.
        architecture: the backbone in a checkpoint of the authors, such as "resnet50".
        preprocess: from image to network input; default the model's own colours at 224 pixels (see
            `default_preprocess`), or as saved.
        pooled: "backbone" or "grid_mean", see `EmbedderConfig`. Default "backbone", or as saved.
        token_pooling: of plain transformers, "class" or "mean"; default the model's own way, or as saved.
        precision: "auto", "float32", "bfloat16" or "float16", see `EmbedderConfig`. Default "auto", or as saved.

    Raises:
        ValueError: unknown name (the nearest are named), an option out of its range or of no use here, a damaged
            folder, a hostile or foreign checkpoint.
        FileNotFoundError: no such path.
        WeightsError, AssetError: pretrained weights cannot be had; the message has the remedies.

    Example:
        >>> embedder = load_embedder("resnet18", head="linear", dim=64, pretrained=False)
        >>> embedder(torch.randn(2, 3, 224, 224))
        Regions(N=2, R=16, D=64, grid=(4, 4), torch.float32, cpu)
    """
    changes: dict[str, Any] = {"preprocess": preprocess, "pooled": pooled, "precision": precision}
    changes = {key: value for key, value in changes.items() if value is not None}
    if grid != "default":
        changes["grid"] = grid
    path = _as_path(name_or_path)
    if path is None:
        _refuse("a backbone's name", architecture=architecture)
        name = os.fspath(name_or_path)
        return _by_name(
            name, head or "identity", DEFAULT_DIM if dim is None else dim, pretrained, token_pooling, changes
        )
    if path.is_file():
        from diml.models.released import read_released

        _refuse("a checkpoint", head=head, dim=dim, token_pooling=token_pooling)
        if architecture is None:
            raise ValueError(
                f"architecture: need the name of the backbone in {path}, such as architecture='resnet50'; an embedder "
                "saved by diml is a folder, not a file"
            )
        return read_released(path, architecture, **changes)
    from diml.models.folder import read_embedder

    _refuse("a saved embedder", head=head, dim=dim, token_pooling=token_pooling, architecture=architecture)
    saved = read_embedder(path)
    return (
        Embedder(saved.backbone, saved.head, dataclasses.replace(saved.config, **changes)).eval() if changes else saved
    )


def _by_name(
    name: str, head: HeadName, dim: int, pretrained: bool, token_pooling: TokenPooling | None, changes: dict[str, Any]
) -> Embedder:
    changes = {"preprocess": default_preprocess(name)} | changes
    # Settings first: a slip in them should not cost a download.
    config = EmbedderConfig(backbone=name, head=head, dim=dim, token_pooling=token_pooling, **changes)
    backbone = build_backbone(
        name, pretrained=pretrained, image_size=config.preprocess.size, token_pooling=token_pooling
    )
    return Embedder(backbone, build_head(head, backbone.channels, dim), config).eval()


def _as_path(name_or_path: str | os.PathLike[str]) -> Path | None:
    """The path that is meant; None for a name. A model's name stands for the model, whatever folders there are."""
    text = os.fspath(name_or_path)
    if isinstance(name_or_path, str) and is_backbone(text):
        return None
    path = Path(text).expanduser()
    if path.exists():
        return path
    if not isinstance(name_or_path, str) or path.suffix in (".pth", ".pt", ".safetensors") or len(path.parts) > 1:
        raise FileNotFoundError(f"name_or_path: {text} does not exist (nor is it the name of a model)")
    return None


def _refuse(what: str, **options: object) -> None:
    given = [name for name, value in options.items() if value is not None]
    if given:
        raise ValueError(f"{', '.join(given)}: of no use with {what}; leave it away")
