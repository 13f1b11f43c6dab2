"""Which layers lie how deep, and the usual way to choose a rate for each."""

import os
import re
from collections.abc import Collection

import keras
import numpy as np

from bertbin_tf.optimizers.statistics import MIN_WEIGHT_RMS


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
    layers, blocks = _layers_and_blocks(model)
    num_blocks = max(blocks.values()) + 1
    distances, past_blocks = {}, False
    for layer in layers:
        past_blocks = past_blocks or layer.name in blocks
        outside = 0 if past_blocks else num_blocks + 1
        if layer.trainable_weights:
            distances[layer.name] = num_blocks - blocks[layer.name] if layer.name in blocks else outside
    return distances


def head_layers(model: keras.Model) -> list[str]:
    """Returns the names of the trainable layers that pre-training did not fill.

    They come after the last transformer block and belong to the model itself, not to the encoder inside it. In a model
    without an encoder inside, whose layers lie all on one level, they are those after the pooler. The pooler is one of
    them if its kernel is no larger than a new one, as in encoders that were pre-trained without it (all-MiniLM-L6-v2).

    Args:
        model: A model that contains a keras-nlp encoder.

    Raises:
        ValueError: If the model has no transformer blocks.
    """
    layers, blocks = _layers_and_blocks(model)
    last_block = max(i for i, layer in enumerate(layers) if layer.name in blocks)
    encoders = [layer for layer in model.layers if isinstance(layer, keras.Model)]
    inside = {id(layer) for encoder in encoders for layer in _leaf_layers(encoder)}
    return [
        layer.name
        for layer in layers[last_block + 1 :]
        if layer.trainable_weights and (_is_new(layer) if layer.name == "pooled_dense" else id(layer) not in inside)
    ]


def layers_of(variables: list[keras.Variable], mentioned: Collection[str] = ()) -> list[str]:
    """Returns the layer of each variable: the innermost part of its path that was mentioned, or the first own part."""
    owners = [variable.path.split("/")[:-1] or [variable.path] for variable in variables]
    # A `Sequential` or subclassed model puts its own name in front of all its layers.
    shared = min(len(os.path.commonprefix(owners)), *(len(owner) - 1 for owner in owners))
    named = [[part for part in owner if part in mentioned] for owner in owners]
    return [names[-1] if names else owner[shared] for names, owner in zip(named, owners, strict=True)]


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


def _layers_and_blocks(model):
    layers = list(_leaf_layers(model))
    blocks = {layer.name: int(match[1]) for layer in layers if (match := re.search(r"_layer_(\d+)$", layer.name))}
    if not blocks:
        raise ValueError(
            f"No transformer blocks, layers named '..._layer_<number>', were found in the model '{model.name}'. "
            f"Received the layers {', '.join(layer.name for layer in layers)}. Give `LayerwiseAdamW` the multipliers "
            "as a dict instead."
        )
    return layers, blocks


def _leaf_layers(model):
    for layer in model.layers:
        if isinstance(layer, keras.Model):
            yield from _leaf_layers(layer)
        else:
            yield layer
