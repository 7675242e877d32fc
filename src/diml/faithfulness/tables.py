"""The estimates as tables for the terminal: shares in percent, scores as fractions, with 95 % intervals."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from rich.table import Table

from diml.faithfulness.report import MODEL, Estimate, FaithfulnessReport

#: Displayed names of the methods.
NAMES: Final = {
    "ledger": "the ledger",
    "ranking": "score that ranks",
    "credit": "credit (ledger)",
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


def tables(found: FaithfulnessReport, network: str = MODEL) -> list[Table]:
    """One table for each measure of one network."""
    estimates = found.estimates[network]
    made = [_additivity(estimates), _deletion(estimates), _correspondence(estimates), _stability(estimates)]
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
    for method in dict.fromkeys(method for _, method, _ in numbers):
        cells = []
        for measure in ("deletion", "insertion"):
            cells.append(f"{numbers[measure, method, 'area'].value:.3f}")
            less = numbers.get((measure, method, "area_less_random"))
            cells.append("" if less is None else f"{less.value:+.3f} ({less.low:+.3f}..{less.high:+.3f})")
        table.add_row(NAMES[method], *cells)
    return table


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
        table.add_column(column, justify="left" if place == 0 or column in ("method", "of") else "right")
    return table


def _percent(share: float) -> str:
    return f"{100 * share:.1f}"
