"""Texts as they are asked about: bytes in UTF-8, those of similar length together."""

from collections.abc import Iterable, Sequence

import numpy as np


def as_bytes(texts: Sequence[str | bytes]) -> np.ndarray:
    """Returns texts as an object array of bytes in UTF-8; lone surrogates become question marks.

    Raises:
        ValueError: If it is one text, whose letters would be taken for texts, or one of them is no text.
    """
    if isinstance(texts, str | bytes):
        raise ValueError(f"`texts` must be a sequence of texts. Received: one {type(texts).__name__}.")
    array = np.empty(len(texts), object)
    for row, text in enumerate(texts):
        if not isinstance(text, str | bytes):
            raise ValueError(f"`texts` must be strings, or bytes in UTF-8. Received: {text!r} at position {row}.")
        array[row] = text if isinstance(text, bytes) else text.encode("utf-8", errors="replace")
    return array


def order_by_length(texts: Iterable[bytes] | np.ndarray) -> np.ndarray:
    """Returns the order that sorts texts by length, an int array: neighbours of similar length need least padding."""
    return np.argsort([len(text) for text in texts], kind="stable")
