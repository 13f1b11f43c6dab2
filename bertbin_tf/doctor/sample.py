"""A few rows for short runs: both classes alike, short texts, all of one length."""

from typing import NamedTuple

import keras
import numpy as np

from bertbin_tf.doctor.batches import Batches, find_tokens

MAX_LENGTH = 20


class Sample(NamedTuple):
    """Rows to train on, and others to ask afterwards.

    Args:
        train: List of `(x, y, sample_weight)` in numpy arrays, each a batch of the same shape.
        test: List of the same, of other rows.
    """

    train: list[tuple]
    test: list[tuple]


def draw(data: Batches, *, batch_size: int, num_train: int, num_test: int, fixed_length: int | None = None) -> Sample:
    """Draws rows from data that were read.

    Args:
        data: The data.
        batch_size: Int, the rows of a batch.
        num_train: Int, the batches to train on; fewer if there are not so many rows.
        num_test: Int, the batches to be asked.
        fixed_length: Int, the tokens that the model takes, or `None` if it takes any number. Defaults to `None`.
    """
    rows = _rows(data)
    order = np.random.default_rng(0).permutation(len(rows))
    labels = data.labels[: len(rows)]
    lengths = data.tokens.ends if data.tokens is not None else np.zeros(len(rows))
    # Short ones first; among them, and among those that are too long, at random.
    order = order[np.argsort(lengths[order] > MAX_LENGTH, kind="stable")]
    wanted = (num_train + num_test) * batch_size
    classes = [order[labels[order] == label] for label in np.unique(labels)]
    chosen = np.concatenate([some[: -(-wanted // len(classes))] for some in classes])
    chosen = np.random.default_rng(1).permutation(chosen)
    length = fixed_length or int(max(lengths[chosen], default=0))
    padding = data.tokens.padding if data.tokens is not None else 0
    drawn = [_fit(rows[i], length, padding) for i in chosen]
    batches = [_stack(drawn[i : i + batch_size]) for i in range(0, len(drawn) - batch_size + 1, batch_size)]
    num_test = min(num_test, len(batches) // 3)
    return Sample(batches[num_test:], batches[:num_test])


def _rows(data):
    return [
        keras.tree.map_structure(lambda array, row=row: None if array is None else array[row], batch)
        for batch, size in zip(data.batches, data.sizes, strict=True)
        for row in range(size)
    ]


def _fit(row, length, padding):
    """Cuts and fills the token arrays of a row to one length; the fill of token ids is padding."""
    tokens = find_tokens(keras.tree.map_structure(lambda array: np.asarray(array)[None], row[0]))
    if tokens is None:
        return row
    width = tokens.ids.shape[1]

    def fit(array):
        if np.ndim(array) != 1 or len(array) != width:
            return array
        fill = padding if np.array_equal(array, tokens.ids[0]) else 0
        return np.pad(array, (0, max(0, length - width)), constant_values=fill)[:length]

    return (keras.tree.map_structure(fit, row[0]), *row[1:])


def _stack(rows):
    return keras.tree.map_structure(lambda *arrays: None if arrays[0] is None else np.stack(arrays), *rows)
