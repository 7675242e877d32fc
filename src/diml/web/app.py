"""The routes: the API, and the page that uses it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, nullcontext
from functools import partial
from importlib import resources
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, Final

from fastapi import Depends, FastAPI, Query, Request, Response
from prometheus_client import CONTENT_TYPE_PLAIN_0_0_4

from diml.data.images import BadImageError
from diml.explain.html import MODULES, page_asset
from diml.web import schemas
from diml.web.access import Access
from diml.web.engine import MOST_HITS, Engine, Kind
from diml.web.errors import ApiError, answer_errors
from diml.web.gallery import Gallery
from diml.web.guard import Guard
from diml.web.limits import Limits, Worker
from diml.web.metrics import Measured, Metrics
from diml.web.parameters import require_known
from diml.web.uploads import Upload, UploadedFile, open_upload, read_files

MOST_RERANKED: Final = 1000
_LONGEST_WHERE: Final = 4000  # characters; servers and proxies accept addresses of about 8,000
_WHERE: Final = "condition on the metadata of an index that the hits satisfy, such as label = 'milk' and price < 3"
_OWN_FILES: Final = ("app.js", "api.js", "tray.js", "gallery.js", "app.css")
_TYPES: Final = {"js": "text/javascript", "css": "text/css", "html": "text/html"}
_ERRORS: Final[dict[int | str, dict[str, Any]]] = {
    "4XX": {"model": schemas.ErrorResponse},
    "5XX": {"model": schemas.ErrorResponse},
}


#: Of every route of the API.
_KNOWN: Final = [Depends(require_known)]


def create_app(
    engine: Engine, *, limits: Limits | None = None, keep: Path | None = None, access: Access | None = None
) -> FastAPI:
    """Create the application, for any ASGI server; without a token one that listens on the local machine only.

    Args:
        engine: embedder, matcher and gallery.
        limits: of requests.
        keep: folder in which uploaded images are saved; None saves none.
        access: names of hosts, prefix of all addresses, token; by default this machine alone, without a token.

    Example:
        >>> serve(create_app(Engine(load_embedder("mobilenetv2_100"))))  # doctest: +SKIP
    """
    limits, access = limits or Limits(), access or Access()
    engine.root_path = access.root_path
    worker = Worker(limits)
    engine.limit_pixels(limits.pixels)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        worker.stop()
        if engine.gallery is not None:
            engine.gallery.stop()

    app = FastAPI(
        title="diml", version=version("diml"), docs_url=None, redoc_url=None, openapi_url="/api/openapi.json",
        lifespan=lifespan, description="Explainable image similarity: comparison and search. All scores are fractions.",
    )  # fmt: skip
    answer_errors(app)
    app.state.access = access
    app.add_middleware(Guard, limits=limits, access=access)
    _add_monitoring(app, engine, worker, limits)
    _add_status(app, engine, worker, limits, keep is not None)
    _add_work(app, engine, worker, limits, keep)
    _add_gallery(app, engine, worker)
    _add_page(app)
    return app


def _add_status(app: FastAPI, engine: Engine, worker: Worker, limits: Limits, keeps: bool) -> None:
    @app.get("/api/status", dependencies=_KNOWN, responses=_ERRORS)
    async def status() -> schemas.StatusResponse:
        """What is served, the progress of the gallery, and the limits."""
        counts = {"hits": engine.most_hits(), "rerank_at": MOST_RERANKED}
        gallery = engine.gallery
        values = {name: getattr(limits, name) for name in ("body_bytes", "pixels", "requests")} | counts
        return schemas.StatusResponse(
            version=version("diml"),
            model=str(engine.settings.get("model", engine.embedder.config.backbone)),
            matcher=engine.matcher.to_dict(),
            calibration=_calibration_of(engine),
            calibration_notice=engine.calibration.notice,
            keeps_uploads=keeps,
            limits=schemas.LimitsBody(**values),
            gallery=None if gallery is None else await worker.run_image(partial(_gallery_status, gallery)),
        )


def _add_monitoring(app: FastAPI, engine: Engine, worker: Worker, limits: Limits) -> None:
    """Probes, which need no token, and metrics."""

    def images() -> int:
        return 0 if engine.gallery is None else engine.gallery.state().count

    metrics = Metrics(
        computing=lambda: min(worker.pending, limits.requests),
        waiting=lambda: max(0, worker.pending - limits.requests),
        images=images,
    )
    app.add_middleware(Measured, metrics=metrics)

    @app.api_route("/healthz", methods=["GET", "HEAD"], include_in_schema=False)
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    @app.api_route("/readyz", methods=["GET", "HEAD"], include_in_schema=False)
    async def readiness() -> dict[str, str]:
        """Whether searches are answered; without a gallery, whether comparisons are."""
        if engine.gallery is not None:
            await worker.run_image(engine.require_ready)
        return {"status": "ready"}

    @app.get("/metrics", include_in_schema=False)
    async def measured() -> Response:
        return Response(await worker.run_image(metrics.text), media_type=CONTENT_TYPE_PLAIN_0_0_4)


def _calibration_of(engine: Engine) -> schemas.CalibrationBody | None:
    if engine.calibrator is None:
        return None
    names = ("model", "data", "kind", "classes", "images", "pairs", "prior", "depth", "separates")
    values = {name: getattr(engine.calibrator, name) for name in names}
    return schemas.CalibrationBody(place=engine.calibration.place, **values)


def _gallery_status(gallery: Gallery) -> schemas.GalleryBody:
    state = gallery.state()
    names = ("kind", "name", "phase", "done", "total", "count", "seconds", "error")
    values = {name: getattr(state, name) for name in names}
    bad = [schemas.BadImageBody(path=one.path, reason=one.reason) for one in state.bad[:50]]
    return schemas.GalleryBody(**values, bad_count=len(state.bad), bad=bad)


def _add_work(app: FastAPI, engine: Engine, worker: Worker, limits: Limits, keep: Path | None) -> None:
    def opened(file: UploadedFile) -> Upload:
        return open_upload(file, limits, engine.prepare, decoding=engine.decoding, keep=keep)

    @app.post(
        "/api/match",
        response_model=schemas.ExplanationResponse,
        dependencies=_KNOWN,
        responses=_ERRORS,
        openapi_extra=_form("query", "gallery"),
    )
    async def match_two(request: Request) -> Response:
        """Compare two images, region by region."""
        files = await read_files(request, ("query", "gallery"))
        missing = [name for name in ("query", "gallery") if name not in files]
        if missing:
            remedy = "curl -F query=@a.jpg -F gallery=@b.jpg http://127.0.0.1:8765/api/match"
            raise ApiError(422, "missing_image", f"Need two images; {' and '.join(missing)} is missing.", remedy)

        def work() -> bytes:
            return _as_json(engine.match(opened(files["query"]), opened(files["gallery"])))

        return Response(await worker.run(work), media_type="application/json")

    @app.post(
        "/api/search",
        response_model=schemas.ExplanationResponse,
        dependencies=_KNOWN,
        responses=_ERRORS,
        openapi_extra=_form("query", required=False),
    )
    async def search(
        request: Request,
        hits: Annotated[int, Query(ge=1, le=MOST_HITS, description="number of hits to explain")] = 8,
        rerank_at: Annotated[int, Query(ge=0, le=MOST_RERANKED, description="K; 0: by pooled cosine alone")] = 100,
        key: Annotated[str | None, Query(alias="id", max_length=200, description="in place of an image")] = None,
        where: Annotated[str | None, Query(max_length=_LONGEST_WHERE, description=_WHERE)] = None,
    ) -> Response:
        """Search the gallery for one image: the form's `query`, or an image of the gallery by its id."""
        if engine.gallery is None:
            raise _no_gallery()
        await worker.run_image(engine.require_ready)
        files = await read_files(request, ("query",))
        if bool(files) == (key is not None):
            got = "both" if files else "none"
            raise ApiError(
                422, "missing_image", f"Need one image to search for, got {got}.",
                "Send either a file named query, or the id of a gallery image as ?id=.",
            )  # fmt: skip

        def work() -> bytes:
            query = key if key is not None else opened(files["query"])
            return _as_json(engine.search(query, hits=min(hits, engine.most_hits()), rerank_at=rerank_at, where=where))

        with nullcontext() if key is None else _known_image(key):
            return Response(await worker.run(work), media_type="application/json")


