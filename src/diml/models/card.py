"""The model card of an embedder: what it is, how to load it, how it was trained, and the results of its run.

Every number is read from the embedder or from the files of its run.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from diml.checksums import unsealed
from diml.documents import read_json, read_yaml
from diml.field_texts import field_texts
from diml.matching import LearnedMatcher, Matcher
from diml.models.hub import is_source
from diml.models.modules import is_import_path

if TYPE_CHECKING:
    from diml.models.embedder import Embedder

CARD_FILE: Final = "README.md"
_TAGS: Final = ("diml", "image-retrieval", "metric-learning", "optimal-transport", "explainability")
#: Files of a run: its settings, and what is written at its end.
_CONFIG, _REPORT = "config.yaml", "evaluation.json"
#: Metrics of the table where the run has them, else all; and how they are written.
_METRICS: Final = {"recall@1": "R@1", "r_precision": "RP", "map@r": "MAP@R"}
#: Settings of a training that its card names, in order.
_TRAINING: Final = (
    *("dataset", "protocol", "model", "pretrained", "weights_sha256", "objective", "similarity", "miner"),
    *(
        "objective_options",
        "frozen_backbone",
        "batch_size",
        "per_class",
        "epochs",
        "best_epoch",
        "optimizer",
        "lr",
        "head_lr",
    ),
    *("weight_decay", "schedule", "select_on", "seed"),
)
_HEADS: Final = {
    "identity": "identity: the features of the backbone as they are",
    "linear": "linear, trained",
    "whiten": "whitening",
}
_PAPER: Final = """\
@inproceedings{zhao2021diml,
  title     = {Towards Interpretable Deep Metric Learning with Structural Matching},
  author    = {Zhao, Wenliang and Rao, Yongming and Wang, Ziyi and Lu, Jiwen and Zhou, Jie},
  booktitle = {Proceedings of the IEEE/CVF International Conference on Computer Vision (ICCV)},
  year      = {2021}
}
"""


@dataclass(frozen=True, kw_only=True)
class RunResults:
    """What a finished run says about its embedder.

    Args:
        settings: of the training, plain values.
        before: report of the network before training; None where the run has none.
        trained: report of the trained network on the test images.
        gains: trained minus before for each K and metric.
    """

    settings: Mapping[str, Any]
    before: Mapping[str, Any] | None
    trained: Mapping[str, Any]
    gains: Sequence[Mapping[str, Any]]


def read_results(folder: Path) -> RunResults | None:
    """Read the results of a run; None where a folder is no run, or one that was not tested as it is now.

    Raises:
        ValueError: its files are damaged.
    """
    if not all((folder / name).is_file() for name in (_CONFIG, _REPORT)):
        return None
    remedy = "resume the run, which tests it again"
    document = unsealed(read_json(folder / _REPORT), str(folder / _REPORT), remedy)
    given = read_yaml(folder / _CONFIG)
    try:
        settings, methods = dict(document["config"]), list(document["methods"].values())
        settings_now = json.loads(json.dumps(dict(given)))
        trained, before = methods[-1], methods[-2] if len(methods) > 1 else None
        found = RunResults(
            settings=settings, before=before, trained=trained, gains=list(document.get("trained_minus_frozen", ()))
        )
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise ValueError(f"{folder}: {_REPORT} is not that of a run ({error!r}); {remedy}") from error
    return found if all(settings.get(name) == value for name, value in settings_now.items()) else None


def model_card(
    embedder: Embedder, repo_id: str, *, results: RunResults | None = None, licence: str | None = None
) -> str:
    """The text of a model card, Markdown with YAML front matter.

    Args:
        embedder: the model.
        repo_id: OWNER/NAME, by which it is loaded.
        results: of its run; without, the card has no section on training and results.
        licence: identifier of the hub, such as "mit"; omitted from the card where None.

    Raises:
        ValueError: `licence` is not an identifier.
    """
    sections = [_front_matter(licence), _what(embedder, repo_id), _use(embedder, repo_id), _model(embedder)]
    sections += [_matching(embedder.matcher)]
    if results is not None:
        sections += [_training(results), _results(results)]
    return "\n".join([*sections, f"## Citation\n\n```bibtex\n{_PAPER}```\n"])


def _front_matter(licence: str | None) -> str:
    if licence is not None and not licence.replace("-", "").replace(".", "").isalnum():
        raise ValueError(f"license: need an identifier such as mit, apache-2.0 or other, got {licence!r}")
    import yaml

    plain: dict[str, Any] = {"library_name": "diml", "pipeline_tag": "image-feature-extraction", "tags": list(_TAGS)}
    if licence is not None:
        plain["license"] = licence.lower()
    return f"---\n{yaml.safe_dump(plain, sort_keys=False)}---\n"


def _what(embedder: Embedder, repo_id: str) -> str:
    how = "votes of a learned scorer" if embedder.matcher.learned else "optimal transport"
    return f"""\
# {repo_id.partition("/")[2]}

An embedder of the Python package `diml`, explainable image retrieval: an image becomes regions, and two images are
compared region by region ({how}). The score of a pair is a sum over pairs of regions, which can be shown.
"""


def _use(embedder: Embedder, repo_id: str) -> str:
    name, backbone = f"hf-hub:{repo_id}", embedder.config.backbone
    factory, needs, commands = "", "", f"On the command line it is `--model {name}`, of every command.\n"
    if is_import_path(backbone):  # which a model on the hub is not trusted to import
        factory, commands = f', factory="{backbone}"', ""
        needs = (
            f"Its network is built by `{backbone}`, code that is not part of `diml` and has to be installed too.\n\n"
        )
    return f"""\
## Use

