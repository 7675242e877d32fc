"""The server of `diml serve`: images compared and searched in the browser, and a JSON API that does the same.

Read in this order: `gallery` (what can be searched), `folder` (a folder in memory), `index` (one on disk),
`engine` (embed, match, search),
`schemas` (the JSON), `app` (the addresses); `uploads`, `errors`, `limits`, `guard` and `work` keep strangers and
accidents out. `server` opens the port. The page is in `page/`; it uses the viewer of `diml.explain`.
"""

from diml.web.app import create_app
from diml.web.engine import Engine
from diml.web.folder import FolderGallery
from diml.web.gallery import Gallery, GalleryHit, GalleryItem, GalleryState
from diml.web.limits import Limits
from diml.web.server import open_port, serve

__all__ = [
    "Engine",
    "FolderGallery",
    "Gallery",
    "GalleryHit",
    "GalleryItem",
    "GalleryState",
    "Limits",
    "create_app",
    "open_port",
    "serve",
]
