"""The port: this machine's own, and told when it is taken."""

from __future__ import annotations

import pytest

from diml.web.limits import Limits
from diml.web.server import open_port


def test_a_free_port_of_this_machine_is_taken() -> None:
    with open_port(0) as taken:
        host, port = taken.getsockname()
        assert host == "127.0.0.1"
        assert port > 0
        with pytest.raises(OSError, match=f"port: {port} of 127.0.0.1 is in use.*--port {port + 1}"):
            open_port(port)


@pytest.mark.parametrize("port", [-1, 65536])
def test_numbers_that_are_no_port_are_refused(port: int) -> None:
    with pytest.raises(ValueError, match=f"port: need 0 to 65535, got {port}"):
        open_port(port)


@pytest.mark.parametrize("name", ["body_bytes", "pixels", "requests", "upload_seconds", "work_seconds"])
@pytest.mark.parametrize("value", [0, -1, float("nan")])
def test_limits_are_above_zero(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"{name}: need more than 0"):
        Limits(**{name: value})
