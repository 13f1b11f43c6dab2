"""AdamW that steps every layer at its own rate, bounds its relative step, and measures what it does."""

import functools
from numbers import Integral

import keras
import tensorflow as tf

from bertbin_tf.distribute import check_replicas
from bertbin_tf.optimizers import one_pass
from bertbin_tf.optimizers.layers import check_multiplier, layers_of, values_of_layers
from bertbin_tf.optimizers.schedules import schedule_of
from bertbin_tf.optimizers.statistics import MIN_WEIGHT_RMS, LayerStatistics


@keras.saving.register_keras_serializable(package="bertbin_tf")
class LayerwiseAdamW(keras.optimizers.AdamW):
    """AdamW with a learning-rate multiplier for every layer.

    A weight in layer `l` is stepped, and decayed, at the rate `learning_rate * multipliers[l]`. A multiplier of 0
    freezes a layer but keeps its moments current, so that unfreezing it does not begin with oversized steps.
    Multipliers are variables: they can change during `fit()`, and a checkpoint restores them.

    A layer is named by the first part of its weights' paths (`"transformer_layer_0"`, `"pooled_dense"`, `"logit"`)
    that is not common to all of them. Any other part of a path (`"self_attention_layer"`) can be given a multiplier
    too; the innermost one counts. What is said of a layer holds for its parts of which nothing is said.

    With `max_relative_step`, no step of a layer is larger than this share of its weights, from the very first one on
    and whatever rate was asked for: `rate <= max_relative_step * rms(weights) / max(1, rms(direction))`. The direction
    is Adam's, and never counted as smaller than 1, so that the bound holds for the few rows of an embedding that a
    batch touches, too. Weight decay comes on top, at the same rate.

    Three things differ from the stock optimizer on purpose. `epsilon` is not 1e-7, for where little of a text reaches
    the pooler gradients are smaller, and the encoder moves at no rate; below 1e-10 they are rounding errors. Gradients
    of embeddings are made dense first, because Keras squares the rows of a repeated token one by one and steps up to
    `sqrt(count)` too far. Under `tf.distribute` gradients are clipped after they are summed over the replicas.

    Args:
        learning_rate: Float or `LearningRateSchedule`, the rate where the multiplier is 1. Defaults to `2e-5`.
        multipliers: Dict from layer name to float >= 0. Layers left out get 1. See `layerwise_decay`.
        epsilon: Float > 0, what is added to the root of the mean squared gradient. Defaults to `1e-10`.
        weight_decay: Float >= 0. Biases and layer-norm weights are never decayed. Defaults to `0.01`.
        max_relative_step: Float > 0, the largest step relative to the weights, where weights of an RMS below 0.02
            count as 0.02; or a dict from layer name to such floats. Defaults to `None`: no bound, as for others.
        measure_every: Int >= 1, the steps from one measurement for `statistics` to the next. Defaults to `10`.
        **kwargs: Passed to `keras.optimizers.AdamW`.

    Raises:
        ValueError: If an argument is out of range or, once built, a layer is named that does not exist.

    Example:
    >>> model.compile(LayerwiseAdamW(2e-5, layerwise_decay(model, 0.9)), "binary_crossentropy")
    >>> model.optimizer.build(model.trainable_variables)
    >>> model.optimizer.set_multiplier("token_embedding", 0.0)  # freeze

    Reference: [Howard & Ruder, 2018](https://arxiv.org/abs/1801.06146), section 3.2, for rates by layer;
        [Shazeer & Stern, 2018](https://arxiv.org/abs/1804.04235), sections 6 and 8, for the bound;
        [Wortsman et al., 2023](https://arxiv.org/abs/2309.14322), section 3.4, for `epsilon`.
    """

    def __init__(
        self,
        learning_rate=2e-5,
        multipliers=None,
        *,
        epsilon=1e-10,
        weight_decay=0.01,
        max_relative_step=None,
        measure_every=10,
        **kwargs,
    ):
        super().__init__(learning_rate=learning_rate, epsilon=epsilon, weight_decay=weight_decay, **kwargs)
        if not epsilon > 0:
            raise ValueError(f"`epsilon` must be greater than 0. Received: epsilon={epsilon}")
        if not 0 <= (weight_decay or 0.0) < float("inf"):
            raise ValueError(f"`weight_decay` must be a finite number >= 0. Received: weight_decay={weight_decay}")
        if isinstance(measure_every, bool) or not isinstance(measure_every, Integral) or measure_every < 1:
            raise ValueError(f"`measure_every` must be an integer >= 1. Received: measure_every={measure_every!r}")
        bounds = max_relative_step.items() if isinstance(max_relative_step, dict) else [("all", max_relative_step)]
        for layer, bound in bounds:
            if bound is not None and not 0 < bound < float("inf"):
                raise ValueError(f"`max_relative_step` must be finite and greater than 0. Received: {layer}={bound}")
        self.max_relative_step = max_relative_step
        self.measure_every = int(measure_every)
        self._initial_multipliers = {
            layer: check_multiplier(layer, value) for layer, value in (multipliers or {}).items()
        }

    def build(self, variables):
        if self.built:
            return
        check_replicas(self, "gradient_accumulation_steps", "ema_overwrite_frequency")
        super().build(variables)
        bound = self.max_relative_step
        bounds, default_bound = (bound, None) if isinstance(bound, dict) else ({}, bound)
        mentioned = self._initial_multipliers | bounds
        layers = layers_of(variables, mentioned)
        self._layers = tuple(dict.fromkeys(layers))
        self._layer_indices = tuple(self._layers.index(layer) for layer in layers)
        for layer in mentioned:
            self._check_layer(layer)
        self._made_with = values_of_layers(variables, layers, self._initial_multipliers, 1.0)
        initial = list(self._made_with.values())
        self._bounds = list(values_of_layers(variables, layers, bounds, default_bound).values())
        self._multipliers = self.add_variable(
            shape=(len(initial),),
            dtype="float32",
            # Not `assign`: `fit()` builds inside a scope that forgets assignments.
            initializer=lambda shape, dtype: keras.ops.convert_to_tensor(initial, dtype),
            name="multipliers",
            aggregation="only_first_replica",
        )
        self._made_for = self.add_variable((), dtype="float32", name="made_for", aggregation="only_first_replica")
        # What the schedule counts beside `iterations`: see `keeping_schedule`.
        self._num_undone = self.add_variable((), dtype="int", name="num_undone", aggregation="only_first_replica")
        # Of each layer the norms of its gradient, weights and update, and its rate. One variable a layer, for no way to
        # assign one row works under every strategy and compiler.
        self._norms = [
            self.add_variable((4,), dtype="float32", name=f"norms_{layer}", aggregation="only_first_replica")
            for layer in self._layers
        ]
        self._sizes = [0] * len(self._layers)
        for variable, layer in zip(variables, self._layer_indices, strict=True):
            self._sizes[layer] += variable.shape.num_elements() if variable.shape else 1

    @property
    def initial_multipliers(self) -> dict[str, float]:
        """Dict from every layer's name, in the order of the model, to the multiplier that it began with."""
        self._check_built()
        return dict(self._made_with)

    @property
    def multipliers(self) -> dict[str, float]:
        """Dict from every layer's name, in the order of the model, to the multiplier in force now."""
        self._check_built()
        return dict(zip(self._layers, keras.ops.convert_to_numpy(self._multipliers).tolist(), strict=True))

    @property
    def statistics(self) -> dict[str, LayerStatistics]:
        """Dict from every layer's name to what was last measured of it; all norms are 0 before the first step.

        Steps 0, `measure_every`, 2 * `measure_every` ... are measured, inside the compiled step. With gradient
        accumulation a step is one that changes the weights.
        """
        self._check_built()
        norms = [keras.ops.convert_to_numpy(norms).tolist() for norms in self._norms]
        return {
            layer: LayerStatistics._make([*measured, size])
            for layer, measured, size in zip(self._layers, norms, self._sizes, strict=True)
        }

    def weight_rms(self) -> dict[str, float]:
        """Returns the root mean square of every layer's weights now, not below that of new ones, 0.02."""
        self._check_built()
        members = {layer: [] for layer in self._layers}
        for variable, layer in zip(self._trainable_variables, self._layer_indices, strict=True):
            members[self._layers[layer]].append(tf.convert_to_tensor(variable))
        return {
            layer: max(float(one_pass.norm(variables)) / size**0.5, MIN_WEIGHT_RMS)
            for (layer, variables), size in zip(members.items(), self._sizes, strict=True)
        }

    @property
    def made_for(self) -> float:
        """The highest rate that the multipliers were set for, if whoever set them said so; else 0."""
        self._check_built()
        return float(keras.ops.convert_to_numpy(self._made_for))

    def set_multiplier(self, layer: str, value: float) -> None:
        """Sets the multiplier of one layer, from the next step on; a running `fit()` is not retraced.

        Raises:
            ValueError: If the optimizer is not built, has no such layer, or `value` is negative or not finite.
        """
        self.set_multipliers({layer: value})

    def set_multipliers(self, multipliers: dict[str, float], made_for: float | None = None) -> None:
        """Sets the multipliers of several layers; as `set_multiplier`, all or none. See `made_for`."""
        checked = self.multipliers
        for layer, value in multipliers.items():
            self._check_layer(layer)
            checked[layer] = check_multiplier(layer, value)
        self._multipliers.assign(list(checked.values()))
        if made_for is not None:
            self._made_for.assign(made_for)

    def _get_current_learning_rate(self):
        if self.built and (schedule := schedule_of(self)) is not None:
            return schedule(self._iterations + self._num_undone)
        return super()._get_current_learning_rate()

    def apply(self, grads, trainable_variables=None):
        grads = [tf.convert_to_tensor(g) if isinstance(g, tf.IndexedSlices) else g for g in grads]
        super().apply(grads, trainable_variables)

    def get_config(self):
        return super().get_config() | {
            "multipliers": dict(self._initial_multipliers),
            "max_relative_step": self.max_relative_step,
            "measure_every": self.measure_every,
        }

    def _distributed_tf_update_step(self, distribution, grads_and_vars, learning_rate):
        """Steps layer by layer, where Keras goes variable by variable: a bound on a layer needs all of it at once."""
        layers = {}
        for gradient, variable in grads_and_vars:
            layers.setdefault(self._layer_indices[self._get_variable_index(variable)], []).append((gradient, variable))
        for layer, members in layers.items():
            grads, variables = zip(*members, strict=True)

            def step(_, grads, learning_rate, layer=layer, variables=variables):
                self._step_layer(layer, grads, variables, learning_rate)

            # The first variable stands for the devices that the layer is on.
            distribution.extended.update(variables[0], step, args=(grads, learning_rate), group=False)

    def _step_layer(self, layer, grads, variables, learning_rate):
        rate = tf.cast(learning_rate, tf.float32) * self._multipliers[layer]
        size, bound = self._sizes[layer], self._bounds[layer]
        before = [tf.convert_to_tensor(variable) for variable in variables]
        weight_norm = one_pass.norm(before)
        if bound is not None:
            limit = bound * tf.maximum(weight_norm / size**0.5, MIN_WEIGHT_RMS)
            rate = tf.minimum(rate, limit)
        self._take_steps(grads, variables, rate)
        updates = [old - tf.convert_to_tensor(variable) for old, variable in zip(before, variables, strict=True)]
        update_norm = one_pass.norm(updates)
        if bound is not None:
            # Exactly 1 where the bound does not bind: then nothing is taken back, and this is the stock step.
            kept = tf.minimum(1.0, limit / tf.maximum(update_norm / size**0.5, 1e-30))
            rate *= kept
            update_norm *= kept
            tf.cond(tf.not_equal(kept, 1.0), lambda: _take_back(updates, variables, kept), lambda: kept)
        for old, variable in zip(before, variables, strict=True):
            if self._use_weight_decay(variable):
                one_pass.subtract(variable, self.weight_decay * rate, old)
        norms = tf.cond(
            tf.equal(self.iterations % self.measure_every, 0),
            lambda: tf.stack([one_pass.norm(grads), weight_norm, update_norm, rate]),
            lambda: tf.convert_to_tensor(self._norms[layer]),
        )
        # Outside of the condition: within one `assign` fails under MirroredStrategy, raw operations do not.
        self.assign(self._norms[layer], norms)

    def _take_steps(self, grads, variables, rate):
        """Takes Adam's steps in one pass over weights and moments, where single operations would make ten and more."""
        scalars = functools.cache(
            lambda dtype: one_pass.adam_scalars(
                dtype, step=self.iterations + 1, rate=rate, betas=(self.beta_1, self.beta_2), epsilon=self.epsilon
            )
        )
        for gradient, variable in zip(grads, variables, strict=True):
            if self.amsgrad:  # XLA does not know its one pass
                super().update_step(gradient, variable, rate)
                continue
            index = self._get_variable_index(variable)
            moments = self._momentums[index], self._velocities[index]
            one_pass.adam(variable, moments, gradient, scalars(variable.dtype))

    def _use_weight_decay(self, variable):
        # Not by `exclude_from_weight_decay`, which searches whole paths, is not saved, and is the user's.
        name = variable.name.split("/")[-1].split(":")[0]
        return not name.endswith(("bias", "gamma", "beta")) and super()._use_weight_decay(variable)

    def _apply_weight_decay(self, variables):
        """Does nothing: `_step_layer` decays, since only there the layer's own rate is known."""

    def _clip_gradients(self, grads):
        """Does nothing: each replica would clip its own part. See `_all_reduce_sum_gradients`."""
        return grads

    def _all_reduce_sum_gradients(self, grads_and_vars):
        grads, variables = zip(*super()._all_reduce_sum_gradients(grads_and_vars), strict=True)
        if self.global_clipnorm and self.global_clipnorm > 0:
            grads = one_pass.clip_by_global_norm(grads, self.global_clipnorm)
        else:
            grads = super()._clip_gradients(list(grads))
        return list(zip(grads, variables, strict=True))

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


def _take_back(updates, variables, kept):
    for update, variable in zip(updates, variables, strict=True):
        one_pass.subtract(variable, kept - 1, update)
    return kept  # XLA refuses a condition whose branches return no tensor
