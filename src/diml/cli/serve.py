"""`diml serve`: two images compared, or one searched for in a folder, in the browser and by a JSON API."""

from __future__ import annotations

import importlib.util
import threading
import webbrowser
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from diml.cli.evaluate import embedding_cache, open_embedder

if TYPE_CHECKING:
    from diml.models import Embedder
    from diml.search import Searcher
    from diml.web import FolderGallery, Gallery, Limits


@dataclass(frozen=True, kw_only=True)
class Serve:
    """Serve a page on this machine: drop two images to see what matches what, or one to search a folder or an index
    with hits re-ranked and explained. The same by JSON: /api/match, /api/search, /api/openapi.json.

    Listens on 127.0.0.1 only. Nothing that is sent is kept, unless --keep says where.

    For instance:

    diml serve

    diml serve --folder PHOTOS --open

    diml serve --index photos.index

    diml serve --folder PHOTOS --model runs/mine --port 0 --keep sent

    curl -F query=@a.jpg -F gallery=@b.jpg http://127.0.0.1:8765/api/match
    """

    folder: Path | None = None
    """Search the images in this folder and below it; they are embedded while the server runs already."""

    index: str | None = None
    """Search this index of `diml index build` instead: nothing is embedded but the query, by the index's own model."""

    port: int = 8765
    """Port of 127.0.0.1; 0 takes any that is free."""

    open: bool = False
    """Open the page in the browser."""

    keep: Path | None = None
    """Keep every image that is sent in this folder, named by its content. By default none is kept."""

    model: str | None = None
    """A timm name, the folder of a saved embedder or run, or a checkpoint file of the released code. By default
    mobilenetv2_100; with --index that of the index, and this only says where it is now."""

    architecture: str | None = None
    """Backbone of a checkpoint file, for instance resnet50."""

    grid: int | None = None
    """Regions a side: G x G. By default 4, or what the model was saved with."""

    resize: Literal["crop", "square"] | None = None
    """`crop`: short side to 256, centre 224; `square`: all of it to 224 x 224. By default the model's own."""

    marginals: Literal["cross_correlation", "uniform"] = "cross_correlation"
    """Mass of each region: by its agreement with the other image, or the same for all."""

    epsilon: float = 0.05
    """Entropy of the transport plan, in units of cosine; smaller is sharper and takes more iterations."""

    max_megabytes: float = 32.0
    """Size of one request, both images together."""

    max_megapixels: float = 50.0
    """Size of one image; larger ones are refused before they are decoded."""

    max_requests: int = 4
    """Comparisons and searches at a time; more are refused until one has ended."""

    timeout: float = 60.0
    """Seconds after which a comparison or search is given up; a request has to be here in half of them."""

    cache: bool = True
    """Keep embeddings of the folder by content in the cache folder, so that the same images are embedded once."""

    batch_size: int = 32
    """Images in one batch."""

    device: str = "cpu"
    """Where to compute, for instance cuda."""

    def run(self) -> int:
        """Take the port, load the model, begin to embed, serve until Ctrl-C."""
        check_packages()
        from diml.web import Engine, create_app, open_port, serve
        from diml.web.folder import checked_folder

        limits = self._limits()
        if self.index is not None and self.folder is not None:
            raise ValueError("index, folder: need at most one of the two, got both; serve them on two ports")
        if self.folder is not None:  # before a model is loaded
            checked_folder(self.folder)
        if self.keep is not None:
            self.keep.mkdir(parents=True, exist_ok=True)
        taken = open_port(self.port)
        with taken:
            embedder, gallery = self._opened()
            engine = Engine(
                embedder,
                matching={"marginals": self.marginals, "epsilon": self.epsilon},
                gallery=gallery,
                about=self._settings(embedder),
            )
            app = create_app(engine, limits=limits, keep=self.keep)
            self._tell(gallery, taken.getsockname()[1])
            try:
                serve(app, taken)
            except KeyboardInterrupt:  # how it is meant to end
                pass
            finally:
                if gallery is not None:
                    gallery.stop()
        print("Stopped.")
        return 0

    def _limits(self) -> Limits:
        from diml.web import Limits

        for name in ("max_megabytes", "max_megapixels", "max_requests", "timeout"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}: need more than 0, got {getattr(self, name)}")
        if not self.epsilon > 0:
            raise ValueError(f"epsilon: need more than 0, got {self.epsilon}")
        return Limits(
            body_bytes=int(self.max_megabytes * 2**20),
            pixels=int(self.max_megapixels * 1e6),
            requests=self.max_requests,
            upload_seconds=self.timeout / 2,
            work_seconds=self.timeout,
        )

    def _opened(self) -> tuple[Embedder, Gallery | None]:
        """The embedder, and what is searched."""
        if self.index is not None:
            searcher = self._searcher(self.index)
            from diml.web.index import IndexGallery

            return searcher.embedder, IndexGallery(searcher, Path(self.index).name)
        name = self.model or "mobilenetv2_100"
        embedder = open_embedder(name, self.grid, self.resize, architecture=self.architecture).to(self.device)
        return embedder, self._folder_gallery(embedder)

    def _searcher(self, index: str) -> Searcher:
        from diml.search import Searcher

        for name in ("grid", "resize", "architecture"):
            if getattr(self, name) is not None:
                raise ValueError(f"{name}: an index has its own, got {getattr(self, name)}; leave it away")
        return Searcher.open(index, model=self.model, device=self.device)

    def _folder_gallery(self, embedder: Embedder) -> FolderGallery | None:
        from diml.web import FolderGallery

        if self.folder is None:
            return None
        cache = embedding_cache() if self.cache else None
        gallery = FolderGallery(self.folder, embedder, cache=cache, batch_size=self.batch_size)
        gallery.start()
        threading.Thread(target=_tell_of, args=(gallery,), daemon=True).start()
        return gallery

    def _settings(self, embedder: Embedder) -> dict[str, Any]:
        """What the numbers depend on, besides marginals and epsilon."""
        model = self.model or self.index or "mobilenetv2_100"
        return {"model": model, "grid": embedder.grid, "resize": embedder.preprocess.mode}

    def _tell(self, gallery: Gallery | None, port: int) -> None:
        address = f"http://127.0.0.1:{port}"
        if self.index is not None and gallery is not None:
            print(f"Searching {gallery.state().total:,} images of {self.index}.")
        elif gallery is not None:
            print(f"Embedding {gallery.state().total:,} images of {self.folder}; the page shows how far.")
        if self.keep is not None:
            print(f"Images that are sent are kept in {self.keep}.")
        print(f"Serving {address} (Ctrl-C stops it)", flush=True)
        if self.open:
            webbrowser.open(address)


def _tell_of(gallery: FolderGallery) -> None:
    """Say in the terminal how embedding ended."""
    from diml.web.folder import STOPPED

    state = gallery.wait()
    if state.phase == "failed":
        if state.trouble == STOPPED:
            return
        print(f"The folder cannot be searched: {state.trouble}", flush=True)
        return
    print(f"Ready to search {state.count:,} images after {state.seconds:.0f} seconds.", flush=True)
    for bad in state.bad[:10]:
        print(f"  left out: {bad.path}: {bad.reason}", flush=True)
    if len(state.bad) > 10:
        print(f"  and {len(state.bad) - 10} more; /api/status lists them", flush=True)


def check_packages() -> None:
    """Refuse to begin without the extra `web`."""
    missing = [name for name in ("fastapi", "uvicorn", "python_multipart") if importlib.util.find_spec(name) is None]
    if missing:
        raise ValueError(
            f"diml serve needs {', '.join(missing)}, which the extra `web` brings: pip install 'diml[web]'"
        )
