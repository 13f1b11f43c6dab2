"""AdamW that steps every layer at its own rate, and the usual way to choose those rates."""

import os
import re

import keras
import tensorflow as tf


@keras.saving.register_keras_serializable(package="bertbin_tf")
class LayerwiseAdamW(keras.optimizers.AdamW):
    """AdamW with a learning-rate multiplier for every layer.

    A weight in layer `l` is stepped, and decayed, at the rate `learning_rate * multipliers[l]`. Lower layers of
    a pretrained encoder hold general features and want smaller rates than the new head. A multiplier of 0
    freezes a layer but keeps its moments current, so that unfreezing it does not begin with oversized steps.
    Multipliers are variables: they can change during `fit()`, and a checkpoint restores them.

    A layer is named by the first part of its weights' paths (`"transformer_layer_0"`, `"pooled_dense"`, `"logit"`)
    that is not common to all of them. Any other part of a path (`"self_attention_layer"`) can be given a multiplier
    too; the innermost one counts.

    Two things differ from the stock optimizer on purpose. Gradients of embeddings are made dense first, because Keras
    squares the rows of a repeated token one by one and steps up to `sqrt(count)` too far. Under `tf.distribute`
    gradients are clipped after they are summed over the replicas, so that many devices train as one does.

    Args:
        learning_rate: Float or `LearningRateSchedule`, the rate where the multiplier is 1. Defaults to `2e-5`.
        multipliers: Dict from layer name to float >= 0. Layers left out get 1. See `layerwise_decay`.
        weight_decay: Float >= 0. Biases and layer-norm weights are never decayed. Defaults to `0.01`.
        **kwargs: Passed to `keras.optimizers.AdamW`.

    Raises:
        ValueError: If a multiplier is negative or not finite or, once built, names a layer that does not exist.

    Example:
    >>> model.compile(LayerwiseAdamW(2e-5, layerwise_decay(model, 0.9)), "binary_crossentropy")
    >>> model.optimizer.build(model.trainable_variables)
    >>> model.optimizer.set_multiplier("token_embedding", 0.0)  # freeze

    Reference: [Howard & Ruder, 2018](https://arxiv.org/abs/1801.06146), section 3.2.
    """

    def __init__(self, learning_rate=2e-5, multipliers=None, *, weight_decay=0.01, **kwargs):
        super().__init__(learning_rate=learning_rate, weight_decay=weight_decay, **kwargs)
        self._initial_multipliers = {
            layer: self._check_multiplier(layer, value) for layer, value in (multipliers or {}).items()
        }
        # Here and not left to the user, because Keras does not save the exclusion.
        self.exclude_from_weight_decay(var_names=["bias", "gamma", "beta"])

    def build(self, variables):
        if self.built:
            return
        super().build(variables)
        layers = self._layers_of(variables)
        self._layers = tuple(dict.fromkeys(layers))
        self._layer_indices = tuple(self._layers.index(layer) for layer in layers)
        for layer in self._initial_multipliers:
            self._check_layer(layer)
        initial = [self._initial_multipliers.get(layer, 1.0) for layer in self._layers]
        self._multipliers = self.add_variable(
            shape=(len(initial),),
            # Not `assign`: `fit()` builds inside a scope that forgets assignments.
            initializer=lambda shape, dtype: keras.ops.convert_to_tensor(initial, dtype),
            name="multipliers",
            aggregation="only_first_replica",
        )

    @property
    def initial_multipliers(self) -> dict[str, float]:
        """The multipliers that the optimizer was made with; those of layers left out are 1 and not listed."""
        return dict(self._initial_multipliers)

    @property
    def multipliers(self) -> dict[str, float]:
        """Dict from every layer's name, in the order of the model, to the multiplier in force now."""
        self._check_built()
        return dict(zip(self._layers, keras.ops.convert_to_numpy(self._multipliers).tolist(), strict=True))

    def set_multiplier(self, layer: str, value: float) -> None:
        """Sets the multiplier of one layer, from the next step on; a running `fit()` is not retraced.

        Raises:
            ValueError: If the optimizer is not built, has no such layer, or `value` is negative or not finite.
        """
        self._check_built()
        self._check_layer(layer)
        multipliers = self.multipliers | {layer: self._check_multiplier(layer, value)}
        self._multipliers.assign(list(multipliers.values()))

    def apply(self, grads, trainable_variables=None):
        grads = [tf.convert_to_tensor(g) if isinstance(g, tf.IndexedSlices) else g for g in grads]
        super().apply(grads, trainable_variables)

    def update_step(self, gradient, variable, learning_rate):
        layer = self._layer_indices[self._get_variable_index(variable)]
        learning_rate = learning_rate * self._multipliers[layer]
        if self._use_weight_decay(variable):
            decay = keras.ops.cast(self.weight_decay * learning_rate, variable.dtype)
            self.assign_sub(variable, variable * decay)
        super().update_step(gradient, variable, learning_rate)

    def get_config(self):
        return super().get_config() | {"multipliers": self.initial_multipliers}

    def _apply_weight_decay(self, variables):
        """Does nothing: `update_step` decays, since only there the layer's own rate is known."""

    def _clip_gradients(self, grads):
        """Does nothing: each replica would clip its own part. See `_all_reduce_sum_gradients`."""
        return grads

    def _all_reduce_sum_gradients(self, grads_and_vars):
        grads, variables = zip(*super()._all_reduce_sum_gradients(grads_and_vars), strict=True)
        return list(zip(super()._clip_gradients(list(grads)), variables, strict=True))

    def _layers_of(self, variables):
        owners = [variable.path.split("/")[:-1] or [variable.path] for variable in variables]
        # A `Sequential` or subclassed model puts its own name in front of all its layers.
        shared = min(len(os.path.commonprefix(owners)), *(len(owner) - 1 for owner in owners))
        named = [[part for part in owner if part in self._initial_multipliers] for owner in owners]
        return [names[-1] if names else owner[shared] for names, owner in zip(named, owners, strict=True)]

    def _check_built(self):
        if not self.built:
            raise ValueError(
                f"`{self.name}` has no layers yet. Call `model.optimizer.build(model.trainable_variables)` after "
                "`compile()`, or give `multipliers` to the constructor."
            )

    def _check_layer(self, layer):
        if layer not in self._layers:
            raise ValueError(
                f"Unknown layer '{layer}'. This optimizer was built with the layers {', '.join(self._layers)}. Layers "
                "without trainable weights have no multiplier: freeze before you call `layerwise_decay`."
            )

    @staticmethod
    def _check_multiplier(layer, value):
        if not 0 <= value < float("inf"):
            raise ValueError(
                f"A multiplier must be a finite number >= 0, where 0 freezes the layer. Received: {layer}={value}"
            )
        return float(value)


