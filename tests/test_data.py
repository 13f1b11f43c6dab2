import collections
import csv
import gc
import itertools
import json
import math
import tracemalloc
import warnings
import weakref

import datasets
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bertbin_tf import data

TEXTS = ["a great film", "dull , very\ndull", 'the "fine" movie', "awful !", "Größe 😀 \u2028 x"]
LABELS = [1, 0, 1, 0, 1]


def rows_of(dataset):
    return [(text.numpy().decode(), int(label)) for text, label in dataset]


def write(path, texts, labels, quoting=csv.QUOTE_MINIMAL):
    frame = pd.DataFrame({"text": texts, "label": labels})
    if path.suffix == ".parquet":
        frame.to_parquet(path)
    elif path.suffix == ".jsonl":
        frame.to_json(path, orient="records", lines=True)
    else:
        frame.to_csv(path, index=False, quoting=quoting, sep="\t" if path.suffix == ".tsv" else ",")
    return path


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".parquet"])
def test_file_written_by_pandas_reads_back_equal(tmp_path, suffix):
    dataset = data.read(write(tmp_path / f"reviews{suffix}", TEXTS, LABELS))
    assert rows_of(dataset) == list(zip(TEXTS, LABELS, strict=True))
    assert dataset.element_spec == (tf.TensorSpec((), tf.string), tf.TensorSpec((), tf.int32))
    assert dataset.cardinality() == 5


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".parquet"])
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1), min_size=2))
def test_any_text_survives_any_file(tmp_path, suffix, texts):
    labels = [i % 2 for i in range(len(texts))]
    # Left to itself, pandas does not quote a carriage return, and reads it back as the end of a row.
    path = write(tmp_path / f"any{suffix}", texts, labels, csv.QUOTE_NONNUMERIC)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        assert rows_of(data.read(path)) == list(zip(texts, labels, strict=True))


@pytest.mark.parametrize(
    "source",
    [
        (TEXTS, LABELS),
        (np.array(TEXTS), np.array(LABELS, np.float32)),
        (pd.Series(TEXTS), pd.Series(LABELS, dtype="Int64")),
        list(zip(TEXTS, LABELS, strict=True)),
        [{"Text": text, "Label": bool(label)} for text, label in zip(TEXTS, LABELS, strict=True)],
        {"sentence": TEXTS, "target": [str(label) for label in LABELS], "id": range(5)},
        pd.DataFrame({"content": TEXTS, "class": [float(label) for label in LABELS]}, index=[7, 7, 8, 9, 9]),
        datasets.Dataset.from_dict({"review": TEXTS, "sentiment": LABELS}),
        tf.data.Dataset.from_tensor_slices((TEXTS, np.array(LABELS, bool))),
        tf.data.Dataset.from_tensor_slices({"text": TEXTS, "label": LABELS}).filter(lambda row: True),
    ],
    ids="tuple numpy series pairs dicts columns pandas hugging-face pairs-dataset dict-dataset".split(),
)
def test_sources_in_memory_are_read_in_order(source):
    assert rows_of(data.read(source)) == list(zip(TEXTS, LABELS, strict=True))


def test_named_set_is_read_through_tfds():
    with tfds.testing.mock_data(num_examples=20):
        assert data.read("tfds:glue/sst2:validation").cardinality() == 20
        texts, labels = zip(*rows_of(data.read("tfds:imdb_reviews")), strict=True)
        expected = [
            (row["text"].decode(), row["label"]) for row in tfds.as_numpy(tfds.load("imdb_reviews", split="train"))
        ]
    assert list(zip(texts, labels, strict=True)) == expected


def test_two_strings_need_to_be_told_which_is_positive():
    source = (["win money", "see you", "call now"], ["spam", "ham", "spam"])
    assert [label for _, label in rows_of(data.read(source, positive="spam"))] == [1, 0, 1]
    assert [label for _, label in rows_of(data.read(source, positive="ham"))] == [0, 1, 0]


@pytest.mark.parametrize(
    "labels", [["0", "1"], ["0.0", "1.0"], ["False", "TRUE"], [False, True], [0.0, 1.0], [b"0", b"1"]]
)
def test_every_spelling_of_zero_and_one_is_understood(labels):
    assert rows_of(data.read((["bad", "good"], labels))) == [("bad", 0), ("good", 1)]


