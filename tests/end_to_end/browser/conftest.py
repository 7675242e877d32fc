"""Debian's Chromium without a window, driven by Playwright; pages are opened as files, and nothing may be requested."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = Path("/usr/bin/chromium")
#: Chromium of itself asks its maker for updates and much else; as root it needs to be told to run without a sandbox.
ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-quic",
]
SIZES = {"desktop": (1200, 900), "phone": (360, 740)}

#: Milliseconds to wait for what must come in the end, also on a machine that is busy with other things.
PATIENCE = 90_000

OpenPage = Callable[..., Any]


@pytest.fixture(scope="session")
def chromium() -> Path:
    """The browser; installed where this is root's Debian, else the tests skip."""
    pytest.importorskip("playwright.sync_api", reason="playwright is not installed; it is in the extra `dev`")
    if CHROMIUM.exists():
        return CHROMIUM
    debian = Path("/etc/debian_version").exists() and shutil.which("apt-get") is not None
    if not debian or sys.platform != "linux" or os.geteuid() != 0:
        pytest.skip(f"no {CHROMIUM}, and it is installed by the tests only as root on Debian: apt-get install chromium")
    trouble = ""
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for words in (["update", "-qq"], ["install", "-y", "-qq", "--no-install-recommends", "chromium"]):
        command = ["apt-get", "-o", "DPkg::Lock::Timeout=600", *words]  # another process may be installing it
        try:
            done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False, timeout=900)
            trouble = done.stderr.strip()[-300:]
        except subprocess.TimeoutExpired:
            trouble = "it took more than 15 minutes"
    if not CHROMIUM.exists():
        pytest.skip(f"apt-get could not install chromium: {trouble}")
    return CHROMIUM


@pytest.fixture(scope="module")
def browser(chromium: Path) -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=str(chromium), args=ARGUMENTS, timeout=PATIENCE)
        yield started
        started.close()


@pytest.fixture
def open_page(browser: Any) -> Iterator[OpenPage]:
    """`open_page(path, size="desktop", scheme="light", first="JavaScript that runs before the page's own")`.

    In the end no error and no request may have been seen.
    """
    contexts, troubles = [], []

    def open_(path: Path, size: str = "desktop", scheme: str = "light", first: str = "") -> Any:
        width, height = SIZES[size]
        context = browser.new_context(
            viewport={"width": width, "height": height}, color_scheme=scheme, has_touch=size == "phone"
        )
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(PATIENCE)
        page.on("pageerror", lambda error: troubles.append(f"error: {error}"))
        page.on("console", lambda message: message.type == "error" and troubles.append(f"console: {message.text}"))
        page.on("request", lambda request: _is_ours(request.url, path) or troubles.append(f"request: {request.url}"))
        page.add_init_script(first)
        page.goto(path.as_uri())
        return page

    yield open_
    for context in contexts:
        context.close()
    assert troubles == []


def _is_ours(address: str, path: Path) -> bool:
    return address.startswith("data:") or address.split("#")[0] == path.as_uri()
