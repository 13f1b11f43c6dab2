"""What `speed.py` measures of this package and of keras-hub, one program each: see `turns`.

python speed_ours.py PROGRAM FOLDER KIND LIMIT SEED, with one of the functions in `main` for a program
"""

import os
import sys
import time
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import tensorflow as tf
from speed_texts import BATCH_SIZES, GOAL, LOOK_EVERY, PREDICTED_ROWS, RATE, load_texts
from turns import Player, Race

from bertbin_tf import data
from bertbin_tf.export import Servable
from bertbin_tf.memory import keep_freed_memory
from bertbin_tf.metrics import LogitStatistics
from bertbin_tf.models import binary_classifier, load_backbone, load_preprocessor
from bertbin_tf.optimizers import LayerwiseAdamW, warmup_cosine
from bertbin_tf.recipe import Recipe
from bertbin_tf.recipe.building import build_callbacks
from bertbin_tf.recipe.preparing import prepare
from bertbin_tf.recipe.runs import Run

STEP_ROWS, STEP_LENGTHS, MAX_STEP_TOKENS = (4, 16, 64), (8, 16, 32, 64, 128, 256, 512), 16384


class EachStep(keras.callbacks.Callback):
    """Counts training steps for the benchmark."""

    def __init__(self, player):
        super().__init__()
        self._player = player

    def on_train_batch_end(self, batch, logs=None):
        self._player.step()


def train(folder, kind, limit, player):
    """The default recipe with all its callbacks, as `train` has it."""
    *_, fit = _default_recipe(folder, kind, limit, player, epochs=4)
    fit(EachStep(player))


def _default_recipe(folder, kind, limit, player, epochs):
    fields = dict(sequence_length=limit, epochs=epochs, batch_size=BATCH_SIZES[kind], seed=player.seed)
    recipe = Recipe(str(folder / f"{kind}-train.parquet"), **fields)
    made = prepare(recipe)
    tokens = next(iter(made.validation_batches))[0]
    callbacks = build_callbacks(recipe, made.backbone, tokens, None)[:-1]

    def fit(counter):
        made.model.fit(made.batches_from(0), callbacks=[*callbacks, counter], verbose=0, shuffle=False)

    return made.model, made.preprocessor, fit


def race(folder, kind, limit, player):
    """The default recipe for one epoch, until it is good enough."""
    _race(folder, kind, player, *_default_recipe(folder, kind, limit, player, epochs=1))


def _race(folder, kind, player, model, preprocessor, fit):
    """Fits until the test rows are answered well enough, by a model of its own on the weights that are trained."""
    contest = Race(player, GOAL, LOOK_EVERY)
    with contest.pause():
        batches = data.tokenize(data.read(str(folder / f"{kind}-test.parquet")), preprocessor)
        batches = list(data.batch_by_length(batches, 64))
        asked = keras.Model(model.inputs, model.outputs)

    def answer():
        outputs = np.concatenate([asked.predict_on_batch(tokens) for tokens, _ in batches])
        return outputs[:, 0] >= 0.5 if outputs.shape[1] == 1 else outputs[:, 1] >= outputs[:, 0]

    contest.labels, contest.answer = np.concatenate([labels for _, labels in batches]), answer
    fit(EachStep(contest))
    contest.end()


def train_xla(folder, kind, limit, player):
    """A `fit` as in the README, compiled by XLA for each of the padded lengths, which is done before the first turn."""
    keep_freed_memory()
    tokens = data.tokenize(data.read(str(folder / f"{kind}-train.parquet")), load_preprocessor("minilm", limit))
    batches = data.batch_by_length(tokens, BATCH_SIZES[kind], shuffle_seed=0, drop_remainder=True)
    model = binary_classifier(load_backbone("minilm"))
    model.compile(
        LayerwiseAdamW(warmup_cosine(RATE, batches, 4), {"logit": 20.0}, global_clipnorm=1.0),
        "binary_crossentropy",
        metrics=["accuracy", LogitStatistics()],
        jit_compile=True,
    )
    one_of_each = {x["token_ids"].shape[1]: (x, y) for x, y in batches}
    for tokens, labels in one_of_each.values():
        model.train_on_batch(tokens, labels)
    model.fit(batches, epochs=4, callbacks=[EachStep(player)], verbose=0, shuffle=False)


