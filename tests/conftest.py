"""A two-layer backbone of width 4 with a vocabulary of some twenty words, and the real checkpoint for what needs it."""

import contextlib
import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
if "PYTEST_XDIST_WORKER" in os.environ:
    # One core to each process, those that a test starts included.
    os.environ.setdefault("TF_NUM_INTRAOP_THREADS", "1")
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import keras
import keras_nlp
import pytest
import tensorflow as tf

from bertbin_tf.memory import keep_freed_memory
from bertbin_tf.models import save_preprocessor

keep_freed_memory()

WORDS = "a the film movie was is very not great good fine superb bad poor awful dull ##s ! .".split()
VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]


def build_tiny_backbone(**kwargs):
    keras.utils.set_random_seed(0)
    arguments = dict(
        vocabulary_size=len(VOCABULARY),
        num_layers=2,
        num_heads=2,
        hidden_dim=4,
        intermediate_dim=8,
        max_sequence_length=64,
    )
    return keras_nlp.models.BertBackbone(**(arguments | kwargs))


def build_tiny_preprocessor():
    tokenizer = keras_nlp.tokenizers.BertTokenizer(VOCABULARY, lowercase=True, strip_accents=True)
    return keras_nlp.models.BertTextClassifierPreprocessor(tokenizer, sequence_length=16)


def pytest_collection_modifyitems(items):
    """The long ones first: of two processes none then waits for the other at the end."""
    items.sort(key=lambda item: not {"checkpoint", "slow"} & {mark.name for mark in item.iter_markers()})


@contextlib.contextmanager
def running_eagerly():
    """Runs every `tf.function` eagerly: tracing a fit of the tiny model takes ten times as long as running it."""
    tf.config.run_functions_eagerly(True)
    try:
        yield
    finally:
        tf.config.run_functions_eagerly(False)


@pytest.fixture
def eager():
    with running_eagerly():
        yield


@pytest.fixture
def tiny_backbone():
    return build_tiny_backbone()


@pytest.fixture
def tiny_preprocessor():
    return build_tiny_preprocessor()


@pytest.fixture(scope="session")
def tiny_reviews():
    """120 short texts and labels that a keyword decides."""
    positive = ["a great film", "the movie was very good", "superb !", "a fine movie . the film is good"]
    negative = ["a bad film", "the movie was very dull", "awful !", "a poor movie . the film is bad"]
    return (positive + negative) * 15, ([1] * 4 + [0] * 4) * 15


@pytest.fixture(scope="session")
def tiny_preset(tmp_path_factory):
    """A folder that `load_backbone` and `load_preprocessor` take, as "minilm"; not to be changed."""
    folder = tmp_path_factory.mktemp("presets") / "tiny_preset"
    backbone = build_tiny_backbone()
    backbone.save_to_preset(str(folder))
    save_preprocessor(build_tiny_preprocessor(), backbone, folder)
    return str(folder)


@pytest.fixture(scope="session")
def reviews_csv(tiny_reviews, tmp_path_factory):
    """The tiny reviews, made distinct, as a CSV file; not to be changed."""
    path = tmp_path_factory.mktemp("reviews") / "reviews.csv"
    texts, labels = tiny_reviews
    rows = [f"{text} film{number},{label}" for number, (text, label) in enumerate(zip(texts, labels, strict=True))]
    path.write_text("\n".join(["text,label", *rows]) + "\n", encoding="utf-8")
    return path
