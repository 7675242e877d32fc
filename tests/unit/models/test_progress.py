"""How far embedding has come is told to whom asks."""

import pytest

from diml.progress import image_progress


def test_a_function_is_told_of_every_image_the_bad_ones_too(tiny, paths, tmp_path):
    (tmp_path / "torn.png").write_bytes(b"torn")
    told = []
    tiny().embed_checked([*paths, tmp_path / "torn.png"], batch_size=2, progress=told.append, on_bad_image="skip")
    assert sum(told) == len(paths) + 1
    assert max(told) <= 2


def test_an_error_of_the_function_ends_the_embedding(tiny, paths):
    def enough(_: int) -> None:
        raise InterruptedError("enough")

    with pytest.raises(InterruptedError, match="enough"):
        tiny().embed(paths, batch_size=1, progress=enough)


def test_without_a_bar_nothing_is_printed(capsys):
    with image_progress(3, show=False) as advance:
        advance(3)
    assert capsys.readouterr() == ("", "")
