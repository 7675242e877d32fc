"""Who may use the server, and under which address: names of hosts, prefix of the path, token, pages elsewhere."""

from __future__ import annotations

import base64
import binascii
import hmac
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from diml.spelling import shown
from diml.web.errors import ApiError

#: Names of this machine, which are always answered.
LOCAL_HOSTS: Final = frozenset({"127.0.0.1", "localhost", "[::1]"})
#: Answered to everybody, as orchestrators ask by the address of a container and without a token.
PROBES: Final = frozenset({"/healthz", "/readyz"})

_SHORTEST_TOKEN: Final = 16
_LONGEST_TOKEN: Final = 4096
_HOST: Final = re.compile(r"[a-z0-9_.-]+|\[[0-9a-f:.]+\]")
#: As browsers send it: in lower case, without the port that is usual for the scheme.
_ORIGIN: Final = re.compile(r"https?://(?:[a-z0-9_.-]+|\[[0-9a-f:.]+\])(?::[0-9]{1,5})?")
_USUAL_PORTS: Final = {"http": ":80", "https": ":443"}
_ROOT: Final = re.compile(r"(?:/[A-Za-z0-9_.~-]+)*")
#: A browser asks for the token once, and sends it with every request afterwards. Chromium does not find it after
#: another challenge in the same header; programs send Bearer without being asked.
_CHALLENGE: Final = 'Basic realm="diml", charset="UTF-8"'


@dataclass(frozen=True, kw_only=True)
class Access:
    """Who may use the server.

    Args:
        hosts: names under which it is reached, besides those of this machine; without scheme and port.
        root_path: prefix of all addresses behind a proxy, such as "/images"; the proxy may remove it or not.
        token: what every request has to send, except for `/healthz` and `/readyz`; "" for none.
        origins: of other pages whose scripts may use the API, such as "https://shop.example.com".

    Raises:
        ValueError: one of them is not of this form.
    """

    hosts: Collection[str] = ()
    root_path: str = ""
    token: str = field(default="", repr=False)
    origins: Collection[str] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "hosts", frozenset(_host(name) for name in self.hosts))
        object.__setattr__(self, "origins", frozenset(_origin(name) for name in self.origins))
        if not _ROOT.fullmatch(self.root_path) or {".", ".."} & set(self.root_path.split("/")):
            raise ValueError(
                f"root_path: need a path without a slash at its end, such as /images, got {shown(self.root_path)}"
            )
        if self.token:
            _check_token(self.token, "token")

    def route_of(self, path: str) -> str:
        """The path of a request without the prefix, as the routes have it."""
        root = self.root_path
        return path[len(root) :] if root and path.startswith(f"{root}/") else path

    def check_host(self, headers: Mapping[str, str]) -> None:
        """Reject other names than those of the server; any port, as a tunnel or proxy may use another one."""
        host = headers.get("host", "")
        name, _, port = host.rpartition(":") if not host.endswith("]") and ":" in host else (host, "", "")
        name = name.lower()
        if (name not in LOCAL_HOSTS and name not in self.hosts) or (port and not port.isdigit()):
            names = ", ".join(["127.0.0.1", "localhost", *sorted(self.hosts)])
            raise ApiError(
                421, "wrong_host", f"This server answers for {names}, not for {host[:80]!r}.",
                "Open it as http://127.0.0.1 and its port, from another machine with ssh -L; "
                "or start diml serve with --allowed-hosts and this name.",
            )  # fmt: skip

    def check_token(self, headers: Mapping[str, str]) -> None:
        """Reject requests without the token, which is compared in constant time."""
        if not self.token:
            return
        sent = _sent_token(headers.get("authorization", ""))
        if not hmac.compare_digest(sent.encode("utf-8", "surrogatepass"), self.token.encode()):
            raise ApiError(
                401, "wrong_token" if sent else "no_token",
                "The token is not that of the server." if sent else "This server needs a token.",
                "Send the header `Authorization: Bearer TOKEN` with the token of diml serve --token-file; "
                "a browser asks for it as a password, with any user name.",
                {"WWW-Authenticate": _CHALLENGE},
            )  # fmt: skip


def read_token(path: Path) -> str:
    """Read the token of a file.

    Args:
        path: of a text file with the token alone, of 16 to 4096 visible ASCII characters.

    Raises:
        OSError: it cannot be read.
        ValueError: it has no such token.
    """
    with path.open("rb") as file:
        content = file.read(2 * _LONGEST_TOKEN)
    token = content.decode("ascii", "replace").strip()
    _check_token(token, f"token_file {path}")
    return token


def _check_token(token: str, name: str) -> None:
    if not _SHORTEST_TOKEN <= len(token) <= _LONGEST_TOKEN or not re.fullmatch(r"[!-~]+", token):
        raise ValueError(
            f"{name}: need a token of {_SHORTEST_TOKEN} to {_LONGEST_TOKEN} visible ASCII characters without spaces, "
            f"got {len(token)} characters; python -c 'import secrets; print(secrets.token_urlsafe(32))' makes one"
        )


def _host(name: str) -> str:
    lower = name.lower()
    lower = f"[{lower}]" if ":" in lower and re.fullmatch(r"[0-9a-f:.]+", lower) and lower.count(":") > 1 else lower
    if not _HOST.fullmatch(lower):
        raise ValueError(
            f"allowed_hosts: need names without scheme, port and path, such as images.example.com, got {shown(name)}"
        )
    return lower


def _origin(name: str) -> str:
    lower = name.lower().removesuffix("/")
    if not _ORIGIN.fullmatch(lower):
        raise ValueError(
            "allow_origins: need origins of pages, scheme and host and perhaps a port, such as "
            f"https://shop.example.com, got {shown(name)}"
        )
    return lower.removesuffix(_USUAL_PORTS[lower.partition(":")[0]])


def _sent_token(header: str) -> str:
    """The token of an Authorization header: of Bearer, or the password of Basic; "" where there is none."""
    scheme, _, value = header.strip().partition(" ")
    if scheme.lower() == "bearer":
        return value.strip()
    if scheme.lower() != "basic":
        return ""
    try:
        return base64.b64decode(value.strip(), validate=True).decode().partition(":")[2]
    except (binascii.Error, ValueError):
        return ""
