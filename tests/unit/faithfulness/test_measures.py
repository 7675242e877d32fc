"""All measures on a tiny network: complete, reproducible, and with the known answers where there are any."""

import dataclasses
import json

import numpy as np
import pytest

from diml.faithfulness import FaithfulnessReport, Measures, faithfulness
from diml.faithfulness.collected import Measurements
from diml.faithfulness.measures import measure_pairs
from diml.faithfulness.pairs import choose_pairs
from diml.faithfulness.plots import write_plots
from diml.faithfulness.report import RANDOM, estimates_of
from diml.faithfulness.tables import tables
from diml.matching import Matcher
from diml.models import Embedder
from unit.faithfulness.small import small_shop, tiny_embedder

FEW = Measures(warps=("identity", "flip"), steps=3, top=4, grad_cam=False)


@pytest.fixture(scope="session")
def found(tmp_path_factory):
    """The report of four pairs; no test changes it, so that all can share it."""
    return faithfulness(tiny_embedder(), small_shop(tmp_path_factory.mktemp("measured")), pairs=4, measures=FEW)


def test_every_measure_is_reported_for_both_networks_and_can_be_written(found):
    told = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert set(told) == {"model", "random weights"}
    for numbers in told.values():
        measures = {estimate["measure"] for estimate in numbers["estimates"]}
        joint = {"interaction_deletion", "interaction_insertion"}
        assert (
            measures
            == {"additivity", "deletion", "insertion", "correspondence", "stability", "parts", "unmatched"} | joint
        )
        assert all(e["low"] <= e["value"] <= e["high"] for e in numbers["estimates"])
        assert numbers["unconverged_plans"] == 0
    orders = {curve["method"] for curve in told["model"]["curves"] if curve["measure"] == "deletion"}
    names = ("shifted", "mirrored", "rotated", "connected", "reversed", "other pair")
    controls = {f"{ledger}/{name}" for ledger in ("credit", "parts") for name in names} | {"parts/random"}
    assert orders == {"credit", "parts", "weights", "argmax", "random", "randomised"} | controls
    orders = {curve["method"] for curve in told["model"]["curves"] if curve["measure"] == "interaction_insertion"}
    names = ("permuted", "shifted", "same place", "random")
    assert orders == {"credit", "parts"} | {f"{ledger}/{name}" for ledger in ("credit", "parts") for name in names}


def test_answers_that_are_known(found):
    for name in found.measurements:
        assert found.find("additivity", "", "ledger", "error", name).value <= 1e-6
        assert found.find("correspondence", "identity", "argmax", "mass", name).value == pytest.approx(1)
        assert found.find("correspondence", "identity", "ceiling", "mass", name).value == pytest.approx(1)
        assert found.find("correspondence", "flip", "identity", "regions", name).value == pytest.approx(1 / 3)
        assert found.find("correspondence", "flip", "uniform", "mass", name).value == pytest.approx(1 / 9)
        for kind in ("border", "clutter"):
            assert 0 <= found.find("unmatched", kind, "exact", "auc", name).value <= 1
        assert found.find("parts", "identity", "division", "agreement", name).value == pytest.approx(1)
        assert found.find("parts", "", "parts", "structural top 5", name).value <= 1 + 1e-9
        assert found.find("stability", "jpeg", "chance", "unchanged", name).value == pytest.approx(4 / 81)
    with pytest.raises(KeyError):
        found.find("correspondence", "shift", "plan", "mass", RANDOM)


def test_every_curve_begins_and_ends_at_the_same_two_images(found):
    for measured in found.measurements.values():
        deleted, inserted = measured.curves["deletion", "credit"], measured.curves["insertion", "credit"]
        for (kind, _), rows in measured.curves.items():
            if kind not in ("deletion", "insertion"):
                continue
            first, last = (deleted[:, 0], deleted[:, -1]) if kind == "deletion" else (inserted[:, 0], inserted[:, -1])
            assert rows[:, 0] == pytest.approx(first)
            assert rows[:, -1] == pytest.approx(last)
        assert deleted[:, 0] == pytest.approx(inserted[:, -1])


