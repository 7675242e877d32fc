"""From images to `Regions`: backbone, head, grid.

Legend: B images of a batch, N images, C channels of the backbone, D of the embedding, H x W cells, R regions.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from diml.data.images import BadImage
from diml.data.loading import LoadedBatch, iterate_batches
from diml.data.transforms import Preprocess
from diml.matching import Matcher, Regions
from diml.matching.regions import NO_MASSES
from diml.models.backbones import Backbone, Features, autocast_type, check_patches, inference, patch_side
from diml.models.config import EmbedderConfig, PooledFrom
from diml.models.decomposition import coarsest, found_no_mean, not_a_mean, pooled_shares
from diml.models.folder import write_folder
from diml.models.folding import WORTH_FOLDING, folded
from diml.models.grids import resize_grid
from diml.models.heads import Head, IdentityHead, WhitenHead, build_head
from diml.models.inputs import Images, as_images, count_images, loader_batches
from diml.models.modules import check_rebuilds, import_path, is_import_path, wrap_module
from diml.models.rollout import features_with_masses, why_massless
from diml.progress import ShowProgress, progress_bar

OnBadImage = Literal["fail", "skip"]

#: Number of images from which starting worker processes to decode them pays off next to an accelerator.
_WORTH_WORKERS: Final = 512
#: Regions that a head is fitted on are converted to float64 in parts of this many.
_FITTED_TOGETHER: Final = 8192
#: Settings that the same backbone and head can be used with.
_FREE: Final = ("grid", "preprocess", "pooled", "precision", "matcher", "rollout_blocks")


@dataclass(frozen=True, eq=False, repr=False)
class Embedded:
    """Regions of the images that could be read.

    Attributes:
        regions: N' images, in the order of the images.
        kept: (N',) int64, on the CPU: index of each of them among the images, ascending.
        bad: the others, in order, with the reason.
    """

    regions: Regions
    kept: Tensor
    bad: tuple[BadImage, ...]

    def __post_init__(self) -> None:
        assert len(self.regions) == len(self.kept), (len(self.regions), len(self.kept))

    def __repr__(self) -> str:
        return f"Embedded({len(self.kept):,} images, {len(self.bad):,} bad; {self.regions!r})"


class Embedder(nn.Module):
    """Turns images into `Regions`; usually built by `diml.load_embedder`.

    Called with preprocessed images (B, 3, H, W), it is an ordinary differentiable module; `embed` takes images of any
    kind. It runs on the device of its weights: `embedder.to("cuda")`.

    Args:
        backbone: a network of your own as an `nn.Module` that returns a feature map, (N, C, H, W) or (N, H, W, C), or
            tokens (N, T, C), as found by a trial run; or a `Backbone`. `load_embedder(module, ...)` has more options.
        head: embeds the pooled vector and every cell alike; default "identity".
        config: grid, pooling, precision, preprocessing, matcher; its `dim` is set to that of the head. Default for a
            module: 4 x 4 regions, ImageNet preprocessing at 224 pixels.

    Raises:
        ValueError: the layout of the module's features cannot be determined, the preprocessing gives another image
            size than the backbone accepts, or the matcher needs masses of the regions that the backbone does not give.

    Source: Zhao et al., ICCV 2021, section 3.2; docs/method.md, "From an image to regions".

    Example:
        >>> embedder = load_embedder("mobilenetv2_100")  # doctest: +SKIP
        >>> match(embedder.embed(["a.jpg"]), embedder.embed(["b.jpg"])).score  # doctest: +SKIP
        >>> embedder = Embedder(torchvision.models.vgg16().features)  # doctest: +SKIP
    """

    def __init__(self, backbone: nn.Module, head: Head | None = None, config: EmbedderConfig | None = None) -> None:
        super().__init__()
        if not isinstance(backbone, nn.Module):
            raise TypeError(f"backbone: need an nn.Module, got {type(backbone).__name__}; load_embedder takes names")
        if config is None:
            config = EmbedderConfig(backbone=import_path(backbone), preprocess=Preprocess(), dim=1)
        size = config.preprocess.size
        if not isinstance(backbone, Backbone):
            backbone = wrap_module(
                backbone,
                config.backbone,
                size=size,
                layout=config.layout,
                prefix=config.prefix_tokens,
                token_pooling=config.token_pooling,
            )
        if backbone.image_size not in (None, size):
            raise ValueError(
                f"preprocess: {config.backbone!r} was built for images of {backbone.image_size} pixels, got size "
                f"{size}; load it by its name for another size"
            )
        check_patches(backbone.net, config.backbone, size)
        self.backbone = backbone
        self.head = IdentityHead(backbone.channels) if head is None else head
        self.config = dataclasses.replace(config, dim=self.head.dim)
        self._rebuilds_as: str | None = None
        self.check_matcher(self.config.matcher)
        _use_channels_last(self)

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
        """From an image to the network's input."""
        return self.config.preprocess

    @property
    def matcher(self) -> Matcher:
        """How its regions are compared, unless another matcher is given."""
        return self.config.matcher

    @property
    def device(self) -> torch.device:
        """Device of the weights, and of the regions."""
        return self._reference().device

    def __repr__(self) -> str:
        config, grid = self.config, "own cells" if self.grid is None else f"grid {self.grid}"
        return f"Embedder({config.backbone}, head {config.head}, {grid}, dim {self.dim}, on {self.device})"

    def forward(self, images: Tensor, *, shares: bool = False, masses: bool = False) -> Regions:
        """Embed preprocessed images.

        Args:
            images: (B, 3, H, W) float, normalised, on the module's device.
            shares: also compute the shares of the pooled vector, as in `embed`; without gradient.
            masses: also roll out the attention of a plain vision transformer, as in `embed`; without gradient.

        Returns:
            Regions of B images, float32 or better, differentiable; R = G * G, or H' * W' cells where grid is None.

        Raises:
            TypeError, ValueError: a type, shape or size of images that the network does not accept; head not fitted.
        """
        return self._regions(self.backbone, images, shares=shares, masses=masses)

    def _regions(self, backbone: Backbone, images: Tensor, *, shares: bool, masses: bool) -> Regions:
        self._check_images(images)
        images = images.contiguous(memory_format=torch.channels_last)
        if masses:
            features, massless = features_with_masses(backbone, images, self.config.rollout_blocks)
        else:
            features, massless = backbone(images), NO_MASSES
        own = features.masses if masses else None
        embedded = self.head(features.maps.permute(0, 2, 3, 1))
        maps = dense = _exact(embedded).permute(0, 3, 1, 2)
        if self.grid is not None:
            dense = resize_grid(maps, self.grid)
            own = None if own is None else resize_grid(own.unsqueeze(1), self.grid).squeeze(1)
        if self.config.pooled == "grid_mean":
            return Regions.from_maps(dense, shares=shares, masses=own, massless=massless)
        cells, grid = dense.flatten(2).transpose(1, 2), (dense.shape[2], dense.shape[3])
        weighed: dict[str, Any] = {"masses": None if own is None else own.flatten(1), "massless": massless}
        pooled = _exact(self.head(features.pooled))
        if not shares:
            return Regions.normalized(cells, pooled, grid, **weighed)
        found, why = self._shares(features, maps, pooled, embedded.dtype)
        return Regions.normalized(cells, pooled, grid, shares=found, undivided=why, **weighed)

    def embed(
        self,
        images: Images,
        *,
        batch_size: int = 64,
        workers: int | None = None,
        progress: ShowProgress = False,
        shares: bool = False,
    ) -> Regions:
        """Embed images, in their order, without gradient and in evaluation mode.

        Args:
            images: paths, PIL images, bytes, tensors or arrays (see `diml.data.ImageLike`), one or a list; an
                `ImageSet` or another map-style data set of images or (image, label); or a `DataLoader` of already
                preprocessed float tensors (B, 3, H, W) or (tensor, label), with batches and workers of its own.
            batch_size: images per batch.
            workers: processes that decode. None: 0 on the CPU, which the network occupies fully, and up to 8 next to an
                accelerator for 512 images or more (scripts then need `if __name__ == "__main__":`).
            progress: show a progress bar; or a function that is called with the number of images finished since its
                last call.
            shares: also compute the share of each region of the pooled vector (`Regions.shares`), which explanations
                need to divide the pooled cosine among pairs of regions; doubles the memory. Where the backbone does not
                pool by the mean of its cells, there are none, and `Regions.undivided` says why.

        Returns:
            Regions of N images, float32, on the module's device. Those of a plain vision transformer of timm have
            `masses` (attention rollout over the last `rollout_blocks` blocks); of others, `massless` says why not.

        Raises:
            BadImageError: an image that cannot be read; `embed_checked` can skip such images.
            TypeError, ValueError: no images, or a loader of something else.

        Example:
            >>> embedder.embed(["a.jpg", "b.jpg"]).dense.shape  # doctest: +SKIP
            torch.Size([2, 16, 1280])
        """
        found = self.embed_checked(images, batch_size=batch_size, workers=workers, progress=progress, shares=shares)
        return found.regions

    def embed_checked(
        self,
        images: Images,
        *,
        batch_size: int = 64,
        workers: int | None = None,
        progress: ShowProgress = False,
        on_bad_image: OnBadImage = "fail",
        shares: bool = False,
    ) -> Embedded:
        """Embed images as `embed` does and report which; with "skip", those that cannot be read are left out.

        Raises:
            BadImageError: an image that cannot be read, with "fail".
            TypeError, ValueError: no images, or none that can be read.
        """
        given = images if isinstance(images, DataLoader) else as_images(images)
        rows = _Rows(None if isinstance(given, DataLoader) else len(given))
        kept: list[Tensor] = []
        bad: list[BadImage] = []
        for regions, batch in self.embed_batches(given, batch_size, workers, progress, on_bad_image, shares):
            bad += batch.bad
            if regions is not None:
                rows.add(regions)
                kept.append(batch.indices)
        if not kept:
            reasons = "; ".join(f"{image.path}: {image.reason}" for image in bad[:3])
            raise ValueError(f"images: none of the {len(bad)} can be read ({reasons}); check the paths")
        return Embedded(rows.regions(), torch.cat(kept), tuple(bad))

    def fit_head(
        self,
        images: Images | Regions,
        *,
        batch_size: int = 64,
        workers: int | None = None,
        progress: ShowProgress = False,
        on_bad_image: OnBadImage = "fail",
    ) -> None:
        """Fit head "whiten" on the cells of images, which need no labels.

        `dim` is reduced, with a warning, when the images span fewer directions.

        Args:
            images: as in `embed`; or Regions of the same backbone and grid with head "identity", which give the
                same result without embedding again.
            batch_size, workers, progress, on_bad_image: as in `embed_checked`.

        Raises:
            ValueError: another head than "whiten"; no images; Regions of another vector length.
        """
        if self.config.head != "whiten":
            raise ValueError(f"fit_head: only head 'whiten' is fitted, got {self.config.head!r}; 'linear' is trained")
        assert isinstance(self.head, WhitenHead)
        if isinstance(images, Regions):
            self.head.fit(torch.split(images.dense.flatten(0, 1), _FITTED_TOGETHER))
        else:
            raw = self.without_head(pooled="backbone")
            batches = raw.embed_batches(images, batch_size, workers, progress, on_bad_image)
            self.head.fit(regions.dense.flatten(0, 1) for regions, _ in batches if regions is not None)
        self.config = dataclasses.replace(self.config, dim=self.head.dim)

    def with_settings(self, **changes: Any) -> Embedder:
        """Return an embedder that shares this one's weights and differs in settings.

        Args:
            changes: grid, preprocess, pooled, precision, matcher or rollout_blocks, as in `EmbedderConfig`.

        Raises:
            TypeError: another setting, which belongs to the weights.
            ValueError: a value is out of its range.

        Example:
            >>> finer = embedder.with_settings(grid=7, matcher=Matcher(epsilon=0.02))  # doctest: +SKIP
        """
        fixed = [name for name in changes if name not in _FREE]
        if fixed:
            raise TypeError(f"{', '.join(fixed)}: need one of {', '.join(_FREE)}; load or build an embedder for others")
        changed = Embedder(self.backbone, self.head, dataclasses.replace(self.config, **changes))
        changed.training = self.training
        return changed

    def without_head(self, *, pooled: PooledFrom | None = None) -> Embedder:
        """Return an embedder with head "identity" in place of its own, which shares the backbone.

        Args:
            pooled: what its pooled vector is, where it is not to be that of this embedder; see `EmbedderConfig`.
        """
        config = dataclasses.replace(self.config, head="identity", pooled=pooled or self.config.pooled)
        bare = Embedder(self.backbone, IdentityHead(self.backbone.channels), config)
        bare.training = self.training
        return bare

    def with_whitening(self, dim: int) -> Embedder:
        """Return an embedder with a head "whiten" that is not fitted yet in place of its own; it shares the backbone.

        Args:
            dim: D that is wanted; at most the C of the backbone are taken.
        """
        channels = self.backbone.channels
        head = build_head("whiten", channels, min(dim, channels)).to(self.device)
        return Embedder(self.backbone, head, dataclasses.replace(self.config, head="whiten")).eval()

    @property
    def massless(self) -> str:
        """Why its regions have no masses, so that weights "rollout" are impossible; empty where they have."""
        return why_massless(self.backbone, self.config.rollout_blocks)

    def check_matcher(self, matcher: Matcher) -> None:
        """Raise ValueError where its regions cannot be compared by a matcher, before any image is read."""
        if matcher.weights == "rollout" and self.massless:
            raise ValueError(
                f"weights: 'rollout' needs the masses of the regions, and {self.config.backbone} gives none: "
                f"{self.massless}; use 'cross_correlation' or 'uniform', or a plain vision transformer of timm"
            )

    def fingerprint(self) -> str:
        """Identify the regions that this embedder gives by its settings and weights: 64 hexadecimal digits (sha256).

        The matcher is not part of it: regions do not depend on how they are compared.
        """
        settings = {name: value for name, value in self.config.to_dict().items() if name != "matcher"}
        digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
        for name, value in sorted(self.state_dict().items()):
            digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
            plain = value.detach().cpu().contiguous().reshape(-1)
            digest.update(plain.view(torch.uint8).numpy())
        return digest.hexdigest()

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write `embedder.json` and `model.safetensors` atomically into a folder of their own.

        `load_embedder(folder)` returns an equal embedder, including its matcher. A folder saved before is replaced. For
        a module of your own, the import path of its class or factory is saved, after a check that it builds the same
        network; its code is not saved.

        Raises:
            FileExistsError: the folder exists and contains something else.
            ValueError: a module of your own cannot be imported and built again.
        """
        config = self.config
        if is_import_path(config.backbone):
            signature = repr((config.backbone, config.factory_options, config.preprocess.size, self._shapes()))
            if signature != self._rebuilds_as:
                check_rebuilds(self.backbone, config.backbone, config.factory_options, config.preprocess.size)
                self._rebuilds_as = signature
        write_folder(Path(folder), config, self.state_dict())

    @classmethod
    def from_pretrained(cls, name_or_path: str | os.PathLike[str], **settings: Any) -> Embedder:
        """Load an embedder from the Hugging Face hub: `load_embedder("hf-hub:OWNER/NAME")` by the name people type.

        Args:
            name_or_path: OWNER/NAME or OWNER/NAME@REVISION of a model on the hub, unless there is a folder of this
                name; or anything else that `load_embedder` takes.
            settings: further arguments of `load_embedder`, such as `grid` or `matcher`.

        Raises:
            WeightsError: it is neither cached nor reachable; the message has the remedies.
            HubError: the hub does not have it, or not for the token of this machine.
            TypeError, ValueError, FileNotFoundError: as `load_embedder`.

        Example:
            >>> embedder = Embedder.from_pretrained("me/groceries")  # doctest: +SKIP
        """
        from diml.models.hub import HUB
        from diml.models.loading import load_embedder
        from diml.models.published import is_repository

        name = os.fspath(name_or_path)
        on_hub = is_repository(name.partition("@")[0]) and not Path(name).exists()
        return load_embedder(HUB + name if on_hub else name_or_path, **settings)

    def push_to_hub(
        self,
        repo_id: str,
        *,
        folder: str | os.PathLike[str] | None = None,
        private: bool = False,
        license: str | None = None,  # noqa: A002 - the hub's word
        token: str | None = None,
    ) -> str:
        """Save this embedder on the Hugging Face hub, with a model card; `load_embedder("hf-hub:OWNER/NAME")` loads it.

        Args:
            repo_id: OWNER/NAME. It is created where it does not exist; files of an earlier push are replaced.
            folder: that this embedder was saved in. That of a run gives the card its training and test results; a
                calibration in it is pushed too, and a README.md in it is the card.
            private: create it such that only the owner can see it.
            license: identifier of the hub for the card, such as "mit"; by default the card names none.
            token: of the hub, with write access; by default `HF_TOKEN`, or the one that is stored on this machine.

        Returns:
            The address of the commit.

        Raises:
            HubError: no network, no token or none that may write there, or `private` for what is public already.
            ValueError: `repo_id` or `license` has another form, or `folder` holds another embedder.

        Example:
            >>> load_embedder("runs/mine").push_to_hub("me/groceries", folder="runs/mine")  # doctest: +SKIP
        """
        from diml.models.published import push

        source = None if folder is None else Path(folder)
        return push(self, repo_id, source=source, private=private, licence=license, token=token)

    def export_onnx(self, path: str | os.PathLike[str]) -> float:
        """Write backbone, head and grid to an ONNX file, for programs without torch; needs the extra `onnx`.

        The file takes `images` (B, 3, size, size), float32, preprocessed as its metadata say in words and numbers, and
        returns `pooled` (B, D) and `dense` (B, R, D), as `forward` does in float32; B is free. It is computed by
        onnxruntime and compared with this network before it gets its name; it is written as a whole or not at all.
        Masses and shares of the regions are not part of it.

        Args:
            path: the file, NAME.onnx, which is replaced when it exists.

        Returns:
            The largest difference between an output of the file and one of this network, at most 1e-4.

        Raises:
            ValueError: another ending; the network cannot be exported, or its graph does not compute the same.
            MissingExtraError: onnx, onnxruntime or onnxscript is not installed.
            OSError: the file cannot be written.

        Example:
            >>> embedder.export_onnx("embedder.onnx")  # doctest: +SKIP
            4.8e-07
        """
        from diml.models.onnx_file import write_onnx

        return write_onnx(self, Path(path))

    def autocast_type(self) -> torch.dtype | None:
        """The dtype in which `embed` computes on the present device: bfloat16, float16, or None for float32."""
        return autocast_type(self.config.precision, self.device)

    def embed_batches(
        self,
        images: Images,
        batch_size: int,
        workers: int | None,
        progress: ShowProgress,
        on_bad_image: OnBadImage,
        shares: bool = False,
    ) -> Iterator[tuple[Regions | None, LoadedBatch]]:
        """Embed images as `embed_checked` does, but batch by batch, for more images than fit into memory.

        Yields:
            The regions of a batch, None where none of its images can be read, and the batch they come from.
        """
        if isinstance(images, DataLoader):
            total, batches = count_images(images), loader_batches(images)
        else:
            listed = as_images(images)
            total = len(listed)
            batches = iterate_batches(
                listed,
                self.preprocess,
                batch_size=batch_size,
                workers=self._workers(total) if workers is None else workers,
                on_bad_image=on_bad_image,
            )
        backbone = self._folded() if total >= WORTH_FOLDING else None
        with progress_bar(total, show=progress) as advance:
            for batch in batches:
                yield (self._infer(batch.images, shares, backbone) if len(batch.images) else None), batch
                advance(len(batch.images) + len(batch.bad))

    def _folded(self) -> Backbone | None:
        """The backbone as it is run for many images, where that is another one."""
        low = self.autocast_type()
        if low is not None or self._compiled_call_impl is not None:
            return None
        with inference(self, self.device, low):
            backbone = folded(self.backbone, self.preprocess.size)
        return None if backbone is self.backbone else backbone

    def _infer(self, images: Tensor, shares: bool, backbone: Backbone | None) -> Regions:
        low = self.autocast_type()
        try:
            with inference(self, self.device, low):
                given = images.to(self.device, self._reference().dtype)
                if backbone is not None:
                    return self._regions(backbone, given, shares=shares, masses=True)
                return self(given, shares=shares, masses=True)  # type: ignore[no-any-return]
        except ValueError as error:
            if low is not None:
                error.add_note(f"The network ran in {low}, in which values may overflow; try precision='float32'.")
            raise

    def _shares(
        self, features: Features, maps: Tensor, pooled: Tensor, computed: torch.dtype
    ) -> tuple[Tensor | None, str]:
        """Shares of the pooled vectors, which the head made in dtype `computed`; or why there are none."""
        name = self.config.backbone
        why = not_a_mean(self.backbone, name)
        if why:
            return None, why
        precision = coarsest(features.maps.dtype, features.pooled.dtype, computed)
        found = pooled_shares(maps, pooled, self.grid, precision)
        return found, "" if found is not None else found_no_mean(features, name, self.config.head)

    def _reference(self) -> Tensor:
        """A weight of the backbone, for device and dtype; modules without any run on the CPU in float32."""
        tensors = itertools.chain(self.backbone.parameters(), self.backbone.buffers())
        return next((tensor for tensor in tensors if tensor.is_floating_point()), torch.zeros(0))

    def _shapes(self) -> list[tuple[str, tuple[int, ...]]]:
        return [(name, tuple(value.shape)) for name, value in self.backbone.state_dict().items()]

    def _workers(self, images: int) -> int:
        if self.device.type == "cpu" or images < _WORTH_WORKERS:
            return 0
        return min(8, os.cpu_count() or 1)

    def _check_images(self, images: Tensor) -> None:
        if not isinstance(images, Tensor) or not images.is_floating_point():
            got = str(images.dtype) if isinstance(images, Tensor) else type(images).__name__
            raise TypeError(f"images: need a float tensor (B, 3, H, W), got {got}; embedder.embed takes images")
        if images.ndim != 4 or images.shape[1] != 3:
            raise ValueError(f"images: need shape (B, 3, H, W), got {tuple(images.shape)}; is the batch axis missing?")
        size = self.backbone.image_size
        if size is not None and images.shape[2:] != (size, size):
            got = f"{images.shape[2]} x {images.shape[3]}"
            raise ValueError(f"images: {self.config.backbone!r} takes {size} x {size} pixels only, got {got}")
        side = patch_side(self.backbone.net)
        if images.shape[2] % side or images.shape[3] % side:
            name, got = self.config.backbone, f"{images.shape[2]} x {images.shape[3]}"
            raise ValueError(f"images: {name!r} cuts images into patches of {side} x {side} pixels, got {got}")


class _Rows:
    """Regions of batches, joined: where their number is known, in memory allocated once.

    Joining the batches at the end would need twice the memory.
    """

    def __init__(self, count: int | None) -> None:
        self.count = count
        self.filled = 0
        self.parts: list[Regions] = []

    def add(self, batch: Regions) -> None:
        """Append the regions of a batch."""
        if self.count is None:
            self.parts.append(batch)
            return
        if not self.parts:
            dense = batch.dense.new_empty(self.count, *batch.dense.shape[1:])
            pooled = batch.pooled.new_empty(self.count, batch.dim)
            shares = None if batch.shares is None else torch.empty_like(dense)
            masses = None if batch.masses is None else batch.masses.new_empty(self.count, batch.num_regions)
            kept = (shares, batch.undivided, masses, batch.massless)
            self.parts.append(Regions._trusted(dense, pooled, batch.grid, *kept))
        rows, joined = slice(self.filled, self.filled + len(batch)), self.parts[0]
        joined.dense[rows], joined.pooled[rows] = batch.dense, batch.pooled
        if joined.masses is not None and batch.masses is not None:
            joined.masses[rows] = batch.masses
        if joined.shares is not None and batch.shares is not None:
            joined.shares[rows] = batch.shares
        elif joined.shares is not None:  # one batch without shares leaves none
            kept = (None, batch.undivided, joined.masses, joined.massless)
            self.parts[0] = Regions._trusted(joined.dense, joined.pooled, joined.grid, *kept)
        self.filled += len(batch)

    def regions(self) -> Regions:
        """All regions so far, validated."""
        joined = Regions.cat(self.parts) if self.count is None else self.parts[0]
        rows = slice(None) if self.count is None else slice(self.filled)
        shares, masses = (None if part is None else part[rows] for part in (joined.shares, joined.masses))
        kept = (shares, joined.undivided, masses, joined.massless)
        return Regions(joined.dense[rows], joined.pooled[rows], joined.grid, *kept)


def _exact(values: Tensor) -> Tensor:
    return values if values.dtype == torch.float64 else values.float()


def _use_channels_last(module: nn.Module) -> None:
    """Lay the weights of convolutions out such that they are faster, on the CPU too; their values do not change.

    `Module.to(memory_format=...)` fails for networks with weights of five axes.
    """
    for tensor in itertools.chain(module.parameters(), module.buffers()):
        if tensor.ndim == 4:
            tensor.data = tensor.data.contiguous(memory_format=torch.channels_last)
