"""The user's data as the model gets it: the first batches of the real iterator, and what is in them."""

import collections
import functools
import itertools
import time
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf

NUM_ROWS = 2048
SECONDS = 10.0


class Batches:
    """The first batches that a data source gives, read once and kept as numpy arrays.

    Args:
        source: What `fit` takes: a `tf.data.Dataset`, a `keras.utils.PyDataset`, a tuple of arrays, an iterable of
            batches. An iterator that can be read only once is left unread, for nobody could put it back.
        preprocess: Function from the texts of a batch to tokens, for a model with a tokenizer inside. Defaults to
            `None`.
        num_rows: Int, of so many rows the inputs are kept; of the others only the labels. Defaults to `2048`.
        seconds: Float, after so many seconds reading ends. Defaults to `10.0`.
        are_signs: Bool, whether other data of the model have labels -1 and 1. Defaults to `False`.

    Attributes:
        batches: List of `(x, y, sample_weight)`, as given, in numpy arrays.
        labels_by_batch: List of float arrays of shape `(rows,)`, of these batches and of more; 0 and 1 for -1 and 1.
        are_signs: Bool, whether the labels are -1 and 1, as a hinge loss takes them.
        num_batches: Int, the batches of one epoch, or `None` if that is not known.
        gives_nothing_again: Bool, whether a second reading came to nothing.
        is_whole: Bool, whether the source came to its end.
        is_shuffled_by_fit: Bool, whether `fit` shuffles it, as it does with arrays.
        is_py_dataset: Bool, whether it is a `keras.utils.PyDataset`, of which `fit` shuffles the batches as they are.
        problem: String, why nothing or not all could be read, or an empty string.
    """

    def __init__(
        self, source: Any, preprocess=None, *, num_rows: int = NUM_ROWS, seconds: float = SECONDS, are_signs=False
    ):
        self.batches, self.labels_by_batch, self.is_whole, self.problem = [], [], False, ""
        self.are_signs = False
        self.gives_nothing_again, self.num_batches = False, _count(source)
        self.is_shuffled_by_fit = _is_arrays(source)
        self.is_py_dataset = isinstance(source, keras.utils.PyDataset)
        if isinstance(source, Iterator):
            self.problem = (
                f"the data are a {type(source).__name__}, which can be read only once, so they were left unread. "
                "Give a tf.data.Dataset, a PyDataset, arrays or a list of batches"
            )
            return
        started, rows, num_read = time.monotonic(), 0, 0
        try:
            for element in _iterate(source):
                num_read += 1
                x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(element)
                if y is not None:
                    self.labels_by_batch.append(flat_labels(keras.tree.map_structure(_to_numpy, y)))
                if rows < num_rows:
                    x = preprocess(x) if preprocess else x
                    self.batches.append(keras.tree.map_structure(_to_numpy, (x, y, sample_weight)))
                    rows += len(keras.tree.flatten(self.batches[-1][0])[0])
                if time.monotonic() > started + seconds:
                    break
            else:
                self.is_whole, self.num_batches = True, num_read
            self.gives_nothing_again = bool(self.batches) and next(iter(_iterate(source)), None) is None
        except Exception as error:  # whatever the user's own code raises
            self.problem = f"the data raised {type(error).__name__} after {num_read} batches: {error}"
        values = set(np.unique(np.concatenate([*self.labels_by_batch, []])))
        self.are_signs = values == {-1.0, 1.0} or are_signs and values <= {-1.0, 1.0}
        if self.are_signs:
            self.labels_by_batch = [(labels + 1) / 2 for labels in self.labels_by_batch]

    @functools.cached_property
    def first(self) -> tuple:
        """`(x, y, sample_weight)` of the first batch, as tensors, of at most 32 rows."""
        if not self.batches:
            raise LookupError("there is no batch to ask the model")
        return to_tensors(_slice(self.batches[0], slice(32)))

    @functools.cached_property
    def num_nan(self) -> dict[str, int]:
        """How many rows have NaN in them, by where: in the inputs or in the sample weight."""
        counts = {"inputs": 0, "sample weight": 0}
        for x, _, weight in self.batches:
            for name, arrays in (("inputs", x), ("sample weight", weight)):
                floats = [np.asarray(array) for array in keras.tree.flatten(arrays) if array is not None]
                bad = [
                    np.isnan(array.reshape(len(array), -1)).any(axis=1) for array in floats if array.dtype.kind == "f"
                ]
                counts[name] += int(np.any(bad, axis=0).sum()) if bad else 0
        return counts

    @property
    def num_rows(self) -> int:
        """The number of rows read."""
        return sum(self.sizes)

    @functools.cached_property
    def sizes(self) -> list[int]:
        """The number of rows of each batch."""
        return [len(keras.tree.flatten(x)[0]) for x, _, _ in self.batches]

    @functools.cached_property
    def labels(self) -> np.ndarray:
        """Float array of shape `(rows,)`; of two columns, the second one; empty if there are no labels."""
        return np.concatenate(self.labels_by_batch) if self.labels_by_batch else np.zeros(0)

    @property
    def given_labels(self) -> np.ndarray:
        """`labels` as they were given: -1 and 1 if they are signs."""
        return 2 * self.labels - 1 if self.are_signs else self.labels

    @functools.cached_property
    def sample_weights(self) -> np.ndarray | None:
        """Float array of shape `(rows,)`, the weights of the rows read, the first of `labels`; `None` without."""
        weights = [weight for _, _, weight in self.batches]
        if not weights or any(weight is None for weight in weights):
            return None
        return np.concatenate([flat_labels(weight) for weight in weights])

    @functools.cached_property
    def _found(self):
        return [find_tokens(x) for x, _, _ in self.batches]

    @property
    def token_batches(self) -> list[np.ndarray]:
        """The token ids of each batch, of shape `(rows, length)`, each as long as the model gets it."""
        return [tokens.ids for tokens in self._found if tokens is not None]

    @functools.cached_property
    def tokens(self) -> "Tokens | None":
        """The tokens of all rows, or `None` if no input looks like token ids."""
        found = self._found
        if not found or any(tokens is None for tokens in found):
            return None
        padding = _padding_of(self.token_batches)
        masks, segments = (_stack([getattr(tokens, name) for tokens in found], 0) for name in ("mask", "segments"))
        return Tokens(_stack(self.token_batches, padding), masks, segments, padding)


