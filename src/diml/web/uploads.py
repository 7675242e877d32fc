"""Uploaded images: read into memory, decoded as untrusted input, and saved only on request.

Of a decoded image only what the network and the page need is kept, so that large ones are in memory one at a time.
"""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Final

from PIL import Image
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect, Request
from torch import Tensor

from diml.data.images import IMAGE_FORMATS, BadImageError, load_image, opened_image
from diml.files import atomic_file
from diml.spelling import did_you_mean, shown
from diml.web.errors import ApiError
from diml.web.limits import Limits
from diml.web.parameters import names_of

_NAME_LENGTH: Final = 120
_MOST_FILES: Final = 8  # and as many other fields: more than any form has, so that an unknown one is named


@dataclass(frozen=True, eq=False)
class Upload:
    """A decoded upload.

    Args:
        name: of its file, cleaned.
        input: (3, H, W), the input of the network.
        view: what of the image the network sees, as it is shown.
    """

    name: str
    input: Tensor
    view: Image.Image


@dataclass(frozen=True)
class UploadedFile:
    """A file of a form, not decoded."""

    field: str
    name: str
    content: bytes


class _MemoryParser(MultiPartParser):
    """The parser of Starlette, keeping files above 1 MB in memory instead of on disk; the size of bodies is limited."""

    spool_max_size = 2**62


@dataclass(frozen=True)
class Form:
    """What a form has: its files and its texts, by field."""

    files: dict[str, UploadedFile]
    texts: dict[str, str]


async def read_files(request: Request, fields: tuple[str, ...]) -> dict[str, UploadedFile]:
    """Read the files of a form into memory; as `read_form`."""
    return (await read_form(request, fields)).files


async def read_form(request: Request, fields: tuple[str, ...], texts: tuple[str, ...] = ()) -> Form:
    """Read a form into memory.

    Args:
        request: with a body of type multipart/form-data, or without a body.
        fields: names of the files that the form may have.
        texts: names of the texts that it may have.

    Returns:
        The files and texts by field; empty without a body.

    Raises:
        ApiError: the body has another type, or other fields.
    """
    kind = request.headers.get("content-type", "").split(";")[0].strip().lower()
    remedy = (
        f"Send multipart/form-data with files named {' and '.join(fields)}, as curl -F {fields[0]}=@image.jpg does."
    )
    found = Form({}, {})
    if not kind:
        return found
    if kind != "multipart/form-data":
        raise ApiError(415, "not_a_form", f"Need a form of type multipart/form-data, got {kind[:80]!r}.", remedy)
    try:
        parser = _MemoryParser(request.headers, _stream_of(request), max_files=_MOST_FILES, max_fields=_MOST_FILES)
        form = await parser.parse()
    except MultiPartException as error:
        if isinstance(error.__cause__, ApiError | ClientDisconnect):
            raise error.__cause__ from None
        raise ApiError(400, "bad_form", f"The form cannot be read: {error.message}", remedy) from error
    try:
        for field, value in form.multi_items():
            if field in names_of(request):
                moved = f"Put it into the address: {request.url.path}?{field}=..."
                raise ApiError(422, "bad_form", f"{field} is a parameter of the address, not of the form.", moved)
            if field not in (*fields, *texts):
                hint = did_you_mean(field, (*fields, *texts))
                raise ApiError(422, "unknown_parameter", f"Unknown field {shown(field[:80])}: {hint}.", remedy)
            is_file = isinstance(value, UploadFile)
            if field in (found.files | found.texts) or is_file != (field in fields):
                twice = field in (found.files | found.texts)
                reason = "twice" if twice else "without a file" if field in fields else "as a file, not as a text"
                raise ApiError(422, "bad_form", f"The form has the field {field} {reason}.", remedy)
            if isinstance(value, UploadFile):
                name = clean_name(value.filename or field)
                found.files[field] = UploadedFile(field, name, await value.read())
            else:
                found.texts[field] = value
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


def open_upload(
    file: UploadedFile,
    limits: Limits,
    prepare: Callable[[Image.Image], tuple[Tensor, Image.Image]],
    *,
    decoding: Callable[[tuple[int, int]], AbstractContextManager[None]],
    at_least: int | None = None,
    keep: Path | None = None,
) -> Upload:
    """Decode an uploaded file.

    Args:
        file: of the form.
        limits: of its pixels.
        prepare: from an RGB image to the network's input and what is shown of it.
        decoding: waits until an image of this (width, height) may be decoded, as few as possible at the same time.
        at_least: as of `load_image`.
        keep: folder in which the file is saved, named by its content; None saves nothing.

    Raises:
        ApiError: it is not an image, of a format that is not allowed, damaged, or too large.
    """
    try:
        with opened_image(file.content, name=file.name, max_pixels=limits.pixels) as image:
            size, kind = image.size, str(image.format)
        with decoding(size):
            loaded = load_image(file.content, name=file.name, max_pixels=limits.pixels, at_least=at_least)
            upload = Upload(file.name, *prepare(loaded))
    except BadImageError as error:
        endings = ", ".join(known[0].removeprefix(".") for known in IMAGE_FORMATS.values())
        remedy = f"Send an image of at most {limits.pixels:,} pixels, as one of {endings}."
        raise ApiError(422, "bad_image", f"{error.path} {error.reason}.", remedy) from error
    if keep is not None:
        _keep(file.content, IMAGE_FORMATS.get(kind, IMAGE_FORMATS["JPEG"])[0], keep)  # MPO is a kind of JPEG
    return upload


def clean_name(name: str) -> str:
    """Return the last part of a path, without invisible characters, shortened to 120 characters."""
    last = PurePosixPath(name.replace("\\", "/")).name
    shown = "".join(c for c in last if unicodedata.category(c)[0] != "C").strip()
    return (shown if len(shown) <= _NAME_LENGTH else "…" + shown[1 - _NAME_LENGTH :]) or "image"


def _keep(content: bytes, suffix: str, folder: Path) -> None:
    path = folder / f"{hashlib.sha256(content).hexdigest()[:20]}{suffix}"
    if not path.exists():
        with atomic_file(path) as temporary:
            temporary.write_bytes(content)
