"""What every function of this package refuses, with one wording."""

import numpy as np


def check_labels_and_probabilities(y_true, probabilities, *, both_classes: bool = False):
    """Turns labels and probabilities into two arrays of the same length, or says why they cannot be.

    Args:
        y_true: Labels 0 or 1 (or booleans) of shape `(n,)` or `(n, 1)`: a list, an array or a tensor.
        probabilities: Probabilities of label 1, of the same shapes.
        both_classes: Boolean, whether labels of one class only are refused. Defaults to `False`.

    Returns:
        Tuple of an `int64` array and a `float64` array, both of shape `(n,)`.

    Raises:
        ValueError: If a label is not 0 or 1, a probability lies outside [0, 1], or the lengths differ or are 0.
    """
    labels, probabilities = _to_vector(y_true, "y_true"), check_probabilities(probabilities)
    if len(labels) != len(probabilities):
        raise ValueError(
            f"`y_true` and `probabilities` must have the same length. Received: {len(labels)} labels and "
            f"{len(probabilities)} probabilities. Predict on the very rows that the labels belong to."
        )
    if not len(labels):
        raise ValueError("There is nothing to measure. Received: 0 rows. Give at least one label and its probability.")
    wrong = ~np.isin(labels, (0, 1))
    if wrong.any():
        swapped = " Were `y_true` and `probabilities` swapped?" if np.isin(probabilities, (0, 1)).all() else ""
        raise ValueError(
            f"Labels in `y_true` must be 0 or 1. Received: {_first(labels, wrong)}. Map the labels to 0 and 1.{swapped}"
        )
    labels = labels.astype("int64")
    if both_classes and labels.min() == labels.max():
        raise ValueError(
            f"Labels of both classes are needed. Received: {len(labels)} rows, all with label {labels[0]}. "
            "Use validation data that holds positives and negatives."
        )
    return labels, probabilities


def check_probabilities(probabilities) -> np.ndarray:
    """Returns probabilities as a `float64` vector; raises `ValueError` if one lies outside [0, 1] or is NaN."""
    probabilities = _to_vector(probabilities, "probabilities")
    wrong = ~((probabilities >= 0) & (probabilities <= 1))
    if wrong.any():
        raise ValueError(
            f"`probabilities` must lie in [0, 1]. Received: {_first(probabilities, wrong)}. "
            "NaN means that the model diverged; values outside mean that these are logits: apply a sigmoid first."
        )
    return probabilities


def _to_vector(values, name):
    try:
        array = np.asarray(values)
        vector = array.astype("float64")
    except (TypeError, ValueError) as error:
        raise ValueError(f"`{name}` must hold numbers of shape (n,) or (n, 1). Received: {error}.") from error
    if vector.ndim == 2 and vector.shape[1] == 1:
        vector = vector[:, 0]
    if vector.ndim != 1:
        raise ValueError(
            f"`{name}` must have shape (n,) or (n, 1). Received: shape {array.shape}. "
            "Of a two-column softmax take the column of label 1."
        )
    return vector


def _first(values, wrong):
    rows = np.flatnonzero(wrong)
    listed = ", ".join(f"{values[row]:g} in row {row}" for row in rows[:3])
    return listed + (f" and {len(rows) - 3} more" if len(rows) > 3 else "")
