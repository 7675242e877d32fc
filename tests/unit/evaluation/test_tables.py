"""Tables of evaluations: differences between rows, and the formats they are written in."""

from __future__ import annotations

import csv
import io
import json

import numpy as np
import pytest
from rich.console import Console

from diml.evaluation import Report
from diml.evaluation.differences import Differences, Row
from diml.evaluation.metrics import METRICS
from diml.evaluation.result_table import Cell, ResultTable
from diml.evaluation.tables import (
    csv_lines,
    difference_records,
    difference_table,
    recall_table,
    report_table,
    write_reports,
)


def report(seed: int, *, ks: tuple[int, ...] = (0, 100), metrics: tuple[str, ...] = METRICS, queries: int = 20, **more):
    generator = np.random.default_rng(seed)
    return Report(
        per_query={k: {metric: generator.random(queries) for metric in metrics} for k in ks},
        queries=np.arange(queries),
        without_relevant=np.empty(0, np.int64),
        hits={k: np.zeros((queries, 1), np.int64) for k in ks},
        gallery_size=queries,
        unconverged_pairs=0,
        settings={"resamples": 50, "seed": 0} | more,
    )


@pytest.fixture(scope="module")
def reports() -> dict[str, Report]:
    return {"frozen": report(0), "trained": report(1)}


def shown(table: ResultTable) -> str:
    console = Console(width=200, file=io.StringIO())
    console.print(table)
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_any_two_rows_have_a_difference(reports):
    found = Differences(reports).all()
    rows = [Row("frozen", 0), Row("frozen", 100), Row("trained", 0), Row("trained", 100)]
    assert [(one.minus, one.row) for one in found] == [(rows[i], rows[j]) for i in range(4) for j in range(i + 1, 4)]
    for one in found:
        left, right = reports[one.row.method], reports[one.minus.method]
        expected = left.minus(right, one.row.rerank_at, one.minus.rerank_at)
        for metric in METRICS:
            assert one.metrics[metric] == pytest.approx(expected[metric], abs=1e-12)


def test_usually_reranking_is_compared_with_plain_and_models_with_the_first(reports):
    pairs = [(str(one.row), str(one.minus)) for one in Differences(reports).usual()]
    assert pairs == [
        ("frozen + DIML (100)", "frozen"),
        ("trained + DIML (100)", "trained"),
        ("trained", "frozen"),
        ("trained + DIML (100)", "frozen + DIML (100)"),
    ]
    alone = Differences({"a": report(0, ks=(100, 0, 5))}).usual()
    assert [(one.row.rerank_at, one.minus.rerank_at) for one in alone] == [(100, 0), (5, 0)]
    assert not Differences({"a": report(0, ks=(100,))}).usual()


def test_a_row_can_be_named_that_all_others_are_against(reports):
    text = shown(difference_table(reports, "frozen + DIML (100)"))
    assert text.count("frozen + DIML (100)") == 3
    with pytest.raises(ValueError, match=r"baseline: need a row of the table, frozen \| frozen \+ DIML \(100\) \|"):
        difference_table(reports, "resnet")


def test_reports_of_other_queries_have_no_differences():
    both = {"a": report(0), "b": report(0, queries=19)}
    assert difference_records(both) == []
    with pytest.raises(ValueError, match="need the same queries and gallery"):
        difference_table(both)


def test_one_row_has_no_difference():
    assert difference_table({"a": report(0, ks=(0,))}) is None


def test_differences_are_written_as_csv_and_json(reports, tmp_path):
    written = write_reports(tmp_path, reports, {})
    assert [path.name for path in written] == ["evaluation.csv", "evaluation.json", "differences.csv"]
    document = json.loads(written[1].read_text())
    lines = list(csv.DictReader(io.StringIO(written[2].read_text())))
    assert len(lines) == len(document["differences"]) == 6 * len(METRICS)
    for line, found in zip(lines, document["differences"], strict=True):
        assert line["method"] == found["method"]
        assert float(line["difference"]) == pytest.approx(found["difference"], abs=5.1e-7)


def test_the_size_of_the_input_stands_in_each_row_where_it_is_known(reports):
    assert "pixels" not in shown(report_table(reports))
    sizes = {
        "a": report(0, input={"size": 224, "resize": "crop"}),
        "b": report(0, input={"size": 384, "resize": "square"}),
        "c": report(0, input={"size": 384, "resize": "square", "reducing_gap": 2.0}),
    }
    notes = [row[0].below for row in report_table(sizes).rows]
    texts = ("224 pixels", "384 pixels, square", "384 pixels, square, reducing gap 2")
    assert notes == [(text,) for text in texts for _ in range(2)]
    assert [line[3] for line in csv_lines(sizes)] == ["input", *[note for (note,) in notes]]


def test_recall_is_shown_at_the_ranks_that_were_asked_for():
    ranks = ("recall@1", "recall@10", "recall@100")
    table = recall_table({"a": report(0, metrics=(*ranks, "map@r")), "b": report(1, metrics=ranks)})
    assert list(table.columns) == ["method", "R@1", "R@10", "R@100"]
    assert len(table.rows) == 4


def table_of_two() -> ResultTable:
    made = ResultTable(["method", "R@1"], "A title", "A caption.")
    made.add("a_b & c", Cell.of(0.5, (0.25, 0.75), ".2f", ".1f"))
    made.add("a | b", Cell.of(1.0, None, ".2f"))
    return made


def test_a_table_becomes_markdown():
    pytest.importorskip("tabulate")
    lines = table_of_two().written("markdown").splitlines()
    assert lines[0] == "A title"
    assert lines[-1] == "A caption."
    assert [cell.strip() for cell in lines[2].strip("|").split("|")] == ["method", "R@1"]
    assert [cell.strip() for cell in lines[4].strip("|").split("|")] == ["a_b & c", "50.00 (25.0 to 75.0)"]
    assert [cell.strip() for cell in lines[5].replace(r"\|", "/").strip("|").split("|")] == ["a / b", "100.00"]


def test_a_table_becomes_latex():
    pytest.importorskip("tabulate")
    text = table_of_two().written("latex")
    assert r"a\_b \& c" in text
    assert "50.00 (25.0 to 75.0)" in text
    assert text.startswith(r"\begin{tabular}{lr}")
    assert text.count(r"\toprule") == text.count(r"\midrule") == text.count(r"\bottomrule") == 1


def test_an_unknown_format_is_refused():
    with pytest.raises(ValueError, match="format: need one of markdown, latex, got 'html'"):
        table_of_two().written("html")  # type: ignore[arg-type]
