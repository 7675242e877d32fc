"""`diml evaluate RUN...`: runs of one data set in one table, and all metrics."""

from __future__ import annotations

import csv
import json

import pytest
import yaml

from diml.cli import main
from diml.data import load_dataset
from diml.evaluation.extra import EXTRA_METRICS, extra_metrics
from diml.evaluation.metrics import METRICS
from diml.matching import Matcher
from diml.models import load_embedder
from diml.training import train
from diml.training.runs import read_run, run_names
from end_to_end.small_runs import make_images, small_config

QUIET = ["--no-cache", "--workers", "0"]


@pytest.fixture(scope="module")
def runs(images, tmp_path_factory):
    """Two finished runs that differ in objective, grid, image size and matcher."""
    folder = tmp_path_factory.mktemp("runs")
    short = {"epochs": 1, "sampler_options": ("batches_per_epoch=2",)}
    train(small_config(images, folder / "plain", **short))
    train(
        small_config(
            images, folder / "wide", objective="margin_diml", grid=3, size=96, matcher=Matcher(epsilon=0.02), **short
        )
    )
    return folder


def test_runs_make_one_table_with_the_numbers_of_their_own_tests(runs, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    words = [
        "evaluate",
        str(runs / "plain"),
        str(runs / "wide"),
        "--rerank-at",
        "0",
        "5",
        "--output",
        str(tmp_path / "out"),
    ]
    assert main([*words, *QUIET]) == 0
    shown = capsys.readouterr().out
    for row in ("plain", "plain + DIML (5)", "wide", "wide + DIML (5)", "paired by query"):
        assert row in shown
    document = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    for name in ("plain", "wide"):
        own = json.loads((runs / name / "evaluation.json").read_text())["methods"][name]
        for ours, theirs in zip(document["methods"][name]["rows"], own["rows"], strict=True):
            assert ours == pytest.approx(theirs)
        assert document["methods"][name]["settings"]["matcher"] == own["settings"]["matcher"]
        assert {comparison["rerank_at"] for comparison in document["methods"][name]["comparisons"]} == {5}
    assert document["config"]["dataset"] == "csv"
    assert document["config"]["runs"] == [str(runs / "plain"), str(runs / "wide")]
    lines = (tmp_path / "out" / "evaluation.csv").read_text().splitlines()
    rows = [["plain", "0"], ["plain", "5"], ["wide", "0"], ["wide", "5"]]
    assert [line.split(",")[:2] for line in lines[1:]] == rows
    assert not (tmp_path / "out" / "metrics.csv").exists()


def test_all_metrics_are_shown_and_written(runs, images, tmp_path, capsys):
    words = ["evaluate", str(runs / "plain"), "--rerank-at", "0", "--metrics", "all", "--output", str(tmp_path), *QUIET]
    assert main(words) == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in ("R@8", *EXTRA_METRICS))
    (line,) = csv.DictReader((tmp_path / "metrics.csv").read_text().splitlines())
    test = load_dataset("csv", images).test
    expected = extra_metrics(load_embedder(runs / "plain").embed(test.paths, workers=0), test.labels)
    assert {name: float(line[name]) for name in EXTRA_METRICS} == pytest.approx(expected, abs=2e-6)
    assert json.loads((tmp_path / "evaluation.json").read_text())["metrics"]["plain"] == pytest.approx(expected)
    header = (tmp_path / "evaluation.csv").read_text().splitlines()[0].split(",")
    assert header == [
        "method",
        "rerank_at",
        "queries",
        "input",
        *(n for m in METRICS for n in (m, f"{m}_low", f"{m}_high")),
    ]
    assert main([*words[: -len(QUIET)], *QUIET, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["metrics"]["plain"]["nmi"] == pytest.approx(expected["nmi"])


def test_a_data_set_by_name_with_a_run_as_model(runs, images, capsys):
    words = ["evaluate", "csv", "--data", str(images), "--model", str(runs / "plain"), "--rerank-at", "0", "--json"]
    assert main([*words, *QUIET]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["config"]["dataset"] == "csv"
    assert document["config"]["model"] == list(document["methods"]) == [str(runs / "plain")]
    assert "metrics" not in document
    assert "runs" not in document["config"]


def copy_of(runs, folder, **changes):
    """A copy of a run, some settings in its `config.yaml` changed."""
    folder.mkdir(parents=True)
    for path in (runs / "plain").iterdir():
        if path.is_file():
            (folder / path.name).write_bytes(path.read_bytes())
    config = yaml.safe_load((folder / "config.yaml").read_text()) | changes
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    return folder


def test_data_gives_the_present_location_of_the_images(runs, images, tmp_path, capsys):
    moved = copy_of(runs, tmp_path / "plain", data=str(tmp_path / "gone.csv"))
    assert main(["evaluate", str(moved), "--rerank-at", "0", *QUIET]) == 2
    error = capsys.readouterr().err
    assert "gone.csv" in error
    assert "use --data" in error
    assert main(["evaluate", str(moved), "--rerank-at", "0", "--data", str(images), *QUIET]) == 0
    # two runs of one name are distinguished by their paths
    assert run_names([read_run(moved), read_run(runs / "plain")]) == (str(moved), str(runs / "plain"))


def test_incomparable_runs_are_an_error(runs, tmp_path, capsys):
    plain = str(runs / "plain")
    faces = copy_of(runs, tmp_path / "faces", dataset="orl")
    others = copy_of(runs, tmp_path / "others", data=str(make_images(tmp_path / "other", train=3, test=2)))
    empty = tmp_path / "empty"
    empty.mkdir()
    for words, message in (
        ([plain, str(faces)], "one data set, got csv"),
        ([plain, str(others)], "different test images"),
        ([plain, str(empty)], f"no run in {empty}"),
        ([plain, "csv"], "--model RUN"),
        ([], "need the name"),
        ([plain, "--head", "whiten"], "omit --head"),
        ([plain, "--model", "mobilenetv2_100"], "omit --model"),
    ):
        assert main(["evaluate", *words]) == 2
        assert message in capsys.readouterr().err


def test_an_unfinished_run_is_reported(runs, tmp_path):
    begun = copy_of(runs, tmp_path / "begun")
    (begun / "evaluation.json").unlink()
    with pytest.warns(UserWarning, match="begun is not finished"):
        assert main(["evaluate", str(begun), "--rerank-at", "0", *QUIET]) == 0
    (begun / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=f"diml train --resume --output {begun}"):
        read_run(begun)


@pytest.mark.parametrize(("options", "epsilon"), [([], 0.02), (["--epsilon", "0.05"], 0.05)])
def test_report_explain_and_an_index_use_the_matcher_of_the_run(runs, images, tmp_path, capsys, options, epsilon):
    """Unless another one is given, which they then say."""
    run, (a, b, *_) = str(runs / "wide"), load_dataset("csv", images).test.paths
    printed = ""
    assert main(["report", run, "--html", str(tmp_path / "report.html"), "--queries", "1", *QUIET, *options]) == 0
    printed += "".join(capsys.readouterr())
    page = (tmp_path / "report.html").read_text()
    assert f'"epsilon": {epsilon}' in page or f'"epsilon":{epsilon}' in page
    assert main(["explain", str(a), str(b), "--model", run, "--json", "-", *options]) == 0
    told, notice = capsys.readouterr()
    assert json.loads(told)["matcher"]["epsilon"] == epsilon
    printed += notice
    pytest.importorskip("lancedb", reason="lancedb is not installed; it is in the extra `search`")
    index = str(tmp_path / "run.index")
    assert main(["index", "build", str(images), "--index", index, "--model", run, "--workers", "0", *options]) == 0
    printed += "".join(capsys.readouterr())
    assert main(["index", "info", index, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["matcher"]["epsilon"] == epsilon
    notices = " ".join(printed.split()).count("epsilon 0.05 (the model's own: 0.02)")
    assert notices == (3 if options else 0), printed


def test_differences_of_runs_are_written_and_any_row_can_be_the_baseline(runs, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    words = ["evaluate", str(runs / "plain"), str(runs / "wide"), "--rerank-at", "0", "5", "--no-copies", *QUIET]
    assert main([*words, "--baseline", "wide + DIML (5)", "--output", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert shown.count("wide + DIML (5)") == 4  # its own row, and three that are against it
    assert "64 pixels" in shown
    assert "96 pixels" in shown
    document = json.loads((tmp_path / "evaluation.json").read_text())
    lines = list(csv.DictReader((tmp_path / "differences.csv").read_text().splitlines()))
    assert len(lines) == len(document["differences"]) == 6 * len(METRICS)
    rows = {name: {row["rerank_at"]: row for row in one["rows"]} for name, one in document["methods"].items()}
    for one in document["differences"]:
        sides = rows[one["method"]][one["rerank_at"]], rows[one["minus_method"]][one["minus_rerank_at"]]
        assert one["difference"] == pytest.approx(sides[0][one["metric"]] - sides[1][one["metric"]], abs=1e-12)
    assert main([*words, "--baseline", "narrow"]) == 2
    assert "baseline: need a row of the table, plain | plain + DIML (5) | wide" in capsys.readouterr().err


def test_tables_for_documents_and_programs(runs, capsys):
    words = ["evaluate", str(runs / "plain"), "--rerank-at", "0", "5", "--recall-at", "1", "7", "--no-copies", *QUIET]
    assert main([*words, "--format", "csv"]) == 0
    header, *lines = csv.reader(capsys.readouterr().out.splitlines())
    assert header[4:8] == ["recall@1", "recall@1_low", "recall@1_high", "recall@7"]
    assert len(lines) == 2
    pytest.importorskip("tabulate")
    assert main([*words, "--format", "markdown"]) == 0
    shown = capsys.readouterr().out
    assert [cell.strip() for cell in shown.splitlines()[2].split("|")[2:4]] == ["R@1", "R@7"]
    assert main([*words, "--format", "latex"]) == 0
    assert capsys.readouterr().out.count(r"\toprule") == 2
    assert main([*words, "--format", "latex", "--json"]) == 2
    assert "give one of them" in capsys.readouterr().err
    assert (
        main(["compare", str(runs / "plain"), "--recall-at", "3", "--matchers", "paper", "--neighbours", *QUIET]) == 0
    )
    assert "R@3" in capsys.readouterr().out


def test_where_reranking_does_not_help_the_last_line_is_the_next_command(runs, capsys):
    words = [
        "evaluate",
        str(runs / "plain"),
        "--structural-weight",
        "0",
        "--no-copies",
        "--rerank-at",
        "0",
        "5",
        *QUIET,
    ]
    assert main(words) == 0
    *_, said, command = capsys.readouterr().out.splitlines()
    assert "re-ranking shows no gain of MAP@R (+0.00 percentage points" in said
    assert command.strip() == f"diml tune {runs / 'plain'} --no-cache --workers 0"
    assert main([*words, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["advice"] == {"plain": command.strip()}
