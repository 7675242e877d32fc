"""`diml datasets`: list the known data sets and check local copies."""

from __future__ import annotations

import json as json_format
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

if TYPE_CHECKING:
    from diml.data.datasets import DataSetCheck
    from diml.data.registry import DataSetInfo


@dataclass(frozen=True, kw_only=True)
class DatasetsCommand:
    """List the known data sets and the local copies found, or compare a copy with the known totals.

    For instance:

    diml datasets --data /mnt/images

    diml datasets show market1501

    diml datasets check cub200 --data /mnt/images

    diml datasets check orl

    diml datasets check csv --data shop.csv
    """

    action: Annotated[Literal["list", "show", "check"], tyro.conf.Positional] = "list"
    """`list` all data sets, `show` how to get one and which files are expected, or `check` one by counting its images
    and classes."""

    name: Annotated[str | None, tyro.conf.Positional, tyro.conf.arg(metavar="[NAME]")] = None
    """Data set to show or check."""

    data: Path = Path("data")
    """Folder that contains the data sets; to check `folder` or `csv`, that folder or file itself."""

    json: bool = False
    """Print JSON instead of a table."""

    def run(self) -> int:
        """Print the list or the check; returns 1 if the checked data set differs from the known totals, else 0."""
        if self.action == "check":
            return self._check()
        if self.action == "show":
            self._show()
            return 0
        if self.name is not None:
            raise ValueError(
                f"name: only `show` and `check` take a name, got {self.name!r}; use `diml datasets check {self.name}`"
            )
        self._list()
        return 0

    def _list(self) -> None:
        from diml.data.registry import dataset_info, dataset_names

        rows = [_row(dataset_info(name), self.data) for name in dataset_names()]
        if self.json:
            print(json_format.dumps({"data": str(self.data), "datasets": rows}, indent=2))
            return
        _print_list(rows, self.data)

    def _show(self) -> None:
        from diml.data.registry import dataset_info, dataset_names

        if self.name is None:
            raise ValueError(f"name: `show` needs a data set, one of {', '.join(dataset_names())}")
        row = _row(dataset_info(self.name), self.data)
        if self.json:
            print(json_format.dumps(row, indent=2))
        else:
            _print_one(row)

    def _check(self) -> int:
        from diml.data.datasets import check_dataset, place_or_fetch
        from diml.data.registry import dataset_names

        if self.name is None:
            raise ValueError(f"name: `check` needs a data set, one of {', '.join(dataset_names())}")
        check = check_dataset(self.name, place_or_fetch(self.name, self.data))
        if self.json:
            print(json_format.dumps(_as_dict(check), indent=2))
        else:
            _print_check(check)
        return 0 if check.ok else 1


COMMAND = DatasetsCommand


def _row(info: DataSetInfo, data: Path) -> dict[str, Any]:
    """Return the known facts of one data set and what is found of it, without fetching anything."""
    from diml.assets import asset_status
    from diml.data.datasets import check_dataset, locate_dataset

    place = locate_dataset(info.name, data)
    kept = {status.asset.name for status in asset_status() if status.cached} if info.assets else set()
    cached = bool(info.assets) and kept.issuperset(info.assets)
    check: DataSetCheck | None = None
    found = "not found"
    if place is not None or cached:
        try:
            check = check_dataset(info.name, None if place is None else data)
            found = "complete" if check.ok else "; ".join(check.differences)
        except (ValueError, FileNotFoundError) as error:
            found = str(error)
    elif info.assets:
        found = "not fetched yet; fetched on first use"
    elif not info.folders:
        found = "your own images"
    return {
        "name": info.name,
        "description": info.description,
        "protocols": list(info.protocols),
        "expected_images": info.images,
        "expected_classes": info.classes,
        "layout": info.layout,
        "how_to_get": info.how_to_get,
        "credit": info.credit,
        "metrics": list(info.metrics),
        "place": None if check is None else str(check.place),
        "images": None if check is None else check.images,
        "classes": None if check is None else check.classes,
        "found": found,
    }


def _as_dict(check: DataSetCheck) -> dict[str, Any]:
    import dataclasses

    return {**dataclasses.asdict(check), "place": str(check.place), "ok": check.ok}


def _print_list(rows: list[dict[str, Any]], data: Path) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(title=f"Data sets, local copies searched in {escape(str(data))}")
    table.add_column("name", no_wrap=True)
    table.add_column("protocols")
    table.add_column("images", justify="right", no_wrap=True)
    table.add_column("classes", justify="right", no_wrap=True)
    table.add_column("found", overflow="fold")
    for row in rows:
        known = [_count(row["expected_images"]), _count(row["expected_classes"])]
        table.add_row(row["name"], escape("\n".join(row["protocols"])), *known, escape(row["found"]))
    console = Console()
    console.print(table)
    console.print("The first protocol is the default. How to get one, and the files expected: diml datasets show NAME")
    console.print("Count the images of one: diml datasets check NAME --data ROOT")


def _print_one(row: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(show_header=False, title=row["name"])
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    sizes = f"{_count(row['expected_images'])} images, {_count(row['expected_classes'])} classes"
    lines = {
        "what it is": row["description"],
        "protocols": ", ".join(row["protocols"]) + (" (the first is the default)" if len(row["protocols"]) > 1 else ""),
        "metrics": ", ".join(row["metrics"]) or "the standard ones",
        "files": row["layout"],
        "how to get it": row["how_to_get"],
        "expected": sizes if row["expected_images"] is not None else "-",
        "credit": row["credit"] or "-",
        "found": row["found"],
    }
    for what, text in lines.items():
        table.add_row(what, escape(text))
    Console().print(table)


def _count(number: int | None) -> str:
    return "-" if number is None else f"{number:,}"


def _print_check(check: DataSetCheck) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table()
    table.add_column(check.name)
    table.add_column("found", justify="right")
    table.add_column("expected", justify="right")
    for what, found, expected in (
        ("images", check.images, check.expected_images),
        ("classes", check.classes, check.expected_classes),
    ):
        table.add_row(what, _count(found), _count(expected))
    console = Console()
    console.print(f"Checked {escape(str(check.place))}", soft_wrap=True)
    console.print(table)
    for difference in check.differences:
        console.print(f"[red]differs:[/red] {escape(difference)}", soft_wrap=True)
    if check.ok:
        console.print("[green]complete[/green]" if check.expected_images is not None else "[green]readable[/green]")
