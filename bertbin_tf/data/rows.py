"""From a `Table` to rows that can be trained on: one text, one label of 0 or 1, and a clear error for the rest."""

import numbers
import sys
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np

from bertbin_tf.data.table import Table, describe

_TEXT_NAMES = ("text", "sentence", "review", "content", "comment", "tweet", "message", "body", "document", "question")
_LABEL_NAMES = ("label", "labels", "target", "class", "sentiment", "category", "y")
_BINARY = {"0": 0, "1": 1, "false": 0, "true": 1}


def find_columns(table: Table, text: str | None, label: str | None) -> tuple[str, str]:
    """Returns the names of the text and the label column: those given, else those whose name is obvious."""
    return _find(table, "text", text, _TEXT_NAMES), _find(table, "label", label, _LABEL_NAMES)


def find_text_column(table: Table, text: str | None) -> str:
    """Returns the name of the text column, which is obvious too when it is the only one."""
    return table.columns[0] if text is None and len(table.columns) == 1 else _find(table, "text", text, _TEXT_NAMES)


def _find(table, argument, name, obvious):
    if name is not None and not isinstance(name, str):
        raise ValueError(f"`{argument}` must be the name of one column. Received: {argument}={name!r}")
    columns = ", ".join(table.columns) or "none at all"
    if name is not None:
        if name not in table.columns:
            raise ValueError(f"{table.name} has no column '{name}'. Its columns: {columns}.")
        return name
    candidates = [column for column in table.columns if column.lower() in obvious]
    # "text" and "label" themselves win over all others.
    candidates = [column for column in candidates if column.lower() == argument] or candidates
    if not table.columns:
        raise ValueError(f"{table.name} has no rows. Its columns: {columns}.")
    if len(candidates) != 1:
        raise ValueError(
            f"Which column of {table.name} is the {argument} is not obvious. Name it with `{argument}=`. "
            f"Its columns: {columns}."
        )
    return candidates[0]


def check_rows(
    table: Table, texts: list, labels: list, *, positive: str | None, on_bad_rows: str
) -> tuple[list[bytes], np.ndarray]:
    """Returns the texts as UTF-8 and the labels as int32 of 0 and 1.

    Raises:
        ValueError: If a row is unusable, or the rows together are. See `bertbin_tf.data.read`.
    """
    if not texts:
        raise ValueError(f"{table.name} has no rows.")
    missing = [row for row in range(len(texts)) if _is_missing_text(table, texts[row]) or _is_missing(labels[row])]
    rows: Sequence[int] = range(len(texts))
    if missing:
        where = f"{table.name} with a missing text or label: {table.name_rows(missing)}"
        if on_bad_rows == "error":
            raise ValueError(
                f"There are {len(missing)} of {len(texts)} rows in {where}. Fill them in, or leave them out with "
                '`on_bad_rows="drop"`.'
            )
        warnings.warn(f"Dropped {len(missing)} of {len(texts)} rows of {where}.", stacklevel=3)
        rows = sorted(set(rows) - set(missing))
        if not rows:
            raise ValueError(f"{table.name} has no row with both a text and a label.")
    encoded = _encode_texts(table, rows, texts)
    binary = _to_binary(table, rows, labels, positive)
    if len(set(binary.tolist())) == 1:
        raise ValueError(
            f"{table.name} has only one class: all {len(rows)} labels are {labels[rows[0]]!r}. A classifier needs "
            "examples of both. If these are the first rows of a sorted file, take rows from all over it."
        )
    _warn_about_texts(table, rows, encoded, binary)
    return encoded, binary


def check_texts(table: Table, column: str) -> Iterator[bytes]:
    """Returns an iterator over the texts as UTF-8, of a table that needs no labels; they are all checked before.

    Raises:
        ValueError: If there are no rows, or one of them has no text.
    """
    num_rows, missing = 0, []
    for row, (text,) in enumerate(table.rows(column)):
        num_rows = row + 1
        if _is_missing_text(table, text):
            missing.append(row)
        else:
            _encode(table, row, text)
    if not num_rows:
        raise ValueError(f"{table.name} has no rows.")
    if missing:
        raise ValueError(
            f"There are {len(missing)} of {num_rows} rows in {table.name} with a missing text: "
            f"{table.name_rows(missing)}. Fill them in or leave them out."
        )
    return (_encode(table, row, text) for row, (text,) in enumerate(table.rows(column)))