def distance_from_head(model: keras.Model) -> dict[str, int]:
    """Returns how many blocks lie between each layer that has trainable weights and the head.

    The transformer blocks are the layers named `..._layer_<number>`, as in every keras-nlp encoder. What comes after
    the last block (pooler, head) has distance 0, the last block 1, the first of `n` blocks `n`, and the embeddings
    before it `n + 1`.

    Args:
        model: A model that contains a keras-nlp encoder, or the encoder itself.

    Raises:
        ValueError: If the model has no such blocks.
    """
    layers = list(_leaf_layers(model))
    blocks = {layer.name: int(match[1]) for layer in layers if (match := re.search(r"_layer_(\d+)$", layer.name))}
    if not blocks:
        raise ValueError(
            f"No transformer blocks, layers named '..._layer_<number>', were found in the model '{model.name}'. "
            f"Received the layers {', '.join(layer.name for layer in layers)}. Give `LayerwiseAdamW` the multipliers "
            "as a dict instead."
        )
    num_blocks = max(blocks.values()) + 1
    distances, past_blocks = {}, False
    for layer in layers:
        past_blocks = past_blocks or layer.name in blocks
        outside = 0 if past_blocks else num_blocks + 1
        if layer.trainable_weights:
            distances[layer.name] = num_blocks - blocks[layer.name] if layer.name in blocks else outside
    return distances


def layerwise_decay(model: keras.Model, rate: float = 0.9) -> dict[str, float]:
    """Returns multipliers that shrink by `rate` with every block from the head down to the embeddings.

    Args:
        model: A model that contains a keras-nlp encoder, or the encoder itself.
        rate: Float in (0, 1]. ELECTRA fine-tunes its small and base models with 0.8, its large one with 0.9; 1 means
            the same rate everywhere. Defaults to `0.9`.

    Returns:
        Dict from layer name to multiplier, as `LayerwiseAdamW` takes it: 1 for pooler and head, `rate` for the last
        block, and so on.

    Raises:
        ValueError: If `rate` is out of range or the model has no transformer blocks.

    Example:
    >>> layerwise_decay(backbone, 0.5)["transformer_layer_0"]  # the lower one of two blocks
    0.25

    Reference: [Clark et al., 2020](https://arxiv.org/abs/2003.10555), appendix B.
    """
    if not 0 < rate <= 1:
        raise ValueError(f"`rate` must be greater than 0 and at most 1. Received: rate={rate}")
    return {layer: rate**distance for layer, distance in distance_from_head(model).items()}


def _leaf_layers(model):
    for layer in model.layers:
        if isinstance(layer, keras.Model):
            yield from _leaf_layers(layer)
        else:
            yield layer
