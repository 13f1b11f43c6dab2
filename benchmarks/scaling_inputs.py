"""What `scaling.py` measures on this machine: products, training steps, tokenizing and batching, by turns."""

import os
import time
import warnings
from functools import partial

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import keras_nlp
import numpy as np
import tensorflow as tf
from scaling_formulas import LENGTH, ROWS, STEPS, Bert, step_name
from speed_ours import StepTimer
from speed_tables import PRODUCT
from speed_texts import join_reviews

from bertbin_tf import data
from bertbin_tf.memory import keep_freed_memory
from bertbin_tf.models import binary_classifier, load_preprocessor
from bertbin_tf.optimizers import LayerwiseAdamW

ROUNDS, PRODUCTS, STEPS_TAKEN = 5, 20, 3


def measure() -> dict[str, list[float]]:
    """Returns, by rounds, FLOP/s of matrix products, rows/s of tokenizing and of batching, seconds of each step."""
    keep_freed_memory()
    matrix, product = tf.random.normal((2048, 2048)), tf.function(tf.matmul)
    preprocessor = load_preprocessor("minilm", LENGTH)
    reviews = long_reviews()
    # Of one length and without a remainder, as a TPU needs them.
    batches = data.batch_by_length(
        tokenize(reviews, preprocessor), ROWS, boundaries=[LENGTH], shuffle_seed=0, drop_remainder=True
    )
    models = {bert: build_model(bert) for bert in dict.fromkeys(bert for bert, _, _ in STEPS)}
    pieces = {
        "peak": lambda: (
            PRODUCTS * PRODUCT / seconds(lambda: [product(matrix, matrix).numpy() for _ in range(PRODUCTS)])
        ),
        "tokenize": lambda: len(reviews) / seconds(lambda: tokenize(reviews, preprocessor)),
        "batches": lambda: ROWS * len(batches) / seconds(lambda: sum(1 for _ in batches)),
    } | {step_name(bert, *shape): partial(step_seconds, models[bert], shape) for bert, *shape in STEPS}
    measured = {name: [] for name in pieces}
    for number in range(ROUNDS + 1):
        for name, piece in pieces.items():
            value = piece()
            print(f"round {number}: {name} {value:.4g}", flush=True)
            if number:  # round 0 traces and warms up
                measured[name].append(value)
    return measured


def long_reviews() -> tf.data.Dataset:
    """Returns texts of 300 to 500 words, joined of film reviews, ten times over: all are cut at `LENGTH` tokens."""
    texts, _ = data.collect(data.read("vader/movies"))
    texts = 10 * join_reviews([text.decode() for text in texts], np.random.default_rng(0))
    return tf.data.Dataset.from_tensor_slices((texts, np.arange(len(texts)) % 2))


def tokenize(reviews, preprocessor) -> tf.data.Dataset:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that texts are cut is meant
        return data.tokenize(reviews, preprocessor)


def build_model(bert: Bert) -> keras.Model:
    """Returns a classifier with random weights, which take as long as others, and the default recipe's optimizer."""
    model = binary_classifier(keras_nlp.models.BertBackbone(**bert.arguments()))
    model.compile(LayerwiseAdamW(1e-5, {"logit": 20.0}, global_clipnorm=1.0), "binary_crossentropy")
    return model


def step_seconds(model: keras.Model, shape: tuple[int, int]) -> float:
    """Returns the median of some training steps on random tokens; the first is not counted."""
    ids = np.random.default_rng(0).integers(1000, 20000, shape).astype("int32")
    tokens = {"token_ids": ids, "segment_ids": np.zeros_like(ids), "padding_mask": np.ones_like(ids)}
    batch = tokens, np.arange(len(ids)) % 2
    # Without a known shape, as batches by length are: a known one takes longer on a CPU, see CONTRIBUTING.md.
    unknown = dict.fromkeys(tokens, tf.TensorSpec((None, None), "int32")), tf.TensorSpec((None,), "int64")
    batches = tf.data.Dataset.from_generator(lambda: iter([batch] * STEPS_TAKEN), output_signature=unknown)
    timer = StepTimer()
    model.fit(batches, steps_per_epoch=STEPS_TAKEN, callbacks=[timer], verbose=0, shuffle=False)
    return float(np.median(timer.seconds[1:]))


def seconds(work) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started
