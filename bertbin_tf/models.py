"""A keras-nlp backbone under a sigmoid head: tokens in, one probability out."""

import functools
import json
import os
import unicodedata
from pathlib import Path

import keras
import keras_nlp
import numpy as np
import tensorflow as tf
from sklearn.linear_model import LogisticRegression

from bertbin_tf import assets, distribute
from bertbin_tf.initializers import LogOdds

if keras.backend.backend() != "tensorflow":
    raise ImportError(
        f"bertbin_tf needs Keras on TensorFlow. Received the backend '{keras.backend.backend()}': set the environment "
        "variable KERAS_BACKEND=tensorflow, or import bertbin_tf before keras."
    )

POOLINGS = ("pooled", "cls", "mean")


def binary_classifier(
    backbone: keras.Model,
    *,
    base_rate: float = 0.5,
    hidden_dim: int | None = None,
    dropout: float = 0.1,
    pooling: str = "pooled",
    kernel_initializer="zeros",
    name: str = "binary_classifier",
) -> keras.Model:
    """Returns a functional model: backbone, pooling, dropout [, hidden layer], `Dense(1)`, sigmoid.

    The untrained model answers every text with the base rate, exactly: the bias of the head is `LogOdds(base_rate)`
    and its kernel is zero. So the first loss is the entropy of the labels, and anything else means that the data or
    the loss is not what was thought. The kernel leaves zero with the first step, the encoder follows with the second.

    Logit and sigmoid are float32 whatever the policy of the backbone, and the sigmoid is the last operation, where
    Keras' losses find its logit: the gradient at a wrong logit of 20 is 1, and not 0, in eager and compiled
    execution and under mixed precision.

    Args:
        backbone: A keras-nlp backbone, or any functional model with the same inputs that returns a tensor of shape
            `(batch, length, dim)` or a dict with `"sequence_output"` or `"pooled_output"`.
        base_rate: Float in (0, 1), the share of positive labels in the training data. See `data.base_rate`.
            Defaults to `0.5`.
        hidden_dim: Int, the width of a ReLU layer between the encoder and the head, or `None` for no such layer.
            Defaults to `None`.
        dropout: Float in [0, 1), the share of features dropped in front of each dense layer. Defaults to `0.1`.
        pooling: `"pooled"` takes the pooler's tanh output (the first token's where the backbone has no pooler),
            `"cls"` the first token's last hidden state, `"mean"` the mean over real tokens; the last two freeze a
            pooler, which nothing would train. Defaults to `"pooled"`.
        kernel_initializer: Initializer of the head's kernel. Keras' own default is `"glorot_uniform"`, which moves
            the first answers away from the base rate. Defaults to `"zeros"`.
        name: String. Defaults to `"binary_classifier"`.

    Returns:
        A `keras.Model` from the backbone's inputs, int tensors of shape `(batch, length)`, to a float32 tensor of
        shape `(batch, 1)` in [0, 1]. Its last two layers are `"logit"` and `"probability"`.

    Raises:
        ValueError: If `backbone` is no model, `pooling` is unknown or `base_rate` is not inside (0, 1).

    Example:
    >>> model = binary_classifier(load_backbone("minilm"), base_rate=0.3)
    >>> model.compile("adam", "binary_crossentropy")

    Reference: [Lin et al., 2017](https://arxiv.org/abs/1708.02002), section 3.3, for the bias;
        [Zhang et al., 2019](https://arxiv.org/abs/1901.09321), section 3, for the zero kernel of the last layer.
    """
    if not isinstance(backbone, keras.Model):
        raise ValueError(
            "`backbone` must be a `keras.Model`, as `load_backbone(preset)` returns it. "
            f"Received: backbone={backbone!r} (of type {type(backbone).__name__})"
        )
    features = _pool(backbone, pooling)
    features = keras.layers.Dropout(dropout, name="classifier_dropout")(features)
    if hidden_dim is not None:
        features = keras.layers.Dense(hidden_dim, activation="relu", name="hidden")(features)
        features = keras.layers.Dropout(dropout, name="hidden_dropout")(features)
    logit = keras.layers.Dense(
        1,
        kernel_initializer=kernel_initializer,
        bias_initializer=LogOdds(base_rate),
        dtype="float32",
        name="logit",
    )(features)
    probability = keras.layers.Activation("sigmoid", dtype="float32", name="probability")(logit)
    return distribute.model_class()(backbone.input, probability, name=name)