def _add_gallery(app: FastAPI, engine: Engine, worker: Worker) -> None:
    @app.get("/api/gallery", dependencies=_KNOWN, responses=_ERRORS)
    async def items(
        offset: Annotated[int, Query(ge=0)] = 0, count: Annotated[int, Query(ge=1, le=200)] = 24
    ) -> schemas.ItemsResponse:
        """Some images of the gallery, in its order."""
        if engine.gallery is None:
            raise _no_gallery()
        found = await worker.run_image(partial(engine.gallery.items, offset, count))
        return schemas.ItemsResponse(items=[schemas.ItemBody(**vars(item)) for item in found], offset=offset)

    @app.get("/api/gallery/image", dependencies=_KNOWN, responses=_ERRORS | {200: {"content": {"image/jpeg": {}}}})
    async def image(
        key: Annotated[str, Query(alias="id", max_length=200)],
        kind: Annotated[Kind, Query(description="as the model saw it, or the whole image")] = "view",
    ) -> Response:
        """An image of the gallery, re-encoded as JPEG."""
        if engine.gallery is None:
            raise _no_gallery()
        with _known_image(key):
            content = await worker.run_image(partial(engine.image, key, kind))
        return Response(content, media_type="image/jpeg", headers={"Cache-Control": "private, max-age=600"})


def _add_page(app: FastAPI) -> None:
    """The page and its modules: files of the package, from a fixed list of names."""
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
    """Raise errors of a gallery image as errors of the API."""
    try:
        yield
    except KeyError as error:
        remedy = "GET /api/gallery lists the images."
        raise ApiError(404, "no_such_image", f"No image has the id {key[:60]!r}.", remedy) from error
    except (OSError, BadImageError) as error:
        remedy = "Restart diml serve to read the folder again."
        raise ApiError(410, "image_gone", f"The file can no longer be read: {error}", remedy) from error


def _as_json(answer: dict[str, Any]) -> bytes:
    """An answer checked and written in the thread of the work: a large one would keep the event loop for long."""
    return schemas.ExplanationResponse(**answer).model_dump_json().encode()


def _no_gallery() -> ApiError:
    remedy = "Start diml serve with --folder DIR or --index INDEX; or compare two images with /api/match."
    return ApiError(409, "no_gallery", "There is no gallery to search.", remedy)


def _form(*fields: str, required: bool = True) -> dict[str, Any]:
    """The form of a route, for OpenAPI."""
    files = {name: {"type": "string", "format": "binary", "description": "an image file"} for name in fields}
    schema = {"type": "object", "properties": files, **({"required": list(fields)} if required else {})}
    return {"requestBody": {"required": required, "content": {"multipart/form-data": {"schema": schema}}}}
