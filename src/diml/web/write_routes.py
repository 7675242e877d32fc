"""The routes that change an index: images are put into it and taken out, by clients that have the token."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Final

from fastapi import Depends, FastAPI, Path, Request, Response

from diml.web import schemas
from diml.web.errors import ApiError
from diml.web.limits import Worker
from diml.web.parameters import require_known
from diml.web.uploads import Upload, UploadedFile, read_form
from diml.web.writes import IndexWriter, WrittenImage

_FORM: Final[dict[str, Any]] = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "properties": {
                        "image": {"type": "string", "format": "binary", "description": "an image file"},
                        "path": {
                            "type": "string",
                            "description": "of the image, such as milk/1.jpg; an image of the same path is replaced. "
                            "By default the name of the file",
                        },
                        "metadata": {
                            "type": "string",
                            "contentMediaType": "application/json",
                            "description": "a JSON object, column -> value of the column's type",
                        },
                    },
                    "required": ["image"],
                }
            }
        },
    }
}
_EXAMPLE: Final = "curl -F image=@a.jpg -F path=milk/a.jpg -F 'metadata={...}' ADDRESS/api/images"


def add_write_routes(
    app: FastAPI,
    worker: Worker,
    writer: IndexWriter | None,
    *,
    opened: Callable[[UploadedFile], Upload],
    errors: dict[int | str, dict[str, Any]],
) -> None:
    """Add the routes; without a writer they say how writes are allowed.

    Args:
        app: the application.
        worker: where the work is done.
        writer: of the index; None where clients may not write.
        opened: decodes a file.
        errors: the responses of all routes.
    """
    route: dict[str, Any] = {
        "dependencies": [Depends(require_known)], "responses": errors, "include_in_schema": writer is not None,
    }  # fmt: skip

    @app.post(
        "/api/images", status_code=201, openapi_extra=_FORM,
        **{**route, "responses": errors | {200: {"model": schemas.WrittenResponse}}},
    )  # fmt: skip
    async def put_image(request: Request, response: Response) -> schemas.WrittenResponse:
        """Put an image into the index (201), or replace the one of the same path (200): as a whole or not at all."""
        allowed = _allowed(writer)
        form = await read_form(request, ("image",), ("path", "metadata"))
        file = form.files.get("image")
        if file is None:
            raise ApiError(422, "missing_image", "Need a file named image, got none.", f"As in: {_EXAMPLE}")

        def work() -> WrittenImage:
            path, metadata = allowed.checked(form.texts.get("path", file.name), form.texts.get("metadata"))
            return allowed.put(opened(file), file.content, path, metadata)

        written = await worker.run(work)
        response.status_code = 201 if written.is_new else 200
        return schemas.WrittenResponse(
            id=written.id, name=written.path, metadata=dict(written.metadata), created=written.is_new
        )

    @app.delete("/api/images/{key}", **route)
    async def remove_image(
        key: Annotated[str, Path(max_length=200, description="id of the image")],
    ) -> schemas.RemovedResponse:
        """Remove an image from the index; its file too if it was put there by POST."""
        allowed = _allowed(writer)
        try:
            removed = await worker.run(lambda: allowed.remove(key))
        except KeyError as error:
            raise ApiError(
                404, "no_such_image", f"No image has the id {key[:60]!r}.", "GET /api/gallery lists the images."
            ) from error
        return schemas.RemovedResponse(id=key, file_removed=removed)


def _allowed(writer: IndexWriter | None) -> IndexWriter:
    if writer is None:
        raise ApiError(
            403, "read_only", "This server does not change its index.",
            "Start diml serve --index INDEX --token-file FILE with --allow-writes FOLDER, in which images are kept.",
        )  # fmt: skip
    return writer