def fit_head(
    model: keras.Model,
    batches: tf.data.Dataset,
    *,
    num_rows: int = 1024,
    class_weight: dict[int, float] | None = None,
) -> None:
    """Fits the last dense layer to the features of the untouched model, by logistic regression.

    Fine-tuning then begins with a head that knows what the pre-trained features say, instead of pulling them about. It
    costs one forward pass over some rows, and the first loss is then below the entropy of the labels.

    Args:
        model: As `binary_classifier` returns it.
        batches: `tf.data.Dataset` of `(tokens, labels)`, shuffled; sample weights behind them are not used.
        num_rows: Int >= 2, the rows to fit to; as many batches are read as it takes. Defaults to `1024`.
        class_weight: Dict from label to weight, as for `fit`. Defaults to `None`.

    Raises:
        ValueError: If the labels of the rows read are not 0 and 1, both of them.

    Example:
    >>> fit_head(model, batches)

    Reference: [Kumar et al., 2022](https://arxiv.org/abs/2202.10054), section 4, LP-FT. scikit-learn's
        `LogisticRegression`, whose default penalty it is, with one constant in all.
    """
    logit = model.get_layer("logit")
    features, labels = _run_once(keras.Model(model.input, logit.input), batches, num_rows)
    if (found := np.unique(labels).tolist()) != [0, 1]:
        raise ValueError(
            f"The head is fitted to labels of 0 and 1. Those of the first {len(labels)} rows are {found}. "
            'Where one class is missing, shuffle, take more rows, or start at the base rate (head_init="base_rate").'
        )
    regression = LogisticRegression(class_weight=class_weight, max_iter=1000)
    regression.fit(features, labels)
    logit.set_weights([regression.coef_.T, regression.intercept_])


def cache_features(model: keras.Model, batches: tf.data.Dataset) -> tuple[keras.Model, np.ndarray, np.ndarray]:
    """Runs the encoder once over all rows, and returns what is left to train where it is frozen.

    A frozen encoder gives the same features in each epoch, and nearly all of the time goes there. The head that is
    returned consists of the model's own layers behind the encoder: when it is trained, so is the model. Unlike in `fit`
    of the whole model the encoder's own dropout is off.

    Args:
        model: As `binary_classifier` returns it. Whether its encoder is `trainable` does not matter here.
        batches: `tf.data.Dataset` of `(tokens, labels)`, one epoch, which must end; sample weights are not returned.

    Returns:
        Tuple of the head, a `keras.Model` from features to a probability, to be compiled; the features, a float32 array
        of shape `(rows, dim)`; and the labels, an array of shape `(rows,)`.

    Example:
    >>> head, features, labels = cache_features(model, batches)
    >>> head.compile("adam", "binary_crossentropy")
    >>> history = head.fit(features, labels, epochs=20, verbose=0)
    """
    features = model.get_layer("classifier_dropout").input
    head = keras.Model(features, model.output, name="head")
    return head, *_run_once(keras.Model(model.input, features), batches)


def _run_once(encoder, batches, num_rows=float("inf")):
    """Returns an encoder's features of so many rows, or some more, and their labels."""
    encode = tf.function(functools.partial(encoder, training=False), reduce_retracing=True)
    features, labels = [], []
    for tokens, batch_labels, *_ in batches:
        features.append(keras.ops.convert_to_numpy(encode(tokens)).astype("float32"))
        labels.extend(np.ravel(keras.ops.convert_to_numpy(batch_labels)))
        if len(labels) >= num_rows:
            break
    return np.concatenate(features), np.array(labels)


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


def _pool(backbone, pooling):
    if pooling not in POOLINGS:
        raise ValueError(f"`pooling` must be one of {', '.join(POOLINGS)}. Received: pooling='{pooling}'")
    outputs = backbone.output if isinstance(backbone.output, dict) else {"sequence_output": backbone.output}
    if pooling == "pooled" and "pooled_output" in outputs:
        return backbone(backbone.input)["pooled_output"]
    if "sequence_output" not in outputs:
        raise ValueError(
            f"pooling='{pooling}' needs a backbone with a 'sequence_output'. Received the outputs {', '.join(outputs)}."
        )
    sequence = backbone(backbone.input)
    sequence = sequence["sequence_output"] if isinstance(sequence, dict) else sequence
    for layer in backbone.layers:
        if layer.name == "pooled_dense":
            layer.trainable = False  # nothing would train it, and Keras would warn of that
    if pooling == "mean":
        return keras.layers.GlobalAveragePooling1D(name="mean_pooling")(sequence, mask=backbone.input["padding_mask"])
    return sequence[:, 0, :]


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
