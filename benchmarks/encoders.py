"""Other real encoders than the whole of MiniLM."""

import keras
import keras_nlp

from bertbin_tf.models import load_backbone


def lower_layers(num_layers: int, dtype: str | None = None) -> keras.Model:
    """Returns MiniLM with its lower layers alone, and their pre-trained weights.

    Args:
        num_layers: Int, how many of the six.
        dtype: Of the computation. Defaults to `None`: as Keras is set.
    """
    whole = load_backbone("minilm", **({} if dtype is None else {"dtype": dtype}))
    if num_layers == whole.num_layers:
        return whole
    lower = keras_nlp.models.BertBackbone.from_config(whole.get_config() | {"num_layers": num_layers})
    for layer in lower.layers:
        layer.set_weights(whole.get_layer(layer.name).get_weights())
    return lower
