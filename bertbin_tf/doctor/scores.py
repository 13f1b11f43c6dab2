"""What the user's metrics make of answers that are all right, and of answers that are all wrong."""

import functools
from typing import NamedTuple

import keras
import numpy as np
from keras.src.trainers.compile_utils import get_metric

from bertbin_tf.doctor.response import Response

# Logits on the right and on the wrong side of even odds: within 0.5, which a metric of probabilities takes for them ...
UNSURE = 0.3
# ... and, of a model that gives probabilities, 0.95 and 0.05, for a metric may have a threshold of its own.
SURE = 3.0
JUDGES = (
    keras.metrics.Accuracy,
    keras.metrics.BinaryAccuracy,
    keras.metrics.CategoricalAccuracy,
    keras.metrics.SparseCategoricalAccuracy,
    keras.metrics.AUC,
    keras.metrics.Precision,
    keras.metrics.Recall,
    keras.metrics.FBetaScore,
)


class Score(NamedTuple):
    """What a metric says.

    Args:
        right: Float, of answers that are all right.
        wrong: Float, of answers that are all wrong.
    """

    right: float
    wrong: float


class Scores:
    """The compiled metrics that tell right answers from wrong ones, asked one by one, each as a fresh copy.

    Args:
        model: The compiled model.
        response: What turns logits into the model's answers, and 0 and 1 into labels of the user's shape.
    """

    def __init__(self, model: keras.Model, response: Response):
        self._model, self._response = model, response

    @functools.cached_property
    def by_metric(self) -> dict[str, Score]:
        """`Score` by the name of the metric; empty of a model with several outputs, or without such metrics."""
        compiled = self._model._compile_metrics
        lists = [] if compiled is None else [compiled._user_metrics, compiled._user_weighted_metrics]
        given = [metric for metric in keras.tree.flatten(lists) if metric is not None]
        labels = np.arange(8) % 2
        answers = self._response.answers_to(np.where(labels, UNSURE, -UNSURE))
        if answers is None or not given:
            return {}
        if np.all((np.asarray(answers) >= 0) & (np.asarray(answers) <= 1)):
            answers = self._response.answers_to(np.where(labels, SURE, -SURE))
        y = self._response.labels_like(labels)
        metrics = [get_metric(metric, y, answers) for metric in given]
        swapped = self._response.labels_like(1 - labels)
        return {
            metric.name: Score(self._ask(metric, y, answers), self._ask(metric, swapped, answers))
            for metric in metrics
            if isinstance(metric, JUDGES)
        }

    @staticmethod
    def _ask(metric, y, answers):
        fresh = type(metric).from_config(metric.get_config())
        fresh.update_state(y, answers)
        return float(np.mean(keras.ops.convert_to_numpy(fresh.result())))
