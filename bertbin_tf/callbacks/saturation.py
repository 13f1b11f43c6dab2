"""Which units are saturated, and whether different texts still look different."""

import keras


class SaturationMonitor(keras.callbacks.Callback):
    """Logs the share of saturated units, and the spread across texts, in each watched layer, after every epoch.

    A `tanh` unit near -1 or 1 passes almost no gradient; a pooler full of them stops learning while the loss
    still looks healthy. Adds `"saturation/<layer>"`, a float in [0, 1], to `logs`: `History` records it, and
    callbacks listed after this one see it as they see any metric.

    What really announces a BERT that does not train is that all texts come to look the same. `"spread/<layer>"` is the
    standard deviation of a unit across the texts, root mean square over units, divided by what it was before training:
    1 at first, near 0 after a collapse.

    Args:
        batch: Dict of int arrays of shape `(batch, length)`, as the model takes them; run once per epoch.
        layers: Names of layers, at the top or inside the backbone, of functional models. Defaults to
            `("pooled_dense",)`.
        threshold: Float in (0, 1); a unit is saturated where `abs(output) > threshold`. Defaults to `0.99`.

    Raises:
        ValueError: If `batch` is no dict, `threshold` is out of range or, when training starts, a layer does not exist
            or is not fed by the inputs of the model or of the backbone.

    Example:
    >>> tokens, labels = next(iter(batches))
    >>> history = model.fit(batches, callbacks=[SaturationMonitor(tokens)], verbose=0)
    >>> history.history["saturation/pooled_dense"]  # one value per epoch
    [0.0]
    >>> [round(spread) for spread in history.history["spread/pooled_dense"]]
    [1]
    """

    def __init__(self, batch, layers=("pooled_dense",), threshold=0.99):
        super().__init__()
        if not 0 < threshold < 1:
            raise ValueError(f"`threshold` must be between 0 and 1, both excluded. Received: threshold={threshold}")
        if not isinstance(batch, dict):
            raise ValueError(f"`batch` must be a dict of tokens, without labels. Received: a {type(batch).__name__}")
        self.batch = batch
        self.layers = (layers,) if isinstance(layers, str) else tuple(layers)
        self.threshold = threshold

    def on_train_begin(self, logs=None):
        found = dict(_named_layers(self.model))
        for layer in self.layers:
            if layer not in found:
                raise ValueError(f"Unknown layer '{layer}'. The model has the layers {', '.join(found)}.")
        # One model per layer: a layer's input may belong to a nested backbone, which is run on the same batch.
        self._activations = {layer: _model_to(layer, found) for layer in self.layers}
        self._first_spread = {layer: self._measure(layer)[1] for layer in self.layers}

    def on_epoch_end(self, epoch, logs=None):
        for layer in self.layers:
            saturation, spread = self._measure(layer)
            logs[f"saturation/{layer}"] = saturation
            logs[f"spread/{layer}"] = spread / max(self._first_spread[layer], keras.config.epsilon())

    def _measure(self, layer):
        model = self._activations[layer]
        batch = {name: self.batch[name] for name in model.input}  # what else there is Keras would take for one of them
        output = keras.ops.cast(model(batch, training=False), "float32")
        is_saturated = keras.ops.cast(keras.ops.abs(output) > self.threshold, "float32")
        spread = keras.ops.sqrt(keras.ops.mean(keras.ops.var(output, axis=0)))
        return float(keras.ops.mean(is_saturated)), float(spread)


def _named_layers(model):
    """Yields `(name, (layer, model))` of every layer and the model that it is in, those of nested models included."""
    for layer in model.layers:
        if isinstance(layer, keras.Model):
            yield from _named_layers(layer)
        else:
            yield layer.name, (layer, model)


def _model_to(name, found):
    """Returns the model from the tokens to what a layer puts out."""
    layer, model = found[name]
    try:
        if isinstance(model.input, dict):
            return keras.Model(model.input, layer.output)
    except (ValueError, AttributeError):  # a subclassed model has no inputs that are known
        pass
    raise ValueError(
        f"The layer '{name}' cannot be watched: it must be a layer that the model's own inputs feed, or the "
        f"backbone's, a dict of tokens, in a functional model. Received: a layer of '{model.name}'."
    )
