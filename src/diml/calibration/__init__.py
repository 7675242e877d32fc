"""How sure: from a score to a probability, and thresholds for a named false-accept rate.

Read in this order: `pairs`, `rates`, `calibrator`, `evaluate`.
"""

from diml.calibration.calibrator import Calibrator, load_calibration
from diml.calibration.evaluate import calibrate

__all__ = ["Calibrator", "calibrate", "load_calibration"]
