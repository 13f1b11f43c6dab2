"""Does any learning rate train? Measured on the real checkpoint, against stock Keras and a strong plain recipe.

    python benchmarks/robustness.py rates own_pooling prior_art few_rows same_rows imbalance head_start cost backbones

Each run is a line in `results/robustness.jsonl` and is not run again; without a section only the tables are printed and
the plot is drawn. Runs go seed by seed, so that what is there after a part of the time is comparable. 150 steps take
one and a half to four minutes on two CPU cores, all sections together most of a day. Two processes of one thread each
get through more than one of two threads: `TF_NUM_INTRAOP_THREADS=1`, `--share 1/2` and `--share 2/2`.
"""

import argparse
import functools
import itertools
import multiprocessing
import os
import time
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import keras_nlp
import numpy as np
import tensorflow as tf
from encoders import lower_layers
from kept_runs import KeptRuns
from robustness_methods import build
from robustness_runs import (
    BATCH_SIZE,
    NUM_STEPS,
    LearningCurve,
    endless,
    one_batch,
    peak_memory,
    rows,
    train_and_measure,
    train_on,
)

from bertbin_tf.doctor import DoctorCallback
from bertbin_tf.metrics import label_entropy
from bertbin_tf.models import load_backbone
from bertbin_tf.recipe import Recipe
from bertbin_tf.recipe.building import prior_of

RESULTS = Path(__file__).parent / "results" / "robustness.jsonl"
IDENTITY = ("section", "dataset", "method", "rate", "seed", "remedy")
SHOWN = (*IDENTITY, "accuracy", "roc_auc", "spread", "failed", "seconds")
RATES = (1e-6, 1e-5, 5e-5, 1e-4, 1e-3, 1e-2)
METHODS = ("ours", "strong", "adam")
PRIOR_ART = ("strong_with_layer_decay", "lamb", "adafactor")
FEW_ROWS, FEW_EPOCHS, FEW_SEEDS = 300, 10, 15
# Each at its own default: Keras', that of Mosbach et al. (2021) and Devlin et al. (2019), and that of `Recipe`.
DEFAULT_RATES = {"adam": 1e-3, "strong": 2e-5, "strong_mean": 2e-5, "ours": Recipe.learning_rate}


def rates(keep):
    """1: rate by rate, on films and tweets, three seeds."""
    for seed, dataset, rate, method in itertools.product(range(3), ("movies", "tweets"), RATES, METHODS):
        run = {"section": "rates", "dataset": dataset, "method": method, "rate": rate, "seed": seed}
        keep(run, lambda run: train_on(run, *rows(run["dataset"])))


def own_pooling(keep):
    """1a: ours as the recipe has it, with the mean over tokens; the other tables compare on the same model."""
    for dataset, rate in itertools.product(("movies", "tweets"), RATES):
        run = {"section": "own_pooling", "dataset": dataset, "method": "ours", "rate": rate, "seed": 0}
        keep(run, lambda run: train_on(run, *rows(run["dataset"]), pooling=Recipe.pooling))


def prior_art(keep):
    """1b: what else is known to make rates matter less, on films. L-DoG knows no rate and runs once."""
    for rate, method in [*itertools.product(RATES, PRIOR_ART), (1e-4, "l_dog")]:
        run = {"section": "prior_art", "dataset": "movies", "method": method, "rate": rate, "seed": 0}
        keep(run, lambda run: train_on(run, *rows(run["dataset"])))