def test_the_values_of_a_pair_do_not_depend_on_the_other_pairs(tiny, shop, monkeypatch):
    pairs = choose_pairs(shop, 4, seed=0)
    together = measure_pairs(tiny, shop, pairs, measures=FEW)
    monkeypatch.setattr("diml.faithfulness.measures.CHUNK", 1)
    apart = measure_pairs(tiny, shop, pairs, measures=FEW)
    assert together.values.keys() == apart.values.keys()
    for key, values in together.values.items():
        assert apart.values[key] == pytest.approx(values, abs=1e-4), key


def test_an_interrupted_measurement_continues_and_another_one_does_not(tiny, shop, tmp_path, monkeypatch):
    from diml.faithfulness import measures as module

    pairs = choose_pairs(shop, 3, seed=0)
    options = {"measures": FEW, "unfinished": tmp_path / "unfinished.json"}
    monkeypatch.setattr("diml.faithfulness.measures.CHUNK", 1)
    whole = measure_pairs(tiny, shop, pairs, measures=FEW)
    load, loads = module.Chunk.load, []

    def loaded(*arguments):
        loads.append(arguments[3])
        if len(loads) == 5:  # two for each pair: its own and that of the other pair
            raise KeyboardInterrupt
        return load(*arguments)

    monkeypatch.setattr("diml.faithfulness.measures.Chunk.load", loaded)
    with pytest.raises(KeyboardInterrupt):
        measure_pairs(tiny, shop, pairs, **options)
    before = len(loads)
    continued = measure_pairs(tiny, shop, pairs, **options)
    assert len(loads) - before == 2  # of the last pair alone
    assert continued.values.keys() == whole.values.keys()
    for key, values in whole.values.items():
        assert continued.values[key] == pytest.approx(values), key
    for key, rows in whole.curves.items():
        assert continued.curves[key] == pytest.approx(rows), key
    assert (continued.embeddings, continued.shares.tolist()) == (whole.embeddings, whole.shares.tolist())
    before = len(loads)
    measure_pairs(tiny, shop, pairs, measures=dataclasses.replace(FEW, seed=1), unfinished=options["unfinished"])
    assert len(loads) - before == 6


def test_intervals_hold_the_mean_and_deletion_is_paired_with_chance():
    generator = np.random.default_rng(0)
    chance = generator.normal(size=200)
    values = {
        ("deletion", "", "random", "area"): chance,
        ("deletion", "", "credit", "area"): chance - 0.25,
        ("additivity", "", "ledger", "error"): np.array([1e-9, 5e-8, 2e-8]),
    }
    estimates = estimates_of(Measurements(values, {}, np.array([0.0, 1.0]), 0), seed=0)
    by_name = {(f.method, f.quantity): f for f in estimates}
    less = by_name["credit", "area_less_random"]
    assert (less.value, less.low, less.high) == pytest.approx((-0.25, -0.25, -0.25))
    area = by_name["credit", "area"]
    assert area.high - area.low == pytest.approx(3.92 * chance.std() / 200**0.5, rel=0.15)
    assert by_name["ledger", "error"].value == 5e-8


def test_tables_and_plots_show_what_was_found(found, tmp_path):
    from rich.console import Console

    from diml.faithfulness import plots

    console = Console(width=140, record=True, file=(tmp_path / "shown").open("w"))
    for table in tables(found):
        console.print(table)
    console.file.close()
    shown = console.export_text()
    value = found.find("correspondence", "flip", "plan", "mass").value
    assert f"{100 * value:.1f} (" in shown
    assert "exact plan" in shown
    assert {path.name for path in write_plots(found, tmp_path / "plots")} == {
        f"{name}.png"
        for name in (
            *("additivity", "deletion", "controls", "interaction", "correspondence", "stability"),
            *("controls-parts", "interaction-parts", "parts", "unmatched"),
        )
    }
    axes = plots.deletion_plot(found).axes
    curve = next(line for line in axes[0].lines if line.get_label() == "credit (ledger)")
    assert curve.get_ydata() == pytest.approx(found.measurements["model"].curves["deletion", "credit"].mean(axis=0))
    drawn = [bar.get_height() for bar in plots.correspondence_plot(found).axes[0].patches]
    assert min(abs(height - value) for height in drawn) < 1e-9


