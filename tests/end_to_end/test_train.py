"""Complete runs as a user starts them: from images to a folder with an embedder, tables and curves."""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import importlib.util
import io
import json
import os
import re
import shlex
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from diml.cli import main
from diml.cli.train import parse
from diml.data import DataSet, ImageSet, load_dataset, load_image
from diml.data.samplers import sampler_names
from diml.evaluation import evaluate_dataset, evaluate_regions
from diml.evaluation.metrics import METRICS
from diml.matching import Matcher
from diml.models import load_embedder
from diml.objectives import objective_names
from diml.objectives.objective import MINERS
from diml.training import TrainConfig, read_config, train
from diml.training.config import write_config
from diml.training.interrupts import TrainingStopped
from diml.training.logs import read_records
from diml.training.split import split_for_training
from diml.training.steps import NonFiniteError, Stepper
from end_to_end.small_runs import make_images, small_config, tensors_of


@pytest.fixture(scope="module")
def words(images, tmp_path_factory):
    """Arguments of `diml train` for a run that takes seconds, without --output."""
    path = tmp_path_factory.mktemp("config") / "small.yaml"
    config = dataclasses.replace(small_config(images, path), output=None)
    write_config(path, config)
    return ["csv", "--config", str(path), "--no-progress"]


def test_a_run_is_a_folder(words, images, tmp_path, capsys):
    run = tmp_path / "run"
    command = parse([*words, "--objective", "margin_diml", "--output", str(run), "--validation-rerank-at", "4"])
    assert command.run() == 0
    out = capsys.readouterr().out
    assert "run + DIML (5)" in out
    assert "Best epoch: " in out
    names = {"config.yaml", "model.safetensors", "embedder.json", "last.ckpt", "best.ckpt", "metrics.jsonl"}
    names |= {"metrics.csv", "curves.png", "evaluation.csv", "evaluation.json", "differences.csv", ".in_use", "frozen"}
    if importlib.util.find_spec("tensorboard"):
        names.add("tensorboard")
        assert any(path.stat().st_size > 0 for path in (run / "tensorboard").iterdir())
    assert {path.name for path in run.iterdir()} == names
    embedder = load_embedder(run)
    assert embedder.fingerprint() == load_embedder(run / "best.ckpt").fingerprint()
    assert embedder.config.pooled == "grid_mean"
    with Image.open(run / "curves.png") as image:
        assert image.format == "PNG"
    kinds = [record["kind"] for record in read_records(run / "metrics.jsonl")]
    per_epoch = ["train"] * 4 + ["validation"] * 2
    tests = ["frozen_test"] * 2 + ["test"] * 2
    assert kinds == ["start", "validation", "validation", *per_epoch, *per_epoch, *tests]
    assert "Trained minus frozen, K = 5, percentage points, paired: R@1 " in out
    # the test reported by the run is what evaluating its embedder gives
    report = json.loads((run / "evaluation.json").read_text())["methods"]["run"]
    found = evaluate_dataset(embedder, load_dataset("csv", images).test, rerank_at=(0, 5)).report.to_dict()
    assert report["rows"] == found["rows"]
    assert report["intervals_95"] == json.loads(json.dumps(found["intervals_95"]))


