"""The ways to train that `robustness.py` compares: from a name and a rate to a compiled model."""

import math

import keras
import tensorflow as tf

from bertbin_tf.callbacks import LayerwiseLearningRateController
from bertbin_tf.metrics import LogitStatistics
from bertbin_tf.models import binary_classifier
from bertbin_tf.optimizers import LayerwiseAdamW, layerwise_decay
from bertbin_tf.recipe import Recipe
from bertbin_tf.recipe.building import CLIP_NORM, build_model


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


class LDoG(keras.optimizers.Optimizer):
    """Distance over gradients for each variable, which knows no rate; the weights at the end are the average.

    Ivgi et al., 2023, arXiv 2302.12022: equation 1 by variable, first step 1e-6 * (1 + norm of the weights) as in the
    authors' code, and polynomial-decay averaging with gamma = 8.
    """

    def __init__(self, **kwargs):
        super().__init__(learning_rate=1.0, **kwargs)

    def build(self, variables):
        if self.built:
            return
        super().build(variables)
        self._starts = [self._copy(variable, "start") for variable in variables]
        self._averages = [self._copy(variable, "average") for variable in variables]
        self._distances = [self.add_variable((), name=f"distance_{i}") for i in range(len(variables))]
        self._squares = [self.add_variable((), name=f"squares_{i}") for i in range(len(variables))]

    def _copy(self, variable, name):
        copy = self.add_variable_from_reference(variable, name)
        copy.assign(variable)
        return copy

    def apply(self, grads, trainable_variables=None):
        super().apply([tf.convert_to_tensor(gradient) for gradient in grads], trainable_variables)

    def update_step(self, gradient, variable, learning_rate):
        index = self._get_variable_index(variable)
        start, distance, squares = self._starts[index], self._distances[index], self._squares[index]
        moved = tf.norm(tf.convert_to_tensor(variable) - start)
        first = 1e-6 * (1 + tf.norm(tf.convert_to_tensor(start)))
        self.assign(distance, tf.maximum(tf.maximum(distance.value, moved), first))
        self.assign_add(squares, tf.reduce_sum(tf.square(gradient)))
        self.assign_sub(variable, learning_rate * distance.value * tf.math.rsqrt(squares.value + 1e-8) * gradient)
        weight = 9.0 / (tf.cast(self.iterations, tf.float32) + 9.0)
        self.assign_add(self._averages[index], weight * (tf.convert_to_tensor(variable) - self._averages[index].value))

    def finalize_variable_values(self, var_list):
        for variable, average in zip(self._trainable_variables, self._averages, strict=True):
            variable.assign(average)


def strong(rate, num_steps, model):
    optimizer = keras.optimizers.AdamW(WarmupLinear(rate, num_steps), weight_decay=0.01, global_clipnorm=CLIP_NORM)
    optimizer.exclude_from_weight_decay(var_names=["bias", "gamma", "beta"])
    return optimizer


def strong_with_layer_decay(rate, num_steps, model):
    return LayerwiseAdamW(WarmupLinear(rate, num_steps), layerwise_decay(model, 0.9), global_clipnorm=CLIP_NORM)


def l_dog(rate, num_steps, model):
    optimizer = LDoG()
    optimizer.build(model.trainable_variables)  # where weights have values: `fit` builds before they do
    return optimizer


OPTIMIZERS = {
    "adam": lambda rate, num_steps, model: keras.optimizers.Adam(rate),
    "strong": strong,
    "strong_mean": strong,
    "strong_with_layer_decay": strong_with_layer_decay,
    "lamb": lambda rate, num_steps, model: keras.optimizers.Lamb(WarmupLinear(rate, num_steps)),
    "adafactor": lambda rate, num_steps, model: keras.optimizers.Adafactor(WarmupLinear(rate, num_steps)),
    "l_dog": l_dog,
}


def build(method, rate, backbone, base_rate, num_steps, seed, **fields):
    """Returns the compiled model and the callbacks of a method.

    All methods train the same model, a head on the pooled output, if not told otherwise: by the name of the method, or
    by `fields`, which are the recipe's, for "ours" alone.
    """
    if method == "ours":
        recipe = Recipe("vader/movies", learning_rate=rate, seed=seed, **{"pooling": "pooled"} | fields)
        return build_model(recipe, backbone, base_rate, num_steps), [LayerwiseLearningRateController()]
    pooling = "mean" if method == "strong_mean" else "pooled"
    model = binary_classifier(backbone, kernel_initializer="glorot_uniform", pooling=pooling)
    model.compile(OPTIMIZERS[method](rate, num_steps, model), "binary_crossentropy", metrics=[LogitStatistics()])
    return model, []
