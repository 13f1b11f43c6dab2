"""The bias at which an untrained classifier already predicts the base rate."""

import math

import keras


@keras.saving.register_keras_serializable(package="bertbin_tf")
class LogOdds(keras.initializers.Initializer):
    """Fills a tensor with `log(p / (1 - p))`, the logit of a probability.

    As the bias of a sigmoid unit it makes the first prediction equal to the base rate, so that the first loss is the
    entropy of the labels and the first steps are not spent on learning how rare the positives are. It is saved as
    the probability, not as the logit: a config that says 0.08 can be read.

    Args:
        probability: Float in (0, 1), the share of positive labels in the training data.

    Raises:
        ValueError: If `probability` is no number strictly between 0 and 1.

    Example:
    >>> head = keras.layers.Dense(1, "sigmoid", bias_initializer=LogOdds(0.08))

    Reference: [Lin et al., 2017](https://arxiv.org/abs/1708.02002), section 4.1, where pi is the probability.
    """

    def __init__(self, probability):
        if isinstance(probability, str) or not 0 < probability < 1:
            raise ValueError(
                f"`probability` must be between 0 and 1, both excluded. Received: probability={probability!r}. "
                "A base rate of 0 or 1 means that the training data has one class only."
            )
        self.probability = float(probability)

    def __call__(self, shape, dtype=None):
        return keras.ops.full(shape, math.log(self.probability / (1 - self.probability)), dtype=dtype)

    def get_config(self):
        return {"probability": self.probability}