def test_named_columns_win_over_obvious_ones(tmp_path):
    frame = pd.DataFrame({"text": ["x", "y"], "title": ["bad", "good"], "label": [0, 0], "is_good": [0, 1]})
    assert rows_of(data.read(frame, text="title", label="is_good")) == [("bad", 0), ("good", 1)]


def test_byte_order_mark_is_not_part_of_the_header(tmp_path):
    path = tmp_path / "excel.csv"
    path.write_bytes("text,label\r\ngood,1\r\n\r\nbad,0\r\n".encode("utf-8-sig"))
    assert rows_of(data.read(path)) == [("good", 1), ("bad", 0)]


def test_dropped_rows_are_counted_and_named_by_line(tmp_path):
    path = tmp_path / "holes.csv"
    path.write_text('text,label\n"two\nlines",1\n,0\n\nbad,0\ngood,\n')
    with pytest.warns(UserWarning, match="Dropped 2 of 4 rows .*holes.csv .*: lines 4, 7"):
        dataset = data.read(path, on_bad_rows="drop")
    assert rows_of(dataset) == [("two\nlines", 1), ("bad", 0)]


@pytest.mark.parametrize("missing", [None, math.nan, np.float32("nan"), pd.NA, pd.NaT])
def test_every_kind_of_missing_is_dropped(missing):
    frame = pd.DataFrame({"text": ["a", "b", missing, "d"], "label": pd.Series([1, 0, 1, missing], dtype=object)})
    with pytest.warns(UserWarning, match=r"Dropped 2 of 4 rows of the DataFrame .*: rows 2, 3 \(counted from 0\)"):
        assert rows_of(data.read(frame, on_bad_rows="drop")) == [("a", 1), ("b", 0)]


def test_empty_string_in_memory_is_kept_with_a_warning():
    with pytest.warns(UserWarning, match="1 texts of the tuple.* empty, in row 1 "):
        assert rows_of(data.read((["good", "", "bad"], [1, 1, 0]))) == [("good", 1), ("", 1), ("bad", 0)]


def test_contradicting_labels_are_counted_with_an_example():
    with pytest.warns(UserWarning, match="^1 texts .* labelled both 0 and 1, such as 'so so'"):
        assert len(data.read((["so so", "so so", "good", "good"], [1, 0, 1, 1]))) == 4


def test_healthy_rows_give_no_warning(recwarn):
    data.read((TEXTS, LABELS))
    assert not [str(warning.message) for warning in recwarn if warning.category is UserWarning]


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".parquet"])
def test_long_texts_and_nul_characters_are_read(tmp_path, suffix):
    texts = ["a" * 300_000, "b" * 10 + "\0" + "c"]
    path = tmp_path / f"long{suffix}"
    if suffix == ".parquet":
        pq.write_table(pa.table({"text": texts, "label": [0, 1]}), path)
    elif suffix == ".jsonl":
        path.write_text("".join(json.dumps({"text": t, "label": i}) + "\n" for i, t in enumerate(texts)))
    else:
        delimiter = "," if suffix == ".csv" else "\t"
        path.write_text(f"text{delimiter}label\n" + "".join(f"{t}{delimiter}{i}\n" for i, t in enumerate(texts)))
    assert rows_of(data.read(path)) == [(texts[0], 0), (texts[1], 1)]


def test_texts_are_read_without_labels(tmp_path):
    (tmp_path / "lines.txt").write_bytes(b"good\r\n\r\nbad  \n")
    assert list(data.read_texts(tmp_path / "lines.txt")) == ["good", "", "bad  "]
    assert list(data.read_texts(str(write(tmp_path / "rows.csv", TEXTS, LABELS)))) == TEXTS
    assert list(data.read_texts(pd.DataFrame({"anything": TEXTS}))) == TEXTS
    for texts in (TEXTS, tuple(TEXTS), np.array(TEXTS), pd.Series(TEXTS)):
        assert list(data.read_texts(texts)) == TEXTS


def test_columns_have_their_names(tmp_path):
    (tmp_path / "rows.csv").write_text("review,stars\nfine,5\n")
    (tmp_path / "rows.txt").write_text("fine\n")
    assert data.columns_of(tmp_path / "rows.csv") == ["review", "stars"]
    assert data.columns_of(tmp_path / "rows.txt") == []


def test_line_of_a_tsv_ends_with_a_line_feed_and_nowhere_else(tmp_path):
    (tmp_path / "rows.tsv").write_bytes(b"text\tlabel\r\nfine\rfilm\t1\r\ndull\t0\n")
    texts, labels = data.collect(data.read(tmp_path / "rows.tsv"))
    assert [bytes(text) for text in texts] == [b"fine\rfilm", b"dull"]
    assert labels.tolist() == [1, 0]


