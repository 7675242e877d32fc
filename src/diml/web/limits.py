"""How much of everything the server takes on."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What one request, and all together, may cost.

    Attributes:
        body_bytes: Of one request, all images in it together.
        pixels: Of one image, looked at before any of them is decoded.
        requests: Comparisons and searches at a time, from the first byte to the last; more are refused (503).
        upload_seconds: In which a body has to be here.
        work_seconds: After which a comparison or search is given up.

    Raises:
        ValueError: one of them is not above zero.
    """

    body_bytes: int = 32 * 2**20
    pixels: int = 50_000_000
    requests: int = 4
    upload_seconds: float = 30.0
    work_seconds: float = 60.0

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not value > 0:
                raise ValueError(f"{name}: need more than 0, got {value}")