def test_the_matcher_of_a_run_is_that_of_training_validation_test_and_evaluation(tmp_path, capsys):
    """Issue 14: runs with another epsilon than the default were validated, tested and evaluated at the default."""
    images = coloured_blocks(tmp_path / "images")
    run, matcher, default = tmp_path / "run", Matcher(epsilon=0.02), Matcher(epsilon=0.05)
    network = {"head": "identity", "size": 128, "grid": 4, "objective": "margin_diml"}
    settings = small_config(images, run, **network, epochs=1, rerank_at=40, validation_fraction=0.5)
    write_config(tmp_path / "small.yaml", dataclasses.replace(settings, output=None))
    command = parse(["--config", str(tmp_path / "small.yaml"), "--epsilon", "0.02", "--output", str(run)])
    assert command.matcher == matcher
    assert command.run() == 0
    assert TrainConfig.from_dict(read_config(run / "config.yaml")).matcher == matcher
    records = read_records(run / "metrics.jsonl")
    assert records[0]["objective"]["matcher"] == matcher.to_dict()

    split = split_for_training(load_dataset("csv", images), command)
    embedder = load_embedder(run / "last.ckpt")
    assert embedder.matcher == matcher
    regions, labels = embedder.embed(split.validation.images), split.validation.labels
    by_hand = [
        evaluate_regions(regions, labels, rerank_at=(0, 40), matcher=used, resamples=1).rows
        for used in (matcher, default)
    ]
    logged = [
        {key: value for key, value in record.items() if key not in ("kind", "epoch", "step")}
        for record in records
        if record["kind"] == "validation" and record["epoch"] == 1
    ]
    assert logged == by_hand[0]
    assert logged != by_hand[1]

    report = json.loads((run / "evaluation.json").read_text())
    assert report["config"]["matcher"] == matcher.to_dict()
    capsys.readouterr()
    quiet = ["--rerank-at", "0", "40", "--no-cache", "--workers", "0"]
    assert main(["evaluate", str(run), "--json", *quiet]) == 0
    found = json.loads(capsys.readouterr().out)["methods"]["run"]
    assert found["rows"] == report["methods"]["run"]["rows"]
    assert found["settings"]["matcher"] == report["methods"]["run"]["settings"]["matcher"] == matcher.to_dict()
    assert main(["evaluate", str(run), "--epsilon", "0.05", "--output", str(tmp_path / "other"), *quiet]) == 0
    assert "epsilon 0.05 (the model's own: 0.02)" in " ".join(capsys.readouterr().out.split())
    found = json.loads((tmp_path / "other" / "evaluation.json").read_text())["methods"]["run"]
    assert found["settings"]["matcher"] == default.to_dict()
    assert found["rows"] != report["methods"]["run"]["rows"]


