"""What the encoder makes of the texts, computed once: to fit the head to, or where the encoder is frozen."""

import functools

import keras
import numpy as np
import tensorflow as tf
from sklearn.linear_model import LogisticRegression


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
