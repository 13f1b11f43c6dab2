"""What the answers looked like lately: the batches since one last looked."""

import math
from typing import NamedTuple

import keras
import numpy as np

from bertbin_tf.metrics import LogitStatistics, label_entropy


class Answers(NamedTuple):
    """A model's answers to some batches.

    Args:
        loss: Float, the plain cross-entropy, without class weights, smoothing or focusing.
        entropy: Float, of the labels: the loss of one constant answer, the best one.
        spread: Float, the standard deviation of the logits within a batch.
        saturation: Float in [0, 1], the share of saturated logits.
    """

    loss: float
    entropy: float
    spread: float
    saturation: float


class LogitWindow:
    """Reads a compiled model's `LogitStatistics` by difference: an epoch's running sums then tell of the last batches.

    Args:
        model: A compiled `keras.Model`; without a `LogitStatistics` among its metrics there is nothing to read.
    """

    def __init__(self, model: keras.Model):
        self._model = model
        self.before = 0.0  # the sums at the last reading

    def read(self) -> Answers | None:
        """Returns the answers since the last call, or `None` if there were none or nobody counts them."""
        # Not found before the first step, in which Keras builds the metrics that the model was compiled with.
        metrics = [metric for owner in self._model.metrics for metric in (owner, *getattr(owner, "metrics", ()))]
        metric = next((metric for metric in metrics if isinstance(metric, LogitStatistics)), None)
        if metric is None:
            return None
        sums = keras.ops.convert_to_numpy(metric.sums).astype("float64")
        # Keras begins anew with every epoch.
        is_continued = sums[0] > np.ravel(self.before)[0]
        window, self.before = sums - self.before if is_continued else sums, sums
        rows, positives, _, losses, saturated, squares, freedom = window
        if not rows > 0:
            return Answers(math.nan, math.nan, math.nan, math.nan) if math.isnan(rows) else None
        entropy = label_entropy(positives / rows)
        return Answers(losses / rows, entropy, math.sqrt(max(squares, 0) / max(freedom, 1)), saturated / rows)

    def reset(self) -> None:
        """Counts from 0 again, as the metric does after a reset."""
        self.before = 0.0