{needs}```python
import diml

embedder = diml.load_embedder("{name}"{factory})
match = diml.match("a.jpg", "b.jpg", embedder=embedder)
print(match.score, match.ledger().top(3))
match.draw().savefig("why.png")
```

{commands}"""


def _model(embedder: Embedder) -> str:
    config, preprocess = embedder.config, embedder.preprocess
    parameters = sum(value.numel() for value in embedder.parameters())
    how = {
        "crop": f"short side resized to {preprocess.short_side} pixels ({preprocess.interpolation}), centre cut out",
        "square": f"the whole image resized to a square ({preprocess.interpolation})",
    }
    shrunk = "large images are shrunk by a whole factor, JPEG files while they are decoded, before they are resized"
    pooled = {
        "backbone": "the head applied to the backbone's own pooled feature",
        "grid_mean": "the mean of the regions",
    }
    rows = {
        "backbone": f"`{config.backbone}`",
        "backbone options": ", ".join(f"{name} = {value}" for name, value in (config.factory_options or {}).items()),
        "parameters": f"{parameters:,} (head included), {4 * parameters / 2**20:,.1f} MiB as float32",
        "network input": f"{preprocess.size} x {preprocess.size} pixels, {how[preprocess.mode]}",
        "reducing gap": "" if preprocess.reducing_gap is None else f"{preprocess.reducing_gap:g}: {shrunk}",
        "mean (R, G, B)": _numbers(preprocess.mean),
        "standard deviation": _numbers(preprocess.std),
        "head": _HEADS[config.head],
        "dim": f"{embedder.dim} channels",
        "regions": "the backbone's own cells" if embedder.grid is None else f"{embedder.grid} x {embedder.grid}",
        "pooled vector": pooled[config.pooled],
        "token pooling": config.token_pooling or "",
    }
    return "## Model\n\n" + _table(("", ""), ((name, value) for name, value in rows.items() if value))


def _matching(matcher: Matcher) -> str:
    settings = matcher.to_dict()
    rows = [(name, f"`{settings[name]}`", text) for name, text in field_texts(Matcher).items() if name in settings]
    learned = ""
    if isinstance(matcher, LearnedMatcher):
        used = "" if matcher.scorer is None else f", {matcher.scorer.parameters_used:,} parameters"
        learned = (
            f"A learned scorer of pairs (`scorer.safetensors`, sha256 {matcher.scorer_id[:12]}...{used}) gives the "
        )
        learned += "plan: soft votes of every region, with a dustbin for what has no counterpart.\n\n"
        rows = [row for row in rows if row[0] != "matching"]
    return f"## Matching\n\n{learned}{_table(('setting', 'value', 'meaning'), rows)}"


def _training(results: RunResults) -> str:
    settings = dict(results.settings)
    settings["model"] = _without_folders(str(settings["model"]))
    shown = [(name, settings.get(name)) for name in _TRAINING]
    rows = ((name, f"`{value}`") for name, value in shown if value is not None and value not in ({}, []))
    return "## Training\n\n" + _table(("setting of `diml train`", ""), rows)


def _without_folders(model: str) -> str:
    """The name of a model; of one in a folder only the last part, as the others are nobody's business."""
    return model if is_source(model) else Path(model).name


def _results(results: RunResults) -> str:
    trained = results.trained
    sizes = f"{trained['queries']:,} queries, {trained['gallery']:,} gallery images"
    metrics = [name for name in _METRICS if name in trained["rows"][0]]
    metrics = metrics or [name for name in trained["rows"][0] if name != "rerank_at"]
    names = [_METRICS.get(name, name) for name in metrics]
    rows = [("before training", results.before), ("trained", trained)]
    lines = [line for method, report in rows if report for line in _report_lines(method, report, metrics)]
    text = (
        f"## Results\n\nOn the test images of `{results.settings['dataset']}` ({sizes}), measured by `diml train` at "
        f"the end of the run. Matching settings: `{_settings(trained['settings'].get('matcher', {}))}`. Percent, with "
        f"95 % bootstrap intervals over queries.\n\n{_table(('', *names), lines)}"
    )
    gains = {(int(row["rerank_at"]), row["metric"]): row for row in results.gains}
    differences = [
        (_row_name("trained minus before", k), *(_gain(gains[k, name]) for name in metrics))
        for k in sorted({k for k, _ in gains})
        if all((k, name) in gains for name in metrics)
    ]
    if not differences:
        return text
    return f"{text}\nDifferences in percentage points, paired by query:\n\n{_table(('', *names), differences)}"


def _report_lines(method: str, report: Mapping[str, Any], metrics: Sequence[str]) -> Iterator[tuple[str, ...]]:
    for row, bounds in zip(report["rows"], report["intervals_95"], strict=True):
        cells = [f"{100 * row[name]:.2f} ({_interval(*bounds[name])})" for name in metrics]
        yield _row_name(method, int(row["rerank_at"])), *cells


def _row_name(name: str, rerank_at: int) -> str:
    return f"{name}, re-ranked (K = {rerank_at})" if rerank_at else f"{name}, pooled vectors"


def _gain(row: Mapping[str, Any]) -> str:
    return f"{100 * row['value']:+.2f} ({_interval(row['low'], row['high'], '+')})"


def _interval(low: float, high: float, sign: str = "") -> str:
    return f"{100 * low:{sign}.1f}..{100 * high:{sign}.1f}"


def _settings(settings: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in settings.items())


def _numbers(values: Sequence[float]) -> str:
    return ", ".join(f"{value:g}" for value in values)


def _table(header: Sequence[str], rows: Any) -> str:
    """A table in Markdown; a bar within a cell does not end it."""
    lines = [header, ["---"] * len(header), *rows]
    return "".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |\n" for line in lines)
