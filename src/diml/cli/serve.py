"""`diml serve`: compare and search images in the browser, or with a JSON API."""

from __future__ import annotations

import contextlib
import math
import threading
import webbrowser
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import tyro

from diml.allocator import keep_freed_memory
from diml.cli.options import MatcherFlags, MatcherOptions, ModelFlags, ModelOptions, embedding_cache
from diml.cli.output import bad_image_line
from diml.cli.parsing import switch_off
from diml.extras import require
from diml.matching import Matcher

if TYPE_CHECKING:
    from socket import socket

    from fastapi import FastAPI

    from diml.calibration.finding import FoundCalibration
    from diml.models import Embedder
    from diml.search import Searcher
    from diml.web import Engine
    from diml.web.access import Access
    from diml.web.folder import FolderGallery
    from diml.web.gallery import Gallery
    from diml.web.limits import Limits
    from diml.web.writes import IndexWriter

_MOST_PROCESSES: Final = 64


@dataclass(frozen=True, kw_only=True)
class ServeCommand:
    """Serve a local web page: drop two images to compare them, or one to search a folder or an index with hits
    re-ranked and explained. The same as a JSON API: /api/match, /api/search, /api/openapi.json.

    Listens on 127.0.0.1; another address (--host) needs --token-file. Uploaded images are not saved, unless --keep
    names a folder.

    For instance:

    diml serve

    diml serve --folder PHOTOS --open

    diml serve --index photos.index

    diml serve --folder PHOTOS --model runs/mine --port 0 --keep sent

    curl -F query=@a.jpg -F gallery=@b.jpg http://127.0.0.1:8765/api/match
    """

    folder: Path | None = None
    """Search the images of this folder and its subfolders; they are embedded in the background."""

    index: str | None = None
    """Search this index of `diml index build` instead. Queries are embedded by the model of the index, and --model only
    gives its present path if it has moved."""

    host: str = "127.0.0.1"
    """Address to listen on. Others than those of this machine alone, such as 0.0.0.0, need --token-file."""

    port: int = 8765
    """Port; 0 chooses a free one."""

    allowed_hosts: tuple[str, ...] = ()
    """Names under which the server is reached, for instance behind a proxy, besides 127.0.0.1, localhost and --host;
    without scheme and port."""

    root_path: Annotated[str, tyro.conf.arg(help_behavior_hint="(default: none)")] = ""
    """Prefix of all addresses behind a proxy, for instance /images."""

    allow_origins: tuple[str, ...] = ()
    """Origins of other web pages whose scripts may use the API (CORS), for instance https://shop.example.com."""

    token_file: Path | None = None
    """File with the token that every request has to send, as `Authorization: Bearer TOKEN`; a browser asks for it once,
    as a password."""

    allow_writes: Path | None = None
    """Let clients that have the token put images into the index and take them out (POST and DELETE /api/images); the
    files are kept in this folder. By default the index is only read."""

    processes: int = 1
    """Server processes on the one port, each with the model in its memory (`--workers` of uvicorn and gunicorn). The
    limits below are those of each. More than one need --index in a folder or on a Milvus server, or no gallery."""

    stop_seconds: float = 30.0
    """Seconds that requests in progress have to end when the server is stopped (Ctrl-C, SIGTERM)."""

    open: bool = False
    """Open the page in the browser."""

    keep: Path | None = None
    """Save every uploaded image in this folder, named by its content. By default none is saved."""

    model: ModelFlags = ModelOptions()

    matcher: MatcherFlags = MatcherOptions()

    calibration: Path | None = None
    """Folder or file of a calibration (`diml calibrate`), which says how likely two images show the same, and whether
    a query is in the gallery at all; by default that of the index or the model, if it fits."""

    false_accept_rate: float = 0.05
    """Share of the queries missing from the gallery that may be taken to be there, as a fraction."""

    max_megabytes: float = 32.0
    """Maximum size of one request, both images together."""

    max_megapixels: float = 50.0
    """Maximum size of one image; larger ones are rejected before they are decoded."""

    max_requests: int = 4
    """Comparisons and searches that are computed at the same time."""

    max_waiting: int = 64
    """Further comparisons and searches that wait for their turn; those beyond are told to come again (503)."""

    max_connections: int = 256
    """Connections open at the same time. For one more, the one that has been silent longest is closed."""

    timeout: float = 60.0
    """Seconds after which a comparison or search is abandoned; a request has to arrive within half of them."""

    cache: Annotated[
        bool,
        switch_off(
            "Embed the images of the folder at every start. By default embeddings are kept by content in the "
            "cache folder, so that the same images are embedded once."
        ),
    ] = True

    batch_size: int = 32
    """Images per batch."""

    def run(self) -> int:
        """Open the port, load the model, start embedding, serve until Ctrl-C."""
        require("web", "the server")
        from diml.web.folder import checked_folder
        from diml.web.server import check_exposure, open_port

        limits, access = self._limits(), self._access()
        self.matcher.applied_to(Matcher())  # validates the settings before a model is loaded
        if not 0 < self.false_accept_rate < 1:
            raise ValueError(f"false_accept_rate: need a fraction in (0, 1), got {self.false_accept_rate}; 0.01 is 1 %")
        if self.index is not None and self.folder is not None:
            raise ValueError("index, folder: need at most one of the two, got both; serve them on different ports")
        self._check_writes(access)
        self._check_processes()
        if self.folder is not None:  # before a model is loaded
            checked_folder(self.folder)
        if self.keep is not None:
            self.keep.mkdir(parents=True, exist_ok=True)
        with open_port(self.port, self.host) as listener:
            check_exposure(listener, access)
            if self.processes > 1:
                self._serve_processes(listener, limits)
            else:
                self._serve(listener, limits, access)
        print("Stopped.")
        return 0

    def _serve(self, listener: socket, limits: Limits, access: Access) -> None:
        """Serve in this process."""
        from diml.web import serve

        port = listener.getsockname()[1]
        app, gallery, lines = self._application(limits, access)
        self._announce(lines, port)
        try:
            serve(app, listener, limits=limits, stop_seconds=self.stop_seconds)
        except KeyboardInterrupt:  # the ordinary end
            pass
        finally:
            if gallery is not None:
                gallery.stop()

    def _serve_processes(self, listener: socket, limits: Limits) -> None:
        """Serve in several others."""
        from diml.web.processes import serve_processes

        port = listener.getsockname()[1]
        with contextlib.suppress(KeyboardInterrupt):  # the ordinary end
            serve_processes(
                self.application,
                listener,
                self.processes,
                limits=limits,
                announce=lambda lines: self._announce(lines, port),
                stop_seconds=self.stop_seconds,
            )

    def application(self) -> tuple[FastAPI, Sequence[str]]:
        """What one of several processes serves, and lines that say what it is."""
        keep_freed_memory()
        app, _, lines = self._application(self._limits(), self._access())
        return app, lines

    def _application(self, limits: Limits, access: Access) -> tuple[FastAPI, Gallery | None, list[str]]:
        from diml.web import create_app

        engine, writer, lines = self._engine()
        app = create_app(engine, limits=limits, keep=self.keep, access=access, writer=writer)
        gallery = engine.gallery
        if self.index is not None and gallery is not None:
            lines.append(f"Searching {gallery.state().total:,} images of {self.index}.")
        elif gallery is not None:
            lines.append(f"Embedding {gallery.state().total:,} images of {self.folder}; the page shows the progress.")
        return app, gallery, lines

    def _check_writes(self, access: Access) -> None:
        if self.allow_writes is None:
            return
        if self.index is None:
            raise ValueError("allow_writes: need an index that images are put into, got none; add --index INDEX")
        if not access.token:
            raise ValueError("allow_writes: need a token that writing clients send, got none; add --token-file FILE")

    def _check_processes(self) -> None:
        most = self.processes
        if not 1 <= most <= _MOST_PROCESSES:
            raise ValueError(f"processes: need 1 to {_MOST_PROCESSES}, got {most}")
        if most == 1:
            return
        if self.folder is not None:
            raise ValueError(
                f"processes: need --index to share between {most}, got --folder, which each would embed; build one: "
                f"diml index build {self.folder} --index shop.index"
            )
        if self.index is not None and Path(self.index).suffix == ".db" and "://" not in self.index:
            raise ValueError(
                f"processes: need an index in a folder or on a Milvus server for {most}, got {self.index} of Milvus "
                "Lite, which admits one process"
            )

    def _access(self) -> Access:
        from diml.web.access import Access, read_token

        own = () if self.host in ("0.0.0.0", "::", "") else (self.host,)
        token = "" if self.token_file is None else read_token(self.token_file.expanduser())
        return Access(
            hosts=(*own, *self.allowed_hosts), root_path=self.root_path, token=token, origins=self.allow_origins
        )

    def _limits(self) -> Limits:
        from diml.web.limits import Limits

        sizes = ("max_megabytes", "max_megapixels", "max_requests", "max_waiting", "max_connections")
        for name in (*sizes, "timeout", "stop_seconds"):
            value = getattr(self, name)
            if not 0 < value < math.inf:
                raise ValueError(f"{name}: need {'a finite number' if value > 0 else 'more than 0'}, got {value}")
        if self.batch_size < 1:
            raise ValueError(f"batch_size: need at least 1, got {self.batch_size}")
        return Limits(
            body_bytes=int(self.max_megabytes * 2**20),
            pixels=int(self.max_megapixels * 1e6),
            requests=self.max_requests,
            waiting=self.max_waiting,
            connections=self.max_connections,
            header_seconds=min(10.0, self.timeout / 2),
            upload_seconds=self.timeout / 2,
            stall_seconds=min(10.0, self.timeout / 2),
            work_seconds=self.timeout,
        )

    def _engine(self) -> tuple[Engine, IndexWriter | None, list[str]]:
        """Load the model and open what is searched; with lines that say what is unusual."""
        from diml.web import Engine
        from diml.web.index import IndexGallery
        from diml.web.writes import IndexWriter

        gallery: Gallery | None
        writer = None
        if self.index is not None:
            searcher = self._searcher(self.index)
            embedder, own = searcher.embedder, searcher.matcher
            matcher, model = self.matcher.applied_to(own), self.model.model or searcher.source
            searcher.check_matcher(matcher)
            gallery = IndexGallery(searcher, Path(self.index).name)
            if self.allow_writes is not None:
                writer = IndexWriter(searcher, self.allow_writes)
            calibration = searcher.calibration_for(matcher)
        else:
            embedder = self.model.open()
            own, model = embedder.matcher, str(self.model.settings()["model"])
            matcher = self.matcher.for_model(embedder)  # before a folder is embedded
            calibration = self._calibration(model, embedder, matcher)
            gallery = self._folder_gallery(embedder)
        lines = [self.matcher.notice(own), calibration.notice, _announced(calibration)]
        engine = Engine(
            embedder,
            matcher=matcher,
            gallery=gallery,
            about={"model": model, "grid": embedder.grid} | embedder.preprocess.resizing(),
            calibration=calibration,
            false_accept_rate=self.false_accept_rate,
        )
        return engine, writer, [line for line in lines if line]

    def _calibration(self, model: str, embedder: Embedder, matcher: Matcher) -> FoundCalibration:
        from diml.calibration.finding import find_calibration

        return find_calibration([model], fingerprint=embedder.fingerprint(), matcher=matcher, named=self.calibration)

    def _searcher(self, index: str) -> Searcher:
        from diml.search import Searcher

        self.model.refuse_for_index()
        return Searcher.open(index, model=self.model.model, calibration=self.calibration, device=self.model.device)

    def _folder_gallery(self, embedder: Embedder) -> FolderGallery | None:
        from diml.web.folder import FolderGallery

        if self.folder is None:
            return None
        cache = embedding_cache() if self.cache else None
        gallery = FolderGallery(self.folder, embedder, cache=cache, batch_size=self.batch_size)
        gallery.start()
        threading.Thread(target=_report_embedding, args=(gallery,), daemon=True).start()
        return gallery

    def _announce(self, lines: Sequence[str], port: int) -> None:
        for line in lines:
            print(line)
        host = "127.0.0.1" if self.host in ("0.0.0.0", "::", "") else self.host
        address = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
        address += f"{self.root_path}/" if self.root_path else ""
        if self.keep is not None:
            print(f"Uploaded images are saved in {self.keep}.")
        if self.allow_writes is not None:
            print(f"Clients may change the index; the files of their images are kept in {self.allow_writes}.")
        how = f" with {self.processes} processes" if self.processes > 1 else ""
        print(f"Serving {address}{how} (Ctrl-C stops it)", flush=True)
        if self.open:
            webbrowser.open(address)


def _report_embedding(gallery: FolderGallery) -> None:
    """Print the result of embedding in the terminal."""
    from diml.web.folder import STOPPED

    state = gallery.wait()
    if state.phase == "failed":
        if state.error == STOPPED:
            return
        print(f"The folder cannot be searched: {state.error}", flush=True)
        return
    print(f"Ready to search {state.count:,} images after {state.seconds:.0f} seconds.", flush=True)
    if gallery.left_out:
        print(gallery.left_out, flush=True)
    for bad in state.bad[:10]:
        print(f"  {bad_image_line(bad)}", flush=True)
    if len(state.bad) > 10:
        print(f"  and {len(state.bad) - 10} more; /api/status lists them", flush=True)


def _announced(calibration: FoundCalibration) -> str:
    found = calibration.calibrator
    if found is None:
        return ""
    return f"Calibrated on {found.data} ({found.classes:,} classes), in {calibration.place}."


COMMAND = ServeCommand
