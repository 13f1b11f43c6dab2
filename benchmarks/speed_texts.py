"""The texts of `speed.py`: film reviews, and long ones joined of them; and settings that all contestants share."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

BATCH_SIZES = {"short": 32, "long": 8}
PREDICTED_ROWS = 32  # in a batch
OURS = "bertbin_tf, oneDNN"  # what the command line runs, and what the others are compared with
RATE = 1e-4
# Of a race: the accuracy on the test rows, and the steps from one look at it to the next.
GOAL, LOOK_EVERY = 0.83, 20


def write_texts(folder: Path) -> None:
    """Writes `KIND-train.parquet` and `KIND-test.parquet`, of texts and labels, into a folder.

    A long text is 300 to 500 words, of reviews of one label joined: so lengths differ and the label can be told.
    """
    from bertbin_tf import data

    for split in ("train", "test"):
        texts, labels = data.collect(data.read(f"vader/movies:{split}"))
        texts, labels = [text.decode() for text in texts], np.asarray(labels)
        pq.write_table(pa.table({"text": texts, "label": labels}), folder / f"short-{split}.parquet")
        pq.write_table(pa.table(_join_by_label(texts, labels)), folder / f"long-{split}.parquet")


def load_texts(folder: Path, kind: str, split: str) -> tuple[list[str], np.ndarray]:
    """Returns texts and labels that `write_texts` wrote."""
    table = pq.read_table(folder / f"{kind}-{split}.parquet")
    return table["text"].to_pylist(), table["label"].to_numpy()


def join_reviews(texts: list[str], generator: np.random.Generator) -> list[str]:
    """Returns texts of 300 to 500 words, joined of others."""
    words, joined = " ".join(texts).split(), []
    while len(words) > 500:
        count = int(generator.integers(300, 501))
        joined.append(" ".join(words[:count]))
        words = words[count:]
    return joined


def _join_by_label(texts, labels):
    generator, rows = np.random.default_rng(0), []
    for label in (0, 1):
        chosen = [text for text, its in zip(texts, labels, strict=True) if its == label]
        rows += [(text, label) for text in join_reviews(chosen, generator)]
    rows = [rows[i] for i in generator.permutation(len(rows))]
    return {"text": [text for text, _ in rows], "label": [label for _, label in rows]}
