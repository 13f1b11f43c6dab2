"""The model under examination: its parts."""

import contextlib
import functools
import inspect
import math
import re
from typing import Any

import keras
import numpy as np

from bertbin_tf.doctor.model_state import held_by
from bertbin_tf.optimizers import layers_of, schedule_of, unwrapped

# Half of the inputs is Srivastava et al.'s (2014) largest recommendation; BERT has 0.1.
MAX_DROPOUT = 0.5
MIN_PRETRAINED_WEIGHTS = 4_000_000  # BERT tiny has 4.4 million
OF_KERAS = ("keras", "keras_nlp", "keras_hub", "bertbin_tf")


class Patient:
    """A compiled model, and where its parts are.

    Args:
        model: A compiled `keras.Model`, of any kind. What cannot be found in it is `None` or empty.
    """

    def __init__(self, model: keras.Model):
        self.model = model

    @functools.cached_property
    def backbone(self) -> list[keras.layers.Layer]:
        """The layers of the text encoder: embeddings and transformer blocks; an empty list if there is none."""
        blocks = [
            layer for layer in self.all_layers if re.search(r"_layer_(\d+)$|[Tt]ransformer|[Ee]ncoder", layer.name)
        ]
        embeddings = [layer for layer in self.all_layers if "embedding" in layer.name and layer.weights]
        # A model is in it by its layers, and a dense layer of such a name, as "hidden_layer_1", is of a head.
        others = keras.Model, keras.layers.Dense
        return [*embeddings, *(layer for layer in blocks if layer.weights and not isinstance(layer, others))]

    @functools.cached_property
    def all_layers(self) -> list[keras.layers.Layer]:
        """All layers, those inside of others included, in the order of the model."""
        return list(self.model._flatten_layers(include_self=False))

    @functools.cached_property
    def backbone_weights(self) -> list[keras.Variable]:
        """The encoder's weights, each once."""
        return list({id(weight): weight for layer in self.backbone for weight in layer.weights}.values())

    @property
    def trains_adapters_only(self) -> bool:
        """Whether of the encoder's matrices nothing but `enable_lora`'s adapters is trained."""
        trained = [weight.name for weight in self.backbone_weights if weight.trainable and len(weight.shape) > 1]
        return bool(trained) and all("lora_" in name or name == "bias" for name in trained)

    @functools.cached_property
    def untracked(self) -> dict[str, keras.layers.Layer]:
        """By name of a `Lambda` layer, a layer that its function calls: its weights are none of the model's."""
        known, found = set(map(id, self.model.weights)), {}
        for layer in self.all_layers:
            if isinstance(layer, keras.layers.Lambda):
                with contextlib.suppress(TypeError):  # no function of Python's
                    used = inspect.getclosurevars(layer.function)
                    for value in (*used.nonlocals.values(), *used.globals.values()):
                        if isinstance(value, keras.layers.Layer) and {id(weight) for weight in value.weights} - known:
                            found[layer.name] = value
        return found

    @property
    def has_own_code(self) -> bool:
        """Whether the model, or a layer in it, is of a class that is not Keras', or a `Lambda`."""
        return any(
            isinstance(layer, keras.layers.Lambda) or type(layer).__module__.split(".")[0] not in OF_KERAS
            for layer in (self.model, *self.all_layers)
        )

    @property
    def has_own_step(self) -> bool:
        """Whether the model is trained by a `train_step` of its own."""
        return type(self.model).train_step is not keras.Model.train_step

    @functools.cached_property
    def has_real_size(self) -> bool:
        """Whether the encoder is so large that it is not meant to be trained from nothing."""
        return sum(math.prod(weight.shape) for weight in self.backbone_weights) >= MIN_PRETRAINED_WEIGHTS

    @functools.cached_property
    def fixed_length(self) -> int | None:
        """The tokens that a functional model takes, where its inputs say how many; else `None`."""
        shapes = [tensor.shape for tensor in getattr(self.model, "inputs", None) or []]
        return max((shape[1] for shape in shapes if len(shape) == 2 and (shape[1] or 0) > 1), default=None)

    @functools.cached_property
    def vocabulary_size(self) -> int | None:
        """The number of rows of the token embedding, or `None`."""
        return max((layer.input_dim for layer in self._layers_of(keras.layers.Embedding)), default=None)

    @functools.cached_property
    def hidden_dim(self) -> int:
        """The width of the embeddings, 0 if there are none."""
        return max((layer.output_dim for layer in self._layers_of(keras.layers.Embedding)), default=0)

    def _layers_of(self, kind):
        return [layer for layer in self.all_layers if isinstance(layer, kind)]

    @functools.cached_property
    def logit_layer(self) -> keras.layers.Layer | None:
        """The last dense layer, whose output becomes the answer."""
        dense = self._layers_of(keras.layers.Dense)
        return next((layer for layer in reversed(dense) if layer.built and layer.units in (1, 2)), None)

    @property
    def zero_layers(self) -> list[keras.layers.Dense]:
        """The dense layers whose kernel is all zeros."""
        return [layer for layer in self._layers_of(keras.layers.Dense) if layer.built and not np.any(layer.kernel)]

    @property
    def logit_name(self) -> str:
        """The name of `logit_layer` as `LayerwiseAdamW` has it."""
        return self.layer_of(self.logit_layer.kernel)

    @property
    def answers_logits(self) -> bool:
        """Whether the model ends with a dense layer that is linear."""
        layer = self.logit_layer
        return layer is not None and layer.activation is keras.activations.linear and not self.layers_behind_logits

    def draw_anew(self, seed: int) -> None:
        """Draws the weights of the last dense layer, and the state of dropout, from another seed."""
        for variable in self.model.non_trainable_variables:
            if variable.path.endswith("seed_generator_state"):
                variable.assign([seed] * variable.shape[0])
        layer = self.logit_layer
        if layer is None:
            return
        keras.utils.set_random_seed(seed)
        for weight, initializer in ((layer.kernel, layer.kernel_initializer), (layer.bias, layer.bias_initializer)):
            if weight is not None:
                weight.assign(initializer.clone()(weight.shape))

    @property
    def layers_behind_logits(self) -> list[keras.layers.Layer]:
        """The layers that come after `logit_layer`."""
        return [] if self.logit_layer is None else self.all_layers[self.all_layers.index(self.logit_layer) + 1 :]

    @property
    def strong_dropouts(self) -> list[keras.layers.Dropout]:
        """The layers that drop more than half of their inputs."""
        return [layer for layer in self._layers_of(keras.layers.Dropout) if layer.rate > MAX_DROPOUT]

    @property
    def is_float16(self) -> bool:
        """Whether some layer computes in float16."""
        return any(layer.compute_dtype == "float16" for layer in self.all_layers)

    @property
    def optimizer(self) -> keras.optimizers.Optimizer | None:
        """The optimizer that steps; under loss scaling, the one inside."""
        return unwrapped(self.model.optimizer)

    @property
    def optimizer_config(self) -> dict:
        """The arguments of `optimizer`, but for a schedule: one of the user's own may know no `get_config`."""
        optimizer = self.optimizer
        schedule = schedule_of(optimizer)
        if schedule is None:
            return optimizer.get_config()
        optimizer._learning_rate = 0.0
        try:
            return optimizer.get_config()
        finally:
            optimizer._learning_rate = schedule

    def fresh_optimizer(self, rate: float, **changes) -> keras.optimizers.Optimizer:
        """Returns a copy of the optimizer without state, decay and accumulation, which would hold a step back.

        Args:
            rate: Float, its learning rate.
            **changes: Other fields of its configuration.
        """
        own = {"learning_rate": rate, "weight_decay": 0.0, "gradient_accumulation_steps": None}
        return type(self.optimizer).from_config(self.optimizer_config | own | changes)

    @property
    def bound_weights(self) -> set[int] | None:
        """The `id` of each weight that the model's optimizers were built for; `None` before.

        A `train_step` of its own may have several optimizers, also in a list or a dict.
        """
        if not self.optimizer.built:
            return None
        built = [one for one in held_by(self.model) if isinstance(one, keras.optimizers.Optimizer) and one.built]
        return {id(weight) for one in built for weight in one._trainable_variables}

    @property
    def own_arguments(self) -> dict:
        """The arguments of an optimizer of Keras' that are not its defaults, but for the rate."""
        make: Any = type(self.optimizer)
        usual = make().get_config() | {"name": None, "learning_rate": None}
        own = self.optimizer_config | {"name": None, "learning_rate": None}
        return {name: value for name, value in own.items() if value != usual.get(name)}

    def layer_of(self, variable: keras.Variable) -> str:
        """The name of the layer that a weight belongs to, as `LayerwiseAdamW` names it."""
        return self._names[id(variable)]

    @functools.cached_property
    def _names(self):
        weights = self.model.weights
        return dict(zip(map(id, weights), layers_of(weights), strict=True))

    @property
    def preprocess(self):
        """Function from texts to tokens that the model's own `fit` applies, or `None`."""
        return getattr(self.model, "preprocessor", None)