def few_rows(keep, section="few_rows", methods=(*METHODS, "strong_mean"), rows_seed=lambda seed: seed):
    """2: 300 training rows, 15 seeds, each method at its own defaults: ours takes the mean over tokens, too."""

    def measure(run):
        texts, labels = rows(run["dataset"])
        chosen = np.random.default_rng(rows_seed(run["seed"])).choice(len(texts), FEW_ROWS, replace=False)
        num_steps = -(-FEW_ROWS // BATCH_SIZE) * FEW_EPOCHS
        fields = {"pooling": Recipe.pooling} if run["method"] == "ours" else {}
        return train_on(run, [texts[i] for i in chosen], labels[chosen], num_steps=num_steps, **fields)

    for seed, method in itertools.product(range(FEW_SEEDS), methods):
        rate = DEFAULT_RATES[method]
        keep({"section": section, "dataset": "movies", "method": method, "rate": rate, "seed": seed}, measure)


def same_rows(keep):
    """2b: the same 300 rows for all 15 seeds, so that what is left of the deviation is not of the rows."""
    few_rows(keep, "same_rows", ("ours", "strong"), rows_seed=lambda seed: 0)


def imbalance(keep):
    """3: tweets with 2 % positive labels."""
    remedies = {
        "base rate in the bias": {"head_init": "base_rate"},
        "Keras' own head": {"head_init": "keras"},
        "class weights": {"head_init": "base_rate", "imbalance": "class_weight"},
        "focal loss": {"head_init": "base_rate", "imbalance": "focal"},
        "head fitted first": {"head_init": "probe"},
    }

    def measure(run):
        texts, labels = rows("tweets", 0.02)
        watch, fields = LearningCurve("tweets"), remedies[run["remedy"]]
        line = train_on(run, texts, labels, callbacks=[watch], **fields)
        entropy = label_entropy(prior_of(Recipe("vader/tweets", **fields), float(np.mean(labels))))
        return line | {"first_loss": watch.first_loss, "entropy": entropy, "curve": watch.curve}

    for seed, remedy in itertools.product(range(2), remedies):
        run = {"section": "imbalance", "dataset": "tweets", "method": "ours", "rate": 1e-4}
        keep(run | {"seed": seed, "remedy": remedy}, measure)


def head_start(keep):
    """3b: how many steps each start of the head takes to an accuracy, on films."""

    def measure(run):
        watch = LearningCurve(run["dataset"])
        line = train_on(run, *rows(run["dataset"]), callbacks=[watch], head_init=run["remedy"])
        return line | {"first_loss": watch.first_loss, "curve": watch.curve}

    for seed, head_init in itertools.product(range(2), ("probe", "base_rate", "keras")):
        run = {"section": "head_start", "dataset": "movies", "method": "ours", "rate": 1e-4}
        keep(run | {"seed": seed, "remedy": head_init}, measure)


def cost(keep):
    """4: a step with everything on against stock AdamW, in turns, in one process; peak memory in a process each.

    "watched" is stock AdamW under `DoctorCallback`.
    """

    def measure(run):
        tokens, targets = one_batch()
        seconds, models = {}, {}
        for method in ("strong", "ours", "watched"):
            model, callbacks = build("ours" if method == "ours" else "strong", 1e-4, load_backbone(), 0.5, 1000, 0)
            if method == "watched":
                callbacks = [DoctorCallback([(tokens, targets)])]
            models[method] = model, keras.callbacks.CallbackList(callbacks, model=model, epochs=1, steps=1000)
            seconds[method] = []
            models[method][1].on_train_begin()
            models[method][1].on_epoch_begin(0)
        for batch in range(63):
            for method, (model, callbacks) in models.items():
                started = time.perf_counter()
                callbacks.on_train_batch_begin(batch)
                callbacks.on_train_batch_end(batch, model.train_on_batch(tokens, targets, return_dict=True))
                if batch >= 3:  # the first ones trace
                    seconds[method].append(time.perf_counter() - started)
        ratios = np.array(seconds["ours"]) / np.array(seconds["strong"])
        low, high = np.quantile(np.random.default_rng(0).choice(ratios, (2000, len(ratios))).mean(1), [0.025, 0.975])
        for _, callbacks in models.values():
            callbacks.on_train_end()
        weights = sum(weight.value.numpy().nbytes for weight in models["ours"][0].weights)
        with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
            peaks = {method: pool.apply(peak_memory, (method,)) for method in ("strong", "ours")}
        return run | {
            "milliseconds": {method: 1e3 * float(np.median(values)) for method, values in seconds.items()},
            "total_ratio": sum(seconds["ours"]) / sum(seconds["strong"]),
            "watched_ratio": sum(seconds["watched"]) / sum(seconds["strong"]),
            "median_ratio": float(np.median(ratios)),
            "mean_ratio_interval": [float(low), float(high)],
            "extra_copies_of_weights": (peaks["ours"] - peaks["strong"]) / weights,
        }

    keep({"section": "cost", "method": "ours", "seed": 0}, measure)


SHAPES = {"roberta": keras_nlp.models.RobertaBackbone, "distilbert": keras_nlp.models.DistilBertBackbone}


def tiny(shape):
    return SHAPES[shape](
        vocabulary_size=30, num_layers=2, num_heads=2, hidden_dim=32, intermediate_dim=64, max_sequence_length=16
    )


@functools.cache
def planted_keyword(num_rows, seed):
    """Batches of random tokens of 4 to 16, and their labels: is token 7 among them?"""
    rng = np.random.default_rng(seed)
    tokens, lengths = rng.integers(8, 30, (num_rows, 16)), rng.integers(4, 17, num_rows)
    labels = rng.integers(0, 2, num_rows)
    tokens[np.arange(num_rows), rng.integers(1, 100, num_rows) % (lengths - 1) + 1] = np.where(labels, 7, 8)
    mask = np.arange(16) < lengths[:, None]
    features = {"token_ids": np.where(mask, tokens, 0).astype("int32"), "padding_mask": mask.astype("int32")}
    return tf.data.Dataset.from_tensor_slices((features, labels.astype("int64"))).batch(BATCH_SIZE), labels


def backbones(keep):
    """5: the sweep on three real layers, and on other shapes that start from nothing and learn a planted keyword."""

    def measure_planted(run):
        train, labels = planted_keyword(2048, 0)
        test, test_labels = planted_keyword(512, 1)
        test = [features for features, _ in test], test_labels
        batches = endless(train, 2 * NUM_STEPS)
        return train_and_measure(run, lambda: tiny(run["dataset"]), float(labels.mean()), batches, test)

    for dataset, rate, method in itertools.product(SHAPES, RATES, METHODS):
        run = {"section": "backbones", "dataset": dataset, "method": method, "rate": rate, "seed": 0}
        keep(run, measure_planted)
    for rate, method in itertools.product(RATES, METHODS):
        run = {"section": "backbones", "dataset": "movies", "method": method, "rate": rate, "seed": 0}
        keep(run, lambda run: train_on(run, *rows(run["dataset"]), backbone=functools.partial(lower_layers, 3)))


SECTIONS = {
    function.__name__: function
    for function in (rates, own_pooling, prior_art, few_rows, same_rows, imbalance, head_start, cost, backbones)
}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sections", nargs="*", metavar="SECTION", help=", ".join(SECTIONS))
    parser.add_argument("--share", default="1/1", metavar="K/N", help="only every Nth run, from the Kth")
    arguments = parser.parse_args()
    if unknown := set(arguments.sections) - set(SECTIONS):
        parser.error(f"unknown section {', '.join(sorted(unknown))}; choose from {', '.join(SECTIONS)}")
    runs = KeptRuns(RESULTS, IDENTITY, arguments.share)
    for section in arguments.sections:
        SECTIONS[section](lambda run, measure: runs.keep(run, measure, SHOWN))

    # Here, because drawing needs matplotlib and running does not.
    import robustness_tables

    robustness_tables.report(runs.load(), RESULTS.parent)


if __name__ == "__main__":
    main()
