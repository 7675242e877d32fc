"""How far embedding has come: a bar that counts images, or a function of the caller's that is told."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

ShowProgress = bool | Callable[[int], None]
"""Whether to draw a progress bar; or a function that is told how many images more are done."""


@contextlib.contextmanager
def image_progress(total: int, *, show: ShowProgress, what: str = "embedding") -> Iterator[Callable[[int], None]]:
    """Give a function that is told how many images more are done; it draws a bar on standard error when `show`.

    Where `show` is a function, it is that function; an error that it raises ends the embedding.
    """
    if callable(show):
        yield show
        return
    if not show:
        yield lambda _: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[speed_text]}"),
        TimeRemainingColumn(elapsed_when_finished=True),
    )
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(what, total=total, speed_text="")

        def advance(images: int) -> None:
            bar.advance(task, images)
            speed = bar.tasks[task].finished_speed or bar.tasks[task].speed
            bar.update(task, speed_text=f"{speed:.0f} images/s" if speed else "")

        yield advance