def coloured_blocks(folder: Path, *, train: int = 20, test: int = 10, each: int = 4) -> Path:
    """A CSV data set of 4 x 4 random colours per image, whose classes mean nothing: the ranking depends on details."""
    generator, rows = np.random.default_rng(0), []
    folder.mkdir()
    for number in range(train + test):
        for shot in range(each):
            colours = generator.integers(0, 256, (4, 4, 3), dtype=np.uint8)
            name = f"{number}-{shot}.png"
            Image.fromarray(colours).resize((64, 64), Image.Resampling.NEAREST).save(folder / name)
            rows.append([name, f"class{number}", "train" if number < train else "test"])
    with (folder / "images.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["path", "label", "split"], *rows])
    return folder / "images.csv"


def test_training_learns(images, tmp_path):
    """The loss decreases."""
    config = small_config(images, tmp_path / "run", epochs=6, objective="multisimilarity", validation_fraction=0)
    result = train(config)
    losses = [record["loss"] for record in read_records(result.folder / "metrics.jsonl") if record["kind"] == "train"]
    assert sum(losses[-4:]) < 0.5 * sum(losses[:4])
    assert (result.best_epoch, result.best_value) == (None, None)
    ours, last = tensors_of(result.folder / "best.ckpt"), tensors_of(result.folder / "last.ckpt")
    assert all(torch.equal(ours[name], last[name]) for name in ours)


def test_images_in_memory_train_as_files_do(images, tmp_path):
    data = load_dataset("csv", images)
    loaded = {
        name: ImageSet([load_image(path) for path in chosen.images], chosen.labels, class_names=chosen.class_names)
        for name, chosen in (("train", data.train), ("test", data.test))
    }
    own = DataSet(name="mine", protocol="all", credit=None, **loaded)
    found = train(small_config(images, tmp_path / "memory", epochs=1), dataset=own)
    train(small_config(images, tmp_path / "files", epochs=1))
    ours, theirs = (tensors_of(tmp_path / name / "last.ckpt") for name in ("memory", "files"))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert re.fullmatch(
        r"TrainResult\(.*memory, best epoch 1: [01]\.\d+, test map@r [01]\.\d+ \(K = 0\), [01]\.\d+ \(K = 5\)\)",
        repr(found),
    )


def test_the_best_epoch_is_kept(images, tmp_path, monkeypatch):
    """With validations of 0.5, 0.9, 0.7 the second epoch is the embedder, the third is the last checkpoint."""
    from diml.training import loop

    values = iter([0.5, 0.9, 0.7])
    monkeypatch.setattr(loop._TrainingRun, "_validate", lambda *_: next(values))
    result = train(small_config(images, tmp_path / "run", epochs=3))
    assert (result.best_epoch, result.best_value) == (2, 0.9)
    best = json.loads((result.folder / "best.ckpt" / "state.json").read_text())
    assert '["epoch", 2]' in json.dumps(best)
    assert load_embedder(result.folder).fingerprint() == load_embedder(result.folder / "best.ckpt").fingerprint()
    assert load_embedder(result.folder).fingerprint() != load_embedder(result.folder / "last.ckpt").fingerprint()


def test_selection_as_in_the_authors_code_warns_and_trains_on_all_classes(images, tmp_path):
    config = small_config(images, tmp_path / "run", epochs=1, select_on="test", rerank_at=0)
    with pytest.warns(UserWarning, match="test images select the best epoch"):
        result = train(config)
    assert result.best_value == pytest.approx(result.test.row(0)["map@r"])
    assert read_records(result.folder / "metrics.jsonl")[0]["classes"] == 10


def test_workers_change_nothing(images, tmp_path):
    for workers in (0, 2):
        train(small_config(images, tmp_path / str(workers), epochs=1, workers=workers))
    ours, theirs = (tensors_of(tmp_path / name / "last.ckpt") for name in ("0", "2"))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_an_unreadable_image_stops_or_is_skipped_by_name(tmp_path):
    images = make_images(tmp_path, train=4, test=2)
    (tmp_path / "class1" / "2.png").write_bytes(b"no image")
    changes = {"epochs": 1, "validation_fraction": 0, "sampler": "random", "sampler_options": ()}
    with pytest.raises(ValueError, match=r"class1/2.png: is not an image"):
        train(small_config(images, tmp_path / "fail", **changes))
    with pytest.warns(UserWarning, match=r"skipped .*class1/2.png: is not an image"):
        train(small_config(images, tmp_path / "skip", on_bad_image="skip", **changes))


def test_a_batch_without_a_readable_image_is_left_out_and_counted(tmp_path):
    """Each batch is one class here, and most classes are broken; so is one half of the batches in the second run."""
    csv = make_images(tmp_path / "images", train=6)
    for number in range(3):
        for path in (tmp_path / "images" / f"class{number}").iterdir():
            path.write_bytes(b"broken")
    options = {"on_bad_image": "skip", "validation_fraction": 0, "epochs": 1, "freeze_batch_norm": False}
    options |= {"objective": "multisimilarity", "miner": "none", "sampler_options": ("batches_per_epoch=12",)}
    config = small_config(csv, tmp_path / "run", batch_size=2, per_class=2, **options)
    with pytest.warns(UserWarning, match="skipped"):
        result = train(config)
    records = [r for r in read_records(config.folder / "metrics.jsonl") if r["kind"] == "train"]
    assert len(records) == 12
    left_out = [r for r in records if r.get("fault") == "no image of the batch can be read"]
    assert 0 < len(left_out) == result.skipped_steps < 12
    assert all(torch.isfinite(value).all() for value in load_embedder(config.folder).state_dict().values())


def test_a_loss_that_is_not_finite_stops_and_names_step_and_images(images, tmp_path, monkeypatch):
    poison(monkeypatch, 3)
    with pytest.raises(NonFiniteError, match=r"the loss is nan in step 3;") as caught:
        train(small_config(images, tmp_path / "run"))
    assert len(caught.value.images) == 8
    assert all(image in str(caught.value) for image in caught.value.images)
    assert all(Path(image).is_file() for image in caught.value.images)


def test_steps_that_are_not_finite_are_skipped_and_counted(words, tmp_path, monkeypatch, capsys):
    poison(monkeypatch, 3)
    command = parse([*words, "--skip-non-finite", "--output", str(tmp_path / "run")])
    assert command.run() == 0
    assert "Steps skipped (not finite, or no readable image): 1" in capsys.readouterr().out
    records = {record["step"] for record in read_records(tmp_path / "run" / "metrics.jsonl") if record["step"]}
    faults = {r["step"]: r["fault"] for r in read_records(tmp_path / "run" / "metrics.jsonl") if "fault" in r}
    assert faults == {3: "the loss is nan"}
    assert len(records) == 8


def poison(monkeypatch, bad_step: int) -> None:
    """Make the loss of one step NaN."""
    whole = Stepper.step

    def step(self, images, labels, number):
        handle = self.objective.register_forward_hook(
            lambda *args: args[-1] * float("nan" if number + 1 == bad_step else 1)
        )
        try:
            return whole(self, images, labels, number)
        finally:
            handle.remove()

    monkeypatch.setattr(Stepper, "step", step)


def test_ctrl_c_saves_and_says_how_to_resume_and_nothing_is_lost(words, images, tmp_path, monkeypatch, capsys):
    whole = train(small_config(images, tmp_path / "whole"))
    original = Stepper.step

    def step(self, images, labels, number):
        if number == 4:
            os.kill(os.getpid(), signal.SIGINT)
        return original(self, images, labels, number)

    with monkeypatch.context() as patched:
        patched.setattr(Stepper, "step", step)
        assert parse([*words, "--output", str(tmp_path / "run")]).run() == 130
    hint = (
        f"stopped after step 5; the checkpoint is saved. Resume with: diml train --resume --output {tmp_path / 'run'}"
    )
    assert hint in capsys.readouterr().err
    assert parse(["--resume", "--output", str(tmp_path / "run"), "--no-progress"]).run() == 0
    ours, theirs = tensors_of(tmp_path / "run" / "last.ckpt"), tensors_of(whole.folder / "last.ckpt")
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_a_third_ctrl_c_within_a_step_leaves_the_last_checkpoint_as_it_was(
    words, images, tmp_path, monkeypatch, capsys
):
    """The optimizer is cut short in its update: half of the weights are new, which is worth no checkpoint."""
    whole = train(small_config(images, tmp_path / "whole"))
    folder = tmp_path / "run"
    kept: dict[str, bytes] = {}

    def torn(optimizer, *_args, **_options):
        count = sum(len(group["params"]) for group in optimizer.param_groups)
        weights = [weight for group in optimizer.param_groups for weight in group["params"]]
        with torch.no_grad():
            for weight in weights[: count // 2]:
                weight += 1
        for path in (folder / "last.ckpt").iterdir():
            kept[path.name] = path.read_bytes()
        for _ in range(3):
            os.kill(os.getpid(), signal.SIGINT)

    original = Stepper.step

    def step(self, images, labels, number):
        if number == 3:  # the last checkpoint is that of step 2
            monkeypatch.setattr(self.optimizer, "step", lambda *args, **options: torn(self.optimizer, *args, **options))
        return original(self, images, labels, number)

    with monkeypatch.context() as patched:
        patched.setattr(Stepper, "step", step)
        assert parse([*words, "--output", str(folder)]).run() == 130
    assert "stopped at once after step 3; the checkpoint before it is left as it was" in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in (folder / "last.ckpt").iterdir()} == kept
    assert len(kept) == 4
    assert parse(["--resume", "--output", str(folder), "--no-progress"]).run() == 0
    ours, theirs = tensors_of(folder / "last.ckpt"), tensors_of(whole.folder / "last.ckpt")
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_stopped_in_validation_it_resumes_with_validation(images, tmp_path, monkeypatch):
    from diml.training import loop

    config = small_config(images, tmp_path / "run", epochs=1)
    with monkeypatch.context() as patched:

        def validate(*_):
            raise KeyboardInterrupt

        patched.setattr(loop._TrainingRun, "_validate", validate)
        with pytest.raises(TrainingStopped, match="stopped after step 4"):
            train(config)
    result = train(config, resume=True)
    assert result.best_epoch == 1
    kinds = [record["kind"] for record in read_records(config.folder / "metrics.jsonl")]
    tests = ["frozen_test"] * 2 + ["test"] * 2
    assert kinds == ["start", "validation", *["train"] * 4, "start", "validation", *tests]


def test_a_failed_build_leaves_no_run(images, tmp_path):
    """A misspelt name can be corrected with the same --output."""
    with pytest.raises(ValueError, match=r"unknown 'marginn'"):
        train(small_config(images, tmp_path / "run", objective="marginn"))
    assert train(small_config(images, tmp_path / "run", epochs=1)).best_epoch == 1


def test_a_finished_run_can_be_resumed_with_more_epochs(words, tmp_path, capsys):
    run = str(tmp_path / "run")
    assert parse([*words, "--output", run, "--epochs", "1"]).run() == 0
    with pytest.raises(FileExistsError, match="already holds a run"):
        parse([*words, "--output", run, "--epochs", "1"]).run()
    assert parse(["--resume", "--output", run, "--epochs", "2", "--no-progress"]).run() == 0
    assert read_records(tmp_path / "run" / "metrics.jsonl")[-1]["step"] == 8
    with pytest.raises(ValueError, match=r"settings differ .* lr \(0.001 to 0.5\)"):
        parse(["--resume", "--output", run, "--lr", "0.5", "--epochs", "2"]).run()


def test_flags_override_the_file_which_overrides_the_preset_which_overrides_defaults(tmp_path):
    (tmp_path / "mine.yaml").write_text("batch_size: 56\nlr: 0.5\n")
    (tmp_path / "matcher.yaml").write_text("matcher: {epsilon: 0.02, weights: uniform}\n")
    command = parse(["--preset", "cub200/margin_b12_distance", "--config", str(tmp_path / "mine.yaml"), "--lr", "1e-5"])
    assert (command.dataset, command.objective, command.miner) == ("cub200", "margin", "distance")
    assert command.batch_size == 56
    assert command.lr == 1e-5  # which is also the default
    assert "beta=1.2" in command.objective_options
    assert command.matcher == Matcher()
    assert command.dim == TrainConfig(dataset="cub200").dim
    again = parse(
        ["cars196", "--preset=cub200/margin_diml", "--no-freeze-batch-norm", "--objective-options", "beta=0.6"]
    )
    assert (again.dataset, again.freeze_batch_norm, again.objective_options) == ("cars196", False, ("beta=0.6",))
    words = [
        "--preset=cub200/margin_diml",
        "--config",
        str(tmp_path / "matcher.yaml"),
        "--weights",
        "cross_correlation",
    ]
    assert parse(words).matcher == Matcher(epsilon=0.02)


def test_unknown_names_are_errors(tmp_path, capsys):
    (tmp_path / "mine.yaml").write_text("learningrate: 1\n")
    with pytest.raises(ValueError, match=r"unknown key 'learningrate'"):
        parse(["orl", "--config", str(tmp_path / "mine.yaml")])
    with pytest.raises(ValueError, match=r"margin_b12_distance"):
        parse(["--preset", "cub200/margin_b12_distanc"])
    with pytest.raises(SystemExit):
        parse(["--preset"])
    with pytest.raises(SystemExit):
        parse([])
    capsys.readouterr()


def test_a_missing_run_to_resume_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no run to resume in .*nothing .*omit --resume"):
        parse(["--resume", "--output", str(tmp_path / "nothing")])
    with pytest.raises(ValueError, match=r"--resume needs the folder of the run"):
        parse(["--resume", "--no-progress"])
    assert parse(["--resume", "--preset", "cub200/npair"]).resume
    assert parse(["orl", "--resume"]).folder == Path("runs/orl-margin-0")


def test_a_misspelt_name_is_an_error_before_images_are_listed(tmp_path):
    with pytest.raises(ValueError, match=r"did you mean 'margin'"):
        train(small_config(tmp_path / "nowhere.csv", tmp_path / "run", objective="marginn"))
    assert not (tmp_path / "run").exists()


def test_the_help_lists_every_name():
    with pytest.raises(SystemExit), contextlib.redirect_stdout(io.StringIO()) as out:
        parse(["--help"])
    words = set(re.findall(r"[\w@]+", out.getvalue()))
    names = {*objective_names(), *MINERS, *sampler_names()}
    assert sorted(names - words) == []
    assert sorted({name.removesuffix("_self_counted") for name in METRICS} - words) == []


def test_the_commands_of_the_document_parse():
    """Their options exist; they are not run, as they download weights."""
    text = (Path(__file__).parents[2] / "docs" / "training.md").read_text()
    text = text.replace("$objective", "margin").replace("$seed", "0")
    lines = re.findall(r"(?:^|[ `])diml train ([^`\n]*?)(?:`|$)", text, re.MULTILINE)
    commands = [line for line in lines if line and not line.startswith(("DATASET", "--help", "--resume"))]
    assert len(commands) >= 4
    for command in commands:
        assert parse(shlex.split(command)).dataset in ("orl", "csv", "grocery", "folder")
    options = set(re.findall(r"`(--[a-z-]+)", text))
    with pytest.raises(SystemExit), contextlib.redirect_stdout(io.StringIO()) as out:
        parse(["--help"])
    assert sorted(option for option in options - {"--help"} if f"{option}" not in out.getvalue()) == []
