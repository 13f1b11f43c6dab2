"""How a model is trained, as far as a remedy may change it."""

import math
from typing import Any

import keras
import tensorflow as tf

from bertbin_tf.doctor.evidence import Evidence
from bertbin_tf.optimizers import LayerwiseAdamW

SHUFFLE_BUFFER = 100_000


class Regimen:
    """A copy of the user's optimizer, the compiled loss and the data, which remedies replace; and a record of it.

    What a remedy changes inside of the model's layers it changes there, and `undo` changes it back. Weights are left to
    `put_back`.

    Args:
        evidence: The model and its data, as measured.
        pretrained: An untouched encoder, from which weights are restored, or `None`. Defaults to `None`.
        epochs: Int >= 1, how long is to be trained. Defaults to `1`.

    Attributes:
        optimizer_class: Class of the optimizer.
        optimizer_config: Dict, its arguments.
        rates: Function from a float in [0, 1], the share of an epoch gone by, to the rate.
        peak: Float, the highest rate, if a remedy set it, or `None`.
        loss: A `keras.losses.Loss`, or `None` for the one that the model was compiled with.
        row_map: List of functions from `(x, y, sample_weight)` to the same.
        is_shuffled: Bool, whether rows are to be mixed.
        changes: List of strings: what was changed, a line each.
        structure: List of those of them that change the computation, and not only its rates and weights.
    """

    def __init__(self, evidence: Evidence, pretrained: keras.Model | None = None, epochs: int = 1):
        self.evidence, self.pretrained, self.epochs = evidence, pretrained, epochs
        self.model = evidence.patient.model
        optimizer = evidence.patient.optimizer
        self.optimizer_class, self.optimizer_config = type(optimizer), evidence.patient.optimizer_config
        self.rates, self.peak = evidence.steps.rate_at, None
        self.loss, self.row_map, self.is_shuffled = None, [], False
        # Of an optimizer that was built for other weights only those are stepped that it knows.
        self.bound = evidence.patient.bound_weights
        self.changes, self.structure, self._undo = [], [], []

    def set(self, layer: keras.layers.Layer, name: str, value: Any, shown: str | None = None) -> None:
        """Sets an attribute of a layer."""
        old = getattr(layer, name)
        self._undo.append((layer, name, old))
        setattr(layer, name, value)
        self.record(f"{layer.name}.{name} = {shown or repr(value)}, which was {_shown(old)}")

    def take_adamw(self) -> None:
        """Puts AdamW for the user's optimizer, clipped at 1 (Mosbach et al., 2021, section 6)."""
        self.optimizer_class, self.bound = keras.optimizers.AdamW, None
        steps = self.optimizer_config.get("gradient_accumulation_steps")
        self.optimizer_config = {"weight_decay": 0.01, "global_clipnorm": 1.0, "gradient_accumulation_steps": steps}
        self.changes.append("optimizer = AdamW(weight_decay=0.01, global_clipnorm=1.0)")

    def take_multipliers(self, multipliers: dict[str, float]) -> None:
        """Puts a rate for each layer for the user's one rate."""
        self.take_adamw()
        self.optimizer_class = LayerwiseAdamW
        self.optimizer_config = self.optimizer_config | {"multipliers": multipliers}
        shown = ", ".join(f"{layer!r}: {value:.2g}" for layer, value in multipliers.items())
        self.changes[-1] = f"optimizer = LayerwiseAdamW(multipliers={{{shown}}}, global_clipnorm=1.0)"

    def take_rate(self, rate: float) -> None:
        """Puts a rate with 10 % warm-up and cosine decay for the user's."""
        self.peak = rate
        self.rates = lambda share: rate * min(share / 0.1, 0.5 * (1 + math.cos(math.pi * max(0, share - 0.1) / 0.9)))
        self.changes.append(f"learning_rate = warmup_cosine({rate:.1e}, batches, epochs)")

    def take_loss(self, loss: keras.losses.Loss, shown: str) -> None:
        """Puts a loss for the user's."""
        self.loss = loss
        self.record(f"loss = {shown}")

    def record(self, change: str) -> None:
        """Notes a change of the computation."""
        self.changes.append(change)
        self.structure.append(change)

    def restore(self) -> bool:
        """Gives the encoder the pre-trained weights, if there are any to be had."""
        if self.pretrained is None:
            return False
        layers = {layer.name: layer for layer in self.evidence.patient.all_layers}
        restored = [layer for layer in self.pretrained.layers if layer.weights and layer.name in layers]
        for layer in restored:
            layers[layer.name].set_weights(layer.get_weights())
        return bool(restored)

    def undo(self) -> None:
        """Sets all attributes of layers back."""
        for layer, name, old in reversed(self._undo):
            setattr(layer, name, old)
        self._undo.clear()

    def build_optimizer(self, rate: Any, **changes) -> keras.optimizers.Optimizer:
        """Returns the optimizer, new, at a rate or schedule, and with changes of its other arguments."""
        return self.optimizer_class.from_config(self.optimizer_config | {"learning_rate": rate, "name": None} | changes)

    def compute_loss(self, x, y, outputs, sample_weight) -> tf.Tensor:
        """Returns the loss, penalties included."""
        if self.loss is None:
            return self.model.compute_loss(x, y, outputs, sample_weight)
        labels = tf.reshape(tf.cast(y, outputs.dtype), tf.shape(outputs)) if self._is_one_unit(outputs) else y
        loss = self.loss(labels, outputs, sample_weight=sample_weight)
        return tf.add_n([loss, *(tf.cast(penalty, loss.dtype) for penalty in self.model.losses)])

    def map_row(self, x, y, sample_weight) -> tuple:
        """Returns a batch as remedies want it."""
        for function in self.row_map:
            x, y, sample_weight = function(x, y, sample_weight)
        return x, y, sample_weight

    def map_data(self, source: Any) -> Any:
        """Returns data as remedies want them; the same object where they want nothing.

        Raises:
            ValueError: If something is to be changed and the data are no `tf.data.Dataset`.
        """
        if not self.row_map and not self.is_shuffled:
            return source
        if not isinstance(source, tf.data.Dataset):
            raise ValueError(
                f"only a tf.data.Dataset can be changed on its way to the model. Received: a {type(source).__name__}"
            )
        if self.row_map:
            source = source.map(lambda *batch: self.map_row(*keras.utils.unpack_x_y_sample_weight(batch))[: len(batch)])
        if self.is_shuffled:
            size = max(self.evidence.train.sizes)
            lengths = [tensor.shape[1:] for tensor in tf.nest.flatten(source.element_spec)]
            source = source.unbatch().shuffle(SHUFFLE_BUFFER, seed=0)
            is_fixed = all(shape.is_fully_defined() for shape in lengths)
            source = source.batch(size) if is_fixed else source.padded_batch(size)
        return source

    @staticmethod
    def _is_one_unit(outputs):
        return isinstance(outputs, tf.Tensor) and outputs.shape[-1] == 1


def _shown(value):
    return getattr(value, "__name__", None) or repr(value)
