"""A backbone under a sigmoid head that starts at the base rate."""

import warnings

import keras

from bertbin_tf import distribute
from bertbin_tf.initializers import LogOdds

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
    the loss is not what was thought. The kernel leaves zero with the first step whose rate is not 0, the encoder
    follows with the next.

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
            `"cls"` the first token's last hidden state, `"mean"` the mean over real tokens; the last two freeze the
            backbone's pooler, which nothing would train, and leave it frozen. Defaults to `"pooled"`.
        kernel_initializer: Initializer of the head's kernel. Keras' own default is `"glorot_uniform"`, which moves
            the first answers away from the base rate. Defaults to `"zeros"`.
        name: String. Defaults to `"binary_classifier"`.

    Returns:
        A `keras.Model` from the backbone's inputs, int tensors of shape `(batch, length)`, to a float32 tensor of
        shape `(batch, 1)` in [0, 1]. Its last two layers are `"logit"` and `"probability"`.

    Raises:
        ValueError: If `backbone` is no model or cannot be pooled so, or `base_rate` is not inside (0, 1).

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


def _pool(backbone, pooling):
    if pooling not in POOLINGS:
        raise ValueError(f"`pooling` must be one of {', '.join(POOLINGS)}. Received: pooling='{pooling}'")
    outputs = backbone.output if isinstance(backbone.output, dict) else {"sequence_output": backbone.output}
    poolers = [layer for layer in backbone.layers if layer.name == "pooled_dense"]
    if pooling == "pooled" and "pooled_output" in outputs:
        if backbone.trainable and not all(pooler.trainable for pooler in poolers):
            warnings.warn(
                "The pooler of this backbone is frozen, as `pooling='mean'` and `'cls'` leave it, and will not train. "
                "Unless that is wanted: `backbone.get_layer('pooled_dense').trainable = True`, or load it anew.",
                stacklevel=3,
            )
        return backbone(backbone.input)["pooled_output"]
    if "sequence_output" not in outputs:
        raise ValueError(
            f"pooling='{pooling}' needs a backbone with a 'sequence_output'. Received the outputs {', '.join(outputs)}."
        )
    sequence = backbone(backbone.input)
    sequence = sequence["sequence_output"] if isinstance(sequence, dict) else sequence
    for pooler in poolers:
        pooler.trainable = False  # nothing would train it, and Keras would warn of that
    if pooling == "mean":
        if not isinstance(backbone.input, dict) or "padding_mask" not in backbone.input:
            raise ValueError(
                "pooling='mean' needs a backbone with an input 'padding_mask', to leave the padding out. Received: "
                f"input={backbone.input}"
            )
        return keras.layers.GlobalAveragePooling1D(name="mean_pooling")(sequence, mask=backbone.input["padding_mask"])
    return sequence[:, 0, :]