def steps(folder, kind, limit, player):
    """One training step of the default recipe, for each length up to `limit` and each of some batch sizes."""
    made = prepare(Recipe(str(folder / f"{kind}-train.parquet"), sequence_length=limit))
    shapes = [(rows, length) for rows in STEP_ROWS for length in STEP_LENGTHS if rows * length <= MAX_STEP_TOKENS]
    shapes = [shape for shape in shapes if shape[1] <= limit]
    generator = np.random.default_rng(0)
    player.wait(shapes=len(shapes))
    for shape in shapes:
        tokens = {
            "token_ids": generator.integers(1000, 20000, shape),
            "segment_ids": np.zeros(shape, "int32"),
            "padding_mask": np.ones(shape, "int32"),
        }
        batch = ({name: value.astype("int32") for name, value in tokens.items()}, generator.integers(0, 2, shape[0]))
        # Without a known shape, as batches by length are.
        unknown = (dict.fromkeys(tokens, tf.TensorSpec((None, None), "int32")), tf.TensorSpec((None,), "int64"))
        timer = StepTimer()
        batches = tf.data.Dataset.from_generator(lambda batch=batch: iter([batch] * 4), output_signature=unknown)
        made.model.fit(batches, steps_per_epoch=4, callbacks=[timer], verbose=0, shuffle=False)
        player.wait(rows=shape[0], length=shape[1], step_seconds=timer.seconds[1:])


class StepTimer(keras.callbacks.Callback):
    """Notes the seconds of each step."""

    def on_train_begin(self, logs=None):
        self.seconds = []

    def on_train_batch_begin(self, batch, logs=None):
        self._started = time.perf_counter()

    def on_train_batch_end(self, batch, logs=None):
        self.seconds.append(time.perf_counter() - self._started)


def keras_hub(folder, kind, limit, player):
    """keras-hub's `BertTextClassifier.fit` on raw texts as its guide has it, with `limit` tokens (its own: 512)."""
    *_, fit = _classifier_of_keras_hub(folder, kind, limit, epochs=4)
    fit(EachStep(player))


def _classifier_of_keras_hub(folder, kind, limit, epochs):
    import keras_hub

    texts, labels = load_texts(folder, kind, "train")
    preprocessor = load_preprocessor("minilm", limit)
    model = keras_hub.models.BertTextClassifier(load_backbone("minilm"), num_classes=2, preprocessor=preprocessor)
    # Its default compile: Adam, sparse crossentropy from logits, `jit_compile` decided by Keras.
    model.compile(
        keras.optimizers.Adam(RATE), keras.losses.SparseCategoricalCrossentropy(from_logits=True), metrics=["accuracy"]
    )

    def fit(counter):
        model.fit(texts, labels, batch_size=BATCH_SIZES[kind], epochs=epochs, callbacks=[counter], verbose=0)

    return model, preprocessor, fit


def race_keras_hub(folder, kind, limit, player):
    """The same for one epoch, until it is good enough."""
    _race(folder, kind, player, *_classifier_of_keras_hub(folder, kind, limit, epochs=1))


def predict(folder, kind, limit, player):
    """`Run.predict`, as `bertbin-tf predict` calls it."""
    keep_freed_memory()  # as the command line does
    run = Run(Recipe("vader/movies"), binary_classifier(load_backbone("minilm")), load_preprocessor("minilm", limit))
    texts, _ = load_texts(folder, kind, "test")
    player.play(lambda count: run.predict(texts[:count]), 64)


def saved_model(folder, kind, limit, player):
    """The exported model, in batches of the pipeline's size, by length as a client would send them."""
    keep_freed_memory()
    servable = Servable(folder / f"saved_model-{limit}" / "1")

    def answer(texts):
        texts = sorted(texts, key=len)
        for start in range(0, len(texts), PREDICTED_ROWS):
            servable.answer(texts[start : start + PREDICTED_ROWS])

    texts, _ = load_texts(folder, kind, "test")
    player.play(lambda count: answer(texts[:count]), 64)


def peak(folder, kind, limit, player):
    """Square matrix products of 2,048, in float32: what the machine can do."""
    matrix = tf.random.normal((2048, 2048))
    product = tf.function(tf.matmul)
    player.play(lambda count: [product(matrix, matrix).numpy() for _ in range(count)], 1)


def main():
    what, folder, kind, limit, seed = sys.argv[1:]
    keras.utils.set_random_seed(int(seed))
    programs = (train, train_xla, steps, keras_hub, predict, saved_model, peak, race, race_keras_hub)
    {program.__name__: program for program in programs}[what](Path(folder), kind, int(limit), Player(int(seed)))


if __name__ == "__main__":
    main()
