"""The threshold that turns probabilities into decisions."""

import numpy as np

from bertbin_tf.evaluation.checks import check_labels_and_probabilities


def _divide(numerator, denominator):
    """Quotient of counts that is 0 where nothing was counted, as scikit-learn has it for F1 and MCC."""
    return numerator / np.where(denominator == 0, 1.0, denominator)


# Measures of whole arrays of confusion matrices at once: scikit-learn's take one, at a millisecond or two each.
MEASURES_OF_COUNTS = {
    "accuracy": lambda tn, fp, fn, tp: _divide(tn + tp, tn + fp + fn + tp),
    "balanced_accuracy": lambda tn, fp, fn, tp: (_divide(tp, tp + fn) + _divide(tn, tn + fp)) / 2,
    "f1": lambda tn, fp, fn, tp: _divide(2 * tp, 2 * tp + fp + fn),
    "mcc": lambda tn, fp, fn, tp: _divide(
        tp * tn - fp * fn, np.sqrt((tp + fp) * (tp + fn)) * np.sqrt((tn + fp) * (tn + fn))
    ),
}


def tune_threshold(y_true, probabilities, *, metric: str = "f1") -> float:
    """Finds the threshold at which a metric is largest.

    A text is called positive where `probability >= threshold`. The candidates are the midpoints between neighbouring
    distinct probabilities, the points that call every text positive or none, and 0.5 itself; of equally good ones
    the nearest to 0.5 wins. Use validation data: a threshold tuned on the test data flatters the test result.

    Args:
        y_true: Labels 0 or 1 of shape `(n,)` or `(n, 1)`, of both classes.
        probabilities: Probabilities of label 1, of the same shapes.
        metric: One of `"accuracy"`, `"balanced_accuracy"`, `"f1"`, `"mcc"`. Defaults to `"f1"`.

    Returns:
        Float in (0, 1).

    Raises:
        ValueError: If the metric is unknown or the labels or probabilities are unusable.

    Example:
    >>> tune_threshold([0, 0, 1, 1], [0.1, 0.2, 0.3, 0.4])
    0.25
    """
    if metric not in MEASURES_OF_COUNTS:
        raise ValueError(f"`metric` must be one of {', '.join(MEASURES_OF_COUNTS)}. Received: metric={metric!r}.")
    labels, probabilities = check_labels_and_probabilities(y_true, probabilities, both_classes=True)
    order = np.argsort(probabilities)
    labels, probabilities = labels[order], probabilities[order]

    edges = np.concatenate([[0.0], np.unique(probabilities), [1.0]])
    midpoints = (edges[:-1] + edges[1:]) / 2
    # Between two adjacent floats there is no midpoint: it may round to the lower one, which would then be positive.
    candidates = np.append(np.where(midpoints > edges[:-1], midpoints, edges[1:]), 0.5)
    candidates = candidates[(candidates > 0) & (candidates < 1)]

    first = np.searchsorted(probabilities, candidates, side="left")  # rows from here on are called positive
    positives_below = np.concatenate([[0], np.cumsum(labels)])[first].astype("float64")
    tp = labels.sum() - positives_below
    fp = len(labels) - first - tp
    values = MEASURES_OF_COUNTS[metric](first - positives_below, fp, positives_below, tp)

    best = candidates[values >= values.max() - 1e-12]  # equal but for rounding
    return float(best[np.argmin(np.abs(best - 0.5))])
