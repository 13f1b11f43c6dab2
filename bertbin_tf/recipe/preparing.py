"""From a recipe to all that `fit` needs."""

import dataclasses
import functools
import warnings
from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from bertbin_tf import data, distribute
from bertbin_tf.memory import keep_freed_memory
from bertbin_tf.models import check_preprocessor, load_backbone, load_preprocessor
from bertbin_tf.recipe.building import build_model
from bertbin_tf.recipe.fields import Recipe

VALIDATION_FRACTION = 0.1


@dataclasses.dataclass(frozen=True)
class Prepared:
    """All that `fit` needs.

    `batches` are one epoch, shuffled anew each time; `batches_from(epoch, num)` are those of all epochs from that one
    on without its first `num`, in an order that only the recipe decides.
    """

    devices: tf.distribute.Strategy
    train_data: tf.data.Dataset
    validation_data: tf.data.Dataset
    batches: tf.data.Dataset
    batches_from: Callable[..., tf.data.Dataset]
    validation_batches: tf.data.Dataset
    base_rate: float
    preprocessor: Any
    backbone: keras.Model
    model: keras.Model


def prepare(recipe: Recipe, strategy: str = "auto") -> Prepared:
    """Returns all that `fit` needs: data read and checked, model built and compiled.

    Args:
        recipe: A `Recipe`.
        strategy: String, see `distribute.strategy`. Defaults to `"auto"`.

    Raises:
        ValueError: If the data, the preset or the strategy cannot be used.
    """
    keep_freed_memory()
    tf.config.experimental.enable_op_determinism()
    # Two processes fold constants in different orders and then differ in the last bit.
    tf.config.optimizer.set_experimental_options({"constant_folding": False})
    devices = _devices(recipe, strategy)
    train_data, validation_data = _read(recipe)
    base_rate = data.base_rate(train_data)
    preprocessor = load_preprocessor(recipe.preset, recipe.sequence_length)
    # Not before: what is fetched and prepared the first time draws random numbers, and the second time it does not.
    keras.utils.set_random_seed(recipe.seed)
    with devices.scope():
        backbone = load_backbone(recipe.preset)
        # Before the data are tokenized, for the message names what is wrong, and TensorFlow's does not.
        check_preprocessor(backbone, preprocessor)
    # Replicas must share a batch equally, or their losses do not add up to that of one device.
    shapes = {"drop_remainder": devices.num_replicas_in_sync > 1}
    if _needs_static_shapes(devices):
        shapes = {"drop_remainder": True, "boundaries": [recipe.sequence_length]}
    tokens = data.tokenize(train_data, preprocessor)
    batch = functools.partial(data.batch_by_length, tokens, recipe.batch_size, shuffle_seed=recipe.seed, **shapes)

    @functools.cache  # each time it is made, lengths are grouped and graphs traced
    def batches_of(epochs):
        return batch(epochs=epochs)

    batches = batch()
    with devices.scope():
        model = build_model(recipe, backbone, base_rate, num_steps=len(batches) * recipe.epochs)
    validation_batches = _batch_for_validation(recipe, data.tokenize(validation_data, preprocessor), devices)
    return Prepared(
        devices=devices,
        train_data=train_data,
        validation_data=validation_data,
        batches=batches,
        batches_from=lambda epoch, num=0: batches_of(range(min(epoch, recipe.epochs - 1), recipe.epochs)).skip(num),
        validation_batches=validation_batches,
        base_rate=base_rate,
        preprocessor=preprocessor,
        backbone=backbone,
        model=model,
    )


def _devices(recipe, strategy):
    # Before anything else: a cluster or a TPU must be set up before TensorFlow has run its first operation.
    devices = distribute.strategy(strategy)
    if recipe.batch_size % devices.num_replicas_in_sync:
        raise ValueError(
            f"`batch_size` must be a multiple of the number of devices, {devices.num_replicas_in_sync}, which share "
            f"each batch equally. Received: batch_size={recipe.batch_size}"
        )
    return devices


def _needs_static_shapes(devices):
    # XLA on a TPU compiles for each shape, and before it has seen a batch.
    return isinstance(devices, tf.distribute.TPUStrategy)


def _batch_for_validation(recipe, tokens, devices):
    replicas = devices.num_replicas_in_sync
    rows = int(tokens.cardinality())
    batch_size = min(recipe.batch_size, max(rows - rows % replicas, 1))
    if _needs_static_shapes(devices):
        # The rows that do not fill a batch are left out here, and not where temperature and threshold are fitted.
        return data.batch_by_length(tokens, batch_size, boundaries=[recipe.sequence_length], drop_remainder=True)
    if replicas == 1:
        return data.batch_by_length(tokens, recipe.batch_size)
    # Keras averages the first batch over the replicas to learn its shape and fails on unequal parts. By length the
    # first one may be any leftover; in order it is full.
    return tokens.padded_batch(batch_size)


def _read(recipe):
    columns = dict(text=recipe.text, label=recipe.label, positive=recipe.positive, on_bad_rows=recipe.on_bad_rows)
    train_data = data.read(recipe.train_data, **columns)
    if recipe.validation_data is not None:
        validation_data = data.read(recipe.validation_data, **columns)
        texts, held_out = (set(data.collect(rows)[0]) for rows in (train_data, validation_data))
        if shared := len(texts & held_out):
            warnings.warn(
                f"{shared:,} of {len(held_out):,} validation texts are among the training texts, so that the "
                "validation says less of others.",
                stacklevel=2,
            )
        return train_data, validation_data
    try:
        return data.split(train_data, VALIDATION_FRACTION, seed=recipe.seed)
    except ValueError as error:
        raise ValueError(
            f"'{recipe.train_data}' is too small to hold out a tenth of its texts for validation: give more rows, or "
            f"`validation_data`. {error}"
        ) from error
