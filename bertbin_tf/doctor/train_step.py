"""The model's `train_step` as it is, its own or Keras': when it steps, where to, and whether that is learning."""

import contextlib
import functools

import keras
import numpy as np
import tensorflow as tf

from bertbin_tf.doctor.answers import Answers
from bertbin_tf.doctor.batches import Batches
from bertbin_tf.doctor.model_state import put_back, with_optimizers
from bertbin_tf.doctor.patient import Patient

MOST_ACCUMULATED = 64  # batches for one step
ANY_RATE = 1e-3  # at which a weight moves, or does not
# Karpathy, 2019, "A Recipe for Training Neural Networks", section 2: overfit one batch before anything else.
PACE_STEPS, PACE_ROWS, PACE_TOKENS = 10, 16, 1024
# Of gradient and weights, two vectors of that many numbers at least; without a penalty it is near 0.
MAX_COSINE, MIN_FOR_COSINE = 0.5, 100_000


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
        few_rows = tf.data.Dataset.from_tensor_slices(self.batch).batch(4).repeat()
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

    def sgd_update(self, variables: list[keras.Variable], batch: tuple) -> list[np.ndarray]:
        """Returns what a step of gradient descent at a rate of 1 takes off variables: `train_step`'s own gradient.

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
    def cosine_with_weights(self) -> float:
        """The cosine of the gradient with the weights: 1 where a step follows nothing but a penalty on them.

        Of matrices only, and 0 if they have fewer than 100,000 numbers: that of a few may be large by chance.
        """
        weights = [weight for weight in self._patient.model.trainable_variables if len(weight.shape) > 1]
        if sum(int(np.prod(weight.shape)) for weight in weights) < MIN_FOR_COSINE:
            return 0.0
        gradients = np.concatenate([some.ravel() for some in self.sgd_update(weights, self.batch)])
        values = np.concatenate([np.asarray(weight).ravel() for weight in weights])
        return float(gradients @ values / max(np.linalg.norm(gradients) * np.linalg.norm(values), 1e-30))

    @property
    def follows_penalty(self) -> bool:
        """Whether it is the model's own, and follows a penalty on the weights rather than the labels."""
        return self._patient.has_own_step and self.cosine_with_weights > MAX_COSINE

    def pace(self, rate: float) -> float:
        """Returns how far, in logits a step, ten steps on a few rows of one batch move the answers to them.

        The first five are not counted: a head that begins at zero and running means need them.

        Args:
            rate: Float, the learning rate.
        """
        num_rows = PACE_ROWS
        if self._data.token_batches:  # of long texts fewer, for the time that they take
            num_rows = min(num_rows, max(4, PACE_TOKENS // self._data.token_batches[0].shape[1]))
        batch = keras.tree.map_structure(lambda array: None if array is None else array[:num_rows], self.batch)
        calls_a_step = self.num_accumulated or 1 if self._patient.has_own_step else 1
        logits = []
        with self._at_rate(rate):
            for _ in range(2):
                for _ in range(PACE_STEPS // 2 * calls_a_step):
                    self._patient.model.train_step(batch)
                logits.append(Answers(self._patient, self._data).logits[:num_rows])
        return float(np.abs(logits[1] - logits[0]).mean()) / (PACE_STEPS // 2)

    @property
    def batch(self) -> tuple:
        """The first batch as `train_step` takes it: without what the user's data have not."""
        return tuple(part for part in self._data.first if part is not None)

    @contextlib.contextmanager
    def _at_rate(self, rate):
        """Steps are those of a copy of the optimizer at this rate, and all is put back at the end."""
        model, own = self._patient.model, self._patient.model.optimizer

        def copy(optimizer):
            if optimizer is own:
                return self._patient.fresh_optimizer(rate)
            return type(optimizer).from_config(optimizer.get_config())

        with put_back(model), with_optimizers(model, copy):
            yield
