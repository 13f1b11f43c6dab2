"""From labelled text, wherever it is kept, to batches of tokens of similar length.

`read` gives `(text, label)` rows, `split` divides them, `tokenize` and `batch_by_length` make them ready for `fit`.
"""

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import tensorflow as tf

from bertbin_tf.data.batches import batch_by_length, compiled_encoder, encode, tokenize
from bertbin_tf.data.files import lines_of
from bertbin_tf.data.rows import check_rows, check_texts, find_columns, find_text_column
from bertbin_tf.data.sources import load_table
from bertbin_tf.data.splits import base_rate, collect, fingerprint, split

__all__ = [
    "base_rate",
    "batch_by_length",
    "collect",
    "columns_of",
    "compiled_encoder",
    "encode",
    "fingerprint",
    "read",
    "read_texts",
    "split",
    "tokenize",
]


def read(
    source,
    *,
    text: str | None = None,
    label: str | None = None,
    positive: str | None = None,
    on_bad_rows: str = "error",
) -> tf.data.Dataset:
    """Reads labelled texts and checks that a binary classifier can be trained on them.

    What would only show as a model that does not train is refused here: labels other than 0 and 1, one class only,
    missing values. Texts that are labelled both ways are counted in a warning, and so are empty ones.

    Args:
        source: One of
            * `"vader/movies"`, `"vader/tweets"`, `"vader/amazon"`, `"vader/nyt"`: the default data;
            * `"tfds:<name>[/config]"`, any set of TensorFlow Datasets. Both take a split behind a colon, as in
              `"vader/movies:test"` or `"tfds:glue/sst2:train[:10%]"`, else it is `train`;
            * a path that ends in `.csv`, `.tsv`, `.jsonl` or `.parquet`, in UTF-8, the first two with a header;
            * in memory: a tuple `(texts, labels)`, a list of dicts or of `(text, label)` pairs, a dict of columns, a
              pandas DataFrame, a Hugging Face Dataset, a `tf.data.Dataset` of pairs or dicts.
        text: String, the column with the texts. Defaults to the one with an obvious name: `text`, `sentence`,
            `review`, `content`, `comment`, `tweet`, `message`, ...
        label: String, the column with the labels. Defaults to the one with an obvious name: `label`, `labels`,
            `target`, `class`, `sentiment`, ...
        positive: The label that becomes 1, where the two labels are not 0 and 1, false and true. Defaults to `None`.
        on_bad_rows: `"error"`, or `"drop"` to leave out rows whose text or label is missing and name them in a warning.
            An empty cell of a CSV or TSV file is a missing one; elsewhere an empty string is a text. Defaults to
            `"error"`.

    Returns:
        `tf.data.Dataset` of `(text, label)`, a string and an int32 scalar, in the order of the source and of known
        cardinality.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the source cannot be read or its rows cannot be trained on; the message says what to do.

    Example:
    >>> dataset = read([("free money", "spam"), ("see you at noon", "ham")], positive="spam")
    >>> [int(label) for _, label in dataset]
    [1, 0]
    """
    if on_bad_rows not in ("error", "drop"):
        raise ValueError(f'`on_bad_rows` must be "error" or "drop". Received: on_bad_rows={on_bad_rows!r}')
    table = load_table(source)
    texts, labels = table.load(*find_columns(table, text, label))
    texts, labels = check_rows(table, texts, labels, positive=positive, on_bad_rows=on_bad_rows)
    # A list given to `from_tensor_slices` would first become an array in which each text has the room of the longest.
    return tf.data.Dataset.from_tensor_slices((tf.constant(texts), labels))


def read_texts(source, *, text: str | None = None) -> Iterator[str]:
    """Reads texts alone, to predict on; the labels of a source are not looked at and need not be there.

    A file is read twice, first to check all of it and then a text at a time: it may be larger than memory.

    Args:
        source: What `read` takes, a `.txt` file with one text per line, or a sequence of strings.
        text: String, the column with the texts. Defaults to the one with an obvious name, or the only one.

    Returns:
        Iterator over strings, in the order of the source. Blank lines of a `.txt` file are texts too, so that the
        answers can be pasted beside them.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the source cannot be read or a text is missing.

    Example:
    >>> list(read_texts(["a great film", "a dull one"]))
    ['a great film', 'a dull one']
    """
    if _is_text_file(source):
        for _ in lines_of(Path(source)):  # whatever is wrong with the file is to be known before the first answer
            pass
        return (line.removesuffix("\r") for line in lines_of(Path(source)))
    if _is_sequence_of_strings(source):
        source = {"text": source}
    table = load_table(source)
    texts = check_texts(table, find_text_column(table, text))
    return (text.decode("utf-8", errors="replace") for text in texts)


def columns_of(source) -> list[str]:
    """Returns the names of the columns of what `read` takes, in their order; none of a `.txt` file.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the source cannot be read.

    Example:
    >>> columns_of({"review": ["good", "bad"], "stars": [5, 1]})
    ['review', 'stars']
    """
    return [] if _is_text_file(source) else load_table(source).columns


def _is_text_file(source):
    return isinstance(source, str | os.PathLike) and Path(source).suffix.lower() == ".txt"


def _is_sequence_of_strings(source):
    # The first one decides: whatever follows that is not a string is then refused by name. Not as an array, in which
    # each text would have the room of the longest.
    is_sequence = isinstance(source, list | tuple | np.ndarray) or hasattr(source, "to_list")
    return is_sequence and len(source) > 0 and isinstance(next(iter(source)), str | bytes)
