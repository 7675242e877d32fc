"""The routes: the API, and the page that uses it."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, nullcontext
from functools import partial
from importlib import resources
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, Final

from fastapi import Depends, FastAPI, Query, Request, Response
from fastapi.responses import PlainTextResponse
from prometheus_client import CONTENT_TYPE_PLAIN_0_0_4

from diml.data.images import BadImageError
from diml.data.query_box import QueryBox
from diml.explain.html import MODULES, page_asset
from diml.web import schemas
from diml.web.access import Access
from diml.web.api_page import add_api_page, describe_token, group_routes
from diml.web.engine import MOST_HITS, Engine, Kind
from diml.web.errors import ApiError, answer_errors
from diml.web.gallery import LONGEST_TEXT, MOST_WORDS, Gallery, GalleryItem
from diml.web.guard import Guard, OtherPages
from diml.web.limits import Limits, Worker
from diml.web.metrics import Measured, Metrics
from diml.web.parameters import require_known, with_share
from diml.web.uploads import Upload, UploadedFile, open_upload, read_files
from diml.web.write_routes import add_write_routes
from diml.web.writes import IndexWriter

MOST_RERANKED: Final = 1000
MOST_FOUND: Final = 1000  # hits without explanations
_IMAGE_SECONDS: Final = 600  # for which a browser keeps an image of the gallery
_LONGEST_WHERE: Final = 4000  # characters; servers and proxies accept addresses of about 8,000
_WHERE: Final = "condition on the metadata of an index that the hits satisfy, such as label = 'milk' and price < 3"
_BOX: Final = (
    "x0,y0,x1,y1: the part of the query that is searched for, as fractions of its width and height; in pixels of the "
    "upright image where one of them is above 1"
)
_RERANK_AT: Final = "K; 0: by pooled cosine alone; when omitted 100, or what `diml index tune` chose"
_SHARE: Final = "partial matching for this search: a share of each image in (0, 1] that is matched, or auto"
_EXCLUDE_SELF: Final = "leave out images whose file is that of the query; `own` of the answer names them"
_TEXT: Final = f"words, {MOST_WORDS} at most, that are in the path or the texts of the image, in any letter case"
_OWN_FILES: Final = ("app.js", "api.js", "tray.js", "gallery.js", "filters.js", "box.js", "address.js", "app.css")
_TYPES: Final = {"js": "text/javascript", "css": "text/css", "html": "text/html"}
_ERRORS: Final[dict[int | str, dict[str, Any]]] = {
    "4XX": {"model": schemas.ErrorResponse},
    "5XX": {"model": schemas.ErrorResponse},
}


#: Of every route of the API.
_KNOWN: Final = [Depends(require_known)]


def create_app(
    engine: Engine,
    *,
    limits: Limits | None = None,
    keep: Path | None = None,
    access: Access | None = None,
    writer: IndexWriter | None = None,
) -> FastAPI:
    """Create the application, for any ASGI server; without a token one that listens on the local machine only.

    Args:
        engine: embedder, matcher and gallery.
        limits: of requests.
        keep: folder in which uploaded images are saved; None saves none.
        access: names of hosts, prefix of all addresses, token; by default this machine alone, without a token.
        writer: puts images of clients into the index; None where clients may not write.

    Raises:
        ValueError: clients may write, and need no token for it.

    Example:
        >>> serve(create_app(Engine(load_embedder("mobilenetv2_100"))))  # doctest: +SKIP
    """
    limits, access = limits or Limits(), access or Access()
    if writer is not None and not access.token:
        raise ValueError("allow_writes: need a token that writing clients send, got none; add --token-file FILE")
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
    if access.origins:
        app.add_middleware(OtherPages, origins=access.origins)
    if access.token:
        describe_token(app)
    _add_monitoring(app, engine, worker, limits)
    _add_status(app, engine, worker, limits, keep is not None)
    _add_work(app, engine, worker, limits, keep)
    _add_gallery(app, engine, worker, changes=writer is not None)
    opened = partial(_opened, engine, limits, keep)
    add_write_routes(app, worker, writer, opened=opened, errors=_ERRORS)
    _add_page(app)
    add_api_page(app)
    group_routes(app)
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
    worker.changed = metrics.refresh
    app.add_middleware(Measured, metrics=metrics)

    @app.head("/healthz", include_in_schema=False)
    @app.get("/healthz")
    async def health() -> schemas.ProbeResponse:
        """Whether the server answers. Needs no token."""
        return schemas.ProbeResponse(status="ok")

    @app.head("/readyz", include_in_schema=False)
    @app.get("/readyz", responses={503: {"model": schemas.ErrorResponse}})
    async def readiness() -> schemas.ProbeResponse:
        """Whether searches are answered; without a gallery, whether comparisons are. Needs no token."""
        if engine.gallery is not None:
            await worker.run_image(engine.require_ready)
        return schemas.ProbeResponse(status="ready")

    @app.get("/metrics", response_class=PlainTextResponse, responses=_ERRORS)
    async def measured() -> Response:
        """Metrics in the format of Prometheus."""
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


class _Asked:
    """The parameters of a search; those of a class are listed one by one in the description of the API."""

    def __init__(
        self,
        rerank_at: Annotated[int | None, Query(ge=0, le=MOST_RERANKED, description=_RERANK_AT)] = None,
        key: Annotated[str | None, Query(alias="id", max_length=200, description="in place of an image")] = None,
        where: Annotated[str | None, Query(max_length=_LONGEST_WHERE, description=_WHERE)] = None,
        box: Annotated[str | None, Query(max_length=200, description=_BOX)] = None,
        share: Annotated[str | None, Query(max_length=20, description=_SHARE)] = None,
        exclude_self: Annotated[bool, Query(description=_EXCLUDE_SELF)] = False,
    ) -> None:
        self.rerank_at, self.key, self.where = rerank_at, key, where
        self.box, self.share, self.exclude_self = box, share, exclude_self


def _opened(
    engine: Engine, limits: Limits, keep: Path | None, file: UploadedFile, box: QueryBox | None = None
) -> Upload:
    """An uploaded file or a part of it, which is cut out of the image at its full size."""
    least = engine.embedder.preprocess.at_least if box is None else None
    prepare = partial(engine.prepare, box=box)
    return open_upload(file, limits, prepare, decoding=engine.decoding, at_least=least, keep=keep)


def _add_work(app: FastAPI, engine: Engine, worker: Worker, limits: Limits, keep: Path | None) -> None:
    opened = partial(_opened, engine, limits, keep)

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

    async def found(
        request: Request, hits: int, asked: _Asked, make: Callable[[dict[str, Any]], bytes], *, explained: bool
    ) -> Response:
        """Search as a request asks, in the thread of the work."""
        if engine.gallery is None:
            raise _no_gallery()
        await worker.run_image(engine.require_ready)
        files, key = await read_files(request, ("query",)), asked.key
        if bool(files) == (key is not None):
            got = "both" if files else "none"
            raise ApiError(
                422, "missing_image", f"Need one image to search for, got {got}.",
                "Send either a file named query, or the id of a gallery image as ?id=.",
            )  # fmt: skip
        part = None if asked.box is None else QueryBox.read(asked.box)
        matcher = engine.matcher if asked.share is None else with_share(engine.matcher, asked.share)

        def work() -> bytes:
            query = key if key is not None else opened(files["query"], part)
            own = None if not asked.exclude_self else engine.gallery_content(key) if key else files["query"].content
            return make(
                engine.search(
                    query,
                    hits=hits,
                    rerank_at=asked.rerank_at,
                    where=asked.where,
                    box=part,
                    matcher=matcher,
                    without=own,
                    explained=explained,
                )
            )

        with nullcontext() if key is None else _known_image(key):
            return Response(await worker.run(work), media_type="application/json")

    route: dict[str, Any] = {
        "dependencies": _KNOWN, "responses": _ERRORS, "openapi_extra": _form("query", required=False),
    }  # fmt: skip

    @app.post("/api/search", response_model=schemas.ExplanationResponse, **route)
    async def search(
        request: Request,
        asked: Annotated[_Asked, Depends()],
        hits: Annotated[int, Query(ge=1, le=MOST_HITS, description="number of hits to explain")] = 8,
    ) -> Response:
        """Search the gallery for one image: the form's `query`, or an image of the gallery by its id."""
        return await found(request, min(hits, engine.most_hits()), asked, _as_json, explained=True)

    @app.post("/api/hits", response_model=schemas.HitsResponse, **route)
    async def find(
        request: Request,
        asked: Annotated[_Asked, Depends()],
        hits: Annotated[int, Query(ge=1, le=MOST_FOUND, description="number of hits")] = 10,
    ) -> Response:
        """Search as /api/search does, without explanations: a fraction of the time and of the bytes, for programs."""
        return await found(request, hits, asked, _hits_as_json, explained=False)


