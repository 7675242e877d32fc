"""A model hub on the loopback interface: as much of the Hugging Face hub's protocol as pushing and fetching need."""

from __future__ import annotations

import base64
import hashlib
import json
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import huggingface_hub.hf_api  # noqa: F401 - so that its constants can be changed
import pytest

#: Tokens: one that may write everywhere, one that may only read.
WRITER, READER = "hf_writer", "hf_reader"


@dataclass
class Repository:
    """Files by name, and the number of commits."""

    private: bool
    files: dict[str, bytes] = field(default_factory=dict)
    commits: int = 0

    @property
    def sha(self) -> str:
        return hashlib.sha1(str(self.commits).encode()).hexdigest()


class LocalHub(ThreadingHTTPServer):
    """Repositories by OWNER/NAME; `asked` has every request, `METHOD PATH`."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Answers)
        self.repositories: dict[str, Repository] = {}
        self.asked: list[str] = []
        self.failing = 0  # the status with which everything is answered, or 0

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


@contextmanager
def local_hub(monkeypatch: pytest.MonkeyPatch, cache: Path) -> Iterator[LocalHub]:
    """A hub that the hub's client uses, with a token that may write, and an empty folder as its cache."""
    with LocalHub() as hub:
        template = hub.address + "/{repo_id}/resolve/{revision}/{filename}"
        changed: dict[str, Any] = {"ENDPOINT": hub.address, "HUGGINGFACE_CO_URL_TEMPLATE": template}
        changed |= {"HF_HUB_OFFLINE": False, "HF_HUB_CACHE": str(cache), "HF_TOKEN_PATH": str(cache / "no-token")}
        for module in [module for name, module in sys.modules.items() if name.startswith("huggingface_hub.")]:
            for name, value in changed.items():  # early versions copy the constants into their modules
                if name in vars(module):
                    monkeypatch.setattr(module, name, value)
        monkeypatch.setenv("HF_TOKEN", WRITER)
        monkeypatch.setattr("urllib.request.getproxies", dict)
        thread = threading.Thread(target=hub.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        try:
            yield hub
        finally:
            hub.shutdown()
            thread.join()


class _Answers(BaseHTTPRequestHandler):
    server: LocalHub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        pass

    def _answer(self, status: int, content: bytes | dict | list = b"", **headers: str) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _refuse(self, status: int, code: str, message: str) -> None:
        self._answer(status, {"error": message}, X_Error_Code=code, X_Error_Message=message)

    @property
    def _token(self) -> str:
        return self.headers.get("Authorization", "").removeprefix("Bearer ")

    def _begin(self) -> list[str] | None:
        """The parts of the path; None where the answer was given already."""
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = self.path.partition("?")[0]
        self.server.asked.append(f"{self.command} {path}")
        if self.server.failing:
            self._refuse(self.server.failing, "Failing", "as the test asked")
            return None
        if self._token not in ("", WRITER, READER):
            self._refuse(401, "", "Invalid credentials")
            return None
        return path.strip("/").split("/")

    def _repository(self, name: str) -> Repository | None:
        """A repository that the token may see, else 404 is answered."""
        found = self.server.repositories.get(name)
        if found is None or (found.private and not self._token):
            self._refuse(404 if self._token else 401, "RepoNotFound", "Repository not found")
            return None
        return found

    def _has(self, repository: Repository, revision: str) -> bool:
        """Whether a revision is the present one, the only one that is kept; else 404 is answered."""
        if revision in ("main", repository.sha):
            return True
        self._refuse(404, "RevisionNotFound", "Invalid rev id")
        return False

    def do_GET(self) -> None:
        parts = self._begin()
        if parts is None:
            return
        if parts[:2] == ["api", "models"]:
            name = "/".join(parts[2:4])
            found = self._repository(name)
            if found is None:
                return
            if parts[4:5] == ["tree"]:
                self._answer(200, [_entry(path, content) for path, content in found.files.items()])
                return
            if parts[4:5] == ["revision"] and not self._has(found, parts[5]):
                return
            siblings = [{"rfilename": path} for path in found.files]
            facts = {"id": name, "modelId": name, "sha": found.sha, "private": found.private, "tags": []}
            self._answer(200, facts | {"siblings": siblings, "downloads": 0, "likes": 0})
            return
        if parts[2:3] == ["resolve"]:
            found = self._repository("/".join(parts[:2]))
            if found is None:
                return
            if not self._has(found, parts[3]):
                return
            content = found.files.get("/".join(parts[4:]))
            commit = {"X_Repo_Commit": found.sha}
            if content is None:
                self._answer(404, b"", X_Error_Code="EntryNotFound", X_Error_Message="Entry not found", **commit)
                return
            self._answer(200, content, ETag=f'"{_oid(content)}"', **commit)
            return
        self._answer(404)

    do_HEAD = do_GET  # noqa: N815

    def do_POST(self) -> None:
        parts = self._begin()
        if parts is None:
            return
        if parts == ["api", "validate-yaml"]:
            self._answer(200, {"errors": [], "warnings": []})
            return
        if self._token != WRITER:
            self._refuse(403 if self._token else 401, "", "You have no write access")
            return
        if parts == ["api", "repos", "create"]:
            wanted = json.loads(self.body)
            name = f"{wanted['organization']}/{wanted['name']}" if wanted.get("organization") else wanted["name"]
            url = {"url": f"{self.server.address}/{name}"}
            if name in self.server.repositories:
                self._answer(409, url)
                return
            private = wanted.get("private") or wanted.get("visibility") == "private"
            self.server.repositories[name] = Repository(bool(private))
            self._answer(200, url)
            return
        found = self._repository("/".join(parts[2:4]))
        if found is None:
            return
        if parts[4] == "preupload":
            files = [{"path": file["path"], "uploadMode": "regular"} for file in json.loads(self.body)["files"]]
            self._answer(200, {"files": [file | {"shouldIgnore": False} for file in files]})
        elif parts[4] == "commit":
            for line in map(json.loads, self.body.splitlines()):
                value = line["value"]
                if line["key"] == "file":
                    assert value["encoding"] == "base64"
                    found.files[value["path"]] = base64.b64decode(value["content"])
                elif line["key"] == "deletedFile":
                    del found.files[value["path"]]
            found.commits += 1
            address = f"{self.server.address}/{'/'.join(parts[2:4])}/commit/{found.sha}"
            self._answer(200, {"success": True, "commitUrl": address, "commitOid": found.sha})


def _oid(content: bytes) -> str:
    return hashlib.sha1(f"blob {len(content)}\0".encode() + content).hexdigest()


def _entry(path: str, content: bytes) -> dict[str, Any]:
    return {"type": "file", "path": path, "size": len(content), "oid": _oid(content)}