def test_base_rate_is_the_share_of_ones():
    dataset = data.read((["a", "b", "c", "d"], [1, 0, 0, 0]))
    assert data.base_rate(dataset) == data.base_rate(dataset.batch(3)) == 0.25


def test_fingerprint_changes_with_any_text_label_or_order():
    rows = [("ab", 1), ("c", 0), ("a", 1), ("bc", 0)]
    variants = [rows, rows[::-1], [("ab", 0), ("c", 1), *rows[2:]], [("a", 1), ("bc", 0), *rows[:2]], rows[:3]]
    prints = [data.fingerprint(data.read(variant)) for variant in variants]
    assert len(set(prints)) == len(variants)
    assert prints[0] == data.fingerprint(data.read(rows)) and len(prints[0]) == 64


def many_rows(num_texts=300, num_copies=2):
    texts = [f"text {i}" for i in range(num_texts)] * num_copies
    return texts, [int(text[-1] in "012") for text in texts]


def test_split_keeps_the_base_rate_and_every_row():
    dataset = data.read(many_rows())
    rest, held_out = data.split(dataset, 0.2)
    assert len(rest) == 480 and len(held_out) == 120
    assert data.base_rate(rest) == pytest.approx(0.3) and data.base_rate(held_out) == pytest.approx(0.3)
    assert sorted(rows_of(rest) + rows_of(held_out)) == sorted(rows_of(dataset))


def test_no_text_is_on_both_sides_of_a_split():
    rest, held_out = data.split(data.read(many_rows()), 0.2)
    assert not {text for text, _ in rows_of(rest)} & {text for text, _ in rows_of(held_out)}
    rest, held_out = data.split(data.read(many_rows()), 0.2, group_texts=False)
    assert {text for text, _ in rows_of(rest)} & {text for text, _ in rows_of(held_out)}


def test_split_is_reproduced_by_its_seed():
    dataset = data.read(many_rows())
    prints = [data.fingerprint(data.split(dataset, 0.1, seed=seed)[1]) for seed in (1, 1, 2)]
    assert prints[0] == prints[1] != prints[2]


@pytest.mark.parametrize(
    "fraction, match", [(0, "fraction=0"), (1.0, "fraction=1.0"), (0.01, "2 rows of label 0 and 3")]
)
def test_split_that_leaves_a_side_without_a_class_is_refused(fraction, match):
    with pytest.raises(ValueError, match=match):
        data.split(data.read((TEXTS, LABELS)), fraction)


def test_encode_cuts_to_the_longest_text(tiny_preprocessor):
    texts = tf.constant(["good", "a great film"])
    tokens, padded = data.encode(tiny_preprocessor, texts), tiny_preprocessor(texts)
    for name, value in padded.items():
        np.testing.assert_array_equal(tokens[name], value[:, :5])  # [CLS] a great film [SEP]
    assert not np.any(padded["padding_mask"][:, 5:])


def test_encode_is_the_same_in_a_graph_and_after_a_nul(tiny_preprocessor):
    texts = tf.constant(["good\0 film", "", "very " * 1000, "\0", "x\0y"])
    signature = [tf.TensorSpec((None,), tf.string)]
    encode = tf.function(lambda texts: data.encode(tiny_preprocessor, texts), input_signature=signature)
    eager, graph = data.encode(tiny_preprocessor, texts), encode(texts)
    for name, value in eager.items():
        np.testing.assert_array_equal(graph[name], value)
    assert eager["padding_mask"].shape == (5, 16)
    assert eager["padding_mask"][0].numpy().sum() == 4
    for function in (encode, lambda texts: data.encode(tiny_preprocessor, texts)):
        assert function(tf.constant([], tf.string))["token_ids"].shape == (0, 2)


