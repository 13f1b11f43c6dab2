"""What the logits look like while training: level, spread, saturation."""

import math

import keras

# The number of significant bits of each dtype. Just below 1 its numbers lie 2**-bits apart, so the sigmoid rounds to
# exactly 1 once 1 - p is below 2**-(bits + 1): at a logit of 6.2, 8.3, 17.3 and 37.4.
SIGNIFICANT_BITS = {"bfloat16": 8, "float16": 11, "float32": 24, "float64": 53}

# What `LogitStatistics` adds up over the rows: weights, positive labels, logits, cross-entropies, saturated logits,
# squared deviations from the mean of the batch, and degrees of freedom of those.
SUMS = ("rows", "positives", "logits", "losses", "saturated", "squares", "freedom")
DEFAULT_NAME = "logit_statistics"


def saturation_logit(dtype: str) -> float:
    """Returns the logit from which the sigmoid is exactly 1 in a float dtype, such as 17.3 for `"float32"`.

    Raises:
        ValueError: If the dtype is not one of bfloat16, float16, float32 and float64.
    """
    if dtype not in SIGNIFICANT_BITS:
        raise ValueError(f"`dtype` must be one of {', '.join(SIGNIFICANT_BITS)}. Received: dtype='{dtype}'")
    return (SIGNIFICANT_BITS[dtype] + 1) * math.log(2)


def label_entropy(base_rate: float) -> float:
    """Returns the entropy of labels, in nats: the cross-entropy of answering their base rate to every text.

    A model whose loss stays there has learned nothing, and one that begins there was told nothing but the base rate.

    Args:
        base_rate: Float in [0, 1], the share of positive labels.

    Example:
    >>> round(label_entropy(0.5), 4)
    0.6931
    """
    return -sum(p * math.log(p) for p in (base_rate, 1 - base_rate) if p > 0)


@keras.saving.register_keras_serializable(package="bertbin_tf")
class LogitStatistics(keras.metrics.Metric):
    """Mean, spread and saturation of the logits of a binary classifier.

    A BERT that does not train has collapsed to one answer: the spread of its logits across texts goes to zero, often
    while loss and accuracy still look like slow learning. The spread is the standard deviation inside each batch,
    pooled over the batches, so that a level that drifts during the epoch does not pass for a spread.

    Adds three floats to `logs`: `logit_mean`, `logit_spread` (>= 0) and `logit_saturation`, the share in [0, 1] of
    rows whose absolute logit is so large that the sigmoid is exactly 0 or 1 in the dtype of the predictions. A name of
    its own comes in front of them, as in `spam_logit_mean`: of a model with two outputs each needs one.

    The sums behind them, which are never averaged, are in the variable `sums`, in the order of `metrics.SUMS`: the
    difference between two readings tells of the batches between them.

    Args:
        threshold: Float > 0, the absolute logit that counts as saturated; larger ones are counted as this. Defaults
            to `None`, the dtype's own: 6.2 in bfloat16, 8.3 in float16, 17.3 in float32.
        from_logits: Bool, whether predictions are logits and not probabilities. Defaults to `False`.
        name: String. Defaults to `"logit_statistics"`.
        dtype: As for every metric.

    Raises:
        ValueError: If `threshold` is not positive, or predictions are of more than one answer a row.

    Example:
    >>> metric = LogitStatistics()
    >>> metric.update_state([0, 1], [0.5, 1.0])
    >>> round(float(metric.result()["logit_saturation"]), 1)
    0.5
    """

    def __init__(self, threshold=None, from_logits=False, name=DEFAULT_NAME, dtype=None):
        super().__init__(name=name, dtype=dtype)
        if threshold is not None and not threshold > 0:
            raise ValueError(f"`threshold` must be greater than 0. Received: threshold={threshold}")
        self.threshold = threshold
        self.from_logits = from_logits
        # Sums only: they stay right when replicas add theirs up.
        self.sums = self.add_variable(shape=(len(SUMS),), initializer="zeros", name="sums")

    def update_state(self, y_true, y_pred, sample_weight=None):
        y_pred = keras.ops.convert_to_tensor(y_pred)
        if len(y_pred.shape) > 1 and y_pred.shape[-1] not in (1, None):
            raise ValueError(
                "`LogitStatistics` is of one answer a text, of shape `(n,)` or `(n, 1)`. Of a model with more, give a "
                f"metric that knows them. Received: y_pred of shape {tuple(y_pred.shape)}"
            )
        threshold = self.threshold or saturation_logit(keras.backend.standardize_dtype(y_pred.dtype))
        # Never narrower than the predictions: in float32 a float64 probability close to 1 would be 1.
        logits = keras.ops.cast(keras.ops.reshape(y_pred, (-1,)), keras.backend.result_type(y_pred.dtype, self.dtype))
        if not self.from_logits:
            logits = keras.ops.log(logits) - keras.ops.log1p(-logits)
        logits = keras.ops.cast(keras.ops.clip(logits, -threshold, threshold), self.dtype)
        weights = keras.ops.ones_like(logits)
        if sample_weight is not None:
            weights *= keras.ops.cast(keras.ops.reshape(sample_weight, (-1,)), self.dtype)
        positives = keras.ops.cast(keras.ops.reshape(y_true, (-1,)), self.dtype)
        is_saturated = keras.ops.cast(keras.ops.abs(logits) >= threshold, self.dtype)
        losses = keras.ops.softplus(logits) - positives * logits
        rows, positive, total, loss, saturated = (
            keras.ops.sum(weights * values) for values in (1.0, positives, logits, losses, is_saturated)
        )
        mean = keras.ops.divide_no_nan(total, rows)
        squares = keras.ops.sum(weights * keras.ops.square(logits - mean))
        # n - 1 where all weights are 1, and the same whatever their scale.
        freedom = rows - keras.ops.divide_no_nan(keras.ops.sum(keras.ops.square(weights)), rows)
        self.sums.assign_add(keras.ops.stack([rows, positive, total, loss, saturated, squares, freedom]))

    def result(self):
        rows, _, total, _, saturated, squares, freedom = keras.ops.unstack(self.sums, len(SUMS))
        prefix = "" if self.name == DEFAULT_NAME else f"{self.name}_"
        return {
            f"{prefix}logit_mean": keras.ops.divide_no_nan(total, rows),
            f"{prefix}logit_spread": keras.ops.sqrt(keras.ops.divide_no_nan(squares, freedom)),
            f"{prefix}logit_saturation": keras.ops.divide_no_nan(saturated, rows),
        }

    def get_config(self):
        return super().get_config() | {"threshold": self.threshold, "from_logits": self.from_logits}
