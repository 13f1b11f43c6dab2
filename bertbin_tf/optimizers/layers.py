"""Which layers lie how deep, and the usual way to choose a rate for each."""

import os
import re
from collections.abc import Collection

import keras
import numpy as np
import tensorflow as tf

from bertbin_tf.optimizers.statistics import MIN_WEIGHT_RMS

BLOCK = re.compile(r"_layer_\d+$")


def distance_from_head(model: keras.Model) -> dict[str, int]:
    """Returns how many blocks lie between each layer that has trainable weights and the head.

    The transformer blocks are the layers made of others that are named `..._layer_<number>`, as in every keras-nlp
    encoder. What comes after
    the last block (pooler, head), or lies outside of the encoder inside the model, has distance 0, the last block 1,
    the first of `n` blocks `n`, and the embeddings before it `n + 1`. Layers are named as `LayerwiseAdamW` does it.

    Args:
        model: A model that contains a keras-nlp encoder, or the encoder itself.

    Raises:
        ValueError: If the model has no such blocks.
    """
    distances: dict[str, int] = {}
    for _, name, distance in _distances(model, _ids_inside(model)):
        distances[name] = min(distance, distances.get(name, distance))
    return distances


def head_layers(model: keras.Model) -> list[str]:
    """Returns the names of the trainable layers that pre-training did not fill.

    They belong to the model itself, not to the encoder inside it. In a model without an encoder inside, whose layers
    lie all on one level, they are those after the last transformer block. The pooler is one of them if its kernel is no
    larger than a new one, as in encoders that were pre-trained without it (all-MiniLM-L6-v2).

    Args:
        model: A model that contains a keras-nlp encoder.

    Raises:
        ValueError: If the model has no transformer blocks.
    """
    inside = _ids_inside(model)
    distances = list(_distances(model, inside))
    deeper = {name for _, name, distance in distances if distance}  # of an encoder whose weights are one layer
    found = [
        name
        for layer, name, distance in distances
        if distance == 0 and (_is_new(layer) if layer.name == "pooled_dense" else id(layer) not in inside)
    ]
    return [name for name in dict.fromkeys(found) if name not in deeper]


def layers_of(variables: list[keras.Variable | tf.Variable], mentioned: Collection[str] = ()) -> list[str]:
    """Returns the layer of each variable: the innermost part of its path that was mentioned, or the first own part."""
    if not variables:
        return []
    paths = [getattr(variable, "path", variable.name.split(":")[0]) for variable in variables]  # tf.Variable has none
    owners = [path.split("/")[:-1] or [path] for path in paths]
    # A `Sequential` or subclassed model puts its own name in front of all its layers.
    prefix = os.path.commonprefix(owners)
    if all(owner == prefix for owner in owners):
        shared = len(prefix) - 1
    else:  # its own weights are layers of their own
        shared = len(prefix)
        owners = [
            [*owner, variable.name] if owner == prefix else owner
            for owner, variable in zip(owners, variables, strict=True)
        ]
    named = [[part for part in owner if part in mentioned] for owner in owners]
    return [names[-1] if names else owner[shared] for names, owner in zip(named, owners, strict=True)]


def values_of_layers(
    variables: list[keras.Variable], layers: list[str], values: dict[str, float], default: float | None
) -> dict[str, float | None]:
    """Returns the value of each layer: its own, else that of the layer around it, else the default.

    Args:
        variables: Of all layers.
        layers: Strings, the layer of each variable, as `layers_of` returns them.
        values: Dict from layers' names to what is said of them.
        default: What holds where nothing is said.

    Raises:
        ValueError: If a layer lies in several, of which different things are said.
    """
    found: dict[str, dict[str, float | None]] = {}
    for layer, owner in zip(layers, layers_of(variables, values), strict=True):
        found.setdefault(layer, {})[owner] = values.get(owner, default)
    for layer, around in found.items():
        if len(set(around.values())) > 1:
            raise ValueError(
                f"'{layer}' is a part of several layers, for which different values were given: {around}. Give "
                f"'{layer}' a value of its own too."
            )
    return {layer: next(iter(around.values())) for layer, around in found.items()}


def check_multiplier(layer: str, value: float) -> float:
    """Returns a multiplier as a float.

    Raises:
        ValueError: If it is negative or not finite.
    """
    if not 0 <= value < float("inf"):
        raise ValueError(
            f"A multiplier must be a finite number >= 0, where 0 freezes the layer. Received: {layer}={value}"
        )
    return float(value)


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


def _is_new(pooler):
    kernel = keras.ops.convert_to_numpy(pooler.kernel)
    return float(np.sqrt(np.mean(np.square(kernel, dtype="float32")))) < 1.05 * MIN_WEIGHT_RMS


def _distances(model, inside):
    """Yields each layer that has trainable weights, the name that `LayerwiseAdamW` gives it, and its distance."""
    layers = list(_leaf_layers(model))
    found = [layer.name for layer in layers if _is_block(layer) and (not inside or id(layer) in inside)]
    blocks = {name: number for number, name in enumerate(dict.fromkeys(found))}
    if not blocks:
        raise ValueError(
            f"No transformer blocks, layers of layers named '..._layer_<number>', are in the model '{model.name}'. "
            f"Received the layers {', '.join(layer.name for layer in layers)}. Give `LayerwiseAdamW` the multipliers "
            "as a dict instead."
        )
    names = dict(zip(map(id, model.trainable_variables), layers_of(model.trainable_variables), strict=True))
    past_blocks = False
    for layer in layers:
        past_blocks = past_blocks or layer.name in blocks
        if layer.name in blocks:
            distance = len(blocks) - blocks[layer.name]
        else:
            distance = 0 if past_blocks or (inside and id(layer) not in inside) else len(blocks) + 1
        if layer.trainable_weights:
            yield layer, names[id(layer.trainable_weights[0])], distance


def _ids_inside(model):
    """Returns the `id` of each layer of the encoder inside a model, or nothing if there is none."""
    parts = [list(_leaf_layers(layer)) for layer in _layers_in(model) if _is_nested(layer)]
    encoders = [part for part in parts if any(map(_is_block, part))]
    return {id(layer) for encoder in encoders for layer in encoder}


def _leaf_layers(parent):
    for layer in _layers_in(parent):
        if _is_nested(layer):
            yield from _leaf_layers(layer)
        else:
            yield layer


def _layers_in(parent):
    """Returns the layers right inside of a model or of a layer."""
    is_model = isinstance(parent, keras.Model)
    return parent.layers if is_model else list(parent._flatten_layers(include_self=False, recursive=False))


def _is_nested(layer):
    """Whether a layer is a model, or wraps one that has transformer blocks."""
    if isinstance(layer, keras.Model):
        return True
    return not _is_block(layer) and any(map(_is_block, layer._flatten_layers(include_self=False)))


def _is_block(layer):
    # A dense layer may be named like one.
    return bool(BLOCK.search(layer.name)) and any(layer._flatten_layers(include_self=False))
