"""Settings that people write or programs damage - YAML, JSON, CSV, conditions - never reach a user as a traceback."""

from __future__ import annotations

import csv
import io
import json
import re
from pathlib import Path

import pytest
import yaml
from hypothesis import strategies as st

from diml.cli.train import TrainCommand
from diml.training import TrainConfig
from fuzz.mutations import damaged_bytes, damaged_values, few_or, fuzz, ran, resealed

CONFIG = TrainConfig(dataset="csv", objective="margin", sampler_options=("batches_per_epoch=2",)).to_dict()


def _written_as_yaml(value: object) -> str:
    return yaml.safe_dump(value, allow_unicode=True)


@few_or(2500, 60)
def test_config_of_a_training(count, tmp_path, monkeypatch):
    """Read and checked, whatever is in it; nothing is trained."""
    monkeypatch.setattr(TrainCommand, "run", lambda command: 0)
    text = _written_as_yaml(CONFIG).encode()
    content = st.one_of(damaged_values(CONFIG).map(_written_as_yaml), damaged_bytes().map(lambda damage: damage(text)))

    @fuzz(count, content)
    def check(given):
        path = tmp_path / "mine.yaml"
        path.write_bytes(given if isinstance(given, bytes) else given.encode())
        ran(["train", "--config", path])
        ran(["train", "--resume", "--output", _as_run(path)])

    check()


def _as_run(path: Path) -> Path:
    (path.parent / "run").mkdir(exist_ok=True)
    (path.parent / "run" / "config.yaml").write_bytes(path.read_bytes())
    return path.parent / "run"


@few_or(1000, 25)
def test_file_of_a_sweep(count, tmp_path):
    sweep = {
        "output": str(tmp_path / "runs"),
        "base": {"dataset": "csv", "data": "x.csv", "matcher": {"epsilon": 0.02}},
        "runs": {"a": {}, "b": {"objective": "margin_diml", "matcher": {"share": 0.8}}},
        "seeds": [0, 1],
        "baseline": {"frozen": {"model": "test_resnet", "pretrained": False}},
    }
    text = _written_as_yaml(sweep).encode()
    content = st.one_of(damaged_values(sweep).map(_written_as_yaml), damaged_bytes().map(lambda damage: damage(text)))

    @fuzz(count, content)
    def check(given):
        path = tmp_path / "sweep.yaml"
        path.write_bytes(given if isinstance(given, bytes) else given.encode())
        ran(["sweep", path, "--table-only"])

    check()


@few_or(500, 25)
def test_reports_in_the_folder_of_a_sweep(count, tmp_path):
    """A damaged report counts as unfinished, and the other runs are tabulated."""
    base = {"dataset": "csv", "data": "x.csv"}
    (tmp_path / "sweep.yaml").write_text(
        yaml.safe_dump({"output": str(tmp_path / "runs"), "base": base, "runs": {"a": {}, "b": {}}})
    )
    row = dict.fromkeys(["recall@1", "recall@2", "recall@4", "recall@8", "r_precision", "map@r"], 0.5)
    for name in "ab":
        config = TrainConfig(dataset="csv", data=Path("x.csv"), output=tmp_path / "runs" / f"{name}-0").to_dict()
        method = {"queries": 8, "gallery": 8, "rows": [row | {"rerank_at": 0}, row | {"rerank_at": 100}]}
        report = {"unit": "fraction", "config": config, "methods": {name: method}}
        (tmp_path / "runs" / f"{name}-0").mkdir(parents=True)
        (tmp_path / "runs" / f"{name}-0" / "evaluation.json").write_text(resealed(report))
    assert ran(["sweep", tmp_path / "sweep.yaml", "--table-only"])[0] == 0
    text = resealed(report).encode()
    content = st.one_of(damaged_values(report).map(resealed), damaged_bytes().map(lambda damage: damage(text)))

    @fuzz(count, content)
    def check(given):
        path = tmp_path / "runs" / "b-0" / "evaluation.json"
        path.write_bytes(given if isinstance(given, bytes) else given.encode())
        code, told = ran(["sweep", tmp_path / "sweep.yaml", "--table-only"])
        assert code == 0, told

    check()


@few_or(1500, 30)
def test_csv_of_a_data_set(count, place):
    """Cells, quotes, ends of lines, endings, encodings: data set and index read it or name the line."""
    with (place / "images.csv").open(newline="") as file:
        rows = [[*row, str(number)] for number, row in enumerate(csv.reader(file))]
    rows[0][-1] = "price"
    text = io.StringIO()
    csv.writer(text).writerows(rows)
    whole = text.getvalue().encode()
    words = st.sampled_from(["", '"', '""', "\n", "\r", "\0", "0021_1", "1e6", "nan", "_distance", "id", "\ufeff", "'"])
    cell = st.tuples(st.integers(0, len(rows) - 1), st.integers(0, 3), words | st.text(max_size=8))

    def edited(edits: list[tuple[int, int, str]]) -> bytes:
        lines = [list(row) for row in rows]
        for row, column, value in edits:
            lines[row][column] = value
        return "\r\n".join(",".join(line) for line in lines).encode("utf-8", "surrogatepass")

    content = st.one_of(
        st.lists(cell, min_size=1, max_size=4).map(edited), damaged_bytes().map(lambda damage: damage(whole))
    )
    path = place / "damaged.csv"

    @fuzz(count, content)
    def check(given):
        path.write_bytes(given)
        ran(["datasets", "check", "csv", "--data", path])

    check()


@few_or(200, 4)
def test_csv_of_an_index(count, place, model):
    text = (place / "images.csv").read_bytes()
    path = place / "listed.csv"

    @fuzz(count, damaged_bytes())
    def check(damage):
        path.write_bytes(damage(text))
        ran(["index", "build", path, "--index", place / "listed.index", "--model", model, "--workers", "0"])

    check()


