"""Hundreds of damaged files: each is read rightly or is a clear error, and nothing else."""

import json
import os
import random

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

from bertbin_tf import data
from bertbin_tf.assets import sha256_of
from bertbin_tf.recipe import Recipe
from bertbin_tf.recipe.backup_files import read_newest_backup, write_backup

TEXTS = ["a great film", 'he said "no", twice', "naïve café", "", "two\nlines", "=1+1", "<script>alert(1)</script>"] * 3
LABELS = [1, 0, 1, 0, 1, 0, 1] * 3


def as_delimited(separator):
    rows = [
        f'"{text.replace(chr(34), chr(34) * 2)}"{separator}{label}' for text, label in zip(TEXTS, LABELS, strict=True)
    ]
    return "\n".join([f"text{separator}label", *rows]).encode()


def as_jsonl():
    lines = [json.dumps({"text": text, "label": label}) for text, label in zip(TEXTS, LABELS, strict=True)]
    return "\n".join(lines).encode()


def as_parquet():
    sink = pa.BufferOutputStream()
    pyarrow.parquet.write_table(pa.table({"text": TEXTS, "label": LABELS}), sink)
    return sink.getvalue().to_pybytes()


SPLICES = [
    b"\x00",
    b"\xff\xfe",
    b'"',
    b"\n",
    b"\r",
    b",",
    b"\t",
    b"{",
    b"]",
    b"\xed\xa0\x80",
    b"9" * 5000,
    b"NaN",
    b"[" * 99_999,
]
LINE_ENDS = [b"\r", b"\r\n", b"", b"\n\n"]
OTHER_LABELS = [b"2", b"yes", b"1.0", b"", b"-1", b"1e999"]


def damage(content, rng):
    """Returns the content after one to four of the things that happen to files."""
    for _ in range(rng.randint(1, 4)):
        at, to = sorted(rng.randrange(len(content) + 1) for _ in range(2))
        before, middle, after = content[:at], content[at:to], content[to:]
        flipped = bytes(byte ^ 1 << rng.randrange(8) for byte in middle[:3])
        content = rng.choice(
            [
                before,
                before + after,
                before + middle + middle + after,
                before + rng.choice(SPLICES) + middle + after,
                before + rng.randbytes(rng.randint(1, 9)) + middle + after,
                before + flipped + middle[3:] + after,
                content.replace(b"\n", rng.choice(LINE_ENDS)),
                content.replace(b"1", rng.choice(OTHER_LABELS)),
            ]
        )
    return content


def read_rows(path):
    texts, labels = data.collect(data.read(str(path), on_bad_rows="drop" if len(str(path)) % 2 else "error"))
    assert len(texts) == len(labels) > 0 and set(labels) <= {0, 1}
    assert all(isinstance(text, bytes) for text in texts)


def read_lines(path):
    assert all(isinstance(text, str | bytes) for text in data.read_texts(str(path)))


def read_recipe(path):
    assert isinstance(Recipe.from_json(path), Recipe)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("ending", "make", "read", "number"),
    [
        (".csv", lambda: as_delimited(","), read_rows, 150),
        (".tsv", lambda: as_delimited("\t"), read_rows, 80),
        (".jsonl", as_jsonl, read_rows, 150),
        (".parquet", as_parquet, read_rows, 120),
        (".txt", lambda: "\n".join(TEXTS).encode(), read_lines, 50),
        (".json", lambda: Recipe("reviews.csv", positive="good").to_json().encode(), read_recipe, 150),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_damaged_file_is_read_or_named(ending, make, read, number, tmp_path):
    rng, errors = random.Random(ending), 0
    for i in range(number):
        path = tmp_path / f"{i:0{rng.randint(3, 4)}}{ending}"
        path.write_bytes(damage(make(), rng))
        try:
            read(path)
        except (ValueError, OSError) as error:
            errors += 1
            assert path.name in str(error) or str(error).startswith("Recipe: "), error
    assert 0 < errors < number  # both happen, or this tests nothing


@pytest.mark.filterwarnings("ignore")
def test_damaged_backup_is_never_taken_for_whole(tmp_path):
    state = {"values": [np.arange(50.0), ("a", 1, None)], "step": 3}
    rng, num_refused = random.Random(0), 0
    for i in range(100):
        folder = tmp_path / str(i)
        write_backup(folder, "00001", state)
        (path,) = folder.iterdir()
        content = path.read_bytes()
        path.write_bytes(damaged := damage(content, rng))
        if damaged == content:
            continue
        num_refused += 1
        with pytest.warns(UserWarning, match="damaged and passed over"):
            assert read_newest_backup(folder) is None
        # One that gives itself the right name was not damaged by accident: what it says is data, never code.
        os.replace(path, folder / f"00002-{sha256_of(path)}.npz")
        read_newest_backup(folder)
    assert num_refused > 90
