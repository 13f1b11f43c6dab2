"""A two-layer backbone of width 4 with a vocabulary of some twenty words, and the real checkpoint for what needs it."""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import keras_nlp
import pytest

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


@pytest.fixture
def tiny_backbone():
    return build_tiny_backbone()


@pytest.fixture
def tiny_preprocessor():
    tokenizer = keras_nlp.tokenizers.BertTokenizer(VOCABULARY, lowercase=True, strip_accents=True)
    return keras_nlp.models.BertTextClassifierPreprocessor(tokenizer, sequence_length=16)


@pytest.fixture
def tiny_reviews():
    """120 short texts and labels that a keyword decides."""
    positive = ["a great film", "the movie was very good", "superb !", "a fine movie . the film is good"]
    negative = ["a bad film", "the movie was very dull", "awful !", "a poor movie . the film is bad"]
    return (positive + negative) * 15, ([1] * 4 + [0] * 4) * 15
