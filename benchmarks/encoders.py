"""Other real encoders than the whole of MiniLM, and MiniLM as transformers reads it."""

import json
import shutil
from pathlib import Path

import keras
import keras_nlp
import numpy as np
from safetensors.numpy import load_file, save_file

from bertbin_tf import assets
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


def save_for_transformers(model: keras.Model, folder: Path) -> None:
    """Writes the untrained encoder and a model's head as a text classifier of transformers, tokenizer included.

    Args:
        model: A `binary_classifier` of MiniLM whose encoder has not been trained.
        folder: The folder, which is made.
    """
    source = assets.fetch("minilm")
    folder.mkdir()
    for file in ("vocab.txt", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        if (source / file).is_file():
            shutil.copy(source / file, folder / file)
    config = json.loads((source / "config.json").read_text(encoding="utf-8"))
    # keras-nlp has the tanh GELU.
    config |= {"architectures": ["BertForSequenceClassification"], "num_labels": 1, "hidden_act": "gelu_pytorch_tanh"}
    config |= {"id2label": {"0": "positive"}, "label2id": {"positive": 0}}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    weights = load_file(next(source.glob("*.safetensors")))
    kernel, bias = model.get_layer("logit").get_weights()
    weights = {f"bert.{name}": value for name, value in weights.items() if "position_ids" not in name}
    weights |= {"classifier.weight": np.ascontiguousarray(kernel.T), "classifier.bias": bias}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
