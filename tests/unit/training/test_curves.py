from __future__ import annotations

import sys

import pytest
from PIL import Image

from diml.training.curves import draw_curves, write_curves


def records() -> list[dict]:
    lines = [{"kind": "start", "step": 0}]
    for step in range(1, 7):
        epoch = (step + 1) // 2
        lines.append({"kind": "train", "epoch": epoch, "step": step, "loss": None if step == 4 else 6.0 - step})
        if step % 2 == 0:
            for k in (0, 100):
                value = 0.1 * epoch + 0.01 * (k > 0)
                lines.append({"kind": "validation", "epoch": epoch, "rerank_at": k, "map@r": value})
    return lines


def test_loss_and_validation_are_drawn():
    left, right = draw_curves(records(), best_epoch=2).axes
    steps, means = left.lines
    assert list(steps.get_ydata()) == [5, 4, 3, 1, 0]
    assert list(means.get_xdata()) == [1, 2, 3]
    assert list(means.get_ydata()) == [4.5, 3, 0.5]
    plain, refined, best = right.lines
    assert list(plain.get_ydata()) == pytest.approx([10, 20, 30])
    assert list(refined.get_ydata()) == pytest.approx([11, 21, 31])
    assert list(best.get_xdata()) == [2, 2]
    assert [text.get_text() for text in right.get_legend().get_texts()] == ["plain, K = 0", "re-ranked, K = 100"]


def test_a_png_is_written_without_pyplot(tmp_path, monkeypatch):
    monkeypatch.delitem(sys.modules, "matplotlib.pyplot", raising=False)  # another test may have imported it
    with Image.open(write_curves(tmp_path / "curves.png", records())) as image:
        assert image.size == (1080, 480)
    assert "matplotlib.pyplot" not in sys.modules


def test_a_run_without_steps_gives_empty_axes(tmp_path):
    assert write_curves(tmp_path / "curves.png", []).is_file()
