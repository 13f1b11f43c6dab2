"""The rate of each layer by a plan that is made before training."""

import keras

from bertbin_tf.distribute import check_replicas
from bertbin_tf.optimizers import LayerwiseAdamW, distance_from_head, unwrapped


def layerwise_optimizer(model: keras.Model) -> LayerwiseAdamW:
    """Returns the `LayerwiseAdamW` that a model was compiled with, built: a callback needs it before the first step.

    Raises:
        ValueError: If it was compiled with another optimizer, or as Keras cannot train it on several replicas, or has
            no weights yet.
    """
    optimizer = unwrapped(model.optimizer)
    if not isinstance(optimizer, LayerwiseAdamW):
        raise ValueError(
            "This callback sets the multipliers of a `LayerwiseAdamW`. Compile the model with one. "
            f"Received: optimizer={optimizer.name}"
        )
    if not model.built:  # Keras would build the optimizer on those weights that are there
        raise ValueError(
            f"The layers of '{model.name}' have no weights before the first batch, so that no rates can be set. Call "
            "the model on a batch before `fit`, or begin it with a `keras.Input`."
        )
    with model.distribute_strategy.scope():
        check_replicas(model, "jit_compile", "steps_per_execution")
        if not model.optimizer.built:  # `LossScaleOptimizer` would make its variables once more
            model.optimizer.build(model.trainable_variables)
    return optimizer


class LayerwiseLearningRateScheduler(keras.callbacks.Callback):
    """Sets the learning-rate multipliers of a `LayerwiseAdamW` at the start of every epoch.

    What `keras.callbacks.LearningRateScheduler` is for one rate, for one rate per layer. Adds
    `"learning_rate/<layer>"`, the rate before `max_relative_step` bounds a step, to `logs` after every epoch.

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
        self._optimizer = layerwise_optimizer(self.model)

    def on_epoch_begin(self, epoch, logs=None):
        multipliers = self.schedule(epoch, self._optimizer.initial_multipliers)
        if not isinstance(multipliers, dict):
            raise ValueError(
                "`schedule` must return a dict from layer to multiplier, which may be empty. "
                f"Received at epoch {epoch}: {multipliers!r}"
            )
        self._optimizer.set_multipliers(multipliers)

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
