"""The model's `train_step` as it is, its own or Keras': when it steps, where to, and whether that is learning."""

import contextlib
import functools

import keras
import numpy as np
import tensorflow as tf

from bertbin_tf.doctor.answers import Answers
from bertbin_tf.doctor.batches import Batches
from bertbin_tf.doctor.patient import Patient
from bertbin_tf.doctor.put_back import put_back, with_optimizers

MOST_ACCUMULATED = 64  # batches for one step
ANY_RATE = 1e-3  # at which a weight moves, or does not
# Karpathy, 2019, "A Recipe for Training Neural Networks", section 2: overfit one batch before anything else.
NUM_BY_HEART, ROWS_BY_HEART = 10, 16
# Of the gradient with the weights; without a penalty two vectors of millions of numbers have a cosine near 0.
MAX_PULL = 0.5


class TrainStep:
    """Steps of the model on the first batch, after which all is put back.

    Args:
        patient: The model.
        data: Batches.
    """

    def __init__(self, patient: Patient, data: Batches):
        self._patient, self._data = patient, data

    @functools.cached_property
    def num_accumulated(self) -> int:
        """After how many batches, with the optimizer's own accumulation left out, a weight changes first.

        They are compiled as `fit` does it. 0 if none does within an epoch, of at most 64 batches: of more nobody adds
        up gradients for one step.
        """
        model = self._patient.model
        few_rows = tf.data.Dataset.from_tensor_slices(self._first(None)).batch(4).repeat()
        before = [np.array(variable) for variable in model.trainable_variables]

        def has_moved():
            return not all(map(np.array_equal, before, map(np.array, model.trainable_variables)))

        with self._at_rate(ANY_RATE):
            model.train_step(next(iter(few_rows)))  # of which most need not be compiled
            if has_moved():
                return 1
        with self._at_rate(ANY_RATE):
            model.make_train_function(force=True)
            batches, num_steps = iter(few_rows), self.num_tried
            for step in range(1, num_steps + 1):
                model.train_function(batches)
                if (model.optimizer.iterations.numpy() or step == num_steps) and has_moved():
                    return step
        return 0

    @property
    def num_tried(self) -> int:
        """The batches after which `num_accumulated` gives up."""
        return min(self._data.num_batches or MOST_ACCUMULATED, MOST_ACCUMULATED)

    def taken_off(self, variables: list[keras.Variable], batch: tuple) -> list[np.ndarray]:
        """Returns what a step of plain gradient descent at a rate of 1 takes off variables of the model.

        Args:
            variables: Those wanted.
            batch: `(x, y)` or `(x, y, sample_weight)`.
        """
        model = self._patient.model
        before = [np.array(variable) for variable in variables]
        with put_back(model), with_optimizers(model, lambda optimizer: keras.optimizers.SGD(1.0)):
            model.train_step(batch)
            return [old - np.array(variable) for old, variable in zip(before, variables, strict=True)]

    @functools.cached_property
    def pull_to_zero(self) -> float:
        """The cosine of `taken_off` with the weights: 1 where a penalty on them is all that a step follows."""
        variables = self._patient.model.trainable_variables
        taken = self.taken_off(variables, self._first(None))
        pairs = [(old.ravel(), np.asarray(weight).ravel()) for old, weight in zip(taken, variables, strict=True)]
        sizes = [np.sqrt(sum(float(member @ member) for member in members)) for members in zip(*pairs, strict=True)]
        return sum(float(old @ weight) for old, weight in pairs) / max(float(np.prod(sizes)), 1e-30)

    def pace(self, rate: float) -> float:
        """Returns how far, in logits a step, ten steps on the same few rows move the answers to them.

        The first five are not counted: a head that begins at zero and running means need them.

        Args:
            rate: Float, the learning rate.
        """
        batch = self._first(ROWS_BY_HEART)
        logits = []
        with self._at_rate(rate):
            for _ in range(2):
                for _ in range(NUM_BY_HEART // 2):
                    self._patient.model.train_step(batch)
                logits.append(Answers(self._patient, self._data).logits[:ROWS_BY_HEART])
        return float(np.abs(logits[1] - logits[0]).mean()) / (NUM_BY_HEART // 2)

    def _first(self, num_rows):
        """The first batch as `train_step` takes it, or its first rows."""
        parts = tuple(part for part in self._data.first if part is not None)
        return parts if num_rows is None else keras.tree.map_structure(lambda array: array[:num_rows], parts)

    @contextlib.contextmanager
    def _at_rate(self, rate):
        """Steps are those of a copy of the optimizer at this rate, and all is put back at the end."""
        model, own = self._patient.model, self._patient.model.optimizer

        def copy(optimizer):
            if optimizer is own:
                return fresh_optimizer(self._patient, rate)
            return type(optimizer).from_config(optimizer.get_config())

        with put_back(model), with_optimizers(model, copy):
            yield


def fresh_optimizer(patient: Patient, rate: float, **changes) -> keras.optimizers.Optimizer:
    """Returns a copy of the optimizer without state, decay and accumulation, which would hold a step back.

    Args:
        patient: The model.
        rate: Float, its learning rate.
        **changes: Other fields of its configuration.
    """
    own = {"learning_rate": rate, "weight_decay": 0.0, "gradient_accumulation_steps": None}
    return type(patient.optimizer).from_config(patient.optimizer_config | own | changes)
