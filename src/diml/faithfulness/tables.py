"""The estimates as tables for the terminal: shares in percent, scores as fractions, with 95 % intervals."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

from rich.table import Table

from diml.faithfulness.ledgers import LEDGERS
from diml.faithfulness.report import MODEL, Estimate, FaithfulnessReport

#: Displayed names of the methods.
NAMES: Final = {
    "ledger": "the ledger",
    "ranking": "score that ranks",
    **{name: kind.label for name, kind in LEDGERS.items()},
    "weights": "weights alone",
    "argmax": "argmax cosine",
    "grad-cam": "Grad-CAM of the pooled cosine",
    "randomised": "credit by random weights",
    "random": "random order",
    "plan": "plan that scores",
    "exact": "exact plan",
    "identity": "same place",
    "uniform": "uniform",
    "random_gallery": "gallery by random weights",
    "overlap": "knows the warp: overlap",
    "ceiling": "knows the warp: ceiling",
    "chance": "chance",
}

#: What a control does to the credit of a ledger, and which regions it blurs in place of matched ones.
CONTROLS: Final = {
    "shifted": "shifted on the torus",
    "mirrored": "mirrored left-right",
    "rotated": "rotated by 90 degrees",
    "connected": "random connected regions",
    "random": "random regions",
    "other pair": "ledger of another pair",
    "reversed": "reversed order",
}
#: Controls of as many regions as the first part.
EQUAL_AREA: Final = {name: CONTROLS[name] for name in ("shifted", "mirrored", "rotated", "connected", "random")}
UNMATCHED: Final = {
    "permuted": "same of the query, partners permuted",
    "shifted": "same of the query, partners shifted",
    "same place": "same of the query, at the same place",
    "random": "random regions on both sides",
}
#: How regions are grouped, what tells occluded regions, and whose rows are counted.
PARTS_BY: Final = {
    "parts": "parts (ledger)",
    "k-means": "k-means of features",
    "argmax": "argmax cosine",
    "division": "same rectangles",
}
UNMATCHED_BY: Final = {
    "unmatched": "unmatched mass",
    "exact": "unmatched mass, exact plan",
    "cosine": "1 - largest cosine",
    "weights": "small weight",
}
ROWS_BY: Final = PARTS_BY | {"cells": "pairs of regions"}


#: Quantity, title, caption and name of the cases of the tables of parts.
PART_TABLES: Final = (
    (
        "landing",
        "Parts under a known warp",
        "Percent of the mass of regions with a counterpart that moves inside their part into its true image.",
        "warp",
    ),
    (
        "purity",
        "Parts under a known warp: what moves inside them",
        "Percent of the mass moved inside the parts that arrives in the true image of its part.",
        "warp",
    ),
    (
        "agreement",
        "Parts under a known warp: division of both images",
        "Adjusted Rand index of the parts and those of the true counterparts, in percent; chance 0.",
        "warp",
    ),
    (
        "stability",
        "Stability of parts",
        "Adjusted Rand index of the parts of both images before and after, in percent; chance 0.",
        "query",
    ),
)


def tables(found: FaithfulnessReport, network: str = MODEL) -> list[Table]:
    """One table for each measure of one network."""
    estimates = found.estimates[network]
    made = [_additivity(estimates), _deletion(estimates)]
    for ledger in LEDGERS:
        made += [
            _controls(estimates, ledger),
            _first_part(estimates, ledger),
            *(_interaction(estimates, ledger, what) for what in ("area", "interaction")),
        ]
        made.append(_changes(estimates, ledger))
    made += [_correspondence(estimates), _stability(estimates)]
    made += [_parts(estimates, *which) for which in PART_TABLES] + [_rows(estimates), _unmatched(estimates)]
    made = [table for table in made if table.row_count]
    for table in made:
        table.title = f"{table.title}, {network}"
    return made


def _additivity(estimates: Iterable[Estimate]) -> Table:
    table = _table("Additivity", "Largest error over the pairs", ("sum of the contributions against", "error"))
    for estimate in estimates:
        if estimate.measure == "additivity":
            against = "structural score of match" if estimate.method == "ledger" else "structural score of rerank"
            table.add_row(against, f"{estimate.value:.1e}")
    return table


def _deletion(estimates: tuple[Estimate, ...]) -> Table:
    caption = "Area under the curve of the score; better: deletion low, insertion high. Less random: paired difference."
    columns = ("order", "deletion", "less random", "insertion", "less random")
    table = _table("Deletion and insertion", caption, columns)
    numbers = {(f.measure, f.method, f.quantity): f for f in estimates if f.measure in ("deletion", "insertion")}
    for method in orders_of_regions(method for _, method, _ in numbers):
        cells = []
        for measure in ("deletion", "insertion"):
            cells.append(f"{numbers[measure, method, 'area'].value:.3f}")
            cells.append(_difference(numbers.get((measure, method, "area_less_random"))))
        table.add_row(NAMES[method], *cells)
    return table


def orders_of_regions(methods: Iterable[str]) -> list[str]:
    """Those methods of deletion that change single regions and are no controls of one of them, each once."""
    parts = {name for name, kind in LEDGERS.items() if kind.of_parts}
    return [method for method in dict.fromkeys(methods) if "/" not in method and method not in parts]


def _controls(estimates: tuple[Estimate, ...], ledger: str) -> Table:
    caption = (
        "Area by the control, and area by the ledger minus that, paired; the ledger is better: deletion < 0, "
        "insertion > 0."
    )
    columns = ("control", "deletion", "ledger less control", "insertion", "ledger less control")
    table = _table(f"Controls of the same spatial structure, {NAMES[ledger]}", caption, columns)
    _add_compared(table, estimates, ("deletion", "insertion"), ledger, "area", CONTROLS)
    return table


def _first_part(estimates: tuple[Estimate, ...], ledger: str) -> Table:
    caption = "Drop of the score without the largest part, and its gain by that part alone; better: higher."
    columns = ("regions", "deletion", "part less these", "insertion", "part less these")
    table = _table(f"The largest part against as many other regions, {NAMES[ledger]}", caption, columns)
    if LEDGERS[ledger].of_parts:
        _add_own(table, estimates, ("deletion", "insertion"), ledger, "change_1", "largest part")
        _add_compared(table, estimates, ("deletion", "insertion"), ledger, "change_1", EQUAL_AREA)
    return table


def _interaction(estimates: tuple[Estimate, ...], ledger: str, quantity: str) -> Table:
    titles = {
        "area": (
            "Interaction deletion and insertion",
            "Area under the score, regions of both images changed; matched is better: insertion high.",
        ),
        "interaction": (
            "Interaction beyond either image alone",
            "Area under both changed - query changed - gallery image changed + unchanged; matched is better: high.",
        ),
    }
    title, caption = titles[quantity]
    columns = ("regions", "deletion", "matched less these", "insertion", "matched less these")
    table = _table(f"{title}, {NAMES[ledger]}", caption, columns)
    measures = ("interaction_deletion", "interaction_insertion")
    _add_own(table, estimates, measures, ledger, quantity, "matched by the ledger")
    _add_compared(table, estimates, measures, ledger, quantity, UNMATCHED)
    return table


def _changes(estimates: tuple[Estimate, ...], ledger: str) -> Table:
    caption = (
        "Drop of the score (deletion) or its gain (insertion) after each step, and that minus the control's, paired."
    )
    columns = ("step", "matched", *(f"less {name}" for name in UNMATCHED))
    table = _table(f"Interaction, step by step, {NAMES[ledger]}", caption, columns)
    numbers = {(f.measure, f.quantity): f for f in estimates if f.method == ledger}
    for measure in ("interaction_deletion", "interaction_insertion"):
        steps = sum(1 for name, quantity in numbers if name == measure and _is_step(quantity))
        for step in range(1, steps + 1):
            change = numbers[measure, f"change_{step}"]
            less = [numbers.get((measure, f"change_{step}_less_{name}")) for name in UNMATCHED]
            label = f"{measure.partition('_')[2]} {step}/{steps}"
            table.add_row(label, f"{change.value:.3f}", *(_difference(found) for found in less))
        table.add_section()
    return table


def _is_step(quantity: str) -> bool:
    return quantity.startswith("change_") and "less" not in quantity


def _add_own(
    table: Table, estimates: Iterable[Estimate], measures: tuple[str, str], ledger: str, quantity: str, label: str
) -> None:
    """A row with the values of the ledger itself, if it was measured."""
    own = {f.measure: f for f in estimates if (f.method, f.quantity) == (ledger, quantity)}
    if all(measure in own for measure in measures):
        table.add_row(label, *(cell for measure in measures for cell in (f"{own[measure].value:.3f}", "")))


def _add_compared(
    table: Table,
    estimates: Iterable[Estimate],
    measures: tuple[str, str],
    ledger: str,
    quantity: str,
    controls: Mapping[str, str],
) -> None:
    """A row for each control that was measured: for both measures its value, and the ledger's minus that."""
    numbers = {(f.measure, f.method, f.quantity): f for f in estimates}
    for control, name in controls.items():
        cells = []
        for measure in measures:
            found = numbers.get((measure, f"{ledger}/{control}", quantity))
            if found is not None:
                cells += [f"{found.value:.3f}", _difference(numbers[measure, ledger, f"{quantity}_less_{control}"])]
        if cells:
            table.add_row(name, *cells)