def _is_missing(value):
    """Whether a label is no label: None, NaN or nothing but spaces."""
    if isinstance(value, str | bytes):
        return not value.strip()
    return value is None or (isinstance(value, numbers.Real) and value != value)


def _is_missing_text(table, value):
    if isinstance(value, str | bytes):
        return table.empty_is_missing and not value
    return _is_missing(value)


def _encode_texts(table, rows, texts):
    """Returns the texts of some rows as UTF-8, in the list that they are in: of millions there is no room for two."""
    for row in rows:
        texts[row] = _encode(table, row, texts[row])
    return texts if len(rows) == len(texts) else [texts[row] for row in rows]


def _encode(table, row, text):
    if not isinstance(text, str | bytes):
        raise ValueError(
            f"All texts of {table.name} must be strings. Received: {describe(text)} in {table.name_rows([row])}"
        )
    try:
        return text.encode("utf-8") if isinstance(text, str) else text
    except UnicodeEncodeError as error:
        raise ValueError(
            f"{table.name} has half a character (a lone surrogate, {text[error.start]!r}) in "
            f"{table.name_rows([row])}. Whatever wrote it cut an emoji in two; repair or leave out that text."
        ) from None


def _to_binary(table, rows, labels, positive):
    # Interned: a label's name is a string, and there may be millions of labels.
    names = [sys.intern(_label_name(labels[row])) for row in rows]
    values = Counter(names)
    word = next((row for row in rows if isinstance(labels[row], str | bytes)), None)
    other = next((row for row in rows if not isinstance(labels[row], str | bytes)), None)
    if word is not None and other is not None:
        raise ValueError(
            f"The labels of {table.name} must all be strings or all be numbers. Received: {describe(labels[word])} in "
            f"{table.name_rows([word])} and {describe(labels[other])} in {table.name_rows([other])}"
        )
    if positive is not None:
        positive = _label_name(positive)
        if positive not in values:
            raise ValueError(f"No label of {table.name} is positive={positive!r}. Its labels: {_listed(values)}.")
        if len(values) <= 2:
            return np.array([name == positive for name in names], np.int32)
    elif set(values) <= set(_BINARY):
        return np.array([_BINARY[name] for name in names], np.int32)
    elif len(values) == 2 and other is None:
        raise ValueError(
            f"Which label of {table.name} is the positive one? Say so with `positive=`. Its labels: {_listed(values)}."
        )
    wrong = [row for row, name in zip(rows, names, strict=True) if name not in _BINARY] or rows
    raise ValueError(
        f"The labels of {table.name} must be 0 and 1, booleans, or two values of which `positive=` names one. "
        f"Map or leave out the others first. Received: {_listed(values)}; first in {table.name_rows(wrong[:3])}"
    )


def _label_name(value):
    """Spells a label as a user would: 1, 1.0, "1" and " 1.0" are all "1"."""
    if isinstance(value, bytes):
        value = value.decode("utf-8", errors="replace")
    if isinstance(value, str):
        value = value.strip()
        lower = value.lower()
        return {"0.0": "0", "1.0": "1"}.get(lower, lower if lower in _BINARY else value)
    if isinstance(value, bool | np.bool_):
        return "true" if value else "false"
    if isinstance(value, numbers.Real) and value == value // 1:
        return str(int(value))
    return repr(value)


def _listed(values):
    first = ", ".join(f"{name} ({count} rows)" for name, count in values.most_common(6))
    return first + (f" and {len(values) - 6} more" if len(values) > 6 else "")


def _warn_about_texts(table, rows: Sequence[int], texts, labels):
    empty = [row for row, text in zip(rows, texts, strict=True) if not text.strip()]
    if empty:
        warnings.warn(
            f"{len(empty)} texts of {table.name} are empty, in {table.name_rows(empty)}. They are kept.", stacklevel=4
        )
    seen = {}
    for text, label in zip(texts, labels.tolist(), strict=True):
        seen[text] = seen.get(text, 0) | (1, 2)[label]  # a set of labels, as bits
    contradicting = [text for text, found in seen.items() if found == 3]
    if contradicting:
        example = contradicting[0].decode("utf-8", errors="replace")
        warnings.warn(
            f"{len(contradicting)} texts of {table.name} are labelled both 0 and 1, such as {example[:80]!r}. "
            "All these rows are kept.",
            stacklevel=4,
        )
