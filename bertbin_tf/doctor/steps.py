"""What a step does: gradients, the rate in force, how far each layer moves."""

import copy
import functools
import math
from typing import NamedTuple

import keras
import numpy as np
import tensorflow as tf

from bertbin_tf.doctor.batches import Batches
from bertbin_tf.doctor.patient import Patient
from bertbin_tf.optimizers import sample_schedule, schedule_of
from bertbin_tf.optimizers.statistics import MIN_WEIGHT_RMS


class Move(NamedTuple):
    """One layer in the first step at the highest rate.

    Args:
        gradient_norm: Float, the Euclidean norm of its gradient.
        step_rms: Float, the root mean square of what it moved by.
        relative_step: Float, RMS(step) / RMS(weights), where weights below 0.02 count as 0.02.
    """

    gradient_norm: float
    step_rms: float
    relative_step: float


class Steps:
    """The user's own loss and optimizer, for one step.

    Args:
        patient: The model.
        data: Batches; the first one is stepped on.
    """

    def __init__(self, patient: Patient, data: Batches):
        self._patient, self._data = patient, data

    @functools.cached_property
    def rates(self) -> dict[int, float]:
        """The rate at some 200 of the steps of one epoch, by step; one entry without a schedule."""
        optimizer = self._patient.optimizer
        schedule = schedule_of(optimizer)
        if schedule is None:
            return {0: float(keras.ops.convert_to_numpy(optimizer.learning_rate))}
        return sample_schedule(schedule, 0, max(1, self.num_steps))

    @functools.cached_property
    def num_steps(self) -> int:
        """The steps of one epoch, as far as the data tell; 1,000 if they do not."""
        return self._data.num_batches or 1000

    @property
    def highest_rate(self) -> float:
        """The highest of `rates`."""
        return max(self.rates.values())

    @functools.cached_property
    def gradients(self) -> list[tf.Tensor]:
        """Of the trainable weights, for the first batch, in training."""
        return self._gradients()

    @functools.cached_property
    def moves(self) -> dict[str, Move]:
        """By layer, what a copy of the optimizer does in its first step at the highest rate of the schedule.

        Of layers that no gradient reaches before the head's kernel has left zero, the second step is taken. Decay is
        left out.
        """
        return self._first_step()

    @functools.cached_property
    def unclipped_moves(self) -> dict[str, Move]:
        """`moves` of an optimizer that does not clip."""
        return self._first_step(clipnorm=None, clipvalue=None, global_clipnorm=None)

    @functools.cached_property
    def encoder_moves(self) -> dict[str, Move]:
        """`moves` of the layers of the text encoder."""
        layers = {self._patient.layer_of(weight) for weight in self._patient.backbone_weights}
        return {layer: move for layer, move in self.moves.items() if layer in layers}

    @functools.cached_property
    def head_travel(self) -> float:
        """The sum of the last dense layer's steps in one epoch, as RMS over its weights; 0 if it is not trained."""
        layer = self._patient.logit_layer
        names = {self._patient.layer_of(weight) for weight in layer.weights} if layer is not None else set()
        moved = [move.step_rms for name, move in self.moves.items() if name in names]
        mean_rate = float(np.mean(list(self.rates.values())))
        return max(moved, default=0.0) * self.num_steps * mean_rate / max(self.highest_rate, 1e-30)

    @functools.cached_property
    def peak_of_schedule(self) -> float:
        """The highest rate that the schedule has within a thousand epochs."""
        schedule = schedule_of(self._patient.optimizer)
        if schedule is None:
            return self.highest_rate
        return max(sample_schedule(schedule, 0, 1000 * self.num_steps).values())

    def _first_step(self, **changes):
        variables = self._patient.model.trainable_variables
        start = [tf.identity(variable.value) for variable in variables]
        optimizer = self.fresh_optimizer(self.highest_rate, weight_decay=0.0, **changes)
        optimizer.build(variables)
        moves = self._step(optimizer, variables, self.gradients)
        if any(move.gradient_norm == 0 for move in moves.values()):
            second = self._step(optimizer, variables, self._gradients())
            moves |= {layer: second[layer] for layer, move in moves.items() if move.gradient_norm == 0}
        for variable, value in zip(variables, start, strict=True):
            variable.assign(value)
        return moves

    def _step(self, optimizer, variables, gradients):
        before = [tf.identity(variable.value) for variable in variables]
        optimizer.apply(gradients, variables)
        layers = {}
        for variable, old, gradient in zip(variables, before, gradients, strict=True):
            layers.setdefault(self._patient.layer_of(variable), []).append((old, variable.value - old, gradient))
        return {layer: _move(members) for layer, members in layers.items()}

    def _gradients(self):
        model = self._patient.model
        x, y, sample_weight = self._data.first
        with tf.GradientTape() as tape:
            loss = model.compute_loss(x, y, model(x, training=True), sample_weight)
        variables = [variable.value for variable in model.trainable_variables]
        return [
            tf.zeros_like(variable) if gradient is None else tf.convert_to_tensor(gradient)
            for gradient, variable in zip(tape.gradient(loss, variables), variables, strict=True)
        ]

    @functools.cached_property
    def gradient_norm(self) -> float:
        """The global norm of the gradient, before any clipping."""
        return float(tf.linalg.global_norm([tf.cast(gradient, tf.float32) for gradient in self.gradients]))

    def fresh_optimizer(self, learning_rate, **changes) -> keras.optimizers.Optimizer:
        """Returns a copy of the optimizer without state, at a rate of one's own, with other changes to its config."""
        optimizer = self._patient.optimizer
        # Accumulation would hold the step back.
        config = (
            optimizer.get_config() | {"learning_rate": learning_rate, "gradient_accumulation_steps": None} | changes
        )
        fresh = type(optimizer).from_config(config)
        for name in ("_exclude_from_weight_decay_pattern", "_exclude_from_weight_decay_cache"):
            if hasattr(optimizer, name):
                setattr(fresh, name, copy.copy(getattr(optimizer, name)))
        return fresh


def _move(members):
    size = sum(math.prod(old.shape) for old, _, _ in members)
    weights, step, gradient = (
        math.sqrt(sum(float(tf.reduce_sum(tf.square(tf.cast(member[i], tf.float32)))) for member in members))
        for i in range(3)
    )
    return Move(gradient, step / math.sqrt(size), step / max(weights, MIN_WEIGHT_RMS * math.sqrt(size)))
