"""Which calibration applies: the named one or an error, the first that fits, or one line why none does."""

from __future__ import annotations

import dataclasses

import pytest

from diml.calibration.calibrator import FILE
from diml.calibration.finding import find_calibration
from diml.matching import Matcher

ABOUT = {"fingerprint": "f" * 64, "matcher": Matcher()}


def test_the_first_that_fits_is_found(calibrator, tmp_path):
    other = dataclasses.replace(calibrator, fingerprint="0" * 64)
    other.save(tmp_path / "index")
    calibrator.save(tmp_path / "model")
    found = find_calibration([tmp_path / "index", tmp_path / "model"], **ABOUT)
    assert (found.calibrator, found.place, found.notice) == (calibrator, str(tmp_path / "model"), "")
    found = find_calibration([tmp_path / "index"], texts={"the index": calibrator.to_json()}, **ABOUT)
    assert (found.calibrator, found.place) == (calibrator, "the index")


def test_none_is_silent_and_one_that_does_not_fit_is_one_line(calibrator, tmp_path):
    found = find_calibration(["mobilenetv2_100", tmp_path], **ABOUT)
    assert (found.calibrator, found.place, found.notice) == (None, "", "")
    calibrator.save(tmp_path)
    found = find_calibration([tmp_path], fingerprint="f" * 64, matcher=Matcher(epsilon=0.3))
    assert found.calibrator is None
    assert found.notice.startswith(f"The calibration of {tmp_path} is not used, so there are no probabilities.")
    assert "got epsilon 0.3 instead of" in found.notice
    assert "\n" not in found.notice
    (tmp_path / FILE).write_text("{")
    assert "not a calibration" in find_calibration([tmp_path], **ABOUT).notice


def test_the_named_one_is_used_or_an_error(calibrator, tmp_path):
    dataclasses.replace(calibrator, prior=0.4).save(tmp_path / "own")
    calibrator.save(tmp_path / "named")
    for place in (tmp_path / "named", tmp_path / "named" / FILE):
        assert find_calibration([tmp_path / "own"], named=place, **ABOUT).calibrator == calibrator
    with pytest.raises(ValueError, match="another matcher"):
        find_calibration(named=tmp_path / "named", fingerprint="f" * 64, matcher=Matcher(epsilon=0.3))
    with pytest.raises(FileNotFoundError, match="diml calibrate"):
        find_calibration([tmp_path / "own"], named=tmp_path / "nothing", **ABOUT)