def _add_gallery(app: FastAPI, engine: Engine, worker: Worker, *, changes: bool) -> None:
    @app.get("/api/gallery", dependencies=_KNOWN, responses=_ERRORS)
    async def items(
        offset: Annotated[int, Query(ge=0)] = 0,
        count: Annotated[int, Query(ge=1, le=200)] = 24,
        text: Annotated[str, Query(max_length=LONGEST_TEXT, description=_TEXT)] = "",
        where: Annotated[str | None, Query(max_length=_LONGEST_WHERE, description=_WHERE)] = None,
        path: Annotated[str | None, Query(max_length=4000, description="only the image of this path")] = None,
    ) -> schemas.ItemsResponse:
        """Some images of the gallery, in its order."""
        gallery = engine.gallery
        if gallery is None:
            raise _no_gallery()

        def look() -> tuple[Sequence[GalleryItem], int]:
            if path is not None:
                return [gallery.named(path)], 1
            return gallery.items(offset, count, text=text, where=where), gallery.count(text=text, where=where)

        with nullcontext() if path is None else _known_image(path, "path"):
            found, total = await worker.run_image(look)
        bodies = [schemas.ItemBody(**vars(item)) for item in found]
        return schemas.ItemsResponse(items=bodies, offset=offset, total=total)

    @app.get("/api/facets", dependencies=_KNOWN, responses=_ERRORS)
    async def facets() -> schemas.FacetsResponse:
        """The columns of the index, to be filtered by: their values with counts, or their ranges."""
        if engine.gallery is None:
            raise _no_gallery()
        found = await worker.run(engine.gallery.facets)
        return schemas.FacetsResponse(columns=[schemas.FacetBody.of(facet) for facet in found])

    @app.get(
        "/api/gallery/image", dependencies=_KNOWN, response_class=Response,
        responses=_ERRORS | {200: {"content": {"image/jpeg": {}}}, 304: {"description": "the browser has it"}},
    )  # fmt: skip
    async def image(
        request: Request,
        key: Annotated[str, Query(alias="id", max_length=200)],
        kind: Annotated[Kind, Query(description="as the model saw it, or the whole image")] = "view",
    ) -> Response:
        """An image of the gallery, re-encoded as JPEG."""
        if engine.gallery is None:
            raise _no_gallery()
        with _known_image(key):
            content = await worker.run_image(partial(engine.image, key, kind))
        # An image that clients may replace is asked for each time, and sent where it is another one.
        age = "no-cache" if changes else f"max-age={_IMAGE_SECONDS}"
        tag = f'"{hashlib.sha256(content).hexdigest()[:32]}"'
        headers = {"Cache-Control": f"private, {age}", "ETag": tag}
        if request.headers.get("if-none-match") == tag:
            return Response(status_code=304, headers=headers)
        return Response(content, media_type="image/jpeg", headers=headers)


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
def _known_image(key: str, what: str = "id") -> Iterator[None]:
    """Raise errors of a gallery image as errors of the API."""
    try:
        yield
    except KeyError as error:
        remedy = "GET /api/gallery lists the images."
        raise ApiError(404, "no_such_image", f"No image has the {what} {key[:60]!r}.", remedy) from error
    except (OSError, BadImageError) as error:
        remedy = "Restart diml serve to read the folder again."
        raise ApiError(410, "image_gone", f"The file can no longer be read: {error}", remedy) from error


def _as_json(answer: dict[str, Any]) -> bytes:
    """An answer checked and written in the thread of the work: a large one would keep the event loop for long."""
    return schemas.ExplanationResponse(**answer).model_dump_json().encode()


def _hits_as_json(answer: dict[str, Any]) -> bytes:
    return schemas.HitsResponse(**answer).model_dump_json().encode()


def _no_gallery() -> ApiError:
    remedy = "Start diml serve with --folder DIR or --index INDEX; or compare two images with /api/match."
    return ApiError(409, "no_gallery", "There is no gallery to search.", remedy)


def _form(*fields: str, required: bool = True) -> dict[str, Any]:
    """The form of a route, for OpenAPI."""
    files = {name: {"type": "string", "format": "binary", "description": "an image file"} for name in fields}
    schema = {"type": "object", "properties": files, **({"required": list(fields)} if required else {})}
    return {"requestBody": {"required": required, "content": {"multipart/form-data": {"schema": schema}}}}
