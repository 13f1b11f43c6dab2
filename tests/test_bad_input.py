"""The table of what a reader is given by mistake, and what it answers."""

import json

import datasets
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tensorflow as tf

from bertbin_tf import data


def file(name, content):
    """Returns a function that makes a file in a folder; text is written as UTF-8."""

    def make(folder):
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
        return folder / name

    return make


def parquet(**columns):
    def make(folder):
        pq.write_table(pa.table(columns), folder / "rows.parquet")
        return folder / "rows.parquet"

    return make


def value(source):
    return lambda folder: source


def folder_named(name):
    def make(folder):
        (folder / name).mkdir()
        return folder / name

    return make


GOOD = (["good", "bad"], [1, 0])
PAIR = "text,label\ngood,1\nbad,0\n"

# What it is, how it is made, arguments of `read`, what the message says.
BAD_INPUTS = [
    # the file
    ("missing file", lambda folder: folder / "no.csv", {}, "no file .*no.csv"),
    ("folder", folder_named("rows.csv"), {}, "rows.csv is a folder"),
    ("empty csv", file("rows.csv", ""), {}, "rows.csv is empty"),
    ("blank jsonl", file("rows.jsonl", "\n \n"), {}, "rows.jsonl is empty"),
    ("empty parquet", file("rows.parquet", b""), {}, "rows.parquet cannot be read as Parquet"),
    ("header only", file("rows.csv", "text,label\n"), {}, "rows.csv has no rows"),
    ("parquet without rows", parquet(text=pa.array([], pa.string()), label=pa.array([], pa.int32())), {}, "no rows"),
    ("unknown ending", file("rows.xlsx", "x"), {}, r"\.csv, \.tsv, \.jsonl, \.parquet.*rows.xlsx"),
    ("no ending", value("glue/sst2"), {}, "tfds:<name>.*'glue/sst2'"),
    ("text file", file("rows.txt", "good"), {}, "Unknown kind of file"),
    (
        "latin-1",
        file("rows.csv", "text,label\ngood,1\nna\xefve,0\n".encode("latin-1")),
        {},
        "UTF-8: byte 0xef in line 3",
    ),
    ("utf-16", file("rows.tsv", "text\tlabel\n".encode("utf-16")), {}, "is UTF-16. Save it as UTF-8"),
    ("latin-1 jsonl", file("rows.jsonl", b'{"text": "\xe9", "label": 1}'), {}, "byte 0xe9 in line 1"),
    ("not parquet", file("rows.parquet", PAIR), {}, "cannot be read as Parquet"),
    ("broken json", file("rows.jsonl", '{"text": "a", "label": 1}\n\n{"text": "b", \n'), {}, "broken JSON in line 3"),
    ("json array", file("rows.jsonl", '["a", 1]\n'), {}, "no JSON object in line 1.*list"),
    ("cells too many", file("rows.csv", PAIR + 'well, "hm",1\n'), {}, "3 cells in line 4, and 2 in its header"),
    ("cells too few", file("rows.csv", PAIR + "well\n"), {}, "1 cells in line 4"),
    ("open quote", file("rows.csv", 'text,label\n"good,1\nbad,0\n'), {}, "begins at line 2.*doubled"),
    ("column twice", file("rows.csv", "text,label,text\na,1,b\n"), {}, "two columns of the same name"),
    # the columns
    ("wrong text column", file("rows.csv", PAIR), {"text": "review"}, "no column 'review'. Its columns: text, label"),
    ("wrong label column", parquet(text=["a"], label=[1]), {"label": "y"}, "no column 'y'. Its columns: text, label"),
    ("nothing obvious", file("rows.csv", "a,b\nx,1\n"), {}, "not obvious. Name it with `text=`. Its columns: a, b"),
    ("two candidates", file("rows.csv", "review,comment,label\nx,y,1\n"), {}, "not obvious.*review, comment, label"),
    ("no label column", file("rows.jsonl", '{"text": "a"}'), {}, "Name it with `label=`. Its columns: text"),
    ("two text columns", file("rows.csv", PAIR), {"text": ["text", "label"]}, "name of one column.*'text', 'label'"),
    # the rows
    (
        "empty cells",
        file("rows.csv", 'text,label\n"a\nb",1\n,0\n"",1\nd,\n'),
        {},
        "3 of 4 rows .*lines 4, 5, 6.*on_bad_rows",
    ),
    ("null in jsonl", file("rows.jsonl", '{"text": null, "label": 1}\n{"label": 0}\n'), {}, "2 of 2 rows.*lines 1, 2"),
    ("None in parquet", parquet(text=["a", None], label=[1, 0]), {}, r"1 of 2 rows.*row 1 \(counted from 0\)"),
    ("NaN label", value((["a", "b"], [1.0, np.nan])), {}, "1 of 2 rows.*row 1"),
    ("NaN in pandas", value(pd.DataFrame({"text": ["a", np.nan], "label": [1, 0]})), {}, "1 of 2 rows.*row 1"),
    ("many missing", value(([None] * 30, [1] * 30)), {}, "30 of 30 rows.*8, 9 and 20 more"),
    ("all dropped", value(([None] * 3, [1] * 3)), {"on_bad_rows": "drop"}, "no row with both"),
    ("unknown on_bad_rows", value(GOOD), {"on_bad_rows": "skip"}, '"error" or "drop".*skip'),
    ("numbers for texts", value(([1, 2], [1, 0])), {}, "must be strings. Received: int 1 in row 0"),
    ("mixed texts", file("rows.jsonl", '{"text": "a", "label": 1}\n{"text": 2, "label": 0}'), {}, "int 2 in line 2"),
    ("lone surrogate", file("rows.jsonl", json.dumps({"text": "a\ud83d", "label": 1})), {}, "half a character.*line 1"),
    # the labels
    ("label 2", file("rows.csv", PAIR + "so,2\n"), {}, r"0 \(1 rows\), 2 \(1 rows\); first in line 4"),
    ("label -1", value((["a", "b"], [1, -1])), {}, r"-1 \(1 rows\); first in row 1"),
    ("fractions", value((["a", "b", "c"], [0.2, 1.0, 0.0])), {}, "0.2"),
    ("three classes", value((["a", "b", "c"], ["x", "y", "z"])), {}, r"x \(1 rows\), y \(1 rows\), z \(1 rows\)"),
    ("three with positive", value((["a", "b", "c"], ["x", "y", "z"])), {"positive": "x"}, "`positive=` names one"),
    (
        "mixed labels",
        value((["a", "b"], [1, "spam"])),
        {},
        r"all be strings or all be numbers.*str 'spam' in row 1.*int 1 in row 0",
    ),
    ("two strings", value((["a", "b"], ["spam", "ham"])), {}, r"`positive=`. Its labels: spam \(1 rows\), ham"),
    ("absent positive", value((["a", "b"], ["spam", "ham"])), {"positive": "Spam"}, "positive='Spam'.*spam .*ham"),
    ("one class", file("rows.csv", "text,label\na,1\nb,1\n"), {}, "only one class: all 2 labels are '1'"),
    ("one class by positive", value((["a", "b"], ["x", "x"])), {"positive": "x"}, "only one class"),
    ("nested jsonl", file("rows.jsonl", "[" * 99_999), {}, "rows.jsonl has broken JSON in line 1"),
    ("long number", file("rows.jsonl", '{"label": ' + "9" * 9_999 + "}"), {}, "rows.jsonl has broken JSON in line 1"),
    # what is in memory
    ("lengths differ", value((["a", "b"], [1])), {}, "'text': 2, 'label': 1"),
    ("empty lists", value(([], [])), {}, "no rows"),
    ("empty list", value([]), {}, "none at all"),
    ("list of texts", value(["good", "bad"]), {}, "row 0: str 'good'"),
    ("text for texts", value(("good", [1])), {}, "Column 'text' .*str 'good'"),
    ("matrix of labels", value((["a", "b"], np.eye(2))), {}, "Column 'label' .*one value per row"),
    ("number", value(5), {}, "Unknown kind of source.*int 5"),
    ("generator", value(pair for pair in [("a", 1)]), {}, "Unknown kind of source.*generator"),
    ("DatasetDict", value(datasets.DatasetDict(fit=datasets.Dataset.from_dict({"a": [1]}))), {}, r"source\['fit'\]"),
    ("batched", value(tf.data.Dataset.from_tensor_slices(GOOD).batch(2)), {}, "not batches.*unbatch"),
    ("endless", value(tf.data.Dataset.from_tensor_slices(GOOD).repeat()), {}, "never ends"),
    ("with weights", value(tf.data.Dataset.from_tensors(("a", 1, 1.0))), {}, "pairs or dicts"),
    # what has a name
    ("unknown vader", value("vader/films"), {}, r"vader/<movies\|tweets\|amazon\|nyt>.*'vader/films'"),
    ("unknown tfds", value("tfds:no_such_set"), {}, "glue/sst2.*'tfds:no_such_set'"),
    ("tfds without a name", value("tfds:"), {}, "Expected 'tfds:<name>"),
]


