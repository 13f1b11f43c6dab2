"""Does any learning rate train? Measured on the real checkpoint, against stock Keras and a strong plain recipe.

    python benchmarks/robustness.py rates few_rows imbalance cost backbones

Each run is a line in `results/robustness.jsonl` and is not run again; without a section only the tables are printed and
the plot is drawn. Runs go seed by seed, so that what is there after a part of the time is comparable. 150 steps take
about a minute and a half on two CPU cores; all sections together several hours.
"""

import argparse
import functools
import itertools
import json
import math
import os
import platform
import time
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import keras_nlp
import numpy as np
import scipy.special
import tensorflow as tf

from bertbin_tf import data, evaluation
from bertbin_tf.callbacks import LayerwiseLearningRateController
from bertbin_tf.metrics import LogitStatistics
from bertbin_tf.models import binary_classifier, fit_head, load_backbone, load_preprocessor
from bertbin_tf.recipe import Recipe
from bertbin_tf.recipe.building import build_model, class_weight_of, prior_of

RESULTS = Path(__file__).parent / "results" / "robustness.jsonl"
RATES = (1e-6, 1e-5, 5e-5, 1e-4, 1e-3, 1e-2)
METHODS = ("adam", "strong", "ours")
BATCH_SIZE, NUM_STEPS, SEQUENCE_LENGTH = 32, 150, 64
FEW_ROWS, FEW_EPOCHS, FEW_SEEDS = 300, 10, 15
# Each at its own default: Keras', that of Mosbach et al. (2021) and Devlin et al. (2019), and that of `Recipe`.
DEFAULT_RATES = {"adam": 1e-3, "strong": 2e-5, "ours": 1e-4}


class WarmupLinear(keras.optimizers.schedules.LearningRateSchedule):
    """10 % linear warm-up, then linearly to 0: Mosbach et al., 2021, section 6."""

    def __init__(self, rate, num_steps):
        self.rate, self.num_steps, self.warmup_steps = rate, num_steps, math.ceil(0.1 * num_steps)

    def __call__(self, step):
        step = tf.cast(step, tf.float32)
        rising, falling = step / self.warmup_steps, (self.num_steps - step) / (self.num_steps - self.warmup_steps)
        return self.rate * tf.maximum(0.0, tf.minimum(rising, falling))

    def get_config(self):
        return {"rate": self.rate, "num_steps": self.num_steps}


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
    batches = tf.data.Dataset.from_tensor_slices(texts).batch(64).map(lambda text: data.encode(preprocessor(), text))
    return list(batches), np.asarray(labels)[order]


def training_batches(texts, labels, seed, num_steps):
    tokens = data.tokenize(data.read((texts, labels)), preprocessor())
    batches = data.batch_by_length(tokens, BATCH_SIZE, shuffle_seed=seed)
    return batches.repeat().take(num_steps).apply(tf.data.experimental.assert_cardinality(num_steps))


def build(method, rate, backbone, base_rate, num_steps, seed, **fields):
    """Returns the compiled model and the callbacks of a method."""
    if method == "ours":
        recipe = Recipe("vader/movies", learning_rate=rate, seed=seed, **fields)
        return build_model(recipe, backbone, base_rate, num_steps), [LayerwiseLearningRateController()]
    model = binary_classifier(backbone, kernel_initializer="glorot_uniform")
    if method == "adam":
        optimizer = keras.optimizers.Adam(rate)
    else:
        optimizer = keras.optimizers.AdamW(WarmupLinear(rate, num_steps), weight_decay=0.01, global_clipnorm=1.0)
        optimizer.exclude_from_weight_decay(var_names=["bias", "gamma", "beta"])
    model.compile(optimizer, "binary_crossentropy", metrics=[LogitStatistics()])
    return model, []


def predict(model, batches):
    logits = keras.Model(model.input, model.get_layer("logit").output)
    return scipy.special.expit(
        np.concatenate([logits.predict_on_batch(batch)[:, 0] for batch in batches]).astype(float)
    )


