"""What a training would take, before anything is spent."""

import time

import keras
import numpy as np

from bertbin_tf.metrics import label_entropy
from bertbin_tf.recipe.building import prior_of
from bertbin_tf.recipe.fields import Recipe
from bertbin_tf.recipe.preparing import prepare

NUM_TRIED = 4  # steps, of which the first compiles


def plan(recipe: Recipe, *, strategy: str = "auto") -> dict:
    """Returns what `train` would do and take, having done all but that: data read, model built, some steps timed.

    The memory is that of weights, gradients and Adam's two moments, which is exact, and of the activations that the
    backward pass needs, which is an estimate: `batch * length * dim * (34 + 5 * heads * length / dim)` bytes for each
    layer of a transformer in half precision, twice that in float32. What TensorFlow needs besides is not counted.

    The seconds are those of some steps on the first batches, by the tokens of all; start-up, validation and calibration
    come on top.

    Args:
        recipe: A `Recipe`.
        strategy: String, see `distribute.strategy`. Defaults to `"auto"`.

    Returns:
        Dict ready for JSON: `devices`, `replicas`, `batch_size` and that of a replica, rows, `base_rate`,
        `label_entropy`, steps, tokens, the share of `padding`, weights, memory in MB, `step_seconds`, `fit_seconds`.

    Raises:
        ValueError: As `train`.

    Reference: [Korthikanti et al., 2022](https://arxiv.org/abs/2205.05198), section 4.1, for the activations.
    """
    made = prepare(recipe, strategy)
    shapes, num_tokens = [], 0
    for tokens, _ in made.batches:
        shapes.append(tokens["token_ids"].shape.as_list())
        num_tokens += int(np.sum(tokens["padding_mask"]))
    replicas = made.devices.num_replicas_in_sync
    num_padded = sum(rows * length for rows, length in shapes)
    seconds_per_token = _time_steps(made)
    num_weights = made.model.count_params()
    num_trained = sum(int(np.prod(weight.shape)) for weight in made.model.trainable_weights)
    return {
        "devices": _devices(made),
        "replicas": replicas,
        "batch_size": recipe.batch_size,
        "batch_size_per_replica": recipe.batch_size // replicas,
        "train_rows": int(made.train_data.cardinality()),
        "validation_rows": int(made.validation_data.cardinality()),
        "base_rate": made.base_rate,
        "label_entropy": label_entropy(prior_of(recipe, made.base_rate)),
        "steps_per_epoch": len(made.batches),
        "steps": len(made.batches) * recipe.epochs,
        "tokens_per_epoch": num_tokens,
        "padding": 1 - num_tokens / num_padded,
        "weights": num_weights,
        "memory_mb": {
            "weights": num_weights * 4 / 1e6,
            "gradients": num_trained * 4 / 1e6,
            "moments": num_trained * 8 / 1e6,
            "activations": max(_activations(made.backbone, rows, length) for rows, length in shapes) / replicas / 1e6,
        },
        "step_seconds": seconds_per_token * num_padded / len(shapes),
        "fit_seconds": seconds_per_token * num_padded * recipe.epochs,
    }


def _devices(made):
    """Returns the names of the devices on which the weights are."""
    weight = made.model.weights[0].value
    return [copy.device.split("/device:")[-1] for copy in getattr(weight, "values", [weight])]


def _activations(backbone, rows, length):
    """Returns the bytes that the backward pass keeps in float32."""
    num_layers, dim, num_heads = (getattr(backbone, name, 0) for name in ("num_layers", "hidden_dim", "num_heads"))
    return 2 * num_layers * rows * length * (34 * dim + 5 * num_heads * length)


def _time_steps(made):
    timer = _Timer()
    num_steps = min(NUM_TRIED, max(len(made.batches), 2))  # the first one compiles: an only one comes twice
    batches = made.batches_from(0).take(min(num_steps, len(made.batches))).repeat().take(num_steps)
    sizes = [tokens["token_ids"].shape.num_elements() for tokens, _ in batches]
    made.model.fit(batches, steps_per_epoch=num_steps, shuffle=False, callbacks=[timer], verbose=0)
    return float(np.median(np.diff(timer.ends) / sizes[1:]))


class _Timer(keras.callbacks.Callback):
    def on_train_begin(self, logs=None):
        self.ends = []

    def on_train_batch_end(self, batch, logs=None):
        self.ends.append(time.perf_counter())
