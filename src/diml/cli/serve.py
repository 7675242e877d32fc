"""`diml serve`: compare and search images in the browser, or with a JSON API."""

from __future__ import annotations

import threading
import webbrowser
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from diml.cli.options import MatcherFlags, MatcherOptions, ModelFlags, ModelOptions, embedding_cache
from diml.cli.output import bad_image_line
from diml.extras import require
from diml.matching import Matcher

if TYPE_CHECKING:
    from diml.calibration.finding import FoundCalibration
    from diml.models import Embedder
    from diml.search import Searcher
    from diml.web import Engine
    from diml.web.access import Access
    from diml.web.folder import FolderGallery
    from diml.web.gallery import Gallery
    from diml.web.limits import Limits


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

    root_path: str = ""
    """Prefix of all addresses behind a proxy, for instance /images."""

    token_file: Path | None = None
    """File with the token that every request has to send, as `Authorization: Bearer TOKEN`; a browser asks for it once,
    as a password."""

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

    cache: bool = True
    """Keep embeddings of the folder by content in the cache folder, so that the same images are embedded once."""

    batch_size: int = 32
    """Images per batch."""

    def run(self) -> int:
        """Open the port, load the model, start embedding, serve until Ctrl-C."""
        require("web", "the server")
        from diml.web import create_app, serve
        from diml.web.folder import checked_folder
        from diml.web.server import check_exposure, open_port

        limits, access = self._limits(), self._access()
        self.matcher.applied_to(Matcher())  # validates the settings before a model is loaded
        if not 0 < self.false_accept_rate < 1:
            raise ValueError(f"false_accept_rate: need a fraction in (0, 1), got {self.false_accept_rate}; 0.01 is 1 %")
        if self.index is not None and self.folder is not None:
            raise ValueError("index, folder: need at most one of the two, got both; serve them on different ports")
        if self.folder is not None:  # before a model is loaded
            checked_folder(self.folder)
        if self.keep is not None:
            self.keep.mkdir(parents=True, exist_ok=True)
        with open_port(self.port, self.host) as listener:
            check_exposure(listener, access)
            engine = self._engine()
            app = create_app(engine, limits=limits, keep=self.keep, access=access)
            self._announce(engine.gallery, listener.getsockname()[1])
            try:
                serve(app, listener, limits=limits)
            except KeyboardInterrupt:  # the ordinary end
                pass
            finally:
                if engine.gallery is not None:
                    engine.gallery.stop()
        print("Stopped.")
        return 0

    def _access(self) -> Access:
        from diml.web.access import Access, read_token

        own = () if self.host in ("0.0.0.0", "::", "") else (self.host,)
        token = "" if self.token_file is None else read_token(self.token_file.expanduser())
        return Access(hosts=(*own, *self.allowed_hosts), root_path=self.root_path, token=token)

    def _limits(self) -> Limits:
        from diml.web.limits import Limits

        for name in ("max_megabytes", "max_megapixels", "max_requests", "max_waiting", "max_connections", "timeout"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}: need more than 0, got {getattr(self, name)}")
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

    def _engine(self) -> Engine:
        """Load the model and open what is searched."""
        from diml.web import Engine
        from diml.web.index import IndexGallery

        gallery: Gallery | None
        if self.index is not None:
            searcher = self._searcher(self.index)
            embedder, own = searcher.embedder, searcher.matcher
            matcher, model = self.matcher.applied_to(own), self.model.model or searcher.source
            gallery = IndexGallery(searcher, Path(self.index).name)
            calibration = searcher.calibration_for(matcher)
        else:
            embedder = self.model.open()
            own, model = embedder.matcher, str(self.model.settings()["model"])
            matcher = self.matcher.applied_to(own)
            calibration = self._calibration(model, embedder, matcher)
            gallery = self._folder_gallery(embedder)
        notice = self.matcher.notice(own)
        for line in (notice, calibration.notice, _announced(calibration)):
            if line:
                print(line)
        return Engine(
            embedder,
            matcher=matcher,
            gallery=gallery,
            about={"model": model, "grid": embedder.grid, "resize": embedder.preprocess.mode},
            calibration=calibration,
            false_accept_rate=self.false_accept_rate,
        )

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

    def _announce(self, gallery: Gallery | None, port: int) -> None:
        host = "127.0.0.1" if self.host in ("0.0.0.0", "::", "") else self.host
        address = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
        address += f"{self.root_path}/" if self.root_path else ""
        if self.index is not None and gallery is not None:
            print(f"Searching {gallery.state().total:,} images of {self.index}.")
        elif gallery is not None:
            print(f"Embedding {gallery.state().total:,} images of {self.folder}; the page shows the progress.")
        if self.keep is not None:
            print(f"Uploaded images are saved in {self.keep}.")
        print(f"Serving {address} (Ctrl-C stops it)", flush=True)
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