def _difference(estimate: Estimate | None) -> str:
    return "" if estimate is None else f"{estimate.value:+.3f} ({estimate.low:+.3f}..{estimate.high:+.3f})"


def _correspondence(estimates: tuple[Estimate, ...]) -> Table:
    caption = "Percent of the mass of regions with a counterpart; strongest: their strongest match is the true cell."
    columns = ("warp", "method", "mass on true cell", "within one", "strongest", "of regions")
    table = _table("Correspondence", caption, columns)
    numbers = {(f.case, f.method, f.quantity): f for f in estimates if f.measure == "correspondence"}
    last = ""
    for case, method in dict.fromkeys((case, method) for case, method, _ in numbers):
        if case != last and last:
            table.add_section()
        mass = numbers[case, method, "mass"]
        cells = [f"{_percent(mass.value)} ({_percent(mass.low)}..{_percent(mass.high)})"]
        for quantity in ("near", "strongest", "regions"):
            estimate = numbers.get((case, method, quantity))
            cells.append("" if estimate is None else _percent(estimate.value))
        table.add_row(case if case != last else "", NAMES[method], *cells)
        last = case
    return table


def _stability(estimates: Iterable[Estimate]) -> Table:
    table = _table("Stability", "Percent of the largest pairs of regions that stay among them", ("query", "of", "same"))
    for f in estimates:
        if f.measure == "stability":
            spread = "" if f.method == "chance" else f" ({_percent(f.low)}..{_percent(f.high)})"
            table.add_row(f.case, NAMES[f.method], _percent(f.value) + spread)
    return table


