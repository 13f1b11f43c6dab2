"""Backbone and preprocessor of a preset, read and written."""

import json
import os
import unicodedata
from pathlib import Path

import keras
import keras_nlp
import tensorflow as tf

from bertbin_tf import assets


def load_backbone(preset: str = "minilm", **kwargs) -> keras.Model:
    """Returns a keras-nlp backbone with its pre-trained weights.

    Args:
        preset: `"minilm"`, the embedded default, or whatever `keras_nlp.models.Backbone.from_preset` takes: a
            built-in name, `"hf://..."`, `"kaggle://..."`, or a local folder. Defaults to `"minilm"`.
        **kwargs: Passed to `from_preset`, such as `dtype="mixed_bfloat16"` or `dropout=0.0`.

    Raises:
        ValueError: If the preset does not exist or holds no text encoder.
    """
    # A folder that transformers wrote says only "bert"; Backbone.from_preset finds the class for it.
    return _from_preset(keras_nlp.models.Backbone, preset, **kwargs)


def load_preprocessor(preset: str = "minilm", sequence_length: int = 128):
    """Returns the preprocessor that belongs to a preset: strings to `token_ids`, `padding_mask` and `segment_ids`.

    Where an uncased vocabulary holds no accented letter, accents are stripped from the texts; keras-nlp leaves them on
    when it reads a folder that transformers wrote, and turns every accented word into `[UNK]`.

    Args:
        preset: As for `load_backbone`, or a folder that `save_preprocessor` wrote.
        sequence_length: Int, texts are cut to so many tokens. Defaults to `128`.

    Raises:
        ValueError: If the preset does not exist, holds no tokenizer, or `sequence_length` is not at least 3.
    """
    if sequence_length < 3:
        raise ValueError(
            "`sequence_length` must be at least 3: a start token, one token of text and an end token. "
            f"Received: sequence_length={sequence_length}"
        )
    tokenizer = _from_preset(keras_nlp.tokenizers.Tokenizer, preset)
    if getattr(tokenizer, "lowercase", False) and not any(map(_has_accent, tokenizer.get_vocabulary())):
        tokenizer = _from_preset(keras_nlp.tokenizers.Tokenizer, preset, strip_accents=True)
    for preprocessor in keras_nlp.models.TextClassifierPreprocessor.__subclasses__():
        if preprocessor.tokenizer_cls is type(tokenizer):
            return preprocessor(tokenizer, sequence_length=sequence_length)
    raise ValueError(
        f"keras-nlp has no text classifier preprocessor for a {type(tokenizer).__name__}. Received: preset='{preset}'. "
        "Choose the preset of an encoder: BERT, RoBERTa, DistilBERT, DeBERTa, ALBERT ..."
    )


def save_preprocessor(preprocessor, backbone: keras.Model, path: str | os.PathLike) -> None:
    """Writes a preprocessor, vocabulary included, into a folder that `load_preprocessor` takes as a preset.

    Args:
        preprocessor: As `load_preprocessor` returns it.
        backbone: The keras-nlp backbone that the preprocessor serves. Only its config is written: keras-nlp does not
            read a tokenizer without one.
        path: The folder; it is made if it does not exist.
    """
    path = Path(path)
    path.mkdir(parents=True, exist_ok=True)
    preprocessor.save_to_preset(str(path))
    (path / "config.json").write_text(json.dumps(keras.saving.serialize_keras_object(backbone)), encoding="utf-8")


def check_preprocessor(model: keras.Model, preprocessor) -> None:
    """Checks that a model takes everything that a preprocessor can return.

    Args:
        model: Functional `keras.Model` from a dict of tokens, a backbone or a classifier.
        preprocessor: A keras-nlp text classifier preprocessor.

    Raises:
        ValueError: If it lacks one of the model's inputs, or returns more tokens, or larger ids, than the model takes.
    """
    if not hasattr(preprocessor, "tokenizer") or not hasattr(preprocessor, "sequence_length"):
        raise ValueError(
            "`preprocessor` must be a keras-nlp text classifier preprocessor, as `load_preprocessor` returns it. "
            f"Received: a {type(preprocessor).__name__}."
        )
    tokens = preprocessor([""])
    if missing := sorted(set(model.input) - set(tokens)):
        raise ValueError(
            f"`preprocessor` does not return {', '.join(missing)}, which the model takes. Received: a "
            f"{type(preprocessor).__name__} that returns {', '.join(sorted(tokens))}. Use the one that the model was "
            "trained with."
        )
    # The longest text it can return, of the last word of its vocabulary: what is too large fails here, not in use.
    length, num_words = preprocessor.sequence_length, preprocessor.tokenizer.vocabulary_size()
    longest = {"token_ids": [[num_words - 1] * length], "padding_mask": [[1] * length], "segment_ids": [[0] * length]}
    try:
        model({name: tf.constant(longest[name]) for name in model.input}, training=False)
    except (tf.errors.InvalidArgumentError, ValueError) as error:
        raise ValueError(
            f"`preprocessor` does not fit the model, which cannot take {length} tokens (`sequence_length`) of a "
            f"vocabulary of {num_words}. Lower `sequence_length`, or use the preprocessor that the model was trained "
            f"with. TensorFlow said: {str(error).splitlines()[0]}"
        ) from error


def _has_accent(token):
    return any(unicodedata.combining(mark) for letter in token for mark in unicodedata.normalize("NFD", letter)[1:])


def _from_preset(cls, preset, **kwargs):
    source = str(assets.fetch(preset)) if preset == "minilm" else preset
    try:
        return cls.from_preset(source, **kwargs)
    except (ValueError, OSError, ImportError) as error:
        raise ValueError(
            f"Could not load the preset '{preset}' as a {cls.__name__}. Use 'minilm' (built in, no network), a local "
            f"folder, or a keras-nlp preset where its hub can be reached. keras-nlp said: {error}"
        ) from error
