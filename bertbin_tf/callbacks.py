"""Callbacks that watch saturation and set the rate of each layer while `fit()` runs."""

import keras

from bertbin_tf.optimizers import LayerwiseAdamW, distance_from_head


class SaturationMonitor(keras.callbacks.Callback):
    """Logs the share of saturated units in each watched layer, after every epoch.

    A `tanh` unit near -1 or 1 passes almost no gradient; a pooler full of them stops learning while the loss
    still looks healthy. Adds `"saturation/<layer>"`, a float in [0, 1], to `logs`: `History` records it, and
    callbacks listed after this one see it as they see any metric.

    Args:
        batch: Dict of int arrays of shape `(batch, length)`, as the model takes them; run once per epoch.
        layers: Names of layers, at the top or inside the backbone. Defaults to `("pooled_dense",)`.
        threshold: Float in (0, 1); a unit is saturated where `abs(output) > threshold`. Defaults to `0.99`.

    Raises:
        ValueError: If `threshold` is out of range or, when training starts, a layer does not exist.

    Example:
    >>> tokens, labels = next(iter(batches))
    >>> history = model.fit(batches, callbacks=[SaturationMonitor(tokens)], verbose=0)
    >>> history.history["saturation/pooled_dense"]  # one value per epoch
    [0.0]
    """

    def __init__(self, batch, layers=("pooled_dense",), threshold=0.99):
        super().__init__()
        if not 0 < threshold < 1:
            raise ValueError(f"`threshold` must be between 0 and 1, both excluded. Received: threshold={threshold}")
        self.batch = batch
        self.layers = tuple(layers)
        self.threshold = threshold

    def on_train_begin(self, logs=None):
        found = dict(_named_layers(self.model))
        for layer in self.layers:
            if layer not in found:
                raise ValueError(f"Unknown layer '{layer}'. The model has the layers {', '.join(found)}.")
        # One model per layer: a layer's input may belong to a nested backbone, which is run on the same batch.
        self._activations = {layer: keras.Model(*found[layer]) for layer in self.layers}

    def on_epoch_end(self, epoch, logs=None):
        for layer, activations in self._activations.items():
            output = keras.ops.abs(keras.ops.cast(activations(self.batch, training=False), "float32"))
            is_saturated = keras.ops.cast(output > self.threshold, "float32")
            logs[f"saturation/{layer}"] = float(keras.ops.mean(is_saturated))


class LayerwiseLearningRateScheduler(keras.callbacks.Callback):
    """Sets the learning-rate multipliers of a `LayerwiseAdamW` at the start of every epoch.

    What `keras.callbacks.LearningRateScheduler` is for one rate, for one rate per layer. Adds
    `"learning_rate/<layer>"`, the rate in force, to `logs` after every epoch.

    Args:
        schedule: Function of `epoch`, an int from 0 on, and `multipliers`, a dict from each layer's name to the
            multiplier that the optimizer was made with, which returns a dict of those to set. The rest stay.

    Raises:
        ValueError: When training starts, if the optimizer is not a `LayerwiseAdamW`; if the schedule names a layer
            that does not exist.

    Example:
    >>> def train_head_first(epoch, multipliers):
    ...     return multipliers if epoch else {layer: 0.0 for layer in multipliers if layer != "logit"}
    >>> scheduler = LayerwiseLearningRateScheduler(train_head_first)
    >>> history = model.fit(batches, epochs=3, callbacks=[scheduler], verbose=0)
    """

    def __init__(self, schedule):
        super().__init__()
        self.schedule = schedule

    def on_train_begin(self, logs=None):
        # Under `mixed_float16` Keras wraps the optimizer to scale the loss.
        self._optimizer = getattr(self.model.optimizer, "inner_optimizer", self.model.optimizer)
        if not isinstance(self._optimizer, LayerwiseAdamW):
            raise ValueError(
                "This callback sets the multipliers of a `LayerwiseAdamW`. Compile the model with one. "
                f"Received: optimizer={self._optimizer.name}"
            )
        # The first epoch's multipliers are needed before the first step, which is when Keras would build.
        with self.model.distribute_strategy.scope():
            self.model.optimizer.build(self.model.trainable_variables)

    def on_epoch_begin(self, epoch, logs=None):
        initial = dict.fromkeys(self._optimizer.multipliers, 1.0) | self._optimizer.initial_multipliers
        for layer, value in self.schedule(epoch, initial).items():
            self._optimizer.set_multiplier(layer, value)

    def on_epoch_end(self, epoch, logs=None):
        rate = float(keras.ops.convert_to_numpy(self._optimizer.learning_rate))
        for layer, multiplier in self._optimizer.multipliers.items():
            logs[f"learning_rate/{layer}"] = rate * multiplier


def gradual_unfreezing(model: keras.Model, *, epochs_per_block: int = 1) -> LayerwiseLearningRateScheduler:
    """Returns a callback that trains pooler and head first, then one more block from the top every epoch.

    Frozen layers have the multiplier 0: their moments stay current, so that a layer does not jump when its turn
    comes. Compute is saved by `trainable = False` before `compile()`, not by this.

    Args:
        model: A model that contains a keras-nlp encoder, compiled with `LayerwiseAdamW`.
        epochs_per_block: Int >= 1, the epochs before the next block is unfrozen. Defaults to `1`.

    Raises:
        ValueError: If `epochs_per_block` is below 1 or the model has no transformer blocks.

    Example:
    >>> history = model.fit(batches, epochs=4, callbacks=[gradual_unfreezing(model)], verbose=0)

    Reference: [Howard & Ruder, 2018](https://arxiv.org/abs/1801.06146), section 3.3.
    """
    if epochs_per_block < 1:
        raise ValueError(f"`epochs_per_block` must be at least 1. Received: epochs_per_block={epochs_per_block}")
    distances = distance_from_head(model)

    def schedule(epoch, multipliers):
        if unknown := sorted(set(multipliers) - set(distances)):
            raise ValueError(
                f"`gradual_unfreezing` needs the multipliers of whole layers. The optimizer has some for parts of "
                f"them: {', '.join(unknown)}."
            )
        unfrozen = epoch // epochs_per_block
        return {layer: value if distances[layer] <= unfrozen else 0.0 for layer, value in multipliers.items()}

    return LayerwiseLearningRateScheduler(schedule)


def _named_layers(model):
    """Yields `(name, (input, output))` of every layer, those of nested models included."""
    for layer in model.layers:
        if isinstance(layer, keras.Model):
            yield from _named_layers(layer)
        else:
            yield layer.name, (model.input, layer.output)
