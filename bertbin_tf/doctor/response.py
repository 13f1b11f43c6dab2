"""How answer, loss and gradient respond to a known logit: the test of everything behind the last dense layer."""

import functools
import math
from typing import NamedTuple

import keras
import numpy as np
import tensorflow as tf

from bertbin_tf.doctor.answers import Answers, flat
from bertbin_tf.doctor.batches import Batches
from bertbin_tf.doctor.patient import Patient
from bertbin_tf.doctor.train_step import TrainStep

# So large that a sigmoid is 0 or 1, medium, and none.
LOGITS = (-20.0, -3.0, 0.0, 3.0, 20.0)


class Reply(NamedTuple):
    """What followed from one logit.

    Args:
        answer: Float, the model's last output.
        loss: Float, the compiled loss.
        gradient: Float, d loss / d logit.
    """

    answer: float
    loss: float
    gradient: float


class Response:
    """Replies to known logits, and to labels that change places.

    Args:
        patient: The model.
        data: Batches; the first one's first rows are used.
        answers: What the model answers to them.
        train_step: What the model's `train_step` does with them.
    """

    def __init__(self, patient: Patient, data: Batches, answers: Answers, train_step: TrainStep):
        self._patient, self._data, self._answers, self._train_step = patient, data, answers, train_step

    @functools.cached_property
    def replies(self) -> dict[tuple[float, int], Reply] | None:
        """`Reply` by logit and label, or `None` if the model has no last dense layer.

        What is measured is the model's own tail and loss, whatever they are called. With binary cross-entropy the
        gradient is `p - y`.
        """
        if self._patient.logit_layer is None:
            return None
        answer = self._answer
        x, y, _ = self._first_rows(2)
        return {(z, label): self._reply(answer, x, y, z, label) for z in LOGITS for label in (0, 1)}

    def answers_to(self, logits: np.ndarray) -> tf.Tensor | None:
        """Returns the model's output for logits of the positive class; `None` if it has not one output.

        Args:
            logits: Float array of shape `(rows,)`, of at most as many rows as the first batch has.
        """
        layer = self._patient.logit_layer
        x = self._first_rows(len(logits))[0]
        if layer is None or len(keras.tree.flatten(x)[0]) < len(logits):
            return None
        columns = [np.zeros_like(logits)] * (layer.units - 1) + [logits]
        outputs = self._answer(x, tf.constant(np.stack(columns, axis=1), "float32"))
        return outputs if tf.is_tensor(outputs) else None

    def labels_like(self, labels: np.ndarray) -> tf.Tensor:
        """Returns labels 0 and 1, int array of shape `(rows,)`, in the shape and dtype of the user's."""
        return self._like(self._first_rows(len(labels))[1], labels)

    @property
    def answer_at_zero(self) -> float:
        """The model's last output at a logit of 0; NaN if it has no last dense layer."""
        return self.replies[0.0, 0].answer if self.replies else math.nan

    @property
    def is_deaf(self) -> bool:
        """Whether answer and loss are the same at all logits."""
        replies = list((self.replies or {}).values())
        return (
            bool(replies) and np.ptp([said.answer for said in replies]) < 1e-6 and not any(r.gradient for r in replies)
        )

    @functools.cached_property
    def takes_signs(self) -> bool:
        """Whether the labels are -1 and 1 and the loss, as a hinge, has its minimum of 0 where the answers say so."""
        if not self._data.are_signs or self._patient.logit_layer is None:
            return False
        x, y, _ = self._first_rows(2)

        def loss(logit, sign):
            labels = keras.tree.map_structure(lambda array: tf.fill(array.shape, tf.cast(sign, array.dtype)), y)
            outputs = self._answer(x, tf.fill([2, self._patient.logit_layer.units], float(logit)))
            return float(self._patient.model.compute_loss(x, labels, outputs, None))

        right, wrong = max(loss(-20, -1), loss(20, 1)), min(loss(-20, 1), loss(20, -1))
        return bool(min(loss(-20, -1), loss(20, 1)) > -1e-6 and right < 0.1 * wrong)

    @functools.cached_property
    def takes_logits(self) -> bool:
        """Whether the loss takes answers for logits: beyond 1 it falls on where that is right, else rises ever faster.

        A loss of probabilities cuts them off at 1, a squared error rises on both sides of the label, and a
        cross-entropy whose arguments changed places rises evenly.
        """
        y = self._data.first[1]
        num_rows = len(keras.tree.flatten(y)[0])
        at = {
            (answer, label): self._loss_at(np.full(num_rows, answer), self._like(y, np.full(num_rows, label)))
            for answer in (0.0, 1.0, 2.0)
            for label in (0, 1)
        }
        rises = at[1.0, 0] - at[0.0, 0], at[2.0, 0] - at[1.0, 0]
        return at[2.0, 1] < at[1.0, 1] - 1e-3 and rises[1] > max(1e-3, 1.05 * rises[0])

    @property
    def is_cross_entropy(self) -> bool:
        """Whether the loss is the binary cross-entropy of the answers, whatever these are."""
        if not self.replies:
            return False
        medium = {key: reply for key, reply in self.replies.items() if abs(key[0]) <= 3}
        return all(
            0 <= reply.answer <= 1
            and abs(reply.loss + np.log(max(reply.answer if label else 1 - reply.answer, 1e-7))) < 1e-3
            for (_, label), reply in medium.items()
        )

    @property
    def _answer(self):
        return self._tail or self._whole

    def _first_rows(self, num_rows):
        return keras.tree.map_structure(lambda array: None if array is None else array[:num_rows], self._data.first)

    @functools.cached_property
    def _tail(self):
        """The model behind the last dense layer's product, as a function from logits; `None` if it cannot be cut."""
        model, layer = self._patient.model, self._patient.logit_layer
        try:
            behind = (lambda x: x) if model.output is layer.output else keras.Model(layer.output, model.output)
        except (AttributeError, ValueError, TypeError):  # subclassed, or one of several outputs
            return None
        return lambda x, logits: behind(layer.activation(tf.cast(logits, layer.compute_dtype)))

    def _whole(self, x, logits):
        """The whole model, its last dense layer made to say the logits whatever it gets."""
        layer = self._patient.logit_layer

        def say(inputs, *_, **__):
            return layer.activation(tf.cast(logits, layer.compute_dtype))

        usual, layer.call = layer.call, say
        try:
            return self._patient.model(x, training=False)
        finally:
            layer.call = usual

    @functools.cached_property
    def is_blind_to_order(self) -> bool:
        """Whether the loss stays the same when labels change places, though not when they change.

        Of a model with a `train_step` of its own it is the step of the head that stays the same.
        """
        half = np.arange(len(self._data.labels_by_batch[0][:32])) % 2
        if len(half) < 2:
            return False
        if self._patient.has_own_step:
            same, swapped, changed = (self._step_of_head(labels) for labels in (half, 1 - half, np.ones_like(half)))
            return np.abs(swapped - same).max() < 1e-3 * np.abs(changed - same).max()
        swapped = self._loss_of(half, 1 - half) - self._loss_of(half, half)
        changed = self._loss_of(half, np.ones_like(half)) - self._loss_of(half, np.zeros_like(half))
        shifted = self._loss_of(np.ones_like(half), half) - self._loss_of(half, half)
        return abs(swapped) < 1e-5 and max(abs(changed), abs(shifted)) > 1e-3

    def _step_of_head(self, labels):
        """What the model's own training step takes off the head's kernel where the optimizer is plain SGD."""
        x, y, *weight = self._train_step.batch
        return self._train_step.sgd_update([self._patient.logit_layer.kernel], (x, self._like(y, labels), *weight))[0]

    def _loss_of(self, answers, labels):
        """The compiled loss of answers 0.3 (for 0) and 0.9 (for 1) in the shape of the model's."""
        return self._loss_at(np.where(answers, 0.9, 0.3), self._like(self._data.first[1], labels))

    def _loss_at(self, values, y):
        """The compiled loss of these answers, in the shape of the model's, to the first rows."""
        model = self._patient.model

        def like(output):
            shaped = values.reshape([-1] + [1] * (len(output.shape) - 1))
            if len(output.shape) > 1 and output.shape[-1] == 2:
                shaped = np.concatenate([1 - shaped, shaped], axis=-1)
            return tf.constant(shaped, output.dtype)

        outputs = keras.tree.map_structure(like, self._answers.raw)
        return float(model.compute_loss(self._data.first[0], y, outputs, None))

    def _reply(self, answer, x, y, logit, label):
        model = self._patient.model
        units = self._patient.logit_layer.units
        logits = tf.constant([[0.0] * (units - 1) + [logit]] * 2)
        with tf.GradientTape() as tape:
            tape.watch(logits)
            outputs = answer(x, logits)
            loss = model.compute_loss(x, self._like(y, np.full(2, label)), outputs, None)
        gradient = tape.gradient(loss, logits)
        said = flat(outputs)[0, -1]
        return Reply(float(said), float(loss), 0.0 if gradient is None else float(tf.reduce_sum(gradient[:, -1])))

    def _like(self, y, labels):
        """Returns 0/1 labels in the shapes, dtypes and, where the loss takes signs, the signs of the user's."""

        def like(array):
            shape = array.shape
            if len(shape) > 1 and shape[-1] == 2:
                return tf.constant(np.eye(2)[labels].reshape(shape), array.dtype)
            values = 2 * labels - 1 if self.takes_signs else labels
            return tf.constant(np.reshape(values, [-1] + [1] * (len(shape) - 1)) * np.ones(shape), array.dtype)

        return keras.tree.map_structure(like, y)