def _parts(estimates: Iterable[Estimate], quantity: str, title: str, caption: str, case: str) -> Table:
    return _by_case(estimates, ("parts", quantity), (title, caption, case), PARTS_BY)


def _unmatched(estimates: Iterable[Estimate]) -> Table:
    caption = (
        "Percent of pairs of an occluded and another region that are ordered correctly (area under ROC); chance 50."
    )
    return _by_case(
        estimates, ("unmatched", "auc"), ("Occluded regions stay unmatched", caption, "occlusion"), UNMATCHED_BY
    )


def _by_case(
    estimates: Iterable[Estimate],
    which: tuple[str, str],
    heading: tuple[str, str, str],
    methods: Mapping[str, str],
) -> Table:
    """A row for each case and a column for each method of one (measure, quantity); heading: title, caption, case."""
    found = {(f.case, f.method): f for f in estimates if (f.measure, f.quantity) == which}
    columns = [name for name in methods if any(method == name for _, method in found)]
    table = _table(heading[0], heading[1], (heading[2], *(methods[name] for name in columns)))
    for case in dict.fromkeys(case for case, _ in found):
        cells = (found.get((case, name)) for name in columns)
        table.add_row(case, *("" if cell is None else _spread(cell) for cell in cells))
    return table


def _rows(estimates: Iterable[Estimate]) -> Table:
    caption = "Percent of the structural and of the whole score on the largest rows, and inside 4 parts (held)."
    found = {(f.method, f.quantity): f for f in estimates if f.measure == "parts" and not f.case}
    columns = list(dict.fromkeys(quantity for _, quantity in found))
    table = _table("Share of the score on few rows", caption, ("rows", *columns))
    for method in dict.fromkeys(method for method, _ in found):
        cells = (found.get((method, quantity)) for quantity in columns)
        table.add_row(ROWS_BY[method], *("" if cell is None else _spread(cell) for cell in cells))
    return table


def _spread(estimate: Estimate) -> str:
    return f"{_percent(estimate.value)} ({_percent(estimate.low)}..{_percent(estimate.high)})"


def _table(title: str, caption: str, columns: Iterable[str]) -> Table:
    table = Table(title=title, title_justify="left", caption=caption, caption_justify="left")
    for place, column in enumerate(columns):
        table.add_column(
            column, overflow="fold", justify="left" if place == 0 or column in ("method", "of") else "right"
        )
    return table


def _percent(share: float) -> str:
    return f"{100 * share:.1f}"
