"""The server of `diml serve`: comparison and search in the browser, and the same as a JSON API.

Read in this order: `gallery` (what can be searched), `folder` (a folder in memory), `index` (an index on disk),
`engine` (embed, match, search), `schemas` (the JSON), `app` (the routes); `access`, `parameters`, `uploads`,
`errors`, `limits` and `guard` handle untrusted and excessive requests, `metrics` counts them. `writes` and
`write_routes` let clients change an index. `server` opens the port, `processes` has several servers behind it. The page
is in `page/` and uses the viewer of `diml.explain`; that of the API is `api_page`, in `documentation/`.
"""

from diml.web.app import create_app
from diml.web.engine import Engine
from diml.web.server import serve

__all__ = ["Engine", "create_app", "serve"]
