"""Logs of a run: metrics.jsonl, metrics.csv, loggers such as TensorBoard, and the progress display."""

from __future__ import annotations

import csv
import io
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from diml.checksums import DamagedError, sealed_line, unsealed_line
from diml.evaluation.metrics import METRICS
from diml.files import write_text
from diml.training.loggers import Loggers

RECORDS: Final = "metrics.jsonl"
TABLE: Final = "metrics.csv"

#: Keys of a record that say what it is about.
_PLACES: Final = ("step", "epoch", "rerank_at")

Record = dict[str, Any]


class DamagedLogWarning(UserWarning):
    """Lines of a log are not those that were written."""


class MetricLog:
    """The records of a run: one JSON object per line of `metrics.jsonl`, of `kind` start, train, validation, test or
    frozen_test (the network before training).

    `epoch` and `step` count from 1; epoch 0 is the validation before training. Metrics are fractions. A line also has
    its number, `line`, by which a missing one is noticed, and its checksum, `sha256`.

    Args:
        folder: of the run; None writes nothing (processes other than the first).
        epochs: validated epochs; later records of the file are dropped, as they will be written again.
        steps: finished steps, likewise.
        loggers: names of what else gets the numbers, see `loggers`; None: TensorBoard, where it is installed.
        settings: of the run, plain values, for these.
    """

    def __init__(
        self,
        folder: Path | None,
        *,
        epochs: int = 0,
        steps: int = 0,
        loggers: Sequence[str] | None = None,
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        self.folder = folder
        self.records: list[Record] = []
        if folder is None:
            return
        sent: list[str] = []  # to loggers, by the killed process that is resumed
        done = {"start": ("step", steps), "train": ("step", steps), "validation": ("epoch", epochs)}
        for record in read_records(folder / RECORDS):
            key, most = done.get(record["kind"], ("step", -1))
            again = record["kind"] == "validation" and steps == 0  # a run that begins anew validates its epoch 0 again
            if record[key] <= most and not again:
                self.records.append(record)
            else:
                sent.append(_place(record))
        lines = (_line(number, record) for number, record in enumerate(self.records, start=1))
        write_text(folder / RECORDS, "".join(lines))
        self._loggers = Loggers(folder, loggers, steps=steps, settings=settings, sent=sent)

    def add(self, kind: str, **values: Any) -> None:
        """Append a record to the file."""
        if self.folder is None:
            return
        record = {"kind": kind} | values
        self.records.append(record)
        with (self.folder / RECORDS).open("a", encoding="utf-8") as lines:
            lines.write(_line(len(self.records), record))
        prefix = f"{kind}/k{record['rerank_at']}" if "rerank_at" in record else kind
        numbers = {name: value for name, value in values.items() if isinstance(value, int | float)}
        numbers = {f"{prefix}/{name}": value for name, value in numbers.items() if name not in _PLACES}
        if numbers:
            self._loggers.add(numbers, values["step"], _place(record))

    def mean_loss(self, epoch: int) -> float | None:
        """Mean loss of the steps of an epoch that were taken; None if there were none."""
        losses = [
            r["loss"] for r in self.records if r["kind"] == "train" and r["epoch"] == epoch and r["loss"] is not None
        ]
        return sum(losses) / len(losses) if losses else None

    def write_table(self) -> None:
        """Write `metrics.csv`: one line per epoch with mean loss, last learning rate, speed and validation."""
        if self.folder is None:
            return
        rows: dict[int, Record] = {}
        for record in self.records:
            if record["kind"] == "train":
                speed = rows.get(record["epoch"], {}).get("images_per_second", [])
                rows[record["epoch"]] = {
                    "epoch": record["epoch"],
                    "step": record["step"],
                    "loss": self.mean_loss(record["epoch"]),
                    "lr": record["lr"],
                    "images_per_second": [*speed, record["images_per_second"]],
                }
        for row in rows.values():
            row["images_per_second"] = sum(row["images_per_second"]) / len(row["images_per_second"])
        for record in self.records:
            if record["kind"] == "validation" and record["epoch"] in rows:
                named = {f"validation_{metric}_k{record['rerank_at']}": record[metric] for metric in METRICS}
                rows[record["epoch"]] |= named
        header = list(dict.fromkeys(name for row in rows.values() for name in row))
        text = io.StringIO()
        table = csv.DictWriter(text, header, restval="", lineterminator="\n")
        table.writeheader()
        table.writerows(rows.values())
        write_text(self.folder / TABLE, text.getvalue())

    def close(self) -> None:
        """End the loggers."""
        if self.folder is not None:
            self._loggers.close()


def read_records(path: str | Path) -> list[Record]:
    """Read `metrics.jsonl`; an incomplete last line is ignored, and a missing file gives no records.

    Warns:
        DamagedLogWarning: Lines are damaged or missing; the others are given.
    """
    path = Path(path)
    if not path.is_file():
        return []
    records, faults = _read_lines(path)
    if faults:
        others = f" ({len(faults) - 1} more)" if len(faults) > 1 else ""
        warnings.warn(
            DamagedLogWarning(
                f"{path}: {faults[0]}{others}; left out of metrics.csv and {path.parent}/curves.png when the run is "
                "resumed. Weights and test results do not depend on it; copy it from a backup, if there is one"
            ),
            stacklevel=2,
        )
    return records


def _read_lines(path: Path) -> tuple[list[Record], list[str]]:
    """The records of the lines that are whole, and what is wrong with others."""
    whole, _, _ = path.read_bytes().rpartition(b"\n")  # a process that was killed may have left a part of a line
    records: list[Record] = []
    faults: list[str] = []
    number = 0
    for line in whole.split(b"\n") if whole else ():
        number += 1
        try:
            record = unsealed_line(line, path.name)
        except DamagedError:
            faults.append(f"line {number} is damaged")
            continue
        found = record.pop("line")
        if found < number:
            faults.append(f"line {found} is doubled")
            number -= 1
            continue
        if found > number:
            faults.append(f"lines {number} to {found - 1} are missing")
        number = found
        records.append(record)
    return records, faults


def _place(record: Record) -> str:
    """What a record is about, apart from its numbers."""
    return " ".join([record["kind"], *(f"{name}={record[name]}" for name in _PLACES if name in record)])


def _line(number: int, record: Record) -> str:
    return sealed_line({"line": number} | record) + "\n"


class Display:
    """A progress bar with loss, learning rate and images/s, and lines of text above it, on standard error.

    Args:
        show: whether to print anything.
    """

    def __init__(self, show: bool) -> None:
        self.show = show
        self._console = Console(stderr=True)
        self._bar: Progress | None = None

    def say(self, text: str) -> None:
        """Print a line."""
        if self.show:
            self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    @contextmanager
    def epoch(self, title: str, total: int, done: int) -> Iterator[None]:
        """Show a bar for the steps of an epoch, the first `done` of which are finished."""
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[numbers]}"),
            TimeRemainingColumn(),
        )
        if not (self.show and self._console.is_terminal):
            yield
            return
        with Progress(*columns, console=self._console, transient=True) as bar:
            self._bar = bar
            bar.add_task(title, total=total, completed=done, numbers="")
            try:
                yield
            finally:
                self._bar = None

    def step(self, loss: float, lr: float, speed: float) -> None:
        """Advance the bar by one step."""
        if self._bar is not None:
            numbers = f"loss {loss:.4f}  lr {lr:.2g}  {speed:.0f} images/s"
            self._bar.update(self._bar.task_ids[0], advance=1, numbers=numbers)
