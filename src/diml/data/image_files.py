"""Opening image files: which formats are allowed, and which files are opened at all.

`opened_image` is the only place in the package that lets Pillow choose a decoder, for files and uploads alike. A format
is allowed if Pillow decodes it itself, in compiled code, and knows the size of the image before it decodes. Others are
not: EPS and WMF run other programs, IPTC opens what it contains as any format, BUFR, GRIB and HDF5 are handed to
plug-ins, ICO and ICNS decode an image of unknown size when opened, FITS unpacks any number of bytes, and BLP, DDS,
FTEX, QOI and XPM are decoded in Python, which takes minutes for a large image.
"""

from __future__ import annotations

import io
import os
import stat
import threading
import unicodedata
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from typing import Final

from PIL import Image, UnidentifiedImageError

#: Allowed formats by Pillow's names, in the order in which they are tried -> endings of their files. TGA has no
#: signature, so that almost any file could be one, and comes last.
IMAGE_FORMATS: Final[Mapping[str, tuple[str, ...]]] = {
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif", ".mpo"),
    "PNG": (".png", ".apng"),
    "WEBP": (".webp",),
    "GIF": (".gif",),
    "BMP": (".bmp",),
    "DIB": (".dib",),
    "TIFF": (".tif", ".tiff"),
    "PPM": (".ppm", ".pgm", ".pbm", ".pnm", ".pfm"),
    "JPEG2000": (".jp2", ".j2k", ".jpc", ".jpf", ".jpx", ".j2c"),
    "AVIF": (".avif", ".avifs"),
    "HEIF": (".heic", ".heif", ".hif"),
    "PSD": (".psd",),
    "SGI": (".sgi", ".rgb", ".rgba", ".bw"),
    "SUN": (".ras",),
    "PCX": (".pcx",),
    "TGA": (".tga", ".icb", ".vda", ".vst"),
}

#: Endings of the files that are listed as images, in lower case.
IMAGE_ENDINGS: Final = frozenset(ending for endings in IMAGE_FORMATS.values() for ending in endings)

MAX_PIXELS: Final = 178_956_970  # Pillow's own limit above which it raises an error
MAX_BYTES: Final = 2 * 2**30  # of one file: more than an uncompressed image of that many pixels has in any usual mode

_HEIF_BRANDS: Final = (b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"mif1", b"msf1")
_AVIF_BRANDS: Final = (b"avif", b"avis")
_TILE_WIDTH, _TILE_LENGTH = 322, 323  # tags of TIFF


class BadImageError(ValueError):
    """An image cannot be used: `path` is its path, or a name such as `<image 3>`, and `reason` the cause."""

    def __init__(self, path: str, reason: str) -> None:
        # The base class gets both arguments so that the error can be unpickled from a worker process.
        super().__init__(path, reason)
        self.path = path
        self.reason = reason

    def __str__(self) -> str:
        return f"{printable(self.path)}: {self.reason}"


def printable(name: str | os.PathLike[str]) -> str:
    r"""Return a file name as text that can be written anywhere: bytes that are not UTF-8 appear as `\xff`.

    Python represents such bytes by lone surrogates, which no file, terminal or database in UTF-8 takes. Control
    characters, such as ends of lines and the escapes of terminals, are written out as well.

    Example:
        >>> printable("caf\udce9.jpg")
        'caf\\xe9.jpg'
    """
    text = os.fspath(name)
    if text.isprintable():
        return text
    if _has_surrogates(text):
        text = text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return "".join(ascii(sign)[1:-1] if unicodedata.category(sign) == "Cc" else sign for sign in text)


