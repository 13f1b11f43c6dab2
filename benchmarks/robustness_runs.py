"""One training of `robustness.py`: its rows, its batches, what is measured of it."""

import functools
import os
import platform
import resource
import time

import keras
import numpy as np
import scipy.special
import tensorflow as tf
from kept_runs import has_failed
from robustness_methods import build

from bertbin_tf import data, evaluation
from bertbin_tf.models import fit_head, load_backbone, load_preprocessor
from bertbin_tf.recipe import Recipe
from bertbin_tf.recipe.building import class_weight_of

BATCH_SIZE, NUM_STEPS, SEQUENCE_LENGTH = 32, 150, 64


@functools.cache
def preprocessor():
    return load_preprocessor("minilm", SEQUENCE_LENGTH)


@functools.cache
def rows(dataset, share_positive=None):
    """Training rows, texts and labels, of which positives may be made rare."""
    texts, labels = data.collect(data.read(f"vader/{dataset}:train"))
    labels = np.asarray(labels)
    if share_positive is not None:
        negative, positive = np.flatnonzero(labels == 0), np.flatnonzero(labels == 1)
        num_positive = round(len(negative) * share_positive / (1 - share_positive))
        chosen = np.sort(np.concatenate([negative, positive[:num_positive]]))
        texts, labels = [texts[i] for i in chosen], labels[chosen]
    return texts, labels


@functools.cache
def test_rows(dataset):
    texts, labels = data.collect(data.read(f"vader/{dataset}:test"))
    order = np.argsort([len(text) for text in texts])
    texts = [texts[i] for i in order]
    encode = data.compiled_encoder(preprocessor())  # made here: what a graph loads belongs to that graph
    return list(tf.data.Dataset.from_tensor_slices(texts).batch(64).map(encode)), np.asarray(labels)[order]


def training_batches(texts, labels, seed, num_steps=NUM_STEPS):
    tokens = data.tokenize(data.read((texts, labels)), preprocessor())
    return endless(data.batch_by_length(tokens, BATCH_SIZE, shuffle_seed=seed), num_steps)


def endless(batches, num_steps):
    return batches.repeat().take(num_steps).apply(tf.data.experimental.assert_cardinality(num_steps))


def logits_of(model):
    return keras.Model(model.input, model.get_layer("logit").output)


def predict(logits, batches):
    values = np.concatenate([logits.predict_on_batch(batch)[:, 0] for batch in batches])
    return scipy.special.expit(values.astype(float))


def train_and_measure(run, backbone, base_rate, batches, test, callbacks=(), **fields):
    """Trains once and returns the line to keep.

    Args:
        run: Dict that identifies the run.
        backbone: Function that returns the encoder.
        base_rate: Float, of the training labels.
        batches: `tf.data.Dataset` of as many batches as there are steps.
        test: Pair of test batches and their labels.
        callbacks: Others than those of the method.
        **fields: Of the recipe, for our method.
    """
    started = time.perf_counter()
    keras.utils.set_random_seed(run["seed"])
    num_steps = int(batches.cardinality())
    model, control = build(run["method"], run["rate"], backbone(), base_rate, num_steps, run["seed"], **fields)
    recipe = Recipe("vader/movies", **fields)
    if run["method"] == "ours" and recipe.head_init == "probe":
        fit_head(model, batches)
    history = model.fit(
        batches,
        callbacks=[*control, *callbacks],
        class_weight=class_weight_of(recipe, base_rate),
        shuffle=False,
        verbose=0,
    )
    test_batches, test_labels = test
    probabilities = predict(logits_of(model), test_batches)
    result = evaluation.evaluate(test_labels, probabilities, threshold=0.5, num_bootstrap=0)
    return run | {
        "accuracy": result.accuracy,
        "roc_auc": result.roc_auc,
        "spread": float(probabilities.std()),
        "failed": has_failed(test_labels, probabilities),
        "loss": history.history["loss"][-1],
        "steps": num_steps,
        "interventions": [str(line) for callback in control for line in callback.interventions],
        "seconds": time.perf_counter() - started,
        "machine": f"{platform.machine()}, {os.cpu_count()} CPU cores",
    }


def train_on(run, texts, labels, backbone=load_backbone, num_steps=NUM_STEPS, callbacks=(), **fields):
    keras.utils.set_random_seed(run["seed"])  # `Dataset.shuffle` takes it too, beside its own
    batches = training_batches(texts, labels, run["seed"], num_steps)
    test = test_rows(run["dataset"])
    return train_and_measure(run, backbone, float(np.mean(labels)), batches, test, callbacks, **fields)


class LearningCurve(keras.callbacks.Callback):
    """Asks up to 500 test rows every ten steps, and keeps (step, accuracy, ROC AUC)."""

    def __init__(self, dataset):
        super().__init__()
        batches, labels = test_rows(dataset)
        every = -(-len(batches) // 8)  # from short to long
        self.batches = batches[::every]
        self.labels = np.concatenate([labels[64 * i : 64 * (i + 1)] for i in range(0, len(batches), every)])
        self.curve, self.first_loss = [], None

    def on_train_begin(self, logs=None):
        self.logits = logits_of(self.model)  # once: a new model is traced anew

    def on_train_batch_end(self, batch, logs=None):
        if self.first_loss is None:
            self.first_loss = float(logs["loss"])
        if batch % 10 == 9:
            probabilities = predict(self.logits, self.batches)
            measured = evaluation.evaluate(self.labels, probabilities, threshold=0.5, num_bootstrap=0)
            self.curve.append((batch + 1, measured.accuracy, measured.roc_auc))


def one_batch():
    tokens, targets = next(iter(training_batches(*rows("movies"), 0, 1)))
    return {name: tf.pad(value, [[0, 0], [0, 32]])[:, :32] for name, value in tokens.items()}, targets


def peak_memory(method):
    """Returns the most bytes that this process held while it trained for 60 steps."""
    model, callbacks = build(method, 1e-4, load_backbone(), 0.5, 60, 0)
    model.fit(tf.data.Dataset.from_tensors(one_batch()).repeat(60), callbacks=callbacks, verbose=0)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
