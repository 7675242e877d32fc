"""Values of pairs, collected: curves at common shares of the regions, and values that are missing."""

import numpy as np
import pytest

from diml.faithfulness.collected import Collector


def test_curves_with_other_steps_are_recorded_at_the_same_shares():
    collector = Collector(shares=np.array([0, 0.5, 1]))
    collector.add_curve(("deletion", "parts"), np.array([2.0, 1.0, 0.0]), [0, 1, 4])
    collector.add_curve(("deletion", "parts"), np.array([2.0, 0.0]), [0, 4])
    made = collector.measurements()
    assert made.curves["deletion", "parts"] == pytest.approx(np.array([[2, 2 / 3, 0], [2, 1, 0]]))
    assert made.values["deletion", "", "parts", "area"] == pytest.approx([1.5 * 0.25 + 0.5 * 0.75, 1])


def test_pairs_without_a_value_are_left_out():
    collector = Collector()
    collector.add(("unmatched", "border", "cosine", "auc"), [0.5, np.nan])
    collector.add(("unmatched", "border", "weights", "auc"), [np.nan])
    assert {key: values.tolist() for key, values in collector.measurements().values.items()} == {
        ("unmatched", "border", "cosine", "auc"): [0.5]
    }
