"""How good the probabilities are, how to calibrate them, and where to cut them into decisions.

scikit-learn and SciPy compute; nothing here imports TensorFlow, and anything that NumPy can read is taken.
"""

from bertbin_tf.evaluation.calibration import apply_temperature, expected_calibration_error, fit_temperature
from bertbin_tf.evaluation.summary import Evaluation, evaluate
from bertbin_tf.evaluation.thresholds import tune_threshold

__all__ = [
    "Evaluation",
    "apply_temperature",
    "evaluate",
    "expected_calibration_error",
    "fit_temperature",
    "tune_threshold",
]
