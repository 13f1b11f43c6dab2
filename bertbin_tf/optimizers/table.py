"""The layers of a model and their rates, as one looks at them."""

import dataclasses
import math
from typing import NamedTuple

import keras

from bertbin_tf.notebook import html_table
from bertbin_tf.optimizers.adamw import LayerwiseAdamW
from bertbin_tf.optimizers.layers import layers_of
from bertbin_tf.optimizers.schedules import unwrapped

HEADER = ("layer", "weights", "multiplier", "rate now", "last relative step")


class LayerRow(NamedTuple):
    """One layer of a `LayerTable`.

    Args:
        layer: String, its name.
        size: Int, the number of its weights.
        multiplier: Float, of the optimizer's rate; 0 is frozen.
        learning_rate: Float, the rate at this moment of the schedule, times the multiplier.
        relative_step: Float, the size of the step measured last relative to that of the weights, or `None` where
            nothing was measured.
    """

    layer: str
    size: int
    multiplier: float
    learning_rate: float
    relative_step: float | None


@dataclasses.dataclass(frozen=True)
class LayerTable:
    """Layers, in the order of the model: a table in a terminal, and in a notebook as the last line of a cell.

    Args:
        rows: Tuple of `LayerRow`.
    """

    rows: tuple[LayerRow, ...]

    def __str__(self):
        cells = [HEADER, *self._cells()]
        widths = [max(len(line[column]) for line in cells) for column in range(len(HEADER))]
        return "\n".join(
            "  ".join(
                cell.rjust(width) if column else cell.ljust(width)
                for column, (cell, width) in enumerate(zip(line, widths, strict=True))
            )
            for line in cells
        )

    def _repr_html_(self):
        return html_table(HEADER, self._cells())

    def _cells(self):
        return [
            (
                row.layer,
                f"{row.size:,}",
                f"{row.multiplier:.3g}",
                f"{row.learning_rate:.2e}",
                "" if row.relative_step is None else f"{row.relative_step:.1e}",
            )
            for row in self.rows
        ]


def layer_table(model: keras.Model) -> LayerTable:
    """Returns every layer that has weights, with its multiplier, its rate now and its last step.

    Args:
        model: A compiled `keras.Model`, before, while or after it is trained. Steps are measured with `LayerwiseAdamW`;
            with any other optimizer all trainable layers have its one rate. The optimizer is built if it is not.

    Raises:
        ValueError: If the model is not compiled, or has no weights yet.

    Example:
    >>> model.compile(LayerwiseAdamW(1e-4, {"logit": 20.0}), "binary_crossentropy")
    >>> [row.multiplier for row in layer_table(model).rows if row.layer == "logit"]
    [20.0]
    """
    optimizer = getattr(model, "optimizer", None)
    if optimizer is None:
        raise ValueError(f"`model` must be compiled, for the rates are the optimizer's. Received: {model!r}")
    if not model.weights:
        raise ValueError(
            f"The model '{model.name}' has no weights yet: call it on a batch first, or give it a `keras.Input`."
        )
    if not optimizer.built:
        optimizer.build(model.trainable_variables)
    optimizer = unwrapped(optimizer)
    measured = optimizer.statistics if isinstance(optimizer, LayerwiseAdamW) else {}
    if measured:
        multipliers = optimizer.multipliers
    else:
        multipliers = dict.fromkeys(layers_of(model.trainable_variables), 1.0)
    sizes = {}
    for variable, layer in zip(model.weights, layers_of(model.weights, multipliers), strict=True):
        sizes[layer] = sizes.get(layer, 0) + math.prod(variable.shape)
    rate = float(keras.ops.convert_to_numpy(optimizer.learning_rate))
    return LayerTable(
        tuple(
            LayerRow(
                layer,
                size,
                multipliers.get(layer, 0.0),
                rate * multipliers.get(layer, 0.0),
                measured[layer].relative_step if layer in measured and any(measured[layer][:3]) else None,
            )
            for layer, size in sizes.items()
        )
    )