def train_and_measure(run, backbone, texts, labels, dataset, num_steps, callbacks=(), **fields):
    """Trains once and returns the line to keep."""
    started = time.perf_counter()
    keras.utils.set_random_seed(run["seed"])
    base_rate = float(np.mean(labels))
    batches = training_batches(texts, labels, run["seed"], num_steps)
    model, control = build(run["method"], run["rate"], backbone(), base_rate, num_steps, run["seed"], **fields)
    recipe = Recipe("vader/movies", **fields)
    if recipe.head_init == "probe":
        fit_head(model, batches)
    history = model.fit(
        batches,
        callbacks=[*control, *callbacks],
        class_weight=class_weight_of(recipe, base_rate),
        shuffle=False,
        verbose=0,
    )
    test_batches, test_labels = test_rows(dataset)
    probabilities = predict(model, test_batches)
    result = evaluation.evaluate(test_labels, probabilities, threshold=0.5, num_bootstrap=0).to_dict()
    majority = max(test_labels.mean(), 1 - test_labels.mean())
    spread = float(probabilities.std())
    return run | {
        "accuracy": result["accuracy"],
        "roc_auc": result["roc_auc"],
        "spread": spread,
        "failed": bool(result["accuracy"] <= majority + 0.02 or spread < 0.02),
        "loss": history.history["loss"][-1],
        "steps": num_steps,
        "interventions": [str(line) for callback in control for line in callback.interventions],
        "seconds": time.perf_counter() - started,
        "machine": f"{platform.machine()}, {os.cpu_count()} CPU cores",
    }


def fit_and_measure(run, backbone):
    return train_and_measure(run, backbone, *rows(run["dataset"]), run["dataset"], NUM_STEPS)


def rates(keep):
    """1: rate by rate, on films and tweets, three seeds."""
    # Ours and the strong recipe first: the claim is about these two.
    for seed, dataset, rate, method in itertools.product(range(3), ("movies", "tweets"), RATES, METHODS[::-1]):
        run = {"section": "rates", "dataset": dataset, "method": method, "rate": rate, "seed": seed}
        keep(run, functools.partial(fit_and_measure, run, load_backbone))


