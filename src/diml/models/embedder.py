"""From images to `Regions`: backbone, head, grid.

Legend: B images, N images, C channels of the backbone, D of the embedding, H x W cells of the map, R regions.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

import torch
from torch import Tensor, nn

from diml.data.images import BadImage, ImageLike
from diml.data.loading import LoadedBatch, iterate_batches
from diml.data.transforms import Preprocess
from diml.matching import Regions
from diml.models.backbones import Backbone
from diml.models.config import EmbedderConfig
from diml.models.grids import resize_grid
from diml.models.heads import Head, IdentityHead, WhitenHead
from diml.models.inference import as_list, autocast_type, inference
from diml.progress import ShowProgress, image_progress

OnBadImage = Literal["fail", "skip"]

#: From so many images on, starting processes to decode them pays next to an accelerator.
_WORTH_WORKERS: Final = 512


@dataclass(frozen=True, eq=False)
class Embedded:
    """The regions of those images that could be read.

    Attributes:
        regions: N' images, in the order of the images.
        kept: (N',) int64, on the CPU: which image each image is, rising.
        bad: the others, in order, with the reason.
    """

    regions: Regions
    kept: Tensor
    bad: tuple[BadImage, ...]

    def __post_init__(self) -> None:
        assert len(self.regions) == len(self.kept), (len(self.regions), len(self.kept))


class Embedder(nn.Module):
    """Turns images into `Regions`; made by `diml.load_embedder`.

    Called with images (B, 3, H, W), normalised as `preprocess` does, it is an ordinary differentiable module;
    `embed` takes images of any kind. Work happens where the module is: `embedder.to("cuda")`.

    Args:
        backbone: gives maps and pooled features.
        head: embeds both, and every cell alike.
        config: grid, pooling, precision, preprocessing; its `dim` is corrected to the head's.

    Raises:
        ValueError: the preprocessing gives another size than the backbone takes.

    Source: Zhao et al., ICCV 2021, section 3.2; method.md, section 1.

    Example:
        >>> embedder = load_embedder("mobilenetv2_100")  # doctest: +SKIP
        >>> match(embedder.embed(["a.jpg"]), embedder.embed(["b.jpg"])).score  # doctest: +SKIP
    """

    def __init__(self, backbone: Backbone, head: Head, config: EmbedderConfig) -> None:
        super().__init__()
        if backbone.image_size not in (None, config.preprocess.size):
            raise ValueError(
                f"preprocess: {config.backbone!r} was built for images of {backbone.image_size} pixels, got size "
                f"{config.preprocess.size}; build it anew by its name for another size"
            )
        self.backbone = backbone
        self.head = head
        self.config = dataclasses.replace(config, dim=head.dim)
        # Convolutions run faster on this layout, on the CPU too; the values of the weights are the same.
        self.to(memory_format=torch.channels_last)

    @property
    def grid(self) -> int | None:
        """G for G x G regions; None: the backbone's own cells."""
        return self.config.grid

    @property
    def dim(self) -> int:
        """D, the length of the vectors."""
        return self.config.dim

    @property
    def preprocess(self) -> Preprocess:
        """From a image to the network's input."""
        return self.config.preprocess

    @property
    def device(self) -> torch.device:
        """Where the weights are, and the regions come out."""
        return next(self.backbone.parameters()).device

    def forward(self, images: Tensor) -> Regions:
        """Embed images.

        Args:
            images: (B, 3, H, W) float, normalised, on the module's device.

        Returns:
            Regions of B images, float32 or better, differentiable; R = G * G, or H' * W' cells where grid is None.

        Raises:
            TypeError, ValueError: images of another type, shape or size than the network takes; head not fitted.
        """
        self._check_images(images)
        features = self.backbone(images.contiguous(memory_format=torch.channels_last))
        dense = _exact(self.head(features.maps.permute(0, 2, 3, 1))).permute(0, 3, 1, 2)
        if self.grid is not None:
            dense = resize_grid(dense, self.grid)
        if self.config.pooled == "grid_mean":
            return Regions.from_maps(dense)
        cells = dense.flatten(2).transpose(1, 2)
        return Regions.normalized(cells, _exact(self.head(features.pooled)), grid=(dense.shape[2], dense.shape[3]))

    def embed(
        self,
        images: Sequence[ImageLike] | ImageLike,
        *,
        batch_size: int = 64,
        workers: int | None = None,
        progress: ShowProgress = False,
    ) -> Regions:
        """Embed images, in their order, without gradient and in evaluation mode.

        Args:
            images: paths, PIL images, bytes, tensors or arrays (see `diml.data.images.ImageLike`); a lone one is
                taken as a list of one.
            batch_size: images at a time.
            workers: processes that decode. None: 0 on the CPU, where the network leaves them nothing to gain, and up
                to 8 next to an accelerator for 512 paths or more (scripts then need `if __name__ == "__main__":`).
            progress: show a progress bar with images per second; or a function that is told how many more are done.

        Returns:
            Regions of N images, float32, on the module's device.

        Raises:
            BadImageError: a image that cannot be read; `embed_checked` can leave such images out.
            ValueError: no images.

        Example:
            >>> embedder.embed(["a.jpg", "b.jpg"]).dense.shape  # doctest: +SKIP
            torch.Size([2, 16, 1280])
        """
        return self.embed_checked(images, batch_size=batch_size, workers=workers, progress=progress).regions

    def embed_checked(
        self,
        images: Sequence[ImageLike] | ImageLike,
        *,
        batch_size: int = 64,
        workers: int | None = None,
        progress: ShowProgress = False,
        on_bad_image: OnBadImage = "fail",
    ) -> Embedded:
        """Embed images as `embed` does, and say which ones: with "skip", those that cannot be read are left out.

        Raises:
            BadImageError: a image that cannot be read, with "fail".
            ValueError: no images, or none that can be read.
        """
        listed = as_list(images)
        dense = pooled = None
        grid: tuple[int, int] | None = None
        kept: list[Tensor] = []
        bad: list[BadImage] = []
        filled = 0
        for regions, batch in self.embed_batches(listed, batch_size, workers, progress, on_bad_image):
            bad += batch.bad
            if regions is None:
                continue
            if (
                dense is None or pooled is None
            ):  # all at once: joining the batches in the end would take twice the memory
                dense = regions.dense.new_empty(len(listed), *regions.dense.shape[1:])
                pooled = regions.pooled.new_empty(len(listed), regions.dim)
                grid = regions.grid
            rows = slice(filled, filled + len(regions))
            dense[rows], pooled[rows] = regions.dense, regions.pooled
            filled += len(regions)
            kept.append(batch.indices)
        if dense is None or pooled is None:
            reasons = "; ".join(f"{image.path}: {image.reason}" for image in bad[:3])
            raise ValueError(f"images: none of the {len(listed)} can be read ({reasons}); check the paths")
        return Embedded(Regions(dense[:filled], pooled[:filled], grid), torch.cat(kept), tuple(bad))

    def fit_head(
        self,
        images: Sequence[ImageLike] | ImageLike | Regions,
        *,
        batch_size: int = 64,
        workers: int | None = None,
        progress: ShowProgress = False,
        on_bad_image: OnBadImage = "fail",
    ) -> None:
        """Fit head "whiten" on the cells of images, which need no labels.

        `dim` becomes less, with a warning, when the images span fewer directions.

        Args:
            images: as in `embed`; or Regions of the same backbone and grid with head "identity", which give the
                same without embedding again.
            batch_size, workers, progress, on_bad_image: as in `embed_checked`.

        Raises:
            ValueError: another head than "whiten"; no images; Regions of another length of vectors.
        """
        if self.config.head != "whiten":
            raise ValueError(f"fit_head: only head 'whiten' is fitted, got {self.config.head!r}; 'linear' is trained")
        assert isinstance(self.head, WhitenHead)
        if isinstance(images, Regions):
            self.head.fit([images.dense.flatten(0, 1)])
        else:
            raw = Embedder(
                self.backbone,
                IdentityHead(self.backbone.channels),
                dataclasses.replace(self.config, head="identity", pooled="backbone"),
            )
            batches = raw.embed_batches(as_list(images), batch_size, workers, progress, on_bad_image)
            self.head.fit(regions.dense.flatten(0, 1) for regions, _ in batches if regions is not None)
        self.config = dataclasses.replace(self.config, dim=self.head.dim)

    def fingerprint(self) -> str:
        """Name this embedder by its settings and the values of its weights: 64 hexadecimal digits (sha256)."""
        digest = hashlib.sha256(json.dumps(self.config.to_dict(), sort_keys=True).encode())
        for name, value in sorted(self.state_dict().items()):
            digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
            plain = value.detach().cpu().contiguous().reshape(-1)
            digest.update(plain.view(torch.uint8).numpy())
        return digest.hexdigest()

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write `embedder.json` and `model.safetensors` into a folder of their own, whole or not at all.

        `load_embedder(folder)` gives an equal embedder. A folder saved before is replaced.

        Raises:
            FileExistsError: the folder exists and has something else in it.
        """
        from diml.models.folder import save_embedder

        save_embedder(self, Path(folder))

    def autocast_type(self) -> torch.dtype | None:
        """What `embed` computes in on the present device: bfloat16, float16, or None for float32 throughout."""
        return autocast_type(self.config.precision, self.device)

    def embed_batches(
        self,
        images: Sequence[ImageLike],
        batch_size: int,
        workers: int | None,
        progress: ShowProgress,
        on_bad_image: OnBadImage,
    ) -> Iterator[tuple[Regions | None, LoadedBatch]]:
        """Embed images as `embed_checked` does, but batch by batch, for more images than memory holds.

        Yields:
            The regions of a batch, None where none of its images can be read, and which images these are.
        """
        batches = iterate_batches(
            images,
            self.preprocess,
            batch_size=batch_size,
            workers=self._workers(len(images)) if workers is None else workers,
            on_bad_image=on_bad_image,
        )
        with image_progress(len(images), show=progress) as advance:
            for batch in batches:
                yield (self._infer(batch.images) if len(batch.images) else None), batch
                advance(len(batch.images) + len(batch.bad))

    def _infer(self, images: Tensor) -> Regions:
        low = self.autocast_type()
        try:
            with inference(self, self.device, low):
                return self(images.to(self.device))  # type: ignore[no-any-return]
        except ValueError as error:
            if low is not None:
                error.add_note(f"The network ran in {low}, in which values may overflow; try precision='float32'.")
            raise

    def _workers(self, images: int) -> int:
        if self.device.type == "cpu" or images < _WORTH_WORKERS:
            return 0
        return min(8, os.cpu_count() or 1)

    def _check_images(self, images: Tensor) -> None:
        if not isinstance(images, Tensor) or not images.is_floating_point():
            got = str(images.dtype) if isinstance(images, Tensor) else type(images).__name__
            raise TypeError(f"images: need a float tensor (B, 3, H, W), got {got}; embedder.embed takes images")
        if images.ndim != 4 or images.shape[1] != 3:
            raise ValueError(f"images: need shape (B, 3, H, W), got {tuple(images.shape)}; add a batch axis?")
        size = self.backbone.image_size
        if size is not None and images.shape[2:] != (size, size):
            got = f"{images.shape[2]} x {images.shape[3]}"
            raise ValueError(f"images: {self.config.backbone!r} takes {size} x {size} pixels only, got {got}")


def _exact(values: Tensor) -> Tensor:
    return values if values.dtype == torch.float64 else values.float()
