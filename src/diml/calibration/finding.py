"""Which calibration applies to a model or an index: the one that is kept with it, if it fits.

A calibration of another embedder or matcher is never used: it is an error where the user named it, and a line that says
so where it was only found.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from diml.calibration.calibrator import FILE, Calibrator, load_calibration, parse_calibration
from diml.matching import Matcher
from diml.models.published import published_folder


@dataclass(frozen=True)
class FoundCalibration:
    """The calibration of a model or an index, or why there is none.

    Args:
        calibrator: the calibration; None where there is none that fits.
        place: where it is kept; empty where there is none.
        notice: one line about a calibration that is there and does not fit; empty otherwise.
    """

    calibrator: Calibrator | None = None
    place: str = ""
    notice: str = ""


def find_calibration(
    folders: Sequence[str | os.PathLike[str]] = (),
    *,
    fingerprint: str,
    matcher: Matcher,
    named: str | os.PathLike[str] | None = None,
    texts: Mapping[str, str] | None = None,
) -> FoundCalibration:
    """The calibration that was named; else the first that is kept with an index or a model.

    Args:
        folders: of an index or a model, in this order, or the name of a saved embedder on the hub; names of backbones
            have none.
        fingerprint, matcher: of the embedder and of the comparisons.
        named: folder or file that the user named.
        texts: place -> text of a `calibration.json` that is no file; tried before the folders.

    Raises:
        FileNotFoundError: there is none in the folder that was named.
        ValueError: the one that was named is damaged, or does not fit.
    """
    if named is not None:
        calibrator = load_calibration(named, fingerprint=fingerprint, matcher=matcher)
        return FoundCalibration(calibrator, os.fspath(named))
    notices = []
    there = dict(texts or {})
    for folder in folders:
        file = (published_folder(os.fspath(folder)) or Path(folder)) / FILE
        if file.is_file():
            there.setdefault(str(folder), file.read_text(encoding="utf-8"))
    for place, text in there.items():
        try:
            calibrator = parse_calibration(text, place)
            calibrator.check(fingerprint, matcher)
        except ValueError as error:
            notices.append(_not_used(place, error))
        else:
            return FoundCalibration(calibrator, place)
    return FoundCalibration(notice=notices[0] if notices else "")


def _not_used(place: str, error: ValueError) -> str:
    return f"The calibration of {place} is not used, so there are no probabilities. {error}"
