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
from diml.calibration import load_calibration
from diml.calibration.calibrator import fit_calibrator
from diml.cli.explain import ExplainCommand
from diml.explain.explanation import match_pair
from diml.explain.formatting import TIMES
from diml.explain.shown_plan import shown_plan
from diml.explain.wording import likely
from diml.matching import Matcher
from diml.models import Embedder, load_embedder
from drawn_pair import drawn_pair
from unit.calibration.conftest import made_up_images


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

    def load(model: str, *, grid: object, **_: object) -> Embedder:
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


def test_what_everybody_understands_is_printed(
    files: tuple[Path, Path], asked: list[object], untrained: Embedder, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*files) == 0
    printed = capsys.readouterr().out
    found = match_pair(*files, embedder=untrained)
    summary = found.summary()
    lines = printed.splitlines()
    assert lines[0] == summary.headline == f"Similarity {found.ranked_by():.2f}"
    assert lines[1] == summary.sentence
    for row in summary.parts:
        assert f"{row.value:.4f}" in printed
        assert f"{row.place_q}: " in " ".join(printed.split())
    assert f"{summary.between.value:.4f}" in printed
    assert f"{summary.score:.4f}" in printed
    assert f"Scale: this pair, {summary.ranking:.2f}; an image with itself, 2.00" in printed
    assert all(hint in printed for hint in summary.hints)
    assert "--output why.png" in printed
    assert asked == [("mobilenetv2_100", "default")]


def test_experts_see_matches_of_regions(
    files: tuple[Path, Path], asked: list[object], untrained: Embedder, capsys: pytest.CaptureFixture[str]
) -> None:
    found = match_pair(*files, embedder=untrained)
    for plan in ("scored", "exact"):
        assert run(*files, "--view", "regions", "--plan", plan, "--top", 3) == 0
        printed = capsys.readouterr().out
        ledger = shown_plan(found, plan=plan).ledger()
        pooled, structural = float(found.pooled), float(found.structural)
        assert f"Score {found.ranked_by():.3f} = pooled {pooled:.3f} + structural {structural:.3f}" in printed
        for flow in ledger.top(3):
            assert f"{flow.contribution:.5f}" in printed
        assert f"{ledger.structural:.5f}" in printed
        assert "253 others" in printed
    assert shown_plan(found).note() in printed
    for view in ("parts", "regions"):
        assert run(*files, "--view", view, "--share", 0.75) == 0
        assert "Unmatched: 25 % of the query" in capsys.readouterr().out


def test_the_number_of_parts_is_chosen(
    files: tuple[Path, Path], asked: list[object], untrained: Embedder, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*files, "--parts", 2, "--json", "-") == 0
    told = json.loads(capsys.readouterr().out)
    assert len(told["summary"]["parts"]) == len(told["parts"]["parts"]) == 2
    assert told["plan_shown"] == told["summary"]["plan"] == "exact"
    assert told["ranked_by"] == pytest.approx(float(match_pair(*files, embedder=untrained).score), abs=1e-6)
    with pytest.raises(ValueError, match="parts: need at least 1, got 0"):
        run(*files, "--parts", 0)
    with pytest.raises(ValueError, match="--plan, --parts: need a pair, A and B"):
        run("--query", files[0], "--hits", files[1], "--plan", "scored", "--parts", 2)


def calibrated(folder: Path, embedder: Embedder) -> Path:
    """A folder with a calibration of this embedder, of made-up scores."""
    made = fit_calibrator(made_up_images(2000, 0), fingerprint=embedder.fingerprint(), matcher=Matcher())
    made.save(folder)
    return folder


