"""Requests of any form get an answer of the API below 500: thousands in the slow set, about a hundred by default."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from served import content_of, drawn

Client = Callable[..., Any]
IMAGE = content_of(drawn(0))

ADDRESSES = (
    "/api/status",
    "/api/gallery",
    "/api/gallery/image",
    "/api/search",
    "/api/explain",
    "/",
    "/x",
    "/api/..%2f",
)
NUMBERS = ("9223372036854775807", "-1", "1e9", "nan", "0", "", "9" * 400, "\u0663", "true", "1 or 1=1")
WORDS = st.sampled_from(NUMBERS) | st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
QUERY = st.dictionaries(
    st.sampled_from(["offset", "limit", "k", "rerank_at", "where", "id", "epsilon", "share", "top", "x"]),
    WORDS,
    max_size=4,
)
PART = st.one_of(
    st.binary(max_size=60),
    st.sampled_from([IMAGE, IMAGE[:200], b"", b"GIF89a", b"%!PS-Adobe-3.0"]),
)
FILES = st.lists(st.tuples(st.sampled_from(["a", "b", "query", "image", "x"]), PART), max_size=3)
HEADERS = st.dictionaries(
    st.sampled_from(["content-type", "accept", "range", "origin", "cookie", "x-forwarded-for"]),
    st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=40).map(str.strip),
    max_size=2,
)


@pytest.mark.parametrize("count", [80, pytest.param(19_000, marks=pytest.mark.slow)])
def test_no_request_is_a_server_error(client: Client, count: int) -> None:
    talk = client()

    @settings(
        max_examples=count,
        derandomize=count < 1000,
        deadline=None,
        database=None,
        phases=(Phase.generate,),
        suppress_health_check=list(HealthCheck),
    )
    @given(st.sampled_from(["GET", "POST", "HEAD", "PUT", "DELETE"]), st.sampled_from(ADDRESSES), QUERY, FILES, HEADERS)
    def check(
        method: str, address: str, query: dict[str, str], files: list[tuple[str, bytes]], headers: dict[str, str]
    ) -> None:
        if method == "POST" and files:
            parts = [(name, ("a.png", content, "image/png")) for name, content in files]
            headers = {name: text for name, text in headers.items() if name != "content-type"}
            answer = talk.request(method, address, params=query, files=parts, headers=headers)
        else:
            answer = talk.request(method, address, params=query, headers=headers)
        assert answer.status_code < 500, (method, address, query, answer.text[:500])

    check()