@pytest.mark.parametrize("make, kwargs, match", [row[1:] for row in BAD_INPUTS], ids=[row[0] for row in BAD_INPUTS])
@pytest.mark.filterwarnings("ignore:Dropped")
def test_reader_says_what_is_wrong(tmp_path, make, kwargs, match):
    with pytest.raises((ValueError, FileNotFoundError), match=f"(?s){match}") as error:
        data.read(make(tmp_path), **kwargs)
    assert len(str(error.value)) < 600


@pytest.mark.parametrize(
    "make, match",
    [
        (lambda folder: folder / "no.txt", "no file .*no.txt"),
        (file("rows.txt", ""), "rows.txt is empty"),
        (file("rows.txt", b"good\n\xff\n"), "byte 0xff in line 2"),
        (file("rows.csv", "text,label\n,1\n"), "1 of 1 rows .*missing text: line 2"),
        (file("rows.csv", "text;label\nfine;1\n"), "divided by ';'. Save it with commas"),
        (file("rows.csv", "text,label\nfine,1\n".encode("utf-16")), "is UTF-16"),
        (file("rows.csv", "a,b\nx,y\n"), "Name it with `text=`"),
        (value(["good", None]), "rows .*missing text: row 1"),
        (value(["good", 5]), "int 5 in row 1"),
        (value([]), "none at all"),
    ],
)
def test_reader_of_texts_says_what_is_wrong(tmp_path, make, match):
    with pytest.raises((ValueError, FileNotFoundError), match=match):
        data.read_texts(make(tmp_path))
