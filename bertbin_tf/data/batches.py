"""From text to tokens, and from tokens to batches of similar length."""

import functools
import warnings
import weakref
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

# 8 lengths leave 10 % padding in film reviews as in tweets, 6 left 15 to 17 %; each costs a compilation under XLA and
# one smaller batch an epoch, which is why few rows get fewer.
MAX_GROUPS = 8
BATCHES_PER_GROUP = 2
# Of each dataset that `tokenize` made, as long as it lives, what `_collect` returns. So nothing is read or kept twice.
_COLLECTED = weakref.WeakKeyDictionary()


def encode(preprocessor: Callable, texts: tf.Tensor) -> dict[str, tf.Tensor]:
    """Turns texts into tokens, padded to the longest text of the batch.

    This is the one path from text to tokens: training, prediction and the exported model all call it, inside a graph
    or not. Padding changes no answer and costs time, so what the preprocessor pads beyond the longest text is cut off.

    Args:
        preprocessor: A keras-nlp text-classifier preprocessor, or any callable from a batch of strings to a dict of
            arrays of shape `(batch, sequence_length)`, padded on the right, with a `"padding_mask"` among them.
        texts: String tensor of shape `(batch,)`; the batch may be empty.

    Returns:
        Dict of int32 tensors of shape `(batch, length)`. An empty text is two tokens long, and so is an empty batch.

    Example:
    >>> encode(preprocessor, tf.constant(["a great film"]))["token_ids"].shape  # [CLS] a great film [SEP]
    TensorShape([1, 5])
    """
    # In a graph the tokenizer drops whatever follows a NUL byte; eagerly it does not.
    texts = tf.strings.regex_replace(texts, r"\x00", " ")
    # An empty text is added, and taken away below: of no texts at all keras-nlp loses the second dimension, and there
    # is no longest one.
    tokens = preprocessor(tf.concat([texts, [""]], axis=0))
    longest = tf.reduce_max(tf.reduce_sum(tf.cast(tokens["padding_mask"], tf.int32), axis=-1))
    # The mask comes as bool, which `MirroredStrategy` cannot distribute.
    return {name: tf.cast(value[:-1, :longest], tf.int32) for name, value in tokens.items()}


def compiled_encoder(preprocessor: Any) -> Callable:
    """Returns `encode` of a preprocessor as a graph: tracing takes a second or two, and `Dataset.map` would each time.

    Args:
        preprocessor: A keras-nlp text-classifier preprocessor.

    Returns:
        Function from a string tensor of shape `(batch,)` to the tokens.

    Example:
    >>> encode_texts = compiled_encoder(preprocessor)
    >>> encode_texts(tf.constant(["a great film"]))["token_ids"].shape
    TensorShape([1, 5])
    """
    return _trace_encoder(preprocessor, preprocessor.sequence_length)


@functools.lru_cache(maxsize=2)
def _trace_encoder(preprocessor, _):  # which may be given another length
    graph = tf.function(functools.partial(encode, preprocessor))
    return graph.get_concrete_function(tf.TensorSpec((None,), tf.string))


def tokenize(dataset: tf.data.Dataset, preprocessor: Any) -> tf.data.Dataset:
    """Tokenizes a dataset once, in parallel, and keeps the tokens in memory.

    Args:
        dataset: `tf.data.Dataset` of `(text, label)`, as `read` returns it.
        preprocessor: A keras-nlp text-classifier preprocessor. See `encode`. Texts that reach its `sequence_length`
            are counted in a warning.

    Returns:
        `tf.data.Dataset` of `(tokens, label)` in the same order: a dict of tensors of shape `(length,)` without
        padding, and the label as it was. The cardinality is known.

    Example:
    >>> batches = batch_by_length(tokenize(read("vader/movies"), preprocessor), 32, shuffle_seed=0)
    """
    # Here and now, and not by `Dataset.cache()`: that one fills up for each pipeline built upon it, and
    # `batch_by_length` has to know all lengths before the first epoch anyway.
    encode_texts = compiled_encoder(preprocessor)
    encoded = dataset.batch(256).map(
        lambda texts, labels: (encode_texts(texts), labels), num_parallel_calls=tf.data.AUTOTUNE
    )
    tokens, labels, lengths = {}, [], []
    for batch, batch_labels in encoded:
        mask = tf.cast(batch["padding_mask"], tf.bool)
        lengths.append(tf.reduce_sum(tf.cast(mask, tf.int64), axis=-1))
        labels.append(batch_labels)
        for name, value in batch.items():
            tokens.setdefault(name, []).append(tf.boolean_mask(value, mask))
    if not labels:
        raise ValueError("There is nothing to tokenize: the dataset has no rows.")
    tokens = {name: tf.concat(values, axis=0) for name, values in tokens.items()}
    labels, lengths = tf.concat(labels, axis=0), tf.concat(lengths, axis=0)
    limit = preprocessor.sequence_length
    if num_full := int(tf.reduce_sum(tf.cast(lengths == limit, tf.int64))):
        warnings.warn(
            f"{num_full} of {len(labels)} texts have {limit} tokens or more and are cut there. Raise `sequence_length` "
            "if what follows matters.",
            stacklevel=2,
        )
    ends = tf.cumsum(lengths)
    starts = tf.concat([[0], ends[:-1]], axis=0)
    rows = tf.data.Dataset.range(len(labels)).map(
        lambda i: ({name: values[starts[i] : ends[i]] for name, values in tokens.items()}, labels[i])
    )
    _COLLECTED[rows] = tokens, labels, lengths.numpy()
    return rows