class Tokens:
    """Token ids, padding mask and segments of rows, int arrays of shape `(rows, length)`; the latter two may be `None`.

    Args:
        ids, mask, segments: The arrays.
        padding: Int, the id that rows are filled up with. Defaults to `0`.
    """

    def __init__(self, ids, mask=None, segments=None, padding: int = 0):
        self.ids, self.mask, self.segments, self.padding = ids, mask, segments, padding

    @functools.cached_property
    def is_padding(self) -> np.ndarray:
        """Bool array: where the end of a row is filled up, or its beginning."""
        is_filler = self.ids == self.padding
        ends = np.cumprod(is_filler[:, ::-1], axis=1)[:, ::-1]
        return (ends | np.cumprod(is_filler, axis=1)).astype(bool)

    @functools.cached_property
    def lengths(self) -> np.ndarray:
        """Int array of shape `(rows,)`: tokens that are not padding, by the ids and not by the mask."""
        return (~self.is_padding).sum(axis=1)

    @property
    def ends(self) -> np.ndarray:
        """Int array of shape `(rows,)`: how many tokens a row has up to the last one that is not padding."""
        return np.where(self.is_padding, 0, np.arange(1, self.ids.shape[1] + 1)).max(axis=1)

    @property
    def first(self) -> np.ndarray:
        """Int array of shape `(rows,)`: the first token of each row that is not padding."""
        return self.ids[np.arange(len(self.ids)), np.argmin(self.is_padding, axis=1)]

    @property
    def last(self) -> np.ndarray:
        """Int array of shape `(rows,)`: the last token of each row that is not padding."""
        return self.ids[np.arange(len(self.ids)), np.maximum(self.ends, 1) - 1]

    @functools.cached_property
    def shared_share(self) -> float:
        """The share of tokens in phrases of three that at least half of the texts have, of the first 256 rows."""
        texts = [row[~padding].tolist() for row, padding in zip(self.ids[:256], self.is_padding, strict=False)]
        phrases = [list(zip(text, text[1:], text[2:], strict=False)) for text in texts]
        counts = collections.Counter(phrase for text in phrases for phrase in set(text))
        covered = [
            len({i + k for i, phrase in enumerate(text) if 2 * counts[phrase] >= len(texts) for k in range(3)})
            for text in phrases
        ]
        return sum(covered) / max(1, sum(map(len, texts)))

    @functools.cached_property
    def keys(self) -> list[bytes]:
        """Each row's tokens without padding, to be compared."""
        return [row[~padding].tobytes() for row, padding in zip(self.ids, self.is_padding, strict=True)]