def test_a_calibration_gives_a_probability_and_a_threshold(
    files: tuple[Path, Path],
    asked: list[object],
    untrained: Embedder,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = calibrated(tmp_path / "model", untrained)
    found = match_pair(*files, embedder=untrained)
    chance = load_calibration(folder).probability(found.ranked_by())
    for words in (("--calibration", folder), ("--model", folder)):
        assert run(*files, *words, "--kind", "product", "--json", "-") == 0
        captured = capsys.readouterr()
        told = json.loads(captured.out)["summary"]
        assert told["probability"] == pytest.approx(chance, abs=1e-6)
        assert told["headline"] == f"{likely(chance)} likely the same product"
        assert captured.err.startswith(told["headline"])
        assert "the same product, typically, 1." in captured.err
        assert (
            f"{100 * told['threshold']['false_accept_rate']:.3g} % of pairs of different products reach" in captured.err
        )
    assert run("--query", files[0], "--hits", *files, "--calibration", folder) == 0
    assert "likely the same class" in capsys.readouterr().out


def test_a_calibration_of_other_settings_is_an_error_only_where_it_was_named(
    files: tuple[Path, Path],
    asked: list[object],
    untrained: Embedder,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = calibrated(tmp_path / "model", untrained)
    assert run(*files, "--model", folder, "--epsilon", 0.1) == 0
    captured = capsys.readouterr()
    assert "is not used, so there are no probabilities" in captured.err
    assert captured.out.startswith("Similarity ")
    with pytest.raises(ValueError, match=r"belongs to another matcher, got epsilon 0\.1"):
        run(*files, "--calibration", folder, "--epsilon", 0.1)
    with pytest.raises(FileNotFoundError, match="calibration: no "):
        run(*files, "--calibration", tmp_path)


def test_the_share_of_the_background_is_told(
    files: tuple[Path, Path], asked: list[object], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    masks = tmp_path / "masks"
    masks.mkdir()
    for file, colour in zip(files, ("black", "white"), strict=True):
        Image.new("L", (96, 96), colour).save(masks / file.name)
    assert run(*files, "--masks", masks, "--json", "-") == 0
    captured = capsys.readouterr()
    shares = json.loads(captured.out)["summary"]["background"]
    assert (shares["object"], shares["background"]) == pytest.approx((0, 0), abs=1e-9)
    assert shares["mixed"] == pytest.approx(1, abs=1e-6)
    assert "100 % between object and background" in captured.err
    Image.new("L", (96, 96), "black").save(masks / files[1].name)
    assert run(*files, "--masks", masks) == 0
    assert "100 % of the similarity comes from the backgrounds of both images" in capsys.readouterr().out
    (masks / files[1].name).unlink()
    with pytest.raises(ValueError, match=r"b\.png has no mask"):
        run(*files, "--masks", masks)
    with pytest.raises(ValueError, match="need one of --masks FOLDER, --alpha and --boxes FILE, got 2"):
        run(*files, "--masks", masks, "--alpha")


def test_figure_and_numbers_are_written_atomically(
    files: tuple[Path, Path], asked: list[object], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    out = tmp_path / "new"
    assert run(*files, "--output", out / "why.png", "--json", out / "why.json", "--top", 20) == 0
    assert sorted(path.name for path in out.iterdir()) == ["why.json", "why.png"]
    with Image.open(out / "why.png") as drawn:
        assert drawn.width > 1000
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
        "size": None,
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
    assert data["pairs"][0]["ranked_by"] == pytest.approx(float(found.score))
    assert data["pairs"][0]["score"] == pytest.approx(float(shown_plan(found).score))
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
    assert f"{max(contrast['whole'], key=abs):+.4f}" in printed
    assert sum(contrast["whole"]) == pytest.approx(contrast["score"], abs=1e-6)
    assert all(hit["summary"]["plan"] == "exact" for hit in told["hits"])


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
    assert f"Score {told['ranked_by']:.3f}" in captured.err


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
    with pytest.raises(ValueError, match="overlay: need --overlay or --no-overlay, got both"):
        run(*files, "--overlay", "--no-overlay")
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
    for option in ("--model", "--grid", "--weights", "--epsilon", "--view", "--plan", "--calibration", "--masks"):
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
    assert f"+ 4 {TIMES} structural " in captured.err
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


def test_the_figure_takes_view_width_and_overlay(files: tuple[Path, Path], asked: list[object], tmp_path: Path) -> None:
    widths = {}
    for name, words in {
        "parts": ("--width", 3.3, "--overlay", "--parts", 2),
        "regions": ("--view", "regions", "--no-overlay", "--plan", "scored"),
    }.items():
        out = tmp_path / f"{name}.png"
        assert run(*files, *words, "--output", out) == 0
        with Image.open(out) as drawn:
            widths[name] = drawn.width
    assert widths["parts"] < widths["regions"]
    out = tmp_path / "hits.svg"
    assert run("--query", files[0], "--hits", *files, "--width", 6.9, "--output", out) == 0
    assert out.read_text().lstrip().startswith("<?xml")
