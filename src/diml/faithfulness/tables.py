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
    "sharpened": "plan, sharpened",
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
    "other pair": "credit of another pair",
    "reversed": "reversed order",
}
UNMATCHED: Final = {
    "permuted": "same of the query, partners permuted",
    "shifted": "same of the query, partners shifted",
    "same place": "same of the query, at the same place",
    "random": "random regions on both sides",
}


def tables(found: FaithfulnessReport, network: str = MODEL) -> list[Table]:
    """One table for each measure of one network."""
    estimates = found.estimates[network]
    made = [_additivity(estimates), _deletion(estimates)]
    for ledger in LEDGERS:
        made += [
            _controls(estimates, ledger),
            *(_interaction(estimates, ledger, what) for what in ("area", "interaction")),
        ]
        made.append(_changes(estimates, ledger))
    made += [_correspondence(estimates), _stability(estimates)]
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
    for method in dict.fromkeys(method for _, method, _ in numbers if "/" not in method):
        cells = []
        for measure in ("deletion", "insertion"):
            cells.append(f"{numbers[measure, method, 'area'].value:.3f}")
            cells.append(_difference(numbers.get((measure, method, "area_less_random"))))
        table.add_row(NAMES[method], *cells)
    return table


def _controls(estimates: tuple[Estimate, ...], ledger: str) -> Table:
    caption = (
        "Area by the control, and area by credit minus that, paired; credit is better: deletion < 0, insertion > 0."
    )
    columns = ("control", "deletion", "credit less control", "insertion", "credit less control")
    table = _table(f"Controls of the same spatial structure, {NAMES[ledger]}", caption, columns)
    _add_compared(table, estimates, ("deletion", "insertion"), ledger, "area", CONTROLS)
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
    matched = {f.measure: f for f in estimates if (f.method, f.quantity) == (ledger, quantity)}
    if all(measure in matched for measure in measures):
        table.add_row("matched by the ledger", *(c for m in measures for c in (f"{matched[m].value:.3f}", "")))
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


def _table(title: str, caption: str, columns: Iterable[str]) -> Table:
    table = Table(title=title, title_justify="left", caption=caption, caption_justify="left")
    for place, column in enumerate(columns):
        table.add_column(
            column, overflow="fold", justify="left" if place == 0 or column in ("method", "of") else "right"
        )
    return table


def _percent(share: float) -> str:
    return f"{100 * share:.1f}"