def _has_surrogates(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return True
    return False


def opened_file(path: str | os.PathLike[str], *, name: str | None = None) -> io.BufferedReader:
    """Open a regular file for reading; pipes, devices and sockets, which could block for ever, are never opened.

    The file is checked before it is opened, and again through what was opened, in case it was replaced in between;
    it is opened without waiting for a writer.

    Args:
        path: of the file; links are followed.
        name: for messages; default the path.

    Raises:
        BadImageError: it is a folder, not a regular file, or cannot be opened.
        FileNotFoundError: it does not exist.
    """
    name = os.fspath(path) if name is None else name
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOCTTY", 0) | getattr(os, "O_BINARY", 0)
    try:
        _require_regular(os.stat(path), name)  # noqa: PTH116 - as bytes of the name that no Path can hold
        descriptor = os.open(path, flags)
        try:
            _require_regular(os.fstat(descriptor), name)
            return os.fdopen(descriptor, "rb")
        except BaseException:
            os.close(descriptor)
            raise
    except FileNotFoundError as error:
        raise FileNotFoundError(f"image {printable(name)}: no such file") from error
    except BadImageError:
        raise
    except (OSError, ValueError) as error:  # no permission, a name too long, a zero byte in the name
        raise BadImageError(name, f"cannot be opened ({_message(error)})") from error


def read_file(path: str | os.PathLike[str], *, name: str | None = None, max_bytes: int = MAX_BYTES) -> bytes:
    """Return the bytes of a regular file; otherwise as `opened_file`.

    Raises:
        BadImageError: as `opened_file`; it has more than `max_bytes` bytes; or reading fails.
        FileNotFoundError: it does not exist.
    """
    name = os.fspath(path) if name is None else name
    with opened_file(path, name=name) as file:
        try:
            content = file.read(max_bytes + 1)
        except OSError as error:
            raise BadImageError(name, f"cannot be read ({_message(error)})") from error
    _check_length(len(content), name, max_bytes)
    return content


@contextmanager
def opened_image(
    image: str | os.PathLike[str] | bytes,
    *,
    name: str | None = None,
    max_pixels: int = MAX_PIXELS,
    max_bytes: int = MAX_BYTES,
) -> Iterator[Image.Image]:
    """Open an image file of an allowed format, without decoding it yet; for use in a `with` statement.

    Its number of pixels is checked before anything is decoded. What decoders raise inside the `with` statement becomes
    BadImageError.

    Args:
        image: path, or the bytes of a file.
        name: for messages; default the path, or `<image>`.
        max_pixels: images with more pixels are rejected; Pillow's own limit (178,956,970) also applies.
        max_bytes: files with more bytes are rejected.

    Raises:
        BadImageError: it cannot be opened, is of no allowed format, too large, empty or damaged.
        FileNotFoundError: it does not exist.
    """
    if name is None:
        name = "<image>" if isinstance(image, bytes) else os.fspath(image)
    with io.BytesIO(image) if isinstance(image, bytes) else opened_file(image, name=name) as stream:
        length = len(image) if isinstance(image, bytes) else os.fstat(stream.fileno()).st_size
        if length == 0:
            raise BadImageError(name, "is empty (0 bytes)")
        _check_length(length, name, max_bytes)
        with decoding_errors(name), _pillow_is_quiet, Image.open(stream, formats=_formats(stream)) as opened:
            check_pixels(opened.size, name, max_pixels)
            _check_tiles(opened, name, max_pixels)
            yield opened


def check_pixels(size: tuple[int, int], name: str, max_pixels: int) -> None:
    """Raise BadImageError unless an image has pixels, and no more than allowed."""
    width, height = size
    if width * height > max_pixels:
        raise BadImageError(name, f"has {width} x {height} pixels, more than the {max_pixels:,} allowed")
    if width * height == 0:
        raise BadImageError(name, f"has no pixels ({width} x {height})")


def _require_regular(status: os.stat_result, name: str) -> None:
    if stat.S_ISDIR(status.st_mode):
        raise BadImageError(name, "is a folder, not an image")
    if not stat.S_ISREG(status.st_mode):
        raise BadImageError(name, "is not a regular file")


def _check_length(length: int, name: str, max_bytes: int) -> None:
    if length > max_bytes:
        raise BadImageError(name, f"has {length:,} bytes, more than the {max_bytes:,} allowed")


def _check_tiles(image: Image.Image, name: str, max_pixels: int) -> None:
    """A small TIFF can be stored in tiles that are far larger than the image, which are decoded as a whole."""
    tags = getattr(image, "tag_v2", {})
    width, height = tags.get(_TILE_WIDTH), tags.get(_TILE_LENGTH)
    if isinstance(width, int) and isinstance(height, int) and width * height > max_pixels:
        raise BadImageError(name, f"is stored in tiles of {width} x {height} pixels, more than {max_pixels:,}")


@contextmanager
def decoding_errors(name: str) -> Iterator[None]:
    """Raise errors of decoders as BadImageError."""
    try:
        yield
    except BadImageError:
        raise
    except MemoryError as error:
        raise BadImageError(name, "needs more memory than is available") from error
    except Image.DecompressionBombError as error:
        raise BadImageError(name, f"is too large to be decoded safely ({_message(error)})") from error
    except UnidentifiedImageError as error:
        raise BadImageError(name, "is not an image of a known format") from error
    except _NeedsDecoderError as error:
        raise BadImageError(name, str(error)) from error
    except Exception as error:  # decoders raise almost any type on damaged files
        raise BadImageError(name, f"cannot be decoded ({_message(error)})") from error


class _NeedsDecoderError(Exception):
    """A format that is allowed and that cannot be decoded here; the message says what to install."""


def _formats(stream: io.BufferedIOBase) -> tuple[str, ...]:
    """The formats to try, given the first bytes of a file."""
    known, start = _pillow_formats(), stream.read(12)
    stream.seek(0)
    brand = start[8:12] if start[4:8] == b"ftyp" else b""
    if brand in _HEIF_BRANDS and _heif_is_installed():
        return ("HEIF", *known)
    if brand in _HEIF_BRANDS and not (brand in (b"mif1", b"msf1") and "AVIF" in known):
        raise _NeedsDecoderError("is HEIF; to read it, pip install 'diml[heif]'")
    if brand in _AVIF_BRANDS and "AVIF" not in known:
        raise _NeedsDecoderError("is AVIF; to read it, install Pillow 11.3 or later")
    return known


@cache
def _pillow_formats() -> tuple[str, ...]:
    Image.init()  # Pillow knows a format once its module is imported
    return tuple(kind for kind in IMAGE_FORMATS if kind in Image.OPEN and kind != "HEIF")


@cache
def _heif_is_installed() -> bool:
    try:
        from pillow_heif import register_heif_opener
    except ImportError:
        return False
    register_heif_opener(thumbnails=False)
    return True


class _PillowIsQuiet:
    """No warnings of Pillow while images are decoded: about many pixels, which `max_pixels` decides on, and about
    malformed metadata, which is harmless; the caller may have turned warnings into errors.

    The filters of `warnings` belong to the whole process. Threads that decode at the same time therefore share one
    change of them, which the last one takes back; two changes could be taken back in the wrong order, for ever.
    """

    def __init__(self) -> None:
        self._lock, self._users = threading.Lock(), 0
        self._filters = warnings.catch_warnings()

    def __enter__(self) -> None:
        with self._lock:
            if self._users == 0:
                self._filters = warnings.catch_warnings()
                self._filters.__enter__()
                warnings.filterwarnings("ignore", module=r"(PIL|pillow_heif)(\.|$)")
            self._users += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._users -= 1
            if self._users == 0:
                self._filters.__exit__(None, None, None)


_pillow_is_quiet: Final = _PillowIsQuiet()


def _message(error: BaseException) -> str:
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return text or type(error).__name__
