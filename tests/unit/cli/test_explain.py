"""`diml explain` prints, draws and writes the same numbers."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
import tyro
from PIL import Image

import diml.models
from diml.cli.explain import ExplainCommand
from diml.explain import drawn_pair
from diml.explain.explanation import match_pair
from diml.explain.formatting import TIMES
from diml.matching import Matcher
from diml.models import Embedder, load_embedder


def run(*words: object) -> int:
    options = (tyro.conf.FlagCreatePairsOff,)
    return tyro.cli(ExplainCommand, args=[str(word) for word in words], config=options).run()


@pytest.fixture(scope="module")
def untrained() -> Embedder:
    torch.manual_seed(0)
    return load_embedder("mobilenetv2_050", pretrained=False)


@pytest.fixture
def asked(untrained: Embedder, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, object]]:
    """An untrained model in place of any other, so that no weights are fetched; the names and grids requested."""
    calls: list[tuple[str, object]] = []

    def load(model: str, *, grid: object, architecture: str | None) -> Embedder:
        calls.append((model, grid))
        return untrained

    monkeypatch.setattr(diml.models, "load_embedder", load)
    monkeypatch.setenv("COLUMNS", "120")
    return calls


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    paths = (tmp_path / "a [bold].png", tmp_path / "b.png")
    for image, path in zip(drawn_pair(96), paths, strict=True):
        image.save(path)
    return paths


def test_score_and_contributions_are_printed(
    files: tuple[Path, Path], asked: list[object], untrained: Embedder, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*files, "--top", 3) == 0
    printed = capsys.readouterr().out
    ledger = match_pair(*files, embedder=untrained).ledger()
    assert f"score {ledger.score:.3f} = pooled {ledger.pooled:.3f} + structural {ledger.structural:.3f}" in printed
    for flow in ledger.top(3):
        assert f"{flow.contribution:.5f}" in printed
    assert "253 others" in printed
    assert "--output why.png" in printed
    assert asked == [("mobilenetv2_100", "default")]


def test_figure_and_numbers_are_written_atomically(
    files: tuple[Path, Path], asked: list[object], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    out = tmp_path / "new"
    assert run(*files, "--output", out / "why.png", "--json", out / "why.json", "--top", 20) == 0
    assert sorted(path.name for path in out.iterdir()) == ["why.json", "why.png"]
    with Image.open(out / "why.png") as drawn:
        assert drawn.width == 1200
    printed = capsys.readouterr().out
    assert f"Written: {out / 'why.png'}, {out / 'why.json'}" in printed
    told = json.loads((out / "why.json").read_text())
    assert told["names"] == {"query": str(files[0]), "gallery": str(files[1])}
    assert len(told["top"]) == 20
    plan, cosine = torch.tensor(told["plan"]).double(), torch.tensor(told["cosine"]).double()
    assert float((plan * cosine).sum()) == pytest.approx(told["structural"], abs=1e-6)
    assert told["settings"] == {
        "model": "mobilenetv2_100",
        "architecture": None,
        "grid": None,
        "resize": None,
    }
    assert told["matcher"] == Matcher().to_dict()


def test_a_page_is_written_atomically_with_the_settings(
    files: tuple[Path, Path],
    asked: list[object],
    untrained: Embedder,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    out = tmp_path / "new" / "why.html"
    assert run(*files, "--html", out, "--epsilon", 0.1) == 0
    assert [path.name for path in out.parent.iterdir()] == ["why.html"]
    assert f"Written: {out}" in capsys.readouterr().out
    data = json.loads(out.read_text().split('id="data">')[1].split("</script>")[0])
    found = match_pair(*files, embedder=untrained, matcher=Matcher(epsilon=0.1))
    assert data["pairs"][0]["score"] == pytest.approx(float(found.score))
    assert data["settings"]["epsilon"] == 0.1
    assert [image["name"] for image in data["images"]] == [str(path) for path in files]


def test_hits_of_a_query_are_put_in_order_and_compared(
    files: tuple[Path, Path],
    asked: list[object],
    untrained: Embedder,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    out = tmp_path / "new"
    turned = tmp_path / "c.png"
    Image.open(files[0]).rotate(5).save(turned)
    words = ("--html", out / "h.html", "--output", out / "h.png", "--json", out / "h.json", "--top", 2)
    assert run("--query", files[0], "--hits", files[1], turned, *words) == 0
    assert sorted(path.name for path in out.iterdir()) == ["h.html", "h.json", "h.png"]
    told = json.loads((out / "h.json").read_text())
    scores = {str(path): float(match_pair(files[0], path, embedder=untrained).score) for path in (files[1], turned)}
    assert [hit["names"]["gallery"] for hit in told["hits"]] == sorted(scores, key=lambda name: -scores[name])
    (contrast,) = told["contrasts"]
    assert contrast["score"] == pytest.approx(max(scores.values()) - min(scores.values()), abs=1e-5)
    printed = capsys.readouterr().out
    assert f"hit 1 over hit 2: {contrast['score']:+.4f} = pooled {contrast['pooled']:+.4f}" in printed
    assert f"{max(contrast['regions'], key=abs):+.4f}" in printed


@pytest.mark.parametrize(
    "words", [[], ["a.png"], ["a.png", "b.png", "--query", "a.png"], ["--query", "a.png"], ["--hits", "a.png"]]
)
def test_other_combinations_of_images_are_refused(words: list[str], asked: list[object]) -> None:
    with pytest.raises(ValueError, match="images: need A and B, or --query Q with --hits A B"):
        run(*words)
    assert asked == []


def test_json_on_standard_output_is_nothing_but_json(
    files: tuple[Path, Path], asked: list[object], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*files, "--json", "-", "--weights", "uniform") == 0
    captured = capsys.readouterr()
    told = json.loads(captured.out)
    assert told["weight_q"] == pytest.approx([1 / 16] * 16)
    assert f"score {told['score']:.3f}" in captured.err


def test_settings_reach_the_match(
    files: tuple[Path, Path], asked: list[tuple[str, object]], capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("--model", "resnet18", "--grid", 7, "--epsilon", 0.02, "--max-iterations", 1, "--tolerance", 1e-9)
    assert run(*files, *words, "--json", "-", "--top", 0) == 0
    captured = capsys.readouterr()
    told = json.loads(captured.out)
    assert asked == [("resnet18", 7)]
    assert told["matcher"] == Matcher(epsilon=0.02, max_iterations=1, tolerance=1e-9).to_dict()
    assert told["convergence"]["iterations"] == 1
    assert told["top"] == []
    assert "Not converged: marginal error" in captured.err


def test_square_takes_the_whole_image(asked: list[object], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wide = Image.new("RGB", (96 * 3, 96), "white")
    wide.paste(drawn_pair(96)[0], (0, 0))
    wide.save(tmp_path / "wide.png")
    scores = []
    for resize in ("crop", "square"):
        run(tmp_path / "wide.png", tmp_path / "wide.png", "--json", "-", "--resize", resize)
        scores.append(json.loads(capsys.readouterr().out)["cosine"])
    assert scores[0] != scores[1]  # the crop sees nothing but white


def test_errors_come_before_a_model_is_loaded(files: tuple[Path, Path], asked: list[object], tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nowhere\.jpg: no such file"):
        run(files[0], tmp_path / "nowhere.jpg")
    with pytest.raises(ValueError, match=r"output: need a file name ending in one of .*got '.*why\.txt'"):
        run(*files, "--output", tmp_path / "why.txt")
    with pytest.raises(ValueError, match="top: need 0 to 20 lines, got 21"):
        run(*files, "--output", tmp_path / "why.png", "--top", 21)
    with pytest.raises(ValueError, match=r"html: need a file name ending in \.html or \.htm, got .*why\.txt"):
        run(*files, "--html", tmp_path / "why.txt")
    assert asked == []
    assert not (tmp_path / "why.png").exists()


def test_a_text_file_is_no_image(files: tuple[Path, Path], asked: list[object], tmp_path: Path) -> None:
    (tmp_path / "notes.jpg").write_text("no image")
    with pytest.raises(ValueError, match=r"notes\.jpg: is not an image"):
        run(files[0], tmp_path / "notes.jpg")


def test_help_has_examples(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run("--help")
    printed = capsys.readouterr().out
    assert "diml explain a.jpg b.jpg --output why.png --json why.json" in printed
    for option in ("--model", "--grid", "--weights", "--epsilon", "--structural-weight", "--top"):
        assert option in printed


def test_the_models_own_matcher_is_used_unless_given(
    files: tuple[Path, Path],
    asked: list[object],
    untrained: Embedder,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    own = Matcher(epsilon=0.2, structural_weight=4)
    configured = Embedder(untrained.backbone, untrained.head, dataclasses.replace(untrained.config, matcher=own)).eval()
    monkeypatch.setattr(diml.models, "load_embedder", lambda *_, **__: configured)
    assert run(*files, "--json", "-") == 0
    captured = capsys.readouterr()
    told = json.loads(captured.out)
    assert told["matcher"] == own.to_dict()
    assert told["score"] == pytest.approx(told["pooled"] + 4 * told["structural"])
    assert f"+ 4 {TIMES} structural {told['structural']:.3f}" in captured.err
    assert "as given" not in captured.err
    assert run(*files, "--json", "-", "--epsilon", 0.1, "--structural-weight", "inf") == 0
    captured = capsys.readouterr()
    told = json.loads(captured.out)
    assert told["matcher"] == Matcher(epsilon=0.1, structural_weight=float("inf")).to_dict()
    assert told["score"] == told["structural"]
    assert "epsilon 0.1 (the model's own: 0.2)" in captured.err


def test_contrasts_are_printed_with_the_weight(
    files: tuple[Path, Path], asked: list[object], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("--query", files[0], "--hits", *files, "--structural-weight", 4) == 0
    printed = capsys.readouterr().out
    line = next(line for line in printed.splitlines() if line.startswith("hit 1 over hit 2: "))
    score, pooled, structural = (
        float(line.split(word)[1].split()[0].rstrip(",")) for word in ("2: ", "pooled ", "structural ")
    )
    assert f" + 4 {TIMES} structural" in line
    assert score == pytest.approx(pooled + 4 * structural, abs=3e-4)