def tokenized(tiny_preprocessor, num_rows=103):
    words = "good bad film movie fine dull".split()
    texts = [" ".join(words[(i + j) % 6] for j in range(i * 7 % 12)) for i in range(num_rows)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # the same short texts with both labels
        dataset = data.read((texts, [i % 2 for i in range(num_rows)]))
    return texts, data.tokenize(dataset, tiny_preprocessor)


def test_tokenize_keeps_order_labels_and_number_without_padding(tiny_preprocessor):
    texts, dataset = tokenized(tiny_preprocessor, 300)
    assert dataset.cardinality() == 300
    for i, (tokens, label) in enumerate(dataset):
        length = len(texts[i].split()) + 2
        expected = tiny_preprocessor(texts[i])
        for name, value in tokens.items():
            np.testing.assert_array_equal(value, expected[name][:length])
        assert label == i % 2


def test_stray_quotes_of_a_tsv_swallow_no_rows(tmp_path):
    (tmp_path / "glue.tsv").write_text('text\tlabel\n"Foo bar\t1\nbaz\t0\nqux"\t1\n"said ""so"""\t0\n')
    texts, labels = data.collect(data.read(tmp_path / "glue.tsv"))
    assert texts == [b'"Foo bar', b"baz", b'qux"', b'said "so"']
    assert labels.tolist() == [1, 0, 1, 0]


def test_cells_of_several_lines_are_one_text_also_where_there_is_one_column(tmp_path):
    texts = ["first\nsecond", "third", 'a "great" film', '"half']
    pd.DataFrame({"text": texts}).to_csv(tmp_path / "a.tsv", sep="\t", index=False)
    assert list(data.read_texts(tmp_path / "a.tsv")) == texts
    (tmp_path / "stray.tsv").write_text('text\n"Foo bar\nbaz\n')
    assert list(data.read_texts(tmp_path / "stray.tsv")) == ['"Foo bar', "baz"]


def test_two_columns_of_one_name_are_refused_in_parquet(tmp_path):
    pq.write_table(pa.table([["a"], ["b"], [1]], names=["text", "text", "label"]), tmp_path / "a.parquet")
    with pytest.raises(ValueError, match="two columns of the same name: text, text, label"):
        data.read(tmp_path / "a.parquet", text="text")


def test_one_long_text_takes_no_room_of_the_others():
    tracemalloc.start()
    try:
        assert len(list(data.read_texts(["x" * 100_000] + ["short"] * 2_000))) == 2_001
        assert tracemalloc.get_traced_memory()[1] < 10e6  # an array of strings would take 800 MB
    finally:
        tracemalloc.stop()


def test_texts_that_are_cut_are_counted(tiny_preprocessor):
    dataset = data.read((["good " * 10_000, "bad", "a film"], [1, 0, 0]))
    with pytest.warns(UserWarning, match="1 of 3 texts have 16 tokens or more and are cut"):
        (first, *_) = data.tokenize(dataset, tiny_preprocessor)
    assert first[0]["token_ids"].shape == (16,)


def contents(batches):
    """The rows of an epoch without their padding, in the order in which they come."""
    rows = []
    for tokens, labels in batches:
        for ids, mask, label in zip(tokens["token_ids"].numpy(), tokens["padding_mask"].numpy(), labels, strict=True):
            rows.append((tuple(ids[mask == 1]), int(label)))
    return rows


def test_every_row_is_seen_once_per_epoch(tiny_preprocessor):
    _, dataset = tokenized(tiny_preprocessor)
    expected = collections.Counter((tuple(tokens["token_ids"].numpy()), int(label)) for tokens, label in dataset)
    batches = data.batch_by_length(dataset, 8, shuffle_seed=3)
    for _ in range(2):
        assert collections.Counter(contents(batches)) == expected


@pytest.mark.parametrize("drop_remainder", [False, True])
@pytest.mark.parametrize("is_another", [False, True])  # not the one that `tokenize` returned, whose rows are at hand
def test_batches_are_those_of_tensorflows_own_buckets(tiny_preprocessor, drop_remainder, is_another):
    _, dataset = tokenized(tiny_preprocessor)
    dataset = dataset.take(-1) if is_another else dataset
    kwargs = {"boundaries": [4, 7, 13], "shuffle_seed": 3, "drop_remainder": drop_remainder}
    batches = data.batch_by_length(dataset, 8, **kwargs)
    expected = dataset.shuffle(103, seed=3, reshuffle_each_iteration=True).bucket_by_sequence_length(
        lambda tokens, _: tf.shape(tokens["token_ids"])[0],
        bucket_boundaries=[5, 8, 14],
        bucket_batch_sizes=[8] * 4,
        pad_to_bucket_boundary=True,
        drop_remainder=drop_remainder,
    )
    for _ in range(2):
        pairs = list(zip(batches, expected, strict=True))
        assert len(pairs) == len(batches)
        for (tokens, labels), (expected_tokens, expected_labels) in pairs:
            np.testing.assert_array_equal(labels, expected_labels)
            for name, value in expected_tokens.items():
                np.testing.assert_array_equal(tokens[name], value)


def test_tokens_are_kept_no_longer_than_their_dataset(tiny_preprocessor):
    _, dataset = tokenized(tiny_preprocessor)
    batches = data.batch_by_length(dataset, 8)
    kept = weakref.ref(dataset)
    assert contents(batches)
    del dataset, batches
    gc.collect()
    assert kept() is None


def test_number_of_batches_and_of_shapes_is_known(tiny_preprocessor):
    _, dataset = tokenized(tiny_preprocessor)
    for kwargs in ({}, {"drop_remainder": True}, {"boundaries": [4, 16]}, {"boundaries": [14]}):
        batches = data.batch_by_length(dataset, 8, shuffle_seed=3, **kwargs)
        shapes = [tuple(tokens["token_ids"].shape) for tokens, _ in batches]
        assert batches.cardinality() == len(shapes)
        assert {length for _, length in shapes} <= set(kwargs.get("boundaries", [3, 5, 7, 9, 11, 13]))
        assert all(size == 8 for size, _ in shapes) or not kwargs.get("drop_remainder")


@given(lengths=st.lists(st.integers(1, 12), min_size=1, max_size=60), batch_size=st.sampled_from([1, 2, 4, 40]))
@settings(deadline=None, max_examples=30)
def test_lengths_leave_the_least_padding(lengths, batch_size):
    rows = tf.data.Dataset.from_tensor_slices(lengths).map(lambda length: ({"padding_mask": tf.ones([length])}, 0))
    batches = data.batch_by_length(rows, batch_size)
    padded_to = collections.Counter()
    for tokens, labels in batches:
        padded_to[tokens["padding_mask"].shape[1]] += len(labels)
    num_allowed = max(1, min(8, len(lengths) // (2 * batch_size)))  # two batches of each
    assert len(padded_to) <= num_allowed
    choices = itertools.combinations(sorted(set(lengths)), min(num_allowed, len(set(lengths))))
    least = min(
        sum(min(end for end in ends if end >= length) for length in lengths)
        for ends in choices
        if ends[-1] == max(lengths)
    )
    assert sum(length * rows for length, rows in padded_to.items()) == least


def test_padding_is_masked(tiny_preprocessor):
    _, dataset = tokenized(tiny_preprocessor)
    for tokens, _ in data.batch_by_length(dataset, 8):
        ids, mask = tokens["token_ids"].numpy(), tokens["padding_mask"].numpy().astype(bool)
        assert not ids[~mask].any() and ids[mask].all()


def test_order_is_decided_by_the_seed_and_new_in_every_epoch(tiny_preprocessor):
    _, dataset = tokenized(tiny_preprocessor)
    first, second, other = (data.batch_by_length(dataset, 8, shuffle_seed=seed) for seed in (3, 3, 4))
    epochs = [contents(first), contents(first)]
    assert epochs == [contents(second), contents(second)]
    assert epochs[0] != epochs[1] and epochs[0] != contents(other)
    unshuffled = data.batch_by_length(dataset, 8)
    assert contents(unshuffled) == contents(unshuffled)


def test_sorted_labels_come_mixed(tiny_preprocessor):
    texts = ["good film"] * 200 + ["bad film"] * 200
    dataset = data.tokenize(data.read((texts, [1] * 200 + [0] * 200)), tiny_preprocessor)
    rates = [labels.numpy().mean() for _, labels in data.batch_by_length(dataset, 20, shuffle_seed=0)]
    assert 0.1 < min(rates) and max(rates) < 0.9


@pytest.mark.parametrize(
    "kwargs, match",
    [
        ({"batch_size": 0}, "batch_size=0"),
        ({"batch_size": 8, "epochs": range(0, 4, 2)}, r"one epoch after the other.*range\(0, 4, 2\)"),
        ({"batch_size": 8, "boundaries": []}, r"boundaries=\[\]"),
        ({"batch_size": 8, "boundaries": [16, 8]}, r"boundaries=\[16, 8\]"),
        ({"batch_size": 8, "boundaries": [8]}, "longest row has 13 tokens"),
        ({"batch_size": 500, "drop_remainder": True}, "batch_size=500, 103 rows"),
    ],
)
def test_impossible_batches_are_refused(tiny_preprocessor, kwargs, match):
    with pytest.raises(ValueError, match=match):
        data.batch_by_length(tokenized(tiny_preprocessor)[1], **kwargs)
