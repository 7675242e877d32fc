"""The addresses: the API, the page that uses it, and nothing else."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, nullcontext
from functools import partial
from importlib import resources
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, Final

from fastapi import FastAPI, Query, Request, Response

from diml.data.images import BadImageError
from diml.explain.html import MODULES, page_asset
from diml.web import schemas
from diml.web.engine import MOST_HITS, Engine, Kind
from diml.web.errors import ApiError, answer_errors
from diml.web.gallery import Gallery
from diml.web.guard import Guard
from diml.web.limits import Limits
from diml.web.uploads import open_upload, read_files
from diml.web.work import Slots, Worker

MOST_RERANKED: Final = 1000
_OWN_FILES: Final = ("app.js", "api.js", "tray.js", "gallery.js", "app.css")
_TYPES: Final = {"js": "text/javascript", "css": "text/css", "html": "text/html"}
_REFUSALS: Final[dict[int | str, dict[str, Any]]] = {
    "4XX": {"model": schemas.Refusal},
    "5XX": {"model": schemas.Refusal},
}


def create_app(engine: Engine, *, limits: Limits | None = None, keep: Path | None = None) -> FastAPI:
    """The application, for any ASGI server that listens on this machine only.

    Args:
        engine: what it computes with, and the gallery in it.
        limits: of requests.
        keep: folder in which images that are sent are kept; None keeps none.

    Example:
        >>> app = create_app(Engine(load_embedder("mobilenetv2_100")))  # doctest: +SKIP
    """
    limits = limits or Limits()
    worker, slots = Worker(limits), Slots(limits.requests)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        worker.stop()
        if engine.gallery is not None:
            engine.gallery.stop()

    app = FastAPI(
        title="diml", version=version("diml"), docs_url=None, redoc_url=None, openapi_url="/api/openapi.json",
        lifespan=lifespan, description="Images compared and searched part by part. All numbers are fractions.",
    )  # fmt: skip
    answer_errors(app)
    app.add_middleware(Guard, limits=limits, slots=slots)
    _add_status(app, engine, limits, keep is not None)
    _add_work(app, engine, worker, limits, keep)
    _add_gallery(app, engine, worker)
    _add_page(app)
    return app


def _add_status(app: FastAPI, engine: Engine, limits: Limits, keeps: bool) -> None:
    @app.get("/api/status", responses=_REFUSALS)
    async def status() -> schemas.Status:
        """What is served, how far the gallery is, and the limits."""
        given = {"hits": engine.most_hits(), "rerank": MOST_RERANKED}
        told = {name: getattr(limits, name) for name in ("body_bytes", "pixels", "requests")} | given
        return schemas.Status(
            version=version("diml"),
            model=str(engine.settings.get("model", engine.embedder.config.backbone)),
            keeps_uploads=keeps,
            limits=schemas.LimitsStatus(**told),
            gallery=None if engine.gallery is None else _gallery_status(engine.gallery),
        )


def _gallery_status(gallery: Gallery) -> schemas.GalleryStatus:
    state = gallery.state()
    names = ("kind", "name", "phase", "done", "total", "count", "seconds", "trouble")
    told = {name: getattr(state, name) for name in names}
    bad = [schemas.LeftOut(path=one.path, reason=one.reason) for one in state.bad[:50]]
    return schemas.GalleryStatus(**told, bad_count=len(state.bad), bad=bad)


def _add_work(app: FastAPI, engine: Engine, worker: Worker, limits: Limits, keep: Path | None) -> None:
    @app.post("/api/match", responses=_REFUSALS, openapi_extra=_form("query", "gallery"))
    async def match_two(request: Request) -> schemas.Explanation:
        """Compare two images, part by part."""
        files = await read_files(request, ("query", "gallery"))
        missing = [name for name in ("query", "gallery") if name not in files]
        if missing:
            remedy = "curl -F query=@a.jpg -F gallery=@b.jpg http://127.0.0.1:8765/api/match"
            raise ApiError(422, "missing_image", f"Need two images; {' and '.join(missing)} is missing.", remedy)

        def work() -> dict[str, Any]:
            return engine.match(*(open_upload(files[name], limits, keep) for name in ("query", "gallery")))

        return schemas.Explanation(**await worker.run(request.state.slot, work))

    @app.post("/api/search", responses=_REFUSALS, openapi_extra=_form("query", required=False))
    async def search(
        request: Request,
        hits: Annotated[int, Query(ge=1, le=MOST_HITS, description="how many to explain")] = 8,
        rerank: Annotated[int, Query(ge=0, le=MOST_RERANKED, description="K; 0: by pooled cosine alone")] = 100,
        key: Annotated[str | None, Query(alias="id", max_length=200, description="in place of a image")] = None,
    ) -> schemas.Explanation:
        """Search the gallery for one image: the form's `query`, or one of the gallery's own by its id."""
        if engine.gallery is None:
            raise _no_gallery()
        engine.check_gallery()
        files = await read_files(request, ("query",))
        if bool(files) == (key is not None):
            got = "both" if files else "none"
            raise ApiError(
                422, "missing_image", f"Need one image to search for, got {got}.",
                "Send a file named query, or the id of a image of the gallery as ?id=, and not both.",
            )  # fmt: skip

        def work() -> dict[str, Any]:
            query = key if key is not None else open_upload(files["query"], limits, keep)
            return engine.search(query, hits=min(hits, engine.most_hits()), rerank=rerank)

        with nullcontext() if key is None else _known_image(key):
            return schemas.Explanation(**await worker.run(request.state.slot, work))


def _add_gallery(app: FastAPI, engine: Engine, worker: Worker) -> None:
    @app.get("/api/gallery", responses=_REFUSALS)
    async def items(
        offset: Annotated[int, Query(ge=0)] = 0, count: Annotated[int, Query(ge=1, le=200)] = 24
    ) -> schemas.Items:
        """Some images of the gallery, in its order."""
        if engine.gallery is None:
            raise _no_gallery()
        found = engine.gallery.items(offset, count)
        return schemas.Items(items=[schemas.Item(**vars(item)) for item in found], offset=offset)

    @app.get("/api/gallery/image", responses=_REFUSALS | {200: {"content": {"image/jpeg": {}}}})
    async def image(
        key: Annotated[str, Query(alias="id", max_length=200)],
        kind: Annotated[Kind, Query(description="as the model saw it, or the whole of it")] = "view",
    ) -> Response:
        """A image of the gallery, made anew as JPEG."""
        if engine.gallery is None:
            raise _no_gallery()
        with _known_image(key):
            content = await worker.run_image(partial(engine.image, key, kind))
        return Response(content, media_type="image/jpeg", headers={"Cache-Control": "private, max-age=600"})


def _add_page(app: FastAPI) -> None:
    """The page and its modules: files of the package, read by names that are known beforehand."""
    viewer = {name: partial(page_asset, name) for name in (*MODULES, "viewer.css")}
    own = {name: partial(_own_file, name) for name in _OWN_FILES}
    files: dict[str, Callable[[], str]] = {f"/page/{name}": read for name, read in (viewer | own).items()}
    for address, read in (files | {"/": partial(_own_file, "index.html")}).items():
        app.add_api_route(address, _page_route(read, address), methods=["GET", "HEAD"], include_in_schema=False)

    @app.get("/favicon.ico", include_in_schema=False)
    async def icon() -> Response:
        return Response(status_code=204)


def _page_route(read: Callable[[], str], address: str) -> Callable[[], Response]:
    kind = _TYPES.get(address.rpartition(".")[2], "text/html")

    def page() -> Response:
        return Response(read(), media_type=f"{kind}; charset=utf-8", headers={"Cache-Control": "no-cache"})

    return page


def _own_file(name: str) -> str:
    return resources.files("diml.web").joinpath("page", name).read_text(encoding="utf-8")


@contextmanager
def _known_image(key: str) -> Iterator[None]:
    """Errors of a image of the gallery as those of the API."""
    try:
        yield
    except KeyError as error:
        remedy = "GET /api/gallery lists the images."
        raise ApiError(404, "no_such_image", f"No image has the id {key[:60]!r}.", remedy) from error
    except (OSError, BadImageError) as error:
        remedy = "Start diml anew, so that it looks at the folder again."
        raise ApiError(410, "image_gone", f"The file cannot be read any more: {error}", remedy) from error


def _no_gallery() -> ApiError:
    remedy = "Start diml serve --folder DIR; or compare two images by /api/match."
    return ApiError(409, "no_gallery", "There is no folder to search in.", remedy)


def _form(*fields: str, required: bool = True) -> dict[str, Any]:
    """The form of an address, for OpenAPI."""
    files = {name: {"type": "string", "format": "binary", "description": "a image file"} for name in fields}
    schema = {"type": "object", "properties": files, **({"required": list(fields)} if required else {})}
    return {"requestBody": {"required": required, "content": {"multipart/form-data": {"schema": schema}}}}
