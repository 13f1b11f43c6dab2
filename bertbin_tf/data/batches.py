"""From text to tokens, and from tokens to batches of similar length."""

import functools
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

# 8 lengths leave 10 % padding in film reviews as in tweets, 6 left 15 to 17 %; each costs a compilation under XLA and
# one smaller batch an epoch, which is why few rows get fewer.
MAX_GROUPS = 8
BATCHES_PER_GROUP = 2


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
    return tf.data.Dataset.range(len(labels)).map(
        lambda i: ({name: values[starts[i] : ends[i]] for name, values in tokens.items()}, labels[i])
    )


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
    their length come at the end of the epoch, in smaller batches, the shorter lengths first.

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
    # Handed over many at a time: one by one takes three times as long.
    lengths = np.concatenate([[], *dataset.map(_length).batch(1024).as_numpy_iterator()]).astype(np.int64)
    if not len(lengths):
        raise ValueError("There is nothing to batch: the dataset has no rows.")
    boundaries = _boundaries(lengths, batch_size) if boundaries is None else _check_boundaries(boundaries, lengths)
    rows = np.bincount(np.searchsorted(boundaries, lengths))
    num_batches = int(np.sum(rows // batch_size if drop_remainder else -(-rows // batch_size)))
    if not num_batches:
        raise ValueError(
            f"No batch is full, and `drop_remainder=True` leaves out all others. Received: batch_size={batch_size}, "
            f"{len(lengths)} rows in {len(boundaries)} groups of length"
        )

    def batch(rows):
        batches = rows.bucket_by_sequence_length(
            _length,
            # What TensorFlow calls a boundary is the first length that does not fit.
            bucket_boundaries=[boundary + 1 for boundary in boundaries],
            bucket_batch_sizes=[batch_size] * (len(boundaries) + 1),
            pad_to_bucket_boundary=True,
            drop_remainder=drop_remainder,
        )
        if len(boundaries) > 1 or not drop_remainder:
            return batches
        shape = (batch_size, boundaries[0])
        return batches.map(lambda tokens, labels: (_with_shape(tokens, shape), _with_shape(labels, shape[:1])))

    def batch_epoch(epoch):
        if shuffle_seed is None:
            return batch(dataset)
        # Of this function's graph only. A tensor as `seed` fails beside a global seed of 0.
        tf.compat.v1.set_random_seed(shuffle_seed + 1)
        return batch(dataset.shuffle(len(lengths), seed=epoch, reshuffle_each_iteration=False))

    if epochs is not None:
        batches = tf.data.Dataset.range(epochs.start, epochs.stop).flat_map(batch_epoch)
        num_batches *= len(epochs)
    elif shuffle_seed is not None:
        batches = batch(dataset.shuffle(len(lengths), seed=shuffle_seed, reshuffle_each_iteration=True))
    else:
        batches = batch(dataset)
    # Without it `fit` takes the cardinality for unknown and ends each epoch with an optimizer step without data.
    return batches.apply(tf.data.experimental.assert_cardinality(num_batches)).prefetch(tf.data.AUTOTUNE)


def _with_shape(tensors, shape):
    return tf.nest.map_structure(lambda tensor: tf.ensure_shape(tensor, shape), tensors)


def _length(tokens, _):
    return tf.shape(tokens["padding_mask"])[0]


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
