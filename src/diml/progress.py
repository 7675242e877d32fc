"""The progress bar of every long task: one style, on standard error."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

ShowProgress = bool | Callable[[float], None]
"""Whether to draw a progress bar; or a function called with the number of items finished since its last call."""


@contextlib.contextmanager
def progress_bar(
    total: int, *, show: ShowProgress, what: str = "embedding", unit: str = "images"
) -> Iterator[Callable[[float], None]]:
    """Yield a function that advances the bar by a number of items; it draws on standard error when `show` is true.

    Args:
        total: number of items, at least 0.
        show: False draws nothing; a function takes the place of the bar, and an error that it raises ends the task.
        what: name of the task, left of the bar.
        unit: plural noun for the items.

    Example:
        >>> with progress_bar(len(paths), show=True, what="reading", unit="files") as advance:
        ...     advance(1)
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
        TextColumn(unit),
        TextColumn("{task.fields[speed_text]}"),
        TimeRemainingColumn(elapsed_when_finished=True),
    )
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(what, total=total, speed_text="")

        def advance(items: float) -> None:
            bar.advance(task, items)
            speed = bar.tasks[task].finished_speed or bar.tasks[task].speed
            bar.update(task, speed_text=f"{speed:.0f}/s" if speed else "")

        yield advance
