"""The progress bar, and functions in its place."""

import pytest

from diml.progress import progress_bar


def test_a_function_is_called_for_every_image_also_the_bad_ones(tiny, paths, tmp_path):
    (tmp_path / "torn.png").write_bytes(b"torn")
    finished = []
    tiny().embed_checked([*paths, tmp_path / "torn.png"], batch_size=2, progress=finished.append, on_bad_image="skip")
    assert sum(finished) == len(paths) + 1
    assert max(finished) <= 2


def test_an_error_of_the_function_ends_the_embedding(tiny, paths):
    def enough(_: int) -> None:
        raise InterruptedError("enough")

    with pytest.raises(InterruptedError, match="enough"):
        tiny().embed(paths, batch_size=1, progress=enough)


def test_without_a_bar_nothing_is_printed(capsys):
    with progress_bar(3, show=False) as advance:
        advance(3)
    assert capsys.readouterr() == ("", "")