def batch_by_length(
    dataset: tf.data.Dataset,
    batch_size: int,
    *,
    boundaries: Sequence[int] | None = None,
    shuffle_seed: int | None = None,
    epochs: range | None = None,
    drop_remainder: bool = False,
) -> tf.data.Dataset:
    """Batches rows of similar length together, padded to one of a few fixed lengths.

    Short texts then do not pay for long ones, and a compiled step sees a handful of shapes. Each row goes to the
    shortest boundary that holds it, and each epoch has every row exactly once. Rows that do not fill a batch of
    their length come at the end of the epoch, in smaller batches, the shorter lengths first. The rows are read here,
    once, and kept in memory, unless `tokenize` has just done so: an epoch cuts whole batches out of them.

    Args:
        dataset: `tf.data.Dataset` of `(dict of (length,) tensors, label)` of known cardinality, from `tokenize`.
        batch_size: Integer > 0.
        boundaries: Ascending integers, the lengths that batches are padded to; the last one holds the longest row.
            Defaults to those that leave the least padding in these rows, at most 8 and no more than the rows fill two
            batches each of.
        shuffle_seed: Integer; the whole dataset is then shuffled anew for every epoch, in a sequence of orders that
            this seed (with TensorFlow's global seed) decides. Defaults to `None`: not shuffled.
        epochs: Range of ints >= 0, the epochs to return, one behind the other, for `fit(steps_per_epoch=...)`. What
            order each has is then decided by `shuffle_seed` and its number alone, whatever was read before: a training
            that was cut off goes on with `range(first, last)`. Defaults to `None`: one epoch each time it is read.
        drop_remainder: Whether to leave the smaller batches out, so that all have `batch_size` rows. Defaults to
            `False`.

    Returns:
        `tf.data.Dataset` of `(dict of (batch, boundary) tensors, labels of shape (batch,))`. Padding is 0.
        The cardinality is the true number of batches. With one boundary and `drop_remainder=True` the shapes are known
        to TensorFlow beforehand, as XLA on a TPU needs them.

    Raises:
        ValueError: If `batch_size` or `boundaries` are out of range, a row is longer than the last boundary, or no
            batch would be left.
    """
    if batch_size < 1:
        raise ValueError(f"`batch_size` must be at least 1. Received: batch_size={batch_size}")
    if epochs is not None and (epochs.step != 1 or not len(epochs)):
        raise ValueError(f"`epochs` must be a range of one epoch after the other. Received: epochs={epochs}")
    tokens, labels, lengths = _collect(dataset)
    boundaries = _boundaries(lengths, batch_size) if boundaries is None else _check_boundaries(boundaries, lengths)
    groups = np.searchsorted(boundaries, lengths)
    plan = _plan(np.bincount(groups, minlength=len(boundaries)), batch_size, drop_remainder)
    num_rows = len(lengths)
    if not len(plan.begins):
        raise ValueError(
            f"No batch is full, and `drop_remainder=True` leaves out all others. Received: batch_size={batch_size}, "
            f"{num_rows} rows in {len(boundaries)} groups of length"
        )
    # Tensors, which graphs share: an array would be written into each.
    starts, lengths, groups = tf.constant(np.cumsum(lengths) - lengths), tf.constant(lengths), tf.constant(groups)
    is_static = len(boundaries) == 1 and drop_remainder

    def batch_epoch(order):
        """Returns the batches of rows in some order, each when the last of its rows has come."""
        by_group = tf.argsort(tf.gather(groups, order), stable=True)
        last = tf.where(plan.is_full, tf.gather(by_group, plan.ends - 1), num_rows + plan.groups)
        rows = tf.gather(order, by_group)
        return tf.data.Dataset.from_tensor_slices(tf.argsort(last)).map(lambda number: batch(rows, number))

    def batch(rows, number):
        rows = rows[tf.gather(plan.begins, number) : tf.gather(plan.ends, number)]
        positions = tf.range(tf.gather(np.array(boundaries), tf.gather(plan.groups, number)))
        is_token = positions < tf.gather(lengths, rows)[:, None]
        places = tf.where(is_token, tf.gather(starts, rows)[:, None] + positions, 0)
        padded = {
            name: tf.where(is_token, tf.gather(values, places), tf.zeros([], values.dtype))
            for name, values in tokens.items()
        }
        some = padded, tf.gather(labels, rows)
        return _with_shape(some, (batch_size, boundaries[0])) if is_static else some

    def shuffle_epoch(epoch):
        # Of this function's graph only. A tensor as `seed` fails beside a global seed of 0.
        tf.compat.v1.set_random_seed(shuffle_seed + 1)
        return shuffled(seed=epoch, reshuffle_each_iteration=False)

    def shuffled(**kwargs):
        """Returns a dataset of one element: the numbers of all rows, in their order."""
        numbers = tf.data.Dataset.range(num_rows)
        return (numbers if shuffle_seed is None else numbers.shuffle(num_rows, **kwargs)).batch(num_rows)

    if epochs is None:
        orders = shuffled(seed=shuffle_seed, reshuffle_each_iteration=True)
    else:
        orders = tf.data.Dataset.range(epochs.start, epochs.stop).flat_map(
            shuffle_epoch if shuffle_seed is not None else lambda _: shuffled()
        )
    num_batches = len(plan.begins) * (1 if epochs is None else len(epochs))
    # Without it `fit` takes the cardinality for unknown and ends each epoch with an optimizer step without data.
    batches = orders.flat_map(batch_epoch).apply(tf.data.experimental.assert_cardinality(num_batches))
    return batches.prefetch(tf.data.AUTOTUNE)


