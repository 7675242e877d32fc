"""The description of the API is true: its routes are those of the application, and answers are of its schemas."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi", reason="fastapi is not installed; it is in the extra `web`")
pytest.importorskip("lancedb", reason="lancedb is not installed; it is in the extra `search`")
from fastapi.routing import APIRoute
from fastapi.testclient import TestClient

from diml.models import Embedder
from diml.search import Searcher, build_index, open_store
from diml.web import Engine, create_app
from diml.web.access import Access
from diml.web.index import IndexGallery
from diml.web.writes import IndexWriter
from served import MATCHER, content_of, drawn, write_shop

jsonschema = pytest.importorskip("jsonschema", reason="jsonschema is not installed; it is in the extra `dev`")
TOKEN = "an-open-secret-of-tests"
A, B = content_of(drawn(20)), content_of(drawn(31))


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory, embedder: Embedder) -> Iterator[TestClient]:
    """An application with all routes."""
    folder = tmp_path_factory.mktemp("openapi")
    embedder.save(folder / "model")
    build_index(write_shop(folder / "shop", 4), folder / "shop.index", embedder, model=str(folder / "model"))
    searcher = Searcher(open_store(folder / "shop.index"), embedder)
    engine = Engine(embedder, matcher=MATCHER, gallery=IndexGallery(searcher, "shop.index"))
    app = create_app(
        engine, access=Access(token=TOKEN, root_path="/images"), writer=IndexWriter(searcher, folder / "added")
    )
    headers = {"authorization": f"Bearer {TOKEN}"}
    with TestClient(app, base_url="http://127.0.0.1:8765", headers=headers) as client:
        yield client


@pytest.fixture(scope="module")
def document(served: TestClient) -> dict[str, Any]:
    found: dict[str, Any] = served.get("/api/openapi.json").json()
    return found


def test_it_is_valid_and_has_every_route_and_nothing_else(served: TestClient, document: dict[str, Any]) -> None:
    validator = pytest.importorskip("openapi_spec_validator", reason="it is in the extra `dev`")
    validator.validate(document)
    routes = [route for route in served.app.routes if isinstance(route, APIRoute)]  # type: ignore[attr-defined]
    told = {(path, method) for path, entry in document["paths"].items() for method in entry}
    own = {(route.path, method.lower()) for route in routes for method in route.methods}
    assert told <= own
    unsaid = {path for path, method in own - told if method != "head"}
    assert {path for path in unsaid if not path.startswith(("/page/", "/api/docs"))} == {"/", "/favicon.ico"}
    tags = {tag for path in document["paths"].values() for entry in path.values() for tag in entry["tags"]}
    assert tags == {tag["name"] for tag in document["tags"]}
    operations = [entry["operationId"] for path in document["paths"].values() for entry in path.values()]
    assert len(set(operations)) == len(operations)
    assert document["servers"] == [{"url": "/images"}]


def test_it_says_which_requests_need_the_token(served: TestClient, document: dict[str, Any]) -> None:
    assert document["components"]["securitySchemes"]["token"]["scheme"] == "bearer"
    for path, entry in document["paths"].items():
        for method, operation in entry.items():
            needed = operation.get("security", document["security"]) != []
            answer = served.request(method.upper(), path, headers={"authorization": ""})
            assert (answer.status_code == 401) == needed, (method, path)


def requests(key: str) -> list[tuple[str, str, dict[str, Any], int]]:
    """Method, address, arguments and expected status of a request of each kind."""
    two = {"query": ("a.png", A), "gallery": ("b.png", B)}
    return [
        ("GET", "/healthz", {}, 200),
        ("GET", "/readyz", {}, 200),
        ("GET", "/metrics", {}, 200),
        ("GET", "/api/status", {}, 200),
        ("GET", "/api/status", {"params": {"x": 1}}, 422),
        ("POST", "/api/match", {"files": two}, 200),
        ("POST", "/api/match", {}, 422),
        ("POST", "/api/search", {"files": {"query": A}, "params": {"hits": 2}}, 200),
        ("POST", "/api/search", {"params": {"id": key}}, 200),
        ("POST", "/api/search", {"params": {"id": key, "hits": 0}}, 422),
        ("POST", "/api/hits", {"files": {"query": A}}, 200),
        ("POST", "/api/hits", {"params": {"id": "none"}}, 404),
        ("GET", "/api/gallery", {}, 200),
        ("GET", "/api/gallery", {"params": {"offset": -1}}, 422),
        ("GET", "/api/facets", {}, 200),
        ("GET", "/api/gallery/image", {"params": {"id": key}}, 200),
        ("GET", "/api/gallery/image", {"params": {"id": "none"}}, 404),
        ("POST", "/api/images", {"files": {"image": ("a.png", A)}, "data": {"metadata": '{"label": "milk"}'}}, 201),
        ("POST", "/api/images", {"files": {"image": ("a.png", B)}}, 200),
        ("POST", "/api/images", {"files": {"image": ("a.png", A)}, "data": {"metadata": '{"x": 1}'}}, 422),
        ("DELETE", "/api/images/none", {}, 404),
    ]


def test_answers_are_of_its_schemas(served: TestClient, document: dict[str, Any]) -> None:
    key = served.get("/api/gallery").json()["items"][0]["id"]
    added = served.post("/api/images", files={"image": ("z.png", A)}).json()["id"]
    asked = set()
    for method, path, arguments, status in [*requests(key), ("DELETE", f"/api/images/{added}", {}, 200)]:
        answer = served.request(method, path, **arguments)
        assert answer.status_code == status, (method, path, answer.text)
        known = path if path in document["paths"] else f"{path.rpartition('/')[0]}/{{key}}"
        operation = document["paths"][known][method.lower()]
        asked.add((known, method.lower()))
        told = operation["responses"]
        described = told.get(str(status)) or told[f"{str(status)[0]}XX"]
        kind = answer.headers["content-type"].partition(";")[0]
        assert kind in described["content"], (method, path, described)
        if kind == "application/json":
            schema = {"$ref": f"#/{'/'.join(_pointer(document, described['content'][kind]['schema']))}", **document}
            jsonschema.Draft202012Validator(schema).validate(answer.json())
    assert asked == {(path, method) for path, entry in document["paths"].items() for method in entry}


def _pointer(document: dict[str, Any], schema: dict[str, Any]) -> list[str]:
    """Where the named schema of an answer is in the document."""
    found: list[str] = schema["$ref"].removeprefix("#/").split("/")
    return found


def test_its_page_comes_from_the_package_and_loads_nothing_from_elsewhere(served: TestClient) -> None:
    page = served.get("/api/docs")
    assert page.status_code == 200
    assert "http" not in page.text.replace("http-equiv", "")
    assert "<script>" not in page.text
    for name in ("swagger-ui-bundle.js", "swagger-ui.css", "start.js"):
        assert f"docs/{name}" in page.text
        assert served.get(f"/api/docs/{name}").status_code == 200
    assert 'url: "openapi.json"' in served.get("/api/docs/start.js").text


def test_examples_of_the_document_are_those_of_the_documentation(document: dict[str, Any]) -> None:
    text = (Path(__file__).parents[3] / "docs/serve.md").read_text()
    for path, entry in document["paths"].items():
        for method in entry:
            assert f"{method.upper()} {path}".replace("{key}", "ID") in text, (method, path)
    assert json.dumps(document)