def test_the_correspondence_shows_chance_and_the_strongest_matches_of_both_networks(found):
    from diml.faithfulness import plots

    axes = plots.correspondence_plot(found).axes[0]
    lines = {line.get_label(): line for line in axes.lines}
    for label, network in (("strongest match of the plan that scores", "model"), ("the same, random weights", RANDOM)):
        values = [found.find("correspondence", case, "plan", "strongest", network).value for case in FEW.warps]
        assert lines[label].get_ydata() == pytest.approx(values)
    assert lines["chance"].get_ydata() == pytest.approx([1 / 9, 1 / 9])
    words = [text.get_text() for text in axes.get_legend().get_texts()]
    assert words[0] == "plan that scores"
    alone = FaithfulnessReport({"model": found.measurements["model"]}, {"model": found.estimates["model"]})
    assert "the same, random weights" not in {
        line.get_label() for line in plots.correspondence_plot(alone).axes[0].lines
    }


def test_every_error_of_additivity_is_drawn_whatever_its_size(found):
    from diml.faithfulness import plots

    errors = np.array([0.0, 1e-15, 3e-8, 2e-4])
    values = dict.fromkeys((("additivity", "", method, "error") for method in ("ledger", "ranking")), errors)
    made = FaithfulnessReport({"model": Measurements(values, {}, np.array([0.0, 1.0]), 0)}, {"model": ()})
    shares = plots.additivity_plot(made).axes[0].patches[0].get_data().values
    assert sum(shares) == pytest.approx(1)
    assert (shares[0], shares[-1]) == pytest.approx((0.5, 0.25))


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"steps": 0}, "steps: need at least 1"),
        ({"top": 0}, "top: need at least 1"),
        ({"warps": ("flip", "twist")}, "warps: need some of .*, got twist"),
        ({"plan": "sharp"}, "plan: need one of exact, scored, got 'sharp'"),
        ({"ledgers": ("credit", "tale")}, "ledgers: need some of .*, got tale"),
        ({"occlusions": ("fog",)}, "occlusions: need some of .*, got fog"),
        ({"ledgers": ()}, "ledgers: need at least one of"),
        ({"gallery_removal": "cut"}, "gallery_removal: need one of shuffle, blur, got 'cut'"),
    ],
)
def test_settings_out_of_range_are_refused(settings, told):
    with pytest.raises(ValueError, match=told):
        Measures(grad_cam=False, **settings)


def test_the_matcher_is_the_embedders_own_or_the_one_given(tiny, shop):
    matcher = Matcher(epsilon=0.3, structural_weight=4)
    options = {"pairs": 2, "measures": Measures(warps=("flip",), steps=2, grad_cam=False), "sanity": False}
    given = faithfulness(tiny, shop, matcher=matcher, **options)
    config = dataclasses.replace(tiny.config, matcher=matcher)
    own = faithfulness(Embedder(tiny.backbone, tiny.head, config).eval(), shop, **options)
    default = faithfulness(tiny, shop, **options)
    assert own.to_dict() == given.to_dict()
    assert default.to_dict() != given.to_dict()
    (first, *_), (plain, *_) = (
        report.measurements["model"].curves["deletion", "credit"][0] for report in (given, default)
    )
    assert first > plain + 1.5  # pooled + 4 structural instead of pooled + structural
    for method in ("ledger", "ranking"):
        assert given.find("additivity", "", method, "error").value <= 1e-6


def test_the_ledgers_have_the_exact_plan_or_the_one_that_scores(tiny, shop):
    few = Measures(warps=(), steps=2, grad_cam=False, controls=False, interaction=False, occlusions=())
    options = {"pairs": 2, "sanity": False}

    def credit(epsilon, plan):
        measures = dataclasses.replace(few, plan=plan)
        report = faithfulness(tiny, shop, matcher=Matcher(epsilon=epsilon), measures=measures, **options)
        return report.find("parts", "", "cells", "structural top 3").value

    assert credit(0.0, "exact") == credit(0.0, "scored")
    assert credit(0.5, "exact") == credit(0.0, "exact")
    assert credit(0.5, "scored") < credit(0.5, "exact") - 0.05


def test_reprs_are_short(found):
    assert len(repr(found)) < 120
    assert len(repr(found.measurements["model"])) < 120
    assert found._repr_html_().count("<tr>") == 1 + sum(len(rows) for rows in found.estimates.values())