def few_rows(keep):
    """2: 300 training rows, 15 seeds, each method at its own default rate."""
    num_steps = -(-FEW_ROWS // BATCH_SIZE) * FEW_EPOCHS
    for seed, method in itertools.product(range(FEW_SEEDS), METHODS[::-1]):
        rate = DEFAULT_RATES[method]
        run = {"section": "few_rows", "dataset": "movies", "method": method, "rate": rate, "seed": seed}

        def measure(run=run, seed=seed):
            texts, labels = rows("movies")
            chosen = np.random.default_rng(seed).choice(len(texts), FEW_ROWS, replace=False)
            few = [texts[i] for i in chosen], labels[chosen]
            return train_and_measure(run, load_backbone, *few, "movies", num_steps)

        keep(run, measure)


class StepsToAUC(keras.callbacks.Callback):
    """Asks the test rows every ten steps and notes when their ROC AUC first reaches 0.75."""

    def __init__(self, dataset, goal=0.75):
        super().__init__()
        self.batches, self.labels = test_rows(dataset)
        self.goal, self.steps, self.first_loss = goal, None, None

    def on_train_batch_end(self, batch, logs=None):
        if self.first_loss is None:
            self.first_loss = float(logs["loss"])
        if self.steps is None and batch % 10 == 9:
            auc = evaluation.evaluate(self.labels, predict(self.model, self.batches), num_bootstrap=0).roc_auc
            if auc >= self.goal:
                self.steps = batch + 1


def imbalance(keep):
    """3: tweets with 2 % positive labels."""
    remedies = {
        "base rate in the bias": {},
        "Keras' own head": {"head_init": "keras"},
        "class weights": {"imbalance": "class_weight"},
        "focal loss": {"imbalance": "focal"},
        "head fitted first": {"head_init": "probe"},
    }
    for seed, (name, fields) in itertools.product(range(2), remedies.items()):
        run = {
            "section": "imbalance",
            "dataset": "tweets",
            "method": "ours",
            "rate": 1e-4,
            "seed": seed,
            "remedy": name,
        }

        def measure(run=run, fields=fields):
            texts, labels = rows("tweets", 0.02)
            watch = StepsToAUC("tweets")
            line = train_and_measure(run, load_backbone, texts, labels, "tweets", NUM_STEPS, [watch], **fields)
            prior = prior_of(Recipe("vader/tweets", **fields), float(np.mean(labels)))
            entropy = -prior * math.log(prior) - (1 - prior) * math.log(1 - prior)
            return line | {"first_loss": watch.first_loss, "entropy": entropy, "steps_to_auc": watch.steps}

        keep(run, measure)


def cost(keep):
    """4: a step with everything on against stock AdamW, in turns, in one process."""
    run = {"section": "cost", "method": "ours", "seed": 0}

    def measure():
        texts, labels = rows("movies")
        tokens, targets = next(iter(training_batches(texts, labels, 0, 1)))
        tokens = {name: tf.repeat(value[:, :1], 32, axis=1) for name, value in tokens.items()}
        seconds = {}
        models = {}
        for method in ("strong", "ours"):
            model, callbacks = build(method, 1e-4, load_backbone(), 0.5, 1000, 0)
            models[method] = model, keras.callbacks.CallbackList(callbacks, model=model, epochs=1, steps=1000)
            seconds[method] = []
            models[method][1].on_train_begin()
            models[method][1].on_epoch_begin(0)
        for batch in range(63):
            for method, (model, callbacks) in models.items():
                started = time.perf_counter()
                callbacks.on_train_batch_end(batch, model.train_on_batch(tokens, targets, return_dict=True))
                if batch >= 3:  # the first ones trace
                    seconds[method].append(time.perf_counter() - started)
        ratios = np.array(seconds["ours"]) / np.array(seconds["strong"])
        low, high = np.quantile(np.random.default_rng(0).choice(ratios, (2000, len(ratios))).mean(1), [0.025, 0.975])
        return run | {
            "milliseconds": {method: 1e3 * float(np.median(values)) for method, values in seconds.items()},
            "total_ratio": sum(seconds["ours"]) / sum(seconds["strong"]),
            "median_ratio": float(np.median(ratios)),
            "mean_ratio_interval": [float(low), float(high)],
        }

    keep(run, measure)


def three_layers():
    """The lower half of MiniLM, as a second real encoder."""
    whole = load_backbone()
    config = whole.get_config() | {"num_layers": 3}
    half = keras_nlp.models.BertBackbone.from_config(config)
    for layer in half.layers:
        layer.set_weights(whole.get_layer(layer.name).get_weights())
    return half


def backbones(keep):
    """5: the sweep on an encoder of three layers."""
    for rate, method in itertools.product(RATES, METHODS[::-1]):
        run = {"section": "backbones", "dataset": "movies", "method": method, "rate": rate, "seed": 0}
        keep(run, functools.partial(fit_and_measure, run, three_layers))


SECTIONS = {function.__name__: function for function in (rates, few_rows, imbalance, cost, backbones)}


def identity(run):
    return tuple(str(run.get(name)) for name in ("section", "dataset", "method", "rate", "seed", "remedy"))


def load():
    if not RESULTS.exists():
        return []
    return [json.loads(line) for line in RESULTS.read_text(encoding="utf-8").splitlines()]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sections", nargs="*", metavar="SECTION", help=", ".join(SECTIONS))
    arguments = parser.parse_args()
    if unknown := set(arguments.sections) - set(SECTIONS):
        parser.error(f"unknown section {', '.join(sorted(unknown))}; choose from {', '.join(SECTIONS)}")
    done = {identity(run) for run in load()}

    def keep(run, measure):
        if identity(run) in done:
            return
        keras.backend.clear_session()
        result = measure()
        RESULTS.parent.mkdir(exist_ok=True)
        with RESULTS.open("a", encoding="utf-8") as file:
            file.write(json.dumps(result) + "\n")
        print({name: value for name, value in result.items() if name != "machine"}, flush=True)

    for section in arguments.sections:
        SECTIONS[section](keep)

    # Here, because drawing needs matplotlib and running does not.
    import robustness_tables

    robustness_tables.report(load(), RESULTS.parent)


if __name__ == "__main__":
    main()