def _collect(dataset):
    """Returns the tokens of all rows behind one another, by name, the labels and the lengths."""
    if dataset in _COLLECTED:
        return _COLLECTED[dataset]
    tokens, labels, lengths = {}, [], []
    for batch, batch_labels in dataset.ragged_batch(1024):
        batch = {name: _ragged(value) for name, value in batch.items()}
        lengths.append(batch["padding_mask"].row_lengths().numpy())
        labels.append(batch_labels)
        for name, value in batch.items():
            tokens.setdefault(name, []).append(value.values)
    if not labels:
        raise ValueError("There is nothing to batch: the dataset has no rows.")
    tokens = {name: tf.concat(values, axis=0) for name, values in tokens.items()}
    return tokens, tf.concat(labels, axis=0), np.concatenate(lengths)


def _ragged(value):  # dense where TensorFlow knows that all rows are of one length
    return value if isinstance(value, tf.RaggedTensor) else tf.RaggedTensor.from_tensor(value)


class _Plan(NamedTuple):
    """Which rows make a batch, once they are sorted by group: an array with an entry for each batch."""

    begins: np.ndarray
    ends: np.ndarray
    groups: np.ndarray
    is_full: np.ndarray


def _plan(num_rows, batch_size, drop_remainder):
    batches = [
        (begin, min(begin + batch_size, first + num), group, begin + batch_size <= first + num)
        for group, (first, num) in enumerate(zip(np.cumsum(num_rows) - num_rows, num_rows, strict=True))
        for begin in range(first, first + num, batch_size)
    ]
    batches = [batch for batch in batches if batch[-1] or not drop_remainder]
    return _Plan(*np.array(batches, np.int64).reshape(-1, 4).T)


def _with_shape(batch, shape):
    tokens, labels = batch
    return {name: tf.ensure_shape(value, shape) for name, value in tokens.items()}, tf.ensure_shape(labels, shape[:1])


def _boundaries(lengths, batch_size):
    """The lengths that leave the least padding, by dynamic programming over how the shortest rows are grouped."""
    num_groups = max(1, min(MAX_GROUPS, len(lengths) // (BATCHES_PER_GROUP * batch_size)))
    # At most 512 lengths to choose from, so that very long texts do not take long here. Never beyond the longest row,
    # which may be all that the position embeddings have room for.
    step = -(-int(lengths.max()) // 512)
    candidates, counts = np.unique(np.minimum(-(-lengths // step) * step, lengths.max()), return_counts=True)
    rows = np.concatenate([[0], np.cumsum(counts)])
    # How many tokens a group has that begins after the i-th candidate and ends with the j-th.
    tokens = (rows[None, :] - rows[:, None]) * np.concatenate([[0], candidates])[None, :]
    tokens = np.where(tokens >= 0, tokens, np.inf)
    fewest, begins = tokens[0], []
    for _ in range(min(num_groups, len(candidates)) - 1):
        totals = fewest[:, None] + tokens
        begins.append(np.argmin(totals, axis=0))
        fewest = np.min(totals, axis=0)
    ends = [len(candidates)]
    for begin in reversed(begins):
        ends.append(int(begin[ends[-1]]))
    return sorted({int(candidates[end - 1]) for end in ends if end})


def _check_boundaries(boundaries, lengths):
    boundaries = list(boundaries)
    if not boundaries or boundaries[0] < 1 or boundaries != sorted(set(boundaries)):
        raise ValueError(f"`boundaries` must be ascending integers > 0. Received: boundaries={boundaries}")
    if lengths.max() > boundaries[-1]:
        raise ValueError(
            f"The longest row has {lengths.max()} tokens, more than the last boundary. Raise it, or lower the "
            f"preprocessor's `sequence_length`. Received: boundaries={boundaries}"
        )
    return boundaries
