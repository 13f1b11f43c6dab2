"""What is done with whole datasets of `(text, label)`: count, identify, divide."""

import hashlib

import numpy as np
import sklearn.model_selection
import tensorflow as tf


def base_rate(dataset: tf.data.Dataset) -> float:
    """Returns the share of the label 1.

    Args:
        dataset: `tf.data.Dataset` of `(anything, label)`, batched or not.

    Raises:
        ValueError: If the dataset has no rows.

    Example:
    >>> base_rate(read((["good", "fine", "bad", "dull"], [1, 0, 0, 0])))
    0.25
    """
    labels = dataset.map(lambda _, label: label)
    if labels.element_spec.shape.rank == 0:
        labels = labels.batch(1024)
    num_positive = num_rows = 0
    for batch in labels.as_numpy_iterator():
        num_positive += batch.sum(dtype="float64")
        num_rows += batch.size
    if not num_rows:
        raise ValueError("A dataset without rows has no base rate.")
    return float(num_positive / num_rows)


def fingerprint(dataset: tf.data.Dataset) -> str:
    """Returns a SHA-256, in hexadecimal, over the texts and labels in their order."""
    digest = hashlib.sha256()
    for text, label in zip(*collect(dataset), strict=True):
        # The length first, or else "ab" + "c" would count as "a" + "bc".
        digest.update(len(text).to_bytes(8, "little") + text + bytes([label]))
    return digest.hexdigest()


def split(
    dataset: tf.data.Dataset, fraction: float, *, seed: int = 0, group_texts: bool = True
) -> tuple[tf.data.Dataset, tf.data.Dataset]:
    """Divides a dataset by chance into two with the same base rate, each in the order of the original.

    Args:
        dataset: `tf.data.Dataset` of `(text, label)`, as `read` returns it.
        fraction: Float in (0, 1), the share that is held out.
        seed: Integer; the same seed gives the same two parts. Defaults to `0`.
        group_texts: Whether all rows with the same text go to the same side, so that no held-out text was seen in
            training. `fraction` is then a share of the distinct texts. Defaults to `True`.

    Returns:
        Tuple `(rest, held_out)` of datasets of known cardinality.

    Raises:
        ValueError: If `fraction` is out of range, or one side would lack a class.

    Example:
    >>> train_data, validation_data = split(read("vader/movies"), 0.1)
    """
    if not 0 < fraction < 1:
        raise ValueError(f"`fraction` must be between 0 and 1. Received: fraction={fraction}")
    collected, labels = collect(dataset)
    texts = np.array(collected, dtype=object)
    if group_texts:
        _, first, groups = np.unique(texts, return_index=True, return_inverse=True)
    else:
        first = groups = np.arange(len(texts))
    try:
        # A text with contradicting labels counts as what it was labelled first.
        _, held_out = sklearn.model_selection.train_test_split(
            np.arange(len(first)), test_size=fraction, random_state=seed, stratify=labels[first]
        )
    except ValueError:
        held_out = []
    is_held_out = np.isin(groups, held_out)
    sides = [(texts[side].tolist(), labels[side]) for side in (~is_held_out, is_held_out)]
    if any(len(set(labels.tolist())) < 2 for _, labels in sides):
        negative, positive = np.bincount(labels, minlength=2)
        raise ValueError(
            f"One side of the split would lack a class. Received: fraction={fraction}, {negative} rows of label 0 and "
            f"{positive} of label 1, {len(first)} texts. Take another fraction, or more rows."
        )
    return tuple(tf.data.Dataset.from_tensor_slices(side) for side in sides)


def collect(dataset: tf.data.Dataset) -> tuple[list[bytes], np.ndarray]:
    """Returns the texts of a dataset of `(text, label)` as bytes in UTF-8, and the labels as an int32 array."""
    texts, labels = [], []
    for some_texts, some_labels in dataset.batch(1024).as_numpy_iterator():
        texts.extend(some_texts.tolist())
        labels.extend(some_labels.tolist())
    return texts, np.array(labels, np.int32)
