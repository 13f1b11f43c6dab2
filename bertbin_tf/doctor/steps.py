"""What a step does: gradients, the rate in force, how far each layer moves."""

import contextlib
import functools
import math
from collections.abc import Callable, Sequence

import keras
import numpy as np
import tensorflow as tf

from bertbin_tf.doctor.batches import Batches
from bertbin_tf.doctor.patient import Patient
from bertbin_tf.doctor.train_step import TrainStep
from bertbin_tf.optimizers import LayerStatistics, few_steps_factor, sample_schedule, schedule_of
from bertbin_tf.optimizers.statistics import MIN_WEIGHT_RMS

# RMS(step) / RMS(weights) of the layers of a pre-trained encoder, measured best (`callbacks.controller`).
HEALTHY_STEP = 2e-3
# In the first step at the highest rate. Film reviews, MiniLM, one seed: 5 points lost at 5e-3, 14 at 1e-2
# (`benchmarks/robustness.py`); 1.7e-4 is the usual rate of 1e-5.
TOO_FAST, TOO_SLOW = 6e-3, 6e-5
ADAPTER_RATE = 5e-4


class Steps:
    """The user's own loss and optimizer, for one step.

    Args:
        patient: The model.
        data: Batches; the first one is stepped on.
        train_step: What the model's `train_step` does with them.
    """

    def __init__(self, patient: Patient, data: Batches, train_step: TrainStep):
        self._patient, self._data, self._train_step = patient, data, train_step
        self._reached_shares = {}  # by layer, of its weights by the last gradient
        self._reached_late = set()  # layers without a gradient in the first step

    @functools.cached_property
    def rates(self) -> dict[int, float]:
        """The rate at some 200 of the steps of one epoch, by step; one entry without a schedule."""
        optimizer = self._patient.optimizer
        schedule = schedule_of(optimizer)
        if schedule is None:
            return {0: float(keras.ops.convert_to_numpy(optimizer.learning_rate))}
        return sample_schedule(schedule, 0, max(1, self.num_steps))

    def rate_at(self, share: float) -> float:
        """Returns the rate when a share of one epoch is gone by.

        Args:
            share: Float in [0, 1].
        """
        steps = list(self.rates)
        return float(np.interp(share * steps[-1], steps, list(self.rates.values())))

    @property
    def healthy_rate(self) -> float:
        """The rate at which Adam's first step moves the encoder's layers by 2e-3 of their weights, in the median.

        Of the weights as they are: a remedy may have restored them.
        Of low-rank adapters alone it is that of Hu et al., 2021, https://arxiv.org/abs/2106.09685, table 9.
        """
        if self._patient.trains_adapters_only:
            return ADAPTER_RATE
        layers = {}
        for weight in self._patient.backbone_weights:
            layers.setdefault(self._patient.layer_of(weight), []).append(np.asarray(weight.value, "float32"))
        sizes = [
            np.sqrt(sum(float((array**2).sum()) for array in arrays) / sum(array.size for array in arrays))
            for arrays in layers.values()
        ]
        return HEALTHY_STEP * float(np.median(sizes)) if sizes else 1e-3

    def rate_for(self, epochs: int) -> float:
        """Returns the rate to train with for that long: `healthy_rate`, and more in few steps.

        Args:
            epochs: Int >= 1.
        """
        return self.healthy_rate * few_steps_factor(self.num_steps * epochs)

    @functools.cached_property
    def num_steps(self) -> int:
        """The optimizer's steps in one epoch, as far as the data tell; 1,000 if they do not."""
        return max(1, self._data.num_batches // self.num_accumulated) if self._data.num_batches else 1000

    @property
    def highest_rate(self) -> float:
        """The highest of `rates`."""
        return max(self.rates.values())

    @functools.cached_property
    def gradients(self) -> list[tf.Tensor]:
        """Of the trainable weights, for the first batch, in training."""
        return self._gradients()

    @functools.cached_property
    def moves(self) -> dict[str, LayerStatistics]:
        """By layer, what a copy of the optimizer does in its first step at the highest rate of the schedule.

        Of layers that no gradient reaches before the head's kernel has left zero, the second step is taken. Decay is
        left out.
        """
        return self._first_step()

    @functools.cached_property
    def unclipped_moves(self) -> dict[str, LayerStatistics]:
        """`moves` of an optimizer that does not clip."""
        return self._first_step(clipnorm=None, clipvalue=None, global_clipnorm=None)

    @functools.cached_property
    def encoder_moves(self) -> dict[str, LayerStatistics]:
        """`moves` of the layers of the text encoder."""
        layers = {self._patient.layer_of(weight) for weight in self._patient.backbone_weights}
        return {layer: move for layer, move in self.moves.items() if layer in layers}

    @functools.cached_property
    def whole_encoder_moves(self) -> dict[str, LayerStatistics]:
        """`encoder_moves` of the layers of which a gradient reaches half at least.

        Of an embedding a batch touches a few rows, and measured over all of them even a ruinous step is small.
        """
        moves = self.encoder_moves
        return {layer: move for layer, move in moves.items() if self._reached_shares[layer] >= 0.5}

    @functools.cached_property
    def held_by_epsilon(self) -> list[str]:
        """Of `whole_encoder_moves`, the layers whose gradient, as RMS, is below a tenth of the optimizer's epsilon.

        Behind a head that begins at zero a gradient is in proportion to what the head's kernel is after one step, the
        rate: it is counted as if that had grown to the size of new weights.
        """
        smallest = 0.1 * float(getattr(self._patient.optimizer, "epsilon", None) or 0.0)
        growth = max(1.0, MIN_WEIGHT_RMS / max(self.highest_rate, 1e-30))
        return [
            layer
            for layer, move in self.whole_encoder_moves.items()
            if 0 < move.gradient_norm * (growth if layer in self._reached_late else 1.0) < smallest * move.size**0.5
        ]

    @property
    def is_encoder_cut_off(self) -> bool:
        """Whether no gradient reaches a trainable encoder, though one reaches the head, and the rate is not 0."""
        gradients = [move.gradient_norm for move in self.encoder_moves.values()]
        return self.highest_rate > 0 and bool(gradients) and not any(gradients) and self._reaches("kernel")

    @property
    def moves_only_a_bias(self) -> bool:
        """Whether no gradient reaches anything but the last dense layer's bias, in the first step and the second."""
        if not self._reaches("bias") or self._reaches("kernel"):
            return False
        return not any(move.gradient_norm for layer, move in self.moves.items() if layer != self._patient.logit_name)

    def _reaches(self, name):
        wanted = getattr(self._patient.logit_layer, name, None)
        gradients = zip(self._patient.model.trainable_variables, self.gradients, strict=True)
        return any(variable is wanted and np.any(gradient) for variable, gradient in gradients)

    @functools.cached_property
    def head_travel(self) -> float:
        """The sum of the last dense layer's steps in one epoch, as RMS over its weights; 0 if it is not trained."""
        mean_rate = float(np.mean(list(self.rates.values())))
        return self.head_step * self.num_steps * mean_rate / max(self.highest_rate, 1e-30)

    @functools.cached_property
    def head_step(self) -> float:
        """The last dense layer's step at the highest rate, as RMS over its weights; 0 if it is not trained."""
        layer = self._patient.logit_layer
        names = {self._patient.layer_of(weight) for weight in layer.weights} if layer is not None else set()
        moved = [move.update_norm / move.size**0.5 for name, move in self.moves.items() if name in names]
        return max(moved, default=0.0)

    @functools.cached_property
    def num_accumulated(self) -> int:
        """The batches whose gradients are added up for one step, by the optimizer or by a `train_step` of the model."""
        by_the_model = 1
        if self._patient.has_own_step:
            with contextlib.suppress(Exception):  # it may take no such few rows
                by_the_model = self._train_step.num_accumulated or 1
        return by_the_model * (getattr(self._patient.optimizer, "gradient_accumulation_steps", None) or 1)

    @property
    def is_own_step_idle(self) -> bool:
        """Whether the model's own `train_step` changes none of the weights that it could change."""
        could = self._patient.has_own_step and self._patient.model.trainable_variables and self.highest_rate > 0
        return bool(could) and not self._train_step.num_accumulated

    @property
    def has_no_step(self) -> bool:
        """Whether an epoch ends before the first step because gradients are added up for longer."""
        return self._data.num_batches is not None and self.num_accumulated > self._data.num_batches

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
        optimizer = self._patient.fresh_optimizer(self.highest_rate, **changes)
        optimizer.build(variables)
        moves = self._step(optimizer, variables, self.gradients)
        self._reached_late = {layer for layer, move in moves.items() if move.gradient_norm == 0}
        if self._reached_late:
            second = self._step(optimizer, variables, self._gradients())
            moves |= {layer: second[layer] for layer in self._reached_late}
        for variable, value in zip(variables, start, strict=True):
            variable.assign(value)
        return moves

    def _step(self, optimizer, variables, gradients):
        before = [tf.identity(variable.value) for variable in variables]
        optimizer.apply(gradients, variables)
        layers = {}
        for variable, old, gradient in zip(variables, before, gradients, strict=True):
            layers.setdefault(self._patient.layer_of(variable), []).append((old, variable.value - old, gradient))
        for layer, members in layers.items():
            # And not of the weights that moved: a step too small for float32 moves none.
            num_reached = sum(int(tf.math.count_nonzero(gradient)) for _, _, gradient in members)
            self._reached_shares[layer] = num_reached / sum(math.prod(old.shape) for old, _, _ in members)
        return {layer: self._measure(*zip(*members, strict=True)) for layer, members in layers.items()}

    def _gradients(self):
        model = self._patient.model
        return gradients_of(model, model.compute_loss, model.trainable_variables, self._data.first)

    @functools.cached_property
    def gradient_norm(self) -> float:
        """The global norm of the gradient, before any clipping."""
        return _norm(self.gradients)

    def _measure(self, weights, updates, gradients):
        size = sum(math.prod(weight.shape) for weight in weights)
        return LayerStatistics(_norm(gradients), _norm(weights), _norm(updates), self.highest_rate, size)


def gradients_of(model: keras.Model, compute_loss: Callable, weights: Sequence[keras.Variable], batch: tuple) -> list:
    """Returns the gradient of each weight for a batch, in training; zeros where none arrives.

    Args:
        model: The model.
        compute_loss: Function from `(x, y, outputs, sample_weight)` to the loss.
        weights: Those wanted.
        batch: `(x, y, sample_weight)`.
    """
    x, y, sample_weight = batch
    with tf.GradientTape() as tape:
        loss = compute_loss(x, y, model(x, training=True), sample_weight)
    values = [weight.value for weight in weights]
    return [
        tf.zeros_like(value) if gradient is None else tf.convert_to_tensor(gradient)
        for gradient, value in zip(tape.gradient(loss, values), values, strict=True)
    ]


def _norm(tensors):
    return float(tf.linalg.global_norm([tf.cast(tensor, tf.float32) for tensor in tensors]))