COLUMNS = {"label": "text", "price": "number", "count": "integer", "new": "boolean"}
ODD_COLUMNS = {"unit price": "number", 'a"`b': "text"}
WORDS = [
    *COLUMNS,
    "and",
    "or",
    "not",
    "in",
    "(",
    ")",
    ",",
    "=",
    "!=",
    "<",
    ">=",
    "'x'",
    "''",
    "1",
    "-1e9",
    "1e999",
    "true",
    "like",
    "between",
    "is",
    "null",
    "'a%\\_'",
    '"label"',
    '"unit price"',
    '"a""`b"',
]
HOSTILE = (
    "label = '' or ''=''",
    "label = 'x'; DROP TABLE images",
    "label = 'x'--",
    "label = 'x' /* */ or 1=1",
    'label = "x"',
    "label = `x`",
    "label = 'x\\' or 1=1 --'",
    "label in (select label from images)",
    "label = 'x' union select 1",
    "1 = 1",
    "true",
    "label like '%' escape '!'",
    "label like '%' or 1=1",
    "label like '\\'",
    "label like label",
    "label like ('%')",
    "label is not null or 1=1",
    "label is not distinct from label",
    "label between 'a' and (select 'b')",
    "label between 'a' and 'b' or 1=1",
    "\"label\\\" = 'x'",
    '"label"" = \'x\' or ""label" = \'x\'',
    '"label` is null or `label" is null',
    '"label" or 1=1',
    '"" is null',
    '"regions" is not null',
    '"id" is null',
    '"label".x is null',
    'images."label" is null',
    "[label] is null",
    "new or 1",
    "regions = 1",
    "id = 'x'",
    "label = x'00'",
    "sleep(10) = 1",
    "label = 'x' and length(label) > 0",
    "label = 'x')) or ((label = 'y'",
    "cast(label as int) = 1",
    "label = $1",
    "label = :x",
    "label = 'x' limit 1",
    "`label` = 'x'",
    "label || 'x' = 'xx'",
)


@few_or(3000, 150)
def test_conditions(count):
    """A condition is parsed or refused in one line; what passes has balanced quotes and only known columns."""

    from diml.search.backends.milvus_conditions import column_fields, to_expression
    from diml.search.filters import And, ColumnMembership, ColumnPattern, Or, parse_where, to_sql
    from diml.search.names import field_name

    def without_patterns(where):
        """As the store of Milvus resolves them; the pattern is one of the texts found."""
        if isinstance(where, And | Or):
            return type(where)(without_patterns(where.left), without_patterns(where.right))
        if isinstance(where, ColumnPattern):
            return ColumnMembership(where.column, (where.pattern,), where.negated)
        return where

    text = st.one_of(st.text(), st.lists(st.sampled_from(WORDS), max_size=30).map(" ".join), st.sampled_from(HOSTILE))

    @fuzz(count, text)
    def check(condition):
        try:
            where = parse_where(condition, COLUMNS | ODD_COLUMNS)
            sql = to_sql(where)
        except ValueError as error:
            assert str(error).startswith("where: ")  # noqa: PT017
            assert len(str(error)) < 1000  # noqa: PT017
        else:
            assert sql.count("'") % 2 == 0
            outside = "".join(sql.split("'")[::2])
            assert not set(outside) - set(" `()<>=!,+-._") - set("abcdefghijklmnopqrstuvwxyz0123456789ANDORTUEFLSICBYK")
            assert set(re.findall("`(.*?)`", outside)) <= {field_name(name) for name in COLUMNS | ODD_COLUMNS}
            told = to_expression(without_patterns(where))  # the same for Milvus, whose texts are in double quotes
            words = re.findall(r"(?<![\w.])[A-Za-z_]\w*", re.sub(r'"(?:[^"\\]|\\.)*"', " ", told))
            fields = column_fields([*COLUMNS, *ODD_COLUMNS])
            assert set(words) <= {*fields, "and", "or", "not", "in", "true", "false"}, told

    check()


def test_no_injection_passes_as_a_condition(index):
    """Refused in one line, or a plain comparison; the index is as it was."""
    for condition in HOSTILE:
        code, told = ran(
            ["search", index, "--all-pairs", "--rerank-at", "0", "--threshold", "0.99", "--where", condition]
        )
        assert code == 2, condition
        assert "where: " in told
    assert json.loads(ran(["index", "info", index, "--json"])[1])["rows"] == 24


def test_thousands_of_comparisons_are_one_condition(index, pair_of_images):
    condition = " or ".join(f"label = 'class{number % 2}'" for number in range(3000))
    code, told = ran(["search", index, pair_of_images[0], "--explain", "none", "--where", condition])
    assert code == 0, told
    assert "class0" in told


def test_a_damaged_report_is_said_to_be_unfinished_and_done_again(tmp_path):
    from diml.training.sweep import read_sweep

    base = {"dataset": "csv", "data": "x.csv"}
    (tmp_path / "sweep.yaml").write_text(
        yaml.safe_dump({"output": str(tmp_path / "runs"), "base": base, "runs": {"a": {}}})
    )
    (tmp_path / "runs" / "a-0").mkdir(parents=True)
    job = read_sweep(tmp_path / "sweep.yaml").jobs[0]
    for content in ("{}", '{"config": {}, "methods": {}}', "[1]", "", "{" * 5000):
        (tmp_path / "runs" / "a-0" / "evaluation.json").write_text(content)
        with pytest.warns(UserWarning, match=r"evaluation\.json: .*; a, seed 0 counts as unfinished"):
            assert job.report() is None