def to_tensors(structure: Any) -> Any:
    """Returns the same structure with tensors for arrays; `None` stays."""
    return keras.tree.map_structure(lambda array: None if array is None else tf.constant(array), structure)


def flat_labels(y: Any) -> np.ndarray:
    """Returns a batch of labels, of shape `(rows,)`, `(rows, 1)` or `(rows, 2)`, as floats of shape `(rows,)`."""
    labels = np.asarray(keras.tree.flatten(y)[0], dtype="float64")
    if labels.ndim > 1 and labels.shape[-1] == 2:
        labels = labels[..., 1]
    return labels.reshape(len(labels), -1)[:, 0]


def find_tokens(x: Any) -> Tokens | None:
    """Returns the tokens among a model's inputs: by their names, or by their values where they have none."""
    named = {}
    for path, array in keras.tree.flatten_with_path(x):
        if np.ndim(array) == 2 and np.asarray(array).dtype.kind in "biuf":  # a mask may be bool
            named["/".join(map(str, path)).lower()] = np.asarray(array)
    mask = _named(named, "mask", "attention")
    segments = _named(named, "segment", "type")
    rest = {name: array for name, array in named.items() if array is not mask and array is not segments}
    # A column such as "customer_id" is none: tokens are as many as the mask has, or more than one a row.
    alike = {
        name: array
        for name, array in rest.items()
        if (array.shape[1] > 1 if mask is None else array.shape == mask.shape)
    } or rest
    ids = _named(alike, "token_ids", "input_ids", "word_ids")
    ids = _named(alike, "id") if ids is None else ids
    if ids is None:
        ids = max(alike.values(), key=np.max, default=None)
        binary = [array for array in alike.values() if array is not ids and set(np.unique(array)) <= {0, 1}]
        # That which is 1 at most tokens is the mask.
        binary.sort(key=lambda array: float(((array != 0) == (ids != 0)).mean()), reverse=True)
        mask, segments = (*binary, None, None)[:2] if mask is None else (mask, segments)
    return None if ids is None else Tokens(ids.astype("int64"), mask, segments)


def _named(arrays, *words):
    return next((array for name, array in arrays.items() if any(word in name for word in words)), None)


def _padding_of(arrays):
    """Returns the id that most rows end with more than once, 0 if none does."""
    ends = np.concatenate([array[array[:, -1] == array[:, -2], -1] for array in arrays if array.shape[1] > 1] or [[]])
    values, counts = np.unique(ends, return_counts=True)
    return int(values[np.argmax(counts)]) if len(values) else 0


def _stack(arrays, padding):
    if any(array is None for array in arrays):
        return None
    length = max(array.shape[1] for array in arrays)
    widths = [[(0, 0), (0, length - array.shape[1])] for array in arrays]
    return np.concatenate(
        [np.pad(array, width, constant_values=padding) for array, width in zip(arrays, widths, strict=True)]
    )


def _is_arrays(source):
    # Labels, the second, are never a tuple, and of a tuple of batches each is one.
    return isinstance(source, tuple) and 2 <= len(source) <= 3 and not isinstance(source[1], tuple)


def _count(source):
    if isinstance(source, tf.data.Dataset):
        count = int(source.cardinality())
        return count if count >= 0 else None
    try:
        return source.num_batches if isinstance(source, keras.utils.PyDataset) else None
    except NotImplementedError:  # it says no length
        return None


def _iterate(source):
    if isinstance(source, keras.utils.PyDataset):
        count = _count(source)
        return (source[i] for i in (itertools.count() if count is None else range(count)))
    if _is_arrays(source):
        arrays = keras.tree.map_structure(lambda array: None if array is None else np.asarray(array), source)
        num_rows = len(keras.tree.flatten(arrays[0])[0])
        rows = (slice(i, i + 32) for i in range(0, num_rows, 32))
        return (_slice(arrays, some) for some in rows)
    return iter(source)


def _slice(arrays, rows):
    return keras.tree.map_structure(lambda array: None if array is None else array[rows], arrays)


def _to_numpy(value):
    if value is None:
        return None
    if isinstance(value, tf.RaggedTensor | tf.SparseTensor):
        value = value.to_tensor() if isinstance(value, tf.RaggedTensor) else tf.sparse.to_dense(value)
    return keras.ops.convert_to_numpy(value) if tf.is_tensor(value) else np.asarray(value)
