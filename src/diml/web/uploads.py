"""Uploaded images: read into memory, decoded as untrusted input, and saved only on request."""

from __future__ import annotations

import hashlib
import io
import unicodedata
import warnings
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Final

from PIL import Image, UnidentifiedImageError
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect, Request

from diml.data.images import BadImageError, load_image
from diml.files import atomic_file
from diml.web.errors import ApiError
from diml.web.limits import Limits

#: Format of Pillow -> file suffix. Others are rejected: Pillow passes some of them (such as EPS) to external programs.
FORMATS: Final = {
    "JPEG": "jpg", "MPO": "jpg", "PNG": "png", "WEBP": "webp", "GIF": "gif", "BMP": "bmp", "TIFF": "tif",
    "AVIF": "avif", "PPM": "ppm", "JPEG2000": "jp2",
}  # fmt: skip
_NAME_LENGTH: Final = 120


@dataclass(frozen=True, eq=False)
class Upload:
    """A decoded upload: its name, and its pixels as upright RGB."""

    name: str
    image: Image.Image


@dataclass(frozen=True)
class UploadedFile:
    """A file of a form, not decoded."""

    field: str
    name: str
    content: bytes


class _MemoryParser(MultiPartParser):
    """The parser of Starlette, keeping files above 1 MB in memory instead of on disk; the size of bodies is limited."""

    spool_max_size = 2**62


async def read_files(request: Request, fields: tuple[str, ...]) -> dict[str, UploadedFile]:
    """Read the files of a form into memory.

    Args:
        request: with a body of type multipart/form-data, or without a body.
        fields: names that the form may have.

    Returns:
        The files by field; empty without a body.

    Raises:
        ApiError: the body has another type, or other fields.
    """
    kind = request.headers.get("content-type", "").split(";")[0].strip().lower()
    remedy = (
        f"Send multipart/form-data with files named {' and '.join(fields)}, as curl -F {fields[0]}=@image.jpg does."
    )
    if not kind:
        return {}
    if kind != "multipart/form-data":
        raise ApiError(415, "not_a_form", f"Need a form of type multipart/form-data, got {kind[:80]!r}.", remedy)
    try:
        parser = _MemoryParser(request.headers, _stream_of(request), max_files=len(fields), max_fields=0)
        form = await parser.parse()
    except MultiPartException as error:
        if isinstance(error.__cause__, ApiError | ClientDisconnect):
            raise error.__cause__ from None
        raise ApiError(400, "bad_form", f"The form cannot be read: {error.message}", remedy) from error
    found = {}
    try:
        for field, value in form.multi_items():
            if field not in fields or field in found or not isinstance(value, UploadFile):
                raise ApiError(422, "bad_form", f"The form has an unexpected field {field[:40]!r}.", remedy)
            found[field] = UploadedFile(field, clean_name(value.filename or field), await value.read())
    finally:
        await form.close()
    return found


async def _stream_of(request: Request) -> AsyncGenerator[bytes, None]:
    """The body; what ends it early is raised as the error upon which the parser closes its files."""
    try:
        async for chunk in request.stream():
            yield chunk
    except (ApiError, ClientDisconnect) as error:
        raise MultiPartException("it ended early") from error


def open_upload(file: UploadedFile, limits: Limits, keep: Path | None = None) -> Upload:
    """Decode an uploaded file.

    Args:
        file: of the form.
        limits: of its pixels.
        keep: folder in which the file is saved, named by its content; None saves nothing.

    Raises:
        ApiError: it is not an image, of an unsupported format, damaged, or too large.
    """
    remedy = f"Send an image as {', '.join(sorted(set(FORMATS.values())))}, of at most {limits.pixels:,} pixels."
    try:
        kind = _format_of(file.content)
        image = load_image(file.content, name=file.name, max_pixels=limits.pixels)
    except BadImageError as error:
        raise ApiError(422, "bad_image", f"{error.path} {error.reason}.", remedy) from error
    except (UnidentifiedImageError, Image.DecompressionBombError, OSError, SyntaxError, ValueError) as error:
        reason = "is empty (0 bytes)" if not file.content else "is not an image of a supported format"
        if isinstance(error, Image.DecompressionBombError):
            reason = f"has more than the {limits.pixels:,} pixels allowed"
        raise ApiError(422, "bad_image", f"{file.name} {reason}.", remedy) from error
    except MemoryError as error:
        raise ApiError(413, "too_large", f"{file.name} is too large to be decoded.", remedy) from error
    if keep is not None:
        _keep(file.content, FORMATS[kind], keep)
    return Upload(file.name, image)


def clean_name(name: str) -> str:
    """Return the last part of a path, without invisible characters, shortened to 120 characters."""
    last = PurePosixPath(name.replace("\\", "/")).name
    shown = "".join(c for c in last if unicodedata.category(c)[0] != "C").strip()
    return (shown if len(shown) <= _NAME_LENGTH else "…" + shown[1 - _NAME_LENGTH :]) or "image"


def _format_of(content: bytes) -> str:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about many pixels, which `load_image` counts, and invalid metadata
        Image.init()  # some may be missing in this Pillow; MPO is opened as JPEG and recognised afterwards
        known = tuple(kind for kind in FORMATS if kind in Image.OPEN)
        with Image.open(io.BytesIO(content), formats=known) as image:
            return str(image.format)


def _keep(content: bytes, suffix: str, folder: Path) -> None:
    path = folder / f"{hashlib.sha256(content).hexdigest()[:20]}.{suffix}"
    if not path.exists():
        with atomic_file(path) as temporary:
            temporary.write_bytes(content)
