"""Whether 0.8 means right 8 times in 10, and the one number that repairs it."""

import warnings

import numpy as np
from scipy import optimize, special

from bertbin_tf.evaluation.checks import check_labels_and_probabilities, check_probabilities

NUM_BINS = 15  # Guo et al., 2017, section 5
TEMPERATURES = (0.05, 20.0)

# A float32 sigmoid rounds to exactly 1 at a logit of 17; a wrong answer there would cost infinitely much.
# scikit-learn clips float32 probabilities at the same place.
_CLIP = float(np.finfo("float32").eps)


def clip_probabilities(probabilities: np.ndarray) -> np.ndarray:
    """Moves probabilities off 0 and 1 by the spacing of float32, so that their logarithms are finite."""
    return np.clip(probabilities, _CLIP, 1 - _CLIP)


def assign_bins(probabilities: np.ndarray) -> np.ndarray:
    """Returns the bin of each probability, 0 to 14; bin `m` is the interval `(m / 15, (m + 1) / 15]`."""
    return np.digitize(probabilities, np.linspace(0, 1, NUM_BINS + 1)[1:-1], right=True)


def expected_calibration_error(y_true, probabilities) -> float:
    """Measures how far probabilities are from frequencies, in 15 bins of equal width.

    In each bin of the probability of label 1 the mean probability is compared with the share of positives; the
    result is the mean of the absolute differences, weighted by the number of rows. It grows with few rows: a perfectly
    calibrated model measured on 100 rows does not get 0.

    Args:
        y_true: Labels 0 or 1 of shape `(n,)` or `(n, 1)`.
        probabilities: Probabilities of label 1, of the same shapes.

    Returns:
        Float in [0, 1].

    Raises:
        ValueError: If the labels or probabilities are unusable.

    Example:
    >>> expected_calibration_error([0, 1], [0.5, 0.5])
    0.0

    Reference: [Guo et al., 2017](https://arxiv.org/abs/1706.04599), section 2, equation 3.
    """
    labels, probabilities = check_labels_and_probabilities(y_true, probabilities)
    gaps = np.bincount(assign_bins(probabilities), weights=probabilities - labels)
    return float(np.abs(gaps).sum() / len(labels))


def fit_temperature(y_true, probabilities) -> float:
    """Finds the temperature `T` at which `sigmoid(logit / T)` has the smallest log loss.

    Fine-tuned transformers are usually overconfident, and `T > 1` repairs it without changing the order of the texts:
    ROC AUC stays as it is, and so does every decision at threshold 0.5. Use validation data. Thresholds are tuned
    after the temperature was applied.

    Args:
        y_true: Labels 0 or 1 of shape `(n,)` or `(n, 1)`, of both classes.
        probabilities: Probabilities of label 1, of the same shapes. Values within 1.2e-7 of 0 or 1 are taken to be
            that far away, since a float32 sigmoid does not tell them apart.

    Returns:
        Float in [0.05, 20]. A `UserWarning` says when the best value lies at an end of that range.

    Raises:
        ValueError: If the labels or probabilities are unusable.

    Example:
    >>> temperature = fit_temperature([0, 1, 1, 0], [0.01, 0.99, 0.02, 0.02])
    >>> round(temperature, 1)
    3.5

    Reference: [Guo et al., 2017](https://arxiv.org/abs/1706.04599), section 4.2.
    """
    labels, probabilities = check_labels_and_probabilities(y_true, probabilities, both_classes=True)
    margins = np.where(labels == 1, 1, -1) * special.logit(clip_probabilities(probabilities))

    # Convex in 1 / T, hence one valley in log T as well, where the steps are even.
    result = optimize.minimize_scalar(
        lambda log_temperature: np.logaddexp(0, -margins * np.exp(-log_temperature)).mean(),
        bounds=np.log(TEMPERATURES),
        method="bounded",
        options={"xatol": 1e-6},
    )
    temperature = float(np.clip(np.exp(result.x), *TEMPERATURES))
    if temperature < 1.001 * TEMPERATURES[0]:
        _warn_at_end(temperature, "every row is on the right side of 0.5, so more confidence always looks better")
    elif temperature > 0.999 * TEMPERATURES[1]:
        _warn_at_end(temperature, "the probabilities say nothing about these labels")
    return temperature


def _warn_at_end(temperature, reason):
    warnings.warn(
        f"The temperature {temperature:.3g} is at the end of the range {list(TEMPERATURES)}: {reason}. "
        "Use more validation rows, or temperature 1.",
        stacklevel=3,
    )


def apply_temperature(probabilities, temperature: float) -> np.ndarray:
    """Returns `sigmoid(logit / temperature)`, what an exported model answers with that temperature.

    Args:
        probabilities: Probabilities of shape `(n,)` or `(n, 1)`.
        temperature: Float > 0. Above 1 the answers move towards 0.5, below 1 away from it.

    Returns:
        `float64` array of shape `(n,)`.

    Raises:
        ValueError: If a probability lies outside [0, 1] or the temperature is not positive and finite.

    Example:
    >>> apply_temperature([0.5, 0.9], 2.0).round(2).tolist()
    [0.5, 0.75]
    """
    if not 0 < temperature < np.inf:
        raise ValueError(f"`temperature` must be positive and finite. Received: temperature={temperature}.")
    return special.expit(special.logit(check_probabilities(probabilities)) / temperature)
